//! The one training loop: fine-tuning is distillation without a teacher.
//!
//! All randomness of a step is drawn from the run's seed and the step's number, so a run has no random state to save: what a
//! killed run needs to go on are its weights, its moments and the number of steps made.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ampoule::bundle::weights_sha256;
use ampoule::model::{Model, Noise, parameter_name};
use ampoule::{Batch, Checkpoint, Error, Options, Result};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::calibration::{TemperatureFit, fit_on_dev};
use crate::evaluate::dev_score;
use crate::losses::{Outputs, Role, Targets, Term, losses};
use crate::optimizer::{AdamW, NamedGradients, OptimizerState};
use crate::run::{Best, RunFolder, State, threads_of};
use crate::sequences::{Data, Epoch, Sequences};

/// How a run trains. Every field has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// From which everything random follows: order, runs of sentences, dropout.
    pub seed: u64,
    /// Times that the training texts are gone through.
    pub epochs: usize,
    /// The most sequences of a step.
    pub batch_size: usize,
    /// The most tokens of a step, padding counted.
    pub max_batch_tokens: usize,
    /// The most tokens of a sequence, special tokens counted; 0 for as many as the model has positions.
    pub window: usize,
    /// Share of an epoch's sentences that come in runs of consecutive ones, as a note's do, in place of one by one.
    pub runs: f64,
    /// Share of these runs that are as long as the window; the others are of every length up to it.
    pub full_runs: f64,
    /// Loss terms.
    pub terms: Vec<Term>,
    /// Optimizer.
    pub optimizer: AdamW,
    /// Dropout in place of the checkpoint's own probabilities.
    pub dropout: Option<f64>,
    /// Tensors whose names begin so are not trained.
    pub freeze: Vec<String>,
    /// Evaluations on the dev set in an epoch; the best one's weights are kept.
    pub evaluations_per_epoch: usize,
    /// Evaluations without a better score after which the run ends; 0 for never.
    pub patience: usize,
    /// Steps between two saved states.
    pub save_every: usize,
    /// Worker threads; 0 for as many as the run began with, and at first as the machine has cores, at most four.
    pub threads: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            seed: 1,
            epochs: 6,
            batch_size: 16,
            max_batch_tokens: 1024,
            window: 0,
            runs: 0.5,
            full_runs: 0.0,
            terms: vec![Term::Hard { weight: 1.0 }],
            optimizer: AdamW::default(),
            dropout: None,
            freeze: Vec::new(),
            evaluations_per_epoch: 1,
            patience: 0,
            save_every: 200,
            threads: 0,
        }
    }
}

/// One step, as it is logged.
#[derive(Clone, Debug, Serialize)]
pub struct StepLog {
    /// Steps made.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// The weighted sum of the terms.
    pub loss: f64,
    /// Each term's value, unweighted.
    pub terms: Map<String, serde_json::Value>,
    /// Learning rate.
    pub rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step, padding not counted.
    pub tokens: usize,
}

/// One evaluation on the dev set, as it is logged.
#[derive(Clone, Debug, Serialize)]
pub struct EvaluationLog {
    /// Steps made.
    pub step: usize,
    /// The score by which the best weights are chosen: micro F1 of entities, macro F1 of labels.
    pub dev_score: f64,
    /// Precision, for entities.
    pub precision: Option<f64>,
    /// Recall, for entities.
    pub recall: Option<f64>,
    /// Whether no earlier evaluation was better.
    pub best: bool,
}

/// Hears of a run's progress.
pub trait ProgressListener: Send {
    /// The run begins, or goes on, after `step` of `steps` steps.
    fn started(&mut self, step: usize, steps: usize);
    /// A step was made.
    fn step(&mut self, log: &StepLog);
    /// The dev set was evaluated.
    fn evaluated(&mut self, log: &EvaluationLog);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// All steps were made, or patience ran out; the best model is in the run folder's `model`.
    Finished {
        /// The best dev score.
        dev_score: f64,
        /// The step after which it was reached.
        step: usize,
        /// The temperature of `model`, fitted on the dev set, which is the one that the best weights were chosen by; none where the set
        /// does not determine one, and the temperature is 1.
        fit: Option<TemperatureFit>,
    },
    /// It was asked to stop; the same call goes on from here.
    Interrupted {
        /// Steps made.
        step: usize,
    },
}

