//! Search by words: the floor that a model's embeddings have to stand well above.

use std::collections::HashMap;

use crate::dictionary::words;

/// How soon further occurrences of a word in a passage stop counting.
const K1: f64 = 1.2;
/// How much a passage's length counts against it, from 0 to 1.
const B: f64 = 0.75;

/// Okapi BM25 (Robertson and Zaragoza 2009), with Lucene's inverse document frequency, `ln(1 + (N - n + 0.5) / (n + 0.5))`, k1 1.2 and
/// b 0.75.
///
/// Words are letters and digits that stand together (as [`char::is_alphanumeric`] knows them), in lower case; none are left out, and
/// none are cut to their stems. `Debug` shows how many there are, never the words.
pub struct Bm25 {
    /// By word, the passages that have it, and how often.
    postings: HashMap<String, Vec<(usize, f64)>>,
    /// By passage, what its length makes of k1.
    saturation: Vec<f64>,
}

impl Bm25 {
    /// An index of `passages`.
    pub fn new<'a>(passages: impl IntoIterator<Item = &'a str>) -> Self {
        let mut postings: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
        let mut lengths = Vec::new();
        for (passage, text) in passages.into_iter().enumerate() {
            let mut length = 0.0;
            for word in terms(text) {
                length += 1.0;
                let found = postings.entry(word).or_default();
                match found.last_mut() {
                    Some((last, count)) if *last == passage => *count += 1.0,
                    _ => found.push((passage, 1.0)),
                }
            }
            lengths.push(length);
        }
        let mean = (lengths.iter().sum::<f64>() / lengths.len().max(1) as f64).max(f64::MIN_POSITIVE);
        let saturation = lengths.into_iter().map(|length| K1 * (1.0 - B + B * length / mean)).collect();
        Bm25 { postings, saturation }
    }

    /// The passages that have a word of `query`, at most `most`, the best first, of equals the first; a word that stands in it twice
    /// counts twice.
    pub fn search(&self, query: &str, most: usize) -> Vec<(usize, f64)> {
        let count = self.saturation.len() as f64;
        let mut scores: HashMap<usize, f64> = HashMap::new();
        for word in terms(query) {
            let Some(found) = self.postings.get(&word) else { continue };
            let n = found.len() as f64;
            let rarity = (1.0 + (count - n + 0.5) / (n + 0.5)).ln();
            for &(passage, times) in found {
                *scores.entry(passage).or_default() += rarity * times * (K1 + 1.0) / (times + self.saturation[passage]);
            }
        }
        let mut ranked: Vec<(usize, f64)> = scores.into_iter().collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(most);
        ranked
    }
}

impl std::fmt::Debug for Bm25 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bm25 {{ passages: {}, words: {} }}", self.saturation.len(), self.postings.len())
    }
}

fn terms(text: &str) -> impl Iterator<Item = String> {
    words(text).map(|word| word.lower).filter(|word| word.starts_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula by hand, over three passages of 3, 6 and 3 words.
    #[test]
    fn scores_are_those_of_the_formula() {
        let passages = ["Gout: a pain.", "pain, pain and a fever-like chill", "no such thing"];
        let index = Bm25::new(passages);
        let idf = |n: f64| (1.0 + (3.0 - n + 0.5) / (n + 0.5)).ln();
        let weight = |times: f64, length: f64| times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / (13.0 / 3.0)));
        let found = index.search("PAIN of the gout? Pain!", 10);
        let expected = [
            (0, 2.0 * idf(2.0) * weight(1.0, 3.0) + idf(1.0) * weight(1.0, 3.0)),
            (1, 2.0 * idf(2.0) * weight(2.0, 7.0)),
        ];
        assert_eq!(found.len(), 2);
        for ((passage, score), (of, expected)) in found.into_iter().zip(expected) {
            assert!(passage == of && (score - expected).abs() < 1e-12, "{passage} {score}, expected {expected}");
        }
        assert_eq!(index.search("pain", 1).len(), 1);
    }

    #[test]
    fn nothing_is_found_in_nothing_and_equals_keep_their_order() {
        assert!(Bm25::new([]).search("pain", 3).is_empty());
        let index = Bm25::new(["canary", "canary", "", "canary"]);
        assert!(index.search("", 3).is_empty() && index.search("?!", 3).is_empty());
        assert_eq!(index.search("canary", 2).into_iter().map(|(at, _)| at).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(format!("{index:?}"), "Bm25 { passages: 4, words: 1 }");
    }
}
