//! Checkpoints as they are published, against transformers' own answers (`tests/fixtures/checkpoints.py`).
#![cfg(feature = "checkpoint")]

use std::path::{Path, PathBuf};
use std::process::Command;

use ampoule::checkpoint::NewHead;
use ampoule::model::{Model, Weights};
use ampoule::{Batch, Checkpoint, ErrorKind, Task};
use burn::tensor::Device;
use serde_json::{Value, json};

fn folders() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
    let mut folders: Vec<PathBuf> = std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 24);
    folders
}

fn fixture(name: &str) -> PathBuf {
    folders().into_iter().find(|f| f.ends_with(name)).unwrap()
}

fn expected(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(all) => all.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

/// The largest difference from transformers' answer, padding aside.
fn difference(checkpoint: &Checkpoint, expected: &Value) -> f64 {
    let device = Device::flex();
    let model = Model::load(&checkpoint.config, &mut checkpoint.weights.clone(), &device).unwrap();
    let rows = expected["input_ids"].as_array().unwrap();
    let sequences: Vec<Vec<u32>> = rows
        .iter()
        .zip(expected["attention_mask"].as_array().unwrap())
        .map(|(row, mask)| ids(row).into_iter().zip(ids(mask)).filter(|(_, m)| *m == 1).map(|(id, _)| id).collect())
        .collect();
    let run = |sequences: &[Vec<u32>]| -> (Vec<f32>, usize) {
        let batch = Batch::new(sequences, checkpoint.config.pad_token_id);
        let hidden = model.hidden_states(&batch, &device, &mut None, &mut |_, _| Ok(())).unwrap();
        let output = match checkpoint.config.task {
            Task::Encoder => hidden,
            _ => model.logits(hidden, &mut None).unwrap(),
        };
        let row = output.dims()[1] * output.dims()[2];
        (output.into_data().try_into_vec::<f32>().unwrap(), row)
    };
    let answers = &expected[if checkpoint.config.task == Task::Encoder { "last_hidden_state" } else { "logits" }];
    let (padded, row) = run(&sequences);
    let mut largest = 0f64;
    for (i, (sequence, answer)) in sequences.iter().zip(answers.as_array().unwrap()).enumerate() {
        let answer = numbers(answer);
        let is_by_token = matches!(checkpoint.config.task, Task::Encoder | Task::TokenClassification);
        let count =
            if is_by_token { answer.len() / rows[i].as_array().unwrap().len() * sequence.len() } else { answer.len() };
        let (alone, _) = run(std::slice::from_ref(sequence));
        for found in [&padded[i * row..], &alone] {
            let differences = found[..count].iter().zip(&answer).map(|(f, a)| (f64::from(*f) - a).abs());
            largest = differences.fold(largest, f64::max);
        }
    }
    largest
}

#[test]
fn logits_are_those_of_transformers_in_every_architecture_and_layout() {
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = expected(&folder);
        if let Some(labels) = expected["id2label"].as_array() {
            assert_eq!(json!(checkpoint.config.id2label), json!(labels), "{name}");
        }
        let largest = difference(&checkpoint, &expected);
        println!("{name}: largest difference {largest:.2e}");
        assert!(largest <= 1e-4, "{name}: {largest}");
        for case in expected["texts"].as_array().into_iter().flatten() {
            let tokenizer = &checkpoint.tokenizer;
            let mut found = vec![tokenizer.cls_id()];
            found.extend(tokenizer.encode(case["text"].as_str().unwrap()).unwrap().iter().map(|t| t.id));
            found.push(tokenizer.sep_id());
            assert_eq!(found, ids(&case["input_ids"]), "{name}");
        }
    }
}

