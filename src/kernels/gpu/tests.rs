//! Each kernel against plain loops, at sizes that fill no workgroup, no four and no word. Where there is no adapter, nothing runs.

use pollster::block_on;

use super::*;
use crate::gpu::{GpuLimits, Wanted, open};
use crate::kernels::{STEP, mix};

fn queue() -> Option<Queue> {
    match open(Wanted::Named(String::new()), GpuLimits::default()) {
        Ok(adapter) => Some(Queue::new(adapter.driver, false)),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// In -1..1, on a grid of 1/64, so that f16 has them.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let value = |i: u64| f32::from(mix((seed << 32 | i).wrapping_mul(STEP)) as i8) / 128.0;
    (0..count as u64).map(|i| (value(i) * 64.0).round() / 64.0).collect()
}

/// Values as kernels have them between each other.
fn sent(queue: &Queue, values: &[f32], width: usize) -> Buffer {
    let numbers: Vec<u32> = (0..values.len() as u32 / width as u32).collect();
    queue.rows(&queue.table(&Matrix::F32(vec![values]), false, width, usize::MAX), &queue.numbers(&numbers))
}

fn read(queue: &Queue, buffer: &Buffer) -> Vec<f32> {
    block_on(queue.read(buffer, std::iter::once(buffer.len)).unwrap()).unwrap().remove(0)
}

fn near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*f) - e).abs() <= 2e-5 * (1.0 + e.abs()), "{what}, value {at}: {f} and {e}");
    }
}

