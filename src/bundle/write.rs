//! Writing a bundle: laid out first, then streamed to a temporary file, sealed, synced and renamed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest, Sha256};

use super::int8::{is_scale, quantize, row_scale, with_same_inputs};
use super::{
    Bundle, Dtype, FORMAT_VERSION, Golden, MAX_CONFIG_BYTES, MAX_HEADER_BYTES, MAX_INNER, MAX_TENSORS, Metadata,
    Precision, check, hex,
};
use crate::error::{Error, Result};
use crate::model::{HostTensor, Weights};

/// What a bundle is made of.
#[derive(Clone, Copy, Debug)]
pub struct BundleSpec<'a> {
    /// What the bundle says about its model, its precision among it.
    pub metadata: &'a Metadata,
    /// Exactly the tensors of [`ModelConfig::tensors`](crate::model::ModelConfig::tensors).
    pub weights: &'a Weights,
    /// The `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// Matrices, by name, that are kept wider than the rest.
    pub wider: &'a BTreeMap<String, Precision>,
    /// By the name of an int8 matrix of the encoder, what its inputs are multiplied by before they are quantized, one a column.
    pub pre_quant_scales: &'a BTreeMap<String, Vec<f32>>,
    /// A model card, shown by tools.
    pub card: Option<&'a str>,
    /// What the written model answers to the golden cases, of its own precision.
    pub golden: Option<&'a Golden>,
}

impl BundleSpec<'_> {
    /// The metadata but for digests, of what fits together.
    fn entries(&self) -> Result<BTreeMap<&'static str, String>> {
        if self.tokenizer_json.is_empty() {
            return Err(Error::invalid_input("tokenizer.json is empty; a bundle needs its tokenizer"));
        }
        entries(self.metadata)
    }
}

/// Bytes of the bundle that [`write()`] makes of such a model, whatever its weights are: they are not looked at.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) where the other parts do not fit together.
pub fn size(spec: &BundleSpec) -> Result<u64> {
    let tensors = spec.metadata.config.tensors().into_iter();
    let tensors = tensors.flat_map(|(name, shape)| Stored::of(spec, &name, shape)).map(|(stored, _)| stored);
    let mut tensors: Vec<Stored> = tensors.chain(others(spec).map(|planned| planned.stored)).collect();
    tensors.sort_by(Stored::in_file);
    let mut entries = spec.entries()?;
    entries.extend(["source_sha256", "data_sha256", "header_sha256"].map(|digest| (digest, no_digest())));
    let header = header(&tensors, &entries)
        .map_err(|e| Error::internal("a bundle's header cannot be written").with_source(e))?;
    Ok((8 + header.len() + tensors.iter().map(Stored::bytes).sum::<usize>()) as u64)
}

/// Writes a bundle to `path`, in place of what is there. The old file stays as it is until the new one is whole.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) where the parts do not fit together or a value cannot be kept in its
/// precision; [`NotFound`](crate::ErrorKind::NotFound) where the file cannot be written.
pub fn write(path: &Path, spec: &BundleSpec) -> Result<()> {
    stage(path, spec)?.commit()
}

/// Writes a bundle beside `path`, to be opened and measured before it is [committed](Staged::commit).
///
/// # Errors
/// As [`write()`].
pub fn stage(path: &Path, spec: &BundleSpec) -> Result<Staged> {
    let layout = Layout::new(spec)?;
    let (staged, file) = Staged::create(path)?;
    layout.write(file).map_err(|e| e.into_error(path))?;
    Ok(staged)
}

/// Writes an open bundle beside `path` as it is, but for these golden cases in place of those it has.
///
/// # Errors
/// As [`write()`].
pub fn stage_with_golden(path: &Path, bundle: &Bundle, golden: &Golden) -> Result<Staged> {
    let layout = Layout::of_bundle(bundle, golden)?;
    let (staged, file) = Staged::create(path)?;
    layout.write(file).map_err(|e| e.into_error(path))?;
    Ok(staged)
}