#[test]
fn what_is_saved_is_read_again_and_opens_in_transformers() {
    let temporary = tempfile::tempdir().unwrap();
    let python = std::env::var("AMPOULE_PYTHON").ok();
    if python.is_none() {
        println!("skipped in Python: AMPOULE_PYTHON names no Python that has transformers");
    }
    for folder in folders() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let mut checkpoint = Checkpoint::open(&folder).unwrap();
        // Which transformers has to pass over.
        checkpoint.temperature = 1.25;
        let saved = temporary.path().join(&name);
        checkpoint.save(&saved).unwrap();
        let again = Checkpoint::open(&saved).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(again.weights == checkpoint.weights, "{name}");
        assert_eq!(again.config, checkpoint.config, "{name}");
        assert_eq!(again.tokenizer.to_json(), checkpoint.tokenizer.to_json(), "{name}");
        assert_eq!(again.pooling, checkpoint.pooling, "{name}");
        // A second time over the first, which is then gone.
        checkpoint.save(&saved).unwrap();
        if let Some(python) = &python {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/opens_in_transformers.py");
            let out = Command::new(python).arg(script).arg(&saved).arg(folder.join("expected.json")).output().unwrap();
            println!("{name}: {}", String::from_utf8_lossy(&out.stdout).trim());
            assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
    let left: Vec<_> = std::fs::read_dir(temporary.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), folders().len(), "{left:?}");
}

#[test]
fn a_temperature_is_kept_beside_what_transformers_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let mut checkpoint = Checkpoint::open(fixture("bert-token")).unwrap();
    assert_eq!(checkpoint.temperature, 1.0);
    for temperature in [1.0, 1.2345, 0.1, 1.0 / 3.0, 16_777_217.0, f32::MIN_POSITIVE, f32::MAX] {
        checkpoint.temperature = temperature;
        checkpoint.save(&path).unwrap();
        assert_eq!(Checkpoint::open(&path).unwrap().temperature, temperature);
        let (config, found) = Checkpoint::inspect(&path).unwrap();
        assert_eq!((config, found), (checkpoint.config.clone(), temperature));
        let json: Value = serde_json::from_slice(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
        assert_eq!(json.get("ampoule_temperature").is_some(), temperature != 1.0);
        // transformers has a field of that name, for another purpose.
        assert!(json.get("temperature").is_none());
    }
    checkpoint.temperature = 1.2345;
    checkpoint.save(&path).unwrap();
    let config = std::fs::read_to_string(path.join("config.json")).unwrap();
    assert!(config.contains("\"ampoule_temperature\": 1.2345"), "{config}");
    let head = NewHead { task: Task::TokenClassification, labels: ["O", "B-x"].map(str::to_owned).to_vec(), seed: 1 };
    assert_eq!(Checkpoint::open_with_head(&path, &head).unwrap().temperature, 1.0);

    let before = std::fs::read(path.join("config.json")).unwrap();
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        checkpoint.temperature = temperature;
        let error = checkpoint.save(&path).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("temperature"), "{error}");
        assert!(std::fs::read(path.join("config.json")).unwrap() == before);
    }
    for value in [json!(0), json!(-1.5), json!("hot"), json!(1e-60), json!(1e60), json!([1.0])] {
        let error = refusal(&changed("bert-token", |_, config| config["ampoule_temperature"] = value));
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(error.to_string().contains("\"ampoule_temperature\": expected a positive normal number"), "{error}");
    }
}

