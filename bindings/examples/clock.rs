//! What a call costs in Rust, beside which other languages measure their own: `clock BUNDLE TEXT`. For each line of input, a number of
//! calls, prints the median of their microseconds.

use std::io::BufRead;
use std::time::Instant;

use ampoule_bindings::{BundleSource, Extractor, OpenOptions};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(text)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: clock BUNDLE TEXT");
        std::process::exit(2);
    };
    let options = OpenOptions { threads: 1, ..OpenOptions::default() };
    let extractor = match Extractor::open(BundleSource::Path { path }, options) {
        Ok(extractor) => extractor,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    };
    for calls in std::io::stdin().lock().lines().map_while(Result::ok) {
        let mut took: Vec<f64> = (0..calls.trim().parse().unwrap_or(1).max(1))
            .map(|_| {
                let start = Instant::now();
                let found = extractor.extract(&text, None, None);
                let took = start.elapsed();
                assert!(found.is_ok());
                took.as_secs_f64() * 1e6
            })
            .collect();
        took.sort_by(f64::total_cmp);
        println!("{}", took[took.len() / 2]);
    }
}
