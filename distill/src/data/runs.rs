//! Sentences put together to longer texts.

use rand::{Rng, RngExt};

use super::{Annotation, Example, NerSet};

/// How many sentences a run is meant to have: about a window of 512 tokens at the most.
const SENTENCES: std::ops::RangeInclusive<usize> = 2..=13;

/// The examples of a set, some of them put together to runs, as notes are, in the set's order.
///
/// The set is cut into groups of consecutive sentences: the number of sentences is drawn evenly from 2 to 13, and a group
/// ends earlier where the next sentence would bring its `length` over `budget_tokens`. A group becomes, with probability
/// `share`, one example, its sentences joined by a space and its entities moved; otherwise its sentences come singly. So
/// `share` is the expected share of sentences that come in runs, whatever the budget, among those whose group has two or
/// more. Every sentence comes exactly once, and the same state of `rng` gives the same runs.
pub fn runs(
    set: &NerSet,
    share: f64,
    budget_tokens: usize,
    length: &dyn Fn(&Example) -> usize,
    rng: &mut impl Rng,
) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut rest = set.examples.as_slice();
    while !rest.is_empty() {
        let wanted = rng.random_range(SENTENCES);
        let (group, after) = rest.split_at(fitting(rest, wanted, budget_tokens, length));
        if rng.random::<f64>() < share {
            examples.extend(together(group));
        } else {
            examples.extend_from_slice(group);
        }
        rest = after;
    }
    examples
}

/// The examples of a set put together to texts as long as `budget` allows, in order: what a full window holds.
///
/// A sentence whose `length` alone is over `budget` stays a text of its own.
pub fn full_windows(set: &NerSet, budget: usize, length: &dyn Fn(&Example) -> usize) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut rest = set.examples.as_slice();
    while !rest.is_empty() {
        let (group, after) = rest.split_at(fitting(rest, usize::MAX, budget, length));
        examples.extend(together(group));
        rest = after;
    }
    examples
}

/// How many examples, at least one and at most `most`, are within `budget` together.
fn fitting(examples: &[Example], most: usize, budget: usize, length: &dyn Fn(&Example) -> usize) -> usize {
    let mut sum = 0usize;
    let within = examples.iter().take(most).take_while(|example| {
        sum = sum.saturating_add(length(example));
        sum <= budget
    });
    within.count().max(1)
}

/// One example of several, joined by spaces.
fn together(group: &[Example]) -> Option<Example> {
    let (first, others) = group.split_first()?;
    let mut run = first.clone();
    for example in others {
        run.text.push(' ');
        let at = run.text.len();
        run.text.push_str(&example.text);
        run.entities.extend(example.entities.iter().map(|entity| Annotation {
            label: entity.label.clone(),
            range: entity.range.start + at..entity.range.end + at,
        }));
    }
    Some(run)
}
