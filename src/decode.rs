//! Logits to entities: the one place where tags such as `B-Disease` are interpreted.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};

/// What a tag says about its word, beside the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Outside,
    Begin,
    Inside,
    End,
    Single,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag {
    kind: Kind,
    label: usize,
}

impl Tag {
    /// Whether a word of this tag belongs to an entity of `label` that began before it.
    fn goes_on(self, label: usize) -> bool {
        self.label == label && matches!(self.kind, Kind::Inside | Kind::End)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notation {
    /// `B-X` begins an entity, `I-X` goes on with it.
    Iob2,
    /// As IOB2, and `E-X` (or `L-X`) ends one, `S-X` (or `U-X`) is one of one word.
    Iobes,
    /// `I-X` or `X`: neighbouring words of one label are one entity.
    Io,
}

/// How the tags of a model make entities: IOB2, IOBES (also written BILOU) or plain IO, read from the tags themselves.
#[derive(Clone, Debug)]
pub struct Scheme {
    labels: Vec<Arc<str>>,
    tags: Vec<Tag>,
    notation: Notation,
}

impl Scheme {
    /// Reads the tags of a model, by id.
    ///
    /// # Errors
    /// [`Incompatible`](crate::ErrorKind::Incompatible) where they are of no known scheme: no `O`, a tag twice, tags with and
    /// without prefix, or an inner tag without the one that begins its entity.
    pub fn new(id2label: &[String]) -> Result<Self> {
        let wrong =
            |what: String| Error::incompatible(format!("tags {id2label:?}: {what}; expected IOB2, IOBES or IO tags"));
        let split = |tag: &str| match tag.split_once('-') {
            Some((prefix, label)) if !label.is_empty() => {
                let kind = match prefix {
                    "B" => Kind::Begin,
                    "I" | "M" => Kind::Inside,
                    "E" | "L" => Kind::End,
                    "S" | "U" => Kind::Single,
                    _ => return None,
                };
                Some((kind, label.to_owned()))
            }
            _ => None,
        };
        let parts: Vec<_> = id2label.iter().map(|tag| split(tag)).collect();
        let has_prefixes = parts.iter().any(Option::is_some);
        let mut labels: Vec<Arc<str>> = Vec::new();
        let mut tags: Vec<Tag> = Vec::new();
        for (name, part) in id2label.iter().zip(parts) {
            let (kind, label) = match part {
                _ if name == "O" => (Kind::Outside, None),
                Some((kind, label)) => (kind, Some(label)),
                None if has_prefixes || name.is_empty() => return Err(wrong(format!("{name:?} has no prefix"))),
                None => (Kind::Inside, Some(name.clone())),
            };
            let label = match label {
                None => usize::MAX,
                Some(label) => labels.iter().position(|l| **l == *label).unwrap_or_else(|| {
                    labels.push(label.into());
                    labels.len() - 1
                }),
            };
            let tag = Tag { kind, label };
            if tags.contains(&tag) {
                return Err(wrong(format!("{name:?} is there twice")));
            }
            tags.push(tag);
        }
        if !tags.iter().any(|t| t.kind == Kind::Outside) {
            return Err(wrong("there is no \"O\"".to_owned()));
        }
        let has = |kind, label| tags.contains(&Tag { kind, label });
        let any = |kind| tags.iter().any(|t| t.kind == kind);
        let notation = match (any(Kind::End) || any(Kind::Single), any(Kind::Begin)) {
            (true, _) => Notation::Iobes,
            (false, true) => Notation::Iob2,
            (false, false) => Notation::Io,
        };
        for (i, label) in labels.iter().enumerate() {
            let begins = has(Kind::Begin, i);
            let goes_on = has(Kind::Inside, i) || has(Kind::End, i);
            if notation != Notation::Io && goes_on && !begins {
                return Err(wrong(format!("nothing begins an entity of {label:?}")));
            }
            if notation == Notation::Iobes && begins && !has(Kind::End, i) {
                return Err(wrong(format!("nothing ends an entity of {label:?}")));
            }
        }
        Ok(Scheme { labels, tags, notation })
    }

    /// The labels of entities, in the order of their first tags.
    pub fn entity_labels(&self) -> &[Arc<str>] {
        &self.labels
    }

    /// The index of a label in [`Scheme::entity_labels`].
    pub fn label_index(&self, label: &str) -> Option<usize> {
        self.labels.iter().position(|l| **l == *label)
    }

    /// The label of a tag; none for `O` and for ids beyond the tags.
    pub fn label_of(&self, tag: u32) -> Option<usize> {
        let tag = self.tags.get(tag as usize)?;
        (tag.kind != Kind::Outside).then_some(tag.label)
    }

    /// By tag, that of a further word of the same entity where one word is taken as two: what began goes on. In IOBES the first word's tag
    /// would change as well, which this does not say.
    pub fn continued(&self) -> Vec<usize> {
        let of = |(own, tag): (usize, &Tag)| {
            let kind = match tag.kind {
                Kind::Begin => Kind::Inside,
                Kind::Single => Kind::End,
                kind => kind,
            };
            self.tags.iter().position(|other| *other == Tag { kind, label: tag.label }).unwrap_or(own)
        };
        self.tags.iter().enumerate().map(of).collect()
    }

    /// For each word of an entity of so many words, and for the word after it: by tag, whether the word may have it where exactly this entity
    /// is. Nothing where the scheme has no tags for it.
    pub fn exactly(&self, label: usize, words: usize) -> Vec<Vec<bool>> {
        let ranges: Vec<Range<usize>> = (0..words).map(|word| word..word + 1).collect();
        let of_words = self.encode(&ranges, &[(label, 0..words)]);
        if of_words.iter().any(|&tag| self.label_of(tag) != Some(label)) {
            return Vec::new();
        }
        let is = |tag: u32| (0..).zip(&self.tags).map(|(other, _)| other == tag).collect();
        let last = of_words.last().map(|&tag| self.tags[tag as usize]);
        let ends = last.is_some_and(|tag| matches!(tag.kind, Kind::End | Kind::Single));
        let after = self.tags.iter().map(|&tag| ends || !tag.goes_on(label)).collect();
        of_words.into_iter().map(is).chain([after]).collect()
    }

    fn may_start(&self, tag: Tag) -> bool {
        self.notation == Notation::Io || !matches!(tag.kind, Kind::Inside | Kind::End)
    }

    fn may_end(&self, tag: Tag) -> bool {
        self.notation != Notation::Iobes || !matches!(tag.kind, Kind::Begin | Kind::Inside)
    }

    fn may_follow(&self, from: Tag, to: Tag) -> bool {
        if self.notation == Notation::Io {
            return true;
        }
        let is_open = matches!(from.kind, Kind::Begin | Kind::Inside);
        let goes_on = matches!(to.kind, Kind::Inside | Kind::End);
        if goes_on { is_open && from.label == to.label } else { !(is_open && self.notation == Notation::Iobes) }
    }

    fn id(&self, kind: Kind, label: usize) -> Option<u32> {
        self.tags.iter().position(|t| *t == Tag { kind, label }).map(|id| id as u32)
    }

    /// The tags of `words` (byte ranges, in order) under `spans` (label indices and byte ranges): a word belongs to a span that
    /// it overlaps. Of spans that overlap one another the longest holds, of equally long ones the first. What the scheme
    /// cannot say (an entity of two words where it has no inner tag) stays outside.
    pub fn encode(&self, words: &[Range<usize>], spans: &[(usize, Range<usize>)]) -> Vec<u32> {
        let outside = self.tags.iter().position(|t| t.kind == Kind::Outside).unwrap_or(0) as u32;
        let mut tags = vec![outside; words.len()];
        let mut spans: Vec<_> = spans.iter().collect();
        spans.sort_by_key(|(_, range)| (std::cmp::Reverse(range.len()), range.start));
        let mut taken = vec![false; words.len()];
        for (label, range) in spans {
            let first = words.partition_point(|w| w.end <= range.start);
            let last = first + words[first..].partition_point(|w| w.start < range.end);
            if first == last || taken[first..last].contains(&true) {
                continue;
            }
            let ids: Option<Vec<u32>> = (first..last)
                .map(|i| {
                    let kind = match (self.notation, i == first, i + 1 == last) {
                        (Notation::Io, _, _) => Kind::Inside,
                        (Notation::Iobes, true, true) => Kind::Single,
                        (Notation::Iobes, false, true) => Kind::End,
                        (_, true, _) => Kind::Begin,
                        (_, false, _) => Kind::Inside,
                    };
                    self.id(kind, *label)
                })
                .collect();
            if let Some(ids) = ids {
                tags[first..last].copy_from_slice(&ids);
                taken[first..last].fill(true);
            }
        }
        tags
    }
}

/// An entity by its label's index.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Index in [`Scheme::entity_labels`].
    pub label: usize,
    /// From its first word's beginning to its last word's end, in bytes.
    pub range: Range<usize>,
    /// The probability that its words have these tags and the next word does not go on with it, each word by itself, in `0..=1`. The mean
    /// of the words' probabilities, as others have it, says too much of long entities, and nothing of where they end.
    pub score: f32,
}

/// The likeliest legal tags of a note's words (Viterbi 1967), found while the words arrive.
///
/// A span is handed over as soon as every path that is still possible agrees on it, so the words that wait are few on any
/// ordinary note; the result is that of the whole note at once. Of equally likely paths the one of lower tag ids is taken.
pub struct Decoder<'s> {
    scheme: &'s Scheme,
    inverse_temperature: f64,
    /// Sum of the logits on the best path to each tag of the last word, up to a constant.
    scores: Vec<f64>,
    /// Words whose tags are not decided yet.
    waiting: Vec<Waiting>,
    /// Words that wait when it is next looked whether some are decided.
    look_at: usize,
    open: Option<Open>,
}

