//! What a model is: the fields of a Hugging Face `config.json`, under their own names.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::kernels::Activation;

/// The largest value accepted for any size in a configuration; a larger one is taken for damage.
pub const MAX_DIMENSION: usize = 1 << 20;

/// The most layers, each of which is a page of names before a file is known to hold them.
const MAX_LAYERS: usize = 256;

/// The most labels; decoding compares each with each.
const MAX_LABELS: usize = 4096;

/// The encoder architectures that are read, as `model_type` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ModelType {
    Bert,
    DistilBert,
    Roberta,
    Electra,
}

impl ModelType {
    /// All of them, in the order in which an error lists them.
    pub const ALL: [ModelType; 4] = [ModelType::Bert, ModelType::DistilBert, ModelType::Roberta, ModelType::Electra];

    /// The value of `model_type` in `config.json`.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelType::Bert => "bert",
            ModelType::DistilBert => "distilbert",
            ModelType::Roberta => "roberta",
            ModelType::Electra => "electra",
        }
    }
}

impl Activation {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(Error::incompatible(format!(
                "config.json: activation {other:?} is not supported; supported are \"gelu\", \"gelu_new\", \
                 \"gelu_pytorch_tanh\" and \"relu\""
            ))),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_new",
            Activation::Relu => "relu",
            Activation::Tanh => "tanh",
        }
    }
}

/// What a model's head answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// No head: hidden states, for vectors and search.
    Encoder,
    /// A label for every token (`…ForTokenClassification`).
    TokenClassification,
    /// One of several labels for a text (`…ForSequenceClassification`, softmax).
    SingleLabel,
    /// Any number of labels for a text (`problem_type: multi_label_classification`, sigmoid).
    MultiLabel,
}

impl Task {
    /// The name under which bundles and reports record the task.
    pub fn as_str(self) -> &'static str {
        match self {
            Task::Encoder => "encoder",
            Task::TokenClassification => "token-classification",
            Task::SingleLabel => "single-label-classification",
            Task::MultiLabel => "multi-label-classification",
        }
    }
}

/// The shape and the labels of a model. Field names are those of Hugging Face's `config.json` for BERT;
/// the other architectures' own names are read and written where their folders want them. A `config.json` may hold
/// `ampoule_temperature` too, which is no part of the shape: a `Checkpoint` reads and writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture, which decides names, position offsets and head.
    pub model_type: ModelType,
    /// What the head answers.
    pub task: Task,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the embeddings; differs from `hidden_size` in ELECTRA models only.
    pub embedding_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Number of encoder layers.
    pub num_hidden_layers: usize,
    /// Number of attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward blocks.
    pub intermediate_size: usize,
    /// Non-linearity of the feed-forward blocks.
    pub hidden_act: Activation,
    /// Rows of the position embedding.
    pub max_position_embeddings: usize,
    /// Rows of the token-type embedding; 0 where the architecture has none (DistilBERT).
    pub type_vocab_size: usize,
    /// Epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// The padding token, from which RoBERTa counts its positions.
    pub pad_token_id: usize,
    /// Dropout after embeddings and blocks, in training.
    pub hidden_dropout_prob: f64,
    /// Dropout of the attention probabilities, in training.
    pub attention_probs_dropout_prob: f64,
    /// Dropout before the head, in training; `hidden_dropout_prob` where absent.
    pub classifier_dropout: Option<f64>,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Label names by the head's output index; empty for an encoder.
    pub id2label: Vec<String>,
}

/// Reads fields of one JSON object under an architecture's own names.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn size(&self, name: &str) -> Result<usize> {
        let value =
            self.0.get(name).ok_or_else(|| Error::incompatible(format!("config.json: field {name:?} is missing")))?;
        self.as_size(name, value)
    }

    fn size_or(&self, name: &str, default: usize) -> Result<usize> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => self.as_size(name, value),
        }
    }

    fn as_size(&self, name: &str, value: &Value) -> Result<usize> {
        value.as_u64().filter(|&n| n <= MAX_DIMENSION as u64).map(|n| n as usize).ok_or_else(|| {
            Error::incompatible(format!(
                "config.json: field {name:?}: expected a whole number of at most {MAX_DIMENSION}, found {value}"
            ))
        })
    }

    fn number_or(&self, name: &str, default: f64) -> Result<f64> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| {
                Error::incompatible(format!("config.json: field {name:?}: expected a number, found {value}"))
            }),
        }
    }

    fn probability_or(&self, name: &str, default: f64) -> Result<f64> {
        let p = self.number_or(name, default)?;
        if (0.0..1.0).contains(&p) {
            Ok(p)
        } else {
            Err(Error::incompatible(format!("config.json: field {name:?}: expected a probability in 0..1, found {p}")))
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }
}

