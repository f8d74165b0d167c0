//! `ampoule distill`: a small student from a teacher.

use std::path::{Path, PathBuf};

use ampoule::bundle::Precision;
use ampoule::checkpoint::NewHead;
use ampoule::{Checkpoint, Task};
use ampoule_distill::{Data, StudentShape, Term, TrainConfig, relation_heads, student_from_teacher};
use anyhow::Result;
use serde_json::{Map, json};

use crate::data::DataArgs;
use crate::quantize;
use crate::train::RunArgs;
use crate::ui::hint;

#[derive(clap::Args)]
pub struct Args {
    /// Checkpoint folder of the teacher
    #[arg(long, value_name = "FOLDER")]
    teacher: PathBuf,
    /// The teacher's layers that the student starts from, counted from 1, as in `--layers 2,4,6`
    #[arg(long, value_delimiter = ',', conflicts_with = "student")]
    layers: Vec<usize>,
    /// Width of the student's hidden states, where it is to be narrower than its teacher
    #[arg(long, value_name = "N", requires = "layers")]
    hidden: Option<usize>,
    /// Number of the student's attention heads; as many as leave a head as wide as the teacher's unless it is named
    #[arg(long, value_name = "N", requires = "layers")]
    heads: Option<usize>,
    /// Width of the student's feed-forward blocks; narrowed as the hidden states are unless it is named
    #[arg(long, value_name = "N", requires = "layers")]
    intermediate: Option<usize>,
    /// Checkpoint folder of the student, in place of --layers; an encoder without a head gets one for the teacher's labels
    #[arg(long, value_name = "FOLDER")]
    student: Option<PathBuf>,
    /// Also write the student's bundle in this precision, `model.PRECISION.safetensors` in the run's folder, measured on the dev sets. Before
    /// int8 one more epoch, at a tenth of the learning rate, trains what the device will compute
    #[arg(long, value_parser = quantize::precisions())]
    precision: Option<Precision>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> Result<()> {
    let teacher = Checkpoint::open(&args.teacher)?;
    let (student, layer_map) = match &args.student {
        Some(path) => (args.open(path, &teacher)?, Vec::new()),
        None if args.layers.is_empty() => {
            return Err(hint("no student is named", "--layers 2,4,6, or --student FOLDER"));
        }
        None => {
            let shape = StudentShape {
                layers: args.layers.clone(),
                hidden_size: args.hidden,
                num_attention_heads: args.heads,
                intermediate_size: args.intermediate,
            };
            student_from_teacher(&teacher, &shape)?
        }
    };
    let data = args.data.read()?;
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
    if let Data::Search { .. } = data {
        // What went with the layers is more to learn than a pretrained teacher has.
        defaults.epochs = 4;
        defaults.optimizer.learning_rate = 3e-4;
    }
    let mut settings = args.run.settings(&TrainConfig { terms, ..defaults })?;
    if let Some(Precision::Int8) = args.precision {
        settings.stages.extend(settings.stages.is_empty().then(Map::new));
        let rate = settings.optimizer.learning_rate / 10.0;
        let last = json!({"epochs": 1, "precision": "int8", "optimizer": {"learning_rate": rate}});
        settings.stages.extend(last.as_object().cloned());
    }
    args.run.train(student, Some(teacher), &data, &settings)?;
    match args.precision {
        Some(precision) => quantize::run(args.run.bundle(precision, &args.data)),
        None => Ok(()),
    }
}

impl Args {
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
