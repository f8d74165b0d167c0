//! `ampoule report`: a run's learning and its models' scores, as a page for people and an object for programs.
//!
//! A verb of its own beside `evaluate`: that one prints what two models score, this one writes files about a run, which it reads. They
//! share the data's reading ([`Labelled`]), the measuring (`ampoule_distill::FoundEntities`, `FoundLabels`) and the statistics.

mod chart;
mod figures;
mod page;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ampoule::bundle::{Bundle, Precision, weights_sha256};
use ampoule::checkpoint::weight_files;
use ampoule::{Checkpoint, ModelConfig, Task};
use ampoule_distill::{RunLog, TypingNoise};
use anyhow::{Context, Result};

use self::figures::{
    Bootstraps, Found, Mistake, ModelReport, NoiseReport, NoisyScore, Report, Role, RunReport, Source,
};
use crate::data::{Corpus, Labelled, OffsetsArg, Split, note_reading, split_name, typing_noise};
use crate::doctor::{Machine, Speed};
use crate::evaluate::SEED;
use crate::input::RunningArgs;
use crate::inspect::{config_of, parameters, shape};
use crate::ui::{counter, hint, print_json, print_line};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of a finished run of `train` or `distill`; its model is measured, and its bundles model.PRECISION.safetensors
    #[arg(long, value_name = "FOLDER")]
    run: PathBuf,
    /// The teacher's checkpoint folder: what the others keep of its F1 is said. Without it they are compared with the run's model
    #[arg(long, value_name = "FOLDER")]
    teacher: Option<PathBuf>,
    /// More bundles or checkpoint folders
    #[arg(long = "model", value_name = "PATH")]
    models: Vec<PathBuf>,
    /// Labelled text: a file, or a folder with a file of the split; `PATH=Label,…` says which labels it covers
    #[arg(long, required = true, value_name = "PATH[=LABELS]")]
    data: Vec<String>,
    /// Which file of a folder; a file called train, dev or test is what it is called. That a run's model was measured on a test set is noted in
    /// the run's log, where that can be written
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    /// The unit of "start" and "end" in .jsonl lines that name none
    #[arg(long, value_enum, default_value = "utf8")]
    offsets: OffsetsArg,
    /// Folder for report.html and report.json; `report` in the run's folder unless it is named
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Show examples of the last model's errors, with their texts: both files then hold texts. Without it labels that no model has are
    /// numbered, since a text may stand in the place of one
    #[arg(long)]
    with_text: bool,
    /// Also score the texts with noise of typing in these shares of their words
    #[arg(long, value_name = "SHARES", value_delimiter = ',', default_values_t = [0.05, 0.1, 0.2])]
    noise: Vec<f64>,
    /// From which the noise follows
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    noise_seed: u64,
    /// Resamples of each bootstrap
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    resamples: u32,
    /// How long each model is timed, in a process of its own; with 0 nothing is timed, and the same files and seeds give the same bytes,
    /// but for how often the run was measured on the test set before
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    timing: f64,
    #[command(flatten)]
    running: RunningArgs,
    /// Print the object of report.json
    #[arg(long)]
    json: bool,
}

/// A model to be measured.
struct Candidate {
    role: Role,
    path: PathBuf,
    config: ModelConfig,
}

