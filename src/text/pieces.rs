//! The pieces of a `tokenizer.json`, and what cuts words into them.
//!
//! WordPiece is ours: `tokenizers` keeps two maps of owned strings, which take longer to build than a short note takes to compute.
//! Here the pieces lie one after the other in one string, as they are read, and a table finds them.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPieceTrainer;
use tokenizers::{Model, Token};

/// Token ids by piece.
#[derive(Clone, Default)]
pub(super) struct Vocab {
    text: String,
    table: HashTable<Piece>,
    hasher: RandomState,
}

/// Where a piece lies in the text, and its id.
#[derive(Clone, Copy)]
struct Piece {
    start: u32,
    end: u32,
    id: u32,
}

impl Vocab {
    pub(super) fn id(&self, piece: &str) -> Option<u32> {
        self.table.find(self.hasher.hash_one(piece), |p| self.text(p) == piece).map(|p| p.id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn max_id(&self) -> u32 {
        self.table.iter().map(|p| p.id).max().unwrap_or(0)
    }

    fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.table.iter().map(|p| (self.text(p), p.id))
    }

    fn text(&self, piece: &Piece) -> &str {
        &self.text[piece.start as usize..piece.end as usize]
    }

    /// Of the pieces of `text` in turn, a later one in place of an earlier one that is the same.
    fn new(text: String, pieces: Vec<Piece>) -> Self {
        let hasher = RandomState::new();
        let mut table: HashTable<Piece> = HashTable::with_capacity(pieces.len());
        let of = |p: &Piece| &text[p.start as usize..p.end as usize];
        for piece in pieces {
            let hash = hasher.hash_one(of(&piece));
            match table.find_mut(hash, |p| of(p) == of(&piece)) {
                Some(known) => *known = piece,
                None => _ = table.insert_unique(hash, piece, |p| hasher.hash_one(of(p))),
            }
        }
        Vocab { text, table, hasher }
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VocabVisitor)
    }
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a vocabulary: token ids by piece")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let (mut text, mut pieces) = (String::new(), Vec::new());
        let mut start = 0;
        while map.next_key_seed(Append(&mut text))?.is_some() {
            let end = u32::try_from(text.len()).map_err(|_| serde::de::Error::custom("a vocabulary of over 4 GiB"))?;
            pieces.push(Piece { start, end, id: map.next_value()? });
            start = end;
        }
        Ok(Vocab::new(text, pieces))
    }

    /// Other models than ours have a list, and are refused by their names.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Vocab::default())
    }
}

/// Appends a string.
struct Append<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a piece")
    }

    fn visit_str<E>(self, piece: &str) -> Result<(), E> {
        self.0.push_str(piece);
        Ok(())
    }
}

/// A `tokenizer.json`: all but its vocabulary, in place of which there is null, and the vocabulary.
pub(super) fn read(json: &[u8]) -> serde_json::Result<(Value, Vocab)> {
    let mut vocab = Vocab::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = Without { path: &["model", "vocab"], vocab: &mut vocab }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, vocab))
}

/// An object without what is at `path`.
struct Without<'a> {
    path: &'a [&'a str],
    vocab: &'a mut Vocab,
}

impl<'de> DeserializeSeed<'de> for Without<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.path.is_empty() {
            *self.vocab = Vocab::deserialize(deserializer)?;
            return Ok(Value::Null);
        }
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Without<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "an object with {:?}", self.path[0])
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = match key == self.path[0] {
                true => {
                    // The last of several counts, and nothing of those before it.
                    *self.vocab = Vocab::default();
                    map.next_value_seed(Without { path: &self.path[1..], vocab: self.vocab })?
                }
                false => map.next_value()?,
            };
            all.insert(key, value);
        }
        Ok(Value::Object(all))
    }
}

/// How words are cut into pieces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    WordPiece,
    Bpe,
}

/// What cuts a word into pieces.
#[derive(Clone)]
pub(super) enum Pieces {
    WordPiece { vocab: Vocab, settings: WordPiece, unk: u32 },
    Bpe(Box<BPE>),
}

#[derive(Clone, Deserialize)]
pub(super) struct WordPiece {
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
}

impl Pieces {
    /// From the `model` of a checked `tokenizer.json`, and its vocabulary.
    pub(super) fn new(mut model: Value, vocab: Vocab, kind: Kind) -> Result<Self, String> {
        if kind == Kind::Bpe {
            // Known already, and `tokenizers` would have it borrowed.
            model.as_object_mut().and_then(|model| model.remove("type"));
            model["vocab"] = vocab.iter().map(|(piece, id)| (piece.to_owned(), Value::from(id))).collect();
            let mut bpe: BPE = serde_json::from_value(model).map_err(|e| e.to_string())?;
            // A cache would keep words of past texts.
            bpe.resize_cache(0);
            return Ok(Pieces::Bpe(Box::new(bpe)));
        }
        let settings: WordPiece = serde_json::from_value(model).map_err(|e| e.to_string())?;
        let unk = vocab.id(&settings.unk_token).ok_or("the unknown token is not in the vocabulary")?;
        Ok(Pieces::WordPiece { vocab, settings, unk })
    }
}

