//! AdamW on the host, by parameter name.
//!
//! Burn's own optimizers key their moments by ids that are drawn anew whenever a model is loaded, clip each tensor by itself,
//! and decay every parameter. A run that resumes from files needs names; the field's recipes clip by the global norm and leave
//! biases and layer norms undecayed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ampoule::kernels::{AdamStep, Kernel};
use ampoule::model::{Model, give_back, parameter_name};
use ampoule::{Error, ErrorKind, Result};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData, Transaction};
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
    /// Decay of the first moment, in `0..1`.
    pub beta1: f64,
    /// Decay of the second moment, in `0..1`.
    pub beta2: f64,
    /// Keeps the quotient finite; above 0.
    pub epsilon: f64,
    /// Decoupled weight decay; biases and layer norms have none.
    pub weight_decay: f64,
    /// The largest global norm of the gradient, above 0; a longer one is scaled down to it. So large a one as 1e9 clips nothing.
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
    /// What is wrong with the settings.
    pub(crate) fn check(&self) -> Result<()> {
        // Computed in f32, where what is smaller is nothing.
        let is_positive = |x: f64| x > 0.0 && (x as f32).is_normal();
        let decays = |beta: f64| beta >= 0.0 && (beta as f32) < 1.0;
        let decay = self.weight_decay * self.learning_rate;
        let wrong = [
            (!is_positive(self.learning_rate), "learning_rate must be above 0"),
            (!(0.0..=1.0).contains(&self.warmup), "warmup must be in 0..=1"),
            (!decays(self.beta1) || !decays(self.beta2), "beta1 and beta2 must be in 0..1"),
            (!is_positive(self.epsilon), "epsilon must be above 0"),
            (!(0.0..1.0).contains(&decay), "weight_decay must be 0 or more, and below 1 / learning_rate"),
            (!is_positive(self.max_grad_norm), "max_grad_norm must be above 0; 1e9 clips nothing"),
        ];
        match wrong.into_iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, what)) => Err(Error::invalid_input(format!("optimizer.{what}"))),
            None => Ok(()),
        }
    }

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

    /// The update of this number, from 1, of gradients that are multiplied by `scale`. The bias corrections are folded into the rate and
    /// epsilon, in f64.
    fn step(&self, rate: f64, number: u64, scale: f64) -> AdamStep {
        AdamStep {
            scale: scale as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: (rate / (1.0 - self.beta1.powi(number as i32))) as f32,
            root2: (1.0 / (1.0 - self.beta2.powi(number as i32)).sqrt()) as f32,
            epsilon: self.epsilon as f32,
            decay: (1.0 - rate * self.weight_decay) as f32,
        }
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
        let kernel = kernel()?;
        let norm = gradient.0.values().map(|g| squared_norm(kernel, &g.values)).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(Error::invalid_input(format!("the gradient is not finite ({norm}); lower the learning rate")));
        }
        self.updates += 1;
        let scale = if norm > config.max_grad_norm { config.max_grad_norm / (norm + 1e-6) } else { 1.0 };
        let step = config.step(rate, self.updates, scale);
        let mut apply = Apply { path: Vec::new(), gradients: gradient.0, moments: &mut self.moments, kernel, step };
        // Nothing else has the weights then, and they are changed in place.
        let hollow = model.clone().map(&mut Hollow);
        *model = std::mem::replace(model, hollow).map(&mut apply);
        Ok(norm)
    }
}

/// The scalar one is as right as the others.
fn kernel() -> Result<Kernel> {
    Kernel::available().next().ok_or_else(|| Error::internal("no kernel is available"))
}

/// Values that one task works on.
const BLOCK: usize = 1 << 14;

/// Summed by blocks in a fixed order, so that the clipping, and with it a whole run, is the same each time.
fn squared_norm(kernel: Kernel, values: &[f32]) -> f64 {
    values.par_chunks(BLOCK).map(|block| kernel.squared_norm(block)).collect::<Vec<_>>().into_iter().sum()
}

