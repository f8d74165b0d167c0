//! The lines of a file, numbered.

use std::collections::BTreeMap;
use std::path::Path;

use ampoule::{Error, Result};
use serde::de::IgnoredAny;

use super::jsonl::parse;

/// Reads a text a line, or the `"text"` of each line of a `.jsonl` file; blank lines are skipped.
///
/// # Errors
/// [`NotFound`](ampoule::ErrorKind::NotFound) if the file cannot be read,
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for a line that is not UTF-8, or holds no `"text"` where it should.
pub fn read_lines(path: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let is_jsonl = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
    each(path, |_, line| {
        if line.trim().is_empty() {
            return Ok(());
        }
        if !is_jsonl {
            texts.push(line.to_owned());
            return Ok(());
        }
        let object = serde_json::from_str::<serde_json::Value>(line).ok();
        let text = object.as_ref().and_then(|o| o["text"].as_str());
        let text = text.ok_or_else(|| Error::invalid_input("expected an object with a \"text\""))?;
        texts.push(text.to_owned());
        Ok(())
    })?;
    Ok(texts)
}

/// The names of the fields of a `.jsonl` file's first object, which tell what the file holds.
///
/// # Errors
/// As [`read_lines`]; also [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where there is no object, or something else in its place.
pub fn first_fields(path: &Path) -> Result<Vec<String>> {
    let mut first: Option<BTreeMap<String, IgnoredAny>> = None;
    each(path, |_, line| {
        if first.is_none() {
            first = parse(line, "an object a line")?;
        }
        Ok(())
    })?;
    let first = first.ok_or_else(|| Error::invalid_input(format!("{}: no text in it", path.display())))?;
    Ok(first.into_keys().collect())
}

/// Calls `take` with each line, without its end, and its number, from 1. The errors of `take` are given file and line.
pub(super) fn each(path: &Path, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        str::from_utf8(line)
            .map_err(|error| {
                let byte = error.valid_up_to();
                Error::invalid_input(format!("not UTF-8 from byte {byte} of the line on: save the file as UTF-8"))
            })
            .and_then(|line| take(index + 1, line))
            .map_err(|error| error.context(format_args!("{}:{}", path.display(), index + 1)))?;
    }
    Ok(())
}
