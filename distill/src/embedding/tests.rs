use ampoule::bundle::Pooling;
use ampoule::model::Model;
use ampoule::{Checkpoint, Embedder, Options};
use burn::module::{Module, ModuleMapper, Param};

use super::*;
use crate::losses::{Counts, Targets};
use crate::optimizer::NamedGradients;
use crate::teacher::{Ensemble, Reading, Teacher};

/// Numbers of all sizes and signs.
fn numbers(count: usize, by: f32) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0) * by).collect()
}

fn tensor(values: &[f32], width: usize) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / width, width]), &Device::flex())
}

fn scalar(x: Tensor<1>) -> f64 {
    f64::from(x.into_scalar::<f32>())
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The step of 4 pairs in which the second texts of 0 and 2 are equal and 1 and 3 answer one query.
fn step() -> (Vec<f32>, Vec<f32>) {
    let no_negative = |i: usize, j: usize| i != j && i % 2 == j % 2;
    let equal = |i: usize, j: usize| i == j || (i.min(j), i.max(j)) == (4, 6);
    let flags = |count: usize, is: &dyn Fn(usize, usize) -> bool| {
        (0..count * count).map(|at| f32::from(u8::from(is(at / count, at % count)))).collect::<Vec<_>>()
    };
    (flags(4, &no_negative), flags(8, &equal))
}

#[test]
fn contrastive_is_info_nce_without_false_negatives() {
    let (first, second) = (numbers(4 * 6, 0.4), numbers(4 * 6, -0.3).into_iter().rev().collect::<Vec<_>>());
    let (no_negatives, equal) = step();
    let compared = Compared {
        student: [tensor(&first, 6), tensor(&second, 6)],
        teacher: None,
        no_negatives: tensor(&no_negatives, 4),
        equal: tensor(&equal, 8),
    };
    let row = |x: &'static str, i: usize| if x == "first" { &first[i * 6..][..6] } else { &second[i * 6..][..6] };
    for temperature in [0.05, 1.0] {
        let mut expected = 0.0;
        for i in 0..4 {
            let score = |j: usize| (dot(row("first", i), row("second", j)) / temperature).exp();
            let sum: f64 = (0..4).filter(|&j| no_negatives[i * 4 + j] == 0.0).map(score).sum();
            expected -= (score(i) / sum).ln() / 4.0;
        }
        let found = scalar(compared.contrastive(temperature));
        assert!((found - expected).abs() < 1e-5 * expected.max(1.0), "{found}, expected {expected}");
    }
    assert!(compared.embedding(1.0).is_none());
}

#[test]
fn embedding_is_the_divergence_of_similarities_whatever_the_widths() {
    let student = numbers(8 * 6, 0.4);
    let teacher: Vec<f32> = numbers(8 * 10, -0.3).into_iter().rev().collect();
    let (no_negatives, equal) = step();
    let halves = |x: &[f32], width: usize| [0, 1].map(|side| tensor(&x[side * 4 * width..][..4 * width], width));
    let compared = |student: &[f32], width: usize| Compared {
        student: halves(student, width),
        teacher: Some(halves(&teacher, 10)),
        no_negatives: tensor(&no_negatives, 4),
        equal: tensor(&equal, 8),
    };
    let of = |x: &[f32], width: usize, i: usize| -> Vec<f64> {
        let row = |i: usize| &x[i * width..][..width];
        let score = |j: usize| if equal[i * 8 + j] == 1.0 { 0.0 } else { (dot(row(i), row(j)) / 0.1).exp() };
        let scores: Vec<f64> = (0..8).map(score).collect();
        let sum: f64 = scores.iter().sum();
        scores.into_iter().map(|score| score / sum).collect()
    };
    let divergence = |i: usize| -> f64 {
        let each = of(&teacher, 10, i).into_iter().zip(of(&student, 6, i)).filter(|(q, _)| *q > 0.0);
        each.map(|(q, p)| q * (q / p).ln()).sum()
    };
    let expected = (0..8).map(divergence).sum::<f64>() / 8.0;
    let found = scalar(compared(&student, 6).embedding(0.1).unwrap());
    assert!(expected > 0.1 && (found - expected).abs() < 1e-4 * expected, "{found}, expected {expected}");
    assert!(scalar(compared(&teacher, 10).embedding(0.1).unwrap()).abs() < 1e-6);
    // One text with itself is compared with nothing, and teaches nothing.
    let alone = Compared {
        student: halves(&numbers(8, 1.0), 1).map(|x| x.narrow(0, 0, 1)),
        teacher: Some(halves(&numbers(8, 0.5), 1).map(|x| x.narrow(0, 0, 1))),
        no_negatives: tensor(&[0.0], 1),
        equal: tensor(&[1.0; 4], 2),
    };
    assert!(scalar(alone.embedding(0.05).unwrap()).abs() < 1e-3 && scalar(alone.contrastive(0.05)).abs() < 1e-6);
}

#[test]
fn embeddings_are_the_embedders() {
    let mut checkpoint = Checkpoint::open("../tests/fixtures/checkpoints/bert-encoder").unwrap();
    let texts = ["the pain", "aspirin and naloxone for a fever", ""];
    let (device, tokenizer) = (Device::flex(), checkpoint.tokenizer.clone());
    let special = |ids: Vec<u32>| [vec![tokenizer.cls_id()], ids, vec![tokenizer.sep_id()]].concat();
    let ids = |text: &str| special(tokenizer.encode(text).unwrap().iter().map(|token| token.id).collect());
    let batch = Batch::new(&texts.map(ids), checkpoint.config.pad_token_id);
    let model = Model::load(&checkpoint.config, &mut checkpoint.weights.clone(), &device).unwrap();
    let states = model.hidden_states(&batch, &device, &mut None, &mut |_, _| Ok(())).unwrap();
    for mode in [PoolingMode::Mean, PoolingMode::Cls, PoolingMode::Max] {
        checkpoint.pooling = Pooling { mode, normalize: true };
        let embedder = Embedder::from_checkpoint(checkpoint.clone(), &Options::default()).unwrap();
        let expected = embedder.embed_batch(&texts).unwrap().concat();
        let found = embeddings(states.clone(), &batch, mode, &device).into_data().try_into_vec::<f32>().unwrap();
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && apart < 1e-5, "{mode:?}: {apart}");
    }
}

