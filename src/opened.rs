//! An opened model: what extractor, classifier and embedder have in common.

mod computes;

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use serde::Serialize;

#[cfg(all(test, feature = "flex"))]
pub(crate) use self::computes::composed;
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
use self::computes::cpu_time;
use self::computes::{Computes, Held, in_place};
use crate::batch::Batch;
use crate::bundle::{Bundle, Golden, Pooling, Precision, is_temperature};
#[cfg(feature = "checkpoint")]
use crate::checkpoint::Checkpoint;
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
use crate::device::Place;
use crate::device::{Device, DeviceReport, Engine};
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::GpuReport;
#[cfg(feature = "wgpu")]
use crate::gpu::{self, CpuTime, Demand, Gpu, Plan};
use crate::kernels::magnitude;
#[cfg(feature = "wgpu")]
use crate::model::{GpuFormat, GpuModel};
use crate::model::{ModelConfig, Output, Task};
use crate::options::{Limit, Options};
use crate::self_check::{self, Comparison, Reference, SelfCheck};
use crate::text::{Tokenizer, Window, Windower};

/// Takes a window of the text of this index, and its output.
pub(crate) type EachWindow<'a> = dyn FnMut(usize, &Window, &[f32]) -> Result<()> + 'a;

/// Tokens around those of a window's text.
const SPECIAL: usize = 2;

/// What an open model holds, and has done.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelReport {
    /// Where it computes, and why there.
    pub device: DeviceReport,
    /// The narrowest type of a matrix in its file.
    pub precision: Precision,
    /// Bytes of the file's tensors, which what is held of them comes near to where kernels run; the word embedding of a mapped file stays
    /// in the file.
    pub weight_bytes: u64,
    /// Bytes that are kept between calls on the processor, and freed by `trim`. None are where Burn computes; a GPU's are not counted.
    pub workspace_bytes: u64,
    /// How its GPU stands, where it has one.
    pub gpu: Option<GpuReport>,
    /// Tokens of the batches that were computed so far, special ones counted, and those of batches that a call ended in. It stands still
    /// while nothing is computed.
    pub computed_tokens: u64,
}

/// A model with its tokenizer, on its device.
pub(crate) struct Opened {
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: Tokenizer,
    /// The most tokens of a window, special tokens counted.
    window_tokens: usize,
    pub(crate) options: Options,
    pub(crate) pooling: Pooling,
    /// That of the options, else the model's own.
    pub(crate) temperature: f32,
    pub(crate) engine: Engine,
    turns: Turns,
    model: Computes,
    precision: Precision,
    weight_bytes: u64,
    golden: Option<Golden>,
    computed_tokens: AtomicU64,
}

/// What a file says of its model, its weights aside.
struct Parts {
    config: ModelConfig,
    tokenizer: Tokenizer,
    precision: Precision,
    weight_bytes: u64,
    pooling: Pooling,
    temperature: f32,
    max_window_tokens: usize,
    golden: Option<Golden>,
}

/// As many calls at once as the model has threads: each computes on one of its own, or, where Burn computes, would wait in a pool's queue
/// and see neither its token nor its deadline.
struct Turns {
    most: usize,
    /// The threads whose calls have one.
    taken: Mutex<Vec<ThreadId>>,
    freed: Condvar,
}

/// How often a call that waits looks at its limit.
const LOOK: Duration = Duration::from_millis(5);

impl Turns {
    fn new(threads: usize) -> Self {
        Turns { most: threads.max(1), taken: Mutex::default(), freed: Condvar::new() }
    }

    /// One for the thread that calls; none where it has one, and calls from within.
    fn take(&self, limit: &Limit) -> Result<Option<Turn<'_>>> {
        let caller = std::thread::current().id();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.contains(&caller) {
            return Ok(None);
        }
        loop {
            limit.check()?;
            if taken.len() < self.most {
                taken.push(caller);
                return Ok(Some(Turn(self, caller)));
            }
            (taken, _) = self.freed.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Given back when it is dropped.
struct Turn<'a>(&'a Turns, ThreadId);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).retain(|thread| *thread != self.1);
        self.0.freed.notify_one();
    }
}

