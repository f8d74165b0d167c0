#!/usr/bin/env bash
# Puts bindings/swift together with what uniffi generates, once scripts/library.sh has run: swift_package.sh FOLDER. The header of the
# library is left in Sources/AmpouleNativeFFI, with the module map that Linux needs.
set -euo pipefail
cd "$(dirname "$0")/.."
package=$1
generated=$package/Sources/AmpouleNative header=$package/Sources/AmpouleNativeFFI
mkdir -p "$package"
rm -rf "$package"/{Package.swift,README.md,Sources,Tests}
# With their times, so that nothing is compiled twice.
cp -a bindings/swift/{Package.swift,README.md,Sources,Tests} LICENSE-APACHE LICENSE-MIT NOTICE bindings/THIRD-PARTY.txt "$package"
mkdir -p "$generated" "$header" "$package/Tests/Guide"
sed -n '/^```swift$/,/^```$/{ /^```/d; p }' bindings/swift/README.md >"$package/Tests/Guide/main.swift"
touch -r bindings/swift/README.md "$package/Tests/Guide/main.swift"
library=target/bindings/release/libampoule_bindings.so
target/bindgen/debug/uniffi-bindgen generate --library "$library" --language swift --no-format --out-dir "$generated" \
    >"$package.log" 2>&1 || { cat "$package.log" >&2; exit 1; }
mv "$generated/AmpouleNativeFFI.h" "$header"
# `use` names modules of Apple's.
sed -e '/^ *use "/d' -e 's/^ *export \*/    link "ampoule_bindings"\n&/' "$generated/AmpouleNativeFFI.modulemap" >"$header/module.modulemap"
rm "$generated/AmpouleNativeFFI.modulemap"
touch -r "$library" "$generated"/* "$header"/*