/// A folder that is `name` with `change` made to its tensors and configuration.
fn changed(name: &str, change: impl FnOnce(&mut Weights, &mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut checkpoint = Checkpoint::open(fixture(name)).unwrap();
    let mut config = checkpoint.config.to_json();
    change(&mut checkpoint.weights, &mut config);
    checkpoint.save(folder.path().join("x")).unwrap();
    std::fs::write(folder.path().join("x/config.json"), config.to_string()).unwrap();
    folder
}

fn refusal(folder: &tempfile::TempDir) -> ampoule::Error {
    Checkpoint::open(folder.path().join("x")).unwrap_err()
}

#[test]
fn wrong_tensors_are_all_named_in_one_message() {
    let folder = changed("bert-token", |weights, _| {
        let moved = weights.0.remove("encoder.layer.1.output.dense.weight").unwrap();
        weights.0.insert("encoder.layer.7.output.dense.weight".to_owned(), moved);
        let bias = weights.0.get_mut("classifier.bias").unwrap();
        bias.data.push(0.0);
        bias.shape[0] += 1;
    });
    let error = refusal(&folder);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let message = error.to_string();
    for part in [
        "encoder.layer.1.output.dense.weight: missing",
        "encoder.layer.7.output.dense.weight: not part of this model",
        "classifier.bias: expected [5], found [6]",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn what_is_not_supported_or_damaged_is_refused_with_the_reason() {
    type Change = Box<dyn FnOnce(&mut Weights, &mut Value)>;
    let cases: Vec<(Change, ErrorKind, &str)> = vec![
        (Box::new(|_, c| c["model_type"] = json!("t5")), ErrorKind::Incompatible, "\"t5\""),
        (
            Box::new(|_, c| c["position_embedding_type"] = json!("relative_key")),
            ErrorKind::Incompatible,
            "position_embedding_type",
        ),
        (Box::new(|_, c| c["is_decoder"] = json!(true)), ErrorKind::Incompatible, "is_decoder"),
        (
            Box::new(|w, _| w.0.get_mut("classifier.bias").unwrap().data[1] = f32::NAN),
            ErrorKind::Corrupt,
            "classifier.bias",
        ),
        (Box::new(|_, c| c["id2label"] = json!({"0": "O", "1": "B-x"})), ErrorKind::Corrupt, "expected [2, "),
    ];
    for (change, kind, part) in cases {
        let error = refusal(&changed("bert-token", change));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    for (file, kind) in [
        ("config.json", ErrorKind::NotFound),
        ("model.safetensors", ErrorKind::NotFound),
        ("tokenizer.json", ErrorKind::NotFound),
    ] {
        let folder = changed("bert-token", |_, _| ());
        std::fs::remove_file(folder.path().join("x").join(file)).unwrap();
        let error = refusal(&folder);
        assert_eq!(error.kind(), kind, "{error}");
    }
    #[cfg(unix)]
    for file in ["config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"] {
        let folder = changed("bert-token", |_, _| ());
        let path = folder.path().join("x").join(file);
        let _ = std::fs::remove_file(&path);
        if file == "pytorch_model.bin" {
            std::fs::remove_file(folder.path().join("x/model.safetensors")).unwrap();
        }
        // Nobody writes into it: opening it would wait for ever.
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let error = refusal(&folder);
        assert!(error.kind() == ErrorKind::Incompatible && error.to_string().contains(file), "{error}");
    }
    let folder = changed("bert-token", |_, _| ());
    let weights = folder.path().join("x/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 9]).unwrap();
    assert_eq!(refusal(&folder).kind(), ErrorKind::Corrupt);
}

#[test]
fn a_pickle_that_would_run_a_command_is_refused_by_the_commands_name() {
    let folder = changed("bert-token", |_, _| ());
    std::fs::remove_file(folder.path().join("x/model.safetensors")).unwrap();
    // The legacy layout: magic number, protocol, system info, then the object, which is os.system("true").
    let mut bytes = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.".to_vec();
    bytes.extend(b"\x80\x02cposix\nsystem\nq\x00X\x04\x00\x00\x00trueq\x01\x85q\x02Rq\x03.");
    std::fs::write(folder.path().join("x/pytorch_model.bin"), bytes).unwrap();
    let error = refusal(&folder);
    assert!(error.to_string().contains("posix.system"), "{error}");
}

#[test]
fn a_new_head_is_put_on_when_it_is_asked_for() {
    let head = |seed| NewHead {
        task: Task::TokenClassification,
        labels: ["O", "B-x", "I-x"].map(str::to_owned).to_vec(),
        seed,
    };
    for name in ["bert-encoder", "roberta-token", "electra-sequence", "distilbert-sequence"] {
        let one = Checkpoint::open_with_head(fixture(name), &head(1)).unwrap();
        assert_eq!(one.config.id2label.len(), 3, "{name}");
        let weight = &one.weights.0["classifier.weight"];
        assert_eq!(weight.shape, [3, one.config.hidden_size]);
        let spread = (weight.data.iter().map(|x| x * x).sum::<f32>() / weight.data.len() as f32).sqrt();
        assert!((0.01..0.03).contains(&spread), "{name}: {spread}");
        assert!(one.weights.0["classifier.bias"].data.iter().all(|&x| x == 0.0));
        assert!(one.weights == Checkpoint::open_with_head(fixture(name), &head(1)).unwrap().weights);
        assert!(one.weights != Checkpoint::open_with_head(fixture(name), &head(2)).unwrap().weights);
    }
}
