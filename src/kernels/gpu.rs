//! The same for a GPU, compiled by CubeCL for its driver: linear layers, whose weights stay int8 or f16 in the GPU's memory and are widened
//! where they are multiplied, attention, layer norm, and the rows of embeddings.
//!
//! Shapes are arguments, so that a kernel is compiled once, whatever the texts. Sums are in f32 and in one order, so that an answer does
//! not depend on what else is in its batch. No workgroup shares more than 16 KiB, and none asks for subgroups.

use burn::cubecl;
use burn::cubecl::prelude::*;
use burn::cubecl::server::Handle;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Activation, Matrix};

/// Where kernels are sent.
pub(crate) struct Queue {
    client: Client,
    /// Whether values between kernels are f16; else f32.
    is_half: bool,
}

/// Values on the device.
#[derive(Clone)]
pub(crate) struct Buffer {
    handle: Handle,
    len: usize,
}

impl Buffer {
    fn arg(&self) -> BufferArg {
        // SAFETY: the queue made the handle for so many values.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len) }
    }
}

/// Weights on the device, words of one value in f32, two in f16 or four in int8.
struct Words {
    words: Buffer,
    per_word: usize,
    /// One a row, where they are integers.
    scales: Option<Buffer>,
}

/// A linear layer's weights.
pub(crate) struct Linear {
    /// `[inputs / per word, outputs]`
    words: Words,
    inputs: usize,
    outputs: usize,
    bias: Buffer,
    /// What inputs are multiplied by, where they are.
    factors: Option<Buffer>,
}

/// Where each sequence begins, of the tokens of all, and where the last ends.
pub(crate) struct Sequences {
    starts: Buffer,
    tokens: usize,
    longest: usize,
}

/// A table of rows, in parts.
pub(crate) struct Table {
    /// `[rows, width / per word]`
    parts: Vec<Words>,
    /// Of each part but the last.
    rows: usize,
    width: usize,
}

/// Bytes of a row's words, padded to a whole word.
fn row_bytes<'m>(matrix: &'m Matrix<'m>, columns: usize, in_half: bool) -> Vec<Vec<u8>> {
    let columns = columns.max(1);
    let mut rows: Vec<Vec<u8>> = match matrix {
        Matrix::Int8(parts) => {
            let rows = parts.iter().flat_map(|(integers, _)| integers.chunks(columns));
            rows.map(|row| bytemuck::cast_slice(row).to_vec()).collect()
        }
        Matrix::F32(parts) => {
            let rows = parts.iter().flat_map(|part| part.chunks(columns));
            match in_half {
                true => rows.map(|row| row.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()).collect(),
                false => rows.map(|row| row.iter().flat_map(|x| x.to_le_bytes()).collect()).collect(),
            }
        }
    };
    rows.iter_mut().for_each(|row| row.resize(row.len().next_multiple_of(4), 0));
    rows
}

fn per_word(matrix: &Matrix, in_half: bool) -> usize {
    match (matrix, in_half) {
        (Matrix::Int8(_), _) => 4,
        (Matrix::F32(_), true) => 2,
        (Matrix::F32(_), false) => 1,
    }
}

/// Units of a workgroup of a product, along its rows and along its columns; fours of both, of which each unit has one; and inputs that
/// the workgroup takes at a time. Of the sizes tried on an H100 this one loses to none by much, from 16 rows to 16,384.
const SIDE: u32 = 16;

/// Units of a workgroup that normalizes or copies a row, and queries of one that attends.
const UNITS: u32 = 64;

/// Keys that a workgroup takes at a time, of heads of up to 128 values.
const KEYS: usize = 16;

/// The most workgroups along a dimension, of any GPU.
const MOST_CUBES: usize = 65535;

impl Queue {
    pub(crate) fn new(client: Client, is_half: bool) -> Self {
        Queue { client, is_half }
    }

    fn words(&self, bytes: &[u8], per_word: usize, scales: Option<&[f32]>) -> Words {
        let words = Buffer { handle: self.client.create_from_slice(bytes), len: bytes.len() / 4 };
        Words { words, per_word, scales: scales.map(|scales| self.floats(scales)) }
    }

