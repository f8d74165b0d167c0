//! The model of [`super`] as the kernels compute it: weights packed, layers fused, sequences without padding.
//!
//! This is how a processor with kernels runs what [`Model`](super::Model) defines; `packed/tests.rs` holds the two together.

#[cfg(feature = "autodiff")]
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

#[cfg(feature = "autodiff")]
use rayon::prelude::*;

use super::Output;
use super::config::{ModelConfig, Task};
use super::weights::{Int8, SideBySide, Values, WeightSource, take_positions};
#[cfg(feature = "autodiff")]
use super::{FrozenOutputs, HiddenState};
use crate::batch::Batch;
use crate::error::Result;
use crate::kernels::{Activation, Kernel, Matrix, Packed, Scratch};
use crate::team::Team;

/// The most rows that go through a layer's feed-forward block together: their widened values stay in a core's cache.
const ROWS: usize = 64;

/// Tokens for each thread from which on further sequences wait: what lies between a layer's steps stays in its cache too.
const GROUP: usize = 128;

/// An encoder with at most one head, its weights packed for one kernel.
pub(crate) struct PackedModel {
    config: ModelConfig,
    kernel: Kernel,
    word_embeddings: Values,
    /// `[positions, embedding]`, the embedding of the one token type added.
    positions: Vec<f32>,
    norm: Norm,
    project: Option<Packed>,
    layers: Vec<Layer>,
    head: Option<Head>,
    workers: Workers,
    /// Those not in use.
    workspaces: Mutex<Vec<Workspace>>,
}

struct Norm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    epsilon: f32,
}

struct Layer {
    query_key_value: Packed,
    attention_output: Packed,
    attention_norm: Norm,
    intermediate: Packed,
    output: Packed,
    norm: Norm,
}

/// The dense layers of a head; their weights stay floats.
struct Head {
    /// Over a text's first token, with what follows it.
    pooler: Option<(Packed, Activation)>,
    classifier: Packed,
}

/// Sees, before each layer, its number from 0, and a group of sequences' inputs `[tokens, hidden]` and queries, keys and values
/// `[tokens, 3 * hidden]`; groups in order.
type ObserveGroup<'a> = dyn FnMut(usize, &[f32], &[f32]) + 'a;

/// Whose threads compute.
pub(crate) enum Workers {
    /// The one that calls, whichever pool it may be in, and its helpers.
    Team(Arc<Team>),
    /// Those of rayon's current pool, as training does.
    #[cfg(feature = "autodiff")]
    Pool,
}

impl Workers {
    fn count(&self) -> usize {
        match self {
            Workers::Team(team) => team.threads(),
            #[cfg(feature = "autodiff")]
            Workers::Pool => rayon::current_num_threads(),
        }
    }

    /// Runs a call.
    fn call<T>(&self, f: impl FnOnce() -> T) -> T {
        match self {
            Workers::Team(team) => team.call(f),
            #[cfg(feature = "autodiff")]
            Workers::Pool => f(),
        }
    }

    /// Does `work` on each of `blocks`; each thread has a space of its own.
    fn each<B>(&self, spaces: &[Mutex<ThreadSpace>], blocks: B, work: impl Fn(&mut ThreadSpace, B::Item) + Sync)
    where
        B: ExactSizeIterator<Item: Send> + Send,
    {
        match self {
            Workers::Team(team) => {
                let (pieces, blocks) = (blocks.len(), Mutex::new(blocks));
                team.together(pieces, &|thread| {
                    let mut own = lock(&spaces[thread]);
                    loop {
                        let next = lock(&blocks).next();
                        let Some(block) = next else { break };
                        work(&mut own, block);
                    }
                });
            }
            #[cfg(feature = "autodiff")]
            Workers::Pool => blocks.par_bridge().for_each(|block| {
                // Each finds its own free.
                work(&mut lock(&spaces[rayon::current_thread_index().unwrap_or(0) % spaces.len()]), block);
            }),
        }
    }
}

