//! What a precision cost, matrix by matrix.

use ampoule::bundle::{Bundle, Dtype, Precision};
use ampoule::model::{Int8, Values, WeightSource, Weights};
use ampoule::{Error, Result};
use serde::Serialize;

/// What a bundle's precision cost.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The precision asked for.
    pub precision: Precision,
    /// Bytes of the weights in f32.
    pub bytes_before: u64,
    /// Bytes of the bundle, tokenizer and header included.
    pub bytes_after: u64,
    /// Every matrix, by name. Vectors are kept in f32, exactly.
    pub tensors: Vec<TensorReport>,
    /// The task metric, where one was measured.
    pub metric: Option<MetricChange>,
    /// The temperature.
    pub temperature: TemperatureChange,
}

/// What the precision of one matrix `W` cost; `Ŵ` is what the device reads.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// How it is kept.
    pub precision: Precision,
    /// Whether its inputs are multiplied by factors before they are quantized.
    pub smoothed: bool,
    /// Its shape.
    pub shape: Vec<usize>,
    /// `‖W − Ŵ‖ / ‖W‖` (Frobenius norms); 0 where `W` is zero.
    pub relative_error: f64,
    /// `max |W − Ŵ|`.
    pub max_error: f64,
    /// `⟨W, Ŵ⟩ / (‖W‖ ‖Ŵ‖)`; 1 where both are zero.
    pub cosine: f64,
}

/// A task metric before and after.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MetricChange {
    /// That of the model as it was.
    pub before: f64,
    /// That of the bundle.
    pub after: f64,
    /// `before - after`.
    pub loss: f64,
}

/// A temperature before and after; the same where none was fitted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TemperatureChange {
    /// That of the model as it was.
    pub before: f32,
    /// That of the bundle.
    pub after: f32,
}

impl Report {
    /// Compares `weights` with what `written` keeps of them.
    pub(crate) fn compare(weights: &Weights, written: &Bundle) -> Result<Self> {
        let temperature = written.metadata().temperature;
        let mut bytes_before = 0;
        let mut tensors = Vec::new();
        for (name, tensor) in &weights.0 {
            bytes_before += 4 * tensor.data.len() as u64;
            if tensor.shape.len() != 2 {
                continue;
            }
            let kept = written.info().tensors.iter().find(|t| t.name == *name);
            let precision = match kept.map(|t| t.dtype) {
                Some(Dtype::F32) => Precision::F32,
                Some(Dtype::F16) => Precision::F16,
                Some(Dtype::I8) => Precision::Int8,
                Some(Dtype::U8) | None => return Err(Error::internal(format!("the bundle has no matrix {name:?}"))),
            };
            let read = written.weights().take_values(name, &tensor.shape)?;
            let smoothed = matches!(&read, Values::Int8(Int8 { pre_quant_scale: Some(_), .. }));
            let read = read.into_floats();
            let report = TensorReport::compare(name, precision, &tensor.shape, &tensor.data, &read);
            tensors.push(TensorReport { smoothed, ..report });
        }
        Ok(Report {
            precision: written.precision(),
            bytes_before,
            bytes_after: written.info().bytes,
            tensors,
            metric: None,
            temperature: TemperatureChange { before: temperature, after: temperature },
        })
    }

    /// The `count` matrices of the largest relative error, the worst first.
    pub fn worst(&self, count: usize) -> impl Iterator<Item = &TensorReport> {
        let mut sorted: Vec<&TensorReport> = self.tensors.iter().collect();
        sorted.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error));
        sorted.into_iter().take(count)
    }
}

impl TensorReport {
    fn compare(name: &str, precision: Precision, shape: &[usize], original: &[f32], read: &[f32]) -> Self {
        let (mut of_original, mut of_read, mut of_error, mut product, mut max_error) = (0.0, 0.0, 0.0, 0.0, 0.0f64);
        for (&w, &r) in original.iter().zip(read) {
            let (w, r) = (f64::from(w), f64::from(r));
            of_original += w * w;
            of_read += r * r;
            of_error += (w - r) * (w - r);
            product += w * r;
            max_error = max_error.max((w - r).abs());
        }
        let ratio = |a: f64, b: f64, otherwise: f64| if b > 0.0 { a / b } else { otherwise };
        TensorReport {
            name: name.to_owned(),
            precision,
            smoothed: false,
            shape: shape.to_vec(),
            relative_error: ratio(of_error.sqrt(), of_original.sqrt(), 0.0),
            max_error,
            cosine: ratio(product, (of_original * of_read).sqrt(), if of_error > 0.0 { 0.0 } else { 1.0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_known_matrices() {
        let report = |w: &[f32], r: &[f32]| TensorReport::compare("w", Precision::Int8, &[1, 2], w, r);
        let t = report(&[3.0, 4.0], &[3.0, 4.0]);
        assert_eq!((t.relative_error, t.max_error, t.cosine), (0.0, 0.0, 1.0));
        let t = report(&[3.0, 4.0], &[4.0, -3.0]);
        assert!((t.relative_error - 50f64.sqrt() / 5.0).abs() < 1e-12);
        assert_eq!((t.max_error, t.cosine), (7.0, 0.0));
        let t = report(&[0.0, 0.0], &[0.0, 0.0]);
        assert_eq!((t.relative_error, t.cosine), (0.0, 1.0));
        let t = report(&[0.0, 1e-30], &[0.0, 0.0]);
        assert_eq!((t.relative_error, t.cosine), (1.0, 0.0));
    }
}
