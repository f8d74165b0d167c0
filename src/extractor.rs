//! Text in, entities out.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::bundle::Bundle;
use crate::decode::{Decoder, Scheme, Span};
use crate::device::DeviceReport;
use crate::entity::{Entity, widen_to_graphemes};
use crate::error::{Error, ErrorKind, Result};
use crate::gpu::GpuReport;
use crate::model::{ModelConfig, Output, Task};
use crate::opened::{ModelReport, Opened, check_temperature};
use crate::options::{CancelToken, Computed, Limits, Options};
use crate::self_check::SelfCheck;
use crate::text::{Tokenizer, Window};

/// A word as the model judges it, before tags are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct WordLogits {
    /// From its first sub-word's beginning to its last one's end, in bytes of the text.
    pub range: Range<usize>,
    /// Those of its first sub-word, `[tags]`, in the order of [`ModelConfig::id2label`]; no temperature has divided them.
    pub logits: Vec<f32>,
}

/// Finds entities in notes of any length.
///
/// A note is cut into overlapping windows of at most the model's positions. Each word is judged in the window in which it lies
/// farthest from an edge, and one Viterbi over the whole note then finds the likeliest legal sequence of tags, so that no
/// entity is cut in two. An entity's score is how probable exactly this entity is ([`Entity::score`]), at the model's temperature or
/// that of [`Options::temperature`].
///
/// Calls take `&self` and may be made from several threads at once. Clones share the model.
#[derive(Clone)]
pub struct Extractor {
    opened: Arc<Opened>,
    scheme: Arc<Scheme>,
    limits: Limits,
}

