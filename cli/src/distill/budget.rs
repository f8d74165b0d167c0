//! `ampoule distill --budget`: which student fits a device, and is the best of those that do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ampoule::bundle::Precision;
use ampoule::checkpoint::write_aside;
use ampoule::{Checkpoint, Error, ModelConfig, Options};
use ampoule_distill::{
    Budget, Candidate, Costs, Data, Found, Limit, Measured, Outcome, Plan, TrainConfig, plan, search, stand_in, train,
    tries,
};
use ampoule_quantize::{QuantizeOptions, bundle_bytes, quantize};
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Args;
use crate::doctor::{self, Model};
use crate::ui::{TrainingView, hint, note_json, note_line, spinner, stop_on_ctrl_c, table};

#[derive(clap::Args)]
pub struct BudgetArgs {
    /// In place of --layers, the device's limits: bytes of the bundle, time for a text of so many tokens, or both, as in
    /// `--budget "4 MB, 5 ms@128"`. Shapes that fit are found without training, their time by models of these shapes on this machine;
    /// the one that computes most and a few unlike it are trained for a tenth of the steps, in `budget` in the run's folder, and the
    /// best of these to the end. With --plan it ends when it has said which these are, and how long that takes. The precision is int8 unless
    /// it is named
    #[arg(long, value_name = "LIMITS", conflicts_with_all = ["layers", "student"])]
    budget: Option<String>,
    /// The number of shapes that are trained for a tenth of the steps; of one alone, no shape is
    #[arg(long, value_name = "N", default_value_t = 3, requires = "budget", conflicts_with_all = ["layers", "student"])]
    tries: usize,
    /// Threads that the device has for the model, while its time is measured
    #[arg(long, value_name = "N", default_value_t = 1, requires = "budget", conflicts_with_all = ["layers", "student"])]
    device_threads: usize,
}

/// Of the long run's steps, those of a try.
const SHARE: usize = 10;
/// How long a model's calls are timed.
const TIMED: Duration = Duration::from_millis(300);
/// As long as a fitted temperature can be: what it takes in a bundle's header is counted.
const TEMPERATURE: f32 = 12.3456;
/// Other shapes that fit, of which a table tells.
const OTHERS: usize = 8;

impl BudgetArgs {
    pub fn is_given(&self) -> bool {
        self.budget.is_some()
    }

    fn limits(&self) -> Result<Budget> {
        let limits = self.budget.as_deref().unwrap_or_default().parse::<Budget>();
        limits.map_err(|e| hint(e.to_string(), "--budget \"4 MB, 5 ms@128\", or one of the two"))
    }

    /// Says whether the bundle that was made fits.
    pub fn check(&self, bundle: &Path, json: bool) -> Result<()> {
        let limits = self.limits()?;
        let bytes = fs::metadata(bundle).with_context(|| bundle.display().to_string())?.len();
        let milliseconds = match limits.time {
            Some(time) => {
                let model = Model::open(Some(bundle), &self.options())?;
                let (text, _) = doctor::text(model.tokenizer(), time.tokens)?;
                Some(model.milliseconds(&text, TIMED)?.median)
            }
            None => None,
        };
        let broken = limits.broken(bytes, milliseconds);
        let time = milliseconds.map(|t| format!(", {t:.4} ms")).unwrap_or_default();
        let what = format!("{}: {}{time}", bundle.display(), megabytes(bytes));
        if json {
            let bundle = json!({"bytes": bytes, "milliseconds": milliseconds, "breaks": broken});
            note_json(&json!({ "budget": limits, "bundle": bundle }))?;
        } else if broken.is_none() {
            note_line(&format!("{what}: fits {limits}"))?;
        }
        match broken {
            Some(_) => Err(hint(
                format!("{what}: does not fit {limits} by this measurement; it is there all the same"),
                "a budget with some room, or `ampoule doctor --model` on a machine that does nothing else",
            )),
            None => Ok(()),
        }
    }

    fn options(&self) -> Options {
        Options { threads: self.device_threads, ..Options::default() }
    }
}

