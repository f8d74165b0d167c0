//! Students of other vocabularies and widths than their teachers', saved and opened, by us and by transformers.

use std::path::{Path, PathBuf};
use std::process::Command;

use ampoule::model::Model;
use ampoule::{Batch, Checkpoint, Task};
use ampoule_distill::{StudentShape, factorize_embeddings, prune_vocabulary, student_from_teacher};
use burn::tensor::Device;
use serde_json::{Value, json};

const TEXTS: [&str; 4] = [
    "The patient was given aspirin, 0.4 mg of naloxone and (later) NSAIDs.",
    "Sjögren's syndrome: pain of the joints, arthritis 20%",
    "the [SEP] of a note is text, and so is </s>",
    "it was fever",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// What the model answers, in the form of the fixtures' `expected.json`.
fn answers(checkpoint: &Checkpoint) -> Value {
    let config = &checkpoint.config;
    let device = Device::flex();
    let ids = |text: &str| -> Vec<u32> {
        let tokens = checkpoint.tokenizer.encode(text).unwrap().into_iter().map(|token| token.id);
        [checkpoint.tokenizer.cls_id()].into_iter().chain(tokens).chain([checkpoint.tokenizer.sep_id()]).collect()
    };
    let sequences: Vec<Vec<u32>> = TEXTS.iter().map(|text| ids(text)).collect();
    let longest = sequences.iter().map(Vec::len).max().unwrap();
    let padded = |fill: u32, of: &dyn Fn(u32) -> u32| -> Vec<Vec<u32>> {
        let row = |ids: &Vec<u32>| (0..longest).map(|i| ids.get(i).map_or(fill, |&id| of(id))).collect();
        sequences.iter().map(row).collect()
    };
    let model = Model::load(config, &mut checkpoint.weights.clone(), &device).unwrap();
    let batch = Batch::new(&sequences, config.pad_token_id);
    let states = model.hidden_states(&batch, &device, &mut None, &mut |_, _| Ok(())).unwrap();
    let (name, output) = match config.task {
        Task::Encoder => ("last_hidden_state", states),
        _ => ("logits", model.logits(states, &mut None).unwrap()),
    };
    let [_, positions, width] = output.dims();
    let values: Vec<f32> = output.into_data().try_into_vec().unwrap();
    let of_texts = values.chunks(positions * width).map(|text| match positions {
        1 => json!(text),
        _ => text.chunks(width).map(|position| json!(position)).collect(),
    });
    let output: Vec<Value> = of_texts.collect();
    let texts: Vec<Value> =
        TEXTS.iter().zip(&sequences).map(|(text, ids)| json!({"text": text, "input_ids": ids})).collect();
    let mut all = json!({
        "task": config.task.as_str(), "texts": texts, name: output,
        "input_ids": padded(config.pad_token_id as u32, &|id| id), "attention_mask": padded(0, &|_| 1),
    });
    if config.task != Task::Encoder {
        all["id2label"] = json!(config.id2label);
    }
    all
}

#[test]
fn students_of_any_shape_are_read_again_and_open_in_transformers() {
    let python = std::env::var("AMPOULE_PYTHON").ok();
    if python.is_none() {
        println!("skipped in Python: AMPOULE_PYTHON names no Python that has transformers");
    }
    let temporary = tempfile::tempdir().unwrap();
    let corpus = &TEXTS[1..];
    for name in [
        "bert-token",
        "bert-sequence",
        "bert-encoder",
        "distilbert-token",
        "distilbert-sequence",
        "roberta-token",
        "roberta-sequence",
        "electra-token",
        "electra-encoder",
    ] {
        let folder = fixtures().join("checkpoints").join(name);
        let teacher = Checkpoint::open(folder).unwrap();
        let (pruned, report) = prune_vocabulary(&teacher, corpus, teacher.config.vocab_size - 6).unwrap();
        assert!(report.pieces + 6 == teacher.config.vocab_size && report.newly_unknown == 0, "{name}: {report:?}");
        let (factorized, _) = factorize_embeddings(&pruned, corpus, 10).unwrap();
        let shape = StudentShape { layers: vec![2], hidden_size: Some(24), ..StudentShape::default() };
        let (narrow, _) = student_from_teacher(&factorized, &shape).unwrap();
        for (step, student) in [("pruned", pruned), ("factorized", factorized), ("narrow", narrow)] {
            let saved = temporary.path().join(format!("{name}-{step}"));
            student.save(&saved).unwrap();
            let opened = Checkpoint::open(&saved).unwrap();
            assert!(opened.weights == student.weights && opened.config == student.config, "{name} {step}");
            assert_eq!(opened.tokenizer.to_json(), student.tokenizer.to_json());
            let Some(python) = &python else { continue };
            let expected = temporary.path().join("expected.json");
            std::fs::write(&expected, answers(&opened).to_string()).unwrap();
            let script = fixtures().join("opens_in_transformers.py");
            let out = Command::new(python).arg(script).arg(&saved).arg(&expected).output().unwrap();
            println!("{name} {step}: {}", String::from_utf8_lossy(&out.stdout).trim());
            assert!(out.status.success(), "{name} {step}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
