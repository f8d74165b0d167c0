//! Tokenizers from what checkpoints hold in place of a `tokenizer.json`, and the checks of one.

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::pieces::{Kind, Vocab};
use crate::error::{Error, Result};

/// The names of a tokenizer's special tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Before every text (`[CLS]`, `<s>`).
    pub cls: String,
    /// After every text (`[SEP]`, `</s>`).
    pub sep: String,
    /// Fills a batch up (`[PAD]`, `<pad>`).
    pub pad: String,
    /// Stands for what the vocabulary cannot say (`[UNK]`, `<unk>`).
    pub unk: String,
    /// Hides a token in pre-training (`[MASK]`, `<mask>`).
    pub mask: String,
}

impl SpecialTokens {
    /// The names that `setting` gives for `cls_token`, `sep_token` and so on, else RoBERTa's or BERT's own.
    pub fn from_settings(is_roberta: bool, setting: impl Fn(&str) -> Option<String>) -> Self {
        let name = |key: &str, roberta: &str, bert: &str| {
            setting(key).unwrap_or_else(|| if is_roberta { roberta } else { bert }.to_owned())
        };
        SpecialTokens {
            cls: name("cls_token", "<s>", "[CLS]"),
            sep: name("sep_token", "</s>", "[SEP]"),
            pad: name("pad_token", "<pad>", "[PAD]"),
            unk: name("unk_token", "<unk>", "[UNK]"),
            mask: name("mask_token", "<mask>", "[MASK]"),
        }
    }

    /// The names in a `tokenizer.json`: those of its post-processor where it has one, the usual ones else.
    pub(super) fn of(json: &Value, is_known: impl Fn(&str) -> bool) -> Result<Self> {
        let mut special = Self::from_settings(is_known("<s>") && !is_known("[CLS]"), |_| None);
        if let Some(unk) = json["model"]["unk_token"].as_str() {
            special.unk = unk.to_owned();
        }
        let Some((cls, sep)) = around(&json["post_processor"]) else {
            return match is_known(&special.cls) && is_known(&special.sep) {
                true => Ok(special),
                false => Err(Error::incompatible(
                    "tokenizer.json: no classification and separator tokens are named by its post_processor, and neither \
                     [CLS] and [SEP] nor <s> and </s> are in its vocabulary",
                )),
            };
        };
        Ok(SpecialTokens { cls, sep, ..special })
    }
}

/// The special tokens that a post-processor puts around a text.
fn around(post_processor: &Value) -> Option<(String, String)> {
    match post_processor["type"].as_str()? {
        "TemplateProcessing" => {
            let ids: Vec<&str> = post_processor["single"]
                .as_array()?
                .iter()
                .filter_map(|piece| piece["SpecialToken"]["id"].as_str())
                .collect();
            match ids.as_slice() {
                [cls, sep] => Some(((*cls).to_owned(), (*sep).to_owned())),
                _ => None,
            }
        }
        "BertProcessing" | "RobertaProcessing" => {
            let name = |key: &str| post_processor[key][0].as_str().map(str::to_owned);
            Some((name("cls")?, name("sep")?))
        }
        "Sequence" => post_processor["processors"].as_array()?.iter().find_map(around),
        _ => None,
    }
}

/// The parts of a tokenizer that are known to give the ids of Python, and never to panic or to loop, on any text.
const NORMALIZERS: [&str; 8] =
    ["BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Sequence"];
const POST_PROCESSORS: [&str; 5] =
    ["TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence"];
/// WordPiece's time grows faster than the square of a word's length up to this limit; BERT's own is 100.
const MAX_WORD: u64 = 500;
/// It is looked at again with every piece of a word; BERT's own is two bytes.
const MAX_PREFIX: usize = 64;

/// The steps of a normalizer or post-processor, whose sequences may not be nested.
pub(super) fn steps<'a>(part: &'a Value, inner: &str) -> Vec<&'a Value> {
    match part["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => part[inner].as_array().into_iter().flatten().collect(),
        Some(_) => vec![part],
    }
}

