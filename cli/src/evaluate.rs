//! `ampoule evaluate`: models side by side on labelled text.

mod search;

use std::path::PathBuf;

use ampoule::text::Tokenizer;
use ampoule::{Classifier, Extractor, ModelConfig, Options};
use ampoule_distill::data::{Example, LabelledText, NerSet, full_windows};
use ampoule_distill::score::{
    Bootstrap, ClassReport, Interval, LabelBootstrap, NerReport, Prf, interval, label_intervals, paired_bootstrap,
    paired_label_bootstrap,
};
use ampoule_distill::{
    Calibration, Dictionary, FoundEntities, FoundLabels, Judgements, Reliability, TemperatureFit, TypingNoise,
};
use anyhow::Result;
use serde_json::{Value, json};

use crate::data::{
    Corpus, Kind, Labelled, OffsetsArg, Split, is_test, note_reading, one_kind, split_name, typing_noise,
};
use crate::input::{RunningArgs, tell_gpu};
use crate::ui::{counter, fitted, hint, print_json, print_line, table};

/// Of the bootstraps.
pub const SEED: u64 = 1;

#[derive(clap::Args)]
pub struct Args {
    /// Bundles or checkpoint folders; the first is what the others are compared with, of labels of whole texts those with the same labels
    #[arg(long = "model", required = true, value_name = "PATH")]
    models: Vec<PathBuf>,
    /// Labelled text, or queries of passages: a file, or a folder with a file of the split; `PATH=Label,…` says which labels it covers
    #[arg(long, required = true, value_name = "PATH[=LABELS]")]
    data: Vec<String>,
    /// Which file of a folder; a file called train, dev or test is what it is called. That a run's model was measured on a test set is noted in
    /// the run's log, where that can be written
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
    /// Also score a search by words (BM25) for queries of passages: the floor of a model
    #[arg(long)]
    bm25: bool,
    /// Score the same texts, of queries and passages the queries, with noise of typing too, in this share of their words, and say what it
    /// costs
    #[arg(long, value_name = "SHARE")]
    noise: Option<f64>,
    /// From which the noise follows
    #[arg(long, value_name = "SEED", default_value_t = 1, requires = "noise")]
    noise_seed: u64,
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

impl Args {
    /// An option that is given and for entities alone.
    fn of_entities(&self) -> Option<&'static str> {
        let given = [("--dictionary", self.dictionary), ("--full-windows", self.full_windows)];
        given.into_iter().find_map(|(name, is_given)| is_given.then_some(name))
    }

    /// What was done, and the results of each model.
    fn print(&self, noise: Option<&TypingNoise>, mut json: Value, models: Vec<Value>) -> Result<()> {
        if let Some(noise) = noise {
            json["noise"] = json!({"seed": self.noise_seed, "settings": noise});
        }
        json["models"] = models.into();
        print_json(&json)
    }
}

pub fn run(args: Args) -> Result<()> {
    let noise = args.noise.map(typing_noise).transpose()?;
    let corpora: Vec<Corpus> = args.data.iter().map(|c| Corpus::parse(c)).collect();
    let split = args.split;
    let options = args.running.options()?;
    if args.fit && is_test(&args.data, split) {
        let instead = "--split dev, or a dev file in a test file's place";
        return Err(hint("--fit: what is fitted on the test set cannot be measured on it", instead));
    }
    let kind = one_kind(&corpora, split)?;
    if args.bm25 && kind != Kind::Search {
        return Err(hint("--bm25: the data has no queries of passages", "--dictionary, for entities"));
    }
    if kind == Kind::Search {
        return search::run(&args, noise.as_ref(), &corpora, &options);
    }
    match Labelled::read(&corpora, split, args.offsets.unit())? {
        Labelled::Entities(sets) => entities(&args, noise.as_ref(), &corpora, sets, &options),
        Labelled::Labels(texts) => match args.of_entities() {
            Some(name) => {
                let what = format!("{name} is for entities, and the data has labels of whole texts");
                Err(hint(what, format!("without {name}")))
            }
            None => labels(&args, noise.as_ref(), texts, &options),
        },
    }
}