/// The gradient of one parameter, on the host.
struct Gradient {
    /// Of a matrix, the rows that it is of, rising, where that of the others is zero.
    rows: Option<Vec<i32>>,
    values: Vec<f32>,
}

impl Gradient {
    /// Adds another of the same parameter.
    fn add(&mut self, other: Gradient) {
        let (Some(rows), Some(other_rows)) = (&self.rows, &other.rows) else {
            let sums = self.values.par_chunks_mut(BLOCK);
            sums.zip(other.values.par_chunks(BLOCK)).for_each(|(sums, values)| {
                sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x);
            });
            return give_back(other.values);
        };
        let width = self.values.len() / rows.len().max(1);
        let mut all = [rows.as_slice(), other_rows].concat();
        all.sort_unstable();
        all.dedup();
        let mut values = vec![0.0; all.len() * width];
        for (rows, from) in [(rows, &self.values), (other_rows, &other.values)] {
            for (row, from) in rows.iter().zip(from.chunks(width)) {
                let to = &mut values[all.partition_point(|r| r < row) * width..][..width];
                to.iter_mut().zip(from).for_each(|(sum, x)| *sum += x);
            }
        }
        *self = Gradient { rows: Some(all), values };
    }
}

/// A gradient on the host, by parameter name.
#[derive(Default)]
pub(crate) struct NamedGradients(BTreeMap<String, Gradient>);

/// The parameter of which a model in a worker has the rows of its batch alone.
pub(crate) const WORDS: &str = "embeddings.word_embeddings.weight";

impl NamedGradients {
    /// Takes the gradients of `model`'s parameters out of Burn's container; `words` are the rows of [`WORDS`] that the model has. `values`
    /// are read with them.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ampoule::ErrorKind::DeviceUnavailable) where a GPU fails.
    pub(crate) fn collect(
        model: &Model,
        gradients: Gradients,
        words: Vec<i32>,
        values: Tensor<1>,
    ) -> Result<(Self, Vec<f32>)> {
        let mut collect = Collect { path: Vec::new(), gradients, names: Vec::new(), found: Transaction::default() };
        model.visit(&mut collect);
        let read = collect.found.register(values).try_execute().map_err(|e| {
            Error::new(ErrorKind::DeviceUnavailable, "the device failed in a step; the last saved state is intact")
                .with_source(e)
        })?;
        let floats = |data: TensorData| {
            data.try_into_vec::<f32>().map_err(|_| Error::internal("what a step computed is no f32"))
        };
        let mut read = read.into_iter().map(floats).collect::<Result<Vec<_>>>()?;
        let values = read.pop().unwrap_or_default();
        let of = |values| Gradient { rows: None, values };
        let mut found: BTreeMap<_, _> = collect.names.into_iter().zip(read.into_iter().map(of)).collect();
        if let Some(gradient) = found.get_mut(WORDS) {
            gradient.rows = Some(words);
        }
        Ok((NamedGradients(found), values))
    }

    #[cfg(test)]
    pub(crate) fn into_values(self) -> BTreeMap<String, Vec<f32>> {
        self.0.into_iter().map(|(name, gradient)| (name, gradient.values)).collect()
    }

    /// Adds the gradient of another part of the step.
    pub(crate) fn add(&mut self, other: NamedGradients) {
        for (name, gradient) in other.0 {
            match self.0.entry(name) {
                Entry::Vacant(slot) => {
                    slot.insert(gradient);
                }
                Entry::Occupied(mut slot) => slot.get_mut().add(gradient),
            }
        }
    }
}

/// Reads all at once: from a GPU each reading by itself waits for it.
struct Collect {
    path: Vec<String>,
    gradients: Gradients,
    names: Vec<String>,
    found: Transaction,
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
            self.names.push(parameter_name(&self.path));
            self.found = std::mem::take(&mut self.found).register(gradient);
        }
    }
}

/// Leaves of a model what it is, and none of its tensors.
struct Hollow;

impl ModuleMapper for Hollow {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| Tensor::empty([0; D], &tensor.device()))
    }
}

