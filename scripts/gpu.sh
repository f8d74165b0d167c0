#!/usr/bin/env bash
# The GPU's kernels and what watches over them, on whatever adapter there is; on Debian without one, on Mesa's software, which it installs.
# `scripts/gpu.sh --include-ignored` takes minutes longer; `scripts/gpu.sh --driver` sees to the adapter alone.
set -euo pipefail
cd "$(dirname "$0")/.."
drivers() {
    { find /usr/share/vulkan/icd.d /etc/vulkan/icd.d -name '*.json' 2>/dev/null || true; } | grep . >/dev/null &&
        PATH=$PATH:/usr/sbin:/sbin ldconfig -p | grep libvulkan >/dev/null
}
drivers || { apt-get -q update && apt-get -qy install libvulkan1 mesa-vulkan-drivers; } >&2 || true
# By which a test sees what files are read; it says so where there is none.
command -v strace >/dev/null || { apt-get -q update && apt-get -qy install strace; } >&2 || true
drivers || { echo "skipped: there is no Vulkan driver, and none could be installed"; exit 0; }
[ "${1:-}" != --driver ] || exit 0
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
output=$(mktemp)
trap 'rm -f "$output"' EXIT
# Of all packages, so that their features are those of the other tests and nothing is compiled twice.
cargo test --release --workspace --quiet --features ampoule/wgpu --lib -- --nocapture --test-threads 1 gpu:: | tee "$output"
cargo test --release --workspace --quiet --features ampoule/wgpu --test gpu -- --nocapture "$@" | tee -a "$output"
if grep "skipped: .*GPU" "$output"; then
    echo "there is a Vulkan driver, and no adapter of it" >&2
    exit 1
fi
