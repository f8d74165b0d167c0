//! `pytorch_model.bin`: the ZIP archives of torch 1.6 and later, and the streams from before.
//!
//! Both are a pickle that describes tensors as views of storages, with the storages' raw bytes beside it. The pickle is
//! [read](machine), never executed. What torch writes is laid down in its `torch/serialization.py` (`_save`,
//! `_legacy_save`). As in torch, the ZIP archive's check sums are not looked at: torch writes archives without them on
//! request.

mod machine;
mod source;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use machine::{Heap, Value, View};
use source::{Source, unreadable};

/// How a pre-1.6 stream begins: a pickle, of protocol 2, of torch's magic number, a whole number of 10 bytes.
const MAGIC: [u8; 15] = *b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The only version that such a stream ever had.
const PROTOCOL_VERSION: i64 = 1001;

/// What `torch.save` and training scripts wrap a state dict in.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// Elements that are read from the file at a time.
const CHUNK: usize = 1 << 14;

/// The element type of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl DType {
    /// That of torch's storage class of this name.
    fn of_storage(name: &str) -> Option<Self> {
        Some(match name {
            "DoubleStorage" => DType::F64,
            "FloatStorage" => DType::F32,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "IntStorage" => DType::I32,
            "ShortStorage" => DType::I16,
            "CharStorage" => DType::I8,
            "ByteStorage" => DType::U8,
            "BoolStorage" => DType::Bool,
            _ => return None,
        })
    }

    /// Bytes of an element.
    fn size(self) -> u64 {
        match self {
            DType::F64 | DType::I64 => 8,
            DType::F32 | DType::I32 => 4,
            DType::F16 | DType::BF16 | DType::I16 => 2,
            DType::I8 | DType::U8 | DType::Bool => 1,
        }
    }

    /// The numbers that little-endian `bytes` hold; none for integers.
    fn widen(self, bytes: &[u8], numbers: &mut Vec<f32>) {
        let halves = || bytes.as_chunks::<2>().0.iter();
        match self {
            DType::F64 => numbers.extend(bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
            DType::F32 => numbers.extend(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b))),
            DType::F16 => numbers.extend(halves().map(|&b| half::f16::from_le_bytes(b).to_f32())),
            DType::BF16 => numbers.extend(halves().map(|&b| half::bf16::from_le_bytes(b).to_f32())),
            DType::I64 | DType::I32 | DType::I16 | DType::I8 | DType::U8 | DType::Bool => {}
        }
    }

    fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }
}

/// A file of torch's tensors, of which the numbers stay in the file until they are asked for.
pub(crate) struct TorchFile<R = File> {
    reader: RefCell<R>,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor's place in the file. Nothing in it points beyond the file.
struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    /// In elements; 0 for dimensions of size 1.
    strides: Vec<usize>,
    /// The byte at which its first element lies.
    start: u64,
    /// Elements from its first to its last in the file, both counted.
    span: usize,
}

impl TorchFile<File> {
    /// Reads the description of the tensors, and checks it against the file.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) where the file cannot be read, [`Corrupt`](crate::ErrorKind::Corrupt)
    /// with the byte at which it is damaged or cut short, [`Incompatible`](crate::ErrorKind::Incompatible) for a pickle
    /// that names anything but tensors and plain containers, and for big-endian, compressed or encrypted files.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = super::open_regular(path)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).display();
        TorchFile::read(file).map_err(|e| e.context(name))
    }
}

impl<R: Read + Seek> TorchFile<R> {
    fn read(mut reader: R) -> Result<Self> {
        let len = reader.seek(SeekFrom::End(0)).map_err(|e| unreadable(0, e))?;
        let magic: [u8; 4] = Source::open(&mut reader, 0, len)?.array()?;
        let tensors = match magic {
            [b'P', b'K', 3, 4] => read_zip(&mut BufReader::new(&mut reader), len)?,
            [0x80, ..] => read_stream(&mut BufReader::new(&mut reader), len)?,
            _ => {
                return Err(Error::corrupt(
                    "byte 0: neither a ZIP archive nor a pickle, as torch writes them; fetch the file again",
                ));
            }
        };
        Ok(TorchFile { reader: RefCell::new(reader), tensors })
    }

