//! Sentences put together to longer texts.

use rand::{Rng, RngExt};

use super::{Annotation, Example, NerSet};

/// The examples of a set, some of them put together to runs, as notes are, in the set's order.
///
/// The set is cut into groups of consecutive sentences: how long a group may be is `budget_tokens` with probability `full`, else
/// drawn evenly up to that, and it ends where the next sentence would bring its `length` over it. A group becomes, with
/// probability `share`, one example, its sentences joined by a space and its entities moved; otherwise its sentences come singly.
/// So `share` is the expected share of sentences that come in runs, among those whose group has two or more. Every sentence comes
/// exactly once, and the same state of `rng` gives the same runs.
pub fn runs(
    set: &NerSet,
    share: f64,
    full: f64,
    budget_tokens: usize,
    length: &dyn Fn(&Example) -> usize,
    rng: &mut impl Rng,
) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut rest = set.examples.as_slice();
    while !rest.is_empty() {
        let is_full = full > 0.0 && rng.random::<f64>() < full;
        let budget = if is_full { budget_tokens } else { rng.random_range(0..=budget_tokens) };
        let (group, after) = rest.split_at(fitting(rest, budget, length));
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
        let (group, after) = rest.split_at(fitting(rest, budget, length));
        examples.extend(together(group));
        rest = after;
    }
    examples
}

/// How many examples, at least one, are within `budget` together.
fn fitting(examples: &[Example], budget: usize, length: &dyn Fn(&Example) -> usize) -> usize {
    let mut sum = 0usize;
    let within = examples.iter().take_while(|example| {
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
            score: entity.score,
        }));
    }
    Some(run)
}
