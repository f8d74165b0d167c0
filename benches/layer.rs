//! Where the time of one layer goes, and how near its linear parts come to what this core can do: `cargo bench --bench layer`, with
//! `-- TOKENS HIDDEN INTERMEDIATE HEADS` for another shape than MiniLM-L6's at 128 tokens.
//!
//! One thread, and one layer's weights all the time, as near as caches hold them. The peak is measured too, by products of registers
//! alone.
// The peaks are those of single instructions.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

use ampoule::kernels::{Activation, Kernel, Matrix, Packed, Scratch};

/// Rounds of which the least time counts; operations take turns, so that a busy machine is busy for all of them.
const ROUNDS: usize = 300;

fn main() {
    // Cargo adds `--bench`.
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let numbers: Vec<usize> = arguments.map(|argument| argument.parse().unwrap_or(0)).collect();
    match *numbers.as_slice() {
        [] => report(128, 384, 1536, 12),
        [tokens, hidden, wide, heads] if tokens * hidden * wide * heads > 0 && hidden.is_multiple_of(heads) => {
            report(tokens, hidden, wide, heads);
        }
        _ => {
            eprintln!("TOKENS HIDDEN INTERMEDIATE HEADS are expected, HIDDEN a multiple of HEADS");
            std::process::exit(2);
        }
    }
}

fn report(tokens: usize, hidden: usize, wide: usize, heads: usize) {
    println!("{tokens} tokens, hidden {hidden}, intermediate {wide}, {heads} heads, one thread\n");
    for kernel in Kernel::available().filter(|kernel| kernel.name() != "scalar") {
        for is_int8 in [true, false] {
            layer(kernel, is_int8, tokens, hidden, wide, heads);
        }
    }
}

/// Numbers between -1 and 1 without a pattern (a linear congruential generator).
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0
    };
    (0..count).map(|_| next() as f32).collect()
}

fn packed(kernel: Kernel, is_int8: bool, outputs: usize, inputs: usize) -> Packed {
    let (weights, bias) = (noise(outputs * inputs), vec![0.1; outputs]);
    let integers: Vec<i8> = weights.iter().map(|x| (x * 127.0) as i8).collect();
    let scales = vec![0.001; outputs];
    let matrix = match is_int8 {
        true => Matrix::Int8(vec![(&integers, &scales)]),
        false => Matrix::F32(vec![&weights]),
    };
    Packed::new(kernel, &matrix, inputs, &bias)
}

fn layer(kernel: Kernel, is_int8: bool, tokens: usize, hidden: usize, wide: usize, heads: usize) {
    let linear = |outputs, inputs| packed(kernel, is_int8, outputs, inputs);
    let (qkv, output) = (linear(3 * hidden, hidden), linear(hidden, hidden));
    let (widen, narrow) = (linear(wide, hidden), linear(hidden, wide));
    let (x, qkv_values, wide_values) = (noise(tokens * hidden), noise(tokens * 3 * hidden), noise(tokens * wide));
    let (norm, width) = (vec![1.0; hidden], hidden / heads);
    let mut scratch = Scratch::default();
    let mut out = vec![0.0; tokens * wide.max(3 * hidden)];
    let products = |outputs: usize, inputs: usize| (2 * tokens * outputs * inputs) as f64;
    let mut run = |operation: usize| match operation {
        0 => qkv.apply(&x, None, &mut scratch, &mut out[..tokens * 3 * hidden]),
        1 => (0..heads).for_each(|head| {
            let out = &mut out[head * tokens * width..][..tokens * width];
            kernel.attend(&qkv_values, head * width, hidden, width, &mut scratch, out);
        }),
        2 => output.apply(&x, None, &mut scratch, &mut out[..tokens * hidden]),
        3 => widen.apply(&x, Some(Activation::Gelu), &mut scratch, &mut out[..tokens * wide]),
        4 => narrow.apply(&wide_values, None, &mut scratch, &mut out[..tokens * hidden]),
        // The residual comes to rest where its norm is: no number grows.
        _ => (0..2).for_each(|_| kernel.add_norm(&x, &mut out[..tokens * hidden], &norm, &norm, 1e-12)),
    };
    let operations = [
        ("query, key, value", products(3 * hidden, hidden)),
        ("attention", 2.0 * products(tokens, hidden)),
        ("its output", products(hidden, hidden)),
        ("widening, gelu", products(wide, hidden)),
        ("narrowing", products(hidden, wide)),
        ("two residuals, norms", 0.0),
    ];
    let mut least = [f64::INFINITY; 6];
    let mut peak: f64 = 0.0;
    for _ in 0..ROUNDS {
        for (operation, least) in least.iter_mut().enumerate() {
            let start = Instant::now();
            run(operation);
            *least = least.min(start.elapsed().as_secs_f64());
        }
        peak = peak.max(peak::measured(kernel.name(), is_int8).unwrap_or_default());
    }
    black_box(&out);
    let all: f64 = least.iter().sum();
    let linear_products: f64 = [0, 2, 3, 4].iter().map(|&i| operations[i].1).sum();
    let linear_time: f64 = [0, 2, 3, 4].iter().map(|&i| least[i]).sum();
    let precision = if is_int8 { "int8" } else { "f32" };
    println!(
        "{:<24} {:>8} {:>7} {:>8} {:>8}",
        format!("{} {precision}", kernel.name()),
        "µs",
        "share",
        "GOP/s",
        "of peak"
    );
    let row = |name: &str, time: f64, products: f64, has_peak: bool| {
        let speed = products / time / 1e9;
        let [speed_text, of_peak] = match products > 0.0 {
            true if has_peak && peak > 0.0 => [format!("{speed:.1}"), format!("{:.0} %", 100.0 * speed * 1e9 / peak)],
            true => [format!("{speed:.1}"), "-".to_owned()],
            false => ["-".to_owned(), "-".to_owned()],
        };
        println!("{name:<24} {:>8.1} {:>5.1} % {speed_text:>8} {of_peak:>8}", time * 1e6, 100.0 * time / all);
    };
    for (i, ((name, products), time)) in operations.into_iter().zip(least).enumerate() {
        // Attention is computed in f32 whatever the weights are.
        row(name, time, products, i != 1 || !is_int8);
    }
    row("all four linear parts", linear_time, linear_products, true);
    row("the layer", all, 0.0, false);
    match peak > 0.0 {
        true => println!("peak of this core: {:.1} GOP/s\n", peak / 1e9),
        false => println!("peak of this core: not measured for this kernel\n"),
    }
}

