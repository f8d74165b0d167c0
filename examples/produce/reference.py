#!/usr/bin/env python3
"""The fine-tuning of `ampoule train` in torch and transformers, as an oracle for it.

    reference.py losses --checkpoint DUMP/start --batches DUMP/batches.jsonl --log RUN/log.jsonl
    reference.py train --checkpoint FOLDER --data A B

`losses` repeats the very steps that a run of ours made (same weights, batches and learning rates, no dropout) and writes the
loss and the gradient's norm of each. `train` is the whole recipe with randomness of its own: its scores should be ours.

Needs torch, transformers and safetensors; works offline.
"""

import argparse
import json
import random
import re
import sys
import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

IGNORED = -100


# ---------------------------------------------------------------------------------------------------------------- the loss


def partial_label_loss(logits, tags, covered, outside):
    """Mean negative log-likelihood over the labelled tokens of sets that may not annotate every label.

    logits: [batch, seq, tags]; tags: [batch, seq], IGNORED where a token does not count; covered: [batch, tags], whether the
    sequence's corpus annotates the tag's label. An `O` of a corpus means "`O`, or any label that it does not annotate".
    """
    labelled = tags != IGNORED
    allowed = torch.nn.functional.one_hot(tags.clamp_min(0), logits.shape[-1]).bool()
    allowed |= (tags == outside)[:, :, None] & ~covered[:, None, :]
    nll = logits.logsumexp(-1) - logits.masked_fill(~allowed, float("-inf")).logsumexp(-1)
    return nll[labelled].mean()


def optimizer_for(model, rate, freeze_word_embeddings):
    """AdamW; biases and layer norms do not decay."""
    if freeze_word_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[not (name.endswith(".bias") or "LayerNorm" in name)].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.01}, {"params": groups[False], "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.999), eps=1e-8,
    )


def step(model, optimizer, rate, batch, outside):
    """One update; returns the loss and the gradient's norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits
    loss = partial_label_loss(logits, batch["tags"], batch["covered"], outside)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    return loss.item(), norm.item()


def tensors(ids, lengths, tags, covered, pad):
    """Padded tensors of ragged (or padded) rows."""
    longest = max(lengths)
    fill = lambda rows, value: torch.tensor(
        [list(row[:n]) + [value] * (longest - n) for row, n in zip(rows, lengths, strict=True)]
    )
    mask = (torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]).long()
    return {"ids": fill(ids, pad), "mask": mask, "tags": fill(tags, IGNORED), "covered": torch.tensor(covered).bool()}


# ------------------------------------------------------------------------------------------------------------------ losses


def losses(args):
    model = AutoModelForTokenClassification.from_pretrained(args.checkpoint, dtype=torch.float32, attn_implementation="eager")
    model.eval()  # no dropout; gradients flow all the same
    outside = model.config.label2id["O"]
    optimizer = optimizer_for(model, 0.0, args.freeze_word_embeddings)
    found = []
    lines = Path(args.batches).read_text(encoding="utf-8").splitlines()[: args.steps]
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        if any(len(covered) != model.config.num_labels for covered in row["covered"]):
            sys.exit(f"{args.batches}, line {number}: `covered` must have {model.config.num_labels} entries a sequence")
        batch = tensors(row["input_ids"], row["lengths"], row["tags"], row["covered"], model.config.pad_token_id or 0)
        loss, norm = step(model, optimizer, row["lr"], batch, outside)
        found.append({"step": row["step"], "loss": loss, "gradient_norm": norm})
        print(f"step {row['step']:4}  loss {loss:.7f}  gradient norm {norm:.6f}")
    compare(found, args.log, args.tolerance)


def compare(found, log, tolerance):
    """Our run's log against the losses found here, step by step in order."""
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    ours = [line["step"] for line in lines if isinstance(line.get("step"), dict)][: len(found)]
    if len(ours) < len(found):
        sys.exit(f"{log}: has {len(ours)} steps, and {len(found)} were computed here")
    differences = {
        name: max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(ours, found)) for name in ("loss", "gradient_norm")
    }
    print("largest relative difference: " + ", ".join(f"{name} {value:.2e}" for name, value in differences.items()))
    if differences["loss"] > tolerance:
        sys.exit(f"the losses differ by more than {tolerance:g}")


# -------------------------------------------------------------------------------------------------------------------- data