impl Parts {
    fn of(bundle: &Bundle) -> Result<Self> {
        let metadata = bundle.metadata();
        Ok(Parts {
            config: metadata.config.clone(),
            tokenizer: Tokenizer::from_json(&bundle.tokenizer_json()?)?,
            precision: bundle.precision(),
            weight_bytes: bundle.info().tensors.iter().map(|t| t.bytes as u64).sum(),
            pooling: metadata.pooling,
            temperature: metadata.temperature,
            max_window_tokens: metadata.max_tokens.unwrap_or(metadata.config.max_tokens()),
            golden: Golden::read(bundle)?,
        })
    }

    /// Refuses what does not belong together, or to these options; gives the most tokens of a window.
    fn check(&self, options: &Options) -> Result<usize> {
        self.tokenizer.check_rows(self.config.vocab_size)?;
        check_temperature(options.temperature.unwrap_or(self.temperature))?;
        let most = self.max_window_tokens;
        match options.max_window_tokens {
            0 => Ok(most),
            n if (SPECIAL + 1..=most).contains(&n) => Ok(n),
            n => Err(Error::invalid_input(format!(
                "windows of {n} tokens: this model takes {} to {most}, or 0 for as many as it takes",
                SPECIAL + 1
            ))),
        }
    }

    fn opened(self, model: Computes, window_tokens: usize, engine: Engine, options: &Options) -> Opened {
        Opened {
            temperature: options.temperature.unwrap_or(self.temperature),
            config: self.config,
            tokenizer: self.tokenizer,
            window_tokens,
            options: options.clone(),
            pooling: self.pooling,
            turns: Turns::new(engine.report.threads),
            engine,
            model,
            precision: self.precision,
            weight_bytes: self.weight_bytes,
            golden: self.golden,
            computed_tokens: AtomicU64::new(0),
        }
    }

    /// What it asks of a GPU.
    #[cfg(feature = "wgpu")]
    fn demand(&self, held: &Held, window_tokens: usize, options: &Options) -> Demand {
        let cases = self.golden.iter().flat_map(|golden| &golden.cases).map(|case| case.ids.len());
        let longest = cases.fold(window_tokens, usize::max);
        Demand::of(&self.config, &|name| held.bytes(name), options.max_batch_tokens, longest)
    }

    /// What a GPU is to do, where the processor takes as long as `cpu` says if it is there too.
    #[cfg(feature = "wgpu")]
    fn on_gpu(
        &self,
        adapter: gpu::Adapter,
        window_tokens: usize,
        held: Held,
        cpu: Option<Box<CpuTime>>,
        options: &Options,
    ) -> (Plan, Box<gpu::Load>) {
        let (driver, limits, config) = (adapter.driver, adapter.limits, self.config.clone());
        // What a bundle in f16 is computed in, where the adapter can; else f32.
        let is_half = self.precision == Precision::F16 && limits.f16;
        let format =
            GpuFormat { weights_in_half: held.is_in_half(), values_in_half: is_half, most_bytes: limits.buffer_bytes };
        #[cfg(not(target_family = "wasm"))]
        let clean: Box<dyn Fn() + Send + Sync> = {
            let left = driver.clone();
            Box::new(move || left.clean())
        };
        let load: Box<gpu::Load> = Box::new(move || {
            let model = match held {
                Held::Bundle(bundle) => GpuModel::load(&config, &mut bundle.weights(), format, driver)?,
                #[cfg(feature = "checkpoint")]
                Held::Checkpoint(mut weights) => GpuModel::load(&config, &mut weights, format, driver)?,
            };
            Ok(Box::new(move |batch, output, check| model.outputs(batch, output, check)))
        });
        let plan = Plan {
            adapter: adapter.name,
            config: self.config.clone(),
            golden: self.golden.clone(),
            reference: if is_half { Reference::HalfFloats } else { Reference::Floats },
            cpu,
            from_tokens: options.gpu_from_tokens,
            check_every: options.gpu_check_every,
            patience: gpu::PATIENCE,
            buffer_bytes: limits.buffer_bytes,
            window_tokens,
            is_lost: adapter.is_lost,
            #[cfg(not(target_family = "wasm"))]
            clean,
        };
        (plan, load)
    }
}

