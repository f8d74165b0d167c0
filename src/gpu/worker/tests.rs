//! Devices that fail in every way that is known of phones', each a real model that one thing is done to.

use std::future::ready;
use std::sync::Barrier;
use std::sync::atomic::AtomicU32;

use burn::tensor::Device as BurnDevice;

use super::super::demand::width;
use super::super::proven::{Compute, LENGTHS, meaningless};
use super::*;
use crate::bundle::Golden;
use crate::kernels::Answer;
use crate::model::{HostTensor, Model, ModelConfig, Task, Weights};
use crate::options::Instant;

/// What goes wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Every answer is off.
    AtOpen,
    /// From this call of the device on.
    From(u32),
    /// For sequences of this length.
    OfLength(usize),
    Nan(u32),
    Zeros(u32),
    Huge(u32),
    /// One value of each answer.
    Lane,
    Panic(u32),
    Lost(u32),
    Hang(u32),
    NoLoad,
}

fn config() -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "bert", "architectures": ["BertForTokenClassification"], "vocab_size": 60, "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 200,
    });
    let mut config = ModelConfig::from_json(&json).unwrap();
    config.task = Task::TokenClassification;
    config.id2label = ["O", "B-X", "I-X"].map(str::to_owned).to_vec();
    config
}

fn weights(config: &ModelConfig) -> Weights {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product()).map(|_| next()).collect();
        (name, HostTensor { shape, data })
    };
    Weights(config.tensors().into_iter().map(tensor).collect())
}

/// What a device gives of a batch.
fn computed(compute: &Compute, batch: &Batch) -> Result<Vec<Vec<f32>>> {
    block_on(compute(batch, Output::Logits, &mut || Ok(()))?)
}

/// What the model answers, on the processor.
fn right(config: &ModelConfig) -> Box<Compute> {
    let device = BurnDevice::flex();
    let model = Model::load(config, &mut weights(config), &device).unwrap();
    Box::new(move |batch, output, check| {
        let outputs = crate::opened::composed(&model, &device, batch, output, check);
        outputs.map(|outputs| -> Answer { Box::pin(ready(Ok(outputs))) })
    })
}

fn golden(config: &ModelConfig) -> Golden {
    let mut golden = Golden::unanswered(config, crate::bundle::Precision::F32);
    let right = right(config);
    for case in &mut golden.cases {
        let batch = Batch::new(&[&case.ids], config.pad_token_id);
        case.floats = computed(&right, &batch).unwrap().remove(0);
    }
    golden
}

fn faulty(config: &ModelConfig, fault: Fault) -> Box<Compute> {
    let (right, calls) = (right(config), AtomicU32::new(0));
    Box::new(move |batch, output, check| {
        let calls = calls.fetch_add(1, Ordering::Relaxed) + 1;
        match fault {
            Fault::Panic(from) if calls >= from => panic!("a driver's words"),
            Fault::Lost(from) if calls >= from => return Err(Error::internal("device lost")),
            // As long as no test waits.
            Fault::Hang(from) if calls >= from => std::thread::sleep(Duration::from_secs(10)),
            _ => {}
        }
        let mut outputs = block_on(right(batch, output, check)?)?;
        let mut change = |f: fn(usize, f32) -> f32| {
            outputs.iter_mut().for_each(|values| values.iter_mut().enumerate().for_each(|(i, x)| *x = f(i, *x)));
        };
        match fault {
            Fault::AtOpen => change(|_, x| x + 0.1),
            Fault::From(from) if calls >= from => change(|_, x| x + 0.1),
            Fault::OfLength(length) if batch.dims()[1] == length => change(|_, x| 0.9 * x),
            Fault::Nan(from) if calls >= from => change(|i, x| if i == 1 { f32::NAN } else { x }),
            Fault::Zeros(from) if calls >= from => change(|_, _| 0.0),
            Fault::Huge(from) if calls >= from => change(|_, x| 1e6 * x),
            Fault::Lane => change(|i, x| if i == 5 { -x } else { x }),
            _ => {}
        }
        Ok(Box::pin(ready(Ok(outputs))))
    })
}

/// Batches of the golden cases: each alone, all together, and each again.
const PROOF: u32 = 9;

