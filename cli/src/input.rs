//! Texts from an argument, a file or stdin, and the model that they are for.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;

use ampoule::{Computed, Device, DeviceReport, GpuState, ModelReport, Options};
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

use crate::ui::{hint, tell};

/// Which model, and how it runs.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// Bundle, or checkpoint folder
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    pub running: RunningArgs,
}

/// How a model runs.
#[derive(clap::Args)]
pub struct RunningArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub device: DeviceArg,
    /// The GPU's adapter, by a part of its name; software in a GPU's place has to be named. `ampoule doctor` lists them
    #[arg(long, value_name = "NAME")]
    pub adapter: Option<String>,
    /// With --device gpu-or-cpu, the tokens from which on the GPU computes; without it both are measured
    #[arg(long, value_name = "TOKENS")]
    pub gpu_from_tokens: Option<usize>,
    /// Threads that compute, at most 1024; 0 for as many as there are fast cores, at most four
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// The kernel that computes on the processor, also by AMPOULE_KERNEL; without it the first that `ampoule doctor` names
    #[arg(long, value_name = "NAME", conflicts_with = "autotune")]
    pub kernel: Option<String>,
    /// Measure the kernels on the model and use the fastest; `ampoule doctor --autotune` says which, to be named with --kernel
    #[arg(long)]
    pub autotune: bool,
    /// The most tokens of a window; without it as many as the model takes
    #[arg(long, value_name = "TOKENS")]
    pub window: Option<usize>,
    /// What logits are divided by before they become scores, in place of the model's own temperature
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DeviceArg {
    Cpu,
    Gpu,
    GpuOrCpu,
    Ndarray,
}

impl From<DeviceArg> for Device {
    fn from(device: DeviceArg) -> Self {
        match device {
            DeviceArg::Cpu => Device::Cpu,
            DeviceArg::Gpu => Device::Gpu,
            DeviceArg::GpuOrCpu => Device::GpuOrCpu,
            DeviceArg::Ndarray => Device::NdArray,
        }
    }
}

impl RunningArgs {
    /// As they are given to another process of this program, which has the same environment.
    pub fn arguments(&self) -> Vec<String> {
        let mut all = vec![format!("--threads={}", self.threads)];
        all.extend(self.device.to_possible_value().map(|device| format!("--device={}", device.get_name())));
        all.extend(self.adapter.iter().map(|adapter| format!("--adapter={adapter}")));
        all.extend(self.gpu_from_tokens.map(|tokens| format!("--gpu-from-tokens={tokens}")));
        all.extend(self.kernel.iter().map(|kernel| format!("--kernel={kernel}")));
        all.extend(self.autotune.then(|| "--autotune".to_owned()));
        all.extend(self.window.map(|window| format!("--window={window}")));
        all
    }

    /// As the library takes it; an error where there is what only a GPU has, and none is asked for.
    pub fn options(&self) -> Result<Options> {
        let device = Device::from(self.device);
        let is_gpu = matches!(device, Device::Gpu | Device::GpuOrCpu);
        if self.adapter.is_some() && !is_gpu {
            return Err(hint("--adapter: this device has none", "with `--device gpu` or `gpu-or-cpu`"));
        }
        if self.gpu_from_tokens.is_some() && device != Device::GpuOrCpu {
            return Err(hint("--gpu-from-tokens: one device computes all", "with `--device gpu-or-cpu`"));
        }
        Ok(Options {
            device,
            adapter: self.adapter.clone(),
            gpu_from_tokens: self.gpu_from_tokens,
            threads: self.threads,
            kernel: match (&self.kernel, self.autotune) {
                (Some(name), _) => Some(name.clone()),
                (None, true) => None,
                // What is not UTF-8 is no kernel's name, and the error says so.
                (None, false) => std::env::var_os("AMPOULE_KERNEL")
                    .filter(|name| !name.is_empty())
                    .map(|name| name.to_string_lossy().into_owned()),
            },
            autotune: self.autotune,
            max_window_tokens: self.window.unwrap_or_default(),
            temperature: self.temperature,
            ..Options::default()
        })
    }
}

/// A line of JSON about a text.
#[derive(Serialize)]
pub struct Line<'a, T> {
    id: &'a Value,
    /// An object, whose fields stand here.
    #[serde(flatten)]
    found: T,
    /// Where a GPU was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    computed: Option<Computed>,
}

impl<'a, T: Serialize> Line<'a, T> {
    /// What was found in the text of this name, by which device.
    pub fn new(id: &'a Value, found: T, device: &DeviceReport, computed: Computed) -> Self {
        let has_choice = matches!(device.requested, Device::Gpu | Device::GpuOrCpu);
        Line { id, found, computed: has_choice.then_some(computed) }
    }
}

