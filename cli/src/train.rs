//! `ampoule train`: a teacher from a checkpoint and labelled text.

use std::path::PathBuf;

use ampoule::bundle::Precision;
use ampoule::checkpoint::NewHead;
use ampoule::{Checkpoint, Device, Task};
use ampoule_distill::{
    Data, Outcome, Plan, PlannedStage, Teacher, TrainConfig, check_run_folder, dump_batches, log_start, merge, plan,
    student_from_teacher, train,
};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::data::DataArgs;
use crate::distill::ShapeArgs;
use crate::quantize;
use crate::ui::{TrainingView, fitted, hint, note_json, note_line, stop_on_ctrl_c, table};

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder to start from; its encoder, or all of it where its labels are the data's. Queries of passages train the
    /// encoder itself, as one that embeds texts
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    data: DataArgs,
    /// A text may have several labels, or none
    #[arg(long)]
    multi_label: bool,
    /// Write the start and the batches of the first epoch to this folder, and do not train. They hold the texts' token ids;
    /// examples/produce/reference.py repeats them in torch
    #[arg(long, value_name = "FOLDER", conflicts_with = "plan")]
    dump_batches: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

/// Where and how a run trains; shared with `distill`.
#[derive(clap::Args)]
pub struct RunArgs {
    /// Folder of the run, a new one; a run that is there already goes on
    #[arg(long, value_name = "FOLDER")]
    pub run: PathBuf,
    /// JSON file of settings; `--set` and the options below come after it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Change one setting, as in `--set optimizer.learning_rate=1e-4`
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// From which everything random follows, for one number of threads
    #[arg(long)]
    seed: Option<u64>,
    /// Times that the training texts are gone through
    #[arg(long)]
    epochs: Option<usize>,
    /// Worker threads; 0 for as many as there are cores, at most four
    #[arg(long)]
    threads: Option<usize>,
    /// Where teacher and student are computed; a GPU needs a build with `--features ampoule-cli/wgpu`
    #[arg(long, value_parser = ["cpu", "gpu"])]
    device: Option<String>,
    /// The GPU's adapter, by a part of its name; software in a GPU's place has to be named. `ampoule doctor` lists them
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Make a few steps, say how long the run will take and how much of the processor's memory, and end
    #[arg(long)]
    pub plan: bool,
    /// Print each evaluation and the outcome as JSON objects
    #[arg(long)]
    pub json: bool,
}

/// Whether a stage has the setting of this name, `optimizer.learning_rate` for one, and has it whole.
fn has(stage: &Map<String, Value>, name: &str) -> bool {
    let mut fields = name.split('.');
    let first = fields.next().and_then(|field| stage.get(field));
    fields.fold(first, |value, field| value?.get(field)).is_some_and(|value| !value.is_object())
}

impl RunArgs {
    /// The settings: `defaults`, then the file's, then the options'.
    pub fn settings(&self, defaults: &TrainConfig) -> Result<TrainConfig> {
        let mut all = serde_json::to_value(defaults)?;
        if let Some(path) = &self.config {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let text = text.trim_start_matches('\u{feff}');
            let mut file: serde_json::Value =
                serde_json::from_str(text).with_context(|| format!("{}: not JSON", path.display()))?;
            // That of a run's folder has them beside what else tells the run from others.
            if file["config"].is_object() && file["data_sha256"].is_string() {
                file = file["config"].take();
            }
            merge(&mut all, &file);
        }
        for setting in &self.set {
            let (name, value) = setting
                .split_once('=')
                .ok_or_else(|| hint(format!("--set {setting:?} has no `=`"), "--set optimizer.learning_rate=1e-4"))?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            let nested = name.rsplit('.').fold(value, |value, field| json!({ field: value }));
            merge(&mut all, &nested);
        }
        let mut settings: TrainConfig = serde_json::from_value(all).map_err(|e| {
            hint(
                format!("settings: {e}"),
                "the settings in `config.json` of any run folder; that file can be given as it is",
            )
        })?;
        let options = self.set.iter().filter_map(|setting| setting.split_once('=')).map(|(name, _)| (name, "--set"));
        for (name, option) in options.chain(self.epochs.map(|_| ("epochs", "--epochs"))) {
            if !settings.stages.is_empty() && settings.stages.iter().all(|stage| has(stage, name)) {
                return Err(hint(
                    format!("{option} changes nothing: each of the run's stages has its own {name}"),
                    format!("the settings without {name} in the stage that is to have another"),
                ));
            }
        }
        settings.seed = self.seed.unwrap_or(settings.seed);
        settings.epochs = self.epochs.unwrap_or(settings.epochs);
        settings.threads = self.threads.unwrap_or(settings.threads);
        settings.device = match self.device.as_deref() {
            Some("gpu") => Device::Gpu,
            Some(_) => Device::Cpu,
            None => settings.device,
        };
        settings.adapter = self.adapter.clone().or(settings.adapter);
        Ok(settings)
    }

    /// Says what the student begins with, as a line or as an object, and puts it into `start`.
    pub fn say(&self, start: &mut Map<String, Value>, name: &str, report: Value, line: &str) -> Result<()> {
        match self.json {
            true => note_json(&json!({ name: report }))?,
            false => note_line(line)?,
        }
        start.insert(name.to_owned(), report);
        Ok(())
    }

