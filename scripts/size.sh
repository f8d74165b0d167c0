#!/usr/bin/env bash
# The weight of the bindings' library as an app gets it, against bindings/size.csv: over 4 MB, 10 MB where it computes on a GPU too, or a
# twentieth over what stands there, fails.
# `scripts/size.sh` builds it for this machine; `scripts/size.sh TARGET FEATURES FILE` weighs what was built.
# With AMPOULE_WRITE set, writes what it found.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-$(rustc -vV | sed -n 's/^host: //p')} features=${2:-} file=${3:-target/bindings/dist/libampoule_bindings.so} ledger=bindings/size.csv
[ $# -eq 3 ] || cargo rustc --quiet -p ampoule-bindings --lib --crate-type cdylib --profile dist --target-dir target/bindings -- \
    -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--strip-all
bytes=$(wc -c <"$file")
echo "$target${features:+, $features}: $bytes bytes"
case $features in *wgpu*) most=10 ;; *) most=4 ;; esac
[ "$bytes" -le "${most}000000" ] || { echo "the library is heavier than $most MB" >&2; exit 1; }
if [ -n "${AMPOULE_WRITE:-}" ]; then
    { grep -v "^$target,$features," "$ledger" 2>/dev/null || echo "target,features,bytes"; echo "$target,$features,$bytes"; } >"$ledger.new"
    mv "$ledger.new" "$ledger"
fi
known=$(awk -F, -v t="$target" -v f="$features" '$1 == t && $2 == f { print $3 }' "$ledger")
if [ -z "$known" ]; then
    echo "skipped: $ledger has no row for $target; AMPOULE_WRITE=1 $0 ${*@Q} writes one"
elif [ $((bytes * 20)) -gt $((known * 21)) ]; then
    echo "more than a twentieth over the $known bytes in $ledger; if that is meant: AMPOULE_WRITE=1 $0 ${*@Q}" >&2
    exit 1
fi
