//! The bundle: one file that holds a whole model for the device. This page is the format's specification, version 1.0.
//!
//! # Container
//! A bundle is a [safetensors](https://github.com/huggingface/safetensors) file: eight bytes of header length (u64,
//! little-endian), a JSON header, the data section. On top of safetensors' own rules
//!
//! * the header is padded with spaces, so that the data section starts at a multiple of 8 bytes of the file;
//! * the writer sorts the header's keys, and lays tensors out by falling element size, then by name: the same input gives the
//!   same bytes; the reader accepts any order;
//! * tensors have one or two dimensions, of a type of [`Dtype`], little-endian and row-major; each begins at a multiple of its
//!   element size within the data section; they follow one another without gap or overlap, and the file ends with the last;
//! * keys and tensor names are printable ASCII and stand once in their object; the limits are [`MAX_HEADER_BYTES`],
//!   [`MAX_TENSORS`], [`MAX_NAME_BYTES`], [`MAX_METADATA_ENTRIES`] and [`MAX_CONFIG_BYTES`].
//!
//! A reader assumes nothing about the address at which a bundle lies in memory or in another file (an APK).
//!
//! # Metadata
//! `__metadata__` maps names to strings:
//!
//! | name | value |
//! |---|---|
//! | `format` | `ampoule` |
//! | `format_version` | `MAJOR.MINOR`; another major version and a newer minor one are refused |
//! | `task` | `encoder`, `token-classification`, `single-label-classification`, `multi-label-classification` |
//! | `config` | a Hugging Face `config.json` without its labels |
//! | `labels` | a JSON array of the label names, in the order of the head's outputs; empty for an encoder |
//! | `precision` | `f32`, `f16`, `int8`: the narrowest type of a matrix |
//! | `pooling`, `normalize` | `mean`, `cls` or `max`; `true` or `false`: how token vectors become a text's vector |
//! | `temperature` | what logits are divided by before they become probabilities: a positive normal number |
//! | `max_tokens` | the most tokens of a window, special ones counted; absent: as many as the model has positions |
//! | `producer`, `licence` | who wrote the file, and the terms of the weights |
//! | `source_sha256` | [`weights_sha256`] of the weights before they were narrowed |
//! | `data_sha256` | SHA-256 of the data section, compared when the reader is asked to verify |
//! | `header_sha256` | SHA-256 of the header as it stands, padding included, with this value's 64 digits as zeros; always compared |
//!
//! Digests are 64 lower-case hexadecimal digits.
//!
//! # Tensors
//! * Those of [`ModelConfig::tensors`], under those names: Hugging Face's for BERT, without a prefix, linear weights `[out, in]`.
//!   Vectors (biases, norms) are F32. A matrix is F32, F16 or I8, never narrower than `precision`. With `f16` every
//!   matrix is F16; with `int8` the linear weights and the word embedding are I8, and the position and token-type
//!   embeddings, which are small and added to every token, F16, unless a matrix is kept wider.
//! * An I8 matrix `X`, `[rows, columns]`, comes with `X.scale`, F32, `[rows]`. That of a linear layer of the encoder may come with
//!   `X.pre_quant_scale`, F32, `[columns]`; a layer's query, key and value have the same, or none has one.
//! * `tokenizer.json`, U8: the file of Hugging Face's `tokenizers`.
//! * `ampoule.optional.*`, and metadata of such names, may be ignored by a reader that does not know them. Known are
//!   `ampoule.optional.card`, U8, a model card in UTF-8, and the [golden cases](Golden):
//!   `ampoule.optional.golden.ids`, U8: for each case the number of its token ids, then the ids, each a u32, little-endian;
//!   `ampoule.optional.golden.floats`, F32, and, where `precision` is `int8`, `ampoule.optional.golden.integers`, F32: the answers, case
//!   after case, computed with floats alone and under the integer contract. Every other tensor and every other metadata name is refused.
//!
//! Weights are finite; a scale and a factor of `pre_quant_scale` are positive normal numbers of which 127 times is finite, and so is 127
//! times a scale times a factor of its matrix; no I8 weight is -128. What breaks a rule is refused when the file is opened: an open
//! bundle is sound.
//!
//! # The integer contract
//! For every kernel on every machine, and for training that imitates them. All arithmetic named here is IEEE 754 binary32,
//! round to nearest even.
//!
//! * **Symmetric.** A value `x` is stored as an integer `q` in -127..=127 and a `scale`, and stands for `q as f32 * scale`.
//!   There is no zero point, and -128 does not occur, so that no product pair and no negation can saturate.
//! * **Quantizing a row** of values: `scale = max|x| / 127`; `q = round(x * (1 / scale))`, halves to even. Three roundings bring
//!   no `q` over 127. Where that scale is below the smallest normal number (rows of zeros among them), the scale is 1 and
//!   every `q` is 0: no kernel meets a subnormal scale.
//! * **Weights** are quantized per output channel, a row of `[out, in]`; the word embedding per row of its table.
//! * **Activations** are quantized dynamically, each row (token) of `[tokens, in]` by its own largest magnitude. Where the weights
//!   have a `pre_quant_scale`, each value is multiplied by its column's factor first, and the weights stand for those of the model
//!   divided by it: inputs with outliers leave the others more of the range (SmoothQuant, Xiao et al. 2022).
//! * **Sums** `Σ q_x · q_w` over `in` are exact in i32, whatever their order: each product is at most 127², so `in` is at most
//!   [`MAX_INNER`], which reader and writer check. They are therefore the same bits on every machine.
//! * **The result** is `sum as f32 * (scale_x * scale_w) + bias`, in this order, the last two operations not fused. A
//!   look-up in the word embedding is `q as f32 * scale`.
//!
//! With a kernel of ours the runtime computes the encoder's linear layers of an int8 bundle so. Its head, and all of it on a GPU or by Burn's
//! back ends, is computed with weights widened to floats, and activations that stay floats.

