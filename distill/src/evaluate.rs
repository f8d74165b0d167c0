//! Scores of a model, measured the way it is used: text to entities or labels, through the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use ampoule::bundle::{self, BundleSpec, Metadata, Precision, Staged};
use ampoule::{Checkpoint, Classifier, Extractor, Options, Result, Task};

use crate::data::{Example, LabelledText, NerSet};
use crate::dictionary::Dictionary;
use crate::score::{ClassReport, LabelledSpan, NerReport, Prf, at_threshold, classification_scores, ner_scores};
use crate::sequences::Data;

/// Entities of texts beside those that a model, or a dictionary, found.
#[derive(Default)]
pub struct FoundEntities {
    gold: Vec<Vec<LabelledSpan>>,
    found: Vec<Vec<(String, Range<usize>, f32)>>,
    covers: Vec<BTreeSet<String>>,
}

impl FoundEntities {
    /// Runs `extractor` on the texts of `sets`, each text as the set holds it. `each` hears after every text.
    ///
    /// # Errors
    /// Those of the extractor.
    pub fn run(extractor: &Extractor, sets: &[NerSet], mut each: impl FnMut()) -> Result<Self> {
        let mut all = FoundEntities::default();
        for set in sets {
            for some in set.examples.chunks(64) {
                let texts: Vec<&str> = some.iter().map(|e| e.text.as_str()).collect();
                for (example, entities) in some.iter().zip(extractor.extract_batch(&texts)?) {
                    let found = entities.into_iter().map(|e| (e.label.to_string(), e.range, e.score)).collect();
                    all.add(set, example, found);
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
                let found = dictionary.tag(&example.text).into_iter().map(|e| (e.label, e.range, 1.0)).collect();
                all.add(set, example, found);
            }
        }
        all
    }

    fn add(&mut self, set: &NerSet, example: &Example, found: Vec<(String, Range<usize>, f32)>) {
        self.gold.push(example.entities.iter().map(|e| (e.label.clone(), e.range.clone())).collect());
        self.found.push(found);
        self.covers.push(set.covers.clone());
    }

    /// Strict scores; what is found of labels that a set does not cover is left out.
    pub fn scores(&self) -> NerReport {
        let found: Vec<Vec<LabelledSpan>> = self
            .found
            .iter()
            .map(|text| text.iter().map(|(label, range, _)| (label.clone(), range.clone())).collect())
            .collect();
        ner_scores(&self.gold, &found, &self.covers.iter().collect::<Vec<_>>())
    }

    /// The same of the entities whose score is at least `threshold`, all labels together.
    pub fn at_threshold(&self, threshold: f32) -> Prf {
        at_threshold(&self.gold, &self.found, &self.covers.iter().collect::<Vec<_>>(), threshold)
    }
}

/// Runs `classifier` on `texts` and scores it. `each` hears after every text.
///
/// # Errors
/// Those of the classifier.
pub fn evaluate_labels(classifier: &Classifier, texts: &[LabelledText], mut each: impl FnMut()) -> Result<ClassReport> {
    let (mut gold, mut scores) = (Vec::new(), Vec::new());
    for some in texts.chunks(32) {
        let batch: Vec<&str> = some.iter().map(|t| t.text.as_str()).collect();
        for (text, labels) in some.iter().zip(classifier.classify_batch(&batch)?) {
            gold.push(text.labels.clone());
            scores.push(labels.into_iter().map(|l| (l.label.to_string(), l.score)).collect());
            each();
        }
    }
    let labels: Vec<String> = classifier.labels().iter().map(|l| l.to_string()).collect();
    let is_multi_label = classifier.config().task == Task::MultiLabel;
    Ok(classification_scores(&gold, &scores, &labels, is_multi_label))
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
            let report = evaluate_labels(&classifier, dev, || ())?;
            Ok(DevScore { value: report.macro_f1, precision: None, recall: None })
        }
    }
}

fn stage_int8(model: &Checkpoint, path: &Path) -> Result<Staged> {
    let metadata = Metadata::new(model.config.clone(), Precision::Int8);
    let spec = BundleSpec {
        metadata: &metadata,
        weights: &model.weights,
        tokenizer_json: &model.tokenizer.to_json(),
        wider: &BTreeMap::new(),
        pre_quant_scales: &BTreeMap::new(),
        card: None,
    };
    bundle::stage(path, &spec)
}