/// What one call needs at a time.
#[derive(Default)]
struct Workspace {
    /// Each token's id and its place in its sequence.
    tokens: Vec<(usize, usize)>,
    /// `[tokens, hidden]`
    x: Vec<f32>,
    /// `[tokens of a group, 3 * hidden]`
    qkv: Vec<f32>,
    /// `[heads, tokens of a group, hidden / heads]`
    context: Vec<f32>,
    /// One for each thread that computes.
    threads: Vec<Mutex<ThreadSpace>>,
}

impl Workspace {
    fn bytes(&self) -> u64 {
        let floats = |values: &Vec<f32>| 4 * values.capacity();
        let threads = self.threads.iter().map(|thread| {
            let ThreadSpace { scratch, narrow, gathered, wide } = &*lock(thread);
            scratch.bytes() + floats(narrow) + floats(gathered) + floats(wide)
        });
        let tokens = self.tokens.capacity() * size_of::<(usize, usize)>();
        (tokens + floats(&self.x) + floats(&self.qkv) + floats(&self.context) + threads.sum::<usize>()) as u64
    }
}

#[derive(Default)]
struct ThreadSpace {
    scratch: Scratch,
    narrow: Vec<f32>,
    gathered: Vec<f32>,
    wide: Vec<f32>,
}

impl PackedModel {
    pub(crate) fn load(
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        kernel: Kernel,
        workers: Workers,
    ) -> Result<Self> {
        config.validate()?;
        let (width, h) = (config.embedding_size, config.hidden_size);
        let word_embeddings = source.take_values("embeddings.word_embeddings.weight", &[config.vocab_size, width])?;
        let positions = take_positions(source, config)?;
        let norm = Norm::load(source, "embeddings.LayerNorm", width, config)?;
        let project = match width == h {
            true => None,
            false => Some(linear(source, kernel, &["embeddings_project"], h, width)?),
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(config, source, kernel, &format!("encoder.layer.{i}")))
            .collect::<Result<_>>()?;
        let head = Head::load(config, source, kernel)?;
        let workspaces = Mutex::default();
        Ok(PackedModel {
            config: config.clone(),
            kernel,
            word_embeddings,
            positions,
            norm,
            project,
            layers,
            head,
            workers,
            workspaces,
        })
    }

    /// What is wanted of each sequence. `check` may end the computation between layers.
    pub(crate) fn outputs(
        &self,
        batch: &Batch,
        output: Output,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut workspace = lock(&self.workspaces).pop().unwrap_or_default();
        let compute = || {
            let head = match output {
                Output::States => None,
                Output::Logits => Some(self.head.as_ref().ok_or_else(super::no_labels)?),
            };
            self.compute(batch, &mut workspace, &mut |_, _, _| (), check)?;
            let sequences = self.sequences(batch, &workspace.x);
            let mut outputs: Vec<(&[f32], Vec<f32>)> = sequences.map(|states| (states, Vec::new())).collect();
            self.workers.each(&workspace.threads, outputs.iter_mut(), |own, (states, values)| {
                *values = match head {
                    Some(head) => head.logits(states, &mut own.scratch),
                    None => states.to_vec(),
                };
            });
            Ok(outputs.into_iter().map(|(_, values)| values).collect())
        };
        let result = self.workers.call(compute);
        lock(&self.workspaces).push(workspace);
        result
    }

    /// Bytes of the workspaces that no call uses.
    pub(crate) fn workspace_bytes(&self) -> u64 {
        lock(&self.workspaces).iter().map(Workspace::bytes).sum()
    }

    /// Frees the workspaces that no call uses.
    pub(crate) fn trim(&self) {
        lock(&self.workspaces).clear();
    }

