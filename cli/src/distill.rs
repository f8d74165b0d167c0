//! `ampoule distill`: a small student from a teacher.

use std::path::PathBuf;

use ampoule::Checkpoint;
use ampoule_distill::{Term, TrainConfig, student_from_layers};
use anyhow::Result;

use crate::data::DataArgs;
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
    /// Checkpoint folder of the student, in place of --layers
    #[arg(long, value_name = "FOLDER")]
    student: Option<PathBuf>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> Result<()> {
    let teacher = Checkpoint::open(&args.teacher)?;
    let (student, layer_map) = match &args.student {
        Some(path) => (Checkpoint::open(path)?, Vec::new()),
        None if args.layers.is_empty() => {
            return Err(hint("no student is named", "--layers 2,4,6, or --student FOLDER"));
        }
        None => student_from_layers(&teacher, &args.layers)?,
    };
    let mut terms = vec![Term::Hard { weight: 0.5 }, Term::SoftTargets { weight: 1.0, temperature: 2.0 }];
    if !layer_map.is_empty() {
        terms.push(Term::Hidden { weight: 1.0, layer_map });
    }
    let settings = args.run.settings(&TrainConfig { terms, ..TrainConfig::default() })?;
    let data = args.data.read()?;
    args.run.train(student, Some(teacher), &data, &settings)
}
