//! Where a model computes, and why there.

use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "backend")]
use burn::tensor::Device as BurnDevice;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Kernel;
use crate::model::{ModelConfig, PackedModel, WeightSource, Workers};
use crate::options::Options;
use crate::team::Team;

/// The device that is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Device {
    /// The processor: see [`kernel_names`].
    #[default]
    Cpu,
    /// A GPU by wgpu, once it has computed the bundle's golden cases rightly; an error where it does not, where there is none, and where
    /// this build is without the feature `wgpu`. Each model has a thread that speaks to it, but for a page's, which has none to spare. See
    /// [`Options::adapter`].
    Gpu,
    /// A GPU where there is one that computes rightly, and the processor, which answers until the GPU has proved itself, where the GPU
    /// takes longer ([`Options::gpu_from_tokens`]), and for good once it fails. [`ModelReport`](crate::ModelReport) says how it stands, and
    /// [`Extractor::computed`](crate::Extractor::computed) how many tokens each computed; windows of one text may be computed by both. A GPU
    /// computes with floats, the processor an int8 bundle under the integer contract, so that scores differ by about a hundredth, and where two
    /// readings are as likely, an entity.
    GpuOrCpu,
    /// The processor, by Burn's deprecated NdArray back end, for comparison; needs the feature `ndarray`.
    NdArray,
}

/// What was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceReport {
    /// What was asked for.
    pub requested: Device,
    /// What computes. With [`Device::GpuOrCpu`] the processor, whatever a GPU computes beside it: see [`ModelReport::gpu`](crate::ModelReport).
    pub computes_on: Device,
    /// The back end; for a GPU with its adapter, for the processor its kernel.
    pub name: String,
    /// The processor's kernel, as [`Options::kernel`] takes it.
    pub kernel: Option<String>,
    /// Why this one, when the model was opened; in a [`ModelReport`](crate::ModelReport), now.
    pub reason: String,
    /// Threads that compute on the processor: where a kernel does, the caller's among them. With [`Device::Gpu`] the calls that may wait for it
    /// at once.
    pub threads: usize,
    /// What [`Options::autotune`] measured.
    pub measured: Vec<KernelTime>,
}

/// How long a kernel took for a short text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KernelTime {
    /// One of [`kernel_names`].
    pub kernel: String,
    /// The least of a few runs.
    pub microseconds: u64,
}

/// What a model is loaded for.
#[derive(Clone)]
pub(crate) enum Place {
    /// The processor, by a kernel.
    Kernel(Kernel),
    /// A device of Burn's.
    #[cfg(feature = "backend")]
    Burn(BurnDevice),
    /// A GPU, and nothing beside it.
    #[cfg(feature = "wgpu")]
    Gpu,
}

/// A place with what computes on it.
#[derive(Clone)]
pub(crate) struct Engine {
    /// Where it computes, or where a GPU's place is taken.
    pub(crate) place: Place,
    #[cfg(feature = "wgpu")]
    pub(crate) gpu: Option<crate::gpu::Adapter>,
    /// Who computes: where a kernel does, as many threads as were asked for, else the one that calls.
    pub(crate) team: Arc<Team>,
    /// In which Burn computes, since it would otherwise start rayon's global one.
    #[cfg(feature = "backend")]
    pub(crate) pool: Option<Arc<rayon::ThreadPool>>,
    pub(crate) report: DeviceReport,
}

/// The most threads that are used unless more are asked for; encoders this small gain little from more.
const DEFAULT_THREADS: usize = 4;

/// Threads where none are asked for: one for each of the machine's cores that is neither a slow one beside fast ones, which the
/// others would wait for, nor a second thread of the same core, which has no arithmetic of its own; at most as many as this process
/// may use, and [`DEFAULT_THREADS`].
fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cores = performance_cores(Path::new("/sys/devices/system/cpu"));
    allowed.min(cores.unwrap_or(DEFAULT_THREADS)).min(DEFAULT_THREADS)
}

/// The physical cores of at least half the largest capacity, as Linux and Android tell of them in `folder`.
fn performance_cores(folder: &Path) -> Option<usize> {
    let mut capacities = Vec::new();
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("cpu")) else { continue };
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        // One that is switched off has none.
        let siblings = read("topology/core_cpus_list").or_else(|| read("topology/thread_siblings_list"));
        let Some(siblings) = siblings else { continue };
        let first = siblings.split(|c: char| !c.is_ascii_digit()).next();
        if first == Some(number) {
            // Processors that are all alike may have neither file.
            let capacity = read("cpu_capacity").or_else(|| read("cpufreq/cpuinfo_max_freq"));
            capacities.push(capacity.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0));
        }
    }
    let most = *capacities.iter().max()?;
    Some(capacities.iter().filter(|capacity| **capacity * 2 >= most).count())
}

