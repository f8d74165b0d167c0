//! `ampoule embed`: vectors of texts.

use ampoule::Embedder;
use anyhow::Result;
use serde_json::json;

use crate::input::{Line, ModelArgs, TextArgs, tell_gpu};
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
            let found = json!({ "vector": vector });
            return print_json(&Line::new(&input.id, found, embedder.device(), call.computed()));
        }
        let values: Vec<String> = vector.iter().map(f32::to_string).collect();
        print_line(&values.join(" "))
    });
    tell_gpu(&embedder.report());
    read
}
