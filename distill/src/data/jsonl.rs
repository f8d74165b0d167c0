//! A text a line, as JSON.

use std::collections::BTreeSet;
use std::path::Path;

use ampoule::{Error, Result};
use serde::Deserialize;
use serde_json::error::Category;

use super::{Annotated, Annotation, Example, LabelledText, OffsetUnit, lines, wrong_label};

#[derive(Deserialize)]
struct NerLine {
    id: Option<Id>,
    text: String,
    entities: Vec<Entity>,
    offsets: Option<OffsetUnit>,
    covers: Option<BTreeSet<String>>,
}

#[derive(Deserialize)]
struct Entity {
    start: usize,
    end: usize,
    label: String,
    text: Option<String>,
    score: Option<f32>,
}

#[derive(Deserialize)]
struct LabelledLine {
    id: Option<Id>,
    text: String,
    label: Option<String>,
    labels: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    Name(String),
    Number(serde_json::Number),
}

impl Id {
    pub(super) fn into_string(self) -> String {
        match self {
            Id::Name(name) => name,
            Id::Number(id) => id.to_string(),
        }
    }
}

const NER: &str =
    r#"{"text": …, "entities": [{"start": …, "end": …, "label": …}]}, "offsets" being "utf8", "chars" or "utf16""#;
const LABELLED: &str = r#"{"text": …, "label": …} or {"text": …, "labels": […]}"#;

pub(super) fn read_entities(path: &Path, unit: OffsetUnit) -> Result<Annotated> {
    let mut examples = Vec::new();
    let mut covers: Option<(usize, BTreeSet<String>)> = None;
    lines::each(path, |number, line| {
        let Some(line): Option<NerLine> = parse(line, NER)? else { return Ok(()) };
        if let Some(wrong) = line.covers.iter().flatten().find_map(|label| wrong_label(label)) {
            return Err(Error::invalid_input(format!("of what it covers: {wrong}")));
        }
        match (&covers, line.covers) {
            (Some((first, before)), Some(now)) if *before != now => {
                return Err(Error::invalid_input(format!(
                    "it covers other labels than line {first}: put texts that cover different labels into different files"
                )));
            }
            (None, Some(now)) => covers = Some((number, now)),
            _ => {}
        }
        let entities = annotations(&line.text, line.entities, line.offsets.unwrap_or(unit))?;
        examples.push((number, Example { id: id(line.id, number), text: line.text, entities }));
        Ok(())
    })?;
    let covers = covers.map(|(_, covers)| covers);
    if let Some(covers) = &covers {
        for (number, example) in &examples {
            if let Some(index) = example.entities.iter().position(|a| !covers.contains(&a.label)) {
                return Err(Error::invalid_input(format!(
                    "{}:{number}: the label of entity {index} (in the order of the text) is not among those that the file covers",
                    path.display()
                )));
            }
        }
    }
    Ok(Annotated { examples: examples.into_iter().map(|(_, example)| example).collect(), covers })
}

/// Reads texts with the labels of the whole from a `.jsonl` file (see the [module](super)).
///
/// # Errors
/// [`NotFound`](ampoule::ErrorKind::NotFound) if the file cannot be read;
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for another extension, a malformed line or a file without texts.
pub fn read_labelled(path: &Path) -> Result<Vec<LabelledText>> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case(super::JSONL)) {
        return Err(Error::invalid_input(format!(
            "{}: texts with labels are read from .jsonl files, a line each: {LABELLED}",
            path.display()
        )));
    }
    let mut texts = Vec::new();
    lines::each(path, |number, line| {
        let Some(line): Option<LabelledLine> = parse(line, LABELLED)? else { return Ok(()) };
        let labels = match (line.label, line.labels) {
            (Some(label), None) => vec![label],
            (None, Some(labels)) => labels,
            _ => return Err(Error::invalid_input(format!("expected either \"label\" or \"labels\": {LABELLED}"))),
        };
        if let Some(wrong) = labels.iter().find_map(|label| wrong_label(label)) {
            return Err(Error::invalid_input(wrong));
        }
        if labels.iter().collect::<BTreeSet<_>>().len() < labels.len() {
            return Err(Error::invalid_input("a label is there twice"));
        }
        texts.push(LabelledText { id: id(line.id, number), text: line.text, labels });
        Ok(())
    })?;
    if texts.is_empty() {
        return Err(Error::invalid_input(format!("{}: no text in it", path.display())));
    }
    Ok(texts)
}

/// The object of a line, none of a blank one. The parser's own message may quote the line, so its place alone is kept.
pub(super) fn parse<'a, T: Deserialize<'a>>(line: &'a str, expected: &str) -> Result<Option<T>> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    serde_json::from_str(line).map(Some).map_err(|error| {
        let what = match error.classify() {
            Category::Data => "not the fields and types expected",
            Category::Eof => "the line ends within an object",
            Category::Syntax | Category::Io => "not JSON",
        };
        Error::invalid_input(format!("{what} (column {}): expected {expected}", error.column()))
    })
}

fn id(id: Option<Id>, number: usize) -> String {
    id.map_or_else(|| number.to_string(), Id::into_string)
}

/// Checks the entities of a text, and gives them in its order with their ranges in UTF-8 bytes.
fn annotations(text: &str, entities: Vec<Entity>, unit: OffsetUnit) -> Result<Vec<Annotation>> {
    let mut entities: Vec<(usize, Entity)> = entities.into_iter().enumerate().collect();
    entities.sort_by_key(|(_, entity)| (entity.start, entity.end));
    let mut cursor = Cursor { text, unit, units: 0, bytes: 0 };
    let mut annotations = Vec::with_capacity(entities.len());
    let mut before: Option<(usize, usize)> = None;
    for (index, entity) in entities {
        let Entity { start, end, label, text: words, score } = entity;
        let error = |message: String| Err(Error::invalid_input(format!("entity {index}: {message}")));
        if start >= end {
            return error(format!("start {start} is not before end {end}"));
        }
        let score = score.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&score) {
            return error(format!("its score {score} is not in 0..=1"));
        }
        if let Some(wrong) = wrong_label(&label) {
            return error(wrong);
        }
        if let Some((other, end)) = before
            && start < end
        {
            return error(format!("it overlaps entity {other}; entities of a text lie apart"));
        }
        before = Some((index, end));
        let (Some(from), Some(to)) = (cursor.advance(start), cursor.advance(end)) else {
            let found = if cursor.units < end {
                format!("reaches beyond the text, which has {} units", cursor.units)
            } else {
                "begins or ends inside a character".to_owned()
            };
            return error(format!("{start}..{end}, in units of {unit}, {found}: check the unit of the offsets"));
        };
        if words.is_some_and(|words| words != text[from..to]) {
            return error(format!(
                "its \"text\" is not what stands at {start}..{end}, in units of {unit}: check the unit of the offsets"
            ));
        }
        annotations.push(Annotation { label, range: from..to, score });
    }
    Ok(annotations)
}

/// Walks a text forward, counting units and bytes.
struct Cursor<'a> {
    text: &'a str,
    unit: OffsetUnit,
    units: usize,
    bytes: usize,
}

impl Cursor<'_> {
    /// The byte at which `offset` units lie behind; none beyond the text or inside a character.
    fn advance(&mut self, offset: usize) -> Option<usize> {
        for character in self.text[self.bytes..].chars() {
            if self.units >= offset {
                break;
            }
            self.units += self.unit.len(character);
            self.bytes += character.len_utf8();
        }
        (self.units == offset).then_some(self.bytes)
    }
}
