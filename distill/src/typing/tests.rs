// One entity is one range.
#![allow(clippy::single_range_in_vec_init)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// No noise but the kinds that `set` gives a weight, on every word.
fn only(set: impl Fn(&mut TypingNoise)) -> TypingNoise {
    let none = r#"{"words": 1, "neighbour": 0, "dropped": 0, "doubled": 0, "swapped": 0, "case": 0, "space": 0,
        "punctuation": 0, "ocr": 0, "abbreviation": 0}"#;
    let mut noise: TypingNoise = serde_json::from_str(none).unwrap();
    set(&mut noise);
    noise
}

/// All that a text may become.
fn outcomes(noise: &TypingNoise, text: &str, keep: &[Range<usize>]) -> BTreeSet<String> {
    (0..300).map(|seed| noise.apply(text, keep, seed).0).collect()
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn each_kind_makes_its_own_changes_and_no_others() {
    let check = |noise: TypingNoise, text: &str, expected: &[&str]| {
        assert_eq!(outcomes(&noise, text, &[]), set(expected), "{text:?}");
    };
    let neighbour = only(|noise| noise.neighbour = 1.0);
    check(neighbour.clone(), "s", &["a", "d", "w", "e", "z", "x"]);
    check(neighbour.clone(), "A", &["Q", "W", "S", "Z"]);
    check(neighbour.clone(), "m", &["n", "j", "k"]);
    check(neighbour.clone(), "P", &["O", "L"]);
    check(neighbour, "5 é", &["5 é"]);
    check(only(|noise| noise.dropped = 1.0), "cat", &["at", "ct", "ca"]);
    check(only(|noise| noise.dropped = 1.0), "a 5 é1", &["a 5 é1"]);
    check(only(|noise| noise.doubled = 1.0), "cat", &["ccat", "caat", "catt"]);
    check(only(|noise| noise.swapped = 1.0), "catt", &["actt", "ctat"]);
    check(only(|noise| noise.case = 1.0), "Cat", &["CAT", "cat"]);
    check(only(|noise| noise.case = 1.0), "naïve 12", &["naïve 12"]);
    check(only(|noise| noise.space = 1.0), "is on it or in, so  I", &["ison itor in, so  I"]);
    check(only(|noise| noise.punctuation = 1.0), "0.5 mg, (x) y's", &["0.5 mg (x ys"]);
    let ocr = only(|noise| noise.ocr = 1.0);
    check(ocr.clone(), "corn", &["com"]);
    check(ocr.clone(), "cloud", &["doud", "cIoud", "c1oud", "cloucl"]);
    check(ocr.clone(), "15", &["l5", "I5", "1S"]);
    // The last letter of the first has an accent.
    check(ocr, "rn\u{304} r n", &["rn\u{304} r n"]);
    let abbreviation = only(|noise| noise.abbreviation = 1.0);
    check(abbreviation.clone(), "Patient with history of gout", &["Pt w/ hx of gout", "Pt w/ h/o gout"]);
    check(abbreviation.clone(), "pt w/o HTN, c/o pain", &["patient without hypertension, complains of pain"]);
    check(abbreviation, "PT MI inpatient patiently w/x", &["PT MI inpatient patiently w/x"]);
}

#[test]
fn abbreviations_can_be_told_apart() {
    let (mut long, mut clear) = (BTreeSet::new(), BTreeSet::new());
    for (word, short, is_clear) in ABBREVIATIONS {
        assert!(word.is_ascii() && short.is_ascii() && word.len() > short.len(), "{word}");
        assert!(long.insert(word) && (!is_clear || clear.insert(short)), "{word}");
        assert!([word, short].iter().all(|form| form.starts_with(|c: char| c.is_ascii_alphabetic())), "{word}");
    }
    assert!(ABBREVIATIONS.iter().all(|(_, short, is_clear)| *is_clear || !clear.contains(short)));
}

#[test]
fn a_lost_space_leaves_an_entity_its_letters_and_joins_no_two_of_them() {
    let noise = only(|noise| noise.space = 1.0);
    let (noisy, alignment) = noise.apply("take aspirin daily", &[5..12], 1);
    assert_eq!((noisy.as_str(), &noisy[alignment.map(5..12)]), ("takeaspirin daily", "aspirin"));
    let (noisy, alignment) = noise.apply("aspirin daily", &[0..7], 1);
    assert_eq!((noisy.as_str(), &noisy[alignment.map(0..7)]), ("aspirindaily", "aspirin"));
    assert_eq!(noise.apply("back pain aspirin", &[0..9, 10..17], 1).0, "backpain aspirin");
    assert_eq!(noise.apply("pain or aspirin", &[0..4, 8..15], 1).0, "painor aspirin");
    let noise = only(|noise| noise.punctuation = 1.0);
    assert_eq!(noise.apply("aspirin/ibuprofen/x", &[0..7, 8..17], 1).0, "aspirin/ibuprofenx");
}

#[test]
fn no_entity_is_erased_or_cut() {
    let dropped = only(|noise| noise.dropped = 1.0);
    assert_eq!(outcomes(&dropped, "ab", &[0..1]), set(&["a"]), "the other letter may go");
    // Its space goes with the first word, and then its letter must not with the second.
    let both = only(|noise| (noise.space, noise.dropped) = (1.0, 1.0));
    for seed in 0..300 {
        let (noisy, alignment) = both.apply("a bc", &[1..3], seed);
        assert!(!noisy[alignment.map(1..3)].is_empty());
    }
    let ocr = only(|noise| noise.ocr = 1.0);
    assert_eq!(outcomes(&ocr, "rn", &[0..1]), set(&["rn"]), "an end stands inside");
    let abbreviation = only(|noise| noise.abbreviation = 1.0);
    assert_eq!(outcomes(&abbreviation, "history of gout", &[8..15]), set(&["hx of gout"]));
}

#[test]
fn an_end_inside_a_change_is_widened() {
    let abbreviation = only(|noise| noise.abbreviation = 1.0);
    let (noisy, alignment) = abbreviation.apply("a patient now", &[], 1);
    assert_eq!(noisy, "a pt now");
    let map = |range: Range<usize>| &noisy[alignment.map(range)];
    assert_eq!([map(0..1), map(4..6), map(0..4), map(4..13), map(9..13)], ["a", "pt", "a pt", "pt now", " now"]);
    assert_eq!(alignment.changes(), [(2..9, 2..4)]);
}

const WORDS: [&str; 6] = ["Severe", "back", "pain", "after", "lisinopril", "today"];

fn long_text(words: usize) -> String {
    (0..words).map(|at| WORDS[at * at % 6]).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_share_of_changed_words_and_texts_is_the_one_asked_for() {
    let text = long_text(5000);
    for words in [0.02, 0.1, 0.5, 1.0] {
        let noise = TypingNoise { words, ..TypingNoise::default() };
        let (_, alignment) = noise.apply(&text, &[], 1);
        let share = alignment.changes().len() as f64 / 5000.0;
        assert!((share - words).abs() < 0.02, "{share} for {words}");
    }
    let noise = TypingNoise { words: 1.0, texts: 0.3, ..TypingNoise::default() };
    let changed = (0..2000).filter(|seed| noise.apply("lisinopril", &[], *seed).0 != "lisinopril").count();
    assert!((500..700).contains(&changed), "{changed} of 2000");
}

#[test]
fn kinds_come_by_their_weights() {
    let noise = only(|noise| (noise.dropped, noise.doubled, noise.abbreviation) = (3.0, 1.0, 50.0));
    // No abbreviation of it is known, so that weight does not count.
    let lengths: Vec<usize> = (0..2000).map(|seed| noise.apply("gout", &[], seed).0.len()).collect();
    let dropped = lengths.iter().filter(|&&length| length == 3).count();
    assert!(lengths.iter().all(|length| [3, 5].contains(length)));
    assert!((1400..1600).contains(&dropped), "{dropped} of 2000");
}

#[test]
fn examples_and_labelled_texts_keep_their_labels() {
    let entity = |label: &str, range| Annotation { label: label.to_owned(), range, score: 1.0 };
    let example = Example {
        id: "7".to_owned(),
        text: "The patient took lisinopril for hypertension".to_owned(),
        entities: vec![entity("Chemical", 17..27), entity("Disease", 32..44)],
    };
    let noise = only(|noise| noise.abbreviation = 1.0);
    let (noisy, _) = noise.example(&example, 1);
    assert_eq!((noisy.id.as_str(), noisy.text.as_str()), ("7", "The pt took lisinopril for HTN"));
    assert_eq!(noisy.entities, [entity("Chemical", 12..22), entity("Disease", 27..30)]);
    let labelled = LabelledText { id: "a".to_owned(), text: example.text, labels: vec!["x".to_owned()] };
    let noisy = noise.labelled(&labelled, 1);
    assert_eq!(
        (noisy.text.as_str(), noisy.labels, noisy.id),
        ("The pt took lisinopril for HTN", labelled.labels, labelled.id)
    );
}

#[test]
fn a_noise_that_is_none_is_refused() {
    assert!(TypingNoise::default().check().is_ok() && only(|_| ()).check().is_ok());
    for wrong in [
        TypingNoise { words: 1.1, ..TypingNoise::default() },
        TypingNoise { words: f64::NAN, ..TypingNoise::default() },
        TypingNoise { texts: -0.1, ..TypingNoise::default() },
        TypingNoise { ocr: -1.0, ..TypingNoise::default() },
        TypingNoise { case: f64::INFINITY, ..TypingNoise::default() },
    ] {
        assert_eq!(wrong.check().unwrap_err().kind(), ampoule::ErrorKind::InvalidInput);
        wrong.apply("It makes no sense, and no harm", &[], 1);
    }
    assert!(serde_json::from_str::<TypingNoise>(r#"{"word": 0.1}"#).is_err());
    assert_eq!(only(|_| ()).apply("no kind is left", &[], 1).0, "no kind is left");
}

#[test]
fn what_is_too_long_for_a_word_stays() {
    let (long, most) = ("a".repeat(MAX_WORD + 1), "a".repeat(MAX_WORD));
    let noise = only(|noise| noise.doubled = 1.0);
    assert_eq!(noise.apply(&long, &[], 1).0, long);
    assert_eq!(noise.apply(&most, &[], 1).0.len(), MAX_WORD + 1);
}

/// Text of notes, and of the pieces that go wrong most: marks, joiners, flags, prefixes, Indic conjuncts, jamo, line ends.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "a",
        "rn",
        "Clinic",
        "10",
        "0",
        "patient",
        "history of",
        "w/o",
        ".",
        ",",
        "-",
        " ",
        " ",
        "  ",
        "(",
        "e\u{301}",
        "\u{301}",
        "\u{200d}",
        "👩",
        "🏽",
        "🇮",
        "🇳",
        "क",
        "्",
        "ष",
        "ि",
        "\r",
        "\n",
        "\r\n",
        "שׁ",
        "\u{600}",
        "\u{0}",
        "\u{1100}",
        "\u{1161}",
        "ﬁ",
        "ß",
        "𝛼",
        "İ",
    ]);
    prop_oneof![prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat()), any::<String>()]
}

