//! The GPUs of this machine, and the devices that are open on them.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "autodiff-wgpu")]
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};

use wgpu::{Backends, DeviceType, ExperimentalFeatures, Features};

use super::GpuLimits;
use super::worker::{PATIENCE, lock};
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
#[cfg(not(any(target_vendor = "apple", windows)))]
const API: Backends = Backends::VULKAN;

/// Bytes that a workgroup of our kernels shares.
const LEAST_SHARED: u32 = 16 << 10;

/// Buffers are bound in multiples of these bytes.
const ALIGNMENT: u64 = 256;

/// What a driver found.
struct Found {
    adapter: wgpu::Adapter,
    name: String,
    /// Whether a processor computes in a GPU's place (lavapipe, SwiftShader, WARP).
    is_software: bool,
}

/// All that there is, hardware first.
struct Machine {
    #[cfg(feature = "autodiff-wgpu")]
    instance: wgpu::Instance,
    found: Vec<Found>,
}

/// Models share the device of an adapter until it fails.
static OPEN: Mutex<Vec<Adapter>> = Mutex::new(Vec::new());

const PANICKED: &str = "its driver or library panicked";

/// What this machine has; an error where a driver panicked.
fn machine() -> std::result::Result<&'static Machine, &'static str> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    let look = || {
        let without_display = wgpu::InstanceDescriptor::new_without_display_handle();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends: API, ..without_display });
        let mut found: Vec<Found> = pollster::block_on(instance.enumerate_adapters(API))
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
        Machine {
            #[cfg(feature = "autodiff-wgpu")]
            instance,
            found,
        }
    };
    MACHINE.get_or_init(|| catch_unwind(look).ok()).as_ref().ok_or(PANICKED)
}

/// The names of all adapters, hardware first, and whether each is software.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let found = machine().map_or(&[][..], |machine| &machine.found);
    found.iter().map(|found| (found.name.as_str(), found.is_software))
}

/// A device on the first adapter that will do and can be opened. A driver that hangs keeps its caller for [`PATIENCE`] and no longer.
pub(crate) fn open(wanted: Wanted, limits: GpuLimits) -> Result<Adapter> {
    let (answer, answered) = channel();
    let thread = std::thread::Builder::new().name("ampoule-gpu".to_owned());
    let opening = thread.spawn(move || {
        // Whoever asked may be gone.
        let _ = answer.send(open_here(&wanted, limits));
    });
    opening.map_err(|e| unavailable(format!("cannot start a thread: {e}")).with_source(e))?;
    answered.recv_timeout(PATIENCE).unwrap_or_else(|e| {
        let why = match e {
            RecvTimeoutError::Timeout => "its driver did not answer in time",
            RecvTimeoutError::Disconnected => PANICKED,
        };
        Err(unavailable(format!("no GPU could be opened: {why}; use the device `cpu`")))
    })
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorKind::DeviceUnavailable, message)
}

