//! A student's beginning: some of its teacher's layers, whole or narrowed.

use ampoule::model::{HiddenState, HostTensor, Model};
use ampoule::{Batch, Checkpoint, Error, ModelConfig, Result};
use burn::tensor::Device;
use nalgebra::DMatrix;
use serde::{Deserialize, Serialize};

use crate::factorize::{cosines, leading};

/// The shape of a student that starts from its teacher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StudentShape {
    /// The teacher's layers that it gets, counted from 1.
    pub layers: Vec<usize>,
    /// Width of its hidden states; the teacher's where absent.
    pub hidden_size: Option<usize>,
    /// Number of its attention heads; where absent as many as leave a head as wide as the teacher's.
    pub num_attention_heads: Option<usize>,
    /// Width of its feed-forward blocks; where absent the teacher's, narrowed as the hidden states are.
    pub intermediate_size: Option<usize>,
}

/// A student of this shape with its teacher's embeddings, layers and head (as DistilBERT began; Sanh et al. 2019), and the pairs of
/// student and teacher layers that then belong together.
///
/// A narrower student keeps the dimensions that weigh most. For the hidden states, a dimension weighs what its readers make of
/// it: the squares of their weights times that of the layer norm's factor before them, summed over all kept layers. For heads and
/// feed-forward blocks, it weighs the product of the norms of what writes and what reads it (Michel et al. 2019 prune whole heads
/// too), and so does a pooler's output. Heads are kept whole where those of student and teacher are of one width.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where a layer is not there or they are not rising, and where a width is none
/// or larger than the teacher's.
pub fn student_from_teacher(teacher: &Checkpoint, shape: &StudentShape) -> Result<(Checkpoint, Vec<(usize, usize)>)> {
    student(teacher, shape, |_| Ok(None))
}

/// [`student_from_teacher`], but that hidden states of a narrower student are its teacher's in a basis: that of the principal components
/// (not centred, since no bias takes a mean's place) of the states between the kept layers' blocks on `texts`. What reads states is
/// multiplied by the basis, and what writes them by its transpose; a layer norm's factors are averaged by its squares, times the root of the
/// ratio of widths, because what a norm gives is as long as the root of its width.
///
/// # Errors
/// As [`student_from_teacher`], and [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where the texts have no token.
pub fn student_from_states(
    teacher: &Checkpoint,
    shape: &StudentShape,
    texts: &[&str],
) -> Result<(Checkpoint, Vec<(usize, usize)>)> {
    student(teacher, shape, |width| match width == teacher.config.hidden_size {
        true => Ok(None),
        false => state_basis(teacher, &shape.layers, texts, width).map(Some),
    })
}

/// `basis` gives that of hidden states of a width, or none to choose dimensions.
fn student(
    teacher: &Checkpoint,
    shape: &StudentShape,
    basis: impl FnOnce(usize) -> Result<Option<DMatrix<f64>>>,
) -> Result<(Checkpoint, Vec<(usize, usize)>)> {
    let (layers, most) = (&shape.layers, teacher.config.num_hidden_layers);
    let is_rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
    if layers.is_empty() || !is_rising || layers[0] == 0 || layers.iter().any(|&l| l > most) {
        return Err(Error::invalid_input(format!(
            "layers {layers:?}: expected rising numbers in 1..={most}, the layers that are there"
        )));
    }
    let config = narrowed(&teacher.config, shape)?;
    let kept = Kept { basis: basis(config.hidden_size)?, ..Kept::choose(teacher, layers, &config)? };
    let mut student = Checkpoint { config, temperature: 1.0, quantization_aware: false, ..teacher.clone() };
    student.weights.0.clear();
    for (name, expected) in student.config.tensors() {
        let part = Part::of(&name);
        let from = match part.layer {
            Some(i) => name.replacen(&format!(".{i}."), &format!(".{}.", layers[i] - 1), 1),
            None => name.clone(),
        };
        let tensor = kept.cut(&part, tensor(teacher, &from)?);
        if tensor.shape != expected {
            return Err(Error::internal(format!("{name}: cut to {:?} in place of {expected:?}", tensor.shape)));
        }
        student.weights.0.insert(name, tensor);
    }
    Ok((student, layers.iter().enumerate().map(|(to, &from)| (to + 1, from)).collect()))
}

