#!/usr/bin/env bash
# Builds the page of examples/web into target/web/page, whose files any server may hold, and tests it in Chromium beside the command line:
#   scripts/web.sh          both
#   scripts/web.sh build    the first alone
# The modules are compiled by the root of scripts/chroot.sh, and weighed by scripts/size.sh; a page over 20 MB fails. Leaves pictures of the
# page in target/web/pictures.
set -euo pipefail
cd "$(dirname "$0")/.."
why=$(scripts/chroot.sh --why-not)
if [ -n "$why" ]; then
    echo "skipped, and nothing is built: no Rust for WebAssembly here: $why"
    exit
fi
out=target/web page=target/web/page
# However long it takes to be made. Debian 12's wasm-opt does not know all that this compiler writes; roots of before have none.
scripts/chroot.sh bash -c 'command -v wasm-opt >/dev/null ||
    { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install binaryen; } >&2'
rm -rf "$page" "$out/glue"
mkdir -p "$page"
scripts/chroot.sh bash -c 'set -euo pipefail
    cd examples/web
    export CARGO_TARGET_DIR=/checkout/target/sid CARGO_TERM_COLOR=never CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld
    # With vectors, and without the names of folders here.
    flags="-C target-feature=+simd128 --remap-path-prefix=/cargo=crates --remap-path-prefix=/checkout=ampoule"
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=$flags
    cargo build --quiet --locked -p ampoule-web-bindgen
    # The processor, and the GPU.
    for name in ampoule ampoule_webgpu; do
        features=; [ $name = ampoule ] || features=webgpu
        cargo build --quiet --locked --release --target wasm32-unknown-unknown -p ampoule-web --features "$features"
        "$CARGO_TARGET_DIR/debug/ampoule-web-bindgen" "$CARGO_TARGET_DIR/wasm32-unknown-unknown/release/ampoule_web.wasm" \
            ../../target/web/glue $name
        # What the compiler uses and every browser with vectors has, and nothing newer.
        wasm-opt -O3 --mvp-features --enable-simd --enable-bulk-memory --enable-bulk-memory-opt --enable-nontrapping-float-to-int \
            --enable-sign-ext --enable-mutable-globals --enable-multivalue --enable-reference-types --enable-call-indirect-overlong \
            --strip-debug --strip-producers ../../target/web/glue/${name}_bg.wasm -o ../../target/web/page/$name.wasm
    done'
cp examples/web/page/* LICENSE-MIT LICENSE-APACHE NOTICE "$page"
cp "$out"/glue/ampoule*.js "$page"
cp models/clinical-en.int8.safetensors "$page"
cp models/README.md "$page/clinical-en.md"
scripts/licences.py web "$page/THIRD-PARTY.txt"
scripts/chroot.sh node examples/web/assemble.mjs target/web/page
scripts/size.sh "wasm32-unknown-unknown (page)" "" "$page/ampoule.wasm"
scripts/size.sh "wasm32-unknown-unknown (page)" webgpu "$page/ampoule_webgpu.wasm"
whole=$(cat "$page"/* | wc -c)
echo "the page with its bundle: $whole bytes"
[ "$whole" -le 20000000 ] || { echo "the page is heavier than 20 MB" >&2; exit 1; }
! grep -qaE '/(root|home|checkout|cargo)/' "$page"/*.wasm || { echo "a module names folders of this machine" >&2; exit 1; }
[ "${1:-}" != build ] || exit 0

if ! node -e 'process.exit(process.versions.node.split(".")[0] >= 20 ? 0 : 1)' 2>/dev/null || ! command -v npm >/dev/null; then
    echo "skipped: no Node.js 20 or later with npm, so that the page is built and not tested"
    exit
fi
if ! command -v chromium >/dev/null && ! { apt-get -q update && apt-get -qy --no-install-recommends install chromium; } >&2; then
    echo "skipped: no Chromium, so that the page is built and not tested"
    exit
fi
[ -x target/release/ampoule ] || cargo build --release --workspace
tools=$PWD/$out/tools
mkdir -p "$tools"
if ! cmp -s examples/web/tests/package-lock.json "$tools/package-lock.json"; then
    cp examples/web/tests/package.json examples/web/tests/package-lock.json "$tools"
    npm ci --silent --ignore-scripts --prefix "$tools" || { rm "$tools/package-lock.json"; exit 1; }
fi
for test in page gpu; do node examples/web/tests/$test.mjs "$page" "$tools"; done
