use std::collections::BTreeMap;
use std::path::Path;

use ampoule::{Checkpoint, ErrorKind};
use proptest::prelude::*;

use super::*;
use crate::{factorize_embeddings, student_from_teacher};

proptest! {
    #[test]
    fn a_budget_is_read_as_it_is_written(
        bytes in prop::option::of(1u64..1 << 49),
        time in prop::option::of((1u32..1_000_000, 1usize..5000)),
    ) {
        let time = time.map(|(t, tokens)| TimeLimit { milliseconds: f64::from(t) / 1000.0, tokens });
        let budget = Budget { bytes, time };
        prop_assume!(budget != Budget::default());
        prop_assert_eq!(budget.to_string().parse::<Budget>().unwrap(), budget);
        // Order and spaces say nothing.
        let text = budget.to_string();
        let turned = text.split(", ").collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(" ,").replace('@', " @ ");
        prop_assert_eq!(turned.parse::<Budget>().unwrap(), budget);
        prop_assert_eq!(text.replace(' ', "").parse::<Budget>().unwrap(), budget);
    }

    #[test]
    fn no_text_is_trouble(text in "[0-9 .,@a-zA-Z\\-é]{0,24}") {
        if let Ok(budget) = text.parse::<Budget>() {
            prop_assert!(budget != Budget::default(), "{}", text);
        }
    }

    #[test]
    fn a_search_finds_the_front_of_all_that_fits(
        (heads, of_a_head, layers, part) in (1usize..20, 1usize..9, 1usize..13, 1usize..5),
        (a, b, tokens) in (1e-6f64..1e-3, 0.0f64..1.0, 3usize..100),
        (bytes, milliseconds) in (prop::option::of(1e3f64..2e6), prop::option::of(0.01f64..20.0)),
    ) {
        let hidden = 8 * heads * of_a_head;
        let teacher = ModelConfig {
            hidden_size: hidden,
            embedding_size: hidden,
            num_attention_heads: heads,
            num_hidden_layers: layers,
            intermediate_size: part * hidden,
            max_position_embeddings: 128,
            ..fixture("bert-token").config
        };
        let budget = Budget {
            bytes: bytes.map(|x| x as u64),
            time: milliseconds.map(|milliseconds| TimeLimit { milliseconds, tokens }),
        };
        let mut clock = Clock { a, b, measured: 0 };
        let found = search(&budget, &teacher, None, &mut clock).unwrap();
        let mut all = Vec::new();
        let mut count = 0;
        for candidate in candidates(&teacher, None).unwrap().into_iter().flatten() {
            count += 1;
            let config = candidate.config(&teacher).unwrap();
            let bytes = clock.bytes(&config).unwrap();
            let mut student = Measured::new(candidate, &config, budget.time.map_or(128, |time| time.tokens), bytes);
            student.milliseconds = budget.time.map(|time| clock.time(&config, time.tokens));
            if budget.broken(student.bytes, student.milliseconds).is_none() {
                all.push(student);
            }
        }
        let is_on_front = |one: &&Measured| !all.iter().any(|other| other != *one && other.covers(one));
        let mut front: Vec<_> = all.iter().filter(is_on_front).collect();
        let order = |one: &Measured| (Reverse(one.multiplications), one.sizes());
        front.sort_by_key(|one| order(one));
        let mut fits: Vec<_> = found.fits.iter().collect();
        prop_assert!(fits.is_sorted_by_key(|one| Reverse(one.multiplications)));
        fits.sort_by_key(|one| order(one));
        prop_assert_eq!(fits, front);
        prop_assert!(found.breaks.iter().all(|one| budget.broken(one.bytes, one.milliseconds).is_some()));
        prop_assert!(!found.fits.is_empty() || !found.breaks.is_empty());
        // A clock that is no function of the multiplications alone costs some steps more.
        prop_assert!(clock.measured <= 200 + count / 2, "{} of {count} measured", clock.measured);

        for most in 1..6 {
            let tries = tries(&found.fits, most);
            prop_assert_eq!(tries.len(), most.min(found.fits.len()));
            prop_assert!(tries.first() == found.fits.first().as_ref());
            prop_assert!(tries.iter().enumerate().all(|(i, one)| !tries[..i].contains(one)));
        }
    }
}

fn fixture(name: &str) -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints").join(name)).unwrap()
}

/// A device without noise: so many milliseconds a product, and a layer.
struct Clock {
    a: f64,
    b: f64,
    measured: usize,
}

impl Clock {
    fn time(&self, config: &ModelConfig, tokens: usize) -> f64 {
        let (h, f, layers) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
        self.a * (layers * (h * h + h * f + tokens * h) + config.embedding_size * h) as f64 + self.b * layers as f64
    }
}

impl Costs for Clock {
    fn bytes(&mut self, config: &ModelConfig) -> Result<u64> {
        Ok(config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum())
    }

    fn milliseconds(&mut self, config: &ModelConfig, tokens: usize) -> Result<f64> {
        self.measured += 1;
        Ok(self.time(config, tokens))
    }
}