/// The SHA-256 of weights, whatever file they came from: for each tensor, by name, the name, a zero byte, the number of dimensions
/// and each of them as u64, then the values as f32, all little-endian.
pub fn weights_sha256(weights: &Weights) -> String {
    let mut hash = Sha256::new();
    for (name, tensor) in &weights.0 {
        hash.update(name);
        hash.update([0]);
        for n in std::iter::once(tensor.shape.len()).chain(tensor.shape.iter().copied()) {
            hash.update((n as u64).to_le_bytes());
        }
        each_chunk(&tensor.data, |x| x.to_le_bytes(), &mut |bytes| {
            hash.update(bytes);
            Ok(())
        })
        .unwrap_or_default();
    }
    hex(&hash.finalize())
}

/// A whole bundle under a temporary name, removed unless it is committed.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    target: PathBuf,
}

impl Staged {
    fn create(target: &Path) -> Result<(Self, File)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = target
            .file_name()
            .ok_or_else(|| Error::invalid_input(format!("{}: expected the name of a file", target.display())))?;
        if target.metadata().is_ok_and(|there| !there.is_file()) {
            return Err(Error::invalid_input(format!("{}: is there, and is no file", target.display())));
        }
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let mut temporary = std::ffi::OsString::from(format!(".partial-{}-{count}-", std::process::id()));
            temporary.push(name);
            let temporary = target.with_file_name(temporary);
            match OpenOptions::new().write(true).create_new(true).open(&temporary) {
                Ok(file) => return Ok((Staged { temporary, target: target.to_owned() }, file)),
                // Another process had this number, and was killed.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(target, e)),
            }
        }
    }

    /// Where the bundle is for now.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Moves the bundle to where it belongs, in place of what is there.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) where the system refuses.
    pub fn commit(self) -> Result<()> {
        fs::rename(&self.temporary, &self.target).map_err(|e| Error::io(&self.target, e))?;
        // The new name has to survive a power cut too. Only Unix opens folders.
        #[cfg(unix)]
        {
            let folder = self.target.parent().filter(|p| !p.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))
                .and_then(|folder| folder.sync_all())
                .map_err(|e| Error::io(&self.target, e))?;
        }
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit there is nothing under this name, and a drop cannot report.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A failure of the file, or of what was to go into it.
enum Failure {
    Io(io::Error),
    Content(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

impl Failure {
    fn into_error(self, path: &Path) -> Error {
        match self {
            Failure::Io(error) => Error::io(path, error).context("the bundle was not written"),
            Failure::Content(error) => error,
        }
    }
}

/// The tensors of golden cases.
const GOLDEN: [&str; 3] = [check::GOLDEN_IDS, check::GOLDEN_FLOATS, check::GOLDEN_INTEGERS];

/// Where a tensor of the file comes from.
enum Source<'a> {
    /// The values of a weight, in the tensor's type, divided by the factors of its columns.
    Weight(&'a HostTensor, Option<&'a [f32]>),
    /// The scales of an 8-bit matrix's rows, so divided.
    Scales(&'a HostTensor, Option<&'a [f32]>),
    Floats(&'a [f32]),
    Bytes(Cow<'a, [u8]>),
}

/// A tensor of the file, as the header has it.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// What a tensor is to the weight that it is there for.
#[derive(Clone, Copy)]
enum Role {
    Values,
    Scales,
    Factors,
}

impl Stored {
    /// The tensors that there are for the weight `name`.
    fn of(spec: &BundleSpec, name: &str, shape: Vec<usize>) -> Vec<(Self, Role)> {
        let dtype = match shape.len() {
            2 => {
                let usual = check::matrix_precision(name, spec.metadata.precision);
                spec.wider.get(name).map_or(usual, |wider| usual.min(*wider)).dtype()
            }
            _ => Dtype::F32,
        };
        let mut all = Vec::new();
        let mut beside = |name, length, role| all.push((Stored { name, dtype: Dtype::F32, shape: vec![length] }, role));
        if dtype == Dtype::I8 {
            beside(check::scale_name(name), shape[0], Role::Scales);
            if spec.pre_quant_scales.contains_key(name) {
                beside(check::pre_quant_scale_name(name), shape[1], Role::Factors);
            }
        }
        all.push((Stored { name: name.to_owned(), dtype, shape }, Role::Values));
        all
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// The order of the file.
    fn in_file(&self, other: &Self) -> std::cmp::Ordering {
        other.dtype.size().cmp(&self.dtype.size()).then_with(|| self.name.cmp(&other.name))
    }
}

/// The tensors that hold what is no weight.
fn others<'a>(spec: &BundleSpec<'a>) -> impl Iterator<Item = Planned<'a>> {
    let card = spec.card.map(|card| (check::CARD, card.as_bytes()));
    let files = [(check::TOKENIZER, spec.tokenizer_json)].into_iter().chain(card);
    let files = files.map(|(name, bytes)| Planned::bytes(name, Dtype::U8, vec![bytes.len()], bytes.into()));
    files.chain(spec.golden.into_iter().flat_map(golden))
}

/// Those that hold golden cases.
fn golden<'a>(golden: &Golden) -> impl Iterator<Item = Planned<'a>> + use<'a> {
    let plan = |(name, dtype, bytes): (&str, Dtype, Vec<u8>)| {
        Planned::bytes(name, dtype, vec![bytes.len() / dtype.size()], bytes.into())
    };
    golden.tensors().map(plan).collect::<Vec<_>>().into_iter()
}

/// What a bundle says about its model.
fn entries(metadata: &Metadata) -> Result<BTreeMap<&'static str, String>> {
    let config = &metadata.config;
    config.validate()?;
    check::usable(metadata).map_err(|(name, expected, found)| {
        Error::invalid_input(format!("{name}: expected {expected}, found {found}"))
    })?;
    let mut hf = config.to_json();
    if let Some(fields) = hf.as_object_mut() {
        for labels in ["id2label", "label2id"] {
            fields.remove(labels);
        }
    }
    let hf = hf.to_string();
    if hf.len() > MAX_CONFIG_BYTES {
        return Err(Error::invalid_input(format!(
            "config: expected at most {MAX_CONFIG_BYTES} bytes, found {}",
            hf.len()
        )));
    }
    let (major, minor) = FORMAT_VERSION;
    let mut entries = BTreeMap::from([
        ("config", hf),
        ("format", "ampoule".to_owned()),
        ("format_version", format!("{major}.{minor}")),
        ("labels", serde_json::Value::from(config.id2label.clone()).to_string()),
        ("licence", metadata.licence.clone()),
        ("normalize", metadata.pooling.normalize.to_string()),
        ("pooling", metadata.pooling.mode.as_str().to_owned()),
        ("precision", metadata.precision.to_string()),
        ("producer", metadata.producer.clone()),
        ("task", config.task.as_str().to_owned()),
        ("temperature", metadata.temperature.to_string()),
    ]);
    if let Some(n) = metadata.max_tokens {
        entries.insert("max_tokens", n.to_string());
    }
    Ok(entries)
}

