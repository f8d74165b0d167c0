//! The same for a GPU, in WGSL (`gpu.wgsl`) by wgpu: linear layers, whose weights stay int8 or f16 in the GPU's memory and are widened where
//! they are multiplied, attention, layer norm, and the rows of embeddings.
//!
//! Shapes are arguments, so that a kernel is compiled once, whatever the texts. Sums are in f32 and in one order, so that an answer does
//! not depend on what else is in its batch. No workgroup shares more than 16 KiB, and none asks for subgroups.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::ThreadId;
use std::time::Duration;

use half::f16;
use half::slice::HalfFloatSliceExt;
use wgpu::{BufferUsages, PollType};

use super::{Activation, Answer, Matrix};
use crate::error::{Error, ErrorKind, Result};

/// An open GPU, what was compiled for it, and what it said of itself.
pub(crate) struct Driver {
    device: wgpu::Device,
    queue: wgpu::Queue,
    compiled: Mutex<HashMap<Kernel, wgpu::ComputePipeline>>,
    failures: Arc<Mutex<Failures>>,
}

/// What a device said of itself.
#[derive(Default)]
struct Failures {
    /// Threads, each a model's, that were refused memory and have not been told: they go without, and the device goes on for the others.
    without_memory: Vec<ThreadId>,
    /// Its first other error, after which nothing is believed. In words of ours: a driver's own may hold anything.
    failed: Option<&'static str>,
}

impl Failures {
    /// Of what the calling thread asked for.
    fn add(&mut self, error: &wgpu::Error) {
        let thread = std::thread::current().id();
        let goes_without = self.without_memory.contains(&thread);
        let failed = match error {
            wgpu::Error::OutOfMemory { .. } if goes_without => return,
            wgpu::Error::OutOfMemory { .. } => return self.without_memory.push(thread),
            // A buffer that was not had is refused wherever it is used.
            wgpu::Error::Validation { .. } if goes_without => return,
            wgpu::Error::Validation { .. } => "it refused what it was asked to do",
            wgpu::Error::Internal { .. } => "its driver failed",
        };
        self.failed.get_or_insert(failed);
    }
}

/// A kernel and what it is compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kernel {
    entry: &'static str,
    /// Whether values between kernels are f16; else f32.
    is_half: bool,
    /// Weights of a word: one in f32, two in f16, four in int8.
    per_word: usize,
    activation: Option<Activation>,
    has_factors: bool,
    has_places: bool,
    /// Values of an attention head.
    width: usize,
}

impl Kernel {
    /// What stands before the text of all kernels when this one is compiled.
    fn prefix(self) -> String {
        let (enable, float) = if self.is_half { ("enable f16;\n", "f16") } else { ("", "f32") };
        let residual = if self.has_places { "f32" } else { float };
        let activation = match self.activation {
            None => 0,
            Some(Activation::Gelu) => 1,
            Some(Activation::GeluTanh) => 2,
            Some(Activation::Relu) => 3,
            Some(Activation::Tanh) => 4,
        };
        // Both tiles within 16 KiB.
        let keys = (512 / self.width.div_ceil(4)).clamp(1, 16);
        let Kernel { per_word, has_factors, has_places, width, .. } = self;
        format!(
            "{enable}alias F = {float};\nalias R = {residual};\nconst PER_WORD: u32 = {per_word}u;\n\
             const ACTIVATION: u32 = {activation}u;\nconst HAS_FACTORS: bool = {has_factors};\n\
             const HAS_PLACES: bool = {has_places};\nconst WIDTH: u32 = {width}u;\nconst KEYS: u32 = {keys}u;\n"
        )
    }
}

