//! Golden cases: written into bundles, and computed again by every kernel.
#![cfg(feature = "checkpoint")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ampoule::bundle::{self, Bundle, BundleSpec, Golden, Load, Metadata, Precision};
use ampoule::{
    Checkpoint, Classifier, Embedder, ErrorKind, Extractor, Options, Reference, SelfCheck, Task, kernel_names,
};

fn fixture(name: &str) -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)).unwrap()
}

/// Writes a checkpoint's bundle, with golden cases or without.
fn write(checkpoint: &Checkpoint, precision: Precision, golden: Option<&Golden>, path: &Path) {
    let spec = BundleSpec {
        metadata: &Metadata::new(checkpoint.config.clone(), precision),
        weights: &checkpoint.weights,
        tokenizer_json: &checkpoint.tokenizer.to_json(),
        wider: &BTreeMap::new(),
        pre_quant_scales: &BTreeMap::new(),
        card: Some("A card."),
        golden,
    };
    bundle::write(path, &spec).unwrap();
}

/// The same with the cases answered.
fn answered(checkpoint: &Checkpoint, precision: Precision, path: &Path) -> Golden {
    write(checkpoint, precision, None, path);
    let golden = Golden::answered(&Bundle::open(path, Load::Copy, true).unwrap()).unwrap();
    write(checkpoint, precision, Some(&golden), path);
    golden
}

