#!/usr/bin/env bash
# Builds the Python wheel, installs it alone into a clean environment, and runs its tests there. Leaves target/python/wheels.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/library.sh
tools=target/python/tools clean=target/python/clean wheels=target/python/wheels
python=${PYTHON:-python3}
"$python" -m venv --help >/dev/null 2>&1 && "$python" -m ensurepip --version >/dev/null 2>&1 ||
    { apt-get -q update && apt-get -qy install python3 python3-venv; } >&2
[ -x "$tools/bin/maturin" ] || { "$python" -m venv "$tools" && "$tools/bin/pip" install --quiet 'maturin>=1.16,<2'; }
rm -rf "$clean" "$wheels"
# The same library as above: nothing of it is compiled twice. It is not stripped, since maturin reads from it what uniffi left there.
root=$PWD
(cd bindings/python && PATH=$root/target/bindgen/debug:$PATH CARGO_TARGET_DIR=$root/target/bindings \
    "$root/$tools/bin/maturin" build --quiet --release --out "$root/$wheels" "$@")
wheel=$(ls "$wheels"/*.whl)
echo "$(wc -c <"$wheel") bytes: $(basename "$wheel")"
[ "$(wc -c <"$wheel")" -le 8000000 ] || { echo "the wheel is heavier than 8 MB" >&2; exit 1; }
glibc=$(sed -nE 's/.*manylinux_2_([0-9]+)_.*/\1/p' <<<"$wheel")
[ "${glibc:-99}" -le 36 ] || { echo "the wheel needs a newer glibc than Debian 12's 2.36" >&2; exit 1; }
"$python" -m venv "$clean"
"$clean/bin/pip" install --quiet --no-index "$wheel"
"$clean/bin/python" bindings/python/tests/test_ampoule.py