    /// Every tensor's name and shape, in the names' order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()))
    }

    /// The numbers of the tensor `name` in row-major order, widened or rounded to f32.
    ///
    /// # Errors
    /// [`Incompatible`](crate::ErrorKind::Incompatible) for a tensor of integers,
    /// [`NotFound`](crate::ErrorKind::NotFound) for a name that is not there and for a file that can no longer be read.
    pub(crate) fn load_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::new(crate::ErrorKind::NotFound, format!("tensor {name:?} is not in the file")))?;
        self.load(tensor).map_err(|e| e.context(format_args!("tensor {name:?}")))
    }

    fn load(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let dtype = tensor.dtype;
        if !dtype.is_float() {
            return Err(Error::incompatible(format!("expected F32, F16, BF16 or F64, found {dtype:?}")));
        }
        let mut reader = self.reader.borrow_mut();
        let size = dtype.size();
        let mut source = Source::open(&mut *reader, tensor.start, tensor.span as u64 * size)?;
        let mut buffer = vec![0; tensor.span.min(CHUNK) * size as usize];
        let mut numbers = Vec::with_capacity(tensor.span);
        while numbers.len() < tensor.span {
            let count = (tensor.span - numbers.len()).min(CHUNK);
            let bytes = &mut buffer[..count * size as usize];
            source.fill(bytes)?;
            dtype.widen(bytes, &mut numbers);
        }
        Ok(if tensor.is_contiguous() { numbers } else { tensor.gather(&numbers) })
    }
}