    /// Values in f32, whatever values between kernels are.
    pub(crate) fn floats(&self, values: &[f32]) -> Buffer {
        Buffer { handle: self.client.create_from_slice(bytemuck::cast_slice(values)), len: values.len() }
    }

    /// Numbers of rows or places.
    pub(crate) fn numbers(&self, numbers: &[u32]) -> Buffer {
        Buffer { handle: self.client.create_from_slice(bytemuck::cast_slice(numbers)), len: numbers.len() }
    }

    fn empty(&self, len: usize) -> Buffer {
        Buffer { handle: self.client.empty(len * if self.is_half { 2 } else { 4 }), len }
    }

    /// Waits for what was sent before it, and for these values, in parts of these lengths.
    pub(crate) fn read(&self, values: &Buffer, parts: impl Iterator<Item = usize>) -> Result<Vec<Vec<f32>>, String> {
        let bytes = self.client.read_one(values.handle.clone()).map_err(|e| e.to_string())?;
        let mut rest: &[u8] = &bytes;
        let size = if self.is_half { 2 } else { 4 };
        let mut part = |len: usize| {
            let these = rest.split_off(..(len * size).min(rest.len())).unwrap_or_default();
            match self.is_half {
                true => {
                    let halves: Vec<f16> = bytemuck::pod_collect_to_vec(these);
                    let mut values = vec![0.0; halves.len()];
                    halves.convert_to_f32_slice(&mut values);
                    values
                }
                false => bytemuck::pod_collect_to_vec(these),
            }
        };
        Ok(parts.map(&mut part).collect())
    }