impl ModelConfig {
    /// Reads the object of a `config.json`.
    ///
    /// The task follows `architectures`: `…ForTokenClassification`, `…ForSequenceClassification` (multi-label where
    /// `problem_type` says so), anything else is a bare encoder.
    ///
    /// # Errors
    /// [`Incompatible`](crate::ErrorKind::Incompatible) for another architecture, for a field that changes the
    /// arithmetic and is not supported, and for a value out of range; each is named.
    pub fn from_json(config: &Value) -> Result<Self> {
        let map = config.as_object().ok_or_else(|| Error::corrupt("config.json: expected a JSON object"))?;
        let fields = Fields(map);
        let found = fields.text("model_type").unwrap_or("");
        let model_type = ModelType::ALL.into_iter().find(|t| t.as_str() == found).ok_or_else(|| {
            let known: Vec<_> = ModelType::ALL.iter().map(|t| t.as_str()).collect();
            Error::incompatible(format!(
                "config.json: model_type {found:?} is not supported; supported are {}",
                known.join(", ")
            ))
        })?;
        refuse_other_arithmetic(&fields)?;

        let architecture = map.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str).unwrap_or("");
        let task = if architecture.ends_with("ForTokenClassification") {
            Task::TokenClassification
        } else if architecture.ends_with("ForSequenceClassification") {
            match fields.text("problem_type") {
                Some("multi_label_classification") => Task::MultiLabel,
                Some("regression") => {
                    return Err(Error::incompatible(
                        "config.json: problem_type \"regression\" is not supported; supported are \
                         \"single_label_classification\" and \"multi_label_classification\"",
                    ));
                }
                _ => Task::SingleLabel,
            }
        } else {
            Task::Encoder
        };

