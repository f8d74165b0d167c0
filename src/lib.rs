//! placeholder

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
pub mod model;
mod opened;
mod options;
pub mod text;

pub use batch::Batch;
#[cfg(feature = "checkpoint")]
pub use checkpoint::Checkpoint;
pub use classifier::{Classifier, LabelScore};
pub use device::{Device, DeviceReport, gpu_adapters};
pub use embedder::Embedder;
pub use entity::{Entity, OffsetMap};
pub use error::{Error, ErrorKind, Result};
pub use extractor::Extractor;
pub use model::{ModelConfig, ModelType, Task};
pub use options::{CancelToken, Options};
