//! What a student is taught: a list of named terms, each with its weight, whose weighted sum is the loss.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use ampoule::bundle::PoolingMode;
use ampoule::decode::{Decoder, Scheme};
use ampoule::model::{HiddenState, Model, Noise};
use ampoule::{Batch, Error, ModelConfig, Result};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};
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
    /// 2015). For multi-label heads, the mean of the same over each label's Bernoulli distribution, as `hard` is the mean over labels.
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
    /// Kullback-Leibler divergence from the teacher's attention: the softmax of the scaled products of each token's query with all keys
    /// (MiniLM, Wang et al. 2020; TinyBERT, Jiao et al. 2020, compares the scores). Heads are split anew, as those of relations are: as
    /// many as both models have, and they are the attention's own.
    Attention {
        /// Its factor in the sum.
        weight: f64,
        /// Pairs of student and teacher layers, counted from 1.
        layer_map: Vec<(usize, usize)>,
        /// Heads; divides both widths.
        heads: usize,
    },
    /// Kullback-Leibler divergence from the teacher's probability that an entity is there exactly, from its first word to its last, to the
    /// student's: of each entity that either of them finds, as a distribution of two (yes and no). It is what
    /// [`Span::score`](ampoule::decode::Span::score) says at temperature 1; means are taken over words, as those of soft targets.
    Spans {
        /// Its factor in the sum.
        weight: f64,
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
            Term::Attention { .. } => "attention",
            Term::Spans { .. } => "spans",
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
            | Term::Attention { weight, .. }
            | Term::Spans { weight }
            | Term::Contrastive { weight, .. }
            | Term::Embedding { weight, .. } => *weight,
        }
    }

    /// What divides its logits or cosines.
    pub(crate) fn temperature(&self) -> Option<f64> {
        match self {
            Term::SoftTargets { temperature, .. }
            | Term::Contrastive { temperature, .. }
            | Term::Embedding { temperature, .. } => Some(*temperature),
            _ => None,
        }
    }

    /// Refuses pairs of states that models of these shapes do not have, or have of widths that cannot be compared.
    pub(crate) fn check(&self, student: &ModelConfig, teacher: &ModelConfig) -> Result<()> {
        let (layer_map, heads, first) = match self {
            Term::Hidden { layer_map, .. } => (layer_map, None, 0),
            Term::Relations { layer_map, heads, .. } | Term::Attention { layer_map, heads, .. } => {
                (layer_map, Some(*heads), 1)
            }
            _ => return Ok(()),
        };
        let lacks = |config: &ModelConfig, layer: usize| !(first..=config.num_hidden_layers).contains(&layer);
        if let Some((s, t)) = layer_map.iter().find(|(s, t)| lacks(student, *s) || lacks(teacher, *t)) {
            return Err(no_such_pair(self, s, t));
        }
        if layer_map.is_empty() {
            return Err(no_pair());
        }
        let widths = [student.hidden_size, teacher.hidden_size];
        match heads {
            Some(heads) => widths.iter().try_for_each(|&width| check_heads(self, heads, width)),
            None => check_widths(widths),
        }
    }

    /// Whether a teacher is needed to compute it.
    pub fn needs_teacher(&self) -> bool {
        !matches!(self, Term::Hard { .. } | Term::Contrastive { .. })
    }

    /// Whether it reads a head's logits, and so wants labels.
    pub(crate) fn reads_logits(&self) -> bool {
        matches!(self, Term::Hard { .. } | Term::SoftTargets { .. } | Term::Spans { .. })
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
            Term::Hard { .. }
            | Term::SoftTargets { .. }
            | Term::Spans { .. }
            | Term::Contrastive { .. }
            | Term::Embedding { .. } => Vec::new(),
            Term::Attention { layer_map, .. } => each(layer_map, &[HiddenState::Query, HiddenState::Key]),
            Term::Hidden { layer_map, .. } => each(layer_map, &[HiddenState::Layer]),
            Term::Relations { layer_map, .. } => {
                each(layer_map, &[HiddenState::Query, HiddenState::Key, HiddenState::Value])
            }
        }
    }
}

/// What the positions of a batch should answer. A position is a token, or a text's only one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets {
    /// Whether the teacher answers for a position, `[batch * positions]`; only first sub-words count, since only they decide.
    pub(crate) answered: Vec<f32>,
    /// How much a position's label weighs, `[batch * positions]`; 0 where it has none.
    pub(crate) labelled: Vec<f32>,
    /// Which tags a labelled position may have, 0 or 1, `[batch * positions, labels]`.
    pub(crate) allowed: Vec<f32>,
    /// Whether the teacher has a token of the same characters, `[batch * seq]`.
    pub(crate) tokens: Vec<f32>,
    /// Whether each label is a question of its own (sigmoid) and not one of several (softmax).
    pub(crate) multi_label: bool,
    /// What the labels of words are; none for labels of texts.
    pub(crate) scheme: Option<Arc<Scheme>>,
    /// What means are taken over: the numbers of the whole step, of which this may be a part.
    pub(crate) of_step: Counts,
}

