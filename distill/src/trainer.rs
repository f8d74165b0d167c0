//! The one training loop: fine-tuning is distillation without a teacher.
//!
//! All randomness of a step is drawn from the run's seed and the step's number, so a run has no random state to save: what a
//! killed run needs to go on are its weights, its moments and the number of steps made.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ampoule::bundle::{Precision, weights_sha256};
use ampoule::model::{Model, Noise, Weights, parameter_name, release_memory};
use ampoule::{Batch, Checkpoint, Error, Options, Result, training_device};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};

use crate::calibration::{TemperatureFit, fit_on_dev};
use crate::config::{TrainConfig, begins};
use crate::embedding::pair_losses;
use crate::evaluate::dev_score;
use crate::losses::{Outputs, Term, losses};
use crate::optimizer::{NamedGradients, OptimizerState, WORDS};
use crate::run::{Best, RunFolder, State, check_run_folder, threads_of};
use crate::sequences::{Data, Epoch, Input, Part, Sequences};
use crate::teacher::{Ensemble, Reader, Teacher, reads};

/// One step, as it is logged; what an older log lacks is 0 when it is read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StepLog {
    /// Steps made.
    pub step: usize,
    /// Steps of the whole run.
    pub steps: usize,
    /// Number of its stage, from 1.
    pub stage: usize,
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvaluationLog {
    /// Steps made.
    pub step: usize,
    /// The score by which the best weights are chosen: micro F1 of entities, macro F1 of labels, MRR@10 of searches.
    pub dev_score: f64,
    /// Precision, for entities.
    pub precision: Option<f64>,
    /// Recall, for entities.
    pub recall: Option<f64>,
    /// Whether it is the best of its stage so far.
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
    /// All steps were made, or patience ran out; the last stage's best model is in the run folder's `model`.
    Finished {
        /// The best dev score, where the last stage teaches what it measures.
        dev_score: Option<f64>,
        /// The step after which it was reached.
        step: usize,
        /// The temperature of `model`, fitted on the dev set, which is the one that the best weights were chosen by; none where the set
        /// does not determine one, or the model gives no scores, and the temperature is 1.
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
/// resumes from it, and ends on a processor with the same tensors as a run that was never broken. `stop` is looked at between steps.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for data or a configuration that cannot be trained on, a run folder of
/// another configuration or [of something else](check_run_folder), and a loss that is not finite;
/// [`NotFound`](ampoule::ErrorKind::NotFound) where a file cannot be written, in which case the files before are intact;
/// [`DeviceUnavailable`](ampoule::ErrorKind::DeviceUnavailable) where there is no GPU, or it fails.
pub fn train(
    student: Checkpoint,
    teacher: Option<Teacher>,
    data: &Data,
    config: &TrainConfig,
    run: &Path,
    stop: &AtomicBool,
    listener: &mut dyn ProgressListener,
) -> Result<Outcome> {
    let stages = config.checked_stages(teacher.is_some())?;
    check_run_folder(run)?;
    // A run goes on with the threads that it began with: sums depend on their number.
    let (config, stages) = with_threads(config, stages, threads_of(run));
    let workers = workers(&config)?;
    let all = || {
        let (mut trainer, identity) = Trainer::new(student, teacher, data, &config, stages, workers)?;
        trainer.resume(run, &identity)?;
        trainer.run(stop, listener)
    };
    let outcome = pool(config.threads)?.install(all);
    release_memory();
    outcome
}

/// The settings with a number of threads: `before` or as many as the machine has cores, where they name none.
fn with_threads(
    config: &TrainConfig,
    stages: Vec<TrainConfig>,
    before: Option<usize>,
) -> (TrainConfig, Vec<TrainConfig>) {
    let threads = match config.threads {
        0 => before.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get().min(4))),
        n => n,
    };
    let stages = stages.into_iter().map(|stage| TrainConfig { threads, ..stage }).collect();
    (TrainConfig { threads, ..config.clone() }, stages)
}

