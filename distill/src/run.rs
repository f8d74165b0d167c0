//! The folder of a run: what it is, what happened, and what it takes to go on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use ampoule::model::{HostTensor, Weights};
use ampoule::{Checkpoint, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::optimizer::{Moments, OptimizerState};
use crate::trainer::{EvaluationLog, StepLog};

/// Where a run stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// Steps made.
    pub(crate) step: usize,
    /// Index of the stage that the next one belongs to.
    pub(crate) stage: usize,
    /// Of this stage.
    pub(crate) best: Option<Best>,
    /// Updates that the optimizer made.
    pub(crate) updates: u64,
}

/// The best evaluation so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: usize,
    pub(crate) score: f64,
    /// Evaluations in a row without a better score.
    pub(crate) since: usize,
}

/// A run's folder. Every file in it is written aside and renamed, so a killed process leaves the one before.
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Held while a process trains here; the system lets go of it whatever ends the process.
    _lock: Option<fs::File>,
}

impl RunFolder {
    /// Makes the folder, or opens it where it holds a run of the same `identity`.
    pub(crate) fn open(path: &Path, identity: &Value) -> Result<Self> {
        let is_run = check_run_folder(path)?;
        fs::create_dir_all(path).map_err(|e| Error::io(path, e))?;
        let lock = lock(path)?;
        if lock.is_some() && is_run {
            remove_unfinished(path);
        }
        let config = path.join("config.json");
        match fs::read(&config) {
            Ok(bytes) => {
                let found = serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null);
                if found != *identity {
                    return Err(Error::invalid_input(format!(
                        "{} holds another run, of other {}; name another run folder, or delete this one",
                        path.display(),
                        differences(&found, identity).join(", ")
                    )));
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                ampoule::checkpoint::write_aside(&config, pretty(identity).as_bytes())?;
            }
            Err(e) => return Err(Error::io(&config, e)),
        }
        Ok(RunFolder { path: path.to_owned(), _lock: lock })
    }

    /// A folder in which nothing is to be written.
    pub(crate) fn unopened(path: &Path) -> Self {
        RunFolder { path: path.to_owned(), _lock: None }
    }

    fn state_path(&self) -> PathBuf {
        self.path.join("state.safetensors")
    }

    /// Where a bundle stands while it is measured.
    pub(crate) fn bundle_path(&self) -> PathBuf {
        self.path.join("dev.int8.safetensors")
    }

    fn best_path(&self, step: usize) -> PathBuf {
        self.path.join(format!("best-{step:08}"))
    }

    /// Appends a line to `log.jsonl`.
    pub(crate) fn log(&self, line: &Value) -> Result<()> {
        let path = self.path.join("log.jsonl");
        let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Error::io(&path, e))
    }

    /// Takes out of the log what was logged after `step`, and will be again.
    pub(crate) fn truncate_log(&self, step: usize) -> Result<()> {
        let path = self.path.join("log.jsonl");
        let Ok(log) = fs::read_to_string(&path) else {
            return Ok(());
        };
        let is_before = |line: &str| {
            // A line that the kill cut short says nothing.
            let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
            let logged = line.as_object().and_then(|o| o.values().next()).and_then(|v| v["step"].as_u64());
            logged.is_none_or(|logged| logged as usize <= step)
        };
        let kept: String = log.lines().filter(|l| is_before(l)).flat_map(|l| [l, "\n"]).collect();
        if kept.len() == log.len() {
            return Ok(());
        }
        ampoule::checkpoint::write_aside(&path, kept.as_bytes())
    }

    /// The state that was saved last, with its weights and moments.
    pub(crate) fn load_state(&self) -> Result<Option<(State, Weights, OptimizerState)>> {
        let path = self.state_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, e)),
        };
        let damaged =
            || Error::corrupt(format!("{}: the saved state is damaged; delete it to begin anew", path.display()));
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(|_| damaged())?;
        let state = header.metadata().as_ref().and_then(|m| m.get("state")).ok_or_else(damaged)?;
        let state: State = serde_json::from_str(state).map_err(|_| damaged())?;
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
        let mut weights = Weights::default();
        let mut optimizer = OptimizerState { updates: state.updates, ..OptimizerState::default() };
        for (name, tensor) in tensors.iter() {
            let data: Vec<f32> =
                tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            let (kind, name) = name.split_once('/').ok_or_else(damaged)?;
            match kind {
                "weights" => {
                    let shape = tensor.shape().to_vec();
                    weights.0.insert(name.to_owned(), HostTensor { shape, data });
                }
                "first" => optimizer.moments.entry(name.to_owned()).or_default().first = data,
                "second" => optimizer.moments.entry(name.to_owned()).or_default().second = data,
                _ => return Err(damaged()),
            }
        }
        Ok(Some((state, weights, optimizer)))
    }

    /// Saves all that it takes to go on from `state`.
    pub(crate) fn save_state(&self, state: &State, weights: &Weights, optimizer: &OptimizerState) -> Result<()> {
        let mut tensors: Vec<(String, &[usize], &[f32])> = Vec::new();
        for (name, tensor) in &weights.0 {
            tensors.push((format!("weights/{name}"), &tensor.shape, &tensor.data));
        }
        let lengths: Vec<[usize; 1]> = optimizer.moments.values().map(|m| [m.first.len()]).collect();
        for ((name, Moments { first, second }), length) in optimizer.moments.iter().zip(&lengths) {
            tensors.push((format!("first/{name}"), length, first));
            tensors.push((format!("second/{name}"), length, second));
        }
        let state_json =
            serde_json::to_string(state).map_err(|e| Error::internal(format!("cannot write the state: {e}")))?;
        let bytes = ampoule::checkpoint::safetensors_bytes(&tensors, [("state".to_owned(), state_json)])?;
        ampoule::checkpoint::write_aside(&self.state_path(), &bytes)?;
        self.remove_bests_but(state.best.as_ref());
        Ok(())
    }

    /// Saves the best weights so far. Those before stay until a state names these.
    pub(crate) fn save_best(&self, step: usize, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.save(self.best_path(step))
    }

    fn remove_bests_but(&self, best: Option<&Best>) {
        let keep = best.map(|best| self.best_path(best.step));
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if is_best(&name.to_string_lossy()) && Some(&path) != keep.as_ref() {
                // Only disk space is at stake.
                let _ = fs::remove_dir_all(path);
            }
        }
    }

    /// The best model so far.
    pub(crate) fn best(&self, best: &Best) -> Result<Checkpoint> {
        Checkpoint::open(self.best_path(best.step))
    }

    /// Makes this the run's `model`.
    pub(crate) fn finish(&self, model: &Checkpoint) -> Result<()> {
        model.save(self.path.join("model"))
    }
}

