#!/usr/bin/env python3
"""Lays out AmpouleNativeFFI.xcframework, a static framework a slice, and looks whether all of it is there and right.

    xcframework.py make  FRAMEWORK HEADER PRIVACY VERSION ios=ARCHIVE simulator=ARCHIVE
    xcframework.py check FRAMEWORK ios=LINKED simulator=LINKED
    xcframework.py plant FRAMEWORK ios=LINKED simulator=LINKED
        breaks copies in every way that `check` looks for, each of which it has to find

LINKED is a dynamic library of the archive without what the header's functions do not reach, as an app's linker leaves it: what that wants
of the system is what the privacy file has to give reasons for.
"""

import plistlib
import re
import shutil
import struct
import sys
import tempfile
from pathlib import Path

NAME = "AmpouleNativeFFI"
MINIMUM = (15, 0)
# Of each slice: its folder, the platform in its objects (LC_BUILD_VERSION), in its Info.plist, and its variant.
SLICES = {
    "ios": ("ios-arm64", 2, "iPhoneOS", None),
    "simulator": ("ios-arm64-simulator", 7, "iPhoneSimulator", "simulator"),
}
# developer.apple.com/documentation/bundleresources/describing-use-of-required-reason-api, the functions of C, and for each category the
# reasons that hold for a library which opens the model that its app names: in the app's container (C617.1) or chosen by the user
# (3B52.1), and which measures time that has passed (35F9.1). None holds for the others.
FILES, BOOT, DISK = (f"NSPrivacyAccessedAPICategory{name}" for name in ("FileTimestamp", "SystemBootTime", "DiskSpace"))
REASONS = {FILES: ["3B52.1", "C617.1"], BOOT: ["35F9.1"]}
LISTED = {
    FILES: "getattrlist getattrlistbulk fgetattrlist stat fstat fstatat lstat getattrlistat",
    BOOT: "mach_absolute_time",
    DISK: "statfs statvfs fstatfs fstatvfs",
}


MODULE = f'framework module {NAME} {{\n    header "{NAME}.h"\n    export *\n}}\n'


class Wrong(Exception):
    """What is missing or not as it should be."""


def demand(holds, what):
    if not holds:
        raise Wrong(what)


def members(archive):
    """The files of an archive, BSD's or GNU's, without its tables."""
    demand(archive[:8] == b"!<arch>\n", "the library is no archive")
    at, names = 8, b""
    while at + 60 <= len(archive):
        header = archive[at : at + 60]
        name, size = header[:16].decode().strip(), int(header[48:58])
        data = archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
        if name == "//":
            names = data
            continue
        if name.startswith("#1/"):
            length = int(name[3:])
            name, data = data[:length].rstrip(b"\0").decode(), data[length:]
        elif re.fullmatch(r"/\d+", name):
            name = names[int(name[1:]) :].split(b"/\n", 1)[0].decode()
        if name not in ("/", "/SYM64/") and not name.startswith("__.SYMDEF"):
            yield name.rstrip("/"), data


class Object:
    """What a Mach-O object says of itself: where it runs, and which symbols it has and wants."""

    def __init__(self, name, data, expected=1):
        demand(data[:4] == b"\xcf\xfa\xed\xfe", f"{name}: no 64-bit Mach-O object, found {data[:4].hex()}")
        cpu, _, kind, count = struct.unpack_from("<4I", data, 4)
        demand(cpu == 0x0100000C, f"{name}: expected arm64, found processor {cpu:#x}")
        demand(kind == expected, f"{name}: expected an object of kind {expected}, found {kind}")
        self.platform = self.minimum = None
        self.defined, self.undefined = set(), set()
        at = 32
        for _ in range(count):
            command, size = struct.unpack_from("<2I", data, at)
            if command == 0x32:
                self.platform, version = struct.unpack_from("<2I", data, at + 8)
                self.minimum = (version >> 16, version >> 8 & 0xFF)
            elif command == 0x19:
                sections = struct.unpack_from("<I", data, at + 64)[0]
                for i in range(sections):
                    section, segment = (s.rstrip(b"\0") for s in struct.unpack_from("<16s16s", data, at + 72 + i * 80))
                    demand(segment != b"__LLVM", f"{name}: it carries bitcode ({section.decode()})")
            elif command == 0x02:
                symbols, number, strings, _ = struct.unpack_from("<4I", data, at + 8)
                for i in range(number):
                    offset, kind, _, _, value = struct.unpack_from("<IBBHQ", data, symbols + i * 16)
                    end = data.index(b"\0", strings + offset)
                    # Not a debugger's, and seen by other objects.
                    if kind & 0xE0 == 0 and kind & 1:
                        found = self.undefined if kind & 0x0E == 0 and value == 0 else self.defined
                        found.add(data[strings + offset : end].decode())
            at += size


def plist(path):
    demand(path.is_file(), f"{path.name} is missing in {path.parent.name}")
    with path.open("rb") as file:
        return plistlib.load(file)