/// What a run of [`train`] with these arguments would take, from some of its steps, which are made and thrown away.
///
/// # Errors
/// As [`train`]; no run folder is needed.
pub fn plan(student: Checkpoint, teacher: Option<Teacher>, data: &Data, config: &TrainConfig) -> Result<Plan> {
    let stages = config.checked_stages(teacher.is_some())?;
    let (config, stages) = with_threads(config, stages, None);
    // With its cache, a second plan would find the answers that the first had computed.
    let teacher = teacher.map(Teacher::without_cache);
    let workers = workers(&config)?;
    let measure = || {
        let (trainer, _) = Trainer::new(student, teacher, data, &config, stages, workers)?;
        trainer.measure()
    };
    let plan = pool(config.threads)?.install(measure);
    release_memory();
    plan
}

/// What a run takes.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Threads that it is planned for.
    pub threads: usize,
    /// Part by part.
    pub stages: Vec<PlannedStage>,
    /// Of all stages, saving not counted.
    pub seconds: f64,
    /// The most bytes of memory that the process held by now; none where the system does not say.
    pub peak_bytes: Option<u64>,
    /// The most bytes in the run's folder: while one is written, two states and two of the best models so far.
    pub disk_bytes: usize,
}

/// A stage of a [`Plan`].
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStage {
    /// Steps.
    pub steps: usize,
    /// Tokens of these steps, padding not counted.
    pub tokens: usize,
    /// A step, on average.
    pub seconds_per_step: f64,
    /// An evaluation on the dev set, and how many there are.
    pub seconds_per_evaluation: f64,
    /// How often the dev set is evaluated.
    pub evaluations: usize,
}

/// Writes what a run of [`train`] with these arguments begins with to `folder`: `start`, the checkpoint, and `batches.jsonl`,
/// the steps of its first epoch. Another implementation of the training can repeat them: `examples/produce/reference.py` does.
///
/// The batches hold the texts as token ids: they are for public texts.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) for data that cannot be trained on, or that holds no entities;
/// [`NotFound`](ampoule::ErrorKind::NotFound) where a file cannot be written.
pub fn dump_batches(student: &Checkpoint, data: &Data, config: &TrainConfig, folder: &Path) -> Result<()> {
    let (start, batches) = (folder.join("start"), folder.join("batches.jsonl"));
    if let Some(there) = [&start, &batches].into_iter().find(|path| path.exists()) {
        return Err(Error::invalid_input(format!(
            "{} is there, and would be written over; name a new folder",
            there.display()
        )));
    }
    let stages = config.checked_stages(true)?;
    if let Data::Entities { train, .. } = data
        && train.iter().flat_map(|set| &set.examples).flat_map(|e| &e.entities).any(|entity| entity.score < 1.0)
    {
        return Err(Error::invalid_input(
            "batches are written without weights, and entities have scores below 1; take the scores out",
        ));
    }
    let [config] = stages.as_slice() else {
        return Err(Error::invalid_input("only the batches of a run of one stage can be written; take `stages` out"));
    };
    let sequences = Sequences::new(student, Vec::new(), data)?;
    let steps =
        (0..config.epochs).map(|number| Ok(sequences.epoch(number, config)?.batches.len())).sum::<Result<usize>>()?;
    let steps = steps.min(config.steps.unwrap_or(usize::MAX));
    let epoch = sequences.epoch(0, config)?;
    let mut lines = String::new();
    for step in 0..epoch.batches.len().min(steps) {
        let mut row = sequences
            .dump(&epoch, step)
            .ok_or_else(|| Error::invalid_input("only batches of entities can be written, and these hold others"))?;
        row.insert("step".to_owned(), json!(step + 1));
        row.insert("lr".to_owned(), json!(config.optimizer.rate(step, steps)));
        lines.push_str(&serde_json::Value::Object(row).to_string());
        lines.push('\n');
    }
    student.save(&start)?;
    ampoule::checkpoint::write_aside(&batches, lines.as_bytes())
}

/// Each computes a part of a step; a GPU computes it whole.
fn workers(config: &TrainConfig) -> Result<Vec<rayon::ThreadPool>> {
    match config.device {
        ampoule::Device::Cpu => (0..config.threads).map(|_| pool(1)).collect(),
        _ => Ok(vec![pool(1)?]),
    }
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::internal(format!("cannot start {threads} threads: {e}")))
}