    /// The hidden states of each sequence, of those of all tokens.
    fn sequences<'x>(&self, batch: &Batch, mut states: &'x [f32]) -> impl Iterator<Item = &'x [f32]> {
        batch.lengths().iter().map(move |n| {
            let (these, others) = states.split_at(n * self.config.hidden_size);
            states = others;
            these
        })
    }

    #[cfg(feature = "autodiff")]
    pub(super) fn observed(&self, batch: &Batch, wanted: &BTreeSet<HiddenState>) -> Result<Vec<FrozenOutputs>> {
        let h = self.config.hidden_size;
        let mut states = BTreeMap::<HiddenState, Vec<f32>>::new();
        // Groups come in order, so the rows of a state too.
        let mut keep = |state: HiddenState, rows: &[f32], width: usize, column: usize| {
            if wanted.contains(&state) {
                let all = states.entry(state).or_default();
                rows.chunks(width).for_each(|row| all.extend_from_slice(&row[column..][..h]));
            }
        };
        let mut workspace = lock(&self.workspaces).pop().unwrap_or_default();
        let mut observe = |number: usize, x: &[f32], qkv: &[f32]| {
            keep(HiddenState::Layer(number), x, h, 0);
            let of: [fn(usize) -> HiddenState; 3] = [HiddenState::Query, HiddenState::Key, HiddenState::Value];
            for (state, column) in of.iter().zip([0, h, 2 * h]) {
                keep(state(number + 1), qkv, 3 * h, column);
            }
        };
        self.compute(batch, &mut workspace, &mut observe, &mut || Ok(()))?;
        keep(HiddenState::Layer(self.layers.len()), &workspace.x, h, 0);
        let logits = |last: &[f32]| {
            self.head.as_ref().map_or(Vec::new(), |head| head.logits(last, &mut lock(&workspace.threads[0]).scratch))
        };
        let of = |last: &[f32]| FrozenOutputs { logits: logits(last), states: BTreeMap::new() };
        let mut outputs: Vec<FrozenOutputs> = self.sequences(batch, &workspace.x).map(of).collect();
        for (state, values) in states {
            for (values, outputs) in self.sequences(batch, &values).zip(&mut outputs) {
                outputs.states.insert(state, values.to_vec());
            }
        }
        lock(&self.workspaces).push(workspace);
        Ok(outputs)
    }

    /// Leaves the last hidden states of all tokens, without padding, in `workspace.x`.
    fn compute(
        &self,
        batch: &Batch,
        workspace: &mut Workspace,
        observe: &mut ObserveGroup,
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let h = self.config.hidden_size;
        let threads = self.workers.count();
        workspace.threads.resize_with(threads, Mutex::default);
        let Workspace { tokens, x, qkv, context, threads: spaces } = workspace;
        tokens.clear();
        tokens.extend(batch.tokens());
        x.resize(tokens.len() * h, 0.0);
        let group = |lengths: &[usize]| {
            let mut tokens = 0;
            let full = lengths.iter().position(|n| {
                tokens += n;
                tokens >= GROUP * threads
            });
            (full.map_or(lengths.len(), |last| last + 1), tokens)
        };
        let is_one_group = group(batch.lengths()).0 == batch.lengths().len();
        let rows = self.rows(x);
        let blocks = x.chunks_mut(rows * h).zip(tokens.chunks(rows));
        match self.layers.first().filter(|_| is_one_group) {
            Some(first) => {
                qkv.resize(3 * tokens.len() * h, 0.0);
                self.workers.each(spaces, blocks.zip(qkv.chunks_mut(rows * 3 * h)), |own, ((x, tokens), qkv)| {
                    self.embed(tokens, x, own);
                    first.query_key_value.apply(x, None, &mut own.scratch, qkv);
                });
            }
            None => self.workers.each(spaces, blocks, |own, (x, tokens)| self.embed(tokens, x, own)),
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(i + 1).filter(|_| is_one_group);
            let (mut x, mut lengths) = (x.as_mut_slice(), batch.lengths());
            while !lengths.is_empty() {
                check()?;
                let (sequences, tokens) = group(lengths);
                let (these, others) = lengths.split_at(sequences);
                let (group, rest) = x.split_at_mut(tokens * h);
                if !is_one_group {
                    self.project(layer, group, qkv, spaces);
                }
                observe(i, group, qkv);
                self.layer(layer, next, these, group, qkv, context, spaces);
                (x, lengths) = (rest, others);
            }
        }
        check()
    }

    /// Rows that one thread takes at a time: half of its share where that is more than kernels take at once, so that the last wait less
    /// for one that came late.
    fn rows(&self, x: &[f32]) -> usize {
        let (tokens, threads) = (x.len() / self.config.hidden_size, self.workers.count());
        let share = tokens.div_ceil(threads);
        let rows = if threads == 1 { share } else { share.div_ceil(2).max(share.min(8)) };
        rows.clamp(1, ROWS)
    }

    /// Queries, keys and values of `x` `[tokens, hidden]`.
    fn project(&self, layer: &Layer, x: &[f32], qkv: &mut Vec<f32>, spaces: &[Mutex<ThreadSpace>]) {
        let (h, rows) = (self.config.hidden_size, self.rows(x));
        qkv.resize(3 * x.len(), 0.0);
        self.workers.each(spaces, x.chunks(rows * h).zip(qkv.chunks_mut(rows * 3 * h)), |own, (x, qkv)| {
            layer.query_key_value.apply(x, None, &mut own.scratch, qkv);
        });
    }

    /// One layer over the sequences of these lengths, `x` `[tokens, hidden]`, whose queries, keys and values are there; leaves those
    /// of `next`, if any, which need no thread to wait for another.
    #[allow(clippy::too_many_arguments)]
    fn layer(
        &self,
        layer: &Layer,
        next: Option<&Layer>,
        lengths: &[usize],
        x: &mut [f32],
        qkv: &mut [f32],
        context: &mut Vec<f32>,
        spaces: &[Mutex<ThreadSpace>],
    ) {
        let h = self.config.hidden_size;
        let head_width = h / self.config.num_attention_heads;
        let (tokens, rows) = (x.len() / h, self.rows(x));
        context.resize(tokens * h, 0.0);
        let all = &*qkv;
        let heads = context.chunks_mut((tokens * head_width).max(1)).enumerate();
        self.workers.each(spaces, heads, |own, (head, context)| {
            let (mut qkv, mut context) = (all, context);
            for &n in lengths {
                let (these, rest) = qkv.split_at(n * 3 * h);
                let (out, others) = context.split_at_mut(n * head_width);
                self.kernel.attend(these, head * head_width, h, head_width, &mut own.scratch, out);
                (qkv, context) = (rest, others);
            }
        });
        let context = context.as_slice();
        let blocks = x.chunks_mut(rows * h).zip(qkv.chunks_mut(rows * 3 * h));
        self.workers.each(spaces, blocks.enumerate(), |own, (block, (x, qkv))| {
            let ThreadSpace { scratch, narrow, gathered, wide } = own;
            let n = x.len() / h;
            gathered.resize(n * h, 0.0);
            narrow.resize(n * h, 0.0);
            wide.resize(n * layer.intermediate.outputs(), 0.0);
            for (head, context) in context.chunks(tokens * head_width).enumerate() {
                let context = context[block * rows * head_width..].chunks(head_width);
                for (row, part) in gathered.chunks_mut(h).zip(context) {
                    row[head * head_width..][..head_width].copy_from_slice(part);
                }
            }
            layer.attention_output.apply(gathered, None, scratch, narrow);
            layer.attention_norm.add(self.kernel, narrow, x);
            layer.intermediate.apply(x, Some(self.config.hidden_act), scratch, wide);
            layer.output.apply(wide, None, scratch, narrow);
            layer.norm.add(self.kernel, narrow, x);
            if let Some(next) = next {
                next.query_key_value.apply(x, None, scratch, qkv);
            }
        });
    }

    fn embed(&self, tokens: &[(usize, usize)], x: &mut [f32], space: &mut ThreadSpace) {
        let width = self.config.embedding_size;
        let ThreadSpace { scratch, narrow, gathered, .. } = space;
        let words = match &self.project {
            None => &mut *x,
            Some(_) => {
                gathered.resize(tokens.len() * width, 0.0);
                gathered.as_mut_slice()
            }
        };
        narrow.resize(tokens.len() * width, 0.0);
        let rows = words.chunks_mut(width).zip(narrow.chunks_mut(width));
        for ((word, position), &(id, at)) in rows.zip(tokens) {
            match &self.word_embeddings {
                Values::F32(table) => word.copy_from_slice(&table[id * width..][..width]),
                Values::Int8(Int8 { integers: table, scales, .. }) => {
                    for (x, &q) in word.iter_mut().zip(&table[id * width..][..width]) {
                        *x = f32::from(q) * scales[id];
                    }
                }
            }
            position.copy_from_slice(&self.positions[(self.config.first_position() + at) * width..][..width]);
        }
        self.norm.add(self.kernel, narrow, words);
        if let Some(project) = &self.project {
            project.apply(gathered, None, scratch, x);
        }
    }
}

