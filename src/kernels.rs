//! Fused arithmetic over slices: linear layers in int8 and f32 with packed weights, attention, residual and layer norm.
//!
//! The bodies (`body.rs`) are written once, over what an instruction set gives (`simd.rs`); an *arm* is their compilation for one
//! instruction set. Integer sums are exact and the same bits on every arm; floats differ in their last digits between arms, and on
//! one arm do not depend on batch, padding or threads. The arms, and where their tests run:
//!
//! | arm | needs | tested on |
//! |---|---|---|
//! | `avx512vnni` | AVX-512 F, BW, VL, DQ, VNNI | Zen 4, Zen 5 |
//! | `avxvnni` | AVX2, FMA, AVX-VNNI | Zen 5 |
//! | `avx2` | AVX2, FMA | Zen 4, Zen 5 |
//! | `i8mm` | 64-bit ARM, i8mm | qemu's `max` |
//! | `dotprod` | 64-bit ARM, dot product | qemu's Cortex-A76 and `max` |
//! | `neon` | 64-bit ARM | qemu's Cortex-A53, Cortex-A76 and `max` |
//! | `simd128` | WebAssembly built with `+simd128` | Node |
//! | `scalar` | nothing | everywhere |
//!
//! Nothing here knows tensors, files or models.
// The one place for it: see the module `simd`. Every call of an arm's function comes after `Arm::is_available`.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod arm;
mod body;
mod dropout;
#[cfg(feature = "wgpu")]
pub(crate) mod gpu;
mod scalar;
mod simd;
#[cfg(test)]
mod tests;
#[cfg(feature = "autodiff")]
mod training;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;

pub use dropout::Dropout;
pub(crate) use dropout::{STEP, mix};
use simd::Simd;
#[cfg(feature = "autodiff")]
pub use training::{AdamStep, Heads, multiply};

/// The non-linearity after a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · Φ(x)`, with the error function ("gelu").
    Gelu,
    /// Its tanh approximation ("gelu_new", "gelu_pytorch_tanh"; Hendrycks and Gimpel 2016).
    GeluTanh,
    /// `max(0, x)` ("relu").
    Relu,
    /// The hyperbolic tangent, of pooling layers only.
    Tanh,
}

/// Vectors of a panel's row.
const VECTORS: usize = 2;

