//! A teacher's answers, at the places of its student's tokens.
//!
//! A teacher need not read what its student reads: where its tokenizer is another one it reads the same characters as its own tokens,
//! and where a text got noise it reads the clean text. Its answers then belong to the student's words of the same characters.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ampoule::bundle::{PoolingMode, weights_sha256};
use ampoule::decode::Scheme;
use ampoule::model::{FrozenModel, FrozenOutputs, HiddenState};
use ampoule::text::{Token, Tokenizer};
use ampoule::{Batch, Checkpoint, Error, ModelConfig, Result, Task};
use burn::tensor::{Device, Tensor, TensorData};
use half::f16;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cache::{Cache, hex};
use crate::losses::{Outputs, Term};
use crate::search::of_length_1;
use crate::typing::Alignment;

/// Who teaches a student: one model, or several that are taken together.
pub struct Teacher {
    /// At least one.
    pub(crate) members: Vec<Checkpoint>,
    cache: Option<(PathBuf, u64)>,
}

impl Teacher {
    /// This checkpoint, whose tokenizer may be another one than the student's.
    pub fn new(checkpoint: Checkpoint) -> Self {
        Teacher { members: vec![checkpoint], cache: None }
    }

    /// Together with another one, which has the same labels: what they teach is the mean of their probabilities (Hinton et al. 2015). They
    /// have no hidden states in common, so the terms that compare such need one teacher.
    pub fn and(mut self, other: Checkpoint) -> Self {
        self.members.push(other);
        self
    }

    pub(crate) fn without_cache(self) -> Self {
        Teacher { cache: None, ..self }
    }

    /// What tells it from another teacher, for the run's identity: of each member the weights, and what is computed of them.
    pub(crate) fn identity(&self) -> [Value; 3] {
        let of_each = |value: fn(&Checkpoint) -> Value| match self.members.as_slice() {
            [one] => value(one),
            several => several.iter().map(value).collect(),
        };
        [
            of_each(|member| weights_sha256(&member.weights).into()),
            of_each(|member| member.config.to_json()),
            of_each(reads),
        ]
    }

    /// Keeps its answers in `folder`, a file of at most `max_bytes`, and takes from there what is asked again: a second run with the same
    /// texts and seed computes none, and of single sentences others find the answers too. They change no bit of the student. The file is as
    /// confidential as the texts; it is its owner's alone.
    pub fn with_cache(self, folder: &Path, max_bytes: u64) -> Self {
        Teacher { cache: Some((folder.to_owned(), max_bytes)), ..self }
    }
}

/// What tells how a model reads a text, and makes one vector of it, from how others do.
pub(crate) fn reads(model: &Checkpoint) -> Value {
    json!({ "tokenizer_sha256": hex(&Sha256::digest(model.tokenizer.to_json())), "pooling": model.pooling.mode.as_str() })
}

/// Models that answer together.
pub(crate) struct Ensemble {
    members: Vec<Answering>,
    /// What they share.
    cache: Option<Arc<Cache>>,
}

impl Ensemble {
    /// Each has to answer with the student's labels, and computes on `device`.
    pub(crate) fn load(teacher: Teacher, student: &Checkpoint, device: &Device) -> Result<Self> {
        let Teacher { members, cache } = teacher;
        let cache = cache.map(|(folder, max_bytes)| Cache::open(&folder, max_bytes)).transpose()?.map(Arc::new);
        let load = |member| Answering::load(member, cache.clone(), student, device);
        Ok(Ensemble { members: members.into_iter().map(load).collect::<Result<_>>()?, cache })
    }

    /// Refuses terms that it cannot teach to a student of this shape.
    pub(crate) fn check(&self, terms: &[Term], student: &ModelConfig) -> Result<()> {
        let compares = |term: &&Term| !term.pairs().is_empty() || matches!(term, Term::Embedding { .. });
        match terms.iter().find(compares) {
            Some(term) if self.members.len() > 1 => Err(Error::invalid_input(format!(
                "the loss term {:?} compares states, which several teachers do not have in common; take it out, or name one teacher",
                term.name()
            ))),
            _ => {
                let each = self.members.iter().map(|member| member.model.config());
                each.flat_map(|teacher| terms.iter().map(move |term| term.check(student, teacher))).collect()
            }
        }
    }

    /// What the terms need, at the places of a batch `[batch, seq]` of which these are each member's readings; zeros where nobody answers.
    pub(crate) fn outputs(
        &self,
        terms: &[Term],
        readings: &[Vec<Reading>],
        dims: [usize; 2],
        device: &Device,
    ) -> Result<Outputs> {
        match self.members.as_slice() {
            [one] => one.outputs(terms, readings.first().map_or(&[], Vec::as_slice), dims, device),
            _ => self.mean(readings, dims, device),
        }
    }

