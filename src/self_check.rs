//! A model proves itself: what it computes here, beside the [golden cases](Golden) of its bundle.

use serde::Serialize;

use crate::batch::Batch;
use crate::bundle::{Bundle, BundleWeights, Golden, Precision};
use crate::device::{Engine, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Kernel;
use crate::model::{ModelConfig, Output, Task, WeightSource};
use crate::options::Options;

/// How near a model came to the golden cases of its bundle.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SelfCheck {
    /// The cases; each was computed by itself, with all others together, and again after them.
    pub cases: usize,
    /// The answers that were compared.
    pub reference: Reference,
    /// The largest difference of a value, as a share of its answer's largest magnitude where that is over 1.
    pub largest_difference: f32,
    /// The root of the mean of their squares, which may be a tenth of what a single one may.
    pub rms_difference: f32,
    /// The largest that is right of a value.
    pub allowed: f32,
}

/// Which answers of a golden case a device has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reference {
    /// Those under the [integer contract](crate::bundle#the-integer-contract).
    Integers,
    /// Those of weights and activations as floats.
    Floats,
    /// The same, where what is compared was computed in f16.
    HalfFloats,
}

impl Reference {
    /// Those of a bundle in this precision, computed in this place.
    pub(crate) fn of(place: &Place, precision: Precision) -> Self {
        match (place, precision) {
            (Place::Kernel(_), Precision::Int8) => Reference::Integers,
            _ => Reference::Floats,
        }
    }

    /// The largest difference that is right. Kernels differ in the last digits of floats; where these are rounded to integers next, some
    /// fall to the other side, and what follows is rounded otherwise too: by as much, in the end, as rounding costs at all.
    fn allowed(self, golden: &Golden) -> f32 {
        match self {
            Reference::Integers => {
                let (mut squares, mut values) = (0f64, 0usize);
                for case in &golden.cases {
                    let differences =
                        case.integers.iter().zip(&case.floats).map(|(i, f)| (i - f) / scale(&case.integers));
                    squares += differences.map(|difference| f64::from(difference).powi(2)).sum::<f64>();
                    values += case.integers.len();
                }
                let rounding = (squares / values.max(1) as f64).sqrt() as f32;
                (15.0 * rounding).clamp(Reference::Floats.allowed(golden), MOST)
            }
            Reference::Floats => 1e-3,
            Reference::HalfFloats => 2e-2,
        }
    }
}

/// The most that integers may be off, however much rounding costs a model.
const MOST: f32 = 0.25;

/// What differences of an answer are measured by.
fn scale(answer: &[f32]) -> f32 {
    answer.iter().fold(1f32, |most, x| most.max(x.abs()))
}

/// What is asked of a model for its golden cases.
pub(crate) fn wanted(config: &ModelConfig) -> Output {
    match config.task {
        Task::Encoder => Output::States,
        _ => Output::Logits,
    }
}

/// The answer in a sequence's output.
fn answer(config: &ModelConfig, output: &[f32]) -> Vec<f32> {
    if config.task != Task::Encoder {
        return output.to_vec();
    }
    let width = config.hidden_size;
    let tokens = (output.len() / width).max(1) as f64;
    let mean = |column: usize| output.iter().skip(column).step_by(width).map(|&x| f64::from(x)).sum::<f64>() / tokens;
    (0..width).map(|column| mean(column) as f32).collect()
}