/// A stage, as far as its data say.
struct Stage {
    config: TrainConfig,
    /// Number of batches of each epoch.
    epochs: Vec<usize>,
}

impl Stage {
    fn steps(&self) -> usize {
        self.epochs.iter().sum()
    }
}

/// Refuses what freezes nothing, as a name that is spelt otherwise would, and what leaves nothing to train.
fn check_freeze(config: &TrainConfig, weights: &Weights) -> Result<()> {
    let freezes = |prefix: &str| weights.0.keys().any(|name| begins(name, prefix));
    if let Some(prefix) = config.freeze.iter().find(|prefix| !freezes(prefix)) {
        // Published weights have the model's name before each of theirs.
        let meant = match prefix.split_once('.') {
            Some((_, rest)) if freezes(rest) => format!("; {rest:?} was meant?"),
            _ => weights.0.keys().next().map_or(String::new(), |name| format!("; they are named like {name:?}")),
        };
        return Err(Error::invalid_input(format!(
            "freeze has {prefix:?}, and no tensor of the model has a name that begins so, in whole parts{meant}"
        )));
    }
    // States are compared up to a layer, and what comes after it has no gradient.
    let layers = config.taught().flat_map(Term::pairs).map(|(state, _)| state.layer()).max().unwrap_or(0);
    let reads_all = config.teaches_labels();
    let is_reached = |name: &str| match name.strip_prefix("encoder.layer.").and_then(|rest| rest.split('.').next()) {
        Some(layer) => reads_all || layer.parse::<usize>().is_ok_and(|layer| layer < layers),
        None => reads_all || name.starts_with("embeddings"),
    };
    match weights.0.keys().any(|name| is_reached(name) && !config.freezes(name)) {
        true => Ok(()),
        false => Err(nothing_to_train()),
    }
}

fn nothing_to_train() -> Error {
    Error::invalid_input("freeze leaves nothing to train of what the loss terms reach; take some of its names out")
}

struct Trainer<'a> {
    stages: Vec<Stage>,
    data: &'a Data,
    workers: Vec<rayon::ThreadPool>,
    /// Where they compute the student, without autodiff.
    device: Device,
    /// All but its weights, which are the model's.
    student: Checkpoint,
    model: Model,
    teacher: Option<Ensemble>,
    sequences: Sequences<'a>,
    folder: RunFolder,
    optimizer: OptimizerState,
    /// Index of the stage that the next step belongs to.
    stage: usize,
    /// Steps made in all stages.
    step: usize,
    /// Of this stage.
    best: Option<Best>,
}

impl<'a> Trainer<'a> {
    /// At its beginning, with what tells this run from another.
    fn new(
        mut student: Checkpoint,
        teacher: Option<Teacher>,
        data: &'a Data,
        config: &TrainConfig,
        stages: Vec<TrainConfig>,
        workers: Vec<rayon::ThreadPool>,
    ) -> Result<(Self, serde_json::Value)> {
        if let Some(p) = config.dropout {
            student.config.hidden_dropout_prob = p;
            student.config.attention_probs_dropout_prob = p;
            student.config.classifier_dropout = Some(p);
        }
        let [teacher_sha256, teacher_config, teacher_reads] =
            teacher.as_ref().map(Teacher::identity).unwrap_or_default();
        let members = teacher.iter().flat_map(|teacher| &teacher.members);
        let readers = members.map(|member| Reader::new(member, &student)).collect();
        let device = training_device(config.device, config.adapter.as_deref())?;
        let teacher = teacher.map(|teacher| Ensemble::load(teacher, &student, &device)).transpose()?;
        let sequences = Sequences::new(&student, readers, data)?;
        let mut number = 0;
        let mut planned = Vec::new();
        for (index, config) in (1..).zip(stages) {
            let of_stage = |e: Error| e.context(format!("configuration: stage {index}"));
            if let Some(teacher) = &teacher {
                teacher.check(&config.terms, &student.config).map_err(of_stage)?;
            }
            check_freeze(&config, &student.weights).map_err(of_stage)?;
            let mut left = config.steps.unwrap_or(usize::MAX);
            // An epoch that no step is left for keeps its number.
            let batches = |epoch| -> Result<usize> {
                let batches = if left == 0 { 0 } else { sequences.epoch(epoch, &config)?.batches.len().min(left) };
                left -= batches;
                Ok(batches)
            };
            let epochs = (number..number + config.epochs).map(batches).collect::<Result<Vec<_>>>()?;
            number += config.epochs;
            let stage = Stage { config, epochs };
            if stage.steps() == 0 {
                return Err(Error::invalid_input("there is no text to train on"));
            }
            planned.push(stage);
        }
        // What the run would otherwise be resumed with unnoticed: other texts, or another reading of them, another start or teacher.
        let identity = json!({
            "arithmetic": ARITHMETIC,
            "config": config,
            "student": student.config.to_json(),
            "student_sha256": weights_sha256(&student.weights),
            "student_reads": reads(&student),
            "teacher_sha256": teacher_sha256,
            "teacher": teacher_config,
            "teacher_reads": teacher_reads,
            "data_sha256": data.sha256(),
        });
        let model = Model::load(&student.config, &mut student.weights, &Device::flex())?;
        let trainer = Trainer {
            stages: planned,
            data,
            model,
            device,
            workers,
            student,
            teacher,
            sequences,
            folder: RunFolder::unopened(Path::new("")),
            optimizer: OptimizerState::default(),
            stage: 0,
            step: 0,
            best: None,
        };
        Ok((trainer, identity))
    }