    /// Sends a linear layer's weights; floats as f16 where so asked.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn linear(
        &self,
        matrix: &Matrix,
        in_half: bool,
        inputs: usize,
        bias: &[f32],
        factors: Option<&[f32]>,
    ) -> Linear {
        let rows = row_bytes(matrix, inputs, in_half);
        let outputs = bias.len();
        assert!(rows.len() == outputs && factors.is_none_or(|factors| factors.len() == inputs));
        let mut words = vec![0u32; rows.first().map_or(0, |row| row.len() / 4) * outputs];
        for (n, row) in rows.iter().enumerate() {
            for (word, to) in row.as_chunks().0.iter().zip(words[n..].iter_mut().step_by(outputs)) {
                *to = u32::from_le_bytes(*word);
            }
        }
        let scales = match matrix {
            Matrix::Int8(parts) => Some(parts.iter().flat_map(|(_, scales)| *scales).copied().collect::<Vec<_>>()),
            Matrix::F32(_) => None,
        };
        Linear {
            words: self.words(bytemuck::cast_slice(&words), per_word(matrix, in_half), scales.as_deref()),
            inputs,
            outputs,
            bias: self.floats(bias),
            factors: factors.map(|factors| self.floats(factors)),
        }
    }

    /// Sends a table in parts of at most `most_bytes`; floats as f16 where so asked.
    pub(crate) fn table(&self, matrix: &Matrix, in_half: bool, width: usize, most_bytes: usize) -> Table {
        let rows = row_bytes(matrix, width, in_half);
        let row_bytes = rows.first().map_or(4, Vec::len);
        let count = (most_bytes / row_bytes).clamp(1, rows.len().max(1));
        let scales: Vec<f32> = match matrix {
            Matrix::Int8(parts) => parts.iter().flat_map(|(_, scales)| *scales).copied().collect(),
            Matrix::F32(_) => Vec::new(),
        };
        let parts = rows.chunks(count).enumerate().map(|(part, rows)| {
            let scales = scales.chunks(count).nth(part);
            self.words(&rows.concat(), per_word(matrix, in_half), scales)
        });
        Table { parts: parts.collect(), rows: count, width }
    }

    /// The rows of `table` of these numbers, `[numbers, width]`.
    pub(crate) fn rows(&self, table: &Table, numbers: &Buffer) -> Buffer {
        let out = self.empty(numbers.len * table.width);
        for (part, words) in table.parts.iter().enumerate() {
            let first = (part * table.rows) as u32;
            let rows = words.words.len / table.width.div_ceil(words.per_word);
            let scales = words.scales.as_ref().unwrap_or(&words.words);
            let launch = match self.is_half {
                true => rows_kernel::launch::<f16>,
                false => rows_kernel::launch::<f32>,
            };
            launch(
                &self.client,
                cubes(numbers.len),
                CubeDim::new_1d(UNITS),
                words.words.arg(),
                scales.arg(),
                numbers.arg(),
                out.arg(),
                first,
                rows as u32,
                table.width as u32,
                words.per_word as u32,
            );
        }
        out
    }

    /// Those rows of `x` `[.., width]`.
    pub(crate) fn take(&self, x: &Buffer, width: usize, numbers: &Buffer) -> Buffer {
        let out = self.empty(numbers.len * width);
        let launch = match self.is_half {
            true => take_kernel::launch::<f16>,
            false => take_kernel::launch::<f32>,
        };
        let (count, units) = (cubes(numbers.len), CubeDim::new_1d(UNITS));
        launch(&self.client, count, units, x.arg(), numbers.arg(), out.arg(), width as u32);
        out
    }

    /// `activation(x W^T + bias)`, `x` `[rows, inputs]`: of each of `parts` as many outputs, `[parts, rows, outputs / parts]`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn apply(&self, layer: &Linear, x: &Buffer, activation: Option<Activation>, parts: usize) -> Buffer {
        let rows = x.len / layer.inputs.max(1);
        assert!(x.len == rows * layer.inputs && layer.outputs.is_multiple_of(parts));
        let out = self.empty(rows * layer.outputs);
        let product =
            Product { per_word: layer.words.per_word as u32, activation, has_factors: layer.factors.is_some() };
        let launch = match self.is_half {
            true => linear_kernel::launch_unchecked::<f16>,
            false => linear_kernel::launch_unchecked::<f32>,
        };
        // SAFETY: the lengths were checked, and the kernel reads and writes nothing beyond rows, inputs and outputs.
        unsafe {
            launch(
                &self.client,
                CubeCount::Static((layer.outputs as u32).div_ceil(4 * SIDE), (rows as u32).div_ceil(4 * SIDE), 1),
                CubeDim::new_1d(SIDE * SIDE),
                x.arg(),
                layer.words.words.arg(),
                layer.words.scales.as_ref().unwrap_or(&layer.bias).arg(),
                layer.factors.as_ref().unwrap_or(&layer.bias).arg(),
                layer.bias.arg(),
                out.arg(),
                rows as u32,
                layer.inputs as u32,
                layer.outputs as u32,
                (layer.outputs / parts) as u32,
                product,
            )
        };
        out
    }

    /// Sequences of so many tokens, one after the other.
    pub(crate) fn sequences(&self, lengths: &[usize]) -> Sequences {
        let mut tokens = 0;
        let ends = lengths.iter().map(|n| {
            tokens += n;
            tokens as u32
        });
        let starts: Vec<u32> = std::iter::once(0).chain(ends).collect();
        Sequences { starts: self.numbers(&starts), tokens, longest: lengths.iter().copied().max().unwrap_or(0) }
    }

    /// Attention of every head over each sequence (Vaswani et al. 2017): `qkv` `[3, tokens, hidden]` -> `[tokens, hidden]`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn attend(&self, qkv: &Buffer, hidden: usize, heads: usize, sequences: &Sequences) -> Buffer {
        let Sequences { starts, tokens, longest } = sequences;
        let (tokens, width) = (*tokens, hidden / heads.max(1));
        assert!(qkv.len == 3 * tokens * hidden && heads * width == hidden && width > 0);
        let out = self.empty(tokens * hidden);
        let vector = [4, 2, 1].into_iter().find(|n| width.is_multiple_of(*n)).unwrap_or(1);
        let keys = (KEYS * 128 / width).clamp(1, KEYS);
        let launch = match self.is_half {
            true => attention_kernel::launch_unchecked::<f16>,
            false => attention_kernel::launch_unchecked::<f32>,
        };
        // SAFETY: the lengths were checked, and the kernel reads and writes the tokens of these sequences alone.
        unsafe {
            launch(
                &self.client,
                CubeCount::Static((*longest as u32).div_ceil(UNITS), heads as u32, starts.len as u32 - 1),
                CubeDim::new_1d(UNITS),
                vector,
                qkv.arg(),
                starts.arg(),
                out.arg(),
                (tokens * hidden / vector) as u32,
                (hidden / vector) as u32,
                1.0 / (width as f32).sqrt(),
                (width / vector) as u32,
                keys as u32,
            )
        };
        out
    }

    /// `norm(x + residual) * gamma + beta`, both `[rows, width]` (Ba et al. 2016). With `places`, the residual's rows are those of these
    /// numbers, in f32.
    pub(crate) fn add_norm(
        &self,
        x: &Buffer,
        residual: &Buffer,
        places: Option<&Buffer>,
        [gamma, beta]: [&Buffer; 2],
        epsilon: f32,
    ) -> Buffer {
        let (out, width) = (self.empty(x.len), gamma.len);
        let launch = match (self.is_half, places) {
            (true, None) => norm_kernel::launch::<f16, f16>,
            (true, Some(_)) => norm_kernel::launch::<f16, f32>,
            (false, _) => norm_kernel::launch::<f32, f32>,
        };
        launch(
            &self.client,
            cubes(x.len / width),
            CubeDim::new_1d(UNITS),
            x.arg(),
            residual.arg(),
            places.unwrap_or(gamma).arg(),
            gamma.arg(),
            beta.arg(),
            out.arg(),
            (x.len / width) as u32,
            width as u32,
            epsilon,
            places.is_some(),
        );
        out
    }
}

