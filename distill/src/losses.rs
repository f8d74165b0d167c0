//! What a student is taught: a list of named terms, each with its weight, whose weighted sum is the loss.

use ampoule::model::{HiddenState, Model, Noise};
use ampoule::{Batch, Error, Result};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// One term of the loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "term", rename_all = "snake_case", deny_unknown_fields)]
pub enum Term {
    /// The labels' negative log-likelihood. Where a corpus does not cover every label, an `O` stands for "`O` or any
    /// uncovered label", and their probabilities are summed.
    Hard {
        /// Its factor in the sum.
        weight: f64,
    },
    /// Kullback-Leibler divergence from the teacher's distribution, both at `temperature`, times its square (Hinton et al.
    /// 2015). For multi-label heads, the same of each label's Bernoulli distribution.
    SoftTargets {
        /// Its factor in the sum.
        weight: f64,
        /// Divides the logits of both.
        temperature: f64,
    },
    /// Mean squared difference of hidden states (Sun et al. 2019; TextBrewer's `hidden_mse`), which have to be of one width.
    Hidden {
        /// Its factor in the sum.
        weight: f64,
        /// Pairs of student and teacher states; 0 is the embeddings' output, i that of the i-th layer.
        layer_map: Vec<(usize, usize)>,
    },
}

impl Term {
    /// The name under which the term is logged.
    pub fn name(&self) -> &'static str {
        match self {
            Term::Hard { .. } => "hard",
            Term::SoftTargets { .. } => "soft_targets",
            Term::Hidden { .. } => "hidden",
        }
    }

    /// Its factor in the sum.
    pub fn weight(&self) -> f64 {
        match self {
            Term::Hard { weight } | Term::SoftTargets { weight, .. } | Term::Hidden { weight, .. } => *weight,
        }
    }

    /// Whether a teacher is needed to compute it.
    pub fn needs_teacher(&self) -> bool {
        !matches!(self, Term::Hard { .. })
    }
}

/// What the positions of a batch should answer. A position is a token, or a text's only one.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Whether a position counts, `[batch * positions]`; only first sub-words do, since only they decide.
    pub counts: Vec<f32>,
    /// Whether a position is labelled as well, `[batch * positions]`.
    pub labelled: Vec<f32>,
    /// Which tags a labelled position may have, 0 or 1, `[batch * positions, labels]`.
    pub allowed: Vec<f32>,
    /// Whether each label is a question of its own (sigmoid) and not one of several (softmax).
    pub multi_label: bool,
    /// What means are taken over: the numbers of the whole step, of which this may be a part.
    pub of_step: Counts,
}

/// Numbers of a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Positions that count.
    pub counts: usize,
    /// Positions that are labelled as well.
    pub labelled: usize,
    /// Tokens, padding not counted.
    pub tokens: usize,
}

/// What a model computes of a batch, as far as the terms need it.
pub struct Outputs {
    /// `[batch, positions, labels]`
    pub logits: Tensor<3>,
    /// Embeddings' output and each layer's, `[batch, seq, hidden]`; empty where no term needs them.
    pub hidden: Vec<Tensor<3>>,
}

impl Outputs {
    /// Runs `model` on `batch`.
    ///
    /// # Errors
    /// Those of the model.
    pub fn compute(
        model: &Model,
        batch: &Batch,
        device: &Device,
        mut noise: Option<Noise>,
        keep_hidden: bool,
    ) -> Result<Self> {
        let mut hidden = Vec::new();
        let last = model.hidden_states(batch, device, &mut noise, &mut |point, state| {
            if keep_hidden && matches!(point, HiddenState::Layer(_)) {
                hidden.push(state.clone());
            }
            Ok(())
        })?;
        Ok(Outputs { logits: model.logits(last, &mut noise)?, hidden })
    }

    /// The same values as constants of the device with autodiff.
    pub(crate) fn into_constants(self) -> Self {
        Outputs { logits: self.logits.autodiff(), hidden: self.hidden.into_iter().map(Tensor::autodiff).collect() }
    }
}

