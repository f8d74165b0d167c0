//! Scores of labels of whole texts.

use std::collections::BTreeMap;

use ampoule::{Error, Result};
use serde::Serialize;

use super::{Counts, Prf};

/// Scores of a classifier, as scikit-learn defines them, each in `0..=1`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassificationReport {
    /// The share of texts of which every label is right.
    pub accuracy: f64,
    /// Over all labels alike; where labels exclude each other, the accuracy.
    pub micro_f1: f64,
    /// The mean of the labels.
    pub macro_f1: f64,
    /// The area under the ROC curve: with two labels that exclude each other, of the second one; else the mean over each label against the
    /// rest, of those that some texts have and some have not. `None` if there are none such.
    pub auroc: Option<f64>,
    /// By label: all of the model's, or where labels exclude each other, those that occur in the truth or the predictions.
    pub per_label: BTreeMap<String, Prf>,
}

/// Scores the probabilities that a classifier gives to some texts.
///
/// `gold[t]` are the true labels of text `t`, and `probabilities[t][l]` is that of `labels[l]` there. If labels exclude each other
/// (`multi_label` is false), the most probable is the prediction, of equals the first; else each of at least 0.5 is.
///
/// `InvalidInput` if the slices do not fit each other, a probability is no number, a true label is none of `labels`, or a text does not
/// have exactly one where labels exclude each other.
pub fn classification_scores(
    gold: &[Vec<String>],
    labels: &[String],
    probabilities: &[Vec<f32>],
    multi_label: bool,
) -> Result<ClassificationReport> {
    let truth = truth(gold, labels, multi_label)?;
    if probabilities.len() != gold.len() {
        return Err(Error::invalid_input(format!("{} texts, but probabilities of {}", gold.len(), probabilities.len())));
    }
    if let Some(text) = probabilities.iter().position(|p| p.len() != labels.len() || p.iter().any(|p| p.is_nan())) {
        return Err(Error::invalid_input(format!(
            "text {}: expected {} probabilities, found {}, or one that is no number",
            text + 1,
            labels.len(),
            probabilities[text].len()
        )));
    }
    let predicted: Vec<Vec<bool>> = probabilities.iter().map(|some| predicted(some, multi_label)).collect();
    let mut counts = vec![Counts::default(); labels.len()];
    for (truth, predicted) in truth.iter().zip(&predicted) {
        for ((count, &truth), &predicted) in counts.iter_mut().zip(truth).zip(predicted) {
            *count += Counts {
                true_positives: usize::from(truth && predicted),
                false_positives: usize::from(!truth && predicted),
                false_negatives: usize::from(truth && !predicted),
            };
        }
    }
    let per_label: BTreeMap<String, Prf> = labels
        .iter()
        .zip(&counts)
        .filter(|(_, count)| multi_label || **count != Counts::default())
        .map(|(label, &count)| (label.clone(), count.into()))
        .collect();
    let right = truth.iter().zip(&predicted).filter(|(truth, predicted)| truth == predicted).count();
    let first = usize::from(!multi_label && labels.len() == 2);
    let areas: Vec<f64> = (first..labels.len())
        .filter_map(|label| auroc(truth.iter().zip(probabilities).map(|(t, p)| (p[label], t[label])).collect()))
        .collect();
    Ok(ClassificationReport {
        accuracy: right as f64 / gold.len().max(1) as f64,
        micro_f1: Prf::from(counts.into_iter().sum::<Counts>()).f1,
        macro_f1: Prf::mean(per_label.values()).f1,
        auroc: (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64),
        per_label,
    })
}

