//! Text as tokens of the model, each with its byte range in the caller's own string, and as windows of them.
//!
//! Normalizing, cutting into words and byte-level BPE are Hugging Face's `tokenizers`, WordPiece is ours (`pieces.rs`); ids and ranges
//! are those of Python. `tokenizers` logs every character of a text at `log`'s TRACE level; this crate compiles that level out.

mod build;
mod pieces;
mod window;

use std::ops::Range;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl,
};

pub use self::build::SpecialTokens;
use self::pieces::{Kind, Pieces};
pub use self::window::{Window, Windower};
use crate::error::{Error, Result};

/// The most bytes of text that are tokenized at once. Only a stretch without any place to cut at, such as one enormous word,
/// makes a longer chunk.
pub const MAX_CHUNK: usize = 64 << 10;

/// A token of a text.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its row in the word embedding.
    pub id: u32,
    /// UTF-8 bytes of the caller's text, as Python's `tokenizers` gives them.
    pub range: Range<usize>,
    /// Whether it is the first of its word, a word being what the pre-tokenizer makes one. It decides for the word.
    pub starts_word: bool,
}

impl std::fmt::Debug for Token {
    // The id is text.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({:?})", self.range)
    }
}

/// Where a text may be cut so that its two parts have the ids, ranges and words of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Before white space: words do not go over it. Before ASCII punctuation and Chinese characters too, where they are made
    /// words of their own.
    BeforeSpace { punctuation: bool, chinese: bool },
    /// Before a single space between two other characters, with which byte-level pieces begin.
    BeforeSingleSpace,
    /// In place of such a space, since the tokenizer puts one before each text.
    InSingleSpace,
    /// Nowhere that is known to be safe.
    Never,
}

type Inner = TokenizerImpl<Pieces, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A tokenizer of the WordPiece or byte-level BPE kind.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    json: Arc<[u8]>,
    special: SpecialTokens,
    cls_id: u32,
    sep_id: u32,
    max_id: u32,
    cut: Cut,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("max_id", &self.max_id).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that are baked into it are ignored, since the model's positions are
    /// what counts, and special tokens typed in a text are text.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) where it is no such file, [`Incompatible`](crate::ErrorKind::Incompatible) where
    /// it names no classification and separator tokens.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let corrupt = |e: &dyn std::fmt::Display| Error::corrupt(format!("tokenizer.json: {e}"));
        let (mut value, vocab) = pieces::read(json).map_err(|e| corrupt(&e))?;
        let kind = build::check(&value, &vocab)?;
        let cut = cut(&value, kind);
        let mut max_id = vocab.max_id();
        let model = Pieces::new(value["model"].take(), vocab, kind).map_err(|e| corrupt(&e))?;
        let mut inner = Inner::new(model);
        inner.with_normalizer(part::<NormalizerWrapper>(&value, "normalizer")?);
        inner.with_pre_tokenizer(part::<PreTokenizerWrapper>(&value, "pre_tokenizer")?);
        inner.with_post_processor(part::<PostProcessorWrapper>(&value, "post_processor")?);
        inner.with_decoder(part::<DecoderWrapper>(&value, "decoder")?);
        inner.add_tokens(&part::<Vec<AddedToken>>(&value, "added_tokens")?.unwrap_or_default());
        inner.set_encode_special_tokens(true);
        max_id = inner.get_added_tokens_decoder().into_keys().fold(max_id, u32::max);
        let special = SpecialTokens::of(&value, |token| inner.token_to_id(token).is_some())?;
        let id = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| {
                Error::incompatible(format!("tokenizer.json: the special token {token:?} is not in the vocabulary"))
            })
        };
        Ok(Tokenizer {
            cls_id: id(&special.cls)?,
            sep_id: id(&special.sep)?,
            max_id,
            cut,
            json: json.into(),
            special,
            inner,
        })
    }

    /// The `tokenizer.json` of this tokenizer, without truncation and padding.
    pub fn to_json(&self) -> Vec<u8> {
        let Ok(mut value) = serde_json::from_slice::<Value>(&self.json) else { return self.json.to_vec() };
        value["truncation"] = Value::Null;
        value["padding"] = Value::Null;
        value.to_string().into_bytes()
    }

    /// The names of its special tokens.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The token before every text.
    pub fn cls_id(&self) -> u32 {
        self.cls_id
    }

    /// The token after every text.
    pub fn sep_id(&self) -> u32 {
        self.sep_id
    }

    /// Refuses an embedding that has no row for some of the ids.
    pub(crate) fn check_rows(&self, vocab_size: usize) -> Result<()> {
        if (self.max_id as usize) < vocab_size {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "the tokenizer gives ids up to {}, but the word embedding has {vocab_size} rows; tokenizer and weights do not \
             belong together",
            self.max_id
        )))
    }

    /// The largest id of the vocabulary.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// The tokens of a text, without special ones.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) where the tokenizer fails, which an accepted one does on no text.
    pub fn encode(&self, text: &str) -> Result<Vec<Token>> {
        let mut all = Vec::new();
        self.encode_each(text, &mut |tokens| {
            all.extend(tokens);
            Ok(())
        })?;
        Ok(all)
    }

    /// Hands over the tokens of a text chunk by chunk, in order; a chunk may have none.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and those of `each`.
    pub fn encode_each(&self, text: &str, each: &mut dyn FnMut(Vec<Token>) -> Result<()>) -> Result<()> {
        self.encode_chunks(text, MAX_CHUNK, each)
    }

    fn encode_chunks(&self, text: &str, most: usize, each: &mut dyn FnMut(Vec<Token>) -> Result<()>) -> Result<()> {
        let mut start = 0;
        while start < text.len() {
            let (end, next) = self.cut.find(text, start, most);
            each(self.encode_chunk(&text[start..end], start)?)?;
            start = next;
        }
        Ok(())
    }

    fn encode_chunk(&self, chunk: &str, start: usize) -> Result<Vec<Token>> {
        // The tokenizer's own message may quote the text.
        let encoding =
            self.inner.encode(chunk, false).map_err(|_| Error::internal("the tokenizer failed on a text"))?;
        let mut word = None;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
        Ok(tokens
            .map(|((&id, &(from, to)), &of)| {
                let starts_word = word != Some(of) || of.is_none();
                word = Some(of);
                // Trimming a byte-level piece can leave an end inside a character, where Python has none.
                let at = |offset: usize| start + chunk.floor_char_boundary(offset);
                Token { id, range: at(from)..at(to), starts_word }
            })
            .collect())
    }
}

