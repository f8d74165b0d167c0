//! Labelled and unlabelled text for training.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem};
use std::path::{Path, PathBuf};

use ampoule::decode::Scheme;
use ampoule::{ErrorKind, ModelConfig, Task};
use ampoule_distill::data::{
    LabelledText, NerSet, OffsetUnit, SearchSet, first_fields, held_out, read_folder, read_labelled, read_lines,
    read_ner, read_search, split,
};
use ampoule_distill::{Data, TrainConfig, TypingNoise, log_test_reading};
use anyhow::Result;
use clap::ValueEnum;

use crate::ui::{hint, tell};

#[derive(clap::Args)]
pub struct DataArgs {
    /// Labelled text: a folder with train and dev files (.tsv with IOB2 tags, or .jsonl), or one file; or queries of passages (.jsonl, with
    /// corpus.jsonl beside it). Where there is no dev file, every twentieth text or query, by its hash, is held out in its place.
    /// `FOLDER=Label,…` says which labels it covers, where they are not those that occur in its train file. May be given several times
    #[arg(long, required = true, value_name = "FOLDER[=LABELS]")]
    pub data: Vec<String>,
    /// Text without labels, one a line or .jsonl, on which a teacher answers, or an embedder learns from itself
    #[arg(long, value_name = "FILE")]
    pub transfer: Vec<PathBuf>,
    /// The unit of "start" and "end" in .jsonl lines that name none
    #[arg(long, value_enum, default_value = "utf8")]
    pub offsets: OffsetsArg,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum OffsetsArg {
    Utf8,
    Utf16,
    Chars,
}

impl OffsetsArg {
    pub fn unit(self) -> OffsetUnit {
        match self {
            OffsetsArg::Utf8 => OffsetUnit::Utf8,
            OffsetsArg::Utf16 => OffsetUnit::Utf16,
            OffsetsArg::Chars => OffsetUnit::Chars,
        }
    }
}

/// Which file of a folder.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Split {
    Train,
    Dev,
    Test,
}

impl Split {
    pub fn as_str(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Dev => "dev",
            Split::Test => "test",
        }
    }
}

/// What a file's lines say of their texts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Entities,
    Labels,
    Search,
}

/// The splits that are measured on, where this one is asked for.
fn splits(data: &[String], asked: Split) -> impl Iterator<Item = Split> {
    data.iter().map(move |corpus| Corpus::parse(corpus).split(asked))
}

/// Whether a test set is measured on, where this split is asked for.
pub fn is_test(data: &[String], asked: Split) -> bool {
    splits(data, asked).any(|split| split == Split::Test)
}

/// What the split that is measured on is called, where this one is asked for.
pub fn split_name(data: &[String], asked: Split) -> &'static str {
    let first = splits(data, asked).next().unwrap_or(asked);
    if splits(data, asked).all(|split| split == first) { first.as_str() } else { "mixed" }
}

/// The one kind of all files.
pub fn one_kind(corpora: &[Corpus], which: Split) -> Result<Kind> {
    let kinds = corpora.iter().map(|corpus| corpus.kind(which)).collect::<Result<BTreeSet<Kind>>>()?;
    match kinds.into_iter().collect::<Vec<_>>().as_slice() {
        [kind] => Ok(*kind),
        _ => Err(hint(
            "some of the data marks entities, some whole texts, or what queries find",
            "one kind of data in one command",
        )),
    }
}

/// A corpus of the command line: a path, and the labels that it is said to cover.
pub struct Corpus {
    pub path: PathBuf,
    covers: Option<Vec<String>>,
}

impl Corpus {
    pub fn parse(argument: &str) -> Self {
        match argument.rsplit_once('=') {
            Some((path, labels)) if !Path::new(argument).exists() => {
                Corpus { path: path.into(), covers: Some(labels.split(',').map(|l| l.trim().to_owned()).collect()) }
            }
            _ => Corpus { path: argument.into(), covers: None },
        }
    }

