#!/usr/bin/env bash
# Generates the Swift side of the library, builds it with its facade, and runs its tests on Linux, by Debian sid's Swift; then those of the
# sample app. Compares the public API with bindings/swift/api.txt; with AMPOULE_WRITE set, writes it. With AMPOULE_GPU set the library computes
# on GPUs too; its tests take whatever GPU there is, software too.
set -euo pipefail
cd "$(dirname "$0")/.."
export AMPOULE_SID=swift
why=$(scripts/chroot.sh --why-not)
if [ -n "$why" ]; then
    echo "skipped, and nothing is built: no Swift 6 here: $why"
    # What gates a release skips nothing.
    [ -z "${GITHUB_ACTIONS:-}" ]
    exit
fi
# However long it takes to be made.
scripts/chroot.sh true
[ -z "${AMPOULE_GPU:-}" ] || scripts/chroot.sh bash -c '[ -e /usr/share/vulkan/icd.d ] || { apt-get -q update &&
    DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install libvulkan1 mesa-vulkan-drivers; } >&2'
command -v python3 >/dev/null || { apt-get -q update && apt-get -qy install python3; } >&2
scripts/library.sh
out=target/swift passed=0 failed=0 skipped=0
# uniffi's files, which a run that fails must not find from one before.
rm -rf "$out"/ampoule/Sources "$out"/api
scripts/swift_package.sh "$out/ampoule"
# A call that never returns fails, too.
sid() { timeout 1200 scripts/chroot.sh env AMPOULE_ROOT=/checkout "AMPOULE_PACKAGE=/checkout/$out/ampoule" "AMPOULE_GPU=${AMPOULE_GPU:-}" "$@"; }
check() { # what it is, whether it holds
    if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "failed: $1"; fi
}
libraries=(-Xlinker -L/checkout/target/bindings/release -Xlinker -rpath=/checkout/target/bindings/release)
tests() { # package, name: builds and runs them, and counts
    local log=$out/$2.log
    # Debian's Swift has the module of an overlay for tests (_Testing_Foundation) without its library.
    if ! sid swift test --package-path "/checkout/$1" --scratch-path "/checkout/$out/build-$2" "${libraries[@]}" \
        -Xswiftc -Xfrontend -Xswiftc -disable-cross-import-overlays >"$log" 2>&1; then
        grep -E '^[^ ].*error:|^Fatal' "$log" | sort -u || tail -30 "$log"
        # Where none has failed, something else has: it did not compile, or it crashed.
        grep -qE "^Test Case .* failed \(" "$log" || failed=$((failed + 1))
    fi
    passed=$((passed + $(grep -cE "^Test Case .* passed \(" "$log" || true)))
    failed=$((failed + $(grep -cE "^Test Case .* failed \(" "$log" || true)))
    skipped=$((skipped + $(grep -cE "^Test Case .* skipped \(" "$log" || true)))
    grep -E ': Test skipped' "$log" || true
    local warnings
    warnings=$(grep -E '/(Sources/(Ampoule|NoteMarking)|Tests)/.*: warning:' "$log" | sort -u || true)
    check "warnings: $warnings" "$([ -z "$warnings" ]; echo $?)"
}
tests "$out/ampoule" ampoule
tests examples/ios note-marking
sid swiftc -parse examples/ios/App/NoteApp.swift && parses=0 || parses=1
check "the sample app's view does not parse" "$parses"

mkdir -p "$out/api"
triple=$(sid swiftc -print-target-info | sed -n 's/^ *"triple": "\(.*\)",$/\1/p' | head -1)
sid /usr/libexec/swift/bin/swift-symbolgraph-extract -module-name Ampoule -minimum-access-level public -target "$triple" \
    -I "/checkout/$out/build-ampoule/debug/Modules" -I "/checkout/$out/ampoule/Sources/AmpouleNativeFFI" -output-dir "/checkout/$out/api" \
    >"$out/api.log" 2>&1 && python3 bindings/swift/api.py "$out/api/Ampoule.symbols.json" >"$out/api.txt" && told=0 || told=1
check "the public API cannot be told, or some of it has no documentation; see $out/api.log" "$told"
# A link to what is not there, or a parameter that is not described, is an error.
sid /usr/libexec/swift/bin/docc convert --additional-symbol-graph-dir "/checkout/$out/api" --output-path "/checkout/$out/docs" --analyze \
    --fallback-display-name Ampoule --fallback-bundle-identifier rs.ampoule --warnings-as-errors >"$out/docc.log" 2>&1 && compiles=0 || compiles=1
check "the documentation: $(cat "$out/docc.log")" "$compiles"
[ -z "${AMPOULE_WRITE:-}" ] || cp "$out/api.txt" bindings/swift/api.txt
diff bindings/swift/api.txt "$out/api.txt" && same=0 || same=1
check "the public API is another; if that is meant: AMPOULE_WRITE=1 $0" "$same"
printf '%d passed, %d failed' "$passed" "$failed"
[ "$skipped" = 0 ] || printf ', %d skipped' "$skipped"
echo
[ "$failed" = 0 ]
