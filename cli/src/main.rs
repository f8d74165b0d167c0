//! The command `ampoule`: makes small clinical language models, and runs them.

mod classify;
mod data;
mod distill;
mod doctor;
mod embed;
mod evaluate;
mod extract;
mod input;
mod inspect;
mod quantize;
mod report;
mod train;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Finds diseases and medicines in notes, sorts and compares texts, and makes the small models that do it. Everything runs
/// on this machine; no text leaves it.
#[derive(Parser)]
#[command(name = "ampoule", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Fine-tune a checkpoint on labelled text
    Train(train::Args),
    /// Teach a small student from a teacher
    Distill(distill::Args),
    /// Make a bundle of a checkpoint, in int8, f16 or f32
    Quantize(quantize::Args),
    /// Score models on labelled text, side by side
    Evaluate(evaluate::Args),
    /// Write a page about a run: how it learned, and what its models score, cost and get wrong
    Report(report::Args),
    /// Find entities in text
    Extract(extract::Args),
    /// Give texts labels
    Classify(classify::Args),
    /// Turn texts into vectors
    Embed(embed::Args),
    /// Say what a bundle or checkpoint is, without loading it
    Inspect(inspect::Args),
    /// Say what this machine has, and what Ampoule will use of it
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    let verb = match Cli::try_parse() {
        Ok(cli) => match ui::misspelt(&Cli::command()) {
            None => cli.verb,
            Some(option) => return ui::fail_misspelt(&option, &Cli::command()),
        },
        Err(error) => return ui::fail_usage(&error, &Cli::command()),
    };
    let result = match verb {
        Verb::Train(args) => train::run(args),
        Verb::Distill(args) => distill::run(args),
        Verb::Quantize(args) => quantize::run(args),
        Verb::Evaluate(args) => evaluate::run(args),
        Verb::Report(args) => report::run(args),
        Verb::Extract(args) => extract::run(args),
        Verb::Classify(args) => classify::run(args),
        Verb::Embed(args) => embed::run(args),
        Verb::Inspect(args) => inspect::run(args),
        Verb::Doctor(args) => doctor::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ui::fail(&error),
    }
}
