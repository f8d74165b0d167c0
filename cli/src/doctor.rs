//! `ampoule doctor`: what this machine has, what Ampoule will use of it, and how fast that is.

use std::time::{Duration, Instant};

use ampoule::{Embedder, Extractor, gpu_adapters};
use anyhow::Result;
use serde_json::json;

use crate::input::ModelArgs;
use crate::ui::{print_json, print_line};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// How long the measurement takes.
const MEASURED: Duration = Duration::from_secs(5);

/// A text of about a hundred tokens.
const TEXT: &str = "The patient was started on lisinopril 10 mg daily for hypertension and developed angioedema of the lips \
within two days. Lisinopril was stopped, and methylprednisolone and diphenhydramine were given. She has a history of type 2 \
diabetes treated with metformin, and chronic kidney disease. There was no fever, cough or rash; amlodipine was begun instead, \
and the swelling had gone by the next morning without any sign of airway obstruction or anaphylaxis.";

pub fn run(args: Args) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let simd = simd();
    let adapters = gpu_adapters();
    let options = args.model.running.options();
    let (report, tokens, run): (_, _, Box<dyn Fn() -> ampoule::Result<()>>) = match &args.model.model {
        Some(path) => {
            // Whatever its head is for; that is not measured.
            let model = Embedder::open(path, &options)?;
            let tokens = model.tokenizer().encode(TEXT)?.len() + 2;
            (model.device().clone(), tokens, Box::new(move || model.embed(TEXT).map(drop)))
        }
        None => {
            let model = Extractor::embedded(&options)?;
            let tokens = model.tokenizer().encode(TEXT)?.len() + 2;
            (model.device().clone(), tokens, Box::new(move || model.extract(TEXT).map(drop)))
        }
    };
    run()?;
    let mut times = Vec::new();
    let end = Instant::now() + MEASURED;
    while Instant::now() < end {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let (least, median) = (times[0], times[times.len() / 2]);
    if args.json {
        return print_json(&json!({
            "version": env!("CARGO_PKG_VERSION"), "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            "cores": cores, "simd": simd, "kernels": ampoule::kernel_names(), "gpu_adapters": adapters,
            "device": report,
            "speed": {"tokens": tokens, "milliseconds_min": least, "milliseconds_median": median, "runs": times.len()},
        }));
    }
    let gpu = match adapters.is_empty() {
        true if cfg!(feature = "wgpu") => "none found".to_owned(),
        true => "not looked for: this build is without the feature `wgpu`".to_owned(),
        false => adapters.join(", "),
    };
    let model = match &args.model.model {
        Some(path) => path.display().to_string(),
        None => "the embedded model".to_owned(),
    };
    let time_of = |name: &str| report.measured.iter().find(|time| time.kernel == name);
    let kernels = ampoule::kernel_names().into_iter().map(|name| match time_of(name) {
        Some(time) => format!("{name} ({:.1} ms)", time.microseconds as f64 / 1e3),
        None => name.to_owned(),
    });
    let kernels = kernels.collect::<Vec<_>>().join(", ");
    for (name, value) in [
        ("ampoule", format!("{} for {} {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS)),
        ("cores", cores.to_string()),
        ("simd", simd.join(" ")),
        ("gpu", gpu),
        ("uses", format!("{}, {} thread(s): {}", report.name, report.threads, report.reason)),
        ("kernels", kernels),
        (
            "speed",
            format!("{tokens} tokens with {model}: {least:.1} ms at best, {median:.1} ms median of {}", times.len()),
        ),
    ] {
        print_line(&format!("{name:<9} {value}"))?;
    }
    Ok(())
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