impl Layer {
    fn load(config: &ModelConfig, source: &mut dyn WeightSource, kernel: Kernel, name: &str) -> Result<Self> {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let at = |part: &str| format!("{name}.attention.self.{part}");
        Ok(Layer {
            query_key_value: linear(source, kernel, &[&at("query"), &at("key"), &at("value")], h, h)?,
            attention_output: linear(source, kernel, &[&format!("{name}.attention.output.dense")], h, h)?,
            attention_norm: Norm::load(source, &format!("{name}.attention.output.LayerNorm"), h, config)?,
            intermediate: linear(source, kernel, &[&format!("{name}.intermediate.dense")], f, h)?,
            output: linear(source, kernel, &[&format!("{name}.output.dense")], h, f)?,
            norm: Norm::load(source, &format!("{name}.output.LayerNorm"), h, config)?,
        })
    }
}

impl Head {
    fn load(config: &ModelConfig, source: &mut dyn WeightSource, kernel: Kernel) -> Result<Option<Self>> {
        if config.task == Task::Encoder {
            return Ok(None);
        }
        let h = config.hidden_size;
        let mut dense = |name: &str, outputs: usize| -> Result<Packed> {
            let weight = source.take(&format!("{name}.weight"), &[outputs, h])?;
            let bias = source.take(&format!("{name}.bias"), &[outputs])?;
            Ok(Packed::new(kernel, &Matrix::F32(vec![&weight]), h, &bias))
        };
        let pooler = match config.has_pooler() {
            true => Some((dense("pooler.dense", h)?, config.pooler_act())),
            false => None,
        };
        Ok(Some(Head { pooler, classifier: dense("classifier", config.id2label.len())? }))
    }

