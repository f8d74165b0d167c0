//! Sound bundles come back as they were written.

use std::collections::BTreeMap;
use std::process::Command;

use ampoule::ErrorKind::{Corrupt, InvalidInput};
use ampoule::bundle::{
    self, Bundle, BundleSpec, Dtype, Load, Metadata, Pooling, PoolingMode, Precision, quantize_rows,
};
use ampoule::model::{ModelType, Task, Values, WeightSource};
use serde_json::{Value, json};

use crate::{HexDigest, Pieces, TOKENIZER, bytes_of, config, metadata, spec, take_all, tiny, weights};

#[test]
fn every_architecture_and_task_comes_back_in_every_precision() {
    let folder = tempfile::tempdir().unwrap();
    for model_type in ModelType::ALL {
        for task in [Task::Encoder, Task::TokenClassification, Task::SingleLabel, Task::MultiLabel] {
            for precision in [Precision::F32, Precision::F16, Precision::Int8] {
                let path = folder.path().join("model.safetensors");
                let written = Metadata {
                    pooling: Pooling { mode: PoolingMode::Max, normalize: false },
                    max_tokens: Some(17),
                    temperature: 1.2345678,
                    ..metadata(config(model_type, task), precision)
                };
                let weights = weights(&written.config);
                bundle::write(&path, &BundleSpec { card: Some("Für Ärzte."), ..spec(&written, &weights) }).unwrap();
                for load in [Load::Map, Load::Copy] {
                    let bundle = Bundle::open(&path, load, true).unwrap();
                    assert_eq!(*bundle.metadata(), written);
                    assert_eq!(*bundle.tokenizer_json().unwrap(), *TOKENIZER);
                    assert_eq!(bundle.card().unwrap().as_deref(), Some("Für Ärzte."));
                    assert_eq!(bundle.info().source_sha256, bundle::weights_sha256(&weights));
                    assert_eq!(*bundle.info(), Bundle::inspect(&path).unwrap());
                    let read = take_all(&bundle);
                    for (name, tensor) in &weights.0 {
                        let half_step = match precision {
                            Precision::Int8 if tensor.shape.len() == 2 => 0.5 / 127.0 + 1e-6,
                            Precision::F16 if tensor.shape.len() == 2 => 0.5 / 1024.0,
                            _ => 0.0,
                        };
                        for (w, r) in tensor.data.iter().zip(&read[name]) {
                            assert!((w - r).abs() <= half_step, "{name}: {w} {r}");
                        }
                    }
                    assert_eq!(read.len(), weights.0.len());
                }
            }
        }
    }
}

#[test]
fn what_each_matrix_is_kept_as() {
    let types = |precision, wider: &BTreeMap<String, Precision>| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b");
        bundle::write(&path, &BundleSpec { wider, ..spec(&metadata(tiny(), precision), &weights(&tiny())) }).unwrap();
        let info = Bundle::open(&path, Load::Copy, true).unwrap().info().clone();
        move |name: &str| info.tensors.iter().find(|t| t.name == name).map(|t| t.dtype)
    };
    let classifier = "classifier.weight";
    let of = types(Precision::Int8, &BTreeMap::from([(classifier.to_owned(), Precision::F32)]));
    assert_eq!(of("embeddings.word_embeddings.weight"), Some(Dtype::I8));
    assert_eq!(of("embeddings.word_embeddings.weight.scale"), Some(Dtype::F32));
    assert_eq!(of("embeddings.position_embeddings.weight"), Some(Dtype::F16));
    assert_eq!(of("encoder.layer.1.output.dense.weight"), Some(Dtype::I8));
    assert_eq!(of("encoder.layer.1.output.dense.bias"), Some(Dtype::F32));
    assert_eq!((of(classifier), of("classifier.weight.scale")), (Some(Dtype::F32), None));
    let of = types(Precision::F16, &BTreeMap::new());
    assert_eq!(of("encoder.layer.1.output.dense.weight"), Some(Dtype::F16));
    assert_eq!(of("embeddings.LayerNorm.weight"), Some(Dtype::F32));
}

/// The value of a binary16 number, from its bits (IEEE 754, section 3.4).
fn half_value(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f64.powi(-24),
        _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    }
}