impl Driver {
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let failures = Arc::<Mutex<Failures>>::default();
        let (of_errors, of_loss) = (failures.clone(), failures.clone());
        device.on_uncaptured_error(Arc::new(move |error| lock(&of_errors).add(&error)));
        device.set_device_lost_callback(move |_, _| lock(&of_loss).failed = Some("the device was lost"));
        Driver { device, queue, compiled: Mutex::default(), failures }
    }

    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where it had no memory for what this thread asked for, and
    /// [`Internal`](ErrorKind::Internal) where it failed, which is so for all that compute on it.
    fn check(&self) -> Result<()> {
        let Failures { without_memory, failed } = &mut *lock(&self.failures);
        if let Some(why) = failed {
            return Err(Error::internal(*why));
        }
        let thread = std::thread::current().id();
        match without_memory.extract_if(.., |of| *of == thread).next() {
            None => Ok(()),
            Some(_) => Err(Error::new(ErrorKind::DeviceUnavailable, "it is out of memory")),
        }
    }

    /// Whether it computes no more.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn has_failed(&self) -> bool {
        lock(&self.failures).failed.is_some()
    }

    /// Waits for what was sent; in a page, where nobody can, not at all.
    fn wait(&self, sent: wgpu::SubmissionIndex) -> Result<()> {
        let wait = PollType::Wait { submission_index: Some(sent), timeout: Some(PATIENCE) };
        let waited = self.device.poll(wait);
        self.check()?;
        waited.map(|_| ()).map_err(|e| Error::internal(e.to_string()))
    }

    /// Makes so many bytes of a buffer readable once what was sent has been computed; the inner error is that of the buffer.
    async fn map(
        &self,
        staging: &wgpu::Buffer,
        size: u64,
        sent: Option<wgpu::SubmissionIndex>,
    ) -> Result<std::result::Result<(), wgpu::BufferAsyncError>> {
        let told = Arc::new(Mutex::new(Told::default()));
        let tell = Tell(told.clone());
        staging.map_async(wgpu::MapMode::Read, ..size, move |result| tell.tell(result));
        if let Some(sent) = sent {
            self.wait(sent)?;
        }
        // In a page nothing was waited for; elsewhere another model's thread may be the one that is about to tell.
        let mapped = poll_fn(|context| {
            let (told, waker) = &mut *lock(&told);
            *waker = Some(context.waker().clone());
            told.take().map_or(Poll::Pending, Poll::Ready)
        });
        let mapped = mapped.await;
        self.check()?;
        Ok(mapped)
    }

    /// Lets it free what nobody holds any more.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn clean(&self) {
        // What is wrong with it is found out by the next that asks it for something.
        let _ = self.device.poll(PollType::Poll);
    }

    fn compiled(&self, kernel: Kernel) -> wgpu::ComputePipeline {
        let mut compiled = lock(&self.compiled);
        let pipeline = compiled.entry(kernel).or_insert_with(|| {
            let text = kernel.prefix() + include_str!("gpu.wgsl");
            let source = wgpu::ShaderModuleDescriptor { label: None, source: wgpu::ShaderSource::Wgsl(text.into()) };
            // SAFETY: every kernel keeps within the lengths that it is given, which were checked against those of its buffers; its loops
            // end.
            let module =
                unsafe { self.device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked()) };
            self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: None,
                module: &module,
                entry_point: Some(kernel.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..wgpu::PipelineCompilationOptions::default()
                },
                cache: None,
            })
        });
        pipeline.clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a buffer can be read, and who waits for that.
type Told = (Option<std::result::Result<(), wgpu::BufferAsyncError>>, Option<Waker>);

/// Tells that; dropped without having been asked, that it cannot, so that nobody waits for ever.
struct Tell(Arc<Mutex<Told>>);

impl Tell {
    fn tell(&self, result: std::result::Result<(), wgpu::BufferAsyncError>) {
        let (told, waker) = &mut *lock(&self.0);
        *told = Some(result);
        waker.take().into_iter().for_each(Waker::wake);
    }
}

impl Drop for Tell {
    fn drop(&mut self) {
        if lock(&self.0).0.is_none() {
            self.tell(Err(wgpu::BufferAsyncError));
        }
    }
}

/// Where a model's kernels are sent, in turn.
pub(crate) struct Queue {
    driver: Arc<Driver>,
    is_half: bool,
    work: Mutex<Work>,
    kept: Arc<Mutex<Kept>>,
}

