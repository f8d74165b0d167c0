//! Multi-head self-attention (Vaswani et al. 2017), as BERT lays it out.

use burn::module::Module;
use burn::nn::LayerNorm;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor};

use super::config::ModelConfig;
use super::embeddings::load_layer_norm;
#[cfg(feature = "autodiff")]
use super::fused;
use super::linear::Linear;
use super::noise::{Noise, dropped};
use super::weights::WeightSource;
use super::{HiddenState, Observe};
use crate::error::Result;
use crate::kernels::Dropout;

/// What of a batch is padding.
pub(crate) struct Padding<'a> {
    /// Tokens of each sequence, padding not counted.
    pub(crate) lengths: &'a [usize],
    /// What is added to the scores, `[batch, 1, 1, seq]`; none where nothing is padded.
    pub(crate) mask: Option<Tensor<4>>,
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
    layer_norm: LayerNorm,
    epsilon: f64,
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
            return Ok(fused::attention(kernel, qkv, self.num_heads, padding.lengths, dropout));
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
            scores = scores + mask.clone();
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
            layer_norm: load_layer_norm(source, &format!("{name}.LayerNorm"), h, config, device)?,
            epsilon: config.layer_norm_eps,
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
        add_norm(self.dense.forward(x), input, dropout, &self.layer_norm, self.epsilon)
    }
}

/// The layer norm of `dropout(x) + residual`, all `[batch, seq, hidden]`.
pub(super) fn add_norm(
    x: Tensor<3>,
    residual: Tensor<3>,
    dropout: Option<Dropout>,
    norm: &LayerNorm,
    epsilon: f64,
) -> Tensor<3> {
    #[cfg(feature = "autodiff")]
    if let (Some(kernel), Some(beta)) = (fused::kernel(&x), &norm.beta) {
        return fused::add_norm(kernel, x, residual, dropout, [norm.gamma.val(), beta.val()], epsilon);
    }
    let x = match dropout {
        Some(dropout) => dropped(dropout, x),
        None => x,
    };
    norm.forward(x + residual)
}