/// A workgroup for each row.
fn cubes(rows: usize) -> CubeCount {
    let wide = rows.clamp(1, MOST_CUBES);
    CubeCount::Static(wide as u32, rows.div_ceil(wide) as u32, 1)
}

/// The row of a workgroup of [`cubes`].
#[cube]
fn row() -> u32 {
    CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X
}

/// The value at `at` of a word.
#[cube]
fn widened(word: u32, #[comptime] at: u32, #[comptime] per_word: u32) -> f32 {
    match comptime!(per_word) {
        4 => f32::cast_from(i32::reinterpret(word << comptime!(24 - 8 * at)) >> 24),
        2 => {
            // By hand, for adapters without f16.
            let half = (word >> comptime!(16 * at)) & 0xffff;
            let rest = half & 0x7fff;
            let subnormal = f32::cast_from(rest) * f32::new(5.960_464_5e-8);
            let bits = select(rest < 0x400, u32::reinterpret(subnormal), (rest << 13) + 0x3800_0000u32);
            f32::reinterpret(bits | ((half & 0x8000) << 16))
        }
        _ => f32::reinterpret(word),
    }
}

#[cube(launch)]
fn rows_kernel<F: Float>(
    words: &[u32],
    scales: &[f32],
    numbers: &[u32],
    out: &mut [F],
    first: u32,
    rows: u32,
    width: u32,
    #[comptime] per_word: u32,
) {
    let row = row();
    if row < numbers.len() as u32 {
        let number = numbers[row as usize] - first;
        // Those before the first have wrapped.
        if number < rows {
            let words_wide = (width + comptime!(per_word - 1)) / per_word;
            for word in range_stepped(UNIT_POS, words_wide, UNITS) {
                let bits = words[(number * words_wide + word) as usize];
                #[unroll]
                for at in 0..per_word {
                    let column = word * per_word + at;
                    if column < width {
                        let mut value = widened(bits, at, per_word);
                        if comptime!(per_word == 4) {
                            value *= scales[number as usize];
                        }
                        out[(row * width + column) as usize] = F::cast_from(value);
                    }
                }
            }
        }
    }
}

