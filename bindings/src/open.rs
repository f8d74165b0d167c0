//! From what a model is opened, and how.

use std::collections::HashMap;
use std::path::Path;

use ampoule::bundle::{Bundle, Load};
use ampoule::{Device, Options};

use crate::error::{AmpouleError, Result};

/// Where a bundle lies.
#[derive(Clone, PartialEq, Eq, uniffi::Enum)]
pub enum BundleSource {
    /// A file.
    Path {
        /// Its path.
        path: String,
    },
    /// Part of a file, such as an entry of an APK that is stored uncompressed.
    Within {
        /// The file's path; `/proc/self/fd/N` for one that is open.
        path: String,
        /// Byte of the file at which the bundle begins.
        offset: u64,
        /// Its bytes.
        length: u64,
    },
    /// Memory, which is copied.
    Bytes {
        /// The whole bundle.
        bytes: Vec<u8>,
    },
    /// The library itself, where it was built with the feature `embedded`: chemicals and diseases in English text.
    Embedded,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// A GPU, once it has proved itself; an error where there is none, and in a library without GPUs.
    Gpu,
    /// A GPU where there is one, and the processor until it has proved itself, where it takes longer, and once it fails; the model's report says
    /// how it stands.
    GpuOrCpu,
}

/// How a bundle's file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum LoadMode {
    /// Mapped: no memory of the process's own, and nothing may rewrite or shorten the file while the model is open.
    Map,
    /// Copied.
    Copy,
}

/// How a model is opened.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct OpenOptions {
    /// Where to compute; without a choice the processor.
    #[uniffi(default = None)]
    pub device: Option<DeviceChoice>,
    /// The GPU: a part of its adapter's name. Without one the first that is hardware; software in a GPU's place has to be named.
    #[uniffi(default = None)]
    pub adapter: Option<String>,
    /// With [`DeviceChoice::GpuOrCpu`], the tokens of a batch's longest window from which on the GPU computes; without a number that is measured
    /// while it warms up.
    #[uniffi(default = None)]
    pub gpu_from_tokens: Option<u32>,
    /// Threads that compute; 0 for as many as the machine has fast cores, at most four.
    #[uniffi(default = 0)]
    pub threads: u32,
    /// The kernel of the processor, as a model's report names it; without one the processor's usual one.
    #[uniffi(default = None)]
    pub kernel: Option<String>,
    /// Whether kernels are measured when the model is opened, and the fastest is used.
    #[uniffi(default = false)]
    pub autotune: bool,
    /// How the file is read; without a choice mapped on Android and iOS, copied elsewhere.
    #[uniffi(default = None)]
    pub load: Option<LoadMode>,
    /// Whether the data is compared with the digest in its header.
    #[uniffi(default = false)]
    pub verify: bool,
    /// Entities with a lower score are left out.
    #[uniffi(default = 0.0)]
    pub min_score: f32,
    /// The same by label, in place of `min_score`.
    #[uniffi(default)]
    pub min_score_by_label: HashMap<String, f32>,
    /// What logits are divided by before they become probabilities, in place of the model's own temperature.
    #[uniffi(default = None)]
    pub temperature: Option<f32>,
    /// The most tokens of a window; 0 for as many as the model takes.
    #[uniffi(default = 0)]
    pub max_window_tokens: u32,
    /// The most tokens that are computed at once, which bounds memory; 0 for 1024.
    #[uniffi(default = 0)]
    pub max_batch_tokens: u32,
}

impl From<OpenOptions> for Options {
    fn from(asked: OpenOptions) -> Self {
        let defaults = Options::default();
        Options {
            device: match asked.device.unwrap_or(DeviceChoice::Cpu) {
                DeviceChoice::Cpu => Device::Cpu,
                DeviceChoice::Gpu => Device::Gpu,
                DeviceChoice::GpuOrCpu => Device::GpuOrCpu,
            },
            adapter: asked.adapter,
            gpu_from_tokens: asked.gpu_from_tokens.map(|n| n as usize),
            threads: asked.threads as usize,
            kernel: asked.kernel,
            autotune: asked.autotune,
            load: match asked.load {
                None => defaults.load,
                Some(LoadMode::Map) => Load::Map,
                Some(LoadMode::Copy) => Load::Copy,
            },
            verify: asked.verify,
            min_score: asked.min_score,
            min_score_by_label: asked.min_score_by_label.into_iter().collect(),
            temperature: asked.temperature,
            max_window_tokens: asked.max_window_tokens as usize,
            max_batch_tokens: match asked.max_batch_tokens {
                0 => defaults.max_batch_tokens,
                n => n as usize,
            },
            ..defaults
        }
    }
}

/// Opens a model of a bundle: by its path, or as the bundle that was opened otherwise.
pub(crate) fn open<M>(
    source: BundleSource,
    options: OpenOptions,
    by_path: fn(&Path, &Options) -> ampoule::Result<M>,
    by_bundle: fn(Bundle, &Options) -> ampoule::Result<M>,
) -> Result<M> {
    let options = Options::from(options);
    let bundle = match source {
        BundleSource::Path { path } => return Ok(by_path(Path::new(&path), &options)?),
        BundleSource::Within { path, offset, length } => {
            Bundle::open_at(Path::new(&path), offset, length, options.load, options.verify)?
        }
        BundleSource::Bytes { bytes } => Bundle::from_bytes(bytes, options.verify)?,
        BundleSource::Embedded => embedded()?,
    };
    Ok(by_bundle(bundle, &options)?)
}

#[cfg(feature = "embedded")]
fn embedded() -> Result<Bundle> {
    Ok(Bundle::embedded()?)
}

#[cfg(not(feature = "embedded"))]
fn embedded() -> Result<Bundle> {
    Err(AmpouleError::FixInput("this library was built without a bundle in it; open a file".to_owned()))
}