/// A module of WebAssembly without threads has the one that calls it; there Burn's rayon makes do with that too.
const IS_ONE_THREAD: bool = cfg!(all(target_family = "wasm", not(target_feature = "atomics")));

#[cfg(feature = "backend")]
fn start_pool(threads: usize) -> Result<Arc<rayon::ThreadPool>> {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("ampoule-{i}"));
    builder.build().map(Arc::new).map_err(|e| {
        Error::new(ErrorKind::DeviceUnavailable, format!("cannot start {threads} threads: {e}")).with_source(e)
    })
}

/// The most threads that may be asked for: more than any processor has cores, fewer than would bring a machine down.
pub const MAX_THREADS: usize = 1024;

impl Engine {
    pub(crate) fn start(options: &Options) -> Result<Self> {
        #[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
        return Self::start_with(options, || crate::gpu::open(wanted(options.adapter.as_deref()), options.gpu_limits));
        #[cfg(all(feature = "wgpu", target_family = "wasm"))]
        return Self::start_with(options, || Err(Error::new(ErrorKind::DeviceUnavailable, IN_A_PAGE)));
        #[cfg(not(feature = "wgpu"))]
        Self::start_with(options)
    }

    /// The same in a page, where nobody can wait.
    #[cfg(all(feature = "wgpu", target_family = "wasm"))]
    pub(crate) async fn start_in_page(options: &Options) -> Result<Self> {
        let adapter = match options.device {
            Device::Gpu => Some(crate::gpu::open(wanted(options.adapter.as_deref()), options.gpu_limits).await?),
            Device::GpuOrCpu => {
                let message =
                    "a page has two models where it wants both devices, each in a Worker; ask for `cpu` or `gpu`";
                return Err(Error::invalid_input(message));
            }
            _ => None,
        };
        Self::start_with(options, || adapter.ok_or_else(|| Error::new(ErrorKind::DeviceUnavailable, IN_A_PAGE)))
    }

    fn start_with(
        options: &Options,
        #[cfg(feature = "wgpu")] adapter: impl FnOnce() -> Result<crate::gpu::Adapter>,
    ) -> Result<Self> {
        let requested = options.device;
        let threads = match options.threads {
            _ if IS_ONE_THREAD => 1,
            0 => default_threads(),
            n if n <= MAX_THREADS => n,
            n => return Err(Error::invalid_input(format!("{n} threads: at most {MAX_THREADS} can be asked for"))),
        };
        #[cfg(feature = "wgpu")]
        let (gpu, Choice { place, computes_on, name, reason }) = match requested {
            Device::Gpu => {
                let adapter = adapter()?;
                let (place, name) = (Place::Gpu, format!("wgpu: {}", adapter.name));
                let reason = "asked for".to_owned();
                (Some(adapter), Choice { place, computes_on: Device::Gpu, name, reason })
            }
            Device::GpuOrCpu => match adapter() {
                Ok(adapter) => {
                    let reason = format!("until the GPU {} has proved itself", adapter.name);
                    (Some(adapter), cpu(reason)?)
                }
                Err(error) => (None, cpu(error.to_string())?),
            },
            _ => (None, choose(requested)?),
        };
        #[cfg(not(feature = "wgpu"))]
        let Choice { place, computes_on, name, reason } = choose(requested)?;
        let is_processor = computes_on == Device::Cpu;
        let kernel = is_processor.then(|| kernel_names()[0].to_owned());
        let measured = Vec::new();
        let report = DeviceReport { requested, computes_on, name, kernel, reason, threads, measured };
        let mut engine = Engine {
            place,
            #[cfg(feature = "wgpu")]
            gpu,
            team: Team::start(1)?,
            #[cfg(feature = "backend")]
            pool: None,
            report,
        };
        match &options.kernel {
            Some(asked) if !is_processor => Err(Error::invalid_input(format!(
                "the kernel {asked:?} is for the processor, and {} computes",
                engine.report.name
            ))),
            Some(asked) if options.autotune => Err(Error::invalid_input(format!(
                "the kernel {asked:?} is named, so there is none to choose by measuring; leave one of the two out"
            ))),
            None if options.autotune && !is_processor => Err(Error::invalid_input(format!(
                "kernels are measured on the processor, and {} computes",
                engine.report.name
            ))),
            Some(asked) => engine.use_kernel(asked),
            None => Ok(()),
        }?;
        if matches!(engine.place, Place::Kernel(_)) {
            engine.team = Team::start(threads)?;
        }
        #[cfg(feature = "backend")]
        if matches!(engine.place, Place::Burn(_)) && !IS_ONE_THREAD {
            engine.pool = Some(start_pool(threads)?);
        }
        Ok(engine)
    }

