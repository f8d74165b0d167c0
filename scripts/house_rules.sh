#!/usr/bin/env bash
# What the architecture promises and the compiler does not check.
set -euo pipefail
cd "$(dirname "$0")/.."
passed=0 failed=0
check() { # name, command that prints what breaks the rule
    local found
    found=$(eval "$2") || true
    if [ -z "$found" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'broken: %s\n%s\n' "$1" "$found"
    fi
}

declare -A tree
for package in ampoule ampoule-bindings ampoule-cli ampoule-distill ampoule-quantize; do
    tree[$package]=$(cargo tree --edges normal --prefix none --no-dedupe --quiet -p "$package" | awk '{ print $1 }' | sort -u)
done
tree() { echo "${tree[$1]}"; }
training='^(burn-autodiff|burn-optim|burn-train|burn-remote|burn-communication|ampoule-distill|ampoule-quantize)$'
network='^(reqwest|hyper|ureq|curl|hf-hub|tokio|rustls|native-tls|openssl|isahc|tungstenite|quinn)$'

check "the runtime has no training crate" "tree ampoule | grep -E '$training'"
check "the runtime has no network crate" "tree ampoule | grep -E '$network'"
check "the bindings see the runtime alone" "tree ampoule-bindings | grep -E '$training|$network'"
# Burn's own crates share some of CubeCL's, none of which computes on a GPU.
check "the processor's bindings have no crate of GPUs" \
    "tree ampoule-bindings | grep -E '^(wgpu|naga|ash|metal|objc2-metal|pollster|glow|burn-(wgpu|cubecl).*|cubecl-(core|runtime|wgpu|cpp|spirv))'"
check "the command line has no network crate" "tree ampoule-cli | grep -E '$network'"
check "distill and quantize do not import each other" \
    "tree ampoule-distill | grep -x ampoule-quantize; tree ampoule-quantize | grep -x ampoule-distill"
check "unsafe stands where SECURITY.md says" \
    "grep -rnE '\bunsafe\b' --include=*.rs src distill/src quantize/src cli/src bindings/src examples/web | grep -vE '^src/(kernels[/.]|bundle\.rs:|team\.rs:)' | grep -v 'unsafe_code'"
check "nothing is left for later" "grep -rnE 'TODO|FIXME|unimplemented!|todo!\(' --include=*.rs --include=*.py --include=*.sh --include=*.kt --include=*.swift . | grep -v '^./target/' | grep -v house_rules"
check "the runtime reads no environment variable" "grep -rn 'env::var' --include=*.rs src bindings/src"
check "the runtime prints nothing" "find src bindings/src -name '*.rs' | while read -r f; do awk -v f=\"\$f\" '/^mod tests \{/ { exit } /(^|[^a-z_])(e?print(ln)?|dbg)!/ { print f \":\" NR }' \"\$f\"; done | grep -v /tests"
# Unpacked, which is more than crates.io's 10 MiB are for.
crate() { cargo package --quiet --package ampoule --list --allow-dirty | while read -r file; do [ ! -f "$file" ] || echo "$file"; done; }
check "the crate has at most 10 MiB" "crate | tr '\n' '\0' | du --bytes --files0-from=- --total | awk '\$2 == \"total\" && (\$1 > 10485760 || \$1 < 1000000) { print \$1 }'"
check "the crate holds the runtime alone" "crate | grep -E '^(bindings|distill|quantize|cli|scripts|docs|benches/.*/|examples/.*/)'"
check "the embedded bundle is at most 19 MB" "find models -name '*.safetensors' -size +19000000c"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