mod check;
mod golden;
mod header;
mod info;
mod int8;
mod write;

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Mmap, MmapOptions};
use sha2::{Digest, Sha256};

pub(crate) use self::check::is_temperature;
pub use self::golden::{Golden, MAX_GOLDEN_TOKENS};
pub use self::info::{BundleInfo, Dtype, Load, Metadata, Pooling, PoolingMode, Precision, TensorInfo};
pub use self::int8::{MAX_INNER, dequantize_rows, quantize_rows, with_same_inputs};
pub use self::write::{BundleSpec, Staged, size, stage, stage_with_golden, weights_sha256, write};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Int8, Integers, ModelConfig, Values, WeightSource};

/// The version of the format that is written; versions `1.0` to this one are read.
pub const FORMAT_VERSION: (u32, u32) = (1, 0);
/// Chemicals and diseases; the card is beside it.
#[cfg(feature = "embedded")]
static EMBEDDED: &[u8] = include_bytes!("../models/clinical-en.int8.safetensors");
/// The longest header.
pub const MAX_HEADER_BYTES: u64 = 16 << 20;
/// The most tensors.
pub const MAX_TENSORS: usize = 16_384;
/// The longest name of a tensor or of a metadata entry.
pub const MAX_NAME_BYTES: usize = 256;
/// The most metadata entries.
pub const MAX_METADATA_ENTRIES: usize = 64;
/// The longest `config`; its labels stand apart.
pub const MAX_CONFIG_BYTES: usize = 8 << 10;

/// An open bundle: checked header and data.
pub struct Bundle {
    info: BundleInfo,
    data: Data,
}

/// Bytes in memory or in a mapped file, kept by whoever uses them.
pub(crate) type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The data section.
enum Data {
    /// The bytes of a bundle or of its data section, which begins at the second value.
    Memory(SharedBytes, usize),
    /// A file, in which it begins at the second value. A tensor is read when it is wanted, and checked again.
    File(Mutex<File>, u64),
}

/// Bytes that are read at once where they are looked at and not kept. A multiple of every element's size.
const CHUNK: usize = 1 << 16;

impl Data {
    /// Hands on `len` bytes from byte `begin`, in chunks.
    fn each_chunk(&self, begin: usize, len: usize, f: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Data::Memory(bytes, start) => within((**bytes).as_ref(), start + begin, len)?.chunks(CHUNK).try_for_each(f),
            Data::File(file, start) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start + begin as u64)).map_err(unreadable)?;
                let mut buffer = vec![0; CHUNK.min(len)];
                for first in (0..len).step_by(CHUNK) {
                    let chunk = &mut buffer[..CHUNK.min(len - first)];
                    file.read_exact(chunk).map_err(unreadable)?;
                    f(chunk)?;
                }
                Ok(())
            }
        }
    }

    /// The bytes of a tensor.
    fn tensor(&self, tensor: &TensorInfo) -> Result<Cow<'_, [u8]>> {
        let (file, start) = match self {
            Data::Memory(bytes, start) => {
                return within((**bytes).as_ref(), start + tensor.begin, tensor.bytes).map(Cow::Borrowed);
            }
            Data::File(file, start) => (file, start + tensor.begin as u64),
        };
        let mut all = Vec::new();
        all.try_reserve_exact(tensor.bytes).map_err(|e| {
            Error::internal(format!("no memory for {} bytes; map the file instead", tensor.bytes)).with_source(e)
        })?;
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
        file.by_ref().take(tensor.bytes as u64).read_to_end(&mut all).map_err(unreadable)?;
        if all.len() != tensor.bytes {
            return Err(Error::corrupt(CUT_SHORT));
        }
        check::values(tensor, 0, &all)?;
        Ok(all.into())
    }
}

