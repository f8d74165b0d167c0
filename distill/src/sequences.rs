//! Texts as the sequences and targets that a step trains on.

mod pairs;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use ampoule::decode::Scheme;
use ampoule::text::{Token, Tokenizer, Window, Windower};
use ampoule::{Batch, Checkpoint, Error, ModelConfig, Result, Task};
use rand::RngExt;
use rand::seq::SliceRandom;
use sha2::{Digest, Sha256};

use self::pairs::Pair;
use crate::cache::hex;
use crate::config::TrainConfig;
use crate::data::{Annotation, Example, LabelledText, NerSet, SearchSet, runs};
use crate::embedding::Pairs;
use crate::losses::{Counts, Targets, Term};
use crate::teacher::{Clean, Reader, Reading};
use crate::trainer::generator;
use crate::typing::{Alignment, TypingNoise};

/// What a run trains and evaluates on.
#[derive(Clone)]
pub enum Data {
    /// Entities. Each set says which labels it covers.
    Entities {
        /// Texts to train on.
        train: Vec<NerSet>,
        /// Texts by which the best weights are chosen.
        dev: Vec<NerSet>,
        /// Texts without labels, for the terms that need none.
        transfer: Vec<String>,
    },
    /// Labels of whole texts.
    Labels {
        /// Texts to train on.
        train: Vec<LabelledText>,
        /// Texts by which the best weights are chosen.
        dev: Vec<LabelledText>,
        /// Texts without labels, for the terms that need none.
        transfer: Vec<String>,
    },
    /// Queries with their passages, for sentence embeddings.
    Search {
        /// Queries to train on. Passages that none of them names are not trained on.
        train: Vec<SearchSet>,
        /// Queries by which the best weights are chosen, each searched for among all passages of its set.
        dev: Vec<SearchSet>,
        /// Texts without a passage, each to be told from all others.
        transfer: Vec<String>,
    },
}

impl std::fmt::Debug for Data {
    // The texts are notes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let examples = |sets: &[NerSet]| sets.iter().map(|set| set.examples.len()).sum();
        let (kind, train, dev, transfer): (_, usize, usize, _) = match self {
            Data::Entities { train, dev, transfer } => ("Entities", examples(train), examples(dev), transfer),
            Data::Labels { train, dev, transfer } => ("Labels", train.len(), dev.len(), transfer),
            Data::Search { train, dev, transfer } => {
                let queries = |sets: &[SearchSet]| sets.iter().map(|set| set.queries.len()).sum();
                ("Search", queries(train), queries(dev), transfer)
            }
        };
        write!(f, "{kind}({train} to train on, {dev} dev, {} without labels)", transfer.len())
    }
}

impl Data {
    /// The name of the score by which the best weights are chosen: strict micro F1 of entities, macro F1 of labels, the mean reciprocal
    /// rank of a search.
    pub fn metric(&self) -> &'static str {
        match self {
            Data::Entities { .. } | Data::Labels { .. } => "F1",
            Data::Search { .. } => "MRR@10",
        }
    }

    /// SHA-256 of all texts and their labels, as 64 hexadecimal digits: tells one set of data from another.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        // Each piece with its length, so that no two sequences of pieces are one string.
        let mut add = |piece: &[u8]| {
            hash.update((piece.len() as u64).to_le_bytes());
            hash.update(piece);
        };
        let transfer = match self {
            Data::Entities { train, dev, transfer } => {
                add(&(train.len() as u64).to_le_bytes());
                for set in train.iter().chain(dev) {
                    set.covers.iter().for_each(|label| add(label.as_bytes()));
                    add(&(set.examples.len() as u64).to_le_bytes());
                    for example in &set.examples {
                        add(example.text.as_bytes());
                        for entity in &example.entities {
                            add(entity.label.as_bytes());
                            add(&(entity.range.start as u64).to_le_bytes());
                            add(&(entity.range.end as u64).to_le_bytes());
                            add(&entity.score.to_le_bytes());
                        }
                    }
                    add(b"");
                }
                transfer
            }
            Data::Labels { train, dev, transfer } => {
                add(&(train.len() as u64).to_le_bytes());
                for text in train.iter().chain(dev) {
                    add(text.text.as_bytes());
                    text.labels.iter().for_each(|label| add(label.as_bytes()));
                    add(b"");
                }
                transfer
            }
            Data::Search { train, dev, transfer } => {
                add(&(train.len() as u64).to_le_bytes());
                for set in train.iter().chain(dev) {
                    add(&(set.passages.len() as u64).to_le_bytes());
                    set.passages.iter().for_each(|passage| add(passage.text.as_bytes()));
                    add(&(set.queries.len() as u64).to_le_bytes());
                    for query in &set.queries {
                        add(query.text.as_bytes());
                        query.positives.iter().for_each(|&passage| add(&(passage as u64).to_le_bytes()));
                        add(b"");
                    }
                }
                transfer
            }
        };
        transfer.iter().for_each(|text| add(text.as_bytes()));
        hex(&hash.finalize())
    }
}

