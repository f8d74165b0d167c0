//! The kernels' bodies, one for all arms.
//!
//! # Safety
//! Every function here needs the processor that [`Simd`]'s implementor needs, and slices of the lengths that its debug assertions
//! state; the callers in [`super`] check both.

use super::simd::{MAX_ROWS, Simd, Sums};
use super::{Activation, LinearArgs, Panels, VECTORS};

/// `2^n (1 + r q(r))`, the coefficients of `q` the highest first.
#[inline(always)]
unsafe fn power<S: Simd, const N: usize>(n: S::I, r: S::F, coefficients: [f32; N]) -> S::F {
    unsafe {
        let mut p = S::splat(coefficients[0]);
        for &c in &coefficients[1..] {
            p = S::mul_add(p, r, S::splat(c));
        }
        S::mul(S::mul_add(p, r, S::splat(1.0)), S::power_of_two(n))
    }
}

/// `e^x`, within 2 units in the last place of -87..=88 and held at the ends of that.
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let f = S::to_float(n);
        // ln 2 in two parts (Cody and Waite), so that the difference is nearly exact; the polynomial is Cephes' expf.
        let r = S::mul_add(f, S::splat(-0.693_359_4), x);
        let r = S::mul_add(f, S::splat(2.121_944_4e-4), r);
        power::<S, 7>(n, r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0])
    }
}

/// `2^x` for `x <= 0`, within 2e-7 of its size down to 2^-126 and held there. The polynomial is the best of its degree
/// (`scripts/polynomials.py`).
#[inline(always)]
#[allow(clippy::approx_constant)] // near ln 2, and not it
pub(super) unsafe fn exp2<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let x = S::max(S::splat(-126.0), x);
        let n = S::round(x);
        let r = S::sub(x, S::to_float(n));
        power::<S, 5>(n, r, [1.326_472_5e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1])
    }
}

/// `tanh(x) = 1 - 2 / (e^2x + 1)`.
#[inline(always)]
unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let e = exp::<S>(S::add(x, x));
        S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(e, S::splat(1.0))))
    }
}

/// `x/2 erfc(x / √2)` on 0..=[`GELU_END`] by powers of `2 x / GELU_END - 1`, the highest first: the best of its degree, within 3.4e-7
/// in f32 (`scripts/polynomials.py`).
const GELU: [f32; 17] = [
    -0.013_066_423,
    0.002_165_999_7,
    0.081_415_36,
    -0.046_013_79,
    -0.204_897,
    0.229_954_56,
    0.189_985_29,
    -0.496_812_67,
    0.208_051_25,
    0.377_654_67,
    -0.612_997,
    0.303_262_35,
    0.141_215_88,
    -0.303_601_95,
    0.200_931_85,
    -0.066_609_17,
    0.009_360_862,
];
const GELU_END: f32 = 5.4;

#[inline(always)]
unsafe fn activate<S: Simd>(activation: Option<Activation>, x: S::F) -> S::F {
    unsafe {
        match activation {
            None => x,
            Some(Activation::Gelu) => {
                // x Φ(x) is max(0, x) less |x|/2 erfc(|x| / √2), which is next to nothing from the end on.
                let size = S::min(S::splat(GELU_END), S::abs(x));
                let u = S::mul_add(size, S::splat(2.0 / GELU_END), S::splat(-1.0));
                let mut less = S::splat(GELU[0]);
                for &c in &GELU[1..] {
                    less = S::mul_add(less, u, S::splat(c));
                }
                S::sub(S::max(S::splat(0.0), x), less)
            }
            Some(Activation::GeluTanh) => {
                let cube = S::mul(S::mul(x, x), x);
                let half = S::mul(x, S::splat(0.5));
                let inner = S::mul(S::mul_add(cube, S::splat(0.044_715), x), S::splat(0.797_884_6));
                S::mul_add(half, tanh::<S>(inner), half)
            }
            Some(Activation::Relu) => S::max(S::splat(0.0), x),
            Some(Activation::Tanh) => tanh::<S>(x),
        }
    }
}

