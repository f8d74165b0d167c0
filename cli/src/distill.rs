//! `ampoule distill`: a small student from a teacher.

use std::path::{Path, PathBuf};

use ampoule::bundle::Precision;
use ampoule::checkpoint::NewHead;
use ampoule::{Checkpoint, Task};
use ampoule_distill::{
    Data, StudentShape, Teacher, Term, TrainConfig, VocabularyReport, factorize_embeddings, prune_vocabulary,
    relation_heads, student_from_states, student_from_teacher,
};
use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::data::DataArgs;
use crate::quantize;
use crate::train::RunArgs;
use crate::ui::hint;

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder of the teacher. May be given several times: they teach the mean of their probabilities, and what of a teacher goes
    /// into the student is the first one's
    #[arg(long, value_name = "FOLDER", required = true)]
    teacher: Vec<PathBuf>,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Number of word pieces that the student's vocabulary keeps: those that the train and transfer texts use most, special tokens and
    /// single characters
    #[arg(long, value_name = "N")]
    vocabulary: Option<usize>,
    /// Width of the student's embeddings, where they are to be narrower than its hidden states, to which they are then projected; its
    /// folder is an ELECTRA's
    #[arg(long, value_name = "N")]
    embedding: Option<usize>,
    /// What narrower hidden states keep of the teacher's
    #[arg(long, value_enum, default_value = "importance", requires = "hidden")]
    basis: Basis,
    /// Checkpoint folder that the student is, or with --layers is made of, in place of the teacher; an encoder without a head gets one for the
    /// teacher's labels
    #[arg(long, value_name = "FOLDER")]
    student: Option<PathBuf>,
    /// Also write the student's bundle in this precision, `model.PRECISION.safetensors` in the run's folder, measured on the dev sets. Before
    /// int8 one more epoch, at a tenth of the learning rate, trains what the device will compute, unless the last stage does
    #[arg(long, value_parser = quantize::precisions())]
    precision: Option<Precision>,
    /// Keep the teacher's answers in this folder, for later epochs and runs. Guard it as you guard the texts
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// The most GiB that the cache may take; what is beyond them is computed each time
    #[arg(long, value_name = "N", default_value_t = 8, requires = "cache")]
    cache_gib: u32,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// What a smaller model has of a larger one.
#[derive(clap::Args)]
pub struct ShapeArgs {
    /// The layers that it starts from, counted from 1, as in `--layers 2,4,6`
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub layers: Vec<usize>,
    /// Width of its hidden states, where it is to be narrower too
    #[arg(long, value_name = "N", requires = "layers")]
    hidden: Option<usize>,
    /// Number of its attention heads; as many as leave a head as wide as before unless it is named
    #[arg(long, value_name = "N", requires = "layers")]
    heads: Option<usize>,
    /// Width of its feed-forward blocks; narrowed as the hidden states are unless it is named
    #[arg(long, value_name = "N", requires = "layers")]
    intermediate: Option<usize>,
}

impl ShapeArgs {
    pub fn shape(&self) -> StudentShape {
        StudentShape {
            layers: self.layers.clone(),
            hidden_size: self.hidden,
            num_attention_heads: self.heads,
            intermediate_size: self.intermediate,
        }
    }
}

/// What a narrower student keeps of hidden states.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Basis {
    /// The dimensions that weigh most for what reads them
    Importance,
    /// The principal components of the teacher's on the train and transfer texts
    Components,
}

