//! Texts as hurried people type them, and as scanners read them: noise whose every change is known by its bytes, so that
//! labels stay exact.

use std::ops::Range;

use ampoule::{Error, Result};
use rand::rngs::ChaCha8Rng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use unicode_segmentation::UnicodeSegmentation;

use crate::data::{Annotation, Example, LabelledText, NerSet};

/// Noise of clinical typing: how many words get some, and of which kinds.
///
/// A word is letters and digits that stand together. Each is changed with probability [`words`](Self::words), in one way: a kind
/// is drawn by its weight among those that can change this word here, then one of the places where it can. The weights are a
/// choice, not a measurement; a kind of weight 0 never comes. Only ASCII is changed, and only where each character is a grapheme
/// cluster of its own: accents, other scripts, emoji and line ends stay as they are, and no cluster is cut or joined to another.
///
/// ```
/// use ampoule_distill::TypingNoise;
///
/// let noise = TypingNoise { words: 0.5, ..TypingNoise::default() };
/// let (text, chemical) = ("The patient was given lisinopril for hypertension.", 22..32);
/// let (noisy, alignment) = noise.apply(text, &[chemical.clone()], 7);
/// let (again, _) = noise.apply(text, &[chemical.clone()], 7);
/// assert_eq!(noisy, again);
/// assert!(!noisy[alignment.map(chemical)].is_empty());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TypingNoise {
    /// The share of words that are changed, in `0..=1`.
    pub words: f64,
    /// The share of texts that get any noise, in `0..=1`; the others stay clean.
    pub texts: f64,
    /// Weight of a letter replaced by one whose key touches its own (QWERTY).
    pub neighbour: f64,
    /// Weight of a letter left out.
    pub dropped: f64,
    /// Weight of a letter typed twice.
    pub doubled: f64,
    /// Weight of two letters in the other order.
    pub swapped: f64,
    /// Weight of a word in capitals, or in small letters.
    pub case: f64,
    /// Weight of the space after a word left out.
    pub space: f64,
    /// Weight of the punctuation after a word left out, but not between two digits: the number would be another.
    pub punctuation: f64,
    /// Weight of what a scanner takes for something else: rn and m, 0 and O, 1 and l.
    pub ocr: f64,
    /// Weight of words in place of their clinical abbreviation, or the other way round: patient and pt.
    pub abbreviation: f64,
}

impl Default for TypingNoise {
    fn default() -> Self {
        TypingNoise {
            words: 0.1,
            texts: 1.0,
            neighbour: 2.0,
            dropped: 2.0,
            doubled: 1.0,
            swapped: 1.0,
            case: 1.0,
            space: 1.0,
            punctuation: 1.0,
            ocr: 1.0,
            abbreviation: 1.0,
        }
    }
}

/// Where the bytes of a clean text are in the noisy one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alignment {
    changes: Vec<(Range<usize>, Range<usize>)>,
}

impl Alignment {
    /// What became of `range`, in bytes: it begins where its first byte went and ends where its last one did.
    ///
    /// An end inside a change, which [`TypingNoise::apply`] makes none at the ranges that it is given, is widened to the whole
    /// change.
    pub fn map(&self, range: Range<usize>) -> Range<usize> {
        self.moved(range.start, |noisy| noisy.start)..self.moved(range.end, |noisy| noisy.end)
    }

    /// The way back: [`map`](Self::map) of it says what a range of the noisy text was. What was left out where a range ends belongs to it.
    pub fn inverted(&self) -> Alignment {
        Alignment { changes: self.changes.iter().map(|(clean, noisy)| (noisy.clone(), clean.clone())).collect() }
    }

    /// The changes in the order of the text, each as bytes of the clean text (never empty) and of the noisy one.
    pub fn changes(&self) -> &[(Range<usize>, Range<usize>)] {
        &self.changes
    }

    fn moved(&self, offset: usize, widened: impl Fn(&Range<usize>) -> usize) -> usize {
        let before = self.changes.partition_point(|(clean, _)| clean.end <= offset);
        match (self.changes.get(before), before.checked_sub(1).map(|last| &self.changes[last])) {
            (Some((clean, noisy)), _) if clean.start < offset => widened(noisy),
            (_, Some((clean, noisy))) => offset - clean.end + noisy.end,
            (_, None) => offset,
        }
    }
}

