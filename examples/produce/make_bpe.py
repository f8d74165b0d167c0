#!/usr/bin/env python3
"""Makes an encoder of other tokens: all-MiniLM-L6-v2's layers under a byte-level BPE, as RoBERTa has it.

    make_bpe.py --model MINILM_FOLDER --data ner_bc5cdr ner_ncbi_disease --transfer sentences_a.txt --out FOLDER

The BPE is learned from the training sentences (without their tags) and the transfer text. A piece's embedding is the mean of the word
pieces of its characters, behind `##` where it goes on with a word. What is lost so has to be learned again: it is a start for a teacher
whose student has other tokens. The same bytes each time. Needs torch, transformers, tokenizers and safetensors."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from make_start import sentences

SPECIAL = {"<s>": "[CLS]", "<pad>": "[PAD]", "</s>": "[SEP]", "<unk>": "[UNK]", "<mask>": "[MASK]"}
VOCABULARY = 16_000


def learn_bpe(texts):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    bpe.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
    return bpe


def characters():
    """The character that stands for each byte, as GPT-2 chose them, to the byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def word_pieces(text, goes_on, vocabulary, lowercase):
    """The longest pieces first, as WordPiece finds them; what has none is left out."""
    ids = []
    for number, word in enumerate(lowercase(text).split()):
        at, goes_on = 0, goes_on and number == 0
        while at < len(word):
            prefix = "##" if goes_on or at > 0 else ""
            end = next((end for end in range(len(word), at, -1) if prefix + word[at:end] in vocabulary), None)
            if end is not None:
                ids.append(vocabulary[prefix + word[at:end]])
            at = end or at + 1
    return ids


def embeddings(bpe, of_words, wordpiece):
    vocabulary, byte_of = wordpiece.get_vocab(), characters()
    rows = of_words.mean(0).repeat(bpe.get_vocab_size(), 1)
    for piece, row in bpe.get_vocab().items():
        if piece in SPECIAL:
            rows[row] = of_words[vocabulary[SPECIAL[piece]]]
            continue
        text = bytes(byte_of[c] for c in piece).decode("utf-8", "ignore")
        goes_on = not text.startswith(" ") and text[:1].isalnum()
        if ids := word_pieces(text, goes_on, vocabulary, wordpiece.normalizer.normalize_str):
            rows[row] = of_words[ids].mean(0)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--transfer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    texts = [text for folder in a.data for text in sentences(folder / "train.tsv")]
    texts += a.transfer.read_text(encoding="utf-8").splitlines()
    bpe = learn_bpe(texts)
    weights = load_file(a.model / "model.safetensors")
    wordpiece = Tokenizer.from_file(str(a.model / "tokenizer.json"))
    config = json.loads((a.model / "config.json").read_text())
    at = "embeddings.word_embeddings.weight"
    weights[at] = embeddings(bpe, weights[at], wordpiece)
    # A RoBERTa counts its positions from the one after its padding's.
    at = "embeddings.position_embeddings.weight"
    weights[at] = torch.cat([torch.zeros(2, config["hidden_size"]), weights[at]])
    at = "embeddings.token_type_embeddings.weight"
    weights[at] = weights[at][:1].clone()
    weights = {name: tensor.contiguous() for name, tensor in weights.items() if not name.endswith("position_ids")}
    config |= {
        "architectures": ["RobertaModel"], "model_type": "roberta", "vocab_size": bpe.get_vocab_size(), "type_vocab_size": 1,
        "max_position_embeddings": config["max_position_embeddings"] + 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config.pop("_name_or_path", None)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    bpe.save(str(a.out / "tokenizer.json"), pretty=False)
    save_file(weights, a.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
