//! Every arm that this processor runs, against plain loops in integers and f64.

use super::*;
use crate::bundle::{MAX_INNER, quantize_rows};
use crate::model::Noise;

/// Values in -`most`..=`most`.
fn random(seed: u64, n: usize, most: f32) -> Vec<f32> {
    let mut noise = Noise::new(seed);
    (0..n).map(|_| (noise.next() as i32 as f32) / i32::MAX as f32 * most).collect()
}

/// What a layer gives, `x` and the output each a value off the alignment of their buffers.
fn apply(packed: &Packed, x: &[f32], activation: Option<Activation>) -> Vec<f32> {
    let rows = x.len() / packed.inputs;
    let (mut odd_x, mut odd_out) = (vec![f32::NAN; x.len() + 1], vec![f32::NAN; rows * packed.outputs + 1]);
    odd_x[1..].copy_from_slice(x);
    packed.apply(&odd_x[1..], activation, &mut Scratch::default(), &mut odd_out[1..]);
    odd_out.split_off(1)
}

/// The integer contract, word for word.
fn contract(x: &[f32], weights: &[i8], scales: &[f32], bias: &[f32], inputs: usize) -> Vec<f32> {
    let (integers, row_scales) = quantize_rows(x, inputs);
    let mut out = Vec::new();
    for (row, by) in integers.chunks(inputs).zip(row_scales) {
        for ((weights, scale), bias) in weights.chunks(inputs).zip(scales).zip(bias) {
            let sum: i64 = row.iter().zip(weights).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
            out.push(i32::try_from(sum).unwrap() as f32 * (by * scale) + bias);
        }
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The error function by its series of positive terms (Abramowitz and Stegun 7.1.6).
fn erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    sum * 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp()
}

#[test]
fn integer_layers_of_every_size_keep_the_contract_bit_for_bit() {
    for kernel in Kernel::available() {
        for inputs in 1..=67 {
            for outputs in 1..=67 {
                let rows = 1 + (7 * inputs + 3 * outputs) % 67;
                let seed = (inputs * 100 + outputs) as u64;
                let (weights, scales) = quantize_rows(&random(seed, inputs * outputs, 0.1), inputs);
                let (x, bias) = (random(seed + 1, rows * inputs, 8.0), random(seed + 2, outputs, 1.0));
                let packed = Packed::new(kernel, &Matrix::Int8(vec![(&weights, &scales)]), inputs, &bias);
                let expected = contract(&x, &weights, &scales, &bias, inputs);
                assert!(
                    bits(&apply(&packed, &x, None)) == bits(&expected),
                    "{kernel:?}: {rows} rows, [{outputs}, {inputs}]"
                );
                let factors: Vec<f32> = random(seed + 3, inputs, 1.0).iter().map(|x| x.abs() + 0.01).collect();
                let scaled: Vec<f32> =
                    x.chunks(inputs).flat_map(|row| row.iter().zip(&factors).map(|(x, f)| x * f)).collect();
                let expected = contract(&scaled, &weights, &scales, &bias, inputs);
                let packed = packed.with_pre_quant_scale(factors);
                assert!(
                    bits(&apply(&packed, &x, None)) == bits(&expected),
                    "{kernel:?}: factors, [{outputs}, {inputs}]"
                );
            }
        }
    }
}

#[test]
fn each_kernel_agrees_with_the_scalar_one_and_a_wrong_one_does_not() {
    for kernel in Kernel::available() {
        assert!(kernel.agrees_with_scalar(), "{kernel:?}");
        static WRONG: std::sync::OnceLock<Arm> = std::sync::OnceLock::new();
        // Rows are not normed.
        unsafe fn add_nothing(_: &[f32], _: &mut [f32], _: &[f32], _: &[f32], _: f32) {}
        let wrong = WRONG.get_or_init(|| Arm { add_norm: add_nothing, ..portable::ARM });
        assert!(!Kernel(wrong).agrees_with_scalar());
    }
    assert_eq!(crate::check_kernels().unwrap().last(), Some(&"scalar"));
}

#[test]
fn extreme_integers_saturate_no_arm() {
    let patterns: [fn(usize) -> i8; 6] = [
        |_| 127,
        |_| -127,
        |i| if i.is_multiple_of(2) { 127 } else { -127 },
        |i| if i % 4 < 2 { 127 } else { -127 },
        |i| if i.is_multiple_of(64) { -127 } else { 127 },
        |i| if i.is_multiple_of(2) { 127 } else { 0 },
    ];
    for kernel in Kernel::available() {
        for inputs in [1, 2, 3, 4, 63, 64, 65, 1536, 4096, MAX_INNER] {
            let weights: Vec<i8> = patterns.iter().flat_map(|p| (0..inputs).map(p)).collect();
            let x: Vec<f32> = weights.iter().map(|&q| f32::from(q)).collect();
            let (scales, bias) = (vec![1.0; patterns.len()], vec![0.0; patterns.len()]);
            let packed = Packed::new(kernel, &Matrix::Int8(vec![(&weights, &scales)]), inputs, &bias);
            let expected = contract(&x, &weights, &scales, &bias, inputs);
            assert!(bits(&apply(&packed, &x, None)) == bits(&expected), "{kernel:?}: {inputs} inputs");
        }
    }
}

#[test]
fn rows_that_are_hard_to_quantize_keep_the_contract() {
    let smallest = f32::from_bits(1);
    let halves: Vec<f32> = (-127..=127).map(|q: i16| f32::from(q) + 0.5).chain([127.0, -127.0]).collect();
    let rows: [&[f32]; 6] = [
        &[0.0; 40],
        &[-0.0, smallest, -smallest],
        &[f32::MIN_POSITIVE; 9],
        &[f32::MAX, -f32::MAX, 1.0],
        &halves,
        &[1e-40, 2e-38],
    ];
    for kernel in Kernel::available() {
        for x in rows {
            let weights: Vec<i8> = (0..3 * x.len()).map(|i| (i * 37 % 255) as i16 - 127).map(|q| q as i8).collect();
            let (scales, bias) = ([0.01, 1e-3, 1e-4], [0.0, 1.0, -1.0]);
            let packed = Packed::new(kernel, &Matrix::Int8(vec![(&weights, &scales)]), x.len(), &bias);
            let expected = contract(x, &weights, &scales, &bias, x.len());
            assert!(bits(&apply(&packed, x, None)) == bits(&expected), "{kernel:?}: {} inputs", x.len());
        }
    }
}

#[test]
fn what_is_not_finite_harms_no_memory_and_no_other_row() {
    for kernel in Kernel::available() {
        let (weights, scales) = quantize_rows(&random(1, 33 * 35, 1.0), 35);
        let packed = Packed::new(kernel, &Matrix::Int8(vec![(&weights, &scales)]), 35, &[0.0; 33]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let good = random(2, 3 * 35, 1.0);
            let mut x = good.clone();
            x[40] = bad;
            let (found, expected) = (apply(&packed, &x, None), apply(&packed, &good, None));
            assert!(bits(&found[..33]) == bits(&expected[..33]) && bits(&found[66..]) == bits(&expected[66..]));
        }
    }
}

#[test]
fn several_matrices_stand_for_one() {
    for kernel in Kernel::available() {
        let data = random(3, 60 * 50, 1.0);
        let (weights, scales) = quantize_rows(&data, 50);
        let (x, bias) = (random(4, 5 * 50, 1.0), random(5, 60, 1.0));
        let (w, s) = (weights.split_at(20 * 50), scales.split_at(20));
        let pairs = [
            (Matrix::Int8(vec![(&weights, &scales)]), Matrix::Int8(vec![(w.0, s.0), (w.1, s.1)])),
            (Matrix::F32(vec![&data]), Matrix::F32(vec![&data[..1000], &data[1000..]])),
        ];
        for (whole, parts) in pairs {
            let [whole, parts] = [whole, parts].map(|m| apply(&Packed::new(kernel, &m, 50, &bias), &x, None));
            assert_eq!(bits(&whole), bits(&parts));
        }
    }
}

#[test]
fn float_layers_of_every_size_are_within_the_bound_of_their_sums() {
    for kernel in Kernel::available() {
        for inputs in 1..=67 {
            for outputs in (1..=67).chain([384]) {
                let rows = 1 + (5 * inputs + 3 * outputs) % 67;
                let seed = (inputs * 1000 + outputs) as u64;
                let (w, x) = (random(seed, inputs * outputs, 1.0), random(seed + 1, rows * inputs, 8.0));
                let bias = random(seed + 2, outputs, 1.0);
                let found = apply(&Packed::new(kernel, &Matrix::F32(vec![&w]), inputs, &bias), &x, None);
                for (row, x) in found.chunks(outputs).zip(x.chunks(inputs)) {
                    for ((found, w), bias) in row.iter().zip(w.chunks(inputs)).zip(&bias) {
                        let products = || x.iter().zip(w).map(|(&a, &b)| f64::from(a) * f64::from(b));
                        let expected = products().sum::<f64>() + f64::from(*bias);
                        let size = products().map(f64::abs).sum::<f64>() + f64::from(bias.abs());
                        let bound = 4.0 * inputs as f64 * f64::from(f32::EPSILON) * size;
                        assert!((f64::from(*found) - expected).abs() <= bound, "{kernel:?}: [{outputs}, {inputs}]");
                    }
                }
            }
        }
    }
}

#[test]
fn activations_are_within_a_millionth_of_f64() {
    let tanh_of = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh());
    let cases: [(Activation, &dyn Fn(f64) -> f64); 4] = [
        (Activation::Gelu, &|x| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))),
        (Activation::GeluTanh, &tanh_of),
        (Activation::Relu, &|x| x.max(0.0)),
        (Activation::Tanh, &f64::tanh),
    ];
    let x: Vec<f32> = (-80_000..=80_000).map(|i| i as f32 * 1e-4).collect();
    for kernel in Kernel::available() {
        let same = Packed::new(kernel, &Matrix::F32(vec![&[1.0]]), 1, &[0.0]);
        for (activation, expected) in cases {
            let largest = apply(&same, &x, Some(activation))
                .iter()
                .zip(&x)
                .map(|(&y, &x)| (f64::from(y) - expected(f64::from(x))).abs())
                .fold(0.0, f64::max);
            println!("{kernel:?}, {activation:?}: {largest:.1e}");
            assert!(largest <= 1e-6, "{kernel:?}, {activation:?}: {largest:e}");
            let far = apply(&same, &[-1e30, -100.0, 100.0, 1e30], Some(activation));
            let ends = if activation == Activation::Tanh { [-1.0, -1.0, 1.0, 1.0] } else { [0.0, 0.0, 100.0, 1e30] };
            assert!(
                far.iter().zip(ends).all(|(x, end)| (x - end).abs() <= 1e-6),
                "{kernel:?}, {activation:?}: {far:?}"
            );
        }
    }
}

