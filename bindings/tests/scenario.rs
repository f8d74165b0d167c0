//! The scenario that Rust, Python and Kotlin each run: texts, with what is found in them, and what goes wrong.
//!
//! `AMPOULE_WRITE=1 cargo test --release --workspace --test scenario` makes `bindings/scenario.json` and the bundle of its labels again.
//! Each run also leaves `target/tmp/sentences.json`: a thousand sentences with the very bits that this machine's kernel gives, for the
//! other languages to compare. `AMPOULE_SENTENCES` names another file of sentences, one a line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ampoule::bundle::{self, Bundle, BundleSpec, Golden, Load, Metadata, Precision};
use ampoule::{Checkpoint, Options};
use ampoule_bindings::{
    AmpouleError, BundleSource, CancelToken, Classifier, DeviceChoice, Embedder, Entity, Extractor, LabelScore,
    OpenOptions,
};
use serde_json::{Value, json};

const ENTITIES: &str = "models/clinical-en.int8.safetensors";
const LABELS: &str = "bindings/tests/labels.safetensors";
/// Values of a vector that the file holds.
const VALUES: usize = 8;
/// Between kernels: the file is x86's, and an entity's score, which adds those of all its words, is up to 0.0013 off by NEON.
const TOLERANCE: f64 = if cfg!(target_arch = "x86_64") { 1e-3 } else { 2e-3 };
const SENTENCE: &str = "Started on lisinopril for hypertension; developed angioedema.";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn source(path: &str) -> BundleSource {
    BundleSource::Path { path: root().join(path).to_str().unwrap().to_owned() }
}

fn options() -> OpenOptions {
    OpenOptions { threads: 1, ..OpenOptions::default() }
}

fn entities_json(entities: &[Entity]) -> Value {
    let each = entities.iter().map(|e| {
        json!({
            "label": e.label, "score": f64::from(e.score), "utf8": [e.utf8_start, e.utf8_end],
            "utf16": [e.utf16_start, e.utf16_end], "scalars": [e.scalar_start, e.scalar_end],
        })
    });
    each.collect()
}

fn labels_json(labels: &[LabelScore]) -> Value {
    labels.iter().map(|l| json!({"label": l.label, "score": f64::from(l.score)})).collect()
}

/// Texts that are hard to count in: those of the tokenizers' fixture, alone, and around a sentence that holds entities; and some in
/// which the hard characters are the entities' own.
fn texts() -> Vec<(String, String)> {
    let hard: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/fixtures/offsets.json")).unwrap()).unwrap();
    let mut texts = Vec::new();
    for case in hard["cases"].as_array().unwrap() {
        let (name, text) = (case["name"].as_str().unwrap(), case["text"].as_str().unwrap());
        texts.push((name.to_owned(), text.to_owned()));
        texts.push((format!("{name}, around a sentence"), format!("{text} {SENTENCE} {text}")));
    }
    for (name, text) in [
        ("entities with accents", "Angioe\u{301}dema and na\u{ef}ve hypertensio\u{301}n after lisino\u{301}pril."),
        ("entities beside emoji", "😀lisinopril👍🏽 for 🇮🇳 hypertension👩‍⚕️."),
        ("entities in lines of CRLF", "lisinopril\r\nhypertension\r\n\r\nangioedema\r\n"),
    ] {
        texts.push((name.to_owned(), text.to_owned()));
    }
    texts
}

/// What goes wrong, and as which error.
fn errors() -> Value {
    json!([
        {"name": "no such file", "model": "extractor", "path": "models/no-such.safetensors", "error": "FetchBundle"},
        {"name": "cut short", "model": "extractor", "path": ENTITIES, "bytes": 1_000_000, "error": "FetchBundle"},
        {"name": "cut within its header", "model": "extractor", "path": ENTITIES, "bytes": 100, "error": "FetchBundle"},
        {"name": "of a newer version", "model": "extractor", "path": ENTITIES,
         "replace": ["\"format_version\":\"1.0\"", "\"format_version\":\"9.0\""], "error": "UpdateApp"},
        {"name": "of another task", "model": "classifier", "path": ENTITIES, "error": "UpdateApp"},
        {"name": "no bundle", "model": "embedder", "path": "LICENSE-MIT", "error": "FetchBundle"},
        {"name": "no such kernel", "model": "extractor", "path": ENTITIES, "kernel": "abacus", "error": "FixInput"},
        {"name": "no such label", "model": "extractor", "path": ENTITIES, "min_score_by_label": {"Dragon": 0.5}, "error": "FixInput"},
        {"name": "no GPU in this build", "model": "extractor", "path": ENTITIES, "device": "gpu", "error": "UseCpu"},
    ])
}

