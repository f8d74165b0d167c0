//! Ways back against numerical differences of plain loops in f64, and the whole model's against those that Burn derives.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Gradients;

use super::*;
use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
use crate::model::{HiddenState, Model, Noise, parameter_name};

/// Values in -1..1.
fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut noise = Noise::new(seed);
    (0..count).map(|_| (noise.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn leaf<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    let data = TensorData::new(values.to_vec(), shape);
    Tensor::from_data(data, &Device::flex().autodiff()).require_grad()
}

/// Holds `found`, the gradients of `inputs` of the sum of `f` times `weights`, to the differences of `f` in f64.
fn check(inputs: &[Vec<f32>], weights: &[f32], found: &[Vec<f32>], f: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
    const H: f64 = 1e-4;
    let exact: Vec<Vec<f64>> = inputs.iter().map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
    let loss = |inputs: &[Vec<f64>]| -> f64 { f(inputs).iter().zip(weights).map(|(y, &w)| y * f64::from(w)).sum() };
    for (which, found) in found.iter().enumerate() {
        assert_eq!(found.len(), inputs[which].len());
        for (i, &found) in found.iter().enumerate() {
            let moved = |by: f64| {
                let mut inputs = exact.clone();
                inputs[which][i] += by;
                loss(&inputs)
            };
            let expected = (moved(H) - moved(-H)) / (2.0 * H);
            let error = (f64::from(found) - expected).abs();
            assert!(error <= 1e-5 * expected.abs().max(1.0), "input {which} at {i}: {found}, expected {expected}");
        }
    }
}

fn gradient<const D: usize>(x: &Tensor<D>, gradients: &Gradients) -> Vec<f32> {
    x.grad(gradients).unwrap().into_data().try_into_vec().unwrap()
}

/// The sum of `y` times `weights`, differentiated.
fn back<const D: usize>(y: &Tensor<D>, weights: &[f32]) -> Gradients {
    let by = TensorData::new(weights.to_vec(), y.shape());
    (y.clone() * Tensor::from_data(by, &y.device())).sum().backward()
}

fn floats<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.clone().into_data().try_into_vec().unwrap()
}

/// Holds the values of `y` to those of `f`.
fn check_values(y: &[f32], expected: &[f64]) {
    assert_eq!(y.len(), expected.len());
    for (y, expected) in y.iter().zip(expected) {
        assert!((f64::from(*y) - expected).abs() <= 2e-6 * expected.abs().max(1.0), "{y}, expected {expected}");
    }
}

/// The error function by its series (Abramowitz and Stegun 7.1.5).
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn linear_layers_side_by_side_and_gelu_go_back_as_differences_say() {
    for kernel in Kernel::available() {
        for (with_gelu, inputs, outputs) in [(false, 5, 3), (true, 5, 3), (true, 17, 19)] {
            let tensors = [6 * inputs, inputs * outputs, outputs, inputs * outputs, outputs, inputs * outputs, outputs];
            let values: Vec<Vec<f32>> = (0..7).map(|i| random(i as u64, tensors[i])).collect();
            let weights = random(9, 6 * 3 * outputs);
            let x = leaf(&values[0], [2, 3, inputs]);
            let parts: Vec<_> = (1..7)
                .step_by(2)
                .map(|i| (leaf(&values[i], [inputs, outputs]), leaf(&values[i + 1], [outputs])))
                .collect();
            let y = linear::<3, 7>(kernel, x.clone(), parts.clone(), with_gelu);
            let f = |t: &[Vec<f64>]| {
                let mut y = Vec::new();
                for row in t[0].chunks(inputs) {
                    for part in t[1..].chunks(2) {
                        y.extend((0..outputs).map(|j| {
                            let z = (0..inputs).map(|i| row[i] * part[0][i * outputs + j]).sum::<f64>() + part[1][j];
                            if with_gelu { 0.5 * z * (1.0 + erf(z / std::f64::consts::SQRT_2)) } else { z }
                        }));
                    }
                }
                y
            };
            let exact: Vec<Vec<f64>> = values.iter().map(|v| v.iter().map(|&x| f64::from(x)).collect()).collect();
            check_values(&floats(&y), &f(&exact));
            let gradients = back(&y, &weights);
            let of_parts = parts.iter().flat_map(|(w, b)| [gradient(w, &gradients), gradient(b, &gradients)]);
            let found: Vec<_> = std::iter::once(gradient(&x, &gradients)).chain(of_parts).collect();
            check(&values, &weights, &found, f);
        }
    }
}

