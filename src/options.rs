//! How a model is opened and how a call on it may end early.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
// Std's panics where a module has no clock but its page's.
#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
pub(crate) use std::time::Instant;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
pub(crate) use web_time::Instant;

use serde::Serialize;

use crate::bundle::Load;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::GpuLimits;

/// How a model is opened and used. Every field has a default.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to compute.
    pub device: Device,
    /// Threads that compute, at most [`MAX_THREADS`](crate::MAX_THREADS); 0 for as many as the machine has fast cores, at most four. One is
    /// that of the call, the others are the model's own; where Burn computes, all are, and the call waits for them. So many calls may
    /// compute at once, with fewer of the model's then. WebAssembly without threads has the call's alone, whatever is asked.
    pub threads: usize,
    /// The kernel of the processor, one of [`kernel_names`](crate::kernel_names); without a name the first of them. The last digits
    /// of scores depend on it and, where two readings are as likely, an entity.
    pub kernel: Option<String>,
    /// Whether the tested kernels are measured on the model when it is opened, and the fastest is used. That takes a few times as long
    /// as opening, and for a moment the memory of two models, of three for a checkpoint. [`DeviceReport::measured`](crate::DeviceReport)
    /// says how fast each was, and [`DeviceReport::kernel`](crate::DeviceReport) which to name as `kernel` from then on, so that the same
    /// text gets the same scores. An error together with `kernel`, and with a device that is not the processor.
    pub autotune: bool,
    /// The GPU's adapter: a part of its name, as [`gpu_adapters`](crate::gpu_adapters) gives it. Without one the first that is hardware: software
    /// in a GPU's place (lavapipe, SwiftShader) has to be named. The empty name is a part of any.
    pub adapter: Option<String>,
    /// With [`Device::GpuOrCpu`], the tokens of a batch's longest window from which on the GPU computes; without a number both are measured
    /// when the model is opened, in the background, and [`GpuReport::from_tokens`](crate::GpuReport::from_tokens) says what to pin.
    pub gpu_from_tokens: Option<usize>,
    /// The batches after which a GPU computes the golden cases again; 0 for never. The call that brings them waits, so that its
    /// [`deadline`](Options::deadline) should leave time for some ten batches; what it gives is right, or it fails. Where it then fails,
    /// [`GpuReport::unverified_batches`](crate::GpuReport::unverified_batches) says how many were answered since it last proved itself.
    pub gpu_check_every: u64,
    /// What of the GPU is used at most.
    pub gpu_limits: GpuLimits,
    /// The most tokens, padding counted, that are computed at once; bounds memory. At least one window is.
    pub max_batch_tokens: usize,
    /// The most tokens of a window, special tokens counted: 3 to as many as the bundle asks for, else as the model has positions; 0 for
    /// the most.
    pub max_window_tokens: usize,
    /// How a bundle's file is read.
    pub load: Load,
    /// Whether a bundle's data is compared with the digest in its header when it is opened.
    pub verify: bool,
    /// Entities with a lower score are left out.
    pub min_score: f32,
    /// The same by label, in place of `min_score`.
    pub min_score_by_label: BTreeMap<String, f32>,
    /// What logits are divided by before they become probabilities, in place of the model's own temperature; 1 for what the model says
    /// unscaled. It changes scores, and so what `min_score` leaves out, but no entity and no order of labels.
    pub temperature: Option<f32>,
    /// How long a call may take before it ends as [`ErrorKind::Cancelled`].
    pub deadline: Option<Duration>,
    /// Ends the calls of this model from another thread.
    pub cancel: Option<CancelToken>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            device: Device::default(),
            threads: 0,
            kernel: None,
            autotune: false,
            adapter: None,
            gpu_from_tokens: None,
            gpu_check_every: 64,
            gpu_limits: GpuLimits::default(),
            max_batch_tokens: 1024,
            max_window_tokens: 0,
            load: Load::default(),
            verify: false,
            min_score: 0.0,
            min_score_by_label: BTreeMap::new(),
            temperature: None,
            deadline: None,
            cancel: None,
        }
    }
}

impl Options {
    pub(crate) fn limits(&self) -> Limits {
        Limits::new(self.cancel.clone(), self.deadline)
    }

    pub(crate) fn min_score_of(&self, label: &str) -> f32 {
        self.min_score_by_label.get(label).copied().unwrap_or(self.min_score)
    }
}

/// Asks running calls to end, from any thread. Clones are one token.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    is_set: AtomicBool,
    parent: Option<CancelToken>,
}

impl CancelToken {
    /// A token that has not been cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, and by itself.
    pub fn child(&self) -> Self {
        CancelToken(Arc::new(Flag { is_set: AtomicBool::new(false), parent: Some(self.clone()) }))
    }

    /// Ends the calls that look at this token, and those to come, as [`ErrorKind::Cancelled`].
    pub fn cancel(&self) {
        self.0.is_set.store(true, Ordering::Relaxed);
    }

    /// Lets calls run again.
    pub fn reset(&self) {
        self.0.is_set.store(false, Ordering::Relaxed);
    }

    /// Whether it has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed) || self.0.parent.as_ref().is_some_and(CancelToken::is_cancelled)
    }
}

/// Tokens that calls computed, special ones counted, by the device that did; windows of one text may be computed by both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Computed {
    /// On the processor.
    pub cpu_tokens: u64,
    /// On the GPU.
    pub gpu_tokens: u64,
}

/// Tokens so far, on processor and GPU.
#[derive(Debug, Default)]
struct Counts([AtomicU64; 2]);

/// What may end a model's calls early, and what they came to.
#[derive(Clone)]
pub(crate) struct Limits {
    cancel: Option<CancelToken>,
    deadline: Option<Duration>,
    counts: Arc<Counts>,
}

impl Limits {
    pub(crate) fn new(cancel: Option<CancelToken>, deadline: Option<Duration>) -> Self {
        Limits { cancel, deadline, counts: Arc::default() }
    }

    /// The limit of a call that begins now.
    pub(crate) fn begin(&self) -> Limit {
        let end = self.deadline.and_then(|d| Instant::now().checked_add(d));
        Limit { cancel: self.cancel.clone(), end, counts: Some(self.counts.clone()) }
    }

    pub(crate) fn computed(&self) -> Computed {
        let [cpu_tokens, gpu_tokens] = self.counts.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Computed { cpu_tokens, gpu_tokens }
    }
}

/// When one call has to end.
pub(crate) struct Limit {
    cancel: Option<CancelToken>,
    end: Option<Instant>,
    counts: Option<Arc<Counts>>,
}

impl Limit {
    /// Ends nothing.
    pub(crate) const NONE: Limit = Limit { cancel: None, end: None, counts: None };

    /// So many tokens were computed, on a GPU or not.
    pub(crate) fn count(&self, tokens: usize, on_gpu: bool) {
        if let Some(counts) = &self.counts {
            counts.0[usize::from(on_gpu)].fetch_add(tokens as u64, Ordering::Relaxed);
        }
    }

    /// Looked at between layers and between chunks of text.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.as_ref().is_some_and(CancelToken::is_cancelled) {
            return Err(Error::new(ErrorKind::Cancelled, "the call was cancelled"));
        }
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return Err(Error::new(
                ErrorKind::Cancelled,
                "the deadline passed; allow more time, or give less text at once",
            ));
        }
        Ok(())
    }
}
