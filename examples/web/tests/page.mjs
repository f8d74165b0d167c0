// The page in Chromium: node page.mjs FOLDER TOOLS, the page as scripts/web.sh puts it together and where playwright-core and axe-core are
// installed. Leaves pictures of it in FOLDER/../pictures.
import { readFileSync } from "node:fs";

import {
  accessible, briefly, browse, bundle, CANARY, check, checkProfile, compare, end, enter, folder, FOUND, host, marks,
  read, ready, requested, said, same, SENTENCE, served, settled, world,
} from "./browser.mjs";
import { notes } from "./notes.mjs";
import { serve } from "./server.mjs";

async function typing(page) {
  const long = Array.from({ length: 8 }, () => notes().long.join(" ")).join("\n");
  const before = await page.evaluate(() => window.workers);
  for (const end of SENTENCE.match(/.{1,3}/g).map((_, i) => 3 * (i + 1))) await page.fill("#note", SENTENCE.slice(0, end));
  await settled(page);
  check("keys that were typed quickly leave the last note's entities", same(await briefly(page), FOUND), await briefly(page));
  check("short notes need no other Worker", (await page.evaluate(() => window.workers)) === before);
  await enter(page, long);
  await page.waitForFunction(() => document.querySelectorAll("#marked mark").length > 100);
  check("a long note's entities are marked before it is read", (await page.getAttribute("#marked", "aria-busy")) === "true");
  const start = performance.now();
  await enter(page, SENTENCE);
  await settled(page);
  console.log(`${(performance.now() - start).toFixed(0)} ms after a note of ${long.length} characters was overtaken, the next was read`);
  check("what is typed overtakes a long note", same(await briefly(page), FOUND), await briefly(page));
  check("by another Worker", (await page.evaluate(() => window.workers)) === before + 1);
  await page.evaluate(() => (window.messages = []));
  await page.waitForTimeout(500);
  check("nothing comes of a note that was overtaken", (await page.evaluate(() => window.messages.length)) === 0);
  await enter(page, "lisinopril \ud800 hypertension \udc00");
  await settled(page);
  check("surrogates alone are one unit each", same((await marks(page)).map((m) => [m.from, m.to]), [[0, 10], [13, 25]]), await marks(page));
  await page.click("#clear");
  await settled(page);
  check("an empty note has nothing", (await page.textContent("#marked")) === "" && (await page.textContent("#facts")) === "");
}

async function speed(page) {
  const words = notes().long.join(" ").split(" ");
  for (const count of [75, 300, 3000]) {
    const times = [];
    for (let i = 0; i < 5; i++) {
      await read(page, words.slice(0, count).concat("x".repeat(i)).join(" "));
      times.push(await page.evaluate(() => window.messages.at(-1).answer));
    }
    console.log(`${count} words: ${times.sort((a, b) => a - b)[2].toFixed(1)} ms, the median of 5`);
  }
}

async function otherBundles(page) {
  const whole = readFileSync(`${folder}/${bundle}`);
  const flipped = Buffer.from(whole);
  flipped[flipped.length - 1000] ^= 1;
  const choose = async (name, buffer) => {
    await page.setInputFiles("#bundle", { name, mimeType: "application/octet-stream", buffer });
    await page.waitForFunction((n) => document.getElementById("problem").textContent.includes(n)
      || document.getElementById("bundle-name").textContent === n, name);
    return page.textContent("#problem");
  };
  await read(page, SENTENCE);
  for (const [name, bytes, reason] of [
    ["short.safetensors", whole.subarray(0, 100_000), /was not opened: .*cut short|expected/],
    ["flipped.safetensors", flipped, /was not opened: .*SHA-256/],
    ["empty.safetensors", Buffer.alloc(0), /was not opened: .*0 bytes/],
    ["labels.safetensors", readFileSync(new URL("../../../bindings/tests/labels.safetensors", import.meta.url)), /cannot find entities/],
  ]) {
    const problem = await choose(name, bytes);
    check(`${name} is refused`, reason.test(problem), problem);
    check(`the own bundle stays after ${name}`, (await page.textContent("#bundle-name")) === bundle);
  }
  await read(page, SENTENCE);
  check("and still reads", same(await briefly(page), FOUND));
  check("and nothing is complained of", await page.isHidden("#problem"));
  await choose("mine.safetensors", whole);
  await settled(page);
  check("another bundle reads the note at once", same(await briefly(page), FOUND));
  await page.click("#default");
  await page.waitForFunction((n) => document.getElementById("bundle-name").textContent === n, bundle);
  check("and the page's own comes back", await page.isHidden("#default"));
}