/// What was not sent yet.
#[derive(Default)]
struct Work {
    recorded: Option<(wgpu::CommandEncoder, wgpu::ComputePass<'static>)>,
    /// Arguments of its kernels, [`SLOT`] bytes each, and where they will be.
    arguments: Vec<u8>,
    slots: Option<wgpu::Buffer>,
}

/// Buffers that are used again.
#[derive(Default)]
struct Kept {
    free: Vec<Free>,
    /// By which values come back.
    staging: Option<wgpu::Buffer>,
    /// Answers so far.
    reads: u64,
}

/// A buffer that nobody uses, and how many answers there were when somebody did.
struct Free(wgpu::Buffer, u64);

/// Values on the device.
#[derive(Clone)]
pub(crate) struct Buffer {
    place: Arc<Place>,
    len: usize,
    /// Whether they are values between kernels, in f16 where the queue's are; else of four bytes each.
    is_between: bool,
}

struct Place {
    buffer: wgpu::Buffer,
    /// Where it goes when it is dropped, if it is to be used again. Kernels run in the order in which they were recorded, so that may be
    /// before they have run.
    kept: Option<(Arc<Mutex<Kept>>, u64)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((kept, reads)) = &self.kept {
            lock(kept).free.push(Free(self.buffer.clone(), *reads));
        }
    }
}

/// Weights on the device, words of one value in f32, two in f16 or four in int8.
struct Words {
    words: Buffer,
    per_word: usize,
    /// One a row, where they are integers.
    scales: Option<Buffer>,
}

/// A linear layer's weights.
pub(crate) struct Linear {
    /// `[inputs / per word, outputs]`
    words: Words,
    inputs: usize,
    outputs: usize,
    bias: Buffer,
    /// What inputs are multiplied by, where they are.
    factors: Option<Buffer>,
}

/// Where each sequence begins, of the tokens of all, and where the last ends.
pub(crate) struct Sequences {
    starts: Buffer,
    count: usize,
    tokens: usize,
    longest: usize,
}

/// A table of rows, in parts.
pub(crate) struct Table {
    /// `[rows, width / per word]`
    parts: Vec<Words>,
    /// Of each part but the last.
    rows: usize,
    width: usize,
}