/// Looks, and touches nothing, whether a run may be written to the folder `run`: whether there is none, or one that holds a run, which is
/// `true`, or nothing of the names that a run would write over.
///
/// # Errors
/// [`InvalidInput`](ErrorKind::InvalidInput) where a run would write over what is no run's.
pub fn check_run_folder(run: &Path) -> Result<bool> {
    let config = run.join("config.json");
    match fs::read(&config) {
        Ok(bytes) => match serde_json::from_slice::<Value>(&bytes) {
            Ok(found) if found["config"].is_object() => return Ok(true),
            _ => return Err(Error::invalid_input(format!("{}: not a run's; name a new folder", config.display()))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io(&config, e)),
    }
    let names = fs::read_dir(run).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_ours = |name: &String| is_best(name) || OF_RUN.contains(&name.as_str());
    match names.find(is_ours) {
        Some(name) => Err(Error::invalid_input(format!(
            "{} is not the folder of a run and holds {name:?}, which a run would write over; name a new folder",
            run.display()
        ))),
        None => Ok(false),
    }
}

/// What a run writes beside `config.json`, which is there first, and its best models.
const OF_RUN: [&str; 7] = [
    "state.safetensors",
    "log.jsonl",
    "model",
    "dev.int8.safetensors",
    // What `distill --precision` ends with.
    "model.f32.safetensors",
    "model.f16.safetensors",
    "model.int8.safetensors",
];

fn is_best(name: &str) -> bool {
    name.strip_prefix("best-").is_some_and(|n| n.len() >= 8 && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Removes what killed processes left half written; only disk space is at stake.
fn remove_unfinished(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".partial-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Keeps other processes from training in the folder. A file system without locks keeps none.
fn lock(path: &Path) -> Result<Option<fs::File>> {
    let name = path.join("lock");
    let open = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&name);
    let file = open.map_err(|e| Error::io(&name, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(Error::invalid_input(format!(
            "another process trains in {}; wait until it ends, or name another run folder",
            path.display()
        ))),
        Err(fs::TryLockError::Error(_)) => Ok(None),
    }
}

/// What two runs do not have in common, in words.
fn differences(found: &Value, expected: &Value) -> Vec<String> {
    let Some(fields) = expected.as_object() else { return Vec::new() };
    // A setting may be missing on either side.
    let names = |value| Value::as_object(value).into_iter().flatten().map(|(name, _)| name);
    let mut all = Vec::new();
    for (name, value) in fields {
        match name.as_str() {
            _ if found[name] == *value => {}
            // An earlier version did not note them.
            "student_reads" | "teacher_reads" if found[name].is_null() => {}
            "config" => {
                let found = &found["config"];
                let mut settings: Vec<&String> = names(value).chain(names(found)).collect();
                settings.sort();
                settings.dedup();
                all.extend(settings.into_iter().filter(|name| found[*name] != value[*name]).cloned());
            }
            "student" => all.push("student's shape".to_owned()),
            "student_sha256" => all.push("weights to start from".to_owned()),
            "student_reads" => all.push("tokenizer or pooling".to_owned()),
            "teacher_sha256" | "teacher" | "teacher_reads" => all.push("teacher".to_owned()),
            "data_sha256" => all.push("data".to_owned()),
            "arithmetic" => all.push("arithmetic (another version of this program began it)".to_owned()),
            other => all.push(other.to_owned()),
        }
    }
    all.dedup();
    if all.is_empty() {
        all.push("settings".to_owned());
    }
    all
}

/// What a run's folder says of the run.
#[derive(Clone, Debug)]
pub struct RunLog {
    /// `config.json`: the settings under `config`, the model's shape under `student`, and the digests of what it began with:
    /// `student_sha256`, `teacher_sha256`, `data_sha256`; under `student_reads` and `teacher_reads` those of tokenizers, and pooling.
    pub config: Value,
    /// The steps made, in order.
    pub steps: Vec<StepLog>,
    /// The evaluations on the dev set, in order.
    pub evaluations: Vec<EvaluationLog>,
    /// How often a model of the run was measured on a test set.
    pub test_readings: usize,
}

impl RunLog {
    /// The digests of the teacher's weights, or of several teachers'; none of a run without one.
    pub fn teachers(&self) -> Vec<&str> {
        let teachers = match &self.config["teacher_sha256"] {
            Value::Array(several) => several.as_slice(),
            one => std::slice::from_ref(one),
        };
        teachers.iter().filter_map(Value::as_str).collect()
    }

    /// Reads `config.json` and `log.jsonl` of the folder `run`; a line that a kill cut short is left out.
    ///
    /// # Errors
    /// [`NotFound`](ampoule::ErrorKind::NotFound) where one of them is not there, [`Corrupt`](ampoule::ErrorKind::Corrupt) for a
    /// `config.json` that is not JSON.
    pub fn read(run: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = run.join(name);
            fs::read_to_string(&path).map_err(|e| Error::io(&path, e))
        };
        if !run.join("log.jsonl").is_file() {
            let what = format!("{}: not the folder of a run, which has a log.jsonl", run.display());
            return Err(Error::new(ErrorKind::NotFound, what));
        }
        let config = serde_json::from_str(&read("config.json")?)
            .map_err(|_| Error::corrupt(format!("{}: not JSON", run.join("config.json").display())))?;
        let mut log = RunLog { config, steps: Vec::new(), evaluations: Vec::new(), test_readings: 0 };
        for line in read("log.jsonl")?.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Step(step)) => log.steps.push(step),
                Ok(Line::Evaluation(evaluation)) => log.evaluations.push(evaluation),
                Ok(Line::TestReading(_)) => log.test_readings += 1,
                Err(_) => {}
            }
        }
        Ok(log)
    }
}

