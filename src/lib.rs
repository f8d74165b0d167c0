//! The on-device runtime of small clinical language models: entities, labels and vectors from text, offline.
//!
//! A *bundle* is one file that holds a model; `ampoule quantize` makes one of a Hugging Face checkpoint. An [`Extractor`] finds
//! entities in a note of any length, a [`Classifier`] gives texts labels, an [`Embedder`] turns them into vectors. No call
//! opens a socket, reads an environment variable or prints; no error, log or `Debug` output holds a text.
//!
#![cfg_attr(feature = "embedded", doc = "```")]
#![cfg_attr(not(feature = "embedded"), doc = "```ignore")]
//! use ampoule::{Extractor, Options};
//!
//! # fn main() -> ampoule::Result<()> {
//! let note = "Started on lisinopril for hypertension; developed angioedema.";
//! let extractor = Extractor::embedded(&Options::default())?; // or Extractor::open("my.int8.safetensors", ..)
//! let entities = extractor.extract(note)?;
//! let found: Vec<_> = entities.iter().map(|e| (&*e.label, &note[e.range.clone()])).collect();
//! assert_eq!(found, [("Chemical", "lisinopril"), ("Disease", "hypertension"), ("Disease", "angioedema")]);
//! # Ok(())
//! # }
//! ```
//!
//! Features: `flex`, on by default (Burn's Flex back end, which computes where no kernel does: 32-bit ARM, x86-64 without AVX2; apps
//! for 64-bit phones do without it, and then nothing of Burn is in them); off by default `embedded` (the bundle that the example uses, in the binary), `checkpoint` (Hugging Face
//! folders in and out), `wgpu` (GPUs), `autodiff-wgpu` (training on them), `ndarray` (Burn's NdArray back end), `autodiff` (for `ampoule-distill`).

mod batch;
pub mod bundle;
#[cfg(feature = "checkpoint")]
pub mod checkpoint;
mod classifier;
pub mod decode;
mod device;
mod embedder;
mod entity;
mod error;
mod extractor;
mod gpu;
/// For benches; nothing here is a promise.
#[doc(hidden)]
pub mod kernels;
pub mod model;
mod opened;
mod options;
mod self_check;
mod team;
pub mod text;

pub use batch::Batch;
#[cfg(feature = "checkpoint")]
pub use checkpoint::Checkpoint;
pub use classifier::{Classifier, LabelScore};
#[cfg(feature = "autodiff")]
pub use device::training_device;
pub use device::{Device, DeviceReport, KernelTime, MAX_THREADS, check_kernels, gpu_adapters, kernel_names};
pub use embedder::Embedder;
pub use entity::{Entity, OffsetMap};
pub use error::{Error, ErrorKind, Result};
pub use extractor::{Extractor, WordLogits};
pub use gpu::{GpuLimits, GpuReport, GpuState, GpuTime, WarmUp};
pub use model::{ModelConfig, ModelType, Task};
pub use opened::ModelReport;
pub use options::{CancelToken, Computed, Options};
pub use self_check::{Reference, SelfCheck};