@dataclass
class Document:
    text: str
    entities: list  # (start, end, label), in characters


def read_set(path):
    """The documents of an IOB2 file and the labels that occur in it. Tokens are joined by spaces: BERT's pre-tokenizer splits
    at every punctuation mark, so its token ids do not depend on how."""
    documents, covers = [], set()
    for sentence in re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8").strip()):
        text, entities = "", []
        for line in sentence.splitlines():
            token, tag = line.split("\t")
            start = len(text) + bool(text)
            text = f"{text} {token}" if text else token
            if tag.startswith("B-"):
                entities.append((start, len(text), tag[2:]))
            elif tag.startswith("I-"):
                entities[-1] = (entities[-1][0], len(text), tag[2:])
        documents.append(Document(text, entities))
        covers.update(label for _, _, label in entities)
    return documents, covers


def joined(documents, share, window, generator):
    """The documents in groups of consecutive ones, of lengths drawn evenly up to the window's; a `share` of the groups comes as
    one text."""
    out, first = [], 0
    while first < len(documents):
        budget, length, last = generator.randint(0, window), 0, first
        while last < len(documents):
            length += len(documents[last].text.encode()) // 4 + 1  # about as many tokens
            if length > budget and last > first:
                break
            last += 1
        group = documents[first:last]
        out += [together(group)] if generator.random() < share else group
        first = last
    return out


def together(group):
    text, entities = "", []
    for document in group:
        shift = len(text) + bool(text)
        text = document.text if not text else f"{text} {document.text}"
        entities += [(start + shift, end + shift, label) for start, end, label in document.entities]
    return Document(text, entities)


