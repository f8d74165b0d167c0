//! What people see: errors, progress, colour, tables.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use ampoule::ErrorKind;
use ampoule_distill::{EvaluationLog, ProgressListener, StepLog, TemperatureFit};
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

/// An error that says itself what to try.
#[derive(Debug)]
pub struct Hint {
    what: String,
    try_this: String,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Hint {}

/// An error with its `try:` line.
pub fn hint(what: impl Into<String>, try_this: impl Into<String>) -> anyhow::Error {
    Hint { what: what.into(), try_this: try_this.into() }.into()
}

/// Prints one line that says what failed and where, and one that says what to try; the exit code is 1.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    // A reader that has gone away (`| head`) is no failure of ours.
    if is_closed_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let mut said = Vec::<String>::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        // A library's error often repeats its source.
        if !said.iter().any(|s| s.contains(&cause)) {
            said.push(cause);
        }
    }
    say(&said.join(": "), &what_to_try(error));
    ExitCode::FAILURE
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// The two lines of an error.
fn say(what: &str, try_this: &str) {
    tell(&format!("error: {what}\ntry: {try_this}"));
}

/// Writes a line to stderr; where that is closed, or its disk is full, there is nobody to tell.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints what is wrong with the command line, without any word of it that could be a note's; the exit code is 2.
pub fn fail_usage(error: &clap::Error, cli: &clap::Command) -> ExitCode {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let get = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let argument = get(ContextKind::InvalidArg);
    // What is no option is taken for a text, and the text for one too many, or for one beside a file.
    if let ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict = error.kind()
        && let Some(option) = misspelt(cli).filter(|_| !is_option(&argument))
    {
        return fail_misspelt(&option, cli);
    }
    let what = match error.kind() {
        ErrorKind::UnknownArgument if is_option(&argument) => {
            let meant = get(ContextKind::SuggestedArg);
            let meant = if meant.is_empty() { meant } else { format!("; {meant} was meant?") };
            format!("{argument}: there is no such option{meant}")
        }
        ErrorKind::UnknownArgument if takes_text(cli) => {
            "an argument too many; a text is one argument, in quotes".to_owned()
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') && argument.parse::<f64>().is_ok() => {
            format!("{argument}: an argument too many; an option is given a number below 0 as in --option={argument}")
        }
        ErrorKind::UnknownArgument => "an argument too many".to_owned(),
        ErrorKind::InvalidSubcommand => "there is no such verb".to_owned(),
        ErrorKind::MissingRequiredArgument if argument.contains("TEXT") => {
            format!("{argument}: missing; `-` stands for stdin")
        }
        ErrorKind::MissingRequiredArgument => format!("{argument}: missing"),
        ErrorKind::ArgumentConflict if argument == get(ContextKind::PriorArg) => format!("{argument}: given twice"),
        ErrorKind::ArgumentConflict => format!("{argument}: not together with {}", get(ContextKind::PriorArg)),
        ErrorKind::InvalidValue if !get(ContextKind::ValidValue).is_empty() => {
            format!("{argument}: expected one of {}", get(ContextKind::ValidValue))
        }
        ErrorKind::InvalidValue => format!("{argument}: no value"),
        // Numbers alone are parsed here.
        ErrorKind::ValueValidation => format!("{argument}: not a number that it takes"),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        kind => format!("{argument}: {}", kind.as_str().unwrap_or("not understood")),
    };
    say(&what, &verb(cli).map_or_else(|| "`ampoule --help`".to_owned(), help));
    ExitCode::from(2)
}

/// The verb of the command line.
fn verb(cli: &clap::Command) -> Option<&clap::Command> {
    cli.find_subcommand(std::env::args_os().nth(1)?)
}

fn help(verb: &clap::Command) -> String {
    format!("`ampoule {} --help`", verb.get_name())
}

fn takes_text(cli: &clap::Command) -> bool {
    verb(cli).is_some_and(|verb| verb.get_arguments().any(|argument| argument.get_id() == "text"))
}

/// Whether it looks like an option's name, and so holds nothing of a note.
fn is_option(text: &str) -> bool {
    let name = text.strip_prefix("--").unwrap_or_default();
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
}

/// The first word of the command line that looks like an option which the verb does not have; what follows `--` is not looked at.
pub fn misspelt(cli: &clap::Command) -> Option<String> {
    let verb = verb(cli)?;
    let is_known = |name: &str| name == "--help" || verb.get_arguments().any(|a| a.get_long() == Some(&name[2..]));
    let words = std::env::args_os().skip(2).take_while(|word| word != "--").filter_map(|word| word.into_string().ok());
    let mut names = words.map(|word| word.split('=').next().unwrap_or_default().to_owned());
    names.find(|name| is_option(name) && !is_known(name))
}

