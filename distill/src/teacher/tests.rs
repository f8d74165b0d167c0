use super::*;
use crate::typing::TypingNoise;

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(format!("../tests/fixtures/checkpoints/{name}")).unwrap()
}

const TEXT: &str = "Oral aspirin (salicylic acid) for pain, naloxone-made rash";
const ENTITIES: [(&str, &str); 5] = [
    ("Chemical", "aspirin"),
    ("Chemical", "salicylic acid"),
    ("Disease", "pain"),
    ("Chemical", "naloxone"),
    ("Disease", "rash"),
];

fn entities(scheme: &Scheme) -> Vec<(usize, Range<usize>)> {
    let of = |(label, words): &(&str, &str)| {
        let at = TEXT.find(words).unwrap();
        (scheme.label_index(label).unwrap(), at..at + words.len())
    };
    ENTITIES.iter().map(of).collect()
}

fn gold(scheme: &Scheme, tokens: &[Token], spans: &[(usize, Range<usize>)]) -> Vec<(usize, u32)> {
    let words = words_of(tokens);
    let ranges: Vec<Range<usize>> = words.iter().map(|(_, range)| range.clone()).collect();
    words.iter().map(|(first, _)| first + 1).zip(scheme.encode(&ranges, spans)).collect()
}

type Tags = Vec<(usize, u32)>;

/// The tags that a student is taught where it reads `text`, by a teacher that knows those of the clean text.
fn taught(teacher: &str, text: &str, alignment: &Alignment) -> (Tags, Tags) {
    let (teacher, student) = (checkpoint(teacher), checkpoint("bert-token"));
    let scheme = Scheme::new(&student.config.id2label).unwrap();
    let reader = Reader::new(&teacher, &student);
    let tokens = student.tokenizer.encode(text).unwrap();
    let spans = entities(&scheme);
    let clean = Clean { text: TEXT, back: alignment.inverted() };
    let reading = reader.read(&tokens, &clean).unwrap().expect("it reads something else");
    let of_teacher: BTreeMap<usize, u32> =
        gold(&scheme, &teacher.tokenizer.encode(TEXT).unwrap(), &spans).into_iter().collect();
    let answering = Answering::load(teacher, None, &student, &Device::flex()).unwrap();
    let labels = student.config.id2label.len();
    let found = (0..).zip(&reading.answers).filter_map(|(position, answer)| {
        let Answer { at, is_further } = (*answer)?;
        let mut logits = vec![0.0; labels];
        logits[of_teacher[&at] as usize] = 9.0;
        if is_further {
            answering.go_on(&mut logits);
        }
        let best = (0..labels).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))?;
        Some((position, best as u32))
    });
    let moved: Vec<(usize, Range<usize>)> =
        spans.into_iter().map(|(label, range)| (label, alignment.map(range))).collect();
    (found.collect(), gold(&scheme, &tokens, &moved))
}

#[test]
fn a_teacher_with_other_tokens_teaches_the_tags_of_the_same_characters() {
    let (found, expected) = taught("roberta-token", TEXT, &Alignment::default());
    assert!(expected.iter().filter(|(_, tag)| *tag > 0).count() > ENTITIES.len());
    assert_eq!(found, expected);
}

#[test]
fn a_teacher_reads_the_clean_text_and_teaches_what_became_of_its_entities() {
    let noise = TypingNoise { words: 0.5, ..TypingNoise::default() };
    let keep: Vec<Range<usize>> =
        entities(&Scheme::new(&checkpoint("bert-token").config.id2label).unwrap()).into_iter().map(|e| e.1).collect();
    let (mut all, mut right) = (0, 0);
    for teacher in ["bert-token", "roberta-token"] {
        for seed in 0..60 {
            let (noisy, alignment) = noise.apply(TEXT, &keep, seed);
            let (found, expected) = taught(teacher, &noisy, &alignment);
            assert_eq!(found.len(), expected.len(), "{noisy}");
            all += found.len();
            right += found.iter().zip(&expected).filter(|(a, b)| a == b).count();
        }
    }
    // Where a space is lost before an entity, its word begins with another one.
    assert!(right * 100 >= all * 97, "{right} of {all}");
}