const CUT_SHORT: &str = "the file was cut short while it was read";

fn within(bytes: &[u8], begin: usize, len: usize) -> Result<&[u8]> {
    let part = bytes.get(begin..).and_then(|rest| rest.get(..len));
    part.ok_or_else(|| Error::corrupt("a bundle tensor lies outside the data section"))
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("task", &self.info.metadata.config.task)
            .field("precision", &self.info.metadata.precision)
            .field("bytes", &self.info.bytes)
            .finish_non_exhaustive()
    }
}

impl Bundle {
    /// Opens the bundle at `path`. With `verify` the data section is compared with its digest.
    ///
    /// # Errors
    /// Each names the file. [`NotFound`](ErrorKind::NotFound) where it cannot be read; [`Corrupt`](ErrorKind::Corrupt) where it
    /// is damaged or breaks a rule of the [format](self); [`Incompatible`](ErrorKind::Incompatible) where it is no bundle,
    /// or is of another version or architecture.
    pub fn open(path: &Path, load: Load, verify: bool) -> Result<Self> {
        let (file, len) = open_file(path)?;
        Self::read(file, 0, len, load, verify, true).map_err(|e| e.context(path.display()))
    }

    /// The same for a reader that takes every tensor at once: what is copied is checked as it is taken, and so read once.
    pub(crate) fn open_to_take(path: &Path, load: Load, verify: bool) -> Result<Self> {
        let (file, len) = open_file(path)?;
        Self::read(file, 0, len, load, verify, false).map_err(|e| e.context(path.display()))
    }

    /// Opens the bundle that takes `len` bytes from byte `offset` of the file at `path`, such as an APK.
    ///
    /// # Errors
    /// As [`Bundle::open`]; [`InvalidInput`](ErrorKind::InvalidInput) where the file ends earlier.
    pub fn open_at(path: &Path, offset: u64, len: u64, load: Load, verify: bool) -> Result<Self> {
        let (file, file_len) = open_file(path)?;
        if offset.checked_add(len).is_none_or(|end| end > file_len) {
            return Err(Error::invalid_input(format!(
                "{}: {len} bytes from byte {offset} were asked for, and the file has {file_len}",
                path.display()
            )));
        }
        Self::read(file, offset, len, load, verify, true)
            .map_err(|e| e.context(format_args!("{} at byte {offset}", path.display())))
    }