impl Opened {
    /// Opens a bundle or, with the feature `checkpoint`, a Hugging Face folder.
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Self> {
        if path.is_dir() {
            return Self::open_folder(path, options);
        }
        let bundle = Bundle::open_to_take(path, options.load, options.verify)?;
        Self::from_bundle(bundle, options).map_err(|e| e.context(path.display()))
    }

    #[cfg(feature = "checkpoint")]
    fn open_folder(path: &Path, options: &Options) -> Result<Self> {
        Self::from_checkpoint(Checkpoint::open(path)?, options).map_err(|e| e.context(path.display()))
    }

    #[cfg(not(feature = "checkpoint"))]
    fn open_folder(path: &Path, _: &Options) -> Result<Self> {
        Err(Error::incompatible(format!(
            "{} is a folder, and this build opens bundles only; make one with `ampoule quantize`",
            path.display()
        )))
    }

    pub(crate) fn from_bundle(bundle: Bundle, options: &Options) -> Result<Self> {
        Self::new(Parts::of(&bundle)?, Held::Bundle(Arc::new(bundle)), options)
    }

    /// The same in a page, where nobody can wait for a GPU.
    #[cfg(all(feature = "wgpu", target_family = "wasm"))]
    pub(crate) async fn from_bundle_in_page(bundle: Bundle, options: &Options) -> Result<Self> {
        let (parts, held) = (Parts::of(&bundle)?, Held::Bundle(Arc::new(bundle)));
        let window_tokens = parts.check(options)?;
        let mut engine = Engine::start_in_page(options).await?;
        let Some(adapter) = engine.gpu.take() else { return Self::new(parts, held, options) };
        parts.demand(&held, window_tokens, options).check(adapter.limits)?;
        let (plan, load) = parts.on_gpu(adapter, window_tokens, held, None, options);
        let model = Computes::Gpu(Gpu::open(plan, load).await?, None);
        Ok(parts.opened(model, window_tokens, engine, options))
    }

    #[cfg(feature = "checkpoint")]
    pub(crate) fn from_checkpoint(checkpoint: Checkpoint, options: &Options) -> Result<Self> {
        let Checkpoint { config, tokenizer, weights, pooling, temperature, .. } = checkpoint;
        let parts = Parts {
            max_window_tokens: config.max_tokens(),
            config,
            tokenizer,
            precision: Precision::F32,
            weight_bytes: weights.0.values().map(|tensor| 4 * tensor.data.len() as u64).sum(),
            pooling,
            temperature,
            golden: None,
        };
        Self::new(parts, Held::Checkpoint(weights), options)
    }

    fn new(parts: Parts, mut held: Held, options: &Options) -> Result<Self> {
        let window_tokens = parts.check(options)?;
        let mut engine = Engine::start(options)?;
        #[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
        let model = match engine.gpu.take() {
            Some(adapter) => match parts.demand(&held, window_tokens, options).check(adapter.limits) {
                Ok(()) => beside_gpu(adapter, &parts, window_tokens, held, &mut engine, options)?,
                Err(error) if options.device == Device::GpuOrCpu => {
                    engine.report.reason = error.to_string();
                    in_place(&parts.config, &mut held, &mut engine, options, true)?
                }
                Err(error) => return Err(error),
            },
            None => in_place(&parts.config, &mut held, &mut engine, options, true)?,
        };
        #[cfg(not(all(feature = "wgpu", not(target_family = "wasm"))))]
        let model = in_place(&parts.config, &mut held, &mut engine, options, true)?;
        Ok(parts.opened(model, window_tokens, engine, options))
    }