#[cube(launch)]
fn take_kernel<F: Float>(x: &[F], numbers: &[u32], out: &mut [F], width: u32) {
    let row = row();
    if row < numbers.len() as u32 {
        let from = numbers[row as usize] * width;
        for column in range_stepped(UNIT_POS, width, UNITS) {
            out[(row * width + column) as usize] = x[(from + column) as usize];
        }
    }
}

/// The sum over a workgroup.
#[cube]
fn total(value: f32, shared: &mut Shared<[f32]>) -> f32 {
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if UNIT_POS < half {
            let other = shared[(UNIT_POS + half) as usize];
            shared[UNIT_POS as usize] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = shared[0];
    sync_cube();
    sum
}

#[cube(launch)]
fn norm_kernel<F: Float, R: Float>(
    x: &[F],
    residual: &[R],
    places: &[u32],
    gamma: &[f32],
    beta: &[f32],
    out: &mut [F],
    rows: u32,
    width: u32,
    epsilon: f32,
    #[comptime] has_places: bool,
) {
    let mut shared = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));
    // Of rows too many, the last.
    let row = min(row(), rows - 1);
    let from = row * width;
    let mut other = from;
    if comptime!(has_places) {
        other = places[row as usize] * width;
    }
    let mut sum = f32::new(0.0);
    for column in range_stepped(UNIT_POS, width, UNITS) {
        sum += f32::cast_from(x[(from + column) as usize]) + f32::cast_from(residual[(other + column) as usize]);
    }
    let mean = total(sum, &mut shared) / f32::cast_from(width);
    let mut squares = f32::new(0.0);
    for column in range_stepped(UNIT_POS, width, UNITS) {
        let value = f32::cast_from(x[(from + column) as usize]) + f32::cast_from(residual[(other + column) as usize]);
        squares += (value - mean) * (value - mean);
    }
    let variance = total(squares, &mut shared) / f32::cast_from(width);
    let scale = f32::new(1.0) / f32::sqrt(variance + epsilon);
    for column in range_stepped(UNIT_POS, width, UNITS) {
        let value = f32::cast_from(x[(from + column) as usize]) + f32::cast_from(residual[(other + column) as usize]);
        let normal = (value - mean) * scale * gamma[column as usize] + beta[column as usize];
        out[(from + column) as usize] = F::cast_from(normal);
    }
}

/// What a kernel of products is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Product {
    per_word: u32,
    activation: Option<Activation>,
    has_factors: bool,
}

#[cube]
fn activated(x: f32, #[comptime] activation: Option<Activation>) -> f32 {
    match comptime!(activation) {
        None => x,
        Some(Activation::Gelu) => {
            f32::new(0.5) * x * (f32::new(1.0) + erf(x * f32::new(std::f32::consts::FRAC_1_SQRT_2)))
        }
        Some(Activation::GeluTanh) => {
            let inner = f32::new(0.797_884_6) * (x + f32::new(0.044_715) * x * x * x);
            f32::new(0.5) * x * (f32::new(1.0) + tanh(inner))
        }
        Some(Activation::Relu) => max(x, f32::new(0.0)),
        Some(Activation::Tanh) => tanh(x),
    }
}

/// To 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
#[cube]
fn erf(x: f32) -> f32 {
    let t = f32::new(1.0) / (f32::new(1.0) + f32::new(0.327_591_1) * f32::abs(x));
    let mut sum = f32::new(1.061_405_4);
    sum = sum * t - f32::new(1.453_152);
    sum = sum * t + f32::new(1.421_413_8);
    sum = sum * t - f32::new(0.284_496_74);
    sum = sum * t + f32::new(0.254_829_6);
    let y = f32::new(1.0) - sum * t * f32::exp(f32::new(0.0) - x * x);
    select(x < f32::new(0.0), f32::new(0.0) - y, y)
}

