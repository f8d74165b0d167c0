//! Weights on the host, by name.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};

use super::config::ModelConfig;
use crate::bundle::{SharedBytes, dequantize_rows};
use crate::error::{Error, Result};
use crate::kernels::Matrix;

/// Where a model takes its weights from: a bundle, a checkpoint, or memory.
pub trait WeightSource {
    /// Takes the tensor `name` (BERT's name without its prefix; linear weights are `[out, in]`), whose shape has to be
    /// `shape`, as `f32` in row-major order.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) where it is missing, has another shape, or holds a value that is not
    /// finite.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>>;

    /// The same, as the source holds it.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    fn take_values(&mut self, name: &str, shape: &[usize]) -> Result<Values> {
        self.take(name, shape).map(Values::F32)
    }
}

/// The values of a tensor.
pub enum Values {
    /// Floats.
    F32(Vec<f32>),
    /// Integers with their scales.
    Int8(Int8),
}

/// A matrix of integers, as the [integer contract](crate::bundle#the-integer-contract) has it.
pub struct Int8 {
    /// In -127..=127, row-major.
    pub integers: Integers,
    /// One a row.
    pub scales: Vec<f32>,
    /// What the inputs are multiplied by before they are quantized, one a column; none for 1.
    pub pre_quant_scale: Option<Vec<f32>>,
}

/// Integers, of their own or in the memory of an open bundle, which they keep open.
pub struct Integers(Place);

enum Place {
    Owned(Vec<i8>),
    Shared(SharedBytes, Range<usize>),
}

impl Integers {
    /// `len` bytes from byte `begin` of `all`.
    pub(crate) fn shared(all: SharedBytes, begin: usize, len: usize) -> Self {
        Integers(Place::Shared(all, begin..begin + len))
    }
}

impl From<Vec<i8>> for Integers {
    fn from(integers: Vec<i8>) -> Self {
        Integers(Place::Owned(integers))
    }
}

impl Deref for Integers {
    type Target = [i8];

    fn deref(&self) -> &[i8] {
        match &self.0 {
            Place::Owned(integers) => integers,
            Place::Shared(all, range) => bytemuck::cast_slice(&(**all).as_ref()[range.clone()]),
        }
    }
}

impl Values {
    /// The floats that they are or stand for.
    pub fn into_floats(self) -> Vec<f32> {
        match self {
            Values::F32(values) => values,
            Values::Int8(Int8 { integers, scales, pre_quant_scale }) => {
                let mut data = dequantize_rows(&integers, &scales);
                if let Some(factors) = pre_quant_scale {
                    for row in data.chunks_mut(factors.len().max(1)) {
                        row.iter_mut().zip(&factors).for_each(|(x, factor)| *x *= factor);
                    }
                }
                data
            }
        }
    }
}

/// The embeddings of positions, `[positions, embedding]`, that of the one token type added.
pub(crate) fn take_positions(source: &mut dyn WeightSource, config: &ModelConfig) -> Result<Vec<f32>> {
    let (rows, width) = (config.max_position_embeddings, config.embedding_size);
    let mut positions = source.take("embeddings.position_embeddings.weight", &[rows, width])?;
    if config.type_vocab_size > 0 {
        let types = source.take("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, width])?;
        for row in positions.chunks_mut(width) {
            row.iter_mut().zip(&types).for_each(|(x, y)| *x += y);
        }
    }
    Ok(positions)
}

/// Linear layers that read the same, as one whose outputs are theirs in turn.
pub(crate) struct SideBySide {
    parts: Parts,
    pub(crate) bias: Vec<f32>,
    /// What the inputs are multiplied by before they are quantized, one a column; none for 1, and for floats.
    pub(crate) pre_quant_scale: Option<Vec<f32>>,
}

enum Parts {
    Int8(Vec<Int8>),
    F32(Vec<Vec<f32>>),
}

impl SideBySide {
    /// Takes those of these names. Integers stay integers where all are.
    pub(crate) fn take(source: &mut dyn WeightSource, names: &[&str], outputs: usize, inputs: usize) -> Result<Self> {
        let (mut all, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            all.push(source.take_values(&format!("{name}.weight"), &[outputs, inputs])?);
            bias.extend(source.take(&format!("{name}.bias"), &[outputs])?);
        }
        if all.iter().any(|values| matches!(values, Values::F32(_))) {
            let parts = Parts::F32(all.into_iter().map(Values::into_floats).collect());
            return Ok(SideBySide { parts, bias, pre_quant_scale: None });
        }
        let integers = |values| match values {
            Values::Int8(integers) => Some(integers),
            Values::F32(_) => None,
        };
        let all: Vec<Int8> = all.into_iter().filter_map(integers).collect();
        let pre_quant_scale = all.first().and_then(|part| part.pre_quant_scale.clone());
        if all.iter().any(|part| part.pre_quant_scale != pre_quant_scale) {
            return Err(Error::corrupt(format!("the weights of {} have different pre_quant_scales", names.join(", "))));
        }
        Ok(SideBySide { parts: Parts::Int8(all), bias, pre_quant_scale })
    }

    pub(crate) fn matrix(&self) -> Matrix<'_> {
        match &self.parts {
            Parts::Int8(parts) => {
                Matrix::Int8(parts.iter().map(|part| (&*part.integers, part.scales.as_slice())).collect())
            }
            Parts::F32(parts) => Matrix::F32(parts.iter().map(Vec::as_slice).collect()),
        }
    }
}

/// A tensor on the host.
#[derive(Clone, PartialEq)]
pub struct HostTensor {
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub data: Vec<f32>,
}

impl std::fmt::Debug for HostTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostTensor({:?})", self.shape)
    }
}

/// A model's tensors on the host, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights(pub BTreeMap<String, HostTensor>);

impl WeightSource for Weights {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.0.remove(name).ok_or_else(|| Error::corrupt(format!("tensor {name:?} is missing")))?;
        if tensor.shape != shape {
            return Err(Error::corrupt(format!("tensor {name:?}: expected {shape:?}, found {:?}", tensor.shape)));
        }
        if tensor.data.len() != shape.iter().product::<usize>() {
            let found = tensor.data.len();
            return Err(Error::corrupt(format!("tensor {name:?}: expected {shape:?}, found {found} values")));
        }
        check_finite(name, &tensor.data)?;
        Ok(tensor.data)
    }
}

/// Refuses weights that hold NaN or an infinity.
pub(crate) fn check_finite(name: &str, data: &[f32]) -> Result<()> {
    match data.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::corrupt(format!(
            "tensor {name:?}: element {at} is {}; weights must be finite, so fetch or export the file again",
            data[at]
        ))),
    }
}

/// The transpose of a row-major `[rows, columns]` matrix.
pub(crate) fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // Blocks keep both sides in cache; a plain double loop is several times slower on embeddings.
    const BLOCK: usize = 32;
    let mut out = vec![0.0; data.len()];
    for r0 in (0..rows).step_by(BLOCK) {
        for c0 in (0..columns).step_by(BLOCK) {
            for r in r0..(r0 + BLOCK).min(rows) {
                for c in c0..(c0 + BLOCK).min(columns) {
                    out[c * rows + r] = data[r * columns + c];
                }
            }
        }
    }
    out
}
