//! The runtime on small random models: windows, batches, threads, cancelling, and what it never says.
#![cfg(feature = "checkpoint")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use ampoule::bundle::{Bundle, Load};
use ampoule::model::ModelType;
use ampoule::{CancelToken, Checkpoint, Classifier, Embedder, Entity, ErrorKind, Extractor, LabelScore, Options};

const CANARY: &str = "zyxquell";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

fn options() -> Options {
    Options { threads: 1, ..Options::default() }
}

/// A long note in the letters that the fixtures' vocabularies know.
fn note(words: usize) -> String {
    let known = ["the", "pain", "of", "aspirin", "and", "a", "naloxone", ",", "in", "patient", "."];
    let mut state = 7u32;
    let mut text = String::new();
    for _ in 0..words {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(known[(state >> 16) as usize % known.len()]);
        text.push(' ');
    }
    text
}

/// A random model that finds entities of both labels.
fn eager() -> Checkpoint {
    let mut checkpoint = Checkpoint::open(fixture("bert-token")).unwrap();
    for (logit, less) in
        checkpoint.weights.0.get_mut("classifier.bias").unwrap().data.iter_mut().zip([1.5, 0.0, 0.5, 0.0, 0.5])
    {
        *logit -= less;
    }
    checkpoint
}

/// A model whose logits depend on the token alone: no positions, and nothing added by any layer.
fn token_only() -> Checkpoint {
    let mut checkpoint = Checkpoint::open(fixture("bert-token")).unwrap();
    for (name, tensor) in &mut checkpoint.weights.0 {
        let adds = name.contains("attention.output.dense") || (name.contains("output.dense") && name.contains("layer"));
        if adds || name.contains("position_embeddings") {
            tensor.data.fill(0.0);
        }
    }
    checkpoint
}

#[test]
fn windows_change_nothing_where_only_the_token_counts() {
    let text = note(2000);
    let mut expected: Option<Vec<Entity>> = None;
    for max_window_tokens in [0, 40, 17, 5, 3] {
        for max_batch_tokens in [1, 300, 5000] {
            let options = Options { max_window_tokens, max_batch_tokens, ..options() };
            let found = Extractor::from_checkpoint(token_only(), &options).unwrap().extract(&text).unwrap();
            match &expected {
                None => {
                    assert!(found.len() > 50, "{}", found.len());
                    expected = Some(found);
                }
                Some(expected) => {
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(expected) {
                        assert_eq!((&found.label, &found.range), (&expected.label, &expected.range));
                        assert!((found.score - expected.score).abs() < 1e-6);
                    }
                }
            }
        }
    }
}

