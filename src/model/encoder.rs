//! The stack of transformer layers.

use burn::module::Module;
#[cfg(feature = "autodiff")]
use burn::tensor::TensorData;
use burn::tensor::activation::{gelu, gelu_approximate, relu, tanh};
use burn::tensor::{Device, Tensor};

use super::attention::{Attention, Residual};
use super::config::ModelConfig;
use super::linear::Linear;
use super::noise::Noise;
use super::weights::WeightSource;
use super::{HiddenState, Observe};
use crate::error::Result;
use crate::kernels::Activation;
#[cfg(feature = "autodiff")]
use crate::kernels::Kernel;

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

    /// `x` `[batch, seq, hidden]`, `mask` `[batch, 1, 1, seq]` -> `[batch, seq, hidden]`, of the layer of this number.
    pub(crate) fn forward(
        &self,
        x: Tensor<3>,
        mask: Option<&Tensor<4>>,
        number: usize,
        noise: &mut Option<Noise>,
        observe: &mut Observe,
    ) -> Result<Tensor<3>> {
        let x = self.attention.forward(x, mask, number, noise, observe)?;
        observe(HiddenState::Attention(number), &x)?;
        let wide = self.intermediate.dense.forward(x.clone()); // [batch, seq, intermediate]
        let wide = activate(self.intermediate.activation, wide);
        Ok(self.output.forward(wide, x, noise))
    }
}

pub(crate) fn activate<const D: usize>(activation: Activation, x: Tensor<D>) -> Tensor<D> {
    match activation {
        #[cfg(feature = "autodiff")]
        Activation::Gelu if x.is_autodiff() => gelu_in_training(x),
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_approximate(x),
        Activation::Relu => relu(x),
        Activation::Tanh => tanh(x),
    }
}

/// Burn's own computes an error function of each value, one at a time, and again on the way back. Here the kernels give every tangent at
/// once, which has the value and the derivative of the function itself.
#[cfg(feature = "autodiff")]
fn gelu_in_training<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let data = x.clone().inner().into_data();
    let (Ok(values), Some(kernel)) = (data.as_slice::<f32>(), Kernel::candidates().next()) else {
        return gelu(x);
    };
    let (slopes, offsets) = kernel.gelu_tangents(values);
    let (shape, device) = (x.shape(), x.device());
    let constant = |values| Tensor::from_data(TensorData::new(values, shape.clone()), &device);
    x * constant(slopes) + constant(offsets)
}