/// The derivative of gelu, and what that times `x` lacks of gelu: `x Φ(x) - x (Φ(x) + x φ(x)) = -x² φ(x)`. `Φ` is by Abramowitz and
/// Stegun's 7.1.26, within 1e-7, whose exponential `φ` shares. Gelu and its derivative are within 1e-6.
#[cfg(feature = "autodiff")]
#[inline(always)]
pub(super) unsafe fn gelu_tangent<S: Simd>(x: S::F) -> (S::F, S::F) {
    const TAIL: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    const SLOWER: f32 = 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2;
    unsafe {
        // Beyond 12 there is nothing left of `φ`.
        let x = S::max(S::splat(-12.0), S::min(S::splat(12.0), x));
        let (size, square) = (S::abs(x), S::mul(x, x));
        let bell = exp::<S>(S::mul(square, S::splat(-0.5)));
        let t = S::div(S::splat(1.0), S::mul_add(size, S::splat(SLOWER), S::splat(1.0)));
        let mut tail = S::splat(TAIL[0]);
        for &c in &TAIL[1..] {
            tail = S::mul_add(tail, t, S::splat(c));
        }
        // Φ(-|x|), then Φ(x) on its own side of a half.
        let tail = S::mul(S::mul(S::mul(tail, t), bell), S::splat(0.5));
        let side = S::div(x, S::max(S::splat(f32::MIN_POSITIVE), size));
        let cumulative = S::mul_add(side, S::sub(S::splat(0.5), tail), S::splat(0.5));
        let density = S::mul(bell, S::splat(0.398_942_3));
        (S::mul_add(x, density, cumulative), S::sub(S::splat(0.0), S::mul(square, density)))
    }
}

/// The values from `i` of a row of `n`, zero beyond its end.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(row: *const f32, i: usize, n: usize) -> S::F {
    unsafe { if n - i >= S::LANES { S::load(row.add(i)) } else { S::load_some(row.add(i), n - i) } }
}

/// The values from `i` of a row of `n`, nothing beyond its end.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(x: S::F, row: *mut f32, i: usize, n: usize) {
    unsafe { if n - i >= S::LANES { S::store(x, row.add(i)) } else { S::store_some(x, row.add(i), n - i) } }
}

/// The values of a row from `i` on, multiplied by their factors if there are any.
#[inline(always)]
unsafe fn scaled<S: Simd>(row: &[f32], factors: &[f32], i: usize) -> S::F {
    unsafe {
        let x = load::<S>(row.as_ptr(), i, row.len());
        if factors.is_empty() { x } else { S::mul(x, load::<S>(factors.as_ptr(), i, row.len())) }
    }
}

/// Quantizes one row as the [integer contract](crate::bundle#the-integer-contract) says and adds the activations' offset; `integers`
/// holds a whole number of vectors and of groups, and gets what meets zero weights beyond the row's end. Returns the scale, which is no
/// number where a value is none or infinite.
#[inline(always)]
unsafe fn quantize<S: Simd>(row: &[f32], factors: &[f32], integers: &mut [i8]) -> f32 {
    let n = row.len();
    debug_assert!(factors.is_empty() || factors.len() == n);
    debug_assert!(integers.len() >= n.next_multiple_of(S::LANES.max(S::GROUP)) * S::WIDTH);
    unsafe {
        let (mut most, mut zero) = (S::splat(0.0), S::splat(0.0));
        for i in (0..n).step_by(S::LANES) {
            let x = scaled::<S>(row, factors, i);
            most = S::max(most, S::abs(x));
            zero = S::mul_add(x, S::splat(0.0), zero);
        }
        let scale = S::largest(most) / 127.0;
        let scale = if scale < f32::MIN_POSITIVE { 1.0 } else { scale } + S::sum(zero);
        let by = S::splat(1.0 / scale);
        for i in (0..n).step_by(S::LANES) {
            let x = S::mul(scaled::<S>(row, factors, i), by);
            S::store_integers(S::round(x), integers.as_mut_ptr().add(i * S::WIDTH));
        }
        let (stored, needed) = (n.next_multiple_of(S::LANES), n.next_multiple_of(S::GROUP));
        integers[stored.min(needed) * S::WIDTH..needed * S::WIDTH].fill(0);
        scale
    }
}

