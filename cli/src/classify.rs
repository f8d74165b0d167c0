//! `ampoule classify`: labels of texts.

use ampoule::Classifier;
use anyhow::Result;
use serde_json::json;

use crate::input::{Line, ModelArgs, TextArgs, tell_gpu};
use crate::ui::{print_json, print_line, table};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

pub fn run(args: Args) -> Result<()> {
    let classifier = Classifier::open(args.model.path("classify")?, &args.model.running.options()?)?;
    let read = args.texts.each(|input| {
        let call = classifier.limited(None, None);
        let labels = call.classify(&input.text)?;
        if args.texts.json {
            let labels: Vec<_> = labels.iter().map(|l| json!({"label": *l.label, "score": l.score})).collect();
            let found = json!({ "labels": labels });
            return print_json(&Line::new(&input.id, found, classifier.device(), call.computed()));
        }
        let rows: Vec<_> = labels.iter().map(|l| vec![l.label.to_string(), format!("{:.3}", l.score)]).collect();
        print_line(&table(&rows))
    });
    tell_gpu(&classifier.report());
    read
}
