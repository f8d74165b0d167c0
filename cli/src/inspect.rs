//! `ampoule inspect`: what a bundle or a checkpoint is.

use std::path::{Path, PathBuf};

use ampoule::bundle::{Bundle, Load};
use ampoule::{Checkpoint, ModelConfig};
use anyhow::Result;
use serde_json::json;

use crate::ui::{hint, print_json, print_line, table};

#[derive(clap::Args)]
pub struct Args {
    /// Bundle, or checkpoint folder
    path: PathBuf,
    /// Read all of it, and compare a bundle's data with its digest
    #[arg(long)]
    verify: bool,
    /// List every tensor of a bundle
    #[arg(long)]
    tensors: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    if args.tensors && args.path.is_dir() {
        return Err(hint("--tensors lists those of a bundle, and this is a folder", "without it; or a bundle"));
    }
    if args.path.is_dir() { folder(&args) } else { bundle(&args) }
}

fn bundle(args: &Args) -> Result<()> {
    let info = match args.verify {
        true => Bundle::open(&args.path, Load::Copy, true)?.info().clone(),
        false => Bundle::inspect(&args.path)?,
    };
    let m = &info.metadata;
    let tensors: Vec<_> =
        info.tensors.iter().map(|t| (t.name.clone(), format!("{:?}", t.dtype), t.shape.clone(), t.bytes)).collect();
    if args.json {
        let mut object = json!({
            "kind": "bundle", "format_version": format!("{}.{}", info.version.0, info.version.1),
            "task": m.config.task.as_str(), "labels": m.config.id2label, "precision": m.precision.as_str(),
            "config": m.config.to_json(), "producer": m.producer, "licence": m.licence,
            "temperature": m.temperature, "max_tokens": m.max_tokens, "bytes": info.bytes, "data_sha256": info.data_sha256,
            "source_sha256": info.source_sha256, "verified": args.verify,
        });
        if args.tensors {
            object["tensors"] = tensors
                .iter()
                .map(
                    |(name, dtype, shape, bytes)| json!({"name": name, "dtype": dtype, "shape": shape, "bytes": bytes}),
                )
                .collect();
        }
        return print_json(&object);
    }
    let mut rows = vec![
        ("bundle", format!("format {}.{}, {:.2} MB", info.version.0, info.version.1, info.bytes as f64 / 1e6)),
        ("precision", m.precision.to_string()),
        ("window", m.max_tokens.map_or("as many tokens as it has positions".to_owned(), |n| format!("{n} tokens"))),
    ];
    rows.extend(config_rows(&m.config));
    rows.extend([
        ("temperature", m.temperature.to_string()),
        ("producer", m.producer.clone()),
        ("licence", m.licence.clone()),
        ("data", format!("sha256 {}{}", info.data_sha256, if args.verify { ", verified" } else { "" })),
        ("source", format!("sha256 {}", info.source_sha256)),
    ]);
    print_rows(rows)?;
    if args.tensors {
        let rows: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                vec![name.clone(), dtype.clone(), format!("{shape:?}"), bytes.to_string()]
            })
            .collect();
        print_line(&table(&rows))?;
    }
    Ok(())
}

fn folder(args: &Args) -> Result<()> {
    let (config, temperature) = match args.verify {
        true => {
            let checkpoint = Checkpoint::open(&args.path)?;
            (checkpoint.config, checkpoint.temperature)
        }
        false => Checkpoint::inspect(&args.path)?,
    };
    if args.json {
        return print_json(&json!({
            "kind": "checkpoint", "task": config.task.as_str(), "labels": config.id2label,
            "config": config.to_json(), "temperature": temperature, "verified": args.verify,
        }));
    }
    let mut rows = vec![("checkpoint", Path::display(&args.path).to_string())];
    rows.extend(config_rows(&config));
    rows.push(("temperature", temperature.to_string()));
    print_rows(rows)
}

/// What the model at `path` is, without its weights.
pub fn config_of(path: &Path) -> ampoule::Result<ModelConfig> {
    Ok(if path.is_dir() { Checkpoint::inspect(path)?.0 } else { Bundle::inspect(path)?.metadata.config })
}

/// How many numbers a model has.
pub fn parameters(config: &ModelConfig) -> usize {
    config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// How large a model's parts are, in words.
pub fn shape(config: &ModelConfig) -> String {
    format!(
        "{}: {} layers, hidden {}, {} heads, feed-forward {}, vocabulary {}, {} tokens at most",
        config.model_type.as_str(),
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
        config.max_tokens()
    )
}

fn config_rows(config: &ModelConfig) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("task", config.task.as_str().to_owned()),
        ("model", shape(config)),
        ("parameters", format!("{:.1} million", parameters(config) as f64 / 1e6)),
    ];
    if !config.id2label.is_empty() {
        rows.push(("labels", config.id2label.join(", ")));
    }
    rows
}

fn print_rows(rows: Vec<(&'static str, String)>) -> Result<()> {
    for (name, value) in rows {
        // A file that is looked at may be anybody's: no control character of its strings reaches the terminal.
        let value: String = value.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        print_line(&format!("{name:<11} {value}"))?;
    }
    Ok(())
}