/// What is wrong where an option was taken for a text.
pub fn fail_misspelt(option: &str, cli: &clap::Command) -> ExitCode {
    let help = verb(cli).map(help).unwrap_or_default();
    say(&format!("{option}: there is no such option"), &format!("{help}; a text that begins so comes after `--`"));
    ExitCode::from(2)
}

fn what_to_try(error: &anyhow::Error) -> String {
    if let Some(hint) = error.chain().find_map(|e| e.downcast_ref::<Hint>()) {
        return hint.try_this.clone();
    }
    let kind = error.chain().find_map(|e| e.downcast_ref::<ampoule::Error>()).map(ampoule::Error::kind);
    let io = error.chain().find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        _ if io == Some(io::ErrorKind::StorageFull) => "free some space on the disk, or write elsewhere",
        Some(ErrorKind::NotFound) => "check the path and its permissions",
        None if io.is_some() => "check the path and its permissions",
        Some(ErrorKind::Corrupt) => {
            "fetch or make the file again, or delete it where it is a run's or a cache; `ampoule inspect --verify` checks a bundle"
        }
        Some(ErrorKind::Incompatible) => {
            "`ampoule inspect` says what the file is; make one that fits with `ampoule quantize`"
        }
        Some(ErrorKind::DeviceUnavailable) if cfg!(not(feature = "wgpu")) => {
            "`--device cpu`; for a GPU, a program built with `--features ampoule-cli/wgpu`, for NdArray, with `ampoule-cli/ndarray`"
        }
        Some(ErrorKind::DeviceUnavailable) => {
            "`--device cpu`; `ampoule doctor` alone lists the GPUs, of which `--adapter NAME` takes software too"
        }
        Some(ErrorKind::InvalidInput) => {
            "mend what it names; the verb with --help says what is expected, and the README, \"Your own student\", how data are written"
        }
        Some(ErrorKind::Cancelled) => "run the same command again",
        Some(ErrorKind::Internal) => "report this with the command and the output of `ampoule doctor`",
        _ => "`ampoule help`, or the verb with --help, says what is expected",
    }
    .to_owned()
}

/// Prints a line of results.
pub fn print_line(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").context("stdout")
}

/// [`print_line`] about work that goes on: a reader that has gone away does not end it.
pub fn note_line(line: &str) -> Result<()> {
    match print_line(line) {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        other => other,
    }
}

/// [`print_json`] about work that goes on.
pub fn note_json(value: &impl Serialize) -> Result<()> {
    note_line(&serde_json::to_string(value)?)
}

/// Prints one JSON object.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print_line(&serde_json::to_string(value)?)
}

/// Whether results may be coloured.
pub fn has_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// A table with a header, its columns as wide as they need to be; the first to the left, the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (c, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            let _ = if c == 0 { write!(line, "{cell}{pad}") } else { write!(line, "  {pad}{cell}") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.pop();
    out
}

/// What a temperature gained.
pub fn fitted(fit: &TemperatureFit) -> String {
    format!(
        "temperature {} fitted on {} judgements: NLL {:.4} at 1, {:.4} with it",
        fit.temperature, fit.judgements, fit.nll_before, fit.nll_after
    )
}

/// A bar that counts on a terminal.
pub fn counter(length: usize, what: &str) -> ProgressBar {
    bar(Some(length as u64), &format!("{{bar:30}} {{pos}}/{{len}} {what}  {{speed}}  {{eta}} left"))
}

/// A bar on a terminal, with `{speed}` for steps per second.
fn bar(length: Option<u64>, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("speed", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be written is no failure.
        let _ = match state.per_sec() {
            few if few < 10.0 => write!(out, "{few:.1}/s"),
            many => write!(out, "{many:.0}/s"),
        };
    }));
    bar
}

/// A count without an end, on a terminal.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(&format!("{{spinner}} {{pos}} {what}"));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

