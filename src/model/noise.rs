//! Dropout (Srivastava et al. 2014), from a seed that the trainer gives for each step.
//!
//! Burn's own draws from one generator of the process, so steps computed side by side could not be repeated.

use burn::tensor::{Tensor, TensorData};

#[cfg(feature = "autodiff")]
use super::fused;
use crate::kernels::{Dropout, STEP, mix};

/// The random numbers of one forward pass in training. Without one, nothing is dropped.
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The noise that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Noise(seed)
    }

    /// splitmix64 (Steele et al. 2014)
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// The next dropout of `probability`, to within 2^-16.
    pub(super) fn dropout(noise: &mut Option<Noise>, probability: f64) -> Option<Dropout> {
        let noise = noise.as_mut().filter(|_| probability > 0.0)?;
        Some(Dropout::new(noise.next(), probability))
    }

    /// Zeroes each value with `probability` and scales the others so that the mean stays.
    pub(super) fn drop<const D: usize>(noise: &mut Option<Noise>, x: Tensor<D>, probability: f64) -> Tensor<D> {
        let Some(dropout) = Noise::dropout(noise, probability) else { return x };
        #[cfg(feature = "autodiff")]
        if let Some(kernel) = fused::kernel(&x) {
            return fused::drop(kernel, x, dropout);
        }
        dropped(dropout, x)
    }
}

/// `x` without what `dropout` drops of its rows along the last dimension.
pub(super) fn dropped<const D: usize>(dropout: Dropout, x: Tensor<D>) -> Tensor<D> {
    let (shape, device) = (x.shape(), x.device());
    let mut factors = vec![0.0; shape.num_elements()];
    for (row, factors) in factors.chunks_mut(x.dims()[D - 1].max(1)).enumerate() {
        dropout.factors(row, factors);
    }
    x * Tensor::from_data(TensorData::new(factors, shape), &device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn as_many_values_are_dropped_as_asked_for_and_the_mean_stays() {
        let ones = || Tensor::<1>::ones([40_001], &Device::flex());
        let values = |seed| {
            let x = Noise::drop(&mut Some(Noise::new(seed)), ones(), 0.1);
            x.into_data().try_into_vec::<f32>().unwrap()
        };
        let found = values(1);
        let dropped = found.iter().filter(|&&x| x == 0.0).count() as f64 / 40_001.0;
        assert!((dropped - 0.1).abs() < 0.006, "{dropped}");
        assert!(found.iter().all(|&x| x == 0.0 || (x - 1.0 / 0.9).abs() < 1e-6));
        assert_eq!(found, values(1));
        assert_ne!(found, values(2));
        let kept = Noise::drop(&mut None, ones(), 0.1);
        assert_eq!(kept.into_data().try_into_vec::<f32>().unwrap(), vec![1.0; 40_001]);
    }

    /// Of neighbours, in a row and in a column, as many are dropped together as chance has it: one in a hundred.
    #[test]
    fn whether_a_value_is_dropped_says_nothing_of_its_neighbours() {
        for width in [7, 64, 200] {
            let x = Tensor::<2>::ones([100_000 / width, width], &Device::flex());
            let x = Noise::drop(&mut Some(Noise::new(1)), x, 0.1).into_data().try_into_vec::<f32>().unwrap();
            for apart in [1, 16, width] {
                let both = x.iter().zip(&x[apart..]).filter(|&(&a, &b)| a == 0.0 && b == 0.0).count();
                assert!((both as f64 / x.len() as f64 - 0.01).abs() < 0.0015, "{width}, {apart}: {both}");
            }
        }
    }
}
