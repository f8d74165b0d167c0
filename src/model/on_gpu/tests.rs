//! The model on a GPU against the composed one, and against itself in other company. Where there is no adapter, hardware or software,
//! nothing runs.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use pollster::block_on;

use super::*;
use crate::Checkpoint;
use crate::bundle::quantize_rows;
use crate::error::Error;
use crate::gpu::{GpuLimits, Wanted, open};
use crate::model::weights::Int8;
use crate::model::{Model, Weights};

/// Integers for every matrix, and where a layer's inputs are multiplied by something, that.
struct Quantized(Weights);

impl WeightSource for Quantized {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.0.take(name, shape)
    }

    fn take_values(&mut self, name: &str, shape: &[usize]) -> Result<Values> {
        let (integers, scales) = quantize_rows(&self.take(name, shape)?, shape[1]);
        let has_factors = name.contains("self") || name.contains("output.dense");
        let factors = (0..shape[1]).map(|i| 0.5 + (i % 7) as f32 / 4.0);
        let pre_quant_scale = has_factors.then(|| factors.collect());
        Ok(Values::Int8(Int8 { integers: integers.into(), scales, pre_quant_scale }))
    }
}

/// What those integers stand for.
struct Widened(Quantized);

impl WeightSource for Widened {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        match shape.len() == 2 && !name.contains("position") && !name.contains("type") {
            true => self.0.take_values(name, shape).map(Values::into_floats),
            false => self.0.take(name, shape),
        }
    }
}

fn driver() -> Option<Arc<Driver>> {
    match open(Wanted::Named(String::new()), GpuLimits::default()) {
        Ok(adapter) => Some(adapter.driver),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn checkpoints() -> impl Iterator<Item = (String, Checkpoint)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints");
    ["bert", "distilbert", "roberta", "electra"].into_iter().flat_map(move |architecture| {
        let of = |head: &str| {
            let name = format!("{architecture}-{head}");
            let checkpoint = Checkpoint::open(folder.join(&name)).unwrap();
            (name, checkpoint)
        };
        ["encoder", "token", "sequence"].map(of)
    })
}

/// Sequences of every length that the model has positions for, and one without tokens.
fn batch(config: &ModelConfig) -> Batch {
    let most = config.max_tokens();
    let id = |i: usize, j: usize| ((i * 31 + j * 17) % config.vocab_size) as u32;
    let lengths = [5, 0].into_iter().chain((1..=most).step_by(3)).chain([most]);
    let sequences: Vec<Vec<u32>> = lengths.map(|n| (0..n).map(|j| id(n, j)).collect()).collect();
    Batch::new(&sequences, config.pad_token_id)
}

const FLOATS: GpuFormat = GpuFormat { weights_in_half: false, values_in_half: false, most_bytes: u64::MAX };

fn rows(states: Tensor<3>, batch: &Batch) -> Vec<Vec<f32>> {
    let [_, seq, width] = states.dims();
    let states = states.into_data().try_into_vec::<f32>().unwrap();
    let each = states.chunks(seq * width).zip(batch.lengths());
    each.map(|(row, &n)| row[..n.min(seq) * width].to_vec()).collect()
}

fn composed(config: &ModelConfig, source: &mut dyn WeightSource, batch: &Batch, output: Output) -> Vec<Vec<f32>> {
    let model = Model::load(config, source, &Device::flex()).unwrap();
    let states = model.hidden_states(batch, &Device::flex(), &mut None, &mut |_, _| Ok(())).unwrap();
    match output {
        Output::States => rows(states, batch),
        Output::Logits => rows(model.logits(states, &mut None).unwrap(), batch),
    }
}

fn largest(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let lengths = |values: &[Vec<f32>]| values.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(found), lengths(expected));
    let pairs = found.iter().flatten().zip(expected.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |most, x| if x > most || x.is_nan() { x } else { most })
}

fn computed(
    model: &GpuModel,
    batch: &Batch,
    output: Output,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    block_on(model.outputs(batch, output, check)?)
}

