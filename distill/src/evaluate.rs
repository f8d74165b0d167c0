//! Scores of a model, measured the way it is used: text to entities or labels, through the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use ampoule::bundle::{self, BundleSpec, Metadata, Precision, Staged};
use ampoule::{Checkpoint, Classifier, Embedder, Entity, Extractor, Options, Result, Task};

use crate::calibration::Answers;
use crate::data::{Example, LabelledText, NerSet};
use crate::dictionary::Dictionary;
use crate::score::{
    ClassReport, Confusion, LabelledSpan, NerReport, Prf, Verdict, at_threshold, classification_scores, judge,
    ner_scores,
};
use crate::search::FoundPassages;
use crate::sequences::Data;

/// Found spans of a text, with their scores.
type Found = Vec<(String, Range<usize>, f32)>;

/// What a model got wrong of a text, by its place among the texts; for people who may read them.
#[derive(Clone, PartialEq)]
pub struct EntityError {
    /// Index of the text, in the order of the sets.
    pub text: usize,
    /// In which way.
    pub verdict: Verdict,
    /// What the gold standard has.
    pub gold: Option<LabelledSpan>,
    /// What was found.
    pub found: Option<LabelledSpan>,
}

/// The same of a text's labels.
#[derive(Clone, PartialEq)]
pub struct LabelError {
    /// Index of the text.
    pub text: usize,
    /// In which way: of a text that may have several labels `Missed` where one of its own is not among those that it was given, else
    /// `Spurious`.
    pub verdict: Verdict,
    /// What the gold standard has.
    pub gold: Vec<String>,
    /// What it was given.
    pub given: Vec<String>,
}

/// Entities of texts beside those that a model, or a dictionary, found.
#[derive(Default)]
pub struct FoundEntities {
    gold: Vec<Vec<LabelledSpan>>,
    found: Vec<Found>,
    /// The same with the scores that they have at temperature 1.
    at_one: Vec<Found>,
    covers: Vec<BTreeSet<String>>,
}

impl FoundEntities {
    /// Runs `extractor` on the texts of `sets`, each text as the set holds it. `each` hears after every text.
    ///
    /// # Errors
    /// Those of the extractor.
    pub fn run(extractor: &Extractor, sets: &[NerSet], mut each: impl FnMut()) -> Result<Self> {
        let mut all = FoundEntities::default();
        let plain = |entities: Vec<Entity>| entities.into_iter().map(|e| (e.label.to_string(), e.range, e.score));
        for set in sets {
            for some in set.examples.chunks(64) {
                let texts: Vec<&str> = some.iter().map(|e| e.text.as_str()).collect();
                for (example, words) in some.iter().zip(extractor.word_logits(&texts)?) {
                    // Computed once, and read at both temperatures.
                    let at = |t: f32| Ok(plain(extractor.decode(&example.text, &words, t)?).collect::<Found>());
                    all.add(set, example, at(extractor.temperature())?, at(1.0)?);
                    each();
                }
            }
        }
        Ok(all)
    }

    /// What `dictionary` finds in the same texts, each with a score of 1.
    pub fn of_dictionary(dictionary: &Dictionary, sets: &[NerSet]) -> Self {
        let mut all = FoundEntities::default();
        for set in sets {
            for example in &set.examples {
                let found: Found = dictionary.tag(&example.text).into_iter().map(|e| (e.label, e.range, 1.0)).collect();
                all.add(set, example, found.clone(), found);
            }
        }
        all
    }

    /// Adds those of other texts.
    pub fn extend(&mut self, others: FoundEntities) {
        self.gold.extend(others.gold);
        self.found.extend(others.found);
        self.at_one.extend(others.at_one);
        self.covers.extend(others.covers);
    }

    fn add(&mut self, set: &NerSet, example: &Example, found: Found, at_one: Found) {
        self.gold.push(example.entities.iter().map(|e| (e.label.clone(), e.range.clone())).collect());
        self.found.push(found);
        self.at_one.push(at_one);
        self.covers.push(set.covers.clone());
    }

    /// Strict scores; what is found of labels that a set does not cover is left out.
    pub fn scores(&self) -> NerReport {
        ner_scores(&self.gold, &self.spans(), &self.covers.iter().collect::<Vec<_>>())
    }

    /// Which labels are taken for which; of labels that a set covers.
    pub fn confusion(&self) -> Confusion {
        Confusion::of_entities(&self.gold, &self.spans(), &self.covers.iter().collect::<Vec<_>>())
    }

