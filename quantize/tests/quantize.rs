//! A model becomes a bundle, with a report, unless it lost too much.

use std::path::{Path, PathBuf};

use ampoule::ErrorKind;
use ampoule::bundle::{Bundle, Load, Precision};
use ampoule::model::{HostTensor, ModelConfig, WeightSource, Weights};
use ampoule::text::{SpecialTokens, Tokenizer};
use ampoule::{Embedder, Error, Options, Result};
use ampoule_quantize::{Guard, QuantizeOptions, Report, TemperatureChange, bundle_bytes, quantize, smooth};
use serde_json::json;

const TOKENIZER: &[u8] = b"{}";

fn model() -> (ModelConfig, Weights) {
    let config = ModelConfig::from_json(&json!({
        "model_type": "bert", "architectures": ["BertForTokenClassification"], "vocab_size": 50, "hidden_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 20,
        "id2label": {"0": "O", "1": "B-Disease", "2": "I-Disease"},
    }))
    .unwrap();
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let count: usize = shape.iter().product();
        let data = (0..count).map(|i| (i as f32 * 0.7 + name.len() as f32).sin()).collect();
        (name, HostTensor { shape, data })
    };
    let weights = Weights(config.tensors().into_iter().map(tensor).collect());
    (config, weights)
}

fn run(out: &Path, options: &QuantizeOptions, guard: Option<Guard>) -> Result<Report> {
    let (config, weights) = model();
    quantize(&config, &weights, TOKENIZER, out, options, None, guard)
}

/// Known before there are weights, and to the byte; with a fitted temperature, to its digits.
#[test]
fn a_bundle_is_as_large_as_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle");
    let (config, weights) = model();
    let factors: Vec<f32> = (1..=16).map(|i| i as f32 / 8.0).collect();
    let plain = QuantizeOptions::default();
    for precision in [Precision::F32, Precision::F16, Precision::Int8] {
        for options in [
            QuantizeOptions { precision, ..plain.clone() },
            QuantizeOptions {
                precision,
                max_tokens: Some(12),
                card: Some("A card.".to_owned()),
                wider: [("classifier.weight".to_owned(), Precision::F16)].into(),
                licence: "none \"at\" all".to_owned(),
                ..plain.clone()
            },
        ] {
            run(&out, &options, None).unwrap();
            assert_eq!(bundle_bytes(&config, TOKENIZER, &options).unwrap(), std::fs::metadata(&out).unwrap().len());
            let mut fit = |_: &Path| Ok(Some(1.2346));
            quantize(&config, &weights, TOKENIZER, &out, &options, Some(&mut fit), None).unwrap();
            let written = std::fs::metadata(&out).unwrap().len();
            let most = QuantizeOptions { temperature: 12.3456, ..options };
            let said = bundle_bytes(&config, TOKENIZER, &most).unwrap();
            assert!((written..=written + 8).contains(&said), "{said} said, {written} written");
        }
    }
    let name = "encoder.layer.0.intermediate.dense.weight".to_owned();
    let evened = QuantizeOptions { pre_quant_scales: [(name, factors)].into(), ..plain.clone() };
    run(&out, &evened, None).unwrap();
    let said = |options| bundle_bytes(&config, TOKENIZER, options).unwrap();
    assert_eq!(said(&evened), std::fs::metadata(&out).unwrap().len());
    assert!(said(&evened) > said(&plain) && bundle_bytes(&config, b"", &plain).is_err());
}

#[test]
fn the_report_says_what_the_file_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (_, weights) = model();
    let classifier = "classifier.weight".to_owned();
    let mut last_error = -1.0;
    for precision in [Precision::F32, Precision::F16, Precision::Int8] {
        let out = folder.path().join(precision.as_str());
        let options = QuantizeOptions {
            precision,
            wider: [(classifier.clone(), Precision::F32)].into(),
            card: Some("A card.".to_owned()),
            ..QuantizeOptions::default()
        };
        let report = run(&out, &options, None).unwrap();
        assert_eq!(report.bytes_after, std::fs::metadata(&out).unwrap().len());
        assert_eq!(report.bytes_before, weights.0.values().map(|t| 4 * t.data.len() as u64).sum::<u64>());
        let bundle = Bundle::open(&out, Load::Copy, true).unwrap();
        assert_eq!(bundle.card().unwrap().as_deref(), Some("A card."));
        // One linear layer has six matrices; beside them three embeddings and the classifier.
        assert_eq!(report.tensors.len(), 10);
        for tensor in &report.tensors {
            let original = &weights.0[&tensor.name];
            let read = bundle.weights().take(&tensor.name, &original.shape).unwrap();
            let largest = original.data.iter().zip(&read).map(|(w, r)| f64::from((w - r).abs())).fold(0.0, f64::max);
            assert!((tensor.max_error - largest).abs() < 1e-7, "{}", tensor.name);
            assert!(tensor.cosine > 0.9999 && tensor.cosine < 1.0 + 1e-12);
            let exact = tensor.precision == Precision::F32;
            assert_eq!(tensor.relative_error == 0.0, exact, "{}", tensor.name);
        }
        let kept = report.tensors.iter().find(|t| t.name == classifier).unwrap();
        assert_eq!(kept.precision, Precision::F32);
        let worst = report.worst(1).next().unwrap();
        assert!(worst.relative_error > last_error && worst.relative_error < 0.01);
        last_error = worst.relative_error;
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["precision"], precision.as_str());
        assert!(json["tensors"][0]["relative_error"].is_number());
    }
}

