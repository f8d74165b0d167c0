//! The lines of a file, numbered.

use std::path::Path;

use ampoule::{Error, Result};

/// Reads a sentence a line; blank lines are skipped.
///
/// # Errors
/// [`NotFound`](ampoule::ErrorKind::NotFound) if the file cannot be read,
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for a line that is not UTF-8.
pub fn read_lines(path: &Path) -> Result<Vec<String>> {
    let mut sentences = Vec::new();
    each(path, |_, line| {
        if !line.trim().is_empty() {
            sentences.push(line.to_owned());
        }
        Ok(())
    })?;
    Ok(sentences)
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