/// The most tokens whose states are looked at.
const MAX_TOKENS: usize = 1 << 13;

/// `[hidden, width]`: the first components of what the embeddings and the blocks of these layers write, spread over all values, as int8
/// wants them, and such that a layer norm, which takes the mean away, takes nothing.
fn state_basis(teacher: &Checkpoint, layers: &[usize], texts: &[&str], width: usize) -> Result<DMatrix<f64>> {
    let (config, device) = (&teacher.config, Device::flex());
    let wanted = |state: HiddenState| match state {
        HiddenState::Layer(number) => number == 0 || layers.contains(&number),
        HiddenState::Attention(number) => layers.contains(&number),
        HiddenState::Query(_) | HiddenState::Key(_) | HiddenState::Value(_) => false,
    };
    let model = Model::load(config, &mut teacher.weights.clone(), &device)?;
    let (mut squares, mut tokens) = (DMatrix::zeros(config.hidden_size, config.hidden_size), 0);
    // Evenly taken, each token with the text around it: about as many texts as have the most tokens.
    let bytes: usize = texts.iter().map(|text| text.len().min(4 * config.max_tokens())).sum();
    for text in texts.iter().step_by(bytes.div_ceil(4 * MAX_TOKENS).max(1)) {
        let ids: Vec<u32> =
            teacher.tokenizer.encode(text)?.iter().map(|t| t.id).take(config.max_tokens() - 2).collect();
        if ids.is_empty() || tokens >= MAX_TOKENS {
            continue;
        }
        let ids = [&[teacher.tokenizer.cls_id()], &*ids, &[teacher.tokenizer.sep_id()]].concat();
        tokens += ids.len();
        let batch = Batch::new(&[ids], config.pad_token_id);
        model.hidden_states(&batch, &device, &mut None, &mut |state, x| {
            if wanted(state) {
                let values: Vec<f32> =
                    x.clone().into_data().try_into_vec().map_err(|_| Error::internal("a state is no f32"))?;
                let values = values.into_iter().map(f64::from).collect();
                let states = DMatrix::from_vec(config.hidden_size, batch.lengths().iter().sum(), values);
                squares.gemm(1.0, &states, &states.transpose(), 1.0);
            }
            Ok(())
        })?;
    }
    match tokens {
        0 => Err(Error::invalid_input("there is no text to look at hidden states on")),
        _ => Ok(leading(squares, width - 1) * cosines(width).transpose()),
    }
}

/// The teacher's configuration in the student's shape.
pub(crate) fn narrowed(teacher: &ModelConfig, shape: &StudentShape) -> Result<ModelConfig> {
    let width = |name: &str, asked: Option<usize>, most: usize, default: usize| match asked {
        None => Ok(default),
        Some(n) if (1..=most).contains(&n) => Ok(n),
        Some(n) => Err(Error::invalid_input(format!(
            "a student with {name} {n}: its teacher has {most}, so expected 1 to {most}"
        ))),
    };
    let mut config = teacher.clone();
    config.num_hidden_layers = shape.layers.len();
    config.hidden_size = width("hidden_size", shape.hidden_size, teacher.hidden_size, teacher.hidden_size)?;
    if teacher.embedding_size == teacher.hidden_size {
        config.embedding_size = config.hidden_size;
    } else if config.embedding_size == config.hidden_size {
        return Err(Error::invalid_input(format!(
            "a student with hidden_size {0}: its teacher's embeddings are {0} wide too and projected, and between equal widths an \
             ELECTRA projects nothing; name another width",
            config.hidden_size
        )));
    }
    let proportional = (teacher.intermediate_size * config.hidden_size).div_ceil(teacher.hidden_size);
    config.intermediate_size =
        width("intermediate_size", shape.intermediate_size, teacher.intermediate_size, proportional)?;
    let of_a_head = teacher.hidden_size / teacher.num_attention_heads;
    config.num_attention_heads = match shape.num_attention_heads {
        Some(n) => n,
        None if config.hidden_size.is_multiple_of(of_a_head) => config.hidden_size / of_a_head,
        None => 0,
    };
    if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(Error::invalid_input(format!(
            "hidden states of {} values do not divide into heads{}; name a number of heads that divides them",
            config.hidden_size,
            match shape.num_attention_heads {
                Some(n) => format!(", of which there are to be {n}"),
                None => format!(" of the teacher's {of_a_head}"),
            }
        )));
    }
    config.validate()?;
    Ok(config)
}