/// A line of `log.jsonl`.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Step(StepLog),
    Evaluation(EvaluationLog),
    TestReading(serde::de::IgnoredAny),
}

/// The threads that the run in the folder `run` began with.
pub(crate) fn threads_of(run: &Path) -> Option<usize> {
    let config: Value = serde_json::from_slice(&fs::read(run.join("config.json")).ok()?).ok()?;
    config["config"]["threads"].as_u64().map(|n| n as usize).filter(|n| (1..=ampoule::MAX_THREADS).contains(n))
}

/// Notes in the log of the run that made `model` that it was measured on a test set. Choices made after such a reading are not
/// blind. A model outside a run folder has no log; nothing is noted then.
///
/// # Errors
/// [`NotFound`](ampoule::ErrorKind::NotFound) where the log cannot be written.
pub fn log_test_reading(model: &Path, data: &[String]) -> Result<()> {
    let Some(path) = model.parent().filter(|run| run.join("log.jsonl").is_file()) else {
        return Ok(());
    };
    RunFolder::unopened(path).log(&serde_json::json!({ "test_reading": { "data": data } }))
}

/// Notes in the log of `run` what is to be known of the student that it began with, unless it stands there.
///
/// # Errors
/// [`NotFound`](ampoule::ErrorKind::NotFound) where the log cannot be written.
pub fn log_start(run: &Path, start: &Value) -> Result<()> {
    let line = serde_json::json!({ "start": start });
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap_or_default();
    match log.lines().any(|known| serde_json::from_str(known).is_ok_and(|known: Value| known == line)) {
        true => Ok(()),
        false => RunFolder { path: run.to_owned(), _lock: None }.log(&line),
    }
}

