//! Narrower embeddings, projected to the hidden states' width.

use ampoule::model::HostTensor;
use ampoule::text::Tokenizer;
use ampoule::{Checkpoint, Error, ModelConfig, ModelType, Result};
use nalgebra::{DMatrix, DVector, DVectorView};

/// The most tokens of the texts that embeddings are fitted on, evenly taken.
const MAX_TOKENS: usize = 1 << 16;
/// Tokens that are multiplied at once.
const BLOCK: usize = 1024;
/// Of the number of tokens, what is added to the diagonal of the normal equations: a layer norm's outputs add up to nothing.
const RIDGE: f64 = 1e-6;

/// `checkpoint` as an ELECTRA (Clark et al. 2020) whose embeddings are `width` wide and projected to the hidden states, and the share of
/// the variance of what its layers read that this loses on the tokens of `texts`.
///
/// With `v` the sum of a token's rows and `y = L norm(v) + c` what the layers read, the new rows are `R v`. `R` projects on the principal
/// components of `y` over the texts. So the new norm divides by about what the old one did; of the rows by themselves, other components
/// are the largest. A norm takes away the mean of its inputs: `R` writes `width - 1` components, through cosines, each of which has no mean
/// and spreads a component over all values, as int8 wants them. The projection is the least squares fit of `y`.
///
/// All but the embeddings stays as it is, weights and head; the non-linearity within a head for whole texts becomes ELECTRA's.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where `width` is less than 2 or not less than that of the embeddings and of the
/// hidden states, and where the texts have no token to fit on.
pub fn factorize_embeddings(checkpoint: &Checkpoint, texts: &[&str], width: usize) -> Result<(Checkpoint, f64)> {
    let config = &checkpoint.config;
    let mut factorized = Checkpoint { config: factorized(config, width)?, ..checkpoint.clone() };
    let old = Embeddings::read(checkpoint)?;
    let tokens = tokens(&checkpoint.tokenizer, texts, config.max_tokens())?;
    let components = old.principal_components(&tokens, width - 1);
    let centring = DMatrix::identity(old.width(), old.width()).add_scalar(-1.0 / old.width() as f64);
    let narrow = cosines(width) * components.transpose() * &old.linear * centring;
    let mut new = Embeddings {
        words: &narrow * &old.words,
        positions: &narrow * &old.positions,
        types: &narrow * &old.types,
        linear: DMatrix::zeros(config.hidden_size, width),
        offset: DVector::zeros(config.hidden_size),
        eps: old.eps,
    };
    let lost = new.fit(&old, &tokens)?;

    let mut set = |name: &str, shape: Vec<usize>, data: &[f64]| {
        let data = data.iter().map(|&x| x as f32).collect();
        factorized.weights.0.insert(name.to_owned(), HostTensor { shape, data });
    };
    for (name, rows) in [("word", &new.words), ("position", &new.positions), ("token_type", &new.types)] {
        // A column of a matrix is in one piece, as a row of a tensor is.
        set(&format!("embeddings.{name}_embeddings.weight"), vec![rows.ncols(), width], rows.as_slice());
    }
    set("embeddings.LayerNorm.weight", vec![width], &vec![1.0; width]);
    set("embeddings.LayerNorm.bias", vec![width], &vec![0.0; width]);
    set("embeddings_project.weight", vec![config.hidden_size, width], new.linear.transpose().as_slice());
    set("embeddings_project.bias", vec![config.hidden_size], new.offset.as_slice());
    Ok((factorized, lost))
}

/// The configuration with embeddings `width` wide.
pub(crate) fn factorized(config: &ModelConfig, width: usize) -> Result<ModelConfig> {
    let most = config.embedding_size.min(config.hidden_size) - 1;
    if !(2..=most).contains(&width) {
        return Err(Error::invalid_input(format!(
            "embeddings {width} wide: expected 2 to {most}, narrower than they are"
        )));
    }
    Ok(ModelConfig {
        model_type: ModelType::Electra,
        embedding_size: width,
        // Positions that are never used have no row.
        max_position_embeddings: config.max_tokens(),
        type_vocab_size: config.type_vocab_size.max(1),
        ..config.clone()
    })
}

