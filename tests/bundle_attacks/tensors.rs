//! Hostile tensors: layout, types, shapes, names, values, and damage at random.

use ampoule::ErrorKind::{Corrupt, Incompatible};
use ampoule::bundle::{Bundle, Precision};
use serde_json::{Value, json};

use crate::{
    LARGEST, Pieces, Random, TOKENIZER, bytes_of, refused, refused_after, rename, seal_text, take_all, tiny, unsealed,
};

#[test]
fn tensors_that_overlap_leave_gaps_or_lie_outside() {
    let word = "embeddings.word_embeddings.weight";
    let bias = "classifier.bias";
    let offsets = |header: &Value, name: &str| [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap());
    refused_after(
        |header, _| {
            let [begin, end] = offsets(header, word);
            header[word]["data_offsets"] = json!([begin - 8, end - 8]);
        },
        Corrupt,
        &["overlaps", "expected offset", "found"],
    );
    refused_after(
        |header, data| {
            let [begin, end] = offsets(header, word);
            header[word]["data_offsets"] = json!([begin + 8, end + 8]);
            data.extend([0; 8]);
        },
        Corrupt,
        &[word, "gap"],
    );
    let scales = "classifier.weight.scale";
    refused_after(|header, _| header[scales]["data_offsets"] = json!(offsets(header, bias)), Corrupt, &["overlaps"]);
    refused_after(|header, _| header[bias]["data_offsets"] = json!([4, 0]), Corrupt, &[bias, "4 to 0"]);
    refused_after(
        |header, _| header[bias]["data_offsets"] = json!([0, 4]),
        Corrupt,
        &[bias, "[3] F32 takes 12 bytes", "0 to 4"],
    );
    refused_after(
        |header, _| header[bias]["data_offsets"] = json!([u64::MAX - 11, u64::MAX]),
        Corrupt,
        &[bias, "18446744073709551604 to 18446744073709551615"],
    );
    refused_after(
        |header, _| header[word]["shape"] = json!([u32::MAX, u32::MAX]),
        Corrupt,
        &[word, "[4294967295, 4294967295] I8"],
    );
    refused_after(|header, _| header[bias]["shape"] = json!([u32::MAX, u32::MAX]), Corrupt, &[bias, "over 2^64"]);
    refused_after(|header, _| header[bias]["shape"] = json!([1u64 << 32]), Corrupt, &[bias, "4294967295"]);
    refused_after(|header, _| header[bias]["shape"] = json!([3, 1, 1]), Corrupt, &[bias, "found 3"]);
    refused_after(|header, _| header[bias]["shape"] = json!([]), Corrupt, &[bias, "found 0"]);
    refused_after(|header, _| header[bias]["shape"] = json!([-3]), Corrupt, &["a whole number"]);
    refused_after(|header, _| header[bias]["shape"] = json!([3.0]), Corrupt, &["header"]);
    refused_after(
        |header, data| {
            // The card shifts nothing, and one byte before floats takes them off their multiple of 4.
            for tensor in header.as_object_mut().unwrap().values_mut().filter(|t| t["data_offsets"].is_array()) {
                let [begin, end] = [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap());
                tensor["data_offsets"] = json!([begin + 1, end + 1]);
            }
            header["ampoule.optional.card"] = json!({"dtype": "U8", "shape": [1], "data_offsets": [0, 1]});
            data.insert(0, b'x');
        },
        Corrupt,
        &["a multiple of"],
    );
}

#[test]
fn wrong_types() {
    let word = "embeddings.word_embeddings.weight";
    for dtype in ["BF16", "F64", "I64", "F8_E4M3", "f32", ""] {
        refused_after(|header, _| header[word]["dtype"] = json!(dtype), Corrupt, &[word, "F32, F16, I8 or U8"]);
    }
    refused_after(
        |header, _| header[word]["dtype"] = json!("U8"),
        Corrupt,
        &["bundle tensor \"embeddings.word_embeddings.weight\": expected [60, 32] I8, found [60, 32] U8"],
    );
    // A vector of half the length in the same bytes.
    let norm = "embeddings.LayerNorm.weight";
    refused_after(
        |header, _| {
            header[norm]["dtype"] = json!("F16");
            header[norm]["shape"] = json!([64]);
        },
        Corrupt,
        &["bundle tensor \"embeddings.LayerNorm.weight\": expected [32] F32, found [64] F16"],
    );
    // A matrix narrower than the bundle says.
    let wide = Pieces::of(Precision::F16).with(|header, _| header["__metadata__"]["precision"] = json!("f32"));
    let message = refused(
        &wide,
        true,
        Corrupt,
        &["embeddings.word_embeddings.weight\": expected [60, 32] F32, found [60, 32] F16"],
    );
    assert!(message.contains("encoder.layer.1.output.dense.weight"));
}