    /// Logits of the mean of the members' probabilities, of those that answer at a place.
    fn mean(&self, readings: &[Vec<Reading>], dims: [usize; 2], device: &Device) -> Result<Outputs> {
        let (mut sums, mut answers) = (Vec::new(), Vec::new());
        for (member, readings) in self.members.iter().zip(readings) {
            let Some(logits) = member.outputs(&[], readings, dims, device)?.logits else { continue };
            let [_, positions, labels] = logits.dims();
            let logits = logits.into_data_as::<f32>().try_into_vec::<f32>().unwrap_or_default();
            sums.resize(logits.len(), 0.0f64);
            answers.resize(logits.len() / labels, 0.0f64);
            for (row, reading) in readings.iter().enumerate() {
                for column in
                    (0..positions.min(reading.answers.len())).filter(|&column| reading.answers[column].is_some())
                {
                    let at = row * positions + column;
                    let places = at * labels..(at + 1) * labels;
                    let found = probabilities(&logits[places.clone()], member.is_multi_label());
                    sums[places].iter_mut().zip(found).for_each(|(sum, p)| *sum += p);
                    answers[at] += 1.0;
                }
            }
        }
        let labels = sums.len() / answers.len().max(1);
        let is_multi_label = self.members.iter().any(Answering::is_multi_label);
        let logit = |(i, sum): (usize, f64)| {
            let p = sum / answers[i / labels].max(1.0);
            // What is no number stays none, so that the step says so.
            let ln = |p: f64| if p < 1e-9 { 1e-9f64.ln() } else { p.ln() };
            let of_rest = if is_multi_label { ln(1.0 - p) } else { 0.0 };
            if answers[i / labels] > 0.0 { (ln(p) - of_rest) as f32 } else { 0.0 }
        };
        let logits: Vec<f32> = sums.into_iter().enumerate().map(logit).collect();
        let shape = [dims[0], answers.len() / dims[0].max(1), labels];
        let logits = (labels > 0).then(|| Tensor::from_data(TensorData::new(logits, shape), device));
        Ok(Outputs { logits, embeddings: None, states: BTreeMap::new() })
    }

    /// How many sequences were computed, and how many were found in the cache.
    pub(crate) fn counts(&self) -> Option<(usize, usize)> {
        self.cache.as_deref().map(Cache::counts)
    }
}

/// Of each label, in f64, where all have finite logits.
fn probabilities(logits: &[f32], is_multi_label: bool) -> Vec<f64> {
    let logits = logits.iter().map(|&x| f64::from(x));
    if is_multi_label {
        return logits.map(|x| 1.0 / (1.0 + (-x).exp())).collect();
    }
    let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.clone().map(|x| (x - largest).exp()).sum();
    logits.map(|x| (x - largest).exp() / sum).collect()
}

/// A model that answers and is not trained.
struct Answering {
    model: FrozenModel,
    pooling: PoolingMode,
    /// By tag, that of a further word where one word is several; none for labels of whole texts.
    goes_on: Vec<usize>,
    /// Of its weights, what is computed of them, and where: tells its answers from others.
    sha256: String,
    cache: Option<Arc<Cache>>,
}

impl Answering {
    fn load(mut teacher: Checkpoint, cache: Option<Arc<Cache>>, student: &Checkpoint, device: &Device) -> Result<Self> {
        let sha256 = Sha256::new().chain_update(weights_sha256(&teacher.weights));
        let sha256 = sha256.chain_update(teacher.config.to_json().to_string());
        // The last bits of its answers are another device's.
        let sha256 = if *device == Device::flex() { sha256 } else { sha256.chain_update("gpu") }.finalize();
        let sha256 = hex(&sha256);
        let config = &teacher.config;
        if config.task != student.config.task {
            return Err(Error::incompatible(format!(
                "the teacher's task is {}, the student's {}; both have to answer the same",
                config.task.as_str(),
                student.config.task.as_str()
            )));
        }
        if config.id2label != student.config.id2label {
            return Err(Error::incompatible(format!(
                "teacher and student have different labels: {:?} and {:?}",
                config.id2label, student.config.id2label
            )));
        }
        let goes_on = match config.task {
            Task::TokenClassification => Scheme::new(&config.id2label)?.continued(),
            _ => Vec::new(),
        };
        let model = FrozenModel::load(config, &mut teacher.weights, device)?;
        Ok(Answering { model, pooling: teacher.pooling.mode, goes_on, sha256, cache })
    }