#[test]
fn dropout_residual_and_norm_go_back_as_differences_say() {
    for kernel in Kernel::available() {
        for (width, dropout) in [(7, None), (7, Some(Dropout::new(3, 0.4))), (19, Some(Dropout::new(4, 0.1)))] {
            let values = [random(1, 6 * width), random(2, 6 * width), random(3, width), random(4, width)];
            let weights = random(5, 6 * width);
            let (x, residual) = (leaf(&values[0], [2, 3, width]), leaf(&values[1], [2, 3, width]));
            let (gamma, beta) = (leaf(&values[2], [width]), leaf(&values[3], [width]));
            let y = add_norm(kernel, x.clone(), residual.clone(), dropout, [gamma.clone(), beta.clone()], 1e-5);
            let f = |t: &[Vec<f64>]| {
                let mut y = Vec::new();
                let mut factors = vec![1.0; width];
                for (number, (x, residual)) in t[0].chunks(width).zip(t[1].chunks(width)).enumerate() {
                    if let Some(dropout) = dropout {
                        dropout.factors(number, &mut factors);
                    }
                    let row: Vec<f64> = (0..width).map(|i| x[i] * f64::from(factors[i]) + residual[i]).collect();
                    let mean = row.iter().sum::<f64>() / width as f64;
                    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                    y.extend((0..width).map(|i| (row[i] - mean) / (variance + 1e-5).sqrt() * t[2][i] + t[3][i]));
                }
                y
            };
            check_values(&floats(&y), &f(&values.each_ref().map(|v| v.iter().map(|&x| f64::from(x)).collect())));
            let gradients = back(&y, &weights);
            let found = [
                gradient(&x, &gradients),
                gradient(&residual, &gradients),
                gradient(&gamma, &gradients),
                gradient(&beta, &gradients),
            ];
            check(&values, &weights, &found, f);
        }
    }
}

/// The attention of `qkv` `[batch, seq, 3 * hidden]` in f64.
fn attention_in_f64(
    qkv: &[f64],
    heads: usize,
    hidden: usize,
    seq: usize,
    lengths: &[usize],
    dropout: Option<Dropout>,
) -> Vec<f64> {
    let width = hidden / heads;
    let mut y = vec![0.0; lengths.len() * seq * hidden];
    let mut factors = vec![1.0; seq];
    for (b, &length) in lengths.iter().enumerate() {
        for head in 0..heads {
            let at =
                |token: usize, part: usize| &qkv[((b * seq + token) * 3 + part) * hidden + head * width..][..width];
            for i in 0..seq {
                if let Some(dropout) = dropout {
                    dropout.factors((b * heads + head) * seq + i, &mut factors);
                }
                let score = |j| {
                    let dot: f64 = at(i, 0).iter().zip(at(j, 1)).map(|(q, k)| q * k).sum();
                    (dot / (width as f64).sqrt()).exp()
                };
                let sum: f64 = (0..length).map(score).sum();
                for (j, &factor) in factors.iter().enumerate().take(length) {
                    let p = score(j) / sum * f64::from(factor);
                    let to = &mut y[(b * seq + i) * hidden + head * width..][..width];
                    to.iter_mut().zip(at(j, 2)).for_each(|(y, v)| *y += p * v);
                }
            }
        }
    }
    y
}

