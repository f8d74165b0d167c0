//! The thread that speaks to a GPU, which is believed once it has proved itself.
//!
//! Drivers answer wrongly, hang and vanish. So a device first computes the golden cases of the model's bundle ([`self_check`]); then every
//! answer is looked at for what no model says, and every so often the golden cases are computed again. A panic or an error of the device
//! ends the call as [`DeviceUnavailable`](ErrorKind::DeviceUnavailable), and every later one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[cfg(any(feature = "wgpu", test))]
use super::GpuLimits;
use super::{GpuReport, GpuState, GpuTime};
use crate::batch::Batch;
use crate::bundle::{Golden, Precision};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::magnitude;
use crate::model::{ModelConfig, Output};
use crate::options::{Instant, Limit};
use crate::self_check::{self, Reference, SelfCheck};

/// Computes a batch on the device; the last argument may end that between layers.
pub(crate) type Compute = dyn FnMut(&Batch, Output, &mut dyn FnMut() -> Result<()>) -> Result<Vec<Vec<f32>>>;

/// Loads the model onto the device, on the thread that then computes.
pub(crate) type Load = dyn FnOnce() -> Result<Box<Compute>> + Send;

/// How long the processor takes for a batch.
pub(crate) type CpuTime = dyn Fn(&Batch) -> Result<Duration> + Send;

/// What a GPU is asked to do, and how it is watched.
pub(crate) struct Plan {
    pub(crate) adapter: String,
    pub(crate) config: ModelConfig,
    pub(crate) golden: Option<Golden>,
    /// How near it has to come to them.
    pub(crate) reference: Reference,
    /// Where the processor is there too, what it takes; it is measured unless `from_tokens` says where the GPU begins.
    pub(crate) cpu: Option<Box<CpuTime>>,
    pub(crate) from_tokens: Option<usize>,
    /// Batches after which the golden cases are computed again; 0 for never.
    pub(crate) check_every: u64,
    /// How long a batch may take.
    pub(crate) patience: Duration,
    /// Bytes of a buffer, which batches are split to fit.
    pub(crate) buffer_bytes: u64,
    /// The most tokens of a window.
    pub(crate) window_tokens: usize,
    /// Whether the device is gone for all that compute on it.
    pub(crate) is_lost: Arc<AtomicBool>,
    /// Called when the model has left the device, and its thread ends.
    pub(crate) clean: Box<dyn Fn() + Send>,
}

/// What a model asks of a GPU's memory.
#[cfg(any(feature = "wgpu", test))]
pub(crate) struct Demand {
    /// Bytes of all weights.
    weights: u64,
    /// The largest matrix, word embeddings aside, and its bytes.
    matrix: (String, u64),
    /// Bytes of the widest values of one window.
    window: u64,
    /// Bytes of the widest values of a batch.
    batch: u64,
    /// Values of an attention head.
    head: usize,
}

