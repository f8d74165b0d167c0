#!/usr/bin/env bash
# Generates the Swift side of the library, builds it with its facade, and runs its tests on Linux, by Debian sid's Swift.
set -euo pipefail
cd "$(dirname "$0")/.."
export AMPOULE_SID=swift
why=$(scripts/chroot.sh --why-not)
if [ -n "$why" ]; then
    echo "skipped: no Swift 6 here: $why"
    exit 0
fi
scripts/library.sh
out=target/swift
scripts/swift_package.sh "$out/package"
swift() { # as the chroot sees it
    scripts/chroot.sh env AMPOULE_ROOT=/checkout swift "$@"
}
build=(--package-path "/checkout/$out/package" --scratch-path "/checkout/$out/build" --disable-automatic-resolution
    -Xlinker -L/checkout/target/bindings/release -Xlinker -rpath=/checkout/target/bindings/release)
swift build "${build[@]}" --build-tests >"$out/build.log" 2>&1 || { cat "$out/build.log" >&2; echo "0 passed, 1 failed"; exit 1; }
# Of our own files no warning either.
if grep -E '^/.*(Sources/Ampoule|Tests)/.*(warning|error):' "$out/build.log"; then
    echo "0 passed, 1 failed"
    exit 1
fi
swift test "${build[@]}" --skip-build "$@" >"$out/test.log" 2>&1 || failed=1
grep -E 'error:|^Fatal|skipped|: .*(Crash|crash)' "$out/test.log" || true
# XCTest's cases, in one line.
awk '/^Test Case .* passed \(/ { n++ } /^Test Case .* failed \(/ { bad++ } /^Test Case .* skipped \(/ { skipped++ } /^Test Case .* started/ { all++ }
    END { bad += all - n - bad - skipped; printf "%d passed, %d failed", n, bad; if (skipped) printf ", %d skipped", skipped; print ""; exit !n }' "$out/test.log"
exit "${failed:-0}"