/// One sequence with its targets.
#[derive(Clone)]
struct Sequence {
    /// With special tokens.
    ids: Vec<u32>,
    /// The tags that each position may have; none where it does not count. One position for labels of whole texts.
    allowed: Vec<Option<Allowed>>,
    /// What each teacher reads, where it is not this sequence.
    readings: Vec<Option<Reading>>,
}

#[derive(Clone)]
enum Allowed {
    /// Not labelled.
    Any,
    /// The tag of an entity, or `O` where the corpus covers every label, and how much it weighs.
    One(u32, f32),
    /// `O` in a corpus that does not cover every label: the tags of [`Sequences::outside`] of that corpus.
    Outside(usize),
    /// All labels of a text of a multi-label set.
    All(Vec<u32>),
}

/// The batches of one epoch.
pub(crate) struct Epoch {
    sequences: Vec<Sequence>,
    /// In place of sequences, where embeddings are taught.
    pairs: Vec<Pair>,
    /// Indices of the sequences, or pairs, of each step.
    pub(crate) batches: Vec<Vec<usize>>,
}

impl Epoch {
    /// Tokens of a step, padding not counted.
    pub(crate) fn tokens(&self, step: usize) -> usize {
        let tokens = |i: usize| self.pairs.get(i).map_or_else(|| self.sequences[i].ids.len(), Pair::tokens);
        self.batches[step].iter().map(|&i| tokens(i)).sum()
    }
}

/// Sequences as a model reads them.
pub(crate) struct Input {
    pub(crate) batch: Batch,
    pub(crate) targets: Targets,
    /// What each teacher reads.
    pub(crate) readings: Vec<Vec<Reading>>,
}

/// A part of a step.
pub(crate) enum Part {
    /// Texts that are each taught by themselves.
    Texts(Box<Input>),
    /// Texts that are compared with each other.
    Pairs(Box<Pairs>),
}

impl Part {
    pub(crate) fn inputs(&self) -> &[Input] {
        match self {
            Part::Texts(input) => std::slice::from_ref(&**input),
            Part::Pairs(pairs) => &pairs.sides,
        }
    }

    fn inputs_mut(&mut self) -> &mut [Input] {
        match self {
            Part::Texts(input) => std::slice::from_mut(&mut **input),
            Part::Pairs(pairs) => &mut pairs.sides,
        }
    }
}

/// Makes sequences of texts.
pub(crate) struct Sequences<'a> {
    data: &'a Data,
    teachers: Vec<Reader>,
    tokenizer: Tokenizer,
    config: ModelConfig,
    scheme: Option<Arc<Scheme>>,
    /// By training set, 1 for `O` and for every tag of a label that it does not cover.
    outside: Vec<Vec<f32>>,
}