    /// Makes the run's folder, or goes on from the state in it.
    fn resume(&mut self, run: &Path, identity: &serde_json::Value) -> Result<()> {
        self.folder = RunFolder::open(run, identity)?;
        if let Some((state, mut weights, optimizer)) = self.folder.load_state()? {
            self.model = Model::load(&self.student.config, &mut weights, &Device::flex())?;
            (self.stage, self.step, self.best, self.optimizer) = (state.stage, state.step, state.best, optimizer);
        }
        self.folder.truncate_log(self.step)
    }

    /// Makes some steps of each stage, of batches as long as its others.
    fn measure(mut self) -> Result<Plan> {
        const STEPS: usize = 6;
        let mut stages = Vec::new();
        let mut first = 0;
        for stage in 0..self.stages.len() {
            self.stage = stage;
            let number = self.stages[..stage].iter().map(|stage| stage.epochs.len()).sum();
            let epoch = self.sequences.epoch(number, self.config())?;
            let mut order: Vec<usize> = (0..epoch.batches.len()).collect();
            order.sort_by_key(|&batch| epoch.tokens(batch));
            let chosen: Vec<usize> =
                (0..STEPS).map(|i| order[((2 * i + 1) * order.len() / (2 * STEPS)).min(order.len() - 1)]).collect();
            // The first step makes what the others find made; a GPU compiles kernels for each length of text.
            let first_steps = if self.config().device == ampoule::Device::Cpu { &chosen[..1] } else { &chosen[..] };
            for &batch in first_steps {
                self.step = first;
                self.make_step(&epoch, batch)?;
            }
            let begun = Instant::now();
            for &batch in &chosen {
                self.step = first;
                self.make_step(&epoch, batch)?;
            }
            let (seconds, measured) =
                (begun.elapsed().as_secs_f64(), chosen.iter().map(|&b| epoch.tokens(b)).sum::<usize>());
            let steps = self.stages[stage].steps();
            let tokens = steps * order.iter().map(|&batch| epoch.tokens(batch)).sum::<usize>() / order.len();
            let evaluations = match self.config().teaches_labels() {
                true => self.stages[stage].epochs.iter().map(|n| self.config().evaluations_per_epoch.min(*n)).sum(),
                false => 0,
            };
            let begun = Instant::now();
            if evaluations > 0 {
                dev_score(self.snapshot(), self.data, None, &self.options())?;
            }
            stages.push(PlannedStage {
                steps,
                tokens,
                seconds_per_step: seconds * tokens as f64 / measured.max(1) as f64 / steps as f64,
                seconds_per_evaluation: begun.elapsed().as_secs_f64(),
                evaluations,
            });
            first += steps;
        }
        let of = |stage: &PlannedStage| {
            stage.seconds_per_step * stage.steps as f64 + stage.seconds_per_evaluation * stage.evaluations as f64
        };
        let values = |tensors: &Weights| tensors.0.values().map(|tensor| tensor.data.len()).sum::<usize>();
        let trained = self.optimizer.moments.values().map(|moments| moments.first.len()).sum::<usize>();
        let weights = 4 * values(&self.model.weights());
        Ok(Plan {
            threads: self.config().threads,
            seconds: stages.iter().map(of).sum(),
            stages,
            peak_bytes: peak_bytes(),
            disk_bytes: 2 * (weights + 2 * 4 * trained + weights),
        })
    }