    /// Opens a bundle in memory. Borrowed bytes (`include_bytes!`) are not copied.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>, verify: bool) -> Result<Self> {
        let Bundle { info, data } = Self::unchecked(bytes.into())?;
        Self::checked(info, data, verify, true)
    }

    /// The same without a look at the values, which brings all of them into memory: for the bundle that this crate carries, whose
    /// values the tests check.
    fn unchecked(bytes: Cow<'static, [u8]>) -> Result<Self> {
        let header_len = header_len(bytes.get(..8), bytes.len() as u64)?;
        let info = check::read(within(&bytes, 8, header_len)?, bytes.len() as u64)?;
        Ok(Bundle { info, data: Data::Memory(Arc::new(bytes), 8 + header_len) })
    }

    /// The bundle that this crate carries: chemicals and diseases in English text.
    ///
    /// # Errors
    /// None is expected.
    #[cfg(feature = "embedded")]
    pub fn embedded() -> Result<Self> {
        Self::unchecked(EMBEDDED.into())
    }

    /// The header of the bundle at `path`; its data is neither read nor checked.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn inspect(path: &Path) -> Result<BundleInfo> {
        let (mut file, len) = open_file(path)?;
        read_info(&mut file, len).map(|(info, _)| info).map_err(|e| e.context(path.display()))
    }

    fn read(mut file: File, offset: u64, len: u64, load: Load, verify: bool, with_values: bool) -> Result<Self> {
        file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
        let (info, header_len) = read_info(&mut file, len)?;
        let data_len = usize::try_from(len - header_len)
            .map_err(|_| Error::incompatible(format!("{len} bytes are more than this machine can address")))?;
        // Looked at through the file, so that what is mapped costs no memory before it is used.
        let start = offset + header_len;
        let map = match load {
            Load::Map => Some(map(&file, start, data_len).map_err(unreadable)?),
            Load::Copy => None,
        };
        // A map is not looked at again when tensors are taken.
        let with_values = with_values || map.is_some();
        let mut bundle = Self::checked(info, Data::File(Mutex::new(file), start), verify, with_values)?;
        if let Some(map) = map {
            bundle.data = Data::Memory(Arc::new(map), 0);
        }
        Ok(bundle)
    }

    fn checked(info: BundleInfo, data: Data, verify: bool, with_values: bool) -> Result<Self> {
        if verify {
            let mut hash = Sha256::new();
            let len = info.tensors.iter().map(|t| t.bytes).sum();
            data.each_chunk(0, len, &mut |chunk| {
                hash.update(chunk);
                Ok(())
            })?;
            let found = hex(&hash.finalize());
            if found != info.data_sha256 {
                return Err(Error::corrupt(format!(
                    "bundle data section: expected SHA-256 {}, found {found}; fetch or make the file again",
                    info.data_sha256
                )));
            }
        }
        for tensor in info.tensors.iter().filter(|_| with_values) {
            let mut first = 0;
            data.each_chunk(tensor.begin, tensor.bytes, &mut |chunk| {
                check::values(tensor, first, chunk)?;
                first += chunk.len() / tensor.dtype.size();
                Ok(())
            })?;
        }
        let bundle = Bundle { info, data };
        bundle.check_factors()?;
        Ok(bundle)
    }

    /// What a `pre_quant_scale` has to do with other tensors.
    fn check_factors(&self) -> Result<()> {
        let floats = |name: &str| match self.info.tensor(name) {
            Some(tensor) => Ok(Some(f32s(&self.data.tensor(tensor)?).collect::<Vec<f32>>())),
            None => Ok(None),
        };
        for tensor in &self.info.tensors {
            let Some(matrix) = tensor.name.strip_suffix(".pre_quant_scale") else { continue };
            let largest = |name: &str| Ok(floats(name)?.unwrap_or_default().into_iter().fold(0.0f32, f32::max));
            if !(127.0 * largest(&check::scale_name(matrix))? * largest(&tensor.name)?).is_finite() {
                return Err(Error::corrupt(format!(
                    "bundle tensor {:?}: times the scales it has to be finite; make the file again",
                    tensor.name
                )));
            }
            let here = floats(&tensor.name)?;
            for other in with_same_inputs(matrix) {
                if floats(&check::pre_quant_scale_name(&other))? != here {
                    return Err(Error::corrupt(format!(
                        "bundle tensor {:?}: expected the same of {other}, which meets the same inputs; make the file again",
                        tensor.name
                    )));
                }
            }
        }
        Ok(())
    }

    /// What the header says.
    pub fn info(&self) -> &BundleInfo {
        &self.info
    }

    /// What it says about the model.
    pub fn metadata(&self) -> &Metadata {
        &self.info.metadata
    }

    /// The model's shape, task and labels.
    pub fn config(&self) -> &ModelConfig {
        &self.info.metadata.config
    }

    /// The narrowest type of a matrix.
    pub fn precision(&self) -> Precision {
        self.info.metadata.precision
    }

    /// The `tokenizer.json`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) or [`Corrupt`](ErrorKind::Corrupt) where the file can no longer be read, or is shorter.
    pub fn tokenizer_json(&self) -> Result<Cow<'_, [u8]>> {
        self.tensor(check::TOKENIZER).map(|(_, bytes)| bytes)
    }

    /// The model card, if there is one.
    ///
    /// # Errors
    /// As [`tokenizer_json`](Self::tokenizer_json).
    pub fn card(&self) -> Result<Option<String>> {
        match self.info.tensor(check::CARD) {
            Some(tensor) => Ok(Some(String::from_utf8_lossy(&self.data.tensor(tensor)?).into_owned())),
            None => Ok(None),
        }
    }

    /// The weights, each widened to f32 when it is taken.
    pub fn weights(&self) -> BundleWeights<'_> {
        BundleWeights(self)
    }

    fn tensor(&self, name: &str) -> Result<(&TensorInfo, Cow<'_, [u8]>)> {
        let missing = || Error::corrupt(format!("bundle tensor {name:?} is missing"));
        let tensor = self.info.tensor(name).ok_or_else(missing)?;
        Ok((tensor, self.data.tensor(tensor)?))
    }
}

