//! What a teacher answered, kept for later epochs and runs.
//!
//! A file of entries, each under the hash of the question: the teacher, what was asked of it and the token ids. It holds no text and no ids,
//! but who has the teacher can tell whether a text that he guesses is in it: it is as confidential as the texts, and readable by its
//! owner alone. Files are read and not mapped: a mapped file that another process cuts short kills its reader.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ampoule::{Error, Result};
use sha2::{Digest, Sha256};

/// The beginning of the file: what it is, and the version of its format.
const MAGIC: [u8; 16] = *b"ampoule answers1";

type Key = [u8; 32];

/// What a teacher answered, as it is kept.
pub(crate) type Values = Vec<u8>;

/// Bytes of an entry before its values: the key, their number of bytes, and the beginning of the hash of key and values.
const HEADER: usize = 32 + 4 + 8;

/// A digest as text.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The answers of teachers.
pub(crate) struct Cache {
    max_bytes: u64,
    file: Mutex<Entries>,
    computed: AtomicUsize,
    found: AtomicUsize,
}

struct Entries {
    file: File,
    /// Where the values of a key begin, and their number of bytes.
    index: HashMap<Key, (u64, u32)>,
    /// The end of the last whole entry.
    end: u64,
    /// Not while another process adds to the file, nor once the disk was full: then it is only read.
    is_writer: bool,
}

impl Cache {
    /// Opens or makes the cache in `folder`. It grows to at most `max_bytes`.
    pub(crate) fn open(folder: &Path, max_bytes: u64) -> Result<Self> {
        make_private(folder).map_err(|e| Error::io(folder, e))?;
        let path = folder.join("answers.bin");
        let entries = Entries::open(&path)?;
        Ok(Cache { max_bytes, file: Mutex::new(entries), computed: AtomicUsize::new(0), found: AtomicUsize::new(0) })
    }

    /// How many sequences were computed and found since it was opened.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.computed.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed))
    }

    /// The values of each sequence: those kept, and those that `compute` gives of the others, which are kept then. Values are what was
    /// `asked`: the teacher's hash, and of what, in words.
    pub(crate) fn get_or_compute(
        &self,
        sequences: &[&[u32]],
        asked: &str,
        compute: impl FnOnce(&[&[u32]]) -> Result<Vec<Values>>,
    ) -> Result<Vec<Values>> {
        let keys: Vec<Key> = sequences.iter().map(|ids| key(ids, asked)).collect();
        let mut values: Vec<Option<Vec<u8>>> = {
            let mut entries = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            keys.iter().map(|key| entries.get(key)).collect()
        };
        let missing: Vec<usize> = (0..values.len()).filter(|&i| values[i].is_none()).collect();
        self.found.fetch_add(values.len() - missing.len(), Ordering::Relaxed);
        self.computed.fetch_add(missing.len(), Ordering::Relaxed);
        if !missing.is_empty() {
            let ids: Vec<&[u32]> = missing.iter().map(|&i| sequences[i]).collect();
            let computed = compute(&ids)?;
            let mut entries = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            for (&i, bytes) in missing.iter().zip(&computed) {
                entries.add(&keys[i], bytes, self.max_bytes);
            }
            missing.iter().zip(computed).for_each(|(&i, bytes)| values[i] = Some(bytes));
        }
        Ok(values.into_iter().flatten().collect())
    }
}

fn key(ids: &[u32], asked: &str) -> Key {
    let mut hash = Sha256::new().chain_update(asked);
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hash.finalize().into()
}

impl Entries {
    fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file = private(path).map_err(io)?;
        // A file system without locks keeps nobody from writing.
        let is_writer = !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        let length = file.metadata().map_err(io)?.len();
        if length == 0 && is_writer {
            file.write_all(&MAGIC).map_err(io)?;
        }
        let mut magic = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        (&mut file).take(MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        // Empty, another process has just made it.
        if magic != MAGIC && (is_writer || !magic.is_empty()) {
            return Err(Error::corrupt(format!(
                "{}: not a teacher's answers, or of another version of this program; delete it, or name another folder",
                path.display()
            )));
        }
        let mut entries = Entries { file, index: HashMap::new(), end: MAGIC.len() as u64, is_writer };
        entries.scan(length).map_err(io)?;
        Ok(entries)
    }

    /// Finds the entries of a file of `length` bytes. What a killed process left half written at its end is cut off, and what follows a
    /// damaged length too, since nothing says where the next entry begins.
    fn scan(&mut self, length: u64) -> std::io::Result<()> {
        let mut reader = std::io::BufReader::new(self.file.try_clone()?);
        reader.seek(SeekFrom::Start(self.end))?;
        let mut header = [0; HEADER];
        while self.end + HEADER as u64 <= length {
            reader.read_exact(&mut header)?;
            let (key, bytes) = parts(&header);
            let next = self.end + HEADER as u64 + u64::from(bytes);
            if next > length {
                break;
            }
            self.index.insert(key, (self.end + HEADER as u64, bytes));
            reader.seek_relative(i64::from(bytes))?;
            self.end = next;
        }
        if self.is_writer && self.end < length {
            self.file.set_len(self.end)?;
        }
        Ok(())
    }

