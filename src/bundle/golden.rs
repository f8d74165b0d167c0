//! Golden cases: what a bundle's model answers to a few sequences that mean nothing, so that a device can prove itself on them.

use super::{Bundle, Dtype, Precision, check, f32s};
use crate::error::{Error, Result};
use crate::kernels::{STEP, mix};
use crate::model::{ModelConfig, Task};

/// The most tokens of all cases, each as long as the longest: computing them together takes no more memory than a long note.
pub const MAX_GOLDEN_TOKENS: usize = 4096;

/// Tokens of the cases that are written, as far as the model takes so many: below and above what kernels take at once.
const LENGTHS: [usize; 4] = [3, 16, 33, 130];

/// Sequences of token ids with the answers of a bundle's model, which stand in the bundle.
///
/// An answer is what the head gives, `[tokens, labels]` or `[labels]`, or of an encoder the mean of the last hidden states, `[hidden]`. It
/// is known twice: under the [integer contract](super#the-integer-contract), and with weights widened to f32 and activations that stay f32,
/// as GPUs and Burn's back ends compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    pub(crate) cases: Vec<GoldenCase>,
}

/// One sequence. Its ids are of no text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GoldenCase {
    pub(crate) ids: Vec<u32>,
    /// Under the integer contract; empty where no matrix is int8.
    pub(crate) integers: Vec<f32>,
    pub(crate) floats: Vec<f32>,
}

impl Golden {
    /// The cases of a model of this shape, their answers zeros.
    pub fn unanswered(config: &ModelConfig, precision: Precision) -> Self {
        let lengths = LENGTHS.iter().map(|&n| n.min(config.max_tokens()));
        let cases = lengths.zip(1u64..).map(|(tokens, case)| {
            let draws = (0u64..).map(|i| mix((case << 32 | i).wrapping_mul(STEP)) % config.vocab_size.max(1) as u64);
            let ids = draws.filter(|&id| id != config.pad_token_id as u64 || config.vocab_size < 2);
            let zeros = vec![0.0; values(config, tokens)];
            let integers = if precision == Precision::Int8 { zeros.clone() } else { Vec::new() };
            GoldenCase { ids: ids.take(tokens).map(|id| id as u32).collect(), integers, floats: zeros }
        });
        Golden { cases: cases.collect() }
    }

    /// Those that stand in a bundle, if any do.
    pub(crate) fn read(bundle: &Bundle) -> Result<Option<Self>> {
        let Some(tensor) = bundle.info.tensor(check::GOLDEN_IDS) else { return Ok(None) };
        let (config, precision) = (bundle.config(), bundle.precision());
        let wrong = |name: &str, what: &str| {
            Error::corrupt(format!("bundle tensor {name:?}: expected {what}; fetch or make the file again"))
        };
        if tensor.dtype != Dtype::U8 || tensor.bytes % 4 != 0 || tensor.bytes > 8 * MAX_GOLDEN_TOKENS {
            return Err(wrong(check::GOLDEN_IDS, "a few numbers of four bytes, U8"));
        }
        let (_, bytes) = bundle.tensor(check::GOLDEN_IDS)?;
        let numbers: Vec<u32> = bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
        let mut cases = Vec::new();
        let mut rest = numbers.as_slice();
        while let Some((&count, others)) = rest.split_first() {
            let ids = others.get(..count as usize).unwrap_or_default();
            let takes = 1..=config.max_tokens();
            if !takes.contains(&ids.len()) || ids.iter().any(|&id| id as usize >= config.vocab_size) {
                return Err(wrong(check::GOLDEN_IDS, "sequences of ids that the model takes"));
            }
            cases.push(GoldenCase { ids: ids.to_vec(), integers: Vec::new(), floats: Vec::new() });
            rest = &others[ids.len()..];
        }
        let longest = cases.iter().map(|case| case.ids.len()).max().unwrap_or(0);
        if cases.is_empty() || cases.len() * longest > MAX_GOLDEN_TOKENS {
            return Err(wrong(check::GOLDEN_IDS, "a few short sequences"));
        }
        let mut answers = |name: &str, of: fn(&mut GoldenCase) -> &mut Vec<f32>| {
            let (tensor, bytes) = bundle.tensor(name)?;
            let mut all = f32s(&bytes);
            for case in &mut cases {
                let n = values(config, case.ids.len());
                of(case).extend(all.by_ref().take(n).filter(|x| x.is_finite()));
            }
            let is_whole =
                all.next().is_none() && cases.iter_mut().all(|case| of(case).len() == values(config, case.ids.len()));
            match tensor.dtype == Dtype::F32 && is_whole {
                true => Ok(()),
                false => Err(wrong(name, "the finite answers to the golden ids, F32")),
            }
        };
        answers(check::GOLDEN_FLOATS, |case| &mut case.floats)?;
        if precision == Precision::Int8 {
            answers(check::GOLDEN_INTEGERS, |case| &mut case.integers)?;
        }
        Ok(Some(Golden { cases }))
    }

