//! The figures of a report, and how they come about.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use ampoule::{Classifier, DeviceReport, Extractor, Options};
use ampoule_distill::data::{LabelledText, NerSet};
use ampoule_distill::score::{
    Bootstrap, ClassReport, Confusion, Counts, Interval, LabelIntervals, NerReport, Prf, Verdict, interval,
    label_intervals, label_retention, paired_bootstrap, paired_label_bootstrap, retention,
};
use ampoule_distill::{
    Calibration, EvaluationLog, FoundEntities, FoundLabels, LabelError, RunLog, StepLog, TypingNoise,
};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::data::Labelled;
use crate::doctor::{Machine, Speed};
use crate::input::tell_gpu;

/// [`Report::format`].
pub const FORMAT: &str = "ampoule-report";
/// [`Report::version`].
pub const VERSION: &str = "1.0";

/// What `report.json` holds, field by field; its schema is this struct and those in it, as serde writes them.
///
/// Shares and scores are in `0..=1`, sizes in bytes, times in milliseconds. An interval is one of 95 %, by the bootstrap that
/// [`bootstraps`](Self::bootstraps) describes, over texts. Unless `holds_text` is true, no text, word or token id of the data is in it.
/// Files, options and seeds say all of it but [`machine`](Self::machine), [`ModelReport::device`] and [`ModelReport::speed`].
#[derive(Serialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: &'static str,
    /// `MAJOR.MINOR`: a reader of one major version understands its later minors, which only add fields.
    pub version: &'static str,
    /// The program that wrote it.
    pub producer: &'static str,
    /// Whether [`mistakes`](Self::mistakes) shows texts of the data.
    pub holds_text: bool,
    /// `token-classification`, `single-label-classification` or `multi-label-classification`.
    pub task: &'static str,
    /// The run that made the model.
    pub run: RunReport,
    /// Which files were measured on: `train`, `dev` or `test`, or `mixed`.
    pub split: &'static str,
    /// What was measured on.
    pub data: Vec<Source>,
    /// How intervals were made.
    pub bootstraps: Bootstraps,
    /// The noise of typing.
    pub noise: NoiseReport,
    /// The first is what the others are compared with: the teacher where one was named, else the run's model.
    pub models: Vec<ModelReport>,
    /// Where this was measured.
    pub machine: Machine,
    /// What the last model got wrong, evenly taken, where texts may be shown.
    pub mistakes: Option<Vec<Mistake>>,
}

/// How intervals were made.
#[derive(Clone, Copy, Serialize)]
pub struct Bootstraps {
    /// Bootstrap samples of each.
    pub resamples: usize,
    /// From which they follow.
    pub seed: u64,
}

/// A run of `train` or `distill`.
#[derive(Serialize)]
pub struct RunReport {
    /// Its folder, as it was named.
    pub path: String,
    /// The folder's `config.json`: settings, the seed among them, the model's shape, and digests of the weights that it began with
    /// (`student_sha256`), of its teacher's (`teacher_sha256`) and of its texts (`data_sha256`).
    pub config: Value,
    /// Steps made.
    pub steps: usize,
    /// How often models of the run were measured on a test set before; choices made since are not blind.
    pub test_readings: usize,
    /// The first step of each stage.
    pub stages: Vec<usize>,
    /// Steps of one point of `curve`, at most.
    pub steps_per_point: usize,
    /// What was learned.
    pub curve: Vec<CurvePoint>,
    /// The evaluations on the dev set: `{step, dev_score, precision, recall, best}`, micro F1 of entities or macro F1 of labels; an
    /// evaluation that was the `best` of its stage so far chose the weights.
    pub evaluations: Vec<EvaluationLog>,
}

