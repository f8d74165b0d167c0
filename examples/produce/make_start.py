#!/usr/bin/env python3
"""Makes `start/`, the small encoder from which the tiny run begins.

    make_start.py --model MINILM_FOLDER --data ner_bc5cdr ner_ncbi_disease --transfer sentences_a.txt --out start

A tiny ELECTRA-shaped encoder learns from unlabelled text to say of each word what all-MiniLM-L6-v2 says of it: the vectors
of its third and its last layer, cut to their principal components. It sees no tag and no text of a dev or test file. The
seeds are fixed; on another machine the numbers differ in their last digits. Needs torch, transformers, tokenizers and numpy.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModel, AutoTokenizer, ElectraConfig, ElectraModel

SEED = 1
LAYERS, COMPONENTS = (3, 6), 128
SENTENCES = 14_000  # of the transfer text; beside them all training sentences of the corpora
VOCABULARY, TOKENS = 3000, 128
SHAPE = {
    "embedding_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256,
}
STEPS, BATCH_TOKENS, RATE = 6000, 1280, 2e-3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentences(path):
    """The texts of a file of a token and its tag a line. The tags are not looked at."""
    for sentence in path.read_text(encoding="utf-8").strip("\n").split("\n\n"):
        text = ""
        for token in (line.split("\t")[0] for line in sentence.split("\n")):
            if text and token not in tuple(")].,;:%?!-/") + ("'s",) and text[-1] not in "([-/":
                text += " "
            text += token
        yield text


def padded(rows, value=0):
    """Rows of ids as a tensor, and their mask."""
    longest = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return torch.tensor([list(row) + [value] * (longest - len(row)) for row in rows]), mask


@torch.no_grad()
def word_vectors(folder, texts):
    """[words, 2 * COMPONENTS] in half precision, and where each text's words begin."""
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    cls, sep = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
    encoded = [(e.ids[:126], e.word_ids[:126]) for e in (backend.encode(t, add_special_tokens=False) for t in texts)]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i][0]))
    found = [None] * len(texts)
    for begin in range(0, len(order), 64):
        part = order[begin : begin + 64]
        ids, mask = padded([[cls, *encoded[i][0], sep] for i in part])
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        states = torch.cat([states[layer] for layer in LAYERS], -1)
        for i, row in zip(part, states):
            words = torch.tensor(encoded[i][1], dtype=torch.long)
            count = torch.bincount(words)
            sums = torch.zeros(len(count), row.shape[1]).index_add_(0, words, row[1 : len(words) + 1])
            found[i] = (sums / count[:, None]).half()
    offsets = numpy.cumsum([0] + [len(rows) for rows in found])
    vectors, out = torch.cat(found), []
    for part in vectors.split(vectors.shape[1] // len(LAYERS), dim=1):
        sample = part[::7][:20_000].float()
        mean = part[::7].float().mean(0)
        basis = torch.linalg.svd(sample - mean, full_matrices=False).Vh[:COMPONENTS]
        projected = (part.float() - mean) @ basis.T
        out.append(projected / projected.std())
    return torch.cat(out, -1).half().numpy(), offsets


def vocabulary(texts):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, limit_alphabet=80, show_progress=False))
    return tokenizer


def rows_of(texts, tokenizer, offsets):
    """(ids, positions of the first sub-words, their rows of the vectors) of each text."""
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    for i, text in enumerate(texts):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        ids, words = encoding.ids[: TOKENS - 2], encoding.word_ids[: TOKENS - 2]
        known = offsets[i + 1] - offsets[i]
        first = [at for at, word in enumerate(words) if word < known and (at == 0 or words[at - 1] != word)]
        if first:
            yield [cls, *ids, sep], [at + 1 for at in first], [int(offsets[i]) + words[at] for at in first]


def batches(rows, generator):
    """Rows of like length together, in random order."""
    generator.shuffle(rows)
    out = []
    for begin in range(0, len(rows), 2048):
        batch = []
        for row in sorted(rows[begin : begin + 2048], key=lambda row: len(row[0])):
            if batch and (len(batch) + 1) * len(row[0]) > BATCH_TOKENS:
                out.append(batch)
                batch = []
            batch.append(row)
        out.append(batch)
    generator.shuffle(out)
    return out


def train(model, rows, vectors, generator):
    head = torch.nn.Linear(model.config.hidden_size, vectors.shape[1])
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    step, sum_of_losses, began = 0, 0.0, time.time()
    while step < STEPS:
        for batch in batches(rows, generator)[: STEPS - step]:
            ids, mask = padded([row[0] for row in batch])
            at = [(i, position) for i, row in enumerate(batch) for position in row[1]]
            wanted = torch.from_numpy(vectors[[word for row in batch for word in row[2]]]).float()
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / 100) * (1 - step / STEPS)
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            loss = torch.nn.functional.mse_loss(head(states[tuple(zip(*at))]), wanted)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            sum_of_losses += loss.item()
            if step % 500 == 0:
                print(f"step {step}  loss {sum_of_losses / 500:.4f}  {time.time() - began:.0f} s", flush=True)
                sum_of_losses = 0.0


def save(model, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
    settings = {"tokenizer_class": "ElectraTokenizer", "do_lower_case": True, "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FOLDER", help="corpora with a train.tsv")
    parser.add_argument("--transfer", type=Path, required=True, help="unlabelled text, a sentence a line")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, help="keep the word vectors in this .npz, or read them if it is there")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    texts = [t for folder in args.data for t in sentences(folder / "train.tsv")]
    texts += [line for line in args.transfer.read_text(encoding="utf-8").splitlines() if line][:SENTENCES]
    if args.vectors and args.vectors.exists():
        stored = numpy.load(args.vectors)
        vectors, offsets = stored["vectors"], stored["offsets"]
    else:
        vectors, offsets = word_vectors(args.model, texts)
        if args.vectors:
            numpy.savez(args.vectors, vectors=vectors, offsets=offsets)
    tokenizer = vocabulary(texts)
    model = ElectraModel(ElectraConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=TOKENS, type_vocab_size=1, **SHAPE))
    torch.nn.init.normal_(model.embeddings.word_embeddings.weight, std=0.1)
    train(model, list(rows_of(texts, tokenizer, offsets)), vectors, random.Random(SEED))
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