/// The dimensions of the teacher that its student has, each list rising.
struct Kept {
    hidden: Vec<usize>,
    /// In place of `hidden`, `[teacher's hidden, student's hidden]`.
    basis: Option<DMatrix<f64>>,
    /// Of what the pooler writes, where there is one.
    pooled: Option<Vec<usize>>,
    is_embedding_as_wide: bool,
    /// By the student's layer.
    layers: Vec<KeptOfLayer>,
}

struct KeptOfLayer {
    /// Of queries and keys, whose products pair them.
    query_key: Vec<usize>,
    value: Vec<usize>,
    intermediate: Vec<usize>,
}

/// What a tensor is, by its name.
struct Part<'a> {
    /// The student's, from 0.
    layer: Option<usize>,
    /// The name without its layer.
    rest: &'a str,
}

impl<'a> Part<'a> {
    fn of(name: &'a str) -> Self {
        let in_layer = name.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.'));
        match in_layer.and_then(|(number, rest)| Some((number.parse().ok()?, rest))) {
            Some((layer, rest)) => Part { layer: Some(layer), rest },
            None => Part { layer: None, rest: name },
        }
    }
}

fn tensor<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a HostTensor> {
    checkpoint.weights.0.get(name).ok_or_else(|| Error::internal(format!("the teacher has no tensor {name:?}")))
}

/// Sum of the squares of each column of a matrix `[out, in]`.
fn columns(matrix: &HostTensor) -> Vec<f64> {
    let width = matrix.shape[1];
    let mut sums = vec![0.0; width];
    for row in matrix.data.chunks(width) {
        sums.iter_mut().zip(row).for_each(|(sum, &w)| *sum += f64::from(w).powi(2));
    }
    sums
}

/// That of each row.
fn rows(matrix: &HostTensor) -> Vec<f64> {
    matrix.data.chunks(matrix.shape[1]).map(|row| row.iter().map(|&w| f64::from(w).powi(2)).sum()).collect()
}

