//! Text in, labels out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::device::DeviceReport;
use crate::error::{Error, Result};
use crate::gpu::GpuReport;
use crate::model::{ModelConfig, Output, Task};
use crate::opened::{ModelReport, Opened, check_temperature};
use crate::options::{CancelToken, Computed, Limits, Options};
use crate::self_check::SelfCheck;
use crate::text::Tokenizer;

/// One label of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelScore {
    /// The label's name.
    pub label: Arc<str>,
    /// Its probability, in `0..=1`: of all labels together 1 where one of them holds (softmax), each for itself where several
    /// may (sigmoid).
    pub score: f32,
}

/// Sorts texts by labels.
///
/// A text longer than the model's positions is computed in overlapping windows, whose logits are averaged, each with the
/// weight of its tokens. Calls take `&self` and may be made from several threads at once. Clones share the model.
#[derive(Clone)]
pub struct Classifier {
    opened: Arc<Opened>,
    labels: Arc<[Arc<str>]>,
    limits: Limits,
}

impl Classifier {
    /// Opens a bundle or, with the feature `checkpoint`, a Hugging Face folder.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        Self::from_opened(Opened::open(path, options)?).map_err(|e| e.context(path.display()))
    }

    /// Opens a bundle in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    pub fn from_bytes(bytes: impl Into<std::borrow::Cow<'static, [u8]>>, options: &Options) -> Result<Self> {
        Self::from_bundle(Bundle::from_bytes(bytes, options.verify)?, options)
    }

    /// Uses a bundle that is open, such as one inside another file; how it is loaded and verified was said when it was opened.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    pub fn from_bundle(bundle: Bundle, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::from_bundle(bundle, options)?)
    }

    /// Uses a checkpoint in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(checkpoint: crate::Checkpoint, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::from_checkpoint(checkpoint, options)?)
    }

    fn from_opened(opened: Opened) -> Result<Self> {
        let opened = opened.expect(&[Task::SingleLabel, Task::MultiLabel], "classify")?;
        let labels = opened.config.id2label.iter().map(|label| label.as_str().into()).collect();
        Ok(Classifier { limits: opened.options.limits(), opened: Arc::new(opened), labels })
    }

    /// The labels, in the model's order.
    pub fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.opened.tokenizer
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.opened.config
    }

    /// What logits are divided by before they become probabilities.
    pub fn temperature(&self) -> f32 {
        self.opened.temperature
    }

    /// Where this model computes, and why there.
    pub fn device(&self) -> &DeviceReport {
        &self.opened.engine.report
    }

    /// What it holds, and has done.
    pub fn report(&self) -> ModelReport {
        self.opened.report()
    }

    /// Computes the golden cases of the model's bundle and compares the answers: how near they came, or none where the model has no cases,
    /// as that of a checkpoint. Takes as long as a dozen short texts. With [`Device::GpuOrCpu`](crate::Device::GpuOrCpu) the processor's part;
    /// the GPU's stands in [`report`](Self::report).
    ///
    /// # Errors
    /// [`DeviceUnavailable`](crate::ErrorKind::DeviceUnavailable) where the device computes something else, which says what;
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn self_check(&self) -> Result<Option<SelfCheck>> {
        self.opened.self_check(&self.limits.begin())
    }

    /// Tokens that calls of this value and its clones have computed, by device. For one result's, make that call on a value of its own, which
    /// [`limited`](Self::limited) gives, with the options' token and deadline if it is to have them: it counts by itself.
    pub fn computed(&self) -> Computed {
        self.limits.computed()
    }

    /// Waits until the GPU has come further in its warm-up than `done` of [`GpuReport::warm_up`], is ready, or has failed, and says how it
    /// stands; none where there is none. An app that shows progress calls it again with what it got, and one that does not with [`usize::MAX`].
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn wait_for_gpu(&self, done: usize) -> Result<Option<GpuReport>> {
        self.opened.wait_for_gpu(done, &self.limits.begin())
    }

    /// Frees the memory that is kept for the next call, which takes it again; running calls keep theirs. What is kept on a GPU stays.
    pub fn trim(&self) {
        self.opened.trim();
    }

    /// The same model, shared, whose calls end by `cancel` and `deadline` in place of those of its options: so each call can have a token
    /// of its own.
    pub fn limited(&self, cancel: Option<CancelToken>, deadline: Option<Duration>) -> Self {
        Classifier { limits: Limits::new(cancel, deadline), ..self.clone() }
    }

    /// Every label's probability, the likeliest first.
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn classify(&self, text: &str) -> Result<Vec<LabelScore>> {
        Ok(self.classify_batch(&[text])?.swap_remove(0))
    }

    /// The same for several texts, computed together.
    ///
    /// # Errors
    /// As [`Classifier::classify`].
    pub fn classify_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<LabelScore>>> {
        let logits = self.logits(texts)?;
        Ok(logits.iter().map(|logits| self.scores_at(logits, self.opened.temperature)).collect())
    }

    /// What the model says of each text, `[texts, labels]`, in the order of [`Classifier::labels`]; no temperature has divided it.
    ///
    /// # Errors
    /// As [`Classifier::classify`].
    pub fn logits<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>> {
        let limit = self.limits.begin();
        limit.check()?;
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut sums = vec![(0.0f64, vec![0.0f64; self.labels.len()]); texts.len()];
        self.opened.install(&limit, || {
            self.opened.windows(texts.iter().copied(), &limit, true, Output::Logits, &mut |index, window, logits| {
                let weight = window.tokens.len().max(1) as f64;
                let (total, sum) = &mut sums[index];
                *total += weight;
                for (sum, x) in sum.iter_mut().zip(logits) {
                    *sum += weight * f64::from(*x);
                }
                Ok(())
            })
        })?;
        let mean = |(total, sum): (f64, Vec<f64>)| sum.into_iter().map(|x| (x / total.max(1.0)) as f32).collect();
        Ok(sums.into_iter().map(mean).collect())
    }

    /// The probabilities of a text's [logits](Classifier::logits), the likeliest first: at [`Classifier::temperature`] those of
    /// [`Classifier::classify`], at any other the same order with other scores.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a temperature that is not a positive number, and for logits that are not a
    /// finite number for each label.
    pub fn scores(&self, logits: &[f32], temperature: f32) -> Result<Vec<LabelScore>> {
        check_temperature(temperature)?;
        if logits.len() != self.labels.len() || logits.iter().any(|x| !x.is_finite()) {
            return Err(Error::invalid_input(format!(
                "expected {} finite logits, one a label, found {} values",
                self.labels.len(),
                logits.len()
            )));
        }
        Ok(self.scores_at(logits, temperature))
    }

    fn scores_at(&self, logits: &[f32], temperature: f32) -> Vec<LabelScore> {
        // In f64 no logit over no temperature is infinite.
        let scaled = logits.iter().map(|&x| f64::from(x) / f64::from(temperature));
        let scores: Vec<f64> = if self.opened.config.task == Task::MultiLabel {
            scaled.map(|x| 1.0 / (1.0 + (-x).exp())).collect()
        } else {
            let top = scaled.clone().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scaled.clone().map(|x| (x - top).exp()).sum();
            scaled.map(|x| (x - top).exp() / sum).collect()
        };
        // By logits, since scores may round to the same number.
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.into_iter().map(|i| LabelScore { label: self.labels[i].clone(), score: scores[i] as f32 }).collect()
    }
}
