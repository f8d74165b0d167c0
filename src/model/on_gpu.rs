//! The model of [`super`] as a GPU's kernels compute it: weights in the bundle's precision, layers fused, sequences without padding.
//!
//! As [`packed`](super::packed) is for a processor; `on_gpu/tests.rs` holds it to [`Model`](super::Model).

use std::future::ready;
use std::sync::Arc;

use super::Output;
use super::config::{ModelConfig, Task};
use super::weights::{SideBySide, Values, WeightSource, take_positions};
use crate::batch::Batch;
use crate::error::Result;
use crate::kernels::gpu::{Buffer, Driver, Linear, Queue, Table};
use crate::kernels::{Activation, Answer, Matrix};

/// How weights and values are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GpuFormat {
    /// Whether weights that are floats are held in f16.
    pub(crate) weights_in_half: bool,
    /// Whether values between kernels are f16.
    pub(crate) values_in_half: bool,
    /// The most bytes of a part of the word embeddings.
    pub(crate) most_bytes: u64,
}

/// An encoder with at most one head, on a GPU.
pub(crate) struct GpuModel {
    config: ModelConfig,
    queue: Queue,
    word_embeddings: Table,
    /// `[positions, embedding]`, the embedding of the one token type added.
    positions: Buffer,
    norm: Norm,
    project: Option<Linear>,
    layers: Vec<Layer>,
    head: Option<Head>,
}

struct Norm {
    gamma: Buffer,
    beta: Buffer,
}

struct Layer {
    query_key_value: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    norm: Norm,
}

struct Head {
    /// Over a text's first token, with what follows it.
    pooler: Option<(Linear, Activation)>,
    classifier: Linear,
}

/// Sends weights as they are taken from a source.
struct Loader<'a> {
    source: &'a mut dyn WeightSource,
    queue: &'a Queue,
    in_half: bool,
}

impl Loader<'_> {
    /// The linear layers `names` of the same input as one.
    fn linear(&mut self, names: &[&str], outputs: usize, inputs: usize) -> Result<Linear> {
        let layers = SideBySide::take(self.source, names, outputs, inputs)?;
        let factors = layers.pre_quant_scale.as_deref();
        Ok(self.queue.linear(&layers.matrix(), self.in_half, inputs, &layers.bias, factors))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let mut vector = |part: &str| -> Result<Buffer> {
            Ok(self.queue.floats(&self.source.take(&format!("{name}.{part}"), &[width])?))
        };
        Ok(Norm { gamma: vector("weight")?, beta: vector("bias")? })
    }

    fn layer(&mut self, config: &ModelConfig, name: &str) -> Result<Layer> {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let at = |part: &str| format!("{name}.{part}");
        let self_attention = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        Ok(Layer {
            query_key_value: self.linear(&self_attention.each_ref().map(String::as_str), h, h)?,
            attention_output: self.linear(&[&at("attention.output.dense")], h, h)?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"), h)?,
            intermediate: self.linear(&[&at("intermediate.dense")], f, h)?,
            output: self.linear(&[&at("output.dense")], h, f)?,
            norm: self.norm(&at("output.LayerNorm"), h)?,
        })
    }

    fn head(&mut self, config: &ModelConfig) -> Result<Option<Head>> {
        if config.task == Task::Encoder {
            return Ok(None);
        }
        let h = config.hidden_size;
        let pooler = match config.has_pooler() {
            true => Some((self.linear(&["pooler.dense"], h, h)?, config.pooler_act())),
            false => None,
        };
        Ok(Some(Head { pooler, classifier: self.linear(&["classifier"], config.id2label.len(), h)? }))
    }
}

