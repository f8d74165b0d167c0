use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::data::{Annotation, Example, NerSet};

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
    // With a teacher of other tokens, and one of the student's whose texts have noise.
    for (name, noise) in [("roberta-token", false), ("bert-token", true)] {
        let mut config: TrainConfig = serde_json::from_str(
            r#"{"epochs": 2, "batch_size": 4, "threads": 2, "terms": [{"term": "soft_targets", "weight": 1, "temperature": 2}]}"#,
        )
        .unwrap();
        config.noise = noise.then(crate::TypingNoise::default);
        let run = |run: &str, cached: bool| {
            let (stop, path) = (AtomicBool::new(false), folder.path().join(format!("{name}-{run}")));
            let mut teacher = Teacher::new(checkpoint(name));
            if cached {
                teacher = teacher.with_cache(&cache, 1 << 20);
            }
            let student = checkpoint("bert-token");
            train(student, Some(teacher), &data, &config, &path, &stop, &mut After(0, &stop)).unwrap();
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