struct Waiting {
    range: Range<usize>,
    /// The best tag before, by tag.
    before: Vec<u16>,
    /// Log probability, by tag.
    log_probs: Vec<f32>,
}

struct Open {
    label: usize,
    range: Range<usize>,
    probability: f64,
}

/// Looking whether words are decided costs as much as a few words do.
const LOOK_EVERY: usize = 32;

impl<'s> Decoder<'s> {
    /// Begins a note. `temperature`, a positive number, divides the logits before they become probabilities, and so changes scores
    /// alone: tags follow one another by hard rules, and of two sums of logits the larger stays so whatever both are divided by.
    pub fn new(scheme: &'s Scheme, temperature: f32) -> Self {
        Decoder {
            scheme,
            inverse_temperature: 1.0 / f64::from(temperature),
            scores: Vec::new(),
            waiting: Vec::new(),
            look_at: LOOK_EVERY,
            open: None,
        }
    }

    /// Takes the next word, its byte range and `logits` by tag, and hands over the spans that it decides.
    ///
    /// # Errors
    /// [`Internal`](crate::ErrorKind::Internal) where a logit is not finite or their number is not that of the tags.
    pub fn push(&mut self, word: Range<usize>, logits: &[f32], out: &mut impl FnMut(Span)) -> Result<()> {
        let tags = &self.scheme.tags;
        if logits.len() != tags.len() {
            return Err(Error::internal(format!("expected {} logits for a word, found {}", tags.len(), logits.len())));
        }
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(Error::internal("the model computed a logit that is not finite; its weights are unsound"));
        }
        let scaled = || logits.iter().map(|&x| f64::from(x) * self.inverse_temperature);
        let top = scaled().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = top + scaled().map(|x| (x - top).exp()).sum::<f64>().ln();
        let log_probs: Vec<f64> = scaled().map(|x| x - log_sum).collect();