impl Tensor {
    /// The tensor that `view` describes, of a storage of `dtype` that lies at byte `start` and holds `count` elements.
    fn new(view: &View, dtype: DType, start: u64, count: u64) -> Result<Self> {
        let elements = view.shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64));
        let beyond = || {
            Error::corrupt(format!(
                "shape {:?}, strides {:?} and offset {} reach beyond a storage of {count} elements",
                view.shape, view.strides, view.offset
            ))
        };
        // More elements than the storage has would be a small file's way to large allocations.
        let elements = elements.filter(|&n| n <= count).ok_or_else(beyond)?;
        let mut strides = view.strides.clone();
        let mut span = 0u64;
        if elements > 0 {
            let mut last = view.offset;
            for (stride, &size) in strides.iter_mut().zip(&view.shape) {
                if size == 1 {
                    *stride = 0;
                }
                let step = (*stride as u64).checked_mul(size as u64 - 1);
                last = step.and_then(|step| last.checked_add(step)).ok_or_else(beyond)?;
            }
            if last >= count {
                return Err(beyond());
            }
            span = last - view.offset + 1;
        } else if view.offset > count {
            return Err(beyond());
        }
        Ok(Tensor {
            dtype,
            shape: view.shape.clone(),
            strides,
            start: start + view.offset * dtype.size(),
            span: usize::try_from(span).map_err(|_| beyond())?,
        })
    }

    fn is_contiguous(&self) -> bool {
        if self.span == 0 {
            return true;
        }
        let mut expected = 1;
        for (&size, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if size != 1 && stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    /// The elements in row-major order, from those of the span.
    fn gather(&self, numbers: &[f32]) -> Vec<f32> {
        let count = self.shape.iter().product();
        let mut gathered = Vec::with_capacity(count);
        let mut index = vec![0; self.shape.len()];
        let mut place = 0;
        for _ in 0..count {
            gathered.push(numbers[place]);
            for (i, (&size, &stride)) in index.iter_mut().zip(self.shape.iter().zip(&self.strides)).rev() {
                *i += 1;
                place += stride;
                if *i < size {
                    break;
                }
                place -= stride * size;
                *i = 0;
            }
        }
        gathered
    }
}

/// Refuses an archive of more entries than its bytes could hold tensors, before the ZIP reader makes room for them.
fn refuse_crowd<R: Read + Seek>(reader: &mut R, len: u64) -> Result<()> {
    /// Bytes that the reader holds for an entry; torch's own take as much in the file, small archives aside.
    const ENTRY: u64 = 350;
    const SMALL: u64 = 2 << 20;
    /// The end record and the longest comment behind it, and the end record of ZIP64 before.
    const END: u64 = 22 + 65_535 + 76;
    let failed = |e: std::io::Error| Error::corrupt(format!("the ZIP archive cannot be read: {e}")).with_source(e);
    reader.seek(SeekFrom::Start(len.saturating_sub(END))).map_err(failed)?;
    let mut end = Vec::new();
    reader.take(END).read_to_end(&mut end).map_err(failed)?;
    reader.seek(SeekFrom::Start(0)).map_err(failed)?;
    // Every place that could be an end record is looked at, whichever the reader will take.
    let claimed = |mark: &[u8], at: usize, width: usize| {
        end.windows(mark.len().max(1))
            .enumerate()
            .filter(|(_, bytes)| *bytes == mark)
            .filter_map(|(i, _)| end.get(i + at..i + at + width))
            .map(|count| count.iter().rev().fold(0u64, |n, &byte| n << 8 | u64::from(byte)))
            .filter(|&count| count != 0xFFFF || width > 2)
            .max()
    };
    let most = len.max(SMALL) / ENTRY;
    match claimed(b"PK\x05\x06", 10, 2).max(claimed(b"PK\x06\x06", 32, 8)) {
        Some(count) if count > most => Err(Error::corrupt(format!(
            "the ZIP archive claims {count} entries in {len} bytes, and at most {most} could be tensors"
        ))),
        _ => Ok(()),
    }
}

/// The tensors of a ZIP archive: `X/data.pkl`, and a storage `X/data/KEY` each, uncompressed.
fn read_zip<R: Read + Seek>(reader: &mut R, len: u64) -> Result<BTreeMap<String, Tensor>> {
    let damaged = |e: zip::result::ZipError| Error::corrupt(format!("the ZIP archive is damaged: {e}")).with_source(e);
    refuse_crowd(reader, len)?;
    let mut archive = ZipArchive::new(&mut *reader).map_err(damaged)?;
    if archive.has_duplicate_names() {
        return Err(Error::corrupt("the ZIP archive holds two entries of one name"));
    }
    // First byte and length of every entry.
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(damaged)?;
        let name = entry.name().map_err(damaged)?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(Error::incompatible(format!(
                "ZIP entry {name:?} is compressed or encrypted, unlike those of torch; save the file again with torch"
            )));
        }
        let start = entry.data_start().unwrap_or(len);
        let size = entry.size();
        if size != entry.compressed_size() || start.checked_add(size).is_none_or(|end| end > len) {
            return Err(Error::corrupt(format!(
                "ZIP entry {name:?}: {size} bytes from byte {start}, and the file has {len}"
            )));
        }
        entries.insert(name, (start, size));
    }
    drop(archive);

    let mut pickles = entries.iter().filter_map(|(name, &place)| Some((name.strip_suffix("/data.pkl")?, place)));
    let (folder, (start, size)) = match (pickles.next(), pickles.next()) {
        (Some(one), None) => one,
        _ => return Err(Error::corrupt("expected one `data.pkl` in the ZIP archive, as torch.save writes it")),
    };
    if let Some(&(start, size)) = entries.get(&format!("{folder}/byteorder"))
        && Source::open(&mut *reader, start, size)?.bytes(size.min(6))? != b"little"
    {
        return Err(big_endian());
    }
    let (root, heap) = machine::read(&mut Source::open(&mut *reader, start, size)?, len)?;
    let mut starts = Vec::new();
    for storage in &heap.storages {
        let name = format!("{folder}/data/{}", storage.key);
        let &(start, size) = entries
            .get(&name)
            .ok_or_else(|| Error::corrupt(format!("ZIP entry {name:?} is missing, and the pickle names it")))?;
        let expected = storage.count.checked_mul(storage.dtype.size());
        if expected.is_none_or(|expected| size < expected) {
            return Err(Error::corrupt(format!(
                "ZIP entry {name:?} at byte {start}: expected {} elements of {:?}, found {size} bytes",
                storage.count, storage.dtype
            )));
        }
        starts.push(start);
    }
    locate(root, &heap, &starts)
}

