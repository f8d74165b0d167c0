import { Engine, Stopped } from "./engine.js";
import { MarkedNote } from "./marked.js";
import sizes from "./sizes.js";

/** What the page brings, made by scripts/web.sh; the bundle is a file of the repository's models/, with its card. */
const [BUNDLE, CARD] = ["clinical-en.int8.safetensors", "clinical-en.md"];
/** A module for each device, and its JavaScript; the GPU's are fetched when it is chosen. */
const MODULES = { cpu: ["./ampoule.js", "ampoule.wasm"], gpu: ["./ampoule_webgpu.js", "ampoule_webgpu.wasm"] };
/** With `?software` in the page's address, a processor may stand in for a GPU, which is slower than the one by itself. */
const SOFTWARE = new URLSearchParams(location.search).has("software");
const EXAMPLE = "Started on lisinopril 10 mg for hypertension; developed angioedema two days later. Lisinopril was stopped, and "
  + "methylprednisolone and diphenhydramine were given. History of type 2 diabetes treated with metformin, and of chronic kidney disease. "
  + "No fever or rash.";
/** Milliseconds: how long an old result stays while there is none of the new note, and how long a screen reader lets one type. */
const [STALE, QUIET] = [100, 700];

const at = (id) => document.getElementById(id);
const engine = new Engine();
const marked = new MarkedNote(at("marked"));
const modules = {};
/** The page's own bundle, and its card. */
let own;
/** What is open, and what was chosen last: a bundle's name and bytes, and the device, `cpu` or `gpu`; that of what has failed is `none`. */
let open = { device: "none" };
let wanted;
let changing;
let labels;
let stale;
let announcing;

function complain(message) {
  at("problem").hidden = !message;
  at("problem").textContent = message;
}

/** In the runtime's words, which hold nothing of a note; a trap has none. */
function reason(error) {
  return error instanceof Stopped ? "the module stopped; this device may be short of memory." : error.message;
}

async function read() {
  clearTimeout(stale);
  clearTimeout(announcing);
  // The page's offsets are UTF-16 code units, and so are the runtime's: a surrogate alone becomes one other unit.
  const note = at("note").value.toWellFormed();
  let isShown = false;
  // Read when there is who can.
  if (open.device === "none") {
    marked.show(note, labels);
    if (!changing) change({ device: "cpu" });
    return;
  }
  const show = () => {
    if (!isShown) marked.show(note, labels);
    isShown = true;
  };
  const waiting = (stale = setTimeout(show, STALE));
  at("marked").setAttribute("aria-busy", "true");
  try {
    const milliseconds = await engine.read(note, (entities) => {
      show();
      marked.add(entities);
      count();
    });
    if (milliseconds === null) return;
    complain("");
    tell(note, milliseconds);
  } catch (error) {
    show();
    count();
    if (open.device === "gpu") {
      tellDevice(`The GPU failed, and the processor reads on: ${reason(error)}`);
      engine.close();
      open = { ...open, device: "none" };
      change({ device: "cpu" });
      return;
    }
    at("facts").textContent = "";
    complain(error instanceof Stopped
      ? "The module stopped while it read this note, and was started again. The note was not read to its end; change it to try again."
      : `The note was not read: ${reason(error)}`);
  } finally {
    clearTimeout(waiting);
  }
  at("marked").setAttribute("aria-busy", "false");
}

function count() {
  const each = [...marked.counts].map(([label, n]) => {
    const item = document.createElement("li");
    const name = document.createElement("span");
    name.className = marked.look(label);
    name.textContent = label;
    item.append(name, ` ${n}`);
    return item;
  });
  at("counts").replaceChildren(...each);
}

/** What came of a note; a screen reader hears it once no key was pressed for a while, and hears counts alone. */
function tell(note, milliseconds) {
  const all = [...marked.counts.values()].reduce((sum, n) => sum + n, 0);
  const time = milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds).toLocaleString("en");
  const found = `${all.toLocaleString("en")} ${all === 1 ? "entity" : "entities"}`;
  at("facts").textContent = note ? `${found} in ${time} ms by the ${open.device === "gpu" ? "GPU" : "processor"}` : "";
  const each = [...marked.counts].map(([label, n]) => `${label} ${n}`).join(", ");
  announcing = setTimeout(() => {
    at("announcement").textContent = note ? `${found}: ${each}.` : "";
  }, QUIET);
}