/// What a model finds in some texts.
struct Scores {
    /// One for each set.
    json: Vec<Value>,
    sets: Vec<f64>,
    /// Of all sets together.
    pooled: NerReport,
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
        match self.temperature {
            Some(temperature) => {
                json!({"temperature": temperature, "at_one": at_one, "at_own": at_own, "fit": self.fit})
            }
            None => json!({"at_own": at_own}),
        }
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

impl Scores {
    /// Scores what `run` finds in each set.
    fn new(sets: &[NerSet], temperature: Option<f32>, run: impl Fn(&NerSet) -> Result<FoundEntities>) -> Result<Self> {
        let mut all = FoundEntities::default();
        let (mut by_set, mut json) = (Vec::new(), Vec::new());
        for set in sets {
            let found = run(set)?;
            let report = found.scores();
            by_set.push(report.micro.f1);
            let at_score = json!({"0.5": found.at_threshold(0.5), "0.9": found.at_threshold(0.9)});
            json.push(json!({"scores": report, "at_score": at_score}));
            all.extend(found);
        }
        let reliability = ScoreReliability { temperature, calibration: all.answers().calibration()?, fit: None };
        Ok(Scores { json, sets: by_set, pooled: all.scores(), reliability })
    }

    fn pooled(&self, args: &Args) -> Value {
        let Prf { precision, recall, f1, .. } = self.pooled.micro;
        json!({"precision": precision, "recall": recall, "f1": f1, "interval": self.interval(args)})
    }

    fn interval(&self, args: &Args) -> (f64, f64) {
        interval(&self.pooled.counts, args.resamples as usize, SEED)
    }

    /// How much better these are than `other`, of the same texts.
    fn difference(&self, other: &Scores, args: &Args) -> Bootstrap {
        paired_bootstrap(&self.pooled.counts, &other.pooled.counts, args.resamples as usize, SEED)
    }
}

/// One model's results.
struct Row {
    name: String,
    device: Option<Value>,
    clean: Scores,
    noisy: Option<Scores>,
}

/// The texts of each set, and the same with noise.
struct Texts {
    clean: Vec<NerSet>,
    noisy: Option<Vec<NerSet>>,
}

impl Texts {
    fn new(clean: Vec<NerSet>, noise: Option<&TypingNoise>, seed: u64) -> Self {
        let noisy = noise.map(|noise| clean.iter().map(|set| noise.set(set, seed)).collect());
        Texts { clean, noisy }
    }

    fn len(&self) -> usize {
        self.clean.iter().chain(self.noisy.iter().flatten()).map(|set| set.examples.len()).sum()
    }

    /// How many of the noisy texts' entities share a word with what stands beside them, and of how many.
    fn within_words(&self) -> Option<(usize, usize)> {
        let noisy = self.noisy.as_ref()?;
        let sum = |count: fn(&NerSet) -> usize| noisy.iter().map(count).sum::<usize>();
        Some((sum(NerSet::within_words), sum(|set| set.entities().count())))
    }

    /// Scores what `run` finds.
    fn score(
        &self,
        name: String,
        temperature: Option<f32>,
        run: impl Fn(&NerSet) -> Result<FoundEntities>,
    ) -> Result<Row> {
        let noisy = self.noisy.as_ref().map(|sets| Scores::new(sets, temperature, &run)).transpose()?;
        Ok(Row { name, device: None, clean: Scores::new(&self.clean, temperature, run)?, noisy })
    }
}

fn entities(
    args: &Args,
    noise: Option<&TypingNoise>,
    corpora: &[Corpus],
    mut sets: Vec<NerSet>,
    options: &Options,
) -> Result<()> {
    // Each is opened before any is scored, so that what is wrong with the last is known at once; and again, so that one is in memory.
    let config = |path| Extractor::open(path, options).map(|extractor| extractor.config().clone());
    let configs = args.models.iter().map(config).collect::<ampoule::Result<Vec<ModelConfig>>>()?;
    corpora.iter().zip(&sets).try_for_each(|(corpus, set)| corpus.check_known(set, &configs))?;
    let dictionary = match args.dictionary {
        true => {
            if let Some(file) = corpora.iter().find(|c| !c.path.is_dir()) {
                let message = format!(
                    "{}: a file alone, so there is no train file to learn a dictionary from",
                    file.path.display()
                );
                return Err(hint(message, "the folder, with --split"));
            }
            let train = |corpus: &Corpus| corpus.entities(Split::Train, args.offsets.unit());
            Some(Dictionary::build(&corpora.iter().map(train).collect::<ampoule::Result<Vec<_>>>()?))
        }
        false => None,
    };
    note_reading(args.split, &args.models, &args.data)?;
    if args.full_windows {
        // The first model's length serves all, so that all are measured on the same texts.
        let extractor = Extractor::open(&args.models[0], options)?;
        sets = sets.iter().map(|set| long_texts(set, &extractor)).collect::<Result<_>>()?;
    }
    let texts = Texts::new(sets, noise, args.noise_seed);
    let mut rows: Vec<Row> = Vec::new();
    for path in &args.models {
        let extractor = Extractor::open(path, options)?;
        let bar = counter(texts.len(), "texts");
        let (name, temperature) = (path.display().to_string(), Some(extractor.temperature()));
        let mut row = texts.score(name, temperature, |set| {
            Ok(FoundEntities::run(&extractor, std::slice::from_ref(set), || bar.inc(1))?)
        })?;
        bar.finish_and_clear();
        row.device = Some(json!(extractor.device()));
        if args.fit {
            row.clean.reliability.fit = Judgements::of_entities(&extractor, &texts.clean)?.fit();
        }
        tell_gpu(&extractor.report());
        rows.push(row);
    }
    if let Some(dictionary) = dictionary {
        rows.push(texts.score("dictionary".to_owned(), None, |set| {
            Ok(FoundEntities::of_dictionary(&dictionary, std::slice::from_ref(set)))
        })?);
    }
    if args.json {
        let models = rows.iter().map(|row| row.json(&rows[0], args)).collect();
        let mut json = json!({"split": split_name(&args.data, args.split), "full_windows": args.full_windows});
        if let Some((within, all)) = texts.within_words() {
            json["entities_within_words"] = json!({"noisy": within, "of": all});
        }
        return args.print(noise, json, models);
    }
    let lines: Vec<_> = std::iter::once(header(args)).chain(rows.iter().map(|row| row.line(&rows[0], args))).collect();
    print_line(&table(&lines))?;
    if let Some((within, all)) = texts.within_words().filter(|(within, _)| *within > 0) {
        print_line(&format!("of {all} noisy entities {within} begin or end inside a word, where no model finds them"))?;
    }
    rows.iter().try_for_each(|row| row.clean.reliability.show(&row.name, args))
}

impl Row {
    fn retention(&self, first: &Row) -> f64 {
        self.clean.pooled.micro.f1 / first.clean.pooled.micro.f1
    }