        let config = if model_type == ModelType::DistilBert {
            let hidden_size = fields.size("dim")?;
            ModelConfig {
                model_type,
                task,
                vocab_size: fields.size("vocab_size")?,
                embedding_size: hidden_size,
                hidden_size,
                num_hidden_layers: fields.size("n_layers")?,
                num_attention_heads: fields.size("n_heads")?,
                intermediate_size: fields.size("hidden_dim")?,
                hidden_act: Activation::parse(fields.text("activation").unwrap_or("gelu"))?,
                max_position_embeddings: fields.size("max_position_embeddings")?,
                type_vocab_size: 0,
                layer_norm_eps: 1e-12,
                pad_token_id: fields.size_or("pad_token_id", 0)?,
                hidden_dropout_prob: fields.probability_or("dropout", 0.1)?,
                attention_probs_dropout_prob: fields.probability_or("attention_dropout", 0.1)?,
                classifier_dropout: match task {
                    Task::SingleLabel | Task::MultiLabel => Some(fields.probability_or("seq_classif_dropout", 0.2)?),
                    _ => None,
                },
                initializer_range: fields.number_or("initializer_range", 0.02)?,
                id2label: labels(map, task)?,
            }
        } else {
            let hidden_size = fields.size("hidden_size")?;
            let embedding_size = match model_type {
                ModelType::Electra => fields.size_or("embedding_size", 128)?,
                _ => hidden_size,
            };
            ModelConfig {
                model_type,
                task,
                vocab_size: fields.size("vocab_size")?,
                embedding_size,
                hidden_size,
                num_hidden_layers: fields.size("num_hidden_layers")?,
                num_attention_heads: fields.size("num_attention_heads")?,
                intermediate_size: fields.size("intermediate_size")?,
                hidden_act: Activation::parse(fields.text("hidden_act").unwrap_or("gelu"))?,
                max_position_embeddings: fields.size("max_position_embeddings")?,
                type_vocab_size: fields.size_or("type_vocab_size", 2)?,
                layer_norm_eps: fields.number_or("layer_norm_eps", 1e-12)?,
                pad_token_id: fields.size_or("pad_token_id", usize::from(model_type == ModelType::Roberta))?,
                hidden_dropout_prob: fields.probability_or("hidden_dropout_prob", 0.1)?,
                attention_probs_dropout_prob: fields.probability_or("attention_probs_dropout_prob", 0.1)?,
                classifier_dropout: match map.get("classifier_dropout") {
                    None | Some(Value::Null) => None,
                    Some(_) => Some(fields.probability_or("classifier_dropout", 0.1)?),
                },
                initializer_range: fields.number_or("initializer_range", 0.02)?,
                id2label: labels(map, task)?,
            }
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the sizes fit one another, as [`ModelConfig::from_json`] does.
    ///
    /// # Errors
    /// [`Incompatible`](crate::ErrorKind::Incompatible), naming the field.
    pub fn validate(&self) -> Result<()> {
        for (name, value, most) in [
            ("vocab_size", self.vocab_size, MAX_DIMENSION),
            ("hidden_size", self.hidden_size, MAX_DIMENSION),
            ("embedding_size", self.embedding_size, MAX_DIMENSION),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, MAX_DIMENSION),
            ("intermediate_size", self.intermediate_size, MAX_DIMENSION),
            ("max_position_embeddings", self.max_position_embeddings, MAX_DIMENSION),
        ] {
            if value == 0 || value > most {
                return Err(Error::incompatible(format!(
                    "config.json: field {name:?}: expected 1 to {most}, found {value}"
                )));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::incompatible(format!(
                "config.json: hidden_size {} is not a multiple of num_attention_heads {}",
                self.hidden_size, self.num_attention_heads
            )));
        }
        if self.pad_token_id >= self.vocab_size {
            return Err(Error::incompatible(format!(
                "config.json: pad_token_id {} is no row of the {} of the word embedding",
                self.pad_token_id, self.vocab_size
            )));
        }
        if self.max_tokens() < 3 {
            return Err(Error::incompatible(format!(
                "config.json: max_position_embeddings {} leaves no room for a token between the special ones",
                self.max_position_embeddings
            )));
        }
        if self.layer_norm_eps <= 0.0 {
            return Err(Error::incompatible(format!(
                "config.json: layer_norm_eps must be positive, found {}",
                self.layer_norm_eps
            )));
        }
        if self.task == Task::SingleLabel && self.id2label.len() == 1 {
            return Err(Error::incompatible(
                "config.json: a single label is a regression, which is not supported; with problem_type \
                 \"multi_label_classification\" it is a label that a text has or has not",
            ));
        }
        if self.id2label.len() > MAX_LABELS {
            return Err(Error::incompatible(format!(
                "config.json: id2label: expected at most {MAX_LABELS} labels, found {}",
                self.id2label.len()
            )));
        }
        // It is printed, in terminals too, which would do what it says.
        if let Some(label) = self.id2label.iter().find(|label| label.contains(char::is_control)) {
            return Err(Error::incompatible(format!("config.json: id2label: {label:?} has a control character")));
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(label) = self.id2label.iter().find(|label| !seen.insert(label.as_str())) {
            return Err(Error::incompatible(format!("config.json: id2label: {label:?} is there twice")));
        }
        if self.task != Task::Encoder && self.id2label.is_empty() {
            return Err(Error::incompatible("config.json: id2label names no label"));
        }
        Ok(())
    }

    /// The most tokens of one sequence, special tokens counted. RoBERTa's first positions (as many as
    /// `pad_token_id + 1`) are never used.
    pub fn max_tokens(&self) -> usize {
        match self.model_type {
            ModelType::Roberta => self.max_position_embeddings.saturating_sub(self.pad_token_id + 1),
            _ => self.max_position_embeddings,
        }
    }

    /// The row of the position embedding that the first token takes.
    pub(crate) fn first_position(&self) -> usize {
        match self.model_type {
            ModelType::Roberta => self.pad_token_id + 1,
            _ => 0,
        }
    }

    /// Whether a text's label comes from a dense layer over the first token (all classification heads).
    pub(crate) fn has_pooler(&self) -> bool {
        matches!(self.task, Task::SingleLabel | Task::MultiLabel)
    }

    /// The non-linearity between the two layers of a text classification head.
    pub(crate) fn pooler_act(&self) -> Activation {
        match self.model_type {
            ModelType::Bert | ModelType::Roberta => Activation::Tanh,
            ModelType::DistilBert => Activation::Relu,
            ModelType::Electra => Activation::Gelu,
        }
    }

    /// Every tensor of such a model: its name (BERT's, without the `bert.` prefix) and its shape, linear weights as
    /// `[out, in]`. Bundles and checkpoints are checked against it.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (e, h, f) = (self.embedding_size, self.hidden_size, self.intermediate_size);
        let mut all = Vec::new();
        let mut linear = |name: &str, outputs: usize, inputs: usize| {
            all.push((format!("{name}.weight"), vec![outputs, inputs]));
            all.push((format!("{name}.bias"), vec![outputs]));
        };
        for i in 0..self.num_hidden_layers {
            let layer = format!("encoder.layer.{i}");
            for part in ["query", "key", "value"] {
                linear(&format!("{layer}.attention.self.{part}"), h, h);
            }
            linear(&format!("{layer}.attention.output.dense"), h, h);
            linear(&format!("{layer}.intermediate.dense"), f, h);
            linear(&format!("{layer}.output.dense"), h, f);
        }
        if e != h {
            linear("embeddings_project", h, e);
        }
        if self.has_pooler() {
            linear("pooler.dense", h, h);
        }
        if self.task != Task::Encoder {
            linear("classifier", self.id2label.len(), h);
        }
        for name in std::iter::once("embeddings.LayerNorm".to_owned()).chain(
            (0..self.num_hidden_layers)
                .flat_map(|i| ["attention.output", "output"].map(|part| format!("encoder.layer.{i}.{part}.LayerNorm"))),
        ) {
            let width = if name.starts_with("embeddings") { e } else { h };
            all.push((format!("{name}.weight"), vec![width]));
            all.push((format!("{name}.bias"), vec![width]));
        }
        for (name, rows) in [
            ("word", self.vocab_size),
            ("position", self.max_position_embeddings),
            ("token_type", self.type_vocab_size),
        ] {
            if rows > 0 {
                all.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, e]));
            }
        }
        all
    }

    /// The `config.json` that transformers reads for such a model.
    pub fn to_json(&self) -> Value {
        let prefix = match self.model_type {
            ModelType::Bert => "Bert",
            ModelType::DistilBert => "DistilBert",
            ModelType::Roberta => "Roberta",
            ModelType::Electra => "Electra",
        };
        let head = match self.task {
            Task::Encoder => "Model",
            Task::TokenClassification => "ForTokenClassification",
            Task::SingleLabel | Task::MultiLabel => "ForSequenceClassification",
        };
        let mut config = json!({
            "architectures": [format!("{prefix}{head}")],
            "model_type": self.model_type.as_str(),
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "pad_token_id": self.pad_token_id,
            "initializer_range": self.initializer_range,
        });
        if let Some(map) = config.as_object_mut() {
            let mut set = |name: &str, value: Value| map.insert(name.to_owned(), value);
            if self.model_type == ModelType::DistilBert {
                set("dim", json!(self.hidden_size));
                set("n_layers", json!(self.num_hidden_layers));
                set("n_heads", json!(self.num_attention_heads));
                set("hidden_dim", json!(self.intermediate_size));
                set("activation", json!(self.hidden_act.as_str()));
                set("dropout", json!(self.hidden_dropout_prob));
                set("attention_dropout", json!(self.attention_probs_dropout_prob));
                set("sinusoidal_pos_embds", json!(false));
                if let Some(p) = self.classifier_dropout {
                    set("seq_classif_dropout", json!(p));
                }
            } else {
                set("hidden_size", json!(self.hidden_size));
                set("num_hidden_layers", json!(self.num_hidden_layers));
                set("num_attention_heads", json!(self.num_attention_heads));
                set("intermediate_size", json!(self.intermediate_size));
                set("hidden_act", json!(self.hidden_act.as_str()));
                set("type_vocab_size", json!(self.type_vocab_size));
                set("layer_norm_eps", json!(self.layer_norm_eps));
                set("hidden_dropout_prob", json!(self.hidden_dropout_prob));
                set("attention_probs_dropout_prob", json!(self.attention_probs_dropout_prob));
                set("classifier_dropout", json!(self.classifier_dropout));
                set("position_embedding_type", json!("absolute"));
                if self.model_type == ModelType::Electra {
                    set("embedding_size", json!(self.embedding_size));
                }
            }
            if self.task != Task::Encoder {
                let id2label: Map<_, _> =
                    self.id2label.iter().enumerate().map(|(i, label)| (i.to_string(), json!(label))).collect();
                let label2id: Map<_, _> =
                    self.id2label.iter().enumerate().map(|(i, label)| (label.clone(), json!(i))).collect();
                set("id2label", Value::Object(id2label));
                set("label2id", Value::Object(label2id));
            }
            match self.task {
                Task::SingleLabel => {
                    set("problem_type", json!("single_label_classification"));
                }
                Task::MultiLabel => {
                    set("problem_type", json!("multi_label_classification"));
                }
                Task::Encoder | Task::TokenClassification => {}
            }
        }
        config
    }
}

