//! The runtime as one library, to weigh it as a phone gets it:
//!
//! ```sh
//! cargo rustc -p ampoule --no-default-features --profile dist --example library -- \
//!     -C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--strip-all
//! ls -l target/dist/examples/liblibrary.so
//! ```
//!
//! For ARM with `--target aarch64-unknown-linux-gnu`, which needs its linker (`CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER`).

use ampoule::{Classifier, Embedder, Extractor, Options};

/// Uses all that an app can use, so that nothing is left out of the library. Paths are those of three bundles.
fn run(paths: [&str; 3], text: &str) -> ampoule::Result<usize> {
    let options = Options::default();
    let entities = Extractor::open(paths[0], &options)?.extract(text)?;
    let labels = Classifier::open(paths[1], &options)?.classify(text)?;
    let vector = Embedder::open(paths[2], &options)?.embed(text)?;
    Ok(entities.len() + labels.len() + vector.len())
}

/// The only symbol that the library exports.
#[allow(unsafe_code)] // the name is this library's own
#[unsafe(no_mangle)]
pub extern "C" fn ampoule_weight() -> usize {
    run(["entities.safetensors", "labels.safetensors", "vectors.safetensors"], "text").unwrap_or_default()
}