#[cfg(any(feature = "wgpu", test))]
impl Demand {
    /// That of a model whose batches have so many tokens, in windows of so many. `bytes` are those of a value of the matrix of this name.
    pub(crate) fn of(
        config: &ModelConfig,
        bytes: &dyn Fn(&str) -> u64,
        batch_tokens: usize,
        window_tokens: usize,
    ) -> Self {
        let mut all = config.tensors();
        for (name, shape) in &mut all {
            // Queries, keys and values are one matrix.
            if name.contains(".self.") {
                shape.insert(0, if name.contains(".query.") { 3 } else { 0 });
            }
        }
        let is_held_as_it_is =
            |name: &str| name.contains("LayerNorm") || name.contains("position") || name.contains("type");
        let bytes = |name: &str, shape: &[usize]| {
            let each = match name.rsplit_once(".self.") {
                _ if name.ends_with(".bias") || is_held_as_it_is(name) => 4,
                // The three are held as the widest of them is.
                Some((attention, _)) => ["query", "key", "value"]
                    .map(|part| bytes(&format!("{attention}.self.{part}.weight")))
                    .into_iter()
                    .fold(1, u64::max),
                None => bytes(name),
            };
            each * shape.iter().map(|&n| n as u64).product::<u64>()
        };
        let others = all.iter().filter(|(name, _)| name != "embeddings.word_embeddings.weight");
        let largest = others.max_by_key(|(name, shape)| bytes(name, shape));
        let values = |tokens: usize| width(config).saturating_mul(4 * tokens as u64);
        Demand {
            weights: all.iter().map(|(name, shape)| bytes(name, shape)).sum(),
            matrix: largest.map_or((String::new(), 0), |(name, shape)| (name.clone(), bytes(name, shape))),
            window: values(window_tokens),
            batch: values(batch_tokens.max(window_tokens)),
            head: config.hidden_size / config.num_attention_heads.max(1),
        }
    }

    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where that is more than the limits.
    pub(crate) fn check(&self, limits: GpuLimits) -> Result<()> {
        let refused = |message: String| Err(Error::new(ErrorKind::DeviceUnavailable, message));
        let (name, matrix) = &self.matrix;
        if *matrix > limits.buffer_bytes {
            return refused(format!(
                "{name} has {matrix} bytes, and a buffer of the GPU at most {}; use the device `cpu`",
                limits.buffer_bytes
            ));
        }
        if self.window > limits.buffer_bytes {
            return refused(format!(
                "what is computed of a window has {} bytes, and a buffer of the GPU at most {}; open the model with a smaller \
                 `max_window_tokens`, or use the device `cpu`",
                self.window, limits.buffer_bytes
            ));
        }
        if self.head > MOST_OF_A_HEAD {
            return refused(format!(
                "its attention heads have {} values, and a GPU's at most {MOST_OF_A_HEAD}; use the device `cpu`",
                self.head
            ));
        }
        let all = self.weights.saturating_add(self.batch.saturating_mul(VALUES));
        if all > limits.memory_bytes {
            return refused(format!(
                "the model needs {all} bytes of the GPU, and may have {}; use the device `cpu`, or one with fewer `max_batch_tokens`",
                limits.memory_bytes
            ));
        }
        Ok(())
    }
}

/// How many times the widest values of a batch are needed: the values between, buffers that are larger than what is in them, and what comes
/// back.
#[cfg(any(feature = "wgpu", test))]
const VALUES: u64 = 6;

/// The widest attention head: a unit keeps its query and its sums in registers.
#[cfg(any(feature = "wgpu", test))]
const MOST_OF_A_HEAD: usize = 512;

/// The most sequences, and tokens, of a batch: what every GPU takes at once.
const MOST_SEQUENCES: usize = 65_535;
const MOST_TOKENS: usize = 64 * 65_535;

/// The widest of the values that are computed of a token.
fn width(config: &ModelConfig) -> u64 {
    let widths = [3 * config.hidden_size, config.intermediate_size, config.embedding_size, config.id2label.len()];
    widths.into_iter().fold(1, |most, width| most.max(width as u64))
}

/// How long a batch may take before the device counts as hung. Kernels are compiled within it, when they are first needed.
#[cfg(feature = "wgpu")]
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a model may take to be loaded.
const LOADING: Duration = Duration::from_secs(600);

/// How long after it was late a device is looked at again, and counts as hung.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// How often a waiting call looks at its limit.
const LOOK: Duration = Duration::from_millis(5);

/// Tokens of the texts by which a GPU and the processor are compared.
const LENGTHS: [usize; 6] = [16, 32, 64, 128, 256, 512];

/// How many times as large as the largest golden answer a value may be. No model of this kind comes near it.
const PLAUSIBLE: f32 = 64.0;

/// A batch to be computed.
struct Job {
    /// None once its caller has given it up: behind a device that hangs, no note is to wait for ever.
    batch: Arc<Mutex<Option<Batch>>>,
    output: Output,
    answer: Sender<Result<Vec<Vec<f32>>>>,
    is_given_up: Arc<AtomicBool>,
}

/// What its thread and its callers know of it.
struct Shared {
    status: Mutex<Status>,
    changed: Condvar,
    is_closed: AtomicBool,
    patience: Duration,
    is_lost: Arc<AtomicBool>,
}

struct Status {
    report: GpuReport,
    /// When what the device does now has to be done.
    due: Option<Instant>,
    /// Whether it was not done then, and `due` is the second look.
    is_late: bool,
}