def check_slice(framework, linked, platform, supported, reasons, entry):
    binary, header = framework / NAME, framework / "Headers" / f"{NAME}.h"
    modules = framework / "Modules" / "module.modulemap"
    for path in (binary, header, modules):
        demand(path.is_file() and path.stat().st_size, f"{path.relative_to(framework.parent)} is missing")
    demand(modules.read_text() == MODULE, "the module map is another")
    info = plist(framework / "Info.plist")
    expected = {
        "CFBundleExecutable": NAME,
        "CFBundlePackageType": "FMWK",
        "MinimumOSVersion": ".".join(map(str, MINIMUM)),
        "CFBundleSupportedPlatforms": [supported],
    }
    for key, value in expected.items():
        demand(info.get(key) == value, f"Info.plist of {entry}: {key}: expected {value}, found {info.get(key)}")
    for key in ("CFBundleIdentifier", "CFBundleShortVersionString", "CFBundleVersion"):
        demand(info.get(key), f"Info.plist of {entry}: {key} is missing")
    defined, count = set(), 0
    for name, data in members(binary.read_bytes()):
        found = Object(name, data)
        # Of no platform is what is written in assembly, and an object without any code.
        if found.platform is not None or found.defined:
            demand(found.platform == platform, f"{name}: expected platform {platform}, found {found.platform}")
            demand(found.minimum <= MINIMUM, f"{name}: needs {found.minimum}, and {MINIMUM} is promised")
        defined |= found.defined
        count += 1
    demand(count, "the archive is empty")
    called = set(re.findall(r"\b((?:uniffi|ffi)_ampoule_bindings_\w+)\(", header.read_text()))
    demand(len(called) > 50, f"the header declares {len(called)} functions")
    missing = sorted(name for name in called if f"_{name}" not in defined)
    demand(not missing, f"the header's functions are not in the archive: {missing[:3]}")
    whole = Object(linked.name, linked.read_bytes(), 6)
    demand({f"_{name}" for name in called} <= whole.defined, f"{linked.name} is not of this archive")
    # `_fstat$INODE64` is `fstat`, too.
    plain = {name.split("$")[0].removeprefix("_") for name in whole.undefined}
    demand("malloc" in plain, f"{linked.name} wants nothing of the system")
    wants = {category for category, names in LISTED.items() if plain & set(names.split())}
    demand(wants <= set(REASONS), f"no reason holds for {sorted(wants - set(REASONS))}")
    demand(wants == set(reasons), f"PrivacyInfo.xcprivacy: the archive's symbols want {sorted(wants)}, found {sorted(reasons)}")
    return count, len(called), sorted(wants)


def check(xcframework, linked):
    info = plist(xcframework / "Info.plist")
    demand(info.get("CFBundlePackageType") == "XFWK" and info.get("XCFrameworkFormatVersion") == "1.0", "Info.plist is of no XCFramework")
    listed = {entry["LibraryIdentifier"]: entry for entry in info["AvailableLibraries"]}
    demand(sorted(listed) == sorted(s[0] for s in SLICES.values()), f"slices: {sorted(listed)}")
    for name, (folder, platform, supported, variant) in SLICES.items():
        entry = listed[folder]
        demand(entry == library(folder, variant), f"Info.plist: {folder}: {entry}")
        framework = xcframework / folder / f"{NAME}.framework"
        privacy = plist(framework / "PrivacyInfo.xcprivacy")
        demand(privacy.get("NSPrivacyTracking") is False, "PrivacyInfo.xcprivacy: NSPrivacyTracking")
        for key in ("NSPrivacyTrackingDomains", "NSPrivacyCollectedDataTypes"):
            demand(privacy.get(key) == [], f"PrivacyInfo.xcprivacy: {key}")
        reasons = {a["NSPrivacyAccessedAPIType"]: a["NSPrivacyAccessedAPITypeReasons"] for a in privacy.get("NSPrivacyAccessedAPITypes", [])}
        for category, given in reasons.items():
            demand(sorted(given) == REASONS.get(category), f"PrivacyInfo.xcprivacy: {category}: {given}")
        count, called, wants = check_slice(framework, linked[name], platform, supported, reasons, folder)
        categories = ", ".join(category.removeprefix("NSPrivacyAccessedAPICategory") for category in wants)
        yield f"{folder}: {count} Mach-O objects, {called} functions of the header, wants reasons for {categories or 'nothing'}"


def library(folder, variant):
    """What the XCFramework says of a slice."""
    entry = {
        "BinaryPath": f"{NAME}.framework/{NAME}",
        "LibraryIdentifier": folder,
        "LibraryPath": f"{NAME}.framework",
        "SupportedArchitectures": ["arm64"],
        "SupportedPlatform": "ios",
    }
    return entry | ({"SupportedPlatformVariant": variant} if variant else {})


