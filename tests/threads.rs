//! A process has as many threads as it was told, and starts none of its own. Alone in its file, since it counts.
#![cfg(all(feature = "checkpoint", target_os = "linux"))]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use ampoule::{Checkpoint, Entity, ErrorKind, Extractor, Options};
use rayon::prelude::*;

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
        // One is the caller's.
        let started = count - 1;
        let now = settled(|names| ours(names) == started);
        assert_eq!((now.len(), ours(&now)), (before.len() + started, started), "{now:?}");
        assert_eq!(extractor.device().threads, count);
        drop(extractor);
        assert_eq!(settled(|names| names == before), before);
    }
    let spans = |i: usize| answers[i].iter().map(|e| (e.label.clone(), e.range.clone())).collect::<Vec<_>>();
    assert!(spans(0) == spans(1) && spans(1) == spans(2) && !spans(0).is_empty());
    let options = Options { threads: ampoule::MAX_THREADS + 1, ..Options::default() };
    let error = Extractor::from_checkpoint(checkpoint.clone(), &options).err().unwrap();
    assert!(error.kind() == ErrorKind::InvalidInput && threads() == before, "{error}");
    for threads in [1, 2, 4] {
        the_callers_thread_computes(checkpoint.clone(), threads);
    }
}

/// Of whoever calls: a small thread of a phone's, several at once, those of the caller's own pool, a call from within another.
fn the_callers_thread_computes(checkpoint: Checkpoint, threads: usize) {
    let open =
        |threads| Extractor::from_checkpoint(checkpoint.clone(), &Options { threads, ..Options::default() }).unwrap();
    let text = "the pain of aspirin , naloxone ".repeat(200);
    let (model, expected) = (open(threads), open(3).extract(&text).unwrap());
    let same = |found: &[Entity]| {
        found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| a.range == b.range)
    };

    let ours = |names: &[String]| names.iter().filter(|name| name.starts_with("ampoule-")).count();
    let (model, text, before) = (&model, text.as_str(), settled(|names| ours(names) == threads - 1));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let small = std::thread::Builder::new().stack_size(256 << 10);
            small.spawn_scoped(scope, || assert!(same(&model.extract(text).unwrap()))).unwrap();
        }
    });

    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| (0..12).into_par_iter().for_each(|_| assert!(same(&model.extract(text).unwrap()))));
    drop(pool);
    assert_eq!(settled(|names| names == before), before, "rayon's global pool was started");

    let (caller, mut nested) = (std::thread::current().id(), None);
    model
        .extract_each(text, |_| {
            assert_eq!(std::thread::current().id(), caller);
            nested.get_or_insert_with(|| model.extract(text).unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(same(&nested.unwrap()));
    // The turn was given back.
    assert!(same(&model.extract(text).unwrap()));
}
