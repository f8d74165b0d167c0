#!/usr/bin/env bash
# The whole way on the excerpt in data/, from the small encoder in start/: under two minutes on two cores, the build not counted.
#   examples/produce/tiny.sh RUNS_FOLDER [options of the last `ampoule evaluate`]
# AMPOULE names a built binary in place of `cargo run`. A killed run goes on when this is called again.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
runs=${1:?usage: tiny.sh RUNS_FOLDER}
ampoule() { ${AMPOULE:-cargo run --release --quiet --manifest-path "$here/../../Cargo.toml" --} "$@"; }
corpora=(--data "$here/data/bc5cdr" --data "$here/data/ncbi")

ampoule train --model "$here/start" "${corpora[@]}" --config "$here/tiny_teacher.json" --run "$runs/teacher"
ampoule distill --teacher "$runs/teacher/model" --layers 1 "${corpora[@]}" --transfer "$here/data/transfer.txt" \
    --config "$here/tiny_student.json" --run "$runs/student"
# The dev files are so small that one entity is a third of a point of F1.
ampoule quantize --model "$runs/student/model" "${corpora[@]}" --max-loss 2 --out "$runs/tiny.int8.safetensors" \
    --licence "MIT OR Apache-2.0; trained on CC BY 4.0 data, see NOTICE"
ampoule evaluate --model "$runs/teacher/model" --model "$runs/student/model" --model "$runs/tiny.int8.safetensors" --dictionary \
    "${corpora[@]}" "${@:2}"
