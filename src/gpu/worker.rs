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

use super::{GpuReport, GpuState, GpuTime};
use crate::batch::Batch;
use crate::bundle::{Golden, Precision};
use crate::error::{Error, ErrorKind, Result};
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
    pub(crate) load: Box<Load>,
    /// Where the processor is there too, what it takes; it is measured unless `from_tokens` says where the GPU begins.
    pub(crate) cpu: Option<Box<CpuTime>>,
    pub(crate) from_tokens: Option<usize>,
    /// Batches after which the golden cases are computed again; 0 for never.
    pub(crate) check_every: u64,
    /// How long a batch may take.
    pub(crate) patience: Duration,
}

/// How long a batch may take before the device counts as hung. Kernels of a new shape are compiled within it.
#[cfg(feature = "wgpu")]
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a device may take until it has proved itself, where the caller waits for that.
const OPENING: Duration = Duration::from_secs(600);

/// How often a waiting call looks at its limit.
const LOOK: Duration = Duration::from_millis(5);

/// Lengths that sequences are padded to, so that kernels are compiled for a few shapes; longer ones to multiples of the last.
const LENGTHS: [usize; 10] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512];

/// The length that a sequence of so many tokens is padded to.
pub(crate) fn padded_length(tokens: usize) -> usize {
    let last = LENGTHS[LENGTHS.len() - 1];
    LENGTHS.into_iter().find(|&n| n >= tokens).unwrap_or(tokens.next_multiple_of(last))
}

/// How many times as large as the largest golden answer a value may be. No model of this kind comes near it.
const PLAUSIBLE: f32 = 64.0;

/// A batch to be computed.
struct Job {
    batch: Batch,
    output: Output,
    answer: Sender<Result<Vec<Vec<f32>>>>,
    is_given_up: Arc<AtomicBool>,
}

/// What its thread and its callers know of it.
struct Shared {
    report: Mutex<GpuReport>,
    changed: Condvar,
    is_closed: AtomicBool,
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, GpuReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, reason: &str) -> Error {
        let mut report = self.report();
        if report.state != GpuState::Failed {
            report.state = GpuState::Failed;
            report.reason = Some(reason.to_owned());
            self.changed.notify_all();
        }
        unavailable(&report)
    }
}

fn unavailable(report: &GpuReport) -> Error {
    let reason = report.reason.as_deref().unwrap_or("it has not proved itself yet");
    Error::new(
        ErrorKind::DeviceUnavailable,
        format!(
            "the GPU {} computes no more: {reason}; open the model again, or with the device `cpu`",
            report.adapter
        ),
    )
}

/// A model on a GPU. Its thread ends after it is dropped, when what the device computes has ended.
pub(crate) struct Gpu {
    jobs: Mutex<Sender<Job>>,
    shared: Arc<Shared>,
    patience: Duration,
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Gpu {
    /// Starts the thread, which loads and proves the model.
    pub(crate) fn start(plan: Plan) -> Result<Self> {
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
        let shared =
            Arc::new(Shared { report: Mutex::new(report), changed: Condvar::new(), is_closed: AtomicBool::new(false) });
        let (jobs, received) = channel();
        let (patience, thread) = (plan.patience, shared.clone());
        std::thread::Builder::new()
            .name("ampoule-gpu".to_owned())
            .spawn(move || run(plan, &thread, &received))
            .map_err(|e| {
                Error::new(ErrorKind::DeviceUnavailable, format!("cannot start a thread: {e}")).with_source(e)
            })?;
        Ok(Gpu { jobs: Mutex::new(jobs), shared, patience })
    }

    /// Waits until the device has proved itself.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where it does not.
    pub(crate) fn wait(&self) -> Result<()> {
        let end = Instant::now() + OPENING;
        let mut report = self.shared.report();
        loop {
            match report.state {
                GpuState::Ready => return Ok(()),
                GpuState::Failed => return Err(unavailable(&report)),
                GpuState::Warming => {}
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(report);
                return Err(self.shared.fail("it did not come to an end of loading and proving the model"));
            }
            (report, _) = self.shared.changed.wait_timeout(report, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn report(&self) -> GpuReport {
        self.shared.report().clone()
    }

    /// Whether it is to compute this batch, where the processor may too.
    pub(crate) fn takes(&self, batch: &Batch) -> bool {
        let report = self.shared.report();
        report.state == GpuState::Ready && report.from_tokens.is_some_and(|from| batch.dims()[1] >= from)
    }

    /// What is wanted of each sequence.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where the device fails, or failed before; those of the limit.
    pub(crate) fn outputs(&self, batch: &Batch, output: Output, limit: &Limit) -> Result<Vec<Vec<f32>>> {
        let report = self.shared.report();
        if report.state != GpuState::Ready {
            return Err(unavailable(&report));
        }
        drop(report);
        let (answer, answered) = channel();
        let is_given_up = Arc::new(AtomicBool::new(false));
        let job = Job { batch: batch.clone(), output, answer, is_given_up: is_given_up.clone() };
        let lost = || self.shared.fail("its thread ended");
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job).map_err(|_| lost())?;
        let begin = Instant::now();
        loop {
            match answered.recv_timeout(LOOK) {
                Ok(outputs) => return outputs,
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = limit.check() {
                is_given_up.store(true, Ordering::Relaxed);
                return Err(error);
            }
            if begin.elapsed() >= self.patience {
                is_given_up.store(true, Ordering::Relaxed);
                return Err(self.shared.fail("it did not answer in time"));
            }
        }
    }
}

/// The life of the thread.
fn run(mut plan: Plan, shared: &Shared, jobs: &Receiver<Job>) {
    let load = std::mem::replace(&mut plan.load, Box::new(|| Err(Error::internal("the model is loaded once"))));
    let mut device = match guarded(|| Device::open(load, &plan, shared)) {
        Ok(device) => device,
        Err(error) => {
            shared.fail(&error.to_string());
            return;
        }
    };
    // Batches that were answered, and no proof after them.
    let mut since_proof = 0;
    for job in jobs {
        if shared.report().state == GpuState::Failed {
            // What waits for an answer sees that the sender is gone, and then this state.
            return;
        }
        if job.is_given_up.load(Ordering::Relaxed) {
            continue;
        }
        let mut check = || match job.is_given_up.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "the call was given up")),
            false => Ok(()),
        };
        let mut answer = guarded(|| device.answer(&job.batch, job.output, &mut check));
        if answer.is_ok() {
            since_proof += 1;
            if since_proof == plan.check_every {
                match guarded(|| device.prove()) {
                    Ok(_) => since_proof = 0,
                    Err(error) => (answer, since_proof) = (Err(error), since_proof - 1),
                }
            }
        }
        match &answer {
            Ok(_) => {
                shared.report().computed_tokens += job.batch.lengths().iter().sum::<usize>() as u64;
            }
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => {
                shared.report().unverified_batches = since_proof;
                answer = Err(shared.fail(&error.to_string()));
            }
        }
        // A caller that is gone wants no answer.
        let _ = job.answer.send(answer);
    }
}

/// The device as its thread has it.
struct Device<'a> {
    compute: Box<Compute>,
    plan: &'a Plan,
    /// The largest value that is believed, of what golden cases answer.
    bound: f32,
}

