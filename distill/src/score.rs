//! Scores: entities as seqeval counts them (strict, IOB2), labels as scikit-learn does, both to the last digit, and how sure one
//! may be of them (bootstrap over texts).
//!
//! A quotient whose divisor is 0 is 0 (`zero_division=0`). Every function that takes several lists takes one entry a text, in the
//! same order in each, and panics when their lengths differ: a score of mismatched lists would be a silent falsehood.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

mod confusion;
mod search;
#[cfg(test)]
mod tests;

pub use confusion::{Confusion, Judged, Verdict, judge};
pub use search::{FOUND, SearchMeasures, SearchReport, paired_search_bootstrap, search_intervals, search_scores};

/// A label and where it stands: UTF-8 bytes of the text, or positions in a sequence of tags.
pub type LabelledSpan = (String, Range<usize>);

/// Precision, recall and F1, each in `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Prf {
    /// The share of what was found that is right.
    pub precision: f64,
    /// The share of what is there that was found.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub f1: f64,
    /// How many there are in the gold standard.
    pub support: usize,
}

/// What became of one text's spans, all labels together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Counts {
    /// Found and right.
    pub tp: u32,
    /// Found but not in the gold standard.
    pub fp: u32,
    /// In the gold standard but not found.
    #[serde(rename = "fn")]
    pub fn_: u32,
}

/// How well entities were found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NerReport {
    /// Of every label that occurs in the gold standard or was found.
    pub per_label: BTreeMap<String, Prf>,
    /// Of all spans together.
    pub micro: Prf,
    /// The unweighted mean over `per_label`.
    pub macro_avg: Prf,
    /// One entry a text, for [`interval`], [`paired_bootstrap`] and [`retention`].
    #[serde(skip)]
    pub counts: Vec<Counts>,
    /// The same of each label.
    #[serde(skip)]
    pub by_label: BTreeMap<String, Vec<Counts>>,
}

/// How well texts were labelled.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ClassReport {
    /// The share of texts whose labels are exactly right, all of them (subset accuracy).
    pub accuracy: f64,
    /// The unweighted mean F1 of all the model's labels, those that never occur included (theirs is 0).
    pub macro_f1: f64,
    /// F1 of all decisions together.
    pub micro_f1: f64,
    /// Area under the ROC curve: each label against the rest, and of these the unweighted mean; of a single-label task with two
    /// labels, that of the second. Tied scores count half, as with midranks. A label that no text has, or every text, has no such
    /// area and is left out of the mean; `None` where no label has one.
    pub auroc: Option<f64>,
    /// Of each of the model's labels.
    pub per_label: BTreeMap<String, Prf>,
    /// One entry a text, for [`label_intervals`], [`paired_label_bootstrap`] and [`label_retention`].
    #[serde(skip)]
    pub decisions: Vec<Decisions>,
    /// Of each label one entry a text, for [`interval`].
    #[serde(skip)]
    pub by_label: BTreeMap<String, Vec<Counts>>,
    /// Of each label that `auroc` may be of one entry a text: its score, and whether the text has it.
    #[serde(skip)]
    ranked: Vec<Vec<(f32, bool)>>,
}

/// What was decided on one text's labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Whether all of them are right.
    exact: bool,
    /// The labels, by index, that it has or was given: whether it has it, whether it was given it.
    labels: Vec<(usize, bool, bool)>,
}

/// A score, and how sure one may be of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// The score of the texts as they are.
    pub value: f64,
    /// The lower end of its 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// How sure one may be of a labelling of texts.
///
/// A sample that lacks all texts of a rare label has a lower macro F1 for that alone, and an AUROC of other labels. So the ends are moved by
/// as much as the samples' mean lies beside the score, the bootstrap's estimate of bias (Efron and Tibshirani 1993, chapter 10), within `0..=1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LabelIntervals {
    /// Of [`ClassReport::accuracy`].
    pub accuracy: Interval,
    /// Of [`ClassReport::macro_f1`].
    pub macro_f1: Interval,
    /// Of [`ClassReport::auroc`]; of a sample without a text that has a label, or with none that has not, its area is left out.
    pub auroc: Option<Interval>,
}