/// Purposes of random streams, beside that of dropout.
const RUNS: u64 = 1;
const ORDER: u64 = 2;
const TYPING: u64 = 3;

impl<'a> Sequences<'a> {
    pub(crate) fn new(student: &Checkpoint, teachers: Vec<Reader>, data: &'a Data) -> Result<Self> {
        let model = student.config.clone();
        let fits = match data {
            Data::Entities { .. } => model.task == Task::TokenClassification,
            Data::Labels { .. } => matches!(model.task, Task::SingleLabel | Task::MultiLabel),
            Data::Search { .. } => model.task == Task::Encoder,
        };
        if !fits {
            let kind = match data {
                Data::Entities { .. } => "entities",
                Data::Labels { .. } => "labels of whole texts",
                Data::Search { .. } => "questions and their passages",
            };
            return Err(Error::invalid_input(format!(
                "the data are {kind}, and the model's task is {}; name data of its task, or a model that was trained on such data",
                model.task.as_str()
            )));
        }
        let (mut scheme, mut outside) = (None, Vec::new());
        if let Data::Entities { train, dev, .. } = data {
            let tags = Scheme::new(&model.id2label)?;
            for (sets, split) in [(train, "train"), (dev, "dev")] {
                let covered: BTreeSet<&String> = sets.iter().flat_map(|set| &set.covers).collect();
                let unknown = covered.iter().filter(|label| tags.label_index(label).is_none()).count();
                if unknown > 0 {
                    // Not quoted: a text may stand in a label's place.
                    return Err(Error::invalid_input(format!(
                        "of the {} labels of the {split} data {unknown} are not among the model's: {}; say which labels it covers",
                        covered.len(),
                        tags.entity_labels().join(", ")
                    )));
                }
            }
            for set in train {
                outside
                    .push(outside_of(set, &tags, model.id2label.len()).map(|may| f32::from(u8::from(may))).collect());
            }
            scheme = Some(Arc::new(tags));
        }
        let sequences =
            Sequences { data, teachers, tokenizer: student.tokenizer.clone(), config: model, scheme, outside };
        if let Data::Labels { train, dev, .. } = data {
            for (texts, split) in [(train, "train"), (dev, "dev")] {
                for (text, number) in texts.iter().zip(1..) {
                    sequences
                        .label_target(text)
                        .map_err(|e| e.context(format!("text {number} of the {split} data")))?;
                }
            }
        }
        Ok(sequences)
    }

    /// The most tokens of a sequence, special tokens not counted.
    fn window(&self, config: &TrainConfig) -> usize {
        let most = self.config.max_tokens();
        let tokens = match config.window {
            0 => most,
            n => n.min(most),
        };
        tokens - 2
    }

    /// The sequences and batches of the epoch with this number; the same each time.
    pub(crate) fn epoch(&self, number: usize, config: &TrainConfig) -> Result<Epoch> {
        let (mut sequences, window) = (Vec::new(), self.window(config));
        let typing = Typing { noise: config.noise.as_ref(), seed: generator(config.seed, TYPING, number).random() };
        self.check_terms(&config.terms)?;
        let (labelled, transfer): (Vec<_>, &[String]) = match self.data {
            Data::Entities { train, transfer, .. } => {
                for (i, set) in train.iter().enumerate() {
                    let mut random = generator(config.seed, RUNS + ((i as u64 + 1) << 8), number);
                    let length = |example: &Example| example.text.len() / 4 + 1;
                    for example in runs(set, config.runs, config.full_runs, window, &length, &mut random) {
                        let (noisy, alignment) = typing.example(&example);
                        let clean = Clean { text: &example.text, back: alignment.inverted() };
                        self.entity_sequences(&noisy, &clean, i, window, &mut sequences)?;
                    }
                }
                (Vec::new(), transfer)
            }
            Data::Labels { train, transfer, .. } => (train.iter().collect(), transfer),
            Data::Search { train, transfer, .. } => {
                return pairs::epoch(self, train, transfer, &typing, config, number);
            }
        };
        for text in labelled {
            let allowed = self.label_target(text)?;
            let (noisy, clean) = typing.text(&text.text);
            sequences.push(self.whole(&noisy, &clean, window, Some(allowed))?);
        }
        // Without a teacher, a text without labels teaches nothing.
        if config.transfer && config.taught().any(Term::needs_teacher) {
            for text in transfer {
                let (noisy, clean) = typing.text(text);
                if self.scheme.is_some() {
                    let any = |tokens: &[Token]| vec![Some(Allowed::Any); tokens.len()];
                    self.windows(&noisy, &clean, window, any, &mut sequences)?;
                } else {
                    sequences.push(self.whole(&noisy, &clean, window, Some(Allowed::Any))?);
                }
            }
        }
        let lengths: Vec<[usize; 2]> = sequences.iter().map(|s| [s.ids.len(), 0]).collect();
        let batches = batches(&lengths, STRETCH, config, number);
        Ok(Epoch { sequences, pairs: Vec::new(), batches })
    }