    /// Whether a file of it is there to choose by; otherwise some of its texts to train on are held out.
    fn has_dev(&self) -> bool {
        self.path.is_dir() && self.has(Split::Dev)
    }

    fn has(&self, which: Split) -> bool {
        !matches!(split(&self.path, which.as_str()), Err(e) if e.kind() == ErrorKind::NotFound)
    }

    /// The split that it is, where this one is asked for: a file may be called by another.
    fn split(&self, asked: Split) -> Split {
        let stem = self.path.file_stem().filter(|_| !self.path.is_dir());
        let called = Split::value_variants().iter().find(|split| stem.is_some_and(|stem| stem == split.as_str()));
        called.copied().unwrap_or(asked)
    }

    /// Whether what `train` would choose by is held out of what it would train on. A file that is called so is a dev file.
    fn is_parted(&self) -> bool {
        match self.path.is_dir() {
            true => !self.has(Split::Dev) && self.has(Split::Train),
            false => self.split(Split::Train) != Split::Dev,
        }
    }

    /// Entities to train on, and to choose by.
    pub fn parted_entities(&self, unit: OffsetUnit) -> Result<(NerSet, NerSet)> {
        let set = self.entities(Split::Train, unit)?;
        if self.has_dev() {
            return Ok((set, self.entities(Split::Dev, unit)?));
        }
        let (train, dev) = self.held_out(set.examples, |example| &example.text)?;
        let of = |examples| NerSet { examples, covers: set.covers.clone() };
        Ok((of(train), of(dev)))
    }

    /// Texts with labels to train on, and to choose by.
    pub fn parted_labels(&self) -> Result<(Vec<LabelledText>, Vec<LabelledText>)> {
        match (self.labelled(Split::Train)?, self.has_dev()) {
            (texts, true) => Ok((texts, self.labelled(Split::Dev)?)),
            (texts, false) => self.held_out(texts, |text| &text.text),
        }
    }

    /// Queries to train on, and to choose by.
    pub fn parted_search(&self) -> Result<(SearchSet, SearchSet)> {
        let set = self.search(Split::Train)?;
        if self.has_dev() {
            return Ok((set, self.search(Split::Dev)?));
        }
        let (train, dev) = self.held_out(set.queries, |query| &query.text)?;
        let of = |queries| SearchSet { passages: set.passages.clone(), queries };
        Ok((of(train), of(dev)))
    }

    /// The entities to choose by, and the texts of the others where they are held out of these.
    pub fn dev_entities(&self, unit: OffsetUnit) -> Result<(NerSet, Vec<String>)> {
        if !self.is_parted() {
            return Ok((self.entities(Split::Dev, unit)?, Vec::new()));
        }
        let (train, dev) = self.parted_entities(unit)?;
        Ok((dev, train.examples.into_iter().map(|example| example.text).collect()))
    }

    /// The texts with labels to choose by, and the others.
    pub fn dev_labels(&self) -> Result<(Vec<LabelledText>, Vec<String>)> {
        if !self.is_parted() {
            return Ok((self.labelled(Split::Dev)?, Vec::new()));
        }
        let (train, dev) = self.parted_labels()?;
        Ok((dev, train.into_iter().map(|text| text.text).collect()))
    }

    /// The queries to choose by, and the texts of the others.
    pub fn dev_search(&self) -> Result<(SearchSet, Vec<String>)> {
        if !self.is_parted() {
            return Ok((self.search(Split::Dev)?, Vec::new()));
        }
        let (train, dev) = self.parted_search()?;
        Ok((dev, train.queries.into_iter().map(|query| query.text).collect()))
    }

    /// Parts its texts into those to train on and those to choose by, and says so.
    fn held_out<T>(&self, texts: Vec<T>, text: impl Fn(&T) -> &str) -> Result<(Vec<T>, Vec<T>)> {
        let (path, all) = (self.path.display(), texts.len());
        let (train, dev) = held_out(texts, text);
        if train.is_empty() || dev.is_empty() {
            return Err(hint(
                format!("{path}: {all} texts, or those of them that differ, are too few to hold some out to choose by"),
                "a folder with a train and a dev file; `quantize` takes a file called dev whole",
            ));
        }
        tell(&format!("{path}: no dev file; {} of {all} texts are held out to choose by", dev.len()));
        Ok((train, dev))
    }