    /// The tensors that hold them: name, type, and bytes.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&'static str, Dtype, Vec<u8>)> {
        let numbers =
            self.cases.iter().flat_map(|case| std::iter::once(case.ids.len() as u32).chain(case.ids.iter().copied()));
        let floats = |of: fn(&GoldenCase) -> &[f32]| {
            self.cases.iter().flat_map(of).flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()
        };
        [
            (check::GOLDEN_IDS, Dtype::U8, numbers.flat_map(u32::to_le_bytes).collect()),
            (check::GOLDEN_FLOATS, Dtype::F32, floats(|case| &case.floats)),
            (check::GOLDEN_INTEGERS, Dtype::F32, floats(|case| &case.integers)),
        ]
        .into_iter()
        .filter(|(_, _, bytes)| !bytes.is_empty())
    }
}

/// Values of the answer to so many tokens.
fn values(config: &ModelConfig, tokens: usize) -> usize {
    match config.task {
        Task::TokenClassification => tokens * config.id2label.len(),
        Task::SingleLabel | Task::MultiLabel => config.id2label.len(),
        Task::Encoder => config.hidden_size,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ErrorKind;
    use crate::bundle::{BundleSpec, Load, Metadata, write};
    use crate::model::{HostTensor, Weights};

    /// What would take gigabytes to compute at once is refused when it is read.
    #[test]
    fn cases_that_are_many_or_long_are_refused() {
        let config = ModelConfig::from_json(&serde_json::json!({
            "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 3000,
        }));
        let config = config.unwrap();
        let tensors = config.tensors().into_iter().map(|(name, shape)| {
            let data = vec![0.5; shape.iter().product()];
            (name, HostTensor { shape, data })
        });
        let weights = Weights(tensors.collect());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle");
        let read = |lengths: &[usize]| {
            let case = |&n: &usize| GoldenCase { ids: vec![1; n], integers: Vec::new(), floats: vec![0.0; 8] };
            let golden = Golden { cases: lengths.iter().map(case).collect() };
            let spec = BundleSpec {
                metadata: &Metadata::new(config.clone(), Precision::F32),
                weights: &weights,
                tokenizer_json: b"{}",
                wider: &BTreeMap::new(),
                pre_quant_scales: &BTreeMap::new(),
                card: None,
                golden: Some(&golden),
            };
            write(&path, &spec).unwrap();
            Golden::read(&Bundle::open(&path, Load::Copy, true).unwrap())
        };
        assert_eq!(read(&[3, 1000, 1000, 7]).unwrap().unwrap().cases.len(), 4);
        for lengths in [[1; 600].as_slice(), &[2000, 1, 1], &[3000, 3000]] {
            let is_refused = lengths.len() * lengths.iter().max().unwrap() > MAX_GOLDEN_TOKENS;
            match read(lengths) {
                Err(error) => assert!(is_refused && error.kind() == ErrorKind::Corrupt, "{error}"),
                Ok(_) => assert!(!is_refused, "{lengths:?}"),
            }
        }
    }
}
