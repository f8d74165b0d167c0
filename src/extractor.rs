//! Text in, entities out.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;

use crate::bundle::Bundle;
use crate::decode::{Decoder, Scheme, Span};
use crate::device::DeviceReport;
use crate::entity::{Entity, widen_to_graphemes};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ModelConfig, Output, Task};
use crate::opened::Opened;
use crate::options::{Limit, Options};
use crate::text::{Tokenizer, Window};

/// Finds entities in notes of any length.
///
/// A note is cut into overlapping windows of at most the model's positions. Each word is judged in the window in which it lies
/// farthest from an edge, and one Viterbi over the whole note then finds the likeliest legal sequence of tags, so that no
/// entity is cut in two. An entity's score is the mean probability of its words' tags.
///
/// Calls take `&self` and may be made from several threads at once.
pub struct Extractor {
    opened: Opened,
    scheme: Scheme,
}

impl Extractor {
    /// Opens a bundle or, with the feature `checkpoint`, a Hugging Face folder.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`Corrupt`](ErrorKind::Corrupt),
    /// [`Incompatible`](ErrorKind::Incompatible) (another version, or a model of another task) or
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable).
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::open(path.as_ref(), options)?)
    }

    /// Opens the bundle that this crate carries: chemicals and diseases in English text.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable).
    #[cfg(feature = "embedded")]
    pub fn embedded(options: &Options) -> Result<Self> {
        Self::from_opened(Opened::from_bundle(Bundle::unchecked(EMBEDDED.into())?, options)?)
    }

    /// Opens a bundle in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`].
    pub fn from_bytes(bytes: impl Into<std::borrow::Cow<'static, [u8]>>, options: &Options) -> Result<Self> {
        let bundle = Bundle::from_bytes(bytes, options.verify)?;
        Self::from_opened(Opened::from_bundle(bundle, options)?)
    }

    /// Uses a checkpoint in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`].
    #[cfg(feature = "checkpoint")]
    pub fn from_checkpoint(checkpoint: crate::Checkpoint, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::from_checkpoint(checkpoint, options)?)
    }

    fn from_opened(opened: Opened) -> Result<Self> {
        let opened = opened.expect(&[Task::TokenClassification], "find entities")?;
        let scheme = Scheme::new(&opened.config.id2label)?;
        let labels = scheme.entity_labels();
        for label in opened.options.min_score_by_label.keys() {
            if !labels.iter().any(|l| **l == **label) {
                return Err(Error::invalid_input(format!(
                    "min_score_by_label names {label:?}; this model's labels are {}",
                    labels.join(", ")
                )));
            }
        }
        Ok(Extractor { opened, scheme })
    }

    /// The labels that entities can have.
    pub fn labels(&self) -> &[Arc<str>] {
        self.scheme.entity_labels()
    }

    /// The model's shape and tags.
    pub fn config(&self) -> &ModelConfig {
        &self.opened.config
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.opened.tokenizer
    }

    /// Where this model computes, and why there.
    pub fn device(&self) -> &DeviceReport {
        &self.opened.engine.report
    }

    /// The entities of a text, in order.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn extract(&self, text: &str) -> Result<Vec<Entity>> {
        let mut all = Vec::new();
        self.extract_each(text, |entity| {
            all.push(entity);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Hands over the entities of a text in order, each as soon as nothing that follows can change it, until `each` breaks.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    pub fn extract_each(&self, text: &str, mut each: impl FnMut(Entity) -> ControlFlow<()> + Send) -> Result<()> {
        // Breaking ends the computation by an error that goes no further than here.
        let mut broken = false;
        let result = self.run(&[text], &mut |_, entity| match each(entity) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                broken = true;
                Err(Error::new(ErrorKind::Cancelled, "the caller has enough"))
            }
        });
        if broken { Ok(()) } else { result }
    }

    /// The entities of several texts, computed together.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    pub fn extract_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<Entity>>> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut all = vec![Vec::new(); texts.len()];
        self.run(&texts, &mut |text, entity| {
            all[text].push(entity);
            Ok(())
        })?;
        Ok(all)
    }

    fn run(&self, texts: &[&str], each: &mut (dyn FnMut(usize, Entity) -> Result<()> + Send)) -> Result<()> {
        let limit = Limit::of(&self.opened.options);
        limit.check()?;
        self.opened.install(|| {
            // Two entities that share a grapheme cluster: it belongs to the first.
            let mut taken = (0, 0);
            let mut emit = |index: usize, span: Span| match self.entity(texts[index], span) {
                Some(mut entity) => {
                    if taken.0 == index {
                        entity.range.start = entity.range.start.max(taken.1);
                    }
                    if entity.range.is_empty() {
                        return Ok(());
                    }
                    taken = (index, entity.range.end);
                    each(index, entity)
                }
                None => Ok(()),
            };
            let labels = self.opened.config.id2label.len();
            let mut note: Option<Note> = None;
            self.opened.windows(
                texts.iter().copied(),
                &limit,
                false,
                Output::Logits,
                &mut |index, window, logits| {
                    if let Some(done) = note.take_if(|note| note.index != index) {
                        done.finish(&mut emit)?;
                    }
                    note.get_or_insert_with(|| Note {
                        index,
                        decoder: Decoder::new(&self.scheme, self.opened.temperature),
                        word: None,
                    })
                    .push(window, logits, labels, &mut emit)
                },
            )?;
            match note {
                Some(note) => note.finish(&mut emit),
                None => Ok(()),
            }
        })
    }

    fn entity(&self, text: &str, span: Span) -> Option<Entity> {
        let label = self.scheme.entity_labels().get(span.label)?.clone();
        (span.score >= self.opened.options.min_score_of(&label)).then(|| Entity {
            label,
            range: widen_to_graphemes(text, span.range),
            score: span.score,
        })
    }
}