#[test]
fn attention_goes_back_as_differences_say() {
    for kernel in Kernel::available() {
        for (heads, hidden, seq, lengths) in [(2, 6, 4, [4, 4]), (2, 6, 4, [1, 3]), (1, 5, 17, [17, 16])] {
            for dropout in [None, Some(Dropout::new(11, 0.3))] {
                let values = [random(1, 2 * seq * 3 * hidden).iter().map(|x| 3.0 * x).collect::<Vec<f32>>()];
                let weights = random(2, 2 * seq * hidden);
                let qkv = leaf(&values[0], [2, seq, 3 * hidden]);
                let y = attention(kernel, qkv.clone(), heads, &lengths, dropout);
                let f = |t: &[Vec<f64>]| attention_in_f64(&t[0], heads, hidden, seq, &lengths, dropout);
                check_values(&floats(&y), &f(&values.each_ref().map(|v| v.iter().map(|&x| f64::from(x)).collect())));
                let found = [gradient(&qkv, &back(&y, &weights))];
                check(&values, &weights, &found, f);
            }
        }
    }
}

/// On every kernel, at sizes around those of vectors and tiles, where no memory was used before and where some was.
#[test]
fn attention_of_every_size_is_that_of_plain_loops_on_every_kernel() {
    let mut scratch = Scratch::default();
    for kernel in Kernel::available() {
        for (seq, width) in [(1usize, 1), (8, 16), (15, 33), (33, 48), (64, 32), (70, 7)] {
            let (heads, lengths) = (2, [seq, seq.div_ceil(2)]);
            let hidden = heads * width;
            let dropout = Some(Dropout::new(seq as u64, 0.1));
            let of = Heads { seq, hidden, heads, lengths: &lengths, dropout };
            let qkv = random(1, 2 * seq * 3 * hidden);
            let (mut kept, mut out) = (vec![f32::NAN; 4 * seq * heads], vec![f32::NAN; 2 * seq * hidden]);
            kernel.attend_in_training(&qkv, of, &mut scratch, &mut kept, &mut out);
            let exact: Vec<f64> = qkv.iter().map(|&x| f64::from(x)).collect();
            check_values(&out, &attention_in_f64(&exact, heads, hidden, seq, &lengths, dropout));
            // Along one direction, since every value's difference would take long.
            let (weights, direction) = (random(2, out.len()), random(3, qkv.len()));
            let mut gradient = qkv;
            kernel.attend_gradient(&mut gradient, of, &kept, &weights, &mut scratch);
            let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let loss = |by: f64| -> f64 {
                let moved: Vec<f64> = exact.iter().zip(&direction).map(|(x, d)| x + by * f64::from(*d)).collect();
                let y = attention_in_f64(&moved, heads, hidden, seq, &lengths, dropout);
                y.iter().zip(&weights).map(|(y, w)| y * f64::from(*w)).sum()
            };
            let expected = (loss(1e-5) - loss(-1e-5)) / 2e-5;
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                "{kernel:?}, {seq}, {width}: {found}, {expected}"
            );
        }
    }
}

#[test]
fn products_are_those_of_plain_loops_whatever_the_strides() {
    let (m, n, k) = (5, 7, 9);
    let (a, b) = (random(1, m * k), random(2, k * n));
    for (a_strides, b_strides) in [([k, 1], [n, 1]), ([1, m], [n, 1]), ([k, 1], [1, k])] {
        for adds in [false, true] {
            let mut out = vec![1.0; m * (n + 2)];
            multiply([m, n, k], (&a, a_strides), (&b, b_strides), (&mut out, n + 2), adds);
            for (i, row) in out.chunks(n + 2).enumerate() {
                for (j, &found) in row.iter().enumerate() {
                    let product = |l| a[i * a_strides[0] + l * a_strides[1]] * b[l * b_strides[0] + j * b_strides[1]];
                    let expected =
                        if j < n { (0..k).map(product).sum::<f32>() + f32::from(u8::from(adds)) } else { 1.0 };
                    assert!((found - expected).abs() < 1e-5, "{i}, {j}: {found}, {expected}");
                }
            }
        }
    }
}

#[test]
#[should_panic]
fn a_product_beyond_its_memory_is_refused() {
    multiply([2, 2, 2], (&[0.0; 4], [2, 1]), (&[0.0; 3], [2, 1]), (&mut [0.0; 4], 2), false);
}

