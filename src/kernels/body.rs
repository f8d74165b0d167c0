//! The kernels' bodies, one for all arms.
//!
//! # Safety
//! Every function here needs the processor that [`Simd`]'s implementor needs, and slices of the lengths that its debug assertions
//! state; the callers in [`super`] check both.

use super::simd::{MAX_ROWS, Simd, Sums};
use super::{Activation, LinearArgs, Panels, VECTORS};

/// `e^x`, within 2 units in the last place of -87..=88 and held at the ends of that.
#[inline(always)]
unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let x = S::min(S::max(x, S::splat(-87.0)), S::splat(88.0));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let f = S::to_float(n);
        // ln 2 in two parts (Cody and Waite), so that the difference is nearly exact; the polynomial is Cephes' expf.
        let r = S::mul_add(f, S::splat(-0.693_359_4), x);
        let r = S::mul_add(f, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::mul_add(p, r, S::splat(c));
        }
        let p = S::add(S::mul_add(p, S::mul(r, r), r), S::splat(1.0));
        S::mul(p, S::power_of_two(n))
    }
}

/// `1 - erf(x / √2)` for `x >= 0`, within 1.5e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
unsafe fn erfc<S: Simd>(x: S::F) -> S::F {
    unsafe {
        let one = S::splat(1.0);
        let t = S::div(one, S::mul_add(x, S::splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2), one));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152, 1.421_413_7, -0.284_496_72, 0.254_829_6] {
            p = S::mul_add(p, t, S::splat(c));
        }
        let e = exp::<S>(S::mul(S::mul(x, x), S::splat(-0.5)));
        S::mul(S::mul(p, t), e)
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

#[inline(always)]
unsafe fn activate<S: Simd>(activation: Option<Activation>, x: S::F) -> S::F {
    unsafe {
        match activation {
            None => x,
            Some(Activation::Gelu) => {
                let size = S::abs(x);
                let less = S::mul(S::mul(size, S::splat(0.5)), erfc::<S>(size));
                S::sub(S::max(x, S::splat(0.0)), less)
            }
            Some(Activation::GeluTanh) => {
                let cube = S::mul(S::mul(x, x), x);
                let half = S::mul(x, S::splat(0.5));
                let inner = S::mul(S::mul_add(cube, S::splat(0.044_715), x), S::splat(0.797_884_6));
                S::mul_add(half, tanh::<S>(inner), half)
            }
            Some(Activation::Relu) => S::max(x, S::splat(0.0)),
            Some(Activation::Tanh) => tanh::<S>(x),
        }
    }
}

/// The values from `i` of a row of `n`, zero beyond its end.
#[inline(always)]
unsafe fn load<S: Simd>(row: *const f32, i: usize, n: usize) -> S::F {
    unsafe { if n - i >= S::LANES { S::load(row.add(i)) } else { S::load_some(row.add(i), n - i) } }
}

/// The values from `i` of a row of `n`, nothing beyond its end.
#[inline(always)]
unsafe fn store<S: Simd>(x: S::F, row: *mut f32, i: usize, n: usize) {
    unsafe { if n - i >= S::LANES { S::store(x, row.add(i)) } else { S::store_some(x, row.add(i), n - i) } }
}

