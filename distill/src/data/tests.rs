use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::ChaCha8Rng;
use tempfile::TempDir;

use super::*;

/// Stands where text stands in every file below, and must not come back in any message.
const CANARY: &str = "canarium";

fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("written");
    (folder, path)
}

/// Reads `content` as a file of this name, and checks that it is refused with `message` at line `line`.
fn refused(name: &str, content: impl AsRef<[u8]>, line: usize, message: &str) {
    let (_folder, path) = file(name, content);
    let error = read_ner(&path, OffsetUnit::Utf8, None).expect_err(message);
    check(&error, &format!("{name}:{line}: "), message);
}

fn check(error: &Error, place: &str, message: &str) {
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let shown = format!("{error} {error:?} {:?}", std::error::Error::source(error));
    assert!(shown.contains(place), "{place:?} is not in {shown}");
    assert!(shown.contains(message), "{message:?} is not in {shown}");
    assert!(!shown.contains(CANARY), "the text is in {shown}");
}

fn spans(set: &NerSet, index: usize) -> Vec<(&str, &str)> {
    let Example { text, entities, .. } = &set.examples[index];
    entities.iter().map(|a| (a.label.as_str(), &text[a.range.clone()])).collect()
}

fn covers(labels: &[&str]) -> BTreeSet<String> {
    labels.iter().map(|l| (*l).to_owned()).collect()
}

#[test]
fn reads_conll() {
    let content = "\u{feff}-DOCSTART-\t-X-\tO\r\n\r\n22\tB-Chemical\r\n-\tI-Chemical\r\noxacalcitriol\tI-Chemical\r\nsuppresses\tO\r\n\
        nephritis\tB-Disease\r\n.\tO\r\n\r\n\r\ngout\tB-Disease\nasthma\tB-Disease";
    let (_folder, path) = file("train.tsv", content);
    let set = read_conll(&path).expect("sound");
    assert_eq!(set.covers, covers(&["Chemical", "Disease"]));
    assert_eq!(set.examples.len(), 2);
    assert_eq!((&*set.examples[0].id, &*set.examples[0].text), ("3", "22-oxacalcitriol suppresses nephritis."));
    assert_eq!(spans(&set, 0), [("Chemical", "22-oxacalcitriol"), ("Disease", "nephritis")]);
    assert_eq!((&*set.examples[1].id, &*set.examples[1].text), ("11", "gout asthma"));
    assert_eq!(spans(&set, 1), [("Disease", "gout"), ("Disease", "asthma")]);
    assert_eq!(read_ner(&path, OffsetUnit::Utf16, None).expect("sound"), set);
}

#[test]
fn refuses_malformed_conll() {
    let inside = "does not follow a B- or I- tag of its label";
    refused("a.tsv", format!("{CANARY}\tI-Disease\n"), 1, inside);
    refused("a.conll", format!("x\tB-Disease\n{CANARY}\tI-Chemical\n"), 2, inside);
    refused("a.iob2", format!("x\tB-Disease\n\n{CANARY}\tI-Disease\n"), 3, inside);
    refused("a.tsv", format!("x\tB-Disease\ny\tO\n{CANARY}\tI-Disease\n"), 3, inside);
    refused("a.tsv", format!("x\tO\n{CANARY}\n"), 2, "found 1 tab-separated columns");
    refused("a.tsv", format!("{CANARY}\tNN\tO\n"), 1, "found 3 tab-separated columns");
    refused("a.tsv", "\tO\n", 1, "the token is empty");
    refused("a.tsv", format!(" {CANARY}\tO\n"), 1, "white space");
    for tag in [CANARY, "", "o", "B", "B-", "I-", "E-Disease", "O ", "B- Disease"] {
        refused("a.tsv", format!("{CANARY}\t{tag}\n"), 1, "the tag is not O, B-<label> or I-<label>");
    }
    refused(
        "a.tsv",
        [CANARY.as_bytes(), b"\tO\n", CANARY.as_bytes(), b"\xff\tO\n"].concat(),
        2,
        "not UTF-8 from byte 8",
    );
}