/// Set by the first Ctrl-C or plain `kill`, of which the second ends the process, or by a closed terminal. What `nohup` ignores stays ignored.
pub fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>> {
    // A process has one handler, and may train several times.
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(stop) = STOP.get() {
        return Ok(stop.clone());
    }
    let stop = STOP.get_or_init(Arc::default).clone();
    let handle = stop.clone();
    ctrlc::set_handler(move || {
        if handle.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        tell("stopping after this step; press Ctrl-C again to stop at once");
    })
    .context("Ctrl-C cannot be handled")?;
    #[cfg(unix)]
    {
        use signal_hook::{consts, flag};
        for signal in [consts::SIGTERM, consts::SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)) {
            let wrong = || format!("signal {signal} cannot be handled");
            // A terminal that closes says so twice, once itself and once by its shell.
            if signal == consts::SIGTERM {
                flag::register_conditional_shutdown(signal, 128 + signal, stop.clone()).with_context(wrong)?;
            }
            flag::register(signal, stop.clone()).with_context(wrong)?;
        }
    }
    Ok(stop)
}

/// Whether this process was begun with the signal ignored, as Linux says; elsewhere that of a closed terminal is taken to be.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.map_or(signal == signal_hook::consts::SIGHUP, |ignored| ignored >> (signal - 1) & 1 == 1)
}

/// Shows a training run: a bar with rate and time left on a terminal, and a row an evaluation.
pub struct TrainingView {
    bar: ProgressBar,
    /// Sums of the loss terms since the last evaluation, or the stage's beginning.
    sums: Vec<(String, f64)>,
    /// As many steps as these are sums of, and their stage.
    steps: usize,
    stage: usize,
    json: bool,
    /// What the dev score is.
    metric: &'static str,
}

impl TrainingView {
    /// `json` prints each evaluation as an object on stdout in place of the row on stderr.
    pub fn new(json: bool, metric: &'static str) -> Self {
        let bar = bar(None, "{bar:30} {pos}/{len} steps  {speed}  {eta} left  {msg}");
        TrainingView { bar, sums: Vec::new(), steps: 0, stage: 0, json, metric }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl ProgressListener for TrainingView {
    fn started(&mut self, step: usize, steps: usize) {
        self.bar.set_length(steps as u64);
        self.bar.set_position(step as u64);
        self.bar.reset_eta();
        if step > 0 {
            self.bar.suspend(|| tell(&format!("going on after step {step} of {steps}")));
        }
    }

    fn step(&mut self, log: &StepLog) {
        self.bar.set_position(log.step as u64);
        self.bar.set_message(format!("loss {:.4}", log.loss));
        if log.stage != self.stage {
            (self.stage, self.steps) = (log.stage, 0);
            self.sums.clear();
        }
        self.steps += 1;
        let terms: Vec<(String, f64)> =
            log.terms.iter().map(|(name, v)| (name.clone(), v.as_f64().unwrap_or(f64::NAN))).collect();
        if self.sums.is_empty() {
            self.sums = terms;
        } else {
            self.sums.iter_mut().zip(terms).for_each(|((_, sum), (_, x))| *sum += x);
        }
    }

    fn evaluated(&mut self, log: &EvaluationLog) {
        let means: Vec<(String, f64)> =
            self.sums.drain(..).map(|(name, sum)| (name, sum / self.steps.max(1) as f64)).collect();
        self.steps = 0;
        if self.json {
            let terms: serde_json::Map<_, _> = means.into_iter().map(|(n, v)| (n, v.into())).collect();
            let row = serde_json::json!({ "evaluation": log, "mean_terms": terms });
            // A reader that has gone away does not end the training.
            self.bar.suspend(|| drop(writeln!(io::stdout(), "{row}")));
            return;
        }
        let terms: String = means.iter().map(|(name, v)| format!("  {name} {v:.4}")).collect();
        let percent = |x: f64| format!("{:.2}", 100.0 * x);
        let entities = match (log.precision, log.recall) {
            (Some(p), Some(r)) => format!("  P {}  R {}", percent(p), percent(r)),
            _ => String::new(),
        };
        let best = if log.best { "  best" } else { "" };
        self.bar.suspend(|| {
            tell(&format!("step {}{terms}{entities}  {} {}{best}", log.step, self.metric, percent(log.dev_score)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stages_terms_are_not_added_to_those_of_the_one_before() {
        let mut view = TrainingView::new(false, "F1");
        for (stage, terms) in [(1, r#"{"hidden": 4}"#), (1, r#"{"hidden": 2}"#), (2, r#"{"hard": 1, "hidden": 3}"#)] {
            let log = format!(r#"{{"step": 1, "stage": {stage}, "loss": 1, "terms": {terms}}}"#);
            view.step(&serde_json::from_str(&log).unwrap());
        }
        assert_eq!((view.steps, view.sums), (1, vec![("hard".to_owned(), 1.0), ("hidden".to_owned(), 3.0)]));
    }
}