    fn json(&self, first: &Row, args: &Args) -> Value {
        let mut sets = Vec::new();
        for (i, (path, clean)) in args.data.iter().zip(&self.clean.json).enumerate() {
            let mut set = json!({"data": path, "scores": clean["scores"], "at_score": clean["at_score"]});
            if let Some(noisy) = &self.noisy {
                set["noisy"] = noisy.json[i].clone();
            }
            sets.push(set);
        }
        let mut pooled = self.clean.pooled(args);
        pooled["retention"] = json!(self.retention(first));
        pooled["difference_from_first"] = json!(self.clean.difference(&first.clean, args));
        if let Some(noisy) = &self.noisy {
            pooled["noisy"] = noisy.pooled(args);
            pooled["noisy"]["lost"] = json!(self.clean.difference(noisy, args));
        }
        let mut row = json!({"model": self.name, "sets": sets});
        if let Some(device) = &self.device {
            row["device"] = device.clone();
        }
        row["calibration"] = self.clean.reliability.json();
        row["pooled"] = pooled;
        row
    }

    fn line(&self, first: &Row, args: &Args) -> Vec<String> {
        let percent = |x: f64| format!("{:.2}", 100.0 * x);
        let mut line = vec![self.name.clone()];
        line.extend(self.clean.sets.iter().map(|&f1| percent(f1)));
        let Prf { precision, recall, f1, .. } = self.clean.pooled.micro;
        line.extend([precision, recall, f1].map(percent));
        let (low, high) = self.clean.interval(args);
        line.push(format!("{}..{}", percent(low), percent(high)));
        let retention = self.retention(first);
        line.push(if retention.is_finite() { format!("{}%", percent(retention)) } else { "-".to_owned() });
        line.push(with_interval(&self.clean.difference(&first.clean, args)));
        if let Some(noisy) = &self.noisy {
            line.push(percent(noisy.pooled.micro.f1));
            line.push(with_interval(&self.clean.difference(noisy, args)));
        }
        line.extend(self.clean.reliability.cells());
        line
    }
}

/// In points.
fn with_interval(bootstrap: &Bootstrap) -> String {
    let [difference, low, high] = [bootstrap.difference, bootstrap.low, bootstrap.high].map(|x| 100.0 * x);
    format!("{difference:+.2} ({low:+.2}..{high:+.2})")
}

fn in_thousandths(Bootstrap { difference, low, high, .. }: &Bootstrap) -> String {
    format!("{difference:+.3} ({low:+.3}..{high:+.3})")
}

fn header(args: &Args) -> Vec<String> {
    let name =
        |path: &String| Corpus::parse(path).path.file_name().map_or(path.clone(), |n| n.to_string_lossy().into_owned());
    let mut header = vec!["strict entity scores".to_owned()];
    header.extend(args.data.iter().map(|path| format!("F1 {}", name(path))));
    header.extend(["P", "R", "F1 pooled", "95 %", "kept", "difference (95 %)"].map(str::to_owned));
    header.extend(args.noise.iter().flat_map(|_| ["F1 noisy", "lost (95 %)"].map(str::to_owned)));
    header.extend(ScoreReliability::HEADER.map(str::to_owned));
    header
}

fn long_texts(set: &NerSet, extractor: &Extractor) -> Result<NerSet> {
    let tokenizer: &Tokenizer = extractor.tokenizer();
    let length = |example: &Example| tokenizer.encode(&example.text).map_or(1, |tokens| tokens.len());
    let examples = full_windows(set, extractor.config().max_tokens() - 2, &length);
    Ok(NerSet { examples, covers: set.covers.clone() })
}

fn labels(args: &Args, noise: Option<&TypingNoise>, texts: Vec<LabelledText>, options: &Options) -> Result<()> {
    let noisy: Option<Vec<LabelledText>> =
        noise.map(|noise| texts.iter().map(|text| noise.labelled(text, args.noise_seed)).collect());
    let texts = texts.as_slice();
    // As with entities, each is opened before any is scored.
    let config = |path| Classifier::open(path, options).map(|classifier| classifier.config().clone());
    let configs = args.models.iter().map(config).collect::<ampoule::Result<Vec<ModelConfig>>>()?;
    Corpus::check_known_labels(texts, &configs)?;
    note_reading(args.split, &args.models, &args.data)?;
    let mut objects = Vec::new();
    let mut reliabilities = Vec::new();
    let mut header = ["text labels", "accuracy (95 %)", "difference (95 %)", "F1 micro"].map(str::to_owned).to_vec();
    header.extend(["F1 macro (95 %)", "difference (95 %)", "AUROC (95 %)"].map(str::to_owned));
    header.extend(ScoreReliability::HEADER.map(str::to_owned));
    if noise.is_some() {
        header.extend(["accuracy noisy", "lost (95 %)", "F1 macro noisy", "lost (95 %)"].map(str::to_owned));
    }
    let mut lines = vec![header];
    let mut first: Option<ClassReport> = None;
    for path in &args.models {
        let classifier = Classifier::open(path, options)?;
        let bar = counter(texts.len() * (1 + usize::from(noise.is_some())), "texts");
        let score = |texts| FoundLabels::run(&classifier, texts, || bar.inc(1));
        let found = score(texts)?;
        let noisy = noisy.as_deref().map(score).transpose()?.map(|found| found.scores());
        bar.finish_and_clear();
        let clean = found.scores();
        let calibration = found.answers().calibration()?;
        let fit = match args.fit {
            true => Judgements::of_labels(&classifier, texts)?.fit(),
            false => None,
        };
        let reliability = ScoreReliability { temperature: Some(classifier.temperature()), calibration, fit };
        let three = |x: f64| format!("{x:.3}");
        let within = |of: Interval| format!("{:.3} ({:.3}..{:.3})", of.value, of.low, of.high);
        let intervals = label_intervals(&clean, args.resamples as usize, SEED);
        // Models of other labels have no score in common.
        let difference = Some(first.as_ref().unwrap_or(&clean))
            .filter(|first| first.per_label.keys().eq(clean.per_label.keys()))
            .map(|first| paired_label_bootstrap(&clean, first, args.resamples as usize, SEED));
        let beside = |of: fn(&LabelBootstrap) -> Bootstrap| {
            difference.as_ref().map_or("-".to_owned(), |difference| in_thousandths(&of(difference)))
        };
        let mut line = vec![path.display().to_string()];
        line.extend([within(intervals.accuracy), beside(|of| of.accuracy), three(clean.micro_f1)]);
        line.extend([within(intervals.macro_f1), beside(|of| of.macro_f1)]);
        line.push(intervals.auroc.map_or("-".to_owned(), within));
        line.extend(reliability.cells());
        let mut object = json!({
            "model": path,
            "scores": clean,
            "intervals": intervals,
            "difference_from_first": difference,
            "calibration": reliability.json(),
            "device": classifier.device(),
        });
        if let Some(noisy) = noisy {
            let lost = paired_label_bootstrap(&clean, &noisy, args.resamples as usize, SEED);
            for (score, lost) in [(noisy.accuracy, lost.accuracy), (noisy.macro_f1, lost.macro_f1)] {
                line.extend([three(score), in_thousandths(&lost)]);
            }
            object["noisy"] = json!({"scores": noisy, "lost": lost});
        }
        tell_gpu(&classifier.report());
        lines.push(line);
        objects.push(object);
        reliabilities.push((path.display().to_string(), reliability));
        first.get_or_insert(clean);
    }
    if args.json {
        return args.print(noise, json!({"split": split_name(&args.data, args.split)}), objects);
    }
    print_line(&table(&lines))?;
    reliabilities.iter().try_for_each(|(name, reliability)| reliability.show(name, args))
}
