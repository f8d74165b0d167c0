//! `ampoule-web-bindgen MODULE FOLDER`: wasm-bindgen's own generator, of the very version that the module was compiled with. Writes
//! `ampoule_bg.wasm` and `ampoule.js`, which a page's Worker imports.

use std::env::args_os;

use anyhow::{Context, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let mut arguments = args_os().skip(1);
    let mut next = || arguments.next().context("expected a module and a folder");
    Bindgen::new().input_path(next()?).out_name("ampoule").typescript(false).web(true)?.generate(next()?)
}
