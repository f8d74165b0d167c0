//! `y = x W + b`, the operation in which nearly all of a model's time and bytes are spent.

use burn::module::{Module, Param};
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor, TensorData};

use super::weights::{WeightSource, transposed};
use crate::error::Result;

/// A dense layer. Files hold its weight as `[out, in]`; in memory it is `[in, out]`, as Burn multiplies.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    /// Takes `name.weight` (`[out, in]`) and `name.bias` (`[out]`).
    pub(crate) fn load(
        source: &mut dyn WeightSource,
        name: &str,
        outputs: usize,
        inputs: usize,
        device: &Device,
    ) -> Result<Self> {
        let weight = source.take(&format!("{name}.weight"), &[outputs, inputs])?;
        let weight = TensorData::new(transposed(&weight, outputs, inputs), [inputs, outputs]);
        Ok(Linear {
            weight: Param::from_tensor(Tensor::from_data(weight, device)),
            bias: load_vector(source, &format!("{name}.bias"), outputs, device)?,
        })
    }

    /// `[.., in] -> [.., out]`
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        linear(x, self.weight.val(), Some(self.bias.val()))
    }
}

/// Takes a vector of `width` values.
pub(crate) fn load_vector(
    source: &mut dyn WeightSource,
    name: &str,
    width: usize,
    device: &Device,
) -> Result<Param<Tensor<1>>> {
    let data = TensorData::new(source.take(name, &[width])?, [width]);
    Ok(Param::from_tensor(Tensor::from_data(data, device)))
}