struct Apply<'a> {
    path: Vec<String>,
    gradients: BTreeMap<String, Gradient>,
    moments: &'a mut BTreeMap<String, Moments>,
    kernel: Kernel,
    step: AdamStep,
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
        let step = AdamStep { decay: if decays { self.step.decay } else { 1.0 }, ..self.step };
        param.map(|tensor| {
            let device = tensor.device();
            let data = tensor.into_data_as::<f32>();
            let shape = data.shape().clone();
            let mut weights = data.try_into_vec::<f32>().unwrap_or_default();
            moments.first.resize(weights.len(), 0.0);
            moments.second.resize(weights.len(), 0.0);
            apply(self.kernel, step, &mut weights, &gradient, moments);
            give_back(gradient.values);
            Tensor::from_data(TensorData::new(weights, shape), &device)
        })
    }
}

/// Makes `step` of the weights, and of every row where the gradient has some alone.
fn apply(kernel: Kernel, step: AdamStep, weights: &mut [f32], gradient: &Gradient, moments: &mut Moments) {
    let width = match &gradient.rows {
        Some(rows) => gradient.values.len() / rows.len().max(1),
        None => BLOCK,
    };
    let of_block = |number: usize| match &gradient.rows {
        None => gradient.values.chunks(width).nth(number),
        Some(rows) => rows.binary_search(&(number as i32)).ok().map(|at| &gradient.values[at * width..][..width]),
    };
    let moments = moments.first.par_chunks_mut(width).zip(moments.second.par_chunks_mut(width));
    let blocks = weights.par_chunks_mut(width).zip(moments).enumerate();
    blocks.for_each(|(number, (weights, (first, second)))| {
        kernel.adam(step, weights, of_block(number), first, second);
    });
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

    /// The textbook form, in f64, with its bias corrections written out; rows without a gradient have one of zeros.
    #[test]
    fn an_update_is_adamw_whether_its_gradient_is_of_all_rows_or_of_some() {
        let config = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let start = [0.5f32, -1.0, 0.25, 2.0, -0.125, 0.75];
        let (mut w, mut m, mut v) = (start.map(f64::from), [0.0f64; 6], [0.0f64; 6]);
        let (mut dense, mut sparse) = (start.to_vec(), start.to_vec());
        let moments = || Moments { first: vec![0.0; 6], second: vec![0.0; 6] };
        let (mut of_dense, mut of_sparse) = (moments(), moments());
        for t in 1..=5 {
            let row = (t % 2) * 2; // of three
            let mut gradient = [0.0f64; 6];
            gradient[2 * row..][..2].copy_from_slice(&[0.3 * t as f64, -0.02]);
            for i in 0..6 {
                m[i] = 0.9 * m[i] + 0.1 * gradient[i];
                v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
                let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(t as i32)), v[i] / (1.0 - 0.999f64.powi(t as i32)));
                w[i] -= 0.01 * (m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * w[i]);
            }
            let step = config.step(0.01, t as u64, 1.0);
            let all = Gradient { rows: None, values: gradient.map(|g| g as f32).to_vec() };
            let some = Gradient { rows: Some(vec![row as i32]), values: all.values[2 * row..][..2].to_vec() };
            apply(kernel().unwrap(), step, &mut dense, &all, &mut of_dense);
            apply(kernel().unwrap(), step, &mut sparse, &some, &mut of_sparse);
        }
        assert_eq!(dense, sparse);
        for (found, expected) in dense.iter().zip(&w) {
            assert!((f64::from(*found) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn gradients_of_different_rows_are_added_row_by_row() {
        let mut sum = Gradient { rows: Some(vec![1, 4]), values: vec![1.0, 2.0, 3.0, 4.0] };
        sum.add(Gradient { rows: Some(vec![0, 4]), values: vec![5.0, 6.0, 7.0, 8.0] });
        assert_eq!(sum.rows, Some(vec![0, 1, 4]));
        assert_eq!(sum.values, [5.0, 6.0, 1.0, 2.0, 10.0, 12.0]);
    }
}
