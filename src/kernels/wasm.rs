//! The arm of WebAssembly with 128-bit vectors, which a module has or has not: nothing is detected while it runs.

use std::arch::wasm32::*;

use super::VECTORS;
use super::simd::{Simd, Sums};

/// `simd128`.
pub(super) struct Simd128;

/// Outputs of a panel.
const WIDE: usize = 4 * VECTORS;

impl Simd for Simd128 {
    const LANES: usize = 4;
    const ROWS: usize = 2;
    const FLOAT_ROWS: usize = 4;
    const GROUP: usize = 8;
    const ACTIVATION_OFFSET: i32 = 0;
    type F = v128;
    type I = v128;

    #[inline(always)]
    unsafe fn splat(x: f32) -> v128 {
        f32x4_splat(x)
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> v128 {
        unsafe { v128_load(at.cast()) }
    }
    #[inline(always)]
    unsafe fn store(x: v128, at: *mut f32) {
        unsafe { v128_store(at.cast(), x) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const f32, n: usize) -> v128 {
        let mut some = [0f32; 4];
        unsafe {
            at.copy_to_nonoverlapping(some.as_mut_ptr(), n);
            v128_load(some.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn store_some(x: v128, at: *mut f32, n: usize) {
        let mut all = [0f32; 4];
        unsafe {
            v128_store(all.as_mut_ptr().cast(), x);
            all.as_ptr().copy_to_nonoverlapping(at, n);
        }
    }
    #[inline(always)]
    unsafe fn add(a: v128, b: v128) -> v128 {
        f32x4_add(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: v128, b: v128) -> v128 {
        f32x4_sub(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: v128, b: v128) -> v128 {
        f32x4_mul(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: v128, b: v128) -> v128 {
        f32x4_div(a, b)
    }
    #[inline(always)]
    unsafe fn mul_add(a: v128, b: v128, c: v128) -> v128 {
        f32x4_add(f32x4_mul(a, b), c)
    }
    #[inline(always)]
    unsafe fn max(a: v128, b: v128) -> v128 {
        f32x4_pmax(b, a)
    }
    #[inline(always)]
    unsafe fn min(a: v128, b: v128) -> v128 {
        f32x4_pmin(b, a)
    }
    #[inline(always)]
    unsafe fn abs(a: v128) -> v128 {
        f32x4_abs(a)
    }
    #[inline(always)]
    unsafe fn sum(a: v128) -> f32 {
        let pairs = f32x4_add(a, i32x4_shuffle::<2, 3, 0, 1>(a, a));
        f32x4_extract_lane::<0>(pairs) + f32x4_extract_lane::<1>(pairs)
    }
    #[inline(always)]
    unsafe fn largest(a: v128) -> f32 {
        let pairs = f32x4_pmax(a, i32x4_shuffle::<2, 3, 0, 1>(a, a));
        f32x4_extract_lane::<0>(f32x4_pmax(pairs, i32x4_shuffle::<1, 0, 3, 2>(pairs, pairs)))
    }
    #[inline(always)]
    unsafe fn round(a: v128) -> v128 {
        i32x4_trunc_sat_f32x4(f32x4_nearest(a))
    }
    #[inline(always)]
    unsafe fn power_of_two(n: v128) -> v128 {
        i32x4_shl(i32x4_add(n, i32x4_splat(127)), 23)
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> v128 {
        i32x4_splat(x)
    }
    #[inline(always)]
    unsafe fn to_float(a: v128) -> v128 {
        f32x4_convert_i32x4(a)
    }
    #[inline(always)]
    unsafe fn store_integers(a: v128, at: *mut i8) {
        let words = i16x8_narrow_i32x4(a, a);
        unsafe { v128_store32_lane::<0>(i8x16_narrow_i16x8(words, words), at.cast()) }
    }
    #[inline(always)]
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        _: *const i32,
        sums: &mut Sums<v128>,
    ) {
        unsafe {
            // A register is one output, its lanes the parts of its sum.
            let mut acc = [[i32x4_splat(0); WIDE]; R];
            for g in 0..groups {
                let x: [v128; R] = std::array::from_fn(|r| i16x8_load_extend_i8x8(x.add(r * stride + 8 * g)));
                for c in 0..WIDE {
                    let w = i16x8_load_extend_i8x8(panel.add((g * WIDE + c) * 8));
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        acc[c] = i32x4_add(acc[c], i32x4_dot_i16x8(w, x));
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(&acc) {
                for (sums, a) in sums.iter_mut().zip(acc.chunks(4)) {
                    let [one, two] = [[a[0], a[1]], [a[2], a[3]]]
                        .map(|[a, b]| i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(a, b), i32x4_shuffle::<1, 3, 5, 7>(a, b)));
                    *sums = i32x4_add(i32x4_shuffle::<0, 2, 4, 6>(one, two), i32x4_shuffle::<1, 3, 5, 7>(one, two));
                }
            }
        }
    }
}
