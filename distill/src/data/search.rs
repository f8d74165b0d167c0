//! Queries, and the passages that they are to find.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ampoule::{Error, Result};
use serde::Deserialize;

use super::jsonl::{Id, parse};
use super::lines;

/// A text that may be found.
///
/// `Debug` shows lengths, never the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Passage {
    /// The line's own; of a pair, the number of the first line that has the text.
    pub id: String,
    /// What a model is given.
    pub text: String,
}

/// A text by which others are looked for.
///
/// `Debug` shows lengths, never the text.
#[derive(Clone, PartialEq, Eq)]
pub struct Query {
    /// The line's own, or the line's number.
    pub id: String,
    /// What a model is given.
    pub text: String,
    /// Which passages of the set are relevant to it: their indices, at least one, none twice.
    pub positives: Vec<usize>,
}

/// Queries with all passages among which theirs are looked for.
#[derive(Clone, PartialEq, Eq)]
pub struct SearchSet {
    /// In the order of the file.
    pub passages: Arc<[Passage]>,
    /// In the order of the file.
    pub queries: Vec<Query>,
}

impl SearchSet {
    /// All passages, and after them the queries.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let passages = self.passages.iter().map(|passage| passage.text.as_str());
        passages.chain(self.queries.iter().map(|query| query.text.as_str()))
    }
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Passage {{ text: {} bytes }}", self.text.len())
    }
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Query {{ text: {} bytes, positives: {} }}", self.text.len(), self.positives.len())
    }
}

impl fmt::Debug for SearchSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SearchSet {{ passages: {}, queries: {} }}", self.passages.len(), self.queries.len())
    }
}

#[derive(Deserialize)]
struct PassageLine {
    id: Id,
    text: String,
}

#[derive(Deserialize)]
struct QueryLine {
    id: Option<Id>,
    text: String,
    positives: Option<Vec<Id>>,
    positive: Option<String>,
}

const PASSAGE: &str = r#"{"id": …, "text": …}"#;
const QUERY: &str = r#"{"text": …, "positives": [ids of passages]} or {"text": …, "positive": …}"#;

/// The file of the passages, beside those of the queries that name them.
const CORPUS: &str = "corpus.jsonl";

/// Reads queries from a `.jsonl` file (see the [module](super)): either each names its passages by their ids in the file
/// `corpus.jsonl` of the same folder, or each comes with one text that belongs to it. Of such pairs, the second texts are the passages,
/// equal ones being one, and equal first texts are one query.
///
/// # Errors
/// [`NotFound`](ampoule::ErrorKind::NotFound) if a file cannot be read; [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for another
/// extension, a malformed line, an empty text, an id that two have or that no passage has, and for a file without queries or passages.
pub fn read_search(path: &Path) -> Result<SearchSet> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case(super::JSONL)) {
        return Err(Error::invalid_input(format!(
            "{}: queries are read from .jsonl files, a line each: {QUERY}",
            path.display()
        )));
    }
    let (mut corpus, mut pairs) = (None, Pairs::default());
    let (mut queries, mut ids) = (Vec::new(), HashMap::new());
    lines::each(path, |number, line| {
        let Some(line): Option<QueryLine> = parse(line, QUERY)? else { return Ok(()) };
        check_text(&line.text)?;
        let given = line.id.map(Id::into_string);
        if let Some(first) = given.as_ref().and_then(|id| ids.insert(id.clone(), number)) {
            return Err(Error::invalid_input(format!(
                "its id is that of line {first} too: give each query an id of its own, or none"
            )));
        }
        let id = given.unwrap_or_else(|| number.to_string());
        match (line.positives, line.positive) {
            (Some(positives), None) if pairs.queries.is_empty() => {
                let corpus = match &mut corpus {
                    Some(corpus) => corpus,
                    none => none.insert(read_corpus(&path.with_file_name(CORPUS))?),
                };
                queries.push(Query { id, text: line.text, positives: corpus.find(positives)? });
                Ok(())
            }
            (None, Some(positive)) if queries.is_empty() => pairs.add(number, id, line.text, positive),
            (Some(_), None) | (None, Some(_)) => Err(Error::invalid_input(
                "some lines have \"positives\" and some \"positive\": put the two kinds into different files",
            )),
            _ => Err(Error::invalid_input(format!("expected either \"positives\" or \"positive\": {QUERY}"))),
        }
    })?;
    let set = match corpus {
        Some(corpus) => SearchSet { passages: corpus.passages.into(), queries },
        None => SearchSet { passages: pairs.passages.into(), queries: pairs.queries },
    };
    if set.queries.is_empty() {
        return Err(Error::invalid_input(format!("{}: no query in it", path.display())));
    }
    Ok(set)
}

