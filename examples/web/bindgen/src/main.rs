//! `ampoule-web-bindgen MODULE FOLDER NAME`: wasm-bindgen's own generator, of the very version that the module was compiled with. Writes
//! `NAME_bg.wasm` and `NAME.js`, which a page's Worker imports.

use std::env::args_os;

use anyhow::{Context, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let mut arguments = args_os().skip(1);
    let mut next = || arguments.next().context("expected a module, a folder and a name");
    let (module, folder, name) = (next()?, next()?, next()?);
    let name = name.to_str().context("a name that is no UTF-8")?;
    Bindgen::new().input_path(module).out_name(name).typescript(false).web(true)?.generate(folder)
}