    /// Notes in the run's log what its student began with.
    pub fn log_start(&self, start: &Value) -> Result<()> {
        Ok(log_start(&self.run, start)?)
    }

    /// The quantization of the run's model, measured on the dev sets of `data`.
    pub fn bundle(&self, precision: Precision, data: &DataArgs) -> quantize::Args {
        let out = self.run.join(format!("model.{precision}.safetensors"));
        let mut args = quantize::Args::new(self.run.join("model"), out, precision, data);
        args.json = self.json;
        args
    }

    fn show(&self, plan: &Plan) -> Result<()> {
        if self.json {
            return note_json(&serde_json::to_value(plan)?);
        }
        let head =
            ["stage", "steps", "tokens", "ms a step", "evaluations", "s each", "minutes"].map(str::to_owned).to_vec();
        let row = |(number, stage): (usize, &PlannedStage)| {
            let seconds = stage.seconds_per_step * stage.steps as f64;
            vec![
                number.to_string(),
                stage.steps.to_string(),
                stage.tokens.to_string(),
                format!("{:.0}", 1e3 * stage.seconds_per_step),
                stage.evaluations.to_string(),
                format!("{:.1}", stage.seconds_per_evaluation),
                format!("{:.1}", (seconds + stage.seconds_per_evaluation * stage.evaluations as f64) / 60.0),
            ]
        };
        let rows: Vec<Vec<String>> = std::iter::once(head).chain((1..).zip(&plan.stages).map(row)).collect();
        note_line(table(&rows).trim_end())?;
        let mib = |bytes: f64| format!("{:.0} MiB", bytes / f64::from(1 << 20));
        let memory = plan.peak_bytes.map(|bytes| format!(", {} of memory", mib(bytes as f64))).unwrap_or_default();
        note_line(&format!(
            "about {:.1} minutes with {} threads, if the machine stays as it was in the last seconds{memory}, {} of disk",
            plan.seconds / 60.0,
            plan.threads,
            mib(plan.disk_bytes as f64),
        ))
    }

    /// Trains, and says how it ended.
    pub fn train(
        &self,
        student: Checkpoint,
        teacher: Option<Teacher>,
        data: &Data,
        settings: &TrainConfig,
    ) -> Result<()> {
        if self.plan {
            return self.show(&plan(student, teacher, data, settings)?);
        }
        let stop = stop_on_ctrl_c()?;
        let mut view = TrainingView::new(self.json, data.metric());
        let outcome = train(student, teacher, data, settings, &self.run, &stop, &mut view)?;
        view.finish();
        match outcome {
            Outcome::Finished { dev_score, step, fit } => {
                let model = self.run.join("model");
                if self.json {
                    return note_json(&json!({"model": model, "dev_score": dev_score, "step": step, "fit": fit}));
                }
                // Embeddings have no temperature.
                if dev_score.is_some() && !matches!(data, Data::Search { .. }) {
                    note_line(
                        &fit.map_or("temperature 1: the dev set determines none".to_owned(), |fit| fitted(&fit)),
                    )?;
                }
                let dev = |score: f64| format!("dev {} {:.2}, ", data.metric(), 100.0 * score);
                let score = dev_score.map(dev).unwrap_or_default();
                note_line(&format!("{} ({score}step {step})", model.display()))
            }
            Outcome::Interrupted { step } => Err(hint(
                format!("stopped after step {step}; the run is saved in {}", self.run.display()),
                "run the same command again to go on",
            )),
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    check_run_folder(&args.run.run)?;
    let data = args.data.read()?;
    let settings = args.run.settings(&args.data.defaults(&data))?;
    let task = match (&data, args.multi_label) {
        (Data::Labels { .. }, true) => Task::MultiLabel,
        (Data::Labels { .. }, false) => Task::SingleLabel,
        (_, true) => return Err(hint("--multi-label: the data has no labels of whole texts", "without it")),
        (Data::Entities { .. }, false) => Task::TokenClassification,
        (Data::Search { .. }, false) => Task::Encoder,
    };
    if task != Task::Encoder && !args.data.transfer.is_empty() {
        return Err(hint(
            "--transfer: texts without labels need a teacher to say something of them",
            "`ampoule distill --teacher FOLDER`; `extract --json --with-text` of any model makes labels of them",
        ));
    }
    let labels = args.data.labels(&data);
    let (config, _) = Checkpoint::inspect(&args.model)?;
    // The order of labels is the model's own.
    let is_same = config.id2label.len() == labels.len() && labels.iter().all(|label| config.id2label.contains(label));
    let student = match config.task == task && is_same {
        true => Checkpoint::open(&args.model)?,
        false => {
            args.data.check_taught(&data, task)?;
            Checkpoint::open_with_head(&args.model, &NewHead { task, labels, seed: settings.seed })?
        }
    };
    let student = match args.shape.layers.is_empty() {
        true => student,
        false => student_from_teacher(&student, &args.shape.shape())?.0,
    };
    if let Some(folder) = &args.dump_batches {
        return Ok(dump_batches(&student, &data, &settings, folder)?);
    }
    args.run.train(student, None, &data, &settings)
}