/// Trains `student` on `data`, with `teacher` where a loss term needs one, in the folder `run`.
///
/// The folder holds `config.json`, `log.jsonl`, the state to resume from, the best weights so far and, at the end, `model`, a
/// Hugging Face folder. One process at a time trains in it. A call on a folder that holds a state of the same configuration
/// resumes from it, and ends with the same tensors as a run that was never broken. `stop` is looked at between steps.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for data or a configuration that cannot be trained on, a run folder of
/// another configuration, and a loss that is not finite; [`NotFound`](ampoule::ErrorKind::NotFound) where a file cannot be
/// written, in which case the files before are intact.
pub fn train(
    student: Checkpoint,
    teacher: Option<Checkpoint>,
    data: &Data,
    config: &TrainConfig,
    run: &Path,
    stop: &AtomicBool,
    listener: &mut dyn ProgressListener,
) -> Result<Outcome> {
    check(config, teacher.is_some())?;
    // A run goes on with the threads that it began with: sums depend on their number.
    let threads = match config.threads {
        0 => threads_of(run).unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(4))),
        n => n,
    };
    let config = &TrainConfig { threads, ..config.clone() };
    let workers = (0..threads).map(|_| pool(1)).collect::<Result<_>>()?;
    pool(threads)?.install(|| Trainer::new(student, teacher, data, config, run, workers)?.run(stop, listener))
}

/// Writes what a run of [`train`] with these arguments begins with to `folder`: `start`, the checkpoint, and `batches.jsonl`,
/// the steps of its first epoch. Another implementation of the training can repeat them: `examples/produce/reference.py` does.
///
/// The batches hold the texts as token ids: they are for public texts.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for data that cannot be trained on, or of labels of whole texts;
/// [`NotFound`](ampoule::ErrorKind::NotFound) where a file cannot be written.
pub fn dump_batches(student: &Checkpoint, data: &Data, config: &TrainConfig, folder: &Path) -> Result<()> {
    check(config, true)?;
    let sequences = Sequences::new(student, data, config)?;
    let steps =
        (0..config.epochs).map(|number| Ok(sequences.epoch(number, config)?.batches.len())).sum::<Result<usize>>()?;
    let epoch = sequences.epoch(0, config)?;
    let mut lines = String::new();
    for step in 0..epoch.batches.len() {
        let mut row = sequences.dump(&epoch, step).ok_or_else(|| {
            Error::invalid_input("only batches of entities can be written; these are labels of whole texts")
        })?;
        row.insert("step".to_owned(), json!(step + 1));
        row.insert("lr".to_owned(), json!(config.optimizer.rate(step, steps)));
        lines.push_str(&serde_json::Value::Object(row).to_string());
        lines.push('\n');
    }
    student.save(folder.join("start"))?;
    ampoule::checkpoint::write_aside(&folder.join("batches.jsonl"), lines.as_bytes())
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::internal(format!("cannot start {threads} threads: {e}")))
}

