// The page's GPU in Chromium, whose WebGPU is SwiftShader's here, and where there is none: node gpu.mjs FOLDER TOOLS, as page.mjs.
import { readFileSync } from "node:fs";

import {
  accessible, briefly, browse, CANARY, check, checkProfile, compare, end, enter, folder, FOUND, host, read, ready,
  requested, said, same, SENTENCE, served, settled, world,
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
  ["is not there", "GPU.prototype.requestAdapter = async () => null;", /^The GPU is not used: this browser gives no GPU/],
  ["refuses a kernel", "GPUDevice.prototype.createComputePipeline = GPUDevice.prototype.createShaderModule;", /^The GPU is not used: /],
  ["refuses what is sent", `
    const submit = GPUQueue.prototype.submit;
    let sent = 0;
    GPUQueue.prototype.submit = function (all) {
      sent += refused ? 1 : 0;
      // A buffer that is destroyed makes it invalid, and nothing of it is computed.
      if (sent === 5) refused.destroy();
      return submit.call(this, all);
    };
    let refused;
    const create = GPUDevice.prototype.createBuffer;
    GPUDevice.prototype.createBuffer = function (of) {
      const buffer = create.call(this, of);
      if (of.usage & GPUBufferUsage.COPY_SRC) refused ??= buffer;
      return buffer;
    };`, /^The GPU is not used: .*it refused what it was asked to do/],
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
const soon = (text) => text.replace(/\[PATIENCE, OPENING\] = \[[\d_]+/, "[PATIENCE, OPENING] = [5000");
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

// With a note there when it is opened: the first that it reads is the first that goes wrong.
const first = await visit({ prelude: answers("(x, i, n) => (n > 9 ? NaN : x)") });
await read(first.page, SENTENCE);
await choose(first.page);
await first.page.waitForFunction(() => document.getElementById("device").textContent.startsWith("The GPU failed"));
await settled(first.page);
check("why the first note was not read by the GPU stays told", /what is not finite/.test(await told(first.page)), await told(first.page));
check("and the processor has read it", same(await briefly(first.page), FOUND) && /by the processor$/.test(await facts(first.page)));
await first.leave();

// Keys while the processor is opened again.
const typed = await visit({ prelude: answers("(x, i, n) => (n > 10 ? NaN : x)") });
await choose(typed.page);
await read(typed.page, SENTENCE);
const opened = await typed.page.evaluate(() => window.workers);
for (let length = 10; length <= SENTENCE.length; length += 5) await enter(typed.page, SENTENCE.slice(0, length));
await enter(typed.page, SENTENCE);
await typed.page.waitForFunction(() => document.getElementById("facts").textContent.endsWith("by the processor"));
await settled(typed.page);
check("what is typed meanwhile is read by the processor", same(await briefly(typed.page), FOUND), await briefly(typed.page));
check("by one Worker", (await typed.page.evaluate(() => window.workers)) === opened + 1, await typed.page.evaluate(() => window.workers) - opened);
await typed.leave();

// Minds that change while the GPU is opened.
const minds = await visit();
const whole = readFileSync(`${folder}/clinical-en.int8.safetensors`);
const opens = () => minds.page.waitForFunction(() => document.getElementById("device").textContent.startsWith("Opening"));
await read(minds.page, SENTENCE);
await minds.page.click("#gpu");
await opens();
await minds.page.click("#cpu");
await minds.page.waitForTimeout(500);
check("a GPU that is no longer wanted is given up", minds.page.workers().length === 1 && (await told(minds.page)) === "", await told(minds.page));
check("and the processor stays chosen", await minds.page.isChecked("#cpu"));
await minds.page.click("#gpu");
await opens();
await minds.page.setInputFiles("#bundle", { name: "broken.safetensors", mimeType: "", buffer: Buffer.from("{}") });
await minds.page.waitForSelector("#problem:visible");
await minds.page.waitForFunction(() => document.getElementById("gpu").checked && document.getElementById("device").textContent === "", null,
  { timeout: 120_000 });
await minds.page.waitForFunction(() => document.getElementById("facts").textContent.endsWith("by the GPU"), null, { timeout: 120_000 });
await minds.page.click("#cpu");
await minds.page.waitForFunction(() => document.getElementById("facts").textContent.endsWith("by the processor"));
await minds.page.click("#gpu");
await opens();
await minds.page.setInputFiles("#bundle", { name: "mine.safetensors", mimeType: "", buffer: whole });
await minds.page.waitForFunction(() => document.getElementById("bundle-name").textContent === "mine.safetensors");
check("a bundle does not wait for the GPU", /^Opening/.test(await told(minds.page)) && same(await briefly(minds.page), FOUND), await told(minds.page));
await minds.page.waitForFunction(() => document.getElementById("facts").textContent.endsWith("by the GPU"), null, { timeout: 120_000 });
check("which reads it then", same(await briefly(minds.page), FOUND) && (await told(minds.page)) === "");
const labels = readFileSync(new URL("../../../bindings/tests/labels.safetensors", import.meta.url));
await minds.page.setInputFiles("#bundle", { name: "labels.safetensors", mimeType: "", buffer: labels });
await minds.page.waitForSelector("#problem:visible");
check("what no device can open is refused", /labels.safetensors was not opened: .*cannot find entities/.test(await minds.page.textContent("#problem")));
await read(minds.page, `x ${SENTENCE}`);
check("and the GPU reads on", same(await briefly(minds.page), FOUND) && /by the GPU$/.test(await facts(minds.page)), await facts(minds.page));
await minds.leave();

// Nothing is found for longer than a GPU may say nothing.
const quiet = await visit({ engine: soon });
await choose(quiet.page);
await read(quiet.page, "The patient was seen today. ".repeat(400));
check("a long note without entities is no hung GPU", /^0 entities in .* by the GPU$/.test(await facts(quiet.page)), [await facts(quiet.page), await told(quiet.page)]);
const [, seconds] = (await facts(quiet.page)).match(/in ([\d,]+) ms/) ?? [];
check("though it took longer", Number(seconds?.replace(",", "")) > 7000, seconds);
await quiet.leave();

// Software, unasked for, and no WebGPU.
const plain = await visit({ query: "" });
await choose(plain.page);
check("software in a GPU's place is refused", /the only GPU is software \(google swiftshader\)/.test(await told(plain.page)), await told(plain.page));
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
// Chromium calls its maker by itself.
const others = world.called.filter((url) => !/^(http:\/\/)?[a-z0-9-]+\.(google|googleapis)\.com[:/]/.test(url));
check("nobody outside was called", others.length === 0, others);
end();