pub fn run(args: Args) -> Result<()> {
    if !(0.0..=600.0).contains(&args.timing) {
        return Err(hint("--timing is not a time of 0 to 600 seconds", "--timing 2, or 0 to time nothing"));
    }
    let noises = args.noise.iter().map(|&words| typing_noise(words)).collect::<Result<Vec<_>>>()?;
    let log = RunLog::read(&args.run)?;
    let candidates = candidates(&args)?;
    let corpora: Vec<Corpus> = args.data.iter().map(|c| Corpus::parse(c)).collect();
    let mut data = Labelled::read(&corpora, args.split, args.offsets.unit())?;
    let configs: Vec<ModelConfig> = candidates.iter().map(|candidate| candidate.config.clone()).collect();
    check(&candidates, &configs, &corpora, &data)?;
    if !args.with_text {
        data.number_unknown(&configs)?;
    }
    let sources = corpora.iter().zip(&args.data).map(|(corpus, name)| Source::read(name, &corpus.file(args.split)?));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report"));
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    note_reading(args.split, candidates.iter().map(|candidate| &candidate.path), &args.data)?;

    let bootstraps = Bootstraps { resamples: args.resamples as usize, seed: SEED };
    let noisy: Vec<Labelled> = noises.iter().map(|noise| data.noisy(noise, args.noise_seed)).collect();
    let options = args.running.options()?;
    let mut models: Vec<ModelReport> = Vec::new();
    let mut first: Option<Found> = None;
    let mut mistakes = None;
    let bar = counter(candidates.len() * (1 + noisy.len()) * data.texts().len(), "texts");
    for (number, candidate) in candidates.iter().enumerate() {
        let found = Found::run(&candidate.path, &options, &data, || bar.inc(1))?;
        let noise = noisy.iter().zip(&noises).map(|(texts, noise)| {
            let noisy = Found::run(&candidate.path, &options, texts, || bar.inc(1))?;
            Ok(NoisyScore::new(noise.words, &noisy, &found, bootstraps))
        });
        let noise = noise.collect::<Result<Vec<_>>>()?;
        if args.with_text && number + 1 == candidates.len() {
            mistakes = Some(Mistake::of(&found, &data));
        }
        let about = about(candidate, found.temperature, &log)?;
        let speed = if args.timing > 0.0 { Some(speed(&args, &candidate.path)?) } else { None };
        models.push(ModelReport::new(about, &found, first.as_ref(), noise, speed, &args.data, bootstraps)?);
        first.get_or_insert(found);
    }
    bar.finish_and_clear();
    let report = Report {
        format: figures::FORMAT,
        version: figures::VERSION,
        producer: concat!("ampoule ", env!("CARGO_PKG_VERSION")),
        holds_text: args.with_text,
        task: candidates[0].config.task.as_str(),
        run: RunReport::new(&args.run, &log),
        split: split_name(&args.data, args.split),
        data: sources,
        bootstraps,
        noise: NoiseReport { seed: args.noise_seed, settings: TypingNoise::default().into() },
        models,
        machine: Machine::this(),
        mistakes,
    };
    let json = serde_json::to_value(&report)?;
    write(&out.join("report.json"), &format!("{json:#}\n"))?;
    write(&out.join("report.html"), &page::html(&report))?;
    if args.json {
        return print_json(&json);
    }
    let note = if args.with_text { ", with texts of the data" } else { "" };
    print_line(&format!("{}{note}", out.join("report.html").display()))
}

/// Written aside and renamed.
fn write(path: &Path, content: &str) -> Result<()> {
    Ok(ampoule::checkpoint::write_aside(path, content.as_bytes())?)
}

/// The teacher, the run's model, its bundles, and what else is named; what was compared with first, what an app gets last.
fn candidates(args: &Args) -> Result<Vec<Candidate>> {
    let model = args.run.join("model");
    if !model.is_dir() {
        let message = format!("{}: the run has no model yet", args.run.display());
        return Err(hint(message, "the command of the run once more, which finishes it"));
    }
    let bundles = [Precision::F32, Precision::F16, Precision::Int8];
    let bundles = bundles.map(|precision| args.run.join(format!("model.{precision}.safetensors")));
    let named = |paths: &[PathBuf]| paths.iter().map(|path| (Role::Model, path.clone())).collect::<Vec<_>>();
    let mut all: Vec<(Role, PathBuf)> = args.teacher.iter().map(|path| (Role::Teacher, path.clone())).collect();
    all.push((Role::Run, model));
    all.extend(bundles.into_iter().filter(|path| path.is_file()).map(|path| (Role::Bundle, path)));
    all.extend(named(&args.models));
    let mut seen = Vec::new();
    // What is named may be what the run's folder holds.
    all.retain(|(_, path)| {
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        let is_new = !seen.contains(&path);
        seen.push(path);
        is_new
    });
    all.into_iter().map(|(role, path)| Ok(Candidate { role, config: config_of(&path)?, path })).collect()
}

