//! Shapes of a student that a device has room and time for.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use ampoule::model::{HostTensor, Weights};
use ampoule::{Error, ModelConfig, Result};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::factorize::factorized;
use crate::student::{StudentShape, narrowed};

#[cfg(test)]
mod tests;

/// What a device allows a model. As text, `4 MB, 5 ms@128`: either, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Budget {
    /// The most bytes of its bundle.
    pub bytes: Option<u64>,
    /// How long it may take.
    pub time: Option<TimeLimit>,
}

/// How long a model may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TimeLimit {
    /// The most, from text to answer.
    pub milliseconds: f64,
    /// For a text of so many tokens, special tokens counted.
    pub tokens: usize,
}

/// A limit of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// That of its bytes.
    Bytes,
    /// That of its time.
    Time,
}

const UNITS: [(&str, f64); 5] = [("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("KiB", 1024.0), ("MiB", (1 << 20) as f64)];
/// No limit is above this, so that f64 counts bytes exactly.
const MOST: f64 = (1u64 << 50) as f64;

impl FromStr for Budget {
    type Err = Error;

    /// # Errors
    /// [`InvalidInput`](ampoule::ErrorKind::InvalidInput), with the part that is not understood.
    fn from_str(text: &str) -> Result<Self> {
        let mut budget = Budget::default();
        for part in text.split(',').map(str::trim) {
            let wrong = |what: &str| Error::invalid_input(format!("budget {part:?}: {what}"));
            let end = part.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(part.len());
            let (number, unit) = (part[..end].parse::<f64>(), part[end..].trim());
            let number = number.ok().filter(|n| *n > 0.0 && *n < MOST);
            let number = number.ok_or_else(|| wrong("expected a positive number with its unit"))?;
            if let Some((unit, tokens)) = unit.split_once('@') {
                if unit.trim() != "ms" {
                    return Err(wrong("expected a time in ms, as in 5 ms@128"));
                }
                let tokens = tokens.trim().parse().ok().filter(|n| *n > 0);
                let tokens = tokens.ok_or_else(|| wrong("expected a number of tokens after @, as in 5 ms@128"))?;
                if budget.time.replace(TimeLimit { milliseconds: number, tokens }).is_some() {
                    return Err(wrong("a second time"));
                }
                continue;
            }
            if unit == "ms" {
                return Err(wrong("expected the number of tokens that take so long, as in 5 ms@128"));
            }
            let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, scale)| scale);
            let scale =
                scale.ok_or_else(|| wrong("expected a size in kB, MB, KiB or MiB, or a time, as in 5 ms@128"))?;
            let bytes = (number * scale).round();
            if !(1.0..MOST).contains(&bytes) {
                return Err(wrong("expected a size of at least a byte, below 2^50"));
            }
            if budget.bytes.replace(bytes as u64).is_some() {
                return Err(wrong("a second size"));
            }
        }
        Ok(budget)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.bytes.map(|bytes| format!("{} MB", bytes as f64 / 1e6));
        let time = self.time.map(|time| format!("{} ms@{}", time.milliseconds, time.tokens));
        f.write_str(&size.into_iter().chain(time).collect::<Vec<_>>().join(", "))
    }
}

impl Budget {
    /// The limit that something of this size and time breaks; what is not known breaks none.
    pub fn broken(&self, bytes: u64, milliseconds: Option<f64>) -> Option<Limit> {
        let is_above = |time: TimeLimit| milliseconds.is_some_and(|t| t > time.milliseconds);
        match self.bytes.is_some_and(|most| bytes > most) {
            true => Some(Limit::Bytes),
            false => self.time.is_some_and(is_above).then_some(Limit::Time),
        }
    }
}

/// A student that a teacher can start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its layers and widths, all named.
    #[serde(flatten)]
    pub shape: StudentShape,
    /// The width to which the teacher's embeddings are [factorized](crate::factorize_embeddings) before; none where they are not.
    pub embedding: Option<usize>,
}

impl Candidate {
    /// What it is, of a teacher with the student's vocabulary.
    ///
    /// # Errors
    /// Those of [`factorize_embeddings`](crate::factorize_embeddings) and [`student_from_teacher`](crate::student_from_teacher).
    pub fn config(&self, teacher: &ModelConfig) -> Result<ModelConfig> {
        match self.embedding {
            Some(width) => narrowed(&factorized(teacher, width)?, &self.shape),
            None => narrowed(teacher, &self.shape),
        }
    }
}

/// A student, and what it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Its shape.
    #[serde(flatten)]
    pub candidate: Candidate,
    /// Width of its embeddings.
    pub embedding_size: usize,
    /// How many numbers it has.
    pub parameters: usize,
    /// Multiplications of its encoder, a token of a text of the budget's length.
    pub multiplications: usize,
    /// Of its bundle.
    pub bytes: u64,
    /// From text to answer, the median; none where it was not measured.
    pub milliseconds: Option<f64>,
}