/// Operations a second of the instructions that an arm's linear layers are made of, on registers alone.
#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::Instant;

    /// Sums that do not wait for each other: enough to hide the instruction's latency.
    const SUMS: usize = 12;
    const TURNS: usize = 2000;

    macro_rules! measure {
        ($name:ident, $features:literal, $class:ident, $zero:expr, |$sum:ident, $a:ident, $b:ident| $step:expr) => {
            #[target_feature(enable = $features)]
            fn $name() {
                let (mut sums, mut $a, $b) = ([$zero; SUMS], black_box($zero), black_box($zero));
                for _ in 0..TURNS {
                    for $sum in &mut sums {
                        // This does nothing, which the compiler cannot know: otherwise it would multiply once and for all.
                        // SAFETY: no instruction.
                        unsafe { asm!("/* {0} */", inout($class) $a, options(nomem, nostack, preserves_flags)) };
                        *$sum = $step;
                    }
                }
                black_box(sums);
            }
        };
    }
    measure!(int8_avx512, "avx512f,avx512vnni", zmm_reg, _mm512_setzero_si512(), |sum, a, b| _mm512_dpbusd_epi32(
        *sum, a, b
    ));
    measure!(int8_avx2, "avx2", ymm_reg, _mm256_setzero_si256(), |sum, a, b| _mm256_add_epi32(
        *sum,
        _mm256_madd_epi16(a, b)
    ));
    measure!(f32_avx512, "avx512f", zmm_reg, _mm512_setzero_ps(), |sum, a, b| _mm512_fmadd_ps(a, b, *sum));
    measure!(f32_avx2, "avx2,fma", ymm_reg, _mm256_setzero_ps(), |sum, a, b| _mm256_fmadd_ps(a, b, *sum));

    /// `None` for an arm of which it is not known.
    pub fn measured(kernel: &str, is_int8: bool) -> Option<f64> {
        // SAFETY: an arm of this name is only there where the processor has what it needs.
        let (run, operations): (fn(), usize) = match (kernel, is_int8) {
            ("avx512vnni", true) => (|| unsafe { int8_avx512() }, 2 * 64),
            ("avx512vnni", false) => (|| unsafe { f32_avx512() }, 2 * 16),
            ("avx2", true) => (|| unsafe { int8_avx2() }, 2 * 16),
            ("avx2", false) => (|| unsafe { f32_avx2() }, 2 * 8),
            _ => return None,
        };
        let start = Instant::now();
        run();
        Some((operations * SUMS * TURNS) as f64 / start.elapsed().as_secs_f64())
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod peak {
    /// Not for other processors yet.
    pub fn measured(_: &str, _: bool) -> Option<f64> {
        None
    }
}