pub(crate) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_log_is_read_but_for_the_line_that_a_kill_cut_short_and_older_ones_have_fewer_fields() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |run: &Path| RunLog::read(run).map(|_| ()).unwrap_err().kind();
        assert_eq!(kind(folder.path()), ampoule::ErrorKind::NotFound);
        fs::write(folder.path().join("config.json"), "{\"config\": {\"seed\": 7}}").unwrap();
        assert_eq!(kind(folder.path()), ampoule::ErrorKind::NotFound);
        let log = "{\"step\":{\"step\":1,\"loss\":0.5,\"terms\":{\"hard\":0.5}}}\n\
                   {\"evaluation\":{\"step\":1,\"dev_score\":0.25,\"precision\":null,\"recall\":null,\"best\":true}}\n\
                   {\"test_reading\":{\"data\":[\"x\"]}}\n{\"step\":{\"step\":2,\"lo";
        fs::write(folder.path().join("log.jsonl"), log).unwrap();
        let read = RunLog::read(folder.path()).unwrap();
        assert_eq!((read.steps.len(), read.evaluations.len(), read.test_readings), (1, 1, 1));
        assert_eq!((read.steps[0].loss, read.steps[0].stage, read.evaluations[0].dev_score), (0.5, 0, 0.25));
        assert_eq!(read.config["config"]["seed"], 7);
        fs::write(folder.path().join("config.json"), "{").unwrap();
        assert_eq!(kind(folder.path()), ampoule::ErrorKind::Corrupt);
    }

    #[test]
    fn one_process_at_a_time_trains_in_a_folder_and_another_run_is_told_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let identity =
            |seed: u64, teacher: &str| json!({ "config": { "seed": seed, "epochs": 1 }, "teacher_sha256": teacher });
        let open = |identity: &Value| RunFolder::open(folder.path(), identity);
        let first = open(&identity(1, "a")).unwrap();
        let error = open(&identity(1, "a")).err().unwrap().to_string();
        assert!(error.contains("another process trains in"), "{error}");
        drop(first);
        drop(open(&identity(1, "a")).unwrap());
        for (other, part) in [
            (identity(2, "a"), "of other seed;"),
            (identity(1, "b"), "of other teacher;"),
            (identity(2, "b"), "of other seed, teacher;"),
        ] {
            let error = open(&other).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
        }
        fs::write(folder.path().join("config.json"), "{").unwrap();
        assert!(open(&identity(1, "a")).is_err());
    }

    #[test]
    fn what_is_no_runs_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let identity = json!({ "config": { "seed": 1 } });
        let all = || -> Vec<(std::ffi::OsString, String)> {
            let files = fs::read_dir(folder.path()).unwrap().flatten().filter(|entry| entry.path().is_file());
            let mut all: Vec<_> =
                files.map(|file| (file.file_name(), fs::read_to_string(file.path()).unwrap())).collect();
            all.sort();
            all
        };
        let write = |name: &str, content: &str| fs::write(folder.path().join(name), content).unwrap();
        let refused = |what: &str| {
            let before = all();
            let error = RunFolder::open(folder.path(), &identity).err().unwrap().to_string();
            assert!(error.contains(what) && error.contains("name a new folder"), "{error}");
            assert_eq!(all(), before);
        };
        write(".partial-mine", "mine");
        for name in ["log.jsonl", "best-00000007", "model", "state.safetensors"] {
            write(name, "mine");
            refused(&format!("{name:?}"));
            fs::remove_file(folder.path().join(name)).unwrap();
        }
        // A checkpoint's folder has a config.json too.
        write("config.json", "{\"model_type\": \"bert\"}");
        refused("config.json");
        fs::remove_file(folder.path().join("config.json")).unwrap();

        // What a run does not write may lie there: notes, settings, the cache of a teacher, a trial's shapes.
        for name in ["lock", "notes.txt", "settings.json", "desktop.ini", "best-practice.md"] {
            write(name, "mine");
        }
        let run = RunFolder::open(folder.path(), &identity).unwrap();
        assert_eq!(all().into_iter().filter(|(_, content)| content == "mine").count(), 6);
        write(".partial-ours", "half");
        drop(run);
        let run = RunFolder::open(folder.path(), &identity).unwrap();
        assert!(!folder.path().join(".partial-ours").exists());
        let names = ["best-practice", "best-00000001", "best-00000002"];
        names.iter().for_each(|name| fs::create_dir(folder.path().join(name)).unwrap());
        run.remove_bests_but(Some(&Best { step: 2, score: 0.5, since: 0 }));
        assert_eq!(names.map(|name| folder.path().join(name).exists()), [true, false, true]);
    }
}
