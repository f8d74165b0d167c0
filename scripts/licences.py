#!/usr/bin/env python3
"""The licences of every crate that is linked into the bindings' library, on any system that it is packed for, with their texts.

    scripts/licences.py

compares bindings/THIRD-PARTY.txt with what Cargo.lock says; with AMPOULE_WRITE set, writes it anew.

    scripts/licences.py web FILE

writes the same of the page's modules.
"""

import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "bindings/THIRD-PARTY.txt"
TARGETS = [
    "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-linux-android", "armv7-linux-androideabi",
    "x86_64-linux-android", "i686-linux-android", "aarch64-apple-ios", "aarch64-apple-ios-sim", "aarch64-apple-darwin",
]
# The most that a package may have: 32-bit ones compute by Burn's Flex, others on GPUs too.
LIBRARY = ["--package", "ampoule-bindings", "--features", "flex,wgpu"]
# That for the GPU has more.
PAGE = ["--manifest-path", "examples/web/Cargo.toml", "--package", "ampoule-web", "--features", "webgpu"]
FILES = re.compile(r"(licen[sc]e|copying|notice|unlicense|copyright)", re.IGNORECASE)

def mit(_, package, packages):
    """That of ours, with the crate's authors in place of us; of one that names none, those of its repository's others."""
    known = package["authors"] or [a for p in packages if p["repository"] == package["repository"] for a in p["authors"]]
    authors = ", ".join(dict.fromkeys(author.split(" <")[0] for author in known))
    if not authors:
        sys.exit(f"{package['name']} {package['version']}: no author for the text of its licence")
    return re.sub(r"(?m)^Copyright.*$", f"Copyright (c) {authors}", (ROOT / "LICENSE-MIT").read_text())


# Where a crate brings no text and no other of its repository does: the first that it may be had under.
STANDARD = {"Apache-2.0": lambda *_: (ROOT / "LICENSE-APACHE").read_text(),
            "MPL-2.0": lambda texts, *_: next(text for text in texts if text.startswith("Mozilla Public License Version 2.0")),
            "MIT": mit}
HEAD = """\
What is linked into Ampoule's library besides Ampoule itself (LICENSE-MIT, LICENSE-APACHE, NOTICE), on any of the systems that it is
packed for. Where there is a choice of licences, each may be chosen. Sources: https://crates.io/crates/NAME/VERSION.

Rust's standard library, MIT OR Apache-2.0, with parts under Apache-2.0 WITH LLVM-exception: https://github.com/rust-lang/rust
"""


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def linked(package, targets):
    """Names and versions; crates that only run at compile time are not among them."""
    found = set()
    for target in targets:
        tree = cargo("tree", "--locked", "--quiet", *package, "--target", target, "--edges",
                     "normal,no-proc-macro", "--prefix", "none", "--no-dedupe", "--format", "{p}")
        found |= {tuple(line.split()[:2]) for line in tree.splitlines() if line and "(proc-macro)" not in line}
    return {(name, version.removeprefix("v")) for name, version in found if not name.startswith("ampoule")}


def own_texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and FILES.match(path.name) and path.suffix not in (".rs", ".toml"))
    return ["\n".join(line.rstrip() for line in path.read_text(errors="replace").strip().splitlines()) for path in files]


def collected(package, targets):
    names = linked(package, targets)
    workspace = package[:2] if package[0] == "--manifest-path" else []
    packages = [p for p in json.loads(cargo("metadata", "--locked", "--quiet", "--format-version", "1", *workspace))["packages"]
                if (p["name"], p["version"]) in names]
    assert len(packages) == len(names) > 50, (len(packages), len(names))
    texts = {p["id"]: own_texts(p) for p in packages}
    known = [text for of in texts.values() for text in of]
    siblings = {p["repository"]: texts[p["id"]] for p in packages if p["repository"] and texts[p["id"]]}
    for package in packages:
        if not texts[package["id"]]:
            choices = re.split(r" OR |/", package["license"])
            standard = (text(known, package, packages).strip() for licence, text in STANDARD.items() if licence in choices)
            texts[package["id"]] = siblings.get(package["repository"]) or list(itertools.islice(standard, 1))
        if not texts[package["id"]]:
            sys.exit(f"{package['name']} {package['version']} ({package['license']}) brings no text of its licence")
    packages.sort(key=lambda p: (p["name"], p["version"]))
    # Copies that differ in their line breaks alone are one text.
    users = {}
    for package in packages:
        for text in texts[package["id"]]:
            users.setdefault(" ".join(text.split()), (text, []))[1].append(f"{package['name']} {package['version']}")
    rows = [f"{p['name']} {p['version']}, {p['license'].replace('/', ' OR ')}" for p in packages]
    bodies = [f"{'=' * 100}\n{', '.join(dict.fromkeys(of))}\n{'=' * 100}\n\n{text}\n" for text, of in users.values()]
    return "\n".join([HEAD, *rows, "", *bodies])


if sys.argv[1:2] == ["web"]:
    pathlib.Path(sys.argv[2]).write_text(collected(PAGE, ["wasm32-unknown-unknown"]))
    sys.exit()
found = collected(LIBRARY, TARGETS)
if os.environ.get("AMPOULE_WRITE"):
    OUT.write_text(found)
if not OUT.exists() or OUT.read_text() != found:
    sys.exit(f"{OUT.relative_to(ROOT)} is not that of Cargo.lock; AMPOULE_WRITE=1 {sys.argv[0]} writes it")
print(f"{OUT.relative_to(ROOT)}: {len(found)} bytes")