    fn run(mut self, stop: &AtomicBool, listener: &mut dyn ProgressListener) -> Result<Outcome> {
        listener.started(self.step, self.stages.iter().map(Stage::steps).sum());
        while self.stage < self.stages.len() {
            if let Some(interrupted) = self.run_stage(stop, listener)? {
                return Ok(interrupted);
            }
            if self.stage + 1 == self.stages.len() {
                break;
            }
            self.next_stage()?;
        }
        self.finish()
    }

    /// Makes the steps that are left of this stage; an outcome where it was asked to stop.
    fn run_stage(&mut self, stop: &AtomicBool, listener: &mut dyn ProgressListener) -> Result<Option<Outcome>> {
        let before = &self.stages[..self.stage];
        let mut first = before.iter().map(Stage::steps).sum::<usize>();
        let number = before.iter().map(|stage| stage.epochs.len()).sum::<usize>();
        let end = first + self.stages[self.stage].steps();
        let (epochs, evaluates) = (self.stages[self.stage].epochs.clone(), self.config().teaches_labels());
        let save_every = self.config().save_every;
        for (batches, number) in epochs.into_iter().zip(number..) {
            let last = first + batches;
            if self.step >= last {
                first = last;
                continue;
            }
            let epoch = self.sequences.epoch(number, self.config())?;
            while self.step < last {
                if self.is_out_of_patience() {
                    self.step = end;
                    return Ok(None);
                }
                if stop.load(Ordering::Relaxed) {
                    self.save()?;
                    return Ok(Some(Outcome::Interrupted { step: self.step }));
                }
                let log = self.make_step(&epoch, self.step - first)?;
                self.folder.log(&json!({ "step": log }))?;
                listener.step(&log);
                if evaluates && self.is_evaluation_due(first, batches) {
                    let log = self.evaluate()?;
                    self.folder.log(&json!({ "evaluation": log }))?;
                    listener.evaluated(&log);
                    self.save()?;
                } else if self.step.is_multiple_of(save_every) {
                    self.save()?;
                }
            }
            first = last;
        }
        Ok(None)
    }

    /// The next stage begins where this one was best.
    fn next_stage(&mut self) -> Result<()> {
        if let Some(best) = self.best.take() {
            let mut weights = self.folder.best(&best)?.weights;
            self.model = Model::load(&self.student.config, &mut weights, &Device::flex())?;
        }
        self.optimizer = OptimizerState::default();
        self.stage += 1;
        self.save()
    }

    /// The settings of this stage.
    fn config(&self) -> &TrainConfig {
        &self.stages[self.stage].config
    }

    /// Whether the step just made ends one of the epoch's equal parts.
    fn is_evaluation_due(&self, first: usize, batches: usize) -> bool {
        let parts = self.config().evaluations_per_epoch.min(batches);
        let done = self.step - first;
        (done * parts) / batches > ((done - 1) * parts) / batches
    }

    fn is_out_of_patience(&self) -> bool {
        let (best, patience) = (self.best.as_ref(), self.config().patience);
        patience > 0 && best.is_some_and(|best| best.since >= patience)
    }

