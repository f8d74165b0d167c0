//! `ampoule doctor`: what this machine has, what Ampoule will use of it, how fast that is, and how much memory it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use ampoule::text::Tokenizer;
use ampoule::{Classifier, Embedder, Extractor, GpuState, ModelReport, Options, SelfCheck, Task, gpu_adapters};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::input::ModelArgs;
use crate::inspect::config_of;
use crate::ui::{hint, print_json, print_line};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// How long the measurement takes
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    seconds: f64,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Tokens of the text that is measured, special tokens counted.
pub const TOKENS: usize = 128;

/// Of this a text of so many tokens is made.
const TEXT: &str = "The patient was started on lisinopril 10 mg daily for hypertension and developed angioedema of the lips \
within two days. Lisinopril was stopped, and methylprednisolone and diphenhydramine were given. She has a history of type 2 \
diabetes treated with metformin, and chronic kidney disease. There was no fever, cough or rash; amlodipine was begun instead, \
and the swelling had gone by the next morning without any sign of airway obstruction or anaphylaxis.";

/// What is measured: a text to what the model answers, as an app calls it.
pub enum Model {
    Extractor(Extractor),
    Classifier(Classifier),
    Embedder(Embedder),
}

impl Model {
    /// The embedded model where there is no path.
    pub fn open(path: Option<&Path>, options: &Options) -> ampoule::Result<Self> {
        let Some(path) = path else { return Ok(Model::Extractor(Extractor::embedded(options)?)) };
        Ok(match config_of(path)?.task {
            Task::TokenClassification => Model::Extractor(Extractor::open(path, options)?),
            Task::SingleLabel | Task::MultiLabel => Model::Classifier(Classifier::open(path, options)?),
            Task::Encoder => Model::Embedder(Embedder::open(path, options)?),
        })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Model::Extractor(model) => model.tokenizer(),
            Model::Classifier(model) => model.tokenizer(),
            Model::Embedder(model) => model.tokenizer(),
        }
    }

    /// The time of each call from text to answer, for as long as `time`, after one that is not timed.
    pub fn milliseconds(&self, text: &str, time: Duration) -> ampoule::Result<Times> {
        self.run(text)?;
        let mut times = Vec::new();
        let end = Instant::now() + time;
        while times.is_empty() || Instant::now() < end {
            let start = Instant::now();
            self.run(text)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok(Times { least: times[0], median: times[times.len() / 2], runs: times.len() })
    }

    /// What it holds, once its GPU, if it has one, has proved itself or failed.
    fn report(&self) -> ModelReport {
        loop {
            let report = match self {
                Model::Extractor(model) => model.report(),
                Model::Classifier(model) => model.report(),
                Model::Embedder(model) => model.report(),
            };
            if report.gpu.as_ref().is_none_or(|gpu| gpu.state != GpuState::Warming) {
                return report;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn self_check(&self) -> ampoule::Result<Option<SelfCheck>> {
        match self {
            Model::Extractor(model) => model.self_check(),
            Model::Classifier(model) => model.self_check(),
            Model::Embedder(model) => model.self_check(),
        }
    }

    fn run(&self, text: &str) -> ampoule::Result<()> {
        match self {
            Model::Extractor(model) => model.extract(text).map(drop),
            Model::Classifier(model) => model.classify(text).map(drop),
            Model::Embedder(model) => model.embed(text).map(drop),
        }
    }
}

/// How long calls took, in milliseconds.
pub struct Times {
    least: f64,
    pub median: f64,
    runs: usize,
}

/// A text of so many tokens, special tokens counted, or the nearest to it, and how many it has.
pub fn text(tokenizer: &Tokenizer, tokens: usize) -> ampoule::Result<(String, usize)> {
    let count = |text: &str| Ok::<_, ampoule::Error>(tokenizer.encode(text)?.len() + 2);
    let mut text = String::new();
    // Words, and in the end full stops, which are a token each.
    for word in TEXT.split_whitespace().cycle().take(tokens).chain(std::iter::repeat_n(".", tokens)) {
        let longer = if text.is_empty() { word.to_owned() } else { format!("{text} {word}") };
        if count(&longer)? <= tokens {
            text = longer;
        }
    }
    let count = count(&text)?;
    Ok((text, count))
}

/// What a machine has.
#[derive(Serialize)]
pub struct Machine {
    /// Processor and system that this program was built for.
    pub target: String,
    /// The processor's name, where the system says it.
    pub processor: Option<String>,
    /// Threads that the system lets this process run at once.
    pub cores: usize,
    /// Vector instructions that matter to matrix products.
    pub simd: Vec<&'static str>,
    /// The kernels that run here, the one that is used first.
    pub kernels: Vec<&'static str>,
}

impl Machine {
    pub fn this() -> Self {
        Machine {
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            processor: after("/proc/cpuinfo", "model name").map(|line| line.trim_start_matches(':').trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            simd: simd(),
            kernels: ampoule::kernel_names(),
        }
    }
}

/// The most memory that this process has held so far, in bytes, where the system says it. Not `getrusage`'s, which begins with that of
/// the process that started this one.
fn peak_memory() -> Option<u64> {
    let line = after("/proc/self/status", "VmHWM:")?;
    Some(line.strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The rest of the first line that begins so.
fn after(file: &str, name: &str) -> Option<String> {
    let content = std::fs::read_to_string(file).ok()?;
    content.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

pub fn run(args: Args) -> Result<()> {
    if !(args.seconds > 0.0 && args.seconds <= 3600.0) {
        return Err(hint("--seconds is not a time above 0 and up to 3600", "--seconds 5"));
    }
    let model = Model::open(args.model.model.as_deref(), &args.model.running.options()?)?;
    // First, so that what computes wrongly is not measured.
    let check = model.self_check()?;
    let ModelReport { gpu: on_gpu, device: report, .. } = model.report();
    let (text, tokens) = text(model.tokenizer(), TOKENS)?;
    let Times { least, median, runs } = model.milliseconds(&text, Duration::from_secs_f64(args.seconds))?;
    // Before drivers of GPUs are looked at, which are no part of the model.
    let peak = peak_memory();
    let (machine, adapters) = (Machine::this(), gpu_adapters());
    if args.json {
        let mut object = json!({"version": env!("CARGO_PKG_VERSION")});
        if let (Some(object), Value::Object(machine)) = (object.as_object_mut(), json!(machine)) {
            object.extend(machine);
        }
        object["gpu_adapters"] = json!(adapters);
        object["device"] = json!(report);
        object["self_check"] = json!(check);
        object["gpu"] = json!(on_gpu);
        object["speed"] = json!(Speed {
            tokens,
            milliseconds_min: least,
            milliseconds_median: median,
            runs,
            peak_memory_bytes: peak,
        });
        return print_json(&object);
    }
    let gpu = match adapters.is_empty() {
        true if cfg!(feature = "wgpu") => "none found".to_owned(),
        true => "not looked for: this build is without the feature `wgpu`".to_owned(),
        false => adapters.join(", "),
    };
    let name = match &args.model.model {
        Some(path) => path.display().to_string(),
        None => "the embedded model".to_owned(),
    };
    let time_of = |name: &str| report.measured.iter().find(|time| time.kernel == name);
    let kernels = machine.kernels.iter().map(|name| match time_of(name) {
        Some(time) => format!("{name} ({:.1} ms)", time.microseconds as f64 / 1e3),
        None => (*name).to_owned(),
    });
    let kernels = kernels.collect::<Vec<_>>().join(", ");
    let on_gpu = on_gpu.map(|gpu| {
        let times = gpu.measured.iter().map(|time| {
            let [gpu, cpu] = [time.gpu_microseconds, time.cpu_microseconds].map(|time| time as f64 / 1e3);
            format!("{} tokens {gpu:.1} ms on it, {cpu:.1} on the processor", time.tokens)
        });
        let from = gpu.from_tokens.map(|n| format!("computes from {n} tokens on (--gpu-from-tokens {n})"));
        let check = gpu.self_check.map(|check| format!("golden cases within {:.1e}", check.largest_difference));
        let said = [Some(format!("{:?} in {}", gpu.state, gpu.precision)), check, gpu.reason, from];
        said.into_iter().flatten().chain(times).collect::<Vec<_>>().join("; ")
    });
    for (name, value) in [
        ("ampoule", format!("{} for {}", env!("CARGO_PKG_VERSION"), machine.target)),
        ("processor", machine.processor.unwrap_or_else(|| "the system does not say".to_owned())),
        ("cores", machine.cores.to_string()),
        ("simd", machine.simd.join(" ")),
        ("gpu", gpu),
        ("uses", format!("{}, {} thread(s): {}", report.name, report.threads, report.reason)),
        ("kernels", kernels),
        (
            "check",
            match check {
                Some(check) => format!(
                    "{} golden cases of the bundle: largest difference {:.1e} where {:.1e} is allowed, root mean square {:.1e} where a \
                     tenth of that is",
                    check.cases, check.largest_difference, check.allowed, check.rms_difference
                ),
                None => "the model has no golden cases; `ampoule quantize` adds them to a bundle".to_owned(),
            },
        ),
        ("on gpu", on_gpu.unwrap_or_else(|| "the model uses none".to_owned())),
        ("speed", format!("{tokens} tokens with {name}: {least:.1} ms at best, {median:.1} ms median of {runs}")),
        (
            "memory",
            peak.map_or("the system does not say".to_owned(), |bytes| {
                format!("{:.1} MB at most, of a process that does this alone", bytes as f64 / 1e6)
            }),
        ),
    ] {
        print_line(&format!("{name:<9} {value}"))?;
    }
    Ok(())
}

/// How fast a model is here, and what it takes.
#[derive(Serialize, Deserialize)]
pub struct Speed {
    /// Tokens of the text, special tokens counted.
    pub tokens: usize,
    /// The least time of a call from text to answer, tokenizing counted.
    pub milliseconds_min: f64,
    /// The median time.
    pub milliseconds_median: f64,
    /// Calls that were timed, after one that was not.
    pub runs: usize,
    /// The most memory that a process held which opened the model and made these calls, its program counted; none where the system does
    /// not say.
    pub peak_memory_bytes: Option<u64>,
}

/// The vector instructions of this processor that matter to matrix products.
fn simd() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look {
            ($($name:tt),*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        look!("sse4.1", "avx2", "fma", "f16c", "avx512f", "avx512vnni", "avxvnni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! look {
            ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        look!("neon", "fp16", "dotprod", "i8mm");
    }
    found
}
