//! Narrower embeddings, projected to the hidden states' width.

use ampoule::model::HostTensor;
use ampoule::text::Tokenizer;
use ampoule::{Checkpoint, Error, ModelType, Result};
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
/// components of `y` over the texts, so that the new layer norm, whose inputs are about as long as those of the old one, takes
/// their place in the old one's directions. It takes away the mean of its inputs: `R` writes `width - 1` components, through cosines, each of
/// which has no mean and spreads a component over all values, as int8 wants them. The projection is the least squares fit of `y`.
///
/// All but the embeddings stays as it is, weights and head; the non-linearity within a head for whole texts becomes ELECTRA's.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where `width` is less than 2 or not less than that of the embeddings and of the
/// hidden states, and where the texts have no token to fit on.
pub fn factorize_embeddings(checkpoint: &Checkpoint, texts: &[&str], width: usize) -> Result<(Checkpoint, f64)> {
    let config = &checkpoint.config;
    let most = config.embedding_size.min(config.hidden_size) - 1;
    if !(2..=most).contains(&width) {
        return Err(Error::invalid_input(format!(
            "embeddings {width} wide: expected 2 to {most}, narrower than they are"
        )));
    }
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

    let mut factorized = checkpoint.clone();
    factorized.config.model_type = ModelType::Electra;
    factorized.config.embedding_size = width;
    factorized.config.max_position_embeddings = new.positions.ncols();
    factorized.config.type_vocab_size = new.types.ncols();
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
fn cosines(n: usize) -> DMatrix<f64> {
    let angle = |i: usize, k: usize| std::f64::consts::PI * (i as f64 + 0.5) * (k + 1) as f64 / n as f64;
    DMatrix::from_fn(n, n - 1, |i, k| (2.0 / n as f64).sqrt() * angle(i, k).cos())
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
        let eigen = squares.symmetric_eigen();
        let mut order: Vec<usize> = (0..hidden).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        eigen.eigenvectors.select_columns(&order[..count])
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
