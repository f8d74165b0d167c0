// Who opens bundles and reads notes: by one Worker, while another one may be opened in its place.
//
// A Worker that computes on the processor hears nothing, and memory to share with it is given to pages alone whose server asks for that. So a
// call that is overtaken gets a moment to end, which is enough for all but long notes, and then its Worker is ended and another opened: that
// takes a tenth of a second, since module and bundle are at hand. A Worker whose module trapped is replaced in the same way. One that waits
// for a GPU hears that it is to stop, and is given longer, as a GPU proves itself whenever it is opened; one that failed is not replaced:
// who asked has the processor, too.

/** Milliseconds that an overtaken call may go on after the last key, by the processor and by a GPU. */
const [GRACE, GPU_GRACE] = [150, 3000];
/** Milliseconds without a word after which a GPU counts as hung, when it reads and when it is opened. */
const [PATIENCE, OPENING] = [60_000, 180_000];
/** Milliseconds of a second look: the system may have stopped the page meanwhile. */
const SECOND_LOOK = 2000;

/** The module trapped. */
export class Stopped extends Error {}

/** A Worker with a bundle open, which reads one note after another. */
class Reader {
  #worker = new Worker("worker.js", { type: "module" });
  #isGpu;
  #pending;
  #hung;

  constructor(isGpu) {
    this.#isGpu = isGpu;
    this.#worker.onmessage = ({ data }) => {
      const { resolve, reject, found } = this.#pending;
      const isOn = Boolean(data.entities || data.alive);
      this.#watch(isOn && PATIENCE);
      if (data.entities) found(data.entities);
      else if (data.stopped) reject(new Stopped());
      else if (data.failed) reject(new Error(data.failed));
      else if (!isOn) resolve(data.answer);
    };
    this.#worker.onerror = (event) => {
      // Its message may quote what was being done.
      event.preventDefault();
      this.#watch(0);
      this.#pending.reject(new Stopped());
    };
  }

  /** Opens the source's bundle, once, and leaves `about` what Model.about gives; the Worker ends where it cannot. */
  async open(source, prove) {
    try {
      this.about = await this.#ask({ open: source, prove }, OPENING);
      return this;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  read(note, found) {
    return this.#ask({ note }, PATIENCE, found);
  }

  /** Asks for an early end of what is read, and gives the milliseconds that it may take. */
  stop() {
    this.#worker.postMessage({ stop: true });
    return this.#isGpu ? GPU_GRACE : GRACE;
  }

  close() {
    this.#watch(0);
    this.#worker.terminate();
    this.#pending?.reject(new Error("closed"));
  }

  #ask(message, patience, found) {
    return new Promise((resolve, reject) => {
      this.#pending = { resolve, reject, found };
      this.#watch(patience);
      this.#worker.postMessage(message);
    });
  }

  #watch(milliseconds) {
    clearTimeout(this.#hung);
    if (!milliseconds || !this.#isGpu) return;
    const late = () => this.#pending.reject(new Error("it did not answer in time."));
    this.#hung = setTimeout(() => (this.#hung = setTimeout(late, SECOND_LOOK)), milliseconds);
  }
}

export class Engine {
  #source;
  #reader;
  #turn = 0;
  #opening;
  #running;

  /**
   * Opens a bundle in place of the one that is open, which stays if this fails or is given up.
   * @param {{glue: string, module: WebAssembly.Module, bundle: ArrayBuffer, isGpu: boolean, software: boolean}} source glue is the URL
   *   of the module's JavaScript; software may be in a GPU's place
   * @returns what Model.about gives; an Error says what is wrong with the bundle or the GPU
   */
  async open(source) {
    this.giveUp();
    const reader = new Reader(source.isGpu);
    this.#opening = reader;
    try {
      await reader.open(source, true);
    } finally {
      if (this.#opening === reader) this.#opening = undefined;
    }
    this.#turn++;
    this.close();
    this.#source = source;
    this.#reader = Promise.resolve(reader);
    return reader.about;
  }

  /** Ends what is being opened. */
  giveUp() {
    this.#opening?.close();
  }

  /** Ends what is open: notes are read by what is opened next. */
  close() {
    this.#running = undefined;
    this.#reader?.then((reader) => reader.close(), () => {});
    this.#reader = undefined;
  }

  /**
   * Reads a note; found gets its entities in order, some at a time.
   * @returns the milliseconds it took, or null where a later call, or another bundle, overtook it
   */
  async read(note, found) {
    const turn = ++this.#turn;
    const isOvertaken = () => turn !== this.#turn;
    const running = this.#running;
    if (running) {
      const grace = running.reader.stop();
      await Promise.race([running.ended, new Promise((resolve) => setTimeout(resolve, grace))]);
      if (isOvertaken()) return null;
      if (this.#running === running) this.#replace();
    }
    try {
      const reader = await this.#opened();
      if (isOvertaken()) return null;
      const answer = reader.read(note, (entities) => isOvertaken() || found(entities));
      const now = { reader };
      now.ended = answer.catch((error) => error instanceof Stopped && !this.#source.isGpu && this.#replace()).then(() => {
        if (this.#running === now) this.#running = undefined;
      });
      this.#running = now;
      const milliseconds = await answer;
      return isOvertaken() ? null : milliseconds;
    } catch (error) {
      if (isOvertaken()) return null;
      throw error;
    }
  }

  /** The Reader; after one that could not be opened, another. */
  #opened() {
    if (!this.#reader) {
      const reader = new Reader(this.#source.isGpu).open(this.#source, false);
      reader.catch(() => {
        if (this.#reader === reader) this.#reader = undefined;
      });
      this.#reader = reader;
    }
    return this.#reader;
  }

  #replace() {
    this.close();
    // Whoever reads next finds out where it cannot be opened.
    this.#opened().catch(() => {});
  }
}