    /// Computes the step's parts side by side, each on one thread, adds their gradients in order, and updates the model.
    fn make_step(&mut self, epoch: &Epoch, batch: usize) -> Result<StepLog> {
        let parts = self.sequences.parts(epoch, batch, self.workers.len());
        let seed = generator(self.config().seed, DROPOUT, self.step).random::<u64>();
        let this = &*self;
        let computed: Vec<Result<Computed>> = std::thread::scope(|scope| {
            let running: Vec<_> = parts
                .iter()
                .zip(&this.workers)
                .enumerate()
                .map(|(i, (part, worker))| {
                    let noise = Noise::new(seed.wrapping_add(i as u64));
                    scope.spawn(move || worker.install(|| this.compute(part, noise)))
                })
                .collect();
            running
                .into_iter()
                .map(|part| part.join().unwrap_or_else(|_| Err(Error::internal("a worker thread panicked"))))
                .collect()
        });
        let mut values = vec![0.0; self.config().terms.len()];
        let mut gradient = NamedGradients::default();
        for part in computed {
            let part = part.map_err(|e| e.context(format!("step {}", self.step)))?;
            values.iter_mut().zip(&part.terms).for_each(|(sum, x)| *sum += x);
            gradient.add(part.gradient);
        }
        let mut terms = Map::new();
        let mut loss = 0.0;
        for (i, (term, &value)) in self.config().terms.iter().zip(&values).enumerate() {
            // A second one of a kind is logged beside the first.
            let name = match self.config().terms[..i].iter().filter(|other| other.name() == term.name()).count() {
                0 => term.name().to_owned(),
                before => format!("{}-{}", term.name(), before + 1),
            };
            if !value.is_finite() {
                return Err(Error::invalid_input(format!(
                    "step {}: the loss term {:?} is {value}; lower the learning rate. The last saved state is intact",
                    self.step,
                    term.name()
                )));
            }
            loss += value * term.weight();
            terms.insert(name, json!(value));
        }
        let before = self.stages[..self.stage].iter().map(Stage::steps).sum::<usize>();
        let stage = &self.stages[self.stage];
        let optimizer = &stage.config.optimizer;
        let rate = optimizer.rate(self.step - before, stage.steps());
        let gradient_norm = self
            .optimizer
            .update(optimizer, rate, &mut self.model, gradient)
            .map_err(|e| e.context(format!("step {}", self.step)))?;
        self.step += 1;
        Ok(StepLog {
            step: self.step,
            steps: self.stages.iter().map(Stage::steps).sum(),
            stage: self.stage + 1,
            loss,
            terms,
            rate,
            gradient_norm,
            tokens: parts.iter().flat_map(Part::inputs).flat_map(|input| input.batch.lengths()).sum(),
        })
    }

    /// The terms and the gradient of one part of a step.
    fn compute(&self, part: &Part, noise: Noise) -> Result<Computed> {
        let device = self.device.clone().autodiff();
        let words = Batch::distinct_ids(part.inputs().iter().map(|input| &input.batch));
        // Leaves of its own: parts that shared leaves would share one graph, and one lock.
        let config = self.config();
        let lift = &mut Lift { path: Vec::new(), device: &self.device, config, words: &words };
        let model = self.model.clone().map(lift);
        let model = match config.precision {
            Precision::Int8 => model.fake_quantized(),
            _ => model,
        };
        let terms = &config.terms;
        let teacher = self.teacher.as_ref().filter(|_| terms.iter().any(|term| term.needs_teacher()));
        let (pooling, mut noise) = (self.student.pooling.mode, Some(noise));
        let mut outputs = |input: &Input| -> Result<(Outputs, Option<Outputs>)> {
            let Input { batch, readings, .. } = input;
            let student = Outputs::of_student(&model, pooling, terms, &batch.renumbered(&words), &device, &mut noise)?;
            let teacher = teacher.map(|teacher| teacher.outputs(terms, readings, batch.dims(), &device)).transpose()?;
            Ok((student, teacher))
        };
        let values = match part {
            Part::Texts(input) => {
                let (student, teacher) = outputs(input)?;
                losses(terms, &student, teacher.as_ref(), &input.targets, &device)?
            }
            Part::Pairs(pairs) => match pair_losses(terms, pairs, &mut outputs, &device)? {
                Some(values) => values,
                // The part that failed says why.
                None => return Ok(Computed::default()),
            },
        };
        let values_of_terms = Tensor::cat(values.iter().map(|value| value.clone().inner()).collect(), 0);
        let loss = terms
            .iter()
            .zip(values)
            .filter(|(term, _)| term.weight() > 0.0)
            .map(|(term, value)| value * term.weight())
            .reduce(|sum, value| sum + value)
            .ok_or_else(|| Error::invalid_input("configuration: terms is empty"))?;
        if !loss.is_tracked() {
            return Err(nothing_to_train());
        }
        let (gradient, values) = NamedGradients::collect(&model, loss.backward(), words, values_of_terms)?;
        Ok(Computed { terms: values.into_iter().map(f64::from).collect(), gradient })
    }

