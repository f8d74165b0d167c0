//! The arms of 64-bit ARM, which differ in how they multiply integers.

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::VECTORS;
use super::simd::{Dot, Simd, Sums, dot_lanes};

/// NEON, which every 64-bit ARM has.
pub(super) struct Neon<P>(PhantomData<P>);

/// How integers are multiplied.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Products: Sized {
    /// As in [`Simd`].
    const ROWS: usize;
    /// As in [`Simd`].
    const GROUP: usize;
    /// As in [`Simd`].
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        start: *const i32,
        sums: &mut Sums<int32x4_t>,
    );
}

/// Outputs of a panel.
const WIDE: usize = 4 * VECTORS;

/// By the instructions of all: Cortex-A53 and A72.
pub(super) struct Multiply;

impl Products for Multiply {
    const ROWS: usize = 2;
    const GROUP: usize = 16;

    #[inline(always)]
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        _: *const i32,
        sums: &mut Sums<int32x4_t>,
    ) {
        unsafe {
            // A register is one output, its lanes the parts of its sum.
            let mut acc = [[vdupq_n_s32(0); WIDE]; R];
            for g in 0..groups {
                let x: [int8x16_t; R] = std::array::from_fn(|r| vld1q_s8(x.add(r * stride + 16 * g)));
                for c in 0..WIDE {
                    let w = vld1q_s8(panel.add((g * WIDE + c) * 16));
                    for (acc, &x) in acc.iter_mut().zip(&x) {
                        // Two products to a lane of 16 bits: at most 2 * 127 * 127 = 32,258.
                        let pairs = vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(x)), w, x);
                        acc[c] = vpadalq_s16(acc[c], pairs);
                    }
                }
            }
            for (sums, acc) in sums.iter_mut().zip(&acc) {
                for (sums, a) in sums.iter_mut().zip(acc.chunks(4)) {
                    *sums = vpaddq_s32(vpaddq_s32(a[0], a[1]), vpaddq_s32(a[2], a[3]));
                }
            }
        }
    }
}

/// By `sdot` (Armv8.2 dot product): Cortex-A55, A76 and later.
pub(super) struct DotProduct;

impl Products for DotProduct {
    const ROWS: usize = 8;
    const GROUP: usize = 4;

    #[inline(always)]
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        start: *const i32,
        sums: &mut Sums<int32x4_t>,
    ) {
        unsafe { dot_lanes::<Neon<DotProduct>, R>(x, stride, panel, groups, start, sums) }
    }
}

impl Dot for Neon<DotProduct> {
    type W = int8x16_t;
    type X = int8x16_t;

    #[inline(always)]
    unsafe fn load_weights(at: *const i8) -> int8x16_t {
        unsafe { vld1q_s8(at) }
    }
    #[inline(always)]
    unsafe fn load_ints(at: *const i32) -> int32x4_t {
        unsafe { vld1q_s32(at) }
    }
    #[inline(always)]
    unsafe fn spread(at: *const i8) -> int8x16_t {
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(at.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // `vdotq_s32` is unstable.
        unsafe {
            asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) w, in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sum
    }
}

/// By `smmla` (Armv8.6 i8mm): Cortex-A510, A710 and later, Apple M2 and later.
pub(super) struct MatrixProduct;

impl Products for MatrixProduct {
    const ROWS: usize = 8;
    const GROUP: usize = 8;

    #[inline(always)]
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        _: *const i32,
        sums: &mut Sums<int32x4_t>,
    ) {
        unsafe {
            // Two rows by two outputs in a register; an odd last row is its own partner.
            let mut acc = [[vdupq_n_s32(0); WIDE / 2]; 4];
            for g in 0..groups {
                let w: [int8x16_t; WIDE / 2] = std::array::from_fn(|c| vld1q_s8(panel.add((g * WIDE + 2 * c) * 8)));
                for (pair, acc) in acc.iter_mut().enumerate().take(R.div_ceil(2)) {
                    let (one, two) = (2 * pair, (2 * pair + 1).min(R - 1));
                    let x = vcombine_s8(vld1_s8(x.add(one * stride + 8 * g)), vld1_s8(x.add(two * stride + 8 * g)));
                    for (acc, &w) in acc.iter_mut().zip(&w) {
                        // `vmmlaq_s32` is unstable.
                        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) *acc, in(vreg) x, in(vreg) w,
                            options(pure, nomem, nostack, preserves_flags));
                    }
                }
            }
            for (sums, acc) in sums.chunks_mut(2).zip(&acc) {
                for (v, a) in acc.chunks(2).enumerate() {
                    sums[0][v] = vcombine_s32(vget_low_s32(a[0]), vget_low_s32(a[1]));
                    sums[1][v] = vcombine_s32(vget_high_s32(a[0]), vget_high_s32(a[1]));
                }
            }
        }
    }
}

impl<P: Products> Simd for Neon<P> {
    const LANES: usize = 4;
    const ROWS: usize = P::ROWS;
    const FLOAT_ROWS: usize = 8;
    const GROUP: usize = P::GROUP;
    const ACTIVATION_OFFSET: i32 = 0;
    type F = float32x4_t;
    type I = int32x4_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(at) }
    }
    #[inline(always)]
    unsafe fn store(x: float32x4_t, at: *mut f32) {
        unsafe { vst1q_f32(at, x) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const f32, n: usize) -> float32x4_t {
        let mut some = [0.0; 4];
        unsafe {
            at.copy_to_nonoverlapping(some.as_mut_ptr(), n);
            vld1q_f32(some.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_some(x: float32x4_t, at: *mut f32, n: usize) {
        let mut all = [0.0; 4];
        unsafe {
            vst1q_f32(all.as_mut_ptr(), x);
            all.as_ptr().copy_to_nonoverlapping(at, n);
        }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vsubq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: float32x4_t) -> float32x4_t {
        unsafe { vabsq_f32(a) }
    }
    #[inline(always)]
    unsafe fn sum(a: float32x4_t) -> f32 {
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: float32x4_t) -> f32 {
        unsafe { vmaxvq_f32(a) }
    }
    #[inline(always)]
    unsafe fn round(a: float32x4_t) -> int32x4_t {
        unsafe { vcvtnq_s32_f32(a) }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: int32x4_t) -> float32x4_t {
        unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))) }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(x) }
    }
    #[inline(always)]
    unsafe fn to_float(a: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    unsafe fn store_integers(a: int32x4_t, at: *mut i8) {
        unsafe {
            let words = vmovn_s32(a);
            let bytes = vmovn_s16(vcombine_s16(words, words));
            at.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)));
        }
    }
    #[inline(always)]
    unsafe fn dot_tile<const R: usize>(
        x: *const i8,
        stride: usize,
        panel: *const i8,
        groups: usize,
        start: *const i32,
        sums: &mut Sums<int32x4_t>,
    ) {
        unsafe { P::dot_tile::<R>(x, stride, panel, groups, start, sums) }
    }
}
