use std::collections::BTreeSet;
use std::path::Path;

use proptest::prelude::*;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::FoundEntities;
use crate::data::{Annotation, Example};

/// Judgements whose right answers are drawn from the logits' own distribution, and whose logits are then `temperature` times as large.
fn drawn(temperature: f32, multi_label: bool, allowed_too: bool) -> Judgements {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut all = Judgements::new(4, multi_label);
    for _ in 0..20_000 {
        let logits: [f64; 4] = std::array::from_fn(|_| 6.0 * random.random::<f64>() - 3.0);
        let mut right: Vec<bool> = match multi_label {
            true => logits.iter().map(|x| random.random::<f64>() < 1.0 / (1.0 + (-x).exp())).collect(),
            false => {
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                let mut left = random.random::<f64>() * sum;
                let drawn = logits.iter().position(|x| {
                    left -= x.exp();
                    left <= 0.0
                });
                (0..4).map(|i| drawn == Some(i)).collect()
            }
        };
        // As an `O` that may be the label beside it.
        if allowed_too && (right[0] || right[1]) {
            right[..2].fill(true);
        }
        all.push(&logits.map(|x| x as f32 * temperature), &right).unwrap();
    }
    all
}

#[test]
fn a_known_temperature_is_found_again() {
    for temperature in [0.25, 1.0, 2.5] {
        for (multi_label, allowed_too) in [(false, false), (false, true), (true, false)] {
            let fit = drawn(temperature, multi_label, allowed_too).fit().unwrap();
            assert!((fit.temperature / temperature - 1.0).abs() < 0.04, "{temperature}: {fit:?}");
            assert!(fit.nll_after <= fit.nll_before + 1e-9 && fit.judgements == 20_000, "{fit:?}");
        }
    }
}

/// Rows of logits and right answers of three labels.
fn rows() -> impl Strategy<Value = Vec<(Vec<f32>, Vec<bool>)>> {
    let row = (prop::collection::vec(-9f32..9.0, 3), prop::collection::vec(any::<bool>(), 3));
    prop::collection::vec(row, 1..30)
}

fn judged(rows: &[(Vec<f32>, Vec<bool>)], multi_label: bool) -> Judgements {
    let mut all = Judgements::new(3, multi_label);
    for (logits, right) in rows {
        let mut right = right.clone();
        right[0] |= !right.contains(&true);
        all.push(logits, &right).unwrap();
    }
    all
}

proptest! {
    #[test]
    fn the_likelihood_is_that_of_its_definition(rows in rows(), multi_label: bool, t in 0.3f64..5.0) {
        let all = judged(&rows, multi_label);
        let mut expected = 0.0;
        for (logits, right) in all.logits.chunks(3).zip(all.right.chunks(3)) {
            let e: Vec<f64> = logits.iter().map(|&x| (f64::from(x) / t).exp()).collect();
            if multi_label {
                let p = |i: usize| if right[i] { e[i] / (1.0 + e[i]) } else { 1.0 / (1.0 + e[i]) };
                expected -= (0..3).map(|i| p(i).ln()).sum::<f64>() / 3.0;
            } else {
                let of_right: f64 = (0..3).filter(|&i| right[i]).map(|i| e[i]).sum();
                expected -= (of_right / e.iter().sum::<f64>()).ln();
            }
        }
        prop_assert!((all.nll(t) - expected / rows.len() as f64).abs() < 1e-9);
    }

    #[test]
    fn no_other_temperature_is_likelier(rows in rows(), multi_label: bool) {
        let all = judged(&rows, multi_label);
        let grid: Vec<f64> = (0..=600).map(|i| all.nll((LEAST.ln() + 0.01 * f64::from(i)).exp().min(MOST))).collect();
        let least = grid.iter().copied().fold(f64::INFINITY, f64::min);
        match all.fit() {
            // Peaks closer than the coarse search looks are within a hair of each other.
            Some(fit) => prop_assert!(fit.nll_after <= least + 1e-3, "{:?}, {}", fit, least),
            None => prop_assert!(grid[0].min(grid[600]) <= least + 1e-3),
        }
    }

    #[test]
    fn the_error_is_that_of_its_definition(answers in prop::collection::vec((0f32..=1.0, any::<bool>()), 1..200)) {
        let found = Reliability::of(&answers).unwrap();
        let mut ece = 0.0;
        for (i, bin) in found.bins.iter().enumerate() {
            let (low, high) = (i as f64 / 15.0, (i + 1) as f64 / 15.0);
            prop_assert_eq!((bin.low, bin.high), (low, high));
            let is_in = |s: f64| (s > low || (i == 0 && s == 0.0)) && s <= high;
            let inside: Vec<_> = answers.iter().filter(|(s, _)| is_in(f64::from(*s))).collect();
            prop_assert_eq!(bin.count, inside.len());
            prop_assert_eq!(bin.mean_score.is_none() || bin.share_right.is_none(), inside.is_empty());
            if let (Some(score), Some(share)) = (bin.mean_score, bin.share_right) {
                let n = inside.len() as f64;
                prop_assert!((score - inside.iter().map(|(s, _)| f64::from(*s)).sum::<f64>() / n).abs() < 1e-12);
                prop_assert_eq!(share, inside.iter().filter(|(_, right)| *right).count() as f64 / n);
                ece += n / answers.len() as f64 * (score - share).abs();
            }
        }
        prop_assert_eq!(found.count, answers.len());
        prop_assert!((found.ece.unwrap() - ece).abs() < 1e-12);
    }
}