    /// The file of a split.
    pub fn file(&self, which: Split) -> ampoule::Result<PathBuf> {
        if self.path.is_dir() { split(&self.path, which.as_str()) } else { Ok(self.path.clone()) }
    }

    /// What its first line says.
    fn kind(&self, which: Split) -> Result<Kind> {
        let file = self.file(which)?;
        if file.extension().is_none_or(|e| !e.eq_ignore_ascii_case("jsonl")) {
            return Ok(Kind::Entities);
        }
        let fields = first_fields(&file)?;
        let has = |field: &str| fields.iter().any(|name| name == field);
        match (has("entities"), has("label") || has("labels"), has("positives") || has("positive")) {
            (true, ..) => Ok(Kind::Entities),
            (false, true, _) => Ok(Kind::Labels),
            (false, false, true) => Ok(Kind::Search),
            (false, false, false) => Err(hint(
                format!(
                    "{}: its first line has neither \"entities\" nor \"label\", \"labels\" nor \"positives\"",
                    file.display()
                ),
                "the README, \"Your own student\", which says how such files are written",
            )),
        }
    }

    pub fn entities(&self, which: Split, unit: OffsetUnit) -> ampoule::Result<NerSet> {
        let covers = self.covers.as_deref();
        let set = match self.path.is_dir() {
            // All files of the folder: its train file says what the others cover.
            true => {
                let folder = read_folder(&self.path, unit, covers)?;
                match which {
                    Split::Train => folder.train,
                    Split::Dev => folder.dev,
                    Split::Test => folder.test,
                }
            }
            false => None,
        };
        let file = self.file(which)?;
        let set = set.map_or_else(|| read_ner(&file, unit, covers), Ok)?;
        let (within, all) = (set.within_words(), set.entities().count());
        // Some corpora mark parts of words here and there.
        if within > 2 && within * 20 > all {
            tell(&format!(
                "{}: {within} of {all} entities begin or end inside a word, where no model finds them; are the offsets in another unit? \
                 --offsets, or \"offsets\" of a line, says in which",
                file.display()
            ));
        }
        Ok(set)
    }

    /// Refuses labels, of the command line or of all that `set` covers, that none of the models has: nothing could be found of them.
    pub fn check_known(&self, set: &NerSet, models: &[ModelConfig]) -> Result<()> {
        let known = entity_labels(models)?;
        let (path, all) = (self.path.display(), set.covers.len());
        let unknown = set.covers.difference(&known).count();
        let problem = match self.covers.iter().flatten().find(|label| !known.contains(*label)) {
            Some(asked) => format!("{path}: no model has the label {asked:?}"),
            // The data's own are not quoted: a text may stand in the place of one.
            None if unknown == all => format!("{path}: no model has any label of the data"),
            None if unknown > 0 => {
                tell(&format!(
                    "{path}: {unknown} of its {all} labels no model has; entities that have them count as missed, unless \
                     `{path}=Label,…` names the others"
                ));
                return Ok(());
            }
            None => return Ok(()),
        };
        Err(hint(problem, "the labels as the model writes them, capitals included; `ampoule inspect` lists them"))
    }