#[test]
fn a_temperature_changes_scores_alone_and_has_to_be_positive() {
    let text = note(300);
    let place = |found: &[Entity]| found.iter().map(|e| (e.label.clone(), e.range.clone())).collect::<Vec<_>>();
    let open = |own: f32, asked: Option<f32>| {
        let checkpoint = Checkpoint { temperature: own, ..eager() };
        Extractor::from_checkpoint(checkpoint, &Options { temperature: asked, ..options() }).unwrap()
    };
    let plain = open(1.0, None);
    let (expected, words) = (plain.extract(&text).unwrap(), plain.word_logits(&[&text]).unwrap().remove(0));
    assert!(expected.len() > 20);
    assert_eq!(plain.decode(&text, &words, 1.0).unwrap(), expected);
    assert_eq!(open(2.0, Some(1.0)).extract(&text).unwrap(), expected);
    for (own, asked, temperature) in [(2.5, None, 2.5), (1.0, Some(0.5), 0.5), (2.5, Some(7.0), 7.0)] {
        let extractor = open(own, asked);
        assert_eq!(extractor.temperature(), temperature);
        assert_eq!(extractor.word_logits(&[&text]).unwrap().remove(0), words, "undivided");
        let found = extractor.extract(&text).unwrap();
        assert_eq!(place(&found), place(&expected));
        assert!(found.iter().zip(&expected).all(|(f, e)| f.score != e.score));
        assert_eq!(plain.decode(&text, &words, temperature).unwrap(), found);
    }

    let classify = |temperature| {
        let options = Options { temperature, ..options() };
        Classifier::open(fixture("bert-sequence"), &options).unwrap()
    };
    let plain = classify(None);
    let (expected, logits) = (plain.classify(&text).unwrap(), plain.logits(&[&text]).unwrap().remove(0));
    assert_eq!(plain.scores(&logits, 1.0).unwrap(), expected);
    for temperature in [0.5, 3.0, f32::MIN_POSITIVE, f32::MAX] {
        let found = classify(Some(temperature)).classify(&text).unwrap();
        assert_eq!(plain.scores(&logits, temperature).unwrap(), found);
        assert!(found.iter().zip(&expected).all(|(f, e)| f.label == e.label), "the order is the same");
        let by_label = |label: &str| plain.labels().iter().position(|l| **l == *label).unwrap();
        for LabelScore { label, score } in found {
            let at = |i: usize| f64::from(logits[i]) / f64::from(temperature);
            let parts: f64 = (0..logits.len()).map(|i| (at(i) - at(by_label(&label))).exp()).sum();
            assert!((f64::from(score) - 1.0 / parts).abs() < 1e-6);
        }
    }

    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        let options = Options { temperature: Some(temperature), ..options() };
        for error in [
            Extractor::open(fixture("bert-token"), &options).err().unwrap(),
            Classifier::open(fixture("bert-sequence"), &options).err().unwrap(),
            plain.scores(&logits, temperature).unwrap_err(),
            open(1.0, None).decode(&text, &words, temperature).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("temperature: expected a positive normal number"), "{error}");
        }
    }
    assert!(plain.scores(&logits[1..], 1.0).is_err() && plain.scores(&[f32::NAN, 0.0], 1.0).is_err());
    let error = open(1.0, None).decode("the", &words, 1.0).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("the words are not"), "{error}");
}

#[test]
fn batches_streams_and_threads_give_the_answers_of_single_calls() {
    let texts: Vec<String> = [0, 1, 3, 40, 300, 7, 0, 120].into_iter().map(note).collect();
    let extractor = Extractor::open(fixture("bert-token"), &options()).unwrap();
    let single: Vec<Vec<Entity>> = texts.iter().map(|t| extractor.extract(t).unwrap()).collect();
    let same = |found: &[Entity], expected: &[Entity]| {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!(f.label == e.label && f.range == e.range && (f.score - e.score).abs() < 1e-5);
        }
    };
    for (found, expected) in extractor.extract_batch(&texts).unwrap().iter().zip(&single) {
        same(found, expected);
    }
    for ((text, words), expected) in texts.iter().zip(extractor.word_logits(&texts).unwrap()).zip(&single) {
        assert_eq!(words.len(), text.split_whitespace().count());
        same(&extractor.decode(text, &words, 1.0).unwrap(), expected);
    }
    let mut streamed = Vec::new();
    extractor
        .extract_each(&texts[4], |entity| {
            streamed.push(entity);
            ControlFlow::Continue(())
        })
        .unwrap();
    same(&streamed, &single[4]);
    let mut first = 0;
    extractor
        .extract_each(&texts[4], |_| {
            first += 1;
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(first, 1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (text, expected) in texts.iter().zip(&single) {
                    same(&extractor.extract(text).unwrap(), expected);
                }
            });
        }
    });
    for threads in [2, 4] {
        let extractor = Extractor::open(fixture("bert-token"), &Options { threads, ..options() }).unwrap();
        for (text, expected) in texts.iter().zip(&single) {
            same(&extractor.extract(text).unwrap(), expected);
        }
    }
}