/// How far one labelling of texts lies from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LabelBootstrap {
    /// Of [`ClassReport::accuracy`].
    pub accuracy: Bootstrap,
    /// Of [`ClassReport::macro_f1`]; a label that no drawn text has or was given counts 0, on both sides.
    pub macro_f1: Bootstrap,
}

/// How far one score lies from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bootstrap {
    /// The first's score minus the second's, on the texts as they are.
    pub difference: f64,
    /// The lower end of the difference's 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// The two-sided p-value of "no difference": twice the share of resamples on the rarer side of 0, those at 0 being on both,
    /// and one resample more counted on each side, so that it is never 0 and at most 1.
    pub p: f64,
}

/// Scores entities: a span is right when the gold standard has the same label over the same range, and no less will do.
///
/// `covers` says of each text which labels its data set marks at all; spans of others are ignored, since nothing is known of them.
/// A span listed twice counts once.
///
/// # Panics
/// When the three lists differ in length.
pub fn ner_scores(gold: &[Vec<LabelledSpan>], found: &[Vec<LabelledSpan>], covers: &[&BTreeSet<String>]) -> NerReport {
    let (by_label, counts) = count(gold, found, covers, |(label, range)| Some((label, range)));
    let by_label: BTreeMap<String, Vec<Counts>> =
        by_label.into_iter().map(|(label, counts)| (label.to_owned(), counts)).collect();
    let per_label: BTreeMap<String, Prf> =
        by_label.iter().map(|(label, counts)| (label.clone(), Tally::of(counts).prf())).collect();
    let mean = |of: fn(&Prf) -> f64| mean(&per_label.values().map(of).collect::<Vec<_>>()).unwrap_or_default();
    let micro = Tally::of(&counts).prf();
    let macro_avg = Prf {
        precision: mean(|x| x.precision),
        recall: mean(|x| x.recall),
        f1: mean(|x| x.f1),
        support: micro.support,
    };
    NerReport { per_label, micro, macro_avg, counts, by_label }
}

/// The micro average that would be had by keeping found spans of at least `threshold` alone; otherwise as [`ner_scores`].
///
/// # Panics
/// When the three lists differ in length.
pub fn at_threshold(
    gold: &[Vec<LabelledSpan>],
    found_scored: &[Vec<(String, Range<usize>, f32)>],
    covers: &[&BTreeSet<String>],
    threshold: f32,
) -> Prf {
    let (_, counts) =
        count(gold, found_scored, covers, |(label, range, score)| (*score >= threshold).then_some((label, range)));
    Tally::of(&counts).prf()
}

/// The spans that a sequence of IOB2 tags says, in positions of `tags`; strictly, as seqeval reads them: `B-x` begins one, `I-x`
/// continues one of the same label and says nothing elsewhere. Any other tag is outside.
pub fn spans_of_tags<S: AsRef<str>>(tags: &[S]) -> Vec<LabelledSpan> {
    let mut spans: Vec<LabelledSpan> = Vec::new();
    for (at, tag) in tags.iter().enumerate() {
        let tag = tag.as_ref();
        // A bare `B` has the label `_`, in seqeval too.
        let label = tag.get(1..).map(|rest| rest.trim_matches('-')).filter(|label| !label.is_empty()).unwrap_or("_");
        match (tag.as_bytes().first(), spans.last_mut()) {
            (Some(b'B'), _) => spans.push((label.to_string(), at..at + 1)),
            (Some(b'I'), Some((open, range))) if range.end == at && open == label => range.end = at + 1,
            _ => {}
        }
    }
    spans
}