async function byKeyboard(page) {
  await page.reload();
  await ready(page);
  const order = [];
  for (let i = 0; i < 9; i++) {
    await page.keyboard.press("Tab");
    order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
    const ring = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    check(`the focus shows on ${order.at(-1)}`, ring === "solid", ring);
    if (order.at(-1) === "note") await page.keyboard.type(SENTENCE);
  }
  check("the keyboard's way through the page", same(order.slice(0, 7), ["example", "clear", "note", "marked", "bundle", "cpu", "SUMMARY"]), order);
  await settled(page);
  check("a note that is typed is read", same(await briefly(page), FOUND), await briefly(page));
  await page.waitForFunction(() => document.getElementById("announcement").textContent !== "");
  const announced = await page.textContent("#announcement");
  check("a screen reader hears counts, and no text", announced === "3 entities: Chemical 1, Disease 2.", announced);
}

const [main, other] = [await host({}), await serve(folder, {})];
const { context, profile, page } = await browse();
let start = performance.now();
await page.goto(main.origin);
await ready(page);
console.log(`${(performance.now() - start).toFixed(0)} ms until the page is ready, from this machine`);
await accessible(page, "empty");
// In many windows one of two readings that are as likely may be another kernel's: as from AVX-512 to AVX2, so from either to this.
await compare(page, { sure: { short: 0, long: 0.5 }, near: { short: 1e-3, long: 1e-2 } });
await speed(page);
await typing(page);
await page.click("#example");
await settled(page);
await page.click("summary");
const about = await page.textContent("#about");
check("the self-check is told", about.includes("passed: simd128 and scalar compute the same"), about);
check("what the model must not be used for is told", (await page.textContent("#limits")).includes("no medical device"));
await accessible(page, "example");
await otherBundles(page);
await page.setInputFiles("#bundle", { name: "broken.safetensors", mimeType: "", buffer: Buffer.from("{}") });
await page.waitForSelector("#problem:visible");
await accessible(page, "problem");
await byKeyboard(page);

// Offline, with the server gone.
await page.waitForFunction(() => document.getElementById("offline").textContent === "This page works offline.");
const asked = main.asked.length;
await main.stop();
await page.reload();
await ready(page);
await read(page, SENTENCE);
check("offline the page reads notes", same(await briefly(page), FOUND));
check("and asks for nothing", main.asked.length === asked);
const session = await context.newCDPSession(page);
const { installabilityErrors } = await session.send("Page.getInstallabilityErrors");
check("the page can be installed", installabilityErrors.length === 0, installabilityErrors);
const problems = said.splice(0);
check("nothing was said on the console", problems.length === 0, problems);

// Several models in one module, one of them freed.
const labels = await page.workers()[0].evaluate(async ([name, note]) => {
  const { Model } = await import(new URL("ampoule.js", location.href));
  const bytes = new Uint8Array(await (await fetch(name)).arrayBuffer());
  const models = [Model.open(bytes, false), Model.open(bytes, false)];
  const read = (model) => {
    const found = [];
    model.extract(note, (label) => found.push(label));
    return found;
  };
  const before = read(models[0]);
  models[0].free();
  return [before, read(models[1]), read(Model.open(bytes, false))];
}, [bundle, SENTENCE]);
check("one module holds several models", labels.every((found) => same(found, ["Chemical", "Disease", "Disease"])), labels);

// Neither page nor Worker can send anything, whatever it wants: each try is refused by the policy, which the console says.
const [worker] = page.workers();
const elsewhere = [`${other.origin}/index.html`, "http://outside.example/"];
for (const [who, place] of [["the page", page], ["its Worker", worker]]) {
  for (const url of elsewhere) {
    const answer = await place.evaluate((u) => fetch(u, { mode: "no-cors" }).then(() => "sent", () => "refused"), url);
    check(`${who} can send nothing to ${url}`, answer === "refused", answer);
  }
}
check("by the policy", said.filter((text) => /Content Security Policy/.test(text)).length >= elsewhere.length, said);
check("nothing arrived", other.asked.length === 0, other.asked);
said.length = 0;

// The canary, after which nothing of it may be anywhere.
await read(page, `${CANARY} was started on lisinopril. ${SENTENCE}`);
check("the canary was read", (await briefly(page)).length >= 3);
await page.setInputFiles("#bundle", { name: "broken.safetensors", mimeType: "", buffer: Buffer.from("{}") });
await page.waitForSelector("#problem:visible");
const kept = await page.evaluate(async () => {
  const cached = [];
  for (const name of await caches.keys()) {
    const cache = await caches.open(name);
    for (const request of await cache.keys()) cached.push(request.url, await (await cache.match(request)).text());
  }
  return [location.href, document.title, document.cookie, JSON.stringify({ ...localStorage, ...sessionStorage }),
    JSON.stringify(await indexedDB.databases()), JSON.stringify(history.state), document.getElementById("announcement").textContent,
    ...cached];
});
check("caches were looked at", kept.length > 30, kept.length);
check("nothing is kept of a note", !kept.some((text) => text.includes(CANARY)));
check("nothing but the page's files is kept", kept[2] === "" && kept[3] === "{}" && kept[4] === "[]", kept.slice(0, 6));
await page.waitForTimeout(1000);
await context.close();
checkProfile(profile, "on the processor");

