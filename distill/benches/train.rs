//! Steps of training, one at a time, as a worker of `peers/train.py`: `train FOLDER DATA THREADS hard|soft cpu|gpu` answers each line of
//! its input with the times of a step.
//!
//! `soft` has a teacher of one narrow layer, so that its logits cost next to nothing, as logits that were kept would.

use std::collections::BTreeSet;
use std::io::{Write, stdin, stdout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ampoule::checkpoint::NewHead;
use ampoule::{Checkpoint, Device, Error, Result, Task};
use ampoule_distill::data::{OffsetUnit, read_ner};
use ampoule_distill::{
    Data, EvaluationLog, ProgressListener, StepLog, StudentShape, Teacher, Term, TrainConfig, student_from_teacher,
    train,
};

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [folder, data, threads, terms, device] = arguments.as_slice() else {
        eprintln!("train FOLDER DATA THREADS hard|soft cpu|gpu; benches/peers/train.py calls it");
        // `cargo bench` of everything calls it with nothing.
        return if arguments.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
    };
    let device = if device == "gpu" { Device::Gpu } else { Device::Cpu };
    match steps(folder, data, threads.parse().unwrap_or(1), terms == "soft", device) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn steps(folder: &str, data: &str, threads: usize, is_soft: bool, device: Device) -> Result<()> {
    let set = read_ner(data.as_ref(), OffsetUnit::Utf8, None)?;
    let tags = set.covers.iter().flat_map(|label| [format!("B-{label}"), format!("I-{label}")]);
    let labels = std::iter::once("O".to_owned()).chain(tags).collect();
    let student = Checkpoint::open_with_head(folder, &NewHead { task: Task::TokenClassification, labels, seed: 1 })?;
    let of_a_head = student.config.hidden_size / student.config.num_attention_heads;
    let narrow = StudentShape { layers: vec![1], hidden_size: Some(of_a_head), ..StudentShape::default() };
    let teacher = if is_soft { Some(student_from_teacher(&student, &narrow)?.0) } else { None };
    let dev = ampoule_distill::data::NerSet { examples: set.examples[..1].to_vec(), covers: BTreeSet::new() };
    let data = Data::Entities { train: vec![set], dev: vec![dev], transfer: Vec::new() };
    let soft = [Term::Hard { weight: 0.5 }, Term::SoftTargets { weight: 1.0, temperature: 2.0 }];
    let config = TrainConfig {
        epochs: 1,
        runs: 0.0,
        terms: if is_soft { soft.to_vec() } else { vec![Term::Hard { weight: 1.0 }] },
        dropout: Some(0.1),
        save_every: usize::MAX,
        threads,
        device,
        ..TrainConfig::default()
    };
    let run = tempfile::tempdir().map_err(|e| Error::internal(e.to_string()))?;
    let stop = AtomicBool::new(false);
    let mut turns = Turns { stop: &stop, begun: (0.0, Instant::now()) };
    train(student, teacher.map(Teacher::new), &data, &config, run.path(), &stop, &mut turns).map(|_| ())
}

/// Waits for a line before each step, and answers it after.
struct Turns<'a> {
    stop: &'a AtomicBool,
    begun: (f64, Instant),
}

impl Turns<'_> {
    fn wait(&mut self) {
        if !matches!(stdin().read_line(&mut String::new()), Ok(1..)) {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.begun = (cpu_ms(), Instant::now());
    }
}

impl ProgressListener for Turns<'_> {
    fn started(&mut self, _: usize, _: usize) {
        println!("ready");
        self.wait();
    }

    fn step(&mut self, log: &StepLog) {
        let (cpu, wall) = (cpu_ms() - self.begun.0, self.begun.1.elapsed().as_secs_f64() * 1e3);
        println!(r#"{{"cpu_ms": {cpu}, "wall_ms": {wall}, "tokens": {}, "loss": {}}}"#, log.tokens, log.loss);
        // Nobody to answer is no failure.
        let _ = stdout().flush();
        self.wait();
    }

    fn evaluated(&mut self, _: &EvaluationLog) {}
}

/// Processor time of this process so far.
fn cpu_ms() -> f64 {
    cpu_time::ProcessTime::now().as_duration().as_secs_f64() * 1e3
}
