//! What a bundle says about itself, and how it is opened.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// How exactly a bundle keeps its matrices, from the widest to the narrowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// 8-bit integers with a scale a row.
    #[default]
    Int8,
}

impl Precision {
    /// `f32`, `f16` or `int8`.
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
        }
    }

    /// The type of a matrix in this precision.
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Precision::F32 => Dtype::F32,
            Precision::F16 => Dtype::F16,
            Precision::Int8 => Dtype::I8,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Precision::F32, Precision::F16, Precision::Int8]
            .into_iter()
            .find(|p| p.as_str() == name)
            .ok_or_else(|| Error::invalid_input(format!("precision: expected f32, f16 or int8, found {name:?}")))
    }
}

/// The type of a tensor's elements, under safetensors' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    I8,
    U8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 => 2,
            Dtype::I8 | Dtype::U8 => 1,
        }
    }
}

/// How a bundle's file is brought into memory.
///
/// A mapped file costs no memory of the process, but one that is rewritten in place while it is mapped kills the process
/// (SIGBUS), which no error can catch. So [`Map`](Load::Map) is the default on Android and iOS, where an app's files are
/// the app's alone and memory is short, and [`Copy`](Load::Copy) everywhere else, where any tool may write over a file. The
/// writer of bundles never rewrites in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Load {
    /// Map the file; nothing may rewrite or shorten it meanwhile.
    Map,
    /// Read each tensor into memory when it is taken, and check its values again; the file stays open until then.
    Copy,
}

impl Default for Load {
    fn default() -> Self {
        match cfg!(any(target_os = "android", target_os = "ios")) {
            true => Load::Map,
            false => Load::Copy,
        }
    }
}

/// How token vectors `[seq, hidden]` become one vector `[hidden]` (Reimers and Gurevych 2019).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PoolingMode {
    /// Their mean under the attention mask.
    #[default]
    Mean,
    /// The first token's.
    Cls,
    /// Their largest value, dimension by dimension.
    Max,
}

impl PoolingMode {
    /// `mean`, `cls` or `max`.
    pub fn as_str(self) -> &'static str {
        match self {
            PoolingMode::Mean => "mean",
            PoolingMode::Cls => "cls",
            PoolingMode::Max => "max",
        }
    }
}

/// How a text's vector is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pooling {
    /// How token vectors become one.
    pub mode: PoolingMode,
    /// Whether that is scaled to length 1 (L2).
    pub normalize: bool,
}

impl Default for Pooling {
    fn default() -> Self {
        Pooling { mode: PoolingMode::Mean, normalize: true }
    }
}

/// What a bundle says about its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// The model's shape, task and labels.
    pub config: ModelConfig,
    /// The narrowest type of a matrix.
    pub precision: Precision,
    /// The program that wrote the file.
    pub producer: String,
    /// The terms under which the weights may be used.
    pub licence: String,
    /// How an embedder makes a text's vector.
    pub pooling: Pooling,
    /// The most tokens of a window, special tokens counted; `None` for as many as the model has positions.
    pub max_tokens: Option<usize>,
    /// What logits are divided by before they become probabilities (Guo et al. 2017).
    pub temperature: f32,
}

impl Metadata {
    /// The metadata of a model about which nothing else is known: this crate as the producer, licence `unknown`, mean pooling,
    /// temperature 1.
    pub fn new(config: ModelConfig, precision: Precision) -> Self {
        Metadata {
            config,
            precision,
            producer: concat!("ampoule ", env!("CARGO_PKG_VERSION")).to_owned(),
            licence: "unknown".to_owned(),
            pooling: Pooling::default(),
            max_tokens: None,
            temperature: 1.0,
        }
    }
}

/// One tensor of a bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes it takes.
    pub bytes: usize,
    /// Where it begins in the data section.
    pub(super) begin: usize,
}

/// What a bundle's header says.
#[derive(Clone, Debug, PartialEq)]
pub struct BundleInfo {
    /// Major and minor version of the format.
    pub version: (u32, u32),
    /// What it says about the model.
    pub metadata: Metadata,
    /// [`weights_sha256`](super::weights_sha256) of the weights before they were narrowed.
    pub source_sha256: String,
    /// SHA-256 of the data section.
    pub data_sha256: String,
    /// Its tensors, by name.
    pub tensors: Vec<TensorInfo>,
    /// Bytes of the whole bundle.
    pub bytes: u64,
}

impl BundleInfo {
    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }
}
