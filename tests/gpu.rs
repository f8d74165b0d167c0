//! A GPU, hardware or software, gives what the processor gives.
#![cfg(all(feature = "wgpu", feature = "flex", feature = "embedded"))]

use std::path::Path;
use std::time::{Duration, Instant};

use ampoule::{Computed, Device, Entity, ErrorKind, Extractor, GpuLimits, GpuState, Options, gpu_adapters};

/// On whatever adapter there is.
fn on(device: Device) -> Options {
    Options { device, adapter: Some(String::new()), ..Options::default() }
}

/// No adapter, so nothing to test; said once a test.
fn is_missing() -> bool {
    let is_missing = gpu_adapters().is_empty();
    if is_missing {
        println!("skipped: there is no GPU, hardware or software");
    }
    is_missing
}

/// Sentences of the excerpts by which the embedded bundle's way is shown.
fn sentences(count: usize) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/produce/data");
    let mut sentences = Vec::new();
    for corpus in ["bc5cdr", "ncbi"] {
        let text = std::fs::read_to_string(folder.join(corpus).join("train.tsv")).unwrap();
        for block in text.split("\n\n") {
            let words: Vec<&str> = block.lines().filter_map(|line| line.split('\t').next()).collect();
            sentences.push(words.join(" "));
        }
    }
    sentences.retain(|sentence| !sentence.is_empty());
    assert!(sentences.len() >= count);
    let step = sentences.len() / count;
    sentences.into_iter().step_by(step).take(count).collect()
}

fn same(found: &[Vec<Entity>], expected: &[Vec<Entity>], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let places = |all: &[Entity]| all.iter().map(|e| (e.label.clone(), e.range.clone())).collect::<Vec<_>>();
        assert_eq!(places(found), places(expected), "sentence {i}");
        for (f, e) in found.iter().zip(expected) {
            assert!((f.score - e.score).abs() <= tolerance, "sentence {i}: {} and {}", f.score, e.score);
        }
    }
}

/// What weights widened to floats answer, as a GPU computes.
fn expected(sentences: &[String]) -> Vec<Vec<Entity>> {
    let options = Options { kernel: Some("flex".to_owned()), ..Options::default() };
    Extractor::embedded(&options).unwrap().extract_batch(sentences).unwrap()
}

#[test]
fn five_hundred_sentences_have_the_processors_entities() {
    if is_missing() {
        return;
    }
    let sentences = sentences(500);
    let extractor = Extractor::embedded(&on(Device::Gpu)).unwrap();
    let begin = Instant::now();
    let found = extractor.extract_batch(&sentences).unwrap();
    let report = extractor.report().gpu.unwrap();
    println!("{}: 500 sentences in {:.1?}, {report:?}", extractor.device().name, begin.elapsed());
    let expected = expected(&sentences);
    assert!(expected.iter().flatten().count() > 300);
    same(&found, &expected, 1e-3);
    assert!(report.state == GpuState::Ready && report.unverified_batches < 64, "{report:?}");
    assert_eq!(report.computed_tokens, extractor.report().computed_tokens);
    let check = report.self_check.unwrap();
    assert!(check.cases > 0 && check.largest_difference <= check.allowed / 10.0, "{check:?}");
    assert!(extractor.self_check().unwrap().unwrap().largest_difference <= check.allowed / 10.0);
}

#[test]
fn a_call_from_four_threads_at_once_gets_its_own_answer() {
    if is_missing() {
        return;
    }
    let sentences = sentences(40);
    let extractor = Extractor::embedded(&on(Device::Gpu)).unwrap();
    let expected = expected(&sentences);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (extractor, sentences, expected) = (&extractor, &sentences, &expected);
            scope.spawn(move || {
                for i in (thread..sentences.len()).step_by(2) {
                    same(&[extractor.extract(&sentences[i]).unwrap()], &expected[i..=i], 1e-3);
                }
            });
        }
    });
}

