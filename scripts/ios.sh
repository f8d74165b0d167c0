#!/usr/bin/env bash
# Compiles the library for iPhones and their simulator as an app gets it, and lays out the Swift package around it in target/ios/ampoule:
# compiled, not linked or run here. The archives' objects, platform, oldest system and reasons for the privacy file are checked.
# `scripts/ios.sh --gpu` does the same for `ampoule-gpu`, whose library computes on a GPU too, in target/ios-gpu. wgpu asks for the time since
# the system's start, for which its privacy file has a reason more.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { apt-get -q update && apt-get -qy install python3; } >&2
scripts/library.sh
gpu=() out=target/ios most=4 name=ampoule
if [ "${1:-}" = --gpu ]; then gpu=(--features wgpu) out=target/ios-gpu most=10 name=ampoule-gpu; fi
package=$out/$name framework=$out/$name/AmpouleNativeFFI.xcframework
mkdir -p "$out"
slices=() linked=()
for slice in ios=aarch64-apple-ios simulator=aarch64-apple-ios-sim; do
    target=${slice#*=}
    # Without fat LTO, which leaves bitcode in an archive that only a linker as new as rustc's LLVM reads; an app's linker drops what is
    # not called. The standard library of these targets is compiled from its sources, which the stable compiler has to be asked for.
    scripts/chroot.sh env RUSTC_BOOTSTRAP=1 IPHONEOS_DEPLOYMENT_TARGET=15.0 CARGO_PROFILE_DIST_LTO=off CARGO_PROFILE_DIST_STRIP=none \
        cargo rustc --quiet -Zbuild-std=std,panic_unwind --target "$target" --profile dist -p ampoule-bindings --lib \
        --crate-type staticlib --target-dir /checkout/target/sid-ios "${gpu[@]}"
    archive=target/sid-ios/$target/dist/libampoule_bindings.a
    slices+=("${slice%%=*}=$archive")
    # As an app's linker leaves it, but for what of Apple's libraries it is linked with: none is here.
    platform=ios
    [ "$target" = aarch64-apple-ios ] || platform=ios-simulator
    scripts/chroot.sh ld64.lld -arch arm64 -platform_version "$platform" 15.0 15.0 -dylib -dead_strip -undefined dynamic_lookup -x -S \
        -exported_symbol '_uniffi_ampoule*' -exported_symbol '_ffi_ampoule*' -force_load "/checkout/$archive" -o "/checkout/$out/$target.dylib"
    linked+=("${slice%%=*}=$out/$target.dylib")
    bytes=$(wc -c <"$out/$target.dylib")
    echo "$target: $bytes bytes of an app, $(wc -c <"$archive") of the archive"
    [ "$bytes" -le "${most}000000" ] || { echo "the library is heavier than $most MB" >&2; exit 1; }
done
scripts/swift_package.sh "$package"
sed -i "s/^    name: \"ampoule\",$/    name: \"$name\",/" "$package/Package.swift"
# Of the package's resources and of its framework.
privacy=$package/Sources/Ampoule/PrivacyInfo.xcprivacy
[ "$name" = ampoule ] || python3 - "$privacy" <<'PYTHON'
import plistlib, sys
with open(sys.argv[1], "rb+") as file:
    data = plistlib.load(file)
    reasons = {"NSPrivacyAccessedAPIType": "NSPrivacyAccessedAPICategorySystemBootTime", "NSPrivacyAccessedAPITypeReasons": ["35F9.1"]}
    data["NSPrivacyAccessedAPITypes"].append(reasons)
    file.seek(0)
    plistlib.dump(data, file, sort_keys=False)
    file.truncate()
PYTHON
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
python3 bindings/swift/xcframework.py make "$framework" "$package/Sources/AmpouleNativeFFI/AmpouleNativeFFI.h" \
    "$privacy" "$version" "${slices[@]}"
rm -r "$package/Sources/AmpouleNativeFFI"
python3 bindings/swift/xcframework.py check "$framework" "${linked[@]}"
python3 bindings/swift/xcframework.py plant "$framework" "${linked[@]}"
# The Swift of the package wants no reasons of its own: Foundation's part of Apple's list.
listed='systemUptime|(creation|modification|contentModification|fileModification)Date|attributesOfItem|volume\w*Capacity'
if grep -rnE "$listed|systemFreeSize|systemSize|UserDefaults|activeInputModes" "$package/Sources" --include=*.swift; then
    echo "the Swift sources use what PrivacyInfo.xcprivacy has no reason for" >&2
    exit 1
fi
# The manifest takes the framework, where there is one.
scripts/chroot.sh swift package --package-path "/checkout/$package" describe --type json >"$out/describe.json"
python3 - "$out/describe.json" <<'PYTHON'
import json, sys
targets = {target["name"]: target for target in json.load(open(sys.argv[1]))["targets"]}
assert targets["AmpouleNativeFFI"]["type"] == "binary", targets["AmpouleNativeFFI"]
PYTHON
echo "$package: compiled, not linked or run here"
