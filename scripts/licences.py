"""Writes one file of the licences of all that is linked into the bindings' library: `licences.py FILE`. Each crate's own texts, the same
text once. For whoever packs the library."""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def main(path):
    tree = ["tree", "-p", "ampoule-bindings", "--features", "flex", "--edges", "normal", "--prefix", "none", "--no-dedupe"]
    linked = {tuple(line.split(maxsplit=1)) for line in cargo(*tree, "--format", "{p}").splitlines() if line}
    linked = {(name, re.match(r"v(\S+)", rest)[1]) for name, rest in linked}
    packages = json.loads(cargo("metadata", "--format-version", "1", "--locked"))["packages"]
    users = {}
    for package in sorted(packages, key=lambda p: (p["name"], p["version"])):
        if (package["name"], package["version"]) not in linked or package["source"] is None:
            continue
        title = f"{package['name']} {package['version']} ({package['license']}) {package['repository'] or ''}".rstrip()
        folder = pathlib.Path(package["manifest_path"]).parent
        texts = [f for f in sorted(folder.iterdir()) if re.match(r"(?i)(licen[cs]e|copying|copyright|notice|unlicense)", f.name) and f.is_file()]
        for text in texts or [None]:
            users.setdefault(text.read_text(errors="replace").strip() if text else "", []).append(title)
    own = users.pop("", [])
    parts = ["Of others, and linked into the library. Sources: crates.io, under the names and versions given."]
    parts += ["\n".join([*titles, "", text]) for text, titles in sorted(users.items(), key=lambda item: item[1])]
    if own:
        parts.append("\n".join([*own, "", "These say which licence they are under, as above, and bring no text of it."]))
    pathlib.Path(path).write_text(f"\n\n{'-' * 80}\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
