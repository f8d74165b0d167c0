//! The runtime for a page: a bundle's bytes in, entities out, in the one thread of a Worker.
//!
//! Strings, functions and errors cross by wasm-bindgen: what the compiler cannot check about that is in its code, not here. wgpu, by which
//! another module may compute on a GPU, stands on it too, so that a Worker can hold either.

use std::ops::ControlFlow;

use ampoule::bundle::{Bundle, BundleInfo};
use ampoule::{Extractor, OffsetMap, Options, SelfCheck, check_kernels};
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
    self_check: Option<SelfCheck>,
    bundle: Value,
}

#[wasm_bindgen]
impl Model {
    /// Checks this machine's kernels and the bundle, and opens it. Where it is to `prove` itself, its digest is checked too, and it computes its
    /// golden cases: once a visit, as what has been checked is opened again after each note that is overtaken.
    ///
    /// # Errors
    /// An `Error` whose message says what is wrong with the kernels or the bundle.
    #[wasm_bindgen(constructor)]
    pub fn new(bundle: Vec<u8>, prove: bool) -> Result<Model, JsError> {
        check_kernels()?;
        let bundle = Bundle::from_bytes(bundle, prove)?;
        let mut facts = facts(bundle.info());
        facts["card"] = json!(bundle.card()?);
        let options = Options { max_batch_tokens: BATCH_TOKENS, ..Options::default() };
        let extractor = Extractor::from_bundle(bundle, &options)?;
        let self_check = if prove { extractor.self_check()? } else { None };
        Ok(Model { self_check, extractor, bundle: facts })
    }

    /// A JSON object: what the `bundle` says about itself, the `labels` that entities can have, the `report` of
    /// [`Extractor::report`], the `kernels` that [`check_kernels`] compared, and the `self_check` of [`Extractor::self_check`].
    ///
    /// # Errors
    /// An `Error` where a kernel computes wrongly by now.
    pub fn about(&self) -> Result<String, JsError> {
        let about = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "bundle": self.bundle,
            "labels": self.extractor.labels().iter().map(|label| &**label).collect::<Vec<_>>(),
            "report": self.extractor.report(),
            "kernels": check_kernels()?,
            "self_check": self.self_check,
        });
        Ok(about.to_string())
    }

    /// Calls `found(label, start, end, score)` for each entity of `note` in order, as soon as nothing that follows can change it;
    /// `start` and `end` in UTF-16 code units, `score` in 0..=1.
    ///
    /// # Errors
    /// What `found` throws; else an `Error` of the runtime's, which holds nothing of the note.
    pub fn extract(&self, note: &str, found: &Function) -> Result<(), JsValue> {
        let mut thrown = None;
        // Where the last entity ended, in bytes and in code units: no part of a note is counted twice.
        let (mut bytes, mut units) = (0, 0);
        let result = self.extractor.extract_each(note, |entity| {
            let (start, end) = (entity.range.start, entity.range.end);
            let map = OffsetMap::new(&note[bytes..], [start - bytes, end - bytes]);
            let utf16 = [start, end].map(|offset| units + map.utf16(offset - bytes));
            (bytes, units) = (end, utf16[1]);
            let [start, end] = utf16.map(|offset| JsValue::from_f64(offset as f64));
            match found.call4(&JsValue::NULL, &JsValue::from_str(&entity.label), &start, &end, &entity.score.into()) {
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => {
                    thrown = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        match thrown {
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
