//! What is found, as each language counts.

use std::sync::Arc;

use crate::error::{AmpouleError, Result};

/// A piece of a text with a label. It holds no text itself; its range is there in the units of each language, and is of whole grapheme
/// clusters.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct Entity {
    /// The label's name.
    pub label: String,
    /// How probable it is, to the model, that the entity has this label and exactly these words, in `0..=1`.
    pub score: f32,
    /// Where it begins, in bytes of UTF-8 (Rust, Swift's `utf8`).
    pub utf8_start: u32,
    /// Where it ends.
    pub utf8_end: u32,
    /// Where it begins, in UTF-16 code units (Kotlin, Java, `NSString`, JavaScript).
    pub utf16_start: u32,
    /// Where it ends.
    pub utf16_end: u32,
    /// Where it begins, in Unicode scalar values (Python, Swift's `unicodeScalars`).
    pub scalar_start: u32,
    /// Where it ends.
    pub scalar_end: u32,
}

/// One label of a text.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct LabelScore {
    /// The label's name.
    pub label: String,
    /// Its probability, in `0..=1`: of all labels together 1 where one of them holds, each for itself where several may.
    pub score: f32,
}

/// A place in a text that moves forward, in all units.
#[derive(Clone, Copy, Default)]
pub(crate) struct Place {
    utf8: usize,
    utf16: usize,
    scalars: usize,
}

impl Place {
    /// Moves on to byte `to` of `text`, at a character's beginning and not before this place.
    fn advance(&mut self, text: &str, to: usize) -> Place {
        // Each character has one byte that does not continue another, and two UTF-16 units if that says four bytes.
        for &byte in text.as_bytes().get(self.utf8..to).unwrap_or_default() {
            let begins = usize::from(byte & 0xC0 != 0x80);
            self.scalars += begins;
            self.utf16 += begins + usize::from(byte >= 0xF0);
        }
        self.utf8 = to;
        *self
    }

    /// The entity in all units; those of one text come in order.
    pub(crate) fn locate(&mut self, text: &str, entity: &ampoule::Entity) -> Entity {
        let (start, end) = (self.advance(text, entity.range.start), self.advance(text, entity.range.end));
        // `countable` was asked before.
        let [utf8_start, utf8_end, utf16_start, utf16_end, scalar_start, scalar_end] =
            [start.utf8, end.utf8, start.utf16, end.utf16, start.scalars, end.scalars].map(|n| n as u32);
        Entity {
            label: entity.label.to_string(),
            score: entity.score,
            utf8_start,
            utf8_end,
            utf16_start,
            utf16_end,
            scalar_start,
            scalar_end,
        }
    }
}

/// Refuses a text of so many bytes that 32 bits cannot count them. One of a batch is shorter: uniffi counts those in 31.
pub(crate) fn countable(bytes: usize) -> Result<()> {
    match u32::try_from(bytes) {
        Ok(_) => Ok(()),
        Err(_) => Err(AmpouleError::FixInput(format!("a text of {bytes} bytes: give it in parts, each below 4 GiB"))),
    }
}

/// The entities of one text, in order.
pub(crate) fn located(text: &str, entities: &[ampoule::Entity]) -> Vec<Entity> {
    let mut place = Place::default();
    entities.iter().map(|entity| place.locate(text, entity)).collect()
}

/// The same as numbers of four bytes, little-endian, eight an entity.
pub(crate) fn packed(text: &str, entities: &[ampoule::Entity], labels: &[Arc<str>]) -> Vec<u8> {
    let row = |entity: Entity| {
        let label = labels.iter().position(|label| **label == *entity.label).unwrap_or_default() as u32;
        let utf8 = [entity.utf8_start, entity.utf8_end];
        let others = [entity.utf16_start, entity.utf16_end, entity.scalar_start, entity.scalar_end];
        [label, entity.score.to_bits()].into_iter().chain(utf8).chain(others).flat_map(u32::to_le_bytes)
    };
    located(text, entities).into_iter().flat_map(row).collect()
}

impl From<ampoule::LabelScore> for LabelScore {
    fn from(of: ampoule::LabelScore) -> Self {
        LabelScore { label: of.label.to_string(), score: of.score }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_text_that_cannot_be_counted_is_refused() {
        let most = u32::MAX as usize;
        assert!(countable(most).is_ok());
        assert!(matches!(countable(most + 1), Err(AmpouleError::FixInput(_))));
    }

    #[test]
    fn all_units_are_those_of_the_runtime() {
        let text = "👩‍⚕️ naïve e\u{301}\r\nरोगी 𝛼\0ﬁ \u{10ffff}.";
        let bounds: Vec<usize> = text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
        for step in 1..5 {
            let entities: Vec<ampoule::Entity> = bounds
                .windows(step + 1)
                .step_by(step)
                .map(|w| ampoule::Entity { label: "x".into(), range: w[0]..w[step], score: 0.5 })
                .collect();
            for (found, entity) in located(text, &entities).iter().zip(&entities) {
                let usize = |start: u32, end: u32| start as usize..end as usize;
                assert_eq!(usize(found.utf8_start, found.utf8_end), entity.range);
                assert_eq!(usize(found.utf16_start, found.utf16_end), entity.utf16_range(text));
                assert_eq!(usize(found.scalar_start, found.scalar_end), entity.char_range(text));
            }
        }
    }
}
