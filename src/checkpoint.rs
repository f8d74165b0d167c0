//! Hugging Face folders: read as they are published, written so that transformers opens them.

mod names;
mod pickle;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::bundle::{Pooling, PoolingMode, is_temperature};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{HostTensor, ModelConfig, ModelType, Noise, Task, Weights};
use crate::text::{SpecialTokens, Tokenizer};
use names::{canonical, is_left_over, published};

/// A Hugging Face folder in memory.
#[derive(Clone)]
pub struct Checkpoint {
    /// Shape, task and labels.
    pub config: ModelConfig,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// All tensors of [`ModelConfig::tensors`].
    pub weights: Weights,
    /// How an embedder makes one vector of a text's; from `modules.json` and `1_Pooling`, or mean and length 1.
    pub pooling: Pooling,
    /// What logits are divided by before they become probabilities (Guo et al. 2017). It stands in `config.json` as
    /// `ampoule_temperature`, which transformers keeps and does not use, unless it is 1.
    pub temperature: f32,
    /// Whether it was trained as if in int8, and so needs no even inputs there. It stands in `config.json` as
    /// `ampoule_quantization_aware`.
    pub quantization_aware: bool,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A head that is to be put on an encoder, its weights freshly drawn.
#[derive(Clone, Debug)]
pub struct NewHead {
    /// What the head answers.
    pub task: Task,
    /// Its labels; for token classification, its tags.
    pub labels: Vec<String>,
    /// From which the weights are drawn.
    pub seed: u64,
}

impl Checkpoint {
    /// Reads a folder: `config.json`, a tokenizer (`tokenizer.json`, or `vocab.txt`, or `vocab.json` and `merges.txt`) and
    /// weights (`model.safetensors` or `pytorch_model.bin`, whole or sharded).
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where a file is missing, [`Incompatible`](ErrorKind::Incompatible) for what is not
    /// supported, [`Corrupt`](ErrorKind::Corrupt) for damage, with every missing, unused and mis-shaped tensor named.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(path.as_ref(), None).map_err(|e| opening(path.as_ref(), e))
    }