fn activated(x: f64, activation: Option<Activation>) -> f64 {
    match activation {
        None => x,
        // Simpson's rule over the bell curve: an integral by itself, and no other's approximation.
        Some(Activation::Gelu) => {
            let bell = |t: f64| (-t * t / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let h = x / 2000.0;
            let inner = |i: i32| f64::from(if i % 2 == 0 { 2 } else { 4 }) * bell(h * f64::from(i));
            x * (0.5 + h / 3.0 * (bell(0.0) + bell(x) + (1..2000).map(inner).sum::<f64>()))
        }
        Some(Activation::GeluTanh) => {
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Some(Activation::Relu) => x.max(0.0),
        Some(Activation::Tanh) => x.tanh(),
    }
}

#[test]
fn products_of_a_gpu_are_right_at_every_size() {
    let Some(queue) = queue() else { return };
    let sizes = (1..=67).step_by(3).map(|n| [n, 67 - n / 2, (n * 7) % 66 + 1]);
    let activations =
        [None, Some(Activation::Gelu), Some(Activation::GeluTanh), Some(Activation::Relu), Some(Activation::Tanh)];
    for (i, [rows, inputs, outputs]) in sizes.chain([[130, 150, 129]]).enumerate() {
        let (x, bias) = (values(rows * inputs, 1), values(outputs, 2));
        let weights = values(outputs * inputs, 3);
        let integers: Vec<i8> = weights.iter().map(|w| (w * 127.0) as i8).collect();
        let scales: Vec<f32> = (0..outputs).map(|n| 0.01 + n as f32 / 1e4).collect();
        let factors: Vec<f32> = (0..inputs).map(|k| 0.5 + (k % 5) as f32 / 4.0).collect();
        let activation = activations[i % activations.len()];
        let sent = sent(&queue, &x, inputs);
        let (floats, int8) = (Matrix::F32(vec![&weights]), Matrix::Int8(vec![(&integers, &scales)]));
        for (what, matrix, in_half) in [("f32", &floats, false), ("f16", &floats, true), ("int8", &int8, false)] {
            let is_int8 = what == "int8";
            let of_inputs = is_int8.then_some(factors.as_slice());
            let layer = queue.linear(matrix, in_half, inputs, &bias, of_inputs);
            let parts = if outputs % 3 == 0 { 3 } else { 1 };
            let found = read(&queue, &queue.apply(&layer, &sent, activation, parts));
            let weight = |n: usize, k: usize| match is_int8 {
                true => f64::from(integers[n * inputs + k]) * f64::from(scales[n]) * f64::from(factors[k]),
                false => f64::from(weights[n * inputs + k]),
            };
            let y = |row: usize, n: usize| {
                let products = (0..inputs).map(|k| f64::from(x[row * inputs + k]) * weight(n, k));
                activated(products.sum::<f64>() + f64::from(bias[n]), activation)
            };
            let width = outputs / parts;
            let expected = (0..parts)
                .flat_map(|part| (0..rows).flat_map(move |row| (0..width).map(move |n| (row, part * width + n))));
            let expected: Vec<f64> = expected.map(|(row, n)| y(row, n)).collect();
            near(&found, &expected, &format!("{what} {rows} x {inputs} x {outputs}, {activation:?}"));
        }
    }
}

#[test]
fn attention_of_a_gpu_is_right_for_heads_of_every_width() {
    let Some(queue) = queue() else { return };
    for (width, heads) in [(1, 3), (2, 2), (3, 1), (5, 2), (7, 3), (26, 2), (32, 1), (33, 1), (130, 1), (512, 1)] {
        let (lengths, hidden) = ([1usize, 0, 17, 66, 3], width * heads);
        let tokens: usize = lengths.iter().sum();
        let qkv = values(3 * tokens * hidden, width as u64);
        let found = queue.attend(&sent(&queue, &qkv, hidden), hidden, heads, &queue.sequences(&lengths));
        let at = |part: usize, token: usize, column: usize| f64::from(qkv[(part * tokens + token) * hidden + column]);
        let (mut expected, mut start) = (vec![0.0; tokens * hidden], 0);
        for n in lengths {
            for (head, query) in (0..heads).flat_map(|head| (start..start + n).map(move |query| (head, query))) {
                let columns = head * width..(head + 1) * width;
                let score = |key: usize| columns.clone().map(|c| at(0, query, c) * at(1, key, c)).sum::<f64>();
                let weights: Vec<f64> =
                    (start..start + n).map(|key| (score(key) / (width as f64).sqrt()).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for column in columns.clone() {
                    let of = weights.iter().zip(start..).map(|(w, key)| w / sum * at(2, key, column));
                    expected[query * hidden + column] = of.sum();
                }
            }
            start += n;
        }
        near(&read(&queue, &found), &expected, &format!("{heads} heads of {width}"));
    }
}

#[test]
fn norms_and_rows_of_a_gpu_are_right_at_every_width() {
    let Some(queue) = queue() else { return };
    for width in (1..=130).step_by(7) {
        let (rows, table) = (9, values(40 * width, 5));
        let numbers: Vec<u32> = (0..rows as u32).map(|i| (i * 17 + 3) % 40).collect();
        let (gamma, beta) = (values(width, 6), values(width, 7));
        for (in_half, most_bytes) in [(false, usize::MAX), (true, usize::MAX), (false, 7 * 4 * width)] {
            let sent = queue.table(&Matrix::F32(vec![&table]), in_half, width, most_bytes);
            let found = queue.rows(&sent, &queue.numbers(&numbers));
            let row = |i: usize| &table[numbers[i] as usize * width..][..width];
            assert_eq!(read(&queue, &found), (0..rows).flat_map(row).copied().collect::<Vec<_>>(), "{width}");
            let parameters = [&queue.floats(&gamma), &queue.floats(&beta)];
            let places: Vec<u32> = (0..rows as u32).map(|i| 39 - i).collect();
            let all = queue.floats(&table);
            let residual = |i: usize, c: usize| f64::from(table[places[i] as usize * width + c]);
            let normal = |i: usize, residual: &dyn Fn(usize, usize) -> f64| {
                let x: Vec<f64> = (0..width).map(|c| f64::from(row(i)[c]) + residual(i, c)).collect();
                let mean = x.iter().sum::<f64>() / width as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                let scale = 1.0 / (variance + 1e-5).sqrt();
                let of = |(c, x): (usize, f64)| (x - mean) * scale * f64::from(gamma[c]) + f64::from(beta[c]);
                x.into_iter().enumerate().map(of).collect::<Vec<_>>()
            };
            let expected: Vec<f64> = (0..rows).flat_map(|i| normal(i, &residual)).collect();
            let of_places = queue.add_norm_of(&found, &all, &places, parameters, 1e-5);
            near(&read(&queue, &of_places), &expected, &format!("norm of {width}, places"));
            let expected: Vec<f64> = (0..rows).flat_map(|i| normal(i, &|i, c| f64::from(row(i)[c]))).collect();
            let twice = queue.add_norm(&found, &found, parameters, 1e-5);
            near(&read(&queue, &twice), &expected, &format!("norm of {width}"));
        }
        let lengths = [2, 0, 1, 6];
        let found =
            queue.rows(&queue.table(&Matrix::F32(vec![&table]), false, width, usize::MAX), &queue.numbers(&numbers));
        let firsts = queue.firsts(&found, width, &lengths);
        let expected = [0, 2, 3].map(|i| &table[numbers[i] as usize * width..][..width]).concat();
        assert_eq!(read(&queue, &firsts), expected, "{width}");
    }
}

#[test]
fn an_answer_waits_for_nobody_elses() {
    let Some(queue) = queue() else { return };
    let (rows, inputs) = (70, 90);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let queue = Queue::new(queue.driver.clone(), false);
            scope.spawn(move || {
                let (x, w) = (values(rows * inputs, seed), values(inputs * inputs, seed + 9));
                let layer = queue.linear(&Matrix::F32(vec![&w]), false, inputs, &vec![0.0; inputs], None);
                let x = sent(&queue, &x, inputs);
                let expected = read(&queue, &queue.apply(&layer, &x, None, 1));
                for i in 0..200 {
                    let _dropped = queue.apply(&layer, &x, None, 1);
                    if i % 7 == 0 {
                        queue.forget();
                    }
                    assert!(read(&queue, &queue.apply(&layer, &x, None, 1)) == expected);
                }
            });
        }
    });
}