#[test]
fn what_determines_no_temperature_gives_none() {
    let of = |rows: &[([f32; 2], [bool; 2])]| {
        let mut all = Judgements::new(2, false);
        rows.iter().for_each(|(logits, right)| all.push(logits, right).unwrap());
        all.fit()
    };
    let (first, second) = ([true, false], [false, true]);
    assert_eq!(of(&[]), None);
    // One class alone, all of it right; every answer right; none right; anything right.
    assert_eq!(of(&[([2.0, 1.0], first), ([0.5, 0.0], first)]), None);
    assert_eq!(of(&[([2.0, 1.0], first), ([0.0, 3.0], second)]), None);
    assert_eq!(of(&[([2.0, 1.0], second), ([0.0, 3.0], first)]), None);
    assert_eq!(of(&[([2.0, 1.0], [true, true]), ([0.0, 3.0], [true, true])]), None);
    assert_eq!(Judgements::new(0, true).fit(), None);
    // One class of which three of four are found is as sure as that: ln 3 apart.
    let fit = of(&[([2.0, 0.0], first), ([2.0, 0.0], first), ([2.0, 0.0], first), ([2.0, 0.0], second)]).unwrap();
    assert!((f64::from(fit.temperature) - 2.0 / 3f64.ln()).abs() < 1e-4, "{fit:?}");
}

#[test]
fn unsound_logits_and_scores_are_refused() {
    let mut all = Judgements::new(2, false);
    for (logits, right) in [
        ([f32::NAN, 0.0].as_slice(), [true, false].as_slice()),
        (&[f32::INFINITY, 0.0], &[true, false]),
        (&[0.0], &[true, false]),
        (&[0.0, 0.0], &[true]),
        (&[0.0, 0.0], &[false, false]),
    ] {
        assert!(all.push(logits, right).is_err(), "{logits:?} {right:?}");
    }
    assert!(all.is_empty());
    for score in [f32::NAN, -0.001, 1.001, f32::INFINITY] {
        let error = Reliability::of(&[(0.5, true), (score, true)]).unwrap_err();
        assert!(error.to_string().contains("is no probability"), "{error}");
    }
}

#[test]
fn bins_are_open_below_and_closed_above() {
    let bin_of = |score: f32| {
        let found = Reliability::of(&[(score, true)]).unwrap();
        found.bins.iter().position(|bin| bin.count == 1).unwrap()
    };
    assert_eq!([0.0, f32::MIN_POSITIVE, 0.06, 0.07, 0.99, 1.0].map(bin_of), [0, 0, 0, 1, 14, 14]);
    // An f32 nearest to an edge may lie above it, and is then in the next bin.
    for edge in [3, 6, 9, 12] {
        let score = edge as f32 / 15.0;
        let above = usize::from(f64::from(score) > f64::from(edge) / 15.0);
        assert_eq!(bin_of(score), edge as usize - 1 + above);
    }
    let none = Reliability::of(&[]).unwrap();
    assert!(none.ece.is_none() && none.count == 0 && none.bins.len() == BINS);
    assert!(none.bins.iter().all(|bin| bin.mean_score.is_none() && bin.share_right.is_none()));
    // Sure and right; sure and wrong.
    assert_eq!(Reliability::of(&[(1.0, true)]).unwrap().ece, Some(0.0));
    assert_eq!(Reliability::of(&[(1.0, false), (0.0, true)]).unwrap().ece, Some(1.0));
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/bert-token")).unwrap()
}

