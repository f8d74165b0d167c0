//! What the [format](super) demands of a header and of the data behind it.

use sha2::{Digest, Sha256};

use super::header::{Entry, Header, Json, Quoted};
use super::int8::is_scale;
use super::{
    BundleInfo, Dtype, FORMAT_VERSION, MAX_CONFIG_BYTES, MAX_INNER, Metadata, Pooling, PoolingMode, Precision,
    TensorInfo, f16s, f32s, hex,
};
use crate::error::{Error, Result};
use crate::model::ModelConfig;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const CARD: &str = "ampoule.optional.card";
pub(super) const OPTIONAL: &str = "ampoule.optional.";
pub(super) const GOLDEN_IDS: &str = "ampoule.optional.golden.ids";
pub(super) const GOLDEN_FLOATS: &str = "ampoule.optional.golden.floats";
pub(super) const GOLDEN_INTEGERS: &str = "ampoule.optional.golden.integers";
/// The metadata entries that every bundle has, and those it may have.
const REQUIRED: [&str; 14] = [
    "config",
    "data_sha256",
    "format",
    "format_version",
    "header_sha256",
    "labels",
    "licence",
    "normalize",
    "pooling",
    "precision",
    "producer",
    "source_sha256",
    "task",
    "temperature",
];
const MAX_TOKENS: &str = "max_tokens";
/// How many names one message lists.
const MAX_LISTED: usize = 256;

/// The name of the scales of an 8-bit matrix.
pub(super) fn scale_name(matrix: &str) -> String {
    format!("{matrix}.scale")
}

/// The name of what the inputs of an 8-bit matrix are multiplied by.
pub(super) fn pre_quant_scale_name(matrix: &str) -> String {
    format!("{matrix}.pre_quant_scale")
}

/// Whether the matrix `name` is of a linear layer of the encoder, whose inputs are quantized.
pub(super) fn meets_integers(name: &str) -> bool {
    name.starts_with("encoder.") || name == "embeddings_project.weight"
}

/// The precision in which the matrix `name` is kept in a bundle of `precision`.
pub(super) fn matrix_precision(name: &str, precision: Precision) -> Precision {
    let is_small_table =
        name.starts_with("embeddings.") && name.ends_with("_embeddings.weight") && !name.contains("word");
    match precision {
        Precision::Int8 if is_small_table => Precision::F16,
        other => other,
    }
}

/// Checks the header of a bundle of `bundle_len` bytes.
pub(super) fn read(header: &[u8], bundle_len: u64) -> Result<BundleInfo> {
    let Header { metadata, tensors } = Header::parse(header)?;
    let entries = MetadataEntries(metadata);
    let version = entries.version()?;
    entries.check_names()?;
    entries.check_seal(header)?;
    if !header.len().is_multiple_of(8) {
        return Err(Error::corrupt(format!(
            "bundle header: expected a length that is a multiple of 8, found {}; the file is damaged",
            header.len()
        )));
    }
    let data_len = bundle_len.saturating_sub(8 + header.len() as u64);
    check_layout(&tensors, data_len)?;
    let metadata = entries.metadata(&tensors, bundle_len)?;
    check_tensors(&metadata, &tensors, bundle_len)?;
    affordable("tensors", tensors.len(), size_of::<TensorInfo>(), bundle_len)?;
    Ok(BundleInfo {
        version,
        source_sha256: entries.digest("source_sha256")?,
        data_sha256: entries.digest("data_sha256")?,
        tensors: tensors
            .iter()
            .map(|t| TensorInfo {
                name: t.name.to_owned(),
                dtype: t.dtype,
                shape: t.shape().iter().map(|&n| n as usize).collect(),
                bytes: (t.end - t.begin) as usize,
                begin: t.begin as usize,
            })
            .collect(),
        metadata,
        bytes: bundle_len,
    })
}

/// Refuses a list that would take more memory than the bundle has bytes; no sound bundle comes near.
fn affordable(what: &str, count: usize, size: usize, bundle_len: u64) -> Result<()> {
    match (count as u64).checked_mul(size as u64) {
        Some(bytes) if bytes <= bundle_len => Ok(()),
        _ => Err(Error::corrupt(format!("bundle header: {count} {what} do not fit a bundle of {bundle_len} bytes"))),
    }
}