#[cfg(feature = "autodiff")]
#[test]
fn gelu_and_its_slope_are_within_a_millionth_of_f64() {
    let x: Vec<f32> = (-100_000..=100_000).map(|i| i as f32 * 1e-4).collect();
    for kernel in Kernel::available() {
        let gelu = |x: &[f32]| {
            let (mut y, mut slopes) = (x.to_vec(), vec![0.0; x.len()]);
            kernel.add_bias(&mut y, &[0.0], Some(&mut slopes));
            (y, slopes)
        };
        let wide = |x: &[f32]| {
            let (mut y, mut slopes) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            kernel.add_bias(&mut y, x, Some(&mut slopes));
            (y, slopes)
        };
        let (values, slopes) = wide(&x);
        for ((&x, value), slope) in x.iter().zip(&values).zip(&slopes) {
            let x = f64::from(x);
            let cumulative = 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2));
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(*slope) - cumulative - x * density).abs() <= 1e-6, "{kernel:?}, slope at {x}: {slope}");
            assert!((f64::from(*value) - x * cumulative).abs() <= 1e-6, "{kernel:?}, value at {x}: {value}");
        }
        // Every number of values, one a row and all in one, and what lies far out.
        for n in 1..=67 {
            let near = 100_000..100_000 + n;
            let expected = (values[near.clone()].to_vec(), slopes[near.clone()].to_vec());
            assert_eq!(wide(&x[near.clone()]), expected, "{kernel:?}, {n}");
            assert_eq!(gelu(&x[near]), expected, "{kernel:?}, {n}");
        }
        let (values, slopes) = wide(&[-1e6, -100.0, 100.0, 1e6]);
        assert!(slopes[..2].iter().chain(&values[..2]).all(|x| x.abs() < 1e-12), "{kernel:?}: {slopes:?}, {values:?}");
        assert_eq!((&slopes[2..], &values[2..]), (&[1.0, 1.0][..], &[100.0, 1e6][..]), "{kernel:?}");
    }
}

