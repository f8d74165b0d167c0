//! The GPUs of this machine, or those that a browser lets a page have.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use wgpu::{Backends, DeviceType, ExperimentalFeatures, Features};

use super::GpuLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::gpu::Driver;

/// An open device.
#[derive(Clone)]
pub(crate) struct Adapter {
    pub(crate) driver: Arc<Driver>,
    /// The adapter, as its driver names it.
    pub(crate) name: String,
    /// What it may do, of what was asked for.
    pub(crate) limits: GpuLimits,
    /// Set where it fails: the next model gets a new one.
    pub(crate) is_lost: Arc<AtomicBool>,
}

/// Which adapters will do.
pub(crate) enum Wanted {
    /// Hardware.
    Hardware,
    /// One whose name holds this, whatever the case of its letters.
    Named(String),
}

/// The graphics API of this system: OpenGL is no answer on phones, and writes to stderr.
#[cfg(target_vendor = "apple")]
const API: Backends = Backends::METAL;
#[cfg(windows)]
const API: Backends = Backends::DX12;
#[cfg(target_family = "wasm")]
const API: Backends = Backends::BROWSER_WEBGPU;
#[cfg(not(any(target_vendor = "apple", windows, target_family = "wasm")))]
const API: Backends = Backends::VULKAN;

/// Bytes that a workgroup of our kernels shares.
const LEAST_SHARED: u32 = 16 << 10;

/// Buffers are bound in multiples of these bytes.
const ALIGNMENT: u64 = 256;

/// What a driver found.
pub(super) struct Found {
    pub(super) adapter: wgpu::Adapter,
    pub(super) name: String,
    /// Whether a processor computes in a GPU's place (lavapipe, SwiftShader, WARP).
    pub(super) is_software: bool,
}

/// All that there is, hardware first.
pub(super) struct Machine {
    #[cfg(feature = "autodiff-wgpu")]
    pub(super) instance: wgpu::Instance,
    pub(super) found: Vec<Found>,
}

impl Machine {
    pub(super) async fn look() -> Self {
        let without_display = wgpu::InstanceDescriptor::new_without_display_handle();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends: API, ..without_display });
        let there = instance.enumerate_adapters(API).await.into_iter();
        let found = there.map(|adapter| {
            let info = adapter.get_info();
            // A browser may keep it to itself.
            let name = if info.name.is_empty() { "unnamed".to_owned() } else { info.name };
            Found { adapter, name, is_software: info.device_type == DeviceType::Cpu }
        });
        let mut found: Vec<Found> = found.collect();
        found.sort_by_key(|found| match found.adapter.get_info().device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::VirtualGpu => 2,
            DeviceType::Other => 3,
            DeviceType::Cpu => 4,
        });
        Machine {
            #[cfg(feature = "autodiff-wgpu")]
            instance,
            found,
        }
    }

    /// What `open` gives of the first adapter that will do and can be opened; its error says why one cannot.
    pub(super) async fn open<T>(
        &self,
        wanted: &Wanted,
        open: impl AsyncFn(&Found) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let will_do = |found: &&Found| match wanted {
            Wanted::Hardware => !found.is_software,
            Wanted::Named(name) => found.name.to_lowercase().contains(&name.to_lowercase()),
        };
        let mut failures = Vec::new();
        for found in self.found.iter().filter(will_do) {
            match open(found).await {
                Ok(opened) => return Ok(opened),
                Err(why) => failures.push(format!("{}: {why}", found.name)),
            }
        }
        if !failures.is_empty() {
            let failures = failures.join("; ");
            return Err(unavailable(format!("no GPU that will do could be opened: {failures}; use the device `cpu`")));
        }
        let others: Vec<&str> = self.found.iter().map(|found| found.name.as_str()).collect();
        Err(unavailable(match (wanted, others.is_empty()) {
            (_, true) => "no GPU adapter was found; use the device `cpu`".to_owned(),
            (Wanted::Named(name), false) => {
                format!("no GPU adapter's name holds {name:?}; there are {}", others.join(", "))
            }
            (_, false) => format!(
                "the only GPU adapter is software ({}), which is slower than the device `cpu`; name it to use it all the same",
                others.join(", ")
            ),
        }))
    }
}

pub(super) fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::DeviceUnavailable, message)
}

impl Found {
    /// These limits within the adapter's own; an error where our kernels do not fit.
    pub(super) fn within(&self, limits: GpuLimits) -> std::result::Result<GpuLimits, String> {
        let there = self.adapter.limits();
        let has_all = there.max_compute_invocations_per_workgroup.min(there.max_compute_workgroup_size_x) >= 256
            && there.max_storage_buffers_per_shader_stage >= 6
            && limits.shared_memory_bytes.min(there.max_compute_workgroup_storage_size) >= LEAST_SHARED;
        if !has_all {
            return Err(format!("its workgroups are too small: they need 256 units and {LEAST_SHARED} bytes to share"));
        }
        // Kernels count to 2^32, and some adapters' buffers are larger.
        let countable = limits.buffer_bytes.min(u64::from(u32::MAX));
        let buffer_bytes = countable.min(there.max_storage_buffer_binding_size).min(there.max_buffer_size);
        Ok(GpuLimits {
            f16: limits.f16 && self.adapter.features().contains(Features::SHADER_F16),
            shared_memory_bytes: limits.shared_memory_bytes.min(there.max_compute_workgroup_storage_size),
            buffer_bytes: buffer_bytes / ALIGNMENT * ALIGNMENT,
            // A model's own, and no matter of the device.
            memory_bytes: u64::MAX,
        })
    }

    /// A device with these features, where the adapter has them.
    pub(super) async fn begin(
        &self,
        limits: GpuLimits,
        features: Features,
    ) -> std::result::Result<(wgpu::Device, wgpu::Queue), String> {
        let mut features = features & self.adapter.features();
        features.set(Features::SHADER_F16, limits.f16);
        let mut required = self.adapter.limits();
        required.max_compute_workgroup_storage_size = limits.shared_memory_bytes;
        required.max_storage_buffer_binding_size = limits.buffer_bytes;
        required.max_buffer_size = limits.buffer_bytes;
        let device = self.adapter.request_device(&wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: required,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
            experimental_features: ExperimentalFeatures::disabled(),
        });
        device.await.map_err(|e| e.to_string())
    }
}
