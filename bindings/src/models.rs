//! Models: opened, called from any thread, closed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::entity::{Entity, LabelScore, countable, located, packed};
use crate::error::{AmpouleError, Result};
use crate::guard::{Live, guarded};
use crate::open::{BundleSource, OpenOptions, open};
use crate::stream::{CancelToken, EntityStream};

/// What an open model holds, and has done.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ModelReport {
    /// What computes: the processor's kernel, or a GPU's back end and adapter.
    pub device: String,
    /// The processor's kernel, as [`OpenOptions::kernel`] takes it.
    pub kernel: Option<String>,
    /// Why this device.
    pub reason: String,
    /// Threads that compute.
    pub threads: u32,
    /// The narrowest type of a matrix in the bundle: `f32`, `f16` or `int8`.
    pub precision: String,
    /// Bytes of the bundle's tensors.
    pub weight_bytes: u64,
    /// Bytes that are kept for the next call, and freed by `trim`.
    pub workspace_bytes: u64,
    /// Tokens computed so far. It stands still while nothing is computed.
    pub computed_tokens: u64,
    /// Calls and streams that compute now.
    pub running_calls: u32,
    /// How its GPU stands, where it has one.
    pub gpu: Option<GpuReport>,
}

/// How far a model's GPU has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum GpuState {
    /// It loads, compiles, and proves itself; the processor answers meanwhile, where it may.
    Warming,
    /// It computes.
    Ready,
    /// It computes no more: the report says why.
    Failed,
}

/// What a model's GPU is, and has done.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct GpuReport {
    /// The adapter, as its driver names it.
    pub adapter: String,
    /// What it computes in: `f32` or `f16`.
    pub precision: String,
    /// How far it has come.
    pub state: GpuState,
    /// Why it failed, or what was not proved.
    pub reason: Option<String>,
    /// Batches of its warm-up that it has computed.
    pub warm_up_done: u32,
    /// All of them.
    pub warm_up_of: u32,
    /// How near it came to the bundle's golden cases; none before, and where the bundle has none.
    pub check: Option<ModelCheck>,
    /// Where the processor is there too, the tokens of a batch's longest window from which on the GPU computes; none while that is not known,
    /// and where it takes longer at every length. [`OpenOptions::gpu_from_tokens`] pins a number.
    pub from_tokens: Option<u32>,
    /// Tokens of the batches that it answered.
    pub computed_tokens: u64,
    /// The batches that it answered since it last proved itself: where it failed, what nothing vouches for.
    pub unverified_batches: u64,
}

impl From<ampoule::GpuReport> for GpuReport {
    fn from(of: ampoule::GpuReport) -> Self {
        GpuReport {
            adapter: of.adapter,
            precision: of.precision.as_str().to_owned(),
            state: match of.state {
                ampoule::GpuState::Warming => GpuState::Warming,
                ampoule::GpuState::Ready => GpuState::Ready,
                _ => GpuState::Failed,
            },
            reason: of.reason,
            warm_up_done: of.warm_up.done as u32,
            warm_up_of: of.warm_up.of as u32,
            check: of.self_check.map(Into::into),
            from_tokens: of.from_tokens.map(|n| n as u32),
            computed_tokens: of.computed_tokens,
            unverified_batches: of.unverified_batches,
        }
    }
}

/// How near a model came to the golden cases of its bundle.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ModelCheck {
    /// The cases, each computed three times.
    pub cases: u32,
    /// The largest difference of a value, as a share of its answer's largest magnitude where that is over 1.
    pub largest_difference: f32,
    /// The largest that is right.
    pub allowed: f32,
}

impl From<ampoule::SelfCheck> for ModelCheck {
    fn from(of: ampoule::SelfCheck) -> Self {
        ModelCheck { cases: of.cases as u32, largest_difference: of.largest_difference, allowed: of.allowed }
    }
}

/// Tokens that calls computed, special ones counted, by the device that did; windows of one text may be computed by both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Record)]
pub struct Computed {
    /// On the processor.
    pub cpu_tokens: u64,
    /// On the GPU.
    pub gpu_tokens: u64,
}