#[test]
fn a_bundle_that_lost_too_much_is_not_put_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.safetensors");
    let wide = QuantizeOptions { precision: Precision::F32, ..QuantizeOptions::default() };
    run(&out, &wide, None).unwrap();
    let old = std::fs::read(&out).unwrap();
    let attempt = |after: Result<f64>, max_loss: f64, force: bool| -> (Result<Report>, PathBuf) {
        let mut measured = PathBuf::new();
        let mut after = Some(after);
        let mut measure = |candidate: &Path| {
            Bundle::open(candidate, Load::Map, true).unwrap();
            assert_eq!(std::fs::read(&out).unwrap(), old, "the old file stands while the new one is measured");
            measured = candidate.to_owned();
            after.take().unwrap()
        };
        let guard = Guard { before: 88.0, measure: &mut measure, max_loss, force };
        let result = run(&out, &QuantizeOptions::default(), Some(guard));
        (result, measured)
    };
    for (after, max_loss) in [(87.0, 0.5), (f64::NAN, 0.5), (87.9, 0.0)] {
        let (result, measured) = attempt(Ok(after), max_loss, false);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        for part in ["model.safetensors", "88.0000", "force", "weight"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        assert!(!measured.exists());
        assert_eq!(std::fs::read(&out).unwrap(), old);
    }
    let (result, measured) = attempt(Err(Error::invalid_input("no dev set")), 0.5, true);
    assert!(result.unwrap_err().to_string().contains("no dev set"));
    assert!(!measured.exists());
    assert_eq!(std::fs::read(&out).unwrap(), old);

    let (result, _) = attempt(Ok(80.0), 0.5, true);
    let metric = result.unwrap().metric.unwrap();
    assert_eq!((metric.before, metric.after, metric.loss), (88.0, 80.0, 8.0));
    assert_eq!(Bundle::open(&out, Load::Copy, true).unwrap().precision(), Precision::Int8);
    std::fs::write(&out, &old).unwrap();
    let (result, _) = attempt(Ok(88.5), 0.0, false);
    assert_eq!(result.unwrap().metric.unwrap().loss, -0.5);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_bundle_has_the_temperature_that_was_fitted_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.safetensors");
    let (config, weights) = model();
    let options = QuantizeOptions { temperature: 1.5, ..QuantizeOptions::default() };
    let temperature_of = |path: &Path| Bundle::open(path, Load::Copy, true).unwrap().metadata().temperature;
    let attempt = |fitted: Result<Option<f32>>, after: f64| {
        let mut fitted = Some(fitted);
        let mut fit = |path: &Path| {
            assert_eq!(temperature_of(path), 1.5);
            fitted.take().unwrap()
        };
        let mut measured = None;
        let mut measure = |path: &Path| {
            measured = Some(temperature_of(path));
            Ok(after)
        };
        let guard = Guard { before: 88.0, measure: &mut measure, max_loss: 0.5, force: false };
        let report = quantize(&config, &weights, TOKENIZER, &out, &options, Some(&mut fit), Some(guard));
        (report.map(|report| report.temperature), measured)
    };
    let (change, measured) = attempt(Ok(Some(1.2345)), 88.0);
    assert_eq!(change.unwrap(), TemperatureChange { before: 1.5, after: 1.2345 });
    assert_eq!((temperature_of(&out), measured), (1.2345, Some(1.2345)));
    let fitted = std::fs::read(&out).unwrap();

    // What is refused leaves what was there, and so does a fit that fails or gives what is no temperature.
    assert!(attempt(Ok(Some(2.0)), 80.0).0.is_err());
    for (fitted, part) in [
        (Ok(Some(0.0)), "temperature"),
        (Ok(Some(-1.0)), "temperature"),
        (Ok(Some(f32::NAN)), "temperature"),
        (Err(Error::invalid_input("no dev set")), "no dev set"),
    ] {
        let (change, measured) = attempt(fitted, 88.0);
        let error = change.unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(part), "{error}");
        assert!(measured.is_none());
    }
    assert_eq!(std::fs::read(&out).unwrap(), fitted);

    let (change, measured) = attempt(Ok(None), 88.0);
    assert_eq!(change.unwrap(), TemperatureChange { before: 1.5, after: 1.5 });
    assert_eq!((temperature_of(&out), measured), (1.5, Some(1.5)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // The same bytes as a bundle that had the temperature from the beginning.
    let direct = folder.path().join("direct");
    quantize(
        &config,
        &weights,
        TOKENIZER,
        &direct,
        &QuantizeOptions { temperature: 1.2345, ..options.clone() },
        None,
        None,
    )
    .unwrap();
    assert!(std::fs::read(&direct).unwrap() == fitted);
}

/// Layer norms whose third column is a hundred times the others, as trained models have them.
#[test]
fn smoothing_makes_integers_of_uneven_inputs_more_exact() {
    let folder = tempfile::tempdir().unwrap();
    let (mut config, mut weights) = model();
    config.task = ampoule::Task::Encoder;
    config.id2label.clear();
    weights.0.retain(|name, _| !name.starts_with("classifier"));
    for (name, tensor) in &mut weights.0 {
        match name.ends_with("LayerNorm.weight") {
            true => {
                tensor.data.fill(1.0);
                tensor.data[2] = 100.0;
            }
            // So small that no softmax and no gelu is at its end.
            false => tensor.data.iter_mut().for_each(|x| *x *= 0.1),
        }
    }
    let vocab: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(str::to_owned)
        .into_iter()
        .chain((5..50).map(|i| format!("w{i}")))
        .collect();
    let special = SpecialTokens::from_settings(false, |_| None);
    let tokenizer = Tokenizer::from_vocab_txt(&vocab.join("\n"), true, None, true, &special).unwrap();
    let texts: Vec<String> =
        (0..20).map(|i| (0..10).map(|j| format!("w{} ", 5 + (i * 7 + j * 3) % 45)).collect()).collect();
    let factors = smooth(&config, &weights, &tokenizer, &texts).unwrap();
    assert_eq!(factors.len(), 4);
    assert!(factors.values().all(|f| f.iter().enumerate().all(|(i, x)| i == 2 || *x > 5.0 * f[2])), "{factors:?}");
    let no_texts: [&str; 0] = [];
    assert!(smooth(&config, &weights, &tokenizer, &no_texts).unwrap().is_empty());

    let sequences: Vec<Vec<u32>> = (0..20).map(|i| (0..18).map(|j| 5 + (i * 11 + j * 5) % 45).collect()).collect();
    let states = |name: &str, options: QuantizeOptions, kernel: &str| -> Vec<f32> {
        let out = folder.path().join(name);
        let report = quantize(&config, &weights, &tokenizer.to_json(), &out, &options, None, None).unwrap();
        assert_eq!(report.tensors.iter().filter(|t| t.smoothed).count(), options.pre_quant_scales.len());
        let embedder =
            Embedder::open(&out, &Options { kernel: Some(kernel.to_owned()), ..Options::default() }).unwrap();
        embedder.hidden_states(&sequences).unwrap().concat()
    };
    let exact = states("exact", QuantizeOptions { precision: Precision::F32, ..QuantizeOptions::default() }, "flex");
    let error = |found: Vec<f32>| -> f64 { found.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum() };
    let smoothed = QuantizeOptions { pre_quant_scales: factors, ..QuantizeOptions::default() };
    for kernel in ampoule::kernel_names().into_iter().filter(|name| *name != "flex") {
        let (rough, fine) = (
            error(states("rough", QuantizeOptions::default(), kernel)),
            error(states("fine", smoothed.clone(), kernel)),
        );
        assert!(fine < rough / 2.0, "{kernel}: {fine:e} against {rough:e}");
    }
    // Where weights are widened, what they stand for is the same.
    let (rough, fine) =
        (error(states("rough", QuantizeOptions::default(), "flex")), error(states("fine", smoothed, "flex")));
    assert!(fine < 4.0 * rough, "{fine:e} against {rough:e}");
}

#[test]
fn a_layer_that_is_kept_wider_loses_the_factors_of_all_its_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let part = |part: &str| format!("encoder.layer.0.attention.self.{part}.weight");
    let intermediate = "encoder.layer.0.intermediate.dense.weight".to_owned();
    let names = [part("query"), part("key"), part("value"), intermediate.clone()];
    let pre_quant_scales: std::collections::BTreeMap<String, Vec<f32>> =
        names.iter().map(|name| (name.clone(), vec![2.0; 16])).collect();
    for (wider, expected) in [(None, 4), (Some(part("key")), 1), (Some(intermediate), 3)] {
        let options = QuantizeOptions {
            wider: wider.into_iter().map(|name| (name, Precision::F16)).collect(),
            pre_quant_scales: pre_quant_scales.clone(),
            ..QuantizeOptions::default()
        };
        let report = run(&folder.path().join("bundle"), &options, None).unwrap();
        assert_eq!(report.tensors.iter().filter(|t| t.smoothed).count(), expected);
    }
    let uneven =
        QuantizeOptions { pre_quant_scales: [(part("query"), vec![2.0; 16])].into(), ..QuantizeOptions::default() };
    let error = run(&folder.path().join("bundle"), &uneven, None).unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("self.key.weight"), "{error}");
}
