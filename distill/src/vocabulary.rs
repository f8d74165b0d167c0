//! A smaller vocabulary: the pieces that the corpora use.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use ampoule::model::HostTensor;
use ampoule::text::{Token, Tokenizer};
use ampoule::{Checkpoint, Error, ModelType, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::data::SearchSet;
use crate::sequences::Data;

/// What a smaller vocabulary made of the texts that it was chosen by. Words are those of the pre-tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VocabularyReport {
    /// Pieces of the vocabulary before, special tokens counted.
    pub pieces_before: usize,
    /// Pieces that were kept.
    pub pieces: usize,
    /// Of these, the ones that stay whatever the texts are: special tokens and single characters.
    pub always_kept: usize,
    /// Words of the texts.
    pub words: usize,
    /// Words that held the unknown token before.
    pub unknown_before: usize,
    /// Words that hold it now and did not before.
    pub newly_unknown: usize,
    /// Tokens of the texts before, without special ones.
    pub tokens_before: usize,
    /// Tokens now.
    pub tokens: usize,
    /// Tokens of the words that are cut as they were.
    pub tokens_kept: usize,
}

/// `checkpoint` with a vocabulary of `pieces` pieces: those that `texts` use most, and what has to stay. Ids are dense, in the order of
/// the old ones; the rows of the word embedding go with them. A word of which every piece stays is cut as it was.
///
/// What stays whatever the texts are: special tokens, and single characters, at a word's beginning and within it (WordPiece) or as bytes
/// (byte-level BPE). So every character that was known stays known. Where BPE keeps a piece, it keeps the two that merge to it.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where `pieces` is less than what has to stay or more than there are, and where the
/// texts have no token to count.
pub fn prune_vocabulary(
    checkpoint: &Checkpoint,
    texts: &[&str],
    pieces: usize,
) -> Result<(Checkpoint, VocabularyReport)> {
    let json: Value = serde_json::from_slice(&checkpoint.tokenizer.to_json())
        .map_err(|_| Error::internal("the tokenizer does not give its JSON"))?;
    let vocabulary = Vocabulary::read(&json)?;
    let always = vocabulary.always_kept(&json, checkpoint);
    let all = vocabulary.pieces.len();
    if !(always.len()..=all).contains(&pieces) {
        return Err(Error::invalid_input(format!(
            "a vocabulary of {pieces} pieces: its special tokens and single characters have to stay, so expected {} to {all}",
            always.len()
        )));
    }
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for text in texts {
        for token in checkpoint.tokenizer.encode(text)? {
            *counts.entry(token.id).or_default() += 1;
        }
    }
    if counts.is_empty() {
        return Err(Error::invalid_input("there is no text to choose a vocabulary by"));
    }
    let kept = vocabulary.most_used(&always, &counts, pieces, &checkpoint.tokenizer)?;
    let new_ids: BTreeMap<u32, u32> = kept.iter().zip(0..).map(|(&old, new)| (old, new)).collect();

    let mut pruned = checkpoint.clone();
    let json = vocabulary.rewritten(json, &new_ids);
    pruned.tokenizer = Tokenizer::from_json(json.to_string().as_bytes())?;
    pruned.config.vocab_size = kept.len();
    pruned.config.pad_token_id = new_ids.get(&(checkpoint.config.pad_token_id as u32)).map_or(0, |&id| id as usize);
    let width = checkpoint.config.embedding_size;
    let rows = pruned.weights.0.get_mut("embeddings.word_embeddings.weight");
    let rows = rows.ok_or_else(|| Error::internal("the checkpoint has no word embedding"))?;
    let data = kept.iter().flat_map(|&id| &rows.data[id as usize * width..][..width]).copied().collect();
    *rows = HostTensor { shape: vec![kept.len(), width], data };

    let mut report = VocabularyReport {
        pieces_before: all,
        pieces: kept.len(),
        always_kept: always.len(),
        words: 0,
        unknown_before: 0,
        newly_unknown: 0,
        tokens_before: 0,
        tokens: 0,
        tokens_kept: 0,
    };
    let unknown = vocabulary.ids.get(checkpoint.tokenizer.special_tokens().unk.as_str()).copied();
    for text in texts {
        let (before, now) = (checkpoint.tokenizer.encode(text)?, pruned.tokenizer.encode(text)?);
        report.add(&before, &now, &new_ids, unknown);
    }
    Ok((pruned, report))
}