impl TypingNoise {
    /// The text with noise, and where its bytes went: a function of the noise, the text, `keep` and `seed` alone.
    ///
    /// `keep` are byte ranges of the text, in any order: each keeps at least one character, no change reaches over an end of
    /// one, and two of them that are whole words never become one word.
    pub fn apply(&self, text: &str, keep: &[Range<usize>], seed: u64) -> (String, Alignment) {
        let mut random = generator_of(text, seed);
        let mut alignment = Alignment::default();
        if random.random::<f64>() >= self.texts {
            return (text.to_owned(), alignment);
        }
        let page = Page::new(text, keep);
        let mut noisy = String::with_capacity(text.len());
        let mut done = 0;
        for word in page.words() {
            let is_noisy = random.random::<f64>() < self.words;
            // A change may have taken several words.
            if !is_noisy || page.offset(word.start) < done {
                continue;
            }
            let deleted = alignment.changes.last().filter(|(_, noisy)| noisy.is_empty()).map(|(clean, _)| clean.end);
            let Some(Change { range, by }) = self.draw(&page, &word, deleted, &mut random) else { continue };
            noisy.push_str(&text[done..range.start]);
            let start = noisy.len();
            noisy.push_str(&by);
            done = range.end;
            alignment.changes.push((range, start..noisy.len()));
        }
        noisy.push_str(&text[done..]);
        (noisy, alignment)
    }

    /// [`apply`](Self::apply) to a text with entities: each covers exactly what became of it. Where the space or the punctuation beside
    /// it is lost, that is [a part of a word](NerSet::within_words).
    pub fn example(&self, example: &Example, seed: u64) -> (Example, Alignment) {
        let keep: Vec<Range<usize>> = example.entities.iter().map(|entity| entity.range.clone()).collect();
        let (text, alignment) = self.apply(&example.text, &keep, seed);
        let moved = |entity: &Annotation| Annotation {
            label: entity.label.clone(),
            range: alignment.map(entity.range.clone()),
            score: entity.score,
        };
        let entities = example.entities.iter().map(moved).collect();
        (Example { id: example.id.clone(), text, entities }, alignment)
    }

    /// [`apply`](Self::apply) to a text with labels of the whole, which stay.
    pub fn labelled(&self, text: &LabelledText, seed: u64) -> LabelledText {
        LabelledText { text: self.apply(&text.text, &[], seed).0, ..text.clone() }
    }

    /// [`example`](Self::example) of each text of a set.
    pub fn set(&self, set: &NerSet, seed: u64) -> NerSet {
        let examples = set.examples.iter().map(|example| self.example(example, seed).0).collect();
        NerSet { examples, covers: set.covers.clone() }
    }

    /// Whether this is a noise.
    ///
    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for a share outside `0..=1`, or a weight that is negative or not finite.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str| Err(Error::invalid_input(format!("noise: {what}")));
        if ![self.words, self.texts].iter().all(|share| (0.0..=1.0).contains(share)) {
            return wrong("words and texts must be in 0..=1");
        }
        match self.kinds().iter().all(|(weight, _)| *weight >= 0.0 && weight.is_finite()) {
            true => Ok(()),
            false => wrong("the weight of a kind must be a number that is not negative"),
        }
    }

    fn kinds(&self) -> [(f64, Kind); 9] {
        [
            (self.neighbour, neighbours),
            (self.dropped, drops),
            (self.doubled, doubles),
            (self.swapped, swaps),
            (self.case, cases),
            (self.space, lost_spaces),
            (self.punctuation, lost_punctuation),
            (self.ocr, confusions),
            (self.abbreviation, abbreviations),
        ]
    }

    /// A change of `word`; `deleted` is where the last change ended, if it left nothing.
    fn draw(&self, page: &Page, word: &Word, deleted: Option<usize>, random: &mut ChaCha8Rng) -> Option<Change> {
        let Range { start, end } = page.bytes(word.clone());
        // Three words in one could hold two entities.
        let is_joined = deleted == Some(start);
        let mut kinds = self.kinds();
        loop {
            let total: f64 = kinds.iter().map(|(weight, _)| weight).sum();
            let mut at = random.random::<f64>() * total;
            let drawn = kinds.iter().position(|(weight, _)| {
                at -= weight;
                at < 0.0
            });
            // Sums of floats may end a little below the total.
            let drawn = drawn.or_else(|| kinds.iter().rposition(|(weight, _)| *weight > 0.0))?;
            let (_, kind) = kinds[drawn];
            // If it cannot change this word, the others are drawn from as if it had not been there.
            kinds[drawn].0 = 0.0;
            let mut changes = kind(page, word);
            changes.retain(|change| page.allows(change, deleted) && !(is_joined && change.range.start == end));
            if let Some(change) = changes.choose(random) {
                return Some(change.clone());
            }
        }
    }
}

