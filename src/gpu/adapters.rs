//! The GPUs of this machine, each opened once in a process.

use std::panic::catch_unwind;
use std::sync::{Mutex, Once, PoisonError};

use burn::backend::WgpuDeviceKind;
use burn::backend::wgpu::{RuntimeOptions, WgpuBackend, WgpuDevice, graphics, try_init_setup};
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
static ASKED: Mutex<Vec<(WgpuDeviceKind, Option<Adapter>)>> = Mutex::new(Vec::new());

/// The first adapter that will do.
pub(crate) fn find(wanted: Wanted) -> Result<Adapter> {
    let mut others = Vec::new();
    for adapter in adapters() {
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

/// All adapters, hardware first; each is opened as it is reached.
pub(crate) fn adapters() -> impl Iterator<Item = Adapter> {
    let of = |kind: fn(usize) -> WgpuDeviceKind| (0..MOST).map_while(move |i| open(kind(i)));
    of(WgpuDeviceKind::DiscreteGpu)
        .chain(of(WgpuDeviceKind::IntegratedGpu))
        .chain(of(WgpuDeviceKind::VirtualGpu))
        .chain(of(WgpuDeviceKind::Other))
        .chain(std::iter::once_with(|| open(WgpuDeviceKind::Cpu)).flatten())
}

fn open(kind: WgpuDeviceKind) -> Option<Adapter> {
    // It would read burn.toml, cubecl.toml and variables.
    static CONFIGURED: Once = Once::new();
    CONFIGURED.call_once(|| {
        CubeClRuntimeConfig::try_set(CubeClRuntimeConfig::default());
    });
    let mut asked = ASKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, adapter)) = asked.iter().find(|(asked, _)| *asked == kind) {
        return adapter.clone();
    }
    let opened = catch_unwind(|| {
        let device = WgpuDevice::new(kind.clone()).on(API);
        // The number is CubeCL's own default, which a variable would change.
        let setup = try_init_setup::<Api>(&device, RuntimeOptions::with_tasks_max(Some(32)).ok()?).ok()?;
        let info = setup.adapter.get_info();
        let is_software = kind == WgpuDeviceKind::Cpu;
        Some(Adapter { device: Device::from(device), name: info.name, is_software })
    });
    let adapter = opened.ok().flatten();
    asked.push((kind, adapter.clone()));
    adapter
}
