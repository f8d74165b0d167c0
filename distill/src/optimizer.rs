//! AdamW on the host, by parameter name.
//!
//! Burn's own optimizers key their moments by ids that are drawn anew whenever a model is loaded, clip each tensor by itself,
//! and decay every parameter. A run that resumes from files needs names; the field's recipes clip by the global norm and leave
//! biases and layer norms undecayed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ampoule::model::{Model, parameter_name};
use ampoule::{Error, Result};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// AdamW (Loshchilov and Hutter 2019) with a linear warm-up and a linear decay to zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamW {
    /// Learning rate at the end of the warm-up.
    pub learning_rate: f64,
    /// Share of all steps over which the rate rises from zero.
    pub warmup: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Keeps the quotient finite.
    pub epsilon: f64,
    /// Decoupled weight decay; biases and layer norms have none.
    pub weight_decay: f64,
    /// The largest global norm of the gradient; a longer one is scaled down to it.
    pub max_grad_norm: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            learning_rate: 1.5e-4,
            warmup: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
        }
    }
}

impl AdamW {
    /// The learning rate of step `step` (from 0) of `total`.
    pub fn rate(&self, step: usize, total: usize) -> f64 {
        let warmup = (self.warmup * total as f64).ceil();
        let step = step as f64;
        let share = if step < warmup {
            (step + 1.0) / warmup
        } else {
            (total as f64 - step) / (total as f64 - warmup).max(1.0)
        };
        self.learning_rate * share.clamp(0.0, 1.0)
    }
}

/// First and second moments of one parameter, in its layout in memory.
#[derive(Clone, Default)]
pub(crate) struct Moments {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
}

/// What the optimizer remembers between steps.
#[derive(Clone, Default)]
pub(crate) struct OptimizerState {
    pub(crate) moments: BTreeMap<String, Moments>,
    /// Updates made so far.
    pub(crate) updates: u64,
}

impl OptimizerState {
    /// Makes one update of every parameter that has a gradient, and returns the gradient's global norm before clipping.
    ///
    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where the gradient is not finite; the model is then as it was.
    pub(crate) fn update(
        &mut self,
        config: &AdamW,
        rate: f64,
        model: &mut Model,
        gradient: NamedGradients,
    ) -> Result<f64> {
        let norm = gradient.0.values().map(|g| squared_norm(g)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(Error::invalid_input(format!("the gradient is not finite ({norm}); lower the learning rate")));
        }
        self.updates += 1;
        let scale = if norm > config.max_grad_norm { config.max_grad_norm / (norm + 1e-6) } else { 1.0 };
        let step = Update {
            scale: scale as f32,
            beta1: config.beta1 as f32,
            beta2: config.beta2 as f32,
            // The bias corrections are folded into the rate and epsilon, in f64.
            rate: (rate / (1.0 - config.beta1.powi(self.updates as i32))) as f32,
            root2: (1.0 / (1.0 - config.beta2.powi(self.updates as i32)).sqrt()) as f32,
            epsilon: config.epsilon as f32,
            decay: (1.0 - rate * config.weight_decay) as f32,
        };
        let mut apply = Apply { path: Vec::new(), gradients: gradient.0, moments: &mut self.moments, step };
        *model = std::mem::replace(model, model.clone()).map(&mut apply);
        Ok(norm)
    }
}

/// Values that one task works on.
const BLOCK: usize = 1 << 14;

/// Summed by blocks in a fixed order, so that the clipping, and with it a whole run, is the same each time.
fn squared_norm(values: &[f32]) -> f64 {
    values
        .par_chunks(BLOCK)
        .map(|block| block.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>())
        .collect::<Vec<_>>()
        .into_iter()
        .sum()
}

/// A gradient on the host, by parameter name.
#[derive(Default)]
pub(crate) struct NamedGradients(BTreeMap<String, Vec<f32>>);

impl NamedGradients {
    /// Takes the gradients of `model`'s parameters out of Burn's container.
    pub(crate) fn collect(model: &Model, gradients: Gradients) -> Self {
        let mut collect = Collect { path: Vec::new(), gradients, found: BTreeMap::new() };
        model.visit(&mut collect);
        NamedGradients(collect.found)
    }

    #[cfg(test)]
    pub(crate) fn into_values(self) -> BTreeMap<String, Vec<f32>> {
        self.0
    }

