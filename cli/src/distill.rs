//! `ampoule distill`: a small student from a teacher.

mod budget;

use std::path::{Path, PathBuf};

use ampoule::bundle::Precision;
use ampoule::checkpoint::NewHead;
use ampoule::{Checkpoint, ModelConfig, Task};
use ampoule_distill::{
    Candidate, Data, StudentShape, Teacher, Term, TrainConfig, VocabularyReport, check_run_folder,
    factorize_embeddings, merge, prune_vocabulary, relation_heads, student_from_states, student_from_teacher,
};
use anyhow::Result;
use serde_json::{Map, Value, json};

use self::budget::BudgetArgs;
use crate::data::DataArgs;
use crate::quantize;
use crate::train::RunArgs;
use crate::ui::{hint, tell};

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("narrower").args(["hidden", "budget"]))]
pub struct Args {
    /// Checkpoint folder of the teacher. May be given several times: they teach the mean of their probabilities, and what of a teacher goes
    /// into the student is the first one's
    #[arg(long, value_name = "FOLDER", required = true)]
    teacher: Vec<PathBuf>,
    #[command(flatten)]
    shape: ShapeArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    /// Number of word pieces that the student's vocabulary keeps: those that the train and transfer texts use most, special tokens and
    /// single characters
    #[arg(long, value_name = "N")]
    vocabulary: Option<usize>,
    /// Width of the student's embeddings, where they are to be narrower than its hidden states, to which they are then projected; its
    /// folder is an ELECTRA's
    #[arg(long, value_name = "N")]
    embedding: Option<usize>,
    /// What narrower hidden states keep of the teacher's
    #[arg(long, value_enum, default_value = "importance", requires = "narrower")]
    basis: Basis,
    /// Checkpoint folder that the student is, or with --layers is made of, in place of the teacher; an encoder without a head gets one for the
    /// teacher's labels
    #[arg(long, value_name = "FOLDER")]
    student: Option<PathBuf>,
    /// Also write the student's bundle in this precision, `model.PRECISION.safetensors` in the run's folder, measured on the dev sets. Before
    /// int8 one more epoch of the last stage, at a tenth of its learning rate, trains what the device will compute, unless that stage does
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

pub fn run(mut args: Args) -> Result<()> {
    check_run_folder(&args.run.run)?;
    let teachers = args.teacher.iter().map(Checkpoint::open).collect::<ampoule::Result<Vec<_>>>()?;
    let Some(teacher) = teachers.first() else { return Err(hint("no teacher is named", "--teacher FOLDER")) };
    let data = args.data.read()?;
    if args.budget.is_given() && !budget::choose(&mut args, &teachers, &data)? {
        return Ok(());
    }
    if args.student.is_none() && args.shape.layers.is_empty() {
        return Err(hint("no student is named", "--layers 2,4,6, or --student FOLDER"));
    }
    let mut start = Map::new();
    let source = args.student.as_ref().map_or_else(|| Ok(teacher.clone()), |path| args.open(path, teacher))?;
    let source = args.pruned(source, &data, Some(&mut start))?;
    let (student, layer_map) = match args.shape.layers.is_empty() {
        true => (args.factorized(source, &data, Some(&mut start))?, Vec::new()),
        false => args.cut(&source, &data, Some(&mut start))?,
    };
    let settings = args.settings(&student.config, layer_map, &teacher.config, &data)?;
    if !settings.needs_teacher()? {
        tell("no loss term needs a teacher, so it is asked nothing, and texts without labels teach nothing");
    }
    args.run.train(student, args.taught_by(teachers), &data, &settings)?;
    if !start.is_empty() && !args.run.plan {
        args.run.log_start(&start.into())?;
    }
    let Some(precision) = args.precision.filter(|_| !args.run.plan) else { return Ok(()) };
    let bundle = args.run.bundle(precision, &args.data);
    let path = bundle.out.clone();
    quantize::run(bundle)?;
    match args.budget.is_given() {
        true => args.budget.check(&path, args.run.json),
        false => Ok(()),
    }
}

/// Where it is noted, and said, what a smaller checkpoint costs; none for nowhere.
type Start<'a> = Option<&'a mut Map<String, Value>>;

impl Args {
    /// Takes a shape as if its options had been given.
    fn take(&mut self, student: &Candidate) {
        let StudentShape { layers, hidden_size, num_attention_heads, intermediate_size } = student.shape.clone();
        self.shape =
            ShapeArgs { layers, hidden: hidden_size, heads: num_attention_heads, intermediate: intermediate_size };
        self.embedding = student.embedding;
    }