// A trap: memory that the module may not have, as on a device that is short of it.
const trap = await host(shortOfMemory(900));
const small = await browse({ serviceWorkers: "block" });
await small.page.goto(trap.origin);
await ready(small.page);
await read(small.page, SENTENCE);
check("with little memory short notes are read", same(await briefly(small.page), FOUND));
await enter(small.page, CANARY.repeat(5_000_000));
await small.page.waitForSelector("#problem:visible", { timeout: 120_000 });
const problem = await small.page.textContent("#problem");
check("a trap is told by a fixed message", /^The module stopped while it read this note, and was started again\./.test(problem), problem);
await read(small.page, SENTENCE);
check("after a trap notes are read", same(await briefly(small.page), FOUND));
check("by another Worker, one", (await small.page.evaluate(() => window.workers)) === 2);
check("and nothing is complained of", await small.page.isHidden("#problem"));
await small.context.close();
const afterTrap = said.splice(0);
check("the console holds nothing of a note that trapped", !afterTrap.some((text) => text.includes(CANARY)), afterTrap);

// A module that is damaged, and one whose file is another.
for (const [what, changed, message] of [
  ["a module that is none", { "ampoule.wasm": Buffer.alloc(readFileSync(`${folder}/ampoule.wasm`).length) }, /too old/],
  ["a module of another version", { "ampoule.wasm": readFileSync(`${folder}/ampoule.wasm`).subarray(0, -1) }, /not the file that belongs/],
  ["a bundle that is missing", { [bundle]: null }, /the server answers 404/],
]) {
  const server = await host(changed);
  const damaged = await browse({ serviceWorkers: "block" });
  await damaged.page.goto(server.origin);
  await damaged.page.waitForSelector("#problem:visible");
  const text = await damaged.page.textContent("#problem");
  check(`${what} is told of`, message.test(text), text);
  await damaged.context.close();
  await server.stop();
}

// A file that its host has rewritten.
const rewriting = await host({ "style.css": `${readFileSync(`${folder}/style.css`)}\n` });
const rewritten = await browse();
await rewritten.page.goto(rewriting.origin);
await rewritten.page.waitForFunction(() => document.getElementById("offline").textContent.includes("could not be kept"));
check("what its host rewrites is not kept", (await rewritten.page.evaluate(() => caches.match("style.css"))) === undefined);
check("nothing was asked of any other place", [...requested].every((origin) => served.includes(origin)), [...requested]);
const blank = await rewritten.context.newPage();
await blank.evaluate(() => fetch("http://outside.example/control", { mode: "no-cors" }).catch(() => {}));
await rewritten.context.close();
await rewriting.stop();

// Chromium calls its maker by itself, of updates and the like, without a page too.
const others = world.called.filter((url) => !/^(http:\/\/)?[a-z0-9-]+\.(google|googleapis)\.com[:/]/.test(url));
check("nobody outside was called, and who would have been is known", same(others, ["http://outside.example/control"]), others);
await Promise.all([other.stop(), trap.stop()]);
end();

/** The module with so many pages of memory at most, and the sizes that the page then expects. */
function shortOfMemory(most) {
  const bytes = readFileSync(`${folder}/ampoule.wasm`);
  const leb = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >> 7)]);
  const number = (at) => {
    let [value, shift] = [0, 0];
    for (;;) {
      const byte = bytes[at++];
      value |= (byte & 127) << shift;
      shift += 7;
      if (byte < 128) return [value, at];
    }
  };
  for (let at = 8; at < bytes.length; ) {
    const [id, [length, start]] = [bytes[at], number(at + 1)];
    if (id === 5) {
      const [least] = number(start + 2);
      const memory = [1, 1, ...leb(least), ...leb(most)];
      const section = Buffer.from([5, ...leb(memory.length), ...memory]);
      const module = Buffer.concat([bytes.subarray(0, at), section, bytes.subarray(start + length)]);
      const sizes = readFileSync(`${folder}/sizes.js`, "utf8");
      const changed = sizes.replace(`"ampoule.wasm":${bytes.length}`, `"ampoule.wasm":${module.length}`);
      return { "ampoule.wasm": module, "sizes.js": changed };
    }
    at = start + length;
  }
  throw new Error("the module has no memory of its own");
}