/// Each parameter as a leaf of its own.
struct Leaves(Device);

impl ModuleMapper for Leaves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| Tensor::from_data(tensor.into_data(), &self.0)).set_require_grad(true)
    }
}

struct Named<'a>(Vec<String>, &'a Gradients, BTreeMap<String, Vec<f32>>);

impl ModuleVisitor for Named<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.0.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad(self.1) {
            self.2.insert(parameter_name(&self.0), gradient.into_data().try_into_vec().unwrap());
        }
    }
}

/// The logits, and the gradient of every parameter of a loss of the logits, of a hidden state and of a layer's keys.
fn trained(model: &Model, batch: &Batch, device: &Device) -> (Vec<f32>, BTreeMap<String, Vec<f32>>) {
    let model = model.clone().map(&mut Leaves(device.clone()));
    let mut noise = Some(Noise::new(7));
    let mut between = Vec::new();
    let hidden = model.hidden_states(batch, device, &mut noise, &mut |state, x| {
        if matches!(state, HiddenState::Key(1) | HiddenState::Layer(1)) {
            between.push(x.clone());
        }
        Ok(())
    });
    let logits = model.logits(hidden.unwrap(), &mut noise).unwrap();
    // Padding teaches nothing.
    let mask = batch.attention_mask(device).unsqueeze_dim::<3>(2);
    let weighted = |x: Tensor<3>, seed: u64| {
        let by = TensorData::new(random(seed, x.shape().num_elements()), x.shape());
        let x = x * Tensor::from_data(by, device);
        if x.dims()[1] == 1 { x.sum() } else { (x * mask.clone()).sum() }
    };
    let mut loss = weighted(logits.clone(), 1);
    for (x, seed) in between.into_iter().zip(2..) {
        loss = loss + weighted(x, seed);
    }
    let gradients = loss.backward();
    let mut named = Named(Vec::new(), &gradients, BTreeMap::new());
    model.visit(&mut named);
    (floats(&logits), named.2)
}

#[test]
fn every_architecture_has_the_gradients_that_burn_derives() {
    let flex = Device::flex().autodiff();
    // Burn's other way of differentiation is composed.
    let composed = Device::flex().autodiff().gradient_checkpointing();
    let is_fused = |device: &Device| kernel(&Tensor::<1>::zeros([1], device)).is_some();
    assert!(is_fused(&flex) && !is_fused(&composed));
    let mut largest = 0f64;
    for name in
        ["bert-token", "distilbert-token", "roberta-token", "electra-token", "bert-sequence", "electra-sequence"]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name);
        let Checkpoint { mut config, mut weights, .. } = Checkpoint::open(folder).unwrap();
        (config.hidden_dropout_prob, config.attention_probs_dropout_prob) = (0.1, 0.2);
        let model = Model::load(&config, &mut weights, &Device::flex()).unwrap();
        let id = |i: usize| (7 + i * 17 % (config.vocab_size - 7)) as u32;
        for lengths in [[9, 9, 9], [3, 9, 1]] {
            let sequences: Vec<Vec<u32>> = lengths.iter().map(|&n| (0..n).map(id).collect()).collect();
            let batch = Batch::new(&sequences, config.pad_token_id);
            let (logits, found) = trained(&model, &batch, &flex);
            let (expected_logits, expected) = trained(&model, &batch, &composed);
            let difference = logits.iter().zip(&expected_logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-5, "{name}: logits differ by {difference}");
            assert!(found.keys().eq(expected.keys()), "{name}");
            // That of a key's bias is zero but for rounding.
            let most = expected.values().flatten().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
            for (parameter, expected) in &expected {
                let size = expected.iter().map(|x| f64::from(x.abs())).fold(most / 100.0, f64::max);
                for (found, expected) in found[parameter].iter().zip(expected) {
                    let error = f64::from((found - expected).abs()) / size;
                    largest = largest.max(error);
                    assert!(error < 2e-5, "{name}, {parameter}: {found}, expected {expected}");
                }
            }
        }
    }
    println!("largest error, of the largest value of its tensor: {largest:.1e}");
}