/// What is computed beside the golden cases, batch by batch.
pub(crate) struct Comparison<'a> {
    golden: &'a Golden,
    config: &'a ModelConfig,
    reference: Reference,
    allowed: f32,
    largest: f32,
    squares: f64,
    values: usize,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(golden: &'a Golden, config: &'a ModelConfig, reference: Reference) -> Self {
        let allowed = reference.allowed(golden);
        Comparison { golden, config, reference, allowed, largest: 0.0, squares: 0.0, values: 0 }
    }

    /// The batches that have to be computed, in this order, each by the numbers of its cases: errors of a device's second answer show only then.
    pub(crate) fn batches(&self) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..self.golden.cases.len()).collect();
        let backwards: Vec<usize> = all.iter().rev().copied().collect();
        let alone = |cases: &[usize]| cases.iter().map(|&case| vec![case]).collect::<Vec<_>>();
        [alone(&all), vec![backwards.clone()], alone(&backwards)].concat()
    }

    pub(crate) fn batch(&self, cases: &[usize]) -> Batch {
        let sequences: Vec<&[u32]> = cases.iter().map(|&i| self.golden.cases[i].ids.as_slice()).collect();
        Batch::new(&sequences, self.config.pad_token_id)
    }

    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where an output differs.
    pub(crate) fn compare(&mut self, cases: &[usize], outputs: &[Vec<f32>]) -> Result<()> {
        for (&i, output) in cases.iter().zip(outputs) {
            let case = &self.golden.cases[i];
            let expected = match self.reference {
                Reference::Integers => &case.integers,
                Reference::Floats | Reference::HalfFloats => &case.floats,
            };
            let found = answer(self.config, output);
            let scale = scale(expected);
            let wrong = |what: String| {
                wrong(format!("golden case {i} ({} tokens, {} at once): {what}", case.ids.len(), cases.len()))
            };
            if found.len() != expected.len() {
                return Err(wrong(format!("expected {} values, found {}", expected.len(), found.len())));
            }
            for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
                let difference = (found - expected).abs() / scale;
                if difference.is_nan() || difference > self.allowed {
                    return Err(wrong(format!("value {at}: expected {expected}, found {found}")));
                }
                self.largest = self.largest.max(difference);
                self.squares += f64::from(difference).powi(2);
            }
            self.values += found.len();
        }
        Ok(())
    }

    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where outputs differ by too much on the whole.
    pub(crate) fn finish(self) -> Result<SelfCheck> {
        let Comparison { golden, reference, allowed, largest, squares, values, .. } = self;
        let rms = (squares / values.max(1) as f64).sqrt() as f32;
        if rms > allowed / 10.0 {
            return Err(wrong(format!(
                "golden cases: a root mean square difference of {rms:.1e}, at most {:.0e} is right",
                allowed / 10.0
            )));
        }
        let cases = golden.cases.len();
        Ok(SelfCheck { cases, reference, largest_difference: largest, rms_difference: rms, allowed })
    }
}

fn wrong(what: String) -> Error {
    Error::new(ErrorKind::DeviceUnavailable, what)
}

/// A bundle's weights, all of them floats.
struct Widened<'a>(BundleWeights<'a>);

impl WeightSource for Widened<'_> {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.0.take(name, shape)
    }
}

impl Golden {
    /// Golden cases for a bundle, answered by the plain kernel: the same bits on every machine.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) where an answer is not finite; those of a file that can no longer be read.
    pub fn answered(bundle: &Bundle) -> Result<Self> {
        let config = bundle.config();
        let mut golden = Golden::unanswered(config, bundle.precision());
        let engine = Engine::start(&Options { kernel: Some("scalar".to_owned()), ..Options::default() })?;
        let kernel = Kernel::by_name("scalar").ok_or_else(|| Error::internal("the plain kernel is not there"))?;
        let compute = |source: &mut (dyn WeightSource + Send)| -> Result<Vec<Vec<f32>>> {
            engine.install(|| {
                let model = engine.packed(config, source, kernel)?;
                let mut answers = Vec::new();
                for case in &golden.cases {
                    let batch = Batch::new(&[&case.ids], config.pad_token_id);
                    let outputs = model.outputs(&batch, wanted(config), &mut || Ok(()))?;
                    answers.extend(outputs.iter().map(|output| answer(config, output)));
                }
                match answers.iter().flatten().all(|x| x.is_finite()) {
                    true => Ok(answers),
                    false => Err(Error::internal("the model's answers are not finite; its weights are unsound")),
                }
            })
        };
        let floats = compute(&mut Widened(bundle.weights()))?;
        let integers = match bundle.precision() {
            Precision::Int8 => compute(&mut bundle.weights())?,
            _ => vec![Vec::new(); floats.len()],
        };
        for ((case, floats), integers) in golden.cases.iter_mut().zip(floats).zip(integers) {
            (case.floats, case.integers) = (floats, integers);
        }
        Ok(golden)
    }
}
