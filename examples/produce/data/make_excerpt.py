#!/usr/bin/env python3
"""Makes the excerpt beside this script, on which the tiny run trains and is tested.

    git clone https://github.com/cambridgeltl/MTL-Bioinformatics-2016
    git -C MTL-Bioinformatics-2016 checkout df0df02fae6dbb87d88ffcf323b9096528f06f84
    make_excerpt.py --corpora MTL-Bioinformatics-2016/data --transfer sentences.txt

The first sentences of each file, in their order: runs of consecutive sentences stay runs, and none is picked.
"""

import argparse
from pathlib import Path

SENTENCES = {"train": 500, "dev": 100, "test": 300}
TRANSFER = 200
# ours: (folder, name of its dev file)
CORPORA = {"bc5cdr": ("BC5CDR-IOB", "devel"), "ncbi": ("NCBI-disease-IOB", "devel")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the corpora's folders")
    parser.add_argument("--transfer", type=Path, required=True, help="unlabelled text, a sentence a line")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    for name, (folder, dev) in CORPORA.items():
        (args.out / name).mkdir(parents=True, exist_ok=True)
        for split, count in SENTENCES.items():
            source = args.corpora / folder / f"{dev if split == 'dev' else split}.tsv"
            sentences = source.read_text(encoding="utf-8").strip("\n").split("\n\n")[:count]
            (args.out / name / f"{split}.tsv").write_text("\n\n".join(sentences) + "\n", encoding="utf-8")
    lines = args.transfer.read_text(encoding="utf-8").splitlines()[:TRANSFER]
    (args.out / "transfer.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