struct MetadataEntries<'a>(Vec<(&'a str, Quoted<'a>)>);

impl<'a> MetadataEntries<'a> {
    fn find(&self, name: &str) -> Option<Quoted<'a>> {
        let at = self.0.binary_search_by(|(key, _)| (*key).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| *value)
    }

    fn get(&self, name: &str) -> Result<String> {
        match self.find(name) {
            Some(value) => value.unescaped(),
            None => Err(Error::corrupt(format!("bundle metadata {name:?} is missing; make the file again"))),
        }
    }

    /// Whether this is a bundle, of a version that is read here.
    fn version(&self) -> Result<(u32, u32)> {
        if self.find("format").is_none_or(|f| f.raw != "ampoule") {
            return Err(Error::incompatible(
                "this safetensors file is no bundle; make one from the checkpoint with `ampoule quantize`",
            ));
        }
        let found = self.get("format_version")?;
        let (major, minor) = FORMAT_VERSION;
        let version = found.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        match version {
            Some((a, b)) if a == major && b <= minor => Ok((a, b)),
            Some((a, b)) if (a, b) > FORMAT_VERSION => Err(Error::incompatible(format!(
                "bundle metadata \"format_version\": expected {major}.0 to {major}.{minor}, found {a}.{b}; update ampoule, or \
                 make the bundle again with this version"
            ))),
            Some((a, b)) => Err(Error::incompatible(format!(
                "bundle metadata \"format_version\": expected {major}.0 to {major}.{minor}, found {a}.{b}; make the bundle again \
                 with this version"
            ))),
            None => Err(wrong("format_version", "MAJOR.MINOR", &found)),
        }
    }

    fn check_names(&self) -> Result<()> {
        let known = |name: &str| REQUIRED.contains(&name) || name == MAX_TOKENS || name.starts_with(OPTIONAL);
        match self.0.iter().find(|(name, _)| !known(name)) {
            None => Ok(()),
            Some((name, _)) => Err(Error::incompatible(format!(
                "bundle metadata {name:?} is unknown; update ampoule, or make the bundle again"
            ))),
        }
    }

    /// Compares the header with its own digest.
    fn check_seal(&self, header: &[u8]) -> Result<()> {
        let expected = self.digest("header_sha256")?;
        let found = self
            .find("header_sha256")
            .and_then(|seal| Some((header.get(..seal.at)?, header.get(seal.at + seal.raw.len()..)?)))
            .map(|(before, after)| {
                let zeros = [b'0'; 64];
                hex(&Sha256::new().chain_update(before).chain_update(zeros).chain_update(after).finalize())
            })
            .unwrap_or_default();
        match found == expected {
            true => Ok(()),
            false => Err(Error::corrupt(format!(
                "bundle header: expected SHA-256 {expected}, found {found}; fetch or make the file again"
            ))),
        }
    }

    fn digest(&self, name: &str) -> Result<String> {
        let digest = self.get(name)?;
        match digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            true => Ok(digest),
            false => Err(wrong(name, "64 hexadecimal digits", &digest)),
        }
    }

    fn metadata(&self, tensors: &[Entry], bundle_len: u64) -> Result<Metadata> {
        let precision = self.get("precision")?;
        let precision = precision.parse().map_err(|_| wrong("precision", "f32, f16 or int8", &precision))?;
        let mode = self.get("pooling")?;
        let mode = [PoolingMode::Mean, PoolingMode::Cls, PoolingMode::Max]
            .into_iter()
            .find(|m| m.as_str() == mode)
            .ok_or_else(|| wrong("pooling", "mean, cls or max", &mode))?;
        let normalize = self.get("normalize")?;
        let normalize = normalize.parse().map_err(|_| wrong("normalize", "true or false", &normalize))?;
        let temperature = self.get("temperature")?;
        let mut metadata = Metadata {
            config: self.config(tensors, bundle_len)?,
            precision,
            producer: self.get("producer")?,
            licence: self.get("licence")?,
            pooling: Pooling { mode, normalize },
            max_tokens: None,
            temperature: temperature.parse().map_err(|_| wrong("temperature", "a number", &temperature))?,
        };
        if self.find(MAX_TOKENS).is_some() {
            let found = self.get(MAX_TOKENS)?;
            metadata.max_tokens = Some(found.parse().map_err(|_| wrong(MAX_TOKENS, "a whole number", &found))?);
        }
        usable(&metadata).map_err(|(name, expected, found)| wrong(name, &expected, &found))?;
        Ok(metadata)
    }

    fn config(&self, tensors: &[Entry], bundle_len: u64) -> Result<ModelConfig> {
        let json = self.get("config")?;
        // A tree of JSON takes memory by its values, not by its length.
        let values = json.bytes().filter(|b| matches!(b, b',' | b'[' | b'{')).count();
        if json.len() > MAX_CONFIG_BYTES || values > MAX_CONFIG_BYTES / 128 {
            return Err(Error::corrupt(format!(
                "bundle metadata \"config\": expected at most {MAX_CONFIG_BYTES} bytes and {} values, found {} bytes and {values}",
                MAX_CONFIG_BYTES / 128,
                json.len()
            )));
        }
        let mut config: serde_json::Value = serde_json::from_str(&json)
            .map_err(|e| Error::corrupt("bundle metadata \"config\": expected JSON").with_source(e))?;
        if let Some(fields) = config.as_object_mut() {
            for labels in ["id2label", "label2id", "num_labels"] {
                fields.remove(labels);
            }
        }
        let mut config = ModelConfig::from_json(&config).map_err(|e| e.context("bundle metadata \"config\""))?;
        config.id2label = self.labels(tensors, bundle_len)?;
        config.validate().map_err(|e| e.context("bundle metadata \"labels\""))?;
        let task = self.get("task")?;
        match task == config.task.as_str() {
            true => Ok(config),
            false => Err(wrong("task", &format!("{}, as \"config\" has it", config.task.as_str()), &task)),
        }
    }

    /// The label names, as many as the classifier has rows.
    fn labels(&self, tensors: &[Entry], bundle_len: u64) -> Result<Vec<String>> {
        let json = self.get("labels")?;
        let place = "bundle metadata \"labels\"";
        let mut count = 0;
        let mut cursor = Json::new(&json, place);
        cursor.array(|json| {
            count += 1;
            json.string().map(|_| ())
        })?;
        cursor.end()?;
        let classifier = tensors.iter().find(|t| t.name == "classifier.weight");
        if let Some(&rows) = classifier.and_then(|t| t.shape().first())
            && rows as usize != count
        {
            return Err(Error::corrupt(format!(
                "{place}: expected {rows} labels, as tensor \"classifier.weight\" has rows, found {count}"
            )));
        }
        affordable("labels", count, size_of::<String>(), bundle_len)?;
        let mut labels = Vec::with_capacity(count);
        Json::new(&json, place).array(|json| {
            labels.push(json.string()?.unescaped()?);
            Ok(())
        })?;
        Ok(labels)
    }
}

