//! `ampoule evaluate`: models side by side on labelled text.

use std::path::PathBuf;

use ampoule::text::Tokenizer;
use ampoule::{Classifier, Extractor, ModelConfig, Options};
use ampoule_distill::data::{Example, LabelledText, NerSet, full_windows};
use ampoule_distill::score::{Counts, interval, paired_bootstrap};
use ampoule_distill::{Dictionary, FoundEntities, evaluate_labels, log_test_reading};
use anyhow::Result;
use serde_json::{Value, json};

use crate::data::{Corpus, OffsetsArg, Split};
use crate::input::RunningArgs;
use crate::ui::{counter, hint, print_json, print_line, table};

#[derive(clap::Args)]
pub struct Args {
    /// Bundles or checkpoint folders; the first is what the others are compared with
    #[arg(long = "model", required = true, value_name = "PATH")]
    models: Vec<PathBuf>,
    /// Labelled text: a file, or a folder with a file of the split; `PATH=Label,…` says which labels it covers
    #[arg(long, required = true, value_name = "PATH[=LABELS]")]
    data: Vec<String>,
    /// Which file of a folder
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
    /// The unit of "start" and "end" in .jsonl lines that name none
    #[arg(long, value_enum, default_value = "utf8")]
    offsets: OffsetsArg,
    /// Put consecutive texts together to texts of as many tokens as the first model has positions, as notes are long
    #[arg(long)]
    full_windows: bool,
    /// Also score a dictionary of the entities that the train files beside them name: the floor of a model
    #[arg(long)]
    dictionary: bool,
    /// Resamples of each bootstrap
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    resamples: u32,
    #[command(flatten)]
    running: RunningArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let corpora: Vec<Corpus> = args.data.iter().map(|c| Corpus::parse(c)).collect();
    let split = args.split;
    let options = args.running.options();
    let has_texts = corpora.iter().map(|c| c.has_entities(split)).collect::<Result<Vec<_>>>()?.contains(&false);
    if has_texts {
        let texts = corpora.iter().map(|c| c.labelled(split)).collect::<ampoule::Result<Vec<_>>>()?.concat();
        note_reading(&args)?;
        return labels(&args, &texts, &options);
    }
    entities(&args, &corpora, &options)
}

/// Notes that the models were measured on a test set, once nothing stands in the way of it.
fn note_reading(args: &Args) -> Result<()> {
    if let Split::Test = args.split {
        args.models.iter().try_for_each(|model| log_test_reading(model, &args.data))?;
    }
    Ok(())
}

/// One model's results.
struct Row {
    name: String,
    json: Value,
    sets: Vec<f64>,
    micro: (f64, f64, f64),
    /// One for each text, for the bootstrap.
    counts: Vec<Counts>,
}

