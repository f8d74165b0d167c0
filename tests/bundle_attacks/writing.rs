//! What cannot be written leaves the old file.

use std::path::Path;
use std::process::Command;

use ampoule::ErrorKind::{Incompatible, InvalidInput, NotFound};
use ampoule::bundle::{self, BundleSpec, Metadata, Precision};
use ampoule::model::{HostTensor, Weights};

use crate::{TOKENIZER, metadata, spec, tiny, weights};

#[test]
fn what_cannot_be_written_is_said_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let good = metadata(tiny(), Precision::Int8);
    let good_weights = weights(&tiny());
    bundle::write(&path, &spec(&good, &good_weights)).unwrap();
    let old = std::fs::read(&path).unwrap();
    let refuse = |metadata: &Metadata, weights: &Weights, tokenizer: &[u8], wider: &[(&str, Precision)], part: &str| {
        let wider = wider.iter().map(|(name, precision)| (name.to_string(), *precision)).collect();
        let spec = BundleSpec { tokenizer_json: tokenizer, wider: &wider, ..spec(metadata, weights) };
        let error = bundle::write(&path, &spec).unwrap_err();
        assert!(matches!(error.kind(), InvalidInput | Incompatible), "{error}");
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    };
    let mut bad = good_weights.clone();
    bad.0.remove("classifier.bias");
    bad.0.insert("extra".to_owned(), HostTensor { shape: vec![1], data: vec![0.0] });
    refuse(&good, &bad, TOKENIZER, &[], "missing [classifier.bias], unknown [extra]");
    let mut bad = good_weights.clone();
    bad.0.insert("classifier.bias".to_owned(), HostTensor { shape: vec![4], data: vec![0.0; 4] });
    refuse(&good, &bad, TOKENIZER, &[], "expected [3], found [4]");
    let mut bad = good_weights.clone();
    bad.0.get_mut("classifier.bias").unwrap().data[1] = f32::NAN;
    refuse(&good, &bad, TOKENIZER, &[], "\"classifier.bias\": element 1 is NaN");
    refuse(&good, &good_weights, b"", &[], "tokenizer.json");
    refuse(&good, &good_weights, TOKENIZER, &[("classifier.bias", Precision::F32)], "classifier.bias");
    for temperature in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        refuse(&Metadata { temperature, ..good.clone() }, &good_weights, TOKENIZER, &[], "temperature");
    }
    refuse(&Metadata { max_tokens: Some(41), ..good.clone() }, &good_weights, TOKENIZER, &[], "max_tokens");
    let missing = folder.path().join("no/folder/model.safetensors");
    assert_eq!(bundle::write(&missing, &spec(&good, &good_weights)).unwrap_err().kind(), NotFound);
    let occupied = folder.path().join("occupied");
    std::fs::create_dir_all(occupied.join("by a folder")).unwrap();
    assert_eq!(bundle::write(&occupied, &spec(&good, &good_weights)).unwrap_err().kind(), InvalidInput);
    drop(bundle::stage(&path, &spec(&good, &good_weights)).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), old);
    assert_eq!(names(folder.path()), ["model.safetensors", "occupied"]);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A small file system of its own, where the machine lets one be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", size, "tmpfs"]).arg(folder.path());
        match mount.output() {
            Ok(output) if output.status.success() => Some(SmallDisk(folder)),
            _ => None,
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_leaves_the_old_bundle() {
    let Some(disk) = SmallDisk::mount("size=96k") else {
        eprintln!("skipped: a small file system cannot be mounted here (needs root)");
        return;
    };
    let folder = disk.0.path();
    let path = folder.join("model.safetensors");
    let weights = weights(&tiny());
    bundle::write(&path, &spec(&metadata(tiny(), Precision::Int8), &weights)).unwrap();
    let old = std::fs::read(&path).unwrap();
    let error = bundle::write(&path, &spec(&metadata(tiny(), Precision::F32), &weights)).unwrap_err();
    assert_eq!(error.kind(), NotFound);
    assert!(error.to_string().contains("not written") && error.to_string().contains("No space left"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), old);
    assert_eq!(names(folder), ["model.safetensors"]);
}

#[test]
fn what_a_killed_process_left_is_in_nobodys_way() {
    let folder = tempfile::tempdir().unwrap();
    for count in 0..100 {
        let left = format!(".partial-{}-{count}-model.safetensors", std::process::id());
        std::fs::write(folder.path().join(left), "cut short").unwrap();
    }
    let metadata = metadata(tiny(), Precision::Int8);
    bundle::write(&folder.path().join("model.safetensors"), &spec(&metadata, &weights(&tiny()))).unwrap();
}
