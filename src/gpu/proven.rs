//! A GPU that is believed once it has proved itself.
//!
//! Drivers answer wrongly, hang and vanish. So a device first computes the golden cases of the model's bundle ([`Comparison`]); then every
//! answer is looked at for what no model says, and every so often the golden cases are computed again. An error of the device, and where a
//! thread waits for it a panic too, ends the call as [`DeviceUnavailable`](ErrorKind::DeviceUnavailable), and every later one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::demand::width;
use super::{GpuReport, GpuState, GpuTime, WarmUp};
use crate::batch::Batch;
use crate::bundle::{Golden, Precision};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::{Answer, magnitude};
use crate::model::{ModelConfig, Output};
use crate::options::Instant;
use crate::self_check::{self, Comparison, Reference, SelfCheck};

/// Computes a batch on the device; the last argument may end that between layers.
pub(crate) type Compute = dyn Fn(&Batch, Output, &mut dyn FnMut() -> Result<()>) -> Result<Answer> + Send + Sync;

/// Loads the model onto the device, where it is then computed.
pub(crate) type Load = dyn FnOnce() -> Result<Box<Compute>> + Send;

/// How long the processor takes for a batch.
pub(crate) type CpuTime = dyn Fn(&Batch) -> Result<Duration> + Send + Sync;

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
    /// Called when the model has left the device, whose memory a browser frees by itself.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) clean: Box<dyn Fn() + Send + Sync>,
}

impl Plan {
    /// Tokens of the texts that are timed, the shortest at least as far as the window goes.
    fn lengths(&self) -> impl Iterator<Item = usize> {
        let shortest = LENGTHS[0].min(self.window_tokens);
        let longer = LENGTHS[1..].iter().copied().filter(|&n| n <= self.window_tokens);
        let lengths = std::iter::once(shortest).chain(longer).filter(|_| self.cpu.is_some());
        lengths.filter(|&n| self.from_tokens.is_none_or(|from| n >= from))
    }

    /// Batches before it is ready: those that prove it, and two of each length, of which the first compiles.
    fn warm_up(&self) -> usize {
        let proof = self.golden.as_ref().map(|golden| Comparison::new(golden, &self.config, self.reference));
        proof.map_or(0, |proof| proof.batches().len()) + 2 * self.lengths().count()
    }
}

/// The most sequences, and tokens, of a batch: what every GPU takes at once.
const MOST_SEQUENCES: usize = 65_535;
const MOST_TOKENS: usize = 64 * 65_535;

/// How long a batch may take before the device counts as hung. Kernels are compiled within it, when they are first needed.
#[cfg(feature = "wgpu")]
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a model may take to be loaded.
const LOADING: Duration = Duration::from_secs(600);

/// How long after it was late a device is looked at again, and counts as hung.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// Tokens of the texts by which a GPU and the processor are compared.
pub(super) const LENGTHS: [usize; 6] = [16, 32, 64, 128, 256, 512];

/// How many times as large as the largest golden answer a value may be. No model of this kind comes near it.
const PLAUSIBLE: f32 = 64.0;

/// What the device and its callers know of it.
pub(crate) struct Shared {
    status: Mutex<Status>,
    pub(super) changed: Condvar,
    pub(super) is_closed: AtomicBool,
    pub(super) is_lost: Arc<AtomicBool>,
}

pub(super) struct Status {
    pub(super) report: GpuReport,
    /// When what the device does now has to be done.
    due: Option<Instant>,
    /// Whether it was not done then, and `due` is the second look.
    is_late: bool,
}

impl Shared {
    pub(crate) fn new(plan: &Plan) -> Self {
        let report = GpuReport {
            adapter: plan.adapter.clone(),
            precision: match plan.reference {
                Reference::HalfFloats => Precision::F16,
                _ => Precision::F32,
            },
            state: GpuState::Warming,
            reason: None,
            warm_up: WarmUp { done: 0, of: plan.warm_up() },
            self_check: None,
            measured: Vec::new(),
            from_tokens: plan.from_tokens,
            computed_tokens: 0,
            unverified_batches: 0,
        };
        Shared {
            status: Mutex::new(Status { report, due: None, is_late: false }),
            changed: Condvar::new(),
            is_closed: AtomicBool::new(false),
            is_lost: plan.is_lost.clone(),
        }
    }

    /// As it stands. A device that hangs says nothing of it, so whoever looks finds out.
    pub(super) fn status(&self) -> MutexGuard<'_, Status> {
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

    /// Refuses a device that is not ready.
    pub(super) fn check(&self) -> Result<()> {
        let report = &self.status().report;
        match report.state {
            GpuState::Ready => Ok(()),
            GpuState::Warming | GpuState::Failed => Err(unavailable(report)),
        }
    }

    pub(super) fn fail(&self, error: &Error) -> Error {
        let mut status = self.status();
        self.set_failed(&mut status, &error.to_string());
        // Wrong answers and unsound weights are this model's; what else it cannot do, no other can.
        if error.kind() == ErrorKind::Internal {
            self.is_lost.store(true, Ordering::Relaxed);
        }
        unavailable(&status.report)
    }