/// The places of the `count` largest, rising; the first of equals.
fn largest(weights: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

impl Kept {
    fn choose(teacher: &Checkpoint, layers: &[usize], student: &ModelConfig) -> Result<Self> {
        let config = &teacher.config;
        let of_layer = |number: usize, part: &str| tensor(teacher, &format!("encoder.layer.{}.{part}", number - 1));
        let mut weights = vec![0.0; config.hidden_size];
        let mut add = |norm: Option<&HostTensor>, reader: &HostTensor| {
            for (j, (weight, x)) in weights.iter_mut().zip(columns(reader)).enumerate() {
                *weight += x * norm.map_or(1.0, |norm| f64::from(norm.data[j]).powi(2));
            }
        };
        let is_embedding_as_wide = config.embedding_size == config.hidden_size;
        let mut before = match is_embedding_as_wide {
            true => Some(tensor(teacher, "embeddings.LayerNorm.weight")?),
            // A projection's output has no norm of its own.
            false => None,
        };
        for &number in layers {
            for part in ["query", "key", "value"] {
                add(before, of_layer(number, &format!("attention.self.{part}.weight"))?);
            }
            let norm = of_layer(number, "attention.output.LayerNorm.weight")?;
            add(Some(norm), of_layer(number, "intermediate.dense.weight")?);
            before = Some(of_layer(number, "output.LayerNorm.weight")?);
        }
        let of_head = |part: &str| teacher.weights.0.get(part);
        let (pooler, classifier) = (of_head("pooler.dense.weight"), of_head("classifier.weight"));
        // After a pooler, the classifier reads what the pooler writes.
        if let Some(reader) = pooler.or(classifier) {
            add(before, reader);
        }
        let of_a_head = config.hidden_size / config.num_attention_heads;
        let are_heads_whole = student.hidden_size / student.num_attention_heads == of_a_head;
        let inner = |weights: Vec<f64>| match are_heads_whole {
            false => largest(&weights, student.hidden_size),
            true => {
                let heads: Vec<f64> = weights.chunks(of_a_head).map(|head| head.iter().sum()).collect();
                let kept = largest(&heads, student.num_attention_heads);
                kept.into_iter().flat_map(|head| head * of_a_head..(head + 1) * of_a_head).collect()
            }
        };
        let product = |a: Vec<f64>, b: Vec<f64>| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| (a * b).sqrt()).collect() };
        let kept = layers.iter().map(|&number| {
            let part = |name: &str| of_layer(number, name);
            let query_key =
                product(rows(part("attention.self.query.weight")?), rows(part("attention.self.key.weight")?));
            let value =
                product(rows(part("attention.self.value.weight")?), columns(part("attention.output.dense.weight")?));
            let (query_key, value) = match are_heads_whole {
                // A head's values go where its attention goes.
                true => {
                    let both = inner(query_key.iter().zip(&value).map(|(a, b)| a * b).collect());
                    (both.clone(), both)
                }
                false => (inner(query_key), inner(value)),
            };
            let wide = product(rows(part("intermediate.dense.weight")?), columns(part("output.dense.weight")?));
            Ok(KeptOfLayer { query_key, value, intermediate: largest(&wide, student.intermediate_size) })
        });
        let layers = kept.collect::<Result<_>>()?;
        let pooled = pooler
            .zip(classifier)
            .map(|(pooler, classifier)| largest(&product(rows(pooler), columns(classifier)), student.hidden_size));
        let hidden = largest(&weights, student.hidden_size);
        Ok(Kept { hidden, basis: None, pooled, is_embedding_as_wide, layers })
    }

    /// What the student has of the teacher's tensor.
    fn cut(&self, part: &Part, from: &HostTensor) -> HostTensor {
        let hidden = match &self.basis {
            Some(basis) => Side::Projected(basis),
            None => Side::Chosen(&self.hidden),
        };
        let embedding = if self.is_embedding_as_wide { hidden } else { Side::Whole };
        // Its activation stands between, as in a feed-forward block.
        let pooled = self.pooled.as_deref().map_or(hidden, Side::Chosen);
        let (name, kind) = part.rest.rsplit_once('.').unwrap_or((part.rest, ""));
        let (outputs, inputs) = match (part.layer.and_then(|i| self.layers.get(i)), name) {
            (Some(kept), "attention.self.query" | "attention.self.key") => (Side::Chosen(&kept.query_key), hidden),
            (Some(kept), "attention.self.value") => (Side::Chosen(&kept.value), hidden),
            (Some(kept), "attention.output.dense") => (hidden, Side::Chosen(&kept.value)),
            (Some(kept), "intermediate.dense") => (Side::Chosen(&kept.intermediate), hidden),
            (Some(kept), "output.dense") => (hidden, Side::Chosen(&kept.intermediate)),
            (None, "embeddings.LayerNorm") => (embedding, Side::Whole),
            (None, "embeddings_project") => (hidden, Side::Whole),
            (None, "classifier") => (Side::Whole, pooled),
            (None, "pooler.dense") => (pooled, hidden),
            (None, _) => (Side::Whole, embedding),
            (Some(_), _) => (hidden, Side::Whole),
        };
        match (kind, from.shape.len()) {
            ("weight", 2) => outputs.rows(&transposed(&inputs.rows(&transposed(from)))),
            // A bias or a norm has its layer's outputs.
            ("weight", _) => outputs.factors(from),
            _ => outputs.rows(from),
        }
    }
}