    /// What is wrong, in the order of the texts; of labels that a set covers.
    pub fn errors(&self) -> Vec<EntityError> {
        let mut errors = Vec::new();
        for (text, ((gold, found), covers)) in self.gold.iter().zip(self.spans()).zip(&self.covers).enumerate() {
            let judged = judge(gold, &found, covers).into_iter().filter(|judged| judged.verdict != Verdict::Right);
            errors.extend(judged.map(|judged| EntityError {
                text,
                verdict: judged.verdict,
                gold: judged.gold.cloned(),
                found: judged.found.cloned(),
            }));
        }
        errors
    }

    fn spans(&self) -> Vec<Vec<LabelledSpan>> {
        let spans = |text: &Found| text.iter().map(|(label, range, _)| (label.clone(), range.clone())).collect();
        self.found.iter().map(spans).collect()
    }

    /// The same of the entities whose score is at least `threshold`, all labels together.
    pub fn at_threshold(&self, threshold: f32) -> Prf {
        at_threshold(&self.gold, &self.found, &self.covers.iter().collect::<Vec<_>>(), threshold)
    }

    /// Each found entity's score, and whether it is strictly right; of labels that a set covers.
    pub fn answers(&self) -> Answers {
        let judged = |found: &[Found]| {
            let texts = self.gold.iter().zip(found).zip(&self.covers);
            let judge = |((gold, found), covers): ((&Vec<LabelledSpan>, &Found), &BTreeSet<String>)| {
                let known = found.iter().filter(|(label, ..)| covers.contains(label));
                let is_right =
                    |label: &String, range: &Range<usize>| gold.iter().any(|g| (&g.0, &g.1) == (label, range));
                known.map(|(label, range, score)| (*score, is_right(label, range))).collect::<Vec<_>>()
            };
            texts.flat_map(judge).collect()
        };
        Answers { at_one: judged(&self.at_one), at_own: judged(&self.found) }
    }
}

/// Labels of texts beside the scores that a model gave them.
pub struct FoundLabels {
    labels: Vec<String>,
    multi_label: bool,
    gold: Vec<Vec<String>>,
    /// The likeliest first.
    found: Vec<Vec<(String, f32)>>,
    /// The same at temperature 1.
    at_one: Vec<Vec<(String, f32)>>,
}

impl FoundLabels {
    /// Runs `classifier` on `texts`. `each` hears after every text.
    ///
    /// # Errors
    /// Those of the classifier.
    pub fn run(classifier: &Classifier, texts: &[LabelledText], mut each: impl FnMut()) -> Result<Self> {
        let mut all = FoundLabels {
            labels: classifier.labels().iter().map(|l| l.to_string()).collect(),
            multi_label: classifier.config().task == Task::MultiLabel,
            gold: texts.iter().map(|text| text.labels.clone()).collect(),
            found: Vec::new(),
            at_one: Vec::new(),
        };
        for some in texts.chunks(32) {
            let batch: Vec<&str> = some.iter().map(|t| t.text.as_str()).collect();
            for logits in classifier.logits(&batch)? {
                let at = |t: f32| -> Result<Vec<(String, f32)>> {
                    Ok(classifier.scores(&logits, t)?.into_iter().map(|l| (l.label.to_string(), l.score)).collect())
                };
                all.found.push(at(classifier.temperature())?);
                all.at_one.push(at(1.0)?);
                each();
            }
        }
        Ok(all)
    }

    /// How well texts were labelled.
    pub fn scores(&self) -> ClassReport {
        // No temperature changes the order of labels, but one may make scores equal.
        classification_scores(&self.gold, &self.at_one, &self.labels, self.multi_label)
    }

    /// Which labels are taken for which.
    pub fn confusion(&self) -> Confusion {
        Confusion::of_labels(&self.gold, &self.given(), self.multi_label)
    }

    /// The texts that have other labels than they were given, in order.
    pub fn errors(&self) -> Vec<LabelError> {
        let texts = self.gold.iter().zip(self.given()).enumerate();
        let error = |(text, (gold, given)): (usize, (&Vec<String>, Vec<String>))| {
            let misses = gold.iter().any(|label| !given.contains(label));
            let verdict = match (misses, given.iter().any(|label| !gold.contains(label))) {
                (false, false) => return None,
                (true, true) if !self.multi_label => Verdict::Label,
                (true, _) => Verdict::Missed,
                (false, true) => Verdict::Spurious,
            };
            Some(LabelError { text, verdict, gold: gold.clone(), given })
        };
        texts.filter_map(error).collect()
    }