/** What is told of the device, at its switch. */
function tellDevice(message) {
  at("device").textContent = message;
}

/** Opens what was chosen last, and gives up what is being opened of before. @returns when the page is as chosen, or says why not */
function change(choice) {
  wanted = { ...wanted, ...choice };
  engine.giveUp();
  changing ??= settle().finally(() => (changing = undefined));
  return changing;
}

/** One step after another, since a GPU that is chosen with a bundle must not keep that waiting. */
async function settle() {
  while (wanted.bytes !== open.bytes || wanted.device !== open.device) {
    const isBundle = wanted.bytes !== open.bytes;
    const device = isBundle && wanted.device === "gpu" && open.device === "cpu" ? "cpu" : wanted.device;
    const [next, last] = [{ ...wanted, device }, wanted];
    try {
      if (device === "gpu" && open.device !== "gpu") tellDevice("Opening the GPU; the processor reads meanwhile.");
      await use(next, last);
    } catch (error) {
      // Given up for what was chosen since.
      if (wanted === last) refuse(next, error);
    }
  }
  if (open.device !== "none") at(open.device).checked = true;
}

/** Goes back from what could not be opened. */
function refuse({ name, bytes, device }, error) {
  if (!open.bytes) throw error;
  if (device === "gpu") {
    wanted = { ...wanted, device: "cpu" };
    tellDevice(`The GPU is not used: ${reason(error)}`);
    return;
  }
  const what = bytes === open.bytes ? "The model" : name;
  if (bytes !== open.bytes && open.device === "gpu") tellDevice("");
  // A device that was chosen with it is still wanted.
  wanted = bytes === open.bytes || open.device !== "cpu" ? { ...open } : { ...open, device: wanted.device };
  at("bundle").value = "";
  at("marked").setAttribute("aria-busy", "false");
  complain(`${what} was not opened: ${reason(error)}`);
}

async function use(next, last) {
  const { name, bytes, device: kind } = next;
  const [glue, file] = MODULES[kind];
  modules[kind] ??= await compiled(file);
  if (wanted !== last) return;
  const about = await engine.open({ glue, module: modules[kind], bundle: bytes, isGpu: kind === "gpu", software: SOFTWARE });
  if (kind === "gpu") tellDevice("");
  open = { name, bytes, device: kind };
  labels = about.labels;
  at("bundle-name").textContent = name;
  at("default").hidden = bytes === own.bytes;
  const { bundle, report, kernels, self_check: check } = about;
  const { device } = report;
  const facts = {
    "Bundle": `${name}, ${(bundle.bytes / 1e6).toFixed(2)} MB, format ${bundle.format}, ${bundle.precision}`,
    "Labels": labels.join(", "),
    "Model": `${bundle.architecture}: ${bundle.layers} layers of ${bundle.hidden}, vocabulary of `
      + `${bundle.vocabulary.toLocaleString("en")}, windows of ${bundle.window} tokens`,
    "Score": `how probable, to the model, exactly these words with this label are; temperature ${bundle.temperature.toFixed(3)}`,
    "Producer": bundle.producer,
    "Licence": bundle.licence,
    "SHA-256": `${bundle.sha256}, checked`,
    "Computed by": kind === "gpu" ? `${about.gpu}, in ${report.gpu.precision}`
      : `${device.name}, ${device.threads === 1 ? "one thread" : `${device.threads} threads`}: ${device.reason}`,
    "Self-check": tellCheck(kernels, check),
    "Version": `Ampoule ${about.version}`,
  };
  at("about").replaceChildren(...Object.entries(facts).flatMap(([term, fact]) => {
    const [dt, dd] = ["dt", "dd"].map((tag) => document.createElement(tag));
    [dt.textContent, dd.textContent] = [term, fact];
    return [dt, dd];
  }));
  const card = bytes === own.bytes ? own.card : (bundle.card ?? "");
  at("card").textContent = card;
  at("card").hidden = !card;
  at("limits").textContent = card.split("\n## ").find((part) => part.startsWith("What it must not be used for"))
    ?.split("\n").slice(1).join(" ").trim() ?? "The bundle does not say.";
  read();
}