impl VocabularyReport {
    fn add(&mut self, before: &[Token], now: &[Token], new_ids: &BTreeMap<u32, u32>, unknown: Option<u32>) {
        self.tokens_before += before.len();
        self.tokens += now.len();
        let new_unknown = unknown.and_then(|id| new_ids.get(&id).copied());
        let holds = |word: &[Token], id: Option<u32>| word.iter().any(|token| Some(token.id) == id);
        for (before, now) in words(before).zip(words(now)) {
            self.words += 1;
            let was_unknown = holds(before, unknown);
            self.unknown_before += usize::from(was_unknown);
            self.newly_unknown += usize::from(!was_unknown && holds(now, new_unknown));
            if before.iter().map(|token| new_ids.get(&token.id)).eq(now.iter().map(|token| Some(&token.id))) {
                self.tokens_kept += before.len();
            }
        }
    }
}

fn words(tokens: &[Token]) -> impl Iterator<Item = &[Token]> {
    tokens.chunk_by(|_, next| !next.starts_word)
}

/// The pieces of a `tokenizer.json`.
struct Vocabulary {
    ids: HashMap<String, u32>,
    /// By id, those of added tokens too.
    pieces: BTreeMap<u32, String>,
    /// What stands before a piece within a word; none for BPE.
    prefix: Option<String>,
    /// By the id that BPE merges to, its two parts; the first merge of several.
    parts: HashMap<u32, [u32; 2]>,
}

impl Vocabulary {
    fn read(json: &Value) -> Result<Self> {
        let damaged = || Error::internal("the tokenizer's vocabulary is not that of an accepted tokenizer");
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(damaged);
        let model = &json["model"];
        let mut ids = HashMap::new();
        for (piece, value) in model["vocab"].as_object().ok_or_else(damaged)? {
            ids.insert(piece.clone(), id(value)?);
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            ids.insert(token["content"].as_str().ok_or_else(damaged)?.to_owned(), id(&token["id"])?);
        }
        let pieces = ids.iter().map(|(piece, &id)| (id, piece.clone())).collect();
        let prefix = model["merges"].is_null().then(|| model["continuing_subword_prefix"].as_str().unwrap_or("##"));
        let mut parts = HashMap::new();
        for (a, b) in model["merges"].as_array().into_iter().flatten().filter_map(pair) {
            if let (Some(&a), Some(&b), Some(&whole)) = (ids.get(a), ids.get(b), ids.get(&format!("{a}{b}"))) {
                parts.entry(whole).or_insert([a, b]);
            }
        }
        Ok(Vocabulary { pieces, prefix: prefix.map(str::to_owned), parts, ids })
    }

    /// The ids that stay whatever the texts are.
    fn always_kept(&self, json: &Value, checkpoint: &Checkpoint) -> BTreeSet<u32> {
        let mut always = BTreeSet::new();
        let special = checkpoint.tokenizer.special_tokens();
        for name in [&special.cls, &special.sep, &special.pad, &special.unk, &special.mask] {
            always.extend(self.ids.get(name));
        }
        let added = json["added_tokens"].as_array().into_iter().flatten();
        always.extend(added.filter_map(|token| self.ids.get(token["content"].as_str()?)));
        each_id(&mut json["post_processor"].clone(), &mut |id| {
            always.extend(id.as_u64().map(|id| id as u32));
        });
        let pad = checkpoint.config.pad_token_id as u32;
        match checkpoint.config.model_type {
            // It counts its positions from the padding token's id, which may not move.
            ModelType::Roberta => always.extend(0..=pad),
            _ => _ = always.insert(pad),
        }
        always.extend(self.pieces.iter().filter(|(_, piece)| self.is_needed(piece)).map(|(&id, _)| id));
        always
    }

