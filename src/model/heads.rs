//! What stands on the encoder: a label for every token, or labels for the text.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::config::{ModelConfig, Task};
use super::encoder::activate;
use super::linear::Linear;
use super::noise::Noise;
use super::weights::WeightSource;
use crate::error::Result;
use crate::kernels::Activation;

/// The dense layers of a head, with dropout before each.
#[derive(Module, Debug)]
pub struct Head {
    pooler: Option<Pooler>,
    classifier: Linear,
    dropout: f64,
    #[module(skip)]
    pooler_act: Activation,
    /// RoBERTa and ELECTRA drop before their dense layer too; BERT and DistilBERT do not.
    drops_before_pooler: bool,
}

/// The dense layer over a text's first token. (BERT: `pooler`; DistilBERT: `pre_classifier`; RoBERTa and ELECTRA:
/// `classifier.dense`.)
#[derive(Module, Debug)]
pub struct Pooler {
    dense: Linear,
}

impl Head {
    pub(crate) fn load(config: &ModelConfig, source: &mut dyn WeightSource, device: &Device) -> Result<Option<Self>> {
        use super::config::ModelType::{Electra, Roberta};
        if config.task == Task::Encoder {
            return Ok(None);
        }
        let h = config.hidden_size;
        let pooler = match config.has_pooler() {
            true => Some(Pooler { dense: Linear::load(source, "pooler.dense", h, h, device)? }),
            false => None,
        };
        let probability = config.classifier_dropout.unwrap_or(config.hidden_dropout_prob);
        Ok(Some(Head {
            pooler,
            classifier: Linear::load(source, "classifier", config.id2label.len(), h, device)?,
            dropout: probability,
            pooler_act: config.pooler_act(),
            drops_before_pooler: matches!(config.model_type, Roberta | Electra),
        }))
    }

    #[cfg(feature = "autodiff")]
    pub(super) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.pooler.iter_mut().map(|pooler| &mut pooler.dense).chain([&mut self.classifier])
    }

    /// Token classification: hidden states `[batch, seq, hidden]` -> logits `[batch, seq, labels]`.
    /// Text classification: -> logits `[batch, 1, labels]`.
    pub(crate) fn forward(&self, hidden: Tensor<3>, noise: &mut Option<Noise>) -> Tensor<3> {
        let x = match &self.pooler {
            None => hidden,
            Some(pooler) => {
                let mut first = hidden.narrow(1, 0, 1); // [batch, 1, hidden]
                if self.drops_before_pooler {
                    first = Noise::drop(noise, first, self.dropout);
                }
                activate(self.pooler_act, pooler.dense.forward(first))
            }
        };
        self.classifier.forward(Noise::drop(noise, x, self.dropout))
    }
}