    /// Refuses terms that the data cannot teach.
    fn check_terms(&self, terms: &[Term]) -> Result<()> {
        let (cannot, others): (fn(&Term) -> bool, _) = match self.data {
            Data::Search { .. } => (Term::reads_logits, "contrastive, embedding, hidden, relations and attention"),
            Data::Labels { .. } => (
                |term| term.reads_embeddings() || matches!(term, Term::Spans { .. }),
                "hard, soft_targets, hidden, relations and attention",
            ),
            Data::Entities { .. } => {
                (Term::reads_embeddings, "hard, soft_targets, spans, hidden, relations and attention")
            }
        };
        match terms.iter().find(|term| cannot(term)) {
            Some(term) => Err(Error::invalid_input(format!(
                "the loss term {:?} cannot be taught by this data; what can be is {others}",
                term.name()
            ))),
            None => Ok(()),
        }
    }

    fn entity_sequences(
        &self,
        example: &Example,
        clean: &Clean,
        set: usize,
        window: usize,
        out: &mut Vec<Sequence>,
    ) -> Result<()> {
        let Some(scheme) = &self.scheme else { return Ok(()) };
        let spans = spans_of(example, scheme);
        let covers_all = self.outside[set].iter().sum::<f32>() <= 1.0;
        let tag = |tokens: &[Token]| {
            let words: Vec<Range<usize>> = tokens.iter().map(|t| t.range.clone()).collect();
            // Of several entities in one word the longest gives the tag, and so the weight.
            let score = |word: &Range<usize>| {
                let first = example.entities.partition_point(|entity| entity.range.end <= word.start);
                let shared = example.entities[first..].iter().take_while(|entity| entity.range.start < word.end);
                shared.max_by_key(|entity| entity.range.len()).map_or(1.0, |entity| entity.score)
            };
            let tags = scheme.encode(&words, &spans).into_iter().zip(&words).map(|(tag, word)| {
                Some(match scheme.label_of(tag) {
                    None if !covers_all => Allowed::Outside(set),
                    None => Allowed::One(tag, 1.0),
                    Some(_) => Allowed::One(tag, score(word)),
                })
            });
            tags.collect::<Vec<_>>()
        };
        self.windows(&example.text, clean, window, tag, out)
    }