#[test]
fn the_processor_answers_first_and_the_gpu_once_it_has_proved_itself() {
    if is_missing() {
        return;
    }
    let sentences = sentences(60);
    let options = Options { gpu_from_tokens: Some(1), ..on(Device::GpuOrCpu) };
    let integers = Extractor::embedded(&Options::default()).unwrap().extract_batch(&sentences).unwrap();
    let extractor = Extractor::embedded(&options).unwrap();
    let (mut before, mut after, end) = (0, 0, Instant::now() + Duration::from_secs(600));
    // Until both have computed each sentence; the device changes somewhere between two calls.
    for i in (0..sentences.len()).cycle() {
        let call = extractor.limited(None, None);
        let found = call.extract(&sentences[i]).unwrap();
        // Between integers and floats scores differ, spans and labels do not.
        same(&[found], &integers[i..=i], 0.1);
        let computed = call.computed();
        match (computed.cpu_tokens, computed.gpu_tokens) {
            (0, 1..) => after += 1,
            (1.., 0) if after == 0 => before += 1,
            _ => panic!("{computed:?} after {after} on the GPU"),
        }
        if after >= sentences.len() {
            break;
        }
        assert!(Instant::now() < end, "{:?}", extractor.report());
    }
    println!("{before} calls on the processor, {after} on the GPU");
    assert!(before > 0, "the first call did not wait");
    let report = extractor.wait_for_gpu(0).unwrap().unwrap();
    assert_eq!((report.state, report.warm_up.done), (GpuState::Ready, report.warm_up.of));
    // Those of all calls, whichever value they were made with.
    assert!(report.computed_tokens > 0 && extractor.computed() == Computed::default());
    assert_eq!(extractor.device().computes_on, Device::Cpu);
}

#[test]
fn software_in_a_gpus_place_has_to_be_named() {
    if is_missing() {
        return;
    }
    let open = |adapter: Option<&str>, device| {
        Extractor::embedded(&Options { device, adapter: adapter.map(str::to_owned), ..Options::default() })
    };
    let error = open(Some("no such adapter"), Device::Gpu).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::DeviceUnavailable);
    assert!(error.to_string().contains(gpu_adapters()[0].trim_end_matches(" (software)")), "{error}");
    if gpu_adapters().iter().all(|name| name.ends_with(" (software)")) {
        let error = open(None, Device::Gpu).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::DeviceUnavailable);
        assert!(error.to_string().contains("name it to use it"), "{error}");
        let extractor = open(None, Device::GpuOrCpu).unwrap();
        assert!(
            extractor.report().gpu.is_none() && extractor.device().reason.contains("software"),
            "{:?}",
            extractor.device()
        );
        assert_eq!(extractor.extract("Started on lisinopril for hypertension.").unwrap().len(), 2);
    }
}

#[test]
#[cfg(feature = "checkpoint")]
fn a_bundle_in_f16_is_computed_in_f16() {
    use ampoule::Reference;
    use ampoule::bundle::{self, Bundle, BundleSpec, Golden, Load, Metadata, Precision};
    use std::collections::BTreeMap;
    if is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
    for architecture in ["bert", "distilbert", "roberta", "electra"] {
        let checkpoint = ampoule::Checkpoint::open(fixtures.join(format!("{architecture}-token"))).unwrap();
        let (metadata, tokenizer_json) =
            (Metadata::new(checkpoint.config.clone(), Precision::F16), checkpoint.tokenizer.to_json());
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
        let text = ["the pain of aspirin , naloxone and a patient . ".repeat(9)];
        let logits = |options: &Options| {
            let extractor = Extractor::open(&path, options).unwrap();
            assert!(extractor.self_check().unwrap().is_some());
            (extractor.word_logits(&text).unwrap().remove(0), extractor.report().gpu)
        };
        let (found, report) = logits(&on(Device::Gpu));
        let (expected, _) = logits(&Options::default());
        let difference = |(f, e): (&ampoule::WordLogits, &ampoule::WordLogits)| {
            f.logits.iter().zip(&e.logits).map(|(f, e)| (f - e).abs()).fold(0f32, f32::max)
        };
        let largest = found.iter().zip(&expected).map(difference).fold(0f32, f32::max);
        let report = report.unwrap();
        println!("{architecture}: largest difference {largest:.1e}, {report:?}");
        let reference = match report.precision {
            Precision::F16 => Reference::HalfFloats,
            _ => Reference::Floats,
        };
        assert_eq!(report.self_check.unwrap().reference, reference);
        assert!(largest < 2e-2, "{architecture}: {largest}");
    }
}