/// Calls a tile of as many rows as a constant.
macro_rules! with_rows {
    ($n:expr, $tile:ident::<$s:ty>($($argument:expr),* $(,)?)) => {
        match $n {
            1 => $tile::<$s, 1>($($argument),*),
            2 => $tile::<$s, 2>($($argument),*),
            3 => $tile::<$s, 3>($($argument),*),
            4 => $tile::<$s, 4>($($argument),*),
            5 => $tile::<$s, 5>($($argument),*),
            6 => $tile::<$s, 6>($($argument),*),
            7 => $tile::<$s, 7>($($argument),*),
            _ => $tile::<$s, MAX_ROWS>($($argument),*),
        }
    };
}

#[cfg(feature = "autodiff")]
pub(super) use with_rows;

/// Splits `rows` into blocks of nearly equal size, at most `most`.
#[inline(always)]
pub(super) fn blocks(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(most);
    let mut first = 0;
    (0..count).map(move |block| {
        let n = (rows - first).div_ceil(count - block);
        first += n;
        (first - n, n)
    })
}

/// [`Simd::dot_tile`] as [`with_rows`] calls it.
#[inline(always)]
unsafe fn dot_tile<S: Simd, const R: usize>(
    x: *const i8,
    stride: usize,
    panel: *const i8,
    groups: usize,
    start: *const i32,
    sums: &mut Sums<S::I>,
) {
    unsafe { S::dot_tile::<R>(x, stride, panel, groups, start, sums) }
}

/// Products of `R` rows of floats with a panel whose rows stand `VECTORS` vectors apart, to `out`, whose rows stand `width` apart.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    x: *const f32,
    stride: usize,
    panel: *const f32,
    inputs: usize,
    out: *mut f32,
    width: usize,
) {
    unsafe {
        let mut acc = [[S::splat(0.0); VECTORS]; R];
        for i in 0..inputs {
            let w: [S::F; VECTORS] = std::array::from_fn(|v| S::load(panel.add((i * VECTORS + v) * S::LANES)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*x.add(r * stride + i));
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = S::mul_add(x, w, *acc);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, &sum) in acc.iter().enumerate() {
                S::store(sum, out.add(r * width + v * S::LANES));
            }
        }
    }
}

/// As many floats as a tile of any arm has.
pub(super) const TILE: usize = MAX_ROWS * VECTORS * 16;

/// Where the columns of one panel go.
struct Output {
    bias: *const f32,
    out: *mut f32,
    stride: usize,
    columns: usize,
    activation: Option<Activation>,
}

impl Output {
    /// Puts the `v`-th vector of a row's products. A function and no closure, which would not be compiled for the arm.
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, y: S::F, row: usize, v: usize) {
        unsafe {
            let y = activate::<S>(self.activation, S::add(y, S::load(self.bias.add(v * S::LANES))));
            store::<S>(y, self.out.add(row * self.stride), v * S::LANES, self.columns);
        }
    }
}

