//! `ampoule extract`: entities in text.

use ampoule::{Entity, Extractor, OffsetMap};
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::input::{Line, ModelArgs, TextArgs, tell_gpu};
use crate::ui::{has_colour, hint, print_json, print_line};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Leave out entities with a lower score; `LABEL=SCORE` for one label
    #[arg(long, value_name = "[LABEL=]SCORE")]
    min_score: Vec<String>,
    /// The unit of "start" and "end" in JSON
    #[arg(long, value_enum, default_value = "utf8", requires = "json")]
    offsets: Offsets,
    /// Put the text and the model's labels into the JSON too: such lines are labelled data for `train` and `distill`
    #[arg(long, requires = "json", conflicts_with = "min_score")]
    with_text: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Offsets {
    Utf8,
    Utf16,
    Chars,
}

/// What a line says of a text. No tree of values: a book has many entities.
#[derive(Serialize)]
struct Found<'a> {
    entities: Vec<Row<'a>>,
    #[serde(flatten)]
    of_text: Option<OfText<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    label: &'a str,
    start: usize,
    end: usize,
    score: f32,
}

/// What makes of it data to train on.
#[derive(Serialize)]
struct OfText<'a> {
    text: &'a str,
    offsets: Option<String>,
    covers: Vec<&'a str>,
}

pub fn run(args: Args) -> Result<()> {
    let mut options = args.model.running.options()?;
    for argument in &args.min_score {
        let (label, score) = match argument.rsplit_once('=') {
            Some((label, score)) => (Some(label), score),
            None => (None, argument.as_str()),
        };
        let score = score.parse::<f32>().ok().filter(|s| (0.0..=1.0).contains(s)).ok_or_else(|| {
            hint(
                format!("--min-score {argument:?} is not a score in 0..=1"),
                "--min-score 0.5, or --min-score Disease=0.9",
            )
        })?;
        match label {
            Some(label) => {
                options.min_score_by_label.insert(label.to_owned(), score);
            }
            None => options.min_score = score,
        }
    }
    let extractor = match &args.model.model {
        Some(path) => Extractor::open(path, &options)?,
        None => Extractor::embedded(&options)?,
    };
    let read = args.texts.each(|input| {
        let call = extractor.limited(None, None);
        let entities = call.extract(&input.text)?;
        if !args.texts.json {
            return print_line(&marked(&input.text, &entities));
        }
        let of_text = args.with_text.then(|| OfText {
            text: &input.text,
            offsets: args.offsets.to_possible_value().map(|unit| unit.get_name().to_owned()),
            covers: extractor.labels().iter().map(|label| &**label).collect(),
        });
        let places = in_unit(&input.text, &entities, args.offsets).into_iter().zip(&entities);
        let rows = places.map(|((start, end), e)| Row { label: &e.label, start, end, score: e.score });
        let found = Found { entities: rows.collect(), of_text };
        print_json(&Line::new(&input.id, found, extractor.device(), call.computed()))
    });
    tell_gpu(&extractor.report());
    read
}

fn in_unit(text: &str, entities: &[Entity], unit: Offsets) -> Vec<(usize, usize)> {
    let map = OffsetMap::new(text, entities.iter().flat_map(|e| [e.range.start, e.range.end]));
    let convert = |offset: usize| match unit {
        Offsets::Utf8 => offset,
        Offsets::Utf16 => map.utf16(offset),
        Offsets::Chars => map.chars(offset),
    };
    entities.iter().map(|e| (convert(e.range.start), convert(e.range.end))).collect()
}

/// The text with its entities in colour and their labels behind them; without colour, in brackets.
fn marked(text: &str, entities: &[Entity]) -> String {
    let colour = has_colour();
    let mut out = String::with_capacity(text.len() * 2);
    let mut at = 0;
    for entity in entities {
        let (Some(before), Some(inside)) = (text.get(at..entity.range.start), text.get(entity.range.clone())) else {
            continue;
        };
        out.push_str(before);
        let label = format!("{} {:.2}", entity.label, entity.score);
        if colour {
            // Colours 1 to 6 of the terminal's own palette, told apart by label.
            let number = 31 + entity.label.bytes().map(u32::from).sum::<u32>() % 6;
            out.push_str(&format!("\x1b[1;{number}m{inside}\x1b[0m\x1b[2m {label}\x1b[0m"));
        } else {
            out.push_str(&format!("[{inside}]({label})"));
        }
        at = entity.range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}