fn start_with(fault: Fault, change: impl FnOnce(&mut Plan)) -> Gpu {
    let config = config();
    let load = move || match fault {
        Fault::NoLoad => Err(Error::internal("out of memory")),
        fault => Ok(faulty(&config, fault)),
    };
    start_loading(Box::new(load), |plan| {
        plan.patience = Duration::from_secs(if matches!(fault, Fault::Hang(_)) { 2 } else { 60 });
        change(plan);
    })
}

fn start_loading(load: Box<Load>, change: impl FnOnce(&mut Plan)) -> Gpu {
    let config = config();
    let mut plan = Plan {
        adapter: "a device".to_owned(),
        golden: Some(golden(&config)),
        config,
        reference: Reference::Floats,
        cpu: None,
        from_tokens: None,
        check_every: 4,
        patience: Duration::from_secs(60),
        buffer_bytes: u64::MAX,
        window_tokens: 200,
        is_lost: Arc::default(),
        clean: Box::new(|| ()),
    };
    change(&mut plan);
    Gpu::start(plan, load).unwrap()
}

fn start(fault: Fault) -> Gpu {
    start_with(fault, |_| ())
}

fn text(tokens: usize) -> Batch {
    meaningless(&config(), tokens)
}

fn expected(tokens: usize) -> Vec<Vec<f32>> {
    computed(&right(&config()), &text(tokens)).unwrap()
}

fn near(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), expected.iter().map(Vec::len).collect::<Vec<_>>());
    assert!(found.iter().flatten().zip(expected.iter().flatten()).all(|(f, e)| (f - e).abs() < 1e-4));
}

#[test]
fn a_sound_device_answers_any_shape_and_says_so() {
    let gpu = start(Fault::None);
    gpu.wait().unwrap();
    for tokens in [1, 3, 16, 17, 130, 200] {
        near(&gpu.outputs(&text(tokens), Output::Logits, &Limit::NONE).unwrap(), &expected(tokens));
    }
    let three = Batch::new(&[vec![1u32, 2, 3], vec![4], vec![5, 6]], 0);
    let found = gpu.outputs(&three, Output::Logits, &Limit::NONE).unwrap();
    near(&found, &computed(&right(&config()), &three).unwrap());
    let report = gpu.report();
    // Of seven batches, the fourth brought a proof.
    assert_eq!((report.state, report.unverified_batches, &report.reason), (GpuState::Ready, 3, &None));
    assert_eq!(report.computed_tokens, 1 + 3 + 16 + 17 + 130 + 200 + 6);
    assert_eq!((report.self_check.unwrap().cases, gpu.reference()), (4, Reference::Floats));
    assert_eq!((report.warm_up.done, report.warm_up.of), (PROOF as usize, PROOF as usize));
}

#[test]
fn a_device_that_does_not_prove_itself_is_not_opened() {
    for (fault, reason) in [
        (Fault::AtOpen, "golden case 0"),
        (Fault::Lane, "golden case 0"),
        // The second of the same: what drivers get wrong when memory is used again.
        (Fault::From(PROOF - 1), "golden case 1"),
        (Fault::OfLength(33), "golden case 2"),
        (Fault::OfLength(130), "golden case 3"),
        (Fault::Nan(3), "found NaN"),
        (Fault::Zeros(5), "4 at once"),
        (Fault::Panic(1), "its driver or library panicked"),
        (Fault::Lost(2), "device lost"),
        (Fault::NoLoad, "out of memory"),
    ] {
        let gpu = start(fault);
        let error = gpu.wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeviceUnavailable, "{fault:?}");
        assert!(error.to_string().contains(reason), "{fault:?}: {error}");
        assert!(!error.to_string().contains("a driver's words"));
        let report = gpu.report();
        assert_eq!((report.state, report.computed_tokens), (GpuState::Failed, 0));
        let again = gpu.outputs(&text(5), Output::Logits, &Limit::NONE).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::DeviceUnavailable);
    }
}

