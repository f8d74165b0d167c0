//! `ampoule quantize`: a bundle from a checkpoint.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ampoule::bundle::{self, Bundle, Golden, Load, Precision};
use ampoule::{Checkpoint, Classifier, Embedder, Extractor, ModelConfig, Options, Task};
use ampoule_distill::data::{NerSet, SearchSet, read_lines};
use ampoule_distill::{FoundEntities, FoundLabels, FoundPassages, Judgements, TemperatureFit};
use ampoule_quantize::{FitTemperature, Guard, QuantizeOptions, Report, quantize, smooth};
use anyhow::{Context, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde_json::json;

use crate::data::{Corpus, DataArgs, Labelled, OffsetsArg};
use crate::ui::{fitted, hint, note_json, note_line, table};

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder; or a bundle, which is written again with golden cases anew
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// The bundle to write, NAME.int8.safetensors by custom
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How its matrices are kept; int8 unless it is named
    #[arg(long, value_parser = precisions())]
    precision: Option<Precision>,
    /// Keep a matrix wider, as in `--keep classifier.weight=f16`
    #[arg(long, value_name = "TENSOR=PRECISION")]
    keep: Vec<String>,
    /// Labelled text on which the F1 before and after is measured and the bundle's temperature is fitted: a folder's dev file, a file
    /// called dev, or those texts that `train` holds out of any other. Without it the bundle has the checkpoint's temperature. Of an
    /// encoder, queries of passages, on which MRR@10 is measured
    #[arg(long, value_name = "PATH[=LABELS]")]
    data: Vec<String>,
    /// The unit of "start" and "end" in .jsonl lines that name none
    #[arg(long, value_enum, default_value = "utf8", requires = "data")]
    offsets: OffsetsArg,
    /// Text, one a line or .jsonl, by which the inputs of int8 layers are evened out (SmoothQuant), at most 256 of them, evenly taken; without
    /// it texts of --data, or none where the model was trained in int8
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// The most F1, or MRR@10, that may be lost, of 100
    #[arg(long, default_value_t = MAX_LOSS, value_name = "F1", requires = "data")]
    max_loss: f64,
    /// Write the bundle whatever it loses
    #[arg(long, requires = "data")]
    force: bool,
    /// The most tokens of a window that the bundle asks for, where it answers best on shorter ones than it has positions
    #[arg(long, value_name = "TOKENS")]
    window: Option<usize>,
    /// The terms under which the weights may be used; unknown unless they are named
    #[arg(long)]
    licence: Option<String>,
    /// A model card in Markdown to carry along
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,
    /// List every tensor's error, and not the worst ten
    #[arg(long)]
    all: bool,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// As the command has them where only these are given.
    pub fn new(model: PathBuf, out: PathBuf, precision: Precision, data: &DataArgs) -> Self {
        Args {
            model,
            out,
            precision: Some(precision),
            keep: Vec::new(),
            data: data.data.clone(),
            offsets: data.offsets,
            calibration: None,
            max_loss: MAX_LOSS,
            force: false,
            window: None,
            licence: None,
            card: None,
            all: false,
            json: false,
        }
    }
}

/// Reads a precision's name.
pub fn precisions() -> impl TypedValueParser<Value = Precision> {
    PossibleValuesParser::new(["f32", "f16", "int8"]).try_map(|name| name.parse::<Precision>())
}

/// Points of F1 or MRR@10, of 100.
const MAX_LOSS: f64 = 0.5;

/// Refuses to write over what does not begin as a bundle: weights of checkpoints end in `.safetensors` too.
fn check_out(out: &Path) -> Result<()> {
    const MOST: u64 = 1 << 20;
    if std::fs::metadata(out).map_or(true, |file| !file.is_file() || file.len() == 0) {
        return Ok(());
    }
    let mut beginning = Vec::new();
    File::open(out)
        .and_then(|file| file.take(MOST).read_to_end(&mut beginning))
        .with_context(|| out.display().to_string())?;
    let format = br#""format":"ampoule""#;
    match beginning.windows(format.len()).any(|bytes| bytes == format) {
        true => Ok(()),
        false => Err(hint(format!("{} is there, and is no bundle", out.display()), "another --out, or delete it")),
    }
}