class Encoder:
    """Texts as windows of token ids. A word is what the pre-tokenizer says; its first sub-word decides."""

    def __init__(self, folder, window):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.pad, self.cls, self.sep = tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id
        self.tokenizer, self.backend = tokenizer, tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.window = window - 2

    def encode(self, text):
        """Token ids, the words' character ranges, and for each token its word where it is that word's first, else None."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        words, first, last = [], [], None
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets):
            if word != last:
                words.append([start, end])
                first.append(len(words) - 1)
            else:
                words[-1][1] = end
                first.append(None)
            last = word
        return encoding.ids, words, first

    def windows(self, ids, first):
        """Overlapping windows (ids with special tokens, and for each position its word or None). Each word belongs to the
        window in which it lies farthest from an edge."""
        size, total = self.window, len(ids)
        if total <= size:
            starts = [0] if total else []
        else:
            starts = list(range(0, total - size, max(1, size // 2))) + [total - size]
        # halfway between the middles of neighbouring windows
        cuts = [0] + [(a + b + size) // 2 for a, b in zip(starts, starts[1:])] + [total]
        for start, begin, end in zip(starts, cuts, cuts[1:]):
            part = range(start, min(start + size, total))
            kept = [first[i] if begin <= i < end else None for i in part]
            yield [self.cls, *(ids[i] for i in part), self.sep], [None, *kept, None]


def word_tags(words, entities, label2id):
    """IOB2 tags of words; a word that an entity touches belongs to it."""
    tags = [label2id["O"]] * len(words)
    starts = [start for start, _ in words]
    for start, end, label in sorted(entities):
        prefix = "B-"
        for i in range(max(0, bisect_right(starts, start) - 1), len(words)):
            if words[i][0] >= end:
                break
            if words[i][1] > start:
                tags[i] = label2id[prefix + label]
                prefix = "I-"
    return tags


def sequences(documents, covers, encoder, labels):
    """(ids, tags, covered) of every window."""
    label2id = {label: i for i, label in enumerate(labels)}
    covered = [label == "O" or label[2:] in covers for label in labels]
    for document in documents:
        ids, words, first = encoder.encode(document.text)
        tags = word_tags(words, document.entities, label2id)
        for window, word_of in encoder.windows(ids, first):
            yield window, [IGNORED if w is None else tags[w] for w in word_of], covered


def batches(rows, size, most_tokens, generator):
    """Rows of like length together, in random order."""
    rows = list(rows)
    generator.shuffle(rows)
    out = []
    for begin in range(0, len(rows), 64 * size):
        batch = []
        for row in sorted(rows[begin : begin + 64 * size], key=lambda row: len(row[0])):
            if batch and (len(batch) == size or (len(batch) + 1) * len(row[0]) > most_tokens):
                out.append(batch)
                batch = []
            batch.append(row)
        out.append(batch)
    generator.shuffle(out)
    return out


# --------------------------------------------------------------------------------------------------------------- evaluation


def viterbi(scores, labels):
    """The best legal IOB2 sequence. scores: [words, tags] log-probabilities."""
    inside = torch.tensor([label.startswith("I-") for label in labels])
    legal = torch.tensor(
        [[not b.startswith("I-") or a in (b, "B-" + b[2:]) for b in labels] for a in labels]
    )  # [from, to]
    best = scores[0].masked_fill(inside, float("-inf"))
    back = []
    for row in scores[1:]:
        paths, source = (best[:, None].masked_fill(~legal, float("-inf"))).max(0)
        best = paths + row
        back.append(source.tolist())
    path = [int(best.argmax())]
    for source in reversed(back):
        path.append(source[path[-1]])
    return path[::-1]


def spans(tags, words, labels):
    """(start, end, label) of the entities of a sequence of tags, strict IOB2: an `I-` that continues nothing is no entity."""
    out = []
    open_label = None
    for tag, (start, end) in zip(tags, words):
        prefix, _, label = labels[tag].partition("-")
        if prefix == "I" and label == open_label:
            out[-1] = (out[-1][0], end, label)
            continue
        open_label = label if prefix == "B" else None
        if prefix == "B":
            out.append((start, end, label))
    return out


@torch.no_grad()
def predict(model, documents, encoder, labels, decode):
    """Entities of each document."""
    model.eval()
    encoded = [encoder.encode(document.text) for document in documents]
    scores = [torch.full((len(words), len(labels)), float("nan")) for _, words, _ in encoded]
    windows = [(d, *window) for d, (ids, _, first) in enumerate(encoded) for window in encoder.windows(ids, first)]
    windows.sort(key=lambda window: len(window[1]))
    for begin in range(0, len(windows), 32):
        part = windows[begin : begin + 32]
        lengths = [len(ids) for _, ids, _ in part]
        batch = tensors([ids for _, ids, _ in part], lengths, [[0] * n for n in lengths], [[True]] * len(part), encoder.pad)
        logits = model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits.log_softmax(-1)
        for row, (document, _, word_of) in zip(logits, part):
            at = [i for i, word in enumerate(word_of) if word is not None]
            scores[document][[word_of[i] for i in at]] = row[at]
    out = []
    for (_, words, _), rows in zip(encoded, scores):
        if not words:
            out.append([])
            continue
        tags = viterbi(rows, labels) if decode == "viterbi" else rows.argmax(-1).tolist()
        out.append(spans(tags, words, labels))
    return out


def counts(predicted, documents, covers):
    """Counter of (label, what), what being tp, predicted or gold; labels that the set does not cover are left out."""
    out = Counter()
    for found, document in zip(predicted, documents):
        found, gold = ({e for e in entities if e[2] in covers} for entities in (found, document.entities))
        for what, entities in (("tp", found & gold), ("predicted", found), ("gold", gold)):
            out.update((label, what) for _, _, label in entities)
    return out


def scores(counter, label=None):
    """Precision, recall and F1 of a label, or of all."""
    total = Counter()
    for (of, what), n in counter.items():
        if label in (None, of):
            total[what] += n
    p, r = (total["tp"] / max(total[what], 1) for what in ("predicted", "gold"))
    return p, r, 2 * p * r / max(p + r, 1e-12)


def evaluate(model, sets, encoder, labels, decode):
    """Counters by set name, and "pooled"."""
    out = {}
    for name, (documents, covers) in sets.items():
        out[name] = counts(predict(model, documents, encoder, labels, decode), documents, covers)
    out["pooled"] = sum(out.values(), Counter())
    return out


# ------------------------------------------------------------------------------------------------------------------- train


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    generator = random.Random(args.seed)
    train_sets = [read_set(folder / "train.tsv") for folder in args.data]
    dev, test = ({folder.name: read_set(folder / f"{split}.tsv") for folder in args.data} for split in ("dev", "test"))
    labels = ["O"] + [f"{p}-{label}" for label in sorted(set().union(*(c for _, c in train_sets))) for p in "BI"]
    model = load(args.checkpoint, labels, args.dropout)
    outside = labels.index("O")
    window = min(args.window or model.config.max_position_embeddings, model.config.max_position_embeddings)
    encoder = Encoder(args.checkpoint, window)
    optimizer = optimizer_for(model, args.lr, args.freeze_word_embeddings)

    def epoch_batches():
        rows = []
        for documents, covers in train_sets:
            rows += sequences(joined(documents, args.runs, encoder.window, generator), covers, encoder, labels)
        return batches(rows, args.batch, args.max_batch_tokens, generator)

    epochs = [epoch_batches() for _ in range(args.epochs)]
    total, made, began = sum(map(len, epochs)), 0, time.time()
    warmup = -(-total // 10)  # 10 %, rounded up
    best = (-1.0, None)
    for number, epoch in enumerate(epochs, 1):
        model.train()
        running = 0.0
        for rows in epoch:
            ids, tags, covered = zip(*rows)
            batch = tensors(ids, [len(row) for row in ids], tags, covered, encoder.pad)
            share = (made + 1) / warmup if made < warmup else (total - made) / max(total - warmup, 1)
            running += step(model, optimizer, args.lr * share, batch, outside)[0]
            made += 1
        p, r, f1 = scores(evaluate(model, dev, encoder, labels, args.decode)["pooled"])
        print(f"epoch {number}  step {made}/{total}  loss {running / len(epoch):.4f}  "
              f"dev P {100 * p:.2f} R {100 * r:.2f} F1 {100 * f1:.2f}  {time.time() - began:.0f} s", flush=True)
        if f1 > best[0]:
            best = (f1, {name: tensor.clone() for name, tensor in model.state_dict().items()})
    model.load_state_dict(best[1])
    results = evaluate(model, test, encoder, labels, args.decode)
    print(f"\n{'set':32} {'label':10} {'P':>6} {'R':>6} {'F1':>6} {'gold':>6}")
    for name, counter in results.items():
        for label in sorted({label for label, _ in counter}) + [None]:
            gold = sum(n for (of, what), n in counter.items() if what == "gold" and label in (None, of))
            p, r, f1 = (100 * x for x in scores(counter, label))
            print(f"{name[-32:]:32} {label or 'micro':10} {p:6.2f} {r:6.2f} {f1:6.2f} {gold:6}")
    if args.out:
        model.save_pretrained(args.out)
        encoder.tokenizer.save_pretrained(args.out)


def load(folder, labels, dropout):
    """The folder's model, with a new head unless it has one of just these labels."""
    config = AutoConfig.from_pretrained(folder)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.classifier_dropout = dropout
    return AutoModelForTokenClassification.from_pretrained(
        folder, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("losses", help="repeat the steps of a run, and write their losses")
    verb.add_argument("--checkpoint", required=True, help="start, the folder that it wrote beside them")
    verb.add_argument("--batches", required=True, help="batches.jsonl that `ampoule train --dump-batches` wrote")
    verb.add_argument("--steps", type=int, default=20)
    verb.add_argument("--log", required=True, help="log.jsonl of our run with these batches and no dropout")
    verb.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference of a loss")
    verb.add_argument("--freeze-word-embeddings", action="store_true")
    verb.set_defaults(run=losses)
    verb = verbs.add_parser("train", help="the whole recipe")
    verb.add_argument("--checkpoint", required=True)
    verb.add_argument("--data", nargs="+", required=True, type=Path, metavar="FOLDER", help="a corpus: train, dev and test .tsv")
    verb.add_argument("--out", help="folder for the best model")
    verb.add_argument("--epochs", type=int, default=6)
    verb.add_argument("--batch", type=int, default=16)
    verb.add_argument("--max-batch-tokens", type=int, default=1024)
    verb.add_argument("--lr", type=float, default=1.5e-4)
    verb.add_argument("--dropout", type=float, default=0.1)
    verb.add_argument("--runs", type=float, default=0.5, help="share of the documents that come in runs of consecutive ones")
    verb.add_argument("--window", type=int, default=0, help="tokens of a sequence; 0 for the model's positions")
    verb.add_argument("--decode", choices=("viterbi", "argmax"), default="viterbi")
    verb.add_argument("--seed", type=int, default=1)
    verb.add_argument("--threads", type=int, default=2)
    verb.add_argument("--freeze-word-embeddings", action="store_true")
    verb.set_defaults(run=train)
    args = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    args.run(args)


if __name__ == "__main__":
    main()