/// A text with ranges in order, not empty and on character boundaries, as entities are.
fn annotated() -> impl Strategy<Value = (String, Vec<Range<usize>>)> {
    (text(), prop::collection::vec((0usize..6, 1usize..9), 0..12)).prop_map(|(text, steps)| {
        let bounds: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut at = 0;
        let ranges = steps.into_iter().map_while(|(gap, length)| {
            let (start, end) = (at + gap, at + gap + length);
            at = end;
            Some(*bounds.get(start)?..*bounds.get(end)?)
        });
        let ranges = ranges.collect();
        (text, ranges)
    })
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

proptest! {
    #[test]
    fn nothing_is_noisy_at_a_rate_of_0((text, keep) in annotated(), seed: u64) {
        for noise in [TypingNoise { words: 0.0, ..TypingNoise::default() }, TypingNoise { texts: 0.0, ..only(|_| ()) }] {
            let (noisy, alignment) = noise.apply(&text, &keep, seed);
            prop_assert_eq!(&noisy, &text);
            prop_assert!(keep.iter().all(|range| alignment.map(range.clone()) == *range));
        }
    }

    #[test]
    fn ranges_stay_exact_in_any_text((text, keep) in annotated(), seed: u64, words in prop::sample::select(vec![0.3, 1.0])) {
        let noise = TypingNoise { words, ..TypingNoise::default() };
        let (noisy, alignment) = noise.apply(&text, &keep, seed);
        prop_assert_eq!(&noise.apply(&text, &keep, seed).0, &noisy);

        // Between the changes the texts are the same, and the changes come in order.
        let (mut clean_at, mut noisy_at) = (0, 0);
        for (from, to) in alignment.changes() {
            prop_assert!(from.start >= clean_at && !from.is_empty() && to.start >= noisy_at);
            prop_assert_eq!(text.get(clean_at..from.start).unwrap(), noisy.get(noisy_at..to.start).unwrap());
            prop_assert_ne!(text.get(from.clone()).unwrap(), noisy.get(to.clone()).unwrap());
            (clean_at, noisy_at) = (from.end, to.end);
        }
        prop_assert_eq!(&text[clean_at..], &noisy[noisy_at..]);

        // Entities keep their order and their letters.
        let is_touched = |range: &Range<usize>| alignment.changes().iter().any(|(from, _)| overlap(from, range));
        let mut end = 0;
        for range in &keep {
            let moved = alignment.map(range.clone());
            prop_assert!(moved.start >= end && !moved.is_empty());
            let became = noisy.get(moved.clone()).unwrap();
            prop_assert!(is_touched(range) || became == &text[range.clone()]);
            for (from, to) in alignment.changes().iter().filter(|(from, _)| overlap(from, range)) {
                prop_assert!(range.start <= from.start && from.end <= range.end, "an end is inside a change");
                prop_assert!(moved.start <= to.start && to.end <= moved.end);
            }
            end = moved.end;
        }

        // What is untouched is still a cluster of its own.
        let clusters: BTreeSet<(usize, &str)> = noisy.grapheme_indices(true).collect();
        for (at, cluster) in text.grapheme_indices(true) {
            let range = at..at + cluster.len();
            prop_assert!(is_touched(&range) || clusters.contains(&(alignment.map(range).start, cluster)));
        }
    }

    #[test]
    fn any_offset_is_mapped_within_the_text_and_in_order((text, keep) in annotated(), seed: u64) {
        let noise = TypingNoise { words: 1.0, ..TypingNoise::default() };
        let (noisy, alignment) = noise.apply(&text, &keep, seed);
        let mapped: Vec<Range<usize>> = (0..=text.len()).map(|at| alignment.map(at..at)).collect();
        prop_assert!(mapped.iter().all(|range| range.start <= range.end && range.end <= noisy.len()));
        prop_assert!(mapped.is_sorted_by(|a, b| a.start <= b.start && a.end <= b.end));
    }
}