/// Whether logits can be divided by `t`.
pub(crate) fn is_temperature(t: f32) -> bool {
    t.is_normal() && t > 0.0
}

/// Whether the numbers of `metadata` can be used: else the name, what is expected, what was found.
pub(super) fn usable(metadata: &Metadata) -> Result<(), (&'static str, String, String)> {
    let t = metadata.temperature;
    if !is_temperature(t) {
        return Err(("temperature", "a positive normal number".to_owned(), t.to_string()));
    }
    let most = metadata.config.max_tokens();
    match metadata.max_tokens {
        Some(n) if !(3..=most).contains(&n) => Err((MAX_TOKENS, format!("3 to {most}"), n.to_string())),
        _ => Ok(()),
    }
}

fn wrong(name: &str, expected: &str, found: &str) -> Error {
    let found: String = found.chars().take(64).collect();
    Error::corrupt(format!("bundle metadata {name:?}: expected {expected}, found {found:?}; make the file again"))
}

/// Whether the tensors fill the data section one after the other.
fn check_layout(tensors: &[Entry], data_len: u64) -> Result<()> {
    for t in tensors {
        let size = t.dtype.size() as u64;
        let found = t.end.checked_sub(t.begin);
        match t.bytes() {
            Some(bytes) if found == Some(bytes) => {}
            bytes => {
                return Err(Error::corrupt(format!(
                    "bundle tensor {:?}: {:?} {:?} takes {} bytes, and its offsets {} to {} do not enclose as many",
                    t.name,
                    t.shape(),
                    t.dtype,
                    bytes.map_or("over 2^64".to_owned(), |b| b.to_string()),
                    t.begin,
                    t.end
                )));
            }
        }
        if !t.begin.is_multiple_of(size) {
            return Err(Error::corrupt(format!(
                "bundle tensor {:?}: expected an offset that is a multiple of {size}, found {}",
                t.name, t.begin
            )));
        }
    }
    let mut by_offset: Vec<&Entry> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|t| (t.begin, t.end));
    let mut end = 0;
    for t in by_offset {
        if t.begin != end {
            let what = if t.begin < end { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(Error::corrupt(format!(
                "bundle tensor {:?} {what}: expected offset {end}, found {}",
                t.name, t.begin
            )));
        }
        end = t.end;
    }
    match end == data_len {
        true => Ok(()),
        false => Err(Error::corrupt(format!(
            "bundle data section: expected {end} bytes, found {data_len}; fetch or make the file again"
        ))),
    }
}