/// The tensors of a pre-1.6 stream: pickles of a magic number, a version, the writer's system, the tensors and the
/// storages' keys; then each storage's number of elements and its bytes.
fn read_stream<R: Read + Seek>(reader: &mut R, len: u64) -> Result<BTreeMap<String, Tensor>> {
    let mut source = Source::open(reader, 0, len)?;
    if source.array()? != MAGIC {
        return Err(Error::corrupt("byte 0: a pickle, but not one that torch wrote: its magic number is not there"));
    }
    let at = source.position();
    let (version, _) = machine::read(&mut source, len)?;
    if version != Value::Int(PROTOCOL_VERSION) {
        return Err(Error::incompatible(format!("byte {at}: a stream of another version than {PROTOCOL_VERSION}")));
    }
    let (system, heap) = machine::read(&mut source, len)?;
    let is_big_endian = |(name, value)| name == "little_endian" && value != Value::Bool(true);
    if heap.entries(system).is_some_and(|mut entries| entries.any(is_big_endian)) {
        return Err(big_endian());
    }
    let (root, heap) = machine::read(&mut source, len)?;
    let keys_at = source.position();
    let (keys, names) = machine::read(&mut source, len)?;
    let keys = names
        .items(keys)
        .ok_or_else(|| Error::corrupt(format!("byte {keys_at}: expected the list of the storages' keys")))?;

    let places: HashMap<&str, usize> = heap.storages.iter().enumerate().map(|(i, s)| (s.key.as_str(), i)).collect();
    let mut starts = vec![None; heap.storages.len()];
    for &key in keys {
        let at = source.position();
        let place = names.str(key).and_then(|key| places.get(key)).copied();
        let (storage, start) = place
            .and_then(|place| Some((heap.storages.get(place)?, starts.get_mut(place)?)))
            .ok_or_else(|| Error::corrupt(format!("byte {at}: a storage that no tensor has")))?;
        let count = u64::from_le_bytes(source.array()?);
        if count != storage.count || start.is_some() {
            return Err(Error::corrupt(format!(
                "byte {at}: a storage of {count} elements, expected once, with {}",
                storage.count
            )));
        }
        *start = Some(source.position());
        let size = count.checked_mul(storage.dtype.size());
        source.skip(size.ok_or_else(|| Error::corrupt(format!("byte {at}: a storage of {count} elements")))?)?;
    }
    let starts: Option<Vec<u64>> = starts.into_iter().collect();
    let starts =
        starts.ok_or_else(|| Error::corrupt(format!("byte {keys_at}: the list of the storages' keys is not whole")))?;
    locate(root, &heap, &starts)
}

fn big_endian() -> Error {
    Error::incompatible("the file is big-endian, which is not supported; save it again on a little-endian machine")
}

/// The tensors of a state dict, or of one inside a dict of a training script, checked against their storages, which lie
/// at the bytes `starts`.
fn locate(root: Value, heap: &Heap, starts: &[u64]) -> Result<BTreeMap<String, Tensor>> {
    let has_tensors = |dict| {
        heap.entries(dict).is_some_and(|mut entries| entries.any(|(_, value)| matches!(value, Value::Tensor(_))))
    };
    let inside = || {
        WRAPPERS.iter().find_map(|&wrapper| {
            let (_, dict) = heap.entries(root)?.find(|&(name, dict)| name == wrapper && has_tensors(dict))?;
            Some(dict)
        })
    };
    let dict = if has_tensors(root) { Some(root) } else { inside() };
    let entries = dict.and_then(|dict| heap.entries(dict)).ok_or_else(|| {
        Error::incompatible(format!(
            "expected a dict of tensors, or one under {WRAPPERS:?}; nothing of the kind is there"
        ))
    })?;
    let mut tensors = BTreeMap::new();
    for (name, value) in entries {
        let Value::Tensor(place) = value else { continue };
        let found = heap
            .tensors
            .get(place)
            .and_then(|view| Some((view, heap.storages.get(view.storage)?, *starts.get(view.storage)?)));
        let (view, storage, start) = found.ok_or_else(|| Error::internal(format!("tensor {name:?} has no storage")))?;
        let tensor = Tensor::new(view, storage.dtype, start, storage.count)
            .map_err(|e| e.context(format_args!("tensor {name:?}")))?;
        if tensors.insert(name.to_owned(), tensor).is_some() {
            return Err(Error::corrupt(format!("tensor {name:?} is there twice")));
        }
    }
    Ok(tensors)
}
