//! How a run trains: settings for all of it, and what a stage of it does otherwise.

use ampoule::bundle::Precision;
use ampoule::{Device, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::losses::Term;
use crate::optimizer::AdamW;
use crate::typing::TypingNoise;

/// How a run trains. Every field has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// From which everything random follows: order, runs of sentences, noise, dropout.
    pub seed: u64,
    /// Times that the training texts are gone through.
    pub epochs: usize,
    /// The most steps, in fewer epochs where these are made before; as many as the epochs have where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// The most sequences of a step, or pairs of a query and a passage: each has the passages of the others for negatives, whatever the
    /// threads.
    pub batch_size: usize,
    /// The most tokens of a step, padding counted.
    pub max_batch_tokens: usize,
    /// The most tokens of a sequence, special tokens counted; 0 for as many as the model has positions. Of a longer text, embeddings and
    /// labels of the whole learn from the beginning.
    pub window: usize,
    /// Share of an epoch's sentences that come in runs of consecutive ones, as a note's do, in place of one by one.
    pub runs: f64,
    /// Share of these runs that are as long as the window; the others are of every length up to it.
    pub full_runs: f64,
    /// Noise of typing in the texts, drawn anew each epoch; labels stay exact. A text is here a sentence, or a run of them; of queries and
    /// passages, the queries alone are mistyped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<TypingNoise>,
    /// Loss terms.
    pub terms: Vec<Term>,
    /// Optimizer.
    pub optimizer: AdamW,
    /// Dropout in place of the checkpoint's own probabilities.
    pub dropout: Option<f64>,
    /// Tensors that are not trained: names, or beginnings of them in whole parts, as `encoder.layer.0`; `""` for all.
    pub freeze: Vec<String>,
    /// Evaluations on the dev set in an epoch; the best one's weights are kept.
    pub evaluations_per_epoch: usize,
    /// Evaluations without a better score after which the stage ends, from the first score above 0 on; 0 for never.
    pub patience: usize,
    /// Steps between two saved states.
    pub save_every: usize,
    /// Worker threads; 0 for as many as the run began with, and at first as the machine has cores, at most four.
    pub threads: usize,
    /// Where teacher and student are computed, `cpu` or `gpu`; the optimizer stays on the processor. The bits of a GPU's sums are its own,
    /// and need not be the same each time.
    #[serde(skip_serializing_if = "is_processor")]
    pub device: Device,
    /// The GPU's adapter, by a part of its name; without one the first that is hardware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Whether texts without labels are trained on too, where a loss term needs none.
    pub transfer: bool,
    /// Quantization-aware training (Jacob et al. 2018): with `int8` the forward pass rounds as the bundle's integer contract does,
    /// gradients pass as if it did not, and the dev set is evaluated in int8. `f32` trains as it computes.
    pub precision: Precision,
    /// Parts of the run, one after the other, each an object of the settings that it changes, as in
    /// `[{"epochs": 2, "terms": [..]}, {}, {"precision": "int8", "optimizer": {"learning_rate": 3e-5}}]`. Each begins where the one
    /// before was best, or ended where it teaches no labels, with the learning rate's warm-up and no moments. Empty: one part, of these
    /// settings.
    pub stages: Vec<Map<String, Value>>,
}

/// Settings that no stage can change: they are the run's.
const OF_RUN: [&str; 7] = ["seed", "dropout", "save_every", "threads", "device", "adapter", "stages"];

fn is_processor(device: &Device) -> bool {
    *device == Device::Cpu
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            seed: 1,
            epochs: 6,
            steps: None,
            batch_size: 16,
            max_batch_tokens: 1024,
            window: 0,
            runs: 0.5,
            full_runs: 0.0,
            noise: None,
            terms: vec![Term::Hard { weight: 1.0 }],
            optimizer: AdamW::default(),
            dropout: None,
            freeze: Vec::new(),
            evaluations_per_epoch: 1,
            patience: 0,
            save_every: 200,
            threads: 0,
            device: Device::Cpu,
            adapter: None,
            transfer: true,
            precision: Precision::F32,
            stages: Vec::new(),
        }
    }
}

impl TrainConfig {
    /// The defaults for embeddings of texts, which learn from each other: more of them in a step, at a rate that leaves standing what a
    /// pretrained embedder knows.
    pub fn for_search() -> Self {
        TrainConfig {
            epochs: 2,
            batch_size: 32,
            max_batch_tokens: 8192,
            window: 128,
            terms: vec![Term::Contrastive { weight: 1.0, temperature: 0.05 }],
            optimizer: AdamW { learning_rate: 5e-5, ..AdamW::default() },
            ..TrainConfig::default()
        }
    }

    /// Whether a teacher teaches anything, in any stage. Otherwise its cache and texts without labels are of no use to the training.
    ///
    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where the settings are none of a run.
    pub fn needs_teacher(&self) -> Result<bool> {
        Ok(self.checked_stages(true)?.iter().any(|stage| stage.taught().any(Term::needs_teacher)))
    }