pub fn run(args: Args) -> Result<()> {
    let mut teachers = args.teacher.iter().map(Checkpoint::open).collect::<ampoule::Result<Vec<_>>>()?.into_iter();
    let teacher = teachers.next().ok_or_else(|| hint("no teacher is named", "--teacher FOLDER"))?;
    let data = args.data.read()?;
    let mut start = Map::new();
    if args.student.is_none() && args.shape.layers.is_empty() {
        return Err(hint("no student is named", "--layers 2,4,6, or --student FOLDER"));
    }
    let source = args.student.as_ref().map_or_else(|| Ok(teacher.clone()), |path| args.open(path, &teacher))?;
    let source = args.reduced(source, &data, &mut start)?;
    let (student, mut layer_map) = match (args.shape.layers.is_empty(), args.basis) {
        (true, _) => (source, Vec::new()),
        (false, Basis::Importance) => student_from_teacher(&source, &args.shape.shape())?,
        (false, Basis::Components) => student_from_states(&source, &args.shape.shape(), &data.training_texts())?,
    };
    if args.student.is_some() || args.teacher.len() > 1 {
        // Its layers are not the teacher's, or several have no states in common.
        layer_map.clear();
    }
    let mut defaults = args.data.defaults(&data);
    let mut terms = match data {
        Data::Entities { .. } | Data::Labels { .. } => {
            vec![Term::Hard { weight: 0.5 }, Term::SoftTargets { weight: 1.0, temperature: 2.0 }]
        }
        Data::Search { .. } => vec![
            Term::Contrastive { weight: 1.0, temperature: 0.05 },
            Term::Embedding { weight: 1.0, temperature: 0.05 },
        ],
    };
    let (width, of_teacher) = (student.config.hidden_size, teacher.config.hidden_size);
    match layer_map.is_empty() {
        true => {}
        false if width == of_teacher => terms.push(Term::Hidden { weight: 1.0, layer_map }),
        false => terms.push(Term::Relations { weight: 1.0, layer_map, heads: relation_heads(width, of_teacher) }),
    }
    if let (Data::Search { .. }, None) = (&data, &args.student) {
        // What went with the layers is more to learn than a pretrained teacher has.
        defaults.epochs = 4;
        defaults.optimizer.learning_rate = 3e-4;
    }
    let mut settings = args.run.settings(&TrainConfig { terms, ..defaults })?;
    let ends_in_int8 = match settings.stages.last().map(|stage| stage.get("precision")) {
        Some(Some(precision)) => *precision == json!("int8"),
        _ => settings.precision == Precision::Int8,
    };
    if args.precision == Some(Precision::Int8) && !ends_in_int8 {
        settings.stages.extend(settings.stages.is_empty().then(Map::new));
        let rate = settings.optimizer.learning_rate / 10.0;
        let last = json!({"epochs": 1, "precision": "int8", "optimizer": {"learning_rate": rate}});
        settings.stages.extend(last.as_object().cloned());
    }
    let mut teacher = teachers.fold(Teacher::new(teacher), Teacher::and);
    if let Some(folder) = &args.cache {
        teacher = teacher.with_cache(folder, u64::from(args.cache_gib) << 30);
    }
    args.run.train(student, Some(teacher), &data, &settings)?;
    if !start.is_empty() && !args.run.plan {
        args.run.log_start(&start.into())?;
    }
    match args.precision {
        Some(precision) if !args.run.plan => quantize::run(args.run.bundle(precision, &args.data)),
        _ => Ok(()),
    }
}

impl Args {
    /// The checkpoint with the vocabulary and the embeddings that are asked for; what that costs is said, and put into `start`.
    fn reduced(&self, mut checkpoint: Checkpoint, data: &Data, start: &mut Map<String, Value>) -> Result<Checkpoint> {
        let texts = data.training_texts();
        if let Some(pieces) = self.vocabulary {
            let (pruned, report) = prune_vocabulary(&checkpoint, &texts, pieces)?;
            self.run.say(start, "vocabulary", json!(report), &pruned_to(&report))?;
            checkpoint = pruned;
        }
        if let Some(width) = self.embedding {
            let before = checkpoint.config.embedding_size;
            let (factorized, lost) = factorize_embeddings(&checkpoint, &texts, width)?;
            let report = json!({"width_before": before, "width": width, "variance_lost": lost});
            let line = format!(
                "embeddings {width} wide in place of {before}: {:.1} % of the variance of what the layers read of these texts is lost",
                100.0 * lost
            );
            self.run.say(start, "embedding", report, &line)?;
            checkpoint = factorized;
        }
        Ok(checkpoint)
    }

    /// The student's folder, with a new head where it has none.
    fn open(&self, path: &Path, teacher: &Checkpoint) -> Result<Checkpoint> {
        if Checkpoint::inspect(path)?.0.task != Task::Encoder {
            return Ok(Checkpoint::open(path)?);
        }
        let (task, labels) = (teacher.config.task, teacher.config.id2label.clone());
        let seed = self.run.settings(&TrainConfig::default())?.seed;
        Ok(Checkpoint::open_with_head(path, &NewHead { task, labels, seed })?)
    }
}

/// What a smaller vocabulary made of the texts.
fn pruned_to(report: &VocabularyReport) -> String {
    let percent = |part: usize, whole: usize| 100.0 * part as f64 / whole.max(1) as f64;
    format!(
        "vocabulary of {} pieces in place of {}: {:.2} % of the tokens are as they were, {:+.2} % tokens in all; of {} words {} \
         were unknown and {} more are now",
        report.pieces,
        report.pieces_before,
        percent(report.tokens_kept, report.tokens_before),
        percent(report.tokens, report.tokens_before) - 100.0,
        report.words,
        report.unknown_before,
        report.newly_unknown
    )
}