    /// The values of an entry; none where there is none, or a damaged one, which is forgotten.
    fn get(&mut self, key: &Key) -> Option<Vec<u8>> {
        let (at, bytes) = *self.index.get(key)?;
        let mut values = vec![0; HEADER + bytes as usize];
        let read = self.file.seek(SeekFrom::Start(at - HEADER as u64)).and_then(|_| self.file.read_exact(&mut values));
        let header: Option<[u8; HEADER]> = values[..HEADER].try_into().ok();
        let values = values.split_off(HEADER);
        if read.is_err() || header != Some(self::header(key, &values)) {
            self.index.remove(key);
            return None;
        }
        Some(values)
    }

    fn add(&mut self, key: &Key, values: &[u8], max_bytes: u64) {
        let next = self.end + (HEADER + values.len()) as u64;
        if !self.is_writer || next > max_bytes || self.index.contains_key(key) {
            return;
        }
        let mut entry = header(key, values).to_vec();
        entry.extend_from_slice(values);
        if self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(&entry)).is_err() {
            // What a run cannot keep it computes again.
            self.is_writer = false;
            return;
        }
        self.index.insert(*key, (self.end + HEADER as u64, values.len() as u32));
        self.end = next;
    }
}

fn header(key: &Key, values: &[u8]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..32].copy_from_slice(key);
    header[32..36].copy_from_slice(&(values.len() as u32).to_le_bytes());
    header[36..].copy_from_slice(&Sha256::new().chain_update(key).chain_update(values).finalize()[..8]);
    header
}

/// The key of an entry, and the number of bytes of its values.
fn parts(header: &[u8; HEADER]) -> (Key, u32) {
    let (mut key, mut bytes) = ([0; 32], [0; 4]);
    key.copy_from_slice(&header[..32]);
    bytes.copy_from_slice(&header[32..36]);
    (key, u32::from_le_bytes(bytes))
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&[u32]; 3] = [&[2, 5, 3], &[2, 7, 3], &[2, 5, 7, 3]];

    fn answers(ids: &[&[u32]]) -> Vec<Vec<u8>> {
        ids.iter().map(|ids| ids.iter().flat_map(|id| id.to_le_bytes()).collect()).collect()
    }

    /// What the cache gives, and how many sequences it had computed for that.
    fn ask(cache: &Cache, ids: &[&[u32]], state: usize) -> (Vec<Vec<u8>>, usize) {
        let before = cache.counts().0;
        let values = cache.get_or_compute(ids, &format!("layer {state}"), |ids| Ok(answers(ids))).unwrap();
        (values, cache.counts().0 - before)
    }

    #[test]
    fn what_was_computed_once_is_found_and_another_question_is_computed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cache");
        let cache = Cache::open(&folder, 1 << 20).unwrap();
        assert_eq!(ask(&cache, &IDS[..2], 1), (answers(&IDS[..2]), 2));
        assert_eq!(ask(&cache, &IDS, 1), (answers(&IDS), 1));
        assert_eq!(ask(&cache, &IDS, 2), (answers(&IDS), 3));
        // While it is written by one, it is read by others.
        let second = Cache::open(&folder, 1 << 20).unwrap();
        assert_eq!(ask(&second, &IDS, 1), (answers(&IDS), 0));
        drop((cache, second));
        assert_eq!(ask(&Cache::open(&folder, 1 << 20).unwrap(), &IDS, 1), (answers(&IDS), 0));
        #[cfg(unix)]
        for (path, mode) in [(folder.clone(), 0o700), (folder.join("answers.bin"), 0o600)] {
            let found = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).unwrap().permissions());
            assert_eq!(found & 0o777, mode);
        }
    }

    #[test]
    fn a_file_cut_anywhere_or_with_any_byte_changed_gives_no_wrong_answer_and_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.bin");
        let open = || Cache::open(folder.path(), 1 << 20);
        ask(&open().unwrap(), &IDS, 1);
        let whole = fs::read(&path).unwrap();
        let check = |bytes: &[u8], is_magic_whole: bool| {
            fs::write(&path, bytes).unwrap();
            if !is_magic_whole {
                assert!(open().err().unwrap().to_string().contains("delete it"));
                return;
            }
            let (values, computed) = ask(&open().unwrap(), &IDS, 1);
            assert_eq!(values, answers(&IDS));
            assert_eq!(computed == 0, bytes == whole);
            assert_eq!(ask(&open().unwrap(), &IDS, 1), (answers(&IDS), 0));
        };
        for at in 0..=whole.len() {
            check(&whole[..at], at == 0 || at >= MAGIC.len());
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            check(&bytes, at >= MAGIC.len());
        }
    }

    #[test]
    fn a_full_cache_still_answers() {
        let folder = tempfile::tempdir().unwrap();
        let most = (MAGIC.len() + HEADER + 12) as u64;
        let cache = Cache::open(folder.path(), most).unwrap();
        assert_eq!(ask(&cache, &IDS, 1), (answers(&IDS), 3));
        assert_eq!(ask(&cache, &IDS, 1), (answers(&IDS), 2));
        assert_eq!(fs::metadata(folder.path().join("answers.bin")).unwrap().len(), most);
    }
}
