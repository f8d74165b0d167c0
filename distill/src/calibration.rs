//! Scores that mean something: a temperature for a model's logits, and how far its scores lie from the share that is right
//! (Guo et al. 2017, <https://arxiv.org/abs/1706.04599>).
//!
//! Logits and scores are those of the runtime. A temperature is fitted on what a model judges, words or texts; how well it did is
//! measured on what a user sees, entities and labels.

use std::ops::Range;

use ampoule::decode::Scheme;
use ampoule::{Checkpoint, Classifier, Error, Extractor, Options, Result, Task};
use serde::Serialize;

use crate::data::{LabelledText, NerSet};
use crate::sequences::{Data, outside_of, spans_of};

#[cfg(test)]
mod tests;

/// Between these a temperature is sought.
const LEAST: f64 = 0.05;
const MOST: f64 = 20.0;
/// Points of the first, coarse search. Where an `O` may be another label, the likelihood need not have one peak alone.
const COARSE: usize = 25;
/// Decimals of a fitted temperature. More say nothing, and would differ between kernels.
const DECIMALS: f64 = 1e4;

/// What a model says of words or texts, beside the answers that are right.
///
/// `Debug` shows how many.
pub struct Judgements {
    labels: usize,
    multi_label: bool,
    /// `[judgements, labels]`
    logits: Vec<f32>,
    /// `[judgements, labels]`
    right: Vec<bool>,
}

/// A fitted temperature.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TemperatureFit {
    /// What logits should be divided by.
    pub temperature: f32,
    /// Mean negative log-likelihood of the right answers at temperature 1, in nats.
    pub nll_before: f64,
    /// The same at `temperature`.
    pub nll_after: f64,
    /// Words or texts it was fitted on.
    pub judgements: usize,
}

impl std::fmt::Debug for Judgements {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Judgements({} of {} labels)", self.len(), self.labels)
    }
}

impl Judgements {
    /// None yet, of a model of so many labels; `multi_label` where each label is a question of its own (sigmoid) and not one of several
    /// (softmax).
    pub fn new(labels: usize, multi_label: bool) -> Self {
        Judgements { labels, multi_label, logits: Vec::new(), right: Vec::new() }
    }

    /// What `extractor` says of each word of `sets`. An `O` of a set that does not cover every label may be any tag of those that it
    /// does not, as in training.
    ///
    /// # Errors
    /// Those of the extractor.
    pub fn of_entities(extractor: &Extractor, sets: &[NerSet]) -> Result<Self> {
        let tags = &extractor.config().id2label;
        let scheme = Scheme::new(tags)?;
        let mut all = Judgements::new(tags.len(), false);
        for set in sets {
            let outside: Vec<bool> = outside_of(set, &scheme, tags.len()).collect();
            for some in set.examples.chunks(64) {
                let texts: Vec<&str> = some.iter().map(|e| e.text.as_str()).collect();
                for (example, words) in some.iter().zip(extractor.word_logits(&texts)?) {
                    let ranges: Vec<Range<usize>> = words.iter().map(|word| word.range.clone()).collect();
                    for (word, tag) in words.iter().zip(scheme.encode(&ranges, &spans_of(example, &scheme))) {
                        match scheme.label_of(tag) {
                            None => all.push(&word.logits, &outside)?,
                            Some(_) => {
                                let one: Vec<bool> = (0..tags.len()).map(|t| t == tag as usize).collect();
                                all.push(&word.logits, &one)?;
                            }
                        }
                    }
                }
            }
        }
        Ok(all)
    }

    /// What `classifier` says of each of `texts`. Labels that it does not know are left out, and so are texts that then have no label, or
    /// several, where it gives exactly one.
    ///
    /// # Errors
    /// Those of the classifier.
    pub fn of_labels(classifier: &Classifier, texts: &[LabelledText]) -> Result<Self> {
        let labels = classifier.labels();
        let multi_label = classifier.config().task == Task::MultiLabel;
        let mut all = Judgements::new(labels.len(), multi_label);
        for some in texts.chunks(32) {
            let batch: Vec<&str> = some.iter().map(|t| t.text.as_str()).collect();
            for (text, logits) in some.iter().zip(classifier.logits(&batch)?) {
                let right: Vec<bool> = labels.iter().map(|l| text.labels.iter().any(|of| **of == **l)).collect();
                if multi_label || right.iter().filter(|is| **is).count() == 1 {
                    all.push(&logits, &right)?;
                }
            }
        }
        Ok(all)
    }