/// Compares the tensors that are there with those of the model.
fn check_tensors(metadata: &Metadata, tensors: &[Entry], bundle_len: u64) -> Result<()> {
    let config = &metadata.config;
    affordable("layers", config.num_hidden_layers, 16 * 2 * size_of::<(String, Vec<usize>)>(), bundle_len)?;
    let find = |name: &str| {
        let at = tensors.binary_search_by(|t| t.name.cmp(name)).ok()?;
        tensors.get(at)
    };
    let mut problems = Problems::default();
    let mut known = 0;
    let mut expect = |name: &str, shape: &[usize], allowed: &[Dtype]| {
        let Some(tensor) = find(name) else {
            problems.missing.push(name.to_owned());
            return None;
        };
        known += 1;
        let same = tensor.shape().iter().map(|&n| n as usize).eq(shape.iter().copied());
        if !same || !allowed.contains(&tensor.dtype) {
            let dtype = allowed.iter().find(|d| **d == tensor.dtype).or(allowed.first());
            problems.misshaped.push(format!(
                "bundle tensor {name:?}: expected {shape:?} {}, found {:?} {:?}",
                dtype.map(|d| format!("{d:?}")).unwrap_or_default(),
                tensor.shape(),
                tensor.dtype
            ));
        }
        Some(tensor.dtype)
    };
    let mut widest_to_narrowest = vec![Dtype::F32];
    for precision in [Precision::F16, Precision::Int8] {
        if precision <= metadata.precision {
            widest_to_narrowest.insert(0, precision.dtype());
        }
    }
    for (name, shape) in config.tensors() {
        let &[rows, columns] = shape.as_slice() else {
            expect(&name, &shape, &[Dtype::F32]);
            continue;
        };
        if expect(&name, &shape, &widest_to_narrowest) == Some(Dtype::I8) {
            expect(&scale_name(&name), &[rows], &[Dtype::F32]);
            let factors = pre_quant_scale_name(&name);
            if meets_integers(&name) && find(&factors).is_some() {
                expect(&factors, &[columns], &[Dtype::F32]);
            }
            if columns > MAX_INNER {
                return Err(Error::incompatible(format!(
                    "bundle tensor {name:?}: expected rows of at most {MAX_INNER} integers, found {columns}"
                )));
            }
        }
    }
    match find(TOKENIZER).map(|t| t.shape()) {
        Some(&[length]) if length > 0 => {
            expect(TOKENIZER, &[length as usize], &[Dtype::U8]);
        }
        Some(_) => {
            return Err(Error::corrupt(format!(
                "bundle tensor {TOKENIZER:?}: expected the tokenizer's file, found none"
            )));
        }
        None => {
            expect(TOKENIZER, &[], &[Dtype::U8]);
        }
    }
    let optional = tensors.iter().filter(|t| t.name.starts_with(OPTIONAL)).count();
    if known + optional < tensors.len() {
        let mut names: Vec<String> = config.tensors().into_iter().map(|(name, _)| name).collect();
        names.push(TOKENIZER.to_owned());
        names.sort_unstable();
        let is_known = |name: &str| {
            let knows = |name: &str| names.binary_search_by(|n| n.as_str().cmp(name)).is_ok();
            let of_matrix = |matrix| knows(matrix) && find(matrix).is_some_and(|t| t.dtype == Dtype::I8);
            let of_linear = |matrix| of_matrix(matrix) && meets_integers(matrix);
            name.starts_with(OPTIONAL)
                || knows(name)
                || name.strip_suffix(".scale").is_some_and(of_matrix)
                || name.strip_suffix(".pre_quant_scale").is_some_and(of_linear)
        };
        problems.unknown = tensors.iter().map(|t| t.name).filter(|name| !is_known(name)).collect();
    }
    problems.into_result()
}

