//! Text in, vector out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::Batch;
use crate::bundle::{Bundle, PoolingMode};
use crate::device::DeviceReport;
use crate::error::{Error, Result};
use crate::gpu::GpuReport;
use crate::model::{ModelConfig, Output};
use crate::opened::{ModelReport, Opened};
use crate::options::{CancelToken, Computed, Limits, Options};
use crate::self_check::SelfCheck;
use crate::text::Tokenizer;

/// Turns texts into vectors for search and comparison.
///
/// Token vectors are pooled and, where the model says so, normalised to length 1 (Reimers and Gurevych 2019). A text longer
/// than the model's positions is computed in overlapping windows, over which the pooling goes on; the first window decides
/// for CLS pooling. Calls take `&self` and may be made from several threads at once. Clones share the model.
#[derive(Clone)]
pub struct Embedder {
    opened: Arc<Opened>,
    limits: Limits,
}

impl Embedder {
    /// Opens a bundle or, with the feature `checkpoint`, a Hugging Face folder. A model with a head works too; the head is
    /// not used.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        Ok(Self::from_opened(Opened::open(path.as_ref(), options)?))
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
        Ok(Self::from_opened(Opened::from_bundle(bundle, options)?))
    }

    /// Uses a checkpoint in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`](crate::Extractor::open).
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(checkpoint: crate::Checkpoint, options: &Options) -> Result<Self> {
        Ok(Self::from_opened(Opened::from_checkpoint(checkpoint, options)?))
    }

    fn from_opened(opened: Opened) -> Self {
        Embedder { limits: opened.options.limits(), opened: Arc::new(opened) }
    }

    /// Number of values of a vector.
    pub fn width(&self) -> usize {
        self.opened.config.hidden_size
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.opened.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.opened.tokenizer
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
        Embedder { limits: Limits::new(cancel, deadline), ..self.clone() }
    }

    /// The vector of a text, [`width`](Embedder::width) values.
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn embed(&self, text: &str) -> Result<Vec<f32>> {
        Ok(self.embed_batch(&[text])?.swap_remove(0))
    }

    /// The vectors of several texts, computed together.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    pub fn embed_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>> {
        let limit = self.limits.begin();
        limit.check()?;
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut pooled: Vec<Pooled> = texts.iter().map(|_| Pooled::default()).collect();
        let mode = self.opened.pooling.mode;
        self.opened.install(&limit, || {
            self.opened.windows(texts.iter().copied(), &limit, true, Output::States, &mut |index, _, states| {
                pooled[index].add(mode, states, self.width());
                Ok(())
            })
        })?;
        Ok(pooled.into_iter().map(|p| p.finish(mode, self.opened.pooling.normalize)).collect())
    }

    /// The last hidden states of sequences of token ids, special tokens included and each by itself at most
    /// [`max_tokens`](ModelConfig::max_tokens) long: `[tokens, width]` of each, row-major. For callers that tokenize, cut and pool by
    /// themselves.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a sequence that is empty or too long and for an id that is not in the
    /// vocabulary; else as [`Embedder::embed`].
    pub fn hidden_states<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Vec<Vec<f32>>> {
        let config = &self.opened.config;
        for ids in sequences.iter().map(AsRef::as_ref) {
            if ids.is_empty() || ids.len() > config.max_tokens() {
                let (found, most) = (ids.len(), config.max_tokens());
                return Err(Error::invalid_input(format!(
                    "a sequence of {found} tokens; this model takes 1 to {most}"
                )));
            }
            if ids.iter().any(|&id| id as usize >= config.vocab_size) {
                let last = config.vocab_size - 1;
                return Err(Error::invalid_input(format!("a token id outside the vocabulary; its last is {last}")));
            }
        }
        let limit = self.limits.begin();
        limit.check()?;
        let mut states = Vec::with_capacity(sequences.len());
        let mut rest = sequences;
        while !rest.is_empty() {
            let mut longest = 0;
            let over = rest.iter().zip(1..).position(|(ids, count)| {
                longest = longest.max(ids.as_ref().len());
                count * longest > self.opened.options.max_batch_tokens
            });
            let (some, others) = rest.split_at(over.unwrap_or(rest.len()).max(1));
            let batch = Batch::new(some, config.pad_token_id);
            states.extend(self.opened.install(&limit, || self.opened.outputs(&batch, Output::States, &limit))?);
            rest = others;
        }
        Ok(states)
    }
}

/// The vector of a text whose windows arrive one by one.
#[derive(Default)]
struct Pooled {
    /// The sum of the tokens' vectors, the largest of their values, or the first of them.
    vector: Vec<f64>,
    tokens: usize,
}

impl Pooled {
    /// Adds a window's states `[tokens, width]`. Special tokens belong to the mean, as in sentence-transformers.
    fn add(&mut self, mode: PoolingMode, states: &[f32], width: usize) {
        for state in states.chunks(width) {
            let values = state.iter().map(|&x| f64::from(x));
            if self.tokens == 0 {
                self.vector = values.collect();
            } else {
                for (pooled, x) in self.vector.iter_mut().zip(values) {
                    match mode {
                        PoolingMode::Cls => {}
                        PoolingMode::Mean => *pooled += x,
                        PoolingMode::Max => *pooled = pooled.max(x),
                    }
                }
            }
            self.tokens += 1;
        }
    }

    fn finish(self, mode: PoolingMode, normalize: bool) -> Vec<f32> {
        let mut scale = match mode {
            PoolingMode::Mean => 1.0 / self.tokens.max(1) as f64,
            PoolingMode::Cls | PoolingMode::Max => 1.0,
        };
        if normalize {
            let norm = self.vector.iter().map(|x| (x * scale).powi(2)).sum::<f64>().sqrt();
            scale /= norm.max(1e-12);
        }
        self.vector.into_iter().map(|x| (x * scale) as f32).collect()
    }
}