/// Refuses a part of another type than `known`, and a sequence in a sequence.
fn check_part(json: &Value, part: &str, inner: &str, known: &[&str]) -> Result<()> {
    let is_known = |value: &Value| value["type"].as_str().is_some_and(|t| known.contains(&t));
    let value = &json[part];
    let steps = steps(value, inner);
    let unknown = (!value.is_null() && !is_known(value)).then_some(value);
    match unknown.or(steps.into_iter().find(|s| s["type"] == "Sequence" || !is_known(s))) {
        None => Ok(()),
        Some(found) => Err(Error::incompatible(format!(
            "tokenizer.json: the {part} {} is not supported; supported are {}",
            found["type"],
            known.join(", ")
        ))),
    }
}

/// Refuses what is not supported, and what `tokenizers` would accept and then fail on. `json` is without its vocabulary.
pub(super) fn check(json: &Value, vocab: &Vocab) -> Result<Kind> {
    if !matches!(&json["version"], Value::Null) && json["version"] != "1.0" {
        return Err(Error::incompatible(format!("tokenizer.json: expected version 1.0, found {}", json["version"])));
    }
    let model = &json["model"];
    let kind = match (&model["type"], model["merges"].is_array()) {
        (Value::String(name), _) if name == "WordPiece" => Kind::WordPiece,
        (Value::String(name), _) if name == "BPE" => Kind::Bpe,
        (Value::Null, false) => Kind::WordPiece,
        (Value::Null, true) => Kind::Bpe,
        (other, _) => {
            return Err(Error::incompatible(format!(
                "tokenizer.json: the model {other} is not supported; supported are WordPiece and byte-level BPE"
            )));
        }
    };
    let is_bpe = kind == Kind::Bpe;
    check_part(json, "normalizer", "normalizers", &NORMALIZERS)?;
    check_part(json, "post_processor", "processors", &POST_PROCESSORS)?;
    let pre_tokenizer = json["pre_tokenizer"]["type"].as_str().unwrap_or("none");
    let (name, fits) = if is_bpe { ("BPE", "ByteLevel") } else { ("WordPiece", "BertPreTokenizer") };
    if pre_tokenizer != fits {
        return Err(Error::incompatible(format!(
            "tokenizer.json: the pre_tokenizer {pre_tokenizer:?} is not supported; with {name} it has to be {fits:?}"
        )));
    }
    let is_set = |field: &str| model[field].as_str().is_some_and(|affix| !affix.is_empty());
    if is_bpe && (is_set("continuing_subword_prefix") || is_set("end_of_word_suffix")) {
        return Err(Error::incompatible("tokenizer.json: BPE with a prefix or suffix of sub-words is not supported"));
    }
    if model["dropout"].as_f64().is_some_and(|p| p != 0.0) {
        return Err(Error::incompatible("tokenizer.json: BPE dropout would give other ids each time; set it to null"));
    }
    if model["max_input_chars_per_word"].as_u64().is_some_and(|n| n > MAX_WORD) {
        return Err(Error::incompatible(format!(
            "tokenizer.json: max_input_chars_per_word: expected at most {MAX_WORD}, found {}",
            model["max_input_chars_per_word"]
        )));
    }
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    if prefix.len() > MAX_PREFIX {
        return Err(Error::incompatible(format!(
            "tokenizer.json: continuing_subword_prefix: expected at most {MAX_PREFIX} bytes, found {}",
            prefix.len()
        )));
    }
    if vocab.is_empty() {
        return Err(Error::corrupt("tokenizer.json: the vocabulary is missing or empty"));
    }
    let unk = model["unk_token"].as_str().or((!is_bpe).then_some("[UNK]"));
    if let Some(unk) = unk.filter(|unk| vocab.id(unk).is_none()) {
        return Err(Error::corrupt(format!("tokenizer.json: the unknown token {unk:?} is not in the vocabulary")));
    }
    Ok(kind)
}