#[test]
fn reads_jsonl_in_every_unit() {
    // é is 2 bytes, 1 unit of UTF-16; 💊 is 4 bytes, 2 units of UTF-16.
    let text = "é💊 gout, asthma";
    for (unit, gout, asthma) in [("utf8", 7, 13), ("chars", 3, 9), ("utf16", 4, 10)] {
        let entities = format!(
            r#"[{{"start":{asthma},"end":{},"label":"Disease"}},{{"start":{gout},"end":{},"label":"Disease","text":"gout"}}]"#,
            asthma + 6,
            gout + 4
        );
        let said = format!(
            "{{\"id\":\"n1\",\"text\":\"{text}\",\"entities\":{entities},\"offsets\":\"{unit}\",\"more\":[1]}}\n\n"
        );
        let unsaid =
            format!("{{\"id\":7,\"text\":\"{text}\",\"entities\":{entities}}}\r\n{{\"text\":\"\",\"entities\":[]}}");
        let (_folder, path) = file("a.JSONL", said + &unsaid);
        let set = read_ner(&path, unit.parse().expect("a unit"), None).expect("sound");
        let ids: Vec<&str> = set.examples.iter().map(|e| e.id.as_str()).collect();
        assert_eq!(ids, ["n1", "7", "4"]);
        for index in 0..2 {
            assert_eq!(spans(&set, index), [("Disease", "gout"), ("Disease", "asthma")]);
        }
        assert_eq!(unit.parse::<OffsetUnit>().expect("a unit").to_string(), unit);
    }
    assert!("bytes".parse::<OffsetUnit>().is_err());
}