#[test]
fn tensors_of_another_shape() {
    let dense = "encoder.layer.1.output.dense.weight";
    refused_after(
        |header, _| header[dense]["shape"] = json!([64, 32]),
        Corrupt,
        &["bundle tensor \"encoder.layer.1.output.dense.weight\": expected [32, 64] I8, found [64, 32] I8"],
    );
    refused_after(
        |header, _| header[dense]["shape"] = json!([2048]),
        Corrupt,
        &["bundle tensor \"encoder.layer.1.output.dense.weight\": expected [32, 64] I8, found [2048] I8"],
    );
}

#[test]
fn missing_and_unknown_tensors_are_all_named() {
    refused_after(
        |header, _| {
            rename(header, "classifier.bias", "ampoule.optional.a");
            rename(header, "encoder.layer.0.output.dense.weight.scale", "ampoule.optional.b");
            rename(header, "tokenizer.json", "ampoule.optional.c");
            rename(header, "embeddings.LayerNorm.bias", "ampoule.required.d");
        },
        Corrupt,
        &[
            "missing: ",
            "classifier.bias",
            "encoder.layer.0.output.dense.weight.scale",
            "tokenizer.json",
            "embeddings.LayerNorm.bias",
            "unknown: ampoule.required.d",
        ],
    );
    let append = |name: &'static str| {
        move |header: &mut Value, data: &mut Vec<u8>| {
            header[name] = json!({"dtype": "U8", "shape": [5], "data_offsets": [data.len(), data.len() + 5]});
            data.extend(b"extra");
        }
    };
    refused_after(append("ampoule.required"), Incompatible, &["unknown: ampoule.required", "update ampoule"]);
    refused_after(append("bert.pooler.dense.weight"), Incompatible, &["unknown: bert.pooler.dense.weight"]);
    refused_after(append("classifier.bias.scale"), Incompatible, &["unknown: classifier.bias.scale"]);
    refused_after(
        append("embeddings.position_embeddings.weight.scale"),
        Incompatible,
        &["unknown: embeddings.position"],
    );
    for matrix in ["embeddings.word_embeddings.weight", "classifier.weight", "encoder.layer.0.output.dense.bias"] {
        let name: &'static str = format!("{matrix}.pre_quant_scale").leak();
        refused_after(append(name), Incompatible, &["unknown: ", name]);
    }
    refused_after(
        append("encoder.layer.0.output.dense.weight.pre_quant_scale"),
        Corrupt,
        &["\"encoder.layer.0.output.dense.weight.pre_quant_scale\": expected [64] F32, found [5] U8"],
    );
    let optional = Pieces::of(Precision::Int8).with(append("ampoule.optional.new"));
    assert_eq!(take_all(&Bundle::from_bytes(optional, true).unwrap()).len(), tiny().tensors().len());
}

#[test]
fn a_tokenizer_that_is_empty() {
    refused_after(
        |header, data| {
            let at = header["tokenizer.json"]["data_offsets"][0].as_u64().unwrap();
            assert_eq!(at as usize + TOKENIZER.len(), data.len(), "the tokenizer is last");
            data.truncate(at as usize);
            header["tokenizer.json"] = json!({"dtype": "U8", "shape": [0], "data_offsets": [at, at]});
        },
        Corrupt,
        &["\"tokenizer.json\""],
    );
}

