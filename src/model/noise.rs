//! Dropout (Srivastava et al. 2014), from a seed that the trainer gives for each step.
//!
//! Burn's own draws from one generator of the process, so steps computed side by side could not be repeated.

use burn::tensor::{Tensor, TensorData};

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
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Zeroes each value with `probability`, to within 2^-16, and scales the others so that the mean stays.
    pub(super) fn drop<const D: usize>(noise: &mut Option<Noise>, x: Tensor<D>, probability: f64) -> Tensor<D> {
        let Some(noise) = noise.as_mut().filter(|_| probability > 0.0) else {
            return x;
        };
        let threshold = (probability * 65536.0).round() as u16;
        let keep = (1.0 / (1.0 - probability)) as f32;
        let shape = x.shape();
        let count = shape.num_elements();
        let mut mask = Vec::with_capacity(count.next_multiple_of(4));
        while mask.len() < count {
            let bits = noise.next();
            mask.extend([0, 16, 32, 48].map(|shift| if (bits >> shift) as u16 >= threshold { keep } else { 0.0 }));
        }
        mask.truncate(count);
        let device = x.device();
        x * Tensor::from_data(TensorData::new(mask, shape), &device)
    }
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
}
