//! How much of a score is luck of the draw: resampling of texts (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).

use ampoule::{Error, Result};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::{Counts, Prf};

/// How the micro F1 of two models compares on the same texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// F1 of the first less that of the second, in `-1..=1`.
    pub difference: f64,
    /// Between which the difference lies in 95 of 100 resamples.
    pub interval: (f64, f64),
    /// Two-sided: twice the share of resamples in which the difference vanishes or has the other sign, at most 1. One resample is added
    /// to that share, so that it is never 0.
    pub p: f64,
}

/// Compares two models on the same texts by `resamples` draws of as many texts with replacement, the same draws for both. The same seed
/// gives the same figures.
///
/// `InvalidInput` if the texts are none or not equally many, or `resamples` is 0.
pub fn paired_bootstrap(a: &[Counts], b: &[Counts], resamples: usize, seed: u64) -> Result<Bootstrap> {
    if a.len() != b.len() {
        return Err(Error::invalid_input(format!(
            "a paired comparison needs the same texts: the first model has scores of {}, the second of {}",
            a.len(),
            b.len()
        )));
    }
    let differences = resampled(a.len(), resamples, seed, |texts| f1(texts.iter().map(|&t| a[t])) - f1(texts.iter().map(|&t| b[t])))?;
    let tail = |on_the_other_side: fn(&f64) -> bool| {
        let count = differences.iter().filter(|d| on_the_other_side(d)).count();
        (count + 1) as f64 / (resamples + 1) as f64
    };
    Ok(Bootstrap {
        difference: f1(a.iter().copied()) - f1(b.iter().copied()),
        interval: middle(&differences),
        p: (2.0 * tail(|d| *d <= 0.0).min(tail(|d| *d >= 0.0))).min(1.0),
    })
}

/// Between which one model's micro F1 lies in 95 of 100 of `resamples` draws of as many texts with replacement.
///
/// `InvalidInput` if there are no texts, or `resamples` is 0.
pub fn interval(counts: &[Counts], resamples: usize, seed: u64) -> Result<(f64, f64)> {
    Ok(middle(&resampled(counts.len(), resamples, seed, |texts| f1(texts.iter().map(|&t| counts[t])))?))
}

fn f1(counts: impl Iterator<Item = Counts>) -> f64 {
    Prf::from(counts.sum::<Counts>()).f1
}

/// `figure` of each draw, in ascending order.
fn resampled(texts: usize, resamples: usize, seed: u64, figure: impl Fn(&[usize]) -> f64) -> Result<Vec<f64>> {
    if texts == 0 || resamples == 0 {
        return Err(Error::invalid_input(format!(
            "a bootstrap of {texts} texts with {resamples} resamples says nothing; give it at least one of each"
        )));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; texts];
    let mut figures: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.iter_mut().for_each(|text| *text = random.random_range(0..texts));
            figure(&drawn)
        })
        .collect();
    figures.sort_unstable_by(f64::total_cmp);
    Ok(figures)
}

/// The 2.5th and 97.5th percentile, interpolated as NumPy does by default.
fn middle(sorted: &[f64]) -> (f64, f64) {
    let percentile = |share: f64| {
        let place = share * (sorted.len() - 1) as f64;
        let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        below + (above - below) * place.fract()
    };
    (percentile(0.025), percentile(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(texts: usize, right: impl Fn(usize) -> bool) -> Vec<Counts> {
        (0..texts)
            .map(|text| match right(text) {
                true => Counts { true_positives: 1, ..Counts::default() },
                false => Counts { false_positives: 1, false_negatives: 1, ..Counts::default() },
            })
            .collect()
    }

    #[test]
    fn an_interval_is_as_wide_as_theory_says() {
        // With one entity a text, F1 is a proportion: its standard error is sqrt(p (1 - p) / n) = 0.01265.
        let (low, high) = interval(&counts(1000, |text| text % 5 != 0), 4000, 7).unwrap();
        assert!((low - (0.8 - 1.96 * 0.01265)).abs() < 0.002 && (high - (0.8 + 1.96 * 0.01265)).abs() < 0.002, "{low} {high}");
    }

    #[test]
    fn pairing_finds_a_small_steady_difference() {
        let (better, worse) = (counts(1000, |text| text % 5 != 0), counts(1000, |text| text % 5 != 0 && text % 50 != 1));
        let found = paired_bootstrap(&better, &worse, 2000, 1).unwrap();
        assert!((found.difference - 0.02).abs() < 1e-12);
        // The texts that differ are 20 of 1000: a standard error of sqrt(0.02 * 0.98 / 1000) = 0.00443.
        assert!((found.interval.0 - 0.0113).abs() < 0.0015 && (found.interval.1 - 0.0287).abs() < 0.0015, "{found:?}");
        assert!(found.p < 0.002);
        let other_way = paired_bootstrap(&worse, &better, 2000, 1).unwrap();
        assert_eq!((other_way.difference, other_way.p), (-found.difference, found.p));
        assert_eq!(found, paired_bootstrap(&better, &worse, 2000, 1).unwrap());
        assert_ne!(found.interval, paired_bootstrap(&better, &worse, 2000, 2).unwrap().interval);
    }

    #[test]
    fn equals_do_not_differ() {
        let same = counts(50, |text| text % 3 == 0);
        let found = paired_bootstrap(&same, &same, 100, 1).unwrap();
        assert_eq!(found, Bootstrap { difference: 0.0, interval: (0.0, 0.0), p: 1.0 });
        let shuffled = counts(50, |text| (text + 1) % 3 == 0);
        assert!(paired_bootstrap(&same, &shuffled, 1000, 1).unwrap().p > 0.5);
    }

    #[test]
    fn percentiles_are_numpys() {
        let sorted: Vec<f64> = (0..11).map(|i| f64::from(i * i)).collect();
        // numpy.percentile(numpy.arange(11) ** 2, [2.5, 97.5])
        assert_eq!(middle(&sorted), (0.25, 95.25));
        assert_eq!(middle(&[3.0]), (3.0, 3.0));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let some = counts(2, |_| true);
        assert!(paired_bootstrap(&some, &some[..1], 10, 1).is_err());
        assert!(paired_bootstrap(&[], &[], 10, 1).is_err());
        assert!(interval(&some, 0, 1).is_err());
    }
}