/// Refuses fields that change the arithmetic, unless they hold the value that is computed here.
fn refuse_other_arithmetic(fields: &Fields) -> Result<()> {
    let computed = [
        ("position_embedding_type", json!("absolute")),
        ("is_decoder", json!(false)),
        ("add_cross_attention", json!(false)),
        ("is_encoder_decoder", json!(false)),
        ("chunk_size_feed_forward", json!(0)),
        ("quantization_config", Value::Null),
        ("summary_type", json!("first")),
        ("summary_use_proj", json!(true)),
        ("summary_activation", json!("gelu")),
        ("pruned_heads", json!({})),
    ];
    for (name, expected) in computed {
        match fields.0.get(name) {
            None | Some(Value::Null) => {}
            Some(found) if *found == expected => {}
            Some(found) => {
                return Err(Error::incompatible(format!(
                    "config.json: field {name:?}: {found} is not supported; only {expected} is computed"
                )));
            }
        }
    }
    Ok(())
}

/// `id2label` in the order of its ids; `LABEL_i` for `num_labels` labels where it is absent.
fn labels(map: &Map<String, Value>, task: Task) -> Result<Vec<String>> {
    if task == Task::Encoder {
        return Ok(Vec::new());
    }
    let Some(id2label) = map.get("id2label").and_then(Value::as_object) else {
        // transformers writes no id2label for its default of two labels
        let count = Fields(map).size_or("num_labels", 2)?;
        return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
    };
    (0..id2label.len())
        .map(|i| {
            id2label.get(&i.to_string()).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
                Error::incompatible(format!(
                    "config.json: id2label has {} entries and none with the id {i}",
                    id2label.len()
                ))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn bert() -> Value {
        json!({
            "model_type": "bert", "architectures": ["BertForTokenClassification"], "vocab_size": 100,
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "max_position_embeddings": 64, "id2label": {"0": "O", "1": "B-Disease", "2": "I-Disease"},
        })
    }

    #[test]
    fn what_is_written_is_read_again() {
        let config = ModelConfig::from_json(&bert()).unwrap();
        assert_eq!(config.id2label, ["O", "B-Disease", "I-Disease"]);
        for model_type in ModelType::ALL {
            for task in [Task::Encoder, Task::TokenClassification, Task::SingleLabel, Task::MultiLabel] {
                let mut config = ModelConfig { model_type, task, ..config.clone() };
                if task == Task::Encoder {
                    config.id2label.clear();
                }
                if model_type == ModelType::DistilBert {
                    config.type_vocab_size = 0;
                    config.classifier_dropout = config.has_pooler().then_some(0.2);
                }
                assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
            }
        }
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (field, value) in [
            ("position_embedding_type", json!("relative_key")),
            ("hidden_act", json!("swish")),
            ("is_decoder", json!(true)),
            ("hidden_size", json!(33)),
            ("hidden_size", json!(1e30)),
            ("num_attention_heads", json!(0)),
            ("num_hidden_layers", json!(257)),
            ("id2label", (0..4097).map(|i| (i.to_string(), json!(format!("I-{i}")))).collect::<Map<_, _>>().into()),
            ("id2label", json!({"0": "O", "1": "I-\u{1b}[2J"})),
            ("pad_token_id", json!(100)),
            ("hidden_dropout_prob", json!(1.5)),
        ] {
            let mut config = bert();
            config[field] = value;
            let error = ModelConfig::from_json(&config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Incompatible);
            let named = if field == "hidden_act" { "swish" } else { field };
            assert!(error.to_string().contains(named), "{error}");
        }
        let mut regression = bert();
        regression["architectures"] = json!(["BertForSequenceClassification"]);
        regression["id2label"] = json!({"0": "LABEL_0"});
        let error = ModelConfig::from_json(&regression).unwrap_err();
        assert!(error.to_string().contains("regression"), "{error}");
        let error = ModelConfig::from_json(&json!({"model_type": "t5"})).unwrap_err();
        assert!(error.to_string().contains("\"t5\"") && error.to_string().contains("distilbert"));
    }
}
