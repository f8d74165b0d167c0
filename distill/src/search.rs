//! Passages as a model's embeddings find them, through the runtime.

use ampoule::{Embedder, Result};

use crate::bm25::Bm25;
use crate::data::SearchSet;
use crate::score::{FOUND, SearchReport, search_scores};

/// Passages that were to be found beside those that a model, or BM25, found.
#[derive(Default)]
pub struct FoundPassages {
    relevant: Vec<Vec<usize>>,
    /// The first ten, the best first.
    found: Vec<Vec<usize>>,
}

/// Texts that are embedded together.
const BATCH: usize = 64;

impl FoundPassages {
    /// Embeds the texts of `sets` and finds, by each query, the passages of its set that lie nearest by cosine; of equally near ones the
    /// first. `each` hears after some texts, of how many.
    ///
    /// # Errors
    /// Those of the embedder.
    pub fn run(embedder: &Embedder, sets: &[SearchSet], mut each: impl FnMut(usize)) -> Result<Self> {
        let mut all = FoundPassages::default();
        for set in sets {
            let mut embed = |texts: Vec<&str>| -> Result<Vec<f32>> {
                let mut vectors = Vec::with_capacity(texts.len() * embedder.width());
                for some in texts.chunks(BATCH) {
                    embedder.embed_batch(some)?.iter().for_each(|vector| vectors.extend(of_length_1(vector)));
                    each(some.len());
                }
                Ok(vectors)
            };
            let passages = embed(set.passages.iter().map(|passage| passage.text.as_str()).collect())?;
            let queries = embed(set.queries.iter().map(|query| query.text.as_str()).collect())?;
            all.add(set, queries.chunks(embedder.width()).map(|query| nearest(query, &passages)));
        }
        Ok(all)
    }

    /// What [`Bm25`] finds in the same passages.
    pub fn of_bm25(sets: &[SearchSet]) -> Self {
        let mut all = FoundPassages::default();
        for set in sets {
            let index = Bm25::new(set.passages.iter().map(|passage| passage.text.as_str()));
            let search =
                |text: &str| index.search(text, FOUND).into_iter().map(|(passage, _)| passage).collect::<Vec<_>>();
            all.add(set, set.queries.iter().map(|query| search(&query.text)));
        }
        all
    }

    fn add(&mut self, set: &SearchSet, found: impl Iterator<Item = Vec<usize>>) {
        self.relevant.extend(set.queries.iter().map(|query| query.positives.clone()));
        self.found.extend(found);
    }

    /// How well they were found.
    pub fn scores(&self) -> SearchReport {
        search_scores(&self.relevant, &self.found)
    }
}

/// A vector's direction: its products with others are cosines, whether or not the model says that lengths are 1.
pub(crate) fn of_length_1(vector: &[f32]) -> impl Iterator<Item = f32> {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    vector.iter().map(move |&x| (f64::from(x) / length) as f32)
}

/// The passages, by their rows `[passages, width]`, whose products with `query` are largest, the largest first.
fn nearest(query: &[f32], passages: &[f32]) -> Vec<usize> {
    let product = |passage: &[f32]| query.iter().zip(passage).map(|(a, b)| a * b).sum::<f32>();
    let mut ranked: Vec<(usize, f32)> = passages.chunks(query.len()).map(product).enumerate().collect();
    let order = |a: &(usize, f32), b: &(usize, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if ranked.len() > FOUND {
        ranked.select_nth_unstable_by(FOUND - 1, order);
        ranked.truncate(FOUND);
    }
    ranked.sort_unstable_by(order);
    ranked.into_iter().map(|(passage, _)| passage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first_and_of_equals_the_first() {
        let passages: Vec<f32> = (0..40).flat_map(|i| [(i % 20) as f32, 1.0]).collect();
        assert_eq!(nearest(&[1.0, 0.0], &passages), [19, 39, 18, 38, 17, 37, 16, 36, 15, 35]);
        assert_eq!(nearest(&[0.0, 1.0], &passages[..6]), [0, 1, 2]);
        assert!(nearest(&[1.0], &[]).is_empty());
        assert_eq!(of_length_1(&[3.0, -4.0]).collect::<Vec<_>>(), [0.6, -0.8]);
        assert_eq!(of_length_1(&[0.0, 0.0]).collect::<Vec<_>>(), [0.0, 0.0]);
    }
}
