//! The other back ends give the answers of the processor's kernel.
#![cfg(all(feature = "checkpoint", any(feature = "ndarray", feature = "wgpu")))]

use std::path::Path;

use ampoule::{Device, Embedder, Extractor, Options};

fn others() -> Vec<Device> {
    let mut devices = Vec::new();
    if cfg!(feature = "ndarray") {
        devices.push(Device::NdArray);
    }
    if cfg!(feature = "wgpu") {
        devices.push(Device::Gpu);
    }
    devices
}

#[test]
fn every_architecture_gives_the_same_answers_on_every_back_end() {
    let folder = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name);
    let text = "the pain of aspirin , naloxone and a patient . ".repeat(9);
    let texts = [text.as_str(), "aspirin", "the pain of a patient"];
    for architecture in ["bert", "distilbert", "roberta", "electra"] {
        let vectors = |device| {
            let options = Options { device, adapter: Some(String::new()), ..Options::default() };
            let embedder = Embedder::open(folder(&format!("{architecture}-encoder")), &options).unwrap();
            println!("{architecture}: {}", embedder.device().name);
            embedder.embed_batch(&texts).unwrap().concat()
        };
        let spans = |device| {
            let options = Options { device, adapter: Some(String::new()), ..Options::default() };
            let extractor = Extractor::open(folder(&format!("{architecture}-token")), &options).unwrap();
            let found = extractor.extract_batch(&texts).unwrap().concat();
            found.into_iter().map(|e| (e.label, e.range)).collect::<Vec<_>>()
        };
        let (expected, expected_spans) = (vectors(Device::Cpu), spans(Device::Cpu));
        for device in others() {
            let found = vectors(device);
            let largest = found.iter().zip(&expected).map(|(f, e)| (f - e).abs()).fold(0f32, f32::max);
            println!("{architecture} on {device:?}: largest difference {largest:.2e}");
            assert!(largest < 1e-4, "{architecture} on {device:?}: {largest}");
            assert_eq!(spans(device), expected_spans, "{architecture} on {device:?}");
        }
    }
}
