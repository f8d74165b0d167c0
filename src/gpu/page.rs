//! A GPU in a page, where nobody can wait for it: its answers come when the browser says so.

use std::sync::Arc;

use wgpu::Features;

use super::adapters::{Adapter, Found, Machine, Wanted};
use super::proven::{Load, Plan, Proven, Shared};
use super::{GpuLimits, GpuReport};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::gpu::Driver;
use crate::model::Output;
use crate::options::Limit;
use crate::self_check::Reference;

/// A device on what the browser lets a page have; each model has its own.
pub(crate) async fn open(wanted: Wanted, limits: GpuLimits) -> Result<Adapter> {
    let open = async |found: &Found| {
        let within = found.within(limits)?;
        let (device, queue) = found.begin(within, Features::empty()).await?;
        let (driver, name) = (Arc::new(Driver::new(device, queue)), found.name.clone());
        let limits = GpuLimits { memory_bytes: limits.memory_bytes, ..within };
        Ok(Adapter { driver, name, limits, is_lost: Arc::default() })
    };
    Machine::look().await.open(&wanted, open).await
}

/// None: a page learns of its adapter when it is opened.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    std::iter::empty()
}

/// A model on a GPU.
pub(crate) struct Gpu {
    device: Proven,
    shared: Arc<Shared>,
    reference: Reference,
}

impl Gpu {
    /// Loads and proves the model.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where it does not prove itself.
    pub(crate) async fn open(plan: Plan, load: Box<Load>) -> Result<Self> {
        let (reference, plan) = (plan.reference, Arc::new(plan));
        let shared = Arc::new(Shared::new(&plan));
        let device = Proven::open(load, &plan, &shared).await.map_err(|error| shared.fail(&error))?;
        Ok(Gpu { device, shared, reference })
    }

    /// How it stands: there is no model before it is ready.
    pub(crate) fn wait_beyond(&self, _: usize, _: &Limit) -> Result<GpuReport> {
        Ok(self.report())
    }

    pub(crate) fn report(&self) -> GpuReport {
        self.shared.status().report.clone()
    }

    /// What its answers are to be compared with.
    pub(crate) fn reference(&self) -> Reference {
        self.reference
    }

    /// Whether it is to compute this batch, where the processor may too.
    pub(crate) fn takes(&self, _: &Batch) -> bool {
        false
    }

    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable), always.
    pub(crate) fn outputs(&self, _: &Batch, _: Output, _: &Limit) -> Result<Vec<Vec<f32>>> {
        let message = "a page cannot wait for its GPU; read notes by `Extractor::extract_each_in_page`";
        Err(Error::new(ErrorKind::DeviceUnavailable, message))
    }

    /// What is wanted of each sequence.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where the device fails, or failed before; those of the limit.
    pub(crate) async fn answer(&self, batch: &Batch, output: Output, limit: &Limit) -> Result<Vec<Vec<f32>>> {
        self.shared.check()?;
        self.device.outputs(batch, output, &mut || limit.check()).await
    }
}