    /// What the terms need of it, at the places of a batch `[batch, seq]` of which these are the readings; zeros elsewhere.
    fn outputs(
        &self,
        terms: &[Term],
        readings: &[Reading],
        [batch, seq]: [usize; 2],
        device: &Device,
    ) -> Result<Outputs> {
        let config = self.model.config();
        let asked = Asked {
            states: terms.iter().flat_map(Term::pairs).map(|(_, state)| state).collect(),
            embedding: terms.iter().any(|term| matches!(term, Term::Embedding { .. })).then_some(self.pooling),
        };
        let found = self.answers(readings, &asked)?;
        let (labels, h) = (config.id2label.len(), config.hidden_size);
        let positions = self.positions(seq);
        let mut logits = vec![0.0; batch * positions * labels];
        let mut embeddings = Vec::new();
        let mut states: BTreeMap<HiddenState, Vec<f32>> = BTreeMap::new();
        for (row, (reading, found)) in readings.iter().zip(&found).enumerate() {
            for (column, answer) in reading.answers.iter().take(positions).enumerate() {
                let Some(Answer { at, is_further }) = *answer else { continue };
                let into = &mut logits[(row * positions + column) * labels..][..labels];
                into.copy_from_slice(&found.logits[at * labels..][..labels]);
                if is_further {
                    self.go_on(into);
                }
            }
            embeddings.extend_from_slice(&found.embedding);
            for (&state, values) in &found.states {
                let all = states.entry(state).or_insert_with(|| vec![0.0; batch * seq * h]);
                for (column, at) in reading.tokens.iter().enumerate().filter_map(|(i, at)| Some((i, (*at)?))) {
                    all[(row * seq + column) * h..][..h].copy_from_slice(&values[at * h..][..h]);
                }
            }
        }
        let tensor = |values: Vec<f32>, shape: [usize; 3]| Tensor::from_data(TensorData::new(values, shape), device);
        let states = states.into_iter().map(|(state, values)| (state, tensor(values, [batch, seq, h]))).collect();
        let embeddings = asked.embedding.map(|_| Tensor::from_data(TensorData::new(embeddings, [batch, h]), device));
        let logits = (positions > 0).then(|| tensor(logits, [batch, positions, labels]));
        Ok(Outputs { logits, embeddings, states })
    }

    /// What it gives of what it reads, from the cache where that has it; to the precision of the cache even where there is none.
    fn answers(&self, readings: &[Reading], asked: &Asked) -> Result<Vec<Answers>> {
        let config = self.model.config();
        let (labels, h) = (config.id2label.len(), config.hidden_size);
        let last = HiddenState::Layer(config.num_hidden_layers);
        let mut wanted = asked.states.clone();
        wanted.extend(asked.embedding.map(|_| last));
        let compute = |ids: &[&[u32]]| {
            let outputs = self.model.compute(&Batch::new(ids, config.pad_token_id), &wanted)?;
            Ok(outputs.into_iter().map(|outputs| Answers::new(outputs, asked, last, h).packed()).collect::<Vec<_>>())
        };
        let ids: Vec<&[u32]> = readings.iter().map(|reading| reading.ids.as_slice()).collect();
        let packed = match &self.cache {
            None => compute(&ids)?,
            Some(cache) => cache.get_or_compute(&ids, &format!("{}{asked:?}", self.sha256), compute)?,
        };
        let of = |(bytes, ids): (&Vec<u8>, &&[u32])| {
            Answers::unpacked(bytes, self.positions(ids.len()) * labels, ids.len(), h, asked)
        };
        Ok(packed.iter().zip(&ids).map(of).collect())
    }

    /// For how many positions of so many tokens it has logits.
    fn positions(&self, tokens: usize) -> usize {
        match self.model.config().task {
            Task::TokenClassification => tokens,
            Task::SingleLabel | Task::MultiLabel => 1,
            Task::Encoder => 0,
        }
    }

    fn is_multi_label(&self) -> bool {
        self.model.config().task == Task::MultiLabel
    }

    /// The logits of a word that an earlier one's answer was for too: what began an entity there goes on with it here.
    fn go_on(&self, logits: &mut [f32]) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sums = vec![0.0f32; logits.len()];
        for (&x, &tag) in logits.iter().zip(&self.goes_on) {
            sums[tag] += (x - largest).exp();
        }
        logits.iter_mut().zip(sums).for_each(|(x, sum)| *x = sum.max(1e-9).ln());
    }
}

