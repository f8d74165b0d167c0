//! The fused model against the composed one, and against itself in other company.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};

use super::*;
use crate::Checkpoint;
use crate::bundle::quantize_rows;
#[cfg(feature = "autodiff")]
use crate::model::FrozenModel;
use crate::model::{Model, Weights};

/// Integers for every matrix of floats with rows enough to be quantized.
struct Quantized(Weights);

impl WeightSource for Quantized {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.0.take(name, shape)
    }

    fn take_values(&mut self, name: &str, shape: &[usize]) -> Result<Values> {
        let (integers, scales) = quantize_rows(&self.take(name, shape)?, shape[1]);
        Ok(Values::Int8(Int8 { integers: integers.into(), scales, pre_quant_scale: None }))
    }
}

/// The same with factors that are not those of the layer's other matrices.
struct Uneven(Quantized);

impl WeightSource for Uneven {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.0.take(name, shape)
    }

    fn take_values(&mut self, name: &str, shape: &[usize]) -> Result<Values> {
        let Values::Int8(int8) = self.0.take_values(name, shape)? else { panic!("no integers") };
        let pre_quant_scale = name.contains("key").then(|| vec![2.0; shape[1]]);
        Ok(Values::Int8(Int8 { pre_quant_scale, ..int8 }))
    }
}

#[test]
fn a_layer_whose_factors_differ_is_refused() {
    let checkpoint = Checkpoint::open(folder("bert-encoder")).unwrap();
    let kernel = Kernel::by_name("scalar").unwrap();
    let mut source = Uneven(Quantized(checkpoint.weights));
    let error = load(&checkpoint.config, &mut source, kernel).err().unwrap();
    assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
    assert!(error.to_string().contains("attention.self.key"), "{error}");
}

