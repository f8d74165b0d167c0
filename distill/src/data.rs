//! Texts to learn from and to score on: entities, labels of whole texts, queries with passages, and plain sentences.
//!
//! | What | File | Function |
//! |---|---|---|
//! | entities | `.tsv`, `.conll`, `.iob2`: `token<TAB>tag`, strict IOB2, a blank line after each sentence | [`read_conll`] |
//! | entities | `.jsonl`: `{"id"?, "text", "entities": [{"start", "end", "label", "text"?, "score"?}], "offsets"?, "covers"?}` | [`read_ner`] |
//! | labels | `.jsonl`: `{"id"?, "text", "label"}` or `{"id"?, "text", "labels": […]}` | [`read_labelled`] |
//! | search | `.jsonl`: `{"id"?, "text", "positives": [ids]}`, and beside it `corpus.jsonl`: `{"id", "text"}` | [`read_search`] |
//! | search | `.jsonl`: `{"id"?, "text", "positive"}`, a text with one that belongs to it | [`read_search`] |
//! | plain text | a sentence a line | [`read_lines`] |
//!
//! Files are UTF-8, with or without a byte order mark, and their lines end in LF or CRLF. A corpus may be a folder of
//! `train`, `dev` and `test` files ([`read_folder`]). Every error names the file and the line, and none quotes the text.

mod conll;
mod join;
mod jsonl;
mod lines;
mod runs;
mod search;

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ampoule::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use join::join;
pub use jsonl::read_labelled;
pub use lines::{first_fields, read_lines};
pub use runs::{full_windows, runs};
pub use search::{Passage, Query, SearchSet, read_search};

/// A text with its entities.
///
/// `Debug` shows lengths, never the text.
#[derive(Clone, PartialEq)]
pub struct Example {
    /// The line's own, or the number of the line on which the example begins. A run has that of its first sentence.
    pub id: String,
    /// What a model is given.
    pub text: String,
    /// In the order of the text, without overlap.
    pub entities: Vec<Annotation>,
}

/// An entity as an annotator marked it: a human being, or a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Annotation {
    /// Without `B-` or `I-`.
    pub label: String,
    /// UTF-8 bytes of the text, on character boundaries and not empty.
    pub range: Range<usize>,
    /// How sure the annotator is, in `0..=1`; 1 unless the file says otherwise. The entity's words weigh so much in training.
    pub score: f32,
}

/// A text with the labels of the whole.
///
/// `Debug` shows lengths, never the text.
#[derive(Clone, PartialEq, Eq)]
pub struct LabelledText {
    /// The line's own, or the line's number.
    pub id: String,
    /// What a model is given.
    pub text: String,
    /// One for a single-label task, any number for a multi-label one.
    pub labels: Vec<String>,
}

/// Annotated texts, and the labels of which every occurrence in them is marked.
///
/// Where a label is not covered, an unmarked word says nothing against it: NCBI-disease marks no chemicals, yet its texts
/// name many.
#[derive(Clone, PartialEq)]
pub struct NerSet {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// Every entity's label is one of these.
    pub covers: BTreeSet<String>,
}

impl NerSet {
    /// Of all texts.
    pub fn entities(&self) -> impl Iterator<Item = &Annotation> {
        self.examples.iter().flat_map(|example| &example.entities)
    }

    /// How many of its entities begin or end between two letters or digits, those of scripts without spaces not counted. Models answer
    /// with whole words, and find none of them exactly: their offsets are in another unit, or noise of typing took the space beside them.
    pub fn within_words(&self) -> usize {
        let is_within = |text: &str, at: usize| {
            // Thai to Lao, Burmese, Khmer, and what is written in Chinese and Japanese.
            let unspaced =
                [0xE00..=0xEFF, 0x1000..=0x109F, 0x1780..=0x17FF, 0x2E80..=0x9FFF, 0xF900..=0xFAFF, 0x20000..=0x3FFFF];
            let is_spaced = |c: &char| !unspaced.iter().any(|script| script.contains(&u32::from(*c)));
            let is_of_word = |c: Option<char>| c.filter(is_spaced).is_some_and(char::is_alphanumeric);
            is_of_word(text[..at].chars().next_back()) && is_of_word(text[at..].chars().next())
        };
        let of = |example: &Example| {
            let ends = |entity: &&Annotation| {
                [entity.range.start, entity.range.end].iter().any(|&at| is_within(&example.text, at))
            };
            example.entities.iter().filter(ends).count()
        };
        self.examples.iter().map(of).sum()
    }
}

/// What `train`, `dev` and `test` files of a folder hold.
#[derive(Clone, Debug)]
pub struct NerFolder {
    /// To train on.
    pub train: Option<NerSet>,
    /// To choose by.
    pub dev: Option<NerSet>,
    /// To report, once.
    pub test: Option<NerSet>,
}

