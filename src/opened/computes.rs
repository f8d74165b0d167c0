//! What computes a model: the kernels, Burn, or a GPU.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::Batch;
use crate::bundle::Bundle;
#[cfg(feature = "wgpu")]
use crate::bundle::Dtype;
use crate::device::{Engine, KernelTime, Place};
#[cfg(any(feature = "backend", feature = "wgpu"))]
use crate::error::Error;
#[cfg(feature = "wgpu")]
use crate::error::ErrorKind;
use crate::error::Result;
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
use crate::gpu::CpuTime;
#[cfg(feature = "wgpu")]
use crate::gpu::Gpu;
use crate::gpu::GpuReport;
use crate::kernels::Kernel;
#[cfg(feature = "backend")]
use crate::model::Model;
#[cfg(feature = "checkpoint")]
use crate::model::Weights;
use crate::model::{ModelConfig, Output, PackedModel, WeightSource};
use crate::options::{Instant, Limit, Options};

/// The model, loaded for the place where it computes.
pub(super) enum Computes {
    /// The kernels, on a processor.
    Kernels(Box<PackedModel>),
    /// Burn, on this device.
    #[cfg(feature = "backend")]
    Burn(Box<Model>, burn::tensor::Device),
    /// A GPU, and who stands in for it, if anything does.
    #[cfg(feature = "wgpu")]
    Gpu(Gpu, Option<Arc<Computes>>),
}

/// The weights of a model that is being opened.
pub(super) enum Held {
    Bundle(Arc<Bundle>),
    #[cfg(feature = "checkpoint")]
    Checkpoint(Weights),
}

impl Held {
    /// Whether all matrices are in f16: what is kept wider would be rounded.
    #[cfg(feature = "wgpu")]
    pub(super) fn is_in_half(&self) -> bool {
        match self {
            Held::Bundle(bundle) => {
                let mut matrices = bundle.info().tensors.iter().filter(|tensor| tensor.shape.len() == 2);
                matrices.all(|tensor| tensor.dtype == Dtype::F16)
            }
            #[cfg(feature = "checkpoint")]
            Held::Checkpoint(_) => false,
        }
    }

    /// Of a value of the tensor of this name, on a GPU.
    #[cfg(feature = "wgpu")]
    pub(super) fn bytes(&self, name: &str) -> u64 {
        match self {
            Held::Bundle(bundle) => match bundle.info().tensor(name).map(|tensor| tensor.dtype) {
                Some(Dtype::I8) => 1,
                Some(Dtype::F16) if self.is_in_half() => 2,
                _ => 4,
            },
            #[cfg(feature = "checkpoint")]
            Held::Checkpoint(_) => 4,
        }
    }

    /// Loads the model for the engine's place. Loading takes a checkpoint's tensors out; where the model is loaded again, it takes copies.
    #[cfg_attr(not(feature = "checkpoint"), allow(unused_variables))]
    pub(super) fn load(&mut self, config: &ModelConfig, engine: &Engine, is_last: bool) -> Result<Computes> {
        match self {
            Held::Bundle(bundle) => Computes::load(config, &mut bundle.weights(), engine),
            #[cfg(feature = "checkpoint")]
            Held::Checkpoint(weights) if is_last => Computes::load(config, weights, engine),
            #[cfg(feature = "checkpoint")]
            Held::Checkpoint(weights) => Computes::load(config, &mut weights.clone(), engine),
        }
    }
}

impl Computes {
    fn load(config: &ModelConfig, source: &mut (dyn WeightSource + Send), engine: &Engine) -> Result<Self> {
        engine.install(|| match &engine.place {
            Place::Kernel(kernel) => Ok(Computes::Kernels(Box::new(engine.packed(config, source, *kernel)?))),
            #[cfg(feature = "backend")]
            Place::Burn(device) => Ok(Computes::Burn(Box::new(Model::load(config, source, device)?), device.clone())),
            #[cfg(feature = "wgpu")]
            Place::Gpu => Err(Error::internal("a GPU's model is loaded on its own thread")),
        })
    }

    /// Bytes that are kept between calls.
    pub(super) fn workspace_bytes(&self) -> u64 {
        match self {
            Computes::Kernels(model) => model.workspace_bytes(),
            #[cfg(feature = "backend")]
            Computes::Burn(..) => 0,
            #[cfg(feature = "wgpu")]
            Computes::Gpu(_, cpu) => cpu.as_ref().map_or(0, |cpu| cpu.workspace_bytes()),
        }
    }

    /// Frees them.
    pub(super) fn trim(&self) {
        match self {
            Computes::Kernels(model) => model.trim(),
            #[cfg(feature = "backend")]
            Computes::Burn(..) => {}
            #[cfg(feature = "wgpu")]
            Computes::Gpu(_, cpu) => cpu.iter().for_each(|cpu| cpu.trim()),
        }
    }