        let mut before = vec![0u16; tags.len()];
        let mut scores: Vec<f64> = Vec::with_capacity(tags.len());
        for (to, (&tag, &logit)) in tags.iter().zip(logits).enumerate() {
            let mut best = f64::NEG_INFINITY;
            if self.scores.is_empty() {
                if self.scheme.may_start(tag) {
                    best = 0.0;
                }
            } else {
                for (from, &score) in self.scores.iter().enumerate() {
                    if score > best && self.scheme.may_follow(tags[from], tag) {
                        best = score;
                        before[to] = from as u16;
                    }
                }
            }
            // Not the log probability, which is this over the temperature less a constant of the word: rounded, two paths could
            // change places.
            scores.push(best + f64::from(logit));
        }
        // Kept near zero, so that a note of a million words is as exact as one of ten.
        let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|s| *s -= best);
        self.scores = scores;
        self.waiting.push(Waiting {
            range: word,
            before,
            log_probs: log_probs.into_iter().map(|x| x as f32).collect(),
        });
        if self.waiting.len() >= self.look_at {
            self.settle(out);
            self.look_at = (2 * self.waiting.len()).max(LOOK_EVERY);
        }
        Ok(())
    }

    /// Hands over what every possible path agrees on.
    fn settle(&mut self, out: &mut impl FnMut(Span)) {
        let mut alive: Vec<usize> = (0..self.scores.len()).filter(|&t| self.scores[t] > f64::NEG_INFINITY).collect();
        let mut agreed = None;
        for (i, word) in self.waiting.iter().enumerate().rev() {
            if let &[tag] = alive.as_slice() {
                agreed = Some((i, tag));
                break;
            }
            alive.iter_mut().for_each(|tag| *tag = usize::from(word.before[*tag]));
            alive.sort_unstable();
            alive.dedup();
        }
        if let Some((last, tag)) = agreed {
            self.decide(last, tag, out);
        }
    }

    /// Takes `tag` for the waiting word `last`, and the path to it for those before.
    fn decide(&mut self, last: usize, tag: usize, out: &mut impl FnMut(Span)) {
        let mut path = vec![tag; last + 1];
        for i in (0..last).rev() {
            path[i] = usize::from(self.waiting[i + 1].before[path[i + 1]]);
        }
        for (word, tag) in self.waiting.drain(..=last).zip(path) {
            let probability = |tag: usize| f64::from(word.log_probs[tag]).exp();
            let of_tag = probability(tag);
            let tag = self.scheme.tags[tag];
            let begins = matches!(tag.kind, Kind::Begin | Kind::Single);
            let goes_on =
                !begins && self.open.as_ref().is_some_and(|o| tag.kind != Kind::Outside && o.label == tag.label);
            if let (true, Some(open)) = (goes_on, &mut self.open) {
                open.range.end = word.range.end;
                open.probability *= of_tag;
            } else {
                if let Some(open) = &mut self.open {
                    let on = (0..)
                        .zip(&self.scheme.tags)
                        .filter(|(_, t)| t.goes_on(open.label))
                        .map(|(t, _)| probability(t));
                    open.probability *= 1.0 - on.sum::<f64>().min(1.0);
                }
                close(&mut self.open, out);
                if tag.kind != Kind::Outside {
                    self.open = Some(Open { label: tag.label, range: word.range, probability: of_tag });
                }
            }
            if matches!(tag.kind, Kind::End | Kind::Single) {
                close(&mut self.open, out);
            }
        }
    }

    /// Ends the note and hands over the rest.
    pub fn finish(mut self, out: &mut impl FnMut(Span)) {
        let last = (0..self.scores.len())
            .filter(|&t| self.scheme.may_end(self.scheme.tags[t]))
            .reduce(|best, t| if self.scores[t] > self.scores[best] { t } else { best });
        if let (Some(tag), Some(last)) = (last, self.waiting.len().checked_sub(1)) {
            self.decide(last, tag, out);
        }
        close(&mut self.open, out);
    }
}

