//! Hostile containers, headers and metadata.

use std::path::Path;

use ampoule::ErrorKind::{Corrupt, Incompatible, NotFound};
use ampoule::bundle::{Bundle, Load, MAX_HEADER_BYTES, Precision};
use serde_json::{Value, json};

use crate::{Pieces, bytes_of, refused, refused_after, rename, seal_as_it_is, seal_text, unsealed};

#[test]
fn what_is_no_bundle() {
    refused(b"", true, Corrupt, &["0 bytes"]);
    refused(b"seven b", true, Corrupt, &["7 bytes"]);
    refused(&[0; 8], true, Corrupt, &["header", "an object"]);
    refused(b"PK\x03\x04 and more of a ZIP archive", true, Corrupt, &["header", "no bundle"]);
    refused(&unsealed(b"[1, 2, 3]", b""), true, Corrupt, &["byte 0", "an object"]);
    refused(&unsealed(b"\xff\xfe{}", b""), true, Corrupt, &["byte 0", "UTF-8"]);
    refused(&unsealed(b"{}", b""), true, Incompatible, &["no bundle", "ampoule quantize"]);
    let plain = br#"{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    refused(&unsealed(plain, &[0; 4]), true, Incompatible, &["no bundle", "ampoule quantize"]);
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| Bundle::open(path, Load::Copy, false).unwrap_err();
    assert_eq!(open(folder.path()).kind(), Incompatible);
    let error = open(&folder.path().join("absent.safetensors"));
    assert_eq!(error.kind(), NotFound);
    assert!(error.to_string().contains("absent.safetensors"));
    #[cfg(unix)]
    assert_eq!(open(Path::new("/dev/zero")).kind(), Incompatible);
}

#[test]
fn headers_that_are_too_large() {
    let mut bytes = bytes_of(Precision::Int8);
    let file = bytes.len().to_string();
    for len in [u64::MAX, 1 << 40, bytes.len() as u64 - 7, MAX_HEADER_BYTES + 1] {
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        refused(&bytes, true, Corrupt, &["header", &len.to_string(), &file]);
    }
    let long = MAX_HEADER_BYTES + 8;
    let mut bytes = vec![b' '; 8 + long as usize];
    bytes[..8].copy_from_slice(&long.to_le_bytes());
    refused(&bytes, true, Corrupt, &["at most 16777216 bytes", &long.to_string()]);
}

#[test]
fn data_that_stand_askew() {
    let bytes = bytes_of(Precision::Int8);
    let (header, data) = bytes[8..].split_at(u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize);
    let header = format!("{} ", str::from_utf8(header).unwrap());
    refused(&seal_as_it_is(header, data), true, Corrupt, &["multiple of 8"]);
}

#[test]
fn truncated_files_and_files_with_more_behind() {
    let bytes = bytes_of(Precision::Int8);
    for len in (0..bytes.len()).step_by(61).chain(bytes.len() - 9..bytes.len()) {
        refused(&bytes[..len], false, Corrupt, &[]);
    }
    refused(&bytes[..bytes.len() - 1], false, Corrupt, &["data section", "expected", "found"]);
    refused(&[bytes.as_slice(), b"x"].concat(), false, Corrupt, &["data section", "expected", "found"]);
}

#[test]
fn versions() {
    for (version, parts) in [("1.1", "update ampoule"), ("2.0", "update ampoule"), ("0.9", "make the bundle again")] {
        // Whatever else is unknown in it, it is the version that is said.
        let change = |header: &mut Value, _: &mut Vec<u8>| {
            header["__metadata__"]["format_version"] = json!(version);
            header["__metadata__"]["flavour"] = json!("new");
        };
        refused_after(change, Incompatible, &["\"format_version\"", "1.0", version, parts]);
    }
    for version in ["", "1", "one.two", "1.-1", "99999999999.0"] {
        let change = |header: &mut Value, _: &mut Vec<u8>| header["__metadata__"]["format_version"] = json!(version);
        refused_after(change, Corrupt, &["\"format_version\"", version]);
    }
}