/// A part of a `tokenizer.json`, which may be missing.
fn part<T: DeserializeOwned>(json: &Value, name: &str) -> Result<Option<T>> {
    serde_json::from_value(json[name].clone()).map_err(|e| Error::corrupt(format!("tokenizer.json: {name}: {e}")))
}

/// Which cuts are safe for the tokenizer of this `tokenizer.json`.
fn cut(json: &Value, kind: Kind) -> Cut {
    let specials_only = json["added_tokens"]
        .as_array()
        .is_none_or(|tokens| tokens.iter().all(|token| token["special"] == Value::Bool(true)));
    if !specials_only {
        return Cut::Never;
    }
    let steps = build::steps(&json["normalizer"], "normalizers");
    let is = |step: &Value, names: &[&str]| step["type"].as_str().is_some_and(|t| names.contains(&t));
    let pre = &json["pre_tokenizer"];
    if kind == Kind::WordPiece && is(pre, &["BertPreTokenizer"]) {
        let known = ["BertNormalizer", "NFD", "NFKD", "Lowercase", "StripAccents"];
        if !steps.iter().all(|step| is(step, &known)) {
            return Cut::Never;
        }
        let chinese = steps.iter().any(|step| step["handle_chinese_chars"] == Value::Bool(true));
        return Cut::BeforeSpace { punctuation: true, chinese };
    }
    let trims: Vec<&Value> = build::steps(&json["post_processor"], "processors")
        .into_iter()
        .filter(|step| is(step, &["RobertaProcessing", "ByteLevel"]))
        .collect();
    // Trimming gives a text's first piece back the space that was put before it, and takes it for put there in every chunk.
    let on = |value: &Value| *value != Value::Bool(false);
    let trims_prefix = match trims.as_slice() {
        [] => Some(false),
        [one] => Some(on(&one["trim_offsets"]) && on(&one["add_prefix_space"])),
        _ => None,
    };
    if kind == Kind::Bpe && is(pre, &["ByteLevel"]) && steps.is_empty() && on(&pre["use_regex"]) {
        return match (on(&pre["add_prefix_space"]), trims_prefix) {
            (true, Some(true)) => Cut::InSingleSpace,
            (false, Some(false)) => Cut::BeforeSingleSpace,
            _ => Cut::Never,
        };
    }
    Cut::Never
}