    /// Adds the gradient of another part of the step.
    pub(crate) fn add(&mut self, other: NamedGradients) {
        for (name, values) in other.0 {
            match self.0.entry(name) {
                Entry::Vacant(slot) => {
                    slot.insert(values);
                }
                Entry::Occupied(mut slot) => {
                    let sums = slot.get_mut().par_chunks_mut(BLOCK);
                    sums.zip(values.par_chunks(BLOCK)).for_each(|(sums, values)| {
                        sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
                    });
                }
            }
        }
    }
}

struct Collect {
    path: Vec<String>,
    gradients: Gradients,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = param.val().grad_remove(&mut self.gradients) {
            let values = gradient.into_data_as::<f32>().try_into_vec::<f32>();
            self.found.insert(parameter_name(&self.path), values.unwrap_or_default());
        }
    }
}

struct Apply<'a> {
    path: Vec<String>,
    gradients: BTreeMap<String, Vec<f32>>,
    moments: &'a mut BTreeMap<String, Moments>,
    step: Update,
}

impl ModuleMapper for Apply<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = parameter_name(&self.path);
        let Some(gradient) = self.gradients.remove(&name) else {
            return param;
        };
        let decays = !(name.ends_with(".bias") || name.contains("LayerNorm"));
        let moments = self.moments.entry(name).or_default();
        moments.first.resize(gradient.len(), 0.0);
        moments.second.resize(gradient.len(), 0.0);
        let step = self.step;
        param.map(|tensor| {
            let device = tensor.device();
            let data = tensor.into_data_as::<f32>();
            let shape = data.shape().clone();
            let mut weights = data.try_into_vec::<f32>().unwrap_or_default();
            step.apply(decays, &mut weights, &gradient, moments);
            Tensor::from_data(TensorData::new(weights, shape), &device)
        })
    }
}

#[derive(Clone, Copy)]
struct Update {
    scale: f32,
    beta1: f32,
    beta2: f32,
    rate: f32,
    root2: f32,
    epsilon: f32,
    decay: f32,
}

impl Update {
    fn apply(self, decays: bool, weights: &mut [f32], gradient: &[f32], moments: &mut Moments) {
        let decay = if decays { self.decay } else { 1.0 };
        weights
            .par_chunks_mut(BLOCK)
            .zip(gradient.par_chunks(BLOCK))
            .zip(moments.first.par_chunks_mut(BLOCK).zip(moments.second.par_chunks_mut(BLOCK)))
            .for_each(|((weights, gradient), (first, second))| {
                let slots = weights.iter_mut().zip(gradient).zip(first.iter_mut().zip(second));
                for ((w, &g), (m, v)) in slots {
                    let g = g * self.scale;
                    *m = self.beta1 * *m + (1.0 - self.beta1) * g;
                    *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
                    *w = *w * decay - self.rate * *m / (v.sqrt() * self.root2 + self.epsilon);
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_then_falls_to_zero() {
        let adam = AdamW { learning_rate: 1.0, warmup: 0.1, ..AdamW::default() };
        let rates: Vec<_> = (0..100).map(|i| adam.rate(i, 100)).collect();
        assert!((rates[0] - 0.1).abs() < 1e-12 && (rates[9] - 1.0).abs() < 1e-12);
        assert!(rates[10..].windows(2).all(|w| w[1] < w[0]) && rates[99] > 0.0);
        assert_eq!(adam.rate(100, 100), 0.0);
    }

    /// The textbook form, in f64, with its bias corrections written out.
    #[test]
    fn an_update_is_adamw() {
        let config = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let (mut w, mut m, mut v) = (vec![0.5f64, -1.0], vec![0.0f64; 2], vec![0.0f64; 2]);
        let (mut weights, mut moments) = (vec![0.5f32, -1.0], Moments { first: vec![0.0; 2], second: vec![0.0; 2] });
        for t in 1..=5 {
            let gradient = [0.3 * t as f64, -0.02];
            for i in 0..2 {
                m[i] = 0.9 * m[i] + 0.1 * gradient[i];
                v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
                let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.999f64.powi(t)));
                w[i] -= 0.01 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * w[i]);
            }
            let step = Update {
                scale: 1.0,
                beta1: 0.9,
                beta2: 0.999,
                rate: (0.01 / (1.0 - 0.9f64.powi(t))) as f32,
                root2: (1.0 / (1.0 - 0.999f64.powi(t)).sqrt()) as f32,
                epsilon: config.epsilon as f32,
                decay: (1.0 - 0.01 * config.weight_decay) as f32,
            };
            let gradient: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            step.apply(true, &mut weights, &gradient, &mut moments);
        }
        for (found, expected) in weights.iter().zip(&w) {
            assert!((f64::from(*found) - expected).abs() < 1e-6);
        }
    }
}
