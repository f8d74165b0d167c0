"""Writes bionic.csv: functions of Android's C library, with the version of the library that first had them, for each processor.

The linker of the NDK leaves in a library, beside the name of each function it takes from bionic, the version of bionic that introduced
it (`readelf --dyn-syms`): LIBC up to API 23, LIBC_N is API 24, LIBC_O 26, LIBC_P 28. The facts are read from libraries that were linked
so and are published on Maven Central: the packages below. `python3 bionic.py FOLDER`, where FOLDER is for what is fetched.
"""

import collections
import csv
import pathlib
import re
import subprocess
import sys
import zipfile

PACKAGES = [
    "net.java.dev.jna:jna:5.19.1:aar",
    "org.conscrypt:conscrypt-android:2.7.0:aar",
    "com.facebook.react:hermes-android:0.82.1:aar:release",
    "io.github.webrtc-sdk:android:144.7559.14:aar",
    "org.matrix.rustcomponents:sdk-android:0.1.83:aar",
    "org.bitcoindevkit:bdk-android:2.3.1:aar",
    "org.opencv:opencv:4.10.0:aar",
]
# What is said here and not read. C programs for 64 bits call mmap, which there is the same function, so no package has the other name;
# bionic has had both since its first release for 64 bits, API 21. No package calls sched_getaffinity for x86, where it is as old as for the
# other three (libc.map.txt).
SAID = {
    ("mmap64", "libc.so"): {"arm64-v8a": "LIBC", "x86_64": "LIBC"},
    ("sched_getaffinity", "libc.so"): {"x86": "LIBC"},
}
ABIS = ["arm64-v8a", "armeabi-v7a", "x86_64", "x86"]


def readelf(*arguments):
    return subprocess.run(["readelf", "-W", *arguments], check=True, capture_output=True, text=True).stdout


def versions(library):
    """Of what it takes from others: `(name, library, version)`."""
    files, file = {}, None
    for line in readelf("-V", library).splitlines():
        if found := re.search(r"File: (\S+)", line):
            file = found[1]
        elif found := re.search(r"Name: (\S+) .*Version: (\d+)", line):
            files[found[2]] = file, found[1]
    for name, index in re.findall(r" UND (\S+?)@\S+ \((\d+)\)", readelf("--dyn-syms", library)):
        yield name, *files[index]


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    known = collections.defaultdict(dict)
    for package in PACKAGES:
        plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
        subprocess.run(["mvn", "-B", "-q", plugin, f"-Dartifact={package}", f"-DoutputDirectory={folder}"], check=True)
    for package in sorted(folder.glob("*.aar")):
        with zipfile.ZipFile(package) as archive:
            for entry in archive.namelist():
                if found := re.fullmatch(r"jni/([^/]+)/[^/]+\.so", entry):
                    if found[1] not in ABIS:
                        continue
                    library = pathlib.Path(archive.extract(entry, folder / package.stem))
                    for name, file, version in versions(library):
                        known[name, file][found[1]] = version
    for key, by_abi in SAID.items():
        known[key] |= by_abi
    with open(pathlib.Path(__file__).with_suffix(".csv"), "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", "library", *ABIS])
        for (name, library), by_abi in sorted(known.items()):
            rows.writerow([name, library, *(by_abi.get(abi, "") for abi in ABIS)])


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
