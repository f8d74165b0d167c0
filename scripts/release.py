#!/usr/bin/env python3
"""Looks over the files of a release, and writes SHA256SUMS beside them:

    scripts/release.py FOLDER [--without KIND]...

Nothing is in FOLDER but the packages of `KINDS`, each of which is there unless it is left out by name, and for each library in them that
is linked the file to read its crashes by (scripts/symbols.sh). A package holds every licence, and libraries that are stripped, have the
build id of their file, and weigh at most a twentieth over what bindings/size.csv says. Prints what is wrong, all of it, and fails.
"""

import argparse
import csv
import hashlib
import io
import pathlib
import re
import struct
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
OWN = {"LICENSE-MIT", "LICENSE-APACHE", "NOTICE"}
LINKED = OWN | {"THIRD-PARTY.txt"}
ABIS = {
    "arm64-v8a": "aarch64-linux-android", "armeabi-v7a": "armv7-linux-androideabi",
    "x86_64": "x86_64-linux-android", "x86": "i686-linux-android",
}
LIBRARY = "libampoule_bindings.so"
# ELF's numbers for them.
MACHINES = {"x86_64": 62, "aarch64": 183, "armv7": 40, "i686": 3}


class Kind:
    """A package: how its file is called, what licences are in it, which library is for which target, whose rows of bindings/size.csv are
    theirs where not a target's own, and whether they compute on GPUs."""

    def __init__(self, name, licences=LINKED, libraries=(), limit=None, rows="{}", gpu=False):
        self.name, self.licences, self.libraries, self.limit, self.rows = name, licences, dict(libraries), limit, rows
        self.gpu = gpu

    def debug(self, target):
        """The file that crashes of a library are read by."""
        return f"ampoule{'-gpu' if self.gpu else ''}-{version()}-{target}.debug"


def kinds(gpu):
    """The packages around a library."""
    name, end = ("ampoule-gpu", "-gpu") if gpu else ("ampoule", "")

    def wheel(machine):
        return Kind(rf"{name.replace('-', '_')}-VERSION-py3-none-manylinux_2_\d+_{machine}(\.manylinux\w+)?\.whl",
                    libraries={f"{machine}-unknown-linux-gnu": f"ampoule/_native/{LIBRARY}"}, limit=10_000_000 if gpu else 4_000_000,
                    rows="{} (wheel)", gpu=gpu)

    return {
        f"wheel-x86_64{end}": wheel("x86_64"),
        f"wheel-aarch64{end}": wheel("aarch64"),
        f"aar{end}": Kind(rf"{name}-VERSION\.aar", libraries={target: f"jni/{abi}/{LIBRARY}" for abi, target in ABIS.items()}, gpu=gpu),
        # Static: an app's linker takes of it what it calls, so that its own weight says nothing.
        f"swift{end}": Kind(rf"{name}-VERSION-swift\.zip", gpu=gpu),
    }


KINDS = {"crate": Kind(r"ampoule-VERSION\.crate", licences=OWN, limit=10 * 1024 * 1024), **kinds(gpu=False), **kinds(gpu=True)}