/// The value of each term of `terms`, unweighted and each `[1]`: of the batch's part in the means of its step.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where `layer_map` names a state that is not there, or widths differ.
pub fn losses(
    terms: &[Term],
    student: &Outputs,
    teacher: Option<&Outputs>,
    batch: &Batch,
    targets: &Targets,
    device: &Device,
) -> Result<Vec<Tensor<1>>> {
    terms
        .iter()
        .map(|term| match (term, teacher) {
            (Term::Hard { .. }, _) => Ok(hard(&student.logits, targets, device)),
            (Term::SoftTargets { temperature, .. }, Some(teacher)) => {
                Ok(soft_targets(&student.logits, &teacher.logits, *temperature, targets, device))
            }
            (Term::Hidden { layer_map, .. }, Some(teacher)) => {
                hidden(&student.hidden, &teacher.hidden, layer_map, batch, targets, device)
            }
            (_, None) => Err(Error::invalid_input(format!(
                "the loss term {:?} needs a teacher; name one, or take the term out",
                term.name()
            ))),
        })
        .collect()
}

/// Sum of `values` over the positions that `counts` marks, divided by `total`.
fn masked_mean(values: Tensor<2>, counts: &[f32], total: usize, device: &Device) -> Tensor<1> {
    let [batch, positions] = values.dims();
    let mask = Tensor::<2>::from_data(TensorData::new(counts.to_vec(), [batch, positions]), device);
    (values * mask).sum() / total.max(1) as f64
}

fn hard(logits: &Tensor<3>, targets: &Targets, device: &Device) -> Tensor<1> {
    let [batch, positions, labels] = logits.dims();
    let allowed = TensorData::new(targets.allowed.clone(), [batch, positions, labels]);
    let allowed = Tensor::<3>::from_data(allowed, device);
    let nll = if targets.multi_label {
        // softplus(x) - x·y, the stable form of binary cross-entropy
        let x = logits.clone();
        let softplus = x.clone().clamp_min(0.0) + (x.clone().abs().neg().exp() + 1.0).log();
        (softplus - x * allowed).mean_dim(2)
    } else {
        let rest = (allowed - 1.0) * 30_000.0; // 0 where allowed
        log_sum_exp(logits.clone()) - log_sum_exp(logits.clone() + rest)
    };
    masked_mean(nll.squeeze_dim::<2>(2), &targets.labelled, targets.of_step.labelled, device)
}

/// `[batch, positions, labels] -> [batch, positions, 1]`
fn log_sum_exp(x: Tensor<3>) -> Tensor<3> {
    let top = x.clone().detach().max_dim(2);
    (x - top.clone()).exp().sum_dim(2).log() + top
}

fn soft_targets(
    student: &Tensor<3>,
    teacher: &Tensor<3>,
    temperature: f64,
    targets: &Targets,
    device: &Device,
) -> Tensor<1> {
    let student = student.clone() / temperature;
    let teacher = teacher.clone() / temperature;
    let divergence = if targets.multi_label {
        // a label and its absence as a distribution of two, whose logits are x and 0
        let pair = |x: Tensor<3>| -> Tensor<4> { Tensor::stack(vec![x.zeros_like(), x], 3) };
        let (student, teacher) = (pair(student), pair(teacher));
        let q = softmax(teacher.clone(), 3);
        (q * (log_softmax(teacher, 3) - log_softmax(student, 3))).sum_dim(3).squeeze_dim::<3>(3).sum_dim(2)
    } else {
        let q = softmax(teacher.clone(), 2);
        (q * (log_softmax(teacher, 2) - log_softmax(student, 2))).sum_dim(2)
    };
    masked_mean(divergence.squeeze_dim::<2>(2), &targets.counts, targets.of_step.counts, device) * temperature.powi(2)
}