/// Ids and positions of tokens of the texts, special ones counted.
fn tokens(tokenizer: &Tokenizer, texts: &[&str], max_tokens: usize) -> Result<Vec<(usize, usize)>> {
    let mut all = Vec::new();
    for text in texts {
        let ids = tokenizer.encode(text)?.into_iter().map(|token| token.id).take(max_tokens - 2);
        let ids = std::iter::once(tokenizer.cls_id()).chain(ids).chain([tokenizer.sep_id()]);
        all.extend(ids.zip(0..).map(|(id, position)| (id as usize, position)));
    }
    let step = all.len().div_ceil(MAX_TOKENS);
    match step {
        0 => Err(Error::invalid_input("there is no text to fit embeddings on")),
        step => Ok(all.into_iter().step_by(step).collect()),
    }
}

/// `[n, n - 1]`: the cosines of the discrete cosine transform (DCT-II) but for the constant one. Its columns are orthonormal, and none has
/// a mean.
pub(crate) fn cosines(n: usize) -> DMatrix<f64> {
    let angle = |i: usize, k: usize| std::f64::consts::PI * (i as f64 + 0.5) * (k + 1) as f64 / n as f64;
    DMatrix::from_fn(n, n - 1, |i, k| (2.0 / n as f64).sqrt() * angle(i, k).cos())
}

/// The eigenvectors of the `count` largest eigenvalues of a symmetric matrix, as columns.
pub(crate) fn leading(symmetric: DMatrix<f64>, count: usize) -> DMatrix<f64> {
    let eigen = symmetric.symmetric_eigen();
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    eigen.eigenvectors.select_columns(&order[..count])
}

/// An embedding block with its layer norm's factors and its projection in one: `linear * norm(rows) + offset`. A token's row is a column.
struct Embeddings {
    words: DMatrix<f64>,
    positions: DMatrix<f64>,
    /// One of zeros where the architecture has none.
    types: DMatrix<f64>,
    /// `[hidden, width]`
    linear: DMatrix<f64>,
    /// `[hidden]`
    offset: DVector<f64>,
    eps: f64,
}

