//! Teaching: fine-tunes a checkpoint on labelled text, and distills it into a small student.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! # fn main() -> ampoule::Result<()> {
//! # struct Quiet;
//! # impl ampoule_distill::ProgressListener for Quiet {
//! #     fn started(&mut self, _: usize, _: usize) {}
//! #     fn step(&mut self, _: &ampoule_distill::StepLog) {}
//! #     fn evaluated(&mut self, _: &ampoule_distill::EvaluationLog) {}
//! # }
//! use ampoule::Checkpoint;
//! use ampoule_distill::data::{OffsetUnit, read_lines, read_ner};
//! use ampoule_distill::{Data, StudentShape, Teacher, Term, TrainConfig, student_from_teacher, train};
//!
//! let teacher = Checkpoint::open("runs/teacher/model")?;
//! let shape = StudentShape { layers: vec![2, 4, 6], ..StudentShape::default() };
//! let (student, layer_map) = student_from_teacher(&teacher, &shape)?;
//! let data = Data::Entities {
//!     train: vec![read_ner("data/train.tsv".as_ref(), OffsetUnit::Utf8, None)?],
//!     dev: vec![read_ner("data/dev.tsv".as_ref(), OffsetUnit::Utf8, None)?],
//!     transfer: read_lines("data/notes.txt".as_ref())?,
//! };
//! let config = TrainConfig {
//!     terms: vec![
//!         Term::Hard { weight: 0.5 },
//!         Term::SoftTargets { weight: 1.0, temperature: 2.0 },
//!         Term::Hidden { weight: 1.0, layer_map },
//!     ],
//!     ..TrainConfig::default()
//! };
//! let stop = AtomicBool::new(false);
//! train(student, Some(Teacher::new(teacher)), &data, &config, "runs/student".as_ref(), &stop, &mut Quiet)?;
//! # Ok(())
//! # }
//! ```

mod bm25;
mod budget;
mod cache;
mod calibration;
mod config;
pub mod data;
mod dictionary;
mod embedding;
mod evaluate;
mod factorize;
mod losses;
mod optimizer;
mod run;
pub mod score;
mod search;
mod sequences;
mod student;
mod teacher;
mod trainer;
mod typing;
mod vocabulary;

pub use bm25::Bm25;
pub use budget::{Budget, Candidate, Costs, Found, Limit, Measured, TimeLimit, search, stand_in, tries};
pub use calibration::{Answers, BINS, Bin, Calibration, Judgements, Reliability, TemperatureFit};
pub use config::{TrainConfig, merge};
pub use dictionary::Dictionary;
pub use evaluate::{EntityError, FoundEntities, FoundLabels, LabelError};
pub use factorize::factorize_embeddings;
pub use losses::Term;
pub use optimizer::AdamW;
pub use run::{RunLog, check_run_folder, log_start, log_test_reading};
pub use search::FoundPassages;
pub use sequences::Data;
pub use student::{StudentShape, relation_heads, student_from_states, student_from_teacher};
pub use teacher::Teacher;
pub use trainer::{EvaluationLog, Outcome, Plan, PlannedStage, ProgressListener, StepLog, dump_batches, plan, train};
pub use typing::{Alignment, TypingNoise};
pub use vocabulary::{VocabularyReport, prune_vocabulary};
