#!/usr/bin/env bash
# The library of the bindings for this machine, as an app gets it (the runtime alone), and uniffi's generator of its other sides:
#   target/bindings/release/libampoule_bindings.so, target/bindgen/debug/uniffi-bindgen
# `scripts/library.sh generator` makes the generator alone. With AMPOULE_GPU set the library computes on GPUs too.
# They have target folders of their own, since a workspace's build has other features and would be thrown away each time.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v cc >/dev/null || { apt-get -q update && apt-get -qy install gcc libc6-dev; } >&2
[ "${1:-}" = generator ] || cargo rustc --quiet --release -p ampoule-bindings --lib --crate-type cdylib \
    --target-dir target/bindings ${AMPOULE_GPU:+--features wgpu}
cargo build --quiet --locked --manifest-path bindings/bindgen/Cargo.toml --target-dir target/bindgen