fn scenario() -> Value {
    let extractor = Extractor::open(source(ENTITIES), options()).unwrap();
    let classifier = Classifier::open(source(LABELS), options()).unwrap();
    let embedder = Embedder::open(source(ENTITIES), options()).unwrap();
    let mut found = 0;
    let mut cases = Vec::new();
    for (name, text) in texts() {
        let entities = extractor.extract(&text, None, None).unwrap();
        found += entities.len();
        let mut case = json!({"name": name, "text": text, "entities": entities_json(&entities)});
        if !name.contains("around") {
            case["labels"] = labels_json(&classifier.classify(&text, None, None).unwrap());
            let vector = embedder.embed(&text, None, None).unwrap();
            let values = vector.as_chunks::<4>().0.iter().take(VALUES).map(|b| f64::from(f32::from_le_bytes(*b)));
            case["vector"] = values.collect();
        }
        cases.push(case);
    }
    assert!(found > 80, "{found}");
    // Unpaired surrogates, as UTF-16 units, which no JSON string holds: the packages put U+FFFD in their place.
    let units = |parts: &[&[u16]]| parts.concat();
    let sentence: Vec<u16> = SENTENCE.encode_utf16().collect();
    let surrogates: Vec<Value> = [
        ("a high one first", units(&[&[0xD83D], &sentence])),
        ("a low one last", units(&[&sentence, &[0xDE00]])),
        (
            "the wrong way round, then a pair",
            units(&[&[0xDE00, 0xD83D], &sentence, &[0xD83D, 0xDE00, 0x20], &sentence]),
        ),
    ]
    .into_iter()
    .map(|(name, units)| {
        let text = String::from_utf16_lossy(&units);
        json!({"name": name, "units": units, "entities": entities_json(&extractor.extract(&text, None, None).unwrap())})
    })
    .collect();
    json!({
        "made_by": "AMPOULE_WRITE=1 cargo test --release --workspace --test scenario",
        "bundles": {"entities": ENTITIES, "labels": LABELS},
        "labels": {"entities": extractor.labels().unwrap(), "labels": classifier.labels().unwrap()},
        "width": embedder.width().unwrap(),
        "tolerance": TOLERANCE,
        "cases": cases,
        "surrogates": surrogates,
        "errors": errors(),
        "long": {"sentence": format!("{SENTENCE}\n"), "bytes": 3_000_000},
    })
}

/// Compares, numbers that are not whole to within the tolerance.
fn same(found: &Value, expected: &Value, at: &str) {
    match (found, expected) {
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| same(a, b, &format!("{at}[{i}]")));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{at}");
            a.iter().for_each(|(key, a)| same(a, &b[key], &format!("{at}.{key}")));
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() <= TOLERANCE, "{at}: {a} and {b}");
        }
        _ => assert_eq!(found, expected, "{at}"),
    }
}

/// A bundle of the classifier of the runtime's tests.
fn write_labels() {
    let folder = root().join("tests/fixtures/checkpoints/bert-sequence");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let metadata =
        Metadata { pooling: checkpoint.pooling, ..Metadata::new(checkpoint.config.clone(), Precision::Int8) };
    let (path, tokenizer_json) = (root().join(LABELS), checkpoint.tokenizer.to_json());
    let spec = BundleSpec {
        metadata: &metadata,
        weights: &checkpoint.weights,
        tokenizer_json: &tokenizer_json,
        wider: &BTreeMap::new(),
        pre_quant_scales: &BTreeMap::new(),
        card: None,
        golden: None,
    };
    bundle::write(&path, &spec).unwrap();
    let golden = Golden::answered(&Bundle::open(&path, Load::Copy, true).unwrap()).unwrap();
    bundle::write(&path, &BundleSpec { golden: Some(&golden), ..spec }).unwrap();
}

#[test]
fn rust_finds_what_the_file_says() {
    let path = root().join("bindings/scenario.json");
    let write = std::env::var_os("AMPOULE_WRITE").is_some();
    if write {
        write_labels();
    }
    let found = scenario();
    if write {
        // A case a line, so that a change can be read.
        let mut lines = String::from("{\n");
        let fields = found.as_object().unwrap();
        for (i, (key, value)) in fields.iter().enumerate() {
            let value = match value.as_array() {
                Some(items) => {
                    let items: Vec<String> = items.iter().map(|item| format!("  {item}")).collect();
                    format!("[\n{}\n ]", items.join(",\n"))
                }
                None => value.to_string(),
            };
            lines.push_str(&format!(" {key:?}: {value}{}\n", if i + 1 < fields.len() { "," } else { "" }));
        }
        std::fs::write(&path, lines + "}\n").unwrap();
    }
    let expected: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    same(&found, &expected, "scenario");
}

