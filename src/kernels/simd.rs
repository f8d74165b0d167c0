//! What the kernels' bodies ask of an instruction set.

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
    /// What is added to a stored weight to make it the byte that [`Simd::dot`] takes: 128 where that is unsigned, else 0.
    const WEIGHT_OFFSET: i32;
    /// Floats.
    type F: Copy;
    /// 32-bit integers.
    type I: Copy;
    /// Four weights in each lane.
    type W: Copy;
    /// The same four activations in each lane.
    type X: Copy;

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
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    unsafe fn sum(a: Self::F) -> f32;
    unsafe fn largest(a: Self::F) -> f32;
    /// To the nearest integer, halves to even, of magnitudes below 2^22.
    unsafe fn round(a: Self::F) -> Self::I;
    /// `2^n` for `n` in -126..=127.
    unsafe fn power_of_two(n: Self::I) -> Self::F;
    unsafe fn splat_int(x: i32) -> Self::I;
    unsafe fn sub_int(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn to_float(a: Self::I) -> Self::F;
    /// Stores `LANES` values, all in -127..=127, as bytes.
    unsafe fn store_bytes(a: Self::I, at: *mut i8);
    unsafe fn load_weights(at: *const u8) -> Self::W;
    /// Four activations.
    unsafe fn spread(at: *const i8) -> Self::X;
    /// Adds to each lane its four products of weight and activation. Exact for activations in -127..=127 and weights in
    /// -127..=127 that were stored with their offset.
    unsafe fn dot(sum: Self::I, weights: Self::W, activations: Self::X) -> Self::I;
}