/// Quantizes one row as the [integer contract](crate::bundle#the-integer-contract) says; `integers` holds a whole number of
/// vectors and of groups, and gets zeros beyond the row's end. Returns the scale and the sum of the integers.
#[inline(always)]
unsafe fn quantize<S: Simd>(row: &[f32], integers: &mut [i8]) -> (f32, i32) {
    let n = row.len();
    debug_assert!(integers.len() >= n.next_multiple_of(S::LANES.max(S::GROUP)));
    unsafe {
        let mut most = S::splat(0.0);
        for i in (0..n).step_by(S::LANES) {
            most = S::max(most, S::abs(load::<S>(row.as_ptr(), i, n)));
        }
        let scale = S::largest(most) / 127.0;
        let scale = if scale >= f32::MIN_POSITIVE { scale } else { 1.0 };
        let (low, high, by) = (S::splat(-127.0), S::splat(127.0), S::splat(scale));
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(S::LANES) {
            let x = S::div(load::<S>(row.as_ptr(), i, n), by);
            let x = S::round(S::min(S::max(x, low), high));
            // At most MAX_INNER values of at most 127: below 2^24, exact as floats.
            sum = S::add(sum, S::to_float(x));
            S::store_bytes(x, integers.as_mut_ptr().add(i));
        }
        integers[n.next_multiple_of(S::LANES).min(n.next_multiple_of(S::GROUP))..n.next_multiple_of(S::GROUP)].fill(0);
        (scale, S::sum(sum) as i32)
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

/// Splits `rows` into blocks of nearly equal size, at most `most`.
#[inline(always)]
fn blocks(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
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
    panel: *const u8,
    groups: usize,
    sums: &mut Sums<S::I>,
) {
    unsafe { S::dot_tile::<R>(x, stride, panel, groups, sums) }
}

/// Products of `R` rows of floats with a panel whose rows stand `VECTORS` vectors apart.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    x: *const f32,
    stride: usize,
    panel: *const f32,
    inputs: usize,
    sums: &mut Sums<S::F>,
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
        sums[..R].copy_from_slice(&acc);
    }
}

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
    let stride = inputs.next_multiple_of(64);
    debug_assert!(out.len() == rows * outputs && weights.bias.len() >= outputs.next_multiple_of(wide));
    let out = out.as_mut_ptr();
    unsafe {
        if let Panels::Int8 { .. } = &weights.panels {
            scratch.integers.resize(rows * stride, 0);
            scratch.scales.clear();
            scratch.sums.clear();
            for (row, integers) in x.chunks(inputs).zip(scratch.integers.chunks_mut(stride)) {
                let (scale, sum) = quantize::<S>(row, integers);
                scratch.scales.push(scale);
                scratch.sums.push(sum);
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
                Panels::Int8 { data, scales } => {
                    let groups = inputs.div_ceil(S::GROUP);
                    let panel = data.as_ptr().cast::<u8>().add(p * groups * S::GROUP * wide);
                    let scales = scales.as_ptr().add(p * wide);
                    for (row, n) in blocks(rows, S::ROWS) {
                        let integers = scratch.integers.as_ptr().add(row * stride);
                        let mut sums = [[S::splat_int(0); VECTORS]; MAX_ROWS];
                        with_rows!(n, dot_tile::<S>(integers, stride, panel, groups, &mut sums));
                        for (r, sums) in sums.iter().enumerate().take(n) {
                            let offset = S::splat_int(S::WEIGHT_OFFSET.wrapping_mul(scratch.sums[row + r]));
                            let scale = S::splat(scratch.scales[row + r]);
                            for (v, &sum) in sums.iter().enumerate().take(columns.div_ceil(S::LANES)) {
                                let by = S::mul(scale, S::load(scales.add(v * S::LANES)));
                                to.put::<S>(S::mul(S::to_float(S::sub_int(sum, offset)), by), row + r, v);
                            }
                        }
                    }
                }
                Panels::F32(data) => {
                    let panel = data.as_ptr().cast::<f32>().add(p * inputs * wide);
                    for (row, n) in blocks(rows, S::FLOAT_ROWS) {
                        let x = x.as_ptr().add(row * inputs);
                        let mut sums = [[S::splat(0.0); VECTORS]; MAX_ROWS];
                        with_rows!(n, tile::<S>(x, inputs, panel, inputs, &mut sums));
                        for (r, sums) in sums.iter().enumerate().take(n) {
                            for (v, &sum) in sums.iter().enumerate().take(columns.div_ceil(S::LANES)) {
                                to.put::<S>(sum, row + r, v);
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
    // Keys as panels `[width, wide]` of tokens, values as panels `[seq, wide]` of columns; both end in zeros.
    for (panel, tokens) in keys.chunks_mut(width * wide).zip(qkv.chunks(stride * wide)) {
        panel.fill(0.0);
        for (j, token) in tokens.chunks(stride).enumerate() {
            for (i, &x) in token[first + hidden..][..width].iter().enumerate() {
                panel[i * wide + j] = x;
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
    let factor = 1.0 / (width as f32).sqrt();
    for (row, n) in blocks(seq, S::FLOAT_ROWS) {
        unsafe {
            let query = qkv.as_ptr().add(row * stride + first);
            for p in 0..padded / wide {
                let mut sums = [[S::splat(0.0); VECTORS]; MAX_ROWS];
                with_rows!(n, tile::<S>(query, stride, keys.as_ptr().add(p * wide * width), width, &mut sums));
                for (r, sums) in sums.iter().enumerate().take(n) {
                    for (v, &sum) in sums.iter().enumerate() {
                        let to = scores.as_mut_ptr().add(r * padded + p * wide + v * S::LANES);
                        S::store(S::mul(sum, S::splat(factor)), to);
                    }
                }
            }
            let mut by = [0.0; MAX_ROWS];
            for (scores, by) in scores.chunks_mut(padded).zip(&mut by).take(n) {
                *by = 1.0 / exponentials::<S>(&mut scores[..seq]);
            }
            for p in 0..value_panels {
                let mut sums = [[S::splat(0.0); VECTORS]; MAX_ROWS];
                with_rows!(n, tile::<S>(scores.as_ptr(), padded, values.as_ptr().add(p * seq * wide), seq, &mut sums));
                for (r, sums) in sums.iter().enumerate().take(n) {
                    let to = out.as_mut_ptr().add((row + r) * width);
                    for (v, &sum) in sums.iter().enumerate() {
                        let at = p * wide + v * S::LANES;
                        if at < width {
                            store::<S>(S::mul(sum, S::splat(by[r])), to, at, width);
                        }
                    }
                }
            }
        }
    }
}

/// `e^(x - max)` in place of each `x`; returns their sum.
#[inline(always)]
unsafe fn exponentials<S: Simd>(row: &mut [f32]) -> f32 {
    let n = row.len();
    let whole = n / S::LANES * S::LANES;
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for i in (0..whole).step_by(S::LANES) {
            most = S::max(most, S::load(row.as_ptr().add(i)));
        }
        let most = row[whole..].iter().fold(S::largest(most), |most, &x| most.max(x));
        let most = S::splat(most);
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(S::LANES) {
            let e = exp::<S>(S::sub(load::<S>(row.as_ptr(), i, n), most));
            store::<S>(e, row.as_mut_ptr(), i, n);
            if i < whole {
                sum = S::add(sum, e);
            }
        }
        S::sum(sum) + row[whole..].iter().sum::<f32>()
    }
}