/// The generator of a text's noise, whatever texts came before.
fn generator_of(text: &str, seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(Sha256::new().chain_update(seed.to_le_bytes()).chain_update(text).finalize().into())
}

/// The changes of one kind that a word may get.
type Kind = fn(&Page, &Word) -> Vec<Change>;

/// Indices of a word's clusters.
type Word = Range<usize>;

/// A longer one is no word (a genome, a key), and stays as it is.
const MAX_WORD: usize = 64;

#[derive(Clone)]
struct Change {
    range: Range<usize>,
    by: String,
}

/// A text in grapheme clusters.
struct Page<'a> {
    text: &'a str,
    clusters: Vec<(usize, &'a str)>,
    /// Where what is kept begins, in order.
    starts: Vec<usize>,
    /// Where it ends, in order.
    ends: Vec<usize>,
}

impl<'a> Page<'a> {
    fn new(text: &'a str, keep: &[Range<usize>]) -> Self {
        let sorted = |end: fn(&Range<usize>) -> usize| {
            let mut offsets: Vec<usize> = keep.iter().map(end).collect();
            offsets.sort_unstable();
            offsets
        };
        let clusters = text.grapheme_indices(true).collect();
        Page { text, clusters, starts: sorted(|range| range.start), ends: sorted(|range| range.end) }
    }

    fn words(&self) -> impl Iterator<Item = Word> {
        let mut at = 0;
        std::iter::from_fn(move || {
            loop {
                let start = at + (at..self.clusters.len()).position(|i| self.is_of_word(i))?;
                at = start + (start..self.clusters.len()).take_while(|&i| self.is_of_word(i)).count();
                if at - start <= MAX_WORD {
                    return Some(start..at);
                }
            }
        })
    }

    fn is_of_word(&self, i: usize) -> bool {
        self.clusters.get(i).is_some_and(|(_, cluster)| cluster.starts_with(char::is_alphanumeric))
    }

    /// Where cluster `i` begins.
    fn offset(&self, i: usize) -> usize {
        self.clusters.get(i).map_or(self.text.len(), |(offset, _)| *offset)
    }

    fn bytes(&self, clusters: Range<usize>) -> Range<usize> {
        self.offset(clusters.start)..self.offset(clusters.end)
    }

    /// Cluster `i`, if it is one character of ASCII.
    fn ascii(&self, i: usize) -> Option<char> {
        match self.clusters.get(i)?.1.as_bytes() {
            [byte] if byte.is_ascii() => Some(char::from(*byte)),
            _ => None,
        }
    }

    fn letter(&self, i: usize) -> Option<char> {
        self.ascii(i).filter(char::is_ascii_alphabetic)
    }

    /// Whether cluster `i` is an ASCII letter or digit: what follows one is never part of its cluster, so that a neighbour
    /// may go.
    fn is_plain(&self, i: usize) -> bool {
        self.ascii(i).is_some_and(|c| c.is_ascii_alphanumeric())
    }

    /// Whether the clusters from `i` on are the characters of `form`, which is ASCII.
    fn stands_at(&self, i: usize, form: &str) -> bool {
        form.chars().enumerate().all(|(k, c)| self.ascii(i + k) == Some(c))
    }

    fn change(&self, clusters: Range<usize>, by: impl Into<String>) -> Change {
        Change { range: self.bytes(clusters), by: by.into() }
    }

    /// Whether a change leaves something of all that is kept, joins no two of it and reaches over no end. What loses a character
    /// keeps one beside it: the one before, unless that is `deleted`, or the one after, whose turn has not come.
    fn allows(&self, change: &Change, deleted: Option<usize>) -> bool {
        let Range { start, end } = change.range;
        let up_to = |offsets: &[usize], offset: usize| offsets.partition_point(|&at| at <= offset);
        let is_one_of = |offsets: &[usize], offset: usize| offsets.binary_search(&offset).is_ok();
        if [&self.starts, &self.ends].iter().any(|offsets| up_to(offsets, start) < up_to(offsets, end - 1)) {
            return false;
        }
        let is_kept = up_to(&self.starts, start) > up_to(&self.ends, start);
        match change.by.is_empty() {
            false => true,
            true if is_kept => {
                (!is_one_of(&self.starts, start) && deleted != Some(start)) || !is_one_of(&self.ends, end)
            }
            true => !(is_one_of(&self.ends, start) && is_one_of(&self.starts, end)),
        }
    }
}