fn set(covers: &[&str]) -> NerSet {
    let example = |text: &str, label: &str, range: Range<usize>| Example {
        id: String::new(),
        text: text.to_owned(),
        entities: vec![Annotation { label: label.to_owned(), range, score: 1.0 }],
    };
    let examples = vec![example("the pain of a patient", "Disease", 4..8), example("", "Disease", 0..0)];
    let covers: BTreeSet<String> = covers.iter().map(|l| (*l).to_owned()).collect();
    NerSet { examples, covers }
}

#[test]
fn an_o_of_a_set_without_chemicals_may_be_a_chemical() {
    let options = Options { threads: 1, ..Options::default() };
    let extractor = Extractor::from_checkpoint(checkpoint(), &options).unwrap();
    let tags = extractor.config().id2label.clone();
    for covers in [&["Chemical", "Disease"] as &[&str], &["Disease"]] {
        let set = set(covers);
        let words = extractor.word_logits(&[&set.examples[0].text]).unwrap().remove(0);
        let mut expected = 0.0;
        for word in &words {
            let right = |tag: &String| match word.range.start {
                4 => tag == "B-Disease",
                _ => tag == "O" || covers.iter().all(|label| !tag.ends_with(label)),
            };
            let p = |is: &dyn Fn(&String) -> bool| {
                tags.iter().zip(&word.logits).filter(|(t, _)| is(t)).map(|(_, x)| f64::from(*x).exp()).sum::<f64>()
            };
            expected -= (p(&right) / p(&|_| true)).ln();
        }
        let found = Judgements::of_entities(&extractor, &[set]).unwrap();
        assert_eq!(found.len(), words.len());
        assert!((found.nll(1.0) - expected / words.len() as f64).abs() < 1e-6);
    }
}

#[test]
fn answers_are_what_is_scored_and_a_temperature_changes_their_scores_alone() {
    let mut model = checkpoint();
    model.temperature = 3.0;
    let options = Options { threads: 1, ..Options::default() };
    let texts = |covers: &[&str]| NerSet {
        examples: (0..20)
            .flat_map(|i| {
                let mut some = set(covers).examples;
                some[0].text.push_str(&" of aspirin , pain".repeat(i));
                some
            })
            .collect(),
        ..set(covers)
    };
    for covers in [&["Chemical", "Disease"] as &[&str], &["Disease"], &["Sign"]] {
        let extractor = Extractor::from_checkpoint(model.clone(), &options).unwrap();
        let found = FoundEntities::run(&extractor, &[texts(covers)], || ()).unwrap();
        let (answers, counts) = (found.answers(), found.scores().counts);
        let right = |answers: &[(f32, bool)]| answers.iter().filter(|(_, right)| *right).count() as u32;
        assert_eq!(right(&answers.at_own), counts.iter().map(|c| c.tp).sum::<u32>());
        assert_eq!(answers.at_own.len() as u32, counts.iter().map(|c| c.tp + c.fp).sum::<u32>());
        assert_eq!(right(&answers.at_one), right(&answers.at_own));
        let cooler = answers.at_one.iter().zip(&answers.at_own).filter(|(one, own)| one.0 > own.0).count();
        assert!(cooler == answers.at_one.len() && cooler == answers.at_own.len());
    }
    // A model that finds nothing has no reliability.
    model.weights.0.get_mut("classifier.bias").unwrap().data[0] = 1e3;
    let extractor = Extractor::from_checkpoint(model, &options).unwrap();
    let found = FoundEntities::run(&extractor, &[texts(&["Disease"])], || ()).unwrap();
    assert_eq!(found.answers().calibration().unwrap().at_own.ece, None);
}
