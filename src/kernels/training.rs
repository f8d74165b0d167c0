//! What training adds to the kernels: forward passes that keep what the way back needs, the ways back, written by hand, and the
//! optimizer's update.
//!
//! # Safety
//! As in [`super::body`]; the methods of [`Kernel`] here check the lengths.

use super::body::{TILE, blocks, exp2, gelu_tangent, load, powers_of_two, store, with_rows};
use super::simd::{MAX_ROWS, Simd};
use super::{Dropout, Kernel, Scratch, VECTORS};

/// The attention of a batch of padded sequences.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// Tokens of each sequence, padding counted.
    pub seq: usize,
    /// Width of all heads together.
    pub hidden: usize,
    /// Their number, which divides `hidden`.
    pub heads: usize,
    /// Tokens of each sequence that are no padding, at least one: those that are attended to.
    pub lengths: &'a [usize],
    /// Of the probabilities, `[batch, heads, seq, seq]`.
    pub dropout: Option<Dropout>,
}

/// One step of AdamW (Loshchilov and Hutter 2019), the corrections of the moments' bias in its numbers.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// What the gradient is multiplied by.
    pub scale: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second.
    pub beta2: f32,
    /// Learning rate, over what the first moment still lacks.
    pub rate: f32,
    /// The root of what the second moment still lacks, inverted.
    pub root2: f32,
    /// Keeps the quotient finite.
    pub epsilon: f32,
    /// What the weights are multiplied by.
    pub decay: f32,
}