    /// The student with its weights as they are now.
    fn snapshot(&self) -> Checkpoint {
        Checkpoint { weights: self.model.weights(), ..self.student.clone() }
    }

    /// How the student is opened to be measured.
    fn options(&self) -> Options {
        Options { threads: self.config().threads, ..Options::default() }
    }

    fn evaluate(&mut self) -> Result<EvaluationLog> {
        let now = self.snapshot();
        let bundle = self.folder.bundle_path();
        let quantized = (self.config().precision == Precision::Int8).then_some(bundle.as_path());
        let score = dev_score(now.clone(), self.data, quantized, &self.options())?;
        // Of equals the later weights have learned more. Where nothing is found yet, they are nearer to it.
        let (is_best, since) = match &self.best {
            Some(best) if score.value > best.score || best.score == 0.0 => (true, 0),
            Some(best) => (score.value == best.score, best.since + 1),
            None => (true, 0),
        };
        if is_best {
            self.folder.save_best(self.step, &now)?;
            self.best = Some(Best { step: self.step, score: score.value, since });
        } else if let Some(best) = &mut self.best {
            best.since = since;
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
        let (step, stage, updates) = (self.step, self.stage, self.optimizer.updates);
        let state = State { step, stage, best: self.best.clone(), updates };
        self.folder.save_state(&state, &self.model.weights(), &self.optimizer)
    }

    fn finish(&self) -> Result<Outcome> {
        let (mut model, dev_score, step) = match &self.best {
            Some(best) => (self.folder.best(best)?, Some(best.score), best.step),
            None => (self.snapshot(), None, self.step),
        };
        let fit = match dev_score {
            Some(_) => fit_on_dev(model.clone(), self.data, &self.options())?,
            None => None,
        };
        model.temperature = fit.map_or(1.0, |fit| fit.temperature);
        model.quantization_aware = self.config().precision == Precision::Int8;
        self.folder.finish(&model)?;
        if let Some((computed, found)) = self.teacher.as_ref().and_then(Ensemble::counts) {
            self.folder.log(&json!({ "teacher": { "computed": computed, "cached": found } }))?;
        }
        Ok(Outcome::Finished { dev_score, step, fit })
    }
}

/// The most memory that this process had at a time, by Linux's `VmHWM`.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// What a worker makes of its part of a step.
#[derive(Default)]
struct Computed {
    terms: Vec<f64>,
    gradient: NamedGradients,
}

/// Puts a model of the processor's on a device with autodiff, each parameter a new leaf, the frozen ones constants. Of the embeddings of
/// words it has the rows of `words` alone: a gradient of all would be zeros, most of them.
struct Lift<'a> {
    path: Vec<String>,
    device: &'a Device,
    config: &'a TrainConfig,
    words: &'a [i32],
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
        let is_frozen = self.config.freezes(&name);
        let lifted = param.map(|tensor| {
            let tensor = match name == WORDS {
                true => tensor.clone().select(0, Tensor::from_data(self.words, &tensor.device())),
                false => tensor,
            };
            tensor.to_device(self.device).autodiff()
        });
        lifted.set_require_grad(!is_frozen)
    }
}

/// Raised when a step's bits change, so that no run goes on under another arithmetic than it began with.
const ARITHMETIC: u32 = 4;

/// Purposes of random streams are numbered: here, and in `sequences`.
const DROPOUT: u64 = 0;

/// The generator of everything random that belongs to `purpose` and `number`.
pub(crate) fn generator(seed: u64, purpose: u64, number: usize) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(purpose << 32 | number as u64);
    generator
}

#[cfg(test)]
mod tests;