#[test]
fn what_goes_wrong_is_the_error_that_the_file_says() {
    for case in errors().as_array().unwrap() {
        let path = root().join(case["path"].as_str().unwrap());
        let mut options = OpenOptions { kernel: case["kernel"].as_str().map(str::to_owned), ..options() };
        if let Some(scores) = case["min_score_by_label"].as_object() {
            options.min_score_by_label =
                scores.iter().map(|(label, score)| (label.clone(), score.as_f64().unwrap() as f32)).collect();
        }
        if case["device"] == "gpu" {
            options.device = Some(DeviceChoice::Gpu);
        }
        let folder = tempfile::tempdir().unwrap();
        let changed = folder.path().join("changed.safetensors");
        let path = match (case["bytes"].as_u64(), case["replace"].as_array()) {
            (None, None) => path,
            (bytes, replace) => {
                let mut all = std::fs::read(path).unwrap();
                all.truncate(bytes.map_or(all.len(), |n| n as usize));
                if let Some([old, new]) = replace.map(Vec::as_slice) {
                    let (old, new) = (old.as_str().unwrap().as_bytes(), new.as_str().unwrap().as_bytes());
                    let at = all.windows(old.len()).position(|w| w == old).unwrap();
                    all[at..at + old.len()].copy_from_slice(new);
                }
                std::fs::write(&changed, all).unwrap();
                changed
            }
        };
        let source = BundleSource::Path { path: path.to_str().unwrap().to_owned() };
        let error = match case["model"].as_str().unwrap() {
            "extractor" => Extractor::open(source, options).err(),
            "classifier" => Classifier::open(source, options).err(),
            _ => Embedder::open(source, options).err(),
        };
        let error = error.unwrap();
        let name = format!("{error:?}").split('(').next().unwrap().to_owned();
        assert_eq!(case["error"].as_str(), Some(&*name), "{}: {error}", case["name"]);
        assert!(!error.to_string().is_empty());
    }
    let closed = Extractor::open(source(ENTITIES), options()).unwrap();
    closed.release();
    assert!(matches!(closed.extract("", None, None), Err(AmpouleError::Closed(_))));
    let token = std::sync::Arc::new(CancelToken::new());
    token.cancel();
    let open = Extractor::open(source(ENTITIES), options()).unwrap();
    assert!(matches!(open.extract("", Some(token), None), Err(AmpouleError::Cancelled(_))));
}

/// The sentences of a corpus, words joined by spaces.
fn sentences_of(tsv: &str) -> Vec<String> {
    let words = |sentence: &str| sentence.lines().filter_map(|l| l.split('\t').next()).collect::<Vec<_>>().join(" ");
    tsv.split("\n\n").map(words).filter(|sentence| !sentence.is_empty()).collect()
}

/// The library's entities are the runtime's, and the other languages are given them to the last bit.
#[test]
fn a_thousand_sentences_are_the_runtimes() {
    let read = |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut sentences: Vec<String> = match std::env::var_os("AMPOULE_SENTENCES") {
        Some(path) => read(path.into()).lines().map(str::to_owned).collect(),
        None => ["bc5cdr", "ncbi"]
            .iter()
            .flat_map(|corpus| sentences_of(&read(root().join(format!("examples/produce/data/{corpus}/train.tsv")))))
            .collect(),
    };
    sentences.truncate(1_000);
    assert_eq!(sentences.len(), 1_000);
    let extractor = Extractor::open(source(ENTITIES), options()).unwrap();
    let runtime =
        ampoule::Extractor::open(root().join(ENTITIES), &Options { threads: 1, ..Options::default() }).unwrap();
    let mut cases = Vec::new();
    let mut found = 0;
    for text in &sentences {
        let entities = extractor.extract(text, None, None).unwrap();
        let expected = runtime.extract(text).unwrap();
        assert_eq!(entities.len(), expected.len());
        for (entity, expected) in entities.iter().zip(&expected) {
            assert_eq!(entity.label, *expected.label);
            assert_eq!(entity.score.to_bits(), expected.score.to_bits());
            assert_eq!(entity.utf8_start as usize..entity.utf8_end as usize, expected.range);
            assert_eq!(entity.utf16_start as usize..entity.utf16_end as usize, expected.utf16_range(text));
            assert_eq!(entity.scalar_start as usize..entity.scalar_end as usize, expected.char_range(text));
        }
        found += entities.len();
        cases.push(json!({"text": text, "entities": entities_json(&entities)}));
    }
    assert!(found > 500, "{found}");
    let all = json!({"bundle": ENTITIES, "kernel": extractor.report().unwrap().kernel, "cases": cases});
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("sentences.json"), all.to_string()).unwrap();
}
