// What the tests of the page share: a browser whose every way to the outside is watched, and ways to use the page.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";

import { byCommandLine, notes } from "./notes.mjs";
import { outside, serve } from "./server.mjs";

export const [folder, tools] = process.argv.slice(2);
const require = createRequire(`${tools}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const pictures = `${folder}/../pictures`;
mkdirSync(pictures, { recursive: true });
export const bundle = "clinical-en.int8.safetensors";
export const SENTENCE = "Started on lisinopril for hypertension; developed angioedema.";
export const FOUND = ["lisinopril Chemical", "hypertension Disease", "angioedema Disease"];
/** In no vocabulary, and nowhere else. */
export const CANARY = "Zyxqvorblat";

let passed = 0;
let failed = 0;
export function check(what, holds, found) {
  if (holds) passed += 1;
  else failed += 1;
  if (!holds) console.log(`failed: ${what}${found === undefined ? "" : `: ${JSON.stringify(found).slice(0, 2000)}`}`);
}
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** In the page before its own code: the messages of its Workers, and how many there were. */
function listen() {
  window.workers = 0;
  window.messages = [];
  window.Worker = class extends Worker {
    constructor(...of) {
      super(...of);
      window.workers += 1;
      this.addEventListener("message", ({ data }) => window.messages.push(data));
    }
  };
}

export const world = await outside();
const profiles = [];
export const said = [];
export const served = [];
export const requested = new Set();

/** A browser with a profile of its own, whose every way to the outside leads to `world`. */
export async function browse({ flags = [], ...options } = {}) {
  const profile = mkdtempSync(`${tmpdir()}/ampoule-web-`);
  profiles.push(profile);
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", ...flags],
    proxy: { server: world.origin, bypass: "127.0.0.1" },
    ...options,
  });
  context.on("console", (message) => said.push(message.text()));
  context.on("weberror", (error) => said.push(String(error.error())));
  context.on("request", (request) => requested.add(new URL(request.url()).origin));
  await context.addInitScript(listen);
  return { context, profile, page: context.pages()[0] };
}

export const ready = (page) => page.waitForSelector("#example:enabled");
export const settled = (page) => page.waitForSelector("#marked[aria-busy=false]", { timeout: 120_000 });
/** What is marked: each entity's text and label, and its range in the note. */
export const marks = (page) => page.$$eval("#marked mark", (all) => all.map((mark) => {
  const before = document.createRange();
  before.setStart(document.getElementById("marked"), 0);
  before.setEndBefore(mark);
  const texts = before.cloneContents();
  for (const tag of texts.querySelectorAll(".tag")) tag.remove();
  const [text, tag] = [mark.firstChild.textContent, mark.lastChild.textContent.trim()];
  const from = texts.textContent.length;
  return { from, to: from + text.length, text, label: tag.split(" ")[0], shown: tag.split(" ")[1] };
}));
/** As if it were pasted. */
export const enter = (page, note) => page.evaluate((text) => {
  const area = document.getElementById("note");
  area.value = text;
  area.dispatchEvent(new Event("input"));
}, note);
export const briefly = async (page) => (await marks(page)).map(({ text, label }) => `${text} ${label}`);
export async function read(page, note) {
  await page.evaluate(() => (window.messages = []));
  await enter(page, note);
  await settled(page);
  return page.evaluate(() => window.messages.flatMap(({ entities }) => entities ?? []));
}

export async function accessible(page, state) {
  await page.evaluate(axe);
  for (const colorScheme of ["light", "dark"]) {
    for (const [width, height] of [[1280, 900], [390, 844]]) {
      await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
      await page.setViewportSize({ width, height });
      const { violations, passes } = await page.evaluate(() => window.axe.run());
      const what = `${state}, ${colorScheme}, ${width} px`;
      check(`axe at ${what}`, violations.length === 0, violations.map((v) => [v.id, v.nodes.map((n) => n.html)]));
      check(`axe looked at contrast at ${what}`, passes.some((p) => p.id === "color-contrast"));
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
      check(`nothing is wider than the screen at ${what}`, wide <= 0, wide);
      const small = await page.$$eval("button:not([hidden]), summary, input", (all) =>
        all.filter((each) => (each.closest("label") ?? each).getBoundingClientRect().height < 44).map((each) => each.id || each.tagName));
      check(`what is touched is at least 44 px high at ${what}`, small.length === 0, small);
      await page.screenshot({ path: `${pictures}/${state}-${colorScheme}-${width}.png`, fullPage: true });
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1280, height: 900 });
}

/**
 * Fifty short notes and four long ones against the command line: where one has an entity whose score is `sure`, so has the other, and
 * scores of the two are `near`; each for notes of the kind `short`, `long` or both.
 */
export async function compare(page, { sure, near }) {
  const kinds = Object.keys(near);
  const off = {};
  let [texts, entities] = [0, 0];
  for (const kind of kinds) {
    const all = notes()[kind];
    const expected = byCommandLine(all);
    off[kind] = 0;
    for (const [i, text] of all.entries()) {
      const found = await read(page, text);
      const drawn = await marks(page);
      const shown = found.map(({ label, from, to, score }) => ({ from, to, text: text.slice(from, to), label, shown: score.toFixed(2) }));
      check(`${kind} note ${i} is marked as it was read`, same(drawn, shown), [drawn, shown]);
      const known = expected[i].map(({ label, start, end, score }) => ({ label, from: start, to: end, score }));
      const pair = (one, all) => all.find((e) => e.from === one.from && e.to === one.to && e.label === one.label);
      const isMissing = (all) => (e) => !pair(e, all) && e.score >= sure[kind];
      const missing = [...known.filter(isMissing(found)), ...found.filter(isMissing(known))];
      check(`${kind} note ${i} has the command line's entities`, missing.length === 0, missing);
      for (const e of found) off[kind] = Math.max(off[kind], Math.abs(e.score - (pair(e, known)?.score ?? e.score)));
      entities += found.length;
    }
    texts += all.length;
    check(`scores of ${kind} notes come near the command line's`, off[kind] <= near[kind], off);
  }
  check("entities were compared", entities > texts, entities);
  console.log(`${texts} notes, ${entities} entities; scores within ${JSON.stringify(off)} of the command line's`);
}

/** Requests to these are the page's own. */
export async function host(changed) {
  const server = await serve(folder, changed);
  served.push(server.origin);
  return server;
}

/** The files of a browser's profile in which there is what matches. */
export function profiled(profile, pattern) {
  try {
    return execFileSync("grep", ["-rlaP", pattern, profile]).toString();
  } catch (error) {
    if (error.status === 1) return "";
    throw error;
  }
}

/** That a browser's profile, once it is closed, holds nothing of the canary. */
export function checkProfile(profile, what) {
  check(`the profile holds the page's files ${what}`, profiled(profile, "clinical-en") !== "");
  check(`the browser's profile on the disk holds nothing of a note ${what}`, profiled(profile, CANARY) === "", profiled(profile, CANARY));
  check(`nor in UTF-16 ${what}`, profiled(profile, [...CANARY].join("\\x00")) === "");
  check(`the console holds nothing of a note ${what}`, !said.some((text) => text.includes(CANARY)), said);
}

/** Ends the tests: whoever is gone took nothing along. */
export function end() {
  world.stop();
  for (const each of profiles) rmSync(each, { recursive: true, force: true });
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}
