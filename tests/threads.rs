//! A process has as many threads as it was told, and starts none of its own. Alone in its file, since it counts.
#![cfg(all(feature = "checkpoint", target_os = "linux"))]

use std::path::Path;
use std::time::{Duration, Instant};

use ampoule::{Checkpoint, ErrorKind, Extractor, Options};

/// The names of the process's threads, but of one that ends at this moment.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let mut names: Vec<String> = tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names
}

/// `threads()` once they are as many as they should be: threads take a moment to name themselves, and to end.
fn settled(is_so: impl Fn(&[String]) -> bool) -> Vec<String> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let names = threads();
        if is_so(&names) || Instant::now() > end {
            return names;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
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
        let ours = |names: &[String]| names.iter().filter(|name| name.starts_with("ampoule-")).count();
        let now = settled(|names| ours(names) == count);
        assert_eq!((now.len(), ours(&now)), (before.len() + count, count), "{now:?}");
        assert_eq!(extractor.device().threads, count);
        drop(extractor);
        assert_eq!(settled(|names| names == before), before);
    }
    let spans = |i: usize| answers[i].iter().map(|e| (e.label.clone(), e.range.clone())).collect::<Vec<_>>();
    assert!(spans(0) == spans(1) && spans(1) == spans(2) && !spans(0).is_empty());
    let options = Options { threads: ampoule::MAX_THREADS + 1, ..Options::default() };
    let error = Extractor::from_checkpoint(checkpoint, &options).err().unwrap();
    assert!(error.kind() == ErrorKind::InvalidInput && threads() == before, "{error}");
}