function tellCheck(kernels, check) {
  const same = kernels.length > 0 ? [`${kernels.join(" and ")} compute the same on this device`] : [];
  const near = (x) => x.toExponential(0);
  const golden = check ? [`the model answers its ${check.cases} golden cases, within ${near(check.largest_difference)} of their values `
    + `(${near(check.allowed)} is allowed)`] : [];
  const all = [...same, ...golden];
  return all.length > 0 ? `passed: ${all.join(", and ")}` : "the bundle has no golden cases, so that nothing was proved";
}

/** The files, with the progress of all of them. */
async function load(names) {
  const sum = names.reduce((bytes, name) => bytes + sizes[name], 0);
  let loaded = 0;
  return Promise.all(names.map(async (name) => {
    const response = await fetch(name).catch(() => {
      throw new Error(`${name} could not be fetched; try again when this device is online.`);
    });
    if (!response.ok) throw new Error(`${name}: the server answers ${response.status}.`);
    const bytes = new Uint8Array(sizes[name]);
    let end = 0;
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      if (end + value.length > bytes.length) break;
      bytes.set(value, end);
      end += value.length;
      loaded += value.length;
      at("progress").value = loaded / sum;
    }
    if (end !== bytes.length) throw new Error(`${name} is not the file that belongs to this page.`);
    return bytes.buffer;
  }));
}

async function keepForOffline() {
  if (!navigator.serviceWorker) return;
  try {
    const { installing } = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    const refused = new Promise((_, reject) => {
      installing?.addEventListener("statechange", () => installing.state === "redundant" && reject());
    });
    await Promise.race([navigator.serviceWorker.ready, refused]);
    at("offline").textContent = "This page works offline.";
  } catch {
    at("offline").textContent = "This page could not be kept for use offline.";
  }
}

async function start() {
  try {
    if (!String.prototype.toWellFormed) throw new WebAssembly.CompileError();
    const [module, bytes, card] = await load([MODULES.cpu[1], BUNDLE, CARD]);
    modules.cpu = await WebAssembly.compile(module);
    own = { bytes, card: new TextDecoder().decode(card) };
    await change({ name: BUNDLE, bytes, device: "cpu" });
  } catch (error) {
    complain(error instanceof WebAssembly.CompileError
      ? "This browser is too old: it needs Chrome 111, Firefox 119, Safari 16.4, or later."
      : `The model could not be opened: ${reason(error)}`);
    return;
  } finally {
    at("loading").hidden = true;
  }
  at("note").addEventListener("input", read);
  at("example").addEventListener("click", () => type(EXAMPLE));
  at("clear").addEventListener("click", () => type(""));
  const choose = (choice) => {
    complain("");
    change(choice);
  };
  at("default").addEventListener("click", () => {
    at("bundle").value = "";
    choose({ name: BUNDLE, bytes: own.bytes });
  });
  at("bundle").addEventListener("change", async () => {
    const [file] = at("bundle").files;
    if (!file) return;
    try {
      choose({ name: file.name, bytes: await file.arrayBuffer() });
    } catch (error) {
      complain(`${file.name} was not opened: ${reason(error)}`);
    }
  });
  for (const device of ["cpu", "gpu"]) {
    at(device).addEventListener("change", () => {
      tellDevice("");
      choose({ device });
    });
  }
  for (const control of document.querySelectorAll(":disabled")) control.disabled = false;
  if (!navigator.gpu) {
    at("gpu").disabled = true;
    tellDevice(isSecureContext ? "This browser has no WebGPU." : "A GPU is there for pages by HTTPS alone.");
  }
  keepForOffline();
}

/** A module that is fetched when it is first chosen. */
async function compiled(file) {
  at("loaded").textContent = "Loading the module for the GPU";
  at("loading").hidden = false;
  try {
    const [module] = await load([file]);
    // Where it was chosen before this page was kept, it is asked for again, of the cache.
    navigator.serviceWorker?.ready.then(() => MODULES.gpu.forEach((name) => fetch(name).catch(() => {})));
    return await WebAssembly.compile(module);
  } finally {
    at("loading").hidden = true;
  }
}

function type(text) {
  at("note").value = text;
  at("note").focus();
  read();
}

start();
