//! The thread that speaks to a GPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pollster::block_on;

use super::proven::{Load, Plan, Proven, Shared, lock};
use super::{GpuReport, GpuState};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Output;
use crate::options::Limit;
use crate::self_check::Reference;

/// How often a waiting call looks at its limit.
const LOOK: Duration = Duration::from_millis(5);

/// A batch to be computed.
struct Job {
    /// None once its caller has given it up: behind a device that hangs, no note is to wait for ever.
    batch: Arc<Mutex<Option<Batch>>>,
    output: Output,
    answer: Sender<Result<Vec<Vec<f32>>>>,
    is_given_up: Arc<AtomicBool>,
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
        let (reference, plan) = (plan.reference, Arc::new(plan));
        let shared = Arc::new(Shared::new(&plan));
        let (jobs, received) = channel();
        let thread = shared.clone();
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
        self.wait_beyond(usize::MAX, &Limit::NONE)?;
        self.shared.check()
    }

    /// How it stands, once it has come further than `done` batches of its warm-up, is ready, or has failed.
    ///
    /// # Errors
    /// Those of the limit.
    pub(crate) fn wait_beyond(&self, done: usize, limit: &Limit) -> Result<GpuReport> {
        loop {
            let status = self.shared.status();
            if status.report.state != GpuState::Warming || status.report.warm_up.done > done {
                return Ok(status.report.clone());
            }
            drop(self.shared.changed.wait_timeout(status, LOOK));
            limit.check()?;
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
        let checked = self.shared.check();
        if checked.is_err() && self.report().state == GpuState::Failed {
            lock(&self.jobs).take();
        }
        checked
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::DeviceUnavailable, "its thread ended")
}

/// The life of the thread.
fn run(plan: &Arc<Plan>, load: Box<Load>, shared: &Arc<Shared>, jobs: Receiver<Job>) {
    match guarded(|| block_on(Proven::open(load, plan, shared))) {
        Ok(device) => serve(device, shared, jobs),
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
fn serve(device: Proven, shared: &Shared, jobs: Receiver<Job>) {
    for job in jobs {
        let Some(batch) = lock(&job.batch).take() else { continue };
        let mut check = || match job.is_given_up.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Cancelled, "the call was given up")),
            false => Ok(()),
        };
        let answer = guarded(|| block_on(device.outputs(&batch, job.output, &mut check)));
        let answer = answer.map_err(|error| match error.kind() {
            // It panicked.
            ErrorKind::Internal => shared.fail(&error),
            _ => error,
        });
        // A caller that is gone wants no answer.
        let _ = job.answer.send(answer);
        if shared.status().report.state == GpuState::Failed {
            return;
        }
    }
}

/// What `f` gives; a panic is the device's failure. Its message is not told: it is a driver's or a library's, and may hold anything.
fn guarded<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    let panicked = |_| Err(Error::internal("its driver or library panicked"));
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(panicked)
}

#[cfg(all(test, feature = "flex"))]
mod tests;