#[test]
fn metadata_that_is_missing_or_wrong() {
    let names: Vec<String> = {
        let header = Pieces::of(Precision::Int8).header;
        header["__metadata__"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|n| !n.starts_with("format") && *n != "data_sha256")
            .cloned()
            .collect()
    };
    assert_eq!(names.len(), 11);
    for name in &names {
        let change = |header: &mut Value, _: &mut Vec<u8>| {
            header["__metadata__"].as_object_mut().unwrap().remove(name);
        };
        refused_after(change, Corrupt, &[&format!("{name:?}"), "missing"]);
    }
    for (name, value, kind, parts) in [
        ("precision", "int4", Corrupt, "f32, f16 or int8"),
        ("pooling", "median", Corrupt, "mean, cls or max"),
        ("normalize", "yes", Corrupt, "true or false"),
        ("temperature", "NaN", Corrupt, "a positive normal number"),
        ("temperature", "0", Corrupt, "a positive normal number"),
        ("temperature", "-1", Corrupt, "a positive normal number"),
        ("temperature", "hot", Corrupt, "a number"),
        ("max_tokens", "2", Corrupt, "3 to 40"),
        ("max_tokens", "41", Corrupt, "3 to 40"),
        ("max_tokens", "all", Corrupt, "a whole number"),
        ("task", "encoder", Corrupt, "token-classification"),
        ("source_sha256", "abc", Corrupt, "64 hexadecimal digits"),
        ("labels", "{}", Corrupt, "an array"),
        ("labels", "[1]", Corrupt, "a string"),
        ("labels", "[\"O\"", Corrupt, "the array's end"),
        ("config", "", Corrupt, "JSON"),
        ("config", "[]", Corrupt, "object"),
        ("config", "{\"model_type\":\"t5\"}", Incompatible, "\"t5\""),
        ("surprise", "", Incompatible, "unknown"),
    ] {
        let change = |header: &mut Value, _: &mut Vec<u8>| header["__metadata__"][name] = json!(value);
        refused_after(change, kind, &[&format!("{name:?}"), parts]);
    }
    let change = |header: &mut Value, _: &mut Vec<u8>| header["__metadata__"]["task"] = json!(7);
    refused_after(change, Corrupt, &["a string"]);
    let optional =
        Pieces::of(Precision::Int8).with(|header, _| header["__metadata__"]["ampoule.optional.x"] = json!("y"));
    Bundle::from_bytes(optional, true).unwrap();
}

#[test]
fn a_config_that_the_arithmetic_does_not_know() {
    for (field, value) in [("hidden_act", json!("swish")), ("position_embedding_type", json!("relative_key"))] {
        let change = |header: &mut Value, _: &mut Vec<u8>| {
            let config = header["__metadata__"]["config"].as_str().unwrap();
            let mut config: Value = serde_json::from_str(config).unwrap();
            config[field] = value.clone();
            header["__metadata__"]["config"] = json!(config.to_string());
        };
        refused_after(change, Incompatible, &["config", value.as_str().unwrap()]);
    }
}

#[test]
fn labels_that_are_not_as_many_as_the_classifier_has() {
    for (labels, found) in
        [("[]", "found 0"), ("[\"O\",\"B-X\"]", "found 2"), ("[\"O\",\"B-X\",\"I-X\",\"B-Y\"]", "found 4")]
    {
        let change = |header: &mut Value, _: &mut Vec<u8>| header["__metadata__"]["labels"] = json!(labels);
        refused_after(change, Corrupt, &["\"labels\"", "expected 3", found, "classifier.weight"]);
    }
}

