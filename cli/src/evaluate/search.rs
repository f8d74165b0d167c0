//! Models that embed, side by side on queries of passages.

use ampoule::{Embedder, Options};
use ampoule_distill::data::{Query, SearchSet};
use ampoule_distill::score::{Bootstrap, SearchMeasures, SearchReport, paired_search_bootstrap, search_intervals};
use ampoule_distill::{FoundPassages, TypingNoise};
use anyhow::Result;
use serde_json::{Value, json};

use super::{Args, SEED, with_interval};
use crate::data::{Corpus, note_reading, split_name};
use crate::input::tell_gpu;
use crate::ui::{counter, hint, print_line, table};

/// One model's results, each over all sets.
struct Row {
    name: String,
    device: Option<Value>,
    clean: SearchReport,
    noisy: Option<SearchReport>,
    /// One for each set.
    sets: Vec<Value>,
}

pub fn run(args: &Args, noise: Option<&TypingNoise>, corpora: &[Corpus], options: &Options) -> Result<()> {
    if let Some(name) = args.of_entities() {
        let instead = if args.dictionary { "--bm25".to_owned() } else { format!("without {name}") };
        return Err(hint(format!("{name} is for entities, and the data has queries of passages"), instead));
    }
    let of_scores =
        [("--reliability", args.reliability), ("--fit", args.fit), ("--temperature", options.temperature.is_some())];
    if let Some((name, _)) = of_scores.into_iter().find(|(_, is_given)| *is_given) {
        return Err(hint(format!("{name}: embeddings have no scores"), format!("without {name}")));
    }
    let sets = corpora.iter().map(|c| c.search(args.split)).collect::<ampoule::Result<Vec<_>>>()?;
    // As with entities, each is opened before any is scored.
    for path in &args.models {
        Embedder::open(path, options)?;
    }
    note_reading(args.split, &args.models, &args.data)?;
    // Mistyped queries after the others: the passages are embedded once.
    let sets: Vec<SearchSet> = sets.into_iter().map(|set| with_noise(set, noise, args.noise_seed)).collect();
    let mut rows = Vec::new();
    for path in &args.models {
        let embedder = Embedder::open(path, options)?;
        let bar = counter(sets.iter().map(|set| set.passages.len() + set.queries.len()).sum(), "texts");
        let find = |set: &SearchSet| {
            Ok(FoundPassages::run(&embedder, std::slice::from_ref(set), |count| bar.inc(count as u64))?.scores())
        };
        let mut row = Row::new(path.display().to_string(), &sets, noise.is_some(), args, find)?;
        bar.finish_and_clear();
        row.device = Some(json!(embedder.device()));
        tell_gpu(&embedder.report());
        rows.push(row);
    }
    if args.bm25 {
        let find = |set: &SearchSet| Ok(FoundPassages::of_bm25(std::slice::from_ref(set)).scores());
        rows.push(Row::new("BM25".to_owned(), &sets, noise.is_some(), args, find)?);
    }
    if args.json {
        let models = rows.iter().map(|row| row.json(&rows[0], args)).collect();
        return args.print(noise, json!({"split": split_name(&args.data, args.split)}), models);
    }
    let mut header = ["search", "MRR@10", "95 %", "difference (95 %)"].map(str::to_owned).to_vec();
    header.extend(["R@1", "95 %", "R@5", "95 %", "R@10", "95 %"].map(str::to_owned));
    header.extend(noise.iter().flat_map(|_| ["MRR@10 noisy", "lost (95 %)"].map(str::to_owned)));
    let lines: Vec<_> = std::iter::once(header).chain(rows.iter().map(|row| row.line(&rows[0], args))).collect();
    print_line(&table(&lines))
}

fn with_noise(mut set: SearchSet, noise: Option<&TypingNoise>, seed: u64) -> SearchSet {
    if let Some(noise) = noise {
        let mistyped = |query: &Query| Query { text: noise.apply(&query.text, &[], seed).0, ..query.clone() };
        let noisy: Vec<Query> = set.queries.iter().map(mistyped).collect();
        set.queries.extend(noisy);
    }
    set
}

impl Row {
    /// Scores what `find` finds in each set, whose second half of queries is mistyped where `is_noisy`.
    fn new(
        name: String,
        sets: &[SearchSet],
        is_noisy: bool,
        args: &Args,
        find: impl Fn(&SearchSet) -> Result<SearchReport>,
    ) -> Result<Self> {
        let (mut clean, mut noisy, mut by_set) = (Vec::new(), Vec::new(), Vec::new());
        for (set, path) in sets.iter().zip(&args.data) {
            let found = find(set)?.queries;
            let count = if is_noisy { found.len() / 2 } else { found.len() };
            let (of_clean, of_noisy) = found.split_at(count);
            let scores = SearchReport::of(of_clean.to_vec());
            by_set.push(json!({"data": path, "queries": count, "passages": set.passages.len(), "scores": scores}));
            clean.extend_from_slice(of_clean);
            noisy.extend_from_slice(of_noisy);
        }
        let noisy = is_noisy.then(|| SearchReport::of(noisy));
        Ok(Row { name, device: None, clean: SearchReport::of(clean), noisy, sets: by_set })
    }

    fn json(&self, first: &Row, args: &Args) -> Value {
        let pooled = |report: &SearchReport| {
            let intervals = search_intervals(&report.queries, args.resamples as usize, SEED);
            json!({"scores": report, "intervals": intervals})
        };
        let mut all = pooled(&self.clean);
        all["difference_from_first"] = json!(difference(&self.clean, &first.clean, args));
        if let Some(noisy) = &self.noisy {
            all["noisy"] = pooled(noisy);
            all["noisy"]["lost"] = json!(difference(&self.clean, noisy, args));
        }
        let mut row = json!({"model": self.name, "sets": self.sets, "pooled": all});
        if let Some(device) = &self.device {
            row["device"] = device.clone();
        }
        row
    }

    fn line(&self, first: &Row, args: &Args) -> Vec<String> {
        let percent = |x: f64| format!("{:.2}", 100.0 * x);
        let (mean, intervals) = (self.clean.mean, search_intervals(&self.clean.queries, args.resamples as usize, SEED));
        let interval = |(low, high): (f64, f64)| format!("{}..{}", percent(low), percent(high));
        let mut line = vec![self.name.clone(), percent(mean.mrr_at_10), interval(intervals.mrr_at_10)];
        line.push(with_interval(&difference(&self.clean, &first.clean, args).mrr_at_10));
        let recalls = [
            (mean.recall_at_1, intervals.recall_at_1),
            (mean.recall_at_5, intervals.recall_at_5),
            (mean.recall_at_10, intervals.recall_at_10),
        ];
        line.extend(recalls.into_iter().flat_map(|(recall, of)| [percent(recall), interval(of)]));
        if let Some(noisy) = &self.noisy {
            line.push(percent(noisy.mean.mrr_at_10));
            line.push(with_interval(&difference(&self.clean, noisy, args).mrr_at_10));
        }
        line
    }
}

/// How much better `a` is than `b`, of the same queries.
fn difference(a: &SearchReport, b: &SearchReport, args: &Args) -> SearchMeasures<Bootstrap> {
    paired_search_bootstrap(&a.queries, &b.queries, args.resamples as usize, SEED)
}