/// Says on stderr that a model's GPU has failed, where it has, and how much of what it gave nobody knows to be right.
pub fn tell_gpu(report: &ModelReport) {
    if let Some(gpu) = report.gpu.as_ref().filter(|gpu| gpu.state == GpuState::Failed) {
        let reason = gpu.reason.as_deref().unwrap_or_default();
        let goes_on = match report.device.requested {
            Device::GpuOrCpu => ", and the processor goes on",
            _ => "",
        };
        tell(&format!(
            "the GPU {} failed{goes_on}: {reason}; {} batches are unverified",
            gpu.adapter, gpu.unverified_batches
        ));
    }
}

impl ModelArgs {
    /// The path, where no model is embedded for the verb.
    pub fn path(&self, verb: &str) -> Result<&PathBuf> {
        self.model.as_ref().ok_or_else(|| {
            hint(
                format!("no model is embedded for {verb}"),
                format!("`ampoule {verb} --model PATH`, a bundle or a checkpoint folder"),
            )
        })
    }
}

/// Which texts.
#[derive(clap::Args)]
pub struct TextArgs {
    /// The text; `-` for stdin, a text a line
    #[arg(required_unless_present = "file", conflicts_with = "file", allow_hyphen_values = true)]
    text: Option<String>,
    /// A file, as one text
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Each line is an object with "text" and, optionally, "id"
    #[arg(long, conflicts_with_all = ["whole", "lines"])]
    jsonl: bool,
    /// Stdin is one text
    #[arg(long, conflicts_with = "lines")]
    whole: bool,
    /// Each line of the file is a text
    #[arg(long)]
    lines: bool,
    /// One JSON object a text
    #[arg(long)]
    pub json: bool,
}

/// A text with what its result is called.
pub struct Input {
    pub id: Value,
    pub text: String,
}

impl TextArgs {
    /// Hands over one text after the other, without holding all of them.
    pub fn each(&self, mut f: impl FnMut(Input) -> Result<()>) -> Result<()> {
        let (reader, is_stdin): (Box<dyn Read>, bool) = match (&self.file, self.text.as_deref()) {
            (Some(path), _) => {
                let file = File::open(path)
                    .with_context(|| path.display().to_string())
                    .map_err(|e| hint(format!("{e:#}"), "check the path and its permissions"))?;
                (Box::new(file), false)
            }
            (None, Some("-")) => (Box::new(io::stdin()), true),
            (None, _) if self.jsonl || self.whole || self.lines => {
                let what = "--jsonl, --whole and --lines are about files and stdin, and the text is an argument";
                return Err(hint(what, "`-` for stdin, or --file"));
            }
            (None, text) => {
                return f(Input { id: 1.into(), text: text.unwrap_or_default().to_owned() });
            }
        };
        let place = match &self.file {
            Some(path) => path.display().to_string(),
            None => "stdin".to_owned(),
        };
        let mut reader = BufReader::new(reader);
        let is_whole = !self.jsonl && if is_stdin { self.whole } else { !self.lines };
        if is_whole {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).with_context(|| place.clone())?;
            return f(Input { id: 1.into(), text: utf8(bytes, &place)? });
        }
        let mut number = 0u64;
        loop {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line).with_context(|| place.clone())? == 0 {
                return Ok(());
            }
            number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
            }
            let place = format!("{place}, line {number}");
            let line = utf8(line, &place)?;
            if !self.jsonl {
                f(Input { id: number.into(), text: line })?;
            } else if !line.trim().is_empty() {
                f(from_json(&line, number, &place)?)?;
            }
        }
    }
}

fn from_json(line: &str, number: u64, place: &str) -> Result<Input> {
    let wrong = |what: &str| hint(format!("{place}: {what}"), "one object a line: {\"id\": \"a\", \"text\": \"…\"}");
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    // serde_json's message names a column and never the text, but a wrong type's value it would quote.
    let value: Value = serde_json::from_str(line).map_err(|e| wrong(&format!("not JSON, column {}", e.column())))?;
    let text = value.get("text").and_then(Value::as_str).ok_or_else(|| wrong("no \"text\""))?;
    Ok(Input { id: value.get("id").cloned().unwrap_or_else(|| number.into()), text: text.to_owned() })
}

fn utf8(bytes: Vec<u8>, place: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        hint(
            format!("{place}: not UTF-8 at byte {}", e.utf8_error().valid_up_to()),
            "convert the text, for instance with `iconv -f WINDOWS-1252 -t UTF-8`",
        )
    })
}