/// `out (+)= a b` of `[m, k]` and `[k, n]`, the elements of each as far apart as its strides (of rows, of columns) say; the rows of `out`
/// are `out_stride` apart. On the caller's thread.
///
/// # Panics
/// If an element lies outside its slice.
pub fn multiply(
    [m, n, k]: [usize; 3],
    (a, a_strides): (&[f32], [usize; 2]),
    (b, b_strides): (&[f32], [usize; 2]),
    (out, out_stride): (&mut [f32], usize),
    adds: bool,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // Whether the last element lies inside, in numbers that cannot wrap.
    let fits = |rows: usize, columns: usize, [row, column]: [usize; 2], len: usize| {
        let end = (rows as u128 - 1) * row as u128 + (columns as u128 - 1) * column as u128;
        end < len as u128
    };
    assert!(out_stride >= n && fits(m, n, [out_stride, 1], out.len()));
    assert!(fits(m, k, a_strides, a.len()) && fits(k, n, b_strides, b.len()));
    let [a_row, a_column] = a_strides.map(|stride| stride as isize);
    let [b_row, b_column] = b_strides.map(|stride| stride as isize);
    let (out, out_row) = (out.as_mut_ptr(), out_stride as isize);
    // SAFETY: every element lies inside its slice, as was asserted, and `out` is borrowed for this alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row,
            adds,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// What an arm is asked to do.
pub(super) enum Pass<'a> {
    AddBias(&'a mut [f32], &'a [f32], Option<&'a mut [f32]>),
    BiasGradient(&'a mut [f32], Option<&'a [f32]>, &'a mut [f32]),
    Drop(&'a mut [f32], usize, Dropout),
    AddNorm(AddNorm<'a>),
    AddNormGradient(AddNormGradient<'a>),
    Attend(&'a [f32], Heads<'a>, &'a mut Vec<f32>, &'a mut [f32], &'a mut [f32]),
    AttendGradient(&'a mut [f32], Heads<'a>, &'a [f32], &'a [f32], &'a mut Vec<f32>),
    SquaredNorm(&'a [f32], &'a mut f64),
    Adam(AdamStep, &'a mut [f32], Option<&'a [f32]>, &'a mut [f32], &'a mut [f32]),
}

pub(super) struct AddNorm<'a> {
    x: &'a mut [f32],
    residual: &'a [f32],
    dropout: Option<Dropout>,
    gamma: &'a [f32],
    beta: &'a [f32],
    epsilon: f32,
    scales: &'a mut [f32],
    out: &'a mut [f32],
}

pub(super) struct AddNormGradient<'a> {
    gradient: &'a mut [f32],
    normalized: &'a mut [f32],
    scales: &'a [f32],
    dropout: Option<Dropout>,
    gamma: &'a [f32],
    of_gamma: &'a mut [f32],
    of_beta: &'a mut [f32],
}

#[inline(always)]
pub(super) unsafe fn run<S: Simd>(pass: Pass) {
    unsafe {
        match pass {
            Pass::AddBias(x, bias, slopes) => add_bias::<S>(x, bias, slopes),
            Pass::BiasGradient(gradient, slopes, sums) => bias_gradient::<S>(gradient, slopes, sums),
            Pass::Drop(x, width, dropout) => drop_values(x, width, dropout),
            Pass::AddNorm(args) => add_norm::<S>(args),
            Pass::AddNormGradient(args) => add_norm_gradient::<S>(args),
            Pass::Attend(qkv, heads, scratch, kept, out) => attend::<S>(qkv, heads, scratch, kept, out),
            Pass::AttendGradient(qkv, heads, kept, gradient, scratch) => {
                attend_gradient::<S>(qkv, heads, kept, gradient, scratch);
            }
            Pass::SquaredNorm(x, norm) => *norm = squared_norm(x),
            Pass::Adam(step, weights, gradient, first, second) => adam(step, weights, gradient, first, second),
        }
    }
}

impl Kernel {
    fn train(self, pass: Pass) {
        // SAFETY: a `Kernel` is made of available arms alone; the callers below checked the lengths.
        unsafe { (self.0.train)(pass) }
    }

    /// Adds `bias` to each row of `x`. With `slopes`, of as many values, puts gelu of that (Hendrycks and Gimpel 2016) in its place and the
    /// derivative there into `slopes`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn add_bias(self, x: &mut [f32], bias: &[f32], slopes: Option<&mut [f32]>) {
        assert!(!bias.is_empty() && x.len().is_multiple_of(bias.len()));
        assert!(slopes.as_ref().is_none_or(|slopes| slopes.len() == x.len()));
        self.train(Pass::AddBias(x, bias, slopes));
    }

    /// The way back through [`add_bias`](Self::add_bias): multiplies the gradient by the slopes, and adds its rows to `sums`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn bias_gradient(self, gradient: &mut [f32], slopes: Option<&[f32]>, sums: &mut [f32]) {
        assert!(!sums.is_empty() && gradient.len().is_multiple_of(sums.len()));
        assert!(slopes.is_none_or(|slopes| slopes.len() == gradient.len()));
        self.train(Pass::BiasGradient(gradient, slopes, sums));
    }

    /// Drops of `x`, whose rows are `width` wide.
    ///
    /// # Panics
    /// If `width` is zero.
    pub fn drop(self, x: &mut [f32], width: usize, dropout: Dropout) {
        assert!(width > 0);
        self.train(Pass::Drop(x, width, dropout));
    }

    /// `out = norm(dropout(x) + residual) * gamma + beta`, row by row (Ba et al. 2016). What the norm gives takes the place of `x`, what it
    /// multiplied by goes to `scales`, one a row: the way back needs both.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    #[allow(clippy::too_many_arguments)]
    pub fn add_norm_in_training(
        self,
        x: &mut [f32],
        residual: &[f32],
        dropout: Option<Dropout>,
        [gamma, beta]: [&[f32]; 2],
        epsilon: f32,
        scales: &mut [f32],
        out: &mut [f32],
    ) {
        assert!(!gamma.is_empty() && beta.len() == gamma.len() && x.len() == scales.len() * gamma.len());
        assert!(residual.len() == x.len() && out.len() == x.len());
        self.train(Pass::AddNorm(AddNorm { x, residual, dropout, gamma, beta, epsilon, scales, out }));
    }

    /// The way back through [`add_norm_in_training`](Self::add_norm_in_training): the gradient becomes that of the residual; where there
    /// is dropout, that of `x` takes the place of `normalized`, else it is the same. Adds to the gradients of `gamma` and `beta`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn add_norm_gradient(
        self,
        gradient: &mut [f32],
        normalized: &mut [f32],
        scales: &[f32],
        dropout: Option<Dropout>,
        gamma: &[f32],
        [of_gamma, of_beta]: [&mut [f32]; 2],
    ) {
        assert!(!gamma.is_empty() && of_gamma.len() == gamma.len() && of_beta.len() == gamma.len());
        assert!(gradient.len() == scales.len() * gamma.len() && normalized.len() == gradient.len());
        let args = AddNormGradient { gradient, normalized, scales, dropout, gamma, of_gamma, of_beta };
        self.train(Pass::AddNormGradient(args));
    }

    /// Attention of a batch (Vaswani et al. 2017): `qkv` `[batch, seq, 3 * hidden]` holds queries, keys and values of all heads, `out` gets
    /// `[batch, seq, hidden]`. `kept`, `[batch, heads, seq, 2]`, is for the way back.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn attend_in_training(
        self,
        qkv: &[f32],
        heads: Heads,
        scratch: &mut Scratch,
        kept: &mut [f32],
        out: &mut [f32],
    ) {
        heads.check(qkv, kept, out);
        self.train(Pass::Attend(qkv, heads, &mut scratch.floats, kept, out));
    }

    /// The way back through [`attend_in_training`](Self::attend_in_training), from the gradient of its output: that of `qkv` takes its
    /// place.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn attend_gradient(self, qkv: &mut [f32], heads: Heads, kept: &[f32], gradient: &[f32], scratch: &mut Scratch) {
        heads.check(qkv, kept, gradient);
        self.train(Pass::AttendGradient(qkv, heads, kept, gradient, &mut scratch.floats));
    }

    /// The sum of the squares, in an order that depends on their number alone.
    pub fn squared_norm(self, x: &[f32]) -> f64 {
        let mut norm = 0.0;
        self.train(Pass::SquaredNorm(x, &mut norm));
        norm
    }

    /// A step of AdamW, from the moments before; without a gradient, from one of zeros.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn adam(
        self,
        step: AdamStep,
        weights: &mut [f32],
        gradient: Option<&[f32]>,
        first: &mut [f32],
        second: &mut [f32],
    ) {
        assert!(first.len() == weights.len() && second.len() == weights.len());
        assert!(gradient.is_none_or(|gradient| gradient.len() == weights.len()));
        self.train(Pass::Adam(step, weights, gradient, first, second));
    }
}