    /// Cuts a text into windows as the runtime does, with targets from `tag`, which gets the words of the whole text.
    fn windows(
        &self,
        text: &str,
        clean: &Clean,
        window: usize,
        tag: impl Fn(&[Token]) -> Vec<Option<Allowed>>,
        out: &mut Vec<Sequence>,
    ) -> Result<()> {
        let tokens = self.tokenizer.encode(text)?;
        let words = words(&tokens);
        let mut tags = tag(&words).into_iter();
        // Targets of the kept tokens, in order: one for each first sub-word.
        let mut push = |window: Window| -> Result<()> {
            let mut allowed = vec![None; window.tokens.len() + 2];
            for i in window.keep.clone() {
                if window.tokens[i].starts_word {
                    allowed[i + 1] = tags.next().flatten();
                }
            }
            let readings = self.readings(&window.tokens, clean)?;
            out.push(Sequence { ids: self.with_special(&window.tokens), allowed, readings });
            Ok(())
        };
        let mut windower = Windower::new(window);
        windower.push(tokens, &mut push)?;
        windower.finish(&mut push)
    }

    /// The beginning of a text as one sequence with one target.
    fn whole(&self, text: &str, clean: &Clean, window: usize, allowed: Option<Allowed>) -> Result<Sequence> {
        let mut tokens = self.tokenizer.encode(text)?;
        tokens.truncate(window);
        let readings = self.readings(&tokens, clean)?;
        Ok(Sequence { ids: self.with_special(&tokens), allowed: vec![allowed], readings })
    }

    /// What each teacher reads where the student reads these tokens, if it is something else.
    fn readings(&self, tokens: &[Token], clean: &Clean) -> Result<Vec<Option<Reading>>> {
        self.teachers.iter().map(|teacher| teacher.read(tokens, clean)).collect()
    }