    /// A batch of the warm-up was computed.
    fn step(&self) {
        let mut status = self.status();
        if status.report.state == GpuState::Warming {
            status.report.warm_up.done += 1;
            self.changed.notify_all();
        }
    }

    /// Ends what nobody waits for any more.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) where the model was closed.
    fn check_open(&self) -> Result<()> {
        match self.is_closed.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "the model was closed")),
            false => Ok(()),
        }
    }

    /// Waits for `f`, which may take the device so long.
    async fn timed<T>(&self, time: Duration, f: impl Future<Output = T>) -> T {
        {
            let mut status = self.status();
            (status.due, status.is_late) = (Instant::now().checked_add(time), false);
        }
        let done = f.await;
        lock(&self.status).due = None;
        done
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unavailable(report: &GpuReport) -> Error {
    let reason = report.reason.as_deref().unwrap_or("it has not proved itself yet");
    Error::new(
        ErrorKind::DeviceUnavailable,
        format!(
            "the GPU {} computes no more: {reason}; use the device `cpu`, or open the model again for a new try",
            report.adapter
        ),
    )
}

/// A device with a model that it has proved to compute.
pub(crate) struct Proven {
    compute: Box<Compute>,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    /// The largest value that is believed, of what golden cases answer.
    bound: f32,
}

impl Proven {
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where it does not prove itself; [`Cancelled`](ErrorKind::Cancelled) where its model was
    /// closed meanwhile; those of loading.
    pub(crate) async fn open(load: Box<Load>, plan: &Arc<Plan>, shared: &Arc<Shared>) -> Result<Self> {
        let floats = plan.golden.iter().flat_map(|golden| &golden.cases).flat_map(|case| &case.floats);
        let bound = floats.fold(1f32, |most, x| most.max(x.abs())) * PLAUSIBLE;
        let compute = shared.timed(LOADING, async { load() }).await?;
        let device = Proven { compute, plan: plan.clone(), shared: shared.clone(), bound };
        shared.check_open()?;
        let self_check = device.prove().await?;
        let mut measured = Vec::new();
        if let Some(cpu) = &plan.cpu {
            for tokens in plan.lengths() {
                shared.check_open()?;
                let gpu = device.time(tokens).await?;
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

    /// What is wanted of each sequence, and the golden cases again when it is time.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where it fails; those of `check`.
    pub(crate) async fn outputs(
        &self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let failed = |error: Error| match error.kind() {
            ErrorKind::Cancelled => error,
            _ => self.shared.fail(&error),
        };
        let answer = self.answer(batch, output, check).await.map_err(failed)?;
        let unverified = lock(&self.shared.status).report.unverified_batches + 1;
        let is_due = self.plan.check_every > 0 && unverified >= self.plan.check_every;
        let is_proved = match is_due {
            false => false,
            // To its end, even where its caller goes meanwhile: callers who never wait for that long would never have it proved.
            true => self.prove().await.map_err(failed)?.is_some(),
        };
        let report = &mut lock(&self.shared.status).report;
        report.computed_tokens += batch.lengths().iter().sum::<usize>() as u64;
        report.unverified_batches = if is_proved { 0 } else { unverified };
        Ok(answer)
    }

    /// Computes the golden cases, if there are any, unless the model is closed meanwhile.
    async fn prove(&self) -> Result<Option<SelfCheck>> {
        let Some(golden) = &self.plan.golden else { return Ok(None) };
        let (plan, output) = (&self.plan, self_check::wanted(&self.plan.config));
        let mut comparison = Comparison::new(golden, &plan.config, plan.reference);
        for cases in comparison.batches() {
            let outputs = self.compute(&comparison.batch(&cases), output, &mut || self.shared.check_open()).await?;
            comparison.compare(&cases, &outputs)?;
        }
        comparison.finish().map(Some)
    }

    /// The time of one text of so many tokens, once its kernels are compiled.
    async fn time(&self, tokens: usize) -> Result<Duration> {
        let (batch, output) = (meaningless(&self.plan.config, tokens), self_check::wanted(&self.plan.config));
        self.compute(&batch, output, &mut || Ok(())).await?;
        let begin = Instant::now();
        self.compute(&batch, output, &mut || Ok(())).await?;
        Ok(begin.elapsed())
    }

    /// What the device gives, in time.
    async fn compute(
        &self,
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
            let computed = async { (self.compute)(&part, output, check)?.await };
            outputs.append(&mut self.shared.timed(self.plan.patience, computed).await?);
        }
        self.shared.step();
        Ok(outputs)
    }

    async fn answer(
        &self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let outputs = self.compute(batch, output, check).await?;
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
pub(super) fn meaningless(config: &ModelConfig, tokens: usize) -> Batch {
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % config.vocab_size) as u32).collect();
    Batch::new(&[ids], config.pad_token_id)
}
