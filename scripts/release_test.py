#!/usr/bin/env python3
"""What scripts/release.py takes, and that it refuses a release with each fault that it looks for. Needs gcc and binutils."""

import csv
import functools
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

import release

ROOT = release.ROOT
VERSION = release.version()
WHEEL = f"ampoule-{VERSION}-py3-none-manylinux_2_34_x86_64.whl"
SOURCE = '__asm__(".section .note.android.ident,\\"a\\",%note\\n.long 0\\n.previous\\n"); int ampoule(void) { return 7; }'
WEIGHT = 20_000


@functools.cache
def library(target, gpu=False):
    """A small library with a build id of its own, whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "library.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-g", "-nostdlib", "-Wl,--build-id=sha1", "-x", "c", "-", "-o", path],
                       input=SOURCE + f'const char *target = "{target} {gpu}";', check=True, text=True)
        data = bytearray(path.read_bytes())
    data[18:20] = release.MACHINES[target.partition("-")[0]].to_bytes(2, "little")
    return bytes(data)


@functools.cache
def parts(target, gpu=False):
    """The library stripped, and what was kept of it, by scripts/symbols.sh."""
    with tempfile.TemporaryDirectory() as folder:
        path, debug = pathlib.Path(folder) / "library.so", pathlib.Path(folder) / "library.debug"
        # objcopy knows the processor of this machine alone; the number of another is put back.
        whole = bytearray(library(target, gpu))
        machine, whole[18:20] = bytes(whole[18:20]), release.MACHINES[platform.machine()].to_bytes(2, "little")
        path.write_bytes(whole)
        subprocess.run([ROOT / "scripts/symbols.sh", path, debug], check=True)
        found = [bytearray(file.read_bytes()) for file in (path, debug)]
    for data in found:
        data[18:20] = machine
    return tuple(map(bytes, found))


def licence(name):
    return (ROOT / ("bindings" if name == "THIRD-PARTY.txt" else "") / name).read_bytes()


class Release(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        (self.folder / "release").mkdir()
        self.ledger = self.folder / "size.csv"
        self.rows = {}
        self.files = {}
        for name, end in ("ampoule", ""), ("ampoule-gpu", "-gpu"):
            wheel = WHEEL.replace("ampoule", name.replace("-", "_"))
            self.files |= {
                wheel: self.package(f"wheel-x86_64{end}", "ampoule.dist-info/licenses/"),
                wheel.replace("x86_64", "aarch64"): self.package(f"wheel-aarch64{end}", "ampoule.dist-info/licenses/"),
                f"{name}-{VERSION}.aar": self.package(f"aar{end}", "META-INF/"),
                f"{name}-{VERSION}-swift.zip": self.package(f"swift{end}", "ampoule/"),
            }

    def package(self, kind, licences):
        kind = release.KINDS[kind]
        for target in kind.libraries:
            self.rows[kind.rows.format(target), "flex wgpu" if kind.gpu else ""] = WEIGHT
            (self.folder / "release" / kind.debug(target)).write_bytes(parts(target, kind.gpu)[1])
        return {**{licences + name: licence(name) for name in kind.licences},
                **{name: parts(target, kind.gpu)[0] for target, name in kind.libraries.items()}}

    def wrong(self):
        folder = self.folder / "release"
        for name, files in self.files.items():
            with zipfile.ZipFile(folder / name, "w") as archive:
                for file, data in files.items():
                    archive.writestr(file, data)
        rows = (f"{target},{features},{weight}\n" for (target, features), weight in self.rows.items())
        self.ledger.write_text("".join(["target,features,bytes\n", *rows]))
        return list(release.wrong_of_release(folder, ["crate"], self.ledger))

    def refused(self, *expected):
        found = self.wrong()
        self.assertEqual(len(found), len(expected), found)
        for line, part in zip(found, expected):
            self.assertIn(part, line)

    def change(self, change):
        name = release.KINDS["wheel-x86_64"].libraries["x86_64-unknown-linux-gnu"]
        self.files[WHEEL][name] = change(self.files[WHEEL][name])

    def test_a_whole_release_is_taken(self):
        self.refused()

    def test_an_unlinked_package_is_refused_under_any_name(self):
        self.files["ampoule-unlinked.aar"] = self.files[f"ampoule-{VERSION}.aar"]
        self.refused("ampoule-unlinked.aar: linked against stand-ins")
        (self.folder / "release/ampoule-unlinked.aar").rename(self.folder / f"release/ampoule-{VERSION}.aar")
        aar = self.files[f"ampoule-{VERSION}.aar"] = self.files.pop("ampoule-unlinked.aar")
        # As without the NDK's own start of a library.
        name = "jni/arm64-v8a/libampoule_bindings.so"
        aar[name] = aar[name].replace(b".note.android.ident", b".note.whatever.else")
        self.refused("arm64-v8a/libampoule_bindings.so was not linked by the NDK")

    def test_other_files_are_refused(self):
        self.files["notes.zip"] = {"a": b""}
        self.refused("notes.zip: no package of a release")

    def test_a_package_of_another_version_or_none_is_missed(self):
        self.files["ampoule-9.9.9.aar"] = self.files.pop(f"ampoule-{VERSION}.aar")
        self.refused("0 files are the package aar", "ampoule-9.9.9.aar: no package of a release")

    def test_every_licence_is_in_every_package(self):
        for name in sorted(release.LINKED):
            for package in self.files:
                with self.subTest(name, package=package):
                    (path,) = [path for path in self.files[package] if path.endswith(name)]
                    kept, self.files[package][path] = self.files[package][path], b"another"
                    self.refused(f"{package}: holds no {name}")
                    self.files[package][path] = kept

    def test_a_library_in_a_jar_of_a_package_is_seen(self):
        inner = self.folder / "classes.jar"
        with zipfile.ZipFile(inner, "w") as archive:
            archive.writestr("linux-x86-64/libother.so", b"")
        self.files[f"ampoule-{VERSION}.aar"]["classes.jar"] = inner.read_bytes()
        self.refused("holds linux-x86-64/libother.so")

    def test_a_library_is_stripped_and_the_one_of_its_debug_file(self):
        self.change(lambda _: library("x86_64-unknown-linux-gnu"))
        self.refused("is not stripped")
        self.change(lambda _: parts("x86_64-linux-android")[0])
        self.refused("is another build than")
        self.change(lambda _: parts("aarch64-unknown-linux-gnu")[0])
        self.refused("is for another processor", "is another build than")
        self.change(lambda _: b"\x7fELF\x02\x01" + b"\0" * 60)
        self.refused("libampoule_bindings.so: ")
        self.change(lambda _: b"#!/bin/sh")
        self.refused("no little-endian ELF file")

    def test_a_library_without_its_debug_file_is_refused(self):
        (self.folder / f"release/ampoule-{VERSION}-aarch64-linux-android.debug").unlink()
        self.refused("has no ampoule-")

    def test_a_library_weighs_what_the_ledger_says(self):
        weight, row = len(parts("x86_64-unknown-linux-gnu")[0]), ("x86_64-unknown-linux-gnu (wheel)", "")
        self.rows[row] = weight * 20 // 21 + 1
        self.refused()
        self.rows[row] = weight * 20 // 21 - 1
        self.refused("more than a twentieth over")
        del self.rows[row]
        self.refused("has no row")

    def test_a_library_with_gpus_is_in_no_other_package(self):
        self.change(lambda _: parts("x86_64-unknown-linux-gnu", gpu=True)[0])
        self.refused(f"is another build than ampoule-{VERSION}-x86_64-unknown-linux-gnu.debug")
        (self.folder / f"release/ampoule-gpu-{VERSION}-aarch64-linux-android.debug").unlink()
        self.refused("is another build than", f"has no ampoule-gpu-{VERSION}-aarch64-linux-android.debug")

    def test_the_ledger_has_a_row_for_every_library(self):
        with open(ROOT / "bindings/size.csv", newline="") as file:
            rows = {(row["target"], "wgpu" in row["features"].split()) for row in csv.DictReader(file)}
        for kind in release.KINDS.values():
            self.assertLessEqual({(kind.rows.format(target), kind.gpu) for target in kind.libraries}, rows)

    def test_a_missing_library_and_a_broken_archive(self):
        self.change(lambda data: data)
        del self.files[WHEEL]["ampoule/_native/libampoule_bindings.so"]
        self.refused("holds no ampoule/_native/libampoule_bindings.so")
        del self.files[WHEEL]
        (self.folder / "release" / WHEEL).write_bytes(b"no zip")
        self.refused("is no archive")

    def test_the_command_fails_and_leaves_no_sums(self):
        (self.folder / "release/SHA256SUMS").write_text("old")
        (self.folder / "release/ampoule-unlinked.aar").write_bytes(b"")
        run = subprocess.run([sys.executable, ROOT / "scripts/release.py", self.folder / "release", "--without", "crate"],
                             text=True, stderr=subprocess.PIPE)
        self.assertEqual(run.returncode, 1)
        self.assertIn("ampoule-unlinked.aar: linked against stand-ins", run.stderr)
        self.assertFalse((self.folder / "release/SHA256SUMS").exists())


if __name__ == "__main__":
    assert shutil.which("gcc") and shutil.which("objcopy"), "gcc and binutils are needed"
    result = unittest.TextTestRunner(verbosity=1).run(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"]))
    failed = len({getattr(test, "test_case", test).id() for test, _ in result.failures + result.errors})
    print(f"{result.testsRun - failed} passed, {failed} failed")
    sys.exit(failed > 0)