    /// Whether words could become unknown without this piece: a single character, or one with a character that is no piece by itself.
    ///
    /// No word that was known becomes unknown without the others. WordPiece takes the longest piece at each place, and fails where there is
    /// none. Each character of such a word is in a piece that it was cut into. Where each is a piece by itself too, the first
    /// without the prefix and the others with it, there is a piece at every place, whatever was taken before it. Where one is not, its
    /// pieces stay, but a piece before them may now end within: that is counted.
    fn is_needed(&self, piece: &str) -> bool {
        let Some(prefix) = &self.prefix else {
            return piece.chars().count() == 1;
        };
        let rest = piece.strip_prefix(prefix.as_str());
        let text = rest.unwrap_or(piece);
        let stands_alone = |(i, c): (usize, char)| match i == 0 && rest.is_none() {
            true => self.ids.contains_key(c.encode_utf8(&mut [0; 4]) as &str),
            false => self.ids.contains_key(&format!("{prefix}{c}")),
        };
        text.chars().count() == 1 || !text.chars().enumerate().all(stands_alone)
    }

    /// `always` and the most used of the others, `count` in all.
    fn most_used(
        &self,
        always: &BTreeSet<u32>,
        counts: &HashMap<u32, usize>,
        count: usize,
        tokenizer: &Tokenizer,
    ) -> Result<BTreeSet<u32>> {
        let mut order = Vec::with_capacity(self.pieces.len());
        for (&id, piece) in &self.pieces {
            let used = counts.get(&id).copied().unwrap_or(0);
            let is_given = used > 0 || self.is_given(piece, id, tokenizer)?;
            order.push((std::cmp::Reverse((used, is_given)), id));
        }
        order.sort_unstable();
        let mut kept = BTreeSet::new();
        for id in always.iter().copied().chain(order.into_iter().map(|(_, id)| id)) {
            let mut with = Vec::new();
            self.add_parts(id, &kept, &mut with);
            // One that needs more than there is room for makes way for others.
            if kept.len() + with.len() <= count {
                kept.extend(with);
            }
        }
        Ok(kept)
    }

    /// The piece `id`, and what merges to it, as far as they are not in `kept`.
    fn add_parts(&self, id: u32, kept: &BTreeSet<u32>, with: &mut Vec<u32>) {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            if !kept.contains(&id) && !with.contains(&id) {
                with.push(id);
                open.extend(self.parts.get(&id).into_iter().flatten());
            }
        }
    }

    /// Whether some text may be cut into this piece: BERT's vocabularies hold a thousand rows that no text gives.
    fn is_given(&self, piece: &str, id: u32, tokenizer: &Tokenizer) -> Result<bool> {
        match &self.prefix {
            Some(prefix) if !piece.starts_with(prefix.as_str()) => {
                let tokens = tokenizer.encode(piece)?;
                Ok(tokens.len() == 1 && tokens[0].id == id)
            }
            _ => Ok(true),
        }
    }

    /// The `tokenizer.json` of the pieces in `new_ids`.
    fn rewritten(&self, mut json: Value, new_ids: &BTreeMap<u32, u32>) -> Value {
        let new = |id: &Value| id.as_u64().and_then(|id| new_ids.get(&(id as u32)));
        let model = &mut json["model"];
        if let Some(Value::Object(vocab)) = model.get_mut("vocab").map(Value::take) {
            let mut pieces: Vec<(String, u32)> =
                vocab.into_iter().filter_map(|(piece, id)| Some((piece, *new(&id)?))).collect();
            pieces.sort_by_key(|(_, id)| *id);
            let known: HashSet<String> = pieces.iter().map(|(piece, _)| piece.clone()).collect();
            if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
                merges.retain(|merge| {
                    pair(merge).is_some_and(|(a, b)| {
                        known.contains(a) && known.contains(b) && known.contains(&format!("{a}{b}"))
                    })
                });
            }
            model["vocab"] = pieces.into_iter().map(|(piece, id)| (piece, id.into())).collect::<Map<_, _>>().into();
        }
        let mut renew = |id: &mut Value| {
            if let Some(&new) = new(id) {
                *id = new.into();
            }
        };
        let added = json.get_mut("added_tokens").and_then(Value::as_array_mut);
        added.into_iter().flatten().for_each(|token| renew(&mut token["id"]));
        if let Some(post_processor) = json.get_mut("post_processor") {
            each_id(post_processor, &mut renew);
        }
        json
    }
}

