//! Scores of searches: of each query, where its passages stand among the first that were found.

use serde::Serialize;

use super::{Bootstrap, mean, paired, percentile, resampled};

/// How many of the first passages found are looked at.
pub const FOUND: usize = 10;

/// Something of each measure of a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SearchMeasures<T> {
    /// Of the reciprocal rank: one over the place of the first relevant passage, 0 where none is among the first ten (Voorhees 1999).
    pub mrr_at_10: T,
    /// Of the share of the relevant passages that is found first.
    pub recall_at_1: T,
    /// Of that among the first five.
    pub recall_at_5: T,
    /// Of that among the first ten.
    pub recall_at_10: T,
}

/// How well passages were found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SearchReport {
    /// The means over all queries.
    #[serde(flatten)]
    pub mean: SearchMeasures<f64>,
    /// One entry a query, for [`search_intervals`] and [`paired_search_bootstrap`].
    #[serde(skip)]
    pub queries: Vec<SearchMeasures<f64>>,
}

impl SearchReport {
    /// The report of queries of which each was measured.
    pub fn of(queries: Vec<SearchMeasures<f64>>) -> Self {
        let mean = each(|measure| mean(&queries.iter().map(measure).collect::<Vec<_>>()).unwrap_or_default());
        SearchReport { mean, queries }
    }
}

/// One measure of several.
type Measure = fn(&SearchMeasures<f64>) -> f64;

fn each<T>(of: impl Fn(Measure) -> T) -> SearchMeasures<T> {
    SearchMeasures {
        mrr_at_10: of(|m| m.mrr_at_10),
        recall_at_1: of(|m| m.recall_at_1),
        recall_at_5: of(|m| m.recall_at_5),
        recall_at_10: of(|m| m.recall_at_10),
    }
}

/// Scores searches: `relevant` holds what should be found by each query, at least one and none twice, `found` what was, the best first.
///
/// # Panics
/// When the two differ in length.
pub fn search_scores(relevant: &[Vec<usize>], found: &[Vec<usize>]) -> SearchReport {
    assert_eq!(relevant.len(), found.len(), "one list of relevant passages and one of found ones a query");
    let query = |(relevant, found): (&Vec<usize>, &Vec<usize>)| {
        let hits: Vec<bool> = found.iter().take(FOUND).map(|passage| relevant.contains(passage)).collect();
        let recall = |first: usize| {
            let hits = hits.iter().take(first).filter(|hit| **hit).count();
            hits as f64 / relevant.len().max(1) as f64
        };
        SearchMeasures {
            mrr_at_10: hits.iter().position(|hit| *hit).map_or(0.0, |at| 1.0 / (at + 1) as f64),
            recall_at_1: recall(1),
            recall_at_5: recall(5),
            recall_at_10: recall(FOUND),
        }
    };
    SearchReport::of(relevant.iter().zip(found).map(query).collect())
}

/// The 95 % interval of each measure's mean, as [`interval`](super::interval) has that of F1, over queries.
pub fn search_intervals(queries: &[SearchMeasures<f64>], resamples: usize, seed: u64) -> SearchMeasures<(f64, f64)> {
    each(|measure| {
        let values = resampled(queries.len(), resamples, seed, |picks| mean_of(queries, picks, measure));
        let point = mean_of(queries, &Vec::from_iter(0..queries.len()), measure);
        (percentile(&values, 0.025).unwrap_or(point), percentile(&values, 0.975).unwrap_or(point))
    })
}

/// Compares two models on the same queries, as [`paired_bootstrap`](super::paired_bootstrap) does on the same texts.
///
/// # Panics
/// When `a` and `b` differ in length.
pub fn paired_search_bootstrap(
    a: &[SearchMeasures<f64>],
    b: &[SearchMeasures<f64>],
    resamples: usize,
    seed: u64,
) -> SearchMeasures<Bootstrap> {
    assert_eq!(a.len(), b.len(), "the same queries for both models");
    each(|measure| paired(a.len(), resamples, seed, |picks| mean_of(a, picks, measure) - mean_of(b, picks, measure)))
}

fn mean_of(queries: &[SearchMeasures<f64>], picks: &[usize], measure: Measure) -> f64 {
    picks.iter().map(|&at| measure(&queries[at])).sum::<f64>() / picks.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_are_those_of_their_definitions() {
        let eleventh: Vec<usize> = (10..20).chain([7]).collect();
        let relevant = [vec![7], vec![1, 2, 3], vec![7], vec![4, 5]];
        let report = search_scores(&relevant, &[vec![7, 1], vec![9, 3, 8, 8, 8, 1], eleventh, vec![]]);
        let expected = [[1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 1.0 / 3.0, 2.0 / 3.0], [0.0; 4], [0.0; 4]];
        let row = |m: &SearchMeasures<f64>| [m.mrr_at_10, m.recall_at_1, m.recall_at_5, m.recall_at_10];
        assert_eq!(report.queries.iter().map(row).collect::<Vec<_>>(), expected);
        let means = [1.5 / 4.0, 0.25, (4.0 / 3.0) / 4.0, (5.0 / 3.0) / 4.0];
        assert!(row(&report.mean).iter().zip(means).all(|(a, b)| (a - b).abs() < 1e-15), "{:?}", report.mean);
        assert_eq!(serde_json::to_value(&report).unwrap()["recall_at_1"], 0.25);
        assert_eq!(search_scores(&[], &[]), SearchReport::default());
    }

    #[test]
    fn intervals_hold_the_mean_and_a_model_is_as_good_as_itself() {
        let ranks = |by: usize| (0..60).map(|i| vec![(i * by) % 7; 1]).collect::<Vec<_>>();
        let report = search_scores(&vec![vec![0]; 60], &ranks(1));
        let (low, high) = search_intervals(&report.queries, 500, 1).mrr_at_10;
        assert!(low < report.mean.mrr_at_10 && report.mean.mrr_at_10 < high, "{low} {high}");
        let same = paired_search_bootstrap(&report.queries, &report.queries, 100, 1).recall_at_5;
        assert_eq!((same.difference, same.low, same.high, same.p), (0.0, 0.0, 0.0, 1.0));
        let all = search_scores(&vec![vec![0]; 60], &vec![vec![0]; 60]);
        let better = paired_search_bootstrap(&all.queries, &report.queries, 500, 1).mrr_at_10;
        assert!(better.low > 0.0 && better.p < 0.05, "{better:?}");
        let none = search_intervals(&report.queries, 0, 1).mrr_at_10;
        assert!((none.0 - report.mean.mrr_at_10).abs() < 1e-12);
    }
}