/// What a search found, so that one that was killed goes on with the same shapes, whatever the machine's times are then.
#[derive(Serialize, Deserialize)]
struct Record {
    /// What it was for.
    of: Value,
    found: Found,
    /// Of a try, stage by stage; empty before it is known.
    steps: Vec<usize>,
}

impl Record {
    /// The one at `path`, if it is there. One of another search is none where no try was begun, as after a plan.
    fn read(path: &Path, of: &Value) -> Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path, e).into()),
        };
        let record = serde_json::from_slice::<Record>(&bytes).ok().filter(|record| record.of == *of);
        let beside = path.parent().and_then(|folder| fs::read_dir(folder).ok());
        if record.is_none() && !beside.into_iter().flatten().flatten().any(|entry| entry.path().is_dir()) {
            return Ok(None);
        }
        let other = || {
            hint(
                format!(
                    "{} is of a search for another budget or precision, or by another teacher, vocabulary, data or settings",
                    path.display()
                ),
                "another run folder, or delete this file's folder",
            )
        };
        record.ok_or_else(other).map(Some)
    }

    fn write(&self, path: &Path) -> Result<()> {
        make_folder_of(path)?;
        Ok(write_aside(path, format!("{:#}\n", serde_json::to_value(self)?).as_bytes())?)
    }
}

fn make_folder_of(path: &Path) -> ampoule::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))
}

/// This machine in the place of the device.
struct Device {
    tokenizer_json: Vec<u8>,
    quantize: QuantizeOptions,
    options: Options,
    /// Of the budget's number of tokens.
    text: String,
    /// Where a bundle stands while it is measured.
    bundle: PathBuf,
    measured: ProgressBar,
}

impl Costs for Device {
    fn bytes(&mut self, config: &ModelConfig) -> ampoule::Result<u64> {
        bundle_bytes(config, &self.tokenizer_json, &self.quantize)
    }

    fn milliseconds(&mut self, config: &ModelConfig, _: usize) -> ampoule::Result<f64> {
        self.write(config)?;
        let model = Model::open(Some(&self.bundle), &self.options)?;
        let times = model.milliseconds(&self.text, TIMED)?;
        fs::remove_file(&self.bundle).map_err(|e| Error::io(&self.bundle, e))?;
        self.measured.inc(1);
        Ok(times.median)
    }
}

impl Device {
    /// The bundle of such a model before it is trained, as it will be written when it is.
    fn write(&self, config: &ModelConfig) -> ampoule::Result<()> {
        make_folder_of(&self.bundle)?;
        quantize(config, &stand_in(config), &self.tokenizer_json, &self.bundle, &self.quantize, None, None).map(drop)
    }
}

/// A student that is trained for a while, and how it is then trained to the end.
struct Try {
    measured: Measured,
    student: Checkpoint,
    settings: TrainConfig,
    run: PathBuf,
}

impl Try {
    fn is_done(&self) -> bool {
        self.run.join("model").is_dir()
    }

    /// A part of the long run's steps.
    fn brief(&self, steps: &[usize]) -> TrainConfig {
        let mut settings = self.settings.clone();
        // There is a stage at least where the precision is int8.
        for (stage, &steps) in settings.stages.iter_mut().zip(steps) {
            stage.insert("steps".to_owned(), steps.into());
        }
        if settings.stages.is_empty() {
            settings.steps = steps.first().copied();
        }
        settings
    }
}