fn check(config: &TrainConfig, has_teacher: bool) -> Result<()> {
    let wrong = |what: &str| Err(Error::invalid_input(format!("configuration: {what}")));
    if config.epochs == 0 || config.batch_size == 0 || config.evaluations_per_epoch == 0 || config.save_every == 0 {
        return wrong("epochs, batch_size, evaluations_per_epoch and save_every must be at least 1");
    }
    if config.batch_size > 1 << 20 || config.max_batch_tokens > 1 << 30 {
        return wrong("batch_size must be at most 2^20, max_batch_tokens at most 2^30");
    }
    if config.threads > ampoule::MAX_THREADS {
        return wrong(&format!("threads must be at most {}", ampoule::MAX_THREADS));
    }
    if config.terms.is_empty() {
        return wrong("terms is empty; name at least one loss term");
    }
    if !(0.0..=1.0).contains(&config.runs) || !(0.0..=1.0).contains(&config.full_runs) {
        return wrong("runs and full_runs must be in 0..=1");
    }
    if config.dropout.is_some_and(|p| !(0.0..1.0).contains(&p)) {
        return wrong("dropout must be in 0..1");
    }
    if !(config.optimizer.learning_rate > 0.0 && config.optimizer.learning_rate.is_finite()) {
        return wrong("optimizer.learning_rate must be positive");
    }
    let needs_teacher = config.terms.iter().find(|t| t.needs_teacher());
    if let (Some(term), false) = (needs_teacher, has_teacher) {
        return wrong(&format!("the loss term {:?} needs a teacher", term.name()));
    }
    Ok(())
}

struct Trainer<'a> {
    config: &'a TrainConfig,
    data: &'a Data,
    /// One thread each.
    workers: Vec<rayon::ThreadPool>,
    /// All but its weights, which are the model's.
    student: Checkpoint,
    model: Model,
    teacher: Option<Model>,
    sequences: Sequences<'a>,
    /// Number of batches of each epoch.
    epochs: Vec<usize>,
    folder: RunFolder,
    optimizer: OptimizerState,
    step: usize,
    best: Option<Best>,
}

impl<'a> Trainer<'a> {
    fn new(
        mut student: Checkpoint,
        teacher: Option<Checkpoint>,
        data: &'a Data,
        config: &'a TrainConfig,
        run: &Path,
        workers: Vec<rayon::ThreadPool>,
    ) -> Result<Self> {
        if let Some(p) = config.dropout {
            student.config.hidden_dropout_prob = p;
            student.config.attention_probs_dropout_prob = p;
            student.config.classifier_dropout = Some(p);
        }
        let teacher_sha256 = teacher.as_ref().map(|teacher| weights_sha256(&teacher.weights));
        let teacher = teacher.map(|teacher| load_teacher(teacher, &student)).transpose()?;
        let sequences = Sequences::new(&student, data, config)?;
        let epochs = (0..config.epochs)
            .map(|epoch| Ok(sequences.epoch(epoch, config)?.batches.len()))
            .collect::<Result<Vec<_>>>()?;
        if epochs.iter().sum::<usize>() == 0 {
            return Err(Error::invalid_input("there is no text to train on"));
        }
        // What the run would otherwise be resumed with unnoticed: other texts, another start, another teacher.
        let identity = json!({
            "config": config,
            "student": student.config.to_json(),
            "student_sha256": weights_sha256(&student.weights),
            "teacher_sha256": teacher_sha256,
            "data_sha256": data.sha256(),
        });
        let folder = RunFolder::open(run, &identity)?;
        let (state, optimizer) = match folder.load_state()? {
            Some((state, weights, optimizer)) => {
                student.weights = weights;
                (state, optimizer)
            }
            None => (State::default(), OptimizerState::default()),
        };
        folder.truncate_log(state.step)?;
        let model = Model::load(&student.config, &mut student.weights, &Device::flex())?;
        Ok(Trainer {
            config,
            data,
            model,
            workers,
            student,
            teacher,
            sequences,
            epochs,
            folder,
            optimizer,
            step: state.step,
            best: state.best,
        })
    }

