//! The GPUs of this machine, each opened once in a process.

use std::panic::catch_unwind;
use std::sync::{Mutex, Once, PoisonError};

use burn::backend::WgpuDeviceKind;
use burn::backend::wgpu::{RuntimeOptions, WgpuBackend, WgpuDevice, WgpuInitError, graphics, try_init_setup};
use burn::cubecl::config::cache::CacheConfig;
use burn::cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};
use burn::tensor::Device;

use crate::error::{Error, ErrorKind, Result};

/// An open adapter.
#[derive(Clone)]
pub(crate) struct Adapter {
    pub(crate) device: Device,
    /// As its driver names it.
    pub(crate) name: String,
    /// Whether a processor computes in a GPU's place (lavapipe, SwiftShader, WARP).
    pub(crate) is_software: bool,
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
const API: WgpuBackend = WgpuBackend::Metal;
#[cfg(windows)]
type Api = graphics::Dx12;
#[cfg(windows)]
const API: WgpuBackend = WgpuBackend::Dx12;
#[cfg(not(any(target_vendor = "apple", windows)))]
type Api = graphics::Vulkan;
#[cfg(not(any(target_vendor = "apple", windows)))]
const API: WgpuBackend = WgpuBackend::Vulkan;

/// The most adapters of a kind that are looked at.
const MOST: usize = 8;

/// CubeCL's runtimes live as long as the process and cannot be set up twice, so those that were asked for stand here, and those that are
/// not there.
static ASKED: Mutex<Vec<(WgpuDeviceKind, Opened)>> = Mutex::new(Vec::new());

/// What became of asking for an adapter: it, why it failed, or none where there is none.
type Opened = std::result::Result<Adapter, Option<String>>;

/// The first adapter that will do.
pub(crate) fn find(wanted: Wanted) -> Result<Adapter> {
    let (mut others, mut failures) = (Vec::new(), Vec::new());
    for adapter in opened() {
        let adapter = match adapter {
            Ok(adapter) => adapter,
            Err(why) => {
                failures.push(why);
                continue;
            }
        };
        let will_do = match wanted {
            Wanted::Hardware => !adapter.is_software,
            #[cfg(feature = "autodiff")]
            Wanted::Any => true,
            Wanted::Named(name) => adapter.name.to_lowercase().contains(&name.to_lowercase()),
        };
        if will_do {
            return Ok(adapter);
        }
        others.push(adapter.name);
    }
    let unavailable = |message: String| Error::new(ErrorKind::DeviceUnavailable, message);
    if !failures.is_empty() {
        let failures = failures.join("; ");
        return Err(unavailable(format!(
            "no GPU adapter could be opened that will do: {failures}; use the device `cpu`"
        )));
    }
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

/// All adapters that can be opened, hardware first; each is opened as it is reached, and stays open.
pub(crate) fn adapters() -> impl Iterator<Item = Adapter> {
    opened().filter_map(std::result::Result::ok)
}

/// All adapters, or why one could not be opened.
fn opened() -> impl Iterator<Item = std::result::Result<Adapter, String>> {
    let of = |kind: fn(usize) -> WgpuDeviceKind| {
        // The first that is not there is the last that is asked for.
        (0..MOST).map_while(move |i| match open(kind(i)) {
            Ok(adapter) => Some(Ok(adapter)),
            Err(why) => why.map(Err),
        })
    };
    of(WgpuDeviceKind::DiscreteGpu)
        .chain(of(WgpuDeviceKind::IntegratedGpu))
        .chain(of(WgpuDeviceKind::VirtualGpu))
        .chain(of(WgpuDeviceKind::Other))
        .chain(of(|_| WgpuDeviceKind::Cpu).take(1))
}

fn open(kind: WgpuDeviceKind) -> Opened {
    // It would read burn.toml, cubecl.toml and variables, and look for a project's folder to keep things in. This one there cannot be.
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        let mut config = CubeClRuntimeConfig::default();
        config.environment.path = CacheConfig::Directory("/dev/null/none".into());
        CubeClRuntimeConfig::try_set(config);
    });
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, opened)) = asked.iter().find(|(asked, _)| *asked == kind) {
        return opened.clone();
    }
    let opened = catch_unwind(|| {
        let device = WgpuDevice::new(kind.clone()).on(API);
        // The number is CubeCL's own default, which a variable would change.
        let setup =
            RuntimeOptions::with_tasks_max(Some(32)).and_then(|options| try_init_setup::<Api>(&device, options));
        match setup {
            Ok(setup) => {
                let (name, is_software) = (setup.adapter.get_info().name, kind == WgpuDeviceKind::Cpu);
                Ok(Adapter { device: Device::from(device), name, is_software })
            }
            Err(WgpuInitError::AdapterUnavailable { .. }) => Err(None),
            Err(error) => Err(Some(error.to_string())),
        }
    });
    let opened = opened.unwrap_or_else(|_| Err(Some("its driver or library panicked".to_owned())));
    asked.push((kind, opened.clone()));
    opened
}
