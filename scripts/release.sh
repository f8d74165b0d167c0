#!/usr/bin/env bash
# Puts packages that are to be published into target/packages, with their digests: `scripts/release.sh FILE...`. Refuses what was made to be
# looked at, and what does not bear its licences.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { echo "no package is named; try: $0 target/python/wheels/*.whl target/android/ampoule.aar" >&2; exit 2; }
for file; do
    case $(basename "$file") in
        *unlinked*) echo "$file: linked against stubs, it would end any app that loads it; link it with the NDK" >&2; exit 1 ;;
        *.aar | *.jar | *.whl) ;;
        *) echo "$file: neither an AAR, nor a jar, nor a wheel" >&2; exit 1 ;;
    esac
    case $file in
        *.aar) python3 scripts/android_audit.py aar "$file" arm64-v8a armeabi-v7a x86_64 x86 ;;
        *)
            names=$(unzip -Z1 "$file")
            for licence in LICENSE-MIT LICENSE-APACHE NOTICE; do
                grep -qE "(^|/)$licence\$" <<<"$names" || { echo "$file: $licence is not in it" >&2; exit 1; }
            done ;;
    esac
done
mkdir -p target/packages
cp "$@" target/packages/
(cd target/packages && sha256sum -- *.aar *.jar *.whl 2>/dev/null >SHA256SUMS || true; cat SHA256SUMS)