impl Extractor {
    /// Opens a bundle or, with the feature `checkpoint`, a Hugging Face folder.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound), [`Corrupt`](ErrorKind::Corrupt),
    /// [`Incompatible`](ErrorKind::Incompatible) (another version, or a model of another task),
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable), or [`InvalidInput`](ErrorKind::InvalidInput) for options that this model or this
    /// machine cannot have.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        Self::from_opened(Opened::open(path, options)?).map_err(|e| e.context(path.display()))
    }

    /// Opens the bundle that this crate carries: chemicals and diseases in English text.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable), or [`InvalidInput`](ErrorKind::InvalidInput) for options that it or this machine
    /// cannot have.
    #[cfg(feature = "embedded")]
    pub fn embedded(options: &Options) -> Result<Self> {
        Self::from_bundle(Bundle::embedded()?, options)
    }

    /// Opens a bundle in memory.
    ///
    /// # Errors
    /// As [`Extractor::open`].
    pub fn from_bytes(bytes: impl Into<std::borrow::Cow<'static, [u8]>>, options: &Options) -> Result<Self> {
        Self::from_bundle(Bundle::from_bytes(bytes, options.verify)?, options)
    }

    /// Uses a bundle that is open, such as one inside another file; how it is loaded and verified was said when it was opened.
    ///
    /// # Errors
    /// As [`Extractor::open`].
    pub fn from_bundle(bundle: Bundle, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::from_bundle(bundle, options)?)
    }

    /// As [`Extractor::from_bundle`], in a page, where nobody can wait for a GPU. With [`Device::Gpu`](crate::Device::Gpu) the model is read by
    /// [`Extractor::extract_each_in_page`] alone; a page that would rather have the processor than none opens that by itself.
    ///
    /// # Errors
    /// As [`Extractor::open`].
    #[cfg(all(feature = "wgpu", target_family = "wasm"))]
    pub async fn from_bundle_in_page(bundle: Bundle, options: &Options) -> Result<Self> {
        Self::from_opened(Opened::from_bundle_in_page(bundle, options).await?)
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
        Ok(Extractor { limits: opened.options.limits(), opened: Arc::new(opened), scheme: Arc::new(scheme) })
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

    /// What logits are divided by before they become probabilities.
    pub fn temperature(&self) -> f32 {
        self.opened.temperature
    }

    /// Where this model computes, and why there.
    pub fn device(&self) -> &DeviceReport {
        &self.opened.engine.report
    }

    /// What it holds, and has done.
    pub fn report(&self) -> ModelReport {
        self.opened.report()
    }

    /// Computes the golden cases of the model's bundle and compares the answers: how near they came, or none where the model has no cases,
    /// as that of a checkpoint. Takes as long as a dozen short texts. With [`Device::GpuOrCpu`](crate::Device::GpuOrCpu) the processor's part;
    /// the GPU's stands in [`report`](Self::report).
    ///
    /// # Errors
    /// [`DeviceUnavailable`](crate::ErrorKind::DeviceUnavailable) where the device computes something else, which says what;
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn self_check(&self) -> Result<Option<SelfCheck>> {
        self.opened.self_check(&self.limits.begin())
    }

    /// Tokens that calls of this value and its clones have computed, by device. For one result's, make that call on a value of its own, which
    /// [`limited`](Self::limited) gives, with the options' token and deadline if it is to have them: it counts by itself.
    pub fn computed(&self) -> Computed {
        self.limits.computed()
    }

    /// Waits until the GPU has come further in its warm-up than `done` of [`GpuReport::warm_up`], is ready, or has failed, and says how it
    /// stands; none where there is none. An app that shows progress calls it again with what it got, and one that does not with [`usize::MAX`].
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed.
    pub fn wait_for_gpu(&self, done: usize) -> Result<Option<GpuReport>> {
        self.opened.wait_for_gpu(done, &self.limits.begin())
    }

    /// Frees the memory that is kept for the next call, which takes it again; running calls keep theirs. What is kept on a GPU stays.
    pub fn trim(&self) {
        self.opened.trim();
    }

    /// The same model, shared, whose calls end by `cancel` and `deadline` in place of those of its options: so each call can have a token
    /// of its own.
    pub fn limited(&self, cancel: Option<CancelToken>, deadline: Option<Duration>) -> Self {
        Extractor { limits: Limits::new(cancel, deadline), ..self.clone() }
    }

    /// The entities of a text, in order.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) when the token of the options was cancelled or the deadline passed,
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) when a GPU fails that no processor stands in for, and
    /// [`Internal`](ErrorKind::Internal) where an answer is not finite.
    pub fn extract(&self, text: &str) -> Result<Vec<Entity>> {
        let mut all = Vec::new();
        self.extract_each(text, |entity| {
            all.push(entity);
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Hands over the entities of a text in order, each as soon as nothing that follows can change it, until `each` breaks. It is
    /// called by a thread that computes ([`Options::threads`]), and must not wait for another thread's call of the same model.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    pub fn extract_each(&self, text: &str, mut each: impl FnMut(Entity) -> ControlFlow<()> + Send) -> Result<()> {
        let mut broken = false;
        let result = self.run(&[text], &mut |_, entity| unless_broken(each(entity), &mut broken));
        if broken { Ok(()) } else { result }
    }

    /// As [`Extractor::extract_each`], in a page, where nobody can wait for a GPU; the whole text is cut into windows before the first is
    /// computed.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    #[cfg(all(feature = "wgpu", target_family = "wasm"))]
    pub async fn extract_each_in_page(
        &self,
        text: &str,
        mut each: impl FnMut(Entity) -> ControlFlow<()>,
    ) -> Result<()> {
        let limit = self.limits.begin();
        limit.check()?;
        let mut broken = false;
        let mut each = |entity| unless_broken(each(entity), &mut broken);
        let mut note = Note::new(self, text, self.opened.temperature);
        let mut words = Words { tags: self.opened.config.id2label.len(), last: None };
        let result = async {
            let mut each_word = |_, range, logits: &[f32]| note.push(range, logits, &mut each);
            let mut each_window =
                |index, window: &Window, logits: &[f32]| words.push(index, window, logits, &mut each_word);
            self.opened.windows_in_page(text, &limit, Output::Logits, &mut each_window).await?;
            words.finish(&mut each_word)?;
            note.finish(&mut each)
        };
        let result = result.await;
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

    /// Each word's range and what the model says of it, text by text; computed as [`Extractor::extract_batch`] does.
    ///
    /// # Errors
    /// As [`Extractor::extract`].
    pub fn word_logits<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<WordLogits>>> {
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        let mut all = vec![Vec::new(); texts.len()];
        self.words(&texts, &mut |text, range, logits| {
            all[text].push(WordLogits { range, logits: logits.to_vec() });
            Ok(())
        })?;
        Ok(all)
    }

    /// The entities of a text whose words' logits are these: at [`Extractor::temperature`] those of [`Extractor::extract`], at any other
    /// the same with other scores.
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a temperature that is not a positive number, and for words that cannot be
    /// those of [`Extractor::word_logits`] of this text: in order, on its characters, a finite logit for each of the model's tags.
    pub fn decode(&self, text: &str, words: &[WordLogits], temperature: f32) -> Result<Vec<Entity>> {
        check_temperature(temperature)?;
        let (mut all, mut before) = (Vec::new(), 0);
        let mut note = Note::new(self, text, temperature);
        let mut each = |entity| {
            all.push(entity);
            Ok(())
        };
        for WordLogits { range, logits } in words {
            let fits = logits.len() == self.opened.config.id2label.len() && logits.iter().all(|x| x.is_finite());
            let is_next = before <= range.start && range.start < range.end && text.get(range.clone()).is_some();
            if !fits || !is_next {
                return Err(Error::invalid_input("the words are not those of this text and model"));
            }
            before = range.end;
            note.push(range.clone(), logits, &mut each)?;
        }
        note.finish(&mut each)?;
        Ok(all)
    }

    fn run(&self, texts: &[&str], each: &mut (dyn FnMut(usize, Entity) -> Result<()> + Send)) -> Result<()> {
        let mut current: Option<(usize, Note)> = None;
        self.words(texts, &mut |index, range, logits| {
            if let Some((done, note)) = current.take_if(|(of, _)| *of != index) {
                note.finish(&mut |entity| each(done, entity))?;
            }
            let (_, note) =
                current.get_or_insert_with(|| (index, Note::new(self, texts[index], self.opened.temperature)));
            note.push(range, logits, &mut |entity| each(index, entity))
        })?;
        match current {
            Some((index, note)) => note.finish(&mut |entity| each(index, entity)),
            None => Ok(()),
        }
    }

    /// Hands over the words of each text in order: its index, a word's range, and its first sub-word's logits, `[tags]`.
    fn words(&self, texts: &[&str], each: &mut EachWord) -> Result<()> {
        let limit = self.limits.begin();
        limit.check()?;
        let mut words = Words { tags: self.opened.config.id2label.len(), last: None };
        self.opened.install(&limit, || {
            let texts = texts.iter().copied();
            self.opened.windows(texts, &limit, false, Output::Logits, &mut |index, window, logits| {
                words.push(index, window, logits, &mut *each)
            })?;
            words.finish(&mut *each)
        })
    }
}

/// The words of texts, put together of their windows' sub-words.
struct Words {
    tags: usize,
    /// The last so far, whose later sub-words may still arrive.
    last: Option<(usize, Range<usize>, Vec<f32>)>,
}

impl Words {
    fn push(
        &mut self,
        index: usize,
        window: &Window,
        logits: &[f32],
        mut each: impl FnMut(usize, Range<usize>, &[f32]) -> Result<()>,
    ) -> Result<()> {
        for i in window.keep.clone() {
            let token = &window.tokens[i];
            if let (false, Some((of, range, _))) = (token.starts_word, &mut self.last)
                && *of == index
            {
                range.end = range.end.max(token.range.end);
                continue;
            }
            // The leading special token has the first row.
            let row = logits[(i + 1) * self.tags..(i + 2) * self.tags].to_vec();
            if let Some((index, range, row)) = self.last.replace((index, token.range.clone(), row)) {
                each(index, range, &row)?;
            }
        }
        Ok(())
    }

    fn finish(self, mut each: impl FnMut(usize, Range<usize>, &[f32]) -> Result<()>) -> Result<()> {
        match self.last {
            Some((index, range, row)) => each(index, range, &row),
            None => Ok(()),
        }
    }
}

/// Breaking ends a computation by an error that goes no further than who broke it.
fn unless_broken(flow: ControlFlow<()>, broken: &mut bool) -> Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => {
            *broken = true;
            Err(Error::new(ErrorKind::Cancelled, "the caller has enough"))
        }
    }
}