#[test]
fn layer_norm_of_every_width_is_within_a_millionth_of_f64() {
    for kernel in Kernel::available() {
        let mut largest = 0f64;
        for width in (1..=67).chain([192, 384, 1000]) {
            let (x, first) = (random(width as u64, 5 * width, 1.0), random(1, 5 * width, 1.0));
            let (gamma, beta) = (random(2, width, 1.0), random(3, width, 1.0));
            let mut found = first.clone();
            kernel.add_norm(&x, &mut found, &gamma, &beta, 1e-5);
            for ((found, x), first) in found.chunks(width).zip(x.chunks(width)).zip(first.chunks(width)) {
                let row: Vec<f64> = x.iter().zip(first).map(|(&a, &b)| f64::from(a) + f64::from(b)).collect();
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / width as f64;
                for (i, y) in row.iter().enumerate() {
                    let y = (y - mean) / (variance + 1e-5).sqrt() * f64::from(gamma[i]) + f64::from(beta[i]);
                    largest = largest.max((f64::from(found[i]) - y).abs());
                }
            }
        }
        println!("{kernel:?}: {largest:.1e}");
        assert!(largest <= 1e-6, "{kernel:?}: {largest:e}");
    }
}

/// `[queries, keys, values]` of one head a token, side by side.
fn attend(kernel: Kernel, qkv: &[f32], [first, hidden, width]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![f32::NAN; qkv.len() / (3 * hidden) * width];
    let mut scratch = Scratch::default();
    // What an earlier call left is of no account.
    kernel.attend(&vec![f32::NAN; 3 * hidden * 100], first, hidden, width, &mut scratch, &mut vec![0.0; 100 * width]);
    kernel.attend(qkv, first, hidden, width, &mut scratch, &mut out);
    out
}