pub fn run(args: Args) -> Result<()> {
    check_out(&args.out)?;
    if args.max_loss.is_nan() || args.max_loss < 0.0 {
        return Err(hint("--max-loss: expected 0 or more", "--max-loss 0.5, points of 100"));
    }
    if args.model.is_file() {
        return renew(&args);
    }
    let checkpoint = Checkpoint::open(&args.model)?;
    let mut wider = BTreeMap::new();
    for argument in &args.keep {
        let (name, precision) = argument
            .split_once('=')
            .ok_or_else(|| hint(format!("--keep {argument:?} has no `=`"), "--keep classifier.weight=f16"))?;
        wider.insert(name.to_owned(), precision.parse::<Precision>()?);
    }
    let card = args
        .card
        .as_ref()
        .map(|path| std::fs::read_to_string(path).with_context(|| path.display().to_string()))
        .transpose()?;
    let (dev, others) = Dev::read(&args, &checkpoint.config)?;
    let plain = QuantizeOptions::default();
    let precision = args.precision.unwrap_or(plain.precision);
    let texts = match (precision, &args.calibration) {
        // What was trained in int8 was trained without factors.
        (Precision::Int8, None) if checkpoint.quantization_aware => Vec::new(),
        (Precision::Int8, _) => calibration(&args, &dev, others)?,
        (_, None) => Vec::new(),
        (precision, Some(_)) => {
            return Err(hint(
                format!("{precision} needs no calibration"),
                "without --calibration, or with --precision int8",
            ));
        }
    };
    let options = QuantizeOptions {
        precision,
        wider,
        pre_quant_scales: smooth(&checkpoint.config, &checkpoint.weights, &checkpoint.tokenizer, &texts)?,
        licence: args.licence.clone().unwrap_or(plain.licence),
        pooling: checkpoint.pooling,
        max_tokens: args.window,
        temperature: checkpoint.temperature,
        card,
        ..QuantizeOptions::default()
    };
    let mut measure = |path: &Path| dev.metric(path);
    let guard = match args.data.is_empty() {
        true => None,
        false => Some(Guard {
            before: measure(&args.model)?,
            measure: &mut measure,
            max_loss: args.max_loss,
            force: args.force,
        }),
    };
    let mut fitted: Option<TemperatureFit> = None;
    let mut fit = |path: &Path| {
        fitted = dev.fit(path)?;
        Ok(fitted.map(|fit| fit.temperature))
    };
    let fit: Option<&mut FitTemperature> = if args.data.is_empty() { None } else { Some(&mut fit) };
    let tokenizer = checkpoint.tokenizer.to_json();
    let report = quantize(&checkpoint.config, &checkpoint.weights, &tokenizer, &args.out, &options, fit, guard)?;
    if args.json {
        return note_json(&json!({"bundle": args.out, "report": report, "fit": fitted}));
    }
    show(&args, &dev, &report, fitted)
}

/// Writes a bundle again, with golden cases.
fn renew(args: &Args) -> Result<()> {
    let is_asked_for_more = args.precision.is_some()
        || args.licence.is_some()
        || args.calibration.is_some()
        || args.card.is_some()
        || args.window.is_some()
        || args.all
        || !args.data.is_empty()
        || !args.keep.is_empty();
    if is_asked_for_more {
        return Err(hint(
            format!("{} is a bundle, of which only golden cases can be made", args.model.display()),
            "--model and --out, and --json, alone; or the checkpoint folder as --model",
        ));
    }
    let bundle = Bundle::open(&args.model, Load::Copy, true)?;
    let golden = Golden::answered(&bundle)?;
    bundle::stage_with_golden(&args.out, &bundle, &golden)?.commit()?;
    let (before, after) = (bundle.info().bytes, std::fs::metadata(&args.out)?.len());
    if args.json {
        return note_json(&json!({"bundle": args.out, "bytes_before": before, "bytes_after": after}));
    }
    note_line(&format!("{}: written with golden cases, {before} bytes before, {after} after", args.out.display()))
}

/// The most texts by which a model is calibrated.
const CALIBRATION_TEXTS: usize = 256;

/// Texts of the kind that the model is for: evenly taken from those that are given, else from all of the data's.
fn calibration(args: &Args, dev: &Dev, others: Vec<String>) -> Result<Vec<String>> {
    let mut texts: Vec<String> = match &args.calibration {
        Some(path) => {
            let texts = read_lines(path)?;
            if texts.is_empty() {
                return Err(hint(format!("{}: no text to calibrate by", path.display()), "a file with a text a line"));
            }
            texts
        }
        None => dev.texts().into_iter().map(str::to_owned).chain(others).collect(),
    };
    let step = texts.len().div_ceil(CALIBRATION_TEXTS).max(1);
    let mut at = 0;
    texts.retain(|_| {
        at += 1;
        (at - 1) % step == 0
    });
    Ok(texts)
}

/// The dev files of the data.
enum Dev {
    Labelled(Labelled),
    Search(Vec<SearchSet>),
}

