//! Factors by which a layer's inputs are made alike before they are quantized (SmoothQuant, Xiao et al. 2022).
//!
//! A few columns of what a BERT-like layer norm gives are tens of times as large as the others, which are left with a few integers
//! each, since a token's values share one scale. A factor for each column takes some of its size out of the inputs and into the
//! weights, which are quantized row by row and have room for it. Layer norm cannot take the factors in, since what it gives is the
//! residual too: they stand in the bundle, and the kernels multiply by them.

use std::collections::BTreeMap;

use ampoule::bundle::with_same_inputs;
use ampoule::model::{HiddenState, Model, ModelConfig, Weights};
use ampoule::text::Tokenizer;
use ampoule::{Batch, Error, Result};
use burn::tensor::Device;

/// How much of the inputs' unevenness goes to the weights: α of the paper, `factor = weights^(1-α) / inputs^α`. Chosen on MiniLM-L6 for
/// the cosine of its sentence vectors with those in f32. The inputs of the other layers are even, or gained nothing.
const ATTENTION: f32 = 0.9;
const INTERMEDIATE: f32 = 0.6;

/// The most tokens of a calibration text.
const MAX_TOKENS: usize = 128;
/// Texts computed at once.
const BATCH: usize = 16;

/// What the inputs of the layers after a layer norm should be multiplied by, one a column, by the names of their weights, as the
/// model computes `texts`. Nothing for no texts.
///
/// # Errors
/// [`Corrupt`](ampoule::ErrorKind::Corrupt) where model and tokenizer do not belong together; those of the model.
pub fn smooth<S: AsRef<str>>(
    config: &ModelConfig,
    weights: &Weights,
    tokenizer: &Tokenizer,
    texts: &[S],
) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut factors = BTreeMap::new();
    for (point, inputs) in largest(config, weights, tokenizer, texts)? {
        let (names, alpha) = match point {
            HiddenState::Layer(i) if i < config.num_hidden_layers => {
                (with_same_inputs(&format!("encoder.layer.{i}.attention.self.query.weight")), ATTENTION)
            }
            HiddenState::Layer(_) | HiddenState::Query(_) | HiddenState::Key(_) | HiddenState::Value(_) => continue,
            HiddenState::Attention(i) => {
                (vec![format!("encoder.layer.{}.intermediate.dense.weight", i - 1)], INTERMEDIATE)
            }
        };
        let rows = names.iter().filter_map(|name| weights.0.get(name)).flat_map(|w| w.data.chunks(inputs.len().max(1)));
        let mut columns = vec![0.0f32; inputs.len()];
        rows.for_each(|row| columns.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs())));
        let of_layer = balanced(&inputs, &columns, alpha);
        factors.extend(names.into_iter().map(|name| (name, of_layer.clone())));
    }
    Ok(factors)
}

/// `weights^(1-α) / inputs^α` of each column, at a geometric mean of 1.
fn balanced(inputs: &[f32], weights: &[f32], alpha: f32) -> Vec<f32> {
    // A column that the texts never fill is no reason for a factor out of all bounds.
    const LEAST: f32 = 1e-5;
    let log = |x: &f32| x.max(LEAST).ln();
    let logs: Vec<f32> = inputs.iter().zip(weights).map(|(x, w)| (1.0 - alpha) * log(w) - alpha * log(x)).collect();
    let mean = logs.iter().sum::<f32>() / logs.len().max(1) as f32;
    logs.iter().map(|log| (log - mean).exp()).collect()
}

/// The largest magnitude in each column of what the model computes at each point.
fn largest<S: AsRef<str>>(
    config: &ModelConfig,
    weights: &Weights,
    tokenizer: &Tokenizer,
    texts: &[S],
) -> Result<Vec<(HiddenState, Vec<f32>)>> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    if tokenizer.max_id() as usize >= config.vocab_size {
        return Err(Error::corrupt(format!(
            "the tokenizer gives ids up to {}, but the word embedding has {} rows; they do not belong together",
            tokenizer.max_id(),
            config.vocab_size
        )));
    }
    let device = Device::flex();
    let model = Model::load(config, &mut weights.clone(), &device)?;
    let mut found: Vec<(HiddenState, Vec<f32>)> = Vec::new();
    for texts in texts.chunks(BATCH) {
        let mut sequences = Vec::new();
        for text in texts {
            let mut ids: Vec<u32> = tokenizer.encode(text.as_ref())?.iter().map(|token| token.id).collect();
            ids.truncate(MAX_TOKENS.min(config.max_tokens()) - 2);
            ids.insert(0, tokenizer.cls_id());
            ids.push(tokenizer.sep_id());
            sequences.push(ids);
        }
        let batch = Batch::new(&sequences, config.pad_token_id);
        model.hidden_states(&batch, &device, &mut None, &mut |point, state| {
            if !matches!(point, HiddenState::Layer(_) | HiddenState::Attention(_)) {
                return Ok(()); // no linear layer reads it
            }
            let [_, seq, width] = state.dims();
            let values = state.clone().into_data_as::<f32>().try_into_vec::<f32>();
            let values = values.map_err(|_| Error::internal("hidden states are no floats"))?;
            let at = found.iter().position(|(p, _)| *p == point).unwrap_or_else(|| {
                found.push((point, vec![0.0; width]));
                found.len() - 1
            });
            for (rows, &n) in values.chunks(seq * width).zip(batch.lengths()) {
                for row in rows.chunks(width).take(n) {
                    found[at].1.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
                }
            }
            Ok(())
        })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_even_out_what_is_uneven() {
        let (inputs, weights) = ([100.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.01, 1.0]);
        for alpha in [0.0, 0.5, 1.0] {
            let factors = balanced(&inputs, &weights, alpha);
            assert!(factors.iter().all(|f| f.is_normal() && *f > 0.0));
            assert!((factors.iter().map(|f| f.ln()).sum::<f32>()).abs() < 1e-3);
            // The ratio of two columns' factors is that of the weights to 1-α by that of the inputs to α.
            let ratio = (1.0f32 / 1.0).powf(1.0 - alpha) / 100.0f32.powf(alpha);
            assert!((factors[0] / factors[1] / ratio - 1.0).abs() < 1e-4, "{alpha}: {factors:?}");
        }
        let even = balanced(&[3.0; 4], &[2.0; 4], 0.7);
        assert!(even.iter().all(|f| (f - 1.0).abs() < 1e-6));
    }
}