/// What the student has of one side of a tensor.
#[derive(Clone, Copy)]
enum Side<'a> {
    Whole,
    Chosen(&'a [usize]),
    Projected(&'a DMatrix<f64>),
}

impl Side<'_> {
    /// Of the rows of a matrix, or the values of a vector.
    fn rows(self, from: &HostTensor) -> HostTensor {
        let width = from.shape.get(1).copied().unwrap_or(1);
        let data: Vec<f32> = match self {
            Side::Whole => return from.clone(),
            Side::Chosen(rows) => rows.iter().flat_map(|r| &from.data[r * width..][..width]).copied().collect(),
            Side::Projected(basis) => {
                // Columns, of which each is in one piece.
                let rows = DMatrix::from_iterator(width, from.shape[0], from.data.iter().map(|&x| f64::from(x)));
                (rows * basis).iter().map(|&x| x as f32).collect()
            }
        };
        let rows = data.len() / width;
        HostTensor { shape: std::iter::once(rows).chain(from.shape.get(1).copied()).collect(), data }
    }

    /// Of the factors of a layer norm.
    fn factors(self, from: &HostTensor) -> HostTensor {
        match self {
            Side::Projected(basis) => {
                // What a norm gives is as long as the root of its width, and is to be as long as the teacher's.
                let longer = (basis.nrows() as f64 / basis.ncols() as f64).sqrt();
                let mut parts = basis.component_mul(basis);
                parts.column_iter_mut().for_each(|mut of_one| of_one *= longer / of_one.sum());
                Side::Projected(&parts).rows(from)
            }
            other => other.rows(from),
        }
    }
}

fn transposed(matrix: &HostTensor) -> HostTensor {
    let (rows, width) = (matrix.shape[0], matrix.shape[1]);
    let data = (0..width).flat_map(|c| (0..rows).map(move |r| matrix.data[r * width + c])).collect();
    HostTensor { shape: vec![width, rows], data }
}

