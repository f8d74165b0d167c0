#!/usr/bin/env bash
# Ampoule beside its peers on this machine: installs them, makes each one's form of the same models, times all by turns; then a step of
# training beside torch's.
#   benches/peers/run.sh all-MiniLM-L6-v2 [more arguments of `peers.py compare`, such as --rounds 10]
# The published folder is the only thing it does not fetch. Results: benches/record/, or what AMPOULE_RECORD names, without an ending.
set -euo pipefail
minilm=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")"
work=${AMPOULE_PEERS:-$HOME/.cache/ampoule/peers}
python=$work/venv/bin/python
mkdir -p "$work"
[ -x "$python" ] || python3 -m venv "$work/venv"
"$python" -m pip install -q "onnxruntime==1.32.0" "ctranslate2==4.8.5" "onnx==1.23.2" "torch==2.15.0" "transformers==5.23.0" \
    sympy "matplotlib==3.11.2" >&2
export CARGO_TARGET_DIR=$work/target
(cd ../.. && cargo build --release --workspace >&2)
cargo build --release --locked >&2
"$python" peers.py prepare --work "$work" --minilm "$minilm" --ampoule "$work/target/release/ampoule" >&2
out=${AMPOULE_RECORD:-../record/$(uname -m)/peers.$(date +%F)}
"$python" peers.py compare --work "$work" --minilm "$minilm" --peers "$work/target/release/peers" --out "$out" "$@"
"$python" peers.py threads --work "$work" --minilm "$minilm" --peers "$work/target/release/peers" --out "$out" --rounds 40
train=$(cd ../.. && cargo bench -p ampoule-distill --bench train --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p' | xargs realpath)
"$python" train.py compare --work "$work" --minilm "$minilm" --ampoule "$train" --out "$out.train"
"$python" peers.py start --work "$work" --minilm "$minilm" --peers "$work/target/release/peers" --out "$out" --rounds 10
