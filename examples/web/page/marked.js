// A note whose entities are marked while they arrive.

/** So many labels look different; see style.css. */
const LOOKS = 6;

export class MarkedNote {
  #element;
  #note = "";
  #tail;
  #at = 0;
  #labels = [];
  #counts = new Map();

  constructor(element) {
    this.#element = element;
  }

  /** Shows a note without marks. */
  show(note, labels) {
    this.#note = note;
    this.#labels = labels;
    this.#at = 0;
    this.#counts = new Map(labels.map((label) => [label, 0]));
    this.#tail = document.createTextNode(note);
    this.#element.replaceChildren(this.#tail);
  }

  /** Marks entities that come after those before. */
  add(entities) {
    const pieces = document.createDocumentFragment();
    for (const { label, from, to, score } of entities) {
      const mark = document.createElement("mark");
      mark.className = this.look(label);
      const [words, tag] = ["words", "tag"].map((name) => {
        const span = document.createElement("span");
        span.className = name;
        return span;
      });
      words.textContent = this.#note.slice(from, to);
      // The space is one at which no line breaks.
      tag.textContent = `\u00a0${label} ${score.toFixed(2)}`;
      mark.append(words, tag);
      pieces.append(this.#note.slice(this.#at, from), mark);
      this.#at = to;
      this.#counts.set(label, (this.#counts.get(label) ?? 0) + 1);
    }
    this.#tail.before(pieces);
    this.#tail.data = this.#note.slice(this.#at);
  }

  /** How many entities each label has, all labels of the model in its order. */
  get counts() {
    return this.#counts;
  }

  /** The class of a label's marks. */
  look(label) {
    return `look-${this.#labels.indexOf(label) % LOOKS}`;
  }
}