def make(xcframework, header, privacy, version, archives):
    shutil.rmtree(xcframework, ignore_errors=True)
    libraries = []
    for name, archive in archives.items():
        folder, _, supported, variant = SLICES[name]
        framework = xcframework / folder / f"{NAME}.framework"
        (framework / "Headers").mkdir(parents=True)
        (framework / "Modules").mkdir()
        shutil.copy(archive, framework / NAME)
        shutil.copy(header, framework / "Headers" / f"{NAME}.h")
        shutil.copy(privacy, framework / "PrivacyInfo.xcprivacy")
        (framework / "Modules" / "module.modulemap").write_text(MODULE)
        info = {
            "CFBundleExecutable": NAME,
            "CFBundleIdentifier": f"rs.ampoule.{NAME}",
            "CFBundleInfoDictionaryVersion": "6.0",
            "CFBundleName": NAME,
            "CFBundlePackageType": "FMWK",
            "CFBundleShortVersionString": version,
            "CFBundleSupportedPlatforms": [supported],
            "CFBundleVersion": version,
            "MinimumOSVersion": ".".join(map(str, MINIMUM)),
        }
        (framework / "Info.plist").write_bytes(plistlib.dumps(info))
        libraries.append(library(folder, variant))
    info = {"AvailableLibraries": libraries, "CFBundlePackageType": "XFWK", "XCFrameworkFormatVersion": "1.0"}
    (xcframework / "Info.plist").write_bytes(plistlib.dumps(info))


def faults(xcframework):
    """Each a name and what breaks a copy."""
    first = f"{SLICES['ios'][0]}/{NAME}.framework"
    for path in sorted(p.relative_to(xcframework) for p in xcframework.rglob("*") if p.is_file()):
        yield f"without {path}", lambda at, path=path: (at / path).unlink()

    def edit(path, change):
        def run(at):
            data = (at / path).read_bytes()
            changed = change(data)
            demand(changed != data, f"{path} could not be changed")
            (at / path).write_bytes(changed)

        return run

    def every(old, new):
        return lambda data: data.replace(old, new)

    build = lambda platform, major: struct.pack("<4I", 0x32, 24, platform, major << 16)  # noqa: E731
    binary, privacy = f"{first}/{NAME}", f"{first}/PrivacyInfo.xcprivacy"
    yield "objects of the simulator", edit(binary, every(build(2, 15), build(7, 15)))
    yield "objects of a newer system", edit(binary, every(build(2, 15), build(2, 17)))
    yield "an object that is bitcode", edit(binary, lambda data: data.replace(b"\xcf\xfa\xed\xfe", b"BC\xc0\xde", 1))
    header = lambda processor: struct.pack("<2I", 0xFEEDFACF, processor)  # noqa: E731
    yield "an object of another processor", edit(binary, every(header(0x0100000C), header(0x01000007)))
    function = b"_uniffi_ampoule_bindings_fn_method_extractor_extract\0"
    yield "a function that is not there", edit(binary, every(function, function.replace(b"extract\0", b"extracx\0")))
    without = {"NSPrivacyAccessedAPITypes": []}
    yield "a privacy file without a category", edit(privacy, lambda data: plistlib.dumps(plistlib.loads(data) | without))
    yield "another reason", edit(privacy, every(b"C617.1", b"DDA9.1"))
    yield "a framework that tracks", edit(privacy, every(b"<false/>", b"<true/>"))
    yield "another minimum", edit(f"{first}/Info.plist", every(b"<string>15.0", b"<string>17.0"))
    yield "a slice that is not listed", edit("Info.plist", every(b"ios-arm64-simulator", b"ios-arm64_x86_64-simulator"))


def finds(name, xcframework, linked):
    """One, if `check` finds what is wrong."""
    try:
        list(check(xcframework, linked))
    except Wrong as wrong:
        print(f"{name}: {wrong}")
        return 1
    raise Wrong(f"not found: {name}")


def main(arguments):
    command, xcframework = arguments[0], Path(arguments[1])
    files = {name: Path(path) for name, path in (a.split("=", 1) for a in arguments[2:] if "=" in a)}
    if command == "make":
        header, privacy, version = arguments[2:5]
        make(xcframework, Path(header), Path(privacy), version, files)
    elif command == "check":
        for line in check(xcframework, files):
            print(line)
    elif command == "plant":
        found = 0
        for name, break_copy in faults(xcframework):
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / xcframework.name
                shutil.copytree(xcframework, copy)
                break_copy(copy)
                found += finds(name, copy, files)
        # And calls that want a reason, of each category that none is given for.
        privacy = plist(next(xcframework.rglob("PrivacyInfo.xcprivacy")))
        given = {a["NSPrivacyAccessedAPIType"] for a in privacy["NSPrivacyAccessedAPITypes"]}
        missing = [functions.split()[0] for category, functions in LISTED.items() if category not in given]
        for call in (b"\0_" + function.encode() + b"\0" for function in missing):
            with tempfile.TemporaryDirectory() as folder:
                changed = Path(folder) / "linked"
                data = files["ios"].read_bytes()
                others = sorted(Object("", data, 6).undefined - {"_malloc"}, key=len)
                longer = next(n for n in others if len(n) >= len(call) - 2)
                name = b"\0" + longer.encode() + b"\0"
                changed.write_bytes(data.replace(name, call.rstrip(b"\0").ljust(len(name), b"\0")))
                found += finds(call.strip(b"\0").decode(), xcframework, files | {"ios": changed})
        print(f"{found} planted faults, {found} found")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Wrong as wrong:
        sys.exit(f"XCFramework: {wrong}")