#[test]
fn units_are_those_of_files() {
    for (text, bytes) in [("4 MB", 4_000_000), ("4MiB", 4 << 20), ("0.5 kB", 500), ("1.5KiB", 1536), ("7 B", 7)] {
        assert_eq!(text.parse::<Budget>().unwrap(), Budget { bytes: Some(bytes), time: None });
    }
    for (text, part) in [
        ("", "a positive number"),
        ("MB", "a positive number"),
        ("-4 MB", "a positive number"),
        ("0 MB", "a positive number"),
        ("1.2.3 MB", "a positive number"),
        ("4", "a size in kB"),
        ("4 mb", "a size in kB"),
        ("4 GB,", "a size in kB"),
        ("4 MB,", "\"\": expected"),
        ("0.1 B", "at least a byte"),
        ("4 MB, 5 MB", "\"5 MB\": a second size"),
        ("5 ms", "the number of tokens"),
        ("5 ms@", "a number of tokens after @"),
        ("5 ms@0", "a number of tokens after @"),
        ("5 ms@1.5", "a number of tokens after @"),
        ("5 s@128", "a time in ms"),
        ("5 ms@128, 6 ms@64", "a second time"),
        ("99999999999999999 MB", "a positive number"),
        ("9999999999999 MB", "below 2^50"),
    ] {
        let error = text.parse::<Budget>().unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(part), "{text:?}: {error}");
    }
}

/// The configuration that is counted and timed is that of the student that is then made.
#[test]
fn every_candidate_is_a_student_that_can_be_made() {
    let texts = ["The patient was given aspirin, 0.4 mg of it", "pain of the joints, arthritis 20%"];
    for name in ["bert-token", "distilbert-token", "roberta-token", "electra-token", "electra-sequence", "bert-encoder"]
    {
        let teacher = fixture(name);
        let mut narrow = BTreeMap::new();
        let all: Vec<Candidate> = candidates(&teacher.config, None).unwrap().into_iter().flatten().collect();
        for candidate in &all {
            let of = narrow.entry(candidate.embedding).or_insert_with(|| match candidate.embedding {
                Some(width) => factorize_embeddings(&teacher, &texts, width).unwrap().0,
                None => teacher.clone(),
            });
            let (student, _) = student_from_teacher(of, &candidate.shape).unwrap();
            assert_eq!(student.config, candidate.config(&teacher.config).unwrap(), "{name}: {candidate:?}");
            assert_eq!(student.config.hidden_size % student.config.num_attention_heads, 0);
            let weights = stand_in(&student.config).0;
            let shapes =
                |weights: &Weights| weights.0.iter().map(|(n, t)| (n.clone(), t.shape.clone())).collect::<Vec<_>>();
            assert_eq!(shapes(&Weights(weights)), shapes(&student.weights));
        }
        // The whole teacher, its narrower halves, and each number of layers.
        assert!(all.len() >= 2 * 2 * 4 && narrow.len() >= 2, "{name}: {} candidates", all.len());
        assert!(all.iter().any(|c| c.config(&teacher.config).unwrap() == teacher.config), "{name}");
        let said = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Candidate>>(&said).unwrap(), all);

        let most = teacher.config.max_tokens();
        let budget = Budget { bytes: None, time: Some(TimeLimit { milliseconds: 1.0, tokens: most + 1 }) };
        let error = search(&budget, &teacher.config, None, &mut Clock { a: 1.0, b: 0.0, measured: 0 }).unwrap_err();
        assert!(error.to_string().contains(&format!("reads 3 to {most} tokens")), "{error}");
    }
    let teacher = fixture("bert-token").config;
    assert!(candidates(&teacher, Some(32)).unwrap_err().to_string().contains("2 to 31"));
    let narrow = candidates(&teacher, Some(10)).unwrap();
    assert!(!narrow.is_empty() && narrow.iter().flatten().all(|candidate| candidate.embedding == Some(10)));
}

#[test]
fn layers_are_taken_evenly_up_to_the_last() {
    let teacher = ModelConfig { num_hidden_layers: 6, ..fixture("bert-token").config };
    let family = candidates(&teacher, None).unwrap().remove(0);
    let layers: Vec<&[usize]> = family.iter().map(|candidate| candidate.shape.layers.as_slice()).collect();
    let wanted: [&[usize]; 6] = [&[6], &[3, 6], &[2, 4, 6], &[2, 3, 5, 6], &[2, 3, 4, 5, 6], &[1, 2, 3, 4, 5, 6]];
    assert_eq!(layers, wanted);
}

/// Deep ones and wide ones are tried, and not the largest beside what is nearly the same.
#[test]
fn tries_are_unlike_each_other() {
    let one = |layers: usize, hidden: usize, embedding_size: usize| {
        let shape = StudentShape {
            layers: (1..=layers).collect(),
            hidden_size: Some(hidden),
            num_attention_heads: Some(1),
            intermediate_size: Some(4 * hidden),
        };
        let candidate = Candidate { shape, embedding: None };
        let multiplications = layers * 12 * hidden * hidden;
        Measured { candidate, embedding_size, parameters: 0, multiplications, bytes: 0, milliseconds: None }
    };
    let mut all =
        vec![one(6, 192, 64), one(5, 208, 64), one(5, 200, 72), one(2, 288, 64), one(4, 192, 192), one(1, 224, 300)];
    all.sort_by_key(|one| Reverse(one.multiplications));
    let sizes = |most: usize| tries(&all, most).iter().map(|one| one.sizes()).collect::<Vec<_>>();
    let first = sizes(1)[0];
    assert_eq!(sizes(3).len(), 3);
    assert_eq!(sizes(3)[0], first);
    let others: Vec<(usize, usize)> = sizes(3)[1..].iter().map(|[layers, hidden, ..]| (*layers, *hidden)).collect();
    assert!(others.contains(&(2, 288)) && others.contains(&(4, 192)), "{others:?}");
    assert_eq!(sizes(9).len(), 6);
    assert!(tries(&[], 3).is_empty());
}