/// What is asked of a teacher, beside its logits.
#[derive(Debug)]
struct Asked {
    states: BTreeSet<HiddenState>,
    /// How it pools, where its embeddings are asked for.
    embedding: Option<PoolingMode>,
}

/// What a teacher gives of a sequence that it reads.
#[derive(Debug, PartialEq)]
struct Answers {
    /// `[positions, labels]`
    logits: Vec<f32>,
    /// Of length 1, `[hidden]`; empty where it is not asked for.
    embedding: Vec<f32>,
    /// `[tokens, hidden]` each.
    states: BTreeMap<HiddenState, Vec<f32>>,
}

impl Answers {
    /// Of a model of width `h` and what it computed, the state `last` among it where an embedding is asked for. That is of all tokens
    /// that the teacher has, so it needs none of the student's.
    fn new(mut outputs: FrozenOutputs, asked: &Asked, last: HiddenState, h: usize) -> Self {
        let pool = |mode: PoolingMode| Some(pooled(outputs.states.get(&last)?, h, mode));
        let embedding = asked.embedding.and_then(pool).unwrap_or_default();
        outputs.states.retain(|state, _| asked.states.contains(state));
        Answers { logits: outputs.logits, embedding, states: outputs.states }
    }

    /// As f16, one after the other.
    fn packed(&self) -> Vec<u8> {
        let values = [&self.logits, &self.embedding].into_iter().chain(self.states.values()).flatten();
        values.flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect()
    }

    /// So many logits, and what was asked for of so many tokens by a model of width `h`, of the states those that are there.
    fn unpacked(bytes: &[u8], logits: usize, tokens: usize, h: usize, asked: &Asked) -> Self {
        let values: Vec<f32> = bytes.as_chunks::<2>().0.iter().map(|&x| f16::from_le_bytes(x).to_f32()).collect();
        let (logits, rest) = values.split_at(logits.min(values.len()));
        let (embedding, states) = rest.split_at(asked.embedding.map_or(0, |_| h).min(rest.len()));
        let states = states.chunks((tokens * h).max(1)).map(<[f32]>::to_vec);
        Answers {
            logits: logits.to_vec(),
            embedding: embedding.to_vec(),
            states: asked.states.iter().copied().zip(states).collect(),
        }
    }
}

/// `[tokens, h] -> [h]`, of length 1, which is all that then tells a mean from a sum.
fn pooled(states: &[f32], h: usize, mode: PoolingMode) -> Vec<f32> {
    let mut tokens = states.chunks(h);
    let mut pooled = tokens.next().unwrap_or_default().to_vec();
    for token in tokens {
        for (pooled, &x) in pooled.iter_mut().zip(token) {
            match mode {
                PoolingMode::Cls => {}
                PoolingMode::Mean => *pooled += x,
                PoolingMode::Max => *pooled = pooled.max(x),
            }
        }
    }
    of_length_1(&pooled).collect()
}

/// What the teacher reads in place of a student's sequence, and where its answers belong.
#[derive(Clone)]
pub(crate) struct Reading {
    /// With special tokens.
    ids: Vec<u32>,
    /// For each token of the student's sequence, special ones too, the teacher's token of the same characters.
    pub(crate) tokens: Vec<Option<usize>>,
    /// For each position of the student's.
    pub(crate) answers: Vec<Option<Answer>>,
}

/// Where the teacher answers for a position of the student's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    at: usize,
    /// Whether it answers for an earlier word of the student's too.
    is_further: bool,
}

impl Reading {
    /// The student's own sequence; it has answers where `counts`.
    pub(crate) fn same(ids: &[u32], counts: impl Iterator<Item = bool>) -> Self {
        let answer = |(at, counts): (usize, bool)| counts.then_some(Answer { at, is_further: false });
        let answers = counts.enumerate().map(answer).collect();
        Reading { ids: ids.to_vec(), tokens: (0..ids.len()).map(Some).collect(), answers }
    }
}

/// How a teacher reads its student's texts.
pub(crate) struct Reader {
    tokenizer: Tokenizer,
    /// The most tokens of a sequence, special ones not counted.
    window: usize,
    is_of_words: bool,
    /// Whether its tokens are the student's.
    is_same: bool,
}

impl Reader {
    pub(crate) fn new(teacher: &Checkpoint, student: &Checkpoint) -> Self {
        Reader {
            tokenizer: teacher.tokenizer.clone(),
            window: teacher.config.max_tokens() - 2,
            is_of_words: teacher.config.task == Task::TokenClassification,
            is_same: teacher.tokenizer.to_json() == student.tokenizer.to_json(),
        }
    }

