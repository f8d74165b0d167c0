//! What is found in a text, and where, in the units that different languages count in.

use std::ops::Range;
use std::sync::Arc;

use unicode_segmentation::GraphemeCursor;

/// A piece of a text with a label. It holds no text itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Entity {
    /// The label's name.
    pub label: Arc<str>,
    /// UTF-8 bytes of the caller's text, whole grapheme clusters.
    pub range: Range<usize>,
    /// How probable it is, to the model, that the entity has this label and exactly these words, in `0..=1`.
    pub score: f32,
}

impl Entity {
    /// The range in UTF-16 code units, as Kotlin, Swift's `NSString` and JavaScript count. `text` is the text that the entity
    /// was found in; in another one, ends beyond it or inside a character count as the character's beginning.
    pub fn utf16_range(&self, text: &str) -> Range<usize> {
        let map = OffsetMap::new(text, [self.range.start, self.range.end]);
        map.utf16(self.range.start)..map.utf16(self.range.end)
    }

    /// The range in Unicode scalar values, as Python counts; `text` as in [`Entity::utf16_range`].
    pub fn char_range(&self, text: &str) -> Range<usize> {
        let map = OffsetMap::new(text, [self.range.start, self.range.end]);
        map.chars(self.range.start)..map.chars(self.range.end)
    }
}

/// Byte offsets of one text in other units, found in one pass over it.
pub struct OffsetMap {
    /// Byte offset, UTF-16 offset, scalar offset; by byte offset.
    known: Vec<(usize, usize, usize)>,
}

impl OffsetMap {
    /// Looks up `offsets`, in any order, in `text`. Offsets beyond the text or inside a character are taken for the
    /// character's beginning.
    pub fn new(text: &str, offsets: impl IntoIterator<Item = usize>) -> Self {
        let mut offsets: Vec<usize> = offsets.into_iter().collect();
        offsets.sort_unstable();
        offsets.dedup();
        let (mut at, mut utf16, mut chars) = (0, 0, 0);
        let known = offsets
            .into_iter()
            .map(|offset| {
                let end = text.floor_char_boundary(offset);
                for c in text[at..end].chars() {
                    utf16 += c.len_utf16();
                    chars += 1;
                }
                at = end;
                (offset, utf16, chars)
            })
            .collect();
        OffsetMap { known }
    }

    fn find(&self, offset: usize) -> (usize, usize, usize) {
        let at = self.known.partition_point(|k| k.0 <= offset);
        at.checked_sub(1).and_then(|at| self.known.get(at)).copied().unwrap_or_default()
    }

    /// UTF-16 code units before `offset`, which is one of those that were looked up (else the nearest one below).
    pub fn utf16(&self, offset: usize) -> usize {
        self.find(offset).1
    }

    /// Unicode scalar values before `offset`, which is one of those that were looked up (else the nearest one below).
    pub fn chars(&self, offset: usize) -> usize {
        self.find(offset).2
    }
}

/// Widens a range to whole extended grapheme clusters (UAX #29): an accent or vowel sign that the model's normaliser dropped
/// belongs to its letter.
pub(crate) fn widen_to_graphemes(text: &str, range: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(range.start);
    let end = text.floor_char_boundary(range.end.max(range.start));
    // With the whole text as one chunk a cursor never asks for more of it, and looks no further than the cluster.
    let is_boundary = |at: usize| GraphemeCursor::new(at, text.len(), true).is_boundary(text, 0).unwrap_or(true);
    let start = match is_boundary(start) {
        true => start,
        false => GraphemeCursor::new(start, text.len(), true).prev_boundary(text, 0).ok().flatten().unwrap_or(start),
    };
    let end = match is_boundary(end) {
        true => end,
        false => GraphemeCursor::new(end, text.len(), true).next_boundary(text, 0).ok().flatten().unwrap_or(end),
    };
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use unicode_segmentation::UnicodeSegmentation;

    /// Text of the pieces that go wrong most: combining marks, joiners, flags, Indic conjuncts, line ends.
    fn hard_text() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a", "e\u{301}", "\u{301}", "\u{200d}", "👩", "🏽", "🇮", "🇳", "क", "्", "ष", "ि", "\r", "\n", "\r\n", "שׁ",
            "\u{0}", "한", "ﬁ", " ", "𝛼",
        ]);
        prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn ranges_are_widened_to_clusters_and_no_further(text in hard_text(), a in 0usize..99, b in 0usize..99) {
            let (a, b) = (a.min(b).min(text.len()), a.max(b).min(text.len()));
            let (a, b) = (text.floor_char_boundary(a), text.floor_char_boundary(b));
            let found = widen_to_graphemes(&text, a..b);
            let bounds: Vec<usize> = text.grapheme_indices(true).map(|(i, _)| i).chain([text.len()]).collect();
            prop_assert_eq!(found.start, *bounds.iter().rev().find(|&&i| i <= a).unwrap());
            prop_assert_eq!(found.end, *bounds.iter().find(|&&i| i >= b).unwrap());
        }

        #[test]
        fn offsets_are_what_counting_gives(text in hard_text(), offsets in prop::collection::vec(0usize..120, 0..9)) {
            let map = OffsetMap::new(&text, offsets.clone());
            for offset in offsets {
                let before = &text[..text.floor_char_boundary(offset)];
                prop_assert_eq!(map.utf16(offset), before.encode_utf16().count());
                prop_assert_eq!(map.chars(offset), before.chars().count());
            }
        }
    }

    #[test]
    fn ranges_in_other_units() {
        let text = "👩‍⚕️: angioedéma";
        let start = text.find('a').unwrap();
        let entity = Entity { label: "Disease".into(), range: start..text.len(), score: 0.9 };
        let utf16: Vec<u16> = text.encode_utf16().collect();
        assert_eq!(String::from_utf16(&utf16[entity.utf16_range(text)]).unwrap(), "angioedéma");
        let chars: Vec<char> = text.chars().collect();
        assert_eq!(chars[entity.char_range(text)].iter().collect::<String>(), "angioedéma");
        assert_eq!(entity.utf16_range("é"), 1..1);
    }
}
