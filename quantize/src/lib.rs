//! From a checkpoint's weights to a [bundle] for the device, with a report of what that cost.
//!
//! The integers are those of the bundle's [integer contract](ampoule::bundle#the-integer-contract), which the runtime owns. This
//! crate decides which matrix is kept how, measures the error of each from the file that was written, and refuses to put a
//! bundle in place whose task metric fell too far.

mod report;
mod smooth;

use std::collections::BTreeMap;
use std::path::Path;

use ampoule::bundle::{self, Bundle, BundleSpec, Golden, Load, Metadata, Pooling, Precision};
use ampoule::model::{ModelConfig, Weights};
use ampoule::{Error, Result};

pub use ampoule::bundle::{dequantize_rows, quantize_rows};
pub use report::{MetricChange, Report, TemperatureChange, TensorReport};
pub use smooth::smooth;

/// How a bundle is made.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// The precision of its matrices.
    pub precision: Precision,
    /// Matrices, by name, that are kept wider than `precision`.
    pub wider: BTreeMap<String, Precision>,
    /// What the inputs of int8 matrices are multiplied by before they are quantized, by the matrices' names; see [`smooth`]. Those of
    /// matrices that are kept wider are left out.
    pub pre_quant_scales: BTreeMap<String, Vec<f32>>,
    /// The program that makes it.
    pub producer: String,
    /// The terms under which the weights may be used.
    pub licence: String,
    /// How an embedder makes a text's vector.
    pub pooling: Pooling,
    /// The most tokens of a window, special tokens counted; `None` for as many as the model has positions.
    pub max_tokens: Option<usize>,
    /// What logits are divided by before they become probabilities, unless it is fitted anew.
    pub temperature: f32,
    /// A model card to carry along.
    pub card: Option<String>,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        QuantizeOptions {
            precision: Precision::Int8,
            wider: BTreeMap::new(),
            pre_quant_scales: BTreeMap::new(),
            producer: concat!("ampoule-quantize ", env!("CARGO_PKG_VERSION")).to_owned(),
            licence: "unknown".to_owned(),
            pooling: Pooling::default(),
            max_tokens: None,
            temperature: 1.0,
            card: None,
        }
    }
}

impl QuantizeOptions {
    fn metadata(&self, config: &ModelConfig) -> Metadata {
        Metadata {
            config: config.clone(),
            precision: self.precision,
            producer: self.producer.clone(),
            licence: self.licence.clone(),
            pooling: self.pooling,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
        }
    }
}

/// Bytes of the bundle that [`quantize`] writes of a model of this shape, whatever its weights are. A fitted temperature may have more
/// digits than that of the options, and the file eight bytes more.
///
/// # Errors
/// Those of [`bundle::size`].
pub fn bundle_bytes(config: &ModelConfig, tokenizer_json: &[u8], options: &QuantizeOptions) -> Result<u64> {
    bundle::size(&BundleSpec {
        metadata: &options.metadata(config),
        weights: &Weights::default(),
        tokenizer_json,
        wider: &options.wider,
        pre_quant_scales: &options.pre_quant_scales,
        card: options.card.as_deref(),
        golden: Some(&Golden::unanswered(config, options.precision)),
    })
}

/// Fits the temperature of the bundle at a path, before it is put in place; none leaves that of the options. Integers answer with
/// other logits than the model did, so what was fitted on its own may not be theirs.
pub type FitTemperature<'a> = dyn FnMut(&Path) -> Result<Option<f32>> + 'a;

/// How much of the task metric a bundle may lose.
pub struct Guard<'a> {
    /// The metric of the model as it was, larger for better.
    pub before: f64,
    /// Measures the same metric of the bundle at a path, before it is put in place.
    pub measure: &'a mut dyn FnMut(&Path) -> Result<f64>,
    /// The most that may be lost, in the metric's own unit.
    pub max_loss: f64,
    /// Put the bundle in place whatever it lost.
    pub force: bool,
}

/// Writes the bundle of a model to `out` and says what its precision cost. What stood at `out` stays as it is when this fails.
///
/// `weights` are exactly those of [`ModelConfig::tensors`].
///
/// # Errors
/// Those of [`bundle::write()`]; those of the fit and of the guard's measure; [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where the
/// metric fell by more than the guard allows and is not forced.
pub fn quantize(
    config: &ModelConfig,
    weights: &Weights,
    tokenizer_json: &[u8],
    out: &Path,
    options: &QuantizeOptions,
    fit: Option<&mut FitTemperature>,
    guard: Option<Guard>,
) -> Result<Report> {
    let mut metadata = options.metadata(config);
    let mut pre_quant_scales = options.pre_quant_scales.clone();
    let is_int8 = |name: &String| options.precision == Precision::Int8 && !options.wider.contains_key(name);
    pre_quant_scales.retain(|name, _| bundle::with_same_inputs(name).iter().all(is_int8));
    let stage = |metadata: &Metadata, golden: Option<&Golden>| {
        let (wider, pre_quant_scales, card) = (&options.wider, &pre_quant_scales, options.card.as_deref());
        bundle::stage(out, &BundleSpec { metadata, weights, tokenizer_json, wider, pre_quant_scales, card, golden })
    };
    let first = stage(&metadata, None)?;
    if let Some(fit) = fit
        && let Some(temperature) = fit(first.path())?
    {
        metadata.temperature = temperature;
    }
    let golden = Golden::answered(&Bundle::open(first.path(), Load::Copy, false)?)?;
    // Written again whole: the header is sealed by a digest of its own. One at a time, for the disk's sake.
    drop(first);
    let staged = stage(&metadata, Some(&golden))?;
    // Read back as a device will read it, so that the report is about the file.
    let written = Bundle::open(staged.path(), Load::Copy, true)?;
    let mut report = Report::compare(weights, &written)?;
    report.temperature.before = options.temperature;
    drop(written);
    if let Some(guard) = guard {
        let after = (guard.measure)(staged.path())?;
        let change = MetricChange { before: guard.before, after, loss: guard.before - after };
        // A metric that is no number is no reason to trust the bundle.
        let acceptable = change.loss <= guard.max_loss;
        if !acceptable && !guard.force {
            return Err(Error::invalid_input(format!(
                "{}: not written: the metric fell from {:.4} to {:.4}, a loss of {:.4}, and at most {:.4} is allowed; keep the \
                 worst matrices wider ({}), allow a larger loss, or force it",
                out.display(),
                change.before,
                change.after,
                change.loss,
                guard.max_loss,
                report.worst(3).map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ")
            )));
        }
        report.metric = Some(change);
    }
    staged.commit()?;
    Ok(report)
}