    /// Refuses texts none of whose labels any of the models has, and for one that gives a single label texts that have not one. Says how many
    /// labels no model has; they are not quoted, since a text may stand in their place.
    pub fn check_known_labels(texts: &[LabelledText], models: &[ModelConfig]) -> Result<()> {
        let others = texts.iter().filter(|text| text.labels.len() != 1).count();
        if others > 0 && models.iter().any(|config| config.task == Task::SingleLabel) {
            return Err(hint(
                format!("{others} of {} texts have no label or several, and a model gives exactly one", texts.len()),
                "texts of one label each, or a model with a multi-label head",
            ));
        }
        let known = |label: &String| models.iter().any(|config| config.id2label.contains(label));
        let labels: BTreeSet<&String> = texts.iter().flat_map(|text| &text.labels).collect();
        match labels.iter().filter(|label| !known(label)).count() {
            0 => {}
            unknown if unknown == labels.len() => {
                return Err(hint(
                    "no model has any label of the data",
                    "the labels as the model writes them, capitals included; `ampoule inspect` lists them",
                ));
            }
            unknown => tell(&format!(
                "{unknown} of {} labels of the data no model has; texts that have them count as wrong",
                labels.len()
            )),
        }
        Ok(())
    }

    pub fn labelled(&self, which: Split) -> ampoule::Result<Vec<LabelledText>> {
        self.check_uncovered()?;
        read_labelled(&self.file(which)?)
    }

    pub fn search(&self, which: Split) -> ampoule::Result<SearchSet> {
        self.check_uncovered()?;
        read_search(&self.file(which)?)
    }

    /// Entities alone are of a label that a corpus may not cover.
    fn check_uncovered(&self) -> ampoule::Result<()> {
        match self.covers {
            Some(_) => Err(ampoule::Error::invalid_input(format!(
                "{}: =LABELS is for entities, and this marks none",
                self.path.display()
            ))),
            None => Ok(()),
        }
    }
}

/// Labelled texts of one split: entities by corpus, or labels of whole texts.
pub enum Labelled {
    Entities(Vec<NerSet>),
    Labels(Vec<LabelledText>),
}

impl Labelled {
    pub fn read(corpora: &[Corpus], which: Split, unit: OffsetUnit) -> Result<Self> {
        match one_kind(corpora, which)? {
            Kind::Entities => {
                Ok(Labelled::Entities(corpora.iter().map(|c| c.entities(which, unit)).collect::<ampoule::Result<_>>()?))
            }
            Kind::Labels => Self::read_labels(corpora, which),
            Kind::Search => Err(hint(
                "the data has queries of passages, and no labels",
                "`ampoule evaluate`, which measures a search",
            )),
        }
    }

    pub fn read_labels(corpora: &[Corpus], which: Split) -> Result<Self> {
        let texts = corpora.iter().map(|c| c.labelled(which)).collect::<ampoule::Result<Vec<_>>>()?;
        Ok(Labelled::Labels(texts.concat()))
    }

    /// The same texts with noise of typing.
    pub fn noisy(&self, noise: &TypingNoise, seed: u64) -> Self {
        match self {
            Labelled::Entities(sets) => Labelled::Entities(sets.iter().map(|set| noise.set(set, seed)).collect()),
            Labelled::Labels(texts) => Labelled::Labels(texts.iter().map(|text| noise.labelled(text, seed)).collect()),
        }
    }

    /// Numbers the labels that none of the models has, in place of their names, since a text may stand in one. No score changes.
    pub fn number_unknown(&mut self, models: &[ModelConfig]) -> Result<()> {
        let known = match self {
            Labelled::Entities(_) => entity_labels(models)?,
            Labelled::Labels(_) => models.iter().flat_map(|config| config.id2label.iter().cloned()).collect(),
        };
        let mut numbers = BTreeMap::new();
        let mut numbered = |label: String| {
            if known.contains(&label) {
                return label;
            }
            let next = numbers.len() + 1;
            format!("label {} that no model has", numbers.entry(label).or_insert(next))
        };
        match self {
            Labelled::Entities(sets) => {
                for set in sets {
                    set.covers = std::mem::take(&mut set.covers).into_iter().map(&mut numbered).collect();
                    for entity in set.examples.iter_mut().flat_map(|example| &mut example.entities) {
                        entity.label = numbered(std::mem::take(&mut entity.label));
                    }
                }
            }
            Labelled::Labels(texts) => {
                for label in texts.iter_mut().flat_map(|text| &mut text.labels) {
                    *label = numbered(std::mem::take(label));
                }
            }
        }
        Ok(())
    }