/// What the models of the runtime have in common.
pub(crate) trait Model: Clone {
    fn limited(&self, cancel: Option<ampoule::CancelToken>, deadline: Option<Duration>) -> Self;
    fn computed(&self) -> ampoule::Computed;
    fn report(&self) -> ampoule::ModelReport;
    fn self_check(&self) -> ampoule::Result<Option<ampoule::SelfCheck>>;
    fn wait_for_gpu(&self, done: usize) -> ampoule::Result<Option<ampoule::GpuReport>>;
    fn trim(&self);
}

macro_rules! models {
    ($($model:ty),*) => {$(
        impl Model for $model {
            fn limited(&self, cancel: Option<ampoule::CancelToken>, deadline: Option<Duration>) -> Self {
                self.limited(cancel, deadline)
            }
            fn computed(&self) -> ampoule::Computed {
                self.computed()
            }
            fn report(&self) -> ampoule::ModelReport {
                self.report()
            }
            fn self_check(&self) -> ampoule::Result<Option<ampoule::SelfCheck>> {
                self.self_check()
            }
            fn wait_for_gpu(&self, done: usize) -> ampoule::Result<Option<ampoule::GpuReport>> {
                self.wait_for_gpu(done)
            }
            fn trim(&self) {
                self.trim();
            }
        }
    )*};
}

models!(ampoule::Extractor, ampoule::Classifier, ampoule::Embedder);

/// A model until it is closed; calls that run then go on with it.
pub(crate) struct Open<M> {
    model: Arc<Mutex<Option<Held<M>>>>,
    /// Of an object that is counted by itself, whether it was closed.
    is_closed: Option<AtomicBool>,
    running: Arc<AtomicU32>,
    counts: Arc<Counts>,
}

/// Tokens of the calls that have ended, on processor and GPU.
#[derive(Default)]
struct Counts([AtomicU64; 2]);

/// The model, for one call or for all: the last of them frees it.
#[derive(Clone)]
struct Held<M> {
    model: M,
    _live: Arc<Live>,
}

/// One call of a model, while it computes.
pub(crate) struct Call<M: Model> {
    held: Held<M>,
    running: Arc<AtomicU32>,
    counts: Arc<Counts>,
}

impl<M: Model> Call<M> {
    /// The model, with the limits of this call.
    pub(crate) fn model(&self) -> &M {
        &self.held.model
    }
}