    fn run(mut self, stop: &AtomicBool, listener: &mut dyn ProgressListener) -> Result<Outcome> {
        let steps: usize = self.epochs.iter().sum();
        listener.started(self.step, steps);
        let mut first = 0;
        for (number, batches) in self.epochs.clone().into_iter().enumerate() {
            let last = first + batches;
            if self.step >= last {
                first = last;
                continue;
            }
            let epoch = self.sequences.epoch(number, self.config)?;
            while self.step < last {
                if self.is_out_of_patience() {
                    return self.finish();
                }
                if stop.load(Ordering::Relaxed) {
                    self.save()?;
                    return Ok(Outcome::Interrupted { step: self.step });
                }
                let log = self.make_step(&epoch, self.step - first, steps)?;
                self.folder.log(&json!({ "step": log }))?;
                listener.step(&log);
                if self.is_evaluation_due(first, batches) {
                    let log = self.evaluate()?;
                    self.folder.log(&json!({ "evaluation": log }))?;
                    listener.evaluated(&log);
                    self.save()?;
                } else if self.step.is_multiple_of(self.config.save_every) {
                    self.save()?;
                }
            }
            first = last;
        }
        self.finish()
    }

    /// Whether the step just made ends one of the epoch's equal parts.
    fn is_evaluation_due(&self, first: usize, batches: usize) -> bool {
        let parts = self.config.evaluations_per_epoch.min(batches);
        let done = self.step - first;
        (done * parts) / batches > ((done - 1) * parts) / batches
    }

    fn is_out_of_patience(&self) -> bool {
        let best = self.best.as_ref();
        self.config.patience > 0 && best.is_some_and(|best| best.since >= self.config.patience)
    }

    /// Computes the step's parts side by side, each on one thread, adds their gradients in order, and updates the model.
    fn make_step(&mut self, epoch: &Epoch, batch: usize, steps: usize) -> Result<StepLog> {
        let parts = self.sequences.batch(epoch, batch, self.workers.len());
        let seed = generator(self.config.seed, DROPOUT, self.step).random::<u64>();
        let this = &*self;
        let computed: Vec<Result<Part>> = std::thread::scope(|scope| {
            let running: Vec<_> = parts
                .iter()
                .zip(&this.workers)
                .enumerate()
                .map(|(i, ((batch, targets), worker))| {
                    let noise = Noise::new(seed.wrapping_add(i as u64));
                    scope.spawn(move || worker.install(|| this.compute(batch, targets, noise)))
                })
                .collect();
            running
                .into_iter()
                .map(|part| part.join().unwrap_or_else(|_| Err(Error::internal("a worker thread panicked"))))
                .collect()
        });
        let mut values = vec![0.0; self.config.terms.len()];
        let mut gradient = NamedGradients::default();
        for part in computed {
            let part = part?;
            values.iter_mut().zip(&part.terms).for_each(|(sum, x)| *sum += x);
            gradient.add(part.gradient);
        }
        let mut terms = Map::new();
        let mut loss = 0.0;
        for (term, &value) in self.config.terms.iter().zip(&values) {
            if !value.is_finite() {
                return Err(Error::invalid_input(format!(
                    "step {}: the loss term {:?} is {value}; lower the learning rate. The last saved state is intact",
                    self.step,
                    term.name()
                )));
            }
            loss += value * term.weight();
            terms.insert(term.name().to_owned(), json!(value));
        }
        let rate = self.config.optimizer.rate(self.step, steps);
        let gradient_norm = self
            .optimizer
            .update(&self.config.optimizer, rate, &mut self.model, gradient)
            .map_err(|e| e.context(format!("step {}", self.step)))?;
        self.step += 1;
        Ok(StepLog {
            step: self.step,
            steps,
            loss,
            terms,
            rate,
            gradient_norm,
            tokens: parts.iter().flat_map(|(batch, _)| batch.lengths()).sum(),
        })
    }