    /// A model that `kernel` is to compute within [`Engine::install`].
    pub(crate) fn packed(
        &self,
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        kernel: Kernel,
    ) -> Result<PackedModel> {
        PackedModel::load(config, source, kernel, Workers::Team(self.team.clone()))
    }

    /// Runs `f` where its place computes: on the thread that calls, or in the pool.
    pub(crate) fn install<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        #[cfg(feature = "backend")]
        if let Some(pool) = &self.pool {
            if self.report.threads > 1 {
                // All wake at once: the others would sleep on until the first has work to share.
                pool.spawn_broadcast(|_| {});
            }
            return pool.install(f);
        }
        f()
    }

    /// Whether the thread that calls is one of its own, and so within a call.
    pub(crate) fn is_within(&self) -> bool {
        #[cfg(feature = "backend")]
        return self.pool.as_ref().is_some_and(|pool| pool.current_thread_index().is_some());
        #[cfg(not(feature = "backend"))]
        false
    }

    /// Whether [`Options::autotune`] is to choose.
    pub(crate) fn is_to_be_tuned(&self, options: &Options) -> bool {
        options.autotune && self.report.computes_on == Device::Cpu
    }

    /// Lets the processor's kernel of this name compute.
    pub(crate) fn use_kernel(&mut self, name: &str) -> Result<()> {
        let Some(place) = processor(name) else {
            let names = kernel_names().join(", ");
            return Err(Error::invalid_input(format!("no kernel {name:?} for this processor, which runs {names}")));
        };
        self.place = place;
        self.report.name = format!("kernel {name}");
        self.report.kernel = Some(name.to_owned());
        Ok(())
    }
}

/// Burn's Flex back end, in f32, in place of a kernel of ours.
#[cfg(feature = "flex")]
const FLEX: &str = "flex";

/// The kernels that this processor can run, the default first; see [`Options::kernel`]. `flex`, with the feature of that name, is
/// Burn's back end in f32, which computes where no kernel for the processor's vector instructions is there; `scalar`, last, is what
/// the others are tested against.
pub fn kernel_names() -> Vec<&'static str> {
    let names = Kernel::available().map(Kernel::name);
    #[cfg(feature = "flex")]
    let names = {
        let mut names: Vec<_> = names.collect();
        names.insert(names.len() - 1, FLEX);
        names.into_iter()
    };
    names.collect()
}

/// Compares each kernel of this processor with the scalar one on a small fixed layer, and gives the names of those compared: for an app
/// that looks after itself on machines that nobody tested.
///
/// # Errors
/// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where one computes something else; models opened with the kernel `scalar` do without
/// it.
pub fn check_kernels() -> Result<Vec<&'static str>> {
    let check = |kernel: Kernel| match kernel.agrees_with_scalar() {
        true => Ok(kernel.name()),
        false => Err(Error::new(
            ErrorKind::DeviceUnavailable,
            format!(
                "the kernel {:?} computes wrongly on this processor; open models with the kernel \"scalar\"",
                kernel
            ),
        )),
    };
    Kernel::available().map(check).collect()
}

/// Where the kernel of this name computes.
fn processor(name: &str) -> Option<Place> {
    #[cfg(feature = "flex")]
    if name == FLEX {
        return Some(Place::Burn(BurnDevice::flex()));
    }
    Kernel::by_name(name).map(Place::Kernel)
}

/// The place, what it is, its name, and why it was chosen.
struct Choice {
    place: Place,
    computes_on: Device,
    name: String,
    reason: String,
}

fn cpu(reason: String) -> Result<Choice> {
    let kernel = kernel_names()[0];
    let place = processor(kernel).ok_or_else(|| Error::internal("the default kernel is not there"))?;
    Ok(Choice { place, computes_on: Device::Cpu, name: format!("kernel {kernel}"), reason })
}

/// Where there is no GPU.
fn choose(requested: Device) -> Result<Choice> {
    match requested {
        Device::Cpu => cpu("no other device was asked for".to_owned()),
        Device::NdArray => ndarray(),
        Device::Gpu => Err(Error::new(ErrorKind::DeviceUnavailable, NO_GPU)),
        Device::GpuOrCpu => cpu(NO_GPU.to_owned()),
    }
}