    /// What the teacher reads where its student reads `tokens`, of a text that was `clean` before it got noise; none where that is the
    /// same.
    pub(crate) fn read(&self, tokens: &[Token], clean: &Clean) -> Result<Option<Reading>> {
        if self.is_same && clean.back.changes().is_empty() && tokens.len() <= self.window {
            return Ok(None);
        }
        let ranges: Vec<Range<usize>> = tokens.iter().map(|token| clean.back.map(token.range.clone())).collect();
        let (start, end) = match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) => (first.start, last.end.max(first.start)),
            _ => (0, 0),
        };
        // What was left out just before belongs to the first word: it may be its first letter.
        let left_out = clean.back.changes().iter().find(|(now, was)| now.is_empty() && was.end == start);
        let start = clean.text.floor_char_boundary(left_out.map_or(start, |(_, was)| was.start));
        let text = &clean.text[start..clean.text.ceil_char_boundary(end)];
        let mut read = self.tokenizer.encode(text)?;
        read.truncate(self.window);
        read.iter_mut().for_each(|token| token.range = token.range.start + start..token.range.end + start);

        let middle = read.iter().map(|token| token.id);
        let ids = std::iter::once(self.tokenizer.cls_id()).chain(middle).chain([self.tokenizer.sep_id()]).collect();
        let mut answers = vec![None; if self.is_of_words { tokens.len() + 2 } else { 1 }];
        if self.is_of_words {
            let words = words(tokens.iter().zip(&ranges).map(|(token, range)| (range, token.starts_word)));
            let of_teacher = words_of(&read);
            for ((word, _), answer) in words.iter().zip(answers_of(&words, &of_teacher)) {
                answers[word + 1] = answer;
            }
        } else {
            answers[0] = Some(Answer { at: 0, is_further: false });
        }
        let same = same_characters(&ranges, &read).into_iter().map(|at| at.map(|at| at + 1));
        let tokens = std::iter::once(Some(0)).chain(same).chain([Some(read.len() + 1)]).collect();
        Ok(Some(Reading { ids, tokens, answers }))
    }
}

/// A text before it got noise, and the way back to it.
pub(crate) struct Clean<'a> {
    pub(crate) text: &'a str,
    pub(crate) back: Alignment,
}

impl<'a> Clean<'a> {
    /// Of a text that gets none.
    pub(crate) fn of(text: &'a str) -> Self {
        Clean { text, back: Alignment::default() }
    }
}

/// The words of tokens, each as its first token and its range.
fn words<'t>(tokens: impl Iterator<Item = (&'t Range<usize>, bool)>) -> Vec<(usize, Range<usize>)> {
    let mut words: Vec<(usize, Range<usize>)> = Vec::new();
    for (i, (range, starts_word)) in tokens.enumerate() {
        match words.last_mut() {
            Some((_, word)) if !starts_word => word.end = range.end,
            _ => words.push((i, range.clone())),
        }
    }
    words
}

fn words_of(tokens: &[Token]) -> Vec<(usize, Range<usize>)> {
    words(tokens.iter().map(|token| (&token.range, token.starts_word)))
}

/// For each word of the student's, the teacher's first word that shares characters with it.
fn answers_of(words: &[(usize, Range<usize>)], of_teacher: &[(usize, Range<usize>)]) -> Vec<Option<Answer>> {
    // The teacher's word that an earlier one of the student's ended in.
    let mut last = None;
    let mut first = 0;
    let each = words.iter().map(|(_, word)| {
        first += of_teacher[first..].iter().take_while(|(_, other)| other.end <= word.start).count();
        let shared = of_teacher[first..].iter().take_while(|(_, other)| other.start < word.end).count();
        let (at, _) = of_teacher.get(first).filter(|_| shared > 0)?;
        let answer = Answer { at: at + 1, is_further: last == Some(first) };
        last = Some(first + shared - 1);
        Some(answer)
    });
    each.collect()
}

/// For each range, the teacher's token of exactly these characters; of several tokens of one character each has its own, in order.
fn same_characters(ranges: &[Range<usize>], read: &[Token]) -> Vec<Option<usize>> {
    let mut at = 0;
    let each = ranges.iter().map(|range| {
        at += read[at..].iter().take_while(|token| token.range.start < range.start).count();
        let is_same = |token: &&Token| token.range == *range && !range.is_empty();
        let same = read.get(at).filter(is_same).map(|_| at)?;
        at += 1;
        Some(same)
    });
    each.collect()
}

#[cfg(test)]
mod tests;