fn self_check(path: &Path, task: Task, options: &Options) -> ampoule::Result<Option<SelfCheck>> {
    match task {
        Task::TokenClassification => Extractor::open(path, options).unwrap().self_check(),
        Task::SingleLabel | Task::MultiLabel => Classifier::open(path, options).unwrap().self_check(),
        Task::Encoder => Embedder::open(path, options).unwrap().self_check(),
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    (folder, path)
}

#[test]
fn every_kernel_proves_itself_on_every_architecture_task_and_precision() {
    let (_folder, path) = place();
    for name in [
        "bert-encoder",
        "bert-multi-label",
        "bert-sequence",
        "bert-token",
        "distilbert-encoder",
        "distilbert-sequence",
        "distilbert-token",
        "electra-encoder",
        "electra-sequence",
        "electra-token",
        "roberta-encoder",
        "roberta-sequence",
        "roberta-token",
    ] {
        let checkpoint = fixture(name);
        for precision in [Precision::F32, Precision::F16, Precision::Int8] {
            answered(&checkpoint, precision, &path);
            for kernel in kernel_names() {
                let options = Options { kernel: Some(kernel.to_owned()), threads: 2, ..Options::default() };
                let check = self_check(&path, checkpoint.config.task, &options).unwrap().unwrap();
                println!("{name} {precision} {kernel}: {check:?}");
                let reference = match precision {
                    Precision::Int8 if kernel != "flex" => Reference::Integers,
                    _ => Reference::Floats,
                };
                assert_eq!((check.cases, check.reference), (4, reference));
                if kernel == "scalar" {
                    assert_eq!(check.largest_difference, 0.0, "{name} {precision}");
                }
            }
        }
    }
}

/// A bundle in the repository is wide and deep enough for rounded activations to differ between kernels.
#[test]
#[cfg(feature = "embedded")]
fn every_kernel_proves_itself_on_the_embedded_bundle() {
    for kernel in kernel_names() {
        for threads in [1, 2] {
            let options = Options { kernel: Some(kernel.to_owned()), threads, ..Options::default() };
            let check = Extractor::embedded(&options).unwrap().self_check().unwrap().unwrap();
            println!("{kernel}, {threads} thread(s): {check:?}");
            // The rest is left to kernels that are not run here.
            assert!(
                check.largest_difference <= check.allowed / 2.0 && check.rms_difference <= check.allowed / 20.0,
                "{kernel}: {check:?}"
            );
        }
    }
}

/// The bundle's bytes, and where the data of each of its tensors begins.
fn parts(path: &Path) -> (Vec<u8>, impl Fn(&str) -> usize) {
    let bytes = std::fs::read(path).unwrap();
    let data = bytes.len() - Bundle::inspect(path).unwrap().tensors.iter().map(|t| t.bytes).sum::<usize>();
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
    (bytes, move |name: &str| data + header[name]["data_offsets"][0].as_u64().unwrap() as usize)
}

#[test]
fn cases_that_are_none_are_refused() {
    let (_folder, path) = place();
    answered(&fixture("bert-token"), Precision::Int8, &path);
    let (sound, begin) = parts(&path);
    let ids = "ampoule.optional.golden.ids";
    for (name, at, value) in [
        (ids, 0, 0u32.to_le_bytes()),
        (ids, 0, 2u32.to_le_bytes()),
        (ids, 0, u32::MAX.to_le_bytes()),
        (ids, 4, u32::MAX.to_le_bytes()),
        ("ampoule.optional.golden.floats", 8, f32::NAN.to_le_bytes()),
        ("ampoule.optional.golden.integers", 0, f32::INFINITY.to_le_bytes()),
    ] {
        let mut damaged = sound.clone();
        damaged[begin(name) + at..][..4].copy_from_slice(&value);
        std::fs::write(&path, damaged).unwrap();
        let error = Extractor::open(&path, &Options::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} {value:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// Where floats compute, one weight of the other sign is enough; under the integer contract a row of such, as a wrong lane would have it.
#[test]
fn wrong_weights_are_noticed_wherever_they_are() {
    let (_folder, path) = place();
    let checkpoint = fixture("bert-token");
    answered(&checkpoint, Precision::Int8, &path);
    let (sound, begin) = parts(&path);
    let mut tried = 0;
    for tensor in &Bundle::inspect(&path).unwrap().tensors {
        let is_layer = tensor.name.starts_with("encoder.") || tensor.name.starts_with("classifier.");
        if !is_layer || !tensor.name.ends_with("weight") || tensor.shape.len() != 2 {
            continue;
        }
        let begin = begin(&tensor.name);
        let weights = &sound[begin..begin + tensor.bytes];
        let largest = (0..weights.len()).max_by_key(|&i| (weights[i] as i8).unsigned_abs()).unwrap();
        let row = largest - largest % tensor.shape[1]..largest - largest % tensor.shape[1] + tensor.shape[1];
        for (kernel, wrong) in [("flex", largest..largest + 1), (kernel_names()[0], row)] {
            if !kernel_names().contains(&kernel) {
                continue;
            }
            let mut damaged = sound.clone();
            for at in wrong {
                damaged[begin + at] = (weights[at] as i8).wrapping_neg() as u8;
            }
            std::fs::write(&path, &damaged).unwrap();
            let options = Options { kernel: Some(kernel.to_owned()), ..Options::default() };
            let error = self_check(&path, checkpoint.config.task, &options).unwrap_err();
            println!("{}, {kernel}: {error}", tensor.name);
            assert_eq!(error.kind(), ErrorKind::DeviceUnavailable, "{}, {kernel}", tensor.name);
            assert!(
                error.to_string().contains("computes wrongly here, or the bundle is damaged: golden case"),
                "{error}"
            );
            tried += 1;
        }
    }
    assert!(tried > 2 * 6, "{tried}");
}

#[test]
fn cases_are_added_to_a_bundle_that_has_none_and_nothing_else_changes() {
    let (folder, path) = place();
    for precision in [Precision::F16, Precision::Int8] {
        let checkpoint = fixture("electra-token");
        write(&checkpoint, precision, None, &path);
        assert_eq!(self_check(&path, checkpoint.config.task, &Options::default()).unwrap(), None);
        let bundle = Bundle::open(&path, Load::Copy, true).unwrap();
        let golden = Golden::answered(&bundle).unwrap();
        let renewed = folder.path().join("renewed.safetensors");
        bundle::stage_with_golden(&renewed, &bundle, &golden).unwrap().commit().unwrap();
        // Written with them in the first place, it is the same file; and so it is when it is renewed again.
        write(&checkpoint, precision, Some(&golden), &path);
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&renewed).unwrap());
        let again = Bundle::open(&renewed, Load::Copy, true).unwrap();
        bundle::stage_with_golden(&path, &again, &Golden::answered(&again).unwrap()).unwrap().commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&renewed).unwrap());
    }
}

/// [`bundle::size`] counts cases that are not answered.
#[test]
fn unanswered_cases_take_as_many_bytes() {
    let (_folder, path) = place();
    for (name, precision) in
        [("bert-token", Precision::Int8), ("bert-encoder", Precision::F16), ("roberta-sequence", Precision::F32)]
    {
        let checkpoint = fixture(name);
        answered(&checkpoint, precision, &path);
        let bytes = std::fs::metadata(&path).unwrap().len();
        write(&checkpoint, precision, Some(&Golden::unanswered(&checkpoint.config, precision)), &path);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
    }
}

#[test]
fn a_cancelled_check_ends() {
    let (_folder, path) = place();
    let checkpoint = fixture("bert-token");
    answered(&checkpoint, Precision::Int8, &path);
    let cancel = ampoule::CancelToken::new();
    cancel.cancel();
    let options = Options { cancel: Some(cancel.clone()), ..Options::default() };
    let extractor = Extractor::open(&path, &options).unwrap();
    assert_eq!(extractor.self_check().unwrap_err().kind(), ErrorKind::Cancelled);
    cancel.reset();
    assert!(extractor.self_check().unwrap().is_some());
}
