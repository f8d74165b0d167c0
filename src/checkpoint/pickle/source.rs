//! A file's bytes in order, each count checked against what is there before anything is allocated.

use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom};

use crate::error::{Error, ErrorKind, Result};

/// A pickle has a line for each half of a global's name; longer ones name nothing that is known.
pub(super) const MAX_LINE: usize = 256;

/// A part of a file, read in order.
pub(super) struct Source<R> {
    reader: R,
    position: u64,
    end: u64,
}

impl<R: Read> Source<R> {
    /// Where in the file the next byte lies.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    fn claim(&mut self, count: u64) -> Result<u64> {
        let start = self.position;
        match start.checked_add(count).filter(|&end| end <= self.end) {
            Some(end) => self.position = end,
            None => {
                return Err(Error::corrupt(format!(
                    "byte {start}: {count} more bytes expected, {} are there",
                    self.end.saturating_sub(start)
                )));
            }
        }
        Ok(start)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// The next `bytes.len()` bytes.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        let start = self.claim(bytes.len() as u64)?;
        self.reader.read_exact(bytes).map_err(|e| unreadable(start, e))
    }

    /// The next `count` bytes; `count` is checked against what is there before anything is allocated.
    pub(super) fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        let start = self.claim(count)?;
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| too_large(start))?];
        self.reader.read_exact(&mut bytes).map_err(|e| unreadable(start, e))?;
        Ok(bytes)
    }

    /// The next `count` bytes as UTF-8.
    pub(super) fn text(&mut self, count: u64) -> Result<String> {
        let start = self.position;
        String::from_utf8(self.bytes(count)?)
            .map_err(|_| Error::corrupt(format!("byte {start}: a string is not UTF-8")))
    }

    /// The bytes before the next line feed, which is passed over.
    pub(super) fn line(&mut self) -> Result<String> {
        let start = self.position;
        let mut line = Vec::new();
        loop {
            match self.array()? {
                [b'\n'] => break,
                [byte] => line.push(byte),
            }
            if line.len() > MAX_LINE {
                return Err(Error::corrupt(format!("byte {start}: a line of over {MAX_LINE} bytes")));
            }
        }
        String::from_utf8(line).map_err(|_| Error::corrupt(format!("byte {start}: a line is not UTF-8")))
    }
}

impl<R: Read + Seek> Source<R> {
    /// The `count` bytes from byte `position` of the file `reader`, as far as they are there.
    pub(super) fn open(mut reader: R, position: u64, count: u64) -> Result<Self> {
        reader.seek(SeekFrom::Start(position)).map_err(|e| unreadable(position, e))?;
        Ok(Source { reader, position, end: position.saturating_add(count) })
    }

    /// Passes over the next `count` bytes, which must be there.
    pub(super) fn skip(&mut self, count: u64) -> Result<()> {
        let start = self.claim(count)?;
        self.reader.seek(SeekFrom::Start(self.position)).map(|_| ()).map_err(|e| unreadable(start, e))
    }
}

/// A read of the file that failed at byte `position`.
pub(super) fn unreadable(position: u64, e: std::io::Error) -> Error {
    let kind = match e.kind() {
        IoErrorKind::UnexpectedEof => ErrorKind::Corrupt,
        _ => ErrorKind::NotFound,
    };
    Error::new(kind, format!("byte {position}: cannot be read: {e}")).with_source(e)
}

pub(super) fn too_large(position: u64) -> Error {
    Error::corrupt(format!("byte {position}: a length that no memory holds"))
}