/// Scores labels of texts.
///
/// `gold` holds each text's labels, exactly one where `multi_label` is false; a text with a label outside `labels` (all that the model
/// knows) is wrong, and what it is given instead counts as found in error. `scores` holds probabilities by name, in any order; one that
/// is missing is 0. A text is given its likeliest label, of equals the first of `labels`; where `multi_label` is true, every label of at
/// least 0.5.
///
/// # Panics
/// When `gold` and `scores` differ in length.
pub fn classification_scores(
    gold: &[Vec<String>],
    scores: &[Vec<(String, f32)>],
    labels: &[String],
    multi_label: bool,
) -> ClassReport {
    assert_eq!(gold.len(), scores.len(), "one list of labels and one of scores a text");
    let columns: HashMap<&str, usize> = labels.iter().enumerate().map(|(at, label)| (label.as_str(), at)).collect();
    let mut by_label = vec![vec![Counts::default(); gold.len()]; labels.len()];
    let mut ranked: Vec<Vec<(f32, bool)>> = vec![Vec::with_capacity(gold.len()); labels.len()];
    let mut decisions = Vec::with_capacity(gold.len());
    for (number, (gold, scores)) in gold.iter().zip(scores).enumerate() {
        let mut row = vec![(0.0, false); labels.len()];
        for (label, score) in scores {
            if let Some(&at) = columns.get(label.as_str()) {
                row[at].0 = *score;
            }
        }
        let mut text = Decisions { exact: true, labels: Vec::new() };
        for label in gold {
            match columns.get(label.as_str()) {
                Some(&at) => row[at].1 = true,
                None => text.exact = false,
            }
        }
        let likeliest = (0..row.len()).rev().max_by(|&a, &b| row[a].0.total_cmp(&row[b].0));
        for (at, &(score, held)) in row.iter().enumerate() {
            let said = if multi_label { score >= 0.5 } else { likeliest == Some(at) };
            by_label[at][number].add(held, said);
            ranked[at].push((score, held));
            text.exact &= held == said;
            text.labels.extend((held || said).then_some((at, held, said)));
        }
        decisions.push(text);
    }

    let tallies: Vec<Tally> = by_label.iter().map(Tally::of).collect();
    let per_label: Vec<Prf> = tallies.iter().map(|tally| Prf { f1: tally.f1(), ..tally.prf() }).collect();
    let second_only = !multi_label && labels.len() == 2;
    ranked.drain(..usize::from(second_only));
    let all = tallies.iter().fold(Tally::default(), |sum, tally| sum + *tally);
    ClassReport {
        accuracy: accuracy(decisions.iter()),
        macro_f1: mean(&per_label.iter().map(|prf| prf.f1).collect::<Vec<_>>()).unwrap_or_default(),
        micro_f1: all.f1(),
        auroc: auroc(&ranked, &Vec::from_iter(0..gold.len())),
        per_label: labels.iter().cloned().zip(per_label).collect(),
        decisions,
        by_label: labels.iter().cloned().zip(by_label).collect(),
        ranked,
    }
}

/// The 95 % interval of the micro F1 of `texts`: the percentiles 2.5 and 97.5 of `resamples` bootstrap samples, each of as many
/// texts, drawn with replacement. The same `seed` gives the same interval; with no resamples it is the F1 itself.
pub fn interval(texts: &[Counts], resamples: usize, seed: u64) -> (f64, f64) {
    let values = resampled(texts.len(), resamples, seed, |picks| micro_f1(texts, picks));
    let point = Tally::of(texts).prf().f1;
    (percentile(&values, 0.025).unwrap_or(point), percentile(&values, 0.975).unwrap_or(point))
}

/// Compares two models on the same texts, or one on two versions of them: `resamples` bootstrap samples of texts as in
/// [`interval`], each scored for both.
///
/// # Panics
/// When `a` and `b` differ in length.
pub fn paired_bootstrap(a: &[Counts], b: &[Counts], resamples: usize, seed: u64) -> Bootstrap {
    assert_eq!(a.len(), b.len(), "the same texts for both models");
    paired(a.len(), resamples, seed, |picks| micro_f1(a, picks) - micro_f1(b, picks))
}