/// Puts the best student that fits into the arguments, in place of the budget's search; false where no more than a plan is asked for, which
/// it has shown.
pub fn choose(args: &mut Args, teachers: &[Checkpoint], data: &Data) -> Result<bool> {
    let Some(teacher) = teachers.first() else { return Ok(true) };
    let limits = args.budget.limits()?;
    if args.budget.tries == 0 {
        return Err(hint("--tries 0: there would be no student", "--tries 3"));
    }
    if args.budget.device_threads == 0 {
        return Err(hint("--device-threads 0: the device would have none", "--device-threads 1"));
    }
    let settings = serde_json::to_value(args.run.settings(&TrainConfig::default())?)?;
    if names_layers(&settings) {
        return Err(hint(
            "the settings have a term with a layer_map, and --budget chooses the layers",
            "settings without `terms`, to which those of the chosen layers are added",
        ));
    }
    let precision = *args.precision.get_or_insert(Precision::Int8);
    let pruned = args.pruned(teacher.clone(), data, None)?;
    let folder = args.run.run.join("budget");
    let tokens = limits.time.map_or(doctor::TOKENS, |time| time.tokens).min(pruned.config.max_tokens());
    let (text, tokens) = doctor::text(&pruned.tokenizer, tokens)?;
    let mut device = Device {
        tokenizer_json: pruned.tokenizer.to_json(),
        quantize: QuantizeOptions {
            precision,
            pooling: pruned.pooling,
            temperature: TEMPERATURE,
            ..QuantizeOptions::default()
        },
        options: args.budget.options(),
        text,
        bundle: folder.join("measured.safetensors"),
        measured: spinner("models measured"),
    };

    let path = folder.join("search.json");
    let of = json!({
        "budget": limits.to_string(), "precision": precision, "device_threads": args.budget.device_threads,
        "vocabulary": args.vocabulary, "embedding": args.embedding, "teacher": teacher.config.to_json(),
        "settings": settings, "data_sha256": data.sha256(),
    });
    let mut record = match Record::read(&path, &of)? {
        Some(record) => record,
        None => {
            let found = search(&limits, &pruned.config, args.embedding, &mut device)?;
            if found.fits.is_empty() {
                return Err(nothing_fits(&limits, &found, device.tokenizer_json.len(), &pruned.config));
            }
            let record = Record { of, found, steps: Vec::new() };
            record.write(&path)?;
            record
        }
    };
    let mut chosen: Vec<Measured> = tries(&record.found.fits, args.budget.tries).into_iter().cloned().collect();
    for one in &mut chosen {
        if one.milliseconds.is_none() {
            one.milliseconds = Some(device.milliseconds(&one.candidate.config(&pruned.config)?, tokens)?);
        }
    }
    device.measured.finish_and_clear();
    show(&limits, &record.found, &chosen, tokens, args)?;
    if let [only] = chosen.as_slice() {
        args.take(&only.candidate);
        return Ok(true);
    }

    let mut all = Vec::new();
    for measured in chosen {
        args.take(&measured.candidate);
        let (student, layer_map) = args.cut(&pruned, data, None)?;
        let settings = args.settings(&student.config, layer_map, &teacher.config, data)?;
        let run = folder.join(name(&measured));
        all.push(Try { measured, student, settings, run });
    }
    announce(&all, &mut record, &path, args, teachers, data)?;
    if args.run.plan {
        return Ok(false);
    }

    let mut scored = Vec::new();
    let stop = stop_on_ctrl_c()?;
    for one in all {
        // Only what is chosen speaks on stdout.
        let mut view = TrainingView::new(false, data.metric());
        let brief = one.brief(&record.steps);
        let outcome = train(one.student, args.taught_by(teachers.to_vec()), data, &brief, &one.run, &stop, &mut view)?;
        view.finish();
        match outcome {
            Outcome::Finished { dev_score, .. } => scored.push((one.measured, dev_score)),
            Outcome::Interrupted { step } => {
                return Err(hint(
                    format!("stopped after step {step} of a try; it is saved in {}", one.run.display()),
                    "run the same command again to go on",
                ));
            }
        }
    }
    // Of equals the one that computes the most, or that was chosen first.
    let score = |(_, score): &&(Measured, Option<f64>)| score.unwrap_or(f64::NEG_INFINITY);
    let best = scored.iter().rev().max_by(|a, b| score(a).total_cmp(&score(b)));
    let (best, _) = best.ok_or_else(|| hint("no shape was tried", "--tries 3"))?;
    let command =
        command(std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()), &best.candidate, precision);
    if args.run.json {
        let tries = scored.iter().map(|(one, score)| json!({"shape": one, "dev_score": score})).collect::<Vec<_>>();
        note_json(&json!({"tries": tries, "best": best, "command": command}))?;
    } else {
        let metric = format!("dev {}", data.metric());
        let mut rows = vec![head(&metric)];
        let percent = |score: &Option<f64>| score.map_or("-".to_owned(), |score| format!("{:.2}", 100.0 * score));
        rows.extend(scored.iter().map(|(one, score)| row(one, percent(score))));
        note_line(&table(&rows))?;
        note_line(&format!("the best goes on to the long run, as by\n  {command}"))?;
    }
    args.take(&best.candidate);
    Ok(true)
}