fn hidden(
    student: &[Tensor<3>],
    teacher: &[Tensor<3>],
    layer_map: &[(usize, usize)],
    batch: &Batch,
    targets: &Targets,
    device: &Device,
) -> Result<Tensor<1>> {
    let mask = batch.attention_mask(device); // [batch, seq]
    let mut sum: Option<Tensor<1>> = None;
    for &(s, t) in layer_map {
        let (Some(student), Some(teacher)) = (student.get(s), teacher.get(t)) else {
            return Err(Error::invalid_input(format!(
                "layer_map pairs student state {s} with teacher state {t}, but there are {} and {} (0 is the embeddings)",
                student.len(),
                teacher.len()
            )));
        };
        let ([_, _, width], [_, _, expected]) = (student.dims(), teacher.dims());
        if width != expected {
            return Err(Error::invalid_input(format!(
                "hidden states of width {width} and {expected} cannot be compared; take the term \"hidden\" out"
            )));
        }
        let difference = student.clone() - teacher.clone();
        let squares = (difference.clone() * difference).mean_dim(2).squeeze_dim::<2>(2); // [batch, seq]
        let mean = (squares * mask.clone()).sum() / (targets.of_step.tokens.max(1) as f64);
        sum = Some(match sum {
            None => mean,
            Some(sum) => sum + mean,
        });
    }
    sum.map(|sum| sum / layer_map.len() as f64)
        .ok_or_else(|| Error::invalid_input("layer_map is empty; pair at least one student state with a teacher's"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(counts: &[f32], allowed: &[f32], multi_label: bool) -> Targets {
        Targets {
            counts: counts.to_vec(),
            labelled: counts.to_vec(),
            allowed: allowed.to_vec(),
            multi_label,
            of_step: Counts { counts: 1, labelled: 1, tokens: 1 },
        }
    }

    fn logits(values: &[f32], shape: [usize; 3]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &Device::flex())
    }

    fn scalar(x: Tensor<1>) -> f64 {
        f64::from(x.into_scalar::<f32>())
    }

    #[test]
    fn an_o_in_a_corpus_without_chemicals_is_no_evidence_against_them() {
        // tags: O, B-Disease, B-Chemical; two positions, the second ignored
        let x = [1.0f32, 2.0, 3.0, 9.0, 9.0, 9.0];
        let t = targets(&[1.0, 0.0], &[1.0, 0.0, 1.0, 1.0, 0.0, 0.0], false);
        let found = scalar(hard(&logits(&x, [1, 2, 3]), &t, &Device::flex()));
        let (o, d, c) = (1f64.exp(), 2f64.exp(), 3f64.exp());
        assert!((found + ((o + c) / (o + d + c)).ln()).abs() < 1e-6);
    }

    #[test]
    fn soft_targets_are_hintons() {
        let (s, t) = ([0.3f32, -1.0, 2.0], [1.0f32, 0.5, -0.5]);
        let found = scalar(soft_targets(
            &logits(&s, [1, 1, 3]),
            &logits(&t, [1, 1, 3]),
            2.0,
            &targets(&[1.0], &[0.0; 3], false),
            &Device::flex(),
        ));
        let p = |x: &[f32; 3]| {
            let e: Vec<f64> = x.iter().map(|&x| (f64::from(x) / 2.0).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect::<Vec<_>>()
        };
        let kl: f64 = p(&t).iter().zip(p(&s)).map(|(q, p)| q * (q / p).ln()).sum();
        assert!((found - 4.0 * kl).abs() < 1e-6);
    }

    #[test]
    fn multi_label_terms_are_sums_over_independent_labels() {
        let (s, t) = ([0.3f32, -40.0], [1.0f32, 0.5]);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
        let found = scalar(hard(&logits(&s, [1, 1, 2]), &targets(&[1.0], &[1.0, 0.0], true), &Device::flex()));
        assert!((found - (-sigmoid(0.3).ln() / 2.0)).abs() < 1e-6);
        let found = scalar(soft_targets(
            &logits(&s[..1], [1, 1, 1]),
            &logits(&t[..1], [1, 1, 1]),
            1.0,
            &targets(&[1.0], &[0.0], true),
            &Device::flex(),
        ));
        let (q, p) = (sigmoid(1.0), sigmoid(0.3));
        let kl = q * (q / p).ln() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).ln();
        assert!((found - kl).abs() < 1e-6);
    }
}