/// The words of all rows, each row padded to whole ones, and the bytes of a row.
///
/// # Panics
/// If a part is not of whole rows.
fn row_bytes(matrix: &Matrix, columns: usize, in_half: bool) -> (Vec<u8>, usize) {
    let size = (4 / per_word(matrix, in_half) * columns).next_multiple_of(4);
    let mut bytes = Vec::new();
    let mut add = |len: usize, row: &mut dyn FnMut(usize, &mut Vec<u8>)| {
        assert!(columns > 0 && len.is_multiple_of(columns), "rows of a matrix");
        bytes.reserve(len / columns * size);
        for first in (0..len).step_by(columns) {
            let end = bytes.len() + size;
            row(first, &mut bytes);
            bytes.resize(end, 0);
        }
    };
    match matrix {
        Matrix::Int8(parts) => {
            for (integers, _) in parts {
                add(integers.len(), &mut |at, to| {
                    to.extend_from_slice(bytemuck::cast_slice(&integers[at..][..columns]))
                });
            }
        }
        Matrix::F32(parts) => {
            for part in parts {
                add(part.len(), &mut |at, to| match in_half {
                    true => to.extend(part[at..][..columns].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
                    false => to.extend(part[at..][..columns].iter().flat_map(|x| x.to_le_bytes())),
                });
            }
        }
    }
    (bytes, size)
}

fn per_word(matrix: &Matrix, in_half: bool) -> usize {
    match (matrix, in_half) {
        (Matrix::Int8(_), _) => 4,
        (Matrix::F32(_), true) => 2,
        (Matrix::F32(_), false) => 1,
    }
}

/// The scales of all rows; none of floats.
fn scales(matrix: &Matrix) -> Vec<f32> {
    match matrix {
        Matrix::Int8(parts) => parts.iter().flat_map(|(_, scales)| *scales).copied().collect(),
        Matrix::F32(_) => Vec::new(),
    }
}

/// Rows, or columns, of a workgroup's part of a product.
const PART: usize = 64;

/// Queries of a workgroup that attends.
const QUERIES: usize = 64;

/// The most workgroups along a dimension, of any GPU.
const MOST_GROUPS: usize = 65535;

/// Bytes from one kernel's arguments to the next's: the least that every GPU can begin at.
const SLOT: usize = 256;

/// Kernels that are sent together; the GPU begins with them while the next are recorded.
const TOGETHER: usize = 32;

/// Answers after which a buffer that nobody used is given back.
const KEPT: u64 = 8;

impl Queue {
    pub(crate) fn new(driver: Arc<Driver>, is_half: bool) -> Self {
        Queue { driver, is_half, work: Mutex::default(), kept: Arc::default() }
    }

    /// A buffer with these bytes.
    fn upload(&self, bytes: &[u8], len: usize) -> Buffer {
        let size = bytes.len().next_multiple_of(4).max(4);
        let buffer = self.driver.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: size as u64,
            usage: BufferUsages::STORAGE,
            mapped_at_creation: true,
        });
        // A device that gives no memory says so when something is read.
        if let Ok(mut view) = buffer.get_mapped_range_mut(..) {
            view.slice(..bytes.len()).copy_from_slice(bytes);
        }
        buffer.unmap();
        Buffer { place: Arc::new(Place { buffer, kept: None }), len, is_between: false }
    }

    fn words(&self, bytes: &[u8], per_word: usize, scales: Option<&[f32]>) -> Words {
        Words { words: self.upload(bytes, bytes.len() / 4), per_word, scales: scales.map(|scales| self.floats(scales)) }
    }

    /// Values in f32, whatever values between kernels are.
    pub(crate) fn floats(&self, values: &[f32]) -> Buffer {
        self.upload(bytemuck::cast_slice(values), values.len())
    }

    /// Numbers of rows or places.
    pub(crate) fn numbers(&self, numbers: &[u32]) -> Buffer {
        self.upload(bytemuck::cast_slice(numbers), numbers.len())
    }

    /// Bytes of so many values between kernels, whole words.
    fn bytes(&self, len: usize) -> u64 {
        (len * if self.is_half { 2 } else { 4 }).next_multiple_of(4).max(4) as u64
    }

    /// A buffer for values between kernels.
    fn empty(&self, len: usize) -> Buffer {
        let size = self.bytes(len);
        let Kept { free, reads, .. } = &mut *lock(&self.kept);
        // Not one of more than twice the size, which a longer text may need.
        let fits = |Free(buffer, _): &Free| (size..=size.max(1 << 16).saturating_mul(2)).contains(&buffer.size());
        let fitting = free.iter().enumerate().filter(|(_, free)| fits(free)).min_by_key(|(_, free)| free.0.size());
        let buffer = match fitting.map(|(at, _)| at) {
            Some(at) => free.swap_remove(at).0,
            None => {
                // So that texts of about a length find it.
                let step = (size.next_power_of_two() / 8).max(4);
                let most = self.driver.device.limits().max_storage_buffer_binding_size;
                self.driver.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size: size.next_multiple_of(step).min(most / 4 * 4).max(size),
                    usage: BufferUsages::STORAGE | BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                })
            }
        };
        Buffer { place: Arc::new(Place { buffer, kept: Some((self.kept.clone(), *reads)) }), len, is_between: true }
    }

    /// Records a kernel over so many workgroups.
    fn record(&self, kernel: Kernel, arguments: &[u32], buffers: &[&Buffer], groups: [usize; 3]) {
        let Driver { device, queue, .. } = &*self.driver;
        let work = &mut *lock(&self.work);
        let slots = work.slots.get_or_insert_with(|| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: (SLOT * TOGETHER) as u64,
                usage: BufferUsages::UNIFORM | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let begin = work.arguments.len();
        let uniform = wgpu::BufferBinding {
            buffer: slots,
            offset: begin as u64,
            size: wgpu::BufferSize::new((4 * arguments.len()).next_multiple_of(16) as u64),
        };
        work.arguments.extend_from_slice(bytemuck::cast_slice(arguments));
        work.arguments.resize(begin + SLOT, 0);
        let pipeline = self.driver.compiled(kernel);
        let resources = std::iter::once(wgpu::BindingResource::Buffer(uniform))
            .chain(buffers.iter().map(|buffer| buffer.place.buffer.as_entire_binding()));
        let entries: Vec<_> =
            resources.zip(0..).map(|(resource, binding)| wgpu::BindGroupEntry { binding, resource }).collect();
        let bound = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &entries,
        });
        let (_, pass) = work.recorded(device);
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bound, &[]);
        let [x, y, z] = groups.map(|n| n as u32);
        pass.dispatch_workgroups(x, y, z);
        if work.arguments.len() == SLOT * TOGETHER {
            work.send(queue, None);
        }
    }

    /// Waits until what was uploaded is where it belongs: until then the driver has it twice.
    ///
    /// # Errors
    /// As [`Driver::check`].
    pub(crate) fn settle(&self) -> Result<()> {
        self.driver.wait(self.driver.queue.submit([]))
    }

    /// Leaves out what was recorded and not sent.
    pub(crate) fn forget(&self) {
        let work = &mut *lock(&self.work);
        work.recorded = None;
        work.arguments.clear();
    }

    /// What `send` sends, with the errors that it brings, which a page is told of later, and not by the buffer that it reads.
    pub(crate) fn watched(&self, send: impl FnOnce() -> Result<Answer>) -> Result<Answer> {
        if cfg!(not(target_family = "wasm")) {
            return send();
        }
        let memory = self.driver.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.driver.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let answer = send();
        let (validation, memory) = (validation.pop(), memory.pop());
        let (answer, driver) = (answer?, self.driver.clone());
        Ok(Box::pin(async move {
            for error in [memory.await, validation.await].iter().flatten() {
                lock(&driver.failures).add(error);
            }
            // Which looks at the failure.
            answer.await
        }))
    }

    /// Sends what was recorded; these values come back in parts of these lengths.
    ///
    /// # Errors
    /// As [`Driver::check`], here and later.
    ///
    /// # Panics
    /// If they are no values between kernels.
    pub(crate) fn read(&self, values: &Buffer, parts: impl Iterator<Item = usize>) -> Result<Answer> {
        assert!(values.is_between);
        let Driver { device, queue, .. } = &*self.driver;
        let (size, parts) = (self.bytes(values.len), parts.collect::<Vec<_>>());
        let fits = |staging: &wgpu::Buffer| (size..=size.max(1 << 20).saturating_mul(4)).contains(&staging.size());
        let staging = lock(&self.kept).staging.take().filter(fits).unwrap_or_else(|| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size,
                usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        });
        let sent = {
            let work = &mut *lock(&self.work);
            work.recorded(device);
            work.send(queue, Some((&values.place.buffer, &staging, size)))
        };
        self.driver.check()?;
        let (driver, kept, is_half) = (self.driver.clone(), self.kept.clone(), self.is_half);
        Ok(Box::pin(async move {
            let failed = |why: &dyn std::fmt::Display| Error::internal(format!("its answer cannot be read: {why}"));
            driver.map(&staging, size, sent).await?.map_err(|e| failed(&e))?;
            let outputs = {
                let view = staging.get_mapped_range(..size).map_err(|e| failed(&e))?;
                let mut rest: &[u8] = &view;
                let part = |len: usize| {
                    let size = if is_half { 2 } else { 4 };
                    let these = rest.split_off(..(len * size).min(rest.len())).unwrap_or_default();
                    if !is_half {
                        return bytemuck::pod_collect_to_vec(these);
                    }
                    let halves: Vec<f16> = bytemuck::pod_collect_to_vec(these);
                    let mut values = vec![0.0; halves.len()];
                    halves.convert_to_f32_slice(&mut values);
                    values
                };
                parts.into_iter().map(part).collect()
            };
            staging.unmap();
            let Kept { free, staging: kept, reads } = &mut *lock(&kept);
            *kept = Some(staging);
            *reads += 1;
            free.retain(|Free(_, used)| used + KEPT >= *reads);
            Ok(outputs)
        }))
    }

    fn kernel(&self, entry: &'static str) -> Kernel {
        Kernel {
            entry,
            is_half: self.is_half,
            per_word: 1,
            activation: None,
            has_factors: false,
            has_places: false,
            width: 1,
        }
    }

    /// Sends a linear layer's weights; floats as f16 where so asked.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn linear(
        &self,
        matrix: &Matrix,
        in_half: bool,
        inputs: usize,
        bias: &[f32],
        factors: Option<&[f32]>,
    ) -> Linear {
        let ((rows, size), scales) = (row_bytes(matrix, inputs, in_half), scales(matrix));
        let (outputs, per_word) = (bias.len(), per_word(matrix, in_half));
        assert!(rows.len() == outputs * size && factors.is_none_or(|factors| factors.len() == inputs));
        let mut words = vec![0u32; size / 4 * outputs];
        for (n, row) in rows.chunks(size).enumerate() {
            for (word, to) in row.as_chunks().0.iter().zip(words[n..].iter_mut().step_by(outputs)) {
                *to = u32::from_le_bytes(*word);
            }
        }
        assert!(per_word != 4 || scales.len() == outputs);
        Linear {
            words: self.words(bytemuck::cast_slice(&words), per_word, (per_word == 4).then_some(&scales)),
            inputs,
            outputs,
            bias: self.floats(bias),
            factors: factors.map(|factors| self.floats(factors)),
        }
    }

    /// Sends a table in parts of at most `most_bytes`; floats as f16 where so asked.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn table(&self, matrix: &Matrix, in_half: bool, width: usize, most_bytes: usize) -> Table {
        let ((rows, size), scales) = (row_bytes(matrix, width, in_half), scales(matrix));
        let count = (most_bytes / size).clamp(1, (rows.len() / size).max(1));
        let per_word = per_word(matrix, in_half);
        assert!(per_word != 4 || scales.len() * size == rows.len());
        let mut scales = scales.chunks(count);
        let parts = rows.chunks(count * size).map(|rows| self.words(rows, per_word, scales.next()));
        Table { parts: parts.collect(), rows: count, width }
    }

    /// The rows of `table` of these numbers, `[numbers, width]`. A number beyond the table has no row, and whatever values.
    ///
    /// # Panics
    /// If `numbers` are none.
    pub(crate) fn rows(&self, table: &Table, numbers: &Buffer) -> Buffer {
        assert!(!numbers.is_between);
        let out = self.empty(numbers.len * table.width);
        for (part, Words { words, per_word, scales }) in table.parts.iter().enumerate() {
            let rows = words.len / table.width.div_ceil(*per_word);
            let kernel = Kernel { per_word: *per_word, ..self.kernel("rows") };
            let arguments = [part * table.rows, rows, table.width, numbers.len].map(|n| n as u32);
            let buffers = [words, scales.as_ref().unwrap_or(words), numbers, &out];
            self.record(kernel, &arguments, &buffers, groups(numbers.len));
        }
        out
    }

    /// The first row of each sequence that has one, of `x` `[tokens, width]`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn firsts(&self, x: &Buffer, width: usize, lengths: &[usize]) -> Buffer {
        let mut tokens = 0;
        let firsts = lengths.iter().filter(|n| **n > 0).map(|n| {
            tokens += n;
            (tokens - n) as u32
        });
        let firsts: Vec<u32> = firsts.collect();
        assert!(x.len == tokens * width && x.is_between);
        let out = self.empty(firsts.len() * width);
        let arguments = [width as u32, firsts.len() as u32];
        self.record(self.kernel("take"), &arguments, &[x, &self.numbers(&firsts), &out], groups(firsts.len()));
        out
    }

    /// `activation(x W^T + bias)`, `x` `[rows, inputs]`: of each of `parts` as many outputs, `[parts, rows, outputs / parts]`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn apply(&self, layer: &Linear, x: &Buffer, activation: Option<Activation>, parts: usize) -> Buffer {
        let Linear { words: Words { words, per_word, scales }, inputs, outputs, bias, factors } = layer;
        let rows = x.len / (*inputs).max(1);
        assert!(x.len == rows * inputs && x.is_between && outputs.is_multiple_of(parts));
        let out = self.empty(rows * outputs);
        let has_factors = factors.is_some();
        let kernel = Kernel { per_word: *per_word, activation, has_factors, ..self.kernel("linear") };
        let arguments = [rows, *inputs, *outputs, outputs / parts].map(|n| n as u32);
        let buffers = [x, words, scales.as_ref().unwrap_or(bias), factors.as_ref().unwrap_or(bias), bias, &out];
        self.record(kernel, &arguments, &buffers, [outputs.div_ceil(PART), rows.div_ceil(PART), 1]);
        out
    }

    /// Sequences of so many tokens, one after the other.
    pub(crate) fn sequences(&self, lengths: &[usize]) -> Sequences {
        let mut tokens = 0;
        let ends = lengths.iter().map(|n| {
            tokens += n;
            tokens as u32
        });
        let starts: Vec<u32> = std::iter::once(0).chain(ends).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Sequences { starts: self.numbers(&starts), count: lengths.len(), tokens, longest }
    }

    /// Attention of every head over each sequence (Vaswani et al. 2017): `qkv` `[3, tokens, hidden]` -> `[tokens, hidden]`.
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn attend(&self, qkv: &Buffer, hidden: usize, heads: usize, sequences: &Sequences) -> Buffer {
        let Sequences { starts, count, tokens, longest } = sequences;
        let width = hidden / heads.max(1);
        assert!(qkv.len == 3 * tokens * hidden && qkv.is_between && heads * width == hidden && width > 0);
        let out = self.empty(tokens * hidden);
        let kernel = Kernel { width, ..self.kernel("attention") };
        let arguments = [(tokens * hidden) as u32, hidden as u32, (1.0 / (width as f32).sqrt()).to_bits()];
        self.record(kernel, &arguments, &[qkv, starts, &out], [longest.div_ceil(QUERIES), heads, *count]);
        out
    }

    /// `norm(x + residual) * gamma + beta`, both `[rows, width]` (Ba et al. 2016).
    ///
    /// # Panics
    /// If the lengths do not belong together.
    pub(crate) fn add_norm(&self, x: &Buffer, residual: &Buffer, parameters: [&Buffer; 2], epsilon: f32) -> Buffer {
        assert!(x.len == residual.len && residual.is_between);
        self.norm(x, residual, None, parameters, epsilon)
    }

    /// The same of a residual whose rows are those of these numbers, of `[.., width]` in f32.
    ///
    /// # Panics
    /// If the lengths do not belong together, or a number is beyond the rows.
    pub(crate) fn add_norm_of(
        &self,
        x: &Buffer,
        rows: &Buffer,
        numbers: &[u32],
        parameters: [&Buffer; 2],
        epsilon: f32,
    ) -> Buffer {
        let width = parameters[0].len;
        assert!(x.len == numbers.len() * width && !rows.is_between);
        assert!(numbers.iter().all(|&n| (n as usize + 1) * width <= rows.len));
        self.norm(x, rows, Some(&self.numbers(numbers)), parameters, epsilon)
    }

    fn norm(
        &self,
        x: &Buffer,
        residual: &Buffer,
        places: Option<&Buffer>,
        [gamma, beta]: [&Buffer; 2],
        epsilon: f32,
    ) -> Buffer {
        let (rows, width) = (x.len / gamma.len.max(1), gamma.len);
        assert!(x.len == rows * width && x.is_between && beta.len == width && rows > 0);
        assert!(!gamma.is_between && !beta.is_between);
        let out = self.empty(x.len);
        let kernel = Kernel { has_places: places.is_some(), ..self.kernel("add_norm") };
        let arguments = [rows as u32, width as u32, epsilon.to_bits()];
        self.record(kernel, &arguments, &[x, residual, places.unwrap_or(gamma), gamma, beta, &out], groups(rows));
        out
    }
}