/// Whether a setting pairs layers of a student's with its teacher's.
fn names_layers(settings: &Value) -> bool {
    match settings {
        Value::Object(fields) => fields.iter().any(|(name, value)| name == "layer_map" || names_layers(value)),
        Value::Array(values) => values.iter().any(names_layers),
        _ => false,
    }
}

/// Says how long the tries and the long run take, by some steps of each, and notes how many steps a try has.
fn announce(
    all: &[Try],
    record: &mut Record,
    path: &Path,
    args: &Args,
    teachers: &[Checkpoint],
    data: &Data,
) -> Result<()> {
    let mut plans: Vec<(&Measured, Plan)> = Vec::new();
    for one in all.iter().filter(|one| !one.is_done() || record.steps.is_empty()) {
        plans.push((&one.measured, plan(one.student.clone(), args.taught_by(teachers.to_vec()), data, &one.settings)?));
    }
    let Some((_, first)) = plans.first() else { return Ok(()) };
    if record.steps.is_empty() {
        record.steps = first.stages.iter().map(|stage| stage.steps.div_ceil(SHARE)).collect();
        record.write(path)?;
    }
    let steps = record.steps.iter().sum::<usize>();
    let seconds = |plan: &Plan| -> f64 {
        let stages = plan.stages.iter().zip(&record.steps);
        stages
            .map(|(stage, &steps)| {
                let evaluations = (stage.evaluations * steps).div_ceil(stage.steps.max(1));
                stage.seconds_per_step * steps as f64 + stage.seconds_per_evaluation * evaluations as f64
            })
            .sum()
    };
    let tries: f64 = plans.iter().map(|(_, plan)| seconds(plan)).sum();
    if args.run.json {
        let each = plans.iter().map(
            |(one, plan)| json!({"shape": one.candidate, "steps": steps, "seconds": seconds(plan), "long_run": plan}),
        );
        return note_json(&json!({"plan": {"seconds_of_tries": tries, "tries": each.collect::<Vec<_>>()}}));
    }
    let long = plans.iter().map(|(_, plan)| plan.seconds / 60.0);
    let (least, most) = long.fold((f64::INFINITY, 0.0f64), |(low, high), t| (low.min(t), high.max(t)));
    note_line(&format!(
        "tries left: {} of {steps} steps each, about {:.1} minutes in all with {} threads; then the long run of the best, about {least:.1} \
         to {most:.1}",
        plans.len(),
        tries / 60.0,
        first.threads
    ))
}

fn nothing_fits(limits: &Budget, found: &Found, tokenizer: usize, teacher: &ModelConfig) -> anyhow::Error {
    let fastest = found.breaks.iter().filter(|one| one.milliseconds.is_some());
    let fastest = fastest.min_by(|a, b| a.milliseconds.unwrap_or(0.0).total_cmp(&b.milliseconds.unwrap_or(0.0)));
    if let Some((one, time)) = fastest.and_then(|one| Some((one, one.milliseconds?))) {
        return hint(
            format!(
                "no student of this teacher fits {limits}: of those small enough, the fastest takes {time:.2} ms, {}",
                words(one)
            ),
            "more milliseconds, or fewer tokens; --device-threads where the device has more than one",
        );
    }
    match found.breaks.iter().min_by_key(|one| one.bytes) {
        Some(one) => hint(
            format!(
                "no student of this teacher fits {limits}: the smallest takes {}, {}; its tokenizer has {} of them, and its {} pieces \
                 {} values each",
                megabytes(one.bytes),
                words(one),
                megabytes(tokenizer as u64),
                teacher.vocab_size,
                one.embedding_size
            ),
            "a larger budget, or --vocabulary N with fewer pieces",
        ),
        None => hint(format!("no student of this teacher can be made for {limits}"), "--layers and --hidden"),
    }
}

