//! A tagger that knows the entities of its training texts by heart: the floor that a model has to stand well above.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::data::{Annotation, NerSet};

/// Entities by their words, in lower case.
///
/// `Debug` shows how many, never the words.
pub struct Dictionary {
    /// A tree of words; the first node is the root.
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    next: HashMap<String, usize>,
    /// The label of the entity that ends here.
    label: Option<String>,
}

/// A word of a text: letters and digits that stand together, or one other character that is not white space.
pub(crate) struct Word {
    pub(crate) lower: String,
    range: Range<usize>,
}

impl Dictionary {
    /// Learns the entities of `sets`, each with the label that it has most often (of two as frequent, the first by name).
    ///
    /// An entity is dropped again if looking it up in the training texts is wrong more often than right: words such as "as" or
    /// "all", which are the names of diseases in capitals alone. An unmarked place counts against a label only in the sets that
    /// cover it.
    pub fn build(sets: &[NerSet]) -> Self {
        let mut counts: BTreeMap<Vec<String>, BTreeMap<&str, usize>> = BTreeMap::new();
        for example in sets.iter().flat_map(|set| &set.examples) {
            for entity in &example.entities {
                let key = words(&example.text[entity.range.clone()]).map(|word| word.lower).collect();
                *counts.entry(key).or_default().entry(&entity.label).or_default() += 1;
            }
        }
        let mut dictionary = Dictionary { nodes: vec![Node::default()] };
        for (key, labels) in &counts {
            let most = labels.values().max();
            if let Some((label, _)) = labels.iter().find(|(_, count)| Some(*count) == most) {
                dictionary.insert(key, label);
            }
        }
        dictionary.drop_misleading(sets);
        dictionary
    }

    /// How many entities it knows.
    pub fn len(&self) -> usize {
        self.nodes.iter().filter(|node| node.label.is_some()).count()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entities of a text, from left to right, the longest one at each place; upper and lower case are the same to it.
    pub fn tag(&self, text: &str) -> Vec<Annotation> {
        let found = self.find(text).into_iter();
        found
            .filter_map(|(node, range)| Some(Annotation { label: self.nodes[node].label.clone()?, range, score: 1.0 }))
            .collect()
    }

    fn insert(&mut self, key: &[String], label: &str) {
        let mut at = 0;
        for word in key {
            let new = self.nodes.len();
            at = *self.nodes[at].next.entry(word.clone()).or_insert(new);
            if at == new {
                self.nodes.push(Node::default());
            }
        }
        // An entity without a word would be found everywhere.
        if at != 0 {
            self.nodes[at].label = Some(label.to_owned());
        }
    }

    fn drop_misleading(&mut self, sets: &[NerSet]) {
        let mut balance = vec![0i64; self.nodes.len()];
        for set in sets {
            for example in &set.examples {
                for (node, range) in self.find(&example.text) {
                    let Some(label) = self.nodes[node].label.as_ref().filter(|label| set.covers.contains(*label))
                    else {
                        continue;
                    };
                    let right = example.entities.iter().any(|e| e.label == *label && e.range == range);
                    balance[node] += if right { 1 } else { -1 };
                }
            }
        }
        for (node, balance) in self.nodes.iter_mut().zip(balance) {
            if balance < 0 {
                node.label = None;
            }
        }
    }

    /// The nodes of the entities of a text, and where they stand.
    fn find(&self, text: &str) -> Vec<(usize, Range<usize>)> {
        let words: Vec<Word> = words(text).collect();
        let mut found = Vec::new();
        let mut first = 0;
        while first < words.len() {
            let (mut at, mut longest) = (0, None);
            for (last, word) in words.iter().enumerate().skip(first) {
                let Some(&next) = self.nodes[at].next.get(&word.lower) else { break };
                at = next;
                if self.nodes[at].label.is_some() {
                    longest = Some((at, last));
                }
            }
            if let Some((node, last)) = longest {
                found.push((node, words[first].range.start..words[last].range.end));
                first = last;
            }
            first += 1;
        }
        found
    }
}

impl std::fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dictionary {{ entities: {} }}", self.len())
    }
}

