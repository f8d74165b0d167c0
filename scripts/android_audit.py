"""Packs the Android archive, and looks at what is in it: what a phone would be asked for, and whether it is all there.

    android_audit.py library ABI FILE...      libraries: pages, undefined names, exported names, weight
    android_audit.py gpu-library ABI FILE...  the same of those that compute on a GPU too, which may weigh more
    android_audit.py foreign ABI FILE...      libraries of others: pages, undefined names
    android_audit.py pack FILE.aar JNI CLASSES
    android_audit.py aar FILE.aar ABI...      the archive's layout
    android_audit.py unwinder                 names that the NDK links from its own unwinder, and Debian's Rust leaves open

Prints what breaks a rule, and exits with 1 then.
"""

import csv
import io
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Of bionic, up to API 26; see bindings/android/bionic.py.
OLD_ENOUGH = {"LIBC", "LIBC_N", "LIBC_O"}
PAGE = 0x4000
MOST_BYTES = {"library": 4_000_000, "gpu-library": 10_000_000}
UNWINDER = [
    "_Unwind_" + name
    for name in (
        "Backtrace DeleteException FindEnclosingFunction GetDataRelBase GetIP GetIPInfo GetLanguageSpecificData GetRegionStart "
        "GetTextRelBase RaiseException Resume SetGR SetIP GetGR GetCFA VRS_Get VRS_Set"
    ).split()
] + ["__gnu_unwind_frame"]
LICENCES = [f"META-INF/ampoule/{name}" for name in ("LICENSE-APACHE", "LICENSE-MIT", "NOTICE", "THIRD-PARTY.txt")]


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def called():
    """The functions that uniffi's Kotlin takes from the library."""
    source = (ROOT / "target/kotlin/uniffi/rs/ampoule/ffi/ampoule_native.kt").read_text()
    return set(re.findall(r"external fun (\w+)\(", source))


def broken_in_library(abi, path, most_bytes):
    segments = [int(a, 16) for a in re.findall(r"^ +LOAD .* (0x[0-9a-f]+)$", readelf("-l", path), re.M)]
    if not segments:
        yield "it has no segment to load"
    for alignment in segments:
        if alignment < PAGE:
            yield f"a segment is aligned to {alignment:#x}, less than {PAGE:#x}"
    with open(ROOT / "bindings/android/bionic.csv", newline="") as file:
        known = {row["name"]: row[abi] for row in csv.DictReader(file)}
    exported = set()
    for line in readelf("--dyn-syms", path).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        name = fields[7].partition("@")[0]
        if fields[6] != "UND":
            exported.add(name)
        # A weak name is one that the library does without.
        elif fields[4] == "GLOBAL" and name not in UNWINDER and known.get(name) not in OLD_ENOUGH:
            yield f"{name}: not among the functions that bionic has had since API 26 or earlier"
    if not most_bytes:
        return
    for name in sorted(called() - exported):
        yield f"{name}: Kotlin calls it, and it is not exported"
    # What uniffi leaves for its generator is data.
    for name in sorted(name for name in exported - called() if not name.startswith("UNIFFI_META_")):
        yield f"{name}: exported, and Kotlin does not call it"
    if (size := pathlib.Path(path).stat().st_size) > most_bytes:
        yield f"{size} bytes: more than {most_bytes}"


def pack(path, jni, classes):
    """What Gradle's plugin puts in an archive, in its places."""
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w", zipfile.ZIP_DEFLATED) as inner:
        for file in sorted(pathlib.Path(classes).rglob("*")):
            if file.suffix in (".class", ".kotlin_module"):
                inner.write(file, file.relative_to(classes))
        licences = ROOT / "target/kotlin/licences"
        for name in LICENCES:
            inner.write(licences / name, name)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        android = ROOT / "bindings/android"
        archive.write(android / "src/main/AndroidManifest.xml", "AndroidManifest.xml")
        archive.writestr("classes.jar", jar.getvalue())
        archive.writestr("R.txt", "")
        archive.write(android / "consumer-rules.pro", "proguard.txt")
        for library in sorted(pathlib.Path(jni).rglob("*.so")):
            archive.write(library, f"jni/{library.relative_to(jni)}")


def broken_in_archive(path, abis):
    with zipfile.ZipFile(path) as archive:
        # Gradle's has entries for folders, too.
        names = {name for name in archive.namelist() if not name.endswith("/")}
        wanted = {"AndroidManifest.xml", "classes.jar", "R.txt", "proguard.txt"}
        wanted |= {f"jni/{abi}/libampoule_bindings.so" for abi in abis}
        for name in sorted(wanted - names):
            yield f"{name}: not there"
        # Gradle's plugin leaves its own notes in META-INF.
        for name in sorted(name for name in names - wanted if not name.startswith("META-INF/")):
            yield f"{name}: does not belong there"
        if wanted - names:
            return
        if b"uses-permission" in archive.read("AndroidManifest.xml"):
            yield "AndroidManifest.xml: asks for a permission"
        if archive.read("proguard.txt") != (ROOT / "bindings/android/consumer-rules.pro").read_bytes():
            yield "proguard.txt: not consumer-rules.pro"
        if "unlinked" not in pathlib.Path(path).name:
            with tempfile.TemporaryDirectory() as folder:
                for abi in abis:
                    library = archive.extract(f"jni/{abi}/libampoule_bindings.so", folder)
                    # The NDK links its unwinder into the library.
                    if "[libunwind.so]" in readelf("-d", library):
                        yield f"jni/{abi}: linked against stubs"
        with zipfile.ZipFile(io.BytesIO(archive.read("classes.jar"))) as jar:
            classes = {name for name in jar.namelist() if not name.endswith("/")}
            for name in ["rs/ampoule/Extractor.class", "rs/ampoule/AmpouleAssets.class", "rs/ampoule/ffi/UniffiLib.class", *LICENCES]:
                if name not in classes:
                    yield f"classes.jar: {name} is not there"
            for name in sorted(classes):
                if not name.startswith(("rs/ampoule/", "META-INF/")) or "Test" in name or "/example/" in name:
                    yield f"classes.jar: {name} does not belong there"


def main(verb, *arguments):
    if verb == "unwinder":
        print("\n".join(UNWINDER))
        return True
    if verb == "pack":
        pack(*arguments)
        return True
    if verb in ("library", "gpu-library", "foreign"):
        abi, *files = arguments
        found = [f"{file}: {broken}" for file in files for broken in broken_in_library(abi, file, MOST_BYTES.get(verb))]
    else:
        path, *abis = arguments
        found = [f"{path}: {broken}" for broken in broken_in_archive(path, abis)]
    print("\n".join(found) or f"sound: {' '.join(arguments)}")
    return not found


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