impl Measured {
    fn new(candidate: Candidate, config: &ModelConfig, tokens: usize, bytes: u64) -> Self {
        let (e, h, f) = (config.embedding_size, config.hidden_size, config.intermediate_size);
        // Four products with hidden states, two of the feed-forward block, and attention's two with every token.
        let of_a_layer = 4 * h * h + 2 * h * f + 2 * h * tokens;
        Measured {
            candidate,
            embedding_size: e,
            parameters: config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum(),
            multiplications: config.num_hidden_layers * of_a_layer + if e == h { 0 } else { e * h },
            bytes,
            milliseconds: None,
        }
    }

    /// Layers, hidden states, feed-forward blocks and embeddings: more of each is a better student.
    fn sizes(&self) -> [usize; 4] {
        let shape = &self.candidate.shape;
        let named = |width: Option<usize>| width.unwrap_or_default();
        [shape.layers.len(), named(shape.hidden_size), named(shape.intermediate_size), self.embedding_size]
    }

    /// Whether it has at least as much of everything.
    fn covers(&self, other: &Self) -> bool {
        self.sizes().iter().zip(other.sizes()).all(|(a, b)| *a >= b)
    }

    /// How unlike they are: the distance of the logarithms of their sizes.
    fn distance(&self, other: &Self) -> f64 {
        let of = |(a, b): (&usize, usize)| ((*a as f64).ln() - (b as f64).ln()).powi(2);
        self.sizes().iter().zip(other.sizes()).map(of).sum::<f64>().sqrt()
    }
}

/// What students take on a device.
pub trait Costs {
    /// Bytes of the bundle of such a model.
    ///
    /// # Errors
    /// Where there is no such bundle.
    fn bytes(&mut self, config: &ModelConfig) -> Result<u64>;

    /// The time of such a model for a text of so many tokens, in milliseconds.
    ///
    /// # Errors
    /// Where it cannot be measured.
    fn milliseconds(&mut self, config: &ModelConfig, tokens: usize) -> Result<f64>;
}

/// What a search found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Students within the budget such that no other one of these has as many layers and is as wide everywhere (the Pareto front), those
    /// that compute the most first.
    pub fits: Vec<Measured>,
    /// For the widths that were tried, the student of the fewest layers that breaks the budget.
    pub breaks: Vec<Measured>,
}

/// The most widths of hidden states that are tried, evenly taken from the numbers of heads.
const WIDTHS: usize = 8;
/// Parts of the teacher's embeddings, or of its hidden states where they are as wide, that are tried.
const EMBEDDINGS: [usize; 5] = [2, 3, 4, 6, 8];
/// Narrower embeddings are not proposed.
const LEAST_EMBEDDING: usize = 8;
/// Tokens of a text where no time says how many.
const TOKENS: usize = 128;

/// Looks for students within `budget` that start from a teacher: any number of its layers, evenly taken; whole heads of its own width;
/// feed-forward blocks in its proportion, or half as wide; its embeddings, or narrower ones, or those of the width `embedding`. `teacher`
/// has the student's vocabulary.
///
/// What is too large is not measured, and neither is what cannot be on the front. Of the rest, the number of layers is guessed by the time
/// of those measured before, so that for each choice of widths a few models are measured, nearly all of them about as slow as is allowed.
///
/// # Errors
/// Those of `costs`; [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where the teacher does not read so many tokens at once, or has no
/// embeddings to be narrowed so. That nothing fits is no error.
pub fn search(
    budget: &Budget,
    teacher: &ModelConfig,
    embedding: Option<usize>,
    costs: &mut dyn Costs,
) -> Result<Found> {
    let most = teacher.max_tokens();
    let tokens = budget.time.map_or(TOKENS.min(most), |time| time.tokens);
    if !(3..=most).contains(&tokens) {
        return Err(Error::invalid_input(format!(
            "budget {:?}: this teacher reads 3 to {most} tokens at once, special tokens counted",
            budget.to_string()
        )));
    }
    let mut found = Found::default();
    let mut families = Vec::new();
    for family in candidates(teacher, embedding)? {
        let mut fits = Vec::new();
        for candidate in family {
            let config = candidate.config(teacher)?;
            let measured = Measured::new(candidate, &config, tokens, costs.bytes(&config)?);
            if budget.broken(measured.bytes, None).is_some() {
                found.breaks.push(measured);
                break;
            }
            fits.push(measured);
        }
        families.push(fits);
    }
    families.sort_by_key(|family| Reverse(family.last().map(|student| student.multiplications)));

    // Milliseconds a multiplication, of what was measured last.
    let mut rate: Option<f64> = None;
    for mut family in families {
        // The students before `low` fit; that of `high`, and those after it, do not, or are too large.
        let (mut low, mut high) = (0, family.len());
        if let Some(time) = budget.time {
            while low < high && !found.fits.iter().any(|other| other.covers(&family[high - 1])) {
                let allowed = rate.map_or(0.0, |rate| time.milliseconds / rate);
                let guess = family.partition_point(|student| student.multiplications as f64 <= allowed);
                let at = guess.saturating_sub(1).clamp(low, high - 1);
                let student = &mut family[at];
                let milliseconds = costs.milliseconds(&student.candidate.config(teacher)?, tokens)?;
                student.milliseconds = Some(milliseconds);
                rate = Some(milliseconds / student.multiplications as f64);
                match milliseconds <= time.milliseconds {
                    true => low = at + 1,
                    false => high = at,
                }
            }
            found.breaks.extend(family.get(high).filter(|student| student.milliseconds.is_some()).cloned());
            family.truncate(low);
        }
        found.fits.extend(family.pop());
    }
    found.fits.sort_by_key(|student| Reverse(student.multiplications));
    let all = std::mem::take(&mut found.fits);
    let is_covered = |student: &Measured| all.iter().any(|other| other != student && other.covers(student));
    found.fits = all.iter().filter(|student| !is_covered(student)).cloned().collect();
    Ok(found)
}