#[test]
fn half_precision_is_the_nearest_number() {
    let (mut weights, metadata) = (weights(&tiny()), metadata(tiny(), Precision::F16));
    let name = "encoder.layer.0.output.dense.weight";
    let matrix = weights.0.get_mut(name).unwrap();
    let special =
        [65504.0, -65504.0, 5.96e-8, 2.98e-8, 2.99e-8, 6.1e-5, 1.0 + 0.5 / 1024.0, 1.0 + 1.5 / 1024.0, -0.0, 1e-30];
    matrix.data[..special.len()].copy_from_slice(&special);
    for (i, x) in matrix.data.iter_mut().enumerate().skip(special.len()) {
        *x *= 2f32.powi(i as i32 % 30 - 20);
    }
    let expected = matrix.clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    bundle::write(&path, &spec(&metadata, &weights)).unwrap();
    let read = Bundle::open(&path, Load::Copy, true).unwrap().weights().take(name, &expected.shape).unwrap();
    let finite: Vec<u16> = (0..=0x7BFF).collect();
    for (&x, &r) in expected.data.iter().zip(&read) {
        let size = f64::from(x.abs());
        let above = finite.partition_point(|&bits| half_value(bits) < size);
        let candidates = [above.saturating_sub(1), above.min(finite.len() - 1)].map(|i| finite[i]);
        let distance = |bits: u16| (half_value(bits) - size).abs();
        let nearest =
            candidates.into_iter().min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))));
        assert_eq!(f64::from(r.abs()), half_value(nearest.unwrap()), "{x}");
        assert_eq!(x.is_sign_negative(), r.is_sign_negative());
    }
    for (value, kept) in [(65519.0, false), (f32::MAX, false), (f32::NAN, false), (65504.0, true)] {
        weights.0.get_mut(name).unwrap().data[5] = value;
        let result = bundle::write(&path, &spec(&metadata, &weights));
        assert_eq!(result.is_ok(), kept);
        if let Err(error) = result {
            assert_eq!(error.kind(), InvalidInput);
            assert!(error.to_string().contains(name) && error.to_string().contains("element 5"), "{error}");
        }
    }
}