impl Work {
    /// What is recorded next goes here.
    fn recorded(&mut self, device: &wgpu::Device) -> &mut (wgpu::CommandEncoder, wgpu::ComputePass<'static>) {
        self.recorded.get_or_insert_with(|| {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
            (encoder, pass)
        })
    }

    /// Sends what was recorded, if anything was, and then a copy of so many bytes.
    fn send(
        &mut self,
        queue: &wgpu::Queue,
        copy: Option<(&wgpu::Buffer, &wgpu::Buffer, u64)>,
    ) -> Option<wgpu::SubmissionIndex> {
        let (mut encoder, pass) = self.recorded.take()?;
        drop(pass);
        if let Some((from, to, size)) = copy {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, size);
        }
        if let Some(slots) = &self.slots {
            queue.write_buffer(slots, 0, &self.arguments);
        }
        self.arguments.clear();
        Some(queue.submit([encoder.finish()]))
    }
}

/// How long what was sent may take; whoever waits for it has given up before.
const PATIENCE: Duration = Duration::from_secs(600);

/// A workgroup for each row.
fn groups(rows: usize) -> [usize; 3] {
    let wide = rows.clamp(1, MOST_GROUPS);
    [wide, rows.div_ceil(wide), 1]
}

#[cfg(test)]
mod tests;
