// The runtime in a thread of its own, so that the page answers while it computes. The page sends { open, prove } once, then { note } after
// { note }, each when the one before was answered, and { stop } when it has no use for that answer; see Reader in engine.js.

/** Milliseconds between messages: entities travel together. */
const BETWEEN = 30;

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
  const { default: start, Model } = await import(glue);
  await start({ module_or_path: module });
  model = await Model.open(new Uint8Array(bundle), prove, software);
  return { answer: { ...JSON.parse(model.about()), gpu: isGpu ? await nameOfGpu() : null } };
}

/** As much as the browser says of it, which it does not tell the module. */
async function nameOfGpu() {
  const { info } = (await navigator.gpu.requestAdapter()) ?? { info: {} };
  const { vendor, architecture, device, description } = info;
  return [vendor, architecture, device, description].filter(Boolean).join(" ") || "a GPU that the browser does not name";
}

async function read(note) {
  const start = performance.now();
  let entities = [];
  let sent = start;
  await model.extract(note, (label, from, to, score) => {
    entities.push({ label, from, to, score });
    const now = performance.now();
    if (now - sent > BETWEEN) {
      postMessage({ entities });
      entities = [];
      sent = now;
    }
  });
  postMessage({ entities });
  return { answer: performance.now() - start };
}
