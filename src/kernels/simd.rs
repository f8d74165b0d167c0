//! What the kernels' bodies ask of an instruction set.

use super::VECTORS;

/// The most rows of any tile.
pub(super) const MAX_ROWS: usize = 8;

/// Sums of rows with a panel.
pub(super) type Sums<I> = [[I; VECTORS]; MAX_ROWS];

/// One instruction set's vectors, of `LANES` values of 32 bits.
///
/// # Safety
/// Every function needs a processor with the instructions of the implementing arm, and pointers that are valid for what they load
/// or store, at any alignment. All implementations are `#[inline(always)]`, so that they end up inside the arm's
/// `#[target_feature]` functions.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Simd {
    /// Values of a vector.
    const LANES: usize;
    /// The most rows of a tile of integer products, and of one of floats: as many as keep all sums in registers.
    const ROWS: usize;
    const FLOAT_ROWS: usize;
    /// Weights of one output that stand together in a panel: 2, 4, 8 or 16.
    const GROUP: usize;
    /// Bytes of a quantized activation.
    const WIDTH: usize = 1;
    /// What is added to a quantized activation: 128 where the products take it unsigned, else 0.
    const ACTIVATION_OFFSET: i32;
    /// Floats.
    type F: Copy;
    /// 32-bit integers.
    type I: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(at: *const f32) -> Self::F;
    unsafe fn store(x: Self::F, at: *mut f32);
    /// The first `n` values, fewer than `LANES`; the others are zero.
    unsafe fn load_some(at: *const f32, n: usize) -> Self::F;
    /// The first `n` values, fewer than `LANES`.
    unsafe fn store_some(x: Self::F, at: *mut f32, n: usize);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the arm has such an instruction.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; where one is no number, `b` or that one: a value that may be none is the second.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, as with [`max`](Self::max).
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    unsafe fn sum(a: Self::F) -> f32;
    unsafe fn largest(a: Self::F) -> f32;
    /// To the nearest integer, halves to even, of magnitudes below 2^22.
    unsafe fn round(a: Self::F) -> Self::I;
    /// `2^n` for `n` in -126..=127.
    unsafe fn power_of_two(n: Self::I) -> Self::F;
    unsafe fn splat_int(x: i32) -> Self::I;
    unsafe fn to_float(a: Self::I) -> Self::F;
    /// Stores `LANES` values, all in -127..=127, as integers of [`WIDTH`](Self::WIDTH) bytes, with
    /// [`ACTIVATION_OFFSET`](Self::ACTIVATION_OFFSET).
    unsafe fn store_integers(a: Self::I, at: *mut i8);
    /// Sums of `R` rows of activations, `stride` apart, with a panel of `groups` groups: each the exact `start + Σ (x + ACTIVATION_OFFSET) · w`
    /// (modulo 2^32) for activations and weights in -127..=127. `start`, of a whole panel, is zero where the offset is.
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        start: *const i32,
        sums: &mut Sums<Self::I>,
    );
}

/// An instruction set that adds to each lane a few products of its own.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Dot: Simd {
    /// A group of weights in each lane.
    type W: Copy;
    /// The same group of activations in each lane.
    type X: Copy;

    unsafe fn load_weights(at: *const i8) -> Self::W;
    unsafe fn load_ints(at: *const i32) -> Self::I;
    /// A group of activations: four bytes.
    unsafe fn spread(at: *const i8) -> Self::X;
    /// Adds to each lane its products of weights and activations.
    unsafe fn dot(sum: Self::I, weights: Self::W, activations: Self::X) -> Self::I;
}

/// [`Simd::dot_tile`] where a lane is an output, and a group of its activations four bytes.
#[inline(always)]
pub(super) unsafe fn dot_lanes<S: Dot, const R: usize>(
    x: *const i8,
    stride: usize,
    panel: *const i8,
    groups: usize,
    start: *const i32,
    sums: &mut Sums<S::I>,
) {
    unsafe {
        let mut acc = [[S::splat_int(0); VECTORS]; R];
        if S::ACTIVATION_OFFSET != 0 {
            acc = [std::array::from_fn(|v| S::load_ints(start.add(v * S::LANES))); R];
        }
        for g in 0..groups {
            let w: [S::W; VECTORS] =
                std::array::from_fn(|v| S::load_weights(panel.add((g * VECTORS + v) * S::GROUP * S::LANES)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::spread(x.add(r * stride + 4 * g));
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = S::dot(*acc, w, x);
                }
            }
        }
        sums[..R].copy_from_slice(&acc);
    }
}
