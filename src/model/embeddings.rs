//! Token ids to vectors: word + position (+ token type), normalised.

use burn::module::{Module, Param};
use burn::nn::{Embedding, EmbeddingConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::config::ModelConfig;
use super::linear::Linear;
use super::noise::Noise;
use super::norm::Norm;
use super::weights::WeightSource;
use crate::error::Result;

/// The embedding block of BERT (Devlin et al. 2019), with ELECTRA's projection where widths differ.
#[derive(Module, Debug)]
pub struct Embeddings {
    word_embeddings: Embedding,
    position_embeddings: Embedding,
    token_type_embeddings: Option<Embedding>,
    layer_norm: Norm,
    dropout: f64,
    first_position: usize,
    /// Whether words' rows are [`fake_quantize`](super::linear::fake_quantize)d.
    #[cfg(feature = "autodiff")]
    pub(super) is_rounded: bool,
}

impl Embeddings {
    pub(crate) fn load(config: &ModelConfig, source: &mut dyn WeightSource, device: &Device) -> Result<Self> {
        let width = config.embedding_size;
        let mut table = |name: &str, rows: usize| -> Result<Embedding> {
            let data = source.take(&format!("embeddings.{name}_embeddings.weight"), &[rows, width])?;
            let data = TensorData::new(data, [rows, width]);
            let mut table = EmbeddingConfig::new(rows, width).init(device);
            table.weight = Param::from_tensor(Tensor::from_data(data, device));
            Ok(table)
        };
        let word_embeddings = table("word", config.vocab_size)?;
        let position_embeddings = table("position", config.max_position_embeddings)?;
        let token_type_embeddings = match config.type_vocab_size {
            0 => None,
            rows => Some(table("token_type", rows)?),
        };
        Ok(Embeddings {
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            layer_norm: Norm::load(source, "embeddings.LayerNorm", width, config, device)?,
            dropout: config.hidden_dropout_prob,
            first_position: config.first_position(),
            #[cfg(feature = "autodiff")]
            is_rounded: false,
        })
    }

    /// `input_ids` `[batch, seq]` -> `[batch, seq, embedding]`. Every token is of type 0: one text a sequence.
    pub(crate) fn forward(&self, input_ids: Tensor<2, Int>, noise: &mut Option<Noise>) -> Tensor<3> {
        let [_, seq] = input_ids.dims();
        let words = self.word_embeddings.forward(input_ids); // [batch, seq, embedding]
        #[cfg(feature = "autodiff")]
        let words = match self.is_rounded {
            true => super::linear::fake_quantize(words, 2),
            false => words,
        };
        let first = self.first_position;
        let mut rows = self.position_embeddings.weight.val().slice(first..first + seq); // [seq, embedding]
        if let Some(types) = &self.token_type_embeddings {
            rows = rows + types.weight.val().slice(0..1);
        }
        let rows = rows.unsqueeze_dim::<3>(0).expand(words.dims()); // [batch, seq, embedding]
        let x = self.layer_norm.forward(words, rows, None);
        Noise::drop(noise, x, self.dropout)
    }
}

/// The dense layer from the embeddings' width to the encoder's, where they differ.
pub(crate) fn load_projection(
    config: &ModelConfig,
    source: &mut dyn WeightSource,
    device: &Device,
) -> Result<Option<Linear>> {
    if config.embedding_size == config.hidden_size {
        return Ok(None);
    }
    Linear::load(source, "embeddings_project", config.hidden_size, config.embedding_size, device).map(Some)
}