#[test]
fn what_goes_wrong_later_ends_the_call_and_every_later_one() {
    for (fault, reason) in [
        (Fault::Nan(PROOF + 3), "not finite"),
        (Fault::Zeros(PROOF + 3), "zeros alone"),
        (Fault::Huge(PROOF + 3), "beyond all that the model says"),
        (Fault::Panic(PROOF + 3), "panicked"),
        (Fault::Lost(PROOF + 3), "device lost"),
        (Fault::Hang(PROOF + 3), "did not answer in time"),
    ] {
        let gpu = start(fault);
        gpu.wait().unwrap();
        for _ in 0..2 {
            near(&gpu.outputs(&text(20), Output::Logits, &Limit::NONE).unwrap(), &expected(20));
        }
        for _ in 0..2 {
            let error = gpu.outputs(&text(20), Output::Logits, &Limit::NONE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeviceUnavailable, "{fault:?}");
            assert!(error.to_string().contains(reason), "{fault:?}: {error}");
        }
        assert_eq!(gpu.report().unverified_batches, 2, "{fault:?}");
    }
}

/// Else callers who wait for less than that takes would leave it unproved for ever, and each later call as long.
#[test]
fn a_proof_that_was_begun_ends_though_its_caller_is_gone() {
    let (config_of, cancel, is_gone) = (config(), crate::CancelToken::new(), Arc::new(AtomicBool::new(false)));
    let (give_up, gone, batches) = (cancel.clone(), is_gone.clone(), AtomicU32::new(0));
    let load: Box<Load> = Box::new(move || {
        let compute = right(&config_of);
        Ok(Box::new(move |batch: &Batch, output, check: &mut dyn FnMut() -> Result<()>| {
            // The first of the proof that the fourth call brings.
            if batches.fetch_add(1, Ordering::Relaxed) == PROOF + 4 {
                give_up.cancel();
                while !gone.load(Ordering::Relaxed) {
                    std::thread::sleep(LOOK);
                }
            }
            compute(batch, output, check)
        }))
    });
    let gpu = start_loading(load, |_| ());
    gpu.wait().unwrap();
    let limits = crate::options::Limits::new(Some(cancel), None);
    for _ in 0..3 {
        gpu.outputs(&text(20), Output::Logits, &limits.begin()).unwrap();
    }
    assert_eq!(gpu.outputs(&text(20), Output::Logits, &limits.begin()).unwrap_err().kind(), ErrorKind::Cancelled);
    is_gone.store(true, Ordering::Relaxed);
    gpu.outputs(&text(20), Output::Logits, &Limit::NONE).unwrap();
    assert_eq!((gpu.report().state, gpu.report().unverified_batches), (GpuState::Ready, 1));
}

#[test]
fn without_golden_cases_nothing_vouches_for_any_batch() {
    let gpu = start_with(Fault::None, |plan| plan.golden = None);
    gpu.wait().unwrap();
    for _ in 0..6 {
        gpu.outputs(&text(20), Output::Logits, &Limit::NONE).unwrap();
    }
    assert_eq!((gpu.report().self_check, gpu.report().unverified_batches), (None, 6));
}

/// Wrong numbers that look right: only the golden cases can tell.
#[test]
fn plausible_wrong_answers_are_found_by_the_next_proof_and_counted() {
    let gpu = start(Fault::From(PROOF + 4 + PROOF + 3));
    gpu.wait().unwrap();
    // Proved again after the fourth; the two after that are right, the seventh is wrong, and the eighth brings the next proof.
    for _ in 0..7 {
        gpu.outputs(&text(20), Output::Logits, &Limit::NONE).unwrap();
    }
    let error = gpu.outputs(&text(20), Output::Logits, &Limit::NONE).unwrap_err();
    assert!(error.to_string().contains("golden case 0"), "{error}");
    assert_eq!(gpu.report().unverified_batches, 4 - 1);
}

