import { Engine, Stopped } from "./engine.js";
import { MarkedNote } from "./marked.js";
import sizes from "./sizes.js";

/** What the page brings, made by scripts/web.sh; the first bundle is a file of the repository's models/, the second its card. */
const [GLUE, MODULE, BUNDLE, CARD] = ["./ampoule.js", "ampoule.wasm", "clinical-en.int8.safetensors", "clinical-en.md"];
const EXAMPLE = "Started on lisinopril 10 mg for hypertension; developed angioedema two days later. Lisinopril was stopped, and "
  + "methylprednisolone and diphenhydramine were given. History of type 2 diabetes treated with metformin, and of chronic kidney disease. "
  + "No fever or rash.";
/** Milliseconds: how long an old result stays while there is none of the new note, and how long a screen reader lets one type. */
const [STALE, QUIET] = [100, 700];

const at = (id) => document.getElementById(id);
const engine = new Engine();
const marked = new MarkedNote(at("marked"));
let own;
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
  at("facts").textContent = note ? `${found} in ${time} ms` : "";
  const each = [...marked.counts].map(([label, n]) => `${label} ${n}`).join(", ");
  announcing = setTimeout(() => {
    at("announcement").textContent = note ? `${found}: ${each}.` : "";
  }, QUIET);
}

async function use(source, name) {
  const about = await engine.open(source);
  if (!about) return;
  labels = about.labels;
  at("bundle-name").textContent = name;
  at("default").hidden = source === own.source;
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
    "Computed by": `${device.name}, ${device.threads === 1 ? "one thread" : `${device.threads} threads`}: ${device.reason}`,
    "Self-check": `passed: ${kernels.join(" and ")} compute the same on this device`
      + (check ? `, and the model answers its ${check.cases} golden cases` : ""),
    "Version": `Ampoule ${about.version}`,
  };
  at("about").replaceChildren(...Object.entries(facts).flatMap(([term, fact]) => {
    const [dt, dd] = ["dt", "dd"].map((tag) => document.createElement(tag));
    [dt.textContent, dd.textContent] = [term, fact];
    return [dt, dd];
  }));
  const card = source === own.source ? own.card : (bundle.card ?? "");
  at("card").textContent = card;
  at("card").hidden = !card;
  at("limits").textContent = card.split("\n## ").find((part) => part.startsWith("What it must not be used for"))
    ?.split("\n").slice(1).join(" ").trim() ?? "The bundle does not say.";
  await read();
}

/** The files, with the progress of all of them. */
async function load(names) {
  const sum = names.reduce((bytes, name) => bytes + sizes[name], 0);
  let loaded = 0;
  return Promise.all(names.map(async (name) => {
    const response = await fetch(name);
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
    const [module, bundle, card] = await load([MODULE, BUNDLE, CARD]);
    const source = { glue: GLUE, module: await WebAssembly.compile(module), bundle };
    own = { source, card: new TextDecoder().decode(card) };
    await use(source, BUNDLE);
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
  const choose = async (name, source) => {
    complain("");
    try {
      await use(await source(), name);
    } catch (error) {
      at("bundle").value = "";
      complain(`${name} was not opened: ${reason(error)}`);
    }
  };
  at("default").addEventListener("click", () => {
    at("bundle").value = "";
    choose(BUNDLE, () => own.source);
  });
  at("bundle").addEventListener("change", () => {
    const [file] = at("bundle").files;
    if (file) choose(file.name, async () => ({ ...own.source, bundle: await file.arrayBuffer() }));
  });
  for (const control of document.querySelectorAll(":disabled")) control.disabled = false;
  keepForOffline();
}

function type(text) {
  at("note").value = text;
  at("note").focus();
  read();
}

start();
