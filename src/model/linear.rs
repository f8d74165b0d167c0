//! `y = x W + b`, the operation in which nearly all of a model's time and bytes are spent.

use burn::module::{Module, Param};
use burn::tensor::activation::gelu;
use burn::tensor::module::linear;
use burn::tensor::{Device, Tensor, TensorData};

#[cfg(feature = "autodiff")]
use super::fused;
use super::weights::{WeightSource, transposed};
use crate::error::Result;
#[cfg(feature = "autodiff")]
use crate::kernels::Kernel;

/// A dense layer. Files hold its weight as `[out, in]`; in memory it is `[in, out]`, as Burn multiplies.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[in, out]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    rounded: Rounded,
}

/// What a layer in training computes with as if it were in int8 ([`fake_quantize`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rounded {
    #[default]
    Nothing,
    #[cfg(feature = "autodiff")]
    Weights,
    /// As where integers are multiplied.
    #[cfg(feature = "autodiff")]
    WeightsAndInputs,
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
            rounded: Rounded::Nothing,
        })
    }

    #[cfg(feature = "autodiff")]
    pub(super) fn round(&mut self, rounded: Rounded) {
        self.rounded = rounded;
    }

    /// `[.., in] -> [.., out]`
    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (x, (weight, bias)) = (self.input(x), self.parameters());
        #[cfg(feature = "autodiff")]
        if let Some(kernel) = fused::kernel(&x) {
            return fused::linear::<D, 3>(kernel, x, vec![(weight, bias)], false);
        }
        linear(x, weight, Some(bias))
    }

    /// The same, then gelu.
    pub(crate) fn forward_gelu<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let (x, (weight, bias)) = (self.input(x), self.parameters());
        #[cfg(feature = "autodiff")]
        if let Some(kernel) = fused::kernel(&x) {
            return fused::linear::<D, 3>(kernel, x, vec![(weight, bias)], true);
        }
        gelu(linear(x, weight, Some(bias)))
    }

    /// What three layers that read the same give, side by side: `[.., in] -> [.., 3 * out]`.
    #[cfg(feature = "autodiff")]
    pub(super) fn side_by_side<const D: usize>(layers: [&Linear; 3], kernel: Kernel, x: Tensor<D>) -> Tensor<D> {
        let parts = layers.map(Linear::parameters).to_vec();
        fused::linear::<D, 7>(kernel, layers[0].input(x), parts, false)
    }

    /// `x`, rounded where it is.
    fn input<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.rounded {
            #[cfg(feature = "autodiff")]
            Rounded::WeightsAndInputs => fake_quantize(x, D - 1),
            _ => x,
        }
    }

    /// The weight, rounded where it is, and the bias.
    fn parameters(&self) -> (Tensor<2>, Tensor<1>) {
        let weight = match self.rounded {
            Rounded::Nothing => self.weight.val(),
            #[cfg(feature = "autodiff")]
            _ => fake_quantize(self.weight.val(), 0),
        };
        (weight, self.bias.val())
    }
}

/// `x` as int8 would have it, each row along `dim` by itself, to within a unit in the last place: as the
/// [integer contract](crate::bundle#the-integer-contract) says. The gradient passes as if nothing had been rounded (Bengio et al. 2013;
/// Jacob et al. 2018).
#[cfg(feature = "autodiff")]
pub(super) fn fake_quantize<const D: usize>(x: Tensor<D>, dim: usize) -> Tensor<D> {
    let exact = x.clone().detach();
    let (integers, scales) = quantize(exact.clone(), dim);
    x + (integers * scales - exact)
}

/// The integers of each row along `dim`, and its scale.
#[cfg(feature = "autodiff")]
fn quantize<const D: usize>(x: Tensor<D>, dim: usize) -> (Tensor<D>, Tensor<D>) {
    let scales = x.clone().abs().max_dim(dim) / 127.0;
    let is_tiny = scales.clone().lower_elem(f32::MIN_POSITIVE);
    let scales = scales.mask_fill(is_tiny, 1.0);
    ((x * scales.clone().recip()).round(), scales)
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

#[cfg(all(test, feature = "autodiff"))]
mod tests {
    use super::*;
    use crate::bundle::quantize_rows;
    use crate::kernels::{Kernel, Matrix, Packed, Scratch};
    use crate::model::Noise;

    fn values(count: usize, seed: u64, scale: f32) -> Vec<f32> {
        let mut noise = Noise::new(seed);
        (0..count).map(|_| ((noise.next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale).collect()
    }

    fn tensor(data: &[f32], columns: usize) -> Tensor<2> {
        let shape = [data.len() / columns, columns];
        Tensor::from_data(TensorData::new(data.to_vec(), shape), &Device::flex())
    }

    fn floats<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().try_into_vec::<f32>().unwrap()
    }

    #[test]
    fn training_rounds_to_the_integers_of_the_contract() {
        let columns = 67;
        let mut rows: Vec<f32> = (0..40).flat_map(|i| values(columns, i, 10f32.powi(i as i32 - 20))).collect();
        rows.extend([vec![0.0; columns], vec![1e-40; columns], vec![-f32::MAX / 2.0; columns]].concat());
        // Halves, which go to the even neighbour.
        rows.extend((0..columns).map(|i| if i == 0 { 127.0 } else { i as f32 - 33.5 }));
        let (expected, scales) = quantize_rows(&rows, columns);
        let (integers, found) = quantize(tensor(&rows, columns), 1);
        assert_eq!(floats(integers), expected.iter().map(|&q| f32::from(q)).collect::<Vec<_>>());
        assert_eq!(floats(found), scales);
    }

    #[test]
    fn a_layer_in_training_is_the_kernels_int8_layer() {
        let (rows, inputs, outputs) = (9, 131, 37);
        let (x, weight) = (values(rows * inputs, 1, 3.0), values(outputs * inputs, 2, 0.2));
        let bias = values(outputs, 3, 1.0);
        let mut layer = Linear {
            weight: Param::from_tensor(tensor(&transposed(&weight, outputs, inputs), outputs)),
            bias: Param::from_tensor(Tensor::from_data(TensorData::new(bias.clone(), [outputs]), &Device::flex())),
            rounded: Rounded::Nothing,
        };
        layer.round(Rounded::WeightsAndInputs);
        let found = floats(layer.forward(tensor(&x, inputs)));
        let (integers, scales) = quantize_rows(&weight, inputs);
        for kernel in Kernel::available() {
            let packed = Packed::new(kernel, &Matrix::Int8(vec![(&integers, &scales)]), inputs, &bias);
            let mut expected = vec![0.0; rows * outputs];
            packed.apply(&x, None, &mut Scratch::default(), &mut expected);
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-5, "{kernel:?}: {difference}");
        }
    }

    #[test]
    fn gradients_pass_as_if_nothing_had_been_rounded() {
        let x = tensor(&values(6, 4, 1.0), 3).autodiff().require_grad();
        let by = tensor(&values(6, 5, 1.0), 3);
        let loss = (fake_quantize(x.clone(), 1) * by.clone().autodiff()).sum();
        assert_eq!(floats(x.grad(&loss.backward()).unwrap()), floats(by));
    }
}