#[test]
fn a_hung_device_keeps_no_deadline_waiting() {
    let gpu = start_with(Fault::Hang(PROOF + 1), |plan| plan.from_tokens = Some(1));
    gpu.wait().unwrap();
    assert!(gpu.takes(&text(20)));
    let cancel = crate::CancelToken::new();
    let limits = crate::options::Limits::new(Some(cancel.clone()), Some(Duration::from_millis(50)));
    let begin = Instant::now();
    let error = gpu.outputs(&text(20), Output::Logits, &limits.begin()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(begin.elapsed() < Duration::from_secs(10));
    cancel.cancel();
    assert_eq!(gpu.outputs(&text(20), Output::Logits, &limits.begin()).unwrap_err().kind(), ErrorKind::Cancelled);
    // No caller waited as long as it may take, and yet it is found out: the processor answers then.
    while gpu.takes(&text(20)) {
        assert!(begin.elapsed() < Duration::from_secs(9));
        std::thread::sleep(LOOK);
    }
    let report = gpu.report();
    assert_eq!((report.state, report.reason.as_deref()), (GpuState::Failed, Some("it did not answer in time")));
}

#[test]
fn the_processor_answers_until_the_gpu_has_proved_itself() {
    let gate = Arc::new(Barrier::new(2));
    let (begun, config) = (gate.clone(), config());
    let load = move || {
        begun.wait();
        Ok(faulty(&config, Fault::None))
    };
    let gpu = start_loading(Box::new(load), |plan| plan.cpu = Some(Box::new(|_| Ok(Duration::from_secs(1)))));
    assert!(!gpu.takes(&text(200)));
    assert_eq!(gpu.report().state, GpuState::Warming);
    let soon = crate::options::Limits::new(None, Some(Duration::from_millis(20)));
    assert_eq!(gpu.wait_beyond(0, &soon.begin()).unwrap_err().kind(), ErrorKind::Cancelled);
    gate.wait();
    // Nine batches prove it, and two of each length compile and time it.
    let mut done = 0;
    let report = loop {
        let report = gpu.wait_beyond(done, &Limit::NONE).unwrap();
        assert!(report.warm_up.of == PROOF as usize + 2 * 4 && report.warm_up.done <= report.warm_up.of);
        if report.state == GpuState::Ready {
            break report;
        }
        assert!(report.warm_up.done > done);
        done = report.warm_up.done;
    };
    assert_eq!(report.warm_up.done, report.warm_up.of);
    assert_eq!(report.measured.iter().map(|time| time.tokens).collect::<Vec<_>>(), LENGTHS[..4]);
    assert_eq!(report.from_tokens, Some(16));
    assert!(gpu.takes(&text(16)) && !gpu.takes(&text(15)));
}

#[test]
fn a_gpu_that_is_slower_or_pinned_takes_what_it_should() {
    let with = |from_tokens, cpu| {
        let gpu = start_with(Fault::None, |plan| {
            plan.from_tokens = from_tokens;
            plan.cpu = Some(Box::new(move |_| Ok(cpu)));
        });
        gpu.wait().unwrap();
        gpu
    };
    let slower = with(None, Duration::ZERO);
    assert_eq!(slower.report().from_tokens, None);
    assert!(!slower.takes(&text(200)));
    let short = start_with(Fault::None, |plan| {
        plan.window_tokens = 9;
        plan.cpu = Some(Box::new(|_| Ok(Duration::from_secs(1))));
    });
    short.wait().unwrap();
    assert_eq!(short.report().from_tokens, Some(9));
    let pinned = with(Some(100), Duration::ZERO);
    assert!(pinned.takes(&text(100)) && !pinned.takes(&text(99)));
    assert!(pinned.report().measured.is_empty());
}

#[test]
fn threads_end_with_their_models() {
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let load = Arc::new(());
    for _ in 0..20 {
        let (held, config) = (load.clone(), config());
        let load = move || -> Result<Box<Compute>> {
            let compute = faulty(&config, Fault::None);
            Ok(Box::new(move |batch, output, check| {
                let _held = &held;
                compute(batch, output, check)
            }))
        };
        start_loading(Box::new(load), |_| ()).wait().unwrap();
    }
    let end = Instant::now() + Duration::from_secs(20);
    while Arc::strong_count(&load) > 1 {
        assert!(Instant::now() < end, "{} models are there, {} threads", Arc::strong_count(&load), threads());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_batch_is_computed_in_parts_that_fit_a_buffer() {
    let config = config();
    let sequences: Vec<Vec<u32>> =
        (0..21).map(|i| (0..5 + i % 12).map(|j| ((i * 7 + j) % 60) as u32).collect()).collect();
    let batch = Batch::new(&sequences, config.pad_token_id);
    let whole = computed(&right(&config), &batch).unwrap();
    // Bytes of so many sequences of 16 tokens.
    for rows in [1, 2, 3, 8, 13, 100] {
        let most = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (seen, config_of) = (most.clone(), config.clone());
        let watched: Box<Load> = Box::new(move || {
            let compute = right(&config_of);
            Ok(Box::new(move |batch: &Batch, output, check: &mut dyn FnMut() -> Result<()>| {
                seen.fetch_max(batch.dims()[0], Ordering::Relaxed);
                compute(batch, output, check)
            }))
        });
        let gpu = start_loading(watched, |plan| {
            (plan.buffer_bytes, plan.golden) = (rows as u64 * 4 * 16 * width(&config), None);
        });
        gpu.wait().unwrap();
        let found = gpu.outputs(&batch, Output::Logits, &Limit::NONE).unwrap();
        let largest =
            found.iter().flatten().zip(whole.iter().flatten()).map(|(f, w)| (f - w).abs()).fold(0f32, f32::max);
        assert!(found.len() == whole.len() && largest < 1e-5, "{rows} rows: {largest}");
        assert!(most.load(Ordering::Relaxed) <= rows.min(21), "{rows} rows: {most:?}");
    }
}

#[test]
fn a_device_is_lost_for_others_where_it_fails_and_not_where_a_model_does() {
    for (fault, is_lost) in [
        (Fault::None, false),
        (Fault::AtOpen, false),
        (Fault::Nan(PROOF + 1), false),
        (Fault::NoLoad, true),
        (Fault::Panic(3), true),
        (Fault::Lost(PROOF + 1), true),
        (Fault::Hang(PROOF + 1), true),
    ] {
        let device = Arc::new(AtomicBool::new(false));
        let on_it = |plan: &mut Plan| plan.is_lost = device.clone();
        let other = start_with(Fault::None, on_it);
        other.wait().unwrap();
        let gpu = start_with(fault, on_it);
        let _ = gpu.wait().and_then(|()| gpu.outputs(&text(9), Output::Logits, &Limit::NONE).map(|_| ()));
        assert_eq!(device.load(Ordering::Relaxed), is_lost, "{fault:?}");
        match other.outputs(&text(9), Output::Logits, &Limit::NONE) {
            Ok(_) => assert!(!is_lost, "{fault:?}"),
            Err(error) => assert!(is_lost && error.to_string().contains("for another model"), "{fault:?}: {error}"),
        }
    }
}

#[test]
fn a_model_that_is_closed_leaves_its_device_clean_and_in_use() {
    let (left, device) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    for is_ready in [false, true] {
        left.store(false, Ordering::Relaxed);
        let (seen, lost) = (left.clone(), device.clone());
        let gpu = start_with(Fault::None, move |plan| {
            (plan.is_lost, plan.clean) = (lost, Box::new(move || seen.store(true, Ordering::Relaxed)));
        });
        if is_ready {
            gpu.wait().unwrap();
        }
        drop(gpu);
        let end = Instant::now() + Duration::from_secs(60);
        while !left.load(Ordering::Relaxed) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        assert!(left.load(Ordering::Relaxed) && !device.load(Ordering::Relaxed), "ready: {is_ready}");
    }
}

/// As one whose process was stopped for longer than its patience.
#[test]
fn a_device_that_is_late_when_it_is_first_looked_at_is_not_lost() {
    let config_of = config();
    let slow: Box<Load> = Box::new(move || {
        let compute = right(&config_of);
        Ok(Box::new(move |batch: &Batch, output, check: &mut dyn FnMut() -> Result<()>| {
            std::thread::sleep(Duration::from_millis(150));
            compute(batch, output, check)
        }))
    });
    let gpu = start_loading(slow, |plan| plan.patience = Duration::from_millis(20));
    gpu.wait().unwrap();
    near(&gpu.outputs(&text(9), Output::Logits, &Limit::NONE).unwrap(), &expected(9));
    assert_eq!(gpu.report().state, GpuState::Ready);
}