    /// The terms and the gradient of one part of a step.
    fn compute(&self, batch: &Batch, targets: &Targets, noise: Noise) -> Result<Part> {
        let (plain, device) = (Device::flex(), Device::flex().autodiff());
        // Leaves of its own: parts that shared leaves would share one graph, and one lock.
        let model = self.model.clone().map(&mut Lift { path: Vec::new(), freeze: &self.config.freeze });
        let terms = &self.config.terms;
        let student = Outputs::compute(&model, Role::Student, terms, batch, &device, Some(noise))?;
        let teacher = match &self.teacher {
            None => None,
            Some(teacher) => {
                Some(Outputs::compute(teacher, Role::Teacher, terms, batch, &plain, None)?.into_constants())
            }
        };
        let values = losses(terms, &student, teacher.as_ref(), batch, targets, &device)?;
        let found = values.iter().map(|v| f64::from(v.clone().inner().into_scalar::<f32>())).collect();
        let loss = terms
            .iter()
            .zip(values)
            .map(|(term, value)| value * term.weight())
            .reduce(|sum, value| sum + value)
            .ok_or_else(|| Error::invalid_input("configuration: terms is empty"))?;
        Ok(Part { terms: found, gradient: NamedGradients::collect(&model, loss.backward()) })
    }

    /// The student with its weights as they are now.
    fn snapshot(&self) -> Checkpoint {
        Checkpoint { weights: self.model.weights(), ..self.student.clone() }
    }

    /// How the student is opened to be measured.
    fn options(&self) -> Options {
        Options { threads: self.config.threads, ..Options::default() }
    }

    fn evaluate(&mut self) -> Result<EvaluationLog> {
        let now = self.snapshot();
        let score = dev_score(now.clone(), self.data, &self.options())?;
        let is_best = self.best.as_ref().is_none_or(|best| score.value > best.score);
        if is_best {
            self.folder.save_best(self.step, &now)?;
            self.best = Some(Best { step: self.step, score: score.value, since: 0 });
        } else if let Some(best) = &mut self.best {
            best.since += 1;
        }
        Ok(EvaluationLog {
            step: self.step,
            dev_score: score.value,
            precision: score.precision,
            recall: score.recall,
            best: is_best,
        })
    }

    fn save(&self) -> Result<()> {
        let state = State { step: self.step, best: self.best.clone(), updates: self.optimizer.updates };
        self.folder.save_state(&state, &self.model.weights(), &self.optimizer)
    }

    fn finish(&self) -> Result<Outcome> {
        let best = self.best.as_ref().ok_or_else(|| Error::internal("the run ended without an evaluation"))?;
        let fit = self.folder.finish(best, |model| fit_on_dev(model, self.data, &self.options()))?;
        Ok(Outcome::Finished { dev_score: best.score, step: best.step, fit })
    }
}

/// A teacher has to answer with the student's labels, from the student's token ids.
fn load_teacher(mut teacher: Checkpoint, student: &Checkpoint) -> Result<Model> {
    if teacher.config.id2label != student.config.id2label {
        return Err(Error::incompatible(format!(
            "teacher and student have different labels: {:?} and {:?}",
            teacher.config.id2label, student.config.id2label
        )));
    }
    if teacher.tokenizer.to_json() != student.tokenizer.to_json() {
        return Err(Error::incompatible(
            "teacher and student have different tokenizers, so their tokens cannot be compared; start the student from the \
             teacher's layers",
        ));
    }
    Model::load(&teacher.config, &mut teacher.weights, &Device::flex())
}

/// What a worker makes of its part of a step.
struct Part {
    terms: Vec<f64>,
    gradient: NamedGradients,
}

/// Puts a model on the device with autodiff, each parameter a new leaf, the frozen ones constants.
struct Lift<'a> {
    path: Vec<String>,
    freeze: &'a [String],
}

impl ModuleMapper for Lift<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = parameter_name(&self.path);
        let is_frozen = self.freeze.iter().any(|prefix| name.starts_with(prefix.as_str()));
        let lifted = param.map(|tensor| tensor.autodiff());
        lifted.set_require_grad(!is_frozen)
    }
}

/// Purposes of random streams are numbered: here, and in `sequences`.
const DROPOUT: u64 = 0;

/// The generator of everything random that belongs to `purpose` and `number`.
pub(crate) fn generator(seed: u64, purpose: u64, number: usize) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(purpose << 32 | number as u64);
    generator
}
