// The page's GPU in Chromium, whose WebGPU is SwiftShader's here, and where there is none: node gpu.mjs FOLDER TOOLS, as page.mjs.
import { readFileSync } from "node:fs";

import {
  accessible, briefly, browse, CANARY, check, checkProfile, compare, end, enter, folder, FOUND, host, read, ready,
  requested, said, same, SENTENCE, served, settled,
} from "./browser.mjs";

const SWIFTSHADER = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

const told = (page) => page.textContent("#device");
const facts = (page) => page.textContent("#facts");
/** Milliseconds until the page has opened the GPU, or said why not. */
async function choose(page) {
  const start = performance.now();
  await page.click("#gpu");
  await page.waitForFunction(() => !document.getElementById("device").textContent.startsWith("Opening"), null, { timeout: 300_000 });
  await settled(page);
  return performance.now() - start;
}

/** The page on a browser of its own, with what is done to its Workers before the module comes. */
async function visit({ prelude = "", engine = (text) => text, query = "?software", flags = SWIFTSHADER } = {}) {
  const of = (name) => readFileSync(`${folder}/${name}`, "utf8");
  const server = await host({ "worker.js": `${prelude}\n${of("worker.js")}`, "engine.js": engine(of("engine.js")) });
  const browser = await browse({ flags, serviceWorkers: "block" });
  await browser.page.goto(server.origin + query);
  await ready(browser.page);
  return { ...browser, leave: () => Promise.all([browser.context.close(), server.stop()]) };
}

// As it is meant to be: chosen, read by, and offline once it was there.
const server = await host({});
const { context, profile, page } = await browse({ flags: SWIFTSHADER });
await page.goto(`${server.origin}/?software`);
await ready(page);
await page.waitForFunction(() => document.getElementById("offline").textContent === "This page works offline.");
const ofGpu = () => server.asked.filter((name) => name.startsWith("ampoule_webgpu")).sort();
check("nothing of the GPU is fetched before it is chosen", ofGpu().length === 0, server.asked);
await enter(page, SENTENCE);
await settled(page);
const opening = choose(page);
await page.waitForFunction(() => document.getElementById("device").textContent.startsWith("Opening"));
await read(page, SENTENCE);
check("until it is open the processor reads", /by the processor$/.test(await facts(page)), await facts(page));
console.log(`${(await opening).toFixed(0)} ms until SwiftShader was open, proof and all, this time without the module in a cache`);
check("it is open", (await told(page)) === "" && (await page.isChecked("#gpu")), await told(page));
check("and reads the note at once", /^3 entities in .* by the GPU$/.test(await facts(page)), await facts(page));
check("with the same entities", same(await briefly(page), FOUND), await briefly(page));
check("its files were fetched once", same(ofGpu(), ["ampoule_webgpu.js", "ampoule_webgpu.wasm"]), ofGpu());
await page.click("summary");
const about = await page.textContent("#about");
check("who computes is told", /google swiftshader, in f32/.test(about), about);
check("and its proof", /the model answers its 4 golden cases, within \de-\d of their values/.test(about), about);
await accessible(page, "gpu");
await compare(page, { sure: { short: 0 }, near: { short: 5e-2 } });
await page.check("#cpu");
await settled(page);
await page.waitForFunction(() => document.getElementById("facts").textContent.endsWith("by the processor"));
check("the processor can be chosen again", (await told(page)) === "");
await choose(page);
await server.stop();
await page.reload();
await ready(page);
await choose(page);
await read(page, SENTENCE);
check("offline the GPU is there too", /by the GPU$/.test(await facts(page)) && same(await briefly(page), FOUND), await told(page));
const words = readFileSync(new URL("../../produce/data/transfer.txt", import.meta.url), "utf8");
const before = await page.evaluate(() => window.workers);
await enter(page, words);
await page.waitForFunction(() => document.querySelectorAll("#marked mark").length > 20, null, { timeout: 120_000 });
check("a long note's entities are marked before it is read", (await page.getAttribute("#marked", "aria-busy")) === "true");
await read(page, SENTENCE);
check("what is typed overtakes a long note", same(await briefly(page), FOUND), await briefly(page));
check("by the same Worker", (await page.evaluate(() => window.workers)) === before);
await read(page, `${CANARY} was started on lisinopril. ${SENTENCE}`);
check("the canary was read by the GPU", /by the GPU$/.test(await facts(page)) && (await briefly(page)).length >= 3);
check("nothing was said on the console", said.length === 0, said);
await page.waitForTimeout(1000);
await context.close();
checkProfile(profile, "on a GPU");

// Offline, and never chosen before.
const gone = await host({});
const late = await browse({ flags: SWIFTSHADER });
await late.page.goto(`${gone.origin}/?software`);
await late.page.waitForFunction(() => document.getElementById("offline").textContent === "This page works offline.");
await gone.stop();
await choose(late.page);
check("what was never fetched is not there offline", /could not be fetched/.test(await told(late.page)), await told(late.page));
check("and the processor is chosen", await late.page.isChecked("#cpu"));
await late.context.close();