/// Some steps in a row, of one stage.
#[derive(Serialize)]
pub struct CurvePoint {
    /// The last of them.
    pub step: usize,
    /// From 1.
    pub stage: usize,
    /// Their mean loss: the weighted sum of the terms.
    pub loss: f64,
    /// The mean of each term, unweighted.
    pub terms: BTreeMap<String, f64>,
    /// The learning rate of the last of them.
    pub rate: f64,
    /// The mean norm of their gradients, before clipping.
    pub gradient_norm: f64,
}

/// Points of a curve that can be told apart on paper.
const CURVE_POINTS: usize = 240;

impl RunReport {
    pub fn new(path: &Path, log: &RunLog) -> Self {
        let steps_per_point = log.steps.len().div_ceil(CURVE_POINTS).max(1);
        let stages: Vec<&[StepLog]> = log.steps.chunk_by(|a, b| a.stage == b.stage).collect();
        RunReport {
            path: path.display().to_string(),
            config: log.config.clone(),
            steps: log.steps.last().map_or(0, |step| step.step),
            test_readings: log.test_readings,
            stages: stages.iter().map(|steps| steps[0].step).collect(),
            steps_per_point,
            curve: stages.iter().flat_map(|steps| steps.chunks(steps_per_point)).map(CurvePoint::of).collect(),
            evaluations: log.evaluations.clone(),
        }
    }

    /// The terms of all stages.
    pub fn terms(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for term in self.curve.iter().flat_map(|point| point.terms.keys()) {
            if !all.contains(&term.as_str()) {
                all.push(term);
            }
        }
        all
    }
}

impl CurvePoint {
    fn of(steps: &[StepLog]) -> Self {
        let last = &steps[steps.len() - 1];
        let mean = |of: &dyn Fn(&StepLog) -> f64| steps.iter().map(of).sum::<f64>() / steps.len() as f64;
        let term = |name: &str| mean(&|step| step.terms.get(name).and_then(Value::as_f64).unwrap_or_default());
        CurvePoint {
            step: last.step,
            stage: last.stage,
            loss: mean(&|step| step.loss),
            terms: last.terms.keys().map(|name| (name.clone(), term(name))).collect(),
            rate: last.rate,
            gradient_norm: mean(&|step| step.gradient_norm),
        }
    }
}

/// A file that was measured on.
#[derive(Serialize)]
pub struct Source {
    /// As it was named, with the labels that it was said to cover.
    pub name: String,
    /// The file's name.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
    /// SHA-256 of it, as `sha256sum` says it.
    pub sha256: String,
}