fn close(open: &mut Option<Open>, out: &mut impl FnMut(Span)) {
    if let Some(Open { label, range, probability }) = open.take() {
        out(Span { label, range, score: (probability as f32).clamp(0.0, 1.0) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scheme(tags: &[&str]) -> Scheme {
        Scheme::new(&tags.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn schemes() -> [Scheme; 4] {
        [
            scheme(&["O", "B-a", "I-a", "B-b", "I-b"]),
            scheme(&["B-a", "I-a", "E-a", "S-a", "O", "U-b"]),
            scheme(&["a", "O", "b"]),
            scheme(&["I-a", "I-b", "O"]),
        ]
    }

    fn run(scheme: &Scheme, logits: &[Vec<f32>], look_every_word: bool) -> Vec<Span> {
        run_at(scheme, logits, look_every_word, 1.0)
    }

    fn run_at(scheme: &Scheme, logits: &[Vec<f32>], look_every_word: bool, temperature: f32) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut decoder = Decoder::new(scheme, temperature);
        for (i, row) in logits.iter().enumerate() {
            decoder.push(2 * i..2 * i + 1, row, &mut |s| spans.push(s)).unwrap();
            if look_every_word {
                decoder.settle(&mut |s| spans.push(s));
            }
        }
        decoder.finish(&mut |s| spans.push(s));
        spans
    }

    /// All sequences of tags, scored one by one.
    fn brute_force(scheme: &Scheme, logits: &[Vec<f32>]) -> Vec<Tag> {
        let tags = scheme.tags.len();
        let mut best = (f64::NEG_INFINITY, Vec::new());
        for code in 0..tags.pow(logits.len() as u32) {
            let path: Vec<usize> = (0..logits.len()).map(|i| code / tags.pow(i as u32) % tags).collect();
            let of = |i: usize| scheme.tags[path[i]];
            let is_legal = scheme.may_start(of(0))
                && scheme.may_end(of(path.len() - 1))
                && (1..path.len()).all(|i| scheme.may_follow(of(i - 1), of(i)));
            let score: f64 = path.iter().zip(logits).map(|(&t, row)| f64::from(row[t])).sum();
            if is_legal && score > best.0 {
                best = (score, path.iter().map(|&t| scheme.tags[t]).collect());
            }
        }
        best.1
    }

    fn label_by_word(spans: &[Span], words: usize) -> Vec<Option<usize>> {
        (0..words).map(|i| spans.iter().find(|s| s.range.contains(&(2 * i))).map(|s| s.label)).collect()
    }

    proptest! {
        #[test]
        fn the_path_is_the_best_of_all_legal_ones(which in 0usize..4, seed in prop::collection::vec(-4f32..4.0, 6 * 5)) {
            let scheme = &schemes()[which];
            let logits: Vec<Vec<f32>> = seed.chunks(6).map(|row| row[..scheme.tags.len()].to_vec()).collect();
            let spans = run(scheme, &logits, false);
            let expected: Vec<_> = brute_force(scheme, &logits)
                .into_iter()
                .map(|t| (t.kind != Kind::Outside).then_some(t.label))
                .collect();
            prop_assert_eq!(label_by_word(&spans, logits.len()), expected);
        }

        #[test]
        fn handing_spans_over_early_changes_nothing(which in 0usize..4, seed in prop::collection::vec(-4f32..4.0, 6 * 150)) {
            let scheme = &schemes()[which];
            let logits: Vec<Vec<f32>> = seed.chunks(6).map(|row| row[..scheme.tags.len()].to_vec()).collect();
            prop_assert_eq!(run(scheme, &logits, false), run(scheme, &logits, true));
        }

        #[test]
        fn a_temperature_changes_scores_and_no_span(
            which in 0usize..4,
            // Of few values, so that paths often tie.
            seed in prop::collection::vec(prop_oneof![(-4i8..4).prop_map(f32::from), -4f32..4.0], 6 * 40),
            log in -8f32..8.0,
        ) {
            let scheme = &schemes()[which];
            let logits: Vec<Vec<f32>> = seed.chunks(6).map(|row| row[..scheme.tags.len()].to_vec()).collect();
            let expected = run(scheme, &logits, false);
            for temperature in [log.exp(), f32::MIN_POSITIVE, f32::MAX] {
                let found = run_at(scheme, &logits, true, temperature);
                let place = |spans: &[Span]| spans.iter().map(|s| (s.label, s.range.clone())).collect::<Vec<_>>();
                prop_assert_eq!(place(&found), place(&expected));
                prop_assert!(found.iter().all(|s| (0.0..=1.0).contains(&s.score)));
            }
        }

        #[test]
        fn what_is_encoded_is_decoded(which in 0usize..4, cuts in prop::collection::btree_set(0usize..12, 0..12)) {
            let scheme = &schemes()[which];
            let words: Vec<_> = (0..12).map(|i| 2 * i..2 * i + 1).collect();
            let cuts: Vec<usize> = cuts.into_iter().collect();
            // Entities of one label with a word between, as IO cannot tell neighbours apart.
            let spans: Vec<_> = cuts
                .chunks_exact(2)
                .filter(|c| c[0] + 1 < c[1])
                .map(|c| (0, 2 * c[0]..2 * (c[1] - 1) - 1))
                .collect();
            let logits: Vec<Vec<f32>> = scheme
                .encode(&words, &spans)
                .into_iter()
                .map(|tag| (0..scheme.tags.len()).map(|t| if t == tag as usize { 9.0 } else { 0.0 }).collect())
                .collect();
            let found: Vec<_> = run(scheme, &logits, false).into_iter().map(|s| (s.label, s.range)).collect();
            prop_assert_eq!(found, spans);
        }
    }

    #[test]
    fn a_score_is_the_probability_of_exactly_this_entity() {
        // Words by themselves: the sum over all paths that have it.
        let bio = scheme(&["O", "B-a", "I-a"]);
        let logits = [vec![0.0, 2.0, 0.0], vec![0.0, 0.0, 1.0], vec![3.0, 0.0, 0.0], vec![0.5, 0.0, 0.0]];
        let p = |word: usize, tag: usize| {
            let e: Vec<f64> = logits[word].iter().map(|&x| f64::from(x).exp()).collect();
            e[tag] / e.iter().sum::<f64>()
        };
        let spans = run(&bio, &logits, false);
        assert_eq!((spans.len(), spans[0].range.clone()), (1, 0..3));
        let expected = p(0, 1) * p(1, 2) * (1.0 - p(2, 2));
        assert!((f64::from(spans[0].score) - expected).abs() < 1e-6, "{spans:?}");
        let doubled: Vec<Vec<f32>> = logits.iter().map(|row| row.iter().map(|x| 2.0 * x).collect()).collect();
        assert_eq!(run_at(&bio, &doubled, false, 2.0)[0].score, spans[0].score);
        // By the tags that each word has then, too.
        let sum =
            |(word, may): (usize, &Vec<bool>)| -> f64 { (0..3).filter(|&tag| may[tag]).map(|tag| p(word, tag)).sum() };
        assert!((bio.exactly(0, 2).iter().enumerate().map(sum).product::<f64>() - expected).abs() < 1e-12);
        // At the end of a note there is no next word.
        let spans = run(&bio, &logits[..2], false);
        assert!((f64::from(spans[0].score) - p(0, 1) * p(1, 2)).abs() < 1e-6, "{spans:?}");
        // Where the last tag says the end, the next word has no say.
        let iobes = scheme(&["O", "B-a", "E-a"]);
        assert_eq!(iobes.exactly(0, 2), [vec![false, true, false], vec![false, false, true], vec![true; 3]]);
        assert_eq!(iobes.exactly(0, 1), Vec::<Vec<bool>>::new());
        let spans = run(&iobes, &logits, false);
        assert!((f64::from(spans[0].score) - p(0, 1) * p(1, 2)).abs() < 1e-6, "{spans:?}");
    }

    #[test]
    fn a_long_note_keeps_few_words_waiting() {
        let scheme = scheme(&["O", "B-a", "I-a", "B-b", "I-b"]);
        let mut decoder = Decoder::new(&scheme, 1.0);
        let (mut state, mut most, mut spans) = (1u32, 0, 0usize);
        for i in 0..200_000 {
            let logits: Vec<f32> = (0..5)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 16) as f32 / 8192.0
                })
                .collect();
            decoder.push(i..i + 1, &logits, &mut |_| spans += 1).unwrap();
            most = most.max(decoder.waiting.len());
        }
        decoder.finish(&mut |_| spans += 1);
        assert!(most <= 4 * LOOK_EVERY && spans > 10_000, "{most} words waited, {spans} spans");
    }

    #[test]
    fn other_tags_are_refused_by_name() {
        for (tags, named) in [
            (vec!["B-a", "I-a"], "no \"O\""),
            (vec!["O", "I-a", "B-b"], "\"a\""),
            (vec!["O", "B-a", "b"], "\"b\" has no prefix"),
            (vec!["O", "B-a", "B-a"], "twice"),
            (vec!["O", "B-a", "I-a", "S-a"], "ends"),
        ] {
            let tags: Vec<String> = tags.into_iter().map(str::to_owned).collect();
            let error = Scheme::new(&tags).unwrap_err();
            assert!(error.kind() == crate::ErrorKind::Incompatible && error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn unsound_logits_are_an_error() {
        let scheme = scheme(&["O", "B-a"]);
        let mut decoder = Decoder::new(&scheme, 1.0);
        assert!(decoder.push(0..1, &[f32::NAN, 0.0], &mut |_| ()).is_err());
        assert!(decoder.push(0..1, &[0.0], &mut |_| ()).is_err());
    }
}