// What a GPU may do wrong: each is told, and the processor's answer is there.
const answers = (change) => `
  let reads = 0;
  const mapped = GPUBuffer.prototype.getMappedRange;
  GPUBuffer.prototype.getMappedRange = function (...of) {
    const bytes = mapped.apply(this, of);
    if (!(this.usage & GPUBufferUsage.MAP_READ)) return bytes;
    reads += 1;
    const values = new Float32Array(bytes.slice(0));
    for (let i = 0; i < values.length; i++) values[i] = (${change})(values[i], i, reads);
    return values.buffer;
  };`;
for (const [what, prelude, reason] of [
  ["answers wrongly", answers("(x) => x + 0.1"), /^The GPU is not used: .*golden case 0/],
  ["answers wrongly from its second on", answers("(x, i, n) => (n > 1 ? 1.01 * x : x)"), /^The GPU is not used: .*golden case 1/],
  ["has one wrong lane", answers("(x, i) => (i === 5 ? -x : x)"), /^The GPU is not used: .*golden case 0 .*value 5/],
  ["is not there", "GPU.prototype.requestAdapter = async () => null;", /^The GPU is not used: .*no GPU adapter was found/],
  ["gives no device", "GPUAdapter.prototype.requestDevice = async () => { throw new Error('none'); };", /^The GPU is not used: .*could be opened/],
  ["has no memory", "GPUDevice.prototype.createBuffer = () => { throw new RangeError('no memory'); };", /^The GPU is not used: the module stopped/],
]) {
  const { page, leave } = await visit({ prelude });
  await choose(page);
  check(`a GPU that ${what} is not used`, reason.test(await told(page)), await told(page));
  check(`the processor is chosen where a GPU ${what}`, await page.isChecked("#cpu"));
  await read(page, SENTENCE);
  check(`and reads where a GPU ${what}`, same(await briefly(page), FOUND) && /by the processor$/.test(await facts(page)));
  await leave();
}

// Nine batches prove it.
const soon = (text) => text.replace(/PATIENCE = [\d_]+/, "PATIENCE = 25_000");
for (const [what, prelude, reason, engine] of [
  ["is lost", `
    const request = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = async function (...of) {
      const device = await request.apply(this, of);
      addEventListener("message", ({ data }) => data.note?.includes("x") && device.destroy());
      return device;
    };`, /the device was lost|cannot be read/],
  ["answers with what is no number", answers("(x, i, n) => (n > 10 ? NaN : x)"), /what is not finite/],
  ["answers with zeros", answers("(x, i, n) => (n > 10 ? 0 : x)"), /zeros alone/],
  ["answers beyond all bounds", answers("(x, i, n) => (n > 10 ? 1e9 * x : x)"), /beyond all that the model says/],
  ["hangs", `
    let maps = 0;
    const map = GPUBuffer.prototype.mapAsync;
    GPUBuffer.prototype.mapAsync = function (...of) {
      maps += 1;
      return maps > 10 ? new Promise(() => {}) : map.apply(this, of);
    };`, /did not answer in time/, soon],
]) {
  const { page, leave } = await visit({ prelude, engine });
  await choose(page);
  check(`a GPU that later ${what} is open`, (await told(page)) === "", await told(page));
  await read(page, SENTENCE);
  check(`a GPU that later ${what} reads`, same(await briefly(page), FOUND) && /by the GPU$/.test(await facts(page)), await facts(page));
  await read(page, `x ${SENTENCE}`);
  await page.waitForFunction(() => document.getElementById("cpu").checked);
  await settled(page);
  check(`it is told that a GPU ${what}`, /^The GPU failed, and the processor reads on: /.test(await told(page)) && reason.test(await told(page)),
    await told(page));
  check(`the processor answers where a GPU ${what}`, same(await briefly(page), FOUND) && /by the processor$/.test(await facts(page)));
  check(`nothing is complained of where a GPU ${what}`, await page.isHidden("#problem"));
  await leave();
}

// Numbers that look right: the golden cases tell, at the latest after 64 batches.
const { page: wrong, leave } = await visit({ prelude: answers("(x, i, n) => (n > 12 ? 1.05 * x : x)") });
await choose(wrong);
let notes = 0;
while ((await told(wrong)) === "" && notes < 70) {
  notes += 1;
  await read(wrong, `${"-".repeat(notes)} ${SENTENCE}`);
}
check("plausible wrong answers are found", /golden case/.test(await told(wrong)), [notes, await told(wrong)]);
await wrong.waitForFunction(() => document.getElementById("cpu").checked);
check("before the 65th note", notes <= 64, notes);
await leave();

// Software, unasked for, and no WebGPU.
const plain = await visit({ query: "" });
await choose(plain.page);
check("software in a GPU's place is refused", /the only GPU adapter is software/.test(await told(plain.page)), await told(plain.page));
await plain.leave();
const without = await visit({ flags: ["--disable-features=WebGPUService,WebGPU"] });
await without.page.addInitScript(() => delete Navigator.prototype.gpu);
await without.page.reload();
await ready(without.page);
check("without WebGPU there is nothing to choose", await without.page.isDisabled("#gpu"));
check("and why is told", (await told(without.page)) === "This browser has no WebGPU.");
await read(without.page, SENTENCE);
check("and the processor reads", same(await briefly(without.page), FOUND));
await without.leave();

check("nothing was asked of any other place", [...requested].every((origin) => served.includes(origin)), [...requested]);
end();