def version():
    return re.search(r'^\[workspace\.package\]\nversion = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def files_of(path):
    """{name: bytes} of a package; of an archive within it too, under the names there."""
    found = {}

    def add_zip(data):
        with zipfile.ZipFile(data) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    found[name] = archive.read(name)
                    if name.endswith(".jar"):
                        add_zip(io.BytesIO(found[name]))

    if path.suffix == ".crate":
        with tarfile.open(path) as archive:
            found.update({file.name: archive.extractfile(file).read() for file in archive if file.isfile()})
    else:
        add_zip(path)
    return found


def sections(elf):
    """{name: bytes} of an ELF file; what is not in the file is empty."""
    if elf[:4] != b"\x7fELF" or elf[5] != 1:
        raise ValueError("no little-endian ELF file")
    wide = elf[4] == 2
    (offset,) = struct.unpack_from("<Q" if wide else "<I", elf, 0x28 if wide else 0x20)
    size, count, names = struct.unpack_from("<3H", elf, 0x3A if wide else 0x2E)
    rows = [struct.unpack_from("<2I4Q" if wide else "<6I", elf, offset + size * i) for i in range(count)]
    strings = elf[rows[names][4] :]
    return {strings[row[0] : strings.index(b"\0", row[0])].decode(): b"" if row[1] == 8 else elf[row[4] : row[4] + row[5]] for row in rows}


def build_id(of):
    return of.get(".note.gnu.build-id", b"")[16:].hex()


def wrong_of_library(data, target, debug, weight):
    here = sections(data)
    if struct.unpack_from("<H", data, 18)[0] != MACHINES[target.partition("-")[0]]:
        yield "is for another processor"
    if ".symtab" in here or any(name.startswith(".debug_") for name in here):
        yield "is not stripped"
    if target.endswith(("-android", "-androideabi")) and ".note.android.ident" not in here:
        yield "was not linked by the NDK"
    if not debug.exists():
        yield f"has no {debug.name}"
    elif not build_id(here) or build_id(sections(debug.read_bytes())) != build_id(here):
        yield f"is another build than {debug.name}"
    if weight is None:
        yield "has no row in bindings/size.csv"
    elif len(data) * 20 > weight * 21:
        yield f"weighs {len(data)} bytes, more than a twentieth over {weight}"


def wrong_of_package(path, kind, weights):
    if kind.limit and path.stat().st_size > kind.limit:
        yield f"weighs {path.stat().st_size} bytes, over {kind.limit}"
    try:
        files = files_of(path)
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        yield f"is no archive: {error}"
        return
    for licence in sorted(kind.licences):
        text = (ROOT / ("bindings" if licence == "THIRD-PARTY.txt" else "") / licence).read_bytes()
        if not any(name.rpartition("/")[2] == licence and data == text for name, data in files.items()):
            yield f"holds no {licence}, or another"
    for target, name in kind.libraries.items():
        if name not in files:
            yield f"holds no {name}"
            continue
        try:
            weight = weights.get((kind.rows.format(target), kind.gpu))
            yield from (f"{name} {what}" for what in wrong_of_library(files[name], target, path.parent / kind.debug(target), weight))
        except (ValueError, struct.error, IndexError) as error:
            yield f"{name}: {error}"
    for name in files:
        if name.endswith(".so") and name not in kind.libraries.values():
            yield f"holds {name}, which nobody asked for"


def wrong_of_release(folder, without=(), ledger=ROOT / "bindings/size.csv"):
    """What is wrong with a folder, a line each."""
    with open(ledger, newline="") as file:
        weights = {(row["target"], "wgpu" in row["features"].split()): int(row["bytes"]) for row in csv.DictReader(file)}
    known = {name: kind for name, kind in KINDS.items() if name not in without}
    debugs = {kind.debug(target) for kind in known.values() for target in kind.libraries}
    left = {path for path in folder.iterdir() if path.name != "SHA256SUMS" and path.name not in debugs}
    for name, kind in known.items():
        there = [path for path in left if re.fullmatch(kind.name.replace("VERSION", re.escape(version())), path.name)]
        if len(there) != 1:
            yield f"{len(there)} files are the package {name}, {kind.name.replace('VERSION', version())}"
        for path in there:
            left.remove(path)
            yield from (f"{path.name}: {what}" for what in wrong_of_package(path, kind, weights))
    for path in sorted(left):
        why = "linked against stand-ins for Android's libraries, it runs nowhere" if "unlinked" in path.name else "no package of a release"
        yield f"{path.name}: {why}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--without", action="append", default=[], choices=KINDS)
    arguments = parser.parse_args()
    sums = arguments.folder / "SHA256SUMS"
    sums.unlink(missing_ok=True)
    wrong = list(wrong_of_release(arguments.folder, arguments.without))
    if wrong:
        sys.exit("\n".join(wrong))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(arguments.folder.iterdir())]
    sums.write_text("".join(lines))
    print("".join(lines), end="")


if __name__ == "__main__":
    main()