/// `out = activation(x W^T + bias)`.
#[inline(always)]
pub(super) unsafe fn linear<S: Simd>(args: LinearArgs) {
    let LinearArgs { x, weights, activation, scratch, out } = args;
    let (inputs, outputs) = (weights.inputs, weights.outputs);
    let (rows, wide) = (x.len() / inputs, VECTORS * S::LANES);
    let stride = inputs.next_multiple_of(64) * S::WIDTH;
    debug_assert!(out.len() == rows * outputs && weights.bias.len() >= outputs.next_multiple_of(wide));
    let out = out.as_mut_ptr();
    let mut sums = [0.0; TILE];
    unsafe {
        if let Panels::Int8 { .. } = &weights.panels {
            scratch.integers.resize(rows * stride, 0);
            scratch.scales.clear();
            for (row, integers) in x.chunks(inputs).zip(scratch.integers.chunks_mut(stride)) {
                scratch.scales.push(quantize::<S>(row, &weights.factors, integers));
            }
        }
        for p in 0..outputs.div_ceil(wide) {
            let columns = (outputs - p * wide).min(wide);
            let to = Output {
                bias: weights.bias.as_ptr().add(p * wide),
                out: out.add(p * wide),
                stride: outputs,
                columns,
                activation,
            };
            match &weights.panels {
                Panels::Int8 { data, scales, starts } => {
                    let groups = inputs.div_ceil(S::GROUP);
                    let panel = data.as_ptr().cast::<i8>().add(p * groups * S::GROUP * wide);
                    let scales = scales.as_ptr().add(p * wide);
                    let start = starts.as_ptr().add(p * wide);
                    for (row, n) in blocks(rows, S::ROWS) {
                        let integers = scratch.integers.as_ptr().add(row * stride);
                        let mut sums = [[S::splat_int(0); VECTORS]; MAX_ROWS];
                        with_rows!(n, dot_tile::<S>(integers, stride, panel, groups, start, &mut sums));
                        for (r, sums) in sums.iter().enumerate().take(n) {
                            let scale = S::splat(scratch.scales[row + r]);
                            for (v, &sum) in sums.iter().enumerate().take(columns.div_ceil(S::LANES)) {
                                let by = S::mul(scale, S::load(scales.add(v * S::LANES)));
                                to.put::<S>(S::mul(S::to_float(sum), by), row + r, v);
                            }
                        }
                    }
                }
                Panels::F32(data) => {
                    let panel = data.as_ptr().cast::<f32>().add(p * inputs * wide);
                    for (row, n) in blocks(rows, S::FLOAT_ROWS) {
                        let x = x.as_ptr().add(row * inputs);
                        with_rows!(n, tile::<S>(x, inputs, panel, inputs, sums.as_mut_ptr(), wide));
                        for (r, sums) in sums.chunks(wide).enumerate().take(n) {
                            for v in 0..columns.div_ceil(S::LANES) {
                                to.put::<S>(S::load(sums.as_ptr().add(v * S::LANES)), row + r, v);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// `residual = norm(x + residual) * gamma + beta`, row by row.
#[inline(always)]
pub(super) unsafe fn add_norm<S: Simd>(x: &[f32], residual: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
    let n = gamma.len();
    debug_assert!(x.len() == residual.len() && beta.len() == n && x.len().is_multiple_of(n));
    for (x, row) in x.chunks(n).zip(residual.chunks_mut(n)) {
        unsafe {
            let row = row.as_mut_ptr();
            let mut sum = S::splat(0.0);
            for i in (0..n).step_by(S::LANES) {
                let y = S::add(load::<S>(x.as_ptr(), i, n), load::<S>(row, i, n));
                sum = S::add(sum, y);
                store::<S>(y, row, i, n);
            }
            let mean = S::splat(S::sum(sum) / n as f32);
            let mut squares = S::splat(0.0);
            let whole = n / S::LANES * S::LANES;
            for i in (0..whole).step_by(S::LANES) {
                let d = S::sub(S::load(row.add(i)), mean);
                squares = S::mul_add(d, d, squares);
            }
            let mut variance = S::sum(squares);
            if whole < n {
                // The lanes beyond the end are as far from the mean as zero is.
                let mut rest = [0.0; 16];
                S::store(S::sub(S::load_some(row.add(whole), n - whole), mean), rest.as_mut_ptr());
                variance += rest[..n - whole].iter().map(|d| d * d).sum::<f32>();
            }
            let by = S::splat(1.0 / (variance / n as f32 + epsilon).sqrt());
            for i in (0..n).step_by(S::LANES) {
                let y = S::mul(S::sub(load::<S>(row, i, n), mean), by);
                let y = S::mul_add(y, load::<S>(gamma.as_ptr(), i, n), load::<S>(beta.as_ptr(), i, n));
                store::<S>(y, row, i, n);
            }
        }
    }
}

/// Attention of one head over one sequence. `qkv` holds a row a token, `stride` apart: the head's query at `first`, its key `hidden`
/// and its value `2 * hidden` after that, each `width` long; `out` gets `[seq, width]`.
#[inline(always)]
pub(super) unsafe fn attend<S: Simd>(
    qkv: &[f32],
    [first, hidden, width]: [usize; 3],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let stride = 3 * hidden;
    let seq = qkv.len() / stride;
    let wide = VECTORS * S::LANES;
    let (padded, value_panels) = (seq.next_multiple_of(wide), width.div_ceil(wide));
    debug_assert!(first + width <= hidden && out.len() == seq * width);
    scratch.resize(padded * width + value_panels * seq * wide + S::FLOAT_ROWS * padded, 0.0);
    let (keys, rest) = scratch.split_at_mut(padded * width);
    let (values, scores) = rest.split_at_mut(value_panels * seq * wide);
    // Keys as panels `[width, wide]` of tokens, values as panels `[seq, wide]` of columns; both end in zeros. With the keys' factor
    // the scores are powers of two.
    let factor = std::f32::consts::LOG2_E / (width as f32).sqrt();
    for (panel, tokens) in keys.chunks_mut(width * wide).zip(qkv.chunks(stride * wide)) {
        if tokens.len() < stride * wide {
            panel.fill(0.0);
        }
        for (j, token) in tokens.chunks(stride).enumerate() {
            for (i, &x) in token[first + hidden..][..width].iter().enumerate() {
                panel[i * wide + j] = x * factor;
            }
        }
    }
    for (p, panel) in values.chunks_mut(seq * wide).enumerate() {
        let columns = wide.min(width - p * wide);
        for (row, token) in panel.chunks_mut(wide).zip(qkv.chunks(stride)) {
            row[..columns].copy_from_slice(&token[first + 2 * hidden + p * wide..][..columns]);
            row[columns..].fill(0.0);
        }
    }
    let mut sums = [0.0; TILE];
    for (row, n) in blocks(seq, S::FLOAT_ROWS) {
        unsafe {
            let query = qkv.as_ptr().add(row * stride + first);
            for p in 0..padded / wide {
                let (keys, to) = (keys.as_ptr().add(p * wide * width), scores.as_mut_ptr().add(p * wide));
                with_rows!(n, tile::<S>(query, stride, keys, width, to, padded));
            }
            let mut by = [0.0; MAX_ROWS];
            for (scores, by) in scores.chunks_mut(padded).zip(&mut by).take(n) {
                *by = 1.0 / powers_of_two::<S>(&mut scores[..seq]).0;
            }
            for p in 0..value_panels {
                let values = values.as_ptr().add(p * seq * wide);
                with_rows!(n, tile::<S>(scores.as_ptr(), padded, values, seq, sums.as_mut_ptr(), wide));
                for (r, sums) in sums.chunks(wide).enumerate().take(n) {
                    let to = out.as_mut_ptr().add((row + r) * width);
                    for v in 0..(width - p * wide).min(wide).div_ceil(S::LANES) {
                        let sum = S::load(sums.as_ptr().add(v * S::LANES));
                        store::<S>(S::mul(sum, S::splat(by[r])), to, p * wide + v * S::LANES, width);
                    }
                }
            }
        }
    }
}

/// `2^(x - max)` in place of each `x`; returns their sum, and the largest `x`.
#[inline(always)]
pub(super) unsafe fn powers_of_two<S: Simd>(row: &mut [f32]) -> (f32, f32) {
    let n = row.len();
    let whole = n / S::LANES * S::LANES;
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(S::LANES) {
            most = S::max(most, S::load(row.as_ptr().add(i)));
        }
        let most = row[whole..].iter().fold(S::largest(most), |most, &x| most.max(x));
        let (largest, most) = (most, S::splat(most));
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(S::LANES) {
            let e = exp2::<S>(S::sub(load::<S>(row.as_ptr(), i, n), most));
            store::<S>(e, row.as_mut_ptr(), i, n);
            if i < whole {
                sum = S::add(sum, e);
            }
        }
        (S::sum(sum) + row[whole..].iter().sum::<f32>(), largest)
    }
}
