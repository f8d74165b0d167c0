#!/usr/bin/env bash
# Makes the embedded bundle from all-MiniLM-L6-v2, corpora and sentences without labels, whose terms let it be shipped: about three hours on
# two cores.
#   examples/produce/full.sh MINILM_FOLDER DATA_FOLDER RUNS_FOLDER
# DATA_FOLDER holds ner_bc5cdr and ner_ncbi_disease, each with train, dev and test .tsv (IOB2), and unlabeled_en/sentences_a.txt. A killed run goes on when this is
# called again. AMPOULE names a built binary in place of `cargo run`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
minilm=${3:+$1} data=${3:+$2} runs=${3:?usage: full.sh MINILM_FOLDER DATA_FOLDER RUNS_FOLDER}
ampoule() { ${AMPOULE:-cargo run --release --quiet --manifest-path "$here/../../Cargo.toml" --} "$@"; }
corpora=(--data "$data/ner_bc5cdr" --data "$data/ner_ncbi_disease")

ampoule train --model "$minilm" "${corpora[@]}" --config "$here/teacher.json" --run "$runs/teacher"
ampoule distill --teacher "$runs/teacher/model" --layers 2,3,5,6 --hidden 192 "${corpora[@]}" --transfer "$data/unlabeled_en/sentences_a.txt" \
    --config "$here/student.json" --run "$runs/student"
transfer=(--transfer "$data/unlabeled_en/sentences_a.txt" --cache "$runs/answers")
ampoule distill --teacher "$runs/teacher/model" --student "$runs/student/model" "${corpora[@]}" "${transfer[@]}" --config "$here/noisy.json" \
    --run "$runs/noisy"
ampoule distill --teacher "$runs/teacher/model" --student "$runs/noisy/model" --vocabulary 12000 "${corpora[@]}" "${transfer[@]}" \
    --config "$here/pruned.json" --run "$runs/pruned"
ampoule quantize --model "$runs/pruned/model" "${corpora[@]}" --window 128 --out "$runs/clinical-en.int8.safetensors" \
    --licence "MIT OR Apache-2.0; trained on CC BY 4.0 data, see NOTICE"
ampoule evaluate --noise 0.1 --model "$runs/teacher/model" --model "$runs/student/model" --model "$runs/noisy/model" \
    --model "$runs/pruned/model" --model "$runs/clinical-en.int8.safetensors" "${corpora[@]}"
ampoule evaluate --full-windows --model "$runs/teacher/model" --model "$runs/student/model" \
    --model "$runs/clinical-en.int8.safetensors" "${corpora[@]}"