impl GpuModel {
    pub(crate) fn load(
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        format: GpuFormat,
        driver: Arc<Driver>,
    ) -> Result<Self> {
        config.validate()?;
        let queue = Queue::new(driver, format.values_in_half);
        let (width, h) = (config.embedding_size, config.hidden_size);
        let words = source.take_values("embeddings.word_embeddings.weight", &[config.vocab_size, width])?;
        let words_of = match &words {
            Values::Int8(words) => Matrix::Int8(vec![(&words.integers, &words.scales)]),
            Values::F32(words) => Matrix::F32(vec![words]),
        };
        let most_bytes = usize::try_from(format.most_bytes).unwrap_or(usize::MAX);
        let word_embeddings = queue.table(&words_of, format.weights_in_half, width, most_bytes);
        let positions = queue.floats(&take_positions(source, config)?);
        queue.settle()?;
        let mut loader = Loader { source, queue: &queue, in_half: format.weights_in_half };
        let norm = loader.norm("embeddings.LayerNorm", width)?;
        let project = match width == h {
            true => None,
            false => Some(loader.linear(&["embeddings_project"], h, width)?),
        };
        let layers = (0..config.num_hidden_layers).map(|i| {
            let layer = loader.layer(config, &format!("encoder.layer.{i}"))?;
            queue.settle()?;
            Ok(layer)
        });
        let layers = layers.collect::<Result<_>>()?;
        let head = loader.head(config)?;
        queue.settle()?;
        Ok(GpuModel { config: config.clone(), word_embeddings, positions, norm, project, layers, head, queue })
    }

    /// What is wanted of each sequence, sent to be computed. `check` may end that between layers.
    pub(crate) fn outputs(
        &self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Answer> {
        let head = match (output, &self.head) {
            (Output::States, _) => None,
            (Output::Logits, Some(head)) => Some(head),
            (Output::Logits, None) => return Err(super::no_labels()),
        };
        let lengths = batch.lengths();
        if lengths.iter().all(|&n| n == 0) {
            return Ok(Box::pin(ready(Ok(vec![Vec::new(); lengths.len()]))));
        }
        self.queue.watched(|| self.sent(batch, head, check))
    }

    fn sent(&self, batch: &Batch, head: Option<&Head>, check: &mut dyn FnMut() -> Result<()>) -> Result<Answer> {
        let lengths = batch.lengths();
        let x = self.hidden_states(batch, check).inspect_err(|_| self.queue.forget())?;
        let read = |values: &Buffer, width: usize, rows: fn(&usize) -> usize| {
            self.queue.read(values, lengths.iter().map(|n| width * rows(n)))
        };
        let labels = self.config.id2label.len();
        match head {
            None => read(&x, self.config.hidden_size, |n| *n),
            Some(Head { pooler: None, classifier }) => read(&self.queue.apply(classifier, &x, None, 1), labels, |n| *n),
            Some(Head { pooler: Some((pooler, activation)), classifier }) => {
                // Sequences without tokens have no first one, and no answer.
                let first = self.queue.firsts(&x, self.config.hidden_size, lengths);
                let pooled = self.queue.apply(pooler, &first, Some(*activation), 1);
                read(&self.queue.apply(classifier, &pooled, None, 1), labels, |n| *n.min(&1))
            }
        }
    }

    /// `[tokens, hidden]`
    fn hidden_states(&self, batch: &Batch, check: &mut dyn FnMut() -> Result<()>) -> Result<Buffer> {
        let (queue, config) = (&self.queue, &self.config);
        let epsilon = config.layer_norm_eps as f32;
        let norm = |x: &Buffer, residual: &Buffer, norm: &Norm| {
            queue.add_norm(x, residual, [&norm.gamma, &norm.beta], epsilon)
        };
        let first = config.first_position();
        let (ids, places): (Vec<u32>, Vec<u32>) =
            batch.tokens().map(|(id, at)| (id as u32, (first + at) as u32)).unzip();
        let sequences = queue.sequences(batch.lengths());
        let words = queue.rows(&self.word_embeddings, &queue.numbers(&ids));
        let parameters = [&self.norm.gamma, &self.norm.beta];
        let mut x = queue.add_norm_of(&words, &self.positions, &places, parameters, epsilon);
        if let Some(project) = &self.project {
            x = queue.apply(project, &x, None, 1);
        }
        for layer in &self.layers {
            check()?;
            let qkv = queue.apply(&layer.query_key_value, &x, None, 3); // [3, tokens, hidden]
            let context = queue.attend(&qkv, config.hidden_size, config.num_attention_heads, &sequences);
            let attended = queue.apply(&layer.attention_output, &context, None, 1);
            x = norm(&attended, &x, &layer.attention_norm);
            let wide = queue.apply(&layer.intermediate, &x, Some(config.hidden_act), 1); // [tokens, intermediate]
            x = norm(&queue.apply(&layer.output, &wide, None, 1), &x, &layer.norm);
        }
        check()?;
        Ok(x)
    }
}

#[cfg(all(test, feature = "checkpoint"))]
mod tests;