/// The same for labels of whole texts, of models with the same labels.
///
/// # Panics
/// When `a` and `b` differ in texts or labels.
pub fn paired_label_bootstrap(a: &ClassReport, b: &ClassReport, resamples: usize, seed: u64) -> LabelBootstrap {
    assert_eq!(a.decisions.len(), b.decisions.len(), "the same texts for both");
    assert!(a.per_label.keys().eq(b.per_label.keys()), "the same labels for both");
    let compare = |score: &dyn Fn(&ClassReport, &[usize]) -> f64| {
        paired(a.decisions.len(), resamples, seed, |picks| score(a, picks) - score(b, picks))
    };
    LabelBootstrap { accuracy: compare(&accuracy_of), macro_f1: compare(&macro_f1) }
}

/// The 95 % intervals of a labelling's scores, by bootstrap samples of its texts as in [`interval`].
pub fn label_intervals(report: &ClassReport, resamples: usize, seed: u64) -> LabelIntervals {
    let of = |score: &dyn Fn(&ClassReport, &[usize]) -> f64, value: f64| {
        let mut values = resampled(report.decisions.len(), resamples, seed, |picks| score(report, picks));
        values.retain(|value| value.is_finite());
        let bias = mean(&values).map_or(0.0, |mean| mean - value);
        let Interval { low, high, .. } = Interval::of(value, &values);
        Interval { value, low: (low - bias).clamp(0.0, 1.0), high: (high - bias).clamp(0.0, 1.0) }
    };
    let auroc = report.auroc.map(|value| of(&|report, picks| auroc(&report.ranked, picks).unwrap_or(f64::NAN), value));
    LabelIntervals { accuracy: of(&accuracy_of, report.accuracy), macro_f1: of(&macro_f1, report.macro_f1), auroc }
}

/// The share of the micro F1 of `b` that `a` has on the same texts, by bootstrap samples of texts as in [`paired_bootstrap`]; those
/// in which `b` has none are left out. `None` where `b` has none at all.
///
/// # Panics
/// When `a` and `b` differ in length.
pub fn retention(a: &[Counts], b: &[Counts], resamples: usize, seed: u64) -> Option<Interval> {
    assert_eq!(a.len(), b.len(), "the same texts for both models");
    share(a.len(), resamples, seed, |picks| micro_f1(a, picks), |picks| micro_f1(b, picks))
}

/// The same of the macro F1 of whole texts' labels.
///
/// # Panics
/// When `a` and `b` differ in texts.
pub fn label_retention(a: &ClassReport, b: &ClassReport, resamples: usize, seed: u64) -> Option<Interval> {
    assert_eq!(a.decisions.len(), b.decisions.len(), "the same texts for both");
    share(a.decisions.len(), resamples, seed, |picks| macro_f1(a, picks), |picks| macro_f1(b, picks))
}

/// Resamples the quotient of two scores of the same texts.
fn share(
    texts: usize,
    resamples: usize,
    seed: u64,
    part: impl Fn(&[usize]) -> f64,
    whole: impl Fn(&[usize]) -> f64,
) -> Option<Interval> {
    let all = Vec::from_iter(0..texts);
    let value = Some(part(&all) / whole(&all)).filter(|value| value.is_finite())?;
    let mut values = resampled(texts, resamples, seed, |picks| part(picks) / whole(picks));
    values.retain(|value| value.is_finite());
    Some(Interval::of(value, &values))
}

impl Interval {
    /// Of a score and the sorted scores of resamples; of no resamples the score itself.
    fn of(value: f64, resampled: &[f64]) -> Self {
        let end = |share| percentile(resampled, share).unwrap_or(value);
        Interval { value, low: end(0.025), high: end(0.975) }
    }
}

/// Resamples a difference of two scores of the same texts; it is given the indices of texts.
fn paired(texts: usize, resamples: usize, seed: u64, difference: impl Fn(&[usize]) -> f64) -> Bootstrap {
    let values = resampled(texts, resamples, seed, &difference);
    let difference = difference(&Vec::from_iter(0..texts));
    let below = values.iter().filter(|&&x| x <= 0.0).count();
    let above = values.iter().filter(|&&x| x >= 0.0).count();
    Bootstrap {
        difference,
        low: percentile(&values, 0.025).unwrap_or(difference),
        high: percentile(&values, 0.975).unwrap_or(difference),
        p: f64::min(1.0, 2.0 * (below.min(above) + 1) as f64 / (resamples + 1) as f64),
    }
}