/// Chemicals and diseases; the card is beside it.
#[cfg(feature = "embedded")]
static EMBEDDED: &[u8] = include_bytes!("../models/clinical-en.int8.safetensors");

/// The decoding of one text, whose windows arrive one by one.
struct Note<'s> {
    index: usize,
    decoder: Decoder<'s>,
    /// The last word so far, whose later sub-words may still arrive, and its first sub-word's logits.
    word: Option<(Range<usize>, Vec<f32>)>,
}

type Emit<'a> = dyn FnMut(usize, Span) -> Result<()> + 'a;

impl Note<'_> {
    /// `logits` is `[tokens of the window with its special tokens, labels]`.
    fn push(&mut self, window: &Window, logits: &[f32], labels: usize, emit: &mut Emit) -> Result<()> {
        for i in window.keep.clone() {
            let token = &window.tokens[i];
            if let (false, Some((range, _))) = (token.starts_word, &mut self.word) {
                range.end = range.end.max(token.range.end);
                continue;
            }
            // The leading special token has the first row.
            let row = logits[(i + 1) * labels..(i + 2) * labels].to_vec();
            if let Some((range, row)) = self.word.replace((token.range.clone(), row)) {
                self.decode(range, &row, emit)?;
            }
        }
        Ok(())
    }

    fn decode(&mut self, word: Range<usize>, logits: &[f32], emit: &mut Emit) -> Result<()> {
        let mut spans = Vec::new();
        self.decoder.push(word, logits, &mut |span| spans.push(span))?;
        spans.into_iter().try_for_each(|span| emit(self.index, span))
    }

    fn finish(mut self, emit: &mut Emit) -> Result<()> {
        if let Some((range, row)) = self.word.take() {
            self.decode(range, &row, emit)?;
        }
        let mut spans = Vec::new();
        self.decoder.finish(&mut |span| spans.push(span));
        spans.into_iter().try_for_each(|span| emit(self.index, span))
    }
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use super::*;

    /// [`Extractor::embedded`] does not look at the values.
    #[test]
    fn the_embedded_bundle_is_sound() {
        Bundle::from_bytes(EMBEDDED, true).unwrap();
    }
}