/// The weights of an open bundle.
#[derive(Debug)]
pub struct BundleWeights<'a>(&'a Bundle);

impl WeightSource for BundleWeights<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.take_values(name, shape).map(Values::into_floats)
    }

    fn take_values(&mut self, name: &str, shape: &[usize]) -> Result<Values> {
        let (tensor, bytes) = self.0.tensor(name)?;
        if tensor.shape != shape {
            return Err(Error::corrupt(format!(
                "bundle tensor {name:?}: expected {shape:?}, found {:?}",
                tensor.shape
            )));
        }
        Ok(match tensor.dtype {
            Dtype::F32 => Values::F32(f32s(&bytes).collect()),
            Dtype::F16 => Values::F32(f16s(&bytes).map(half::f16::to_f32).collect()),
            Dtype::I8 => {
                let (_, scales) = self.0.tensor(&check::scale_name(name))?;
                let integers = match &self.0.data {
                    Data::Memory(all, start) => Integers::shared(all.clone(), start + tensor.begin, tensor.bytes),
                    Data::File(..) => Integers::from(bytemuck::cast_vec::<u8, i8>(bytes.into_owned())),
                };
                let factors = check::pre_quant_scale_name(name);
                let pre_quant_scale = match self.0.info.tensor(&factors) {
                    Some(factors) => Some(f32s(&self.0.data.tensor(factors)?).collect()),
                    None => None,
                };
                Values::Int8(Int8 { integers, scales: f32s(&scales).collect(), pre_quant_scale })
            }
            Dtype::U8 => return Err(Error::invalid_input(format!("bundle tensor {name:?} holds no weights"))),
        })
    }
}

/// Little-endian numbers at any address.
fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))
}

fn f16s(bytes: &[u8]) -> impl Iterator<Item = half::f16> {
    bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b))
}

/// An open file and its length. Anything but a regular file is refused before it can block or never end.
fn open_file(path: &Path) -> Result<(File, u64)> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::new(
            ErrorKind::Incompatible,
            format!("{}: expected a bundle, found a folder or a device", path.display()),
        ));
    }
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    Ok((file, metadata.len()))
}

/// A failed read of a file that the caller names.
fn unreadable(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        return Error::corrupt(CUT_SHORT);
    }
    Error::new(ErrorKind::NotFound, error.to_string()).with_source(error)
}

/// Reads and checks the header of a bundle of `len` bytes that begins where `file` stands; and how many of them come before the
/// data section.
fn read_info(file: &mut File, len: u64) -> Result<(BundleInfo, u64)> {
    let mut start = [0; 8];
    let start = match len {
        0..8 => None,
        _ => {
            file.read_exact(&mut start).map_err(unreadable)?;
            Some(start.as_slice())
        }
    };
    let header_len = header_len(start, len)?;
    let mut header = vec![0; header_len];
    file.read_exact(&mut header).map_err(unreadable)?;
    Ok((check::read(&header, len)?, 8 + header_len as u64))
}

/// The header's length, from the first eight bytes of a bundle of `len` bytes.
fn header_len(start: Option<&[u8]>, len: u64) -> Result<usize> {
    let Some(start) = start.and_then(|s| s.first_chunk()) else {
        return Err(Error::corrupt(format!("expected a bundle, found a file of {len} bytes; fetch or make it again")));
    };
    let header_len = u64::from_le_bytes(*start);
    let limit = MAX_HEADER_BYTES.min(len - 8);
    match usize::try_from(header_len) {
        Ok(n) if header_len <= limit => Ok(n),
        _ => Err(Error::corrupt(format!(
            "bundle header: expected a length of at most {limit} bytes (the file has {len}), found {header_len}; the file is cut \
             short, or is no bundle"
        ))),
    }
}

#[allow(unsafe_code)]
fn map(file: &File, offset: u64, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only, and only ever read as bytes, any of which is valid. That nothing rewrites or shortens the
    // file meanwhile is what `Load::Map` asks of the caller; it is not the default where others can write to the file.
    unsafe { MmapOptions::new().offset(offset).len(len).map(file) }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from_digit(d.into(), 16).unwrap_or('0')).collect()
}

#[cfg(all(test, feature = "embedded"))]
mod tests {
    use super::*;

    /// [`Bundle::embedded`] does not look at the values.
    #[test]
    fn the_embedded_bundle_is_sound() {
        Bundle::from_bytes(EMBEDDED, true).unwrap();
    }
}