fn accuracy_of(report: &ClassReport, picks: &[usize]) -> f64 {
    accuracy(picks.iter().map(|&at| &report.decisions[at]))
}

fn macro_f1(report: &ClassReport, picks: &[usize]) -> f64 {
    let mut tallies = vec![Tally::default(); report.per_label.len()];
    let decided = picks.iter().flat_map(|&at| &report.decisions[at].labels);
    decided.for_each(|&(label, held, said)| tallies[label].add(held, said));
    mean(&tallies.iter().map(Tally::f1).collect::<Vec<_>>()).unwrap_or_default()
}

fn accuracy<'a>(texts: impl ExactSizeIterator<Item = &'a Decisions>) -> f64 {
    let count = texts.len() as u64;
    ratio(texts.filter(|text| text.exact).count() as u64, count)
}

impl Counts {
    fn add(&mut self, held: bool, said: bool) {
        match (held, said) {
            (true, true) => self.tp += 1,
            (true, false) => self.fn_ += 1,
            (false, true) => self.fp += 1,
            (false, false) => {}
        }
    }
}

impl Decisions {
    /// The labels that it was given, by their index.
    pub fn given(&self) -> impl Iterator<Item = usize> {
        self.labels.iter().filter(|(_, _, said)| *said).map(|(label, ..)| *label)
    }
}

/// Sums over texts: how many are right, how many were found, how many there are.
#[derive(Clone, Copy, Default)]
struct Tally {
    right: u64,
    found: u64,
    gold: u64,
}

impl Tally {
    fn of<'a>(texts: impl IntoIterator<Item = &'a Counts>) -> Tally {
        texts.into_iter().fold(Tally::default(), |sum, text| {
            let [tp, fp, fn_] = [text.tp, text.fp, text.fn_].map(u64::from);
            sum + Tally { right: tp, found: tp + fp, gold: tp + fn_ }
        })
    }

    fn add(&mut self, held: bool, said: bool) {
        self.right += u64::from(held && said);
        self.found += u64::from(said);
        self.gold += u64::from(held);
    }

    /// In seqeval's order of operations.
    fn prf(&self) -> Prf {
        let (precision, recall) = (ratio(self.right, self.found), ratio(self.right, self.gold));
        let sum = precision + recall;
        let f1 = if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum };
        Prf { precision, recall, f1, support: self.gold as usize }
    }

    /// In scikit-learn's, which may differ in the last digit.
    fn f1(&self) -> f64 {
        ratio(2 * self.right, self.found + self.gold)
    }
}

impl std::ops::Add for Tally {
    type Output = Tally;

    fn add(self, other: Tally) -> Tally {
        Tally { right: self.right + other.right, found: self.found + other.found, gold: self.gold + other.gold }
    }
}

