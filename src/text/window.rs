//! A note as overlapping stretches that fit a model's positions.

use std::ops::Range;

use super::Token;
use crate::error::Result;

/// A stretch of a note's tokens that is computed as one sequence.
#[derive(Clone, Debug)]
pub struct Window {
    /// Its tokens, without special ones.
    pub tokens: Vec<Token>,
    /// The indices of those whose result is taken from this window; over all windows, each token's is taken once.
    pub keep: Range<usize>,
}

/// Cuts a note into windows while its tokens arrive.
///
/// Neighbouring windows overlap by about a quarter, and begin with a word where one begins near. A token's result is taken
/// from the window in which it lies farther from an edge; the note's own ends are no edges.
pub struct Windower {
    size: usize,
    tokens: Vec<Token>,
    /// Tokens at the beginning of `tokens` whose result was taken already.
    taken: usize,
}

impl Windower {
    /// Windows of at most `size` tokens, which has to be at least 1.
    pub fn new(size: usize) -> Self {
        Windower { size: size.max(1), tokens: Vec::new(), taken: 0 }
    }

    /// Takes the next tokens and hands over the windows that they complete.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn push(&mut self, tokens: Vec<Token>, out: &mut dyn FnMut(Window) -> Result<()>) -> Result<()> {
        self.tokens.extend(tokens);
        let mut begin = 0;
        while self.tokens.len() - begin > self.size {
            let rest = &self.tokens[begin..];
            let next = self.next_begin(rest);
            // The first token that lies farther from the next window's left edge than from this one's right edge.
            let keep = self.taken..((self.size - 1 + next) / 2 + 1).clamp(self.taken, self.size);
            self.taken = keep.end - next;
            out(Window { tokens: rest[..self.size].to_vec(), keep })?;
            begin += next;
        }
        self.tokens.drain(..begin);
        Ok(())
    }

    /// Where the next window begins in this one's tokens.
    fn next_begin(&self, tokens: &[Token]) -> usize {
        let overlap = self.size / 4;
        let latest = self.size - overlap;
        // At least half a window on, so that no token lies in three.
        let earliest = (self.size - 2 * overlap).max(self.size.div_ceil(2)).min(latest);
        (earliest..=latest).rev().find(|&i| tokens[i].starts_word).unwrap_or(latest)
    }

    /// Hands over the last window.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish(self, out: &mut dyn FnMut(Window) -> Result<()>) -> Result<()> {
        match self.tokens.len() {
            0 => Ok(()),
            len => out(Window { tokens: self.tokens, keep: self.taken..len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(starts: &[bool], size: usize, chunk: usize) -> Vec<Window> {
        let tokens: Vec<Token> = starts
            .iter()
            .enumerate()
            .map(|(i, &starts_word)| Token { id: i as u32, range: i..i + 1, starts_word: starts_word || i == 0 })
            .collect();
        let mut windows = Vec::new();
        let mut windower = Windower::new(size);
        let mut push = |w| {
            windows.push(w);
            Ok(())
        };
        for some in tokens.chunks(chunk) {
            windower.push(some.to_vec(), &mut push).unwrap();
        }
        windower.finish(&mut push).unwrap();
        windows
    }

    proptest! {
        #[test]
        fn each_token_is_taken_once_from_where_it_lies_deepest(
            starts in prop::collection::vec(any::<bool>(), 0..300),
            size in 1usize..60,
            chunk in 1usize..70,
        ) {
            let windows = windows(&starts, size, chunk);
            let taken: Vec<u32> = windows.iter().flat_map(|w| w.tokens[w.keep.clone()].iter().map(|t| t.id)).collect();
            prop_assert_eq!(taken, (0..starts.len() as u32).collect::<Vec<_>>());
            let last = starts.len().saturating_sub(1);
            for window in &windows {
                prop_assert!(window.tokens.len() <= size);
                for token in &window.tokens[window.keep.clone()] {
                    let depth = |w: &Window| {
                        let (first, end) = (w.tokens[0].id as usize, w.tokens[w.tokens.len() - 1].id as usize);
                        let id = token.id as usize;
                        (first..=end).contains(&id).then(|| {
                            let left = if first == 0 { usize::MAX } else { id - first };
                            let right = if end == last { usize::MAX } else { end - id };
                            left.min(right)
                        })
                    };
                    let deepest = windows.iter().filter_map(depth).max();
                    prop_assert_eq!(depth(window), deepest);
                }
            }
        }

        #[test]
        fn chunks_do_not_matter(starts in prop::collection::vec(any::<bool>(), 0..200), size in 1usize..40, chunk in 1usize..50) {
            let of = |chunk| windows(&starts, size, chunk).into_iter().map(|w| (w.tokens, w.keep)).collect::<Vec<_>>();
            prop_assert!(of(chunk) == of(1000));
        }
    }

    #[test]
    fn a_short_text_is_one_window() {
        let found = windows(&[true; 7], 7, 3);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].keep, 0..7);
        assert!(windows(&[], 7, 3).is_empty());
    }
}