/// Stands where a digest is not known yet.
fn no_digest() -> String {
    "0".repeat(64)
}

/// The padded header.
fn header<'a>(
    tensors: impl IntoIterator<Item = &'a Stored>,
    metadata: &BTreeMap<&'static str, String>,
) -> io::Result<Vec<u8>> {
    let mut entries = BTreeMap::from([("__metadata__", serde_json::to_value(metadata)?)]);
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.bytes();
        entries.insert(
            &tensor.name,
            serde_json::json!({
                "data_offsets": [begin, end],
                "dtype": format!("{:?}", tensor.dtype),
                "shape": tensor.shape,
            }),
        );
        begin = end;
    }
    let mut header = serde_json::to_vec(&entries)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

struct Planned<'a> {
    stored: Stored,
    source: Source<'a>,
}

/// Every tensor in the file's order, and the metadata but for the digests that come last.
struct Layout<'a> {
    tensors: Vec<Planned<'a>>,
    metadata: BTreeMap<&'static str, String>,
}

impl<'a> Layout<'a> {
    fn new(spec: &BundleSpec<'a>) -> Result<Self> {
        let mut metadata = spec.entries()?;
        let mut tensors = Self::weights(spec)?;
        tensors.extend(others(spec));
        metadata.insert("source_sha256", weights_sha256(spec.weights));
        Self::sorted(tensors, metadata)
    }

    fn sorted(mut tensors: Vec<Planned<'a>>, metadata: BTreeMap<&'static str, String>) -> Result<Self> {
        if tensors.len() > MAX_TENSORS {
            return Err(Error::invalid_input(format!(
                "expected at most {MAX_TENSORS} tensors, found {}",
                tensors.len()
            )));
        }
        tensors.sort_by(|a, b| a.stored.in_file(&b.stored));
        Ok(Layout { tensors, metadata })
    }