/// The most characters of a label. What is longer is a text in a label's place, and would stand in a model for everyone to read.
const MAX_LABEL: usize = 64;

/// Why a label cannot be one.
fn wrong_label(label: &str) -> Option<String> {
    match label.chars().count() {
        0 => Some("its label is empty".to_owned()),
        n if n > MAX_LABEL => Some(format!("its label has {n} characters; labels are names of at most {MAX_LABEL}")),
        _ if label.chars().any(char::is_control) => Some("its label has a control character".to_owned()),
        _ => None,
    }
}

/// The unit in which a JSONL file counts offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OffsetUnit {
    /// Bytes, as this project writes them, and Rust and Go count.
    #[default]
    Utf8,
    /// Unicode scalar values, as Python counts.
    Chars,
    /// UTF-16 code units, as Java, Kotlin, JavaScript and Swift's `NSString` count.
    Utf16,
}

impl OffsetUnit {
    /// How many units a character takes.
    fn len(self, character: char) -> usize {
        match self {
            OffsetUnit::Utf8 => character.len_utf8(),
            OffsetUnit::Chars => 1,
            OffsetUnit::Utf16 => character.len_utf16(),
        }
    }
}

impl fmt::Display for OffsetUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OffsetUnit::Utf8 => "utf8",
            OffsetUnit::Chars => "chars",
            OffsetUnit::Utf16 => "utf16",
        })
    }
}

impl FromStr for OffsetUnit {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "utf8" => Ok(OffsetUnit::Utf8),
            "chars" => Ok(OffsetUnit::Chars),
            "utf16" => Ok(OffsetUnit::Utf16),
            _ => Err(Error::invalid_input("the unit of offsets is one of utf8, chars and utf16")),
        }
    }
}

impl fmt::Debug for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Example {{ text: {} bytes, entities: {} }}", self.text.len(), self.entities.len())
    }
}

impl fmt::Debug for LabelledText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LabelledText {{ text: {} bytes, labels: {} }}", self.text.len(), self.labels.len())
    }
}

impl fmt::Debug for NerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NerSet {{ examples: {}, covers: {:?} }}", self.examples.len(), self.covers)
    }
}

/// What a file says, before it is settled which labels it covers.
struct Annotated {
    examples: Vec<Example>,
    /// The labels that the file says it covers.
    covers: Option<BTreeSet<String>>,
}

/// Reads annotated texts; the file's extension tells the format (see the [module](self)).
///
/// `unit` is that of a JSONL file's offsets where a line does not say its own (`"offsets": "utf8" | "chars" | "utf16"`).
///
/// The labels that the set covers are `covers`, and entities of other labels are left out; without it, those that the file's
/// lines state (`"covers": […]`, the same in every line that has it); without these, those that occur in it.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if the file cannot be read; [`InvalidInput`](ErrorKind::InvalidInput) for another
/// extension, a malformed line, a file without texts, one of which it cannot be told what it covers, or one that marks entities, and
/// none with a label in `covers`.
pub fn read_ner(path: &Path, unit: OffsetUnit, covers: Option<&[String]>) -> Result<NerSet> {
    let annotated = annotated(path, unit)?;
    check_asked(path, std::iter::once(&annotated), covers.unwrap_or_default())?;
    settle(path, annotated, covers, None)
}

/// Refuses files that mark entities, and none with a label that they are said to cover: labels are misspelled.
fn check_asked<'a>(path: &Path, files: impl Iterator<Item = &'a Annotated>, asked: &[String]) -> Result<()> {
    let entities = files.flat_map(|file| &file.examples).flat_map(|example| &example.entities);
    let marked: BTreeSet<&String> = entities.map(|entity| &entity.label).collect();
    if asked.is_empty() || marked.is_empty() || marked.iter().any(|label| asked.contains(label)) {
        return Ok(());
    }
    // The file's own are not quoted: a text may stand in the place of one.
    Err(Error::invalid_input(format!(
        "{}: no entity has a label of {asked:?}, which it is said to cover; labels that it marks: {}",
        path.display(),
        marked.len()
    )))
}

/// Reads sentences of one token a line: `token<TAB>tag`, tags `O`, `B-<label>` and `I-<label>`, a blank line after each
/// sentence.
///
/// Strict IOB2: an `I-` follows a `B-` or `I-` of the same label. Lines that begin with `-DOCSTART-` separate like blank ones.
/// Tokens are joined to a text by [`join`]. The set covers the labels that occur in it.
///
/// # Errors
/// As [`read_ner`].
pub fn read_conll(path: &Path) -> Result<NerSet> {
    settle(path, conll::read(path)?, None, None)
}