    pub fn texts(&self) -> Vec<&str> {
        match self {
            Labelled::Entities(sets) => sets.iter().flat_map(|set| &set.examples).map(|e| e.text.as_str()).collect(),
            Labelled::Labels(texts) => texts.iter().map(|text| text.text.as_str()).collect(),
        }
    }
}

/// Noise of typing in this share of words.
pub fn typing_noise(words: f64) -> Result<TypingNoise> {
    let noise = TypingNoise { words, ..TypingNoise::default() };
    noise.check().map_err(|_| hint("--noise is not a share of words in 0..=1", "--noise 0.1 for one word in ten"))?;
    Ok(noise)
}

/// Notes that models were measured on a test set, once nothing stands in the way of it; once for each run, whatever the number of its models.
pub fn note_reading<'a>(asked: Split, models: impl IntoIterator<Item = &'a PathBuf>, data: &[String]) -> Result<()> {
    if is_test(data, asked) {
        let mut seen = BTreeSet::new();
        for model in models.into_iter().filter(|model| seen.insert(model.parent())) {
            let noted = log_test_reading(model, data);
            match noted.as_ref().err().and_then(|error| std::error::Error::source(error)?.downcast_ref::<io::Error>()) {
                Some(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) => {
                    tell(&format!(
                        "{}: this measurement on a test set cannot be noted in its run: {error}",
                        model.display()
                    ));
                }
                _ => noted?,
            }
        }
    }
    Ok(())
}