#[test]
fn refuses_malformed_jsonl() {
    let line =
        |entities: &str, more: &str| format!("\n{{\"text\":\"é💊 {CANARY}\",\"entities\":[{entities}]{more}}}\n");
    let entity = |start: i64, end: i64| format!(r#"{{"start":{start},"end":{end},"label":"D"}}"#);
    let jsonl = |entities: &str, more: &str, message: &str| refused("a.jsonl", line(entities, more), 2, message);

    jsonl(&entity(7, 99), "", "entity 0: 7..99, in units of utf8, reaches beyond the text, which has 15 units");
    jsonl(&entity(7, i64::MAX), "", "reaches beyond the text, which has 15 units");
    jsonl(&entity(1, 6), "", "entity 0: 1..6, in units of utf8, begins or ends inside a character");
    jsonl(
        &entity(0, 2),
        r#","offsets":"utf16""#,
        "entity 0: 0..2, in units of utf16, begins or ends inside a character",
    );
    // Within the last character is not beyond it.
    refused(
        "a.jsonl",
        format!(r#"{{"text":"a💊","entities":[{}]}}"#, entity(0, 3)),
        1,
        "begins or ends inside a character",
    );
    jsonl(&entity(9, 12), r#","offsets":"chars""#, "reaches beyond the text, which has 11 units");
    jsonl(&entity(7, 7), "", "entity 0: start 7 is not before end 7");
    jsonl(&format!("{},{}", entity(0, 2), entity(9, 8)), "", "entity 1: start 9 is not before end 8");
    jsonl(&format!("{},{},{}", entity(8, 12), entity(0, 2), entity(7, 9)), "", "entity 0: it overlaps entity 2");
    jsonl(&format!("{},{}", entity(7, 9), entity(7, 9)), "", "entity 1: it overlaps entity 0");
    jsonl(r#"{"start":7,"end":9,"label":""}"#, "", "entity 0: its label is empty");
    let other = format!(r#"{{"start":7,"end":15,"label":"D","text":"{CANARY} "}}"#);
    let mismatch = r#"entity 1: its "text" is not what stands at 7..15, in units of utf8"#;
    jsonl(&format!("{},{other}", entity(0, 2)), "", mismatch);
    jsonl(&entity(7, 9), r#","covers":["E"]"#, "the label of entity 0 (in the order of the text) is not among those");
    let covers = format!(r#","covers":["{}"]"#, CANARY.repeat(70));
    jsonl(&entity(7, 9), &covers, "of what it covers: its label has ");

    let fields = "not the fields and types expected";
    jsonl(&entity(-1, 9), "", fields);
    jsonl(&format!(r#"{{"start":"{CANARY}","end":1,"label":"D"}}"#), "", fields);
    jsonl("", &format!(r#","offsets":"{CANARY}""#), fields);
    jsonl("", &format!(r#","id":["{CANARY}"]"#), fields);
    refused("a.jsonl", format!(r#"{{"text":"{CANARY}"}}"#), 1, fields);
    refused("a.jsonl", format!(r#""{CANARY}""#), 1, fields);
    refused("a.jsonl", format!(r#"{{"text":"{CANARY}"#), 1, "the line ends within an object");
    refused("a.jsonl", CANARY, 1, "not JSON");
    refused("a.jsonl", "[".repeat(100_000), 1, "expected {\"text\"");
    refused("a.jsonl", [b"{\"text\":\"", CANARY.as_bytes(), b"\xc3\"}"].concat(), 1, "not UTF-8 from byte 17");
    let first = r#"{"text":"x","entities":[],"covers":["A"]}"#;
    refused("a.jsonl", format!("{first}\n{}", first.replace('A', "B")), 2, "it covers other labels than line 1");
}

#[test]
fn refuses_other_files() {
    let (folder, path) = file("a.txt", CANARY);
    check(&read_ner(&path, OffsetUnit::Utf8, None).expect_err("an extension"), "a.txt: ", ".tsv, .conll, .iob2");
    check(&read_labelled(&path).expect_err("an extension"), "a.txt: ", ".jsonl");
    for name in ["a.tsv", "a.jsonl"] {
        let path = folder.path().join(name);
        let missing = read_ner(&path, OffsetUnit::Utf8, None).expect_err("missing");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        std::fs::write(&path, "\n \n").expect("written");
        check(&read_ner(&path, OffsetUnit::Utf8, None).expect_err("empty"), name, "no text in it");
    }
    std::fs::write(&path, [b"sound\n", CANARY.as_bytes(), b"\x80"].concat()).expect("written");
    check(&read_lines(&path).expect_err("not UTF-8"), "a.txt:2: ", "not UTF-8 from byte 8");
}

#[test]
fn settles_what_a_set_covers() {
    let content = "gout\tB-Disease\niron\tB-Chemical\n";
    let (_folder, path) = file("a.tsv", content);
    let read = |asked: Option<&[&str]>| {
        let asked = asked.map(|labels| labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>());
        read_ner(&path, OffsetUnit::Utf8, asked.as_deref())
    };
    assert_eq!(read(None).expect("sound").covers, covers(&["Chemical", "Disease"]));
    let asked = read(Some(&["Disease", "Sign"])).expect("sound");
    assert_eq!(asked.covers, covers(&["Disease", "Sign"]));
    assert_eq!(spans(&asked, 0), [("Disease", "gout")]);
    check(&read(Some(&[])).expect_err("nothing"), "a.tsv: ", "which labels it covers");
    let error = read(Some(&["disease"])).expect_err("misspelled");
    check(
        &error,
        "a.tsv: ",
        r#"no entity has a label of ["disease"], which it is said to cover; labels that it marks: 2"#,
    );

    let (_folder, path) = file("a.jsonl", format!("{{\"text\":\"{CANARY}\",\"entities\":[]}}\n"));
    check(&read_ner(&path, OffsetUnit::Utf8, None).expect_err("unknown"), "a.jsonl: ", "which labels it covers");
    std::fs::write(&path, r#"{"text":"x","entities":[],"covers":["A","B"]}"#).expect("written");
    assert_eq!(read_ner(&path, OffsetUnit::Utf8, None).expect("stated").covers, covers(&["A", "B"]));
}

#[test]
fn reads_folders() {
    let (folder, train) = file("train.tsv", "gout\tB-Disease\niron\tB-Chemical\n");
    let folder = folder.path();
    let write = |name: &str, content: &str| std::fs::write(folder.join(name), content).expect("written");
    write("dev.jsonl", r#"{"text":"gout","entities":[{"start":0,"end":4,"label":"Disease"}]}"#);
    assert_eq!(split(folder, "train").expect("there"), train);
    assert_eq!(split(folder, "test").expect_err("missing").kind(), ErrorKind::NotFound);

    let all = read_folder(folder, OffsetUnit::Utf8, None).expect("sound");
    let both = covers(&["Chemical", "Disease"]);
    assert_eq!(all.train.map(|set| set.covers), Some(both.clone()));
    assert_eq!(all.dev.map(|set| set.covers), Some(both));
    assert!(all.test.is_none());

    write("test.iob2", &format!("{CANARY}\tB-Sign\n"));
    let error = read_folder(folder, OffsetUnit::Utf8, None).expect_err("a label that train lacks");
    check(&error, "test.iob2: ", "1 of its labels the train file beside it has not");
    let asked = ["Sign".to_owned()];
    let test = read_folder(folder, OffsetUnit::Utf8, Some(&asked)).expect("sound").test.expect("there");
    assert_eq!(spans(&test, 0), [("Sign", CANARY)]);

    let misspelled = ["disease".to_owned(), "sign".to_owned()];
    let error = read_folder(folder, OffsetUnit::Utf8, Some(&misspelled)).expect_err("misspelled");
    check(&error, "", r#"no entity has a label of ["disease", "sign"]"#);

    write("dev.tsv", "x\tO\n");
    check(&split(folder, "dev").expect_err("two"), "dev.tsv", "are both there");
    let empty = tempfile::tempdir().expect("a folder");
    let error = read_folder(empty.path(), OffsetUnit::Utf8, None).expect_err("empty");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn reads_labels_and_lines() {
    let content = r#"{"id":"a","text":"x","label":"acne","more":1}
{"text":"y","labels":[]}
{"text":"z","labels":["a","b"]}
"#;
    let (_folder, path) = file("a.jsonl", content);
    let texts = read_labelled(&path).expect("sound");
    let seen: Vec<(&str, &str, Vec<&str>)> =
        texts.iter().map(|t| (&*t.id, &*t.text, t.labels.iter().map(String::as_str).collect())).collect();
    assert_eq!(seen, [("a", "x", vec!["acne"]), ("2", "y", vec![]), ("3", "z", vec!["a", "b"])]);

    for (more, message) in [
        ("", "either \"label\" or \"labels\""),
        (r#","label":"a","labels":["a"]"#, "either \"label\" or \"labels\""),
        (r#","labels":["a","a"]"#, "a label is there twice"),
        (r#","label":"""#, "label is empty"),
        (r#","label":3"#, "not the fields and types expected"),
    ] {
        let (_folder, path) = file("a.jsonl", format!("\n{{\"text\":\"{CANARY}\"{more}}}"));
        check(&read_labelled(&path).expect_err(message), "a.jsonl:2: ", message);
    }

    let (_folder, path) = file("a.txt", "\u{feff}One.\r\n\r\n  \nTwo, too.");
    assert_eq!(read_lines(&path).expect("sound"), ["One.", "Two, too."]);
}

#[test]
fn debug_shows_no_text() {
    let entity = Annotation { label: "Disease".to_owned(), range: 0..8, score: 1.0 };
    let example = Example { id: CANARY.to_owned(), text: CANARY.to_owned(), entities: vec![entity] };
    assert_eq!(format!("{example:?}"), "Example { text: 8 bytes, entities: 1 }");
    let set = NerSet { examples: vec![example], covers: covers(&["Disease"]) };
    assert_eq!(format!("{set:?}"), "NerSet { examples: 1, covers: {\"Disease\"} }");
    let text = LabelledText { id: CANARY.to_owned(), text: CANARY.to_owned(), labels: vec!["acne".to_owned()] };
    assert_eq!(format!("{text:?}"), "LabelledText { text: 8 bytes, labels: 1 }");
}

/// Sentences of random tokens and tags, as a file and as `(label, tokens)` of each entity.
fn sentences() -> impl Strategy<Value = Vec<Vec<(String, u8)>>> {
    let token = prop_oneof!["[a-zé]{1,5}", "[0-9]{1,3}", "[-./,:;'\"()+*%]", "[^\\s\\p{C}]{1,2}"];
    prop::collection::vec(prop::collection::vec((token, 0u8..4), 1..12), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn spans_are_the_tokens_of_their_entities(sentences in sentences()) {
        let (mut content, mut expected) = (String::new(), Vec::new());
        for sentence in &sentences {
            let mut entities: Vec<(&str, Vec<&str>)> = Vec::new();
            let mut open = None;
            for (token, choice) in sentence {
                let tag = match (choice, open) {
                    (1, _) => { open = Some("A"); entities.push(("A", vec![token])); "B-A".to_owned() }
                    (2, _) => { open = Some("B"); entities.push(("B", vec![token])); "B-B".to_owned() }
                    (3, Some(label)) => {
                        entities.last_mut().expect("open").1.push(token);
                        format!("I-{label}")
                    }
                    _ => { open = None; "O".to_owned() }
                };
                content.push_str(&format!("{token}\t{tag}\n"));
            }
            content.push('\n');
            expected.push(entities);
        }
        let (_folder, path) = file("a.tsv", content);
        let asked = ["A".to_owned(), "B".to_owned()];
        let set = read_ner(&path, OffsetUnit::Utf8, Some(&asked)).expect("sound");
        prop_assert_eq!(set.examples.len(), sentences.len());
        for (index, entities) in expected.iter().enumerate() {
            let found = spans(&set, index);
            prop_assert_eq!(found.len(), entities.len());
            for ((label, words), (expected, tokens)) in found.iter().zip(entities) {
                prop_assert_eq!(label, expected);
                let bare: String = words.split(' ').collect();
                prop_assert_eq!(bare, tokens.concat());
            }
        }
    }

    #[test]
    fn runs_keep_every_sentence_and_span(sentences in sentences(), share in 0.0..=1.0f64, full in 0.0..=1.0f64, budget in 0usize..60, seed: u64) {
        let examples = sentences.iter().enumerate().map(|(index, sentence)| {
            let tokens: Vec<&str> = sentence.iter().map(|(token, _)| token.as_str()).collect();
            let (text, ranges) = join(&tokens);
            let entities = ranges.into_iter().map(|range| Annotation { label: "A".to_owned(), range, score: 1.0 }).collect();
            Example { id: index.to_string(), text, entities }
        });
        let set = NerSet { examples: examples.collect(), covers: covers(&["A"]) };
        let length = |example: &Example| example.entities.len();
        let random = || ChaCha8Rng::seed_from_u64(seed);
        let made = runs(&set, share, full, budget, &length, &mut random());
        prop_assert_eq!(&made, &runs(&set, share, full, budget, &length, &mut random()));
        let full = full_windows(&set, budget, &length);
        for texts in [&made, &full] {
            let mut rest = set.examples.iter();
            for run in texts {
                let mut at = 0;
                let mut count = 0;
                let mut entities = run.entities.iter();
                // The sentences of a run are found by their lengths; their texts and spans must then agree.
                while at <= run.text.len() {
                    let sentence = rest.next().expect("no sentence twice");
                    prop_assert_eq!(&run.text[at..at + sentence.text.len()], &sentence.text);
                    if count == 0 { prop_assert_eq!(&run.id, &sentence.id); }
                    for entity in &sentence.entities {
                        let moved = entity.range.start + at..entity.range.end + at;
                        prop_assert_eq!(&entities.next().expect("no entity lost").range, &moved);
                    }
                    at += sentence.text.len() + 1;
                    count += 1;
                }
                prop_assert!(entities.next().is_none());
                prop_assert!(count == 1 || run.entities.len() <= budget);
            }
            prop_assert!(rest.next().is_none());
        }
        for pair in full.windows(2) {
            let sentence = &set.examples[pair[1].id.parse::<usize>().expect("an index")];
            prop_assert!(pair[0].entities.len() + sentence.entities.len() > budget, "a window that is not full");
        }
    }
}

#[test]
fn share_is_the_share_of_sentences_in_runs() {
    let sentence = |i: usize| Example { id: i.to_string(), text: "x".repeat(1 + i % 40), entities: Vec::new() };
    let set = NerSet { examples: (0..50_000).map(sentence).collect(), covers: covers(&["A"]) };
    let length = |example: &Example| example.text.len();
    for (share, budget) in [(0.0, 500), (0.25, 500), (0.5, 500), (0.75, 500), (1.0, 500)] {
        // Groups of one cannot be runs: with every group made a run, what stays single is their share.
        let single = |share| {
            let made = runs(&set, share, 0.0, budget, &length, &mut ChaCha8Rng::seed_from_u64(1));
            made.iter().filter(|example| !example.text.contains(' ')).count() as f64
        };
        let all = set.examples.len() as f64;
        let found = (all - single(share)) / (all - single(1.0));
        assert!((found - share).abs() < 0.02, "share {share}: found {found}");
    }
    // Runs are of every length up to the budget: some fill it, and those under its half are about a half.
    let short_runs = |full| {
        let made = runs(&set, 1.0, full, 500, &length, &mut ChaCha8Rng::seed_from_u64(1));
        let lengths: Vec<usize> =
            made.iter().map(|run| run.text.bytes().filter(|byte| *byte == b'x').count()).collect();
        assert!((480..=500).contains(lengths.iter().max().expect("some")));
        lengths.iter().filter(|length| **length <= 250).count() as f64 / lengths.len() as f64
    };
    let short = short_runs(0.0);
    assert!((0.4..0.6).contains(&short), "{short} of the runs are under half the budget");
    // Where half of them are to be full, half as many are short; the last one of the set may be, whatever is asked for.
    let short = short_runs(0.5);
    assert!((0.2..0.3).contains(&short), "{short} of the runs are under half the budget");
    assert!(short_runs(1.0) < 0.001);
}

/// The published sets, where they are at hand.
#[test]
fn reads_published_sets() {
    let Some(data) = std::env::var_os("AMPOULE_DATA").map(PathBuf::from) else {
        println!("skipped: AMPOULE_DATA does not name the folder of ner_bc5cdr and ner_ncbi_disease");
        return;
    };
    for (name, sizes, labels) in [
        ("ner_bc5cdr", [(4560, 9385), (2300, 4671), (4797, 9809)], &["Chemical", "Disease"][..]),
        ("ner_ncbi_disease", [(5424, 5134), (923, 787), (940, 960)], &["Disease"]),
    ] {
        let NerFolder { train, dev, test } = read_folder(&data.join(name), OffsetUnit::Utf8, None).expect("sound");
        for (set, (sentences, entities)) in [train, dev, test].into_iter().zip(sizes) {
            let set = set.expect("there");
            assert_eq!(set.covers, covers(labels));
            assert_eq!(set.examples.len(), sentences);
            let mut by_label = BTreeMap::new();
            for entity in set.examples.iter().flat_map(|e| &e.entities) {
                *by_label.entry(&entity.label).or_insert(0) += 1;
            }
            assert_eq!(by_label.values().sum::<usize>(), entities);
        }
    }
}

#[test]
fn unlabelled_texts_are_lines_or_the_texts_of_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read_lines(&path)
    };
    assert_eq!(read("a.txt", "\u{feff}one\n\n{\"text\"}\n").unwrap(), ["one", "{\"text\"}"]);
    assert_eq!(
        read("a.JSONL", "\u{feff}{\"id\": 1, \"text\": \"one\"}\n\n{\"text\": \"two\"}\n").unwrap(),
        ["one", "two"]
    );
    for wrong in [format!("{{\"note\": \"{CANARY}\"}}"), format!("{{\"text\": [\"{CANARY}\"]}}"), CANARY.to_owned()] {
        let error = read("b.jsonl", &format!("{{\"text\": \"a\"}}\n{wrong}\n")).unwrap_err().to_string();
        assert!(error.contains("b.jsonl:2") && !error.contains(CANARY), "{error}");
    }
}

#[test]
fn the_first_objects_fields_tell_what_a_file_holds() {
    let (_folder, path) = file("a.jsonl", "\u{feff}\n{\"text\": \"a\", \"label\": \"b\"}\r\n{\"text\": 1}");
    assert_eq!(first_fields(&path).unwrap(), ["label", "text"]);
    for (content, message) in [("\n \n", "no text in it"), ("[1]", "a.jsonl:1: not the fields"), ("\n{", "a.jsonl:2: ")]
    {
        let (_folder, path) = file("a.jsonl", content);
        let error = first_fields(&path).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn entities_that_end_inside_a_word_are_counted() {
    let annotation =
        |&(start, end): &(usize, usize)| Annotation { label: "D".to_owned(), range: start..end, score: 1.0 };
    let example = |text: &str, ranges: &[(usize, usize)]| Example {
        id: String::new(),
        text: text.to_owned(),
        entities: ranges.iter().map(annotation).collect(),
    };
    let within = |examples: Vec<Example>| NerSet { examples, covers: covers(&["D"]) }.within_words();
    assert_eq!(within(vec![example("a pain, b-pain", &[(2, 6), (10, 14)])]), 0);
    // A letter too early or too late, an accent that takes two bytes, a digit beside it, and a word that goes on.
    assert_eq!(
        within(vec![example("a pain", &[(3, 6)]), example("é pain", &[(2, 6)]), example("pain2 x", &[(0, 4)])]),
        3
    );
    assert_eq!(within(vec![example("我头痛了", &[(3, 9)]), example("x痛y", &[(1, 4)])]), 0);
    assert_eq!(within(vec![example("apain", &[(1, 5)]), example("pain", &[(0, 4)])]), 1);
}

#[test]
fn data_show_no_text_and_differ_by_where_a_text_stands() {
    use crate::Data;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tsv");
    let set = |words: &[&str]| {
        let sentences: Vec<String> = words.iter().map(|word| format!("{word}\tB-Disease\n")).collect();
        std::fs::write(&path, sentences.join("\n")).unwrap();
        read_ner(&path, OffsetUnit::Utf8, None).unwrap()
    };
    let data = |train: &[&str], dev: &[&str]| Data::Entities {
        train: vec![set(train)],
        dev: vec![set(dev)],
        transfer: vec![CANARY.to_owned()],
    };
    let shown = format!("{:?}", data(&[CANARY, "b"], &["c"]));
    assert!(shown.contains("2 to train on") && !shown.contains(CANARY), "{shown}");
    assert_ne!(data(&["a", "b"], &["c"]).sha256(), data(&["a"], &["b", "c"]).sha256());
    assert_eq!(data(&["a", "b"], &["c"]).sha256(), data(&["a", "b"], &["c"]).sha256());
}

/// Reads `queries` with `corpus` beside them, and checks that they are refused.
fn search_refused(corpus: &str, queries: &str, place: &str, message: &str) {
    let (folder, path) = file("dev.jsonl", queries);
    std::fs::write(folder.path().join("corpus.jsonl"), corpus).expect("written");
    let error = read_search(&path).expect_err(message);
    check(&error, place, message);
}

#[test]
fn reads_queries_with_their_passages() {
    let (folder, path) = file(
        "dev.jsonl",
        "\u{feff}{\"id\":\"q\",\"text\":\"gout\",\"positives\":[\"b\",7],\"more\":1}\r\n\n{\"text\":\"asthma\",\"positives\":[\"7\"]}",
    );
    let corpus = "{\"id\":7,\"text\":\"a pain\",\"focus\":\"x\"}\n{\"id\":\"b\",\"text\":\"salt\"}\n";
    std::fs::write(folder.path().join("corpus.jsonl"), corpus).expect("written");
    let set = read_search(&path).expect("sound");
    let passages: Vec<(&str, &str)> = set.passages.iter().map(|p| (p.id.as_str(), p.text.as_str())).collect();
    assert_eq!(passages, [("7", "a pain"), ("b", "salt")]);
    let queries: Vec<_> = set.queries.iter().map(|q| (q.id.as_str(), q.text.as_str(), q.positives.clone())).collect();
    assert_eq!(queries, [("q", "gout", vec![1, 0]), ("3", "asthma", vec![0])]);
    let shown = format!("{set:?} {:?} {:?}", set.passages[0], set.queries[0]);
    assert_eq!(
        shown,
        "SearchSet { passages: 2, queries: 2 } Passage { text: 6 bytes } Query { text: 4 bytes, positives: 2 }"
    );
}

#[test]
fn reads_pairs_of_texts() {
    let pair = |a: &str, b: &str| format!("{{\"text\":\"{a}\",\"positive\":\"{b}\"}}\n");
    let lines = [pair("gout", "a pain"), pair("salt", "sodium"), pair("gout", "sodium"), pair("gout", "a pain")];
    let (_folder, path) = file("train.jsonl", lines.concat());
    let set = read_search(&path).expect("sound");
    assert_eq!(set.passages.iter().map(|p| p.text.as_str()).collect::<Vec<_>>(), ["a pain", "sodium"]);
    let queries: Vec<_> = set.queries.iter().map(|q| (q.text.as_str(), q.positives.clone())).collect();
    assert_eq!(queries, [("gout", vec![0, 1]), ("salt", vec![1])]);
}

#[test]
fn refuses_malformed_queries() {
    let passage = |id: &str| format!("{{\"id\":\"{id}\",\"text\":\"{CANARY}\"}}\n");
    let corpus = passage("a") + &passage("b");
    let query = |rest: &str| format!("{{\"text\":\"{CANARY}\"{rest}}}\n");
    let of = |queries: &str, place: &str, message: &str| search_refused(&corpus, queries, place, message);
    of(
        &query(&format!(r#","positives":["a","{CANARY}"]"#)),
        "dev.jsonl:1: ",
        "positive 2 of \"positives\" is the id of no passage",
    );
    of(&query(r#","positives":["b","b"]"#), "dev.jsonl:1: ", "positive 2 of \"positives\" is there twice");
    of(&query(r#","positives":[]"#), "dev.jsonl:1: ", "\"positives\" is empty");
    of(&query(r#","positives":"a""#), "dev.jsonl:1: ", "not the fields and types expected");
    of(&query(r#","positives":[["a"]]"#), "dev.jsonl:1: ", "not the fields and types expected");
    of(&query(""), "dev.jsonl:1: ", "expected either \"positives\" or \"positive\"");
    of(&query(r#","positives":["a"],"positive":"b""#), "dev.jsonl:1: ", "expected either");
    let sound = query(r#","positives":["a"]"#);
    let pair = query(r#","positive":"b""#);
    of(&(sound.clone() + &pair), "dev.jsonl:2: ", "put the two kinds into different files");
    of(&(pair.clone() + &sound), "dev.jsonl:2: ", "put the two kinds into different files");
    of("{\"text\":\" \",\"positives\":[\"a\"]}", "dev.jsonl:1: ", "a text is empty");
    of(&query(r#","positive":"\t""#), "dev.jsonl:1: ", "a text is empty");
    let named = query(r#","id":"q","positives":["a"]"#);
    of(&format!("{named}\n{named}"), "dev.jsonl:3: ", "its id is that of line 1 too");
    of(&format!("{CANARY}\n"), "dev.jsonl:1: ", "not JSON");
    of(&"[".repeat(100_000), "dev.jsonl:1: ", "expected {\"text\"");
    of("\n \n", "dev.jsonl: ", "no query in it");

    for (corpus, place, message) in [
        (corpus.clone() + "\n" + &passage("a"), "corpus.jsonl:4: ", "its id is that of line 1 too"),
        (format!("{{\"text\":\"{CANARY}\"}}"), "corpus.jsonl:1: ", "expected {\"id\": …, \"text\": …}"),
        ("{\"id\":1,\"text\":\"\"}".to_owned(), "corpus.jsonl:1: ", "a text is empty"),
        (CANARY.to_owned(), "corpus.jsonl:1: ", "not JSON"),
        (String::new(), "corpus.jsonl: ", "no passage in it"),
    ] {
        search_refused(&corpus, &sound, place, message);
        search_refused(&corpus, &sound, "dev.jsonl:1: ", message);
    }
    let (_folder, path) = file("dev.jsonl", &sound);
    let error = read_search(&path).expect_err("no corpus");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("which stand in corpus.jsonl beside them"), "{error}");
    let (_folder, path) = file("dev.txt", &sound);
    check(&read_search(&path).expect_err("an extension"), "dev.txt: ", "queries are read from .jsonl files");
}
