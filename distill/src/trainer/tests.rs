use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::data::{Annotation, Example, LabelledText, NerSet, Passage, Query, SearchSet};
use crate::losses::Term;
use crate::optimizer::AdamW;
use crate::student::{StudentShape, student_from_teacher};

/// Asks to stop after some steps.
struct After<'a>(usize, &'a AtomicBool);

impl ProgressListener for After<'_> {
    fn started(&mut self, _: usize, _: usize) {}

    fn step(&mut self, log: &StepLog) {
        self.1.store(log.step == self.0, Ordering::Relaxed);
    }

    fn evaluated(&mut self, _: &EvaluationLog) {}
}

#[test]
fn a_run_in_stages_that_stops_after_any_step_goes_on_to_the_same_tensors() {
    let text = "the pain of aspirin";
    let annotation = |label: &str, range| Annotation { label: label.to_owned(), range, score: 1.0 };
    let entities = vec![annotation("Disease", 4..8), annotation("Chemical", 12..19)];
    let set = |count: usize| NerSet {
        examples: vec![Example { id: String::new(), text: text.to_owned(), entities: entities.clone() }; count],
        covers: BTreeSet::from(["Chemical", "Disease"].map(str::to_owned)),
    };
    let data = Data::Entities { train: vec![set(12)], dev: vec![set(2)], transfer: vec![text.to_owned()] };
    let stages = r#"{"batch_size": 4, "runs": 0, "threads": 2, "save_every": 2, "optimizer": {"learning_rate": 1e-3}, "stages": [
        {"epochs": 1, "terms": [{"term": "hidden", "weight": 1, "layer_map": [[1, 1]]}], "freeze": ["classifier"]},
        {"epochs": 2, "transfer": false, "noise": {"words": 0.5}, "patience": 1},
        {"epochs": 1, "transfer": false, "precision": "int8"}]}"#;
    let config: TrainConfig = serde_json::from_str(stages).unwrap();
    let start = Checkpoint::open("../tests/fixtures/checkpoints/bert-token").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, stop_after: usize| {
        let stop = AtomicBool::new(false);
        let (path, mut listener) = (folder.path().join(name), After(stop_after, &stop));
        train(start.clone(), Some(Teacher::new(start.clone())), &data, &config, &path, &stop, &mut listener).unwrap()
    };
    let model = |name: &str| {
        let model = Checkpoint::open(folder.path().join(name).join("model")).unwrap();
        assert!(model.quantization_aware);
        (weights_sha256(&model.weights), model.temperature)
    };
    let log = |name: &str| std::fs::read_to_string(folder.path().join(name).join("log.jsonl")).unwrap();
    let Outcome::Finished { dev_score: Some(score), .. } = run("whole", 0) else { panic!("no score") };
    let logged: Vec<Value> = log("whole").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let stages: Vec<u64> = logged.iter().filter_map(|line| line["step"]["stage"].as_u64()).collect();
    assert!(stages.starts_with(&[1, 1, 1, 1, 2]) && stages.ends_with(&[2, 3, 3, 3]), "{stages:?}");
    let steps: Vec<usize> =
        logged.iter().filter_map(|line| line["step"]["step"].as_u64()).map(|n| n as usize).collect();
    for stop in steps {
        let name = format!("stopped-{stop}");
        if run(&name, stop) == (Outcome::Interrupted { step: stop }) {
            assert!(!folder.path().join(&name).join("model").exists(), "{name}");
        }
        let Outcome::Finished { dev_score, .. } = run(&name, 0) else { panic!("{name}") };
        assert_eq!((model(&name), dev_score), (model("whole"), Some(score)), "{name}");
        assert_eq!(log(&name), log("whole"), "{name}");
    }
}