#[test]
fn values_that_no_weight_may_have() {
    for (precision, name, bad, parts) in [
        (Precision::F32, "classifier.weight", f32::NAN.to_le_bytes().to_vec(), "NaN"),
        (Precision::F32, "classifier.bias", f32::INFINITY.to_le_bytes().to_vec(), "inf"),
        (Precision::F32, "classifier.bias", f32::NEG_INFINITY.to_le_bytes().to_vec(), "-inf"),
        (Precision::F16, "classifier.weight", 0x7e00u16.to_le_bytes().to_vec(), "NaN"),
        (Precision::F16, "classifier.weight", 0xfc00u16.to_le_bytes().to_vec(), "-inf"),
        (Precision::Int8, "classifier.weight", vec![0x80], "-128"),
        (Precision::Int8, "classifier.weight.scale", 0f32.to_le_bytes().to_vec(), "found 0"),
        (Precision::Int8, "classifier.weight.scale", (-0.01f32).to_le_bytes().to_vec(), "-0.01"),
        (Precision::Int8, "classifier.weight.scale", f32::NAN.to_le_bytes().to_vec(), "NaN"),
        (Precision::Int8, "classifier.weight.scale", f32::INFINITY.to_le_bytes().to_vec(), "inf"),
        (Precision::Int8, "classifier.weight.scale", f32::MAX.to_le_bytes().to_vec(), "34028"),
        (Precision::Int8, "classifier.weight.scale", 1e-40f32.to_le_bytes().to_vec(), "0.000"),
    ] {
        let pieces = Pieces::of(precision);
        let begin = pieces.range(name).start + bad.len() * 2;
        let bytes = pieces.with(|_, data| data[begin..begin + bad.len()].copy_from_slice(&bad));
        refused(&bytes, false, Corrupt, &[&format!("{name:?}, element 2"), parts]);
        refused(&bytes, true, Corrupt, &[&format!("{name:?}, element 2"), parts]);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = bytes_of(Precision::Int8);
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut random = Random(7);
    let mut random = |n| random.below(n);
    let data_digest = Bundle::from_bytes(bytes.clone(), true).unwrap().info().data_sha256.clone();
    for round in 0..3000 {
        let at = if round % 2 == 0 { random(header_end) } else { header_end + random(bytes.len() - header_end) };
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << random(8);
        let error = Bundle::from_bytes(flipped.clone(), true).unwrap_err();
        if at >= header_end {
            assert_eq!(error.kind(), Corrupt);
            assert!(error.to_string().contains(&data_digest), "{error}");
            // Unverified, it is refused or sound, and nothing else.
            if let Ok(bundle) = Bundle::from_bytes(flipped, false) {
                assert!(take_all(&bundle).values().flatten().all(|x| x.is_finite()));
            }
        } else if let Err(error) = Bundle::from_bytes(flipped, false) {
            assert!(matches!(error.kind(), Corrupt | Incompatible));
        } else {
            panic!("a flipped bit at byte {at} of the header was not found");
        }
    }
}

#[test]
fn damaged_headers_with_a_right_seal_are_refused_or_sound() {
    let pieces = Pieces::of(Precision::Int8);
    let header = pieces.header.to_string().into_bytes();
    let mut random = Random(99);
    let mut random = |n| random.below(n);
    let mut opened = 0;
    for _ in 0..3000 {
        let mut damaged = header.clone();
        for _ in 0..=random(3) {
            let at = random(damaged.len());
            match random(4) {
                0 => damaged[at] ^= 1 << random(8),
                1 => damaged[at] = b"0123456789{}[]\",:\\ u"[random(20)],
                2 => drop(damaged.drain(at..(at + random(12)).min(damaged.len()))),
                _ => {
                    let piece = header[at.min(header.len() - 20)..][..random(20)].to_vec();
                    damaged.splice(at..at, piece);
                }
            }
        }
        let bytes = match std::str::from_utf8(&damaged) {
            Ok(text) => seal_text(text, &pieces.data),
            Err(_) => unsealed(&damaged, &pieces.data),
        };
        let size = bytes.len();
        LARGEST.set(0);
        match Bundle::from_bytes(bytes, false) {
            Ok(bundle) => {
                opened += 1;
                assert_eq!(take_all(&bundle).len(), bundle.config().tensors().len());
            }
            Err(error) => {
                assert!(matches!(error.kind(), Corrupt | Incompatible), "{error}");
                assert!(LARGEST.get() <= size, "{} bytes for a file of {size}: {error}", LARGEST.get());
            }
        }
    }
    assert!(opened > 10, "damage to a licence or a digest goes unnoticed by design, and was not tried");
}