impl Embeddings {
    fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let (config, weights) = (&checkpoint.config, &checkpoint.weights.0);
        let width = config.embedding_size;
        let values = |name: &str| -> Result<Vec<f64>> {
            let tensor = weights.get(name).ok_or_else(|| Error::internal(format!("there is no tensor {name:?}")))?;
            Ok(tensor.data.iter().map(|&x| f64::from(x)).collect())
        };
        let rows = |name: &str| -> Result<DMatrix<f64>> {
            let values = values(&format!("embeddings.{name}_embeddings.weight"))?;
            Ok(DMatrix::from_vec(width, values.len() / width, values))
        };
        let positions = rows("position")?;
        // Those that are never used come first.
        let positions = positions.columns(positions.ncols() - config.max_tokens(), config.max_tokens()).into_owned();
        let types = match config.type_vocab_size {
            0 => DMatrix::zeros(width, 1),
            _ => rows("token_type")?,
        };
        let factors = DVector::from_vec(values("embeddings.LayerNorm.weight")?);
        let shift = DVector::from_vec(values("embeddings.LayerNorm.bias")?);
        let (linear, offset) = match width == config.hidden_size {
            true => (DMatrix::from_diagonal(&factors), shift),
            false => {
                let project = DMatrix::from_row_slice(config.hidden_size, width, &values("embeddings_project.weight")?);
                let offset = &project * shift + DVector::from_vec(values("embeddings_project.bias")?);
                (project * DMatrix::from_diagonal(&factors), offset)
            }
        };
        Ok(Embeddings { words: rows("word")?, positions, types, linear, offset, eps: config.layer_norm_eps })
    }

    fn width(&self) -> usize {
        self.words.nrows()
    }

    /// The normalised rows of tokens, `[width, tokens]`; each text is of type 0.
    fn normalized(&self, tokens: &[(usize, usize)]) -> DMatrix<f64> {
        let mut all = DMatrix::zeros(self.width(), tokens.len());
        for (mut to, &(id, position)) in all.column_iter_mut().zip(tokens) {
            to.copy_from(&(self.words.column(id) + self.positions.column(position) + self.types.column(0)));
            to.add_scalar_mut(-to.mean());
            let deviation = (to.norm_squared() / to.len() as f64 + self.eps).sqrt();
            to /= deviation;
        }
        all
    }

    /// What the layers read of tokens, `[hidden, tokens]`.
    fn outputs(&self, tokens: &[(usize, usize)]) -> DMatrix<f64> {
        let mut all = &self.linear * self.normalized(tokens);
        all.column_iter_mut().for_each(|mut column| column += &self.offset);
        all
    }

    /// The first `count` principal components of the outputs, `[hidden, count]`.
    fn principal_components(&self, tokens: &[(usize, usize)], count: usize) -> DMatrix<f64> {
        let hidden = self.linear.nrows();
        let (mut squares, mut sum) = (DMatrix::zeros(hidden, hidden), DVector::zeros(hidden));
        for block in tokens.chunks(BLOCK) {
            let outputs = self.outputs(block);
            squares.gemm(1.0, &outputs, &outputs.transpose(), 1.0);
            sum += outputs.column_sum();
        }
        squares.ger(-1.0 / tokens.len() as f64, &sum, &sum, 1.0);
        leading(squares, count)
    }

    /// Sets what follows the norm so that the outputs are nearest to those of `target`; gives the share of their variance that is left.
    fn fit(&mut self, target: &Embeddings, tokens: &[(usize, usize)]) -> Result<f64> {
        let (inputs, hidden) = (self.width() + 1, self.linear.nrows());
        let with_one = |rows: DMatrix<f64>| rows.insert_row(inputs - 1, 1.0);
        let (mut squares, mut products) = (DMatrix::zeros(inputs, inputs), DMatrix::zeros(inputs, hidden));
        let mut sum = DVector::zeros(hidden);
        for block in tokens.chunks(BLOCK) {
            let (x, y) = (with_one(self.normalized(block)), target.outputs(block));
            squares.gemm(1.0, &x, &x.transpose(), 1.0);
            products.gemm(1.0, &x, &y.transpose(), 1.0);
            sum += y.column_sum();
        }
        squares += DMatrix::identity(inputs, inputs) * (RIDGE * tokens.len() as f64);
        let solved = squares.cholesky().ok_or_else(|| Error::internal("the normal equations are not definite"))?;
        let solution = solved.solve(&products); // [width + 1, hidden]
        self.linear = solution.rows(0, inputs - 1).transpose();
        self.offset = solution.row(inputs - 1).transpose();
        let mean = sum / tokens.len() as f64;
        let (mut left, mut all) = (0.0, 0.0);
        for block in tokens.chunks(BLOCK) {
            let wanted = target.outputs(block);
            left += (&wanted - self.outputs(block)).norm_squared();
            all += wanted.column_iter().map(|column: DVectorView<f64>| (column - &mean).norm_squared()).sum::<f64>();
        }
        Ok(if all > 0.0 { left / all } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ampoule::model::{HiddenState, Model};
    use ampoule::{Batch, ErrorKind};
    use burn::tensor::Device;

    use super::*;

    const TEXTS: [&str; 2] = ["The patient was given aspirin, 0.4 mg of it", "pain of the joints, arthritis 20%"];

    fn checkpoint(name: &str) -> Checkpoint {
        Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints").join(name))
            .unwrap()
    }

    /// What the layers read of the texts, a token after the other, and the logits of each token.
    fn computed(checkpoint: &Checkpoint) -> (Vec<Vec<f32>>, Vec<f32>) {
        let device = Device::flex();
        let model = Model::load(&checkpoint.config, &mut checkpoint.weights.clone(), &device).unwrap();
        let (mut read, mut logits) = (Vec::new(), Vec::new());
        for text in TEXTS {
            let ids: Vec<u32> =
                tokens(&checkpoint.tokenizer, &[text], 1000).unwrap().into_iter().map(|(id, _)| id as u32).collect();
            let batch = Batch::new(&[ids], checkpoint.config.pad_token_id);
            let states = model
                .hidden_states(&batch, &device, &mut None, &mut |state, x| {
                    if state == HiddenState::Layer(0) {
                        let values: Vec<f32> = x.clone().into_data().try_into_vec().unwrap();
                        read.extend(values.chunks(checkpoint.config.hidden_size).map(<[f32]>::to_vec));
                    }
                    Ok(())
                })
                .unwrap();
            logits.extend(model.logits(states, &mut None).unwrap().into_data().try_into_vec::<f32>().unwrap());
        }
        (read, logits)
    }

    fn apart(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    /// The model's own arithmetic gives the loss that is said, in every architecture.
    #[test]
    fn the_share_that_is_lost_is_what_the_model_loses() {
        for name in ["bert-token", "distilbert-token", "roberta-token", "electra-token", "bert-sequence"] {
            let before = checkpoint(name);
            let mut last = f64::INFINITY;
            for width in [4, 9, 14] {
                let (after, lost) = factorize_embeddings(&before, &TEXTS, width).unwrap();
                let ((wanted, _), (found, _)) = (computed(&before), computed(&after));
                let hidden = before.config.hidden_size;
                let mean: Vec<f64> = (0..hidden)
                    .map(|j| wanted.iter().map(|row| f64::from(row[j])).sum::<f64>() / wanted.len() as f64)
                    .collect();
                let (mut left, mut all) = (0.0, 0.0);
                for (wanted, found) in wanted.iter().zip(&found) {
                    for j in 0..hidden {
                        left += f64::from(wanted[j] - found[j]).powi(2);
                        all += (f64::from(wanted[j]) - mean[j]).powi(2);
                    }
                }
                assert!((left / all - lost).abs() < 1e-4, "{name}: {lost} said, {} found", left / all);
                assert!(lost < last, "{name}: {lost} at width {width}");
                last = lost;
            }
            assert!(last < 0.5, "{name}: {last}");
        }
    }

    /// Rows that lie in few dimensions, whose directions all matter alike, lose nothing.
    #[test]
    fn what_is_narrow_already_is_the_same_model() {
        let mut before = checkpoint("bert-token");
        let hidden = before.config.hidden_size;
        // Seven directions of no mean.
        let directions = cosines(hidden).columns(0, 7).into_owned();
        for name in ["word", "position", "token_type"] {
            let tensor = before.weights.0.get_mut(&format!("embeddings.{name}_embeddings.weight")).unwrap();
            let rows = DMatrix::from_iterator(hidden, tensor.shape[0], tensor.data.iter().map(|&x| f64::from(x)));
            let flat = &directions * (directions.transpose() * rows);
            tensor.data = flat.iter().map(|&x| x as f32).collect();
        }
        before.weights.0.get_mut("embeddings.LayerNorm.weight").unwrap().data.fill(1.5);
        let (after, lost) = factorize_embeddings(&before, &TEXTS, 8).unwrap();
        assert!(lost < 1e-8, "{lost}");
        assert!(apart(&computed(&before).1, &computed(&after).1) < 1e-3);
        assert!(factorize_embeddings(&before, &TEXTS, 7).unwrap().1 > 1e-4);
    }

    #[test]
    fn widths_that_cannot_be_are_refused() {
        for (name, most) in [("bert-token", 31), ("electra-token", 15)] {
            for width in [0, 1, most + 1, 64] {
                let error = factorize_embeddings(&checkpoint(name), &TEXTS, width).unwrap_err();
                assert!(error.kind() == ErrorKind::InvalidInput && error.to_string().contains(&format!("2 to {most}")));
            }
        }
        let error = factorize_embeddings(&checkpoint("bert-token"), &[], 8).unwrap_err();
        assert!(error.to_string().contains("no text"), "{error}");
    }

    #[test]
    fn cosines_are_orthonormal_and_have_no_mean() {
        for n in [2, 3, 16, 129] {
            let all = cosines(n);
            assert!((all.transpose() * &all - DMatrix::identity(n - 1, n - 1)).norm() < 1e-9);
            assert!(all.row_sum().norm() < 1e-9);
        }
    }
}