/// Every kind of term, noise, dropout and quantization-aware training; a few steps, since each is a little off the one before.
#[test]
fn a_gpu_makes_the_steps_that_the_processor_makes() {
    if let Err(error) = ampoule::training_device(ampoule::Device::Gpu, Some("")) {
        println!("skipped: there is no GPU to train on: {error}");
        return;
    }
    let is_hardware = ampoule::gpu_adapters().iter().any(|name| !name.ends_with("(software)"));
    for (adapter, is_there) in [(None, is_hardware), (Some("no such adapter"), false)] {
        let refused = ampoule::training_device(ampoule::Device::Gpu, adapter).err().map(|error| error.kind());
        let expected = (!is_there).then_some(ampoule::ErrorKind::DeviceUnavailable);
        assert_eq!(refused, expected, "{adapter:?}");
    }
    let text = "the pain of aspirin";
    let annotation = |label: &str, range| Annotation { label: label.to_owned(), range, score: 1.0 };
    let entities = vec![annotation("Disease", 4..8), annotation("Chemical", 12..19)];
    let examples = (1..=6).map(|n| Example {
        id: String::new(),
        text: [text, &" of the pain".repeat(n)].concat(),
        entities: entities.clone(),
    });
    let set =
        NerSet { examples: examples.collect(), covers: BTreeSet::from(["Chemical", "Disease"].map(str::to_owned)) };
    let notes = Data::Entities { train: vec![set.clone()], dev: vec![set], transfer: vec![text.to_owned()] };
    let of_notes = r#"{"batch_size": 4, "epochs": 1, "threads": 1, "dropout": 0.1, "noise": {"words": 0.3}, "stages": [
        {"terms": [{"term": "hidden", "weight": 1, "layer_map": [[1, 1]]},
                   {"term": "relations", "weight": 1, "layer_map": [[1, 1]], "heads": 2},
                   {"term": "attention", "weight": 1, "layer_map": [[1, 1]], "heads": 2}]},
        {"terms": [{"term": "hard", "weight": 1}, {"term": "soft_targets", "weight": 1, "temperature": 2},
                   {"term": "spans", "weight": 1}]},
        {"precision": "int8"}]}"#;
    let of_searches = r#"{"batch_size": 6, "epochs": 1, "steps": 3, "threads": 1, "dropout": 0.1, "terms": [
        {"term": "contrastive", "weight": 1, "temperature": 0.05}, {"term": "embedding", "weight": 1, "temperature": 0.1}]}"#;
    let folder = tempfile::tempdir().unwrap();
    for (start, data, settings) in [("bert-token", notes, of_notes), ("bert-encoder", searches(), of_searches)] {
        let checkpoint = Checkpoint::open(Path::new("../tests/fixtures/checkpoints").join(start)).unwrap();
        let steps = |device| {
            let adapter = (device == ampoule::Device::Gpu).then(String::new);
            let config = TrainConfig { device, adapter, ..serde_json::from_str(settings).unwrap() };
            let (stop, path) = (AtomicBool::new(false), folder.path().join(format!("{start}-{device:?}")));
            let teacher = Some(Teacher::new(checkpoint.clone()));
            train(checkpoint.clone(), teacher, &data, &config, &path, &stop, &mut After(0, &stop)).unwrap();
            let log = std::fs::read_to_string(path.join("log.jsonl")).unwrap();
            let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines.filter_map(|line| serde_json::from_value::<StepLog>(line["step"].clone()).ok()).collect::<Vec<_>>()
        };
        let (expected, found) = (steps(ampoule::Device::Cpu), steps(ampoule::Device::Gpu));
        assert!(expected.len() >= 3 && expected.len() == found.len(), "{start}");
        for (expected, found) in expected.iter().zip(&found) {
            for (e, f) in [(expected.loss, found.loss), (expected.gradient_norm, found.gradient_norm)] {
                let step = expected.step;
                assert!((e - f).abs() < 1e-3 * e.abs().max(0.1), "{start}, step {step}: {f} in place of {e}");
            }
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_by_step_and_term_and_leaves_the_last_state() {
    let text = "the pain of aspirin";
    let entities = vec![Annotation { label: "Disease".to_owned(), range: 4..8, score: 1.0 }];
    let examples = vec![Example { id: String::new(), text: text.to_owned(), entities }; 8];
    let set = NerSet { examples, covers: BTreeSet::from(["Chemical", "Disease"].map(str::to_owned)) };
    let data = Data::Entities { train: vec![set.clone()], dev: vec![set], transfer: Vec::new() };
    let start = Checkpoint::open("../tests/fixtures/checkpoints/bert-token").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, teacher: Option<Teacher>, config: &TrainConfig| {
        let (stop, path) = (AtomicBool::new(false), folder.path().join(name));
        train(start.clone(), teacher, &data, config, &path, &stop, &mut After(0, &stop))
    };
    let optimizer = AdamW { learning_rate: 1e30, warmup: 0.0, weight_decay: 0.0, ..AdamW::default() };
    let config = TrainConfig {
        epochs: 3,
        batch_size: 4,
        runs: 0.0,
        save_every: 1,
        threads: 1,
        optimizer,
        ..TrainConfig::default()
    };
    let error = run("steep", None, &config).unwrap_err();
    assert_eq!(error.kind(), ampoule::ErrorKind::InvalidInput);
    assert!(error.to_string().contains("step 1: the loss term \"hard\" is "), "{error}");
    let state = |name: &str| std::fs::read(folder.path().join(name).join("state.safetensors"));
    let saved = state("steep").unwrap();
    // The same call ends at the same step, and the state is as it was.
    assert!(run("steep", None, &config).unwrap_err().to_string().contains("step 1: the loss term"));
    assert_eq!(state("steep").unwrap(), saved);

    let mut teacher = start.clone();
    teacher.weights.0.get_mut("classifier.weight").unwrap().data.fill(3e38);
    let terms = vec![Term::Hard { weight: 1.0 }, Term::SoftTargets { weight: 1.0, temperature: 1.0 }];
    let config = TrainConfig { terms, optimizer: AdamW::default(), ..config };
    let several = Teacher::new(start.clone()).and(teacher.clone());
    let spans = TrainConfig { terms: vec![Term::Spans { weight: 1.0 }], ..config.clone() };
    for (name, teacher, config, term) in [
        ("overflow", Teacher::new(teacher.clone()), &config, "soft_targets"),
        ("one-of-two", several, &config, "soft_targets"),
        ("spans", Teacher::new(teacher), &spans, "spans"),
    ] {
        let error = run(name, Some(teacher), config).unwrap_err().to_string();
        assert!(error.contains(&format!("step 0: the loss term \"{term}\" is ")), "{name}: {error}");
        assert!(state(name).is_err());
    }
}

#[test]
fn what_a_later_stage_cannot_do_is_said_before_the_first_step() {
    let text = "the pain of aspirin";
    let entities = vec![Annotation { label: "Disease".to_owned(), range: 4..8, score: 1.0 }];
    let examples = vec![Example { id: String::new(), text: text.to_owned(), entities }; 8];
    let set = NerSet { examples, covers: BTreeSet::from(["Chemical", "Disease"].map(str::to_owned)) };
    let strange = NerSet { covers: BTreeSet::from(["Strange".to_owned()]), ..set.clone() };
    let data = |dev: &NerSet| Data::Entities { train: vec![set.clone()], dev: vec![dev.clone()], transfer: Vec::new() };
    let start = Checkpoint::open("../tests/fixtures/checkpoints/bert-token").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = |stage: &str, data: &Data| {
        let config = format!(r#"{{"batch_size": 4, "threads": 1, "stages": [{{"epochs": 1}}, {stage}]}}"#);
        let config: TrainConfig = serde_json::from_str(&config).unwrap();
        let (stop, path) = (AtomicBool::new(false), folder.path().join("run"));
        let teacher = Some(Teacher::new(start.clone()));
        train(start.clone(), teacher, data, &config, &path, &stop, &mut After(0, &stop)).map(drop)
    };
    let term = |term: &str| format!(r#"{{"epochs": 1, "terms": [{{"weight": 1, "term": {term}}}]}}"#);
    let frozen = |freeze: &str, layer: usize| {
        format!(
            r#"{{"freeze": {freeze}, "terms": [{{"term": "hidden", "weight": 1, "layer_map": [[{layer}, {layer}]]}}]}}"#
        )
    };
    for (stage, part) in [
        (term(r#""hidden", "layer_map": [[3, 1]]"#), "the student's 3 with the teacher's 1, and there is no such pair"),
        (term(r#""relations", "heads": 4, "layer_map": [[0, 1]]"#), "there is no such pair"),
        (term(r#""attention", "heads": 7, "layer_map": [[1, 1]]"#), "the 7 heads of the loss term \"attention\""),
        (term(r#""hidden", "layer_map": []"#), "layer_map is empty"),
        (term(r#""hard", "weight": -1"#).replace(r#""weight": 1, "#, ""), "the weight of the loss term \"hard\""),
        (term(r#""soft_targets", "temperature": 0"#), "the temperature of the loss term \"soft_targets\""),
        (r#"{"freeze": ["bert.embeddings"]}"#.to_owned(), "\"embeddings\" was meant?"),
        (r#"{"freeze": ["nothing"]}"#.to_owned(), "they are named like \""),
        (r#"{"freeze": [""]}"#.to_owned(), "freeze leaves nothing to train"),
        (frozen(r#"["embeddings"]"#, 0), "freeze leaves nothing to train"),
        (frozen(r#"["embeddings", "encoder.layer.0"]"#, 1), "freeze leaves nothing to train"),
        (frozen(r#"["encoder.lay"]"#, 1), "a name that begins so, in whole parts"),
        (r#"{"optimizer": {"weight_decay": 1e5}}"#.to_owned(), "optimizer.weight_decay must be 0 or more, and below"),
        (r#"{"optimizer": {"epsilon": 1e-50}}"#.to_owned(), "optimizer.epsilon must be above 0"),
        (r#"{"optimizer": {"max_grad_norm": 0}}"#.to_owned(), "optimizer.max_grad_norm must be above 0"),
        (r#"{"optimizer": {"beta2": 1}}"#.to_owned(), "optimizer.beta1 and beta2 must be in 0..1"),
        (r#"{"optimizer": {"warmup": 20}}"#.to_owned(), "optimizer.warmup must be in 0..=1"),
        (r#"{"optimizer": {"epsilon": 0}}"#.to_owned(), "optimizer.epsilon must be above 0"),
        (r#"{"optimizer": {"weight_decay": -1}}"#.to_owned(), "optimizer.weight_decay must be 0 or more"),
    ] {
        let error = run(&stage, &data(&set)).unwrap_err();
        assert_eq!(error.kind(), ampoule::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("stage 2: ") && error.to_string().contains(part), "{error}");
    }
    let error = run("{}", &data(&strange)).unwrap_err().to_string();
    assert!(error.contains("labels of the dev data 1 are not among the model's"), "{error}");
    assert!(!folder.path().join("run").exists());
    run("{}", &data(&set)).unwrap();
}

#[test]
fn two_terms_of_a_kind_are_logged_side_by_side_and_steps_end_an_epoch() {
    let texts = vec![LabelledText { id: String::new(), text: "the pain".to_owned(), labels: vec!["a".to_owned()] }; 8];
    let mut start = Checkpoint::open("../tests/fixtures/checkpoints/bert-sequence").unwrap();
    start.config.id2label[0] = "a".to_owned();
    let data = Data::Labels { train: texts.clone(), dev: texts, transfer: Vec::new() };
    let hidden = |layer| Term::Hidden { weight: 1.0, layer_map: vec![(layer, layer)] };
    let config = TrainConfig {
        epochs: 1_000_000,
        steps: Some(3),
        batch_size: 4,
        threads: 1,
        dropout: Some(0.5),
        terms: vec![hidden(1), Term::Hard { weight: 1.0 }, hidden(2)],
        ..TrainConfig::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let (stop, teacher) = (AtomicBool::new(false), Some(Teacher::new(start.clone())));
    train(start, teacher, &data, &config, folder.path(), &stop, &mut After(0, &stop)).unwrap();
    let log = crate::RunLog::read(folder.path()).unwrap();
    assert_eq!(log.steps.len(), 3);
    for step in log.steps {
        let value = |name: &str| step.terms[name].as_f64().unwrap();
        assert!((value("hidden") + value("hard") + value("hidden-2") - step.loss).abs() < 1e-5 * step.loss);
    }
}

/// Scores that stay the same run out of patience, but for 0, and it is the last weights that are kept.
#[test]
fn of_equal_scores_the_later_weights_are_kept() {
    let start = Checkpoint::open("../tests/fixtures/checkpoints/bert-sequence").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut ends = Vec::new();
    for label in &start.config.id2label {
        let texts =
            vec![LabelledText { id: String::new(), text: "the pain".to_owned(), labels: vec![label.clone()] }; 8];
        let data = Data::Labels { train: texts.clone(), dev: texts, transfer: Vec::new() };
        let optimizer = AdamW { learning_rate: 1e-9, ..AdamW::default() };
        let config =
            TrainConfig { epochs: 6, batch_size: 4, threads: 1, patience: 2, optimizer, ..TrainConfig::default() };
        let (stop, run) = (AtomicBool::new(false), folder.path().join(label));
        match train(start.clone(), None, &data, &config, &run, &stop, &mut After(0, &stop)).unwrap() {
            Outcome::Finished { dev_score: Some(score), step, .. } => ends.push((score > 0.0, step)),
            other => panic!("{other:?}"),
        }
    }
    ends.sort_unstable();
    ends.dedup();
    assert_eq!(ends, [(false, 12), (true, 6)]);
}

#[test]
fn a_second_run_computes_no_teacher_and_neither_the_cache_nor_its_damage_changes_a_bit() {
    let text = "the pain of aspirin";
    let annotation = |label: &str, range| Annotation { label: label.to_owned(), range, score: 1.0 };
    let entities = vec![annotation("Disease", 4..8), annotation("Chemical", 12..19)];
    let examples =
        (0..9).map(|i| Example { id: String::new(), text: format!("{text} {i}"), entities: entities.clone() });
    let covers = BTreeSet::from(["Chemical", "Disease"].map(str::to_owned));
    let set = NerSet { examples: examples.collect(), covers };
    let data = Data::Entities { train: vec![set.clone()], dev: vec![set], transfer: vec![format!("no {text}")] };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let checkpoint = |name: &str| Checkpoint::open(format!("../tests/fixtures/checkpoints/{name}")).unwrap();
    let soft_targets = Term::SoftTargets { weight: 1.0, temperature: 2.0 };
    let embedding = Term::Embedding { weight: 1.0, temperature: 0.05 };
    // With a teacher of other tokens, and one of the student's whose texts have noise.
    for (student, name, noise, term, data) in [
        ("bert-token", "roberta-token", false, &soft_targets, &data),
        ("bert-token", "bert-token", true, &soft_targets, &data),
        ("bert-encoder", "roberta-encoder", true, &embedding, &searches()),
    ] {
        let noise = noise.then(crate::TypingNoise::default);
        let terms = vec![term.clone()];
        let config = TrainConfig { epochs: 2, batch_size: 4, threads: 2, terms, noise, ..TrainConfig::default() };
        let run = |run: &str, cached: bool| {
            let (stop, path) = (AtomicBool::new(false), folder.path().join(format!("{name}-{run}")));
            let mut teacher = Teacher::new(checkpoint(name));
            if cached {
                teacher = teacher.with_cache(&cache, 1 << 20);
            }
            train(checkpoint(student), Some(teacher), data, &config, &path, &stop, &mut After(0, &stop)).unwrap();
            let log = std::fs::read_to_string(path.join("log.jsonl")).unwrap();
            let line =
                log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|l| l["teacher"].is_object());
            let count = |name: &str| line.as_ref().and_then(|line| line["teacher"][name].as_u64());
            let weights = weights_sha256(&Checkpoint::open(path.join("model")).unwrap().weights);
            (weights, count("computed"), count("cached"))
        };
        let (weights, computed, _) = run("plain", false);
        assert_eq!(computed, None);
        let (first, Some(computed), _) = run("first", true) else { panic!("nothing is logged") };
        assert!(computed > 0);
        let (second, none, cached) = run("second", true);
        assert_eq!((none, cached.unwrap() >= computed), (Some(0), true));
        let file = cache.join("answers.bin");
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let (mended, again, _) = run("damaged", true);
        assert!(again.unwrap() <= 2, "{again:?}");
        assert_eq!([&first, &second, &mended], [&weights; 3]);
    }
}

/// Queries of a letter or two, each with a passage of other letters: nothing but training can join them.
fn searches() -> Data {
    let letter = |i: usize| char::from(b'a' + (i % 26) as u8);
    let passage =
        |i: usize| Passage { id: i.to_string(), text: format!("{} fever {}", letter(7 * i + 3), letter(i / 26)) };
    let query = |i: usize| Query { id: String::new(), text: format!("the pain {}", letter(i)), positives: vec![i] };
    let set = SearchSet { passages: (0..26).map(passage).collect(), queries: (0..26).map(query).collect() };
    Data::Search { train: vec![set.clone()], dev: vec![set], transfer: vec!["aspirin".to_owned(), "a b".to_owned()] }
}

#[test]
fn searches_are_learnt_handed_on_and_resumed_the_same_with_any_threads() {
    let data = searches();
    let start = Checkpoint::open("../tests/fixtures/checkpoints/bert-encoder").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, start: &Checkpoint, teacher: Option<&Checkpoint>, config: &TrainConfig, stop_after| {
        let stop = AtomicBool::new(false);
        let (path, mut listener) = (folder.path().join(name), After(stop_after, &stop));
        train(start.clone(), teacher.cloned().map(Teacher::new), &data, config, &path, &stop, &mut listener).unwrap()
    };
    let score = |outcome: Outcome| match outcome {
        Outcome::Finished { dev_score: Some(score), fit: None, .. } => score,
        other => panic!("{other:?}"),
    };
    let model = |name: &str| Checkpoint::open(folder.path().join(name).join("model")).unwrap();
    let untrained = dev_score(start.clone(), &data, None, &Options::default()).unwrap().value;
    let mut config = TrainConfig {
        epochs: 40,
        batch_size: 14,
        dropout: Some(0.0),
        threads: 2,
        save_every: 1,
        optimizer: AdamW { learning_rate: 3e-3, ..AdamW::default() },
        evaluations_per_epoch: 1,
        ..TrainConfig::for_search()
    };
    let taught = score(run("taught", &start, None, &config, 0));
    assert!(untrained < 0.4 && taught > 0.9, "{untrained} {taught}");

    let planned = plan(start.clone(), None, &data, &config).unwrap();
    assert_eq!((planned.stages[0].steps, planned.stages[0].evaluations), (80, 40));

    // The first steps, by another number of threads: the same texts are negatives of each other.
    let losses = |name: &str| -> Vec<f64> {
        let log = std::fs::read_to_string(folder.path().join(name).join("log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter_map(|line| line["step"]["loss"].as_f64()).take(4).collect()
    };
    run("three", &start, None, &TrainConfig { threads: 3, ..config.clone() }, 4);
    for (a, b) in losses("taught").iter().zip(losses("three")) {
        assert!((a - b).abs() < 1e-3 * a, "{a} {b}");
    }

    // A narrower student, without the pairs' own term; in int8 at the end.
    let teacher = model("taught");
    let shape = StudentShape { layers: vec![1, 2], hidden_size: Some(16), ..StudentShape::default() };
    let (student, layer_map) = student_from_teacher(&teacher, &shape).unwrap();
    config.terms =
        vec![Term::Embedding { weight: 1.0, temperature: 0.05 }, Term::Relations { weight: 0.1, layer_map, heads: 2 }];
    config.precision = Precision::Int8;
    config.epochs = 60;
    let before = dev_score(student.clone(), &data, None, &Options::default()).unwrap().value;
    let distilled = score(run("student", &student, Some(&teacher), &config, 0));
    assert!(distilled > 0.8 && distilled > before + 0.2, "{before} {distilled}");

    // Dropout makes a text its own positive, and a stopped run goes on to the same tensors.
    config = TrainConfig { epochs: 2, dropout: Some(0.1), precision: Precision::F32, ..config };
    config.terms = vec![Term::Contrastive { weight: 1.0, temperature: 0.05 }];
    let whole = score(run("whole", &start, None, &config, 0));
    for stop in 1..=3 {
        let name = format!("stopped-{stop}");
        assert_eq!(run(&name, &start, None, &config, stop), Outcome::Interrupted { step: stop }, "{name}");
        assert_eq!(score(run(&name, &start, None, &config, 0)), whole, "{name}");
        assert_eq!(weights_sha256(&model(&name).weights), weights_sha256(&model("whole").weights), "{name}");
    }
}