#[test]
fn headers_that_break_their_grammar() {
    let good = Pieces::of(Precision::Int8).header.to_string();
    let data = Pieces::of(Precision::Int8).data;
    let refuse = |from: &str, to: &str, parts: &[&str]| {
        assert!(good.contains(from), "{from}");
        refused(&seal_text(&good.replacen(from, to, 1), &data), true, Corrupt, parts);
    };
    let bias = "\"classifier.bias\":{";
    refuse(bias, "\"classifier.bias\":{\"dtype\":\"F32\",", &["each once"]);
    refuse(bias, "\"classifier.bias\":{\"colour\":1,", &["\"dtype\", \"shape\" and \"data_offsets\""]);
    refuse(bias, "\"classifier.weight.scale\":{", &["\"classifier.weight.scale\"", "twice"]);
    refuse(bias, "\"\":{", &["a name of 1 to 256"]);
    refuse(bias, "\"class\\u0069fier.bias\":{", &["a name of 1 to 256"]);
    refuse(bias, "\"clässifier.bias\":{", &["a name of 1 to 256"]);
    refuse(bias, &format!("\"{}\":{{", "x".repeat(257)), &["a name of 1 to 256", "257"]);
    refuse("\"precision\":\"int8\"", "\"precision\":\"int8\",\"precision\":\"f32\"", &["\"precision\"", "twice"]);
    refuse("{\"__metadata__\"", "{\"__metadata__\":{},\"__metadata__\"", &["__metadata__", "twice"]);
    refuse("\"licence\":\"CC0-1.0\"", "\"licence\":\"\\ud800\"", &["broken escape"]);
    refuse("\"licence\":\"CC0-1.0\"", "\"licence\":\"a\nb\"", &["0x0a"]);
    refuse("\"dtype\":\"F32\"", "\"dtype\":null", &["a string"]);
    refuse("\"dtype\":\"F32\",", "", &["\"dtype\" is missing"]);
    refused(&seal_text(&format!("{good}}}"), &data), true, Corrupt, &["expected the end"]);
    refused(&seal_text(&format!("{{\"a\":{}", "[".repeat(100_000)), &data), true, Corrupt, &["header"]);
    refused(&seal_text(&"{\"a\":".repeat(100_000), &data), true, Corrupt, &["header"]);
}

#[test]
fn headers_made_to_cost_memory() {
    let blow = |change: &dyn Fn(&mut Value)| {
        let mut pieces = Pieces::of(Precision::Int8);
        change(&mut pieces.header);
        pieces.seal()
    };
    let config = |f: &dyn Fn(&mut Value)| {
        blow(&|header| {
            let mut config: Value = serde_json::from_str(header["__metadata__"]["config"].as_str().unwrap()).unwrap();
            f(&mut config);
            header["__metadata__"]["config"] = json!(config.to_string());
        })
    };
    refused(&config(&|c| c["num_hidden_layers"] = json!(1 << 20)), true, Incompatible, &["expected 1 to 256"]);
    refused(&config(&|c| c["num_hidden_layers"] = json!(256)), true, Corrupt, &["256 layers"]);
    refused(&config(&|c| c["vocab_size"] = json!(1 << 20)), true, Corrupt, &["[1048576, 32]"]);
    refused(&config(&|c| c["vocab_size"] = json!(1u64 << 60)), true, Incompatible, &["vocab_size"]);
    // A label count of its own is not believed.
    Bundle::from_bytes(config(&|c| c["num_labels"] = json!(1 << 20)), true).unwrap();
    refused(&config(&|c| c["x"] = json!(vec![0; 1000])), true, Corrupt, &["\"config\"", "64 values"]);
    refused(&config(&|c| c["x"] = json!("y".repeat(9000))), true, Corrupt, &["\"config\"", "at most 8192 bytes"]);
    let labels = format!("[{}\"\"]", "\"\",".repeat(200_000));
    let many = blow(&|header| header["__metadata__"]["labels"] = json!(labels));
    refused(&many, true, Corrupt, &["expected 3", "200001"]);
    let entries: String = (0..400_000).map(|i| format!("\"{i}\":\"\",")).collect();
    let many = format!("{{\"__metadata__\":{{{entries}\"x\":\"\"}}}}");
    refused(&unsealed(many.as_bytes(), b""), true, Corrupt, &["64 metadata entries", "400001"]);
    let tensors: String =
        (0..100_000).map(|i| format!("\"{i}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}},")).collect();
    let many = format!("{{{tensors}\"__metadata__\":{{}}}}");
    refused(&unsealed(many.as_bytes(), b""), true, Corrupt, &["16384 tensors", "100000"]);
    // As many as are allowed, of no bytes: neither list nor message may outgrow the file.
    for prefix in ["", "ampoule.optional."] {
        let bytes = Pieces::of(Precision::Int8).with(|header, _| {
            rename(header, "classifier.bias", "ampoule.optional.bias");
            for i in 0..16_000 {
                header[format!("{prefix}{i}")] = json!({"dtype": "U8", "shape": [0], "data_offsets": [0, 0]});
            }
        });
        refused(&bytes, true, Corrupt, &["missing: classifier.bias"]);
    }
    let escapes = "\\n".repeat(1 << 20);
    let string = format!("{{\"__metadata__\":{{\"format\":\"ampoule\",\"format_version\":\"{escapes}\"}}}}");
    refused(&unsealed(string.as_bytes(), b""), true, Corrupt, &["\"format_version\""]);
}
