//! The terms that teach sentence embeddings, over the pairs of a step.
//!
//! A step is computed in parts, side by side, but its texts are all compared with each other: how many negatives a text has must not
//! hang on the number of threads. So the parts show each other their embeddings before the loss, and each computes the whole of it, in
//! which its own embeddings alone are no constants. The sum of their gradients is then that of the loss: it is the chain rule, part by
//! part.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ampoule::bundle::PoolingMode;
use ampoule::{Batch, Error, Result};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};

use crate::losses::{Outputs, Term, losses};
use crate::sequences::Input;

/// The pairs of a part of a step.
pub(crate) struct Pairs {
    /// The first texts, and the second ones in the same order.
    pub(crate) sides: [Input; 2],
    pub(crate) step: Arc<StepPairs>,
    /// The number of this part, from 0.
    pub(crate) part: usize,
}

/// The pairs of a step, in the order of its parts.
pub(crate) struct StepPairs {
    /// 1 where pair j's second text is no negative of pair i's first, though it is not its own, `[pairs, pairs]`.
    no_negatives: Vec<f32>,
    /// 1 where two texts are equal, `[2 * pairs, 2 * pairs]`, all first ones before all second ones.
    equal: Vec<f32>,
    exchange: Exchange,
}

impl StepPairs {
    pub(crate) fn new(no_negatives: Vec<f32>, equal: Vec<f32>, parts: usize) -> Self {
        StepPairs { no_negatives, equal, exchange: Exchange::new(parts) }
    }

    #[cfg(test)]
    pub(crate) fn no_negatives(&self) -> &[f32] {
        &self.no_negatives
    }
}

/// Where the parts of a step show each other their embeddings.
struct Exchange {
    state: Mutex<Shown>,
    changed: Condvar,
}

struct Shown {
    /// By part.
    embeddings: Vec<Option<Arc<Embeddings>>>,
    /// A part failed, so that some will not come.
    is_broken: bool,
}

/// The values of a part's embeddings: of its first texts and of its second ones, each `[pairs, width]`.
struct Embeddings {
    student: [Vec<f32>; 2],
    teacher: Option<[Vec<f32>; 2]>,
}