impl DataArgs {
    pub fn read(&self) -> Result<Data> {
        let corpora: Vec<Corpus> = self.data.iter().map(|c| Corpus::parse(c)).collect();
        let lines = |path: &PathBuf| {
            if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) {
                return Err(hint(
                    format!("{}: a .tsv file has a token a line, and --transfer takes texts", path.display()),
                    "a text a line in a file of another name, or .jsonl",
                ));
            }
            match read_lines(path)? {
                lines if lines.is_empty() => Err(hint(format!("{}: no text in it", path.display()), "a text a line")),
                lines => Ok(lines),
            }
        };
        let transfer = self.transfer.iter().map(lines).collect::<Result<Vec<_>>>()?.concat();
        match one_kind(&corpora, Split::Train)? {
            Kind::Entities => {
                let unit = self.offsets.unit();
                let (mut train, mut dev) = (Vec::new(), Vec::new());
                for corpus in &corpora {
                    let (set, chosen_by) = corpus.parted_entities(unit)?;
                    train.push(set);
                    dev.push(chosen_by);
                }
                Ok(Data::Entities { train, dev, transfer })
            }
            Kind::Labels => {
                let (mut train, mut dev) = (Vec::new(), Vec::new());
                for corpus in &corpora {
                    let (texts, chosen_by) = corpus.parted_labels()?;
                    train.extend(texts);
                    dev.extend(chosen_by);
                }
                Ok(Data::Labels { train, dev, transfer })
            }
            Kind::Search => {
                let (mut train, mut dev) = (Vec::new(), Vec::new());
                for corpus in &corpora {
                    let (set, chosen_by) = corpus.parted_search()?;
                    train.push(set);
                    dev.push(chosen_by);
                }
                Ok(Data::Search { train, dev, transfer })
            }
        }
    }

    /// The settings of a run on `data` where none are given.
    pub fn defaults(&self, data: &Data) -> TrainConfig {
        match data {
            Data::Entities { .. } | Data::Labels { .. } => TrainConfig::default(),
            Data::Search { .. } => TrainConfig::for_search(),
        }
    }

    /// The labels of such a head: IOB2 tags of every label covered, or the labels that occur; none of an encoder.
    pub fn labels(&self, data: &Data) -> Vec<String> {
        match data {
            Data::Entities { train, .. } => {
                let labels: BTreeSet<&String> = train.iter().flat_map(|set| &set.covers).collect();
                let tags = labels.into_iter().flat_map(|label| [format!("B-{label}"), format!("I-{label}")]);
                std::iter::once("O".to_owned()).chain(tags).collect()
            }
            Data::Labels { train, dev, .. } => {
                // One whose only texts are held out is a label all the same.
                let labels: BTreeSet<&String> = train.iter().chain(dev).flat_map(|text| &text.labels).collect();
                labels.into_iter().cloned().collect()
            }
            Data::Search { .. } => Vec::new(),
        }
    }

    /// Refuses data that covers a label and marks it nowhere, or whose texts all have the same label: a new head would learn nothing else;
    /// and data most of whose labels are there once, as texts in their place are. Says how many are, where it is some.
    pub fn check_taught(&self, data: &Data, task: Task) -> Result<()> {
        match self.labels(data).len() {
            0 if task != Task::Encoder => return Err(hint("no text has a label", "texts with labels")),
            1 if task == Task::SingleLabel => {
                return Err(hint(
                    "all texts have the same label, so there is nothing to tell apart",
                    "texts of at least two labels, or --multi-label",
                ));
            }
            _ => {}
        }
        let (one, many, taught, held_out) = match data {
            Data::Entities { train, dev, .. } => ("entity", "entities", marks(train), marks(dev)),
            Data::Labels { train, dev, .. } => ("text", "texts", names(train), names(dev)),
            Data::Search { .. } => return Ok(()),
        };
        let mut uses: BTreeMap<&String, usize> = BTreeMap::new();
        taught.iter().chain(&held_out).for_each(|label| *uses.entry(label).or_default() += 1);
        let (number, all) = (taught.len() + held_out.len(), uses.len());
        let taught: BTreeSet<&String> = taught.into_iter().collect();
        // They would stand in the model, for everyone to read.
        if number >= 20 && task != Task::MultiLabel && 2 * all > number {
            return Err(hint(
                format!("{number} {many} have {all} labels, so most are there once"),
                "\"text\" and \"label\" in each other's place, if these are texts; or fewer labels",
            ));
        }
        let once = uses.values().filter(|&&uses| uses == 1).count();
        if number >= 20 && once > 0 {
            tell(&format!(
                "{once} of {all} labels are of one {one} alone; is one misspelt, or a text in a label's place? Labels stand in the model, \
                 for everyone to read"
            ));
        }
        let Data::Entities { train, .. } = data else {
            if taught.len() < all {
                tell(&format!(
                    "{} of {all} labels are in texts to choose by alone, and nothing teaches them; is one misspelt?",
                    all - taught.len()
                ));
            }
            return Ok(());
        };
        let covered: BTreeSet<&String> = train.iter().flat_map(|set| &set.covers).collect();
        let unmarked: BTreeSet<&String> = covered.difference(&taught).copied().collect();
        let what = match self.data.iter().flat_map(|c| Corpus::parse(c).covers).flatten().find(|l| unmarked.contains(l))
        {
            Some(asked) => format!("the label {asked:?}"),
            // The data's own are not quoted: a text may stand in the place of one.
            None if !unmarked.is_empty() => format!("{} of the {} labels", unmarked.len(), covered.len()),
            None => return Ok(()),
        };
        Err(hint(
            format!("no train file marks {what}, and what is not marked is not taught"),
            "the labels as the files write them, capitals included; or train files that mark them",
        ))
    }
}

/// The label of each entity.
fn marks(sets: &[NerSet]) -> Vec<&String> {
    sets.iter()
        .flat_map(|set| &set.examples)
        .flat_map(|example| &example.entities)
        .map(|entity| &entity.label)
        .collect()
}

/// The labels of each text.
fn names(texts: &[LabelledText]) -> Vec<&String> {
    texts.iter().flat_map(|text| &text.labels).collect()
}

/// The labels of entities that any of the models has.
fn entity_labels(models: &[ModelConfig]) -> Result<BTreeSet<String>> {
    let mut labels = BTreeSet::new();
    for config in models {
        labels.extend(Scheme::new(&config.id2label)?.entity_labels().iter().map(|label| label.to_string()));
    }
    Ok(labels)
}