/// Cuts `word` into the longest pieces that the vocabulary has, from the left (Wu et al. 2016); one unknown token where there
/// are none.
fn word_piece(word: &str, vocab: &Vocab, settings: &WordPiece, unk: u32) -> Vec<Token> {
    let unknown = || vec![Token::new(unk, settings.unk_token.clone(), (0, word.len()))];
    if word.chars().count() > settings.max_input_chars_per_word {
        return unknown();
    }
    let prefix = settings.continuing_subword_prefix.as_str();
    let (mut tokens, mut rest) = (Vec::new(), word.to_owned());
    let mut start = 0;
    while start < word.len() {
        let before = if start == 0 { 0 } else { prefix.len() };
        let ends = rest[before..].char_indices().rev().map(|(at, c)| before + at + c.len_utf8());
        let Some((end, id)) = ends.into_iter().find_map(|end| Some((end, vocab.id(&rest[..end])?))) else {
            return unknown();
        };
        let next = start + end - before;
        tokens.push(Token::new(id, rest[..end].to_owned(), (start, next)));
        start = next;
        rest.clear();
        rest.push_str(prefix);
        rest.push_str(&word[start..]);
    }
    tokens
}

impl Model for Pieces {
    type Trainer = WordPieceTrainer;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Pieces::WordPiece { vocab, settings, unk } => Ok(word_piece(word, vocab, settings, *unk)),
            Pieces::Bpe(bpe) => bpe.tokenize(word),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        match self {
            Pieces::WordPiece { vocab, .. } => vocab.id(token),
            Pieces::Bpe(bpe) => bpe.token_to_id(token),
        }
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        match self {
            Pieces::WordPiece { vocab, .. } => {
                vocab.iter().filter(|(_, i)| *i == id).map(|(piece, _)| piece.to_owned()).min()
            }
            Pieces::Bpe(bpe) => bpe.id_to_token(id),
        }
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        match self {
            Pieces::WordPiece { vocab, .. } => vocab.iter().map(|(piece, id)| (piece.to_owned(), id)).collect(),
            Pieces::Bpe(bpe) => bpe.get_vocab(),
        }
    }

    fn get_vocab_size(&self) -> usize {
        match self {
            Pieces::WordPiece { vocab, .. } => vocab.table.len(),
            Pieces::Bpe(bpe) => bpe.get_vocab_size(),
        }
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("a tokenizer is saved by its tokenizer.json".into())
    }

    fn get_trainer(&self) -> WordPieceTrainer {
        WordPieceTrainer::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::models::wordpiece::WordPiece as Theirs;

    use super::*;

    fn pieces(model: &Value) -> Pieces {
        let json = serde_json::json!({ "model": model }).to_string();
        let (mut value, vocab) = read(json.as_bytes()).unwrap();
        Pieces::new(value["model"].take(), vocab, Kind::WordPiece).unwrap()
    }

    proptest! {
        #[test]
        fn words_are_cut_as_by_the_library(
            known in prop::collection::btree_set("(##|é)?[aé漢\u{301}]{1,3}", 0..30),
            words in prop::collection::vec("[aé漢\u{301}b]{0,12}", 1..20),
            prefix in prop::sample::select(vec!["##", "", "é", "漢漢"]),
            most in 0usize..12,
        ) {
            let vocab: Map<String, Value> =
                known.into_iter().chain(["[UNK]".to_owned()]).zip(0u32..).map(|(p, id)| (p, id.into())).collect();
            let model = serde_json::json!({
                "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": prefix,
                "max_input_chars_per_word": most, "vocab": vocab,
            });
            let theirs: Theirs = serde_json::from_str(&model.to_string()).unwrap();
            let ours = pieces(&model);
            prop_assert_eq!(ours.get_vocab(), theirs.get_vocab());
            prop_assert_eq!(ours.get_vocab_size(), theirs.get_vocab_size());
            for word in &words {
                prop_assert_eq!(ours.tokenize(word).unwrap(), theirs.tokenize(word).unwrap());
                prop_assert_eq!(ours.token_to_id(word), theirs.token_to_id(word));
            }
        }
    }

    #[test]
    fn of_what_is_there_twice_the_last_counts() {
        let (value, vocab) = read(br###"{"a": 1, "model": {"vocab": {"x": 1, "y": 2, "x": 3}}, "a": 2}"###).unwrap();
        assert_eq!(
            (value["a"].as_u64(), vocab.id("x"), vocab.id("y"), vocab.table.len()),
            (Some(2), Some(3), Some(2), 2)
        );
        let (_, vocab) = read(br###"{"model": {"vocab": {"x": 1}}, "model": {"vocab": {"y": 2}}}"###).unwrap();
        assert_eq!((vocab.id("x"), vocab.id("y")), (None, Some(2)));
        let (_, vocab) = read(br###"{"model": {"vocab": {"x": 1}}, "model": {}}"###).unwrap();
        assert!(vocab.is_empty());
        assert!(read(br###"{"model": {"vocab": [["x", -1.5]]}}"###).unwrap().1.is_empty());
        for damaged in [&b"{\"model\": 1}"[..], b"[]", b"{\"model\": {\"vocab\": {\"x\": -1}}}", b"{} x"] {
            assert!(read(damaged).is_err());
        }
    }
}