#[test]
fn states_are_compared_at_tokens_of_the_same_characters_alone() {
    let bert = checkpoint("bert-token");
    let reader = Reader::new(&bert, &bert);
    let read = |text: &str, alignment: Alignment| {
        let tokens = bert.tokenizer.encode(text).unwrap();
        let clean = Clean { text: "the pain of aspirin", back: alignment.inverted() };
        (tokens.len(), reader.read(&tokens, &clean).unwrap())
    };
    assert!(read("the pain of aspirin", Alignment::default()).1.is_none());
    let noise = TypingNoise { words: 1.0, ..TypingNoise::default() };
    for seed in 0..40 {
        let (noisy, alignment) = noise.apply("the pain of aspirin", &[], seed);
        let (count, Some(reading)) = read(&noisy, alignment.clone()) else { continue };
        let tokens = bert.tokenizer.encode(&noisy).unwrap();
        assert_eq!(reading.tokens.len(), count + 2);
        assert_eq!((reading.tokens[0], reading.tokens[count + 1]), (Some(0), Some(reading.ids.len() - 1)));
        for (token, at) in tokens.iter().zip(&reading.tokens[1..]) {
            let Some(at) = at else { continue };
            let clean = alignment.inverted().map(token.range.clone());
            if clean.len() == token.range.len() && "the pain of aspirin"[clean] == noisy[token.range.clone()] {
                assert_eq!(reading.ids[*at], token.id, "{noisy}");
            }
        }
    }
}

