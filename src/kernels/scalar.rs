//! The arm of every processor, and the oracle of the others.

use super::simd::{Dot, Simd, Sums, dot_lanes};

/// Eight lanes in arrays, which compilers turn into whatever vectors the target has.
pub(super) struct Scalar;

const LANES: usize = 8;

/// Adding and subtracting it rounds to an integer, halves to even, in the processor's own mode.
const ROUNDS: f32 = 12_582_912.0;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    const LANES: usize = LANES;
    const ROWS: usize = 2;
    const FLOAT_ROWS: usize = 4;
    const GROUP: usize = 4;
    const ACTIVATION_OFFSET: i32 = 0;
    type F = [f32; LANES];
    type I = [i32; LANES];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::F {
        unsafe { at.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(x: Self::F, at: *mut f32) {
        unsafe { at.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const f32, n: usize) -> Self::F {
        each(|i| if i < n { unsafe { at.add(i).read_unaligned() } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_some(x: Self::F, at: *mut f32, n: usize) {
        for (i, x) in x.into_iter().enumerate().take(n) {
            unsafe { at.add(i).write_unaligned(x) };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        each(|i| a[i].abs())
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::I {
        std::array::from_fn(|i| ((a[i] + ROUNDS) - ROUNDS) as i32)
    }
    #[inline(always)]
    unsafe fn power_of_two(n: Self::I) -> Self::F {
        each(|i| f32::from_bits(((n[i] + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn to_float(a: Self::I) -> Self::F {
        each(|i| a[i] as f32)
    }
    #[inline(always)]
    unsafe fn store_integers(a: Self::I, at: *mut i8) {
        unsafe { at.cast::<[i8; LANES]>().write_unaligned(a.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        start: *const i32,
        sums: &mut Sums<Self::I>,
    ) {
        unsafe { dot_lanes::<Self, R>(x, stride, panel, groups, start, sums) }
    }
}

impl Dot for Scalar {
    type W = [[i8; 4]; LANES];
    type X = [i8; 4];

    #[inline(always)]
    unsafe fn load_weights(at: *const i8) -> Self::W {
        unsafe { at.cast::<Self::W>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_ints(at: *const i32) -> Self::I {
        unsafe { at.cast::<Self::I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn spread(at: *const i8) -> Self::X {
        unsafe { at.cast::<Self::X>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, w: Self::W, x: Self::X) -> Self::I {
        let product = |i: usize, j: usize| i32::from(w[i][j]) * i32::from(x[j]);
        std::array::from_fn(|i| sum[i] + product(i, 0) + product(i, 1) + product(i, 2) + product(i, 3))
    }
}