impl Source {
    pub fn read(name: &str, file: &Path) -> Result<Self> {
        let place = || file.display().to_string();
        let mut reader = std::fs::File::open(file).with_context(place)?;
        let (mut hash, mut bytes, mut block) = (Sha256::new(), 0, vec![0; 1 << 16]);
        loop {
            let read = reader.read(&mut block).with_context(place)?;
            if read == 0 {
                break;
            }
            hash.update(&block[..read]);
            bytes += read as u64;
        }
        Ok(Source {
            name: name.to_owned(),
            file: file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            bytes,
            sha256: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// Why a model is in the report.
#[derive(Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It was named as the teacher.
    Teacher,
    /// The run made it.
    Run,
    /// A bundle in the run's folder.
    Bundle,
    /// It was named.
    Model,
}

/// What a model is.
#[derive(Serialize)]
pub struct About {
    /// In short.
    pub name: String,
    /// Why it is here.
    pub role: Role,
    /// As it was named.
    pub path: String,
    /// How its matrices are kept: `f32`, `f16` or `int8`.
    pub precision: &'static str,
    /// How large its parts are, in words.
    pub shape: String,
    /// How many numbers it has.
    pub parameters: usize,
    /// Of a bundle its file's; of a folder those of its weights, tokenizer and configuration.
    pub bytes: u64,
    /// That of its scores: `--temperature`, or else its own.
    pub temperature: f32,
    /// Of a folder its weights' digest; of a bundle that of the weights that it was made of, so the two can be compared.
    pub weights_sha256: String,
    /// Of a teacher: whether it is the one that taught in the run; none where the run had none.
    pub is_runs_teacher: Option<bool>,
}

/// A model and what it scores.
#[derive(Serialize)]
pub struct ModelReport {
    /// What it is.
    #[serde(flatten)]
    pub about: About,
    /// Where it computed, and why there.
    pub device: DeviceReport,
    /// Strict micro F1 of entities, macro F1 of labels.
    pub f1: Interval,
    /// Of entities, all labels together.
    pub micro: Option<Prf>,
    /// Of labels: the share of texts whose labels are exactly right.
    pub accuracy: Option<Interval>,
    /// Of labels: the area under the ROC curve.
    pub auroc: Option<Interval>,
    /// The share of the first model's F1 that it has, on the same texts (paired bootstrap); none where that is 0, and of the first.
    pub retention: Option<Interval>,
    /// How much its F1 lies above the first's (paired bootstrap); none of the first.
    pub difference: Option<Bootstrap>,
    /// F1 of each set, where there are several sets of entities.
    pub sets: Vec<SetScore>,
    /// By label, in alphabetical order.
    pub labels: Vec<LabelScores>,
    /// Which labels are taken for which.
    pub confusion: Confusion,
    /// The same texts mistyped.
    pub noise: Vec<NoisyScore>,
    /// How reliable scores are, without its temperature and with it.
    pub calibration: Calibration,
    /// On this machine, at another time otherwise; none where nothing was timed.
    pub speed: Option<Speed>,
}

/// F1 of one set.
#[derive(Serialize)]
pub struct SetScore {
    /// The set, as it was named.
    pub data: String,
    /// Its micro F1.
    pub f1: Interval,
}

/// Scores of one label.
#[derive(Serialize)]
pub struct LabelScores {
    /// The label.
    pub label: String,
    /// The share of what was found that is right.
    pub precision: f64,
    /// The share of what is there that was found.
    pub recall: f64,
    /// The harmonic mean of the two.
    pub f1: Interval,
    /// How many there are.
    pub support: usize,
}

/// F1 of mistyped texts.
#[derive(Serialize)]
pub struct NoisyScore {
    /// The share of words that are changed.
    pub words: f64,
    /// As [`ModelReport::f1`].
    pub f1: Interval,
    /// How much of the clean texts' F1 is lost (paired bootstrap).
    pub lost: Bootstrap,
}

/// Of which kinds noise is.
#[derive(Serialize)]
pub struct NoiseReport {
    /// From which it follows.
    pub seed: u64,
    /// The weights of its kinds.
    pub settings: WithNoise,
}

/// [`TypingNoise`] but for its share of words, which is each [`NoisyScore`]'s own.
#[derive(Serialize)]
pub struct WithNoise(Value);

impl From<TypingNoise> for WithNoise {
    fn from(noise: TypingNoise) -> Self {
        let mut settings = serde_json::to_value(noise).unwrap_or_default();
        settings.as_object_mut().map(|fields| fields.shift_remove("words"));
        WithNoise(settings)
    }
}

/// Something that a model got wrong. It holds text.
#[derive(Serialize)]
pub struct Mistake {
    /// The text's own id, or its line's number.
    pub id: String,
    /// In which way.
    pub verdict: Verdict,
    /// The text before it, cut.
    pub before: String,
    /// The entity, as far as either side has it; of a text with labels its beginning.
    pub marked: String,
    /// The text after it, cut.
    pub after: String,
    /// What is there.
    pub gold: Vec<String>,
    /// What was found.
    pub found: Vec<String>,
}

/// Mistakes that are shown, and bytes of text around each.
const MISTAKES: usize = 60;
const AROUND: usize = 90;

impl Mistake {
    /// Those of `found` in `texts`, evenly taken.
    pub fn of(found: &Found, texts: &Labelled) -> Vec<Mistake> {
        match (&found.answers, texts) {
            (Answers::Entities(found), Labelled::Entities(sets)) => {
                let texts: Vec<_> = sets.iter().flat_map(|set| &set.examples).collect();
                let mistake = |error: &ampoule_distill::EntityError| {
                    let example = texts[error.text];
                    let spans = || error.gold.iter().chain(&error.found).map(|(_, range)| range);
                    let start = spans().map(|range| range.start).min().unwrap_or_default();
                    let end = spans().map(|range| range.end).max().unwrap_or_default();
                    let [before, marked, after] = around(&example.text, start..end);
                    let label = |span: &Option<(String, Range<usize>)>| span.iter().map(|(l, _)| l.clone()).collect();
                    let (gold, found) = (label(&error.gold), label(&error.found));
                    Mistake { id: example.id.clone(), verdict: error.verdict, before, marked, after, gold, found }
                };
                evenly(&found.errors()).map(mistake).collect()
            }
            (Answers::Labels(found), Labelled::Labels(texts)) => {
                let mistake = |LabelError { text, verdict, gold, given }: &LabelError| {
                    let text = &texts[*text];
                    let [_, marked, after] = around(&text.text, 0..text.text.len().min(3 * AROUND));
                    let (verdict, gold, found) = (*verdict, gold.clone(), given.clone());
                    Mistake { id: text.id.clone(), verdict, before: String::new(), marked, after, gold, found }
                };
                evenly(&found.errors()).map(mistake).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn evenly<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().step_by(all.len().div_ceil(MISTAKES).max(1))
}

/// A range of a text, and what stands around it.
fn around(text: &str, range: Range<usize>) -> [String; 3] {
    let (from, to) = (text.floor_char_boundary(range.start), text.ceil_char_boundary(range.end));
    let start = text.floor_char_boundary(from.saturating_sub(AROUND));
    let end = text.ceil_char_boundary(to.saturating_add(AROUND).min(text.len()));
    let dots = |is_cut: bool| if is_cut { "…" } else { "" };
    [
        format!("{}{}", dots(start > 0), &text[start..from]),
        text[from..to].to_owned(),
        format!("{}{}", &text[to..end], dots(end < text.len())),
    ]
}

/// What a model answers to some texts.
pub struct Found {
    /// That of its scores.
    pub temperature: f32,
    device: DeviceReport,
    answers: Answers,
    scores: Scores,
    /// Of each set of entities.
    sets: Vec<NerReport>,
}

enum Answers {
    Entities(FoundEntities),
    Labels(FoundLabels),
}

enum Scores {
    Entities(NerReport),
    Labels(ClassReport),
}

impl Found {
    /// Runs the model at `path` on `texts`; `each` hears after every text.
    pub fn run(path: &Path, options: &Options, texts: &Labelled, each: impl FnMut() + Copy) -> Result<Self> {
        Ok(match texts {
            Labelled::Entities(sets) => Self::entities(&Extractor::open(path, options)?, sets, each)?,
            Labelled::Labels(texts) => Self::labels(&Classifier::open(path, options)?, texts, each)?,
        })
    }

    fn entities(model: &Extractor, sets: &[NerSet], each: impl FnMut() + Copy) -> Result<Self> {
        let mut all = FoundEntities::default();
        let mut by_set = Vec::new();
        for set in sets {
            let found = FoundEntities::run(model, std::slice::from_ref(set), each)?;
            by_set.push(found.scores());
            all.extend(found);
        }
        let scores = Scores::Entities(all.scores());
        tell_gpu(&model.report());
        let (temperature, device) = (model.temperature(), model.device().clone());
        Ok(Found { temperature, device, answers: Answers::Entities(all), scores, sets: by_set })
    }

    fn labels(model: &Classifier, texts: &[LabelledText], each: impl FnMut()) -> Result<Self> {
        let found = FoundLabels::run(model, texts, each)?;
        let scores = Scores::Labels(found.scores());
        tell_gpu(&model.report());
        let (temperature, device) = (model.temperature(), model.device().clone());
        Ok(Found { temperature, device, answers: Answers::Labels(found), scores, sets: Vec::new() })
    }

    fn f1(&self, Bootstraps { resamples, seed }: Bootstraps) -> Interval {
        match &self.scores {
            Scores::Entities(report) => of_counts(&report.counts, report.micro.f1, Bootstraps { resamples, seed }),
            Scores::Labels(report) => label_intervals(report, resamples, seed).macro_f1,
        }
    }

    /// The share of the F1 of `first` that it has, and how far above that it lies.
    fn beside(
        &self,
        first: &Found,
        Bootstraps { resamples, seed }: Bootstraps,
    ) -> (Option<Interval>, Option<Bootstrap>) {
        match (&self.scores, &first.scores) {
            (Scores::Entities(a), Scores::Entities(b)) => (
                retention(&a.counts, &b.counts, resamples, seed),
                Some(paired_bootstrap(&a.counts, &b.counts, resamples, seed)),
            ),
            (Scores::Labels(a), Scores::Labels(b)) => {
                (label_retention(a, b, resamples, seed), Some(paired_label_bootstrap(a, b, resamples, seed).macro_f1))
            }
            _ => (None, None),
        }
    }

    fn per_label(&self) -> (&BTreeMap<String, Prf>, &BTreeMap<String, Vec<Counts>>) {
        match &self.scores {
            Scores::Entities(report) => (&report.per_label, &report.by_label),
            Scores::Labels(report) => (&report.per_label, &report.by_label),
        }
    }
}

fn of_counts(counts: &[Counts], value: f64, Bootstraps { resamples, seed }: Bootstraps) -> Interval {
    let (low, high) = interval(counts, resamples, seed);
    Interval { value, low, high }
}

impl NoisyScore {
    pub fn new(words: f64, noisy: &Found, clean: &Found, bootstraps: Bootstraps) -> Self {
        let lost = clean.beside(noisy, bootstraps).1.unwrap_or_default();
        NoisyScore { words, f1: noisy.f1(bootstraps), lost }
    }
}

impl ModelReport {
    pub fn new(
        about: About,
        found: &Found,
        first: Option<&Found>,
        noise: Vec<NoisyScore>,
        speed: Option<Speed>,
        data: &[String],
        bootstraps: Bootstraps,
    ) -> Result<Self> {
        let (retention, difference) = first.map_or((None, None), |first| found.beside(first, bootstraps));
        let (per_label, by_label) = found.per_label();
        let label = |(label, prf): (&String, &Prf)| LabelScores {
            label: label.clone(),
            precision: prf.precision,
            recall: prf.recall,
            f1: of_counts(&by_label[label], prf.f1, bootstraps),
            support: prf.support,
        };
        let (f1, micro, accuracy, auroc) = match &found.scores {
            Scores::Entities(report) => (found.f1(bootstraps), Some(report.micro), None, None),
            Scores::Labels(report) => {
                let LabelIntervals { accuracy, macro_f1, auroc } =
                    label_intervals(report, bootstraps.resamples, bootstraps.seed);
                (macro_f1, None, Some(accuracy), auroc)
            }
        };
        let set = |(name, report): (&String, &NerReport)| SetScore {
            data: name.clone(),
            f1: of_counts(&report.counts, report.micro.f1, bootstraps),
        };
        Ok(ModelReport {
            about,
            device: found.device.clone(),
            f1,
            micro,
            accuracy,
            auroc,
            retention,
            difference,
            sets: data.iter().zip(&found.sets).filter(|_| found.sets.len() > 1).map(set).collect(),
            labels: per_label.iter().map(label).collect(),
            confusion: match &found.answers {
                Answers::Entities(found) => found.confusion(),
                Answers::Labels(found) => found.confusion(),
            },
            noise,
            calibration: match &found.answers {
                Answers::Entities(found) => found.answers().calibration()?,
                Answers::Labels(found) => found.answers().calibration()?,
            },
            speed,
        })
    }
}
