//! How long it takes to open the embedded model, and what it computes in a while: `cargo bench --features embedded`.
//!
//! One thread, so that figures of different machines can be compared; `benches/peers` compares with other runtimes, in one run.

use ampoule::{Embedder, Extractor, Options, kernel_names};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

static BUNDLE: &[u8] = include_bytes!("../models/clinical-en.int8.safetensors");

fn main() {
    divan::main();
}

fn options(kernel: &str) -> Options {
    Options { threads: 1, kernel: Some(kernel.to_owned()), ..Options::default() }
}

/// From the bundle's bytes to a model that answers: header, tokenizer, packed weights.
#[divan::bench(args = kernel_names())]
fn open(bencher: Bencher, kernel: &str) {
    bencher.bench(|| Extractor::embedded(&options(kernel)));
}

/// Token ids to last hidden states.
#[divan::bench(args = kernel_names(), consts = [16, 128, 512])]
fn tokens<const N: usize>(bencher: Bencher, kernel: &str) {
    let embedder = Embedder::from_bytes(BUNDLE, &options(kernel)).unwrap();
    let ids: Vec<u32> = (0..N as u32).map(|i| 1000 + i * 37 % 20_000).collect();
    bencher.counter(ItemsCount::new(N)).bench(|| embedder.hidden_states(&[&ids]));
}

/// A note of many windows, text to entities.
#[divan::bench(args = kernel_names(), sample_count = 10)]
fn note(bencher: Bencher, kernel: &str) {
    let extractor = Extractor::embedded(&options(kernel)).unwrap();
    let note = "Started on lisinopril for hypertension; developed angioedema two days later. ".repeat(100);
    bencher.counter(BytesCount::of_str(&note)).bench(|| extractor.extract(&note));
}