struct Corpus {
    passages: Vec<Passage>,
    /// Where the passage of each id is.
    ids: HashMap<String, usize>,
}

fn read_corpus(path: &Path) -> Result<Corpus> {
    let (mut passages, mut ids, mut numbers) = (Vec::new(), HashMap::new(), Vec::new());
    lines::each(path, |number, line| {
        let Some(PassageLine { id, text }) = parse(line, PASSAGE)? else { return Ok(()) };
        check_text(&text)?;
        let id = id.into_string();
        if let Some(first) = ids.insert(id.clone(), passages.len()) {
            return Err(Error::invalid_input(format!(
                "its id is that of line {} too: give each passage an id of its own",
                numbers[first]
            )));
        }
        passages.push(Passage { id, text });
        numbers.push(number);
        Ok(())
    })
    .map_err(|e| e.context(format!("queries name passages, which stand in {CORPUS} beside them")))?;
    if passages.is_empty() {
        return Err(Error::invalid_input(format!("{}: no passage in it", path.display())));
    }
    Ok(Corpus { passages, ids })
}

impl Corpus {
    /// Where the passages of these ids are.
    fn find(&self, ids: Vec<Id>) -> Result<Vec<usize>> {
        if ids.is_empty() {
            return Err(Error::invalid_input(
                "\"positives\" is empty: name the passages that are relevant, or take the line out",
            ));
        }
        let mut seen = BTreeSet::new();
        let find = |(number, id): (usize, Id)| match self.ids.get(&id.into_string()) {
            Some(&at) if seen.insert(at) => Ok(at),
            Some(_) => Err(Error::invalid_input(format!("positive {number} of \"positives\" is there twice"))),
            None => Err(Error::invalid_input(format!(
                "positive {number} of \"positives\" is the id of no passage in {CORPUS}: correct it, or add the passage"
            ))),
        };
        (1..).zip(ids).map(find).collect()
    }
}

/// A set as it is gathered from pairs of texts.
#[derive(Default)]
struct Pairs {
    passages: Vec<Passage>,
    queries: Vec<Query>,
    passage_of: HashMap<String, usize>,
    query_of: HashMap<String, usize>,
}

impl Pairs {
    fn add(&mut self, number: usize, id: String, text: String, positive: String) -> Result<()> {
        check_text(&positive)?;
        let passage = *self.passage_of.entry(positive).or_insert_with_key(|text| {
            self.passages.push(Passage { id: number.to_string(), text: text.clone() });
            self.passages.len() - 1
        });
        let query = *self.query_of.entry(text).or_insert_with_key(|text| {
            self.queries.push(Query { id, text: text.clone(), positives: Vec::new() });
            self.queries.len() - 1
        });
        let positives = &mut self.queries[query].positives;
        if !positives.contains(&passage) {
            positives.push(passage);
        }
        Ok(())
    }
}

fn check_text(text: &str) -> Result<()> {
    match text.trim().is_empty() {
        true => Err(Error::invalid_input("a text is empty, and nothing can be found by it: take the line out")),
        false => Ok(()),
    }
}
