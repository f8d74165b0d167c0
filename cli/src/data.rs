//! Labelled and unlabelled text for training.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use ampoule::decode::Scheme;
use ampoule::{ModelConfig, Task};
use ampoule_distill::data::{
    LabelledText, NerSet, OffsetUnit, SearchSet, read_folder, read_labelled, read_lines, read_ner, read_search, split,
};
use ampoule_distill::{Data, TrainConfig};
use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::ui::hint;

#[derive(clap::Args)]
pub struct DataArgs {
    /// Labelled text: a folder with train and dev files (.tsv with IOB2 tags, or .jsonl), or queries of passages (.jsonl, with corpus.jsonl).
    /// `FOLDER=Label,…` says which labels it covers, where they are not those that occur in its train file. May be given several times
    #[arg(long, required = true, value_name = "FOLDER[=LABELS]")]
    pub data: Vec<String>,
    /// Text without labels, one a line or .jsonl
    #[arg(long, value_name = "FILE")]
    transfer: Vec<PathBuf>,
    /// The unit of "start" and "end" in .jsonl lines that name none
    #[arg(long, value_enum, default_value = "utf8")]
    pub offsets: OffsetsArg,
    /// A text may have several labels, or none
    #[arg(long)]
    multi_label: bool,
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
#[derive(Clone, Copy, ValueEnum)]
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

    fn file(&self, which: Split) -> ampoule::Result<PathBuf> {
        if self.path.is_dir() { split(&self.path, which.as_str()) } else { Ok(self.path.clone()) }
    }

    /// What its first line says.
    fn kind(&self, which: Split) -> Result<Kind> {
        let file = self.file(which)?;
        if file.extension().is_none_or(|e| !e.eq_ignore_ascii_case("jsonl")) {
            return Ok(Kind::Entities);
        }
        let content = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let content = content.strip_prefix('\u{feff}').unwrap_or(&content);
        let first = content.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let first: serde_json::Value = serde_json::from_str(first).unwrap_or_default();
        let has = |field: &str| first.get(field).is_some();
        Ok(match (has("entities"), has("positives") || has("positive")) {
            (true, _) => Kind::Entities,
            (false, true) => Kind::Search,
            (false, false) => Kind::Labels,
        })
    }

    pub fn entities(&self, which: Split, unit: OffsetUnit) -> ampoule::Result<NerSet> {
        let covers = self.covers.as_deref();
        if !self.path.is_dir() {
            return read_ner(&self.path, unit, covers);
        }
        // All files of the folder: its train file says what the others cover.
        let folder = read_folder(&self.path, unit, covers)?;
        let set = match which {
            Split::Train => folder.train,
            Split::Dev => folder.dev,
            Split::Test => folder.test,
        };
        set.map_or_else(|| read_ner(&split(&self.path, which.as_str())?, unit, covers), Ok)
    }

    /// Refuses labels, of the command line or of all that `set` covers, that none of the models has: nothing could be found of them.
    pub fn check_known(&self, set: &NerSet, models: &[ModelConfig]) -> Result<()> {
        let schemes = models.iter().map(|config| Scheme::new(&config.id2label)).collect::<ampoule::Result<Vec<_>>>()?;
        let known = |label: &str| schemes.iter().any(|scheme| scheme.label_index(label).is_some());
        let unknown = match &self.covers {
            Some(asked) => asked.iter().find(|label| !known(label)),
            None if set.covers.iter().any(|label| known(label)) => None,
            None => set.covers.first(),
        };
        match unknown {
            Some(label) => Err(hint(
                format!("{}: no model has the label {label:?}", self.path.display()),
                "the labels as the model writes them, capitals included; `ampoule inspect` lists them",
            )),
            None => Ok(()),
        }
    }

    pub fn labelled(&self, which: Split) -> ampoule::Result<Vec<LabelledText>> {
        read_labelled(&self.file(which)?)
    }

    pub fn search(&self, which: Split) -> ampoule::Result<SearchSet> {
        read_search(&self.file(which)?)
    }
}

impl DataArgs {
    pub fn read(&self) -> Result<Data> {
        let corpora: Vec<Corpus> = self.data.iter().map(|c| Corpus::parse(c)).collect();
        let transfer = self.transfer.iter().map(|p| Ok(read_lines(p)?)).collect::<Result<Vec<_>>>()?.concat();
        match one_kind(&corpora, Split::Train)? {
            Kind::Entities => {
                let unit = self.offsets.unit();
                let read = |split| corpora.iter().map(|c| c.entities(split, unit)).collect::<ampoule::Result<Vec<_>>>();
                Ok(Data::Entities { train: read(Split::Train)?, dev: read(Split::Dev)?, transfer })
            }
            Kind::Labels => {
                let read = |split| corpora.iter().map(|c| c.labelled(split)).collect::<ampoule::Result<Vec<_>>>();
                Ok(Data::Labels { train: read(Split::Train)?.concat(), dev: read(Split::Dev)?.concat(), transfer })
            }
            Kind::Search => {
                let read = |split| corpora.iter().map(|c| c.search(split)).collect::<ampoule::Result<Vec<_>>>();
                Ok(Data::Search { train: read(Split::Train)?, dev: read(Split::Dev)?, transfer })
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

    /// What a head for `data` answers; embeddings are an encoder's own.
    pub fn task(&self, data: &Data) -> Task {
        match data {
            Data::Entities { .. } => Task::TokenClassification,
            Data::Labels { .. } if self.multi_label => Task::MultiLabel,
            Data::Labels { .. } => Task::SingleLabel,
            Data::Search { .. } => Task::Encoder,
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
            Data::Labels { train, .. } => {
                let labels: BTreeSet<&String> = train.iter().flat_map(|text| &text.labels).collect();
                labels.into_iter().cloned().collect()
            }
            Data::Search { .. } => Vec::new(),
        }
    }

    /// Refuses data that covers a label and marks it nowhere: a new head would learn that it never occurs.
    pub fn check_taught(&self, data: &Data) -> Result<()> {
        let Data::Entities { train, .. } = data else { return Ok(()) };
        let entities = train.iter().flat_map(|set| &set.examples).flat_map(|example| &example.entities);
        let marked: BTreeSet<&String> = entities.map(|entity| &entity.label).collect();
        match train.iter().flat_map(|set| &set.covers).find(|label| !marked.contains(label)) {
            Some(label) => Err(hint(
                format!("no train file marks the label {label:?}, so nothing teaches it"),
                "the label as the files write it, capitals included; or train files that mark it",
            )),
            None => Ok(()),
        }
    }
}