#[test]
fn each_token_of_a_character_is_compared_with_its_own() {
    let token = |range: Range<usize>| Token { id: 1, range, starts_word: false };
    // Byte-level tokens of a character of several bytes.
    let ranges = [0..1, 1..5, 1..5, 1..5, 5..6];
    let read = ranges.clone().map(token);
    assert_eq!(same_characters(&ranges, &read), [Some(0), Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(same_characters(&[0..1, 1..5, 5..6], &read), [Some(0), Some(1), Some(4)]);
    assert_eq!(
        same_characters(&ranges, &[token(0..1), token(1..5), token(5..6)]),
        [Some(0), Some(1), None, None, Some(2)]
    );
}

#[test]
fn values_are_the_same_bits_by_way_of_the_cache() {
    let states = BTreeSet::from([HiddenState::Layer(1), HiddenState::Query(2)]);
    for embedding in [None, Some(PoolingMode::Mean)] {
        let answers = Answers {
            logits: vec![0.5, -3.25],
            embedding: embedding.iter().flat_map(|_| [0.5, 0.25, -1.0]).collect(),
            states: states.iter().map(|&state| (state, vec![1.0, 2.0, f32::INFINITY])).collect(),
        };
        let asked = Asked { states: states.clone(), embedding };
        assert_eq!(Answers::unpacked(&answers.packed(), 2, 1, 3, &asked), answers);
    }
    let large = Answers { logits: vec![f32::MAX], embedding: Vec::new(), states: BTreeMap::new() };
    let asked = Asked { states: BTreeSet::new(), embedding: None };
    assert_eq!(Answers::unpacked(&large.packed(), 1, 1, 3, &asked).logits, [f32::INFINITY]);
}

/// A teacher of other tokens, of its own text: what the runtime gives, whatever the student's tokens are.
#[test]
fn embeddings_are_the_embedders_of_the_clean_text() {
    let student = checkpoint("bert-encoder");
    let texts = ["the pain", "aspirin and naloxone for a fever", ""];
    for mode in [PoolingMode::Mean, PoolingMode::Cls, PoolingMode::Max] {
        let mut teacher = checkpoint("roberta-encoder");
        teacher.pooling.mode = mode;
        let reader = Reader::new(&teacher, &student);
        let read = |text: &&str| {
            let noise = TypingNoise { words: 1.0, ..TypingNoise::default() };
            let (noisy, alignment) = noise.apply(text, &[], 1);
            let clean = Clean { text, back: alignment.inverted() };
            reader.read(&student.tokenizer.encode(&noisy).unwrap(), &clean).unwrap().expect("it reads something else")
        };
        let readings: Vec<Reading> = texts.iter().map(read).collect();
        let embedder = ampoule::Embedder::from_checkpoint(teacher.clone(), &ampoule::Options::default()).unwrap();
        let expected = embedder.embed_batch(&texts).unwrap();
        let answering = Answering::load(teacher, None, &student, &Device::flex()).unwrap();
        let terms = [Term::Embedding { weight: 1.0, temperature: 0.05 }];
        let found = answering.outputs(&terms, &readings, [3, 24], &Device::flex()).unwrap();
        assert!(found.logits.is_none() && found.states.is_empty());
        let found = found.embeddings.unwrap().into_data().try_into_vec::<f32>().unwrap();
        let expected = expected.iter().flat_map(|vector| of_length_1(vector));
        let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{mode:?}: {apart}");
    }
}

/// Of two teachers, one of other tokens: the mean of the probabilities where both answer, and the one's own where it is alone.
#[test]
fn several_teachers_teach_the_mean_of_their_probabilities() {
    for (student, other) in [("bert-token", "roberta-token"), ("bert-multi-label", "bert-multi-label")] {
        let student = checkpoint(student);
        let (first, mut second) = (student.clone(), checkpoint(other));
        // So that the same folder is another model.
        for tensor in second.weights.0.values_mut() {
            tensor.data.iter_mut().for_each(|x| *x *= 1.5);
        }
        let tokens = student.tokenizer.encode(TEXT).unwrap();
        let readings: Vec<Vec<Reading>> = [&first, &second]
            .map(|teacher| {
                let read = Reader::new(teacher, &student).read(&tokens, &Clean::of(TEXT)).unwrap();
                let own: Vec<u32> = std::iter::once(student.tokenizer.cls_id())
                    .chain(tokens.iter().map(|token| token.id))
                    .chain([student.tokenizer.sep_id()])
                    .collect();
                let counts = match student.config.task {
                    Task::TokenClassification => vec![true; own.len()],
                    _ => vec![true],
                };
                vec![read.unwrap_or_else(|| Reading::same(&own, counts.into_iter()))]
            })
            .into();
        let (device, dims) = (Device::flex(), [1, tokens.len() + 2]);
        let logits = |teacher: Teacher, readings: &[Vec<Reading>]| {
            let found = Ensemble::load(teacher, &student, &Device::flex())
                .unwrap()
                .outputs(&[], readings, dims, &device)
                .unwrap();
            found.logits.unwrap().into_data().try_into_vec::<f32>().unwrap()
        };
        let both = logits(Teacher::new(first.clone()).and(second.clone()), &readings);
        let each =
            [(&first, 0), (&second, 1)].map(|(teacher, i)| logits(Teacher::new(teacher.clone()), &readings[i..]));
        let (labels, is_multi_label) = (student.config.id2label.len(), student.config.task == Task::MultiLabel);
        let mut alone = 0;
        for (place, found) in both.chunks(labels).enumerate() {
            let answering: Vec<usize> = (0..2).filter(|&i| readings[i][0].answers[place].is_some()).collect();
            if answering.is_empty() {
                assert_eq!(found, vec![0.0; labels]);
                continue;
            }
            alone += usize::from(answering.len() == 1);
            let of = |logits: &[f32]| probabilities(&logits[..labels], is_multi_label);
            let found = of(found);
            for (label, p) in found.into_iter().enumerate() {
                let sum: f64 = answering.iter().map(|&i| of(&each[i][place * labels..])[label]).sum();
                assert!((p - sum / answering.len() as f64).abs() < 1e-5, "place {place}, label {label}");
            }
        }
        assert_eq!(alone > 0, !is_multi_label);
        let terms = [Term::Hidden { weight: 1.0, layer_map: vec![(1, 1)] }];
        let folder = tempfile::tempdir().unwrap();
        let several = Teacher::new(first).and(second).with_cache(folder.path(), 1 << 20);
        let several = Ensemble::load(several, &student, &Device::flex()).unwrap();
        for found in [0, 2] {
            let kept = several.outputs(&[], &readings, dims, &device).unwrap().logits.unwrap();
            assert_eq!(kept.into_data().try_into_vec::<f32>().unwrap(), both);
            assert_eq!(several.counts(), Some((2, found)));
        }
        let refused = several.check(&terms, &student.config).err().unwrap().to_string();
        assert!(refused.contains("\"hidden\" compares states"), "{refused}");
    }
}