/// Numbers of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Positions that the teacher answers for.
    pub(crate) answered: usize,
    /// Positions that are labelled.
    pub(crate) labelled: usize,
    /// Tokens that the teacher has too.
    pub(crate) tokens: usize,
}

/// What a model computes of a batch, as far as the terms need it.
pub(crate) struct Outputs {
    /// `[batch, positions, labels]`; none of a teacher without a head, or where no term reads a student's.
    pub(crate) logits: Option<Tensor<3>>,
    /// The texts' embeddings, of length 1, where a term reads them, `[batch, hidden]`.
    pub(crate) embeddings: Option<Tensor<2>>,
    /// Those that the terms compare, `[batch, seq, hidden]`.
    pub(crate) states: BTreeMap<HiddenState, Tensor<3>>,
}

impl Outputs {
    /// Runs a student that pools so on `batch`, for these terms.
    ///
    /// # Errors
    /// Those of the model.
    pub(crate) fn of_student(
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
pub(crate) fn losses(
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
            (Term::Spans { .. }, Some(teacher)) => {
                spans(logits(student, term)?, logits(teacher, term)?, targets, device)
            }
            (Term::Hidden { .. }, Some(teacher)) => {
                compared(term, student, teacher, |[pair]| hidden(pair, targets, device))
            }
            (Term::Relations { heads, .. }, Some(teacher)) => {
                let of = |[(s, t)]: [States; 1]| relations(term, [&s, &s], [&t, &t], *heads, targets, device);
                let mean = compared(term, student, teacher, of)?;
                Ok(mean * 3.0) // queries, keys and values are added, layers averaged
            }
            (Term::Attention { heads, .. }, Some(teacher)) => compared(term, student, teacher, |[queries, keys]| {
                relations(term, [&queries.0, &keys.0], [&queries.1, &keys.1], *heads, targets, device)
            }),
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
        (q * (log_softmax(teacher, 3) - log_softmax(student, 3))).sum_dim(3).squeeze_dim::<3>(3).mean_dim(2)
    } else {
        let q = softmax(teacher.clone(), 2);
        (q * (log_softmax(teacher, 2) - log_softmax(student, 2))).sum_dim(2)
    };
    masked_mean(divergence.squeeze_dim::<2>(2), &targets.answered, targets.of_step.answered, device)
        * temperature.powi(2)
}

/// A state of the student's and the one of the teacher's that it is compared with, `[batch, seq, hidden]`.
type States = (Tensor<3>, Tensor<3>);

/// The mean of `f` over the pairs of states that `term` compares, `N` at a time.
fn compared<const N: usize>(
    term: &Term,
    student: &Outputs,
    teacher: &Outputs,
    f: impl Fn([States; N]) -> Result<Tensor<1>>,
) -> Result<Tensor<1>> {
    let found = |(s, t): &(HiddenState, HiddenState)| match (student.states.get(s), teacher.states.get(t)) {
        (Some(student), Some(teacher)) => Ok((student.clone(), teacher.clone())),
        _ => Err(no_such_pair(term, s, t)),
    };
    let states = term.pairs().iter().map(found).collect::<Result<Vec<States>>>()?;
    let values = states.as_chunks::<N>().0.iter().map(|states| f(states.clone())).collect::<Result<Vec<_>>>()?;
    let count = values.len();
    let sum = values.into_iter().reduce(|sum, value| sum + value);
    sum.map(|sum| sum / count as f64).ok_or_else(no_pair)
}

fn no_pair() -> Error {
    Error::invalid_input("layer_map is empty; pair at least one of the student's with a teacher's")
}

fn no_such_pair(term: &Term, student: impl Debug, teacher: impl Debug) -> Error {
    Error::invalid_input(format!(
        "layer_map of the term {:?} pairs the student's {student:?} with the teacher's {teacher:?}, and there is no such pair",
        term.name()
    ))
}

fn check_heads(term: &Term, heads: usize, width: usize) -> Result<()> {
    match heads > 0 && width.is_multiple_of(heads) {
        true => Ok(()),
        false => Err(Error::invalid_input(format!(
            "the {heads} heads of the loss term {:?} do not divide a width of {width}",
            term.name()
        ))),
    }
}

fn check_widths([width, expected]: [usize; 2]) -> Result<()> {
    match width == expected {
        true => Ok(()),
        false => Err(Error::invalid_input(format!(
            "hidden states of width {width} and {expected} cannot be compared; take the term \"hidden\" out, or put \"relations\" \
             in its place"
        ))),
    }
}

fn hidden((student, teacher): States, targets: &Targets, device: &Device) -> Result<Tensor<1>> {
    let ([_, _, width], [_, _, expected]) = (student.dims(), teacher.dims());
    check_widths([width, expected])?;
    let difference = student - teacher;
    let squares = (difference.clone() * difference).mean_dim(2).squeeze_dim::<2>(2); // [batch, seq]
    Ok(masked_mean(squares, &targets.tokens, targets.of_step.tokens, device))
}

/// A factor of the probability that exactly one entity is there: at a position, counted through the batch, the tags that it has then.
type Factor = (usize, Vec<bool>);

/// `[batch, positions, labels]` of both -> `[1]`
fn spans(student: &Tensor<3>, teacher: &Tensor<3>, targets: &Targets, device: &Device) -> Result<Tensor<1>> {
    let Some(scheme) = &targets.scheme else {
        return Err(Error::invalid_input("the loss term \"spans\" compares entities, and these are labels of texts"));
    };
    let [batch, positions, labels] = student.dims();
    let host = |x: &Tensor<3>| x.clone().into_data_as::<f32>().try_into_vec::<f32>().unwrap_or_default();
    let (of_student, of_teacher) = (host(student), host(teacher));
    let is_finite =
        |at: usize| [&of_student, &of_teacher].iter().all(|x| x[at * labels..][..labels].iter().all(|x| x.is_finite()));
    if !(0..batch * positions).filter(|&at| targets.answered[at] > 0.0).all(is_finite) {
        // The step says which term it was.
        return Ok((student.clone() * f64::NAN).sum());
    }
    let mut entities: Vec<Vec<Factor>> = Vec::new();
    for logits in [&of_teacher, &of_student] {
        for row in 0..batch {
            let words: Vec<usize> =
                (row * positions..(row + 1) * positions).filter(|&at| targets.answered[at] > 0.0).collect();
            let mut found = Vec::new();
            let mut decoder = Decoder::new(scheme, 1.0);
            for (number, at) in words.iter().enumerate() {
                decoder.push(number..number + 1, &logits[at * labels..][..labels], &mut |span| found.push(span))?;
            }
            decoder.finish(&mut |span| found.push(span));
            for span in found {
                let tags = scheme.exactly(span.label, span.range.len());
                entities.push(words[span.range.start..].iter().copied().zip(tags).collect());
            }
        }
    }
    entities.sort();
    entities.dedup();
    if entities.is_empty() {
        return Ok((student.clone() * 0.0).sum());
    }
    // Every factor of every entity, side by side.
    let factors: Vec<&Factor> = entities.iter().flatten().collect();
    let count = factors.len();
    let at: Vec<i64> = factors.iter().map(|(at, _)| *at as i64).collect();
    let rest: Vec<f32> =
        factors.iter().flat_map(|(_, may)| may).map(|&may| if may { 0.0 } else { -30_000.0 }).collect();
    let at = Tensor::<1, Int>::from_data(TensorData::new(at, [count]), device);
    let rest = Tensor::<3>::from_data(TensorData::new(rest, [1, count, labels]), device);
    let mut sums = vec![0.0; entities.len() * count];
    let mut next = 0;
    for (sums, entity) in sums.chunks_mut(count).zip(&entities) {
        sums[next..next + entity.len()].fill(1.0);
        next += entity.len();
    }
    let sums = Tensor::<2>::from_data(TensorData::new(sums, [entities.len(), count]), device);
    // [entities, 2]: log probabilities of yes and no; the latter is never certain
    let both = |x: &Tensor<3>| -> Tensor<2> {
        let x = x.clone().reshape([1, batch * positions, labels]).select(1, at.clone());
        let of_factor = log_sum_exp(x.clone() + rest.clone()) - log_sum_exp(x);
        let yes = sums.clone().matmul(of_factor.reshape([count, 1]));
        let no = (yes.clone().clamp_max(-1e-5).exp().neg() + 1.0).log();
        Tensor::cat(vec![yes, no], 1)
    };
    let (student, teacher) = (both(student), both(teacher));
    let divergence = teacher.clone().exp() * (teacher - student);
    Ok(divergence.sum() / targets.of_step.answered.max(1) as f64)
}

/// How each token's first vector relates to all second ones: `[batch, seq, width]` of both models, of any width -> `[1]`
fn relations(
    term: &Term,
    student: [&Tensor<3>; 2],
    teacher: [&Tensor<3>; 2],
    heads: usize,
    targets: &Targets,
    device: &Device,
) -> Result<Tensor<1>> {
    let [batch, seq, _] = student[0].dims();
    let others = mask(&targets.tokens, [batch, seq], device) - 1.0; // -1 where there is nothing to compare
    let padding = (others * 30_000.0).unsqueeze_dims::<4>(&[1, 1]); // [batch, 1, 1, seq]
    let scores = |of: [&Tensor<3>; 2]| -> Result<Tensor<4>> {
        let [batch, seq, width] = of[0].dims();
        check_heads(term, heads, width)?;
        // [batch, heads, seq, width / heads]
        let [a, b] = of.map(|x| x.clone().reshape([batch, seq, heads, width / heads]).swap_dims(1, 2));
        let products = a.matmul(b.swap_dims(2, 3)) / ((width / heads) as f64).sqrt();
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
            scheme: None,
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
    fn multi_label_terms_are_means_over_independent_labels() {
        let (s, t) = ([0.3f32, -40.0], [1.0f32, 0.5]);
        let sigmoid = |x: f32| 1.0 / (1.0 + (-f64::from(x)).exp());
        let found = scalar(hard(&logits(&s, [1, 1, 2]), &targets(&[1.0], &[1.0, 0.0], true), &Device::flex()));
        assert!((found - (-sigmoid(0.3).ln() / 2.0)).abs() < 1e-6);
        // As many labels more as alike weigh as much as one.
        let kl = |q: f64, p: f64| q * (q / p).ln() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).ln();
        for (s, t) in [(vec![s[0]], vec![t[0]]), (vec![s[0]; 3], vec![t[0]; 3]), (vec![0.3, -2.0], vec![1.0, 0.5])] {
            let labels = s.len();
            let found = scalar(soft_targets(
                &logits(&s, [1, 1, labels]),
                &logits(&t, [1, 1, labels]),
                1.0,
                &targets(&[1.0], &vec![0.0; labels], true),
                &Device::flex(),
            ));
            let expected: f64 =
                s.iter().zip(&t).map(|(s, t)| kl(sigmoid(*t), sigmoid(*s))).sum::<f64>() / labels as f64;
            assert!((found - expected).abs() < 1e-6);
        }
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
        let term = Term::Relations { weight: 1.0, layer_map: Vec::new(), heads };
        let relations =
            |s: &Tensor<3>, t: &Tensor<3>, heads| relations(&term, [s; 2], [t; 2], heads, &targets, &Device::flex());
        let (s, t) = (logits(&s, [2, 5, 6]), logits(&t, [2, 5, 12]));
        let found = scalar(relations(&s, &t, heads).unwrap());
        assert!(expected > 0.1 && (found - expected).abs() < 1e-5, "{found}, expected {expected}");
        assert!(scalar(relations(&t, &t, heads).unwrap()).abs() < 1e-6);
        for heads in [0, 4, 5] {
            assert!(relations(&s, &t, heads).unwrap_err().to_string().contains("do not divide"));
        }
    }

    #[test]
    fn attention_is_that_of_queries_to_keys() {
        let (batch, seq) = (1, 2);
        // One head of width 1: the scores are products of numbers.
        let state = |values: [f32; 2]| logits(&values, [batch, seq, 1]);
        let states = |q, k| BTreeMap::from([(HiddenState::Query(1), state(q)), (HiddenState::Key(1), state(k))]);
        let outputs = |states| Outputs { logits: None, embeddings: None, states };
        let (student, teacher) = (outputs(states([1.0, -1.0], [0.5, 2.0])), outputs(states([2.0, 0.3], [1.0, -1.0])));
        let of_step = Counts { answered: 0, labelled: 0, tokens: 2 };
        let targets = Targets { tokens: vec![1.0; 2], of_step, ..targets(&[], &[], false) };
        let term = Term::Attention { weight: 1.0, layer_map: vec![(1, 1)], heads: 1 };
        let found = losses(&[term], &student, Some(&teacher), &targets, &Device::flex()).unwrap();
        let row = |q: f64, k: [f64; 2]| {
            let e = k.map(|k| (q * k).exp());
            e.map(|x| x / (e[0] + e[1]))
        };
        let mut expected = 0.0;
        for (s, t) in [(1.0, 2.0), (-1.0, 0.3)] {
            let (s, t) = (row(s, [0.5, 2.0]), row(t, [1.0, -1.0]));
            expected += t.iter().zip(s).map(|(t, s)| t * (t / s).ln()).sum::<f64>() / 2.0;
        }
        let found = scalar(found[0].clone());
        assert!(expected > 0.1 && (found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    /// Entities of either side count, words without an answer do not, and the probabilities are those of the decoder's scores.
    #[test]
    fn spans_are_compared_by_the_scores_that_users_see() {
        let tags = ["O", "B-a", "I-a"].map(str::to_owned);
        let scheme = Scheme::new(&tags).unwrap();
        // two texts of four positions, the first and the last of the second not answered
        let s: Vec<f32> = [[0, 2, 0], [1, 0, 3], [2, 0, 1], [3, 0, 0], [9, 9, 9], [0, 1, 0], [2, 0, 1], [9, 9, 9]]
            .concat()
            .iter()
            .map(|&x: &i32| x as f32)
            .collect();
        let t: Vec<f32> = [[1, 2, 0], [2, 0, 1], [2, 0, 1], [3, 0, 0], [9, 9, 9], [2, 1, 0], [2, 0, 1], [9, 9, 9]]
            .concat()
            .iter()
            .map(|&x: &i32| x as f32)
            .collect();
        let answered = [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0];
        let targets = Targets {
            scheme: Some(Arc::new(scheme)),
            of_step: Counts { answered: 6, labelled: 0, tokens: 0 },
            ..targets(&answered, &[], false)
        };
        let p = |x: &[f32], at: usize, may: &[usize]| {
            let e: Vec<f64> = x[at * 3..][..3].iter().map(|&x| f64::from(x).exp()).collect();
            may.iter().map(|&tag| e[tag]).sum::<f64>() / e.iter().sum::<f64>()
        };
        // the student's [0, 2) and [5, 6), the teacher's [0, 1)
        let entities = |x: &[f32]| {
            [
                p(x, 0, &[1]) * p(x, 1, &[2]) * p(x, 2, &[0, 1]),
                p(x, 0, &[1]) * p(x, 1, &[0, 1]),
                p(x, 5, &[1]) * p(x, 6, &[0, 1]),
            ]
        };
        let kl = |(t, s): (f64, f64)| t * (t / s).ln() + (1.0 - t) * ((1.0 - t) / (1.0 - s)).ln();
        let expected = entities(&t).into_iter().zip(entities(&s)).map(kl).sum::<f64>() / 6.0;
        let device = Device::flex();
        let (s, t) = (logits(&s, [2, 4, 3]), logits(&t, [2, 4, 3]));
        let found = scalar(spans(&s, &t, &targets, &device).unwrap());
        assert!(expected > 0.01 && (found - expected).abs() < 1e-5, "{found}, expected {expected}");
        assert!(scalar(spans(&t, &t, &targets, &device).unwrap()).abs() < 1e-6);
        // However unlikely an entity is to the student, it is taught: the gradient of its one word's tag is -p of the teacher over the words.
        let sure =
            [[0, 9, 0], [0, 0, 9], [0, 0, 9], [9, 0, 0]].concat().iter().map(|&x: &i32| x as f32).collect::<Vec<_>>();
        let lost = [[90, 0, 0], [90, 0, 0], [90, 0, 0], [90, 0, 0]]
            .concat()
            .iter()
            .map(|&x: &i32| x as f32)
            .collect::<Vec<_>>();
        let tracked =
            |x: &[f32]| Tensor::<3>::from_data(TensorData::new(x.to_vec(), [1, 4, 3]), &device.clone().autodiff());
        let of_one = Targets {
            answered: vec![1.0; 4],
            of_step: Counts { answered: 1, labelled: 0, tokens: 0 },
            ..targets.clone()
        };
        let student = tracked(&lost).require_grad();
        let gradients = spans(&student, &tracked(&sure), &of_one, &device.clone().autodiff()).unwrap().backward();
        let gradient = student.grad(&gradients).unwrap().into_data().try_into_vec::<f32>().unwrap();
        for (at, tag) in [(0, 1), (1, 2), (2, 2)] {
            assert!((gradient[at * 3 + tag] + 1.0).abs() < 0.01, "{gradient:?}");
        }
        let nan = logits(&[f32::NAN; 24], [2, 4, 3]);
        assert!(scalar(spans(&nan, &t, &targets, &device).unwrap()).is_nan());
        // All outside.
        let none = logits(&[5.0, 0.0, 0.0].repeat(8), [2, 4, 3]);
        assert_eq!(scalar(spans(&none, &none, &targets, &device).unwrap()), 0.0);
    }
}