    /// Those of a bundle, with other golden cases.
    fn of_bundle(bundle: &'a Bundle, cases: &Golden) -> Result<Self> {
        let info = bundle.info();
        let mut metadata = entries(&info.metadata)?;
        metadata.insert("source_sha256", info.source_sha256.clone());
        let kept = info.tensors.iter().filter(|tensor| !GOLDEN.contains(&tensor.name.as_str()));
        let plan = |t: &'a super::TensorInfo| {
            let bytes = bundle.data.tensor(t)?;
            Ok(Planned::bytes(&t.name, t.dtype, t.shape.clone(), bytes))
        };
        let mut tensors = kept.map(plan).collect::<Result<Vec<_>>>()?;
        tensors.extend(golden(cases));
        Self::sorted(tensors, metadata)
    }

    /// The weights and scales, checked against the configuration.
    fn weights(spec: &BundleSpec<'a>) -> Result<Vec<Planned<'a>>> {
        let wanted: BTreeMap<String, Vec<usize>> = spec.metadata.config.tensors().into_iter().collect();
        let invalid = |message: String| Err(Error::invalid_input(message));
        let missing: Vec<&str> =
            wanted.keys().map(String::as_str).filter(|n| !spec.weights.0.contains_key(*n)).collect();
        let unknown: Vec<&str> =
            spec.weights.0.keys().map(String::as_str).filter(|n| !wanted.contains_key(*n)).collect();
        if !missing.is_empty() || !unknown.is_empty() {
            return invalid(format!(
                "the weights are not those of the config: missing [{}], unknown [{}]",
                missing.join(", "),
                unknown.join(", ")
            ));
        }
        if let Some(name) = spec.wider.keys().find(|n| wanted.get(*n).is_none_or(|shape| shape.len() != 2)) {
            return invalid(format!("no matrix of this model is named {name:?}, so it cannot be kept wider"));
        }
        if let Some(name) = spec.pre_quant_scales.keys().find(|n| !wanted.contains_key(*n)) {
            return invalid(format!("pre_quant_scales: no matrix of this model is named {name:?}"));
        }
        for (name, factors) in spec.pre_quant_scales {
            let others = with_same_inputs(name);
            if others.iter().any(|other| spec.pre_quant_scales.get(other) != Some(factors)) {
                return invalid(format!("pre_quant_scales: {} need the same, or none", others.join(", ")));
            }
        }
        let mut planned = Vec::new();
        for (name, tensor) in &spec.weights.0 {
            let shape = wanted.get(name).cloned().unwrap_or_default();
            if tensor.shape != shape || tensor.data.len() != shape.iter().product::<usize>() {
                return invalid(format!(
                    "tensor {name:?}: expected {shape:?}, found {:?} of {} values",
                    tensor.shape,
                    tensor.data.len()
                ));
            }
            let stored = Stored::of(spec, name, shape.clone());
            let dtype = stored.last().map_or(Dtype::F32, |(values, _)| values.dtype);
            let largest = match dtype {
                Dtype::F16 => half::f16::MAX.to_f32(),
                // A scale is rounded, and 127 times it has to be finite.
                Dtype::I8 => f32::MAX / 2.0,
                Dtype::F32 | Dtype::U8 => f32::MAX,
            };
            let factors = spec.pre_quant_scales.get(name).map(Vec::as_slice);
            if let Some(factors) = factors {
                let fits = dtype == Dtype::I8 && check::meets_integers(name) && factors.len() == shape[1];
                let bad = |w: f32, factor: f32| (w / factor).abs() > largest;
                let bad = |row: &[f32]| row.iter().zip(factors).any(|(&w, &factor)| bad(w, factor));
                if !fits || !factors.iter().all(|&f| is_scale(f)) || tensor.data.chunks(factors.len()).any(bad) {
                    return invalid(format!(
                        "pre_quant_scales: {name:?} has to be an int8 matrix of the encoder, with a positive factor for each of its \
                         columns by which its weights can be divided"
                    ));
                }
            }
            if let Some(at) = tensor.data.iter().position(|x| !x.is_finite() || x.abs() > largest) {
                return invalid(format!(
                    "tensor {name:?}: element {at} is {}, which {dtype:?} cannot keep; weights must be finite, and at most \
                     {largest} in magnitude",
                    tensor.data[at]
                ));
            }
            if dtype == Dtype::I8 && shape[1] > MAX_INNER {
                return invalid(format!(
                    "tensor {name:?}: expected rows of at most {MAX_INNER} values, found {}; keep it wider than int8",
                    shape[1]
                ));
            }
            planned.extend(stored.into_iter().map(|(stored, role)| {
                let source = match role {
                    Role::Values => Source::Weight(tensor, factors),
                    Role::Scales => Source::Scales(tensor, factors),
                    Role::Factors => Source::Floats(factors.unwrap_or_default()),
                };
                Planned { stored, source }
            }));
        }
        Ok(planned)
    }

    fn write(mut self, file: File) -> Result<(), Failure> {
        self.metadata.extend(["data_sha256", "header_sha256"].map(|digest| (digest, no_digest())));
        let header_len = self.header()?.len();
        if header_len as u64 > MAX_HEADER_BYTES {
            return Err(Failure::Content(Error::invalid_input(format!(
                "expected labels and names that fit a header of {MAX_HEADER_BYTES} bytes, found {header_len}"
            ))));
        }
        let mut out = BufWriter::with_capacity(1 << 16, file);
        out.write_all(&(header_len as u64).to_le_bytes())?;
        out.seek_relative(header_len as i64)?;
        let mut hash = Sha256::new();
        for tensor in &self.tensors {
            tensor.encode(&mut |bytes| {
                hash.update(bytes);
                out.write_all(bytes)
            })?;
        }
        self.metadata.insert("data_sha256", hex(&hash.finalize()));
        // Its own digest still stands as zeros, as the seal wants it.
        let seal = hex(&Sha256::digest(self.header()?));
        self.metadata.insert("header_sha256", seal);
        out.seek(SeekFrom::Start(8))?;
        out.write_all(&self.header()?)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(())
    }

    fn header(&self) -> io::Result<Vec<u8>> {
        header(self.tensors.iter().map(|planned| &planned.stored), &self.metadata)
    }
}