#[test]
fn softmax_is_within_a_millionth_of_f64() {
    for kernel in Kernel::available() {
        let mut largest = 0f64;
        // Values are the identity, so the result is the softmax; a query picks one value of each key, so the scores are exact.
        for seq in 1..=64 {
            let width = 64;
            let keys = random(seq as u64, seq * width, 160.0);
            let mut qkv = vec![0.0; seq * 3 * width];
            for (i, token) in qkv.chunks_mut(3 * width).enumerate() {
                token[i * 29 % width] = 1.0;
                token[width..2 * width].copy_from_slice(&keys[i * width..][..width]);
                token[2 * width + i] = 1.0;
            }
            let found = attend(kernel, &qkv, [0, width, width]);
            for (i, row) in found.chunks(width).enumerate() {
                let scores: Vec<f64> =
                    (0..seq).map(|j| f64::from(keys[j * width + i * 29 % width]) / (width as f64).sqrt()).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    largest = largest.max((f64::from(row[j]) - (s - most).exp() / sum).abs());
                }
                assert!(row[seq..].iter().all(|&x| x == 0.0));
            }
        }
        println!("{kernel:?}: {largest:.1e}");
        assert!(largest <= 1e-6, "{kernel:?}: {largest:e}");
    }
}

#[test]
fn attention_of_every_length_is_that_of_f64() {
    for kernel in Kernel::available() {
        for seq in (1..=67).chain([129]) {
            for (heads, width) in [(3, 1 + seq % 67), (2, 32)] {
                let hidden = heads * width;
                let qkv = random(seq as u64, seq * 3 * hidden, 2.0);
                for head in 0..heads {
                    let found = attend(kernel, &qkv, [head * width, hidden, width]);
                    let part = |token: usize, which: usize| {
                        let row = &qkv[(token * 3 + which) * hidden + head * width..][..width];
                        row.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()
                    };
                    for (i, found) in found.chunks(width).enumerate() {
                        let query = part(i, 0);
                        let weights: Vec<f64> = (0..seq)
                            .map(|j| {
                                query.iter().zip(part(j, 1)).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()
                            })
                            .map(f64::exp)
                            .collect();
                        let mut expected = vec![0.0; width];
                        for (j, weight) in weights.iter().enumerate() {
                            expected.iter_mut().zip(part(j, 2)).for_each(|(e, v)| *e += weight * v);
                        }
                        let sum: f64 = weights.iter().sum();
                        for (found, expected) in found.iter().zip(&expected) {
                            let difference = (f64::from(*found) - expected / sum).abs();
                            assert!(difference <= 1e-5, "{kernel:?}: {seq} tokens, {width} wide: {difference:e}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    for kernel in Kernel::available() {
        let data = random(6, 70 * 45, 1.0);
        let (weights, scales) = quantize_rows(&data, 45);
        let x = random(7, 23 * 45, 1.0);
        for matrix in [Matrix::Int8(vec![(&weights, &scales)]), Matrix::F32(vec![&data])] {
            let packed = Packed::new(kernel, &matrix, 45, &[0.5; 70]);
            let together = apply(&packed, &x, Some(Activation::Gelu));
            for (row, together) in x.chunks(45).zip(together.chunks(70)) {
                assert_eq!(bits(&apply(&packed, row, Some(Activation::Gelu))), bits(together), "{kernel:?}");
            }
        }
    }
}

#[test]
fn kernels_are_found_by_name() {
    for kernel in Kernel::available() {
        assert_eq!(Kernel::by_name(kernel.name()).map(Kernel::name), Some(kernel.name()));
    }
    assert!(Kernel::by_name("abacus").is_none());
    assert_eq!(Kernel::available().last().map(Kernel::name), Some("scalar"));
}