    fn label_target(&self, text: &LabelledText) -> Result<Allowed> {
        let ids = text
            .labels
            .iter()
            .map(|label| {
                let id = self.config.id2label.iter().position(|l| l == label);
                // It is not quoted: who has swapped text and label has a text there.
                id.map(|id| id as u32).ok_or_else(|| {
                    Error::invalid_input(format!(
                        "it has a label that is not one of the model's: {}",
                        self.config.id2label.join(", ")
                    ))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        match (self.config.task, ids.as_slice()) {
            (Task::MultiLabel, _) => Ok(Allowed::All(ids)),
            (_, &[one]) => Ok(Allowed::One(one, 1.0)),
            (_, _) => Err(Error::invalid_input(format!(
                "it has {} labels, and this model gives exactly one; train a multi-label head (`train --multi-label`)",
                ids.len()
            ))),
        }
    }

    fn with_special(&self, tokens: &[Token]) -> Vec<u32> {
        let middle = tokens.iter().map(|t| t.id);
        std::iter::once(self.tokenizer.cls_id()).chain(middle).chain([self.tokenizer.sep_id()]).collect()
    }

    /// The input and the targets of a step, in `parts` of about as many tokens each, to be computed side by side.
    pub(crate) fn parts(&self, epoch: &Epoch, step: usize, parts: usize) -> Vec<Part> {
        let chosen = &epoch.batches[step];
        let mut parts: Vec<Part> = match epoch.pairs.is_empty() {
            true => {
                let sequences = chosen.iter().map(|&i| &epoch.sequences[i]).collect();
                let cut = cut(sequences, parts, |sequence: &&Sequence| sequence.ids.len());
                cut.iter().map(|part| Part::Texts(Box::new(self.input(part)))).collect()
            }
            false => {
                let cut = cut(chosen.iter().map(|&i| &epoch.pairs[i]).collect(), parts, |pair: &&Pair| pair.tokens());
                pairs::parts(&cut, |sequences| self.input(sequences))
                    .into_iter()
                    .map(|pairs| Part::Pairs(Box::new(pairs)))
                    .collect()
            }
        };
        let sum = |values: fn(&Targets) -> &Vec<f32>| {
            let inputs = parts.iter().flat_map(Part::inputs);
            inputs.flat_map(|input| values(&input.targets)).filter(|&&x| x > 0.0).count()
        };
        let of_step =
            Counts { answered: sum(|t| &t.answered), labelled: sum(|t| &t.labelled), tokens: sum(|t| &t.tokens) };
        parts.iter_mut().flat_map(Part::inputs_mut).for_each(|input| input.targets.of_step = of_step);
        parts
    }

    /// The input and the tags of a step, as `examples/produce/reference.py` reads them: one row a sequence, a tag or -100 for
    /// each token, and for each tag whether the sequence's corpus covers its label. None for labels of whole texts.
    pub(crate) fn dump(&self, epoch: &Epoch, step: usize) -> Option<serde_json::Map<String, serde_json::Value>> {
        let scheme = self.scheme.as_ref()?;
        let outside = (0..self.config.id2label.len()).find(|&tag| scheme.label_of(tag as u32).is_none())?;
        let (mut ids, mut lengths, mut tags, mut covered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for sequence in epoch.batches[step].iter().map(|&i| &epoch.sequences[i]) {
            let mut covers = vec![true; self.config.id2label.len()];
            let tag = |allowed: &Option<Allowed>| match allowed {
                Some(Allowed::One(tag, _)) => i64::from(*tag),
                Some(Allowed::Outside(set)) => {
                    for (tag, covers) in covers.iter_mut().enumerate() {
                        *covers = tag == outside || self.outside[*set][tag] == 0.0;
                    }
                    outside as i64
                }
                None | Some(Allowed::Any | Allowed::All(_)) => -100,
            };
            tags.push(sequence.allowed.iter().map(tag).collect::<Vec<_>>());
            ids.push(&sequence.ids);
            lengths.push(sequence.ids.len());
            covered.push(covers);
        }
        let row = serde_json::json!({ "input_ids": ids, "lengths": lengths, "tags": tags, "covered": covered });
        row.as_object().cloned()
    }

    fn input(&self, sequences: &[&Sequence]) -> Input {
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let batch = Batch::new(&ids, self.config.pad_token_id);
        let labels = self.config.id2label.len();
        let positions = sequences.iter().map(|s| s.allowed.len()).max().unwrap_or(0);
        let (count, [_, seq]) = (sequences.len() * positions, batch.dims());
        let mut targets = Targets {
            answered: vec![0.0; count],
            labelled: vec![0.0; count],
            allowed: vec![0.0; count * labels],
            tokens: vec![0.0; sequences.len() * seq],
            multi_label: self.config.task == Task::MultiLabel,
            scheme: self.scheme.clone(),
            of_step: Counts::default(),
        };
        let mut readings = vec![Vec::new(); self.teachers.len()];
        for (row, sequence) in sequences.iter().enumerate() {
            for (reading, readings) in sequence.readings.iter().zip(&mut readings) {
                let own = || Reading::same(&sequence.ids, sequence.allowed.iter().map(Option::is_some));
                let reading = reading.clone().unwrap_or_else(own);
                for (column, _) in reading.tokens.iter().enumerate().filter(|(_, at)| at.is_some()) {
                    targets.tokens[row * seq + column] = 1.0;
                }
                readings.push(reading);
            }
            let is_answered = |column: usize| readings.iter().any(|readings| readings[row].answers[column].is_some());
            for (column, allowed) in sequence.allowed.iter().enumerate() {
                let Some(allowed) = allowed else { continue };
                let at = row * positions + column;
                targets.answered[at] = f32::from(u8::from(is_answered(column)));
                targets.labelled[at] = 1.0;
                let slots = &mut targets.allowed[at * labels..(at + 1) * labels];
                match allowed {
                    Allowed::Any => {
                        targets.labelled[at] = 0.0;
                        slots.fill(1.0);
                    }
                    Allowed::One(tag, weight) => {
                        targets.labelled[at] = *weight;
                        slots[*tag as usize] = 1.0;
                    }
                    Allowed::Outside(set) => slots.copy_from_slice(&self.outside[*set]),
                    Allowed::All(ids) => ids.iter().for_each(|&id| slots[id as usize] = 1.0),
                }
            }
        }
        Input { batch, targets, readings }
    }
}

/// The noise of an epoch's texts.
struct Typing<'a> {
    noise: Option<&'a TypingNoise>,
    seed: u64,
}

impl Typing<'_> {
    fn text<'t>(&self, text: &'t str) -> (Cow<'t, str>, Clean<'t>) {
        let (noisy, alignment) = match self.noise.map(|noise| noise.apply(text, &[], self.seed)) {
            Some((noisy, alignment)) => (Cow::Owned(noisy), alignment),
            None => (Cow::Borrowed(text), Alignment::default()),
        };
        (noisy, Clean { text, back: alignment.inverted() })
    }

    fn example<'t>(&self, example: &'t Example) -> (Cow<'t, Example>, Alignment) {
        match self.noise.map(|noise| noise.example(example, self.seed)) {
            Some((noisy, alignment)) => (Cow::Owned(noisy), alignment),
            None => (Cow::Borrowed(example), Alignment::default()),
        }
    }
}

/// Whether each of so many tags may be that of an `O` of `set`: `O` itself, and what the set does not cover.
pub(crate) fn outside_of(set: &NerSet, scheme: &Scheme, tags: usize) -> impl Iterator<Item = bool> {
    (0..tags as u32)
        .map(|tag| scheme.label_of(tag).is_none_or(|label| !set.covers.contains(&*scheme.entity_labels()[label])))
}

/// The entities of a text whose labels the scheme knows, by their indices.
pub(crate) fn spans_of(example: &Example, scheme: &Scheme) -> Vec<(usize, Range<usize>)> {
    let known = |e: &Annotation| Some((scheme.label_index(&e.label)?, e.range.clone()));
    example.entities.iter().filter_map(known).collect()
}

/// The words of a text, each as one token from its first sub-word's beginning to its last one's end.
fn words(tokens: &[Token]) -> Vec<Token> {
    let mut words: Vec<Token> = Vec::new();
    for token in tokens {
        match words.last_mut() {
            Some(word) if !token.starts_word => word.range.end = token.range.end,
            _ => words.push(token.clone()),
        }
    }
    words
}

/// What a step holds, in at most so many parts of about as many tokens each.
fn cut<T>(mut all: Vec<T>, parts: usize, tokens: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    // The longest first, each to the part that has least: even parts, and little padding.
    all.sort_by_key(|one| std::cmp::Reverse(tokens(one)));
    let mut cut: Vec<(usize, Vec<T>)> = (0..parts.max(1)).map(|_| (0, Vec::new())).collect();
    for one in all {
        if let Some((sum, part)) = cut.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum += tokens(&one);
            part.push(one);
        }
    }
    cut.into_iter().map(|(_, part)| part).filter(|part| !part.is_empty()).collect()
}

