//! The GPUs of this machine, and the devices that are open on them.

use std::panic::catch_unwind;
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

use burn::backend::wgpu::{RuntimeOptions, WgpuSetup, graphics, try_init_device_with_api, wgpu};
use burn::cubecl::config::cache::CacheConfig;
use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use burn::cubecl::future::block_on;
use burn::tensor::Device;
use wgpu::{Backends, DeviceType, ExperimentalFeatures, Features};

use super::GpuLimits;
use crate::error::{Error, ErrorKind, Result};

/// An open device.
#[derive(Clone)]
pub(crate) struct Adapter {
    pub(crate) device: Device,
    /// The adapter, as its driver names it.
    pub(crate) name: String,
    /// What it may do, of what was asked for.
    pub(crate) limits: GpuLimits,
}

/// Which adapters will do.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// Hardware.
    Hardware,
    /// Hardware, else software.
    #[cfg(feature = "autodiff")]
    Any,
    /// One whose name holds this, whatever the case of its letters.
    Named(&'a str),
}

/// The graphics API of this system, by name: OpenGL, which CubeCL's choice falls back to, is no answer on phones, and writes to stderr.
#[cfg(target_vendor = "apple")]
type Api = graphics::Metal;
#[cfg(target_vendor = "apple")]
const API: Backends = Backends::METAL;
#[cfg(windows)]
type Api = graphics::Dx12;
#[cfg(windows)]
const API: Backends = Backends::DX12;
#[cfg(not(any(target_vendor = "apple", windows)))]
type Api = graphics::Vulkan;
#[cfg(not(any(target_vendor = "apple", windows)))]
const API: Backends = Backends::VULKAN;

/// CubeCL takes memory in pages of as many bytes.
const LEAST_BUFFER: u64 = 8 << 20;

/// What a driver found.
struct Found {
    adapter: wgpu::Adapter,
    name: String,
    /// Whether a processor computes in a GPU's place (lavapipe, SwiftShader, WARP).
    is_software: bool,
}

/// All that there is, hardware first.
struct Machine {
    instance: wgpu::Instance,
    found: Vec<Found>,
}

/// CubeCL's runtimes live as long as the process, so models share the device of an adapter until it fails.
static OPEN: Mutex<Vec<Adapter>> = Mutex::new(Vec::new());

fn open_devices() -> MutexGuard<'static, Vec<Adapter>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// None where the driver or its library panicked.
fn machine() -> Option<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    let look = || {
        let without_display = wgpu::InstanceDescriptor::new_without_display_handle();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends: API, ..without_display });
        let mut found: Vec<Found> = block_on(instance.enumerate_adapters(API))
            .into_iter()
            .map(|adapter| {
                let info = adapter.get_info();
                Found { adapter, name: info.name, is_software: info.device_type == DeviceType::Cpu }
            })
            .collect();
        found.sort_by_key(|found| match found.adapter.get_info().device_type {
            DeviceType::DiscreteGpu => 0,
            DeviceType::IntegratedGpu => 1,
            DeviceType::VirtualGpu => 2,
            DeviceType::Other => 3,
            DeviceType::Cpu => 4,
        });
        Machine { instance, found }
    };
    MACHINE.get_or_init(|| catch_unwind(look).ok()).as_ref()
}

fn found() -> &'static [Found] {
    machine().map_or(&[], |machine| &machine.found)
}

/// The names of all adapters, hardware first, and whether each is software.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    found().iter().map(|found| (found.name.as_str(), found.is_software))
}

/// A device on the first adapter that will do.
pub(crate) fn open(wanted: Wanted, limits: GpuLimits) -> Result<Adapter> {
    let will_do = |found: &&Found| match wanted {
        Wanted::Hardware => !found.is_software,
        #[cfg(feature = "autodiff")]
        Wanted::Any => true,
        Wanted::Named(name) => found.name.to_lowercase().contains(&name.to_lowercase()),
    };
    let unavailable = |message: String| Error::new(ErrorKind::DeviceUnavailable, message);
    if let Some(found) = found().iter().find(will_do) {
        return device(found, limits).map_err(|why| {
            unavailable(format!("the GPU {} could not be opened: {why}; use the device `cpu`", found.name))
        });
    }
    let others: Vec<&str> = names().map(|(name, _)| name).collect();
    Err(match (wanted, others.is_empty()) {
        (_, true) => unavailable("no GPU adapter was found; use the device `cpu`".to_owned()),
        (Wanted::Named(name), false) => {
            unavailable(format!("no GPU adapter's name holds {name:?}; there are {}", others.join(", ")))
        }
        (_, false) => unavailable(format!(
            "the only GPU adapter is software ({}), which is slower than the device `cpu`; name it to use it all the same",
            others.join(", ")
        )),
    })
}