const KEYS: [&str; 3] = ["qwertyuiop", "asdfghjkl", "zxcvbnm"];

/// The keys that touch that of a small letter: each row stands half a key to the right of the one above.
fn touching(letter: char) -> impl Iterator<Item = char> {
    let place = KEYS.iter().enumerate().find_map(|(row, keys)| Some((row, keys.find(letter)?)));
    place.into_iter().flat_map(|(row, column)| {
        let key = move |row: Option<usize>, column: Option<usize>| {
            Some(char::from(*KEYS.get(row?)?.as_bytes().get(column?)?))
        };
        let (above, below, left) = (row.checked_sub(1), Some(row + 1), column.checked_sub(1));
        let (same, column, right) = (Some(row), Some(column), Some(column + 1));
        [key(same, left), key(same, right), key(above, column), key(above, right), key(below, left), key(below, column)]
            .into_iter()
            .flatten()
    })
}

fn neighbours(page: &Page, word: &Word) -> Vec<Change> {
    let of_letter = |i: usize| {
        let letter = page.letter(i);
        letter.into_iter().flat_map(move |letter| {
            let as_typed = move |key: char| if letter.is_ascii_uppercase() { key.to_ascii_uppercase() } else { key };
            touching(letter.to_ascii_lowercase()).map(move |key| page.change(i..i + 1, as_typed(key)))
        })
    };
    word.clone().flat_map(of_letter).collect()
}

fn drops(page: &Page, word: &Word) -> Vec<Change> {
    let has_neighbour =
        |i: usize| (i > word.start && page.is_plain(i - 1)) || (i + 1 < word.end && page.is_plain(i + 1));
    word.clone().filter(|&i| page.letter(i).is_some() && has_neighbour(i)).map(|i| page.change(i..i + 1, "")).collect()
}

fn doubles(page: &Page, word: &Word) -> Vec<Change> {
    word.clone().filter_map(|i| Some(page.change(i..i + 1, String::from_iter([page.letter(i)?; 2])))).collect()
}

fn swaps(page: &Page, word: &Word) -> Vec<Change> {
    let pair = |i: usize| Some((page.letter(i)?, page.letter(i + 1)?));
    word.clone()
        .filter_map(|i| Some((i, pair(i)?)))
        .filter(|(_, (first, second))| first != second)
        .map(|(i, (first, second))| page.change(i..i + 2, String::from_iter([second, first])))
        .collect()
}

fn cases(page: &Page, word: &Word) -> Vec<Change> {
    let written = &page.text[page.bytes(word.clone())];
    if !word.clone().all(|i| page.is_plain(i)) {
        return Vec::new();
    }
    [written.to_ascii_uppercase(), written.to_ascii_lowercase()]
        .into_iter()
        .filter(|by| by != written)
        .map(|by| page.change(word.clone(), by))
        .collect()
}

fn lost_spaces(page: &Page, word: &Word) -> Vec<Change> {
    let (last, space, next) = (word.end - 1, word.end, word.end + 1);
    let is_between = page.is_plain(last) && page.ascii(space) == Some(' ') && page.is_plain(next);
    Vec::from_iter(is_between.then(|| page.change(space..next, "")))
}

fn lost_punctuation(page: &Page, word: &Word) -> Vec<Change> {
    let (last, mark, next) = (word.end - 1, word.end, word.end + 1);
    let is_mark = page.ascii(mark).is_some_and(|c| ".,;:!?'\"()-/".contains(c));
    let is_digit = |i: usize| page.ascii(i).is_some_and(|c| c.is_ascii_digit());
    let may_go = is_mark && page.is_plain(last) && !(is_digit(last) && is_digit(next));
    Vec::from_iter(may_go.then(|| page.change(mark..next, "")))
}

/// What scanners take for one another.
const CONFUSIONS: [(&str, &str); 10] = [
    ("rn", "m"),
    ("cl", "d"),
    ("vv", "w"),
    ("0", "O"),
    ("1", "l"),
    ("1", "I"),
    ("l", "I"),
    ("5", "S"),
    ("8", "B"),
    ("2", "Z"),
];

