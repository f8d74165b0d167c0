//! What a model asks of a GPU's memory.

use super::GpuLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::model::ModelConfig;

/// What a model asks of a GPU.
pub(crate) struct Demand {
    /// Bytes of all weights.
    weights: u64,
    /// The largest matrix, word embeddings aside, and its bytes.
    matrix: (String, u64),
    /// Bytes of the widest values of one window.
    window: u64,
    /// Bytes of the widest values of a batch.
    batch: u64,
    /// Values of an attention head.
    head: usize,
}

impl Demand {
    /// That of a model whose batches have so many tokens, in windows of so many. `bytes` are those of a value of the matrix of this name.
    pub(crate) fn of(
        config: &ModelConfig,
        bytes: &dyn Fn(&str) -> u64,
        batch_tokens: usize,
        window_tokens: usize,
    ) -> Self {
        let mut all = config.tensors();
        for (name, shape) in &mut all {
            // Queries, keys and values are one matrix.
            if name.contains(".self.") {
                shape.insert(0, if name.contains(".query.") { 3 } else { 0 });
            }
        }
        let is_held_as_it_is =
            |name: &str| name.contains("LayerNorm") || name.contains("position") || name.contains("type");
        let bytes = |name: &str, shape: &[usize]| {
            let each = match name.rsplit_once(".self.") {
                _ if name.ends_with(".bias") || is_held_as_it_is(name) => 4,
                // The three are held as the widest of them is.
                Some((attention, _)) => ["query", "key", "value"]
                    .map(|part| bytes(&format!("{attention}.self.{part}.weight")))
                    .into_iter()
                    .fold(1, u64::max),
                None => bytes(name),
            };
            each * shape.iter().map(|&n| n as u64).product::<u64>()
        };
        let others = all.iter().filter(|(name, _)| name != "embeddings.word_embeddings.weight");
        let largest = others.max_by_key(|(name, shape)| bytes(name, shape));
        let values = |tokens: usize| width(config).saturating_mul(4).saturating_mul(tokens as u64);
        Demand {
            weights: all.iter().map(|(name, shape)| bytes(name, shape)).sum(),
            matrix: largest.map_or((String::new(), 0), |(name, shape)| (name.clone(), bytes(name, shape))),
            window: values(window_tokens),
            batch: values(batch_tokens.max(window_tokens)),
            head: config.hidden_size / config.num_attention_heads.max(1),
        }
    }

    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where that is more than the limits.
    pub(crate) fn check(&self, limits: GpuLimits) -> Result<()> {
        let refused = |message: String| Err(Error::new(ErrorKind::DeviceUnavailable, message));
        let (name, matrix) = &self.matrix;
        if *matrix > limits.buffer_bytes {
            return refused(format!(
                "{name} has {matrix} bytes, and a buffer of the GPU at most {}; use the device `cpu`",
                limits.buffer_bytes
            ));
        }
        if self.window > limits.buffer_bytes {
            return refused(format!(
                "what is computed of a window has {} bytes, and a buffer of the GPU at most {}; open the model with a smaller \
                 `max_window_tokens`, or use the device `cpu`",
                self.window, limits.buffer_bytes
            ));
        }
        if self.head > MOST_OF_A_HEAD {
            return refused(format!(
                "its attention heads have {} values, and a GPU's at most {MOST_OF_A_HEAD}; use the device `cpu`",
                self.head
            ));
        }
        let all = self.weights.saturating_add(self.batch.saturating_mul(VALUES));
        if all > limits.memory_bytes {
            return refused(format!(
                "the model needs {all} bytes of the GPU, and may have {}; use the device `cpu`, or one with fewer `max_batch_tokens`",
                limits.memory_bytes
            ));
        }
        Ok(())
    }
}

/// How many times the widest values of a batch are needed: the values between, buffers that are larger than what is in them, and what comes
/// back.
const VALUES: u64 = 6;

/// The widest attention head: a unit keeps its query and its sums in registers.
const MOST_OF_A_HEAD: usize = 512;

/// The widest of the values that are computed of a token.
pub(super) fn width(config: &ModelConfig) -> u64 {
    let widths = [3 * config.hidden_size, config.intermediate_size, config.embedding_size, config.id2label.len()];
    widths.into_iter().fold(1, |most, width| most.max(width as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gpu_cannot_hold_is_refused_with_what_to_try() {
        let json = serde_json::json!({
            "model_type": "bert", "architectures": ["BertForTokenClassification"], "vocab_size": 60, "hidden_size": 32,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 200,
        });
        let config = ModelConfig::from_json(&json).unwrap();
        let demand = Demand::of(&config, &|_| 4, 1024, 200);
        let all = GpuLimits::default();
        demand.check(all).unwrap();
        // Queries, keys and values of 200 tokens.
        assert_eq!(demand.window, 4 * 200 * 3 * 32);
        let weights = config.tensors().iter().map(|(_, shape)| 4 * shape.iter().product::<usize>() as u64).sum::<u64>();
        assert_eq!(demand.weights, weights);
        for (limits, told) in [
            (GpuLimits { buffer_bytes: demand.window - 1, ..all }, "a smaller `max_window_tokens`"),
            (
                GpuLimits { buffer_bytes: 4 * 200 * 32 - 1, ..all },
                "embeddings.position_embeddings.weight has 25600 bytes",
            ),
            (GpuLimits { memory_bytes: weights, ..all }, "fewer `max_batch_tokens`"),
        ] {
            let error = demand.check(limits).unwrap_err();
            assert!(error.kind() == ErrorKind::DeviceUnavailable && error.to_string().contains(told), "{error}");
        }
        demand
            .check(GpuLimits { buffer_bytes: demand.window, memory_bytes: weights + VALUES * demand.batch, ..all })
            .unwrap();
    }
}
