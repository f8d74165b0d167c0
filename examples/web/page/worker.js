// The runtime in a thread of its own, so that the page answers while it computes. The page sends { open, prove } once, then { note } after
// { note }, each when the one before was answered, and { stop } when it has no use for that answer; see Reader in engine.js.

/** Milliseconds between messages: entities travel together; and between looks at whether a GPU computes. */
const [BETWEEN, ALIVE] = [30, 1000];

let model;

onmessage = async ({ data }) => {
  try {
    if (data.stop) model.stop();
    else postMessage(data.open ? await open(data.open, data.prove) : await read(data.note));
  } catch (error) {
    // The runtime's own errors are plain ones. After any other, a trap or memory that is not to be had, the module cannot be relied on.
    postMessage(error.constructor === Error ? { failed: error.message } : { stopped: true });
  }
};

/** The module's JavaScript is imported when it is asked for. */
async function open({ glue, module, bundle, isGpu, software }, prove) {
  const gpu = isGpu ? await nameOfGpu(software) : null;
  const { default: start, Model } = await import(glue).catch(() => {
    throw new Error(`${glue.slice(2)} could not be fetched; try again when this device is online.`);
  });
  await start({ module_or_path: module });
  model = await Model.open(new Uint8Array(bundle), prove, software);
  return { answer: { ...JSON.parse(model.about()), gpu } };
}

/** As much as the browser says of it. What the module cannot ask is refused here. */
async function nameOfGpu(software) {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Error("this browser gives no GPU.");
  if (!adapter.info) throw new Error("this browser's WebGPU is too old: it needs Chrome 127, Safari 26, or later.");
  const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
  const name = [vendor, architecture, device, description].filter(Boolean).join(" ") || "a GPU that the browser does not name";
  if ((isFallbackAdapter ?? adapter.isFallbackAdapter) && !software) {
    throw new Error(`the only GPU is software (${name}), which is slower than the processor by itself.`);
  }
  return name;
}

async function read(note) {
  const start = performance.now();
  let entities = [];
  let sent = start;
  let computed = 0;
  // A GPU has computed more, though nothing may have been found in it.
  const alive = setInterval(() => {
    const now = model.computed();
    if (now > computed) postMessage({ alive: true });
    computed = now;
  }, ALIVE);
  try {
    await model.extract(note, (label, from, to, score) => {
      entities.push({ label, from, to, score });
      const now = performance.now();
      if (now - sent > BETWEEN) {
        postMessage({ entities });
        entities = [];
        sent = now;
      }
    });
  } finally {
    clearInterval(alive);
  }
  postMessage({ entities });
  return { answer: performance.now() - start };
}
