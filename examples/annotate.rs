//! Entities of the note on stdin, one a line: `cargo run --release --features embedded --example annotate < note.txt`
use std::io::Read;

use ampoule::{Extractor, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut note = String::new();
    std::io::stdin().read_to_string(&mut note)?;
    let extractor = Extractor::embedded(&Options::default())?;
    for entity in extractor.extract(&note)? {
        println!("{:9} {:.2} {:?} {}", entity.label, entity.score, entity.range, &note[entity.range.clone()]);
    }
    Ok(())
}