impl Row {
    /// Scores what `run` finds in each set.
    fn new(
        name: String,
        data: &[String],
        sets: &[NerSet],
        run: impl Fn(&NerSet) -> Result<FoundEntities>,
    ) -> Result<Self> {
        let (mut by_set, mut json_sets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (set, path) in sets.iter().zip(data) {
            let found = run(set)?;
            let report = found.scores();
            by_set.push(report.micro.f1);
            json_sets.push(json!({
                "data": path, "scores": report,
                "at_score": {"0.5": found.at_threshold(0.5), "0.9": found.at_threshold(0.9)},
            }));
            counts.extend(report.counts);
        }
        let micro = pooled(&counts);
        Ok(Row { json: json!({"model": name, "sets": json_sets}), name, sets: by_set, micro, counts })
    }
}

fn entities(args: &Args, corpora: &[Corpus], options: &Options) -> Result<()> {
    let read =
        |split| corpora.iter().map(|c| c.entities(split, args.offsets.unit())).collect::<ampoule::Result<Vec<_>>>();
    let mut sets = read(args.split)?;
    let mut rows: Vec<Row> = Vec::new();
    // Each is opened before any is scored, so that what is wrong with the last is known at once; and again, so that one is in memory.
    let config = |path| Extractor::open(path, options).map(|extractor| extractor.config().clone());
    let configs = args.models.iter().map(config).collect::<ampoule::Result<Vec<ModelConfig>>>()?;
    corpora.iter().zip(&sets).try_for_each(|(corpus, set)| corpus.check_known(set, &configs))?;
    note_reading(args)?;
    for (i, path) in args.models.iter().enumerate() {
        let extractor = Extractor::open(path, options)?;
        if args.full_windows && i == 0 {
            // The first model's length serves all, so that all are measured on the same texts.
            sets = sets.iter().map(|set| long_texts(set, &extractor)).collect::<Result<_>>()?;
        }
        let bar = counter(sets.iter().map(|s| s.examples.len()).sum::<usize>(), "texts");
        let mut row = Row::new(path.display().to_string(), &args.data, &sets, |set| {
            Ok(FoundEntities::run(&extractor, std::slice::from_ref(set), || bar.inc(1))?)
        })?;
        bar.finish_and_clear();
        row.json["device"] = json!(extractor.device());
        rows.push(row);
    }
    if args.dictionary {
        if let Some(file) = corpora.iter().find(|c| !c.path.is_dir()) {
            let message =
                format!("{}: a file alone, so there is no train file to learn a dictionary from", file.path.display());
            return Err(hint(message, "the folder, with --split"));
        }
        let dictionary = Dictionary::build(&read(Split::Train)?);
        rows.push(Row::new("dictionary".to_owned(), &args.data, &sets, |set| {
            Ok(FoundEntities::of_dictionary(&dictionary, std::slice::from_ref(set)))
        })?);
    }
    let first = rows[0].counts.clone();
    let reference = rows[0].micro.2;
    let mut objects = Vec::new();
    let mut lines = vec![header(&args.data)];
    for row in &rows {
        let (low, high) = interval(&row.counts, args.resamples as usize, 1);
        let difference = paired_bootstrap(&row.counts, &first, args.resamples as usize, 1);
        let retention = row.micro.2 / reference;
        let mut object = row.json.clone();
        object["pooled"] = json!({
            "precision": row.micro.0, "recall": row.micro.1, "f1": row.micro.2, "interval": [low, high],
            "retention": retention, "difference_from_first": difference,
        });
        objects.push(object);
        let percent = |x: f64| format!("{:.2}", 100.0 * x);
        let mut line = vec![row.name.clone()];
        line.extend(row.sets.iter().map(|&f1| percent(f1)));
        line.extend([percent(row.micro.0), percent(row.micro.1), percent(row.micro.2)]);
        line.push(format!("{}..{}", percent(low), percent(high)));
        line.push(if retention.is_finite() { format!("{}%", percent(retention)) } else { "-".to_owned() });
        line.push(format!(
            "{:+.2} ({:+.2}..{:+.2})",
            100.0 * difference.difference,
            100.0 * difference.low,
            100.0 * difference.high
        ));
        lines.push(line);
    }
    if args.json {
        return print_json(
            &json!({"split": args.split.as_str(), "full_windows": args.full_windows, "models": objects}),
        );
    }
    print_line(&table(&lines))
}

fn header(data: &[String]) -> Vec<String> {
    let name =
        |path: &String| Corpus::parse(path).path.file_name().map_or(path.clone(), |n| n.to_string_lossy().into_owned());
    let mut header = vec!["strict entity scores".to_owned()];
    header.extend(data.iter().map(|path| format!("F1 {}", name(path))));
    header.extend(["P", "R", "F1 pooled", "95 %", "kept", "difference (95 %)"].map(str::to_owned));
    header
}

/// Precision, recall and F1 of all texts together.
fn pooled(counts: &[Counts]) -> (f64, f64, f64) {
    let sum = |f: fn(&Counts) -> u32| counts.iter().map(|c| f64::from(f(c))).sum::<f64>();
    let (tp, fp, missed) = (sum(|c| c.tp), sum(|c| c.fp), sum(|c| c.fn_));
    let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
    let (p, r) = (ratio(tp, tp + fp), ratio(tp, tp + missed));
    (p, r, ratio(2.0 * p * r, p + r))
}

fn long_texts(set: &NerSet, extractor: &Extractor) -> Result<NerSet> {
    let tokenizer: &Tokenizer = extractor.tokenizer();
    let length = |example: &Example| tokenizer.encode(&example.text).map_or(1, |tokens| tokens.len());
    let examples = full_windows(set, extractor.config().max_tokens() - 2, &length);
    Ok(NerSet { examples, covers: set.covers.clone() })
}

fn labels(args: &Args, texts: &[LabelledText], options: &Options) -> Result<()> {
    let mut objects = Vec::new();
    let mut lines = vec![["text labels", "accuracy", "F1 micro", "F1 macro", "AUROC"].map(str::to_owned).to_vec()];
    for path in &args.models {
        let classifier = Classifier::open(path, options)?;
        let bar = counter(texts.len(), "texts");
        let report = evaluate_labels(&classifier, texts, || bar.inc(1))?;
        bar.finish_and_clear();
        let three = |x: f64| format!("{x:.3}");
        lines.push(vec![
            path.display().to_string(),
            three(report.accuracy),
            three(report.micro_f1),
            three(report.macro_f1),
            report.auroc.map_or("-".to_owned(), three),
        ]);
        objects.push(json!({"model": path, "scores": report, "device": classifier.device()}));
    }
    if args.json {
        return print_json(&json!({"split": args.split.as_str(), "models": objects}));
    }
    print_line(&table(&lines))
}