/// Makes every parameter a leaf.
struct Leaves;

impl ModuleMapper for Leaves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.autodiff()).set_require_grad(true)
    }
}

/// 5 pairs in parts, and what they share.
fn parts(sizes: &[usize]) -> Vec<Pairs> {
    let (mut no_negatives, mut equal) = (vec![0.0; 25], vec![0.0; 100]);
    (0..10).for_each(|i| equal[i * 11] = 1.0);
    (no_negatives[3], no_negatives[15]) = (1.0, 1.0);
    let step = Arc::new(StepPairs::new(no_negatives, equal, sizes.len()));
    let text = |i: usize| (0..3 + i % 3).map(|j| 24 + ((i * 5 + j * 3) % 60) as u32).collect::<Vec<u32>>();
    let mut from = 0;
    let mut parts = Vec::new();
    for (part, size) in sizes.iter().enumerate() {
        let side = |side: usize| {
            let texts = Vec::from_iter((from..from + size).map(|i| text(2 * i + side)));
            let batch = Batch::new(&texts, 0);
            let seq = batch.dims()[1];
            let tokens = texts.iter().flat_map(|ids| (0..seq).map(|i| f32::from(u8::from(i < ids.len())))).collect();
            let of_step = Counts { tokens: 40, ..Counts::default() };
            let readings = vec![texts.iter().map(|ids| Reading::same(ids, std::iter::empty())).collect()];
            Input { batch, targets: Targets { tokens, of_step, ..Targets::default() }, readings }
        };
        parts.push(Pairs { sides: [side(0), side(1)], step: step.clone(), part });
        from += size;
    }
    parts
}