impl Heads<'_> {
    /// Panics if these lengths do not belong together.
    fn check(&self, qkv: &[f32], kept: &[f32], out: &[f32]) {
        let Heads { seq, hidden, heads, lengths, .. } = *self;
        let tokens = lengths.len() * seq;
        assert!(heads > 0 && hidden > 0 && hidden.is_multiple_of(heads));
        assert!(qkv.len() == 3 * tokens * hidden && out.len() == tokens * hidden && kept.len() == 2 * tokens * heads);
        assert!(lengths.iter().all(|&length| (1..=seq).contains(&length)));
    }
}

#[inline(always)]
unsafe fn add_bias<S: Simd>(x: &mut [f32], bias: &[f32], mut slopes: Option<&mut [f32]>) {
    let n = bias.len();
    for (number, row) in x.chunks_mut(n).enumerate() {
        let row = row.as_mut_ptr();
        for i in (0..n).step_by(S::LANES) {
            unsafe {
                let mut y = S::add(load::<S>(row, i, n), load::<S>(bias.as_ptr(), i, n));
                if let Some(slopes) = &mut slopes {
                    let (slope, offset) = gelu_tangent::<S>(y);
                    y = S::mul_add(y, slope, offset);
                    store::<S>(slope, slopes.as_mut_ptr().add(number * n), i, n);
                }
                store::<S>(y, row, i, n);
            }
        }
    }
}

#[inline(always)]
unsafe fn bias_gradient<S: Simd>(gradient: &mut [f32], slopes: Option<&[f32]>, sums: &mut [f32]) {
    let n = sums.len();
    for (number, row) in gradient.chunks_mut(n).enumerate() {
        let row = row.as_mut_ptr();
        for i in (0..n).step_by(S::LANES) {
            unsafe {
                let mut y = load::<S>(row, i, n);
                if let Some(slopes) = slopes {
                    y = S::mul(y, load::<S>(slopes.as_ptr().add(number * n), i, n));
                    store::<S>(y, row, i, n);
                }
                store::<S>(S::add(y, load::<S>(sums.as_ptr(), i, n)), sums.as_mut_ptr(), i, n);
            }
        }
    }
}

