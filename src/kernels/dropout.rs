//! Dropout (Srivastava et al. 2014) as a function of a seed and a value's place, so that the way back draws again what the way there
//! drew, and no mask is kept.

/// The step of splitmix64 (Steele et al. 2014).
pub(crate) const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Its output function.
#[inline(always)]
pub(crate) fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Which values are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    seed: u64,
    threshold: u16,
    keep: f32,
}

/// Words drawn together: each is four numbers of 16 bits, which go to places as far apart, so that vectors hold neighbours.
const WORDS: usize = 16;

impl Dropout {
    /// Each value with `probability`, to within 2^-16, below 1.
    pub fn new(seed: u64, probability: f64) -> Self {
        let threshold = (probability * 65536.0).round().min(65535.0) as u16;
        Dropout { seed, threshold, keep: (1.0 / (1.0 - probability)) as f32 }
    }

    /// What the values of row number `row` are multiplied by: 0, or what keeps the mean.
    #[inline(always)]
    pub fn factors(self, row: usize, factors: &mut [f32]) {
        let mut at = (row * factors.len().div_ceil(4 * WORDS) * WORDS) as u64;
        let mut words = [0; WORDS];
        for block in factors.chunks_mut(4 * WORDS) {
            for word in &mut words {
                at += 1;
                *word = mix(self.seed.wrapping_add(at.wrapping_mul(STEP)));
            }
            for (quarter, part) in block.chunks_mut(WORDS).enumerate() {
                for (factor, word) in part.iter_mut().zip(&words) {
                    *factor = if (word >> (16 * quarter)) as u16 >= self.threshold { self.keep } else { 0.0 };
                }
            }
        }
    }
}