/// Every score is infinite, and no softmax is to be had of them: no kernel may make an answer of that.
#[test]
fn scores_that_overflow_give_no_finite_states() {
    for kernel in Kernel::available() {
        for is_int8 in [false, true] {
            let Checkpoint { config, mut weights, .. } = Checkpoint::open(folder("bert-encoder")).unwrap();
            for part in ["query", "key"] {
                weights.0.get_mut(&format!("encoder.layer.0.attention.self.{part}.bias")).unwrap().data.fill(3e38);
            }
            let ids = vec![vec![5, 6, 7, 8, 9]];
            let model = match is_int8 {
                true => load(&config, &mut Quantized(weights), kernel),
                false => load(&config, &mut weights, kernel),
            };
            let states = hidden(&mut model.unwrap(), &ids, 1);
            assert!(states[0].iter().all(|x| !x.is_finite()), "{kernel:?}, int8: {is_int8}");
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

fn checkpoints() -> impl Iterator<Item = (&'static str, Checkpoint)> {
    ["bert", "distilbert", "roberta", "electra"]
        .into_iter()
        .map(|name| (name, Checkpoint::open(folder(&format!("{name}-encoder"))).unwrap()))
}

/// Sequences of every length that the model has positions for.
fn sequences(config: &ModelConfig) -> Vec<Vec<u32>> {
    let most = config.max_tokens();
    let id = |i: usize, j: usize| ((i * 31 + j * 17) % config.vocab_size) as u32;
    (1..=most).step_by(3).chain([most]).map(|n| (0..n).map(|j| id(n, j)).collect()).collect()
}

fn load(config: &ModelConfig, source: &mut dyn WeightSource, kernel: Kernel) -> Result<PackedModel> {
    PackedModel::load(config, source, kernel, Workers::Team(Team::start(1)?))
}

fn hidden(model: &mut PackedModel, sequences: &[Vec<u32>], threads: usize) -> Vec<Vec<f32>> {
    model.workers = Workers::Team(Team::start(threads).unwrap());
    let batch = Batch::new(sequences, model.config.pad_token_id);
    model.outputs(&batch, Output::States, &mut || Ok(())).unwrap()
}

/// The states of each sequence, padding left out.
fn rows(states: Tensor<3>, batch: &Batch) -> Vec<Vec<f32>> {
    let [_, seq, width] = states.dims();
    let states = states.into_data().try_into_vec::<f32>().unwrap();
    states.chunks(seq * width).zip(batch.lengths()).map(|(row, &n)| row[..n.min(seq) * width].to_vec()).collect()
}

fn largest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn cosine(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let dot = |a: &[Vec<f32>], b: &[Vec<f32>]| -> f64 {
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn fused_is_composed_in_every_architecture() {
    for (name, checkpoint) in checkpoints() {
        let config = &checkpoint.config;
        let composed = Model::load(config, &mut checkpoint.weights.clone(), &Device::flex()).unwrap();
        let sequences = sequences(config);
        let batch = Batch::new(&sequences, config.pad_token_id);
        let states = composed.hidden_states(&batch, &Device::flex(), &mut None, &mut |_, _| Ok(())).unwrap();
        let expected = rows(states, &batch);
        for kernel in Kernel::available() {
            let mut weights = checkpoint.weights.clone();
            let mut packed = load(config, &mut weights, kernel).unwrap();
            assert!(weights.0.is_empty(), "{name}: {:?} are left", weights.0.keys());
            let largest = largest(&hidden(&mut packed, &sequences, 2), &expected);
            println!("{name}, {kernel:?}: {largest:.1e}");
            assert!(largest <= 1e-5, "{name}, {kernel:?}: {largest:e}");
        }
    }
}

#[test]
fn heads_give_the_composed_models_logits() {
    for architecture in ["bert", "distilbert", "roberta", "electra"] {
        for head in ["token", "sequence"] {
            let name = format!("{architecture}-{head}");
            let Checkpoint { config, weights, .. } = Checkpoint::open(folder(&name)).unwrap();
            let batch = Batch::new(&sequences(&config), config.pad_token_id);
            let composed = Model::load(&config, &mut weights.clone(), &Device::flex()).unwrap();
            let states = composed.hidden_states(&batch, &Device::flex(), &mut None, &mut |_, _| Ok(())).unwrap();
            let expected = rows(composed.logits(states, &mut None).unwrap(), &batch);
            for kernel in Kernel::available() {
                let packed = load(&config, &mut weights.clone(), kernel).unwrap();
                let found = packed.outputs(&batch, Output::Logits, &mut || Ok(())).unwrap();
                let lengths = |values: &[Vec<f32>]| values.iter().map(Vec::len).collect::<Vec<_>>();
                assert_eq!(lengths(&found), lengths(&expected), "{name}");
                let largest = largest(&found, &expected);
                assert!(largest <= 1e-5, "{name}, {kernel:?}: {largest:e}");
            }
        }
    }
}

#[cfg(feature = "autodiff")]
#[test]
fn a_frozen_model_gives_every_state_of_the_composed_one() {
    let device = Device::flex();
    for name in ["bert-token", "distilbert-sequence", "roberta-sequence", "electra-token"] {
        let Checkpoint { config, mut weights, .. } = Checkpoint::open(folder(name)).unwrap();
        let frozen = [
            FrozenModel::load(&config, &mut weights.clone(), &device).unwrap(),
            FrozenModel::composed(&config, &mut weights.clone(), &device).unwrap(),
        ];
        let composed = Model::load(&config, &mut weights, &device).unwrap();
        // More tokens than one group, so that layers are computed in parts.
        let sequences: Vec<Vec<u32>> = (0..9).flat_map(|_| sequences(&config)).collect();
        let batch = Batch::new(&sequences, config.pad_token_id);
        let mut wanted = BTreeMap::new();
        let last = composed
            .hidden_states(&batch, &device, &mut None, &mut |state, x| {
                if !matches!(state, HiddenState::Attention(_)) {
                    wanted.insert(state, rows(x.clone(), &batch));
                }
                Ok(())
            })
            .unwrap();
        let logits = rows(composed.logits(last, &mut None).unwrap(), &batch);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let names = wanted.keys().copied().collect();
        let found = pool.install(|| frozen.map(|frozen| frozen.compute(&batch, &names).unwrap()));
        for (i, found) in found.iter().flat_map(|found| found.iter().enumerate()) {
            assert!(found.states.keys().eq(wanted.keys()), "{name}");
            for (state, x) in &found.states {
                let difference = largest(std::slice::from_ref(x), &wanted[state][i..=i]);
                assert!(difference < 1e-5, "{name}, {state:?}: {difference}");
            }
            assert_eq!(found.logits.len(), logits[i].len(), "{name}");
            assert!(largest(std::slice::from_ref(&found.logits), &logits[i..=i]) < 1e-5, "{name}");
        }
    }
    let Checkpoint { config, weights, .. } = Checkpoint::open(folder("bert-encoder")).unwrap();
    let batch = Batch::new(&sequences(&config), config.pad_token_id);
    let wanted = [HiddenState::Layer(config.num_hidden_layers)].into();
    for load in [FrozenModel::load, FrozenModel::composed] {
        let found = load(&config, &mut weights.clone(), &device).unwrap().compute(&batch, &wanted).unwrap();
        assert!(found.len() == batch.dims()[0]);
        assert!(found.iter().all(|found| found.states.keys().eq(&wanted) && found.logits.is_empty()));
    }
}

#[test]
fn neither_batch_nor_padding_nor_threads_change_a_bit() {
    for (name, checkpoint) in checkpoints() {
        let config = &checkpoint.config;
        let sequences = sequences(config);
        for kernel in Kernel::available() {
            for int8 in [false, true] {
                let mut weights = checkpoint.weights.clone();
                let source: &mut dyn WeightSource = if int8 { &mut Quantized(weights.clone()) } else { &mut weights };
                let mut packed = load(config, source, kernel).unwrap();
                let expected = hidden(&mut packed, &sequences, 1);
                // All sequences are one group where there are 8.
                for threads in [2, 3, 8] {
                    assert!(
                        hidden(&mut packed, &sequences, threads) == expected,
                        "{name}, {kernel:?}: {threads} threads"
                    );
                }
                for (sequence, expected) in sequences.iter().zip(&expected) {
                    let alone = hidden(&mut packed, std::slice::from_ref(sequence), 1);
                    assert!(alone[0] == *expected, "{name}, {kernel:?}: {} tokens alone", sequence.len());
                }
                #[cfg(feature = "autodiff")]
                for threads in [1, 3] {
                    packed.workers = Workers::Pool;
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let batch = Batch::new(&sequences, config.pad_token_id);
                    let found = pool.install(|| packed.outputs(&batch, Output::States, &mut || Ok(()))).unwrap();
                    assert!(found == expected, "{name}, {kernel:?}: a pool of {threads}");
                }
            }
        }
    }
}

#[test]
fn int8_stays_near_the_floats_and_every_kernel_near_the_scalar_one() {
    for (name, checkpoint) in checkpoints() {
        let config = &checkpoint.config;
        let sequences = sequences(config);
        let states =
            |kernel, source: &mut dyn WeightSource| hidden(&mut load(config, source, kernel).unwrap(), &sequences, 1);
        let scalar = Kernel::by_name("scalar").unwrap();
        let floats = states(scalar, &mut checkpoint.weights.clone());
        let integers = states(scalar, &mut Quantized(checkpoint.weights.clone()));
        let apart = cosine(&floats, &integers);
        println!("{name}: cosine of int8 {apart:.5}");
        assert!(apart >= 0.999, "{name}: {apart}");
        for kernel in Kernel::available() {
            let largest = largest(&states(kernel, &mut checkpoint.weights.clone()), &floats);
            assert!(largest <= 1e-5, "{name}, {kernel:?}: {largest:e}");
            // Where a float's last digit decides between two integers, kernels are a whole step apart.
            let apart = cosine(&states(kernel, &mut Quantized(checkpoint.weights.clone())), &integers);
            println!("{name}, {kernel:?}: cosine {apart:.7}");
            assert!(apart >= 0.999_99, "{name}, {kernel:?}: {apart}");
        }
    }
}

#[test]
fn a_call_that_is_ended_between_layers_leaves_the_model_usable() {
    let (_, checkpoint) = checkpoints().next().unwrap();
    let mut packed =
        load(&checkpoint.config, &mut checkpoint.weights.clone(), Kernel::available().next().unwrap()).unwrap();
    let sequences = sequences(&checkpoint.config);
    let expected = hidden(&mut packed, &sequences, 1);
    for after in 0..=checkpoint.config.num_hidden_layers {
        let mut seen = 0;
        let batch = Batch::new(&sequences, checkpoint.config.pad_token_id);
        let ended = packed.outputs(&batch, Output::States, &mut || {
            seen += 1;
            if seen > after { Err(crate::Error::invalid_input("enough")) } else { Ok(()) }
        });
        assert!(ended.is_err() && hidden(&mut packed, &sequences, 1) == expected, "after {after} layers");
    }
}
