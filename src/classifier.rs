//! Text in, labels out.

use std::path::Path;
use std::sync::Arc;

use crate::bundle::Bundle;
use crate::device::DeviceReport;
use crate::error::Result;
use crate::model::{ModelConfig, Output, Task};
use crate::opened::Opened;
use crate::options::{Limit, Options};

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
/// weight of its tokens. Calls take `&self` and may be made from several threads at once.
pub struct Classifier {
    opened: Opened,
    labels: Vec<Arc<str>>,
}

impl Classifier {
    /// Opens a bundle or, with the feature `checkpoint`, a Hugging Face folder.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::open(path.as_ref(), options)?)
    }

    /// Opens a bundle in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    pub fn from_bytes(bytes: impl Into<std::borrow::Cow<'static, [u8]>>, options: &Options) -> Result<Self> {
        let bundle = Bundle::from_bytes(bytes, options.verify)?;
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
        Ok(Classifier { opened, labels })
    }

    /// The labels, in the model's order.
    pub fn labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.opened.config
    }

    /// Where this model computes, and why there.
    pub fn device(&self) -> &DeviceReport {
        &self.opened.engine.report
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
        let limit = Limit::of(&self.opened.options);
        limit.check()?;
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut sums = vec![(0.0f32, vec![0.0f32; self.labels.len()]); texts.len()];
        self.opened.install(|| {
            self.opened.windows(texts.iter().copied(), &limit, true, Output::Logits, &mut |index, window, logits| {
                let weight = window.tokens.len().max(1) as f32;
                let (total, sum) = &mut sums[index];
                *total += weight;
                for (sum, x) in sum.iter_mut().zip(logits) {
                    *sum += weight * x;
                }
                Ok(())
            })
        })?;
        Ok(sums.into_iter().map(|(total, sum)| self.scores(total, &sum)).collect())
    }

    fn scores(&self, total: f32, sum: &[f32]) -> Vec<LabelScore> {
        let scale = 1.0 / (total.max(1.0) * self.opened.temperature);
        let logits = sum.iter().map(|x| x * scale);
        let scores: Vec<f32> = if self.opened.config.task == Task::MultiLabel {
            logits.map(|x| 1.0 / (1.0 + (-x).exp())).collect()
        } else {
            let top = logits.clone().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.clone().map(|x| (x - top).exp()).sum();
            logits.map(|x| (x - top).exp() / sum).collect()
        };
        let mut all: Vec<LabelScore> =
            self.labels.iter().cloned().zip(scores).map(|(label, score)| LabelScore { label, score }).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score));
        all
    }
}