    /// The labels that each text is given by [`scores`](Self::scores).
    fn given(&self) -> Vec<Vec<String>> {
        let names = |of: &crate::score::Decisions| of.given().map(|at| self.labels[at].clone()).collect();
        self.scores().decisions.iter().map(names).collect()
    }

    /// The score of each text's likeliest label, and whether it is right; where labels are independent, of each label.
    pub fn answers(&self) -> Answers {
        let said = if self.multi_label { usize::MAX } else { 1 };
        let judged = |found: &[Vec<(String, f32)>]| {
            let judge = |(gold, found): (&Vec<String>, &Vec<(String, f32)>)| {
                found.iter().take(said).map(|(label, score)| (*score, gold.contains(label))).collect::<Vec<_>>()
            };
            self.gold.iter().zip(found).flat_map(judge).collect()
        };
        Answers { at_one: judged(&self.at_one), at_own: judged(&self.found) }
    }
}

/// The score by which checkpoints are chosen.
pub(crate) struct DevScore {
    pub(crate) value: f64,
    pub(crate) precision: Option<f64>,
    pub(crate) recall: Option<f64>,
}

/// The dev score of `model`: of its bundle in int8, which is at `quantized` meanwhile, where that is named.
pub(crate) fn dev_score(
    model: Checkpoint,
    data: &Data,
    quantized: Option<&Path>,
    options: &Options,
) -> Result<DevScore> {
    let staged = quantized.map(|path| stage_int8(&model, path)).transpose()?;
    match data {
        Data::Entities { dev, .. } => {
            let extractor = match &staged {
                Some(bundle) => Extractor::open(bundle.path(), options)?,
                None => Extractor::from_checkpoint(model, options)?,
            };
            let micro = FoundEntities::run(&extractor, dev, || ())?.scores().micro;
            Ok(DevScore { value: micro.f1, precision: Some(micro.precision), recall: Some(micro.recall) })
        }
        Data::Labels { dev, .. } => {
            let classifier = match &staged {
                Some(bundle) => Classifier::open(bundle.path(), options)?,
                None => Classifier::from_checkpoint(model, options)?,
            };
            let macro_f1 = FoundLabels::run(&classifier, dev, || ())?.scores().macro_f1;
            Ok(DevScore { value: macro_f1, precision: None, recall: None })
        }
        Data::Search { dev, .. } => {
            let embedder = match &staged {
                Some(bundle) => Embedder::open(bundle.path(), options)?,
                None => Embedder::from_checkpoint(model, options)?,
            };
            let value = FoundPassages::run(&embedder, dev, |_| ())?.scores().mean.mrr_at_10;
            Ok(DevScore { value, precision: None, recall: None })
        }
    }
}

fn stage_int8(model: &Checkpoint, path: &Path) -> Result<Staged> {
    let metadata = Metadata { pooling: model.pooling, ..Metadata::new(model.config.clone(), Precision::Int8) };
    let spec = BundleSpec {
        metadata: &metadata,
        weights: &model.weights,
        tokenizer_json: &model.tokenizer.to_json(),
        wider: &BTreeMap::new(),
        pre_quant_scales: &BTreeMap::new(),
        card: None,
        golden: None,
    };
    bundle::stage(path, &spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_labelling_is_wrong_in_the_way_that_its_task_allows() {
        let of = |labels: &[&str]| labels.iter().map(|label| label.to_string()).collect::<Vec<String>>();
        let verdicts = |multi_label: bool, texts: &[(&[&str], &[&str])]| {
            let scores = |given: &[&str]| given.iter().map(|label| (label.to_string(), 0.9)).collect::<Vec<_>>();
            let found: Vec<_> = texts.iter().map(|(_, given)| scores(given)).collect();
            let gold = texts.iter().map(|(gold, _)| of(gold)).collect();
            let found = FoundLabels { labels: of(&["a", "b", "c"]), multi_label, gold, at_one: found.clone(), found };
            found.errors().iter().map(|error| (error.text, error.verdict)).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(false, &[(&["a"], &["a"]), (&["a"], &["b"])]), [(1, Verdict::Label)]);
        let several: [(&[&str], &[&str]); 5] = [
            (&["a", "b"], &["b", "a"]),
            (&["a"], &["b"]),
            (&["a", "b"], &["a", "c"]),
            (&["a"], &["a", "b"]),
            (&["a"], &[]),
        ];
        let expected = [(1, Verdict::Missed), (2, Verdict::Missed), (3, Verdict::Spurious), (4, Verdict::Missed)];
        assert_eq!(verdicts(true, &several), expected);
    }
}
