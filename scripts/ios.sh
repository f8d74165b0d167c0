#!/usr/bin/env bash
# Compiles the library for iPhones and their simulator as an app gets it, and lays out the Swift package around it in target/ios/ampoule:
# compiled, not linked or run here. The archives' objects, platform, oldest system and reasons for the privacy file are checked.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { apt-get -q update && apt-get -qy install python3; } >&2
scripts/library.sh
out=target/ios package=target/ios/ampoule framework=target/ios/ampoule/AmpouleNativeFFI.xcframework
mkdir -p "$out"
slices=()
for slice in ios=aarch64-apple-ios simulator=aarch64-apple-ios-sim; do
    target=${slice#*=}
    # Without fat LTO, which leaves bitcode in an archive that only a linker as new as rustc's LLVM reads; an app's linker drops what is
    # not called. The standard library of these targets is compiled from its sources, which the stable compiler has to be asked for.
    scripts/chroot.sh env RUSTC_BOOTSTRAP=1 IPHONEOS_DEPLOYMENT_TARGET=15.0 CARGO_PROFILE_DIST_LTO=off CARGO_PROFILE_DIST_STRIP=none \
        cargo rustc --quiet -Zbuild-std=std,panic_unwind --target "$target" --profile dist -p ampoule-bindings --lib \
        --crate-type staticlib --target-dir /checkout/target/sid-ios
    slices+=("${slice%%=*}=target/sid-ios/$target/dist/libampoule_bindings.a")
done
scripts/swift_package.sh "$package"
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
python3 bindings/swift/xcframework.py make "$framework" "$package/Sources/AmpouleNativeFFI/AmpouleNativeFFI.h" \
    bindings/swift/Sources/Ampoule/PrivacyInfo.xcprivacy "$version" "${slices[@]}"
rm -r "$package/Sources/AmpouleNativeFFI"
python3 bindings/swift/xcframework.py check "$framework"
python3 bindings/swift/xcframework.py plant "$framework"
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
wc -c target/sid-ios/*/dist/libampoule_bindings.a | awk '!/total/ { print $1 " bytes: " $2 }'
echo "$package: compiled, not linked or run here"
