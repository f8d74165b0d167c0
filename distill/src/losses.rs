//! What a student is taught: a list of named terms, each with its weight, whose weighted sum is the loss.

use std::collections::{BTreeMap, BTreeSet};

use ampoule::bundle::PoolingMode;
use ampoule::model::{HiddenState, Model, Noise};
use ampoule::{Batch, Error, Result};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::embedding::embeddings;

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
    /// Kullback-Leibler divergence from the teacher's relations of tokens: the softmax of the scaled products of all tokens'
    /// queries with each other, and the same of keys and of values (MiniLMv2; Wang et al. 2021). Their vectors are split into
    /// `heads` parts, however many the models have, so widths and heads may differ.
    Relations {
        /// Its factor in the sum.
        weight: f64,
        /// Pairs of student and teacher layers, counted from 1.
        layer_map: Vec<(usize, usize)>,
        /// Relation heads; divides both widths. More of them are finer.
        heads: usize,
    },
    /// Negative log-likelihood of each query's own passage among all passages of the step, from the softmax of their cosines (InfoNCE,
    /// van den Oord et al. 2018; with the negatives of a batch, Henderson et al. 2017). A text without a passage is its own, under another
    /// dropout (SimCSE; Gao et al. 2021). Passages that are relevant to one query, and equal texts, are no negatives of each other.
    Contrastive {
        /// Its factor in the sum.
        weight: f64,
        /// Divides the cosines.
        temperature: f64,
    },
    /// Kullback-Leibler divergence from the teacher's similarities: for each text of the step, queries and passages alike, the softmax of
    /// its cosines with all texts that are not equal to it (CompRess, Koohpayegani et al. 2020, and SEED, Fang et al. 2021, which keep a
    /// queue for it). Widths may differ.
    Embedding {
        /// Its factor in the sum.
        weight: f64,
        /// Divides the cosines of both.
        temperature: f64,
    },
}

impl Term {
    /// The name under which the term is logged.
    pub fn name(&self) -> &'static str {
        match self {
            Term::Hard { .. } => "hard",
            Term::SoftTargets { .. } => "soft_targets",
            Term::Hidden { .. } => "hidden",
            Term::Relations { .. } => "relations",
            Term::Contrastive { .. } => "contrastive",
            Term::Embedding { .. } => "embedding",
        }
    }

    /// Its factor in the sum.
    pub fn weight(&self) -> f64 {
        match self {
            Term::Hard { weight }
            | Term::SoftTargets { weight, .. }
            | Term::Hidden { weight, .. }
            | Term::Relations { weight, .. }
            | Term::Contrastive { weight, .. }
            | Term::Embedding { weight, .. } => *weight,
        }
    }

    /// Whether a teacher is needed to compute it.
    pub fn needs_teacher(&self) -> bool {
        !matches!(self, Term::Hard { .. } | Term::Contrastive { .. })
    }

    /// Whether it reads a head's logits, and so wants labels.
    pub(crate) fn reads_logits(&self) -> bool {
        matches!(self, Term::Hard { .. } | Term::SoftTargets { .. })
    }

    /// Whether it reads embeddings, and so wants pairs of texts.
    pub(crate) fn reads_embeddings(&self) -> bool {
        matches!(self, Term::Contrastive { .. } | Term::Embedding { .. })
    }

    /// The pairs of student and teacher states that it compares.
    pub(crate) fn pairs(&self) -> Vec<(HiddenState, HiddenState)> {
        let each = |layer_map: &[(usize, usize)], states: &[fn(usize) -> HiddenState]| {
            let of =
                |&(s, t): &(usize, usize)| states.iter().map(move |state| (state(s), state(t))).collect::<Vec<_>>();
            layer_map.iter().flat_map(of).collect()
        };
        match self {
            Term::Hard { .. } | Term::SoftTargets { .. } | Term::Contrastive { .. } | Term::Embedding { .. } => {
                Vec::new()
            }
            Term::Hidden { layer_map, .. } => each(layer_map, &[HiddenState::Layer]),
            Term::Relations { layer_map, .. } => {
                each(layer_map, &[HiddenState::Query, HiddenState::Key, HiddenState::Value])
            }
        }
    }
}

/// What the positions of a batch should answer. A position is a token, or a text's only one.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Whether the teacher answers for a position, `[batch * positions]`; only first sub-words count, since only they decide.
    pub answered: Vec<f32>,
    /// How much a position's label weighs, `[batch * positions]`; 0 where it has none.
    pub labelled: Vec<f32>,
    /// Which tags a labelled position may have, 0 or 1, `[batch * positions, labels]`.
    pub allowed: Vec<f32>,
    /// Whether the teacher has a token of the same characters, `[batch * seq]`.
    pub tokens: Vec<f32>,
    /// Whether each label is a question of its own (sigmoid) and not one of several (softmax).
    pub multi_label: bool,
    /// What means are taken over: the numbers of the whole step, of which this may be a part.
    pub of_step: Counts,
}

