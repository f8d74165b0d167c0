//! The runtime for a page: a bundle's bytes in, entities out, in the one thread of a Worker. With the feature `webgpu` the GPU computes, by the
//! same names.
//!
//! Strings, functions and errors cross by wasm-bindgen: what the compiler cannot check about that is in its code, not here. wgpu stands on it
//! too, so that a Worker can hold either.

use std::ops::ControlFlow;

use ampoule::bundle::{Bundle, BundleInfo};
#[cfg(feature = "webgpu")]
use ampoule::{CancelToken, Device};
#[cfg(not(feature = "webgpu"))]
use ampoule::check_kernels;
use ampoule::{Entity, Extractor, OffsetMap, Options, SelfCheck};
use js_sys::Function;
use serde_json::{Value, json};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::{JsError, wasm_bindgen};

/// Tokens that are computed at once: two windows of the default bundle, so that a long note's first entities are there soon.
const BATCH_TOKENS: usize = 256;

/// An open bundle.
#[wasm_bindgen]
pub struct Model {
    extractor: Extractor,
    kernels: Vec<&'static str>,
    self_check: Option<SelfCheck>,
    bundle: Value,
    #[cfg(feature = "webgpu")]
    stop: CancelToken,
}

#[cfg(not(feature = "webgpu"))]
#[wasm_bindgen]
impl Model {
    /// Checks this machine's kernels and the bundle, and opens it. Where it is to `prove` itself, its digest is checked too, and it computes its
    /// golden cases: once a visit, as what has been checked is opened again after each note that is overtaken.
    ///
    /// # Errors
    /// An `Error` whose message says what is wrong with the kernels or the bundle.
    pub fn open(bundle: Vec<u8>, prove: bool) -> Result<Model, JsError> {
        let kernels = check_kernels()?;
        let (bundle, facts) = opened(bundle, prove)?;
        let options = Options { max_batch_tokens: BATCH_TOKENS, ..Options::default() };
        let extractor = Extractor::from_bundle(bundle, &options)?;
        let self_check = if prove { extractor.self_check()? } else { None };
        Ok(Model { extractor, kernels, self_check, bundle: facts })
    }

    /// Calls `found(label, start, end, score)` for each entity of `note` in order, as soon as nothing that follows can change it;
    /// `start` and `end` in UTF-16 code units, `score` in 0..=1.
    ///
    /// # Errors
    /// What `found` throws; else an `Error` of the runtime's, which holds nothing of the note.
    pub fn extract(&self, note: &str, found: &Function) -> Result<(), JsValue> {
        let mut found = Found::new(note, found);
        let result = self.extractor.extract_each(note, |entity| found.tell(&entity));
        found.end(result)
    }

    /// Nothing: a Worker that computes hears it only when it has done.
    pub fn stop(&self) {}
}

#[cfg(feature = "webgpu")]
#[wasm_bindgen]
impl Model {
    /// Checks the bundle, where it is to `prove` itself its digest too, and opens it on the browser's GPU, which computes its golden cases.
    /// `software` in a GPU's place is refused unless it is asked for.
    ///
    /// # Errors
    /// An `Error` whose message says what is wrong with the GPU or the bundle.
    pub async fn open(bundle: Vec<u8>, prove: bool, software: bool) -> Result<Model, JsError> {
        let (bundle, facts) = opened(bundle, prove)?;
        // Every name holds this one.
        let adapter = software.then(String::new);
        let options = Options { max_batch_tokens: BATCH_TOKENS, device: Device::Gpu, adapter, ..Options::default() };
        let stop = CancelToken::new();
        let extractor = Extractor::from_bundle_in_page(bundle, &options).await?.limited(Some(stop.clone()), None);
        let self_check = extractor.report().gpu.and_then(|gpu| gpu.self_check);
        Ok(Model { extractor, kernels: Vec::new(), self_check, bundle: facts, stop })
    }

    /// Calls `found(label, start, end, score)` for each entity of `note` in order, as soon as nothing that follows can change it;
    /// `start` and `end` in UTF-16 code units, `score` in 0..=1.
    ///
    /// # Errors
    /// What `found` throws; else an `Error` of the runtime's, which holds nothing of the note.
    pub async fn extract(&self, note: String, found: Function) -> Result<(), JsValue> {
        self.stop.reset();
        let mut found = Found::new(&note, &found);
        let result = self.extractor.extract_each_in_page(&note, |entity| found.tell(&entity)).await;
        found.end(result)
    }

    /// Ends what is read, after what the GPU computes just now.
    pub fn stop(&self) {
        self.stop.cancel();
    }
}

#[wasm_bindgen]
impl Model {
    /// A JSON object: what the `bundle` says about itself, the `labels` that entities can have, the `report` of
    /// [`Extractor::report`], the `kernels` that [`check_kernels`] compared, and the `self_check` of [`Extractor::self_check`].
    pub fn about(&self) -> String {
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "bundle": self.bundle,
            "labels": self.extractor.labels().iter().map(|label| &**label).collect::<Vec<_>>(),
            "report": self.extractor.report(),
            "kernels": self.kernels,
            "self_check": self.self_check,
        });
        about.to_string()
    }

    /// Tokens computed so far: they grow while a GPU computes.
    pub fn computed(&self) -> f64 {
        self.extractor.report().computed_tokens as f64
    }
}

/// A bundle and what it says about itself.
fn opened(bundle: Vec<u8>, verify: bool) -> Result<(Bundle, Value), JsError> {
    let bundle = Bundle::from_bytes(bundle, verify)?;
    let mut facts = facts(bundle.info());
    facts["card"] = json!(bundle.card()?);
    Ok((bundle, facts))
}

/// Who is told of a note's entities.
struct Found<'a> {
    note: &'a str,
    told: &'a Function,
    thrown: Option<JsValue>,
    /// Where the last entity ended, in bytes and in UTF-16 code units: no part of a note is counted twice.
    end: (usize, usize),
}

impl<'a> Found<'a> {
    fn new(note: &'a str, told: &'a Function) -> Self {
        Found { note, told, thrown: None, end: (0, 0) }
    }

    fn tell(&mut self, entity: &Entity) -> ControlFlow<()> {
        let ((bytes, units), start, end) = (self.end, entity.range.start, entity.range.end);
        let map = OffsetMap::new(&self.note[bytes..], [start - bytes, end - bytes]);
        let utf16 = [start, end].map(|offset| units + map.utf16(offset - bytes));
        self.end = (end, utf16[1]);
        let [start, end] = utf16.map(|offset| JsValue::from_f64(offset as f64));
        match self.told.call4(&JsValue::NULL, &JsValue::from_str(&entity.label), &start, &end, &entity.score.into()) {
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                self.thrown = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn end(self, result: ampoule::Result<()>) -> Result<(), JsValue> {
        match self.thrown {
            Some(error) => Err(error),
            None => result.map_err(|error| JsError::from(error).into()),
        }
    }
}

/// What a bundle says about itself.
fn facts(info: &BundleInfo) -> Value {
    let metadata = &info.metadata;
    let config = &metadata.config;
    json!({
        "format": format!("{}.{}", info.version.0, info.version.1),
        "bytes": info.bytes,
        "precision": metadata.precision.as_str(),
        "architecture": config.model_type.as_str(),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "vocabulary": config.vocab_size,
        "window": metadata.max_tokens.unwrap_or(config.max_tokens()),
        "temperature": metadata.temperature,
        "producer": metadata.producer,
        "licence": metadata.licence,
        "sha256": info.data_sha256,
    })
}
