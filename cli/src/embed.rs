//! `ampoule embed`: vectors of texts.

use ampoule::Embedder;
use anyhow::Result;
use serde_json::json;

use crate::input::{ModelArgs, TextArgs, name_device, tell_gpu};
use crate::ui::{print_json, print_line};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: Args) -> Result<()> {
    let embedder = Embedder::open(args.model.path("embed")?, &args.model.running.options()?)?;
    let read = args.texts.each(|input| {
        let call = embedder.limited(None, None);
        let vector = call.embed(&input.text)?;
        if args.texts.json {
            let mut line = json!({"id": input.id, "vector": vector});
            name_device(&mut line, embedder.device(), call.computed());
            return print_json(&line);
        }
        let values: Vec<String> = vector.iter().map(f32::to_string).collect();
        print_line(&values.join(" "))
    });
    tell_gpu(&embedder.report());
    read
}