/// Reads the `train`, `dev` and `test` files of a folder, those that are there, each as [`read_ner`] does.
///
/// Unless `covers` or a file's own lines say otherwise, the train file decides what dev and test cover.
///
/// # Errors
/// As [`read_ner`]; also [`NotFound`](ErrorKind::NotFound) if there is none of the three, and
/// [`InvalidInput`](ErrorKind::InvalidInput) if there are two files for one, or dev or test has a label that train lacks.
pub fn read_folder(folder: &Path, unit: OffsetUnit, covers: Option<&[String]>) -> Result<NerFolder> {
    let read = |name: &str| -> Result<Option<(PathBuf, Annotated)>> {
        let Some(path) = find(folder, name)? else { return Ok(None) };
        let annotated = annotated(&path, unit)?;
        Ok(Some((path, annotated)))
    };
    let files = [read("train")?, read("dev")?, read("test")?];
    if files.iter().all(Option::is_none) {
        return Err(missing(folder, "train, dev or test"));
    }
    check_asked(folder, files.iter().flatten().map(|(_, annotated)| annotated), covers.unwrap_or_default())?;
    let settle = |file: Option<(PathBuf, Annotated)>, of_train: Option<&BTreeSet<String>>| {
        file.map(|(path, annotated)| settle(&path, annotated, covers, of_train)).transpose()
    };
    let [train, dev, test] = files;
    let train = settle(train, None)?;
    let of_train = train.as_ref().map(|set| &set.covers);
    let (dev, test) = (settle(dev, of_train)?, settle(test, of_train)?);
    Ok(NerFolder { train, dev, test })
}

/// The file of `folder` that holds the split `name` ("train", "dev" or "test"): its stem is `name`, its extension one that
/// [`read_ner`] knows.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) if there is none, [`InvalidInput`](ErrorKind::InvalidInput) if there are two.
pub fn split(folder: &Path, name: &str) -> Result<PathBuf> {
    find(folder, name)?.ok_or_else(|| missing(folder, name))
}

/// The texts to train on and those to choose by, about a twentieth, of a set that does not part them itself. A text's hash decides, so
/// equal texts come to the same side.
pub fn held_out<T>(texts: Vec<T>, text: impl Fn(&T) -> &str) -> (Vec<T>, Vec<T>) {
    texts.into_iter().partition(|one| Sha256::digest(text(one))[0] >= 13)
}

/// The extensions of sentences of one token a line.
const CONLL: [&str; 3] = ["tsv", "conll", "iob2"];
const JSONL: &str = "jsonl";

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let extensions = CONLL.iter().chain([&JSONL]);
    let mut found = extensions.map(|e| folder.join(format!("{name}.{e}"))).filter(|path| path.is_file());
    match (found.next(), found.next()) {
        (Some(one), Some(other)) => Err(Error::invalid_input(format!(
            "{} and {} are both there: which is meant? Name the file itself, or move one away",
            one.display(),
            other.display()
        ))),
        (found, _) => Ok(found),
    }
}

fn missing(folder: &Path, name: &str) -> Error {
    let extensions = CONLL.join(", .");
    Error::new(
        ErrorKind::NotFound,
        format!("{}: no file {name} with the extension .{extensions} or .{JSONL}", folder.display()),
    )
}

fn annotated(path: &Path, unit: OffsetUnit) -> Result<Annotated> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        JSONL => jsonl::read_entities(path, unit),
        e if CONLL.contains(&e) => conll::read(path),
        _ if let Err(e) = path.metadata() => Err(Error::io(path, e)),
        _ => Err(Error::invalid_input(format!(
            "{}: the format of annotated text is told by the extension: .{} for a token a line, .{JSONL} for a text a line",
            path.display(),
            CONLL.join(", .")
        ))),
    }
}

/// Decides what a file covers.
fn settle(
    path: &Path,
    annotated: Annotated,
    asked: Option<&[String]>,
    of_train: Option<&BTreeSet<String>>,
) -> Result<NerSet> {
    let Annotated { mut examples, covers: stated } = annotated;
    let error = |message: String| Err(Error::invalid_input(format!("{}: {message}", path.display())));
    if examples.is_empty() {
        return error("no text in it".to_owned());
    }
    let seen = || examples.iter().flat_map(|e| &e.entities).map(|a| &a.label);
    let covers = if let Some(asked) = asked {
        let asked: BTreeSet<String> = asked.iter().cloned().collect();
        examples.iter_mut().for_each(|e| e.entities.retain(|a| asked.contains(&a.label)));
        asked
    } else if let Some(stated) = stated {
        stated
    } else if let Some(of_train) = of_train {
        let others = seen().filter(|label| !of_train.contains(*label)).collect::<BTreeSet<_>>().len();
        if others > 0 {
            return error(format!(
                "{others} of its labels the train file beside it has not: say which labels the corpus covers"
            ));
        }
        of_train.clone()
    } else {
        seen().cloned().collect()
    };
    if covers.is_empty() {
        return error("no entity is marked in it, so it must be said which labels it covers".to_owned());
    }
    Ok(NerSet { examples, covers })
}

#[cfg(test)]
mod tests;
