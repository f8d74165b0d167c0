//! Vectors against sentence-transformers: `tests/fixtures/embeddings.py` writes them.
#![cfg(feature = "checkpoint")]

use ampoule::{Embedder, Options};
use serde_json::Value;

fn vector(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

#[test]
#[ignore = "needs the output of tests/fixtures/embeddings.py in AMPOULE_EMBEDDINGS"]
fn vectors_are_those_of_sentence_transformers() {
    let Ok(path) = std::env::var("AMPOULE_EMBEDDINGS") else {
        println!("skipped: AMPOULE_EMBEDDINGS names no output of tests/fixtures/embeddings.py");
        return;
    };
    let content = std::fs::read_to_string(path).unwrap();
    let mut lines = content.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let embedder = Embedder::open(header["model"].as_str().unwrap(), &Options::default()).unwrap();
    let cases: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = cases.iter().map(|case| case["text"].as_str().unwrap()).collect();
    let (mut single, mut batched, mut shortest, mut longest) = (0f64, 0f64, usize::MAX, 0);
    for (cases, texts) in cases.chunks(16).zip(texts.chunks(16)) {
        for ((case, text), together) in cases.iter().zip(texts).zip(embedder.embed_batch(texts).unwrap()) {
            let expected = vector(&case["vector"]);
            let largest = |found: &[f32]| {
                found.iter().zip(&expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0f64, f64::max)
            };
            single = single.max(largest(&embedder.embed(text).unwrap()));
            batched = batched.max(largest(&together));
            let tokens = case["tokens"].as_u64().unwrap() as usize;
            (shortest, longest) = (shortest.min(tokens), longest.max(tokens));
        }
    }
    println!(
        "{} texts of {shortest} to {longest} tokens: largest difference {single:.2e} one by one, {batched:.2e} in batches",
        texts.len()
    );
    assert!(single <= 1e-5 && batched <= 1e-5);
}