    /// Adds one: its logits, `[labels]`, and which answers are right, `[labels]`; of several right ones, where only one is given, either
    /// will do.
    ///
    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for another number of labels, for logits that are not finite, and where no
    /// answer is right though one is given.
    pub fn push(&mut self, logits: &[f32], right: &[bool]) -> Result<()> {
        let fit = logits.len() == self.labels && right.len() == self.labels;
        if !fit || logits.iter().any(|x| !x.is_finite()) || !(self.multi_label || right.contains(&true)) {
            return Err(Error::invalid_input(format!(
                "expected {} finite logits and, unless labels are independent, a right answer; found {} values and {} right answers",
                self.labels,
                logits.len(),
                right.iter().filter(|is| **is).count()
            )));
        }
        self.logits.extend(logits);
        self.right.extend(right);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.logits.len() / self.labels.max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.logits.is_empty()
    }

    /// Mean negative log-likelihood of the right answers with logits divided by `temperature`, in nats; where labels are independent, of
    /// each label's presence or absence. 0 of nothing.
    pub fn nll(&self, temperature: f64) -> f64 {
        let rows = self.logits.chunks(self.labels.max(1)).zip(self.right.chunks(self.labels.max(1)));
        let sum: f64 = rows
            .map(|(logits, right)| {
                let scaled = logits.iter().map(|&x| f64::from(x) / temperature);
                if self.multi_label {
                    // ln(1 + e^-x) of what is there, ln(1 + e^x) of what is not
                    let of = |(x, &there): (f64, &bool)| softplus(if there { -x } else { x });
                    return scaled.zip(right).map(of).sum::<f64>() / self.labels as f64;
                }
                let right = scaled.clone().zip(right).filter(|(_, is)| **is).map(|(x, _)| x);
                log_sum_exp(scaled) - log_sum_exp(right)
            })
            .sum();
        sum / self.len().max(1) as f64
    }

    /// The temperature under which the right answers are likeliest. It divides all logits alike, so it moves no answer.
    ///
    /// None where they do not determine one: there are none, or every answer is right, and so likelier the colder, or they are no better
    /// than chance, and so likelier the hotter.
    pub fn fit(&self) -> Option<TemperatureFit> {
        let (low, high) = (LEAST.ln(), MOST.ln());
        let nll = |log: f64| self.nll(log.exp());
        let step = (high - low) / (COARSE - 1) as f64;
        let at = |i: usize| low + step * i as f64;
        let coarse: Vec<f64> = (0..COARSE).map(|i| nll(at(i))).collect();
        let best = (0..COARSE).min_by(|&a, &b| coarse[a].total_cmp(&coarse[b]))?;
        if self.is_empty() || best == 0 || best == COARSE - 1 {
            return None;
        }
        let log = golden_section(nll, at(best - 1), at(best + 1));
        let temperature = (log.exp() * DECIMALS).round() / DECIMALS;
        let (nll_before, nll_after) = (self.nll(1.0), self.nll(temperature));
        let temperature = temperature as f32;
        Some(TemperatureFit { temperature, nll_before, nll_after, judgements: self.len() })
    }
}

/// The temperature of a model's own dev set.
pub(crate) fn fit_on_dev(model: Checkpoint, data: &Data, options: &Options) -> Result<Option<TemperatureFit>> {
    Ok(match data {
        Data::Entities { dev, .. } => Judgements::of_entities(&Extractor::from_checkpoint(model, options)?, dev)?.fit(),
        Data::Labels { dev, .. } => Judgements::of_labels(&Classifier::from_checkpoint(model, options)?, dev)?.fit(),
        // Embeddings have no scores that a temperature could divide.
        Data::Search { .. } => None,
    })
}

