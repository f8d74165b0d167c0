//! A model on a GPU, and what is told of it.

#[cfg(feature = "wgpu")]
mod adapters;
#[cfg(any(feature = "wgpu", all(test, feature = "flex")))]
mod demand;
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
mod open;
#[cfg(all(feature = "wgpu", target_family = "wasm"))]
mod page;
#[cfg(any(feature = "wgpu", all(test, feature = "flex")))]
mod proven;
#[cfg(all(any(feature = "wgpu", all(test, feature = "flex")), not(target_family = "wasm")))]
mod worker;

use serde::Serialize;

#[cfg(feature = "wgpu")]
pub(crate) use self::adapters::{Adapter, Wanted};
#[cfg(feature = "wgpu")]
pub(crate) use self::demand::Demand;
#[cfg(feature = "autodiff-wgpu")]
pub(crate) use self::open::training_device;
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
pub(crate) use self::open::{names, open};
#[cfg(all(feature = "wgpu", target_family = "wasm"))]
pub(crate) use self::page::{Gpu, names, open};
#[cfg(feature = "wgpu")]
pub(crate) use self::proven::{CpuTime, Load, PATIENCE, Plan};
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
pub(crate) use self::worker::Gpu;
use crate::bundle::Precision;
use crate::self_check::SelfCheck;

/// How far a model's GPU has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GpuState {
    /// It loads, compiles, and proves itself; the processor answers meanwhile, where it may.
    Warming,
    /// It computes.
    Ready,
    /// It computes no more: [`GpuReport::reason`] says why.
    Failed,
}

/// What of a GPU is used at most: for drivers that promise more than they keep, and for apps that need its memory too. The default is all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLimits {
    /// Whether it may compute in f16, which it does for bundles in f16.
    pub f16: bool,
    /// Bytes of the memory that the threads of a workgroup share.
    pub shared_memory_bytes: u32,
    /// Bytes of a buffer. Word embeddings and batches are split to fit; a model with a matrix, or a window, that does not
    /// fit is refused.
    pub buffer_bytes: u64,
    /// Bytes for a model's weights and one batch; a model that needs more is refused before any of it is sent.
    pub memory_bytes: u64,
}

impl Default for GpuLimits {
    fn default() -> Self {
        GpuLimits { f16: true, shared_memory_bytes: u32::MAX, buffer_bytes: u64::MAX, memory_bytes: u64::MAX }
    }
}

/// What a model's GPU is, and has done.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GpuReport {
    /// The adapter, as its driver names it.
    pub adapter: String,
    /// What it computes in: f16 for a bundle in f16, where it can, else f32.
    pub precision: Precision,
    /// How far it has come.
    pub state: GpuState,
    /// Why it failed, or what was not proved.
    pub reason: Option<String>,
    /// How far its warm-up has come.
    pub warm_up: WarmUp,
    /// How near it came to the golden cases when it was opened; none before, and where the model has none.
    pub self_check: Option<SelfCheck>,
    /// How long texts took at warm-up, where [`Device::GpuOrCpu`](crate::Device::GpuOrCpu) chooses by them.
    pub measured: Vec<GpuTime>,
    /// With [`Device::GpuOrCpu`](crate::Device::GpuOrCpu), the tokens of a batch's longest window from which on the GPU computes; none while
    /// that is not known, and where it takes longer at every length. [`Options::gpu_from_tokens`](crate::Options) pins a number.
    pub from_tokens: Option<usize>,
    /// Tokens of the batches that it answered, those of golden cases that were asked of it by `self_check` among them.
    pub computed_tokens: u64,
    /// The batches that it answered since it last proved itself: where it failed, what nothing vouches for.
    pub unverified_batches: u64,
}

/// Batches that a GPU computes before it is ready, those that prove it and those that are timed; the first compiles its kernels, and takes the
/// longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct WarmUp {
    /// Those that it has computed.
    pub done: usize,
    /// All.
    pub of: usize,
}

/// How long one text of so many tokens took, special tokens counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GpuTime {
    /// Its tokens.
    pub tokens: usize,
    /// On the GPU.
    pub gpu_microseconds: u64,
    /// On the processor.
    pub cpu_microseconds: u64,
}

impl GpuReport {
    /// Why the processor computes beside it, and what.
    pub(crate) fn beside_processor(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or_default();
        match (self.state, self.from_tokens) {
            (GpuState::Warming, _) => format!("until the GPU {} has proved itself", self.adapter),
            (GpuState::Ready, None) => format!("the GPU {} is slower at every length", self.adapter),
            (GpuState::Ready, Some(n)) => format!("below {n} tokens; from there on the GPU {}", self.adapter),
            (GpuState::Failed, _) => format!("the GPU {} failed: {reason}", self.adapter),
        }
    }
}