#[test]
fn integers_in_the_file_are_those_of_the_contract() {
    let pieces = Pieces::of(Precision::Int8);
    for (name, tensor) in weights(&tiny()).0 {
        if pieces.header[&name]["dtype"] != "I8" {
            continue;
        }
        let (integers, scales) = quantize_rows(&tensor.data, tensor.shape[1]);
        let stored: Vec<i8> = pieces.data[pieces.range(&name)].iter().map(|&b| b as i8).collect();
        assert_eq!(stored, integers);
        let stored = &pieces.data[pieces.range(&format!("{name}.scale"))];
        let stored: Vec<f32> = stored.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(stored, scales);
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert_eq!(bytes_of(Precision::Int8), bytes_of(Precision::Int8));
    let digest = format!("{:x}", HexDigest(&bytes_of(Precision::Int8)));
    assert_eq!(
        digest, "84457d9141310f666121c0caab9f8bd54580a02ba028bc42f91b30a44144b6dc",
        "the format's bytes have changed: is that a new version?"
    );
    let header = Pieces::of(Precision::Int8).header;
    for object in [&header, &header["__metadata__"]] {
        assert!(object.as_object().unwrap().keys().is_sorted());
    }
}

#[test]
fn the_safetensors_crate_opens_it() {
    for precision in [Precision::F32, Precision::F16, Precision::Int8] {
        let bytes = bytes_of(precision);
        let opened = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let info = Bundle::from_bytes(bytes.clone(), true).unwrap().info().clone();
        assert_eq!(opened.len(), info.tensors.len());
        for tensor in &info.tensors {
            let view = opened.tensor(&tensor.name).unwrap();
            assert_eq!((view.shape(), view.data().len()), (tensor.shape.as_slice(), tensor.bytes));
            assert_eq!(format!("{:?}", view.dtype()), format!("{:?}", tensor.dtype));
        }
        assert_eq!(opened.tensor("tokenizer.json").unwrap().data(), TOKENIZER);
    }
}

#[test]
fn python_opens_it() {
    const SCRIPT: &str = "
import sys, json
try:
    from safetensors import safe_open
    import numpy
except ImportError:
    sys.exit(77)
with safe_open(sys.argv[1], 'np') as f:
    name = 'embeddings.word_embeddings.weight'
    x = f.get_tensor(name).astype('float32') * f.get_tensor(name + '.scale')[:, None]
    print(json.dumps({
        'names': sorted(f.keys()), 'labels': json.loads(f.metadata()['labels']),
        'tokenizer': bytes(f.get_tensor('tokenizer.json')).decode(), 'words': [float(v) for v in x.ravel()],
    }))
";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.safetensors");
    std::fs::write(&path, bytes_of(Precision::Int8)).unwrap();
    let python = std::env::var("PYTHON").unwrap_or("python3".to_owned());
    let output = match Command::new(&python).arg("-c").arg(SCRIPT).arg(&path).output() {
        // 127 is qemu's way of saying that there is no such program.
        Ok(output) if !matches!(output.status.code(), Some(77 | 127)) => output,
        _ => {
            eprintln!("skipped: {python} has no safetensors and numpy (set PYTHON)");
            return;
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bundle = Bundle::open(&path, Load::Copy, true).unwrap();
    let names: Vec<&str> = bundle.info().tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(seen["names"], json!(names));
    assert_eq!(seen["labels"], json!(bundle.config().id2label));
    assert_eq!(seen["tokenizer"].as_str().unwrap().as_bytes(), TOKENIZER);
    let words = bundle.weights().take("embeddings.word_embeddings.weight", &[60, 32]).unwrap();
    let seen: Vec<f32> = seen["words"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!(seen, words);
}

#[test]
fn a_bundle_inside_another_file_and_at_any_address() {
    let bytes = bytes_of(Precision::Int8);
    let expected = take_all(&Bundle::from_bytes(bytes.clone(), true).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.apk");
    let len = bytes.len() as u64;
    for offset in [0u64, 1, 4, 4099, 8192] {
        let padded = [vec![b'P'; offset as usize], bytes.clone(), b"suffix".to_vec()].concat();
        std::fs::write(&path, &padded).unwrap();
        for load in [Load::Map, Load::Copy] {
            let bundle = Bundle::open_at(&path, offset, len, load, true).unwrap();
            assert_eq!(take_all(&bundle), expected);
            let error = Bundle::open_at(&path, offset, len + 1, load, true).unwrap_err();
            assert_eq!(error.kind(), Corrupt);
        }
        let error = Bundle::open_at(&path, u64::MAX, len, Load::Map, true).unwrap_err();
        assert_eq!(error.kind(), InvalidInput);
        let in_memory: &'static [u8] = &padded.leak()[offset as usize..][..bytes.len()];
        assert_eq!(take_all(&Bundle::from_bytes(in_memory, true).unwrap()), expected);
    }
}

#[test]
fn a_tensor_in_another_shape_than_asked_for() {
    let bundle = Bundle::from_bytes(bytes_of(Precision::Int8), true).unwrap();
    for (name, parts) in
        [("classifier.weight", "[3, 31]"), ("pooler.dense.weight", "missing"), ("tokenizer.json", "found [")]
    {
        let error = bundle.weights().take(name, &[3, 31]).unwrap_err();
        assert_eq!(error.kind(), Corrupt);
        assert!(error.to_string().contains(parts) && error.to_string().contains(name), "{error}");
    }
    assert!(!format!("{bundle:?}").contains("Krankheit"));
}

#[test]
fn factors_of_inputs_come_back_and_unsound_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (metadata, weights) = (metadata(tiny(), Precision::Int8), weights(&tiny()));
    let dense = "encoder.layer.1.output.dense.weight";
    let factors: Vec<f32> = (0..64).map(|i| 0.25 * (1 + i % 7) as f32).collect();
    let write = |name: &str, factors: &[f32]| {
        let pre_quant_scales = &BTreeMap::from([(name.to_owned(), factors.to_vec())]);
        bundle::write(&path, &BundleSpec { pre_quant_scales, ..spec(&metadata, &weights) })
    };
    write(dense, &factors).unwrap();
    for load in [Load::Map, Load::Copy] {
        let bundle = Bundle::open(&path, load, true).unwrap();
        let Values::Int8(int8) = bundle.weights().take_values(dense, &[32, 64]).unwrap() else { panic!("no integers") };
        assert_eq!(int8.pre_quant_scale.as_deref(), Some(factors.as_slice()));
        // Integers and scales stand for the weights divided by the factors, and all three for the weights.
        let divided: Vec<f32> =
            weights.0[dense].data.chunks(64).flat_map(|row| row.iter().zip(&factors).map(|(w, f)| w / f)).collect();
        let (integers, scales) = bundle::quantize_rows(&divided, 64);
        assert_eq!((&*int8.integers, &int8.scales), (integers.as_slice(), &scales));
        let read = take_all(&bundle);
        for (row, (read, scale)) in weights.0[dense].data.chunks(64).zip(read[dense].chunks(64).zip(&scales)) {
            for ((w, r), factor) in row.iter().zip(read).zip(&factors) {
                assert!((w - r).abs() <= 0.5001 * scale * factor, "{w} {r}");
            }
        }
    }
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-39] {
        let mut factors = factors.clone();
        factors[3] = bad;
        assert_eq!(write(dense, &factors).unwrap_err().kind(), InvalidInput, "{bad}");
    }
    for name in ["embeddings.word_embeddings.weight", "classifier.weight", "encoder.layer.1.output.dense.bias", "none"]
    {
        assert_eq!(write(name, &[1.0; 32]).unwrap_err().kind(), InvalidInput, "{name}");
    }
    assert_eq!(write(dense, &factors[1..]).unwrap_err().kind(), InvalidInput);
    assert!(Bundle::open(&path, Load::Copy, true).is_ok(), "what was there stays");
}

#[test]
fn factors_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (metadata, weights) = (metadata(tiny(), Precision::Int8), weights(&tiny()));
    let name = |part: &str| format!("encoder.layer.0.attention.self.{part}.weight");
    let pre_quant_scales = &["query", "key", "value"].map(|part| (name(part), vec![2.0; 32])).into();
    bundle::write(&path, &BundleSpec { pre_quant_scales, ..spec(&metadata, &weights) }).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(Bundle::from_bytes(bytes.clone(), true).is_ok());
    let changed = |tensor: &str, value: f32| {
        let mut pieces = Pieces::parse(&bytes);
        let range = pieces.range(tensor);
        pieces.data[range.start..range.start + 4].copy_from_slice(&value.to_le_bytes());
        pieces.seal()
    };
    let error = Bundle::from_bytes(changed(&(name("key") + ".pre_quant_scale"), 3.0), true).unwrap_err();
    assert!(error.kind() == Corrupt && error.to_string().contains("expected the same"), "{error}");
    // 127 times scale and factor is no number that a weight can be.
    let mut pieces = Pieces::parse(&changed(&(name("key") + ".scale"), 1e30));
    for part in ["query", "key", "value"] {
        let range = pieces.range(&(name(part) + ".pre_quant_scale"));
        pieces.data[range.start..range.start + 4].copy_from_slice(&1e20f32.to_le_bytes());
    }
    let error = Bundle::from_bytes(pieces.seal(), true).unwrap_err();
    assert!(error.kind() == Corrupt && error.to_string().contains("has to be finite"), "{error}");
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = bytes_of(Precision::F32);
    std::fs::write(&path, &bytes).unwrap();
    let bundle = Bundle::open(&path, Load::Copy, true).unwrap();
    let shape = &tiny().tensors().into_iter().find(|(name, _)| name == "classifier.bias").unwrap().1;
    let mut pieces = Pieces::parse(&bytes);
    let range = pieces.range("classifier.bias");
    pieces.data[range.clone()].fill(0xff);
    std::fs::write(&path, pieces.seal()).unwrap();
    let error = bundle.weights().take("classifier.bias", shape).unwrap_err();
    assert!(error.kind() == Corrupt && error.to_string().contains("NaN"), "{error}");
    std::fs::write(&path, &bytes[..100]).unwrap();
    let error = bundle.weights().take("classifier.bias", shape).unwrap_err();
    assert!(error.kind() == Corrupt && error.to_string().contains("cut short"), "{error}");
    assert_eq!(bundle.tokenizer_json().unwrap_err().kind(), Corrupt);
}
