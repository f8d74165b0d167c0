//! `ampoule evaluate`: models side by side on labelled text.

use std::path::PathBuf;

use ampoule::text::Tokenizer;
use ampoule::{Classifier, Extractor, ModelConfig, Options};
use ampoule_distill::data::{Example, LabelledText, NerSet, full_windows};
use ampoule_distill::score::{Counts, interval, paired_bootstrap};
use ampoule_distill::{
    Answers, Calibration, Dictionary, FoundEntities, FoundLabels, Judgements, Reliability, TemperatureFit,
    log_test_reading,
};
use anyhow::Result;
use serde_json::{Value, json};

use crate::data::{Corpus, OffsetsArg, Split};
use crate::input::RunningArgs;
use crate::ui::{counter, fitted, hint, print_json, print_line, table};

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
    /// Also show, for each model, how often it is right by how sure it says it is
    #[arg(long)]
    reliability: bool,
    /// Also fit each model's temperature on this data, which is then no measure of it: not with the test split. An app gives it as
    /// --temperature does
    #[arg(long)]
    fit: bool,
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
    if let (true, Split::Test) = (args.fit, split) {
        return Err(hint("--fit: what is fitted on the test set cannot be measured on it", "--split dev"));
    }
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
    reliability: ScoreReliability,
}

/// How reliable a model's scores are; a dictionary has no temperature.
struct ScoreReliability {
    temperature: Option<f32>,
    calibration: Calibration,
    /// Where one was asked for, and the data determine one.
    fit: Option<TemperatureFit>,
}

impl ScoreReliability {
    fn json(&self) -> Value {
        let Calibration { at_one, at_own } = &self.calibration;
        json!({"temperature": self.temperature, "at_one": at_one, "at_own": at_own, "fit": self.fit})
    }

    const HEADER: [&str; 3] = ["T", "ECE at T 1", "ECE"];

    fn cells(&self) -> [String; 3] {
        let ece = |r: &Reliability| r.ece.map_or("-".to_owned(), |ece| format!("{:.2}", 100.0 * ece));
        let temperature = self.temperature.map_or("-".to_owned(), |t| t.to_string());
        [temperature, ece(&self.calibration.at_one), ece(&self.calibration.at_own)]
    }

    /// What was asked for beside the ECE: a fit, and a table of bins for each temperature.
    fn show(&self, name: &str, args: &Args) -> Result<()> {
        if let (true, Some(_)) = (args.fit, self.temperature) {
            let said = self.fit.as_ref().map_or("the data determines no temperature".to_owned(), fitted);
            print_line(&format!("{name}: {said}"))?;
        }
        if !args.reliability {
            return Ok(());
        }
        let mut all = vec![(self.temperature.filter(|t| *t == 1.0), &self.calibration.at_one)];
        if self.temperature.is_some_and(|t| t != 1.0) {
            all = vec![(Some(1.0), &self.calibration.at_one), (self.temperature, &self.calibration.at_own)];
        }
        for (temperature, reliability) in all {
            let at = temperature.map_or(String::new(), |t| format!(" at temperature {t}"));
            print_line(&format!("\n{name}{at}: {} answers", reliability.count))?;
            let mut lines = vec![["score", "answers", "mean score", "right", ""].map(str::to_owned).to_vec()];
            for bin in &reliability.bins {
                let three = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.3}"));
                lines.push(vec![
                    format!("{:.3}..{:.3}", bin.low, bin.high),
                    bin.count.to_string(),
                    three(bin.mean_score),
                    three(bin.share_right),
                    bin.share_right.zip(bin.mean_score).map_or(String::new(), |(right, score)| bar(right, score)),
                ]);
            }
            print_line(&table(&lines))?;
        }
        Ok(())
    }
}

/// A share as a bar, with a mark where the score stands: a gap before the mark is a score too high, a bar beyond it one too low.
fn bar(share: f64, score: f64) -> String {
    const CELLS: usize = 30;
    let cells = (share * CELLS as f64).round() as usize;
    let mark = ((score * CELLS as f64) as usize).min(CELLS - 1);
    let cell = |i| {
        if i == mark {
            '|'
        } else if i < cells {
            '#'
        } else {
            '.'
        }
    };
    (0..CELLS).map(cell).collect()
}