    /// A sequence's hidden states `[tokens, hidden]` -> `[tokens, labels]`, or `[1, labels]` of the text.
    fn logits(&self, states: &[f32], scratch: &mut Scratch) -> Vec<f32> {
        let mut pooled = Vec::new();
        let x = match &self.pooler {
            None => states,
            Some((dense, activation)) => {
                let h = dense.outputs();
                pooled.resize(h, 0.0);
                dense.apply(&states[..h], Some(*activation), scratch, &mut pooled);
                pooled.as_slice()
            }
        };
        let mut logits = vec![0.0; x.len() / self.classifier.inputs() * self.classifier.outputs()];
        self.classifier.apply(x, None, scratch, &mut logits);
        logits
    }
}

impl Norm {
    fn load(source: &mut dyn WeightSource, name: &str, width: usize, config: &ModelConfig) -> Result<Self> {
        Ok(Norm {
            gamma: source.take(&format!("{name}.weight"), &[width])?,
            beta: source.take(&format!("{name}.bias"), &[width])?,
            epsilon: config.layer_norm_eps as f32,
        })
    }

    /// `residual = norm(x + residual)`
    fn add(&self, kernel: Kernel, x: &[f32], residual: &mut [f32]) {
        kernel.add_norm(x, residual, &self.gamma, &self.beta, self.epsilon);
    }
}

/// The linear layers `names` of the same input as one, their outputs one after the other.
fn linear(
    source: &mut dyn WeightSource,
    kernel: Kernel,
    names: &[&str],
    outputs: usize,
    inputs: usize,
) -> Result<Packed> {
    let layers = SideBySide::take(source, names, outputs, inputs)?;
    let packed = Packed::new(kernel, &layers.matrix(), inputs, &layers.bias);
    Ok(match layers.pre_quant_scale {
        Some(factors) => packed.with_pre_quant_scale(factors),
        None => packed,
    })
}

/// What a panicking call left is overwritten before it is read.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(all(test, feature = "checkpoint"))]
mod tests;
