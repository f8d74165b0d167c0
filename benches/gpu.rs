//! A GPU as a worker of `peers/gpu.py`: `gpu MODEL DEVICE` tells how long it took to be ready, then answers each line of its input, the
//! lengths of sequences, with the milliseconds from their ids to their last hidden states.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use ampoule::{Device, Embedder, Options, Result};
use serde_json::json;

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [model, device] = arguments.as_slice() else {
        eprintln!("gpu MODEL cpu|gpu; benches/peers/gpu.py calls it");
        // `cargo bench` of everything calls it with nothing.
        return if arguments.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    match work(model, if device == "gpu" { Device::Gpu } else { Device::Cpu }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn work(model: &str, device: Device) -> Result<()> {
    let begin = Instant::now();
    // As many tokens at once as the largest batch has, and any adapter.
    let options = Options { device, adapter: Some(String::new()), max_batch_tokens: 1 << 14, ..Options::default() };
    let embedder = Embedder::open(model, &options)?;
    let opened = begin.elapsed().as_secs_f64();
    println!("{}", json!({ "opened_s": opened, "report": embedder.report() }));
    for line in std::io::stdin().lock().lines() {
        let lengths: Vec<usize> = serde_json::from_str(&line.unwrap_or_default()).unwrap_or_default();
        let ids = |(i, &n): (usize, &usize)| (0..n).map(|j| (1000 + (i * 7 + j * 37) % 20_000) as u32).collect();
        let sequences: Vec<Vec<u32>> = lengths.iter().enumerate().map(ids).collect();
        let begin = Instant::now();
        let states = embedder.hidden_states(&sequences)?;
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        let sum: f64 = states.iter().flatten().map(|&x| f64::from(x).abs()).sum();
        println!("{}", json!({ "ms": ms, "mean": sum / states.iter().map(Vec::len).sum::<usize>().max(1) as f64 }));
        // Nobody to answer is no failure.
        let _ = std::io::stdout().flush();
    }
    Ok(())
}
