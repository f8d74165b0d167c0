//! A process has as many threads as it was told, and starts none of its own. Alone in its file, since it counts.
#![cfg(all(feature = "checkpoint", target_os = "linux"))]

use std::path::Path;

use ampoule::{Checkpoint, Extractor, Options};

fn threads() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap().trim().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_starts_the_threads_it_was_told_and_ends_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/bert-token");
    let mut checkpoint = Checkpoint::open(folder).unwrap();
    checkpoint.weights.0.get_mut("classifier.bias").unwrap().data[0] -= 1.5;
    let before = threads();
    let mut answers = Vec::new();
    for count in [1, 2, 4] {
        let extractor =
            Extractor::from_checkpoint(checkpoint.clone(), &Options { threads: count, ..Options::default() }).unwrap();
        answers.push(extractor.extract(&"the pain of aspirin , naloxone ".repeat(200)).unwrap());
        let now = threads();
        assert_eq!(now.len(), before.len() + count, "{now:?}");
        assert_eq!(now.iter().filter(|name| name.starts_with("ampoule-")).count(), count);
        assert_eq!(extractor.device().threads, count);
        drop(extractor);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while threads().len() > before.len() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(threads(), before);
    }
    let spans = |i: usize| answers[i].iter().map(|e| (e.label.clone(), e.range.clone())).collect::<Vec<_>>();
    assert!(spans(0) == spans(1) && spans(1) == spans(2) && !spans(0).is_empty());
}