/// Refuses models that do not answer what the data asks, before the first is measured.
fn check(candidates: &[Candidate], configs: &[ModelConfig], corpora: &[Corpus], data: &Labelled) -> Result<()> {
    let labels = |candidate: &Candidate| candidate.config.id2label.iter().cloned().collect::<BTreeSet<String>>();
    for candidate in candidates {
        let (path, task) = (candidate.path.display(), candidate.config.task);
        let (what, fits) = match data {
            Labelled::Entities(_) => ("entities", task == Task::TokenClassification),
            Labelled::Labels(_) => ("labels of whole texts", matches!(task, Task::SingleLabel | Task::MultiLabel)),
        };
        if !fits || task != candidates[0].config.task {
            return Err(hint(
                format!("{path}: its task is {}, and the data marks {what}", task.as_str()),
                "models of one task, and data of the kind that they were trained on",
            ));
        }
        if task != Task::TokenClassification && labels(candidate) != labels(&candidates[0]) {
            return Err(hint(
                format!("{path}: its labels are not those of {}", candidates[0].path.display()),
                "models with the same labels; `ampoule inspect` lists them",
            ));
        }
    }
    match data {
        Labelled::Entities(sets) => corpora.iter().zip(sets).try_for_each(|(c, set)| c.check_known(set, configs)),
        Labelled::Labels(texts) => Corpus::check_known_labels(texts, configs),
    }
}

/// What a model is, whose scores are at this temperature.
fn about(candidate: &Candidate, temperature: f32, log: &RunLog) -> Result<figures::About> {
    let path = &candidate.path;
    let (precision, sha256, bytes) = if path.is_dir() {
        let checkpoint = Checkpoint::open(path)?;
        (Precision::F32, weights_sha256(&checkpoint.weights), bytes_of(path)?)
    } else {
        let info = Bundle::inspect(path)?;
        (info.metadata.precision, info.source_sha256, info.bytes)
    };
    let taught = log.teachers();
    let has_teacher = !taught.is_empty();
    let is_runs_teacher = match candidate.role {
        Role::Teacher if has_teacher => Some(taught.contains(&sha256.as_str())),
        _ => None,
    };
    Ok(figures::About {
        name: match candidate.role {
            Role::Teacher => "teacher".to_owned(),
            Role::Run if has_teacher => "student".to_owned(),
            Role::Run => "run's model".to_owned(),
            _ => {
                path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
            }
        },
        role: candidate.role,
        path: path.display().to_string(),
        precision: precision.as_str(),
        shape: shape(&candidate.config),
        parameters: parameters(&candidate.config),
        bytes,
        temperature,
        weights_sha256: sha256,
        is_runs_teacher,
    })
}

/// Bytes of a checkpoint: the weights that opening reads, configuration and tokenizer.
fn bytes_of(folder: &Path) -> Result<u64> {
    let place = || folder.display().to_string();
    let mut files = weight_files(folder).map_err(|e| e.context(place()))?;
    for entry in std::fs::read_dir(folder).with_context(place)? {
        let path = entry.with_context(place)?.path();
        let is_one = |kind: &str| path.extension().is_some_and(|extension| extension == kind);
        files.extend(((is_one("json") || is_one("txt")) && path.is_file()).then_some(path));
    }
    // A folder of a model hub's cache holds links.
    let bytes = |file: &PathBuf| Ok(std::fs::metadata(file).with_context(|| file.display().to_string())?.len());
    files.iter().map(bytes).sum()
}

/// Times a model in a process of its own, so that its peak of memory is its own.
fn speed(args: &Args, model: &Path) -> Result<Speed> {
    let failed = || {
        let what = format!("{}: the process that times it failed", model.display());
        hint(what, "`ampoule doctor --model` with it says why; or --timing 0")
    };
    let program = std::env::current_exe().map_err(|_| failed())?;
    let output = std::process::Command::new(program)
        .args(["doctor", "--json", "--seconds", &args.timing.to_string(), "--model"])
        .arg(model)
        .args(args.running.arguments())
        .output()
        .map_err(|_| failed())?;
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| failed())?;
    serde_json::from_value(said["speed"].clone()).map_err(|_| failed())
}