#[inline(always)]
fn drop_values(x: &mut [f32], width: usize, dropout: Dropout) {
    let mut factors = vec![0.0; width];
    for (number, row) in x.chunks_mut(width).enumerate() {
        dropout.factors(number, &mut factors);
        for (x, factor) in row.iter_mut().zip(&factors) {
            *x *= factor;
        }
    }
}

#[inline(always)]
unsafe fn add_norm<S: Simd>(args: AddNorm) {
    let AddNorm { x, residual, dropout, gamma, beta, epsilon, scales, out } = args;
    let n = gamma.len();
    let mut factors = vec![1.0; n];
    for (number, (row, out)) in x.chunks_mut(n).zip(out.chunks_mut(n)).enumerate() {
        if let Some(dropout) = dropout {
            dropout.factors(number, &mut factors);
        }
        unsafe {
            let (row, residual) = (row.as_mut_ptr(), residual.as_ptr().add(number * n));
            let mut sum = S::splat(0.0);
            for i in (0..n).step_by(S::LANES) {
                let factor = load::<S>(factors.as_ptr(), i, n);
                let y = S::mul_add(load::<S>(row, i, n), factor, load::<S>(residual, i, n));
                sum = S::add(sum, y);
                store::<S>(y, row, i, n);
            }
            let mean = S::sum(sum) / n as f32;
            let whole = n / S::LANES * S::LANES;
            let mut squares = S::splat(0.0);
            for i in (0..whole).step_by(S::LANES) {
                let d = S::sub(S::load(row.add(i)), S::splat(mean));
                squares = S::mul_add(d, d, squares);
            }
            let mut variance = S::sum(squares);
            for i in whole..n {
                let d = *row.add(i) - mean;
                variance += d * d;
            }
            scales[number] = 1.0 / (variance / n as f32 + epsilon).sqrt();
            let (mean, by) = (S::splat(mean), S::splat(scales[number]));
            for i in (0..n).step_by(S::LANES) {
                let y = S::mul(S::sub(load::<S>(row, i, n), mean), by);
                store::<S>(y, row, i, n);
                let y = S::mul_add(y, load::<S>(gamma.as_ptr(), i, n), load::<S>(beta.as_ptr(), i, n));
                store::<S>(y, out.as_mut_ptr(), i, n);
            }
        }
    }
}

/// With `x̂` what the norm gave, `s` its scale and `g` the gradient times gamma, the gradient is `s (g - mean(g) - x̂ mean(g x̂))`.
#[inline(always)]
unsafe fn add_norm_gradient<S: Simd>(args: AddNormGradient) {
    let AddNormGradient { gradient, normalized, scales, dropout, gamma, of_gamma, of_beta } = args;
    let n = gamma.len();
    let mut factors = vec![0.0; n];
    for (number, (row, normalized)) in gradient.chunks_mut(n).zip(normalized.chunks_mut(n)).enumerate() {
        unsafe {
            let (row, normalized) = (row.as_mut_ptr(), normalized.as_mut_ptr());
            let (mut sum, mut product) = (S::splat(0.0), S::splat(0.0));
            for i in (0..n).step_by(S::LANES) {
                let (d, y) = (load::<S>(row, i, n), load::<S>(normalized, i, n));
                let g = S::mul(d, load::<S>(gamma.as_ptr(), i, n));
                sum = S::add(sum, g);
                product = S::mul_add(g, y, product);
                store::<S>(S::mul_add(d, y, load::<S>(of_gamma.as_ptr(), i, n)), of_gamma.as_mut_ptr(), i, n);
                store::<S>(S::add(d, load::<S>(of_beta.as_ptr(), i, n)), of_beta.as_mut_ptr(), i, n);
            }
            let (mean, slope) = (S::splat(S::sum(sum) / n as f32), S::splat(S::sum(product) / n as f32));
            let by = S::splat(scales[number]);
            if let Some(dropout) = dropout {
                dropout.factors(number, &mut factors);
            }
            for i in (0..n).step_by(S::LANES) {
                let (d, y) = (load::<S>(row, i, n), load::<S>(normalized, i, n));
                let g = S::sub(S::mul(d, load::<S>(gamma.as_ptr(), i, n)), S::mul_add(y, slope, mean));
                let g = S::mul(g, by);
                store::<S>(g, row, i, n);
                if dropout.is_some() {
                    store::<S>(S::mul(g, load::<S>(factors.as_ptr(), i, n)), normalized, i, n);
                }
            }
        }
    }
}