/// The words of a text, in order.
pub(crate) fn words(text: &str) -> impl Iterator<Item = Word> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &text[at..];
        let begin = at + rest.find(|c: char| !c.is_whitespace())?;
        let mut characters = text[begin..].chars();
        let first = characters.next()?;
        at = begin + first.len_utf8();
        if first.is_alphanumeric() {
            at += characters.take_while(|c| c.is_alphanumeric()).map(char::len_utf8).sum::<usize>();
        }
        Some(Word { lower: text[begin..at].to_lowercase(), range: begin..at })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Example;

    /// A set of texts whose entities are written `[words|Label]`.
    fn set(covers: &[&str], marked: &[&str]) -> NerSet {
        let examples = marked.iter().map(|marked| {
            let mut example = Example { id: String::new(), text: String::new(), entities: Vec::new() };
            for piece in marked.split('[') {
                match piece.split_once(']') {
                    Some((entity, after)) => {
                        let (words, label) = entity.split_once('|').expect("a label");
                        let start = example.text.len();
                        example.text.push_str(words);
                        let range = start..example.text.len();
                        example.entities.push(Annotation { label: label.to_owned(), range, score: 1.0 });
                        example.text.push_str(after);
                    }
                    None => example.text.push_str(piece),
                }
            }
            example
        });
        NerSet { examples: examples.collect(), covers: covers.iter().map(|c| (*c).to_owned()).collect() }
    }

    fn tagged<'a>(dictionary: &Dictionary, text: &'a str) -> Vec<(String, &'a str)> {
        dictionary.tag(text).into_iter().map(|a| (a.label, &text[a.range])).collect()
    }

    #[test]
    fn finds_the_longest_in_any_case() {
        let dictionary = Dictionary::build(&[set(
            &["Disease"],
            &["[cancer|Disease] or [breast cancer|Disease]", "[beta-thalassaemia|Disease]"],
        )]);
        assert_eq!(dictionary.len(), 3);
        let text = "Breast CANCER, skin cancer, Beta - Thalassaemia; cancerous breast";
        let expected = ["Breast CANCER", "cancer", "Beta - Thalassaemia"].map(|words| ("Disease".to_owned(), words));
        assert_eq!(tagged(&dictionary, text), expected);
    }

    #[test]
    fn takes_the_more_frequent_label() {
        let dictionary = Dictionary::build(&[set(&["A", "B"], &["[iron|A] [iron|B] [iron|B] [tin|B] [tin|A]"])]);
        let expected = [("B".to_owned(), "iron"), ("A".to_owned(), "tin")];
        assert_eq!(tagged(&dictionary, "iron tin"), expected);
    }

    #[test]
    fn drops_what_is_mostly_no_entity_where_its_label_is_covered() {
        let common = set(&["Disease"], &["[AS|Disease] as early as that", "[gout|Disease] hurts, salt helps", "salt"]);
        let chemicals = set(&["Chemical"], &["[salt|Chemical] for gout, gout and gout"]);
        let dictionary = Dictionary::build(&[common, chemicals]);
        let expected = [("Disease".to_owned(), "gout"), ("Chemical".to_owned(), "salt")];
        assert_eq!(tagged(&dictionary, "AS gout as salt"), expected);
    }

    #[test]
    fn knows_nothing_and_shows_no_words() {
        let empty = Dictionary::build(&[]);
        assert!(empty.is_empty() && empty.tag("canary").is_empty());
        let dictionary = Dictionary::build(&[set(&["Disease"], &["[canary|Disease]"])]);
        assert_eq!(format!("{dictionary:?}"), "Dictionary { entities: 1 }");
    }
}
