//! One engine written in Rust as a worker of `peers.py`: a line of JSON with token ids in, a line with the times out.
//!
//! `peers ENGINE MODEL THREADS`, the engine being `ampoule`, `rten` or `candle`.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use cpu_time::ProcessTime;
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use serde_json::{Value, json};

/// Sequences of one length -> their last hidden states, in one part or in several, one after the other.
type Run = Box<dyn Fn(&[Vec<u32>]) -> Result<Vec<Vec<f32>>>>;

fn ampoule(model: &str, threads: usize) -> Result<Run> {
    let options = ampoule::Options { threads, kernel: std::env::var("AMPOULE_KERNEL").ok(), ..Default::default() };
    let embedder = ampoule::Embedder::open(model, &options)?;
    Ok(Box::new(move |ids| Ok(embedder.hidden_states(ids)?)))
}

fn rten(model: &str) -> Result<Run> {
    let model = rten::ModelOptions::with_all_ops().prepack_weights(true).load_file(model)?;
    let output = *model.output_ids().first().context("no output")?;
    let names: Vec<_> = model.input_ids().to_vec();
    Ok(Box::new(move |ids| {
        let shape = [ids.len(), ids[0].len()];
        let of = |value: &dyn Fn(u32) -> i32| {
            NdTensor::from_data(shape, ids.concat().into_iter().map(value).collect::<Vec<i32>>())
        };
        let inputs = names.iter().map(|&id| {
            let info = model.node_info(id);
            let values = match info.as_ref().and_then(|info| info.name()) {
                Some("input_ids") => of(&|id| id as i32),
                Some("attention_mask") => of(&|_| 1),
                _ => of(&|_| 0),
            };
            (id, values.into())
        });
        let output = model.run(inputs.collect(), &[output], None)?.remove(0);
        let output: NdTensor<f32, 3> = output.try_into()?;
        Ok(vec![output.to_vec()])
    }))
}

fn candle(folder: &str) -> Result<Run> {
    let config: Config = serde_json::from_str(&std::fs::read_to_string(format!("{folder}/config.json"))?)?;
    let weights = candle_core::safetensors::load(format!("{folder}/model.safetensors"), &Device::Cpu)?;
    let model = BertModel::load(VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu), &config)?;
    Ok(Box::new(move |ids| {
        let ids = Tensor::from_vec(ids.concat(), (ids.len(), ids[0].len()), &Device::Cpu)?;
        Ok(vec![model.forward(&ids, &ids.zeros_like()?, None)?.flatten_all()?.to_vec1()?])
    }))
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, model, threads] = arguments.as_slice() else { bail!("peers ENGINE MODEL THREADS") };
    let run = match engine.as_str() {
        "ampoule" => ampoule(model, threads.parse()?)?,
        "rten" => rten(model)?,
        "candle" => candle(model)?,
        other => bail!("no engine {other}"),
    };
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let ids: Vec<Vec<u32>> = serde_json::from_value(asked["ids"].clone())?;
        let (cpu, wall) = (ProcessTime::now(), Instant::now());
        let output = run(&ids)?;
        let (cpu, wall) = (cpu.elapsed(), wall.elapsed());
        let output = if asked["full"] == true { output.concat() } else { Vec::new() };
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        println!("{}", json!({ "cpu_ms": ms(cpu), "wall_ms": ms(wall), "output": output }));
        std::io::stdout().flush()?;
    }
    Ok(())
}