/// The shape in words.
fn words(one: &Measured) -> String {
    let shape = &one.candidate.shape;
    format!(
        "{} layers, hidden {}, feed-forward {}, embeddings {}",
        shape.layers.len(),
        shape.hidden_size.unwrap_or_default(),
        shape.intermediate_size.unwrap_or_default(),
        one.embedding_size
    )
}

/// A folder's name.
fn name(one: &Measured) -> String {
    let shape = &one.candidate.shape;
    let [hidden, intermediate] = [shape.hidden_size, shape.intermediate_size].map(Option::unwrap_or_default);
    format!("{}-layers-{hidden}-{intermediate}-{}", shape.layers.len(), one.embedding_size)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

fn head(last: &str) -> Vec<String> {
    ["layers", "hidden", "heads", "feed-forward", "embeddings", "parameters", "bundle", "ms", last]
        .map(str::to_owned)
        .to_vec()
}

fn row(one: &Measured, last: String) -> Vec<String> {
    let shape = &one.candidate.shape;
    let named = |width: Option<usize>| width.unwrap_or_default().to_string();
    vec![
        shape.layers.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
        named(shape.hidden_size),
        named(shape.num_attention_heads),
        named(shape.intermediate_size),
        one.embedding_size.to_string(),
        format!("{:.2} M", one.parameters as f64 / 1e6),
        megabytes(one.bytes),
        one.milliseconds.map_or("-".to_owned(), |t| format!("{t:.2}")),
        last,
    ]
}

/// The students to be tried, others that fit, and those of a layer too many.
fn show(limits: &Budget, found: &Found, chosen: &[Measured], tokens: usize, args: &Args) -> Result<()> {
    let try_of = |one: &Measured| chosen.iter().position(|c| c.candidate == one.candidate).map(|i| i + 1);
    let threads = args.budget.device_threads;
    if args.run.json {
        let object = |one: &Measured| {
            let mut object = json!(chosen.iter().find(|c| c.candidate == one.candidate).unwrap_or(one));
            object["breaks"] = json!(limits.broken(one.bytes, one.milliseconds));
            object["try"] = json!(try_of(one));
            object
        };
        let shapes: Vec<Value> = found.fits.iter().chain(&found.breaks).map(object).collect();
        return note_json(&json!({
            "budget": limits, "precision": args.precision, "device_threads": threads, "tokens": tokens, "shapes": shapes
        }));
    }
    let widths =
        |one: &Measured| (one.candidate.shape.hidden_size, one.candidate.shape.intermediate_size, one.embedding_size);
    let mut rows = vec![head("fits")];
    rows.extend((1..).zip(chosen).map(|(number, one)| row(one, format!("try {number}"))));
    let others: Vec<&Measured> = found.fits.iter().filter(|one| try_of(one).is_none()).collect();
    rows.extend(others.iter().take(OTHERS).map(|one| row(one, "yes".to_owned())));
    for one in found.breaks.iter().filter(|one| chosen.iter().any(|c| widths(c) == widths(one))) {
        let why = match limits.broken(one.bytes, one.milliseconds) {
            Some(Limit::Bytes) => "too large",
            _ => "too slow",
        };
        rows.push(row(one, why.to_owned()));
    }
    note_line(&table(&rows))?;
    let more = match others.len().saturating_sub(OTHERS) {
        0 => String::new(),
        n => format!("; {n} more shapes fit"),
    };
    note_line(&format!(
        "bundles in {}, times of {tokens} tokens on this machine, {threads} thread(s), median{more}",
        args.precision.unwrap_or_default()
    ))
}

/// The command that makes the long run alone, from the arguments of this one.
fn command(arguments: impl Iterator<Item = String>, best: &Candidate, precision: Precision) -> String {
    const REPLACED: [&str; 5] = ["--budget", "--tries", "--device-threads", "--embedding", "--precision"];
    let mut all = vec!["ampoule".to_owned()];
    let mut is_value = false;
    for argument in arguments {
        let option = argument.split('=').next().unwrap_or_default();
        match () {
            () if std::mem::take(&mut is_value) => {}
            () if REPLACED.contains(&option) => is_value = option.len() == argument.len(),
            () => all.push(quoted(argument)),
        }
    }
    let shape = &best.shape;
    let layers = shape.layers.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    all.push(format!("--layers {layers}"));
    for (option, value) in [
        ("--hidden", shape.hidden_size),
        ("--heads", shape.num_attention_heads),
        ("--intermediate", shape.intermediate_size),
        ("--embedding", best.embedding),
    ] {
        all.extend(value.map(|value| format!("{option} {value}")));
    }
    all.push(format!("--precision {precision}"));
    all.join(" ")
}

/// As a shell reads it.
fn quoted(argument: String) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./=,:@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(is_plain) {
        true => argument,
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use ampoule::bundle::Bundle;
    use ampoule_distill::StudentShape;

    use super::*;

    #[test]
    fn the_command_of_the_long_run_names_the_shape_in_place_of_the_budget() {
        let best = Candidate {
            shape: StudentShape {
                layers: vec![3, 6],
                hidden_size: Some(96),
                num_attention_heads: Some(3),
                intermediate_size: Some(384),
            },
            embedding: Some(48),
        };
        let of = |line: &[&str]| command(line.iter().map(|a| (*a).to_owned()), &best, Precision::Int8);
        let shape = "--layers 3,6 --hidden 96 --heads 3 --intermediate 384 --embedding 48 --precision int8";
        for line in [
            ["distill", "--budget", "4 MB", "--run", "a b's", "--tries=2", "--precision", "int8", "--json"].as_slice(),
            &["distill", "--budget=4 MB", "--run", "a b's", "--device-threads", "2", "--embedding=48", "--json"],
        ] {
            assert_eq!(of(line), format!(r"ampoule distill --run 'a b'\''s' --json {shape}"));
        }
    }
    /// What is measured is what a run would leave: of the shape, in the precision, and as large as was said.
    #[test]
    fn the_bundle_that_is_measured_is_that_of_the_shape() {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints");
        for name in ["bert-token", "distilbert-sequence", "roberta-token", "electra-sequence", "bert-encoder"] {
            let teacher = Checkpoint::open(fixtures.join(name)).unwrap();
            for precision in [Precision::Int8, Precision::F16, Precision::F32] {
                let quantize = QuantizeOptions { precision, pooling: teacher.pooling, ..QuantizeOptions::default() };
                let mut device = Device {
                    tokenizer_json: teacher.tokenizer.to_json(),
                    quantize: QuantizeOptions { temperature: TEMPERATURE, ..quantize },
                    options: Options { threads: 1, ..Options::default() },
                    text: doctor::text(&teacher.tokenizer, 12).unwrap().0,
                    bundle: folder.path().join("budget/measured.safetensors"),
                    measured: ProgressBar::hidden(),
                };
                let shape = StudentShape {
                    layers: vec![2],
                    hidden_size: Some(24),
                    num_attention_heads: Some(3),
                    intermediate_size: Some(20),
                };
                let config = Candidate { shape, embedding: Some(8) }.config(&teacher.config).unwrap();
                device.write(&config).unwrap();
                let info = Bundle::inspect(&device.bundle).unwrap();
                assert_eq!((info.metadata.precision, &info.metadata.config.to_json()), (precision, &config.to_json()));
                assert_eq!(info.bytes, device.bytes(&config).unwrap(), "{name}");
                if precision == Precision::Int8 {
                    assert!(device.milliseconds(&config, 12).unwrap() > 0.0 && !device.bundle.exists());
                }
            }
        }
    }
}