impl Dev {
    /// These, and the texts out of which they were held, if they were.
    fn read(args: &Args, config: &ModelConfig) -> Result<(Self, Vec<String>)> {
        fn parts<T>(read: Vec<(T, Vec<String>)>) -> (Vec<T>, Vec<String>) {
            let (dev, others): (Vec<T>, Vec<Vec<String>>) = read.into_iter().unzip();
            (dev, others.concat())
        }
        let corpora: Vec<Corpus> = args.data.iter().map(|argument| Corpus::parse(argument)).collect();
        let unit = args.offsets.unit();
        if config.task == Task::Encoder {
            let (sets, others) = parts(corpora.iter().map(Corpus::dev_search).collect::<Result<_>>()?);
            return Ok((Dev::Search(sets), others));
        }
        if config.task != Task::TokenClassification {
            let (texts, others) = parts(corpora.iter().map(Corpus::dev_labels).collect::<Result<_>>()?);
            let texts = texts.concat();
            Corpus::check_known_labels(&texts, std::slice::from_ref(config))?;
            return Ok((Dev::Labelled(Labelled::Labels(texts)), others));
        }
        let read = |corpus: &Corpus| {
            let read = corpus.dev_entities(unit)?;
            corpus.check_known(&read.0, std::slice::from_ref(config))?;
            Ok(read)
        };
        let (sets, others) = parts(corpora.iter().map(read).collect::<Result<_>>()?);
        if !sets.is_empty() && sets.iter().all(|set: &NerSet| set.entities().next().is_none()) {
            let message = "--data: no entity is marked in it, so F1 would be 0 before and after";
            return Err(hint(message, "texts with entities, or without --data"));
        }
        Ok((Dev::Labelled(Labelled::Entities(sets)), others))
    }

    fn texts(&self) -> Vec<&str> {
        match self {
            Dev::Labelled(labelled) => labelled.texts(),
            Dev::Search(sets) => sets.iter().flat_map(SearchSet::texts).collect(),
        }
    }

    fn metric_name(&self) -> &'static str {
        match self {
            Dev::Labelled(_) => "F1",
            Dev::Search(_) => "MRR@10",
        }
    }

    /// Of the model at `path`, of 100: F1, micro of entities, macro of labels, or MRR@10.
    fn metric(&self, path: &Path) -> ampoule::Result<f64> {
        let options = Options::default();
        Ok(100.0
            * match self {
                Dev::Labelled(Labelled::Entities(sets)) => {
                    FoundEntities::run(&Extractor::open(path, &options)?, sets, || ())?.scores().micro.f1
                }
                Dev::Labelled(Labelled::Labels(texts)) => {
                    FoundLabels::run(&Classifier::open(path, &options)?, texts, || ())?.scores().macro_f1
                }
                Dev::Search(sets) => {
                    FoundPassages::run(&Embedder::open(path, &options)?, sets, |_| ())?.scores().mean.mrr_at_10
                }
            })
    }

    /// The temperature of the model at `path`, where the texts determine one.
    fn fit(&self, path: &Path) -> ampoule::Result<Option<TemperatureFit>> {
        let options = Options::default();
        let judgements = match self {
            Dev::Labelled(Labelled::Entities(sets)) => {
                Judgements::of_entities(&Extractor::open(path, &options)?, sets)?
            }
            Dev::Labelled(Labelled::Labels(texts)) => Judgements::of_labels(&Classifier::open(path, &options)?, texts)?,
            // Embeddings have no scores that a temperature could divide.
            Dev::Search(_) => return Ok(None),
        };
        Ok(judgements.fit())
    }
}

fn show(args: &Args, dev: &Dev, report: &Report, fit: Option<TemperatureFit>) -> Result<()> {
    let megabytes = |bytes: u64| format!("{:.2} MB", bytes as f64 / 1e6);
    let mut rows = vec![
        ["tensor", "kept as", "smoothed", "relative error", "largest error", "cosine"].map(str::to_owned).to_vec(),
    ];
    let count = if args.all { report.tensors.len() } else { 10 };
    rows.extend(report.worst(count).map(|t| {
        vec![
            t.name.clone(),
            t.precision.to_string(),
            if t.smoothed { "yes" } else { "-" }.to_owned(),
            format!("{:.5}", t.relative_error),
            format!("{:.5}", t.max_error),
            format!("{:.6}", t.cosine),
        ]
    }));
    note_line(&table(&rows))?;
    if let Some(metric) = &report.metric {
        let (name, before, after) = (dev.metric_name(), metric.before, metric.after);
        note_line(&format!("{name} {before:.2} before, {after:.2} after: {:.2} lost", metric.loss))?;
    }
    let (before, after) = (report.temperature.before, report.temperature.after);
    if !matches!(dev, Dev::Search(_)) {
        note_line(&match fit {
            Some(fit) => format!("temperature {before} before; {}", fitted(&fit)),
            None if args.data.is_empty() => format!("temperature {after}, the checkpoint's"),
            None => format!("temperature {after}, the checkpoint's: the data determines none"),
        })?;
    }
    note_line(&format!(
        "{}: {}, {} before, {} after",
        args.out.display(),
        report.precision,
        megabytes(report.bytes_before),
        megabytes(report.bytes_after)
    ))
}