/// In how many parts a step is computed changes neither its loss nor its gradient.
#[test]
fn the_parts_of_a_step_are_its_whole() {
    let of_student = Checkpoint::open("../tests/fixtures/checkpoints/bert-encoder").unwrap();
    let of_teacher = Checkpoint::open("../tests/fixtures/checkpoints/electra-encoder").unwrap();
    let teacher = Ensemble::load(Teacher::new(of_teacher), &of_student, &Device::flex()).unwrap();
    let Checkpoint { config, weights, pooling, .. } = of_student;
    let terms = [
        Term::Contrastive { weight: 1.0, temperature: 0.05 },
        Term::Embedding { weight: 1.0, temperature: 0.1 },
        Term::Hidden { weight: 1.0, layer_map: vec![(1, 2)] },
    ];
    let compute = |sizes: &[usize]| {
        let compute = |pairs: &Pairs| {
            let device = Device::flex().autodiff();
            let model = Model::load(&config, &mut weights.clone(), &Device::flex()).unwrap().map(&mut Leaves);
            let mut outputs = |input: &Input| {
                let student = Outputs::of_student(&model, pooling.mode, &terms, &input.batch, &device, &mut None)?;
                let teacher = teacher.outputs(&terms, &input.readings, input.batch.dims(), &device)?;
                Ok((student, Some(teacher)))
            };
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            let computed = pool.install(|| pair_losses(&terms, pairs, &mut outputs, &device));
            let values = computed.unwrap().expect("no part failed");
            let of_terms = Tensor::cat(values.iter().map(|value| value.clone().inner()).collect(), 0);
            let loss = values.into_iter().reduce(|a, b| a + b).unwrap();
            let words = (0..config.vocab_size as i32).collect();
            let (gradient, found) = NamedGradients::collect(&model, loss.backward(), words, of_terms).unwrap();
            (found.into_iter().map(f64::from).collect::<Vec<_>>(), gradient)
        };
        let parts = parts(sizes);
        let (mut sums, mut gradient) = (vec![0.0; terms.len()], NamedGradients::default());
        std::thread::scope(|scope| {
            let running: Vec<_> = parts.iter().map(|part| scope.spawn(move || compute(part))).collect();
            for part in running {
                let (found, of_part) = part.join().unwrap();
                sums.iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
                gradient.add(of_part);
            }
        });
        (sums, gradient.into_values())
    };
    let (whole, gradient) = compute(&[5]);
    assert!(whole.iter().all(|&x| x > 0.01), "{whole:?}");
    for sizes in [[2, 3].as_slice(), &[1, 3, 1]] {
        let (sums, of_parts) = compute(sizes);
        for (a, b) in whole.iter().zip(&sums) {
            assert!((a - b).abs() < 1e-5 * a.max(1.0), "{whole:?} and {sums:?}");
        }
        assert!(gradient.keys().eq(of_parts.keys()));
        for (name, a) in &gradient {
            let size = a.iter().map(|x| x.abs()).fold(1e-2, f32::max);
            let apart = a.iter().zip(&of_parts[name]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-3 * size, "{name}: {apart} of {size}");
        }
    }
}

#[test]
fn a_part_that_fails_keeps_no_other_waiting() {
    let (no_negatives, equal) = step();
    let step = StepPairs::new(no_negatives, equal, 3);
    let place = |part| Place { exchange: &step.exchange, part };
    let embeddings = || Embeddings { student: [vec![1.0], vec![2.0]], teacher: None };
    std::thread::scope(|scope| {
        let waiting = [0, 2].map(|part| scope.spawn(move || place(part).show(embeddings()).is_none()));
        let failing = scope.spawn(move || {
            let _place = place(1);
            panic!("as a defect of the model would");
        });
        assert!(failing.join().is_err());
        assert!(waiting.into_iter().all(|part| part.join().unwrap()));
    });
}