/// By Burn, whose operations a build that trains computes there.
#[test]
#[cfg(feature = "autodiff-wgpu")]
fn a_device_to_train_on_computes() {
    if is_missing() {
        return;
    }
    let device = ampoule::training_device(Device::Gpu, Some("")).unwrap();
    let x = burn::tensor::Tensor::<2>::from_data([[1.0f32, 2.0], [3.0, 4.0]], &device);
    assert_eq!(x.clone().matmul(x).into_data().try_to_vec::<f32>().unwrap(), [7.0, 10.0, 15.0, 22.0]);
}

/// Files and variables that Burn's runtime on GPUs, which builds that train hold, would heed, and write where they say.
#[test]
#[cfg(feature = "checkpoint")]
fn nothing_is_read_or_written_that_was_not_named() {
    use std::process::Command;
    if is_missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["burn.toml", "cubecl.toml"] {
        std::fs::write(folder.path().join(name), "this is [ no toml").unwrap();
    }
    let traced = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=%file", "-o"]).arg(traced.path()).arg(std::env::current_exe().unwrap());
    strace.args(["--exact", "a_bundle_in_f16_is_computed_in_f16"]).current_dir(folder.path());
    if cfg!(feature = "autodiff-wgpu") {
        strace.arg("a_device_to_train_on_computes");
    }
    for (name, value) in [
        ("CUBECL_DEBUG_LOG", folder.path().join("log").to_str().unwrap()),
        ("CUBECL_DEBUG_OPTION", "profile"),
        ("CUBECL_AUTOTUNE_LEVEL", "full"),
        ("CUBECL_ENVIRONMENT", "hostile"),
        ("CUBECL_WGPU_MAX_TASKS", "no number"),
    ] {
        strace.env(name, value);
    }
    let output = match strace.output() {
        Ok(output) => output,
        Err(_) => return println!("skipped: strace is not installed"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = std::fs::read_to_string(traced.path()).unwrap();
    assert!(calls.contains("model.safetensors") || calls.contains("half.safetensors"), "nothing was traced");
    let read = calls.lines().find(|call| call.contains(".toml") || call.contains("hostile"));
    assert_eq!(read, None);
    let mut left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["burn.toml", "cubecl.toml"]);
}

/// Of the process, in KB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs this test in a process of its own, unless that is what runs: other tests' memory is none of its, and each thread would have an arena
/// of glibc's allocator, whose leavings look like a leak.
fn runs_apart(test: &str) -> bool {
    if std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return false;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", test, "--include-ignored", "--nocapture"]);
    assert!(again.env("MALLOC_ARENA_MAX", "1").status().unwrap().success());
    true
}

/// Models come and go; their threads, and what they hold, too.
#[test]
#[ignore = "minutes on a software adapter"]
fn two_hundred_models_opened_and_closed_leave_nothing() {
    if is_missing() || runs_apart("two_hundred_models_opened_and_closed_leave_nothing") {
        return;
    }
    let threads = || std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let sentences = sentences(20);
    let expected = expected(&sentences);
    let (mut settled, mut before) = (0, 0);
    for i in 0..200 {
        let extractor = Extractor::embedded(&on(Device::Gpu)).unwrap();
        same(&[extractor.extract(&sentences[i % 20]).unwrap()], &expected[i % 20..=i % 20], 1e-3);
        if i == 40 {
            (settled, before) = (resident(), threads());
        }
    }
    println!("from the 40th to the 200th model: {settled} to {} kB, {before} to {} threads", resident(), threads());
    assert!(resident() < settled + 1024);
    assert!(threads() <= before + 2);
}

#[test]
#[ignore = "minutes on a software adapter"]
fn ten_thousand_calls_of_four_threads_leave_nothing() {
    if is_missing() || runs_apart("ten_thousand_calls_of_four_threads_leave_nothing") {
        return;
    }
    let sentences = sentences(20);
    let expected = expected(&sentences);
    let extractor = Extractor::embedded(&on(Device::Gpu)).unwrap();
    let begin = Instant::now();
    let (mut settled, calls) = (0, 10_000);
    for round in 0..10 {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (extractor, sentences, expected) = (&extractor, &sentences, &expected);
                scope.spawn(move || {
                    for i in (thread..calls / 10).step_by(4) {
                        same(&[extractor.extract(&sentences[i % 20]).unwrap()], &expected[i % 20..=i % 20], 1e-3);
                    }
                });
            }
        });
        if round == 1 {
            settled = resident();
        }
    }
    println!("{calls} calls in {:.0?}: {settled} to {} kB, {:?}", begin.elapsed(), resident(), extractor.report().gpu);
    assert!(resident() < settled + 16 * 1024);
}

