//! A long text takes little more memory than a short one. Alone in its file, since it measures the process.
#![cfg(all(feature = "checkpoint", target_os = "linux"))]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ampoule::{Extractor, Options};

/// The most memory that the process held since the last call, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// `AMPOULE_MODEL_FILE` names another model than the fixture; with the embedded bundle it takes minutes.
#[test]
fn three_megabytes_take_at_most_32_more_than_three_kilobytes() {
    let fixture = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/bert-token");
    let model = std::env::var_os("AMPOULE_MODEL_FILE").map_or_else(fixture, PathBuf::from);
    let extractor = Extractor::open(model, &Options { threads: 1, ..Options::default() }).unwrap();
    let sentence = "The patient was given aspirin, naloxone and lisinopril for the pain of her angioedema.\n";
    let (short, long) = (sentence.repeat(3_000 / sentence.len()), sentence.repeat(3_000_000 / sentence.len()));
    let measure = |text: &str| {
        let mut entities = 0;
        peak();
        extractor
            .extract_each(text, |_| {
                entities += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        (entities, peak())
    };
    let (few, base) = measure(&short);
    let (many, most) = measure(&long);
    println!("{few} and {many} entities, {base} and {most} bytes");
    assert!(many >= few * 900, "{few} and {many} entities");
    assert!(most <= base + (32 << 20), "{base} and {most} bytes");
}