/// Takes the index of a text, the range of a word of it, and the word's logits.
type EachWord<'a> = dyn FnMut(usize, Range<usize>, &[f32]) -> Result<()> + Send + 'a;

/// The decoding of one text, whose words arrive one by one.
struct Note<'e> {
    extractor: &'e Extractor,
    text: &'e str,
    decoder: Decoder<'e>,
    /// Where the last entity ended.
    taken: usize,
}

type EachEntity<'a> = dyn FnMut(Entity) -> Result<()> + 'a;

impl<'e> Note<'e> {
    fn new(extractor: &'e Extractor, text: &'e str, temperature: f32) -> Self {
        Note { extractor, text, decoder: Decoder::new(&extractor.scheme, temperature), taken: 0 }
    }

    fn push(&mut self, word: Range<usize>, logits: &[f32], each: &mut EachEntity) -> Result<()> {
        let mut spans = Vec::new();
        self.decoder.push(word, logits, &mut |span| spans.push(span))?;
        spans.into_iter().try_for_each(|span| emit(self.extractor, self.text, &mut self.taken, span, each))
    }

    fn finish(mut self, each: &mut EachEntity) -> Result<()> {
        let mut spans = Vec::new();
        self.decoder.finish(&mut |span| spans.push(span));
        spans.into_iter().try_for_each(|span| emit(self.extractor, self.text, &mut self.taken, span, each))
    }
}

/// Hands over the entity of a span, unless its score is too low.
fn emit(extractor: &Extractor, text: &str, taken: &mut usize, span: Span, each: &mut EachEntity) -> Result<()> {
    let Some(label) = extractor.scheme.entity_labels().get(span.label).cloned() else { return Ok(()) };
    if span.score < extractor.opened.options.min_score_of(&label) {
        return Ok(());
    }
    let mut range = widen_to_graphemes(text, span.range);
    // Two entities that share a grapheme cluster: it belongs to the first.
    range.start = range.start.max(*taken);
    if range.is_empty() {
        return Ok(());
    }
    *taken = range.end;
    each(Entity { label, range, score: span.score })
}
