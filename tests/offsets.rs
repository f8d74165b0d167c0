//! Token ids, token ranges and entity ranges on hard texts, against Python (`tests/fixtures/offsets.py`).

use std::path::Path;

use ampoule::Entity;
use ampoule::text::{Token, Tokenizer};
use serde_json::Value;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn range(value: &Value) -> std::ops::Range<usize> {
    let at = |i: usize| value[i].as_u64().unwrap() as usize;
    at(0)..at(1)
}

fn entity(range: std::ops::Range<usize>) -> Entity {
    Entity { label: "x".into(), range, score: 1.0 }
}

#[test]
fn tokens_are_those_of_python_in_all_three_units() {
    let cases: Value = serde_json::from_slice(&fixture("offsets.json")).unwrap();
    let mut compared = 0;
    for kind in ["uncased", "cased", "bpe", "bpe_prefix"] {
        let tokenizer = Tokenizer::from_json(&fixture(&format!("tokenizers/{kind}.json"))).unwrap();
        for case in cases["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let name = &case["name"];
            let expected = &case["tokens"][kind];
            let found: Vec<Token> = tokenizer.encode(text).unwrap();
            let ids: Vec<u64> = found.iter().map(|t| u64::from(t.id)).collect();
            let expected_ids: Vec<u64> =
                expected["ids"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
            assert_eq!(ids, expected_ids, "{kind} {name}");
            let words = expected["words"].as_array().unwrap();
            for (i, (token, expected)) in found.iter().zip(expected["ranges"].as_array().unwrap()).enumerate() {
                let place = format!("{kind} {name} token {i}");
                assert_eq!(token.range, range(&expected["utf8"]), "{place}");
                let entity = entity(token.range.clone());
                assert_eq!(entity.char_range(text), range(&expected["chars"]), "{place}");
                assert_eq!(entity.utf16_range(text), range(&expected["utf16"]), "{place}");
                assert_eq!(token.starts_word, i == 0 || words[i] != words[i - 1], "{place}");
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "{compared}");
}

/// Ten thousand random strings: `tests/fixtures/unicode.py` writes them with Python's answer.
#[test]
#[ignore = "needs the output of tests/fixtures/unicode.py in AMPOULE_UNICODE"]
fn random_strings_have_pythons_tokens() {
    let Ok(path) = std::env::var("AMPOULE_UNICODE") else {
        println!("skipped: AMPOULE_UNICODE names no output of tests/fixtures/unicode.py");
        return;
    };
    let content = std::fs::read_to_string(path).unwrap();
    let mut lines = content.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let tokenizer = Tokenizer::from_json(&std::fs::read(header["tokenizer"].as_str().unwrap()).unwrap()).unwrap();
    let (mut strings, mut tokens, mut differing) = (0, 0, 0);
    for line in lines {
        let case: Value = serde_json::from_str(line).unwrap();
        let found = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
        let found: Vec<(u64, u64, u64)> =
            found.iter().map(|t| (u64::from(t.id), t.range.start as u64, t.range.end as u64)).collect();
        let expected: Vec<(u64, u64, u64)> = case["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (t[0].as_u64().unwrap(), t[1].as_u64().unwrap(), t[2].as_u64().unwrap()))
            .collect();
        differing += usize::from(found != expected);
        strings += 1;
        tokens += found.len();
    }
    println!("{strings} strings, {tokens} tokens, {differing} strings differ");
    assert_eq!(differing, 0);
    assert!(strings >= 10_000);
}
