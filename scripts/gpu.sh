#!/usr/bin/env bash
# The GPU's kernels and what watches over them, on whatever adapter there is; on Debian without one, on Mesa's software, which it installs.
# `scripts/gpu.sh --include-ignored` takes minutes longer.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "$(find /usr/share/vulkan/icd.d /etc/vulkan/icd.d -name '*.json' 2>/dev/null)" ] || ! ldconfig -p | grep -q libvulkan; then
    { apt-get -q update && apt-get -qy install libvulkan1 mesa-vulkan-drivers; } >&2 || echo "skipped: no Vulkan driver could be installed"
fi
# Of all packages, so that their features are those of the other tests and nothing is compiled twice.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
cargo test --release --workspace --quiet --features ampoule/wgpu --lib -- --test-threads 1 gpu
cargo test --release --workspace --quiet --features ampoule/wgpu --test gpu -- "$@"
