//! Bundles, sound and hostile, through the public interface.
//!
//! Every refusal is tried on bytes in memory, on a mapped and on a copied file; its kind and message are looked at, and so is
//! the largest allocation, which may not exceed the file.

// The counting allocator below is the one way to see allocations.
#![allow(unsafe_code)]

mod header;
mod sound;
mod tensors;
mod writing;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use ampoule::ErrorKind;
use ampoule::bundle::{self, Bundle, BundleSpec, Load, Metadata, Precision};
use ampoule::model::{HostTensor, ModelConfig, ModelType, Task, WeightSource, Weights};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Remembers the largest allocation of each thread.
struct Counting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What any open may allocate, however small the file: the system's path buffers, an error, a short list.
const ANY_OPEN: usize = 8 << 10;
const TOKENIZER: &[u8] = br#"{"version":"1.0","model":{"type":"WordPiece","vocab":{"[UNK]":0}}}"#;

fn config(model_type: ModelType, task: Task) -> ModelConfig {
    let labels: &[&str] = match task {
        Task::Encoder => &[],
        _ => &["O", "B-Krankheit\"\\ü", "I-疾病😀"],
    };
    let architecture = match task {
        Task::Encoder => "Model",
        Task::TokenClassification => "ForTokenClassification",
        _ => "ForSequenceClassification",
    };
    let json = match model_type {
        ModelType::DistilBert => json!({
            "model_type": "distilbert", "architectures": [architecture], "vocab_size": 60, "dim": 32, "n_layers": 2,
            "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40,
        }),
        other => json!({
            "model_type": other.as_str(), "architectures": [architecture], "vocab_size": 60, "hidden_size": 32,
            "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 40,
        }),
    };
    let mut config = ModelConfig::from_json(&json).unwrap();
    config.task = task;
    config.id2label = labels.iter().map(|s| s.to_string()).collect();
    config
}

fn tiny() -> ModelConfig {
    config(ModelType::Bert, Task::TokenClassification)
}

/// Weights in -1..1, the same on every run.
fn weights(config: &ModelConfig) -> Weights {
    let mut random = Random(1);
    let mut next = || (random.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let data = (0..shape.iter().product()).map(|_| next()).collect();
        (name, HostTensor { shape, data })
    };
    Weights(config.tensors().into_iter().map(tensor).collect())
}

fn metadata(config: ModelConfig, precision: Precision) -> Metadata {
    Metadata { producer: "test".to_owned(), licence: "CC0-1.0".to_owned(), ..Metadata::new(config, precision) }
}

fn spec<'a>(metadata: &'a Metadata, weights: &'a Weights) -> BundleSpec<'a> {
    const NONE: &BTreeMap<String, Precision> = &BTreeMap::new();
    const NO_FACTORS: &BTreeMap<String, Vec<f32>> = &BTreeMap::new();
    BundleSpec {
        metadata,
        weights,
        tokenizer_json: TOKENIZER,
        wider: NONE,
        pre_quant_scales: NO_FACTORS,
        card: None,
        golden: None,
    }
}

fn bytes_of(precision: Precision) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.safetensors");
    bundle::write(&path, &spec(&metadata(tiny(), precision), &weights(&tiny()))).unwrap();
    std::fs::read(path).unwrap()
}

/// A bundle in pieces, to be put together wrongly.
#[derive(Clone)]
struct Pieces {
    header: Value,
    data: Vec<u8>,
}

impl Pieces {
    fn of(precision: Precision) -> Self {
        Self::parse(&bytes_of(precision))
    }

    fn parse(bytes: &[u8]) -> Self {
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Pieces { header: serde_json::from_slice(&bytes[8..end]).unwrap(), data: bytes[end..].to_vec() }
    }

    fn with(mut self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Vec<u8> {
        change(&mut self.header, &mut self.data);
        self.seal()
    }

    /// Its bytes, with both digests right.
    fn seal(mut self) -> Vec<u8> {
        let digest = format!("{:x}", HexDigest(&self.data));
        self.header["__metadata__"]["data_sha256"] = json!(digest);
        seal_text(&self.header.to_string(), &self.data)
    }

    fn range(&self, name: &str) -> std::ops::Range<usize> {
        let offset = |i: usize| self.header[name]["data_offsets"][i].as_u64().unwrap() as usize;
        offset(0)..offset(1)
    }
}

struct HexDigest<'a>(&'a [u8]);

impl std::fmt::LowerHex for HexDigest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Sha256::digest(self.0).iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

fn seal_text(header: &str, data: &[u8]) -> Vec<u8> {
    let padding = header.len().next_multiple_of(8) - header.len();
    seal_as_it_is(header.to_owned() + &" ".repeat(padding), data)
}

fn seal_as_it_is(mut header: String, data: &[u8]) -> Vec<u8> {
    let key = "\"header_sha256\":\"";
    if let Some(at) = header.find(key).map(|at| at + key.len()).filter(|at| header.is_char_boundary(at + 64)) {
        header.replace_range(at..at + 64, &"0".repeat(64));
        let digest = format!("{:x}", HexDigest(header.as_bytes()));
        header.replace_range(at..at + 64, &digest);
    }
    unsealed(header.as_bytes(), data)
}

fn unsealed(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Takes every weight of an open bundle.
fn take_all(bundle: &Bundle) -> BTreeMap<String, Vec<f32>> {
    let tensors = bundle.config().tensors();
    tensors.into_iter().map(|(name, shape)| (name.clone(), bundle.weights().take(&name, &shape).unwrap())).collect()
}

/// Expects `bytes` to be refused, however they are opened, and returns the message.
fn refused(bytes: &[u8], verify: bool, kind: ErrorKind, parts: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let copy = bytes.to_vec();
    let mut message = String::new();
    let mut opens: [Box<dyn FnOnce() -> ampoule::Result<Bundle>>; 3] = [
        Box::new(|| Bundle::open(&path, Load::Map, verify)),
        Box::new(|| Bundle::open(&path, Load::Copy, verify)),
        Box::new(move || Bundle::from_bytes(copy, verify)),
    ];
    for open in &mut opens {
        let open = std::mem::replace(open, Box::new(|| unreachable!()));
        LARGEST.set(0);
        let result = open();
        let largest = LARGEST.get();
        let error = result.expect_err("a hostile bundle was opened");
        message = error.to_string();
        assert_eq!(error.kind(), kind, "{message}");
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
        assert!(largest > 0, "allocations are not counted");
        assert!(largest <= bytes.len().max(ANY_OPEN), "{largest} bytes for a file of {}: {message}", bytes.len());
    }
    message
}

fn refused_after(change: impl FnOnce(&mut Value, &mut Vec<u8>), kind: ErrorKind, parts: &[&str]) {
    refused(&Pieces::of(Precision::Int8).with(change), true, kind, parts);
}

/// Renames tensors, so that the data still fits.
fn rename(header: &mut Value, from: &str, to: &str) {
    let header = header.as_object_mut().unwrap();
    let tensor = header.remove(from).unwrap();
    header.insert(to.to_owned(), tensor);
}

/// A generator of the same numbers on every run (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }
}