/// Products of `R` rows with a panel whose rows stand `VECTORS` vectors apart; the elements of a row are `column` apart.
#[inline(always)]
unsafe fn tile<S: Simd, const R: usize>(
    x: *const f32,
    [row, column]: [usize; 2],
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
                let x = S::splat(*x.add(r * row + i * column));
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

/// `rows` of `x`, with the given strides, times panels of `columns` in all, to `out`, whose rows are `width` apart.
#[inline(always)]
unsafe fn product<S: Simd>(
    (x, strides, rows): (*const f32, [usize; 2], usize),
    panels: &[f32],
    inputs: usize,
    columns: usize,
    (out, width): (*mut f32, usize),
) {
    let wide = VECTORS * S::LANES;
    debug_assert!(panels.len() >= columns.div_ceil(wide) * inputs * wide);
    let mut sums = [0.0; TILE];
    for p in 0..columns.div_ceil(wide) {
        let columns = (columns - p * wide).min(wide);
        for (first, n) in blocks(rows, S::FLOAT_ROWS) {
            unsafe {
                let panel = panels.as_ptr().add(p * inputs * wide);
                let (x, out) = (x.add(first * strides[0]), out.add(first * width + p * wide));
                if columns == wide {
                    with_rows!(n, tile::<S>(x, strides, panel, inputs, out, width));
                    continue;
                }
                with_rows!(n, tile::<S>(x, strides, panel, inputs, sums.as_mut_ptr(), wide));
                for (r, sums) in sums.chunks(wide).enumerate().take(n) {
                    for i in (0..columns).step_by(S::LANES) {
                        store::<S>(S::load(sums.as_ptr().add(i)), out.add(r * width), i, columns);
                    }
                }
            }
        }
    }
}

/// The first `width` values of rows that are `stride` apart, as panels of columns, zeros after the last.
#[inline(always)]
fn pack(rows: &[f32], stride: usize, width: usize, wide: usize, panels: &mut [f32]) {
    let count = rows.len().div_ceil(stride);
    for (p, panel) in panels.chunks_mut(count * wide).enumerate() {
        let columns = wide.min(width - p * wide);
        for (to, row) in panel.chunks_mut(wide).zip(rows.chunks(stride)) {
            to[..columns].copy_from_slice(&row[p * wide..][..columns]);
            to[columns..].fill(0.0);
        }
    }
}

/// The same, times `factor`, as panels of rows.
#[inline(always)]
fn pack_transposed(rows: &[f32], stride: usize, width: usize, wide: usize, factor: f32, panels: &mut [f32]) {
    for (panel, rows) in panels.chunks_mut(width * wide).zip(rows.chunks(stride * wide)) {
        if rows.len() + stride <= stride * wide {
            panel.fill(0.0);
        }
        // Four rows together: single values, as far apart as a panel is wide, would be stored one by one.
        let whole = rows.chunks(stride).count() / 4 * 4;
        for j in (0..whole).step_by(4) {
            let four: [&[f32]; 4] = std::array::from_fn(|r| &rows[(j + r) * stride..][..width]);
            for (i, to) in panel.chunks_mut(wide).enumerate() {
                to[j..j + 4].copy_from_slice(&four.map(|row| row[i] * factor));
            }
        }
        for (j, row) in rows.chunks(stride).enumerate().skip(whole) {
            for (to, &x) in panel.chunks_mut(wide).zip(row) {
                to[j] = x * factor;
            }
        }
    }
}

/// Cuts `floats` for slices of these lengths.
#[inline(always)]
fn cut<const N: usize>(floats: &mut Vec<f32>, lengths: [usize; N]) -> [&mut [f32]; N] {
    floats.resize(floats.len().max(lengths.iter().sum()), 0.0);
    let mut rest = floats.as_mut_slice();
    lengths.map(|length| {
        let (first, others) = std::mem::take(&mut rest).split_at_mut(length);
        rest = others;
        first
    })
}

/// What turns products of queries and keys into powers of two.
fn factor(width: usize) -> f32 {
    std::f32::consts::LOG2_E / (width as f32).sqrt()
}

#[inline(always)]
unsafe fn attend<S: Simd>(qkv: &[f32], heads: Heads, scratch: &mut Vec<f32>, kept: &mut [f32], out: &mut [f32]) {
    let Heads { seq, hidden, heads, lengths, dropout } = heads;
    let (width, wide, stride) = (hidden / heads, VECTORS * S::LANES, 3 * hidden);
    let (padded, wider) = (seq.next_multiple_of(wide), width.next_multiple_of(wide));
    let [keys, values, scores, factors] = cut(scratch, [padded * width, seq * wider, seq * padded, seq]);
    for (b, &length) in lengths.iter().enumerate() {
        for head in 0..heads {
            let first = b * seq * stride + head * width;
            let last = first + (length - 1) * stride + width;
            let (keys, values) = (&mut keys[..length.next_multiple_of(wide) * width], &mut values[..length * wider]);
            pack_transposed(&qkv[first + hidden..last + hidden], stride, width, wide, factor(width), keys);
            pack(&qkv[first + 2 * hidden..last + 2 * hidden], stride, width, wide, values);
            unsafe {
                let queries = (qkv.as_ptr().add(first), [stride, 1], seq);
                product::<S>(queries, keys, width, length, (scores.as_mut_ptr(), padded));
                for (i, row) in scores.chunks_mut(padded).enumerate() {
                    let at = (b * heads + head) * seq + i;
                    let row = &mut row[..length];
                    let (sum, most) = powers_of_two::<S>(row);
                    let by = 1.0 / sum;
                    kept[2 * at..2 * at + 2].copy_from_slice(&[most, by]);
                    match dropout {
                        Some(dropout) => {
                            dropout.factors(at, factors);
                            for (p, factor) in row.iter_mut().zip(&*factors) {
                                *p *= by * factor;
                            }
                        }
                        None => {
                            for p in row {
                                *p *= by;
                            }
                        }
                    }
                }
                let out = (out.as_mut_ptr().add(b * seq * hidden + head * width), hidden);
                product::<S>((scores.as_ptr(), [padded, 1], seq), values, length, width, out);
            }
        }
    }
}

/// With `P` the probabilities, which are computed again, `F` the factors of dropout and `D` the gradient of the output, that of the values
/// is `(P F)ᵀ D`, that of the probabilities `D vᵀ F`, and that of the scores `P` times what the latter is above its mean by `P`.
#[inline(always)]
unsafe fn attend_gradient<S: Simd>(
    qkv: &mut [f32],
    heads: Heads,
    kept: &[f32],
    gradient: &[f32],
    scratch: &mut Vec<f32>,
) {
    let Heads { seq, hidden, heads, lengths, dropout } = heads;
    let (width, wide, stride) = (hidden / heads, VECTORS * S::LANES, 3 * hidden);
    let (padded, wider) = (seq.next_multiple_of(wide), width.next_multiple_of(wide));
    let [keys, values, queries_back, keys_back, outs_back, probabilities, scores, factors] = cut(
        scratch,
        [padded * width, padded * width, seq * wider, seq * wider, seq * wider, seq * padded, seq * padded, seq],
    );
    factors.fill(1.0);
    for (b, &length) in lengths.iter().enumerate() {
        for head in 0..heads {
            let first = b * seq * stride + head * width;
            let (last, end) = (first + (length - 1) * stride + width, first + (seq - 1) * stride + width);
            let out = b * seq * hidden + head * width;
            let outs = &gradient[out..out + (seq - 1) * hidden + width];
            let used = length.next_multiple_of(wide) * width;
            let (keys, values) = (&mut keys[..used], &mut values[..used]);
            let keys_back = &mut keys_back[..length * wider];
            pack_transposed(&qkv[first + hidden..last + hidden], stride, width, wide, factor(width), keys);
            pack_transposed(&qkv[first + 2 * hidden..last + 2 * hidden], stride, width, wide, 1.0, values);
            pack(&qkv[first + hidden..last + hidden], stride, width, wide, keys_back);
            pack(&qkv[first..end], stride, width, wide, queries_back);
            pack(outs, hidden, width, wide, outs_back);
            let scale = 1.0 / (width as f32).sqrt();
            unsafe {
                let queries = (qkv.as_ptr().add(first), [stride, 1], seq);
                product::<S>(queries, keys, width, length, (probabilities.as_mut_ptr(), padded));
                let outs = (outs.as_ptr(), [hidden, 1], seq);
                product::<S>(outs, values, width, length, (scores.as_mut_ptr(), padded));
                for (i, (p, d)) in probabilities.chunks_mut(padded).zip(scores.chunks_mut(padded)).enumerate() {
                    let at = (b * heads + head) * seq + i;
                    if let Some(dropout) = dropout {
                        dropout.factors(at, factors);
                    }
                    let kept = [kept[2 * at], kept[2 * at + 1]];
                    score_gradient::<S>(&mut p[..length], &mut d[..length], kept, factors.as_ptr(), scale);
                }
                let to = qkv.as_mut_ptr().add(first);
                let by_queries = (scores.as_ptr(), [padded, 1], seq);
                product::<S>(by_queries, keys_back, length, width, (to, stride));
                let by_keys = (scores.as_ptr(), [1, padded], length);
                product::<S>(by_keys, queries_back, seq, width, (to.add(hidden), stride));
                let by_values = (probabilities.as_ptr(), [1, padded], length);
                product::<S>(by_values, outs_back, seq, width, (to.add(2 * hidden), stride));
            }
            for token in length..seq {
                for part in 1..3 {
                    qkv[first + token * stride + part * hidden..][..width].fill(0.0);
                }
            }
        }
    }
}

/// A row of scores `p` becomes its probabilities after dropout, and the gradient `d` of those the gradient of what `scale` was applied to.
#[inline(always)]
unsafe fn score_gradient<S: Simd>(p: &mut [f32], d: &mut [f32], [most, by]: [f32; 2], factors: *const f32, scale: f32) {
    let n = p.len();
    let (p, d) = (p.as_mut_ptr(), d.as_mut_ptr());
    unsafe {
        let mut mean = S::splat(0.0);
        for i in (0..n).step_by(S::LANES) {
            // Beyond the end it may be above the largest.
            let power = exp2::<S>(S::min(S::splat(0.0), S::sub(load::<S>(p, i, n), S::splat(most))));
            let (power, factor) = (S::mul(power, S::splat(by)), load::<S>(factors, i, n));
            let slope = S::mul(load::<S>(d, i, n), factor);
            mean = S::mul_add(power, slope, mean);
            store::<S>(power, p, i, n);
            store::<S>(slope, d, i, n);
        }
        let mean = S::splat(S::sum(mean));
        for i in (0..n).step_by(S::LANES) {
            let power = load::<S>(p, i, n);
            let slope = S::mul(S::sub(load::<S>(d, i, n), mean), S::mul(power, S::splat(scale)));
            store::<S>(slope, d, i, n);
            store::<S>(S::mul(power, load::<S>(factors, i, n)), p, i, n);
        }
    }
}

#[inline(always)]
fn squared_norm(x: &[f32]) -> f64 {
    let mut sums = [0.0; 32];
    for block in x.chunks(32) {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum()
}

#[inline(always)]
fn adam(step: AdamStep, weights: &mut [f32], gradient: Option<&[f32]>, first: &mut [f32], second: &mut [f32]) {
    match gradient {
        Some(gradient) => {
            for (((w, &g), m), v) in weights.iter_mut().zip(gradient).zip(first).zip(second) {
                adam_one(step, w, g * step.scale, m, v);
            }
        }
        None => {
            for ((w, m), v) in weights.iter_mut().zip(first).zip(second) {
                adam_one(step, w, 0.0, m, v);
            }
        }
    }
}

#[inline(always)]
fn adam_one(step: AdamStep, w: &mut f32, g: f32, m: &mut f32, v: &mut f32) {
    *m = step.beta1 * *m + (1.0 - step.beta1) * g;
    *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
    *w = *w * step.decay - step.rate * *m / (v.sqrt() * step.root2 + step.epsilon);
}
