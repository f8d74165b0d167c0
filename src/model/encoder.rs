//! The stack of transformer layers.

use burn::module::Module;
use burn::tensor::activation::{gelu, gelu_approximate, relu, tanh};
use burn::tensor::{Device, Tensor};

use super::attention::{Attention, Padding, Residual};
use super::config::ModelConfig;
use super::linear::Linear;
use super::noise::Noise;
use super::weights::WeightSource;
use super::{HiddenState, Observe};
use crate::error::Result;
use crate::kernels::Activation;

/// All layers, first to last.
#[derive(Module, Debug)]
pub struct Encoder {
    pub(crate) layer: Vec<Layer>,
}

/// One transformer layer: attention, then a feed-forward block, each with residual and layer norm after it.
#[derive(Module, Debug)]
pub struct Layer {
    attention: Attention,
    intermediate: Intermediate,
    output: Residual,
}

/// The widening half of the feed-forward block.
#[derive(Module, Debug)]
pub struct Intermediate {
    dense: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Encoder {
    pub(crate) fn load(config: &ModelConfig, source: &mut dyn WeightSource, device: &Device) -> Result<Self> {
        let layer = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, source, &format!("encoder.layer.{i}"), device))
            .collect::<Result<_>>()?;
        Ok(Encoder { layer })
    }

    #[cfg(feature = "autodiff")]
    pub(super) fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.layer.iter_mut().flat_map(|layer| {
            let feed_forward = [&mut layer.intermediate.dense, layer.output.linear()];
            layer.attention.linears().into_iter().chain(feed_forward)
        })
    }
}

impl Layer {
    fn load(config: &ModelConfig, source: &mut dyn WeightSource, name: &str, device: &Device) -> Result<Self> {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        Ok(Layer {
            attention: Attention::load(config, source, &format!("{name}.attention"), device)?,
            intermediate: Intermediate {
                dense: Linear::load(source, &format!("{name}.intermediate.dense"), f, h, device)?,
                activation: config.hidden_act,
            },
            output: Residual::load(config, source, &format!("{name}.output"), f, device)?,
        })
    }

    /// `x` `[batch, seq, hidden]` -> `[batch, seq, hidden]`, of the layer of this number.
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        padding: &Padding,
        number: usize,
        noise: &mut Option<Noise>,
        observe: &mut Observe,
    ) -> Result<Tensor<3>> {
        let x = self.attention.forward(x, padding, number, noise, observe)?;
        observe(HiddenState::Attention(number), &x)?;
        let wide = match self.intermediate.activation {
            Activation::Gelu => self.intermediate.dense.forward_gelu(x.clone()),
            other => activate(other, self.intermediate.dense.forward(x.clone())),
        }; // [batch, seq, intermediate]
        Ok(self.output.forward(wide, x, noise))
    }
}

pub(crate) fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match activation {
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_approximate(x),
        Activation::Relu => relu(x),
        Activation::Tanh => tanh(x),
    }
}
