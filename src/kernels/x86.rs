//! The arms of x86-64.

use std::arch::x86_64::*;

use super::simd::{Dot, Simd, Sums, dot_lanes};

/// AVX-512 with VNNI: Ice Lake and later servers, Zen 4 and later.
pub(super) struct Avx512Vnni;

impl Simd for Avx512Vnni {
    const LANES: usize = 16;
    const ROWS: usize = 8;
    const FLOAT_ROWS: usize = 8;
    const GROUP: usize = 4;
    const ACTIVATION_OFFSET: i32 = 128;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(x: __m512, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, x) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps((1u16 << n) - 1, at) }
    }
    #[inline(always)]
    unsafe fn store_some(x: __m512, at: *mut f32, n: usize) {
        unsafe { _mm512_mask_storeu_ps(at, (1u16 << n) - 1, x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512i {
        unsafe { _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)))) }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_float(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn store_integers(a: __m512i, at: *mut i8) {
        unsafe { _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(_mm512_add_epi32(a, _mm512_set1_epi32(128)))) }
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

impl Dot for Avx512Vnni {
    type W = __m512i;
    type X = __m512i;

    #[inline(always)]
    unsafe fn load_weights(at: *const i8) -> __m512i {
        unsafe { _mm512_loadu_si512(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_ints(at: *const i32) -> __m512i {
        unsafe { _mm512_loadu_si512(at.cast()) }
    }
    #[inline(always)]
    unsafe fn spread(at: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32(at.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, x, w) }
    }
}

/// AVX2 with FMA: Haswell and later, Zen and later; or with AVX-VNNI too: Alder Lake and later, Zen 5 and later.
pub(super) struct Avx2<const VNNI: bool>;

/// As a mask of `n` leading lanes.
#[inline(always)]
unsafe fn leading(n: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: `n` is at most 8, so eight values follow.
    unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - n).cast()) }
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const LANES: usize = 8;
    // More would fit the registers, if the compiler kept all of them there.
    const ROWS: usize = 4;
    const FLOAT_ROWS: usize = 6;
    const GROUP: usize = if VNNI { 4 } else { 2 };
    const WIDTH: usize = if VNNI { 1 } else { 2 };
    const ACTIVATION_OFFSET: i32 = if VNNI { 128 } else { 0 };
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(x: __m256, at: *mut f32) {
        unsafe { _mm256_storeu_ps(at, x) }
    }
    #[inline(always)]
    unsafe fn load_some(at: *const f32, n: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(at, leading(n)) }
    }
    #[inline(always)]
    unsafe fn store_some(x: __m256, at: *mut f32, n: usize) {
        unsafe { _mm256_maskstore_ps(at, leading(n), x) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m256) -> __m256 {
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        unsafe {
            let x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: __m256) -> f32 {
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256i {
        unsafe {
            let a = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
            _mm256_cvttps_epi32(a)
        }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: __m256i) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))) }
    }
    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn to_float(a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn store_integers(a: __m256i, at: *mut i8) {
        unsafe {
            let words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256::<1>(a));
            if !VNNI {
                return _mm_storeu_si128(at.cast(), words);
            }
            let bytes = _mm_packs_epi16(words, words);
            // Adding 128 to a signed byte is flipping its highest bit.
            let flip = _mm_set1_epi8(Self::ACTIVATION_OFFSET as i8);
            _mm_storel_epi64(at.cast(), _mm_xor_si128(bytes, flip));
        }
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
        unsafe {
            match VNNI {
                true => dot_tile_vnni::<R>(x, stride, panel, groups, start, sums),
                false => dot_tile::<R>(x, stride, panel, groups, start, sums),
            }
        }
    }
}

/// A function of its own: with the constants of what follows in registers, one sum had none, and went through memory in each step.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn dot_tile<const R: usize>(
    x: *const i8,
    stride: usize,
    panel: *const i8,
    groups: usize,
    start: *const i32,
    sums: &mut Sums<__m256i>,
) {
    unsafe { dot_lanes::<Avx2<false>, R>(x, stride, panel, groups, start, sums) }
}

/// The same with AVX-VNNI.
#[inline(never)]
#[target_feature(enable = "avxvnni,avx2,fma")]
unsafe fn dot_tile_vnni<const R: usize>(
    x: *const i8,
    stride: usize,
    panel: *const i8,
    groups: usize,
    start: *const i32,
    sums: &mut Sums<__m256i>,
) {
    unsafe { dot_lanes::<Avx2<true>, R>(x, stride, panel, groups, start, sums) }
}

/// Without VNNI weights and activations are widened to 16 bits, so that the sums of two products that `vpmaddwd` gives are exact.
/// `vpmaddubsw`, of bytes, saturates unless a sign is taken from each activation and given to each weight: as many instructions, on the
/// ports that multiply.
impl<const VNNI: bool> Dot for Avx2<VNNI> {
    type W = __m256i;
    type X = __m256i;

    #[inline(always)]
    unsafe fn load_weights(at: *const i8) -> __m256i {
        unsafe { if VNNI { _mm256_loadu_si256(at.cast()) } else { _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())) } }
    }
    #[inline(always)]
    unsafe fn load_ints(at: *const i32) -> __m256i {
        unsafe { _mm256_loadu_si256(at.cast()) }
    }
    #[inline(always)]
    unsafe fn spread(at: *const i8) -> __m256i {
        unsafe { _mm256_set1_epi32(at.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        unsafe {
            if VNNI {
                return _mm256_dpbusd_avx_epi32(sum, x, w);
            }
            _mm256_add_epi32(sum, _mm256_madd_epi16(w, x))
        }
    }
}