impl Shared {
    /// As it stands. A device that hangs says nothing of it, so whoever looks finds out.
    fn status(&self) -> MutexGuard<'_, Status> {
        let mut status = lock(&self.status);
        let now = Instant::now();
        if status.due.is_some_and(|due| now >= due) {
            if status.is_late {
                self.is_lost.store(true, Ordering::Relaxed);
                self.set_failed(&mut status, "it did not answer in time");
            } else {
                // The system may have stopped the process meanwhile, as phones do in the background: the device has not had its time.
                (status.due, status.is_late) = (now.checked_add(SECOND_LOOK), true);
            }
        } else if self.is_lost.load(Ordering::Relaxed) {
            self.set_failed(&mut status, "it failed for another model");
        }
        status
    }

    fn set_failed(&self, status: &mut Status, reason: &str) {
        if status.report.state != GpuState::Failed {
            status.report.state = GpuState::Failed;
            status.report.reason = Some(reason.to_owned());
            self.changed.notify_all();
        }
    }

    fn fail(&self, error: &Error) -> Error {
        let mut status = self.status();
        self.set_failed(&mut status, &error.to_string());
        // Wrong answers and unsound weights are this model's; what else it cannot do, no other can.
        if error.kind() == ErrorKind::Internal {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        unavailable(&status.report)
    }

    /// Runs `f` on the device, which may take so long.
    fn timed<T>(&self, time: Duration, f: impl FnOnce() -> T) -> T {
        let mut status = self.status();
        (status.due, status.is_late) = (Instant::now().checked_add(time), false);
        drop(status);
        let done = f();
        lock(&self.status).due = None;
        done
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unavailable(report: &GpuReport) -> Error {
    let reason = report.reason.as_deref().unwrap_or("it has not proved itself yet");
    Error::new(
        ErrorKind::DeviceUnavailable,
        format!(
            "the GPU {} computes no more: {reason}; use the device `cpu`, or open the model again for a new try",
            report.adapter
        ),
    )
}

/// A model on a GPU. Its thread ends after it is dropped or has failed, when what the device computes has ended.
pub(crate) struct Gpu {
    /// None once it has failed.
    jobs: Mutex<Option<Sender<Job>>>,
    shared: Arc<Shared>,
    reference: Reference,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Gpu {
    /// Starts the thread, which loads and proves the model.
    pub(crate) fn start(plan: Plan, load: Box<Load>) -> Result<Self> {
        let report = GpuReport {
            adapter: plan.adapter.clone(),
            precision: match plan.reference {
                Reference::HalfFloats => Precision::F16,
                _ => Precision::F32,
            },
            state: GpuState::Warming,
            reason: None,
            self_check: None,
            measured: Vec::new(),
            from_tokens: plan.from_tokens,
            computed_tokens: 0,
            unverified_batches: 0,
        };
        let shared = Arc::new(Shared {
            status: Mutex::new(Status { report, due: None, is_late: false }),
            changed: Condvar::new(),
            is_closed: AtomicBool::new(false),
            patience: plan.patience,
            is_lost: plan.is_lost.clone(),
        });
        let (jobs, received) = channel();
        let (reference, thread) = (plan.reference, shared.clone());
        std::thread::Builder::new()
            .name("ampoule-gpu".to_owned())
            .spawn(move || run(&plan, load, &thread, received))
            .map_err(|e| {
                Error::new(ErrorKind::DeviceUnavailable, format!("cannot start a thread: {e}")).with_source(e)
            })?;
        Ok(Gpu { jobs: Mutex::new(Some(jobs)), shared, reference })
    }

    /// Waits until the device has proved itself.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where it does not.
    pub(crate) fn wait(&self) -> Result<()> {
        loop {
            let status = self.shared.status();
            match status.report.state {
                GpuState::Ready => return Ok(()),
                GpuState::Failed => return Err(unavailable(&status.report)),
                GpuState::Warming => {}
            }
            drop(self.shared.changed.wait_timeout(status, LOOK));
        }
    }

    pub(crate) fn report(&self) -> GpuReport {
        self.shared.status().report.clone()
    }

    /// What its answers are to be compared with.
    pub(crate) fn reference(&self) -> Reference {
        self.reference
    }

    /// Whether it is to compute this batch, where the processor may too.
    pub(crate) fn takes(&self, batch: &Batch) -> bool {
        let report = &self.shared.status().report;
        report.state == GpuState::Ready && report.from_tokens.is_some_and(|from| batch.dims()[1] >= from)
    }

    /// What is wanted of each sequence.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where the device fails, or failed before; those of the limit.
    pub(crate) fn outputs(&self, batch: &Batch, output: Output, limit: &Limit) -> Result<Vec<Vec<f32>>> {
        let (answer, answered) = channel();
        let (batch, is_given_up) = (Arc::new(Mutex::new(Some(batch.clone()))), Arc::new(AtomicBool::new(false)));
        let job = Job { batch: batch.clone(), output, answer, is_given_up: is_given_up.clone() };
        let give_up = || {
            is_given_up.store(true, Ordering::Relaxed);
            lock(&batch).take();
        };
        self.check()?;
        match &*lock(&self.jobs) {
            Some(jobs) => jobs.send(job).map_err(|_| self.shared.fail(&ended()))?,
            None => return Err(self.shared.fail(&ended())),
        }
        loop {
            match answered.recv_timeout(LOOK) {
                Ok(outputs) => return outputs,
                Err(RecvTimeoutError::Disconnected) => return Err(self.shared.fail(&ended())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = self.check().and_then(|()| limit.check()) {
                give_up();
                return Err(error);
            }
        }
    }

    /// Refuses a device that is not ready; the thread of one that has failed is let go.
    fn check(&self) -> Result<()> {
        let status = self.shared.status();
        match status.report.state {
            GpuState::Ready => Ok(()),
            GpuState::Failed => {
                let error = unavailable(&status.report);
                drop(status);
                lock(&self.jobs).take();
                Err(error)
            }
            GpuState::Warming => Err(unavailable(&status.report)),
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::DeviceUnavailable, "its thread ended")
}

/// The life of the thread.
fn run(plan: &Plan, load: Box<Load>, shared: &Shared, jobs: Receiver<Job>) {
    match guarded(|| Device::open(load, plan, shared)) {
        Ok(device) => serve(device, plan, shared, jobs),
        // Its model was closed meanwhile.
        Err(error) if error.kind() == ErrorKind::Cancelled => {}
        Err(error) => {
            shared.fail(&error);
        }
    }
    if !shared.is_lost.load(Ordering::Relaxed) {
        let _ = guarded(|| {
            (plan.clean)();
            Ok(())
        });
    }
}

/// Answers jobs until there are no more, or the device has failed.
fn serve(mut device: Device, plan: &Plan, shared: &Shared, jobs: Receiver<Job>) {
    for job in jobs {
        let Some(batch) = lock(&job.batch).take() else { continue };
        let mut check = || match job.is_given_up.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "the call was given up")),
            false => Ok(()),
        };
        let mut answer = guarded(|| device.answer(&batch, job.output, &mut check));
        let is_due = lock(&shared.status).report.unverified_batches + 1 == plan.check_every;
        if answer.is_ok() && is_due {
            answer = guarded(|| device.prove()).and(answer);
        }
        match &answer {
            Ok(_) => {
                let report = &mut lock(&shared.status).report;
                report.computed_tokens += batch.lengths().iter().sum::<usize>() as u64;
                report.unverified_batches = if is_due { 0 } else { report.unverified_batches + 1 };
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => answer = Err(shared.fail(error)),
        }
        // A caller that is gone wants no answer.
        let _ = job.answer.send(answer);
        if lock(&shared.status).report.state == GpuState::Failed {
            return;
        }
    }
}

/// The device as its thread has it.
struct Device<'a> {
    compute: Box<Compute>,
    plan: &'a Plan,
    shared: &'a Shared,
    /// The largest value that is believed, of what golden cases answer.
    bound: f32,
}

impl<'a> Device<'a> {
    fn open(load: Box<Load>, plan: &'a Plan, shared: &'a Shared) -> Result<Self> {
        let floats = plan.golden.iter().flat_map(|golden| &golden.cases).flat_map(|case| &case.floats);
        let bound = floats.fold(1f32, |most, x| most.max(x.abs())) * PLAUSIBLE;
        let mut device = Device { compute: shared.timed(LOADING, load)?, plan, shared, bound };
        let is_closed = || match shared.is_closed.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "the model was closed")),
            false => Ok(()),
        };
        is_closed()?;
        let self_check = device.prove()?;
        let mut measured = Vec::new();
        if let Some(cpu) = &plan.cpu {
            let lengths = LENGTHS.into_iter().filter(|&n| n <= plan.window_tokens);
            for tokens in lengths.filter(|&n| plan.from_tokens.is_none_or(|from| n >= from)) {
                is_closed()?;
                let gpu = device.time(tokens)?;
                if plan.from_tokens.is_none() {
                    let microseconds = |time: Duration| time.as_micros() as u64;
                    let cpu = cpu(&meaningless(&plan.config, tokens))?;
                    measured.push(GpuTime {
                        tokens,
                        gpu_microseconds: microseconds(gpu),
                        cpu_microseconds: microseconds(cpu),
                    });
                }
            }
        }
        let mut status = shared.status();
        let report = &mut status.report;
        if report.state == GpuState::Failed {
            return Err(unavailable(report));
        }
        if plan.from_tokens.is_none() {
            let slower = measured.iter().rposition(|time| time.gpu_microseconds >= time.cpu_microseconds);
            let first = slower.map_or(0, |slower| slower + 1);
            report.from_tokens = measured.get(first).map(|time| time.tokens);
        }
        if plan.golden.is_none() {
            report.reason = Some("the model has no golden cases, so the GPU could prove nothing".to_owned());
        }
        (report.self_check, report.measured, report.state) = (self_check, measured, GpuState::Ready);
        shared.changed.notify_all();
        drop(status);
        Ok(device)
    }

    /// Computes the golden cases, if there are any.
    fn prove(&mut self) -> Result<Option<SelfCheck>> {
        let Some(golden) = &self.plan.golden else { return Ok(None) };
        let (plan, output) = (self.plan, self_check::wanted(&self.plan.config));
        let mut compute = |batch: &Batch| self.compute(batch, output, &mut || Ok(()));
        self_check::check(golden, &plan.config, plan.reference, &mut compute).map(Some)
    }

    /// The time of one text of so many tokens, once its kernels are compiled.
    fn time(&mut self, tokens: usize) -> Result<Duration> {
        let (batch, output) = (meaningless(&self.plan.config, tokens), self_check::wanted(&self.plan.config));
        self.compute(&batch, output, &mut || Ok(()))?;
        let begin = Instant::now();
        self.compute(&batch, output, &mut || Ok(()))?;
        Ok(begin.elapsed())
    }

    /// What the device gives, in time.
    fn compute(
        &mut self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let [rows, length] = batch.dims();
        let values = width(&self.plan.config).saturating_mul(4 * length.max(1) as u64);
        let most = usize::try_from(self.plan.buffer_bytes / values).unwrap_or(rows);
        let most = most.min(MOST_SEQUENCES).min(MOST_TOKENS / length.max(1)).max(1);
        let mut outputs = Vec::with_capacity(rows);
        for first in (0..rows).step_by(most) {
            let part = batch.rows(first..rows.min(first + most));
            outputs.append(&mut self.shared.timed(self.shared.patience, || (self.compute)(&part, output, check))?);
        }
        Ok(outputs)
    }

    fn answer(
        &mut self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let outputs = self.compute(batch, output, check)?;
        let unbelievable = |what| Error::new(ErrorKind::DeviceUnavailable, format!("it answered with {what}"));
        let is_bounded = output == self_check::wanted(&self.plan.config) && self.plan.golden.is_some();
        for values in &outputs {
            let most = magnitude(values);
            if !most.is_finite() {
                return Err(unbelievable("what is not finite"));
            }
            if !values.is_empty() && most == 0.0 {
                return Err(unbelievable("zeros alone"));
            }
            if is_bounded && most > self.bound {
                return Err(unbelievable("values beyond all that the model says"));
            }
        }
        Ok(outputs)
    }
}

/// One sequence of so many tokens.
fn meaningless(config: &ModelConfig, tokens: usize) -> Batch {
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % config.vocab_size) as u32).collect();
    Batch::new(&[ids], config.pad_token_id)
}

/// What `f` gives; a panic is the device's failure. Its message is not told: it is a driver's or a library's, and may hold anything.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Err(Error::internal("its driver or library panicked"));
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(panicked)
}

#[cfg(all(test, feature = "flex"))]
mod tests;
