//! Which labels are taken for which, and what else becomes of an entity.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::Serialize;

use super::LabelledSpan;

/// What became of an entity, of the gold standard or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The same label over the same range.
    Right,
    /// The same range, another label.
    Label,
    /// Another range that has bytes in common with it, whatever the label.
    Boundary,
    /// Nothing was found there.
    Missed,
    /// Nothing is there.
    Spurious,
}

/// An entity of the gold standard, one that was found, or the two of them where they belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged<'a> {
    /// What became of it.
    pub verdict: Verdict,
    /// What is there.
    pub gold: Option<&'a LabelledSpan>,
    /// What was found.
    pub found: Option<&'a LabelledSpan>,
}

/// Pairs a text's entities with those found in it: each stands in exactly one entry of what comes back. Labels outside `covers` are
/// left out, and a span listed twice counts once.
///
/// Spans of the same range are a pair, of the same label first. Of what is left, those that overlap are a matter of boundaries; where
/// several overlap one, it is paired with the first.
pub fn judge<'a>(gold: &'a [LabelledSpan], found: &'a [LabelledSpan], covers: &BTreeSet<String>) -> Vec<Judged<'a>> {
    let (gold, found) = (in_order(gold, covers), in_order(found, covers));
    let mut partners: Vec<Option<usize>> = vec![None; gold.len()];
    let mut is_taken = vec![false; found.len()];
    for may_differ in [false, true] {
        for (partner, (label, range)) in partners.iter_mut().zip(&gold).filter(|(partner, _)| partner.is_none()) {
            let fits = |at: &usize| !is_taken[*at] && found[*at].1 == *range && (may_differ || found[*at].0 == *label);
            *partner = (0..found.len()).find(fits);
            partner.iter().for_each(|&at| is_taken[at] = true);
        }
    }
    let mut all = Vec::with_capacity(gold.len());
    let mut overlaps = vec![false; found.len()];
    for (&span, partner) in gold.iter().zip(&partners) {
        let (verdict, partner) = match *partner {
            Some(at) if found[at].0 == span.0 => (Verdict::Right, Some(at)),
            Some(at) => (Verdict::Label, Some(at)),
            None => {
                let near: Vec<usize> = (0..found.len())
                    .filter(|&at| (!is_taken[at] || overlaps[at]) && overlap(&found[at].1, &span.1))
                    .collect();
                near.iter().for_each(|&at| overlaps[at] = true);
                let free = near.iter().copied().find(|&at| !is_taken[at]);
                free.into_iter().for_each(|at| is_taken[at] = true);
                (if near.is_empty() { Verdict::Missed } else { Verdict::Boundary }, free)
            }
        };
        all.push(Judged { verdict, gold: Some(span), found: partner.map(|at| found[at]) });
    }
    let left = found.iter().enumerate().filter(|(at, _)| !is_taken[*at]);
    all.extend(left.map(|(at, &span)| Judged {
        verdict: if overlaps[at] { Verdict::Boundary } else { Verdict::Spurious },
        gold: None,
        found: Some(span),
    }));
    all
}

fn in_order<'a>(spans: &'a [LabelledSpan], covers: &BTreeSet<String>) -> Vec<&'a LabelledSpan> {
    let mut spans: Vec<_> = spans.iter().filter(|(label, _)| covers.contains(label)).collect();
    spans.sort_by_key(|(label, range)| (range.start, range.end, label));
    spans.dedup();
    spans
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start.max(b.start) < a.end.min(b.end)
}

/// How often each label is taken for each, and what else becomes of them.
///
/// The sum of a row of `pairs` with `gold_boundary` and `missed` is how many the gold standard has of the label; that of a column with
/// `found_boundary` and `spurious`, how many were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Confusion {
    /// Those that occur on either side, in alphabetical order, which is that of all that follows.
    pub labels: Vec<String>,
    /// `[gold][found]`: of entities, those of one range; of texts, those with one label for another, and in a task in which a text may
    /// have several, the right ones alone.
    pub pairs: Vec<Vec<usize>>,
    /// `[gold]`: what was found overlaps them, but does not begin and end with them. None of texts.
    pub gold_boundary: Vec<usize>,
    /// `[gold]`: nothing was found for them.
    pub missed: Vec<usize>,
    /// `[found]`: those that overlap one of the gold standard, but do not begin and end with it. None of texts.
    pub found_boundary: Vec<usize>,
    /// `[found]`: there is nothing of the gold standard for them.
    pub spurious: Vec<usize>,
}