fn open_here(wanted: &Wanted, limits: GpuLimits) -> Result<Adapter> {
    let machine =
        machine().map_err(|why| unavailable(format!("no GPU could be looked for: {why}; use the device `cpu`")))?;
    let will_do = |found: &&Found| match wanted {
        Wanted::Hardware => !found.is_software,
        Wanted::Named(name) => found.name.to_lowercase().contains(&name.to_lowercase()),
    };
    let mut failures = Vec::new();
    for found in machine.found.iter().filter(will_do) {
        match device(found, limits) {
            Ok(adapter) => return Ok(adapter),
            Err(why) => failures.push(format!("{}: {why}", found.name)),
        }
    }
    if !failures.is_empty() {
        let failures = failures.join("; ");
        return Err(unavailable(format!("no GPU that will do could be opened: {failures}; use the device `cpu`")));
    }
    let others: Vec<&str> = names().map(|(name, _)| name).collect();
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

/// The device that is open on this adapter within these limits, or a new one.
fn device(found: &Found, limits: GpuLimits) -> std::result::Result<Adapter, String> {
    let there = found.adapter.limits();
    let has_all = there.max_compute_invocations_per_workgroup.min(there.max_compute_workgroup_size_x) >= 256
        && there.max_storage_buffers_per_shader_stage >= 6
        && limits.shared_memory_bytes.min(there.max_compute_workgroup_storage_size) >= LEAST_SHARED;
    if !has_all {
        return Err(format!("its workgroups are too small: they need 256 units and {LEAST_SHARED} bytes to share"));
    }
    let buffer_bytes = limits.buffer_bytes.min(there.max_storage_buffer_binding_size).min(there.max_buffer_size);
    let within = GpuLimits {
        f16: limits.f16 && found.adapter.features().contains(Features::SHADER_F16),
        shared_memory_bytes: limits.shared_memory_bytes.min(there.max_compute_workgroup_storage_size),
        buffer_bytes: buffer_bytes / ALIGNMENT * ALIGNMENT,
        // A model's own, and no matter of the device.
        memory_bytes: u64::MAX,
    };
    // One at a time, so that two models do not open two.
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = lock(&OPENING);
    let is_it = |open: &&Adapter| open.name == found.name && open.limits == within;
    let known = {
        let mut open = lock(&OPEN);
        // One may have been lost while nobody computed on it.
        for open in open.iter() {
            let failed = catch_unwind(AssertUnwindSafe(|| {
                open.driver.clean();
                open.driver.has_failed()
            }));
            open.is_lost.fetch_or(failed.unwrap_or(true), Ordering::Relaxed);
        }
        // To take down what hangs may take for ever.
        open.extract_if(.., |open| open.is_lost.load(Ordering::Relaxed)).for_each(std::mem::forget);
        open.iter().find(is_it).cloned()
    };
    let adapter = match known {
        Some(adapter) => adapter,
        None => {
            let begun = catch_unwind(AssertUnwindSafe(|| begin(found, within, Features::empty())));
            let (device, queue) = begun.unwrap_or_else(|_| Err(PANICKED.to_owned()))?;
            let driver = Arc::new(Driver::new(device, queue));
            let opened = Adapter { driver, name: found.name.clone(), limits: within, is_lost: Arc::default() };
            lock(&OPEN).push(opened.clone());
            opened
        }
    };
    Ok(Adapter { limits: GpuLimits { memory_bytes: limits.memory_bytes, ..within }, ..adapter })
}

/// A device with these features, where the adapter has them.
fn begin(
    found: &Found,
    limits: GpuLimits,
    features: Features,
) -> std::result::Result<(wgpu::Device, wgpu::Queue), String> {
    let mut features = features & found.adapter.features();
    features.set(Features::SHADER_F16, limits.f16);
    let mut required = found.adapter.limits();
    required.max_compute_workgroup_storage_size = limits.shared_memory_bytes;
    required.max_storage_buffer_binding_size = limits.buffer_bytes;
    required.max_buffer_size = limits.buffer_bytes;
    pollster::block_on(found.adapter.request_device(&wgpu::DeviceDescriptor {
        label: None,
        required_features: features,
        required_limits: required,
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        trace: wgpu::Trace::Off,
        experimental_features: ExperimentalFeatures::disabled(),
    }))
    .map_err(|e| e.to_string())
}

/// A device of its own for Burn, on the first adapter, hardware if there is any.
#[cfg(feature = "autodiff-wgpu")]
pub(crate) fn training_device() -> Result<burn::tensor::Device> {
    use burn::backend::wgpu::{RuntimeOptions, WgpuSetup, graphics, try_init_device_with_api};
    use burn::cubecl::config::cache::CacheConfig;
    use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    #[cfg(target_vendor = "apple")]
    type Api = graphics::Metal;
    #[cfg(windows)]
    type Api = graphics::Dx12;
    #[cfg(not(any(target_vendor = "apple", windows)))]
    type Api = graphics::Vulkan;
    // It would read burn.toml, cubecl.toml and variables, and look for a project's folder to keep things in. This one there cannot be.
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        let mut config = CubeClRuntimeConfig::default();
        config.environment.path = CacheConfig::Directory("/dev/null/none".into());
        // Each thread would have a stream, and each stream memory of its own, which stays when the thread ends.
        config.streaming.max_streams = 1;
        CubeClRuntimeConfig::try_set(config);
    });
    let open_on = |machine: &Machine, found: &Found| -> std::result::Result<burn::tensor::Device, String> {
        let all = found.adapter.limits();
        let limits = GpuLimits {
            f16: found.adapter.features().contains(Features::SHADER_F16),
            shared_memory_bytes: all.max_compute_workgroup_storage_size,
            buffer_bytes: all.max_storage_buffer_binding_size.min(all.max_buffer_size),
            memory_bytes: u64::MAX,
        };
        // CubeCL believes in all that the adapter has, so the device gets all that needs no promise of ours.
        let withheld = Features::MAPPABLE_PRIMARY_BUFFERS | Features::all_experimental_mask();
        let (device, queue) = begin(found, limits, Features::all() - withheld)?;
        let (instance, adapter) = (machine.instance.clone(), found.adapter.clone());
        let backend = adapter.get_info().backend;
        let setup = WgpuSetup { instance, adapter, device, queue, backend };
        // The number is CubeCL's own default, which a variable would change.
        let options = RuntimeOptions::with_tasks_max(Some(32)).map_err(|e| e.to_string())?;
        try_init_device_with_api::<Api>(setup, options).map(Into::into).map_err(|e| e.to_string())
    };
    let mut why = "no GPU adapter was found".to_owned();
    for found in machine().map(|machine| machine.found.as_slice()).unwrap_or_default() {
        let opened = catch_unwind(AssertUnwindSafe(|| open_on(machine()?, found)));
        match opened.unwrap_or_else(|_| Err(PANICKED.to_owned())) {
            Ok(device) => return Ok(device),
            Err(failure) => why = format!("{}: {failure}", found.name),
        }
    }
    Err(unavailable(format!("no GPU could be opened: {why}; train on the device `cpu`")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Matrix;
    use crate::kernels::gpu::Queue;

    #[test]
    fn models_share_a_device_until_it_fails_and_the_next_gets_a_new_one() {
        let open = |limits| self::open(Wanted::Named(String::new()), limits);
        let Ok(first) = open(GpuLimits::default()) else {
            return println!("skipped: there is no GPU, hardware or software");
        };
        let is_same = |a: &Adapter, b: &Adapter| Arc::ptr_eq(&a.driver, &b.driver);
        assert!(is_same(&open(GpuLimits::default()).unwrap(), &first));
        let lower = open(GpuLimits { buffer_bytes: 8 << 20, ..GpuLimits::default() }).unwrap();
        assert!(!is_same(&lower, &first) && lower.limits.buffer_bytes == 8 << 20);
        let asked = GpuLimits { memory_bytes: 1 << 20, ..GpuLimits::default() };
        let modest = open(asked).unwrap();
        assert!(is_same(&modest, &first) && modest.limits.memory_bytes == 1 << 20);
        first.is_lost.store(true, Ordering::Relaxed);
        let second = open(GpuLimits::default()).unwrap();
        assert!(!is_same(&second, &first) && second.limits == first.limits && second.name == first.name);
        for driver in [lower.driver, second.driver] {
            let queue = Queue::new(driver, false);
            let table = queue.table(&Matrix::F32(vec![&[1.5, -2.0, 3.0, -4.0]]), false, 2, usize::MAX);
            let row = queue.rows(&table, &queue.numbers(&[1]));
            assert_eq!(queue.read(&row, [2].into_iter()).unwrap(), [[3.0, -4.0]]);
        }
    }
}