/// Relation heads for models of these widths: as many as divide both, in parts of at least 16 of the teacher's values.
pub fn relation_heads(student: usize, teacher: usize) -> usize {
    let divides_both = |heads: &usize| student.is_multiple_of(*heads) && teacher.is_multiple_of(*heads);
    (1..=teacher / 16).rev().find(divides_both).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ampoule::model::{Model, Weights};
    use ampoule::{Batch, ErrorKind};
    use burn::tensor::Device;

    use super::*;

    const ALL: [&str; 8] = [
        "bert-token",
        "bert-sequence",
        "distilbert-token",
        "distilbert-sequence",
        "roberta-token",
        "roberta-sequence",
        "electra-token",
        "electra-sequence",
    ];

    fn checkpoint(name: &str) -> Checkpoint {
        Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints").join(name))
            .unwrap()
    }

    fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
        let model = Model::load(&checkpoint.config, &mut checkpoint.weights.clone(), &Device::flex()).unwrap();
        let batch = Batch::new(&[vec![2, 7, 11, 5, 3], vec![2, 40, 3]], checkpoint.config.pad_token_id);
        let states = model.hidden_states(&batch, &Device::flex(), &mut None, &mut |_, _| Ok(())).unwrap();
        model.logits(states, &mut None).unwrap().into_data().try_into_vec().unwrap()
    }

    fn zero(weights: &mut Weights, name: &str, is_dead: impl Fn(usize, usize) -> bool) {
        let tensor = weights.0.get_mut(name).unwrap();
        let width = *tensor.shape.last().unwrap();
        for (i, x) in tensor.data.iter_mut().enumerate() {
            if is_dead(i / width, i % width) {
                *x = 0.0;
            }
        }
    }

    #[test]
    fn a_student_of_the_teachers_own_shape_is_the_teacher() {
        for name in ALL {
            let teacher = checkpoint(name);
            let layers: Vec<usize> = (1..=teacher.config.num_hidden_layers).collect();
            let (student, map) =
                student_from_teacher(&teacher, &StudentShape { layers, ..StudentShape::default() }).unwrap();
            assert!(student.config == teacher.config && student.weights.0 == teacher.weights.0, "{name}");
            assert_eq!(map, [(1, 1), (2, 2)]);
        }
    }

    /// A head and a quarter of the feed-forward block that add nothing are what a narrower student leaves out.
    #[test]
    fn what_weighs_nothing_is_left_out_first() {
        for name in ALL {
            let mut teacher = checkpoint(name);
            for i in 0..2 {
                let at = |part: &str| format!("encoder.layer.{i}.{part}.weight");
                zero(&mut teacher.weights, &at("output.dense"), |_, column| column % 4 == i);
                zero(&mut teacher.weights, &at("intermediate.dense"), |row, _| row % 4 == i);
                zero(&mut teacher.weights, &at("attention.output.dense"), |_, column| column / 8 == i + 1);
            }
            let layers = vec![1, 2];
            let shape = StudentShape { layers: layers.clone(), intermediate_size: Some(48), ..StudentShape::default() };
            let (student, _) = student_from_teacher(&teacher, &shape).unwrap();
            assert_eq!(student.config.intermediate_size, 48);
            let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart(&logits(&student), &logits(&teacher)) < 1e-5, "{name}");

            let shape = StudentShape { hidden_size: Some(24), ..StudentShape { layers, ..StudentShape::default() } };
            let kept = Kept::choose(&teacher, &[1, 2], &narrowed(&teacher.config, &shape).unwrap()).unwrap();
            for (i, layer) in kept.layers.iter().enumerate() {
                assert!(
                    layer.value.len() == 24 && layer.value.iter().all(|j| j / 8 != i + 1),
                    "{name}: {:?}",
                    layer.value
                );
                assert_eq!(layer.query_key, layer.value, "{name}");
            }
        }
    }

    #[test]
    fn a_narrow_student_is_whole_and_finite() {
        for name in ALL {
            for (hidden, heads, intermediate) in
                [(24, None, None), (8, Some(4), Some(3)), (20, Some(5), Some(64)), (32, Some(2), None)]
            {
                let shape = StudentShape {
                    layers: vec![2],
                    hidden_size: Some(hidden),
                    num_attention_heads: heads,
                    intermediate_size: intermediate,
                };
                let (student, map) = student_from_teacher(&checkpoint(name), &shape).unwrap();
                assert_eq!(map, [(1, 2)]);
                assert_eq!(student.config.num_attention_heads, heads.unwrap_or(3));
                assert_eq!(student.config.intermediate_size, intermediate.unwrap_or(2 * hidden));
                let folder = tempfile::tempdir().unwrap();
                student.save(folder.path().join("student")).unwrap();
                let opened = Checkpoint::open(folder.path().join("student")).unwrap();
                assert!(logits(&opened).iter().all(|x| x.is_finite()), "{name}");
            }
        }
    }

    #[test]
    fn a_shape_that_cannot_be_is_refused_in_words() {
        let teacher = checkpoint("bert-token");
        let layers = vec![1];
        let full = StudentShape { layers, ..StudentShape::default() };
        for (shape, part) in [
            (StudentShape { layers: vec![], ..full.clone() }, "rising numbers"),
            (StudentShape { layers: vec![2, 1], ..full.clone() }, "rising numbers"),
            (StudentShape { layers: vec![3], ..full.clone() }, "1..=2"),
            (StudentShape { hidden_size: Some(0), ..full.clone() }, "hidden_size 0"),
            (StudentShape { hidden_size: Some(33), ..full.clone() }, "its teacher has 32"),
            (StudentShape { intermediate_size: Some(65), ..full.clone() }, "its teacher has 64"),
            (StudentShape { hidden_size: Some(20), ..full.clone() }, "heads of the teacher's 8"),
            (StudentShape { num_attention_heads: Some(5), ..full.clone() }, "there are to be 5"),
            (StudentShape { num_attention_heads: Some(0), ..full }, "there are to be 0"),
        ] {
            let error = student_from_teacher(&teacher, &shape).err().unwrap();
            assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(part), "{shape:?}: {error}");
        }
    }

    /// A teacher whose states lie in few dimensions is the same model in the basis of their components.
    #[test]
    fn states_of_few_dimensions_are_the_same_in_their_basis() {
        let texts = ["The patient was given aspirin, 0.4 mg of it", "pain of the joints, arthritis 20%"];
        for name in ["bert-token", "electra-token", "roberta-sequence"] {
            let mut teacher = checkpoint(name);
            let hidden = teacher.config.hidden_size;
            // What writes states writes in 23 directions of no mean, and norms treat all alike, so that states stay in them.
            let span = cosines(hidden).columns(0, 23).into_owned();
            let span = &span * span.transpose();
            for (tensor_name, tensor) in &mut teacher.weights.0 {
                let writes = tensor_name.ends_with("output.dense.weight") || tensor_name == "embeddings_project.weight";
                if writes || tensor_name.ends_with("output.dense.bias") || tensor_name == "embeddings_project.bias" {
                    *tensor = Side::Projected(&span).rows(tensor);
                } else if tensor_name.ends_with("_embeddings.weight") && tensor.shape[1] == hidden {
                    *tensor = transposed(&Side::Projected(&span).rows(&transposed(tensor)));
                } else if tensor_name.ends_with("LayerNorm.weight") && tensor.shape[0] == hidden {
                    tensor.data.fill(1.0);
                } else if tensor_name.ends_with("LayerNorm.bias") && tensor.shape[0] == hidden {
                    tensor.data.fill(0.0);
                }
            }
            // What the width has no room for adds nothing: a head of each layer, and eight values of the pooler's.
            for i in 0..2 {
                let name = format!("encoder.layer.{i}.attention.output.dense.weight");
                zero(&mut teacher.weights, &name, |_, column| column / 8 == i + 1);
            }
            if teacher.weights.0.contains_key("pooler.dense.weight") {
                zero(&mut teacher.weights, "classifier.weight", |_, column| column % 4 == 1);
            }
            let width = 24;
            let basis = state_basis(&teacher, &[1, 2], &texts, width).unwrap();
            assert!(
                (basis.transpose() * &basis - (DMatrix::identity(width, width).add_scalar(-1.0 / width as f64))).norm()
                    < 1e-9
            );
            assert!((&basis * basis.transpose() - span).norm() < 1e-3, "{name}");
            let shape = StudentShape {
                layers: vec![1, 2],
                hidden_size: Some(width),
                intermediate_size: Some(teacher.config.intermediate_size),
                ..StudentShape::default()
            };
            let (student, _) = student_from_states(&teacher, &shape, &texts).unwrap();
            let (ours, theirs) = (logits(&student), logits(&teacher));
            let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let largest = theirs.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            assert!(apart < 1e-3 * largest, "{name}: {apart} of {largest}");
            assert!(student_from_states(&teacher, &shape, &[""]).is_err());
        }
    }

    #[test]
    fn a_projection_is_not_lost_where_widths_would_meet() {
        let teacher = checkpoint("electra-token");
        let width = teacher.config.embedding_size;
        assert_ne!(width, teacher.config.hidden_size);
        let shape = StudentShape {
            layers: vec![1],
            hidden_size: Some(width),
            num_attention_heads: Some(1),
            ..StudentShape::default()
        };
        let error = student_from_teacher(&teacher, &shape).err().unwrap();
        assert!(error.to_string().contains("name another width"), "{error}");
    }

    #[test]
    fn relation_heads_divide_both_widths() {
        for (student, teacher, heads) in [(384, 384, 24), (192, 384, 24), (312, 384, 24), (128, 768, 32), (7, 384, 1)] {
            assert_eq!(relation_heads(student, teacher), heads);
        }
    }
}