/// Numbers of a step.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Positions that the teacher answers for.
    pub answered: usize,
    /// Positions that are labelled.
    pub labelled: usize,
    /// Tokens that the teacher has too.
    pub tokens: usize,
}

/// What a model computes of a batch, as far as the terms need it.
pub struct Outputs {
    /// `[batch, positions, labels]`; none of a teacher without a head, or where no term reads a student's.
    pub logits: Option<Tensor<3>>,
    /// The texts' embeddings, of length 1, where a term reads them, `[batch, hidden]`.
    pub embeddings: Option<Tensor<2>>,
    /// Those that the terms compare, `[batch, seq, hidden]`.
    pub states: BTreeMap<HiddenState, Tensor<3>>,
}

impl Outputs {
    /// Runs a student that pools so on `batch`, for these terms.
    ///
    /// # Errors
    /// Those of the model.
    pub fn of_student(
        model: &Model,
        pooling: PoolingMode,
        terms: &[Term],
        batch: &Batch,
        device: &Device,
        noise: &mut Option<Noise>,
    ) -> Result<Self> {
        let wanted: BTreeSet<HiddenState> = terms.iter().flat_map(Term::pairs).map(|(state, _)| state).collect();
        let mut states = BTreeMap::new();
        let last = model.hidden_states(batch, device, noise, &mut |point, state| {
            if wanted.contains(&point) {
                states.insert(point, state.clone());
            }
            Ok(())
        })?;
        let logits = match terms.iter().any(Term::reads_logits) {
            true => Some(model.logits(last.clone(), noise)?),
            false => None,
        };
        let is_embedded = terms.iter().any(Term::reads_embeddings);
        Ok(Outputs { logits, embeddings: is_embedded.then(|| embeddings(last, batch, pooling, device)), states })
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
    targets: &Targets,
    device: &Device,
) -> Result<Vec<Tensor<1>>> {
    terms
        .iter()
        .map(|term| match (term, teacher) {
            (Term::Hard { .. }, _) => Ok(hard(logits(student, term)?, targets, device)),
            (Term::SoftTargets { temperature, .. }, Some(teacher)) => {
                Ok(soft_targets(logits(student, term)?, logits(teacher, term)?, *temperature, targets, device))
            }
            (Term::Contrastive { .. } | Term::Embedding { .. }, _) => Err(Error::invalid_input(format!(
                "the loss term {:?} compares pairs of texts, and there are none; train on queries with their passages",
                term.name()
            ))),
            (Term::Hidden { .. }, Some(teacher)) => {
                compared(term, student, teacher, |s, t| hidden(s, t, targets, device))
            }
            (Term::Relations { heads, .. }, Some(teacher)) => {
                let sum = compared(term, student, teacher, |s, t| relations(s, t, *heads, targets, device))?;
                Ok(sum * 3.0) // queries, keys and values are added, layers averaged
            }
            (_, None) => Err(Error::invalid_input(format!(
                "the loss term {:?} needs a teacher; name one, or take the term out",
                term.name()
            ))),
        })
        .collect()
}

fn logits<'a>(outputs: &'a Outputs, term: &Term) -> Result<&'a Tensor<3>> {
    outputs.logits.as_ref().ok_or_else(|| {
        Error::invalid_input(format!("the loss term {:?} reads labels, and the model has none", term.name()))
    })
}

/// Sum of `values` over the positions that `counts` marks, divided by `total`.
fn masked_mean(values: Tensor<2>, counts: &[f32], total: usize, device: &Device) -> Tensor<1> {
    let mask = mask(counts, values.dims(), device);
    (values * mask).sum() / total.max(1) as f64
}

fn mask(counts: &[f32], dims: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(counts.to_vec(), dims), device)
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
    masked_mean(divergence.squeeze_dim::<2>(2), &targets.answered, targets.of_step.answered, device)
        * temperature.powi(2)
}

/// The mean of `f` over the pairs of states that `term` compares.
fn compared(
    term: &Term,
    student: &Outputs,
    teacher: &Outputs,
    f: impl Fn(Tensor<3>, Tensor<3>) -> Result<Tensor<1>>,
) -> Result<Tensor<1>> {
    let pairs = term.pairs();
    let mut sum: Option<Tensor<1>> = None;
    for (s, t) in &pairs {
        let (Some(student), Some(teacher)) = (student.states.get(s), teacher.states.get(t)) else {
            return Err(Error::invalid_input(format!(
                "layer_map of the term {:?} pairs the student's {s:?} with the teacher's {t:?}, and there is no such pair",
                term.name()
            )));
        };
        let value = f(student.clone(), teacher.clone())?;
        sum = Some(match sum {
            None => value,
            Some(sum) => sum + value,
        });
    }
    sum.map(|sum| sum / pairs.len() as f64)
        .ok_or_else(|| Error::invalid_input("layer_map is empty; pair at least one of the student's with a teacher's"))
}