#[test]
fn every_kernel_finds_the_same_and_an_unknown_one_is_an_error() {
    let text = note(500);
    let found = |kernel: Option<&str>| {
        let options = Options { kernel: kernel.map(str::to_owned), ..options() };
        let extractor = Extractor::from_checkpoint(eager(), &options)?;
        if let Some(kernel) = kernel {
            assert_eq!(extractor.device().name, format!("kernel {kernel}"));
        }
        extractor.extract(&text)
    };
    let expected = found(None).unwrap();
    assert!(expected.len() > 20);
    for kernel in ampoule::kernel_names() {
        let spans =
            |entities: &[Entity]| entities.iter().map(|e| (e.label.clone(), e.range.clone())).collect::<Vec<_>>();
        let found = found(Some(kernel)).unwrap();
        assert_eq!(spans(&found), spans(&expected), "{kernel}");
        assert!(found.iter().zip(&expected).all(|(a, b)| (a.score - b.score).abs() <= 1e-4), "{kernel}");
    }
    let names = ampoule::kernel_names();
    let default = Extractor::from_checkpoint(eager(), &options()).unwrap().device().name.clone();
    assert_eq!(default, format!("kernel {}", names[0]));
    assert_eq!(names.contains(&"flex"), cfg!(feature = "flex"), "{names:?}");
    assert!(names[0] != "scalar", "{names:?}");
    let error = found(Some("abacus")).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("scalar"), "{error}");
}

#[test]
fn autotune_uses_the_kernel_that_it_measured_as_the_fastest() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/clinical-en.int8.safetensors");
    let open = |is_bundle: bool, options: &Options| match is_bundle {
        true => Extractor::open(&bundle, options),
        false => Extractor::from_checkpoint(eager(), options),
    };
    let names = ampoule::kernel_names();
    let text = note(50);
    for is_bundle in [false, true] {
        let tuned = open(is_bundle, &Options { autotune: true, ..options() }).unwrap();
        let report = tuned.device();
        let measured: Vec<&str> = report.measured.iter().map(|time| &*time.kernel).collect();
        let chosen_from = |name: &&str| !["flex", "scalar"].contains(name);
        assert_eq!(measured, names.iter().copied().filter(chosen_from).collect::<Vec<_>>());
        let fastest = report.measured.iter().map(|time| time.microseconds).min();
        let used = report.measured.iter().find(|time| Some(&time.kernel) == report.kernel.as_ref());
        assert_eq!(used.map(|time| time.microseconds), fastest);
        // What was measured can be pinned, to the same answer.
        let pinned = open(is_bundle, &Options { kernel: report.kernel.clone(), ..options() }).unwrap();
        assert!(pinned.device().measured.is_empty());
        assert_eq!(pinned.extract(&text).unwrap(), tuned.extract(&text).unwrap());
    }
    let both = Options { autotune: true, kernel: Some("flex".to_owned()), ..options() };
    let error = Extractor::from_checkpoint(eager(), &both).map(|_| ()).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("measuring"), "{error}");
    let fallback = Options { autotune: true, device: ampoule::Device::GpuOrCpu, ..options() };
    let report = Extractor::from_checkpoint(eager(), &fallback).unwrap().device().clone();
    assert!(report.computes_on == ampoule::Device::Gpu || report.reason.contains("GPU"), "{report:?}");
}