#[test]
fn every_architecture_and_precision_is_the_composed_model() {
    let Some(driver) = driver() else { return };
    for (name, Checkpoint { config, weights, .. }) in checkpoints() {
        let batch = batch(&config);
        let output = if config.task == Task::Encoder { Output::States } else { Output::Logits };
        let found = |source: &mut dyn WeightSource, format| {
            let model = GpuModel::load(&config, source, format, driver.clone()).unwrap();
            computed(&model, &batch, output, &mut || Ok(())).unwrap()
        };
        let expected = composed(&config, &mut weights.clone(), &batch, output);
        let floats = largest(&found(&mut weights.clone(), FLOATS), &expected);
        let widened = composed(&config, &mut Widened(Quantized(weights.clone())), &batch, output);
        let int8 = largest(&found(&mut Quantized(weights.clone()), FLOATS), &widened);
        let in_half = GpuFormat { weights_in_half: true, ..FLOATS };
        let half = largest(&found(&mut weights.clone(), in_half), &expected);
        println!("{name}: f32 {floats:.1e}, int8 {int8:.1e}, weights in f16 {half:.1e}");
        assert!(floats <= 1e-5 && int8 <= 1e-4 && half <= 2e-2, "{name}");
        if gpu_has_half() {
            let half = largest(&found(&mut weights.clone(), GpuFormat { values_in_half: true, ..in_half }), &expected);
            println!("{name}: f16 {half:.1e}");
            assert!(half <= 2e-2, "{name}: {half}");
        }
    }
}

fn gpu_has_half() -> bool {
    open(Wanted::Named(String::new()), GpuLimits::default()).is_ok_and(|adapter| adapter.limits.f16)
}

#[test]
fn neither_batch_nor_parts_of_a_table_change_a_bit() {
    let Some(driver) = driver() else { return };
    for (name, Checkpoint { config, weights, .. }) in checkpoints().filter(|(name, _)| name.ends_with("encoder")) {
        let batch = batch(&config);
        let states = |batch: &Batch, most_bytes| {
            let format = GpuFormat { most_bytes, ..FLOATS };
            let model = GpuModel::load(&config, &mut Quantized(weights.clone()), format, driver.clone()).unwrap();
            computed(&model, batch, Output::States, &mut || Ok(())).unwrap()
        };
        let whole = states(&batch, u64::MAX);
        let row = config.embedding_size.next_multiple_of(4) as u64;
        for rows in [config.vocab_size as u64 - 1, 20, 7] {
            assert!(states(&batch, rows * row) == whole, "{name}: {rows} rows a part");
        }
        for i in [0, 2, batch.dims()[0] - 1] {
            assert!(states(&batch.rows(i..i + 1), u64::MAX)[0] == whole[i], "{name}: sequence {i} alone");
        }
    }
}

#[test]
fn a_call_may_be_ended_between_layers() {
    let Some(driver) = driver() else { return };
    let (_, Checkpoint { config, mut weights, .. }) = checkpoints().next().unwrap();
    let model = GpuModel::load(&config, &mut weights, FLOATS, driver).unwrap();
    let whole = computed(&model, &batch(&config), Output::States, &mut || Ok(())).unwrap();
    let mut left = 1;
    let error = computed(&model, &batch(&config), Output::States, &mut || {
        left -= 1;
        if left < 0 { Err(Error::new(crate::ErrorKind::Cancelled, "enough")) } else { Ok(()) }
    });
    assert_eq!(error.unwrap_err().kind(), crate::ErrorKind::Cancelled);
    assert!(computed(&model, &batch(&config), Output::States, &mut || Ok(())).unwrap() == whole);
    let error = computed(&model, &batch(&config), Output::Logits, &mut || Ok(())).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Incompatible);
    let nothing = computed(&model, &Batch::new::<&[u32]>(&[&[], &[]], 0), Output::States, &mut || Ok(())).unwrap();
    assert_eq!(nothing, [Vec::<f32>::new(), Vec::new()]);
}
