//! Pairs of texts that belong together, from which embeddings learn: a query with a passage, or a text with itself.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ampoule::Result;

use super::{Epoch, Input, Sequence, Sequences, Typing, batches};
use crate::config::TrainConfig;
use crate::data::SearchSet;
use crate::embedding::{Pairs, StepPairs};
use crate::teacher::Clean;

/// Two texts that belong together.
pub(super) struct Pair {
    sequences: [Sequence; 2],
    /// Numbers of the two texts; equal texts have one.
    texts: [usize; 2],
    /// Numbers of the queries to which the second is relevant.
    queries: BTreeSet<usize>,
}

impl Pair {
    /// Tokens of both.
    pub(super) fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.ids.len()).sum()
    }
}

/// Batches in which pairs are sorted by length. Few: sorted far, the same texts would meet in every epoch.
const STRETCH: usize = 4;

/// Numbers texts, equal ones alike.
#[derive(Default)]
struct Numbers<'a>(HashMap<&'a str, usize>);

impl<'a> Numbers<'a> {
    fn of(&mut self, text: &'a str) -> usize {
        let next = self.0.len();
        *self.0.entry(text).or_insert(next)
    }
}

/// The pairs of an epoch: each query with each of its passages, and each text of `transfer` with itself.
pub(super) fn epoch<'a>(
    of: &Sequences,
    train: &'a [SearchSet],
    transfer: &'a [String],
    typing: &Typing,
    config: &TrainConfig,
    number: usize,
) -> Result<Epoch> {
    let window = of.window(config);
    let mut numbers = Numbers::default();
    let mut queries: HashMap<usize, BTreeSet<usize>> = HashMap::new();
    for set in train {
        for query in &set.queries {
            let asked = numbers.of(&query.text);
            for &passage in &query.positives {
                queries.entry(numbers.of(&set.passages[passage].text)).or_default().insert(asked);
            }
        }
    }
    let mut pairs = Vec::new();
    // Queries are typed, and passages edited.
    let mut add = |first: &'a str, second: &'a str| -> Result<()> {
        let texts = [numbers.of(first), numbers.of(second)];
        let (noisy, clean) = typing.text(first);
        let sequences = [of.whole(&noisy, &clean, window, None)?, of.whole(second, &Clean::of(second), window, None)?];
        pairs.push(Pair { sequences, texts, queries: queries.get(&texts[1]).cloned().unwrap_or_default() });
        Ok(())
    };
    for set in train {
        for query in &set.queries {
            query.positives.iter().try_for_each(|&passage| add(&query.text, &set.passages[passage].text))?;
        }
    }
    if config.transfer {
        transfer.iter().try_for_each(|text| add(text, text))?;
    }
    let lengths: Vec<[usize; 2]> = pairs.iter().map(|pair| pair.sequences.each_ref().map(|s| s.ids.len())).collect();
    let batches = batches(&lengths, STRETCH, config, number);
    Ok(Epoch { sequences: Vec::new(), pairs, batches })
}

/// The parts of a step, as it is `cut`.
pub(super) fn parts(cut: &[Vec<&Pair>], input: impl Fn(&[&Sequence]) -> Input) -> Vec<Pairs> {
    let step = Arc::new(step_pairs(&cut.concat(), cut.len()));
    let part = |(part, pairs): (usize, &Vec<&Pair>)| {
        let side = |side: usize| input(&pairs.iter().map(|pair| &pair.sequences[side]).collect::<Vec<_>>());
        Pairs { sides: [side(0), side(1)], step: step.clone(), part }
    };
    cut.iter().enumerate().map(part).collect()
}

/// What is no negative of what among the pairs of a step.
fn step_pairs(pairs: &[&Pair], parts: usize) -> StepPairs {
    let flag = |is: bool| f32::from(u8::from(is));
    let is_no_negative = |a: &Pair, b: &Pair| {
        let is_itself = std::ptr::eq(a, b);
        !is_itself && (a.texts.contains(&b.texts[1]) || !a.queries.is_disjoint(&b.queries))
    };
    let no_negatives = pairs.iter().flat_map(|a| pairs.iter().map(|b| flag(is_no_negative(a, b)))).collect();
    let texts: Vec<usize> = [0, 1].iter().flat_map(|&side| pairs.iter().map(move |pair| pair.texts[side])).collect();
    let equal = texts.iter().flat_map(|a| texts.iter().map(move |b| flag(a == b))).collect();
    StepPairs::new(no_negatives, equal, parts)
}

#[cfg(test)]
mod tests {
    use ampoule::{Batch, Checkpoint};