impl<'a> Planned<'a> {
    fn bytes(name: &str, dtype: Dtype, shape: Vec<usize>, bytes: Cow<'a, [u8]>) -> Self {
        Planned { stored: Stored { name: name.to_owned(), dtype, shape }, source: Source::Bytes(bytes) }
    }

    /// Hands the tensor's bytes on, a piece at a time.
    fn encode(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match (&self.source, self.stored.dtype) {
            (Source::Bytes(bytes), _) => sink(bytes),
            (Source::Floats(values), _) => each_chunk(values, |x| x.to_le_bytes(), sink),
            (Source::Scales(matrix, factors), _) => {
                let rows = matrix.data.chunks(matrix.shape[1].max(1));
                let scales: Vec<f32> = rows.map(|row| row_scale(&divided(row, *factors))).collect();
                each_chunk(&scales, |x| x.to_le_bytes(), sink)
            }
            (Source::Weight(tensor, _), Dtype::F32) => each_chunk(&tensor.data, |x| x.to_le_bytes(), sink),
            (Source::Weight(tensor, _), Dtype::F16) => {
                each_chunk(&tensor.data, |x| half::f16::from_f32(x).to_le_bytes(), sink)
            }
            (Source::Weight(tensor, factors), Dtype::I8 | Dtype::U8) => {
                tensor.data.chunks(tensor.shape[1].max(1)).try_for_each(|row| {
                    let row = divided(row, *factors);
                    let integers: Vec<i8> = quantize(&row, row_scale(&row)).collect();
                    sink(bytemuck::cast_slice(&integers))
                })
            }
        }
    }
}

fn divided<'a>(row: &'a [f32], factors: Option<&[f32]>) -> Cow<'a, [f32]> {
    match factors {
        None => row.into(),
        Some(factors) => row.iter().zip(factors).map(|(w, factor)| w / factor).collect::<Vec<_>>().into(),
    }
}

/// Hands on the bytes of `values`, a few thousand values at a time.
fn each_chunk<const N: usize>(
    values: &[f32],
    to_bytes: impl Fn(f32) -> [u8; N],
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(N * values.len().min(4096));
    for chunk in values.chunks(4096) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|&x| to_bytes(x)));
        sink(&buffer)?;
    }
    Ok(())
}