/// Some drivers' own overflows.
#[cube]
fn tanh(x: f32) -> f32 {
    let y = f32::exp(f32::new(-2.0) * f32::abs(x));
    let y = (f32::new(1.0) - y) / (f32::new(1.0) + y);
    select(x < f32::new(0.0), f32::new(0.0) - y, y)
}

/// Input `k` of four rows beside each other, zeros beyond them.
#[cube]
#[allow(clippy::too_many_arguments)]
fn four_rows<F: Float>(
    x: &[F],
    factors: &[f32],
    first: u32,
    k: u32,
    rows: u32,
    inputs: u32,
    #[comptime] has_factors: bool,
) -> Vector<f32, Const<4>> {
    let mut four = Vector::<f32, Const<4>>::new(f32::new(0.0));
    if k < inputs {
        #[unroll]
        for i in 0..4u32 {
            if first + i < rows {
                four.insert(comptime!(i as usize), f32::cast_from(x[((first + i) * inputs + k) as usize]));
            }
        }
        if comptime!(has_factors) {
            four *= Vector::new(factors[k as usize]);
        }
    }
    four
}

/// The words of four columns at row `word`, zeros beyond them.
#[cube]
fn four_words(words: &[u32], first: u32, word: u32, is_inside: bool, outputs: u32) -> Vector<u32, Const<4>> {
    let mut four = Vector::<u32, Const<4>>::new(0u32);
    #[unroll]
    for i in 0..4u32 {
        if is_inside && first + i < outputs {
            four.insert(comptime!(i as usize), words[(word * outputs + first + i) as usize]);
        }
    }
    four
}

#[cube(launch_unchecked)]
fn linear_kernel<F: Float>(
    x: &[F],
    words: &[u32],
    scales: &[f32],
    factors: &[f32],
    bias: &[f32],
    out: &mut [F],
    rows: u32,
    inputs: u32,
    outputs: u32,
    width: u32,
    #[comptime] product: Product,
) {
    let Product { per_word, activation, has_factors } = comptime!(product);
    // A step apart, so that fours which are written at once are in different banks.
    let step = comptime!(SIDE + 1);
    let mut left = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!((SIDE * (SIDE + 1)) as usize));
    let mut right = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!((SIDE * SIDE) as usize));
    let (own, other) = (UNIT_POS / SIDE, UNIT_POS % SIDE);
    let first_row = CUBE_POS_Y * comptime!(4 * SIDE);
    let row = first_row + own * 4;
    let column = CUBE_POS_X * comptime!(4 * SIDE) + other * 4;
    // Words hold several inputs, so that the first units bring all.
    let brings = own < comptime!(SIDE / per_word);
    let mut sums = Array::<Vector<f32, Const<4>>>::new(4usize);
    #[unroll]
    for r in 0..4u32 {
        sums[r as usize] = Vector::new(f32::new(0.0));
    }
    let mut next_rows = four_rows(x, factors, row, other, rows, inputs, has_factors);
    let mut next_words = four_words(words, column, own, brings && own * per_word < inputs, outputs);
    let mut depth = 0u32;
    while depth < inputs {
        left[(other * step + own) as usize] = next_rows;
        if brings {
            #[unroll]
            for at in 0..per_word {
                let mut four = Vector::<f32, Const<4>>::new(f32::new(0.0));
                #[unroll]
                for i in 0..4u32 {
                    let i = comptime!(i as usize);
                    four.insert(i, widened(next_words.extract(i), at, per_word));
                }
                right[((own * per_word + at) * SIDE + other) as usize] = four;
            }
        }
        sync_cube();
        depth += SIDE;
        // They arrive while these are multiplied.
        next_rows = four_rows(x, factors, row, depth + other, rows, inputs, has_factors);
        let word = depth / per_word + own;
        next_words = four_words(words, column, word, brings && word * per_word < inputs, outputs);
        for k in 0..SIDE {
            let four = left[(k * step + own) as usize];
            let columns = right[(k * SIDE + other) as usize];
            #[unroll]
            for r in 0..4u32 {
                let r = comptime!(r as usize);
                sums[r] = fma(Vector::new(four.extract(r)), columns, sums[r]);
            }
        }
        sync_cube();
    }
    #[unroll]
    for r in 0..4u32 {
        let row = row + r;
        #[unroll]
        for c in 0..4u32 {
            let column = column + c;
            if row < rows && column < outputs {
                let mut y = sums[r as usize].extract(comptime!(c as usize));
                if comptime!(per_word == 4) {
                    y *= scales[column as usize];
                }
                y = activated(y + bias[column as usize], activation);
                let at = column / width * rows * width + row * width + column % width;
                out[at as usize] = F::cast_from(y);
            }
        }
    }
}

