// Notes of what the repository holds, and what the command line finds in them.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

const root = new URL("../../../", import.meta.url).pathname;

/** As a text area gives them back: lines end in one character, and surrogates have their partners. */
const typed = (text) => text.replace(/\r\n?/g, "\n");

/** Fifty of a sentence or some, hard ones among them, and four as long as many windows. */
export function notes() {
  const sentences = readFileSync(`${root}examples/produce/data/transfer.txt`, "utf8").trim().split("\n");
  const { cases } = JSON.parse(readFileSync(`${root}bindings/scenario.json`, "utf8"));
  const hard = cases.filter(({ name }) => /around a sentence$|^entities/.test(name)).map(({ text }) => text);
  // With what is hard to count in between.
  const long = [0, 50, 100, 150].map((first) => sentences.slice(first, first + 50).join(" 😀e\u0301\n"));
  const plain = 50 - hard.length;
  if (hard.length < 10 || plain < 10) throw new Error(`${hard.length} hard texts, ${plain} sentences`);
  return { short: [...sentences.slice(0, plain), ...hard].map(typed), long: long.map(typed) };
}

export function byCommandLine(texts) {
  const input = texts.map((text) => JSON.stringify({ text })).join("\n");
  const lines = execFileSync(`${root}target/release/ampoule`, ["extract", "--json", "--offsets", "utf16", "--jsonl", "-"], { input });
  return lines.toString().trim().split("\n").map((line) => JSON.parse(line).entities);
}