/// Counts spans by label and by text; `of` reads a found one, or drops it.
fn count<'a, T>(
    gold: &'a [Vec<LabelledSpan>],
    found: &'a [Vec<T>],
    covers: &[&BTreeSet<String>],
    of: impl Fn(&'a T) -> Option<(&'a String, &'a Range<usize>)>,
) -> (BTreeMap<&'a str, Vec<Counts>>, Vec<Counts>) {
    assert!(
        gold.len() == found.len() && gold.len() == covers.len(),
        "one list of gold spans, one of found spans and one set of labels a text"
    );
    let mut labels: BTreeMap<&str, Vec<Counts>> = BTreeMap::new();
    let mut texts = vec![Counts::default(); gold.len()];
    for (at, ((gold, found), covers)) in gold.iter().zip(found).zip(covers).enumerate() {
        let key = |(label, range): (&'a String, &'a Range<usize>)| {
            covers.contains(label).then_some((label.as_str(), range.start, range.end))
        };
        let gold: BTreeSet<_> = gold.iter().filter_map(|(label, range)| key((label, range))).collect();
        let found: BTreeSet<_> = found.iter().filter_map(|span| of(span).and_then(key)).collect();
        for span in gold.union(&found) {
            let (held, said) = (gold.contains(span), found.contains(span));
            labels.entry(span.0).or_insert_with(|| vec![Counts::default(); texts.len()])[at].add(held, said);
            texts[at].add(held, said);
        }
    }
    (labels, texts)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Sorted values of a statistic of resampled texts; it is given the indices drawn.
fn resampled(texts: usize, resamples: usize, seed: u64, mut statistic: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut picks = vec![0; texts];
    let mut values: Vec<f64> = (0..resamples)
        .map(|_| {
            picks.fill_with(|| rng.random_range(0..texts));
            statistic(&picks)
        })
        .collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn micro_f1(texts: &[Counts], picks: &[usize]) -> f64 {
    Tally::of(picks.iter().map(|&at| &texts[at])).prf().f1
}

/// The value below which a `share` of the sorted values lies, interpolated linearly.
fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let at = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    Some(low + (high - low) * at.fract())
}

/// The mean area of the labels that have one in these texts.
fn auroc(ranked: &[Vec<(f32, bool)>], picks: &[usize]) -> Option<f64> {
    let of_picks = |label: &Vec<(f32, bool)>| area_under_roc(picks.iter().map(|&at| label[at]).collect());
    mean(&ranked.iter().filter_map(of_picks).collect::<Vec<_>>())
}

/// The area under the ROC curve, in scikit-learn's order of operations, of (score, is it so) pairs in any order.
fn area_under_roc(mut pairs: Vec<(f32, bool)>) -> Option<f64> {
    pairs.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    // (false, true) positives above each distinct score
    let mut points: Vec<(i64, i64)> = Vec::new();
    let (mut negatives, mut positives) = (0, 0);
    for tied in pairs.chunk_by(|a, b| a.0 == b.0) {
        let held = tied.iter().filter(|pair| pair.1).count() as i64;
        positives += held;
        negatives += tied.len() as i64 - held;
        points.push((negatives, positives));
    }
    if negatives == 0 || positives == 0 {
        return None;
    }
    let evenly = |a: (i64, i64), b: (i64, i64), c: (i64, i64)| a.0 + c.0 == 2 * b.0 && a.1 + c.1 == 2 * b.1;
    let inner = |at: usize| at > 0 && at + 1 < points.len() && evenly(points[at - 1], points[at], points[at + 1]);
    let corners = (0..points.len()).filter(|&at| !inner(at)).map(|at| points[at]);
    let curve: Vec<(f64, f64)> = std::iter::once((0, 0))
        .chain(corners)
        .map(|(x, y)| (x as f64 / negatives as f64, y as f64 / positives as f64))
        .collect();
    let slices: Vec<f64> = curve.windows(2).map(|p| (p[1].0 - p[0].0) * (p[1].1 + p[0].1) / 2.0).collect();
    Some(sum(&slices))
}

/// `None` of nothing.
fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| sum(values) / values.len() as f64)
}

/// A sum in NumPy's order (pairwise, eight at a time), on which the last digit depends.
fn sum(values: &[f64]) -> f64 {
    if values.len() > 128 {
        let half = values.len() / 2;
        let (left, right) = values.split_at(half - half % 8);
        return sum(left) + sum(right);
    }
    let eights = values.chunks_exact(8);
    let rest = eights.remainder();
    let start = eights
        .map(|chunk| std::array::from_fn::<f64, 8, _>(|lane| chunk[lane]))
        .reduce(|sums, chunk| std::array::from_fn(|lane| sums[lane] + chunk[lane]))
        .map_or(0.0, |[a, b, c, d, e, f, g, h]| ((a + b) + (c + d)) + ((e + f) + (g + h)));
    rest.iter().fold(start, |sum, x| sum + x)
}