impl Confusion {
    /// Of entities, by [`judge`], one entry a text in each list.
    ///
    /// # Panics
    /// When the three lists differ in length.
    pub fn of_entities(
        gold: &[Vec<LabelledSpan>],
        found: &[Vec<LabelledSpan>],
        covers: &[&BTreeSet<String>],
    ) -> Confusion {
        assert!(gold.len() == found.len() && gold.len() == covers.len(), "one entry a text in each list");
        let texts = gold.iter().zip(found).zip(covers);
        let judged: Vec<Judged> = texts.flat_map(|((gold, found), covers)| judge(gold, found, covers)).collect();
        let label = |span: Option<&'_ LabelledSpan>| span.map(|(label, _)| label.clone());
        Self::count(judged.iter().map(|one| (one.verdict, label(one.gold), label(one.found))).collect())
    }

    /// Of labels of whole texts, one entry a text in each list. Where a text has one label and was given another, the one was taken for
    /// the other; in a task in which it may have several nobody can say which was, and each is missed or spurious.
    ///
    /// # Panics
    /// When the two lists differ in length.
    pub fn of_labels(gold: &[Vec<String>], given: &[Vec<String>], multi_label: bool) -> Confusion {
        assert_eq!(gold.len(), given.len(), "one entry a text in each list");
        let mut all = Vec::new();
        for (gold, given) in gold.iter().zip(given) {
            let (gold, given): (BTreeSet<&String>, BTreeSet<&String>) = (gold.iter().collect(), given.iter().collect());
            if let (false, Some(&one), Some(&other)) = (multi_label, gold.first(), given.first())
                && gold.len() == 1
                && given.len() == 1
            {
                let verdict = if one == other { Verdict::Right } else { Verdict::Label };
                all.push((verdict, Some(one.clone()), Some(other.clone())));
                continue;
            }
            for &label in gold.union(&given) {
                all.push(match (gold.contains(label), given.contains(label)) {
                    (true, true) => (Verdict::Right, Some(label.clone()), Some(label.clone())),
                    (true, false) => (Verdict::Missed, Some(label.clone()), None),
                    _ => (Verdict::Spurious, None, Some(label.clone())),
                });
            }
        }
        Self::count(all)
    }

    fn count(judged: Vec<(Verdict, Option<String>, Option<String>)>) -> Confusion {
        let names: BTreeSet<&String> = judged.iter().flat_map(|(_, gold, found)| gold.iter().chain(found)).collect();
        let at: BTreeMap<&String, usize> = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
        let none = || vec![0; at.len()];
        let mut counts = Confusion {
            labels: names.iter().map(|name| (*name).clone()).collect(),
            pairs: vec![none(); at.len()],
            gold_boundary: none(),
            missed: none(),
            found_boundary: none(),
            spurious: none(),
        };
        for (verdict, gold, found) in &judged {
            let (gold, found) = (gold.as_ref().map(|name| at[name]), found.as_ref().map(|name| at[name]));
            match (verdict, gold, found) {
                (Verdict::Right | Verdict::Label, Some(gold), Some(found)) => counts.pairs[gold][found] += 1,
                (Verdict::Boundary, ..) => {
                    gold.into_iter().for_each(|gold| counts.gold_boundary[gold] += 1);
                    found.into_iter().for_each(|found| counts.found_boundary[found] += 1);
                }
                _ => {
                    gold.into_iter().for_each(|gold| counts.missed[gold] += 1);
                    found.into_iter().for_each(|found| counts.spurious[found] += 1);
                }
            }
        }
        counts
    }
}