/// Those to be tried, at most `most`, of students that fit, those that compute the most first: the first, and each time the one least like
/// those before it (farthest-point sampling), of those that compute at least half as much as the first.
pub fn tries(fits: &[Measured], most: usize) -> Vec<&Measured> {
    let Some(first) = fits.first() else { return Vec::new() };
    let near = fits.partition_point(|student| 2 * student.multiplications >= first.multiplications);
    let near = &fits[..near.max(most.min(fits.len()))];
    let mut chosen = vec![first];
    while chosen.len() < most.min(near.len()) {
        let apart = |student: &Measured| chosen.iter().map(|c| c.distance(student)).fold(f64::INFINITY, f64::min);
        // Of equals, the last that is seen is taken.
        let left = near.iter().rev().filter(|student| !chosen.contains(student));
        let Some(next) = left.max_by(|a, b| apart(a).total_cmp(&apart(b))) else { break };
        chosen.push(next);
    }
    chosen
}

/// The students that are tried, in lists of the same widths by rising number of layers.
fn candidates(teacher: &ModelConfig, embedding: Option<usize>) -> Result<Vec<Vec<Candidate>>> {
    let heads = teacher.num_attention_heads;
    let of_a_head = teacher.hidden_size / heads;
    let embeddings: Vec<Option<usize>> = match embedding {
        Some(width) => factorized(teacher, width).map(|_| vec![Some(width)])?,
        None => {
            // Whole vectors of four.
            let mut narrow = EMBEDDINGS.map(|part| teacher.embedding_size / part / 4 * 4).to_vec();
            narrow.retain(|width| *width >= LEAST_EMBEDDING);
            narrow.dedup();
            std::iter::once(None).chain(narrow.into_iter().map(Some)).collect()
        }
    };
    let mut all = Vec::new();
    for heads in (1..=heads).rev().step_by(heads.div_ceil(WIDTHS)) {
        let hidden = heads * of_a_head;
        let whole = (teacher.intermediate_size * hidden).div_ceil(teacher.hidden_size);
        let mut intermediates = vec![whole, whole.div_ceil(2)];
        intermediates.dedup();
        for intermediate in intermediates {
            for &width in &embeddings {
                let of = |layers: usize| Candidate {
                    shape: StudentShape {
                        layers: (1..=layers).map(|i| (i * teacher.num_hidden_layers).div_ceil(layers)).collect(),
                        hidden_size: Some(hidden),
                        num_attention_heads: Some(heads),
                        intermediate_size: Some(intermediate),
                    },
                    embedding: width,
                };
                let is_proposed = embedding.is_some() || width.is_none_or(|width| width < hidden);
                // Embeddings that are projected to their own width are none.
                if is_proposed && of(1).config(teacher).is_ok() {
                    all.push((1..=teacher.num_hidden_layers).map(of).collect());
                }
            }
        }
    }
    Ok(all)
}

/// Weights of such a model that mean nothing, to measure it by before it is trained: norms of 1, biases of 0, and noise, always the same.
pub fn stand_in(config: &ModelConfig) -> Weights {
    const DRAWN: usize = 1 << 16;
    let mut generator = ChaCha8Rng::seed_from_u64(0);
    let noise: Vec<f32> = (0..DRAWN).map(|_| 0.1 * (generator.random::<f32>() - 0.5)).collect();
    let of = |(name, shape): (String, Vec<usize>)| {
        let count = shape.iter().product();
        let data = match shape.len() {
            2 => noise.iter().copied().cycle().take(count).collect(),
            _ if name.ends_with(".weight") => vec![1.0; count],
            _ => vec![0.0; count],
        };
        (name, HostTensor { shape, data })
    };
    Weights(config.tensors().into_iter().map(of).collect())
}