/// `[text][label]`.
fn truth(gold: &[Vec<String>], labels: &[String], multi_label: bool) -> Result<Vec<Vec<bool>>> {
    let place: BTreeMap<&str, usize> = labels.iter().zip(0..).map(|(label, at)| (label.as_str(), at)).collect();
    let row = |(own, text): (&Vec<String>, usize)| {
        if !multi_label && own.len() != 1 {
            return Err(Error::invalid_input(format!("text {text}: expected one label, found {}", own.len())));
        }
        let mut row = vec![false; labels.len()];
        for label in own {
            let Some(&at) = place.get(label.as_str()) else {
                let known = labels.join(", ");
                return Err(Error::invalid_input(format!("text {text}: the label {label:?} is none of the model's: {known}")));
            };
            row[at] = true;
        }
        Ok(row)
    };
    gold.iter().zip(1..).map(row).collect()
}

fn predicted(probabilities: &[f32], multi_label: bool) -> Vec<bool> {
    if multi_label {
        return probabilities.iter().map(|&p| p >= 0.5).collect();
    }
    let most = (0..probabilities.len()).rev().max_by(|&a, &b| probabilities[a].total_cmp(&probabilities[b]));
    (0..probabilities.len()).map(|label| Some(label) == most).collect()
}

/// The area under the ROC curve, which is how often one that has the label is scored above one that has not, equals counting half
/// (Hanley and McNeil 1982); by ranks. `None` without some of both.
fn auroc(mut scored: Vec<(f32, bool)>) -> Option<f64> {
    scored.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let positives = scored.iter().filter(|(_, has)| *has).count() as f64;
    let negatives = scored.len() as f64 - positives;
    let (mut below, mut twice_won) = (0.0, 0.0);
    for equals in scored.chunk_by(|a, b| a.0 == b.0) {
        let having = equals.iter().filter(|(_, has)| *has).count() as f64;
        let lacking = equals.len() as f64 - having;
        twice_won += having * (2.0 * below + lacking);
        below += lacking;
    }
    (positives > 0.0 && negatives > 0.0).then(|| twice_won / (2.0 * positives * negatives))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::score::tests::fixture;

    fn names(labels: &[&str]) -> Vec<String> {
        labels.iter().map(|l| l.to_string()).collect()
    }

    #[test]
    fn scores_are_those_of_scikit_learn() {
        let cases = fixture("classification");
        assert!(cases.len() >= 90);
        for case in cases {
            let labels: Vec<String> = serde_json::from_value(case["labels"].clone()).unwrap();
            let gold: Vec<Vec<String>> = serde_json::from_value(case["gold"].clone()).unwrap();
            let probabilities: Vec<Vec<f32>> = serde_json::from_value(case["probabilities"].clone()).unwrap();
            let found = classification_scores(&gold, &labels, &probabilities, case["multi_label"].as_bool().unwrap()).unwrap();
            for (key, value) in [
                ("accuracy", found.accuracy),
                ("micro_f1", found.micro_f1),
                ("macro_f1", found.macro_f1),
                ("auroc", found.auroc.unwrap()),
            ] {
                let expected = case[key].as_f64().unwrap();
                assert!((value - expected).abs() < 1e-14, "{key}: {value} {expected}");
            }
        }
    }

    #[test]
    fn labels_without_both_sides_have_no_area() {
        let labels = names(&["a", "b", "c"]);
        let report = classification_scores(&[names(&["a"])], &labels, &[vec![0.2, 0.2, 0.1]], false).unwrap();
        assert_eq!((report.auroc, report.accuracy, report.per_label.len()), (None, 1.0, 1));
        let none = classification_scores(&[], &labels, &[], true).unwrap();
        assert_eq!((none.accuracy, none.macro_f1, none.per_label.len()), (0.0, 0.0, 3));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let labels = names(&["a", "b"]);
        let gold = [names(&["a"])];
        for (gold, probabilities) in [
            (&gold[..], vec![]),
            (&gold[..], vec![vec![0.5]]),
            (&gold[..], vec![vec![0.5, f32::NAN]]),
            (&[names(&["c"])], vec![vec![0.5, 0.5]]),
            (&[names(&["a", "b"])], vec![vec![0.5, 0.5]]),
        ] {
            let error = classification_scores(gold, &labels, &probabilities, false).unwrap_err();
            assert_eq!(error.kind(), ampoule::ErrorKind::InvalidInput);
        }
    }
}