impl Cut {
    /// The end of the chunk that begins at `start`, and the beginning of the next one.
    fn find(self, text: &str, start: usize, most: usize) -> (usize, usize) {
        let limit = text.floor_char_boundary(start + most);
        if limit >= text.len() || self == Cut::Never {
            return (text.len(), text.len());
        }
        let is_cut = |at: usize| at > start && self.is_safe(text, at);
        let back = text[start..limit].char_indices().rev().map(|(i, _)| start + i).find(|&at| is_cut(at));
        let at = back.or_else(|| text[limit..].char_indices().map(|(i, _)| limit + i).find(|&at| is_cut(at)));
        match at {
            None => (text.len(), text.len()),
            Some(at) if self == Cut::InSingleSpace => (at, at + 1),
            Some(at) => (at, at),
        }
    }

    fn is_safe(self, text: &str, at: usize) -> bool {
        let mut after = text[at..].chars();
        let (before, here, next) = (text[..at].chars().next_back(), after.next(), after.next());
        let (Some(before), Some(here)) = (before, here) else {
            return false;
        };
        match self {
            Cut::BeforeSpace { punctuation, chinese } => {
                // BERT takes other controls out, those that Unicode counts as white space too, which joins words.
                (here.is_whitespace() && (matches!(here, '\t' | '\n' | '\r') || !here.is_control()))
                    || (punctuation && here.is_ascii_punctuation())
                    || (chinese && matches!(here, '\u{4E00}'..='\u{9FFF}' | '\u{3400}'..='\u{4DBF}'))
            }
            Cut::BeforeSingleSpace | Cut::InSingleSpace => {
                here == ' ' && !before.is_whitespace() && next.is_some_and(|next| !next.is_whitespace())
            }
            Cut::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixture(name: &str) -> Tokenizer {
        let path = format!("{}/tests/fixtures/tokenizers/{name}.json", env!("CARGO_MANIFEST_DIR"));
        Tokenizer::from_json(&std::fs::read(path).unwrap()).unwrap()
    }

    fn hard_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a",
            "patient",
            "naïve",
            "e\u{301}",
            "\u{301}",
            "\u{200d}",
            "👩‍⚕️",
            "🇮🇳",
            "क्षि",
            "\r\n",
            "\n",
            "\t",
            "שׁ",
            "\u{0}",
            "한국",
            "ﬁ",
            " ",
            "  ",
            "\u{a0}",
            "\u{85}",
            "\u{200b}",
            "\u{3000}",
            "中",
            "文",
            ",",
            ".",
            "(",
            "'s",
            "n't",
            "[SEP]",
            "<s>",
            "-",
            "12",
            "ß",
            "İ",
            "\u{ad}",
            "\u{fffd}",
            "<\u{338}",
            "Ω",
        ]);
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn a_text_in_chunks_has_the_tokens_of_the_whole(text in hard_text(), most in 1usize..30) {
            for name in ["uncased", "cased", "bpe", "bpe_prefix"] {
                let tokenizer = fixture(name);
                let mut chunked = Vec::new();
                tokenizer.encode_chunks(&text, most, &mut |tokens| { chunked.extend(tokens); Ok(()) }).unwrap();
                let whole = tokenizer.encode_chunk(&text, 0).unwrap();
                prop_assert!(chunked == whole, "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn chunks_are_short_where_words_are() {
        let text = "one two three, ".repeat(20_000);
        let mut longest = 0;
        let mut last = 0;
        fixture("uncased")
            .encode_each(&text, &mut |tokens| {
                let end = tokens.last().map_or(last, |t| t.range.end);
                longest = longest.max(end - last);
                last = end;
                Ok(())
            })
            .unwrap();
        assert!(longest <= MAX_CHUNK && last == text.trim_end().len());
    }

    #[test]
    fn damaged_files_are_errors() {
        let whole = fixture("uncased").to_json();
        let mut value: Value = serde_json::from_slice(&whole).unwrap();
        for field in ["model", "post_processor", "pre_tokenizer"] {
            let mut damaged = value.clone();
            damaged[field] = serde_json::json!({"type": "Nothing"});
            assert!(Tokenizer::from_json(damaged.to_string().as_bytes()).is_err(), "{field}");
        }
        value["model"]["unk_token"] = "missing".into();
        assert!(Tokenizer::from_json(value.to_string().as_bytes()).is_err());
        for end in (0..whole.len()).step_by(whole.len() / 200) {
            assert!(Tokenizer::from_json(&whole[..end]).is_err());
        }
    }

    #[test]
    fn post_processors_that_trim_otherwise_move_no_range() {
        let text = "\r\u{164} \u{b67b} n't a\u{a8}\u{130}\u{4e2d} patient of  the \u{e9} x".repeat(3);
        for name in ["bpe", "bpe_prefix"] {
            let base: Value = serde_json::from_slice(&fixture(name).to_json()).unwrap();
            for (trim, prefix) in [(true, true), (true, false), (false, true), (false, false)] {
                for kind in ["RobertaProcessing", "ByteLevel", "none"] {
                    let mut changed = base.clone();
                    match kind {
                        "none" => changed["post_processor"] = Value::Null,
                        "ByteLevel" => changed["post_processor"] = serde_json::json!({"type": kind, "use_regex": true}),
                        _ => {}
                    }
                    if kind != "none" {
                        changed["post_processor"]["trim_offsets"] = trim.into();
                        changed["post_processor"]["add_prefix_space"] = prefix.into();
                    }
                    let tokenizer = Tokenizer::from_json(changed.to_string().as_bytes()).unwrap();
                    let whole = tokenizer.encode_chunk(&text, 0).unwrap();
                    for most in 1..12 {
                        let mut chunked = Vec::new();
                        let mut each = |tokens| {
                            chunked.extend(tokens);
                            Ok(())
                        };
                        tokenizer.encode_chunks(&text, most, &mut each).unwrap();
                        assert!(chunked == whole, "{name} {kind} {trim} {prefix} {most}");
                    }
                }
            }
        }
    }

    /// Every value of a tokenizer exchanged for others: refused, or sound on every text.
    #[test]
    fn no_tokenizer_that_is_accepted_panics() {
        fn paths(value: &Value, at: &str, out: &mut Vec<String>) {
            match value {
                Value::Object(map) if at != "/model/vocab" => {
                    map.iter().for_each(|(k, v)| paths(v, &format!("{at}/{k}"), out))
                }
                Value::Array(all) if at != "/model/merges" => {
                    all.iter().enumerate().for_each(|(i, v)| paths(v, &format!("{at}/{i}"), out));
                }
                _ => out.push(at.to_owned()),
            }
            out.push(at.to_owned());
        }
        let long = format!("\"{}\"", "#".repeat(100));
        let others = [
            "null",
            "true",
            "false",
            "0",
            "-1",
            "4294967295",
            "1e300",
            "\"\"",
            "\"##\"",
            "\"[SEP]\"",
            "\"aaaaaaaaaa\"",
            "[]",
            "{}",
            &long,
            r#"{"type":"Precompiled","precompiled_charsmap":"AAAA"}"#,
            r#"{"type":"FixedLength","length":0}"#,
            r#"{"type":"Replace","pattern":{"Regex":"(a*)*b"},"content":"x"}"#,
            r#"{"type":"Sequence","normalizers":[{"type":"NFD"}]}"#,
            r#"{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true}"#,
        ];
        let (mut accepted, mut refused) = (0, 0);
        for name in ["uncased", "cased", "bpe", "bpe_prefix"] {
            let base: Value = serde_json::from_slice(&fixture(name).to_json()).unwrap();
            let mut places = Vec::new();
            paths(&base, "", &mut places);
            for place in places {
                for other in others {
                    let mut changed = base.clone();
                    *changed.pointer_mut(&place).unwrap() = serde_json::from_str(other).unwrap();
                    match Tokenizer::from_json(changed.to_string().as_bytes()) {
                        Err(_) => refused += 1,
                        Ok(tokenizer) => {
                            accepted += 1;
                            for text in ["", "n\u{e9} patient [SEP] \u{130}\u{301}", "\u{0}\u{4e2d}  a-b \u{1f469}"] {
                                let _ = tokenizer.encode(text);
                            }
                        }
                    }
                }
            }
        }
        assert!(accepted > 100 && refused > 500, "{accepted} accepted, {refused} refused");
    }

    #[test]
    fn a_huge_word_is_no_trouble() {
        for name in ["uncased", "bpe"] {
            let text = format!("pain {} cough", "x".repeat(100_000));
            let tokens = fixture(name).encode(&text).unwrap();
            assert_eq!(tokens.last().map(|t| t.range.end), Some(text.len()), "{name}");
        }
    }
}
