//! The runtime for Kotlin, Swift and Python.
//!
//! Every call blocks until it is done or cancelled, and may be made from any thread; the packages of each language put their own way of
//! waiting around it (`kotlin/`, `python/`, `swift/`). A panic ends a call as [`AmpouleError::Internal`] with a fixed message, and no error
//! or log holds any of a text. A text has to be well-formed Unicode: what has unpaired surrogates is mended before the call, by the packages.
//!
//! Nothing here knows more than the package `ampoule` alone, of which this is a thin layer.

mod entity;
mod error;
mod guard;
mod models;
mod open;
mod stream;

pub use entity::{Entity, LabelScore};
pub use error::AmpouleError;
pub use models::{Classifier, Computed, Embedder, Extractor, GpuReport, GpuState, ModelCheck, ModelReport};
pub use open::{BundleSource, DeviceChoice, LoadMode, OpenOptions};
pub use stream::{CancelToken, EntityStream};

uniffi::setup_scaffolding!("ampoule_native");

/// The version of this library.
#[uniffi::export]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Compares each kernel of this processor with the plain one on a small fixed layer, in a few milliseconds, and gives the names of those
/// compared. Where one computes wrongly: [`AmpouleError::UseCpu`], whose message names the kernel to open models with.
#[uniffi::export]
pub fn self_check() -> Result<Vec<String>, AmpouleError> {
    guard::guarded(|| Ok(ampoule::check_kernels()?.into_iter().map(str::to_owned).collect()))
}

/// Models and streams that are open, of the whole process. A closed model counts until its last call ends.
#[uniffi::export]
pub fn live_objects() -> u64 {
    guard::live()
}