impl Exchange {
    fn new(parts: usize) -> Self {
        let state = Mutex::new(Shown { embeddings: (0..parts).map(|_| None).collect(), is_broken: false });
        Exchange { state, changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part's place in the exchange. Where it is dropped before anything was shown, the others stop waiting.
struct Place<'a> {
    exchange: &'a Exchange,
    part: usize,
}

impl Place<'_> {
    /// Shows the part's embeddings and waits for those of all parts; none where another part fails.
    fn show(self, embeddings: Embeddings) -> Option<Vec<Arc<Embeddings>>> {
        let exchange = self.exchange;
        let mut state = exchange.lock();
        state.embeddings[self.part] = Some(Arc::new(embeddings));
        exchange.changed.notify_all();
        while !state.is_broken && state.embeddings.iter().any(Option::is_none) {
            state = exchange.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let all = state.embeddings.iter().cloned().collect();
        drop(state);
        all
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.exchange.lock();
        if state.embeddings[self.part].is_none() {
            state.is_broken = true;
            self.exchange.changed.notify_all();
        }
    }
}

/// What a student and its teacher, if it has one, make of a side.
type Both = (Outputs, Option<Outputs>);

/// The value of each term of `terms`, unweighted and each `[1]`, of a part of a step of pairs: the values of all parts add up to the
/// step's, and so do the gradients. `compute` gives what the student and its teacher make of a side. None where another part failed.
///
/// # Errors
/// Those of `compute` and of [`losses`].
pub(crate) fn pair_losses(
    terms: &[Term],
    pairs: &Pairs,
    compute: &mut dyn FnMut(&Input) -> Result<Both>,
    device: &Device,
) -> Result<Option<Vec<Tensor<1>>>> {
    let place = Place { exchange: &pairs.step.exchange, part: pairs.part };
    let both = [compute(&pairs.sides[0])?, compute(&pairs.sides[1])?];
    let [first, second] = &both;
    let compared = match (&first.0.embeddings, &second.0.embeddings) {
        (Some(a), Some(b)) => {
            let of_teacher = |side: &Both| Some(values(side.1.as_ref()?.embeddings.as_ref()?));
            let taught = of_teacher(first).zip(of_teacher(second)).map(<[Vec<f32>; 2]>::from);
            let shown = Embeddings { student: [values(a), values(b)], teacher: taught };
            let Some(all) = place.show(shown) else { return Ok(None) };
            Some(Compared::new(&all, pairs, [a.clone(), b.clone()], device))
        }
        _ => None,
    };
    let parts = pairs.step.exchange.lock().embeddings.len() as f64;
    let value = |term: &Term| match (term, &compared) {
        (Term::Contrastive { temperature, .. }, Some(compared)) => {
            Ok(shared(compared.contrastive(*temperature), parts))
        }
        (Term::Embedding { temperature, .. }, Some(compared)) => {
            let loss = compared.embedding(*temperature).ok_or_else(|| needs_teacher(term))?;
            Ok(shared(loss, parts))
        }
        _ => {
            let of = |(input, (student, teacher)): (&Input, &(Outputs, Option<Outputs>))| {
                losses(std::slice::from_ref(term), student, teacher.as_ref(), &input.targets, device)
            };
            let values = pairs.sides.iter().zip(&both).map(of).collect::<Result<Vec<_>>>()?;
            let sum = values.into_iter().flatten().reduce(|sum, value| sum + value);
            sum.ok_or_else(|| Error::internal("a part of a step without texts"))
        }
    };
    terms.iter().map(value).collect::<Result<_>>().map(Some)
}

fn needs_teacher(term: &Term) -> Error {
    Error::invalid_input(format!("the loss term {:?} needs a teacher; name one, or take the term out", term.name()))
}

/// Of a value that each of so many parts computes as a whole: its share of it, with the whole gradient of what is the part's own.
fn shared(loss: Tensor<1>, parts: f64) -> Tensor<1> {
    loss.clone() - loss.detach() * (1.0 - 1.0 / parts)
}

/// The embeddings of a batch's texts, `[batch, seq, hidden] -> [batch, hidden]`, as [`Embedder`](ampoule::Embedder) pools the last hidden
/// states of one window, and of length 1, so that products are cosines.
pub(crate) fn embeddings(states: Tensor<3>, batch: &Batch, mode: PoolingMode, device: &Device) -> Tensor<2> {
    let mask = batch.attention_mask(device).unsqueeze_dim::<3>(2); // [batch, seq, 1]
    let pooled = match mode {
        // A length of 1 is what remains of a mean and of a sum.
        PoolingMode::Mean => (states * mask).sum_dim(1),
        PoolingMode::Cls => states.narrow(1, 0, 1),
        PoolingMode::Max => (states + (mask - 1.0) * 30_000.0).max_dim(1),
    };
    let pooled = pooled.squeeze_dim::<2>(1); // [batch, hidden]
    let length = (pooled.clone() * pooled.clone()).sum_dim(1).sqrt().clamp_min(1e-12);
    pooled / length
}

fn values(x: &Tensor<2>) -> Vec<f32> {
    x.clone().inner().into_data().try_into_vec::<f32>().unwrap_or_default()
}

/// All texts of a step, as one part sees them.
struct Compared {
    /// First texts and second ones, each `[pairs, hidden]`.
    student: [Tensor<2>; 2],
    teacher: Option<[Tensor<2>; 2]>,
    /// `[pairs, pairs]`
    no_negatives: Tensor<2>,
    /// `[2 * pairs, 2 * pairs]`
    equal: Tensor<2>,
}

impl Compared {
    /// `own` are the embeddings of the part itself, which have a gradient.
    fn new(all: &[Arc<Embeddings>], pairs: &Pairs, own: [Tensor<2>; 2], device: &Device) -> Self {
        let [rows, width] = own[0].dims();
        let constant = |values: &[f32], width: usize| {
            let shape = [values.len() / width.max(1), width];
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let student = [0, 1].map(|side| {
            let each = all.iter().enumerate().map(|(part, shown)| match part == pairs.part {
                true => own[side].clone(),
                false => constant(&shown.student[side], width),
            });
            Tensor::cat(each.collect(), 0)
        });
        let taught: Option<Vec<&[Vec<f32>; 2]>> = all.iter().map(|shown| shown.teacher.as_ref()).collect();
        let teacher = taught.map(|taught| {
            let width = taught[pairs.part][0].len() / rows.max(1);
            [0, 1].map(|side| Tensor::cat(taught.iter().map(|shown| constant(&shown[side], width)).collect(), 0))
        });
        let count = student[0].dims()[0];
        let (no_negatives, equal) = (&pairs.step.no_negatives, &pairs.step.equal);
        Compared { student, teacher, no_negatives: constant(no_negatives, count), equal: constant(equal, 2 * count) }
    }

    /// See [`Term::Contrastive`].
    fn contrastive(&self, temperature: f64) -> Tensor<1> {
        let [first, second] = self.student.clone();
        let count = first.dims()[0];
        let cosines = first.matmul(second.transpose()) / temperature; // [pairs, pairs]
        let chosen = log_softmax(cosines - self.no_negatives.clone() * MASKED, 1);
        let own = Tensor::<2>::eye(count, &self.no_negatives.device());
        (chosen * own).sum().neg() / count as f64
    }

    /// See [`Term::Embedding`].
    fn embedding(&self, temperature: f64) -> Option<Tensor<1>> {
        let relations = |[first, second]: [Tensor<2>; 2]| {
            let all = Tensor::cat(vec![first, second], 0); // [2 * pairs, hidden]
            let cosines = all.clone().matmul(all.transpose()) / temperature;
            // Nothing remains of what is left out: where all is, as of one text with itself, there is nothing to learn.
            log_softmax(cosines * (self.equal.clone().neg() + 1.0) - self.equal.clone() * MASKED, 1) // [2 * pairs, 2 * pairs]
        };
        let (student, teacher) = (relations(self.student.clone()), relations(self.teacher.clone()?));
        let count = student.dims()[0];
        Some((teacher.clone().exp() * (teacher - student)).sum() / count as f64)
    }
}

/// What is taken from a logit that is left out. The softmax of anything this far below the rest is zero in f32.
const MASKED: f64 = 30_000.0;

#[cfg(test)]
mod tests;