/// Where `f` is least between `low` and `high`, in which it falls and then rises (Kiefer 1953).
fn golden_section(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    const TOLERANCE: f64 = 1e-6;
    let share = (5f64.sqrt() - 1.0) / 2.0;
    let (mut a, mut b) = (high - share * (high - low), low + share * (high - low));
    let (mut at_a, mut at_b) = (f(a), f(b));
    while high - low > TOLERANCE {
        if at_a <= at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - share * (high - low);
            at_a = f(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + share * (high - low);
            at_b = f(b);
        }
    }
    (low + high) / 2.0
}

/// `ln(1 + e^x)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn log_sum_exp(x: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = x.clone().fold(f64::NEG_INFINITY, f64::max);
    top + x.map(|x| (x - top).exp()).sum::<f64>().ln()
}

/// Bins of a reliability diagram, as many as Guo et al. have.
pub const BINS: usize = 15;

/// Scores against the share of answers that is right, in bins of equal width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reliability {
    /// In order: `(0, 1/15]` to `(14/15, 1]`. A score of 0 is in the first.
    pub bins: Vec<Bin>,
    /// Answers in all bins.
    pub count: usize,
    /// Expected calibration error, in `0..=1`: the mean distance of a bin's mean score from its share that is right, each bin with the
    /// weight of its answers. None of no answers.
    pub ece: Option<f64>,
}

/// One bin.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Scores are above this,
    pub low: f64,
    /// and at most this.
    pub high: f64,
    /// Answers in it.
    pub count: usize,
    /// The mean of their scores; none of an empty bin.
    pub mean_score: Option<f64>,
    /// The share of them that is right; none of an empty bin.
    pub share_right: Option<f64>,
}

impl Reliability {
    /// Of answers' scores, and whether each is right.
    ///
    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for a score outside `0..=1`, NaN among them.
    pub fn of(answers: &[(f32, bool)]) -> Result<Self> {
        let edge = |i: usize| i as f64 / BINS as f64;
        let mut sums = [(0usize, 0.0f64, 0usize); BINS];
        for &(score, is_right) in answers {
            if !(0.0..=1.0).contains(&score) {
                return Err(Error::invalid_input(format!("a score of {score} is no probability")));
            }
            let score = f64::from(score);
            let bin = (1..BINS).find(|&i| score <= edge(i)).unwrap_or(BINS) - 1;
            let (count, sum, right) = &mut sums[bin];
            *count += 1;
            *sum += score;
            *right += usize::from(is_right);
        }
        let count = answers.len();
        let gap = |&(_, sum, right): &(usize, f64, usize)| (sum - right as f64).abs();
        let bins = sums.iter().enumerate().map(|(i, &(count, sum, right))| {
            let mean = |x: f64| (count > 0).then(|| x / count as f64);
            Bin { low: edge(i), high: edge(i + 1), count, mean_score: mean(sum), share_right: mean(right as f64) }
        });
        Ok(Reliability {
            bins: bins.collect(),
            count,
            // The count of a bin is in its weight and in its means, and cancels.
            ece: (count > 0).then(|| sums.iter().map(gap).sum::<f64>() / count as f64),
        })
    }
}

/// What a user sees of a model, each answer with its score and whether it is right: an entity, which has to be strictly so; a text's
/// likeliest label; where labels are independent, each label, which is right where the text has it.
#[derive(Clone, Default)]
pub struct Answers {
    /// With scores at temperature 1.
    pub at_one: Vec<(f32, bool)>,
    /// With scores at the model's own.
    pub at_own: Vec<(f32, bool)>,
}

impl Answers {
    /// Adds those of other texts.
    pub fn extend(&mut self, others: Answers) {
        self.at_one.extend(others.at_one);
        self.at_own.extend(others.at_own);
    }

    /// How reliable the scores are.
    ///
    /// # Errors
    /// As [`Reliability::of`].
    pub fn calibration(&self) -> Result<Calibration> {
        Ok(Calibration { at_one: Reliability::of(&self.at_one)?, at_own: Reliability::of(&self.at_own)? })
    }
}

/// How reliable a model's scores are, without its temperature and with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// At temperature 1.
    pub at_one: Reliability,
    /// At the model's own temperature.
    pub at_own: Reliability,
}