/// The kernels as compiled for one instruction set, which this processor has.
#[derive(Clone, Copy)]
pub struct Kernel(&'static Arm);

/// What a GPU computes of each sequence, once it is there: at once where a thread can wait for it, and in a page when its browser says so.
#[cfg(any(feature = "wgpu", all(test, feature = "flex")))]
pub(crate) type Answer = std::pin::Pin<Box<dyn Future<Output = crate::error::Result<Vec<Vec<f32>>>> + Send>>;

type AddNorm = unsafe fn(&[f32], &mut [f32], &[f32], &[f32], f32);
type Attend = unsafe fn(&[f32], [usize; 3], &mut Vec<f32>, &mut [f32]);

struct Arm {
    name: &'static str,
    is_available: fn() -> bool,
    lanes: usize,
    group: usize,
    activation_offset: i32,
    linear: unsafe fn(LinearArgs),
    add_norm: AddNorm,
    attend: Attend,
    #[cfg(feature = "autodiff")]
    train: unsafe fn(training::Pass),
}

macro_rules! arm {
    ($name:literal, $simd:ty, $module:ident, $is_available:expr $(, $feature:literal)?) => {
        mod $module {
            use super::*;
            $(#[target_feature(enable = $feature)])?
            unsafe fn linear(args: LinearArgs) {
                // SAFETY: the caller's word.
                unsafe { body::linear::<$simd>(args) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn add_norm(x: &[f32], residual: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
                // SAFETY: the caller's word.
                unsafe { body::add_norm::<$simd>(x, residual, gamma, beta, epsilon) }
            }
            $(#[target_feature(enable = $feature)])?
            unsafe fn attend(qkv: &[f32], shape: [usize; 3], scratch: &mut Vec<f32>, out: &mut [f32]) {
                // SAFETY: the caller's word.
                unsafe { body::attend::<$simd>(qkv, shape, scratch, out) }
            }
            #[cfg(feature = "autodiff")]
            $(#[target_feature(enable = $feature)])?
            unsafe fn train(pass: training::Pass) {
                // SAFETY: the caller's word.
                unsafe { training::run::<$simd>(pass) }
            }
            pub(super) static ARM: Arm = Arm {
                name: $name,
                is_available: || $is_available,
                lanes: <$simd>::LANES,
                group: <$simd>::GROUP,
                activation_offset: <$simd>::ACTIVATION_OFFSET,
                linear,
                add_norm,
                attend,
                #[cfg(feature = "autodiff")]
                train,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
arm!(
    "avx512vnni",
    x86::Avx512Vnni,
    avx512vnni,
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma"),
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma"
);
#[cfg(target_arch = "x86_64")]
arm!("avx2", x86::Avx2<false>, avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "avx2,fma");
#[cfg(target_arch = "x86_64")]
arm!(
    "avxvnni",
    x86::Avx2<true>,
    avxvnni,
    is_x86_feature_detected!("avxvnni") && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    "avxvnni,avx2,fma"
);
#[cfg(target_arch = "aarch64")]
arm!("i8mm", arm::Neon<arm::MatrixProduct>, i8mm, std::arch::is_aarch64_feature_detected!("i8mm"), "i8mm");
#[cfg(target_arch = "aarch64")]
arm!("dotprod", arm::Neon<arm::DotProduct>, dotprod, std::arch::is_aarch64_feature_detected!("dotprod"), "dotprod");
#[cfg(target_arch = "aarch64")]
arm!("neon", arm::Neon<arm::Multiply>, neon, true);
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
arm!("simd128", wasm::Simd128, simd128, true);
arm!("scalar", scalar::Scalar, portable, true);

/// The arms of this architecture, the default first. `scalar` is slower than Burn's Flex back end and never the default.
static ARMS: &[&Arm] = &[
    #[cfg(target_arch = "x86_64")]
    &avx512vnni::ARM,
    #[cfg(target_arch = "x86_64")]
    &avxvnni::ARM,
    #[cfg(target_arch = "x86_64")]
    &avx2::ARM,
    #[cfg(target_arch = "aarch64")]
    &i8mm::ARM,
    #[cfg(target_arch = "aarch64")]
    &dotprod::ARM,
    #[cfg(target_arch = "aarch64")]
    &neon::ARM,
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    &simd128::ARM,
    &portable::ARM,
];

impl Kernel {
    /// Those that this processor can run, the default first, `scalar` last.
    pub fn available() -> impl Iterator<Item = Kernel> {
        ARMS.iter().filter(|arm| (arm.is_available)()).map(|arm| Kernel(arm))
    }

    /// The one of this name, if this processor can run it.
    pub fn by_name(name: &str) -> Option<Kernel> {
        Self::available().find(|kernel| kernel.name() == name)
    }

    /// Those of [`available`](Self::available) that may be chosen by their speed, and are no oracle.
    pub fn candidates() -> impl Iterator<Item = Kernel> {
        Self::available().filter(|kernel| kernel.name() != portable::ARM.name)
    }

    /// Its name, as in the table above.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether it computes what the scalar arm does, on one small fixed layer of odd sizes: the same bits in integers, floats within 1e-4.
    pub(crate) fn agrees_with_scalar(self) -> bool {
        const ROWS: usize = 5;
        const HEAD: usize = 13;
        const HIDDEN: usize = 3 * HEAD;
        let mut state = 0;
        let mut next = || {
            state += STEP;
            mix(state) as u8 as i8
        };
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| f32::from(next()) / 64.0).collect() };
        let (x, bias, gamma) = (values(ROWS * HIDDEN), values(3 * HIDDEN), values(HIDDEN));
        let weights = values(3 * HIDDEN * HIDDEN);
        let integers: Vec<i8> = weights.iter().map(|x| (x * 63.0) as i8).collect();
        let scales = vec![0.01; bias.len()];
        let layer = |kernel: Kernel, matrix: &Matrix| {
            let mut qkv = vec![0.0; ROWS * bias.len()];
            Packed::new(kernel, matrix, HIDDEN, &bias).apply(&x, None, &mut Scratch::default(), &mut qkv);
            qkv
        };
        let [here, there] = [self, Kernel(&portable::ARM)].map(|kernel| {
            let by_integers = layer(kernel, &Matrix::Int8(vec![(&integers, &scales)]));
            let mut floats = layer(kernel, &Matrix::F32(vec![&weights]));
            let mut context = vec![0.0; ROWS * HEAD];
            kernel.attend(&by_integers, HEAD, HIDDEN, HEAD, &mut Scratch::default(), &mut context);
            let mut normed = x.clone();
            kernel.add_norm(&x, &mut normed, &gamma, &bias[..HIDDEN], 1e-12);
            floats.extend(context);
            floats.extend(normed);
            (by_integers, floats)
        });
        let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * b.abs().max(1.0);
        here.0 == there.0 && here.1.iter().zip(&there.1).all(is_near)
    }

    /// `residual = norm(x + residual) * gamma + beta`, each row of `gamma.len()` values by itself (Ba et al. 2016).
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn add_norm(self, x: &[f32], residual: &mut [f32], gamma: &[f32], beta: &[f32], epsilon: f32) {
        assert!(x.len() == residual.len() && beta.len() == gamma.len() && x.len().is_multiple_of(gamma.len().max(1)));
        if gamma.is_empty() {
            return;
        }
        // SAFETY: a `Kernel` is made of available arms alone; the lengths were checked.
        unsafe { (self.0.add_norm)(x, residual, gamma, beta, epsilon) }
    }

    /// Attention of one head over one sequence (Vaswani et al. 2017): `softmax(q k^T / sqrt(width)) v` -> `[seq, width]`.
    ///
    /// `qkv` is `[seq, 3 * hidden]`: queries, keys and values of all heads; this head's `width` columns begin at `first` of each.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn attend(
        self,
        qkv: &[f32],
        first: usize,
        hidden: usize,
        width: usize,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let tokens = qkv.len() / (3 * hidden).max(1);
        let is_inside = hidden.checked_sub(width).is_some_and(|most| first <= most);
        assert!(is_inside && width > 0 && qkv.len() == tokens * 3 * hidden && out.len() == tokens * width);
        if qkv.is_empty() {
            return;
        }
        // SAFETY: a `Kernel` is made of available arms alone; the lengths were checked.
        unsafe { (self.0.attend)(qkv, [first, hidden, width], &mut scratch.floats, out) }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The largest of the values' magnitudes; NaN or infinite where a value is.
pub(crate) fn magnitude(values: &[f32]) -> f32 {
    // Bits of magnitudes rise as these do, those of NaN last; and no branch keeps the loop from vectors.
    f32::from_bits(values.iter().fold(0, |most, x| most.max(x.abs().to_bits())))
}

/// What a kernel needs beside its input and output; kept, it is not allocated again.
#[derive(Default)]
pub struct Scratch {
    integers: Vec<i8>,
    scales: Vec<f32>,
    floats: Vec<f32>,
}

impl Scratch {
    /// Bytes that it keeps.
    pub(crate) fn bytes(&self) -> usize {
        self.integers.capacity() + 4 * (self.scales.capacity() + self.floats.capacity())
    }
}

/// A cache line, so that panels begin where vectors like it.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: 64 bytes without padding, any of which is valid, zero among them.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: the same.
unsafe impl bytemuck::Pod for Line {}

/// Weights as a kernel's panels, of `wide = VECTORS * lanes` outputs each, the last padded with zeros.
enum Panels {
    /// `[panel, inputs / group, wide, group]` integers; a scale an output, and what its sums begin with: minus what the activations'
    /// offset adds to them.
    Int8 { data: Vec<Line>, scales: Vec<f32>, starts: Vec<i32> },
    /// `[panel, inputs, wide]`.
    F32(Vec<Line>),
}

/// A linear layer's weights, packed for one kernel.
pub struct Packed {
    kernel: Kernel,
    inputs: usize,
    outputs: usize,
    panels: Panels,
    bias: Vec<f32>,
    /// What inputs are multiplied by before they are quantized; none for 1.
    factors: Vec<f32>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed([{}, {}], {:?})", self.outputs, self.inputs, self.kernel)
    }
}

/// Weights of a linear layer `[out, in]`, row-major, several matrices standing for one whose rows are theirs in turn.
pub enum Matrix<'a> {
    /// Integers in -127..=127, and a scale a row.
    Int8(Vec<(&'a [i8], &'a [f32])>),
    /// Floats.
    F32(Vec<&'a [f32]>),
}

struct LinearArgs<'a> {
    x: &'a [f32],
    weights: &'a Packed,
    activation: Option<Activation>,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
}

impl Packed {
    /// Packs a matrix of `inputs` columns.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn new(kernel: Kernel, matrix: &Matrix, inputs: usize, bias: &[f32]) -> Self {
        let wide = VECTORS * kernel.0.lanes;
        let outputs = bias.len();
        let count = outputs.div_ceil(wide);
        let pad = |values: &mut Vec<f32>| values.resize(count * wide, 0.0);
        let panels = match matrix {
            Matrix::Int8(parts) => {
                let rows = || parts.iter().flat_map(|(integers, _)| integers.chunks(inputs.max(1)));
                assert_eq!(rows().count(), outputs, "rows of an int8 matrix");
                let data = match kernel.0.group {
                    2 => groups::<2>(rows(), inputs, count, wide),
                    4 => groups::<4>(rows(), inputs, count, wide),
                    8 => groups::<8>(rows(), inputs, count, wide),
                    _ => groups::<16>(rows(), inputs, count, wide),
                };
                let mut scales: Vec<f32> = parts.iter().flat_map(|(_, scales)| scales.iter().copied()).collect();
                assert_eq!(scales.len(), outputs, "scales of an int8 matrix");
                pad(&mut scales);
                let sum = |row: &[i8]| row.iter().map(|&q| i32::from(q)).sum::<i32>();
                let mut starts: Vec<i32> = match kernel.0.activation_offset {
                    0 => Vec::new(),
                    // Wrapping, as the sums themselves do on their way.
                    offset => rows().map(|row| sum(row).wrapping_mul(-offset)).collect(),
                };
                starts.resize(count * wide, 0);
                Panels::Int8 { data, scales, starts }
            }
            Matrix::F32(parts) => {
                let mut data = lines(count * inputs * wide * 4);
                let lanes: &mut [u32] = bytemuck::cast_slice_mut(&mut data);
                let mut at = 0;
                for row in parts.iter().flat_map(|part| part.chunks(inputs.max(1))) {
                    let panel = &mut lanes[at / wide * inputs * wide..][..inputs * wide];
                    for (x, lane) in row.iter().zip(panel[at % wide..].iter_mut().step_by(wide)) {
                        *lane = x.to_bits();
                    }
                    at += 1;
                }
                assert_eq!(at, outputs, "rows of a matrix");
                Panels::F32(data)
            }
        };
        let mut bias = bias.to_vec();
        pad(&mut bias);
        Packed { kernel, inputs, outputs, panels, bias, factors: Vec::new() }
    }

    /// The same with inputs that are multiplied by these factors before they are quantized. Floats are not quantized.
    ///
    /// # Panics
    /// If there is not one for each input.
    pub fn with_pre_quant_scale(mut self, factors: Vec<f32>) -> Self {
        assert_eq!(factors.len(), self.inputs, "factors of the inputs");
        self.factors = factors;
        self
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `out = activation(x W^T + bias)`: `x` `[rows, inputs]`, `out` `[rows, outputs]`. Integer weights meet activations that are
    /// quantized row by row, as the [integer contract](crate::bundle#the-integer-contract) says.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub fn apply(&self, x: &[f32], activation: Option<Activation>, scratch: &mut Scratch, out: &mut [f32]) {
        let rows = x.len() / self.inputs.max(1);
        assert!(x.len() == rows * self.inputs && out.len() == rows * self.outputs);
        if x.is_empty() || out.is_empty() {
            return;
        }
        // SAFETY: a `Kernel` is made of available arms alone; the lengths were checked.
        unsafe { (self.kernel.0.linear)(LinearArgs { x, weights: self, activation, scratch, out }) }
    }
}

/// `count` panels of rows in groups of `GROUP`, zero where there is nothing.
fn groups<'a, const GROUP: usize>(
    rows: impl Iterator<Item = &'a [i8]>,
    inputs: usize,
    count: usize,
    wide: usize,
) -> Vec<Line> {
    let length = inputs.div_ceil(GROUP) * wide * GROUP;
    let mut data = lines(count * length);
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(&mut data);
    for (at, row) in rows.enumerate() {
        let panel = &mut bytes[at / wide * length..][..length];
        let places = panel[at % wide * GROUP..].chunks_mut(GROUP).step_by(wide);
        for (group, place) in row.chunks(GROUP).zip(places) {
            match <&[i8; GROUP]>::try_from(group) {
                // The length is a constant here, and so the copy is one move.
                Ok(group) => place.copy_from_slice(group),
                Err(_) => place[..group.len()].copy_from_slice(group),
            }
        }
    }
    data
}

/// Lines for so many bytes, all zero: the system's own zeros, where `vec!` would write them.
fn lines(bytes: usize) -> Vec<Line> {
    bytemuck::zeroed_vec(bytes.div_ceil(64))
}