    pub(crate) fn report(&self) -> ModelReport {
        let (mut device, gpu) = (self.engine.report.clone(), self.model.gpu());
        if let Some(gpu) = gpu.as_ref().filter(|_| device.computes_on == Device::Cpu) {
            device.reason = gpu.beside_processor();
        }
        ModelReport {
            device,
            precision: self.precision,
            weight_bytes: self.weight_bytes,
            workspace_bytes: self.model.workspace_bytes(),
            gpu,
            computed_tokens: self.computed_tokens.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn wait_for_gpu(&self, done: usize, limit: &Limit) -> Result<Option<GpuReport>> {
        self.model.wait_for_gpu(done, limit)
    }

    pub(crate) fn trim(&self) {
        self.model.trim();
    }

    pub(crate) fn self_check(&self, limit: &Limit) -> Result<Option<SelfCheck>> {
        // In a page it is asked for again at its own time alone.
        #[cfg(all(feature = "wgpu", target_family = "wasm"))]
        if let Computes::Gpu(gpu, _) = &self.model {
            return Ok(gpu.report().self_check);
        }
        let Some(golden) = &self.golden else { return Ok(None) };
        let (model, output) = (self.model.on_processor(), self_check::wanted(&self.config));
        let reference = match model {
            #[cfg(feature = "wgpu")]
            Computes::Gpu(gpu, _) => gpu.reference(),
            _ => Reference::of(&self.engine.place, self.precision),
        };
        let checked = self.install(limit, || {
            let mut comparison = Comparison::new(golden, &self.config, reference);
            for cases in comparison.batches() {
                let outputs = model.outputs(&comparison.batch(&cases), output, limit)?;
                comparison.compare(&cases, &outputs)?;
            }
            comparison.finish().map(Some)
        });
        checked.map_err(|error| match error.kind() {
            ErrorKind::DeviceUnavailable => Error::new(
                ErrorKind::DeviceUnavailable,
                format!(
                    "{} computes wrongly here, or the bundle is damaged: {error}; open it with `verify`, then with the device `cpu` and the \
                     kernel \"scalar\"",
                    self.engine.report.name
                ),
            ),
            _ => error,
        })
    }

    /// Refuses a model whose head answers something else.
    pub(crate) fn expect(self, tasks: &[Task], verb: &str) -> Result<Self> {
        if tasks.contains(&self.config.task) {
            return Ok(self);
        }
        Err(Error::incompatible(format!(
            "this model's task is {}, which cannot {verb}; it needs {}",
            self.config.task.as_str(),
            tasks.iter().map(|t| t.as_str()).collect::<Vec<_>>().join(" or ")
        )))
    }

    /// Runs `f` where the model computes, when it is this call's turn.
    pub(crate) fn install<T: Send>(&self, limit: &Limit, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        // One that comes from within another has its turn.
        let _turn = if self.engine.is_within() { None } else { self.turns.take(limit)? };
        self.engine.install(f)
    }

    /// Cuts `texts` into windows, computes them in batches of at most `max_batch_tokens` and hands each window with its output
    /// to `each`, in order. A text without tokens has no window, or, with `also_empty`, one of special tokens alone.
    pub(crate) fn windows<'t>(
        &self,
        texts: impl IntoIterator<Item = &'t str>,
        limit: &Limit,
        also_empty: bool,
        output: Output,
        each: &mut EachWindow,
    ) -> Result<()> {
        self.batches(texts, limit, also_empty, &mut |windows| {
            let outputs = self.outputs(&self.batch(&windows), output, limit)?;
            let mut answered = windows.iter().zip(&outputs);
            answered.try_for_each(|((text, window), values)| each(*text, window, values))
        })
    }

    /// The same in a page, where nobody can wait: the whole text is cut first.
    #[cfg(all(feature = "wgpu", target_family = "wasm"))]
    pub(crate) async fn windows_in_page(
        &self,
        text: &str,
        limit: &Limit,
        output: Output,
        each: &mut EachWindow<'_>,
    ) -> Result<()> {
        let mut batches = Vec::new();
        self.batches([text], limit, false, &mut |windows| {
            batches.push(windows);
            Ok(())
        })?;
        for windows in batches {
            let batch = self.batch(&windows);
            let outputs = match &self.model {
                Computes::Gpu(gpu, _) => {
                    let outputs = gpu.answer(&batch, output, limit).await;
                    outputs.inspect(|_| limit.count(batch.lengths().iter().sum(), true))
                }
                model => model.outputs(&batch, output, limit),
            };
            let outputs = self.counted(&batch, outputs)?;
            let mut answered = windows.iter().zip(&outputs);
            answered.try_for_each(|((text, window), values)| each(*text, window, values))?;
        }
        Ok(())
    }

    /// Cuts `texts` into windows and hands over batches of them, each window with its text's index.
    fn batches<'t>(
        &self,
        texts: impl IntoIterator<Item = &'t str>,
        limit: &Limit,
        also_empty: bool,
        each: &mut dyn FnMut(Vec<(usize, Window)>) -> Result<()>,
    ) -> Result<()> {
        let mut pending: Vec<(usize, Window)> = Vec::new();
        let mut longest = 0;
        let mut flush = |pending: &mut Vec<(usize, Window)>| match pending.is_empty() {
            true => Ok(()),
            false => each(std::mem::take(pending)),
        };
        for (text_index, text) in texts.into_iter().enumerate() {
            let windows = Cell::new(0);
            let mut queue = |window: Window| -> Result<()> {
                windows.set(windows.get() + 1);
                let with_it = longest.max(window.tokens.len() + SPECIAL);
                if !pending.is_empty() && (pending.len() + 1) * with_it > self.options.max_batch_tokens {
                    flush(&mut pending)?;
                    longest = 0;
                }
                longest = longest.max(window.tokens.len() + SPECIAL);
                pending.push((text_index, window));
                Ok(())
            };
            let mut windower = Windower::new(self.window_tokens - SPECIAL);
            self.tokenizer.encode_each(text, &mut |tokens| {
                limit.check()?;
                windower.push(tokens, &mut queue)
            })?;
            windower.finish(&mut queue)?;
            if windows.get() == 0 && also_empty {
                queue(Window { tokens: Vec::new(), keep: 0..0 })?;
            }
        }
        flush(&mut pending)
    }