    use super::*;
    use crate::data::{Passage, Query};
    use crate::losses::Term;
    use crate::sequences::Data;

    fn set(passages: &[&str], queries: &[(&str, &[usize])]) -> SearchSet {
        let passage = |text: &&str| Passage { id: String::new(), text: (*text).to_owned() };
        let query = |&(text, positives): &(&str, &[usize])| Query {
            id: String::new(),
            text: text.to_owned(),
            positives: positives.to_vec(),
        };
        SearchSet { passages: passages.iter().map(passage).collect(), queries: queries.iter().map(query).collect() }
    }

    #[test]
    fn what_belongs_together_is_no_negative_of_each_other() {
        let pair = |texts: [usize; 2], queries: &[usize]| Pair {
            sequences: [(), ()].map(|()| Sequence { ids: Vec::new(), allowed: Vec::new(), readings: Vec::new() }),
            texts,
            queries: queries.iter().copied().collect(),
        };
        let pairs = [
            pair([1, 2], &[1]),    // 0
            pair([3, 4], &[3, 5]), // 1: its passage answers the query 5 too
            pair([5, 6], &[5]),    // 2: so those of 1 and 2 are no negatives of each other
            pair([7, 2], &[1, 7]), // 3: the passage of 0, equal
            pair([8, 8], &[]),     // 4: a text with itself
            pair([9, 8], &[9]),    // 5: the same text as a passage
            pair([6, 6], &[5]),    // 6: the passage of 2 as a text without a query
        ];
        let all: Vec<&Pair> = pairs.iter().collect();
        let step = step_pairs(&all, 1);
        let found: Vec<(usize, usize)> =
            (0..49).filter(|&i| step.no_negatives()[i] == 1.0).map(|i| (i / 7, i % 7)).collect();
        let expected = [(0, 3), (1, 2), (1, 6), (2, 1), (2, 6), (3, 0), (4, 5), (5, 4), (6, 1), (6, 2)];
        assert_eq!(found, expected);
    }

    #[test]
    fn every_query_meets_every_passage_of_its_own_and_every_text_itself_whatever_the_threads() {
        let student = Checkpoint::open("../tests/fixtures/checkpoints/bert-encoder").unwrap();
        let train = vec![set(
            &["the pain of a patient", "aspirin and naloxone", "a pain", "aspirin"],
            &[("pain", &[0, 2]), ("naloxone", &[1]), ("a b c", &[1, 3])],
        )];
        let data = Data::Search { train, dev: Vec::new(), transfer: vec!["a patient".to_owned(); 2] };
        let sequences = Sequences::new(&student, Vec::new(), &data).unwrap();
        let config = TrainConfig {
            batch_size: 4,
            terms: vec![Term::Contrastive { weight: 1.0, temperature: 0.05 }],
            ..TrainConfig::default()
        };
        let epoch = sequences.epoch(0, &config).unwrap();
        assert_eq!((epoch.pairs.len(), epoch.batches.len()), (7, 2));
        let mut seen: Vec<usize> = epoch.batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(epoch.pairs[5].texts, [epoch.pairs[6].texts[0]; 2]);
        let ids = |pair: &Pair| pair.sequences.each_ref().map(|s| s.ids.clone());
        let again = sequences.epoch(0, &config).unwrap();
        assert!(epoch.pairs.iter().map(ids).eq(again.pairs.iter().map(ids)) && epoch.batches == again.batches);
        for count in [1, 2, 9] {
            let parts = sequences.parts(&epoch, 0, count);
            let of = |side: usize| parts.iter().map(move |part| &part.inputs()[side].batch);
            assert!(of(0).zip(of(1)).all(|(first, second)| first.dims()[0] == second.dims()[0]));
            assert_eq!(of(0).map(|batch| batch.dims()[0]).sum::<usize>(), epoch.batches[0].len());
            let tokens = of(0).chain(of(1)).flat_map(Batch::lengths).sum::<usize>();
            assert_eq!((parts.len(), tokens), (count.min(epoch.batches[0].len()), epoch.tokens(0)));
        }
        let without = TrainConfig { transfer: false, ..config.clone() };
        assert_eq!(sequences.epoch(0, &without).unwrap().pairs.len(), 5);
        let wrong = TrainConfig { terms: vec![Term::Hard { weight: 1.0 }], ..config };
        let error = sequences.epoch(0, &wrong).err().unwrap().to_string();
        assert!(error.contains("\"hard\"") && error.contains("contrastive"), "{error}");
    }
}