/// Batches in which sequences are sorted by length.
const STRETCH: usize = 64;

/// Sequences of like length together, in random order: shuffled, sorted within stretches of many batches, cut, and the
/// batches shuffled again. `lengths` are those of the sequences that belong together, 0 where there is one.
fn batches(lengths: &[[usize; 2]], stretch: usize, config: &TrainConfig, epoch: usize) -> Vec<Vec<usize>> {
    let mut random = generator(config.seed, ORDER, epoch);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.shuffle(&mut random);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for stretch in order.chunks_mut(stretch * config.batch_size) {
        stretch.sort_by_key(|&i| lengths[i].iter().sum::<usize>());
        let (mut batch, mut longest) = (Vec::new(), [0; 2]);
        for &i in stretch.iter() {
            longest = [0, 1].map(|side| lengths[i][side].max(longest[side]));
            let padded = (batch.len() + 1) * (longest[0] + longest[1]);
            if batch.len() == config.batch_size || (!batch.is_empty() && padded > config.max_batch_tokens) {
                batches.push(std::mem::take(&mut batch));
                longest = lengths[i];
            }
            batch.push(i);
        }
        batches.push(batch);
    }
    batches.shuffle(&mut random);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entitys_words_weigh_what_its_score_says_and_all_others_one() {
        let student = Checkpoint::open("../tests/fixtures/checkpoints/bert-token").unwrap();
        let entity = |label: &str, range, score| Annotation { label: label.to_owned(), range, score };
        let text = "a pain of aspirin, naloxone and pain".to_owned();
        let entities =
            vec![entity("Disease", 2..6, 0.5), entity("Chemical", 10..17, 0.0), entity("Chemical", 19..27, 0.25)];
        let covers = ["Chemical", "Disease"].map(str::to_owned).into();
        let train = vec![NerSet { examples: vec![Example { id: String::new(), text, entities }], covers }];
        let data = Data::Entities { train, dev: Vec::new(), transfer: Vec::new() };
        let sequences = Sequences::new(&student, Vec::new(), &data).unwrap();
        let epoch = sequences.epoch(0, &TrainConfig::default()).unwrap();
        let [Part::Texts(input)] = &sequences.parts(&epoch, 0, 1)[..] else { panic!("one part") };
        let targets = &input.targets;
        let weights: Vec<f32> = targets
            .allowed
            .chunks(5)
            .zip(&targets.labelled)
            .filter(|(a, _)| a[0] < 1.0 && a.contains(&1.0))
            .map(|(_, &w)| w)
            .collect();
        assert_eq!(weights, [0.5, 0.0, 0.25]);
        let others = targets.allowed.chunks(5).zip(&targets.labelled).filter(|(allowed, _)| allowed[0] == 1.0);
        let others: Vec<f32> = others.map(|(_, &w)| w).collect();
        assert_eq!(others, [1.0; 5]);
    }

    #[test]
    fn noise_is_new_in_each_epoch_and_the_same_in_each_call_and_every_entity_stays_marked() {
        let student = Checkpoint::open("../tests/fixtures/checkpoints/bert-token").unwrap();
        let mut examples = Vec::new();
        for letter in 'a'..='z' {
            let text = format!("{letter} the pain of aspirin, naloxone");
            let entity = |label: &str, range| Annotation { label: label.to_owned(), range, score: 1.0 };
            let entities = vec![entity("Disease", 6..10), entity("Chemical", 14..21), entity("Chemical", 23..31)];
            examples.push(Example { id: String::new(), text, entities });
        }
        let covers = ["Chemical", "Disease"].map(str::to_owned).into();
        let transfer = vec!["no label on the pain of aspirin".to_owned()];
        let data = Data::Entities { train: vec![NerSet { examples, covers }], dev: Vec::new(), transfer };
        let clean =
            TrainConfig { terms: vec![Term::SoftTargets { weight: 1.0, temperature: 1.0 }], ..TrainConfig::default() };
        let noise = TypingNoise { words: 1.0, ..TypingNoise::default() };
        let noisy = TrainConfig { noise: Some(noise), ..clean.clone() };
        let sequences = Sequences::new(&student, Vec::new(), &data).unwrap();
        let epoch = |number, config: &TrainConfig| sequences.epoch(number, config).unwrap();
        let ids = |epoch: &Epoch| epoch.sequences.iter().map(|s| s.ids.clone()).collect::<Vec<_>>();
        let transferred = |epoch: &Epoch| epoch.sequences.last().unwrap().ids.clone();

        let first = epoch(0, &noisy);
        assert_eq!((ids(&first), &first.batches), (ids(&epoch(0, &noisy)), &epoch(0, &noisy).batches));
        assert_ne!(transferred(&first), transferred(&epoch(0, &clean)));
        assert_ne!(transferred(&first), transferred(&epoch(1, &noisy)));
        let begins = |sequence: &&Option<Allowed>| matches!(sequence, Some(Allowed::One(1 | 3, _)));
        for number in 0..9 {
            let epoch = epoch(number, &noisy);
            assert_eq!(epoch.sequences.iter().flat_map(|s| &s.allowed).filter(begins).count(), 3 * 26);
        }
    }
}