#[test]
fn labels_and_vectors_are_what_they_should_be() {
    let single = Classifier::open(fixture("bert-sequence"), &options()).unwrap();
    let multi = Classifier::open(fixture("bert-multi-label"), &options()).unwrap();
    for text in ["", "the pain of aspirin", &note(300)] {
        let scores = single.classify(text).unwrap();
        assert_eq!(scores.len(), single.labels().len());
        assert!((scores.iter().map(|l| l.score).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(scores.windows(2).all(|pair| pair[0].score >= pair[1].score));
        assert!(multi.classify(text).unwrap().iter().all(|l| (0.0..=1.0).contains(&l.score)));
    }
    let embedder = Embedder::open(fixture("bert-encoder"), &options()).unwrap();
    let texts = ["", "the pain", "aspirin", &note(200)];
    for (text, batched) in texts.iter().zip(embedder.embed_batch(&texts).unwrap()) {
        let alone = embedder.embed(text).unwrap();
        assert_eq!(alone.len(), embedder.width());
        assert!((alone.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(alone.iter().zip(&batched).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[test]
fn scores_below_the_asked_for_are_left_out_by_label() {
    let text = note(300);
    let all = Extractor::from_checkpoint(eager(), &options()).unwrap().extract(&text).unwrap();
    let labels: Vec<&str> = all.iter().map(|e| &*e.label).collect();
    assert!(labels.contains(&"Chemical") && labels.contains(&"Disease"));
    let strict = Options { min_score_by_label: [("Disease".to_owned(), 1.0)].into(), ..options() };
    let found = Extractor::from_checkpoint(eager(), &strict).unwrap().extract(&text).unwrap();
    assert!(found.iter().all(|e| &*e.label == "Chemical"));
    assert_eq!(found.len(), labels.iter().filter(|l| **l == "Chemical").count());
    let wrong = Options { min_score_by_label: [("Dragon".to_owned(), 1.0)].into(), ..options() };
    let error = Extractor::open(fixture("bert-token"), &wrong).err().unwrap();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("Dragon"));
}

#[test]
fn a_cancelled_call_ends_and_leaves_the_model_usable() {
    let cancel = CancelToken::new();
    let with_token = Options { cancel: Some(cancel.clone()), ..options() };
    let extractor = Extractor::open(fixture("bert-token"), &with_token).unwrap();
    let expected = extractor.extract("the pain of aspirin").unwrap();
    let long = note(200_000);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| extractor.extract(&long));
        std::thread::sleep(Duration::from_millis(30));
        cancel.cancel();
        assert_eq!(call.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    });
    assert_eq!(extractor.extract("the pain").unwrap_err().kind(), ErrorKind::Cancelled);
    cancel.reset();
    assert_eq!(extractor.extract("the pain of aspirin").unwrap(), expected);

    let hurried = Options { deadline: Some(Duration::from_millis(20)), ..options() };
    let extractor = Extractor::open(fixture("bert-token"), &hurried).unwrap();
    assert_eq!(extractor.extract(&long).unwrap_err().kind(), ErrorKind::Cancelled);
}

/// All that was logged, at every level.
fn log() -> &'static Mutex<String> {
    static LOG: OnceLock<Mutex<String>> = OnceLock::new();
    LOG.get_or_init(Default::default)
}

struct Listener;

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }
    fn log(&self, record: &log::Record) {
        log().lock().unwrap().push_str(&format!("{} {}\n", record.target(), record.args()));
    }
    fn flush(&self) {}
}

#[test]
fn no_error_debug_or_log_holds_the_text_or_its_ids() {
    log::set_logger(&Listener).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let text = format!("{CANARY} {}", note(30_000));
    let mut said = String::new();
    for name in ["bert-token", "roberta-token", "distilbert-token", "electra-token"] {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let tokens = checkpoint.tokenizer.encode(&text).unwrap();
        said.push_str(&format!("{:?} {:?} {:?} ", &tokens[..3], checkpoint.tokenizer, checkpoint));
        assert!(checkpoint.config.model_type != ModelType::Bert || tokens.len() > 1000);
        let hurried = Options { deadline: Some(Duration::from_nanos(1)), ..options() };
        let extractor = Extractor::from_checkpoint(checkpoint.clone(), &hurried).unwrap();
        let error = extractor.extract(&text).unwrap_err();
        said.push_str(&format!("{error} {error:?} "));
        let wrong = Classifier::from_checkpoint(checkpoint.clone(), &options()).err().unwrap();
        said.push_str(&format!("{wrong} {wrong:?} "));
        // Weights that make every logit infinite.
        let mut unsound = checkpoint.clone();
        for name in ["classifier.weight", "classifier.bias"] {
            unsound.weights.0.get_mut(name).unwrap().data.fill(f32::MAX);
        }
        let error = Extractor::from_checkpoint(unsound, &options()).unwrap().extract(&text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        said.push_str(&format!("{error} {error:?} "));
        let ids: Vec<String> = tokens[..4].iter().map(|t| t.id.to_string()).collect();
        for ids in [ids.join(", "), ids.join(","), ids.join(" ")] {
            assert!(!said.contains(&ids), "{said}");
        }
    }
    said.push_str(&log().lock().unwrap());
    assert!(!said.contains(CANARY) && !said.contains("'z'"), "{said}");
}

#[test]
fn entities_that_share_a_letter_do_not_overlap() {
    let extractor = Extractor::from_checkpoint(eager(), &options()).unwrap();
    let mut most = 0;
    for joint in ["\u{93e}", "\u{301}", "\u{200d}"] {
        for words in 1..200 {
            let text = note(words).replace(' ', joint);
            let found = extractor.extract(&text).unwrap();
            most = most.max(found.len());
            assert!(found.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start), "{words} words");
            assert!(found.iter().all(|entity| text.get(entity.range.clone()).is_some_and(|s| !s.is_empty())));
        }
    }
    assert!(most > 1);
}

#[test]
fn weights_that_overflow_are_an_error_and_no_answer() {
    let huge = |name: &str| {
        let mut checkpoint = Checkpoint::open(fixture(name)).unwrap();
        for tensor in checkpoint.weights.0.values_mut() {
            tensor.data.iter_mut().for_each(|x| *x = x.signum() * 1e38);
        }
        checkpoint
    };
    let error = Classifier::from_checkpoint(huge("bert-sequence"), &options()).unwrap().classify("pain").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    for kernel in ampoule::kernel_names() {
        let options = Options { kernel: Some(kernel.to_owned()), ..options() };
        let embedder = Embedder::from_checkpoint(huge("bert-encoder"), &options).unwrap();
        let error = embedder.embed("pain").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        let error = embedder.hidden_states(&[[5, 6, 7]]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
    }
}

/// A copied bundle's values are looked at as they are taken; a mapped one's before.
#[test]
fn a_bundle_with_a_value_that_none_may_have_is_refused_however_it_is_opened() {
    let good =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/clinical-en.int8.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&good[8..header]).unwrap();
    for (name, value) in [
        ("encoder.layer.1.output.dense.weight", (-128i8).to_le_bytes().to_vec()),
        ("embeddings.word_embeddings.weight", (-128i8).to_le_bytes().to_vec()),
        ("encoder.layer.0.output.LayerNorm.weight", f32::NAN.to_le_bytes().to_vec()),
    ] {
        let end = header + json[name]["data_offsets"][1].as_u64().unwrap() as usize;
        let mut bad = good.clone();
        bad[end - value.len()..end].copy_from_slice(&value);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.safetensors");
        std::fs::write(&path, bad).unwrap();
        for load in [Load::Copy, Load::Map] {
            let error = Extractor::open(&path, &Options { load, ..options() }).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

#[test]
fn hidden_states_of_token_ids_are_those_of_any_company_and_kernel() {
    for name in ["bert-encoder", "roberta-encoder", "electra-encoder"] {
        let open = |kernel: &str, max_batch_tokens| {
            let options = Options { kernel: Some(kernel.to_owned()), max_batch_tokens, ..options() };
            Embedder::open(fixture(name), &options).unwrap()
        };
        let embedder = open("scalar", 1024);
        let (most, vocab) = (embedder.config().max_tokens(), embedder.config().vocab_size as u32);
        let sequences: Vec<Vec<u32>> =
            (0..40).map(|i| (0..1 + i * 7 % most).map(|j| (i * 13 + j * 5) as u32 % vocab).collect()).collect();
        let expected = embedder.hidden_states(&sequences).unwrap();
        assert!(expected.iter().zip(&sequences).all(|(states, ids)| states.len() == ids.len() * embedder.width()));
        for kernel in ampoule::kernel_names() {
            for max_batch_tokens in [1, 50, 100_000] {
                let found = open(kernel, max_batch_tokens).hidden_states(&sequences).unwrap();
                let pairs = found.iter().flatten().zip(expected.iter().flatten());
                let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(largest <= 1e-5, "{name}, {kernel}, {max_batch_tokens}: {largest:e}");
            }
        }
        let none: [[u32; 1]; 0] = [];
        assert!(embedder.hidden_states(&none).unwrap().is_empty());
        for bad in [vec![], vec![1; most + 1], vec![1, vocab]] {
            let error = embedder.hidden_states(&[vec![1], bad]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        assert!(embedder.hidden_states(&[vec![1; most]]).is_ok());
    }
}

#[test]
fn each_call_can_have_a_token_of_its_own() {
    let extractor = Extractor::open(fixture("bert-token"), &options()).unwrap();
    let classifier = Classifier::open(fixture("bert-sequence"), &options()).unwrap();
    let embedder = Embedder::open(fixture("bert-encoder"), &options()).unwrap();
    let (cancelled, free) = (CancelToken::new(), CancelToken::new());
    cancelled.cancel();
    let text = "the pain of aspirin";
    let calls = |token: &CancelToken, deadline: Option<Duration>| {
        [
            extractor.limited(Some(token.clone()), deadline).extract(text).err(),
            classifier.limited(Some(token.clone()), deadline).classify(text).err(),
            embedder.limited(Some(token.clone()), deadline).embed(text).err(),
        ]
    };
    let ended = |error: Option<ampoule::Error>| assert_eq!(error.unwrap().kind(), ErrorKind::Cancelled);
    calls(&cancelled, None).into_iter().for_each(ended);
    calls(&free, Some(Duration::ZERO)).into_iter().for_each(ended);
    calls(&cancelled.child(), None).into_iter().for_each(ended);
    let child = free.child();
    child.cancel();
    calls(&child, None).into_iter().for_each(ended);
    assert!(calls(&free, None).iter().all(Option::is_none) && calls(&free.child(), None).iter().all(Option::is_none));
    // The model's own token goes on to hold for those that have none.
    let with_token = Options { cancel: Some(cancelled), ..options() };
    let extractor = Extractor::open(fixture("bert-token"), &with_token).unwrap();
    assert!(extractor.extract(text).is_err() && extractor.limited(None, None).extract(text).is_ok());
}

#[test]
fn a_call_that_waits_for_its_turn_ends_when_it_is_told_and_one_within_another_has_none_to_wait_for() {
    let extractor = Extractor::open(fixture("bert-token"), &Options { threads: 1, ..options() }).unwrap();
    let (token, long) = (CancelToken::new(), note(20_000_000));
    std::thread::scope(|scope| {
        let call = scope.spawn(|| extractor.limited(Some(token.clone()), None).extract(&long));
        while extractor.report().computed_tokens == 0 {
            std::thread::yield_now();
        }
        let begun = std::time::Instant::now();
        let hurried = extractor.limited(None, Some(Duration::from_millis(30)));
        assert_eq!(hurried.extract("the pain").unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(begun.elapsed() < Duration::from_secs(2) && !call.is_finished());
        token.cancel();
        assert_eq!(call.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    });
    let (text, mut found) = (note(500), 0);
    extractor
        .extract_each(&text, |_| {
            found += extractor.extract(&text).unwrap().len();
            ControlFlow::Break(())
        })
        .unwrap();
    assert!(found > 0);
}

#[test]
fn what_is_kept_for_the_next_call_is_told_and_freed() {
    let extractor = Extractor::open(fixture("bert-token"), &options()).unwrap();
    let fresh = extractor.report();
    assert_eq!((fresh.workspace_bytes, fresh.computed_tokens), (0, 0));
    assert!(fresh.weight_bytes > 0 && fresh.device == *extractor.device());
    let text = note(500);
    let expected = extractor.extract(&text).unwrap();
    let used = extractor.report();
    // Burn keeps what it keeps by itself.
    let is_kept = used.device.kernel.as_deref() != Some("flex");
    assert!((used.workspace_bytes > 10_000) == is_kept && used.computed_tokens > 500, "{used:?}");
    extractor.trim();
    assert_eq!(extractor.report().workspace_bytes, 0);
    assert_eq!(extractor.extract(&text).unwrap(), expected);
    assert_eq!(extractor.report().computed_tokens, 2 * used.computed_tokens);
}

#[test]
fn a_bundle_in_another_file_is_opened_where_it_lies() {
    let bundle =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/clinical-en.int8.safetensors")).unwrap();
    let text = "Started on lisinopril for hypertension; developed angioedema.";
    let expected = Extractor::from_bytes(bundle.clone(), &options()).unwrap().extract(text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.apk");
    for offset in [4, 96] {
        std::fs::write(&path, [&vec![7; offset], bundle.as_slice(), b"the rest"].concat()).unwrap();
        for load in [Load::Copy, Load::Map] {
            let bundle = Bundle::open_at(&path, offset as u64, bundle.len() as u64, load, true).unwrap();
            let extractor = Extractor::from_bundle(bundle, &options()).unwrap();
            assert_eq!(extractor.extract(text).unwrap(), expected, "{offset}, {load:?}");
        }
    }
}