/// What is wrong with the tensors, said all at once.
#[derive(Default)]
struct Problems<'a> {
    missing: Vec<String>,
    misshaped: Vec<String>,
    unknown: Vec<&'a str>,
}

impl Problems<'_> {
    fn into_result(self) -> Result<()> {
        let damaged = !self.missing.is_empty() || !self.misshaped.is_empty();
        if !damaged && self.unknown.is_empty() {
            return Ok(());
        }
        let mut said = Vec::new();
        if !self.misshaped.is_empty() {
            said.push(list(&self.misshaped));
        }
        if !self.missing.is_empty() {
            said.push(format!("bundle tensors are missing: {}", list(&self.missing)));
        }
        if !self.unknown.is_empty() {
            said.push(format!("bundle tensors are unknown: {}", list(&self.unknown)));
        }
        let said = said.join("; ");
        match damaged {
            true => Err(Error::corrupt(said)),
            false => Err(Error::incompatible(format!("{said}; update ampoule, or make the bundle again"))),
        }
    }
}

fn list<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(MAX_LISTED).map(AsRef::as_ref).collect();
    match names.len() > shown.len() {
        true => format!("{} and more", shown.join(", ")),
        false => shown.join(", "),
    }
}

/// Checks the values of a tensor from its element `first` on, as far as they are in `bytes`.
pub(super) fn values(tensor: &TensorInfo, first: usize, bytes: &[u8]) -> Result<()> {
    if tensor.name.starts_with(OPTIONAL) {
        return Ok(());
    }
    let is_scales = [".scale", ".pre_quant_scale"].iter().any(|ending| tensor.name.ends_with(ending));
    let (bad, expected) = match tensor.dtype {
        Dtype::F32 if is_scales => (f32s(bytes).position(|x| !is_scale(x)), "a positive normal scale"),
        Dtype::F32 => (f32s(bytes).position(|x| !x.is_finite()), "a finite weight"),
        Dtype::F16 => (f16s(bytes).position(|x| !x.is_finite()), "a finite weight"),
        Dtype::I8 => (memchr::memchr(0x80, bytes), "an integer in -127..=127"),
        Dtype::U8 => (None, ""),
    };
    let Some(at) = bad else { return Ok(()) };
    let found = match tensor.dtype {
        Dtype::F32 => f32s(bytes).nth(at).unwrap_or_default().to_string(),
        Dtype::F16 => f16s(bytes).nth(at).unwrap_or_default().to_string(),
        Dtype::I8 | Dtype::U8 => "-128".to_owned(),
    };
    Err(Error::corrupt(format!(
        "bundle tensor {:?}, element {}: expected {expected}, found {found}; fetch or make the file again",
        tensor.name,
        first + at
    )))
}