#[cfg(feature = "ndarray")]
fn ndarray() -> Result<Choice> {
    #[allow(deprecated)] // kept as long as Burn keeps it
    let device = BurnDevice::ndarray();
    let (name, reason) = ("NdArray".to_owned(), "asked for".to_owned());
    Ok(Choice { place: Place::Burn(device), computes_on: Device::NdArray, name, reason })
}

#[cfg(not(feature = "ndarray"))]
fn ndarray() -> Result<Choice> {
    Err(Error::new(
        ErrorKind::DeviceUnavailable,
        "this build is without NdArray; build with the feature `ndarray`, or use the device `cpu`",
    ))
}

const NO_GPU: &str = "this build is without GPU support; build with the feature `wgpu`, or install `ampoule-gpu`, or use the device `cpu`";

#[cfg(all(feature = "wgpu", target_family = "wasm"))]
const IN_A_PAGE: &str =
    "a page has the device `gpu` by `Extractor::from_bundle_in_page` alone; use that, or the device `cpu`";

/// The adapter of this name, or the first that is hardware.
#[cfg(feature = "wgpu")]
fn wanted(adapter: Option<&str>) -> crate::gpu::Wanted {
    use crate::gpu::Wanted;
    adapter.map_or(Wanted::Hardware, |name| Wanted::Named(name.to_owned()))
}

/// Burn's device to train on where [`Device::Cpu`] or [`Device::Gpu`] is asked for, there on the adapter whose name holds
/// `adapter`, or else on the first that is hardware.
///
/// # Errors
/// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where there is no such GPU; [`InvalidInput`](ErrorKind::InvalidInput) for other devices:
/// a run's numbers are those of one device, so that is named.
#[cfg(feature = "autodiff")]
pub fn training_device(requested: Device, adapter: Option<&str>) -> Result<BurnDevice> {
    #[cfg(not(feature = "autodiff-wgpu"))]
    let _ = adapter;
    match requested {
        Device::Cpu => Ok(BurnDevice::flex()),
        #[cfg(feature = "autodiff-wgpu")]
        Device::Gpu => crate::gpu::training_device(wanted(adapter)),
        #[cfg(not(feature = "autodiff-wgpu"))]
        Device::Gpu => Err(Error::new(
            ErrorKind::DeviceUnavailable,
            "this build trains on no GPU; build with the feature `autodiff-wgpu`, or `wgpu` of the command line, or use the device `cpu`",
        )),
        other => Err(Error::invalid_input(format!("training on {other:?}; name `cpu` or `gpu`"))),
    }
}

/// Names of the GPU adapters that this build could use, software in a GPU's place said so; none without the feature `wgpu`, and none in a
/// page, whose browser gives one when a model is opened.
pub fn gpu_adapters() -> Vec<String> {
    #[cfg(feature = "wgpu")]
    let names = crate::gpu::names().map(|(name, is_software)| match is_software {
        true => format!("{name} (software)"),
        false => name.to_owned(),
    });
    #[cfg(not(feature = "wgpu"))]
    let names = std::iter::empty();
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_cores_and_second_threads_are_not_counted() {
        let count = |cpus: &[(&str, Option<&str>)]| {
            let folder = tempfile::tempdir().unwrap();
            for (i, (siblings, capacity)) in cpus.iter().enumerate() {
                let cpu = folder.path().join(format!("cpu{i}"));
                std::fs::create_dir_all(cpu.join("topology")).unwrap();
                std::fs::write(cpu.join("topology/core_cpus_list"), siblings).unwrap();
                if let Some(capacity) = capacity {
                    std::fs::write(cpu.join("cpu_capacity"), capacity).unwrap();
                }
            }
            std::fs::create_dir(folder.path().join("cpufreq")).unwrap();
            std::fs::create_dir(folder.path().join("cpu99")).unwrap();
            performance_cores(folder.path())
        };
        assert_eq!(count(&[]), None);
        assert_eq!(count(&[("0\n", None), ("1\n", None)]), Some(2));
        assert_eq!(count(&[("0,2\n", None), ("1,3\n", None), ("0,2\n", None), ("1,3\n", None)]), Some(2));
        assert_eq!(count(&[("0-1\n", None), ("0-1\n", None)]), Some(1));
        let phone = ["325", "325", "325", "325", "828", "828", "828", "1024"];
        let numbers: Vec<String> = (0..8).map(|i| i.to_string()).collect();
        let cpus: Vec<_> = numbers.iter().zip(phone).map(|(i, c)| (i.as_str(), Some(c))).collect();
        assert_eq!(count(&cpus), Some(4));
        assert_eq!(performance_cores(Path::new("/no/such/folder")), None);
    }
}