/// Of a device of its own: it is asked for more than it has.
#[test]
fn a_model_beyond_the_memory_fails_and_the_device_goes_on() {
    let limits = GpuLimits { buffer_bytes: 1 << 20, ..GpuLimits::default() };
    let Ok(adapter) = open(Wanted::Named(String::new()), limits) else {
        return println!("skipped: there is no GPU, hardware or software");
    };
    let queue = Queue::new(adapter.driver, false);
    let works = |queue: &Queue| {
        let x = sent(queue, &values(12, 1), 3);
        read(queue, &x) == values(12, 1)
    };
    assert!(works(&queue));
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let source: Box<dyn std::error::Error + Send + Sync> = "no memory".into();
            lock(&queue.driver.failures).add(&wgpu::Error::OutOfMemory { source });
            // Beyond what a buffer may have: refused, as everything is that is made of what was not had.
            queue.floats(&vec![0.0; 1 << 19]);
            std::thread::park();
            let error = queue.settle().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeviceUnavailable);
            assert!(error.to_string().contains("out of memory"), "{error}");
        });
        while lock(&queue.driver.failures).without_memory.is_empty() {
            std::thread::yield_now();
        }
        // Another model's.
        assert!(works(&queue));
        other.thread().unpark();
    });
    assert!(!queue.driver.has_failed() && works(&queue));
    queue.floats(&vec![0.0; 1 << 19]);
    assert_eq!(queue.settle().unwrap_err().kind(), ErrorKind::Internal);
    assert!(queue.driver.has_failed());
    // The next model gets another.
    assert!(works(&Queue::new(open(Wanted::Named(String::new()), limits).unwrap().driver, false)));
}
