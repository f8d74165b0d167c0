//! What takes long: many threads, many calls, and how soon a call ends that is cancelled. `just full` runs it.
#![cfg(feature = "embedded")]

use std::time::{Duration, Instant};

use ampoule::{CancelToken, ErrorKind, Extractor, Options};

/// Pages that the process holds, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "a minute"]
fn eighty_thousand_calls_of_eight_threads_answer_alike_in_flat_memory() {
    let texts = [
        "Started on lisinopril for hypertension; developed angioedema.",
        "",
        "Naloxone reverses the antihypertensive effect of clonidine. The pain was gone.",
        "No known allergies.",
    ];
    for threads in [1, 2] {
        let extractor = Extractor::embedded(&Options { threads, ..Options::default() }).unwrap();
        let expected: Vec<_> = texts.iter().map(|text| extractor.extract(text).unwrap()).collect();
        let calls = |count: usize| {
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let (extractor, expected) = (&extractor, &expected);
                    scope.spawn(move || {
                        for call in 0..count {
                            let i = (call + thread) % texts.len();
                            assert_eq!(extractor.extract(texts[i]).unwrap(), expected[i], "{threads} threads");
                        }
                    });
                }
            });
        };
        calls(1_000);
        let before = resident();
        calls(9_000);
        let after = resident();
        println!("{threads} threads: {before} bytes after 8,000 calls, {after} after 80,000");
        assert!(after <= before + (2 << 20), "{threads} threads: {before} and {after} bytes");
    }
}

#[test]
#[ignore = "its times are the machine's"]
fn a_cancelled_call_ends_within_twenty_milliseconds() {
    let cancel = CancelToken::new();
    let options = Options { threads: 1, cancel: Some(cancel.clone()), ..Options::default() };
    let extractor = Extractor::embedded(&options).unwrap();
    let note =
        "The patient was given aspirin, naloxone and lisinopril for the pain of her angioedema.\n".repeat(40_000);
    let mut took: Vec<Duration> = (0..40)
        .map(|i| {
            cancel.reset();
            std::thread::scope(|scope| {
                let canceller = scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(20 + 3 * i));
                    cancel.cancel();
                    Instant::now()
                });
                let error = extractor.extract(&note).unwrap_err();
                let end = Instant::now();
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                end.saturating_duration_since(canceller.join().unwrap())
            })
        })
        .collect();
    took.sort();
    println!("after {:?} in the middle, {:?} at most", took[20], took[39]);
    // The median and not the worst: others may have the processor for a while.
    assert!(took[20] <= Duration::from_millis(20), "{took:?}");
    cancel.reset();
    assert!(!extractor.extract("Started on lisinopril.").unwrap().is_empty());
}