/// One unit a query, and the softmax as it goes (Milakov and Gimelshein 2018). Sizes in vectors: `part` of queries, of keys and of values,
/// `hidden` of a token, `width` of a head.
#[cube(launch_unchecked)]
fn attention_kernel<F: Float, N: Size>(
    qkv: &[Vector<F, N>],
    starts: &[u32],
    out: &mut [Vector<F, N>],
    part: u32,
    hidden: u32,
    scale: f32,
    #[comptime] width: u32,
    #[comptime] keys: u32,
) {
    let mut key_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!((keys * width) as usize));
    let mut value_tile = Shared::<[Vector<f32, N>]>::new_slice(comptime!((keys * width) as usize));
    let start = starts[CUBE_POS_Z as usize];
    let length = starts[(CUBE_POS_Z + 1) as usize] - start;
    let query = CUBE_POS_X * UNITS + UNIT_POS;
    let base = start * hidden + CUBE_POS_Y * width;
    let mut q = Array::<Vector<f32, N>>::new(comptime!(width as usize));
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(width as usize));
    #[unroll]
    for i in 0..width {
        sums[i as usize] = Vector::new(f32::new(0.0));
        q[i as usize] = Vector::new(f32::new(0.0));
        if query < length {
            q[i as usize] = Vector::cast_from(qkv[(base + query * hidden + i) as usize]);
            q[i as usize] *= Vector::new(scale);
        }
    }
    let mut most = f32::new(-1e30);
    let mut sum = f32::new(0.0);
    let mut first = 0u32;
    while first < length {
        for item in range_stepped(UNIT_POS, comptime!(keys * width), UNITS) {
            // Of keys too many, the last; their weights are zero.
            let key = min(first + item / width, length - 1);
            let at = base + key * hidden + item % width;
            key_tile[item as usize] = Vector::cast_from(qkv[(part + at) as usize]);
            value_tile[item as usize] = Vector::cast_from(qkv[(2 * part + at) as usize]);
        }
        sync_cube();
        let mut scores = Array::<f32>::new(comptime!(keys as usize));
        let mut highest = most;
        #[unroll]
        for key in 0..keys {
            let mut products = Vector::<f32, N>::new(f32::new(0.0));
            #[unroll]
            for i in 0..width {
                products = fma(q[i as usize], key_tile[(key * width + i) as usize], products);
            }
            let mut score = f32::new(0.0);
            #[unroll]
            for i in 0..N::value() {
                score += products.extract(i);
            }
            score = select(first + key < length, score, f32::new(-1e30));
            scores[key as usize] = score;
            highest = max(highest, score);
        }
        let shrunk = f32::exp(most - highest);
        most = highest;
        sum *= shrunk;
        #[unroll]
        for i in 0..width {
            sums[i as usize] *= Vector::new(shrunk);
        }
        #[unroll]
        for key in 0..keys {
            let weight = f32::exp(scores[key as usize] - highest);
            sum += weight;
            #[unroll]
            for i in 0..width {
                sums[i as usize] = fma(Vector::new(weight), value_tile[(key * width + i) as usize], sums[i as usize]);
            }
        }
        sync_cube();
        first += keys;
    }
    if query < length {
        #[unroll]
        for i in 0..width {
            let value = sums[i as usize] * Vector::new(f32::new(1.0) / sum);
            out[(base + query * hidden + i) as usize] = Vector::cast_from(value);
        }
    }
}