    /// The settings of each stage, none of which has stages.
    ///
    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where a stage names what is no setting, or is one of the whole run, or has a
    /// value that does not fit.
    pub(crate) fn checked_stages(&self, has_teacher: bool) -> Result<Vec<TrainConfig>> {
        let run = TrainConfig { stages: Vec::new(), ..self.clone() };
        run.check(has_teacher || !self.stages.is_empty()).map_err(|e| e.context("configuration"))?;
        if self.stages.is_empty() {
            return Ok(vec![run]);
        }
        let of = |(number, changes): (usize, &Map<String, Value>)| {
            let wrong = |what: String| Error::invalid_input(what).context(format!("configuration: stage {number}"));
            if let Some(name) = OF_RUN.iter().find(|name| changes.contains_key(**name)) {
                return Err(wrong(format!("{name} is a setting of the whole run")));
            }
            let mut settings = serde_json::to_value(&run).map_err(|e| wrong(e.to_string()))?;
            merge(&mut settings, &Value::Object(changes.clone()));
            let stage: TrainConfig = serde_json::from_value(settings).map_err(|e| wrong(e.to_string()))?;
            stage.check(has_teacher).map_err(|e| e.context(format!("configuration: stage {number}")))?;
            Ok(stage)
        };
        (1..).zip(&self.stages).map(of).collect()
    }

    /// The terms that teach; one of weight 0 is measured alone.
    pub(crate) fn taught(&self) -> impl Iterator<Item = &Term> {
        self.terms.iter().filter(|term| term.weight() > 0.0)
    }

    /// Whether what the dev set measures is taught, labels or embeddings, and so worth an evaluation.
    pub(crate) fn teaches_labels(&self) -> bool {
        self.taught().any(|term| term.reads_logits() || term.reads_embeddings())
    }

    /// Whether this tensor is not trained.
    pub(crate) fn freezes(&self, tensor: &str) -> bool {
        self.freeze.iter().any(|beginning| begins(tensor, beginning))
    }

    /// What is wrong with the settings, of the run or of a stage.
    fn check(&self, has_teacher: bool) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid_input(what));
        if self.epochs == 0 || self.batch_size == 0 || self.evaluations_per_epoch == 0 || self.save_every == 0 {
            return wrong("epochs, batch_size, evaluations_per_epoch and save_every must be at least 1");
        }
        if matches!(self.window, 1 | 2) {
            return wrong("window must be 0, or at least 3: a sequence has two special tokens");
        }
        if self.steps == Some(0) {
            return wrong("steps must be at least 1, or absent");
        }
        if self.epochs > 10_000 && self.steps.is_none() {
            return wrong("epochs must be at most 10000, or steps be given");
        }
        if self.epochs > 1 << 20 {
            return wrong("epochs must be at most 2^20, also where steps are given");
        }
        if self.batch_size > 1 << 20 || self.max_batch_tokens > 1 << 30 {
            return wrong("batch_size must be at most 2^20, max_batch_tokens at most 2^30");
        }
        if self.threads > ampoule::MAX_THREADS {
            return wrong(&format!("threads must be at most {}", ampoule::MAX_THREADS));
        }
        if self.adapter.is_some() && self.device == Device::Cpu {
            return wrong("adapter names a GPU, and the device is cpu; take it out, or name the device gpu");
        }
        if self.terms.is_empty() {
            return wrong("terms is empty; name at least one loss term");
        }
        if !(0.0..=1.0).contains(&self.runs) || !(0.0..=1.0).contains(&self.full_runs) {
            return wrong("runs and full_runs must be in 0..=1");
        }
        if let Some(noise) = &self.noise {
            noise.check()?;
        }
        if self.dropout.is_some_and(|p| !(0.0..1.0).contains(&p)) {
            return wrong("dropout must be in 0..1");
        }
        self.optimizer.check()?;
        if self.precision == Precision::F16 {
            return wrong("precision must be f32 or int8");
        }
        for term in &self.terms {
            let weight = term.weight();
            if weight != 0.0 && !(weight > 0.0 && (weight as f32).is_normal()) {
                return wrong(&format!(
                    "the weight of the loss term {:?} must be 0 or more, as f32 has it",
                    term.name()
                ));
            }
            // Cosines over anything smaller would reach what stands for "left out".
            if term.temperature().is_some_and(|t| !(t.is_finite() && t >= 1e-3)) {
                return wrong(&format!("the temperature of the loss term {:?} must be at least 0.001", term.name()));
            }
        }
        if self.taught().next().is_none() {
            return wrong("the weights of all loss terms are 0, so nothing would be taught");
        }
        let needs_teacher = self.terms.iter().find(|t| t.needs_teacher());
        if let (Some(term), false) = (needs_teacher, has_teacher) {
            return wrong(&format!("the loss term {:?} needs a teacher", term.name()));
        }
        Ok(())
    }
}

/// Whether a tensor's name begins so, in whole parts: layer 1 is not layer 10.
pub(crate) fn begins(tensor: &str, beginning: &str) -> bool {
    let is_whole =
        |rest: &str| rest.is_empty() || rest.starts_with('.') || beginning.is_empty() || beginning.ends_with('.');
    tensor.strip_prefix(beginning).is_some_and(is_whole)
}

/// Puts the fields of `from` into `into`, object by object; what is no object takes the other's place.
pub fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