/// The two parts of a merge, which older files write as one string.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(both) => both.split_once(' '),
        both => Some((both[0].as_str()?, both[1].as_str()?)),
    }
}

/// Calls `f` on every token id of a post-processor.
fn each_id(post_processor: &mut Value, f: &mut impl FnMut(&mut Value)) {
    match post_processor["type"].as_str() {
        Some("TemplateProcessing") => {
            let tokens = post_processor["special_tokens"].as_object_mut().into_iter().flatten();
            let ids = tokens.filter_map(|(_, token)| token["ids"].as_array_mut());
            ids.flatten().for_each(f);
        }
        Some("BertProcessing" | "RobertaProcessing") => {
            ["sep", "cls"].iter().for_each(|key| f(&mut post_processor[*key][1]))
        }
        Some("Sequence") => {
            for part in post_processor["processors"].as_array_mut().into_iter().flatten() {
                each_id(part, f);
            }
        }
        _ => {}
    }
}

impl Data {
    /// The texts to train on, with labels and without; of searches all passages, which are what the student will read.
    pub fn training_texts(&self) -> Vec<&str> {
        let (mut texts, transfer): (Vec<&str>, _) = match self {
            Data::Entities { train, transfer, .. } => {
                let examples = train.iter().flat_map(|set| &set.examples);
                (examples.map(|example| example.text.as_str()).collect(), transfer)
            }
            Data::Labels { train, transfer, .. } => (train.iter().map(|text| text.text.as_str()).collect(), transfer),
            Data::Search { train, transfer, .. } => (train.iter().flat_map(SearchSet::texts).collect(), transfer),
        };
        texts.extend(transfer.iter().map(String::as_str));
        texts
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use ampoule::ErrorKind;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TOKENIZERS: [&str; 4] = ["uncased", "cased", "bpe", "bpe_prefix"];

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
    }

    /// A checkpoint with this tokenizer, the rows of whose embedding are their ids.
    fn with_tokenizer(json: &[u8]) -> Checkpoint {
        let mut checkpoint = Checkpoint::open(fixtures().join("checkpoints/bert-token")).unwrap();
        checkpoint.tokenizer = Tokenizer::from_json(json).unwrap();
        checkpoint.config.vocab_size = checkpoint.tokenizer.max_id() as usize + 1;
        let ids = Vocabulary::read(&json_of(&checkpoint)).unwrap().ids;
        checkpoint.config.pad_token_id = ids[&checkpoint.tokenizer.special_tokens().pad] as usize;
        let (rows, width) = (checkpoint.config.vocab_size, checkpoint.config.embedding_size);
        let data = (0..rows * width).map(|i| (i / width) as f32).collect();
        let name = "embeddings.word_embeddings.weight".to_owned();
        checkpoint.weights.0.insert(name, HostTensor { shape: vec![rows, width], data });
        checkpoint
    }

    fn fixture(name: &str) -> Checkpoint {
        with_tokenizer(&std::fs::read(fixtures().join(format!("tokenizers/{name}.json"))).unwrap())
    }

    fn json_of(checkpoint: &Checkpoint) -> Value {
        serde_json::from_slice(&checkpoint.tokenizer.to_json()).unwrap()
    }

    /// Piece by the row that it has in the first checkpoint.
    fn pieces_by_row(checkpoint: &Checkpoint) -> BTreeMap<String, u32> {
        let rows = &checkpoint.weights.0["embeddings.word_embeddings.weight"];
        let ids = Vocabulary::read(&json_of(checkpoint)).unwrap().ids;
        ids.into_iter().map(|(piece, id)| (piece, rows.data[id as usize * rows.shape[1]] as u32)).collect()
    }