    /// The checkpoint with the vocabulary that is asked for.
    fn pruned(&self, checkpoint: Checkpoint, data: &Data, start: Start) -> Result<Checkpoint> {
        let Some(pieces) = self.vocabulary else { return Ok(checkpoint) };
        let (pruned, report) = prune_vocabulary(&checkpoint, &data.training_texts(), pieces)?;
        if let Some(start) = start {
            self.run.say(start, "vocabulary", json!(report), &pruned_to(&report))?;
        }
        Ok(pruned)
    }

    /// The checkpoint with the embeddings that are asked for.
    fn factorized(&self, checkpoint: Checkpoint, data: &Data, start: Start) -> Result<Checkpoint> {
        let Some(width) = self.embedding else { return Ok(checkpoint) };
        let before = checkpoint.config.embedding_size;
        let (factorized, lost) = factorize_embeddings(&checkpoint, &data.training_texts(), width)?;
        if let Some(start) = start {
            let report = json!({"width_before": before, "width": width, "variance_lost": lost});
            let line = format!(
                "embeddings {width} wide in place of {before}: {:.1} % of the variance of what the layers read of these texts is lost",
                100.0 * lost
            );
            self.run.say(start, "embedding", report, &line)?;
        }
        Ok(factorized)
    }

    /// The student of a teacher with its vocabulary, and the layers that belong together.
    fn cut(&self, teacher: &Checkpoint, data: &Data, start: Start) -> Result<(Checkpoint, Vec<(usize, usize)>)> {
        let teacher = self.factorized(teacher.clone(), data, start)?;
        let shape = self.shape.shape();
        Ok(match self.basis {
            Basis::Importance => student_from_teacher(&teacher, &shape)?,
            Basis::Components => student_from_states(&teacher, &shape, &data.training_texts())?,
        })
    }

    /// How such a student is trained.
    fn settings(
        &self,
        student: &ModelConfig,
        layer_map: Vec<(usize, usize)>,
        teacher: &ModelConfig,
        data: &Data,
    ) -> Result<TrainConfig> {
        let mut defaults = self.data.defaults(data);
        let mut terms = match data {
            // Labels cost nothing where the teacher knows them, and pay where it does not: examples/produce has the figures.
            Data::Entities { .. } | Data::Labels { .. } => {
                vec![Term::Hard { weight: 0.5 }, Term::SoftTargets { weight: 1.0, temperature: 2.0 }]
            }
            Data::Search { .. } => vec![
                Term::Contrastive { weight: 1.0, temperature: 0.05 },
                Term::Embedding { weight: 1.0, temperature: 0.05 },
            ],
        };
        let (width, of_teacher) = (student.hidden_size, teacher.hidden_size);
        match layer_map.is_empty() {
            true => {}
            // Another model's layers are not the teacher's, and several have no states in common.
            false if self.student.is_some() || self.teacher.len() > 1 => {}
            false if width == of_teacher => terms.push(Term::Hidden { weight: 1.0, layer_map }),
            false => terms.push(Term::Relations { weight: 1.0, layer_map, heads: relation_heads(width, of_teacher) }),
        }
        if let (Data::Search { .. }, None) = (data, &self.student) {
            // What went with the layers is more to learn than a pretrained teacher has.
            defaults.epochs = 4;
            defaults.optimizer.learning_rate = 3e-4;
        }
        let mut settings = self.run.settings(&TrainConfig { terms, ..defaults })?;
        let last = Value::from(settings.stages.last().cloned().unwrap_or_default());
        let ends_in_int8 = match last.get("precision") {
            Some(precision) => *precision == json!("int8"),
            None => settings.precision == Precision::Int8,
        };
        if self.precision == Some(Precision::Int8) && !ends_in_int8 {
            settings.stages.extend(settings.stages.is_empty().then(Map::new));
            let rate = last.pointer("/optimizer/learning_rate").and_then(Value::as_f64);
            let rate = rate.unwrap_or(settings.optimizer.learning_rate) / 10.0;
            // What the last stage teaches, in the same texts.
            let mut more = last;
            merge(&mut more, &json!({"epochs": 1, "precision": "int8", "optimizer": {"learning_rate": rate}}));
            if let Value::Object(mut more) = more {
                more.remove("steps");
                settings.stages.push(more);
            }
        }
        Ok(settings)
    }

    /// The teachers together, with their cache.
    fn taught_by(&self, teachers: Vec<Checkpoint>) -> Option<Teacher> {
        let mut teachers = teachers.into_iter();
        let teacher = teachers.next().map(Teacher::new)?;
        let teacher = teachers.fold(teacher, Teacher::and);
        Some(match &self.cache {
            Some(folder) => teacher.with_cache(folder, u64::from(self.cache_gib) << 30),
            None => teacher,
        })
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