/// What a small phone's GPU has: no f16, 16 KiB of shared memory, small buffers.
#[test]
fn word_embeddings_are_split_to_fit_a_small_gpus_buffers() {
    if is_missing() {
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/clinical-en.int8.safetensors");
    let bundle = ampoule::bundle::Bundle::open(&path, ampoule::bundle::Load::Copy, false).unwrap();
    // In int8, as they are held.
    let word_embeddings = bundle.config().vocab_size * bundle.config().embedding_size;
    let sentences = sentences(500);
    let expected = expected(&sentences);
    let buffer_bytes = 2 << 20;
    assert!(word_embeddings as u64 > buffer_bytes);
    let gpu_limits = GpuLimits { f16: false, shared_memory_bytes: 16 << 10, buffer_bytes, ..GpuLimits::default() };
    let extractor = Extractor::embedded(&Options { gpu_limits, ..on(Device::Gpu) }).unwrap();
    same(&extractor.extract_batch(&sentences).unwrap(), &expected, 1e-3);
    let report = extractor.report().gpu.unwrap();
    assert!(
        report.state == GpuState::Ready && report.self_check.as_ref().unwrap().largest_difference < 1e-4,
        "{report:?}"
    );
}

#[test]
fn a_model_beyond_the_limits_is_refused_before_it_is_sent() {
    if is_missing() {
        return;
    }
    let all = GpuLimits::default();
    for (gpu_limits, told) in [
        (GpuLimits { buffer_bytes: 1 << 16, ..all }, "a buffer of the GPU at most 65536"),
        (GpuLimits { memory_bytes: 4 << 20, ..all }, "bytes of the GPU, and may have 4194304"),
    ] {
        let error = Extractor::embedded(&Options { gpu_limits, ..on(Device::Gpu) }).err().unwrap();
        assert!(error.kind() == ErrorKind::DeviceUnavailable && error.to_string().contains(told), "{error}");
        let extractor = Extractor::embedded(&Options { gpu_limits, ..on(Device::GpuOrCpu) }).unwrap();
        assert!(
            extractor.report().gpu.is_none() && extractor.device().reason.contains(told),
            "{:?}",
            extractor.device()
        );
        assert_eq!(extractor.extract("Started on lisinopril for hypertension.").unwrap().len(), 2);
    }
}