    /// Reads a folder's encoder and puts a new head on it, in place of any that it has.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with_head(path: impl AsRef<Path>, head: &NewHead) -> Result<Self> {
        Self::read(path.as_ref(), Some(head)).map_err(|e| opening(path.as_ref(), e))
    }

    /// Reads a folder's `config.json` alone: the model's shape, and its temperature.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn inspect(path: impl AsRef<Path>) -> Result<(ModelConfig, f32)> {
        let path = path.as_ref();
        read_json(&path.join("config.json"))
            .and_then(|json| Ok((ModelConfig::from_json(&json)?, read_temperature(&json)?)))
            .map_err(|e| opening(path, e))
    }

    fn read(path: &Path, head: Option<&NewHead>) -> Result<Self> {
        let json = read_json(&path.join("config.json"))?;
        let mut config = ModelConfig::from_json(&json)?;
        // A new head has none yet.
        let temperature = if head.is_some() { 1.0 } else { read_temperature(&json)? };
        let quantization_aware = head.is_none() && json[QUANTIZATION_AWARE] == true;
        if head.is_some() {
            config.task = Task::Encoder;
            config.id2label.clear();
        }
        let tokenizer = read_tokenizer(path, &json, config.model_type)?;
        tokenizer.check_rows(config.vocab_size)?;
        let mut weights = Weights::default();
        for file in weight_files(path)? {
            read_weights(&file, &config, head.is_some(), &mut weights)?;
        }
        check_tensors(&config, &weights, head.is_some())?;
        let pooling = read_pooling(path)?;
        let mut checkpoint = Checkpoint { config, tokenizer, weights, pooling, temperature, quantization_aware };
        if let Some(head) = head {
            checkpoint.add_head(head)?;
        }
        Ok(checkpoint)
    }

    /// Draws a head's weights from a normal distribution of the configuration's `initializer_range`, biases zero.
    fn add_head(&mut self, head: &NewHead) -> Result<()> {
        self.config.task = head.task;
        self.config.id2label = head.labels.clone();
        self.config.validate()?;
        let mut noise = Noise::new(head.seed);
        for (name, shape) in self.config.tensors() {
            if !(name.starts_with("classifier.") || name.starts_with("pooler.")) {
                continue;
            }
            let count = shape.iter().product();
            let data = if shape.len() == 2 {
                let scale = self.config.initializer_range;
                (0..count).map(|_| (normal(&mut noise) * scale) as f32).collect()
            } else {
                vec![0.0; count]
            };
            self.weights.0.insert(name, HostTensor { shape, data });
        }
        Ok(())
    }

    /// Writes the folder, which transformers opens with `from_pretrained`. What stood there before stays until the new
    /// folder is whole; a process killed between the two moves that put it in place leaves the old one as `.NAME.old` beside it.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where the folder cannot be written; what stood there is then intact.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let aside = beside(path, "new")?;
        let written = self.write(&aside).and_then(|()| replace_folder(&aside, path));
        if written.is_err() {
            // The error says more than a failed clean-up would.
            let _ = fs::remove_dir_all(&aside);
        }
        written
    }

    fn write(&self, path: &Path) -> Result<()> {
        if path.exists() {
            fs::remove_dir_all(path).map_err(|e| Error::io(path, e))?;
        }
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        let mut tensors: Vec<(String, &[usize], &[f32])> = Vec::new();
        for (name, tensor) in &self.weights.0 {
            tensors.push((published(name, &self.config), &tensor.shape, &tensor.data));
        }
        let bytes = safetensors_bytes(&tensors, [("format".to_owned(), "pt".to_owned())])?;
        write_aside(&path.join("model.safetensors"), &bytes)?;
        write_aside(&path.join("config.json"), pretty(&self.config_json()?).as_bytes())?;
        write_aside(&path.join("tokenizer.json"), &self.tokenizer.to_json())?;
        let special = self.tokenizer.special_tokens();
        // What the architecture does not take, transformers must not be told to give it.
        let inputs: &[&str] = match self.config.type_vocab_size {
            0 | 1 => &["input_ids", "attention_mask"],
            _ => &["input_ids", "token_type_ids", "attention_mask"],
        };
        let tokenizer_config = json!({
            "model_input_names": inputs,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.config.max_tokens(),
            "cls_token": special.cls, "sep_token": special.sep, "pad_token": special.pad,
            "unk_token": special.unk, "mask_token": special.mask,
        });
        write_aside(&path.join("tokenizer_config.json"), pretty(&tokenizer_config).as_bytes())?;
        if self.config.task == Task::Encoder {
            self.write_pooling(path)?;
        }
        Ok(())
    }

    /// The `config.json`: what transformers reads, and what it leaves to us.
    fn config_json(&self) -> Result<Value> {
        let mut json = self.config.to_json();
        if !is_temperature(self.temperature) {
            return Err(Error::invalid_input(format!(
                "temperature: expected a positive normal number, found {}",
                self.temperature
            )));
        }
        if let (Some(fields), true) = (json.as_object_mut(), self.temperature != 1.0) {
            // As the shortest decimal that is read as the same f32.
            let decimal = self.temperature.to_string().parse::<f64>().unwrap_or(f64::from(self.temperature));
            fields.insert(TEMPERATURE.to_owned(), json!(decimal));
        }
        if let (Some(fields), true) = (json.as_object_mut(), self.quantization_aware) {
            fields.insert(QUANTIZATION_AWARE.to_owned(), json!(true));
        }
        Ok(json)
    }

    /// The files from which sentence-transformers knows how to pool.
    fn write_pooling(&self, path: &Path) -> Result<()> {
        let mut modules = vec![
            json!({"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}),
            json!({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}),
        ];
        if self.pooling.normalize {
            modules.push(
                json!({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}),
            );
            fs::create_dir_all(path.join("2_Normalize")).map_err(|e| Error::io(path, e))?;
        }
        let pooling = json!({
            "word_embedding_dimension": self.config.hidden_size,
            "pooling_mode_cls_token": self.pooling.mode == PoolingMode::Cls,
            "pooling_mode_mean_tokens": self.pooling.mode == PoolingMode::Mean,
            "pooling_mode_max_tokens": self.pooling.mode == PoolingMode::Max,
        });
        let folder = path.join("1_Pooling");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        write_aside(&folder.join("config.json"), pretty(&pooling).as_bytes())?;
        write_aside(&path.join("modules.json"), pretty(&Value::Array(modules)).as_bytes())
    }
}

/// A standard normal number (Box and Muller 1958), the same on every machine.
fn normal(noise: &mut Noise) -> f64 {
    let mut uniform = || ((noise.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (u, v) = (uniform(), uniform());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Writes a file aside, syncs it and renames it, so that a killed process or a full disk leaves what was there before.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) where it cannot be written.
pub fn write_aside(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let aside = beside(path, "new")?;
    let written = fs::File::create(&aside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&aside, path))
        .map_err(|e| Error::io(path, e));
    if written.is_err() {
        // The error says more than a failed clean-up would.
        let _ = fs::remove_file(&aside);
    }
    written
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A hidden neighbour of `path`, for what is not whole yet.
fn beside(path: &Path, what: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        Error::invalid_input(format!("{} does not name a folder that could be written", path.display()))
    })?;
    Ok(path.with_file_name(format!(".{}.{what}", name.to_string_lossy())))
}

/// Puts the folder `new` in the place of `path`.
fn replace_folder(new: &Path, path: &Path) -> Result<()> {
    let failed = |e| Error::io(path, e);
    let old = beside(path, "old")?;
    if !path.exists() {
        fs::rename(new, path).map_err(failed)?;
        // What a process left that was killed between the two moves below.
        return if old.exists() { fs::remove_dir_all(&old).map_err(failed) } else { Ok(()) };
    }
    if old.exists() {
        fs::remove_dir_all(&old).map_err(failed)?;
    }
    fs::rename(path, &old).map_err(failed)?;
    fs::rename(new, path).map_err(|e| {
        // Best effort: the error already says that the folder was not replaced.
        let _ = fs::rename(&old, path);
        failed(e)
    })?;
    fs::remove_dir_all(&old).map_err(failed)
}

/// A safetensors file of f32 tensors.
///
/// # Errors
/// [`Internal`](ErrorKind::Internal) where shapes and data do not fit.
pub fn safetensors_bytes(
    tensors: &[(String, &[usize], &[f32])],
    metadata: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<u8>> {
    let failed = |e: safetensors::SafeTensorError| Error::internal(format!("cannot lay out tensors: {e}"));
    let views = tensors
        .iter()
        .map(|(name, shape, data)| {
            let bytes: &[u8] = bytemuck::cast_slice(data);
            Ok((name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(failed)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    safetensors::serialize(views, Some(metadata)).map_err(failed)
}

/// The largest JSON file that is read; tokenizers of 250,000 pieces have 17 MB.
const MAX_JSON: u64 = 64 << 20;

/// Opens a regular file; a pipe would block, and a device never end.
fn open_regular(path: &Path) -> Result<fs::File> {
    if !fs::metadata(path).map_err(|e| Error::io(path, e))?.is_file() {
        return Err(Error::incompatible(format!("{}: expected a file, found a folder or a device", path.display())));
    }
    fs::File::open(path).map_err(|e| Error::io(path, e))
}

fn read_limited(path: &Path) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > MAX_JSON {
        return Err(Error::corrupt(format!("{}: larger than {MAX_JSON} bytes", path.display())));
    }
    Ok(bytes)
}

/// What is wrong with what `path` names, and what was meant, where that can be told.
fn opening(path: &Path, error: Error) -> Error {
    let inner = path.join("model");
    let is_checkpoint = || read_json(&path.join("config.json")).is_ok_and(|json| json["model_type"].is_string());
    match () {
        () if path.is_file() => Error::invalid_input("a file; a checkpoint is a folder").context(path.display()),
        () if inner.join("config.json").is_file() && !is_checkpoint() => {
            Error::invalid_input(format!("not a checkpoint, but {} is one", inner.display())).context(path.display())
        }
        () => error.context(path.display()),
    }
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read_limited(path)?)
        .map_err(|e| Error::corrupt(format!("{}: not JSON: {e}", path.display())).with_source(e))
}

/// The files of a checkpoint folder that hold the weights, by the first layout that is there.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) where there are none, [`Corrupt`](ErrorKind::Corrupt) for an index that names none of the folder's.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>> {
    for (whole, index) in
        [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")]
    {
        if path.join(whole).exists() {
            return Ok(vec![path.join(whole)]);
        }
        if path.join(index).exists() {
            let json = read_json(&path.join(index))?;
            let map =
                json["weight_map"].as_object().ok_or_else(|| Error::corrupt(format!("{index}: no weight_map")))?;
            let files: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
            return files
                .into_iter()
                .map(|file| match file.contains(['/', '\\']) {
                    true => Err(Error::corrupt(format!("{index}: {file:?} is not a file of this folder"))),
                    false => Ok(path.join(file)),
                })
                .collect();
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        "no weights: neither model.safetensors nor pytorch_model.bin, whole or sharded, is in this folder",
    ))
}

/// Whether a tensor of this name belongs to the head that is replaced by a new one.
fn is_replaced_head(name: &str) -> bool {
    name.starts_with("classifier.") || name.starts_with("pooler.") || name.starts_with("pre_classifier.")
}

fn read_weights(file: &Path, config: &ModelConfig, replaces_head: bool, weights: &mut Weights) -> Result<()> {
    let wanted: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    // What is not wanted, or of another shape, is named later and need not be read.
    let mut take = |found: &str, shape: &[usize], load: &dyn Fn() -> Result<Vec<f32>>| -> Result<()> {
        let name = canonical(found, config);
        if !wanted.contains_key(&name) && (is_left_over(&name) || (replaces_head && is_replaced_head(&name))) {
            return Ok(());
        }
        let data = if wanted.get(&name).is_some_and(|wanted| wanted == shape) { load()? } else { Vec::new() };
        match weights.0.insert(name.clone(), HostTensor { shape: shape.to_vec(), data }) {
            None => Ok(()),
            Some(_) => Err(Error::corrupt(format!("tensor {name:?} is there twice, under two of its names"))),
        }
    };
    if file.extension().is_some_and(|e| e == "bin") {
        let torch = pickle::TorchFile::open(file)?;
        for (found, shape) in torch.tensors() {
            take(found, shape, &|| torch.load_f32(found))?;
        }
        return Ok(());
    }
    let mut bytes = Vec::new();
    open_regular(file)?.read_to_end(&mut bytes).map_err(|e| Error::io(file, e))?;
    let damaged = |e: &dyn std::fmt::Display| Error::corrupt(format!("{}: {e}", file.display()));
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
    for (found, tensor) in tensors.iter() {
        take(found, tensor.shape(), &|| {
            widen(tensor.dtype(), tensor.data()).ok_or_else(|| {
                damaged(&format!("tensor {found:?}: expected F32, F16, BF16 or F64, found {:?}", tensor.dtype()))
            })
        })?;
    }
    Ok(())
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => halves().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        _ => return None,
    })
}

/// The most tensors that a message names.
const MAX_LISTED: usize = 1000;

/// Names every tensor that is missing, unused or of another shape, in one message.
fn check_tensors(config: &ModelConfig, weights: &Weights, replaces_head: bool) -> Result<()> {
    let wanted: BTreeMap<String, Vec<usize>> = config.tensors().into_iter().collect();
    let mut wrong = Vec::new();
    for (name, shape) in &wanted {
        match weights.0.get(name) {
            None => wrong.push(format!("{name}: missing")),
            Some(found) if found.shape != *shape => {
                wrong.push(format!("{name}: expected {shape:?}, found {:?}", found.shape));
            }
            Some(_) => {}
        }
    }
    for name in weights.0.keys().filter(|name| !wanted.contains_key(*name)) {
        wrong.push(format!("{name}: not part of this model"));
    }
    if wrong.is_empty() {
        return weights.0.iter().try_for_each(|(name, t)| crate::model::check_finite(name, &t.data));
    }
    let hint = match wrong.iter().any(|w| w.starts_with("classifier.")) && !replaces_head {
        true => "; where the head is not wanted or not trained yet, ask for a new one",
        false => "",
    };
    let more = match wrong.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        n => format!("; and {n} more"),
    };
    wrong.truncate(MAX_LISTED);
    Err(Error::corrupt(format!("the weights do not fit config.json: {}{more}{hint}", wrong.join("; "))))
}

fn read_tokenizer(path: &Path, config: &Value, model_type: ModelType) -> Result<Tokenizer> {
    let file = path.join("tokenizer.json");
    if file.exists() {
        return Tokenizer::from_json(&read_limited(&file)?);
    }
    let own = path.join("tokenizer_config.json");
    let own = if own.exists() { read_json(&own)? } else { Value::Object(Map::new()) };
    // A setting stands in tokenizer_config.json, in old folders in config.json, or nowhere.
    let setting = |name: &str| [&own, config].into_iter().map(|c| &c[name]).find(|v| !v.is_null());
    let special = SpecialTokens::from_settings(model_type == ModelType::Roberta, |name| {
        let value = setting(name)?;
        value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
    });
    let vocab = path.join("vocab.txt");
    if vocab.exists() {
        let text = String::from_utf8(read_limited(&vocab)?)
            .map_err(|e| Error::corrupt(format!("vocab.txt: not UTF-8: {}", e.utf8_error())))?;
        let lowercase = setting("do_lower_case").and_then(Value::as_bool).unwrap_or_else(|| {
            // Published cased vocabularies without the setting are told by their capital letters.
            !text.lines().any(|piece| !piece.starts_with('[') && piece.chars().any(char::is_uppercase))
        });
        let strip_accents = setting("strip_accents").and_then(Value::as_bool);
        let chinese = setting("tokenize_chinese_chars").and_then(Value::as_bool).unwrap_or(true);
        return Tokenizer::from_vocab_txt(&text, lowercase, strip_accents, chinese, &special);
    }
    let (vocab, merges) = (path.join("vocab.json"), path.join("merges.txt"));
    if vocab.exists() && merges.exists() {
        let text = String::from_utf8(read_limited(&merges)?)
            .map_err(|e| Error::corrupt(format!("merges.txt: not UTF-8: {}", e.utf8_error())))?;
        let prefix = setting("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
        return Tokenizer::from_vocab_merges(&read_limited(&vocab)?, &text, prefix, &special);
    }
    Err(Error::new(
        ErrorKind::NotFound,
        "no tokenizer: neither tokenizer.json, nor vocab.txt, nor vocab.json with merges.txt is in this folder",
    ))
}

/// The names in `config.json` of what transformers has no field for.
const TEMPERATURE: &str = "ampoule_temperature";
const QUANTIZATION_AWARE: &str = "ampoule_quantization_aware";

fn read_temperature(config: &Value) -> Result<f32> {
    match &config[TEMPERATURE] {
        Value::Null => Ok(1.0),
        value => value.as_f64().map(|t| t as f32).filter(|&t| is_temperature(t)).ok_or_else(|| {
            Error::incompatible(format!(
                "config.json: field {TEMPERATURE:?}: expected a positive normal number, found {value}"
            ))
        }),
    }
}

fn read_pooling(path: &Path) -> Result<Pooling> {
    let modules = path.join("modules.json");
    if !modules.exists() {
        return Ok(Pooling::default());
    }
    let modules = read_json(&modules)?;
    let types: Vec<&str> = modules.as_array().into_iter().flatten().filter_map(|m| m["type"].as_str()).collect();
    if let Some(other) =
        types.iter().find(|t| !["Transformer", "Pooling", "Normalize"].iter().any(|known| t.ends_with(known)))
    {
        return Err(Error::incompatible(format!(
            "modules.json: the module {other:?} is not supported; supported are Transformer, Pooling and Normalize"
        )));
    }
    let mut mode = PoolingMode::Mean;
    let pooling = path.join("1_Pooling").join("config.json");
    if pooling.exists() {
        let pooling = read_json(&pooling)?;
        let modes: Vec<&str> = pooling
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, value)| name.starts_with("pooling_mode_") && **value == json!(true))
            .map(|(name, _)| name.as_str())
            .collect();
        mode = match modes.as_slice() {
            ["pooling_mode_mean_tokens"] => PoolingMode::Mean,
            ["pooling_mode_cls_token"] => PoolingMode::Cls,
            ["pooling_mode_max_tokens"] => PoolingMode::Max,
            other => {
                return Err(Error::incompatible(format!(
                    "1_Pooling/config.json: {other:?} is not supported; supported is one of mean, CLS and max"
                )));
            }
        };
    }
    Ok(Pooling { mode, normalize: types.iter().any(|t| t.ends_with("Normalize")) })
}