    /// Token ids of each window between the special tokens.
    fn batch(&self, windows: &[(usize, Window)]) -> Batch {
        let sequence = |(_, window): &(usize, Window)| {
            let mut ids = Vec::with_capacity(window.tokens.len() + SPECIAL);
            ids.push(self.tokenizer.cls_id());
            ids.extend(window.tokens.iter().map(|t| t.id));
            ids.push(self.tokenizer.sep_id());
            ids
        };
        let sequences: Vec<Vec<u32>> = windows.iter().map(sequence).collect();
        Batch::new(&sequences, self.config.pad_token_id)
    }

    /// What is wanted of each sequence. Runs within [`Opened::install`].
    pub(crate) fn outputs(&self, batch: &Batch, output: Output, limit: &Limit) -> Result<Vec<Vec<f32>>> {
        self.counted(batch, self.model.outputs(batch, output, limit))
    }

    fn counted(&self, batch: &Batch, outputs: Result<Vec<Vec<f32>>>) -> Result<Vec<Vec<f32>>> {
        self.computed_tokens.fetch_add(batch.lengths().iter().sum::<usize>() as u64, Ordering::Relaxed);
        let outputs = outputs?;
        match outputs.iter().all(|values| magnitude(values).is_finite()) {
            true => Ok(outputs),
            false => Err(Error::internal("the model computed what is not finite; its weights are unsound")),
        }
    }
}

/// The model on a GPU, beside that in the engine's place where that is the processor.
#[cfg(all(feature = "wgpu", not(target_family = "wasm")))]
fn beside_gpu(
    adapter: gpu::Adapter,
    parts: &Parts,
    window_tokens: usize,
    mut held: Held,
    engine: &mut Engine,
    options: &Options,
) -> Result<Computes> {
    let cpu = match &engine.place {
        Place::Gpu => None,
        _ => Some(Arc::new(in_place(&parts.config, &mut held, engine, options, false)?)),
    };
    let cpu_time = cpu.clone().map(|cpu| cpu_time(cpu, engine.clone(), self_check::wanted(&parts.config)));
    let (plan, load) = parts.on_gpu(adapter, window_tokens, held, cpu_time, options);
    let gpu = Gpu::start(plan, load)?;
    if cpu.is_none() {
        gpu.wait()?;
    }
    Ok(Computes::Gpu(gpu, cpu))
}

/// Refuses what logits cannot be divided by.
pub(crate) fn check_temperature(temperature: f32) -> Result<()> {
    match is_temperature(temperature) {
        true => Ok(()),
        false => Err(Error::invalid_input(format!(
            "temperature: expected a positive normal number, found {temperature}; 1 leaves scores as the model has them, none takes its own"
        ))),
    }
}
