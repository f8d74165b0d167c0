//! Sentences of one token a line.

use std::path::Path;

use ampoule::{Error, Result};

use super::{Annotated, Annotation, Example, join, lines, wrong_label};

/// The tag of a token.
enum Tag {
    Outside,
    Begin(String),
    Inside(String),
}

#[derive(Default)]
struct Sentence {
    first_line: usize,
    tokens: Vec<String>,
    tags: Vec<Tag>,
}

pub(super) fn read(path: &Path) -> Result<Annotated> {
    let mut examples = Vec::new();
    let mut sentence = Sentence::default();
    lines::each(path, |number, line| {
        if line.trim().is_empty() || line.starts_with("-DOCSTART-") {
            examples.extend(std::mem::take(&mut sentence).finish());
            return Ok(());
        }
        let (token, tag) = parse(line)?;
        if let Tag::Inside(label) = &tag {
            match sentence.tags.last() {
                Some(Tag::Begin(before) | Tag::Inside(before)) if before == label => {}
                _ => {
                    return Err(Error::invalid_input(
                        "an I- tag that does not follow a B- or I- tag of its label: the first token of an entity has B- (IOB2)",
                    ));
                }
            }
        }
        if sentence.tokens.is_empty() {
            sentence.first_line = number;
        }
        sentence.tokens.push(token.to_owned());
        sentence.tags.push(tag);
        Ok(())
    })?;
    examples.extend(sentence.finish());
    Ok(Annotated { examples, covers: None })
}

/// The columns may have been swapped, so an error does not quote the tag either.
fn parse(line: &str) -> Result<(&str, Tag)> {
    let columns = line.split('\t').count();
    let (token, tag) = match line.split_once('\t') {
        Some(both) if columns == 2 => both,
        _ => {
            return Err(Error::invalid_input(format!("expected token<TAB>tag, found {columns} tab-separated columns")));
        }
    };
    if token.is_empty() || token.trim() != token {
        return Err(Error::invalid_input("the token is empty, or begins or ends with white space"));
    }
    let label = |label: &str| (wrong_label(label).is_none() && label.trim() == label).then(|| label.to_owned());
    let tag = match tag.split_once('-') {
        None if tag == "O" => Some(Tag::Outside),
        Some(("B", l)) => label(l).map(Tag::Begin),
        Some(("I", l)) => label(l).map(Tag::Inside),
        _ => None,
    };
    Ok((token, tag.ok_or_else(|| Error::invalid_input("the tag is not O, B-<label> or I-<label>"))?))
}

impl Sentence {
    fn finish(self) -> Option<Example> {
        if self.tokens.is_empty() {
            return None;
        }
        let (text, ranges) = join(&self.tokens);
        let mut entities: Vec<Annotation> = Vec::new();
        for (tag, range) in self.tags.into_iter().zip(ranges) {
            match (tag, entities.last_mut()) {
                (Tag::Begin(label), _) => entities.push(Annotation { label, range, score: 1.0 }),
                (Tag::Inside(_), Some(entity)) => entity.range.end = range.end,
                _ => {}
            }
        }
        Some(Example { id: self.first_line.to_string(), text, entities })
    }
}