    fn text() -> impl Strategy<Value = String> {
        let words = [
            "patient",
            "fever",
            "the",
            "given",
            "aspirin",
            "10",
            "mg",
            "arthritis",
            "naïve",
            "e\u{301}",
            "\u{301}",
            "İ",
            "\u{200d}",
            "👩‍⚕️",
            "क्षि",
            "\r\n",
            "\t",
            "한국",
            "ﬁ",
            " ",
            "  ",
            "\u{a0}",
            "中",
            ",",
            ".",
            "(",
            "'s",
            "[SEP]",
            "<s>",
            "-",
            "12",
            "ß",
            "\u{fffd}",
            "evening",
            "Fever",
            "xyz",
        ];
        let letters = "[a-z]{1,9}";
        let part = prop_oneof![prop::sample::select(words.to_vec()).prop_map(str::to_owned), letters];
        prop::collection::vec((part, prop::bool::ANY), 0..25)
            .prop_map(|parts| parts.into_iter().map(|(part, space)| if space { part + " " } else { part }).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn pruned_tokenizers_are_sound(corpus in prop::collection::vec(text(), 1..4), other in text(), share in 0.0..1.0f64) {
            let corpus: Vec<&str> = corpus.iter().map(String::as_str).chain(["fever"]).collect();
            for name in TOKENIZERS {
                let before = fixture(name);
                let least = prune_vocabulary(&before, &corpus, 0).unwrap_err().to_string();
                let least: usize = least.split("expected ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
                let all = before.config.vocab_size;
                let count = least + ((all - least) as f64 * share) as usize;
                let (pruned, report) = prune_vocabulary(&before, &corpus, count).unwrap();
                let rows = pruned.weights.0["embeddings.word_embeddings.weight"].shape[0];
                prop_assert_eq!((pruned.config.vocab_size, rows, report.pieces), (count, count, count));
                prop_assert_eq!(pruned.tokenizer.max_id() as usize + 1, count);
                prop_assert_eq!(pruned.tokenizer.special_tokens(), before.tokenizer.special_tokens());

                // Each piece has the row that it had.
                let (old, new) = (pieces_by_row(&before), pieces_by_row(&pruned));
                prop_assert!(new.iter().all(|(piece, row)| old.get(piece) == Some(row)));
                let special = pruned.tokenizer.special_tokens();
                let ids = Vocabulary::read(&json_of(&pruned)).unwrap().ids;
                prop_assert_eq!(ids[&special.cls], pruned.tokenizer.cls_id());
                prop_assert_eq!(ids[&special.sep], pruned.tokenizer.sep_id());
                prop_assert_eq!(pruned.config.pad_token_id, ids.get(&special.pad).map_or(0, |&id| id as usize));

                let (mut now_lost, mut tokens) = (0, 0);
                for text in corpus.iter().copied().chain([other.as_str()]) {
                    let (a, b) = (before.tokenizer.encode(text).unwrap(), pruned.tokenizer.encode(text).unwrap());
                    // As the crate has it.
                    let mut theirs = tokenizers::Tokenizer::from_bytes(pruned.tokenizer.to_json()).unwrap();
                    theirs.set_encode_special_tokens(true);
                    let theirs = theirs.encode(text, false).unwrap();
                    let floor = |&(from, to): &(usize, usize)| text.floor_char_boundary(from)..text.floor_char_boundary(to);
                    prop_assert_eq!(b.iter().map(|t| t.id).collect::<Vec<_>>(), theirs.get_ids());
                    prop_assert!(b.iter().map(|t| t.range.clone()).eq(theirs.get_offsets().iter().map(floor)));
                    // Words and the characters that they cover are the same.
                    let cover = |word: &[Token]| (word[0].range.start, word[word.len() - 1].range.end);
                    prop_assert!(words(&a).map(cover).eq(words(&b).map(cover)), "{name}");
                    let unknown = ids.get(&special.unk).copied();
                    for (a, b) in words(&a).zip(words(&b)) {
                        let as_before = a.iter().map(|t| new.values().find(|&&row| row == t.id)).collect::<Option<Vec<_>>>();
                        if let Some(rows) = as_before {
                            let now = b.iter().map(|t| new.values().nth(new.keys().position(|p| ids[p] == t.id).unwrap()));
                            prop_assert!(now.eq(rows.into_iter().map(Some)), "{name}");
                        }
                        now_lost += usize::from(b.iter().any(|t| Some(t.id) == unknown));
                        now_lost -= usize::from(a.iter().any(|t| t.id == old[&special.unk]));
                    }
                    tokens += b.len();
                }
                prop_assert_eq!((now_lost, report.newly_unknown), (0, 0), "{}", name);
                prop_assert_eq!(tokens - pruned.tokenizer.encode(&other).unwrap().len(), report.tokens);
                prop_assert!(report.tokens_kept <= report.tokens_before);
            }
        }
    }

    #[test]
    fn all_pieces_are_the_same_checkpoint() {
        for name in TOKENIZERS {
            let before = fixture(name);
            let (same, report) = prune_vocabulary(&before, &["a fever"], before.config.vocab_size).unwrap();
            assert_eq!(json_of(&same), json_of(&before), "{name}");
            assert!(same.weights == before.weights && same.config == before.config, "{name}");
            assert_eq!((report.tokens_kept, report.tokens), (report.tokens_before, report.tokens_before));
        }
    }

    #[test]
    fn the_report_counts_what_it_says() {
        let vocab = [
            "[PAD]",
            "[unused0]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            "a",
            "b",
            "[",
            "##a",
            "##b",
            "##]",
            "ab",
            "##ab",
            "bb",
        ];
        // `x` stands within a word alone.
        let vocab = [&vocab[..], &["##x", "xa", "aa"]].concat();
        let special = ampoule::text::SpecialTokens::from_settings(false, |_| None);
        let tokenizer = Tokenizer::from_vocab_txt(&vocab.join("\n"), true, None, true, &special).unwrap();
        let before = with_tokenizer(&tokenizer.to_json());
        let texts = ["ab abab xa", "ab bb zz aaa"];
        // 5 special tokens, 7 characters, `xa`; `[unused0]` has characters that are no pieces, so it stays too.
        let error = prune_vocabulary(&before, &texts, 13).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains("expected 14 to 18"), "{error}");
        let (pruned, report) = prune_vocabulary(&before, &texts, 15).unwrap();
        let pieces: Vec<String> = pieces_by_row(&pruned).into_keys().collect();
        assert!(pieces.contains(&"ab".to_owned()) && pieces.contains(&"xa".to_owned()), "{pieces:?}");
        assert!(!pieces.contains(&"##ab".to_owned()) && !pieces.contains(&"bb".to_owned()));
        // Of the words ab, ab ##ab, xa, ab, bb, [UNK] and aa ##a, the second, the fifth and the last are cut anew.
        let expected = VocabularyReport {
            pieces_before: 18,
            pieces: 15,
            always_kept: 14,
            words: 7,
            unknown_before: 1,
            newly_unknown: 0,
            tokens_before: 9,
            tokens: 12,
            tokens_kept: 4,
        };
        assert_eq!(report, expected);
        assert!(prune_vocabulary(&before, &[" "], 15).unwrap_err().to_string().contains("no text"));
    }

    #[test]
    fn pieces_that_no_text_gives_go_first() {
        let mut json = json_of(&fixture("uncased"));
        let next = json["model"]["vocab"].as_object().unwrap().len();
        // Not to be given: capitals are made small. Their characters stand alone, so they need not stay.
        for (i, piece) in ["Q", "##Q", "QQ", "qqq"].into_iter().enumerate() {
            json["model"]["vocab"][piece] = json!(next + i);
        }
        let before = with_tokenizer(json.to_string().as_bytes());
        let (pruned, _) = prune_vocabulary(&before, &["fever"], before.config.vocab_size - 1).unwrap();
        let pieces = pieces_by_row(&pruned);
        assert!(!pieces.contains_key("QQ") && pieces.contains_key("qqq"), "{pieces:?}");
    }

    /// Its positions are counted from the padding token's id.
    #[test]
    fn the_positions_of_roberta_do_not_move() {
        let before = Checkpoint::open(fixtures().join("checkpoints/roberta-token")).unwrap();
        let mut moved = before.clone();
        moved.config.pad_token_id = 20;
        for checkpoint in [before, moved] {
            let pad = checkpoint.config.pad_token_id;
            let (pruned, report) = prune_vocabulary(&checkpoint, &["it was given"], 110).unwrap();
            assert_eq!((pruned.config.pad_token_id, pruned.config.max_tokens()), (pad, checkpoint.config.max_tokens()));
            assert!(report.pieces == 110 && report.always_kept > pad);
        }
    }
}
