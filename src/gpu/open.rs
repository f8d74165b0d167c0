//! Opening the GPUs of this machine, which models share.

use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "autodiff-wgpu")]
use std::sync::Once;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};

use pollster::block_on;
use wgpu::Features;

use super::GpuLimits;
use super::adapters::{Adapter, Found, Machine, Wanted, unavailable};
use super::proven::{PATIENCE, lock};
use crate::error::Result;
use crate::kernels::gpu::Driver;

/// Models share the device of an adapter until it fails.
static OPEN: Mutex<Vec<Adapter>> = Mutex::new(Vec::new());

const PANICKED: &str = "its driver or library panicked";

/// What this machine has; an error where a driver panicked.
fn machine() -> std::result::Result<&'static Machine, &'static str> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    MACHINE.get_or_init(|| catch_unwind(|| block_on(Machine::look())).ok()).as_ref().ok_or(PANICKED)
}

/// The names of all adapters, hardware first, and whether each is software; none where a driver panics or hangs.
pub(crate) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let found = in_time(looked_for).map_or(&[][..], |machine| &machine.found);
    found.iter().map(|found| (found.name.as_str(), found.is_software))
}

/// A device on the first adapter that will do and can be opened.
pub(crate) fn open(wanted: Wanted, limits: GpuLimits) -> Result<Adapter> {
    in_time(move || block_on(looked_for()?.open(&wanted, async |found| device(found, limits))))
}

/// What `f` gives, on a thread of its own: a driver that hangs keeps its caller for [`PATIENCE`] and no longer.
fn in_time<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (answer, answered) = channel();
    let thread = std::thread::Builder::new().name("ampoule-gpu".to_owned());
    let opening = thread.spawn(move || {
        // Whoever asked may be gone.
        let _ = answer.send(f());
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

fn looked_for() -> Result<&'static Machine> {
    machine().map_err(|why| unavailable(format!("no GPU could be looked for: {why}; use the device `cpu`")))
}

/// The devices that are open, without those that are lost.
fn in_use() -> Vec<Adapter> {
    let mut open = lock(&OPEN);
    // To take down what hangs may take for ever.
    open.extract_if(.., |open| open.is_lost.load(Ordering::Relaxed)).for_each(std::mem::forget);
    open.clone()
}

/// The device that is open on this adapter within these limits, or a new one.
fn device(found: &Found, limits: GpuLimits) -> std::result::Result<Adapter, String> {
    let within = found.within(limits)?;
    // One may have been lost while nobody computed on it. Asking takes as long as what hangs there, so nothing is locked meanwhile.
    for open in in_use() {
        let failed = catch_unwind(AssertUnwindSafe(|| {
            open.driver.clean();
            open.driver.has_failed()
        }));
        open.is_lost.fetch_or(failed.unwrap_or(true), Ordering::Relaxed);
    }
    // One at a time, so that two models do not open two.
    static OPENING: Mutex<()> = Mutex::new(());
    let _opening = lock(&OPENING);
    let is_it = |open: &Adapter| open.name == found.name && open.limits == within;
    let adapter = match in_use().into_iter().find(is_it) {
        Some(adapter) => adapter,
        None => {
            let begun = catch_unwind(AssertUnwindSafe(|| block_on(found.begin(within, Features::empty()))));
            let (device, queue) = begun.unwrap_or_else(|_| Err(PANICKED.to_owned()))?;
            let driver = Arc::new(Driver::new(device, queue));
            let opened = Adapter { driver, name: found.name.clone(), limits: within, is_lost: Arc::default() };
            lock(&OPEN).push(opened.clone());
            opened
        }
    };
    Ok(Adapter { limits: GpuLimits { memory_bytes: limits.memory_bytes, ..within }, ..adapter })
}

/// A device of its own for Burn, on the first adapter that will do.
#[cfg(feature = "autodiff-wgpu")]
pub(crate) fn training_device(wanted: Wanted) -> Result<burn::tensor::Device> {
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
    in_time(move || {
        let machine = looked_for()?;
        let open_on = |found: &Found| -> std::result::Result<burn::tensor::Device, String> {
            let all = found.adapter.limits();
            let limits = GpuLimits {
                f16: found.adapter.features().contains(Features::SHADER_F16),
                shared_memory_bytes: all.max_compute_workgroup_storage_size,
                buffer_bytes: all.max_storage_buffer_binding_size.min(all.max_buffer_size),
                memory_bytes: u64::MAX,
            };
            // CubeCL believes in all that the adapter has, so the device gets all that needs no promise of ours.
            let withheld = Features::MAPPABLE_PRIMARY_BUFFERS | Features::all_experimental_mask();
            let (device, queue) = block_on(found.begin(limits, Features::all() - withheld))?;
            let (instance, adapter) = (machine.instance.clone(), found.adapter.clone());
            let backend = adapter.get_info().backend;
            let setup = WgpuSetup { instance, adapter, device, queue, backend };
            // The number is CubeCL's own default, which a variable would change.
            let options = RuntimeOptions::with_tasks_max(Some(32)).map_err(|e| e.to_string())?;
            try_init_device_with_api::<Api>(setup, options).map(Into::into).map_err(|e| e.to_string())
        };
        let open_on = async |found: &Found| {
            catch_unwind(AssertUnwindSafe(|| open_on(found))).unwrap_or_else(|_| Err(PANICKED.to_owned()))
        };
        block_on(machine.open(&wanted, open_on))
    })
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
            assert_eq!(block_on(queue.read(&row, [2].into_iter()).unwrap()).unwrap(), [[3.0, -4.0]]);
        }
    }
}