impl<'a> Device<'a> {
    fn open(load: Box<Load>, plan: &'a Plan, shared: &Shared) -> Result<Self> {
        let floats = plan.golden.iter().flat_map(|golden| &golden.cases).flat_map(|case| &case.floats);
        let bound = floats.fold(1f32, |most, x| most.max(x.abs())) * PLAUSIBLE;
        let mut device = Device { compute: load()?, plan, bound };
        let self_check = device.prove()?;
        let mut measured = Vec::new();
        if let Some(cpu) = &plan.cpu {
            let lengths = LENGTHS.into_iter().filter(|&n| n <= plan.config.max_tokens());
            for tokens in lengths.filter(|&n| plan.from_tokens.is_none_or(|from| n >= from)) {
                if shared.is_closed.load(Ordering::Relaxed) {
                    return Err(Error::new(ErrorKind::Cancelled, "the model was closed"));
                }
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
        let mut report = shared.report();
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
        drop(report);
        Ok(device)
    }

    /// Computes the golden cases, if there are any.
    fn prove(&mut self) -> Result<Option<SelfCheck>> {
        let Some(golden) = &self.plan.golden else { return Ok(None) };
        let (config, output) = (&self.plan.config, self_check::wanted(&self.plan.config));
        let compute = &mut self.compute;
        let mut compute = |batch: &Batch| compute(&padded(batch, config), output, &mut || Ok(()));
        self_check::check(golden, config, self.plan.reference, &self.plan.adapter, &mut compute).map(Some)
    }

    /// The time of one text of so many tokens, once its kernels are compiled.
    fn time(&mut self, tokens: usize) -> Result<Duration> {
        let (batch, output) = (meaningless(&self.plan.config, tokens), self_check::wanted(&self.plan.config));
        (self.compute)(&batch, output, &mut || Ok(()))?;
        let begin = Instant::now();
        (self.compute)(&batch, output, &mut || Ok(()))?;
        Ok(begin.elapsed())
    }

    fn answer(
        &mut self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut outputs = (self.compute)(&padded(batch, &self.plan.config), output, check)?;
        outputs.truncate(batch.lengths().len());
        let unbelievable = |what| Error::new(ErrorKind::DeviceUnavailable, format!("it answered with {what}"));
        let is_bounded = output == self_check::wanted(&self.plan.config) && self.plan.golden.is_some();
        for values in &outputs {
            if values.iter().any(|x| !x.is_finite()) {
                return Err(unbelievable("what is not finite"));
            }
            if !values.is_empty() && values.iter().all(|&x| x == 0.0) {
                return Err(unbelievable("zeros alone"));
            }
            if is_bounded && values.iter().any(|x| x.abs() > self.bound) {
                return Err(unbelievable("values beyond all that the model says"));
            }
        }
        Ok(outputs)
    }
}

/// The batch in one of the few shapes.
fn padded(batch: &Batch, config: &ModelConfig) -> Batch {
    let [rows, seq] = batch.dims();
    let length = padded_length(seq).min(config.max_tokens()).max(seq);
    batch.padded(rows.next_power_of_two(), length, config.pad_token_id)
}

/// One sequence of so many tokens.
fn meaningless(config: &ModelConfig, tokens: usize) -> Batch {
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % config.vocab_size) as u32).collect();
    Batch::new(&[ids], config.pad_token_id)
}

/// What `f` gives; a panic is the device's failure. Its message is not told: it is a driver's or a library's, and may hold anything.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Err(Error::new(ErrorKind::DeviceUnavailable, "its driver or library panicked"));
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(panicked)
}

#[cfg(all(test, feature = "flex"))]
mod tests;