impl<M: Model> Drop for Call<M> {
    fn drop(&mut self) {
        let ampoule::Computed { cpu_tokens, gpu_tokens, .. } = self.held.model.computed();
        for (count, tokens) in self.counts.0.iter().zip([cpu_tokens, gpu_tokens]) {
            count.fetch_add(tokens, Ordering::Relaxed);
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<M: Model> Open<M> {
    fn new(model: M) -> Self {
        let held = Held { model, _live: Arc::new(Live::new()) };
        let model = Arc::new(Mutex::new(Some(held)));
        Open { model, is_closed: None, running: Arc::default(), counts: Arc::default() }
    }

    /// The same model, whose calls are counted by themselves.
    fn counted(&self) -> Self {
        Open {
            model: self.model.clone(),
            is_closed: Some(AtomicBool::new(self.is_closed())),
            running: self.running.clone(),
            counts: Arc::default(),
        }
    }

    fn computed(&self) -> Computed {
        let [cpu_tokens, gpu_tokens] = self.counts.0.each_ref().map(|count| count.load(Ordering::Relaxed));
        Computed { cpu_tokens, gpu_tokens }
    }

    fn is_closed(&self) -> bool {
        self.is_closed.as_ref().is_some_and(|is_closed| is_closed.load(Ordering::Relaxed))
    }

    fn held(&self) -> Result<Held<M>> {
        if self.is_closed() {
            return Err(AmpouleError::closed("model"));
        }
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        model.clone().ok_or_else(|| AmpouleError::closed("model"))
    }

    /// A call that begins now.
    pub(crate) fn begin(&self, cancel: Option<ampoule::CancelToken>, timeout_ms: Option<u64>) -> Result<Call<M>> {
        let held = self.held()?;
        let model = held.model.limited(cancel, timeout_ms.map(Duration::from_millis));
        self.running.fetch_add(1, Ordering::Relaxed);
        Ok(Call { held: Held { model, ..held }, running: self.running.clone(), counts: self.counts.clone() })
    }

    /// One call.
    fn call<T>(
        &self,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
        f: impl FnOnce(&M) -> ampoule::Result<T>,
    ) -> Result<T> {
        guarded(|| {
            let call = self.begin(cancel.map(|token| token.0.clone()), timeout_ms)?;
            Ok(f(call.model())?)
        })
    }

    fn report(&self) -> Result<ModelReport> {
        guarded(|| {
            let report = self.held()?.model.report();
            Ok(ModelReport {
                device: report.device.name,
                kernel: report.device.kernel,
                reason: report.device.reason,
                threads: report.device.threads as u32,
                precision: report.precision.as_str().to_owned(),
                weight_bytes: report.weight_bytes,
                workspace_bytes: report.workspace_bytes,
                computed_tokens: report.computed_tokens,
                running_calls: self.running.load(Ordering::Relaxed),
                gpu: report.gpu.map(Into::into),
            })
        })
    }

    fn self_check(&self) -> Result<Option<ModelCheck>> {
        self.call(None, None, |model| Ok(model.self_check()?.map(Into::into)))
    }

    fn wait_for_gpu(
        &self,
        done: u32,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Option<GpuReport>> {
        guarded(|| {
            let timeout = timeout_ms.map(Duration::from_millis);
            // It counts as alive meanwhile.
            let held = self.held()?;
            let model = held.model.limited(cancel.map(|token| token.0.clone()), timeout);
            Ok(model.wait_for_gpu(done as usize)?.map(Into::into))
        })
    }

    fn trim(&self) -> Result<()> {
        guarded(|| {
            self.held()?.model.trim();
            Ok(())
        })
    }

    fn release(&self) {
        if let Some(is_closed) = &self.is_closed {
            return is_closed.store(true, Ordering::Relaxed);
        }
        let taken = self.model.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Outside the lock: freeing a model takes a while.
        drop(taken);
    }
}

/// Finds entities in notes of any length.
#[derive(uniffi::Object)]
pub struct Extractor(Open<ampoule::Extractor>);

#[uniffi::export]
impl Extractor {
    /// Opens a bundle of the task `token-classification`.
    #[uniffi::constructor]
    pub fn open(source: BundleSource, options: OpenOptions) -> Result<Self> {
        guarded(|| {
            let model = open(source, options, |p, o| ampoule::Extractor::open(p, o), ampoule::Extractor::from_bundle)?;
            Ok(Extractor(Open::new(model)))
        })
    }

    /// The labels that entities can have.
    pub fn labels(&self) -> Result<Vec<String>> {
        guarded(|| Ok(self.0.held()?.model.labels().iter().map(|label| label.to_string()).collect()))
    }

    /// The entities of a text, in order.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn extract(
        &self,
        text: &str,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<Entity>> {
        countable(text.len())?;
        self.0.call(cancel, timeout_ms, |model| Ok(located(text, &model.extract(text)?)))
    }

    /// The entities of several texts, computed together.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn extract_batch(
        &self,
        texts: Vec<String>,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<Vec<Entity>>> {
        self.0.call(cancel, timeout_ms, |model| {
            let found = model.extract_batch(&texts)?;
            Ok(texts.iter().zip(found).map(|(text, found)| located(text, &found)).collect())
        })
    }

    /// The entities of a text as bytes, for a language that reads records slowly (Python): 32 of them an entity, little-endian: the index of
    /// its label in `labels`, its score as a float, and start and end in UTF-8, in UTF-16 and in scalar values.
    pub fn extract_packed(&self, text: &str) -> Result<Vec<u8>> {
        self.extract_packed_within(text, None, None)
    }

    /// The same, until it is cancelled or the time is over; no limit at all takes such a language 12 µs to say.
    pub fn extract_packed_within(
        &self,
        text: &str,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<u8>> {
        countable(text.len())?;
        self.0.call(cancel, timeout_ms, |model| Ok(packed(text, &model.extract(text)?, model.labels())))
    }

    /// The same for several texts, computed together.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn extract_batch_packed(
        &self,
        texts: Vec<String>,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<Vec<u8>>> {
        self.0.call(cancel, timeout_ms, |model| {
            let found = model.extract_batch(&texts)?;
            Ok(texts.iter().zip(found).map(|(text, found)| packed(text, &found, model.labels())).collect())
        })
    }

    /// The entities of a long text, window by window while it is computed, by a thread of its own.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn stream(
        &self,
        text: String,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<EntityStream> {
        countable(text.len())?;
        guarded(|| EntityStream::start(&self.0, text, cancel, timeout_ms))
    }

    /// The same model as an object whose calls are counted by themselves, so that [`computed`](Self::computed) tells of one result, or of
    /// some. To close it closes it alone; with the model all such are closed.
    pub fn counted(&self) -> Self {
        Extractor(self.0.counted())
    }

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    pub fn computed(&self) -> Computed {
        self.0.computed()
    }

    /// Where it computes, and what it holds.
    pub fn report(&self) -> Result<ModelReport> {
        self.0.report()
    }

    /// Computes the golden cases of the model's bundle, which takes as long as a dozen short texts; none where it has no cases. Where an
    /// answer is wrong: [`AmpouleError::UseCpu`], which says what to try.
    pub fn self_check(&self) -> Result<Option<ModelCheck>> {
        self.0.self_check()
    }

    /// Waits until the GPU has computed more than `done` batches of its warm-up, is ready, or has failed, and says how it stands; none where
    /// there is none. The largest `done` waits for the end.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn wait_for_gpu(
        &self,
        done: u32,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Option<GpuReport>> {
        self.0.wait_for_gpu(done, cancel, timeout_ms)
    }

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    pub fn trim(&self) -> Result<()> {
        self.0.trim()
    }

    /// Closes the model: later calls end as [`AmpouleError::Closed`], running ones go on, and its memory is freed after the last.
    pub fn release(&self) {
        self.0.release();
    }
}

/// Sorts texts by labels.
#[derive(uniffi::Object)]
pub struct Classifier(Open<ampoule::Classifier>);

#[uniffi::export]
impl Classifier {
    /// Opens a bundle of the task `single-label-classification` or `multi-label-classification`.
    #[uniffi::constructor]
    pub fn open(source: BundleSource, options: OpenOptions) -> Result<Self> {
        guarded(|| {
            let model =
                open(source, options, |p, o| ampoule::Classifier::open(p, o), ampoule::Classifier::from_bundle)?;
            Ok(Classifier(Open::new(model)))
        })
    }

    /// The labels, in the model's order.
    pub fn labels(&self) -> Result<Vec<String>> {
        guarded(|| Ok(self.0.held()?.model.labels().iter().map(|label| label.to_string()).collect()))
    }

    /// Every label's probability, the likeliest first.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn classify(
        &self,
        text: &str,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<LabelScore>> {
        self.0.call(cancel, timeout_ms, |model| Ok(model.classify(text)?.into_iter().map(Into::into).collect()))
    }

    /// The same for several texts, computed together.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn classify_batch(
        &self,
        texts: Vec<String>,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<Vec<LabelScore>>> {
        self.0.call(cancel, timeout_ms, |model| {
            let scores = model.classify_batch(&texts)?;
            Ok(scores.into_iter().map(|scores| scores.into_iter().map(Into::into).collect()).collect())
        })
    }

    /// The same model as an object whose calls are counted by themselves, so that [`computed`](Self::computed) tells of one result, or of
    /// some. To close it closes it alone; with the model all such are closed.
    pub fn counted(&self) -> Self {
        Classifier(self.0.counted())
    }

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    pub fn computed(&self) -> Computed {
        self.0.computed()
    }

    /// Where it computes, and what it holds.
    pub fn report(&self) -> Result<ModelReport> {
        self.0.report()
    }

    /// Computes the golden cases of the model's bundle, which takes as long as a dozen short texts; none where it has no cases. Where an
    /// answer is wrong: [`AmpouleError::UseCpu`], which says what to try.
    pub fn self_check(&self) -> Result<Option<ModelCheck>> {
        self.0.self_check()
    }

    /// Waits until the GPU has computed more than `done` batches of its warm-up, is ready, or has failed, and says how it stands; none where
    /// there is none. The largest `done` waits for the end.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn wait_for_gpu(
        &self,
        done: u32,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Option<GpuReport>> {
        self.0.wait_for_gpu(done, cancel, timeout_ms)
    }

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    pub fn trim(&self) -> Result<()> {
        self.0.trim()
    }

    /// Closes the model: later calls end as [`AmpouleError::Closed`], running ones go on, and its memory is freed after the last.
    pub fn release(&self) {
        self.0.release();
    }
}

/// Turns texts into vectors for search and comparison.
#[derive(uniffi::Object)]
pub struct Embedder(Open<ampoule::Embedder>);

#[uniffi::export]
impl Embedder {
    /// Opens a bundle of any task.
    #[uniffi::constructor]
    pub fn open(source: BundleSource, options: OpenOptions) -> Result<Self> {
        guarded(|| {
            let model = open(source, options, |p, o| ampoule::Embedder::open(p, o), ampoule::Embedder::from_bundle)?;
            Ok(Embedder(Open::new(model)))
        })
    }

    /// Number of values of a vector.
    pub fn width(&self) -> Result<u32> {
        guarded(|| Ok(self.0.held()?.model.width() as u32))
    }

    /// The vector of a text: `width` floats of four bytes, little-endian.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn embed(&self, text: &str, cancel: Option<Arc<CancelToken>>, timeout_ms: Option<u64>) -> Result<Vec<u8>> {
        self.0.call(cancel, timeout_ms, |model| Ok(bytes(&[model.embed(text)?])))
    }

    /// The vectors of several texts, computed together, one after the other: `[texts, width]` floats of four bytes, little-endian.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn embed_batch(
        &self,
        texts: Vec<String>,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Vec<u8>> {
        self.0.call(cancel, timeout_ms, |model| Ok(bytes(&model.embed_batch(&texts)?)))
    }

    /// The same model as an object whose calls are counted by themselves, so that [`computed`](Self::computed) tells of one result, or of
    /// some. To close it closes it alone; with the model all such are closed.
    pub fn counted(&self) -> Self {
        Embedder(self.0.counted())
    }

    /// Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did.
    pub fn computed(&self) -> Computed {
        self.0.computed()
    }

    /// Where it computes, and what it holds.
    pub fn report(&self) -> Result<ModelReport> {
        self.0.report()
    }

    /// Computes the golden cases of the model's bundle, which takes as long as a dozen short texts; none where it has no cases. Where an
    /// answer is wrong: [`AmpouleError::UseCpu`], which says what to try.
    pub fn self_check(&self) -> Result<Option<ModelCheck>> {
        self.0.self_check()
    }

    /// Waits until the GPU has computed more than `done` batches of its warm-up, is ready, or has failed, and says how it stands; none where
    /// there is none. The largest `done` waits for the end.
    #[uniffi::method(default(cancel = None, timeout_ms = None))]
    pub fn wait_for_gpu(
        &self,
        done: u32,
        cancel: Option<Arc<CancelToken>>,
        timeout_ms: Option<u64>,
    ) -> Result<Option<GpuReport>> {
        self.0.wait_for_gpu(done, cancel, timeout_ms)
    }

    /// Frees the memory that is kept for the next call: for when the system asks for memory.
    pub fn trim(&self) -> Result<()> {
        self.0.trim()
    }

    /// Closes the model: later calls end as [`AmpouleError::Closed`], running ones go on, and its memory is freed after the last.
    pub fn release(&self) {
        self.0.release();
    }
}

/// Foreign languages read many floats faster as bytes.
fn bytes(vectors: &[Vec<f32>]) -> Vec<u8> {
    vectors.iter().flatten().flat_map(|x| x.to_le_bytes()).collect()
}