    /// What is wanted of each sequence. Runs where it is called, within [`Engine::install`].
    pub(super) fn outputs(&self, batch: &Batch, output: Output, limit: &Limit) -> Result<Vec<Vec<f32>>> {
        let (outputs, on_gpu) = match self {
            Computes::Kernels(model) => (model.outputs(batch, output, &mut || limit.check()), false),
            #[cfg(feature = "backend")]
            Computes::Burn(model, device) => (composed(model, device, batch, output, &mut || limit.check()), false),
            #[cfg(feature = "wgpu")]
            Computes::Gpu(gpu, None) => (gpu.outputs(batch, output, limit), true),
            #[cfg(feature = "wgpu")]
            Computes::Gpu(gpu, Some(cpu)) => {
                let answer = gpu.takes(batch).then(|| gpu.outputs(batch, output, limit));
                let has_failed = |e: &Error| e.kind() == ErrorKind::DeviceUnavailable;
                match answer.filter(|answer| !answer.as_ref().is_err_and(has_failed)) {
                    Some(answer) => (answer, true),
                    None => return cpu.outputs(batch, output, limit),
                }
            }
        };
        if outputs.is_ok() {
            limit.count(batch.lengths().iter().sum(), on_gpu);
        }
        outputs
    }

    /// How its GPU stands, once it has come further than `done` or is ready.
    #[cfg_attr(not(feature = "wgpu"), allow(unused_variables))]
    pub(super) fn wait_for_gpu(&self, done: usize, limit: &Limit) -> Result<Option<GpuReport>> {
        match self {
            #[cfg(feature = "wgpu")]
            Computes::Gpu(gpu, _) => gpu.wait_beyond(done, limit).map(Some),
            _ => Ok(None),
        }
    }

    /// How its GPU stands, if there is one.
    pub(super) fn gpu(&self) -> Option<GpuReport> {
        match self {
            #[cfg(feature = "wgpu")]
            Computes::Gpu(gpu, _) => Some(gpu.report()),
            _ => None,
        }
    }

    /// What computes where a GPU does not.
    pub(super) fn on_processor(&self) -> &Self {
        match self {
            #[cfg(feature = "wgpu")]
            Computes::Gpu(_, Some(cpu)) => cpu,
            other => other,
        }
    }
}

/// What the composed model gives of each sequence.
#[cfg(feature = "backend")]
pub(crate) fn composed(
    model: &Model,
    device: &burn::tensor::Device,
    batch: &Batch,
    output: Output,
    check: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Vec<f32>>> {
    let mut values = model.hidden_states(batch, device, &mut None, &mut |_, _| check())?;
    if output == Output::Logits {
        values = model.logits(values, &mut None)?;
    }
    let [_, rows, width] = values.dims();
    let values = host(values)?;
    let each = values.chunks((rows * width).max(1)).zip(batch.lengths());
    Ok(each.map(|(values, &n)| values[..n.min(rows) * width].to_vec()).collect())
}

/// The most tokens of the text by which kernels are measured, and how often: the first time touches memory that the others find.
const MEASURED_TOKENS: usize = 64;
const MEASURED_RUNS: usize = 5;

fn least_time(model: &Computes, engine: &Engine, batch: &Batch, output: Output) -> Result<Duration> {
    let mut least = Duration::MAX;
    for _ in 0..MEASURED_RUNS {
        let start = Instant::now();
        engine.install(|| model.outputs(batch, output, &Limit::NONE))?;
        least = least.min(start.elapsed());
    }
    Ok(least)
}

/// The model for the fastest kernel, which the engine then uses.
fn fastest(config: &ModelConfig, held: &mut Held, engine: &mut Engine) -> Result<Computes> {
    let ids = 0..config.max_tokens().min(MEASURED_TOKENS);
    let ids: Vec<u32> = ids.map(|i| (i * 37 % config.vocab_size) as u32).collect();
    let batch = Batch::new(&[ids], config.pad_token_id);
    let mut best: Option<(Duration, Kernel, Computes)> = None;
    for kernel in Kernel::candidates() {
        engine.use_kernel(kernel.name())?;
        let model = held.load(config, engine, false)?;
        let least = least_time(&model, engine, &batch, Output::States)?;
        let microseconds = least.as_micros() as u64;
        engine.report.measured.push(KernelTime { kernel: kernel.name().to_owned(), microseconds });
        if best.as_ref().is_none_or(|(time, ..)| least < *time) {
            best = Some((least, kernel, model));
        }
    }
    let Some((_, kernel, model)) = best else { return held.load(config, engine, false) };
    engine.use_kernel(kernel.name())?;
    engine.report.reason.push_str("; the fastest kernel of those measured");
    Ok(model)
}

/// How long the processor takes for a batch.
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
pub(super) fn cpu_time(cpu: Arc<Computes>, engine: Engine, output: Output) -> Box<CpuTime> {
    Box::new(move |batch| least_time(&cpu, &engine, batch, output))
}

/// The model in the engine's place, by the kernel that is to be used there.
pub(super) fn in_place(
    config: &ModelConfig,
    held: &mut Held,
    engine: &mut Engine,
    options: &Options,
    is_last: bool,
) -> Result<Computes> {
    match engine.is_to_be_tuned(options) {
        true => fastest(config, held, engine),
        false => held.load(config, engine, is_last),
    }
}

/// The values of a tensor, row-major.
#[cfg(feature = "backend")]
fn host(tensor: burn::tensor::Tensor<3>) -> Result<Vec<f32>> {
    let failed =
        |why: &dyn std::fmt::Debug| Error::internal(format!("cannot read the result from the device: {why:?}"));
    let data = tensor.try_into_data_as::<f32>().map_err(|e| failed(&e))?;
    data.try_into_vec::<f32>().map_err(|_| failed(&"wrong type"))
}