/// Takes a device that failed out of use: the next model gets a new one.
pub(crate) fn retire(device: &Device) {
    open_devices().retain(|open| open.device != *device);
}

/// The device that is open on this adapter within these limits, or a new one.
fn device(found: &Found, limits: GpuLimits) -> std::result::Result<Adapter, String> {
    // It would read burn.toml, cubecl.toml and variables, and look for a project's folder to keep things in. This one there cannot be.
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        let mut config = CubeClRuntimeConfig::default();
        config.environment.path = CacheConfig::Directory("/dev/null/none".into());
        CubeClRuntimeConfig::try_set(config);
    });
    let there = found.adapter.limits();
    let limits = GpuLimits {
        f16: limits.f16 && found.adapter.features().contains(Features::SHADER_F16),
        shared_memory_bytes: limits.shared_memory_bytes.min(there.max_compute_workgroup_storage_size),
        buffer_bytes: limits.buffer_bytes.min(there.max_storage_buffer_binding_size).min(there.max_buffer_size),
        ..limits
    };
    if limits.buffer_bytes < LEAST_BUFFER {
        return Err(format!("buffers of {} bytes are too small: it takes {LEAST_BUFFER}", limits.buffer_bytes));
    }
    let mut open = open_devices();
    let is_it = |open: &&Adapter| open.name == found.name && open.limits == limits;
    if let Some(open) = open.iter().find(is_it) {
        return Ok(open.clone());
    }
    let begin = || -> std::result::Result<Device, String> {
        let Some(machine) = machine() else { return Err("its driver is gone".to_owned()) };
        // CubeCL believes in all that the adapter has, so a device gets all that needs no promise of ours.
        let withheld = Features::MAPPABLE_PRIMARY_BUFFERS | Features::all_experimental_mask();
        let mut features = found.adapter.features() - withheld;
        features.set(Features::SHADER_F16, limits.f16);
        let mut required = there.clone();
        required.max_compute_workgroup_storage_size = limits.shared_memory_bytes;
        required.max_storage_buffer_binding_size = limits.buffer_bytes;
        required.max_buffer_size = limits.buffer_bytes;
        let (device, queue) = block_on(found.adapter.request_device(&wgpu::DeviceDescriptor {
            label: None,
            required_features: features,
            required_limits: required,
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
            experimental_features: ExperimentalFeatures::disabled(),
        }))
        .map_err(|e| e.to_string())?;
        let (instance, adapter) = (machine.instance.clone(), found.adapter.clone());
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device, queue, backend };
        // The number is CubeCL's own default, which a variable would change.
        let options = RuntimeOptions::with_tasks_max(Some(32)).map_err(|e| e.to_string())?;
        try_init_device_with_api::<Api>(setup, options).map(Device::from).map_err(|e| e.to_string())
    };
    let begun = catch_unwind(std::panic::AssertUnwindSafe(begin));
    let device = begun.unwrap_or_else(|_| Err("its driver or library panicked".to_owned()))?;
    let adapter = Adapter { device, name: found.name.clone(), limits };
    open.push(adapter.clone());
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::*;

    #[test]
    fn models_share_a_device_until_it_fails_and_the_next_gets_a_new_one() {
        let open = |limits| self::open(Wanted::Named(""), limits);
        let Ok(first) = open(GpuLimits::default()) else {
            return println!("skipped: there is no GPU, hardware or software");
        };
        assert!(open(GpuLimits::default()).unwrap().device == first.device);
        let lower = open(GpuLimits { buffer_bytes: 8 << 20, ..GpuLimits::default() }).unwrap();
        assert!(lower.device != first.device && lower.limits.buffer_bytes == 8 << 20);
        retire(&first.device);
        let second = open(GpuLimits::default()).unwrap();
        assert!(second.device != first.device && second.limits == first.limits && second.name == first.name);
        for device in [&lower.device, &second.device] {
            let x = Tensor::<1>::from_data([1.5f32, -2.0], device);
            assert_eq!((x.clone() + x).into_data().try_into_vec::<f32>().unwrap(), [3.0, -4.0]);
        }
    }
}