/// `[batch, seq, hidden]` of both -> `[1]`
fn hidden(student: Tensor<3>, teacher: Tensor<3>, targets: &Targets, device: &Device) -> Result<Tensor<1>> {
    let ([_, _, width], [_, _, expected]) = (student.dims(), teacher.dims());
    if width != expected {
        return Err(Error::invalid_input(format!(
            "hidden states of width {width} and {expected} cannot be compared; take the term \"hidden\" out, or put \"relations\" \
             in its place"
        )));
    }
    let difference = student - teacher;
    let squares = (difference.clone() * difference).mean_dim(2).squeeze_dim::<2>(2); // [batch, seq]
    Ok(masked_mean(squares, &targets.tokens, targets.of_step.tokens, device))
}

/// `[batch, seq, width]` of both, of any width -> `[1]`
fn relations(
    student: Tensor<3>,
    teacher: Tensor<3>,
    heads: usize,
    targets: &Targets,
    device: &Device,
) -> Result<Tensor<1>> {
    let [batch, seq, _] = student.dims();
    let others = mask(&targets.tokens, [batch, seq], device) - 1.0; // -1 where there is nothing to compare
    let padding = (others * 30_000.0).unsqueeze_dims::<4>(&[1, 1]); // [batch, 1, 1, seq]
    let scores = |x: Tensor<3>| -> Result<Tensor<4>> {
        let [batch, seq, width] = x.dims();
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::invalid_input(format!(
                "configuration: {heads} relation heads do not divide a width of {width}"
            )));
        }
        let x = x.reshape([batch, seq, heads, width / heads]).swap_dims(1, 2); // [batch, heads, seq, width / heads]
        let products = x.clone().matmul(x.swap_dims(2, 3)) / ((width / heads) as f64).sqrt();
        Ok(log_softmax(products + padding.clone(), 3)) // [batch, heads, seq, seq]
    };
    let (student, teacher) = (scores(student)?, scores(teacher)?);
    let divergence = (teacher.clone().exp() * (teacher - student)).sum_dim(3).squeeze_dim::<3>(3); // [batch, heads, seq]
    let mean = divergence.mean_dim(1).squeeze_dim::<2>(1); // [batch, seq]
    Ok(masked_mean(mean, &targets.tokens, targets.of_step.tokens, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(counts: &[f32], allowed: &[f32], multi_label: bool) -> Targets {
        Targets {
            answered: counts.to_vec(),
            labelled: counts.to_vec(),
            allowed: allowed.to_vec(),
            tokens: Vec::new(),
            multi_label,
            of_step: Counts { answered: 1, labelled: 1, tokens: 1 },
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

    /// MiniLMv2's formula in f64, heads and padding by hand.
    #[test]
    fn relations_are_those_of_minilm_whatever_the_widths() {
        let values =
            |n: usize, by: f32| (0..n).map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0) * by).collect::<Vec<_>>();
        let (seq, heads) = (5, 3);
        let (s, t) = (values(2 * seq * 6, 1.0), values(2 * seq * 12, 1.7));
        let lengths = [5, 3];
        let row = |x: &[f32], width: usize, text: usize, head: usize, i: usize| -> Vec<f64> {
            let part = width / heads;
            let of = |token: usize| &x[((text * seq + token) * width + head * part)..][..part];
            let products = (0..lengths[text]).map(|j| {
                let dot: f64 = of(i).iter().zip(of(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                (dot / (part as f64).sqrt()).exp()
            });
            let products: Vec<f64> = products.collect();
            let sum: f64 = products.iter().sum();
            products.into_iter().map(|p| p / sum).collect()
        };
        let mut expected = 0.0;
        for (text, &n) in lengths.iter().enumerate() {
            for (head, i) in (0..heads).flat_map(|head| (0..n).map(move |i| (head, i))) {
                let (q, p) = (row(&t, 12, text, head, i), row(&s, 6, text, head, i));
                expected += q.iter().zip(p).map(|(q, p)| q * (q / p).ln()).sum::<f64>();
            }
        }
        expected /= (heads * 8) as f64;
        let tokens = vec![1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0];
        let of_step = Counts { answered: 0, labelled: 0, tokens: 8 };
        let targets = Targets { tokens, of_step, ..targets(&[], &[], false) };
        let relations =
            |s: &Tensor<3>, t: &Tensor<3>, heads| relations(s.clone(), t.clone(), heads, &targets, &Device::flex());
        let (s, t) = (logits(&s, [2, 5, 6]), logits(&t, [2, 5, 12]));
        let found = scalar(relations(&s, &t, heads).unwrap());
        assert!(expected > 0.1 && (found - expected).abs() < 1e-5, "{found}, expected {expected}");
        assert!(scalar(relations(&t, &t, heads).unwrap()).abs() < 1e-6);
        for heads in [0, 4, 5] {
            assert!(relations(&s, &t, heads).unwrap_err().to_string().contains("do not divide"));
        }
    }
}