impl Row {
    /// Scores what `run` finds in each set.
    fn new(
        name: String,
        data: &[String],
        sets: &[NerSet],
        temperature: Option<f32>,
        run: impl Fn(&NerSet) -> Result<FoundEntities>,
    ) -> Result<Self> {
        let mut answers = Answers::default();
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
            answers.extend(found.answers());
        }
        let micro = pooled(&counts);
        let reliability = ScoreReliability { temperature, calibration: answers.calibration()?, fit: None };
        let json = json!({"model": name, "sets": json_sets});
        Ok(Row { json, name, sets: by_set, micro, counts, reliability })
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
        let temperature = Some(extractor.temperature());
        let mut row = Row::new(path.display().to_string(), &args.data, &sets, temperature, |set| {
            Ok(FoundEntities::run(&extractor, std::slice::from_ref(set), || bar.inc(1))?)
        })?;
        bar.finish_and_clear();
        row.json["device"] = json!(extractor.device());
        if args.fit {
            row.reliability.fit = Judgements::of_entities(&extractor, &sets)?.fit();
        }
        rows.push(row);
    }
    if args.dictionary {
        if let Some(file) = corpora.iter().find(|c| !c.path.is_dir()) {
            let message =
                format!("{}: a file alone, so there is no train file to learn a dictionary from", file.path.display());
            return Err(hint(message, "the folder, with --split"));
        }
        let dictionary = Dictionary::build(&read(Split::Train)?);
        rows.push(Row::new("dictionary".to_owned(), &args.data, &sets, None, |set| {
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
        object["calibration"] = row.reliability.json();
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
        line.extend(row.reliability.cells());
        lines.push(line);
    }
    if args.json {
        return print_json(
            &json!({"split": args.split.as_str(), "full_windows": args.full_windows, "models": objects}),
        );
    }
    print_line(&table(&lines))?;
    rows.iter().try_for_each(|row| row.reliability.show(&row.name, args))
}

fn header(data: &[String]) -> Vec<String> {
    let name =
        |path: &String| Corpus::parse(path).path.file_name().map_or(path.clone(), |n| n.to_string_lossy().into_owned());
    let mut header = vec!["strict entity scores".to_owned()];
    header.extend(data.iter().map(|path| format!("F1 {}", name(path))));
    header.extend(["P", "R", "F1 pooled", "95 %", "kept", "difference (95 %)"].map(str::to_owned));
    header.extend(ScoreReliability::HEADER.map(str::to_owned));
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
    let mut reliabilities = Vec::new();
    let mut lines = vec![["text labels", "accuracy", "F1 micro", "F1 macro", "AUROC"].map(str::to_owned).to_vec()];
    lines[0].extend(ScoreReliability::HEADER.map(str::to_owned));
    for path in &args.models {
        let classifier = Classifier::open(path, options)?;
        let bar = counter(texts.len(), "texts");
        let found = FoundLabels::run(&classifier, texts, || bar.inc(1))?;
        bar.finish_and_clear();
        let report = found.scores();
        let calibration = found.answers().calibration()?;
        let fit = match args.fit {
            true => Judgements::of_labels(&classifier, texts)?.fit(),
            false => None,
        };
        let reliability = ScoreReliability { temperature: Some(classifier.temperature()), calibration, fit };
        let three = |x: f64| format!("{x:.3}");
        let mut line = vec![
            path.display().to_string(),
            three(report.accuracy),
            three(report.micro_f1),
            three(report.macro_f1),
            report.auroc.map_or("-".to_owned(), three),
        ];
        line.extend(reliability.cells());
        lines.push(line);
        let (scores, calibration) = (report, reliability.json());
        objects
            .push(json!({"model": path, "scores": scores, "calibration": calibration, "device": classifier.device()}));
        reliabilities.push((path.display().to_string(), reliability));
    }
    if args.json {
        return print_json(&json!({"split": args.split.as_str(), "models": objects}));
    }
    print_line(&table(&lines))?;
    reliabilities.iter().try_for_each(|(name, reliability)| reliability.show(name, args))
}
