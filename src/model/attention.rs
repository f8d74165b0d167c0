//! Multi-head self-attention (Vaswani et al. 2017), as BERT lays it out.

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

use super::config::ModelConfig;
#[cfg(feature = "autodiff")]
use super::fused;
use super::linear::Linear;
use super::noise::Noise;
use super::norm::Norm;
use super::weights::WeightSource;
use super::{HiddenState, Observe};
use crate::batch::Batch;
use crate::error::Result;

/// What of a batch is padding.
pub(crate) struct Padding {
    /// Tokens of each sequence, padding not counted.
    #[cfg(feature = "autodiff")]
    lengths: Vec<usize>,
    /// What is added to the scores, `[batch, 1, 1, seq]`; none where nothing is padded.
    mask: Option<Tensor<4>>,
}

impl Padding {
    pub(super) fn of(batch: &Batch, device: &Device) -> Self {
        Padding {
            #[cfg(feature = "autodiff")]
            lengths: batch.lengths().to_vec(),
            mask: batch.score_mask(device),
        }
    }
}

/// Attention with its output projection, residual and layer norm.
#[derive(Module, Debug)]
pub struct Attention {
    self_attention: SelfAttention,
    output: Residual,
}

/// The three projections and the product of queries, keys and values.
#[derive(Module, Debug)]
pub struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    dropout: f64,
    num_heads: usize,
}

/// A projection whose result is added to the block's input and normalised.
#[derive(Module, Debug)]
pub struct Residual {
    dense: Linear,
    layer_norm: Norm,
    dropout: f64,
}

impl Attention {
    pub(crate) fn load(
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        name: &str,
        device: &Device,
    ) -> Result<Self> {
        let h = config.hidden_size;
        let mut projection = |part: &str| Linear::load(source, &format!("{name}.self.{part}"), h, h, device);
        let (query, key, value) = (projection("query")?, projection("key")?, projection("value")?);
        Ok(Attention {
            self_attention: SelfAttention {
                query,
                key,
                value,
                dropout: config.attention_probs_dropout_prob,
                num_heads: config.num_attention_heads,
            },
            output: Residual::load(config, source, &format!("{name}.output"), h, device)?,
        })
    }

    #[cfg(feature = "autodiff")]
    pub(super) fn linears(&mut self) -> [&mut Linear; 4] {
        let SelfAttention { query, key, value, .. } = &mut self.self_attention;
        [query, key, value, &mut self.output.dense]
    }

    /// `x` `[batch, seq, hidden]` -> `[batch, seq, hidden]`
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        padding: &Padding,
        number: usize,
        noise: &mut Option<Noise>,
        observe: &mut Observe,
    ) -> Result<Tensor<3>> {
        let context = self.self_attention.forward(x.clone(), padding, number, noise, observe)?;
        Ok(self.output.forward(context, x, noise))
    }
}

impl SelfAttention {
    fn forward(
        &self,
        x: Tensor<3>,
        padding: &Padding,
        number: usize,
        noise: &mut Option<Noise>,
        observe: &mut Observe,
    ) -> Result<Tensor<3>> {
        let [batch, seq, hidden] = x.dims();
        #[cfg(feature = "autodiff")]
        if let Some(kernel) = fused::kernel(&x) {
            let qkv = Linear::side_by_side([&self.query, &self.key, &self.value], kernel, x); // [batch, seq, 3 * hidden]
            for (part, state) in [HiddenState::Query, HiddenState::Key, HiddenState::Value].into_iter().enumerate() {
                observe(state(number), &qkv.clone().narrow(2, part * hidden, hidden))?;
            }
            let dropout = Noise::dropout(noise, self.dropout);
            return Ok(fused::attention(kernel, qkv, self.num_heads, &padding.lengths, dropout));
        }
        let width = hidden / self.num_heads;
        let heads = |x: Tensor<3>| -> Tensor<4> {
            x.reshape([batch, seq, self.num_heads, width]).swap_dims(1, 2) // [batch, heads, seq, width]
        };
        let (query, key) = (self.query.forward(x.clone()), self.key.forward(x.clone())); // [batch, seq, hidden]
        let value = self.value.forward(x);
        observe(HiddenState::Query(number), &query)?;
        observe(HiddenState::Key(number), &key)?;
        observe(HiddenState::Value(number), &value)?;
        let (query, key, value) = (heads(query / (width as f64).sqrt()), heads(key), heads(value));
        let mut scores = query.matmul(key.swap_dims(2, 3)); // [batch, heads, seq, seq]
        if let Some(mask) = &padding.mask {
            let dtype = scores.dtype();
            scores = scores + mask.clone().cast(dtype);
        }
        let weights = Noise::drop(noise, softmax(scores, 3), self.dropout);
        let context = weights.matmul(value); // [batch, heads, seq, width]
        Ok(context.swap_dims(1, 2).reshape([batch, seq, hidden]))
    }
}

impl Residual {
    pub(crate) fn load(
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        name: &str,
        inputs: usize,
        device: &Device,
    ) -> Result<Self> {
        let h = config.hidden_size;
        Ok(Residual {
            dense: Linear::load(source, &format!("{name}.dense"), h, inputs, device)?,
            layer_norm: Norm::load(source, &format!("{name}.LayerNorm"), h, config, device)?,
            dropout: config.hidden_dropout_prob,
        })
    }

    #[cfg(feature = "autodiff")]
    pub(super) fn linear(&mut self) -> &mut Linear {
        &mut self.dense
    }

    /// `x` `[batch, seq, in]`, `input` `[batch, seq, hidden]` -> `[batch, seq, hidden]`
    pub(crate) fn forward(&self, x: Tensor<3>, input: Tensor<3>, noise: &mut Option<Noise>) -> Tensor<3> {
        let dropout = Noise::dropout(noise, self.dropout);
        self.layer_norm.forward(self.dense.forward(x), input, dropout)
    }
}