impl Tokenizer {
    /// BERT's tokenizer over a `vocab.txt`, one piece a line, as transformers builds it.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) or [`Incompatible`](crate::ErrorKind::Incompatible) where special tokens are
    /// not in it.
    pub fn from_vocab_txt(
        vocab: &str,
        lowercase: bool,
        strip_accents: Option<bool>,
        handle_chinese_chars: bool,
        special: &SpecialTokens,
    ) -> Result<Self> {
        let pieces: Map<String, Value> = vocab
            .split_terminator('\n')
            .map(|line| line.strip_suffix('\r').unwrap_or(line))
            .enumerate()
            .map(|(id, piece)| (piece.to_owned(), json!(id)))
            .collect();
        let id = |name: &str| required(&pieces, "vocab.txt", name);
        let (cls, sep) = (id(&special.cls)?, id(&special.sep)?);
        let token = |name: &str, id: &Value| json!({"id": name, "ids": [id], "tokens": [name]});
        let template = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let json = json!({
            "version": "1.0",
            "added_tokens": added_tokens(&pieces, special),
            "normalizer": {
                "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": handle_chinese_chars,
                "strip_accents": strip_accents, "lowercase": lowercase,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [template(&special.cls), text, template(&special.sep)],
                "pair": [
                    template(&special.cls), text, template(&special.sep),
                    {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": special.sep, "type_id": 1}},
                ],
                "special_tokens": {(special.cls.as_str()): token(&special.cls, &cls), (special.sep.as_str()): token(&special.sep, &sep)},
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {
                "type": "WordPiece", "unk_token": special.unk, "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": pieces,
            },
        });
        Self::from_json(json.to_string().as_bytes())
    }

    /// RoBERTa's byte-level BPE over a `vocab.json` and a `merges.txt`, as transformers builds it.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) or [`Incompatible`](crate::ErrorKind::Incompatible) where the files do not fit
    /// one another or special tokens are missing.
    pub fn from_vocab_merges(
        vocab: &[u8],
        merges: &str,
        add_prefix_space: bool,
        special: &SpecialTokens,
    ) -> Result<Self> {
        let pieces: Map<String, Value> =
            serde_json::from_slice(vocab).map_err(|e| Error::corrupt(format!("vocab.json: not a JSON object: {e}")))?;
        let id = |name: &str| required(&pieces, "vocab.json", name);
        let (cls, sep) = (id(&special.cls)?, id(&special.sep)?);
        let merges: Vec<&str> =
            merges.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty()).collect();
        let json = json!({
            "version": "1.0",
            "added_tokens": added_tokens(&pieces, special),
            "normalizer": null,
            "pre_tokenizer": {
                "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true,
            },
            "post_processor": {
                "type": "RobertaProcessing", "sep": [special.sep, sep], "cls": [special.cls, cls],
                "trim_offsets": true, "add_prefix_space": add_prefix_space,
            },
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": pieces, "merges": merges,
            },
        });
        Self::from_json(json.to_string().as_bytes())
    }
}

fn required(pieces: &Map<String, Value>, file: &str, name: &str) -> Result<Value> {
    pieces
        .get(name)
        .cloned()
        .ok_or_else(|| Error::incompatible(format!("{file}: the special token {name:?} is not in it")))
}

/// The special tokens that are in the vocabulary, as `tokenizer.json` lists them.
fn added_tokens(pieces: &Map<String, Value>, special: &SpecialTokens) -> Vec<Value> {
    let mut tokens: Vec<(u64, Value)> = [&special.pad, &special.unk, &special.cls, &special.sep, &special.mask]
        .into_iter()
        .filter_map(|name| {
            let id = pieces.get(name)?.as_u64()?;
            // As transformers has it, RoBERTa's mask takes the space before it.
            let lstrip = name == "<mask>";
            Some((
                id,
                json!({
                    "id": id, "content": name, "single_word": false, "lstrip": lstrip, "rstrip": false,
                    "normalized": false, "special": true,
                }),
            ))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.dedup_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}