fn confusions(page: &Page, word: &Word) -> Vec<Change> {
    let both_ways = CONFUSIONS.iter().flat_map(|&(a, b)| [(a, b), (b, a)]);
    both_ways
        .flat_map(|(form, by)| {
            let places = word.start..(word.end + 1).saturating_sub(form.len());
            places.filter(move |&i| page.stands_at(i, form)).map(move |i| page.change(i..i + form.len(), by))
        })
        .collect()
}

/// Words and their abbreviations, and whether the abbreviation means nothing else in notes, so that it may be written out.
const ABBREVIATIONS: [(&str, &str, bool); 66] = [
    ("patient", "pt", true),
    ("patients", "pts", true),
    ("history", "hx", true),
    ("diagnosis", "dx", true),
    ("fracture", "fx", true),
    ("with", "w/", true),
    ("without", "w/o", true),
    ("history of", "h/o", true),
    ("complains of", "c/o", true),
    ("rule out", "r/o", true),
    ("status post", "s/p", true),
    ("follow up", "f/u", true),
    ("year old", "y/o", true),
    ("medications", "meds", true),
    ("approximately", "approx", true),
    ("shortness of breath", "SOB", true),
    ("hypertension", "HTN", true),
    ("congestive heart failure", "CHF", true),
    ("coronary artery disease", "CAD", true),
    ("chronic obstructive pulmonary disease", "COPD", true),
    ("chronic kidney disease", "CKD", true),
    ("end stage renal disease", "ESRD", true),
    ("gastroesophageal reflux disease", "GERD", true),
    ("transient ischemic attack", "TIA", true),
    ("urinary tract infection", "UTI", true),
    ("deep vein thrombosis", "DVT", true),
    ("hydrochlorothiazide", "HCTZ", true),
    ("intensive care unit", "ICU", true),
    ("electrocardiogram", "ECG", true),
    ("magnetic resonance imaging", "MRI", true),
    ("within normal limits", "WNL", true),
    ("nothing by mouth", "NPO", true),
    ("as needed", "PRN", true),
    ("twice a day", "BID", true),
    ("three times a day", "TID", true),
    ("four times a day", "QID", true),
    ("treatment", "tx", false),
    ("symptoms", "sx", false),
    ("prescription", "rx", false),
    ("discharge", "d/c", false),
    ("medication", "med", false),
    ("examination", "exam", false),
    ("temperature", "temp", false),
    ("laboratory", "lab", false),
    ("negative", "neg", false),
    ("positive", "pos", false),
    ("abdominal", "abd", false),
    ("gastrointestinal", "GI", false),
    ("intravenous", "IV", false),
    ("intramuscular", "IM", false),
    ("by mouth", "PO", false),
    ("hemoglobin", "Hgb", false),
    ("alcohol", "EtOH", false),
    ("aspirin", "ASA", false),
    ("acetaminophen", "APAP", false),
    ("blood pressure", "BP", false),
    ("heart rate", "HR", false),
    ("chest pain", "CP", false),
    ("myocardial infarction", "MI", false),
    ("atrial fibrillation", "AF", false),
    ("pulmonary embolism", "PE", false),
    ("diabetes mellitus", "DM", false),
    ("computed tomography", "CT", false),
    ("emergency department", "ED", false),
    ("past medical history", "PMH", false),
    ("family history", "FHx", false),
];

/// Forms stand as they are written here, or with a capital first: `PT` is no patient.
fn abbreviations(page: &Page, word: &Word) -> Vec<Change> {
    let both_ways = ABBREVIATIONS
        .iter()
        .flat_map(|&(long, short, is_clear)| [Some((long, short)), is_clear.then_some((short, long))])
        .flatten();
    both_ways
        .filter_map(|(form, by)| {
            let end = word.start + form.len();
            if page.is_of_word(end) {
                return None;
            }
            if page.stands_at(word.start, form) {
                return Some(page.change(word.start..end, by));
            }
            let is_capital = page.stands_at(word.start, &capital(form));
            is_capital.then(|| page.change(word.start..end, capital(by)))
        })
        .collect()
}

/// With its first letter, which is ASCII, a capital.
fn capital(form: &str) -> String {
    let (first, rest) = form.split_at(1);
    first.to_ascii_uppercase() + rest
}

#[cfg(test)]
mod tests;
