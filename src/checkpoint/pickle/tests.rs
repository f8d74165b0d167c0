//! Files assembled by hand, files that torch wrote (`tests/fixtures/checkpoints.py`), and damaged ones.

mod damage;

use std::io::{Cursor, Write};
use std::path::PathBuf;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::ErrorKind;

// Pieces of pickles

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn int(n: i64) -> Vec<u8> {
    [b"\x8a\x08", n.to_le_bytes().as_slice()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".as_slice(), &items.concat(), b"t"].concat()
}

fn ints(numbers: &[i64]) -> Vec<u8> {
    tuple(&numbers.iter().map(|&n| int(n)).collect::<Vec<_>>())
}

fn global(module: &str, name: &str) -> Vec<u8> {
    format!("c{module}\n{name}\n").into_bytes()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = entries.iter().map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"}(".as_slice(), &items.concat(), b"u"].concat()
}

fn pickle(value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", value, b"."].concat()
}

/// A storage of `count` elements of torch's class `class`.
fn storage(key: &str, class: &str, count: i64) -> Vec<u8> {
    let id = tuple(&[text("storage"), global("torch", class), text(key), text("cpu"), int(count), b"N".to_vec()]);
    [id, b"Q".to_vec()].concat()
}

fn tensor(storage: Vec<u8>, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let arguments = tuple(&[storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), b"}".to_vec()]);
    [global("torch._utils", "_rebuild_tensor_v2"), arguments, b"R".to_vec()].concat()
}

/// A pre-1.6 stream of `root` and storages: key, number of elements, bytes.
fn stream(root: &[u8], storages: &[(&str, i64, Vec<u8>)]) -> Vec<u8> {
    let system = dict(&[("protocol_version", int(1001)), ("little_endian", b"\x88".to_vec())]);
    let keys: Vec<_> = storages.iter().map(|(key, ..)| text(key)).collect();
    let keys = [b"](".as_slice(), &keys.concat(), b"e"].concat();
    let mut file = [MAGIC.to_vec(), pickle(&int(1001)), pickle(&system), pickle(root), pickle(&keys)].concat();
    for (_, count, bytes) in storages {
        file.extend(count.to_le_bytes());
        file.extend(bytes);
    }
    file
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in entries {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn floats(numbers: impl IntoIterator<Item = f32>) -> Vec<u8> {
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

fn open(file: &[u8]) -> Result<TorchFile<Cursor<&[u8]>>> {
    TorchFile::read(Cursor::new(file))
}

fn refusal(file: &[u8]) -> Error {
    match open(file) {
        Ok(_) => panic!("a file that must be refused was read"),
        Err(e) => e,
    }
}

/// The refusal of a stream whose object is `root`.
fn refusal_of(root: &[u8]) -> Error {
    refusal(&stream(root, &[("0", 6, floats([0.0; 6]))]))
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

/// As large as a dimension can be on this machine.
const LARGE: i64 = isize::MAX as i64;

// What is read

#[test]
fn views_of_one_storage_are_gathered() {
    let whole = || storage("0", "FloatStorage", 12);
    let root = dict(&[
        ("contiguous", tensor(whole(), 0, &[3, 4], &[4, 1])),
        ("transposed", tensor(whole(), 0, &[4, 3], &[1, 4])),
        ("column", tensor(whole(), 1, &[3, 1], &[4, 9_000])),
        ("expanded", tensor(whole(), 2, &[2, 2], &[0, 1])),
        ("scalar", tensor(whole(), 11, &[], &[])),
        ("empty", tensor(whole(), 12, &[0, LARGE, LARGE], &[1, 1, 1])),
        ("step", int(7)),
    ]);
    let file = stream(&root, &[("0", 12, floats((0..12).map(|i| i as f32)))]);
    let torch = open(&file).unwrap();
    let numbers = |name| torch.load_f32(name).unwrap();
    assert_eq!(numbers("contiguous"), (0..12).map(|i| i as f32).collect::<Vec<_>>());
    assert_eq!(numbers("transposed"), [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]);
    assert_eq!(numbers("column"), [1., 5., 9.]);
    assert_eq!(numbers("expanded"), [2., 3., 2., 3.]);
    assert_eq!(numbers("scalar"), [11.]);
    assert!(numbers("empty").is_empty());
    assert_eq!(torch.tensors().count(), 6);
    assert_eq!(torch.load_f32("step").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn every_float_type_is_widened_and_integers_are_named() {
    let root = dict(&[
        ("f64", tensor(storage("0", "DoubleStorage", 2), 0, &[2], &[1])),
        ("f16", tensor(storage("1", "HalfStorage", 2), 0, &[2], &[1])),
        ("bf16", tensor(storage("2", "BFloat16Storage", 2), 0, &[2], &[1])),
        ("ids", tensor(storage("3", "LongStorage", 1), 0, &[1], &[1])),
    ]);
    let halves = |a: u16, b: u16| [a.to_le_bytes(), b.to_le_bytes()].concat();
    let file = stream(
        &root,
        &[
            ("0", 2, [1.5f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat()),
            ("1", 2, halves(0x3e00, 0xc000)),
            ("2", 2, halves(0x3fc0, 0xc000)),
            ("3", 1, 5i64.to_le_bytes().to_vec()),
        ],
    );
    let torch = open(&file).unwrap();
    for name in ["f64", "f16", "bf16"] {
        assert_eq!(torch.load_f32(name).unwrap(), [1.5, -2.0], "{name}");
    }
    let error = torch.load_f32("ids").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("\"ids\": expected F32, F16, BF16 or F64, found I64"), "{error}");
}

#[test]
fn a_tensor_of_many_chunks_is_whole() {
    let count = 3 * CHUNK + 17;
    let root = dict(&[("w", tensor(storage("0", "FloatStorage", count as i64), 0, &[count as i64], &[1]))]);
    let numbers: Vec<f32> = (0..count).map(|i| i as f32).collect();
    let file = stream(&root, &[("0", count as i64, floats(numbers.iter().copied()))]);
    assert_eq!(open(&file).unwrap().load_f32("w").unwrap(), numbers);
}

/// Parameters, ordered dicts with their `_metadata`, Python 2's strings and pairs, memo, protocol 4's names.
#[test]
fn what_older_and_newer_writers_say_is_understood() {
    let weight = tensor(storage("0", "FloatStorage", 6), 0, &[2], &[1]);
    let parameter = [
        global("torch._utils", "_rebuild_parameter"),
        tuple(&[weight.clone(), b"\x88".to_vec(), b"}".to_vec()]),
        b"R".to_vec(),
    ]
    .concat();
    let ordered = global("collections", "OrderedDict");
    let modern = [ordered.as_slice(), b")R(", &text("w"), &parameter, b"u}", &text("_metadata"), b"}sb"].concat();
    let python2 = [ordered.as_slice(), b"(](](U\x01w", &weight, b"eetR"].concat();
    let named =
        [b"\x95\0\0\0\0\0\0\0\0\x8c\x0bcollections\x8c\x0bOrderedDict\x93\x94)R\x8c\x01w".as_slice(), &weight, b"s"]
            .concat();
    let remembered = [b"}(".as_slice(), &text("w"), &weight, b"q\x07", &text("tied"), b"h\x07u"].concat();
    let inside = dict(&[("epoch", int(3)), ("optimizer", dict(&[])), ("state_dict", modern.clone())]);
    for root in [modern, python2, named, remembered, inside] {
        let file = stream(&root, &[("0", 6, floats([3.0, 4.0, 0.0, 0.0, 0.0, 0.0]))]);
        let torch = open(&file).unwrap();
        for (name, shape) in torch.tensors() {
            assert_eq!((shape, torch.load_f32(name).unwrap()), ([2].as_slice(), vec![3.0, 4.0]), "{name}");
        }
        assert!(torch.tensors().any(|(name, _)| name == "w"));
    }
}

#[test]
fn a_zip_archive_without_byte_order_is_read_and_a_big_endian_one_is_not() {
    let root = pickle(&dict(&[("w", tensor(storage("0", "FloatStorage", 2), 0, &[2], &[1]))]));
    let data = floats([1.0, 2.0]);
    let entries = [("a/data.pkl", root.as_slice()), ("a/data/0", data.as_slice()), ("a/version", b"3\n")];
    let old = archive(&entries);
    assert_eq!(open(&old).unwrap().load_f32("w").unwrap(), [1.0, 2.0]);

    let big = archive(&[entries.as_slice(), &[("a/byteorder", b"big")]].concat());
    assert!(refusal(&big).to_string().contains("big-endian"));
    let system = pickle(&dict(&[("little_endian", b"\x89".to_vec())]));
    let big = [MAGIC.to_vec(), pickle(&int(1001)), system].concat();
    let error = refusal(&big);
    assert!(error.kind() == ErrorKind::Incompatible && error.to_string().contains("big-endian"), "{error}");

    let missing = refusal(&archive(&entries[..1]));
    assert!(missing.to_string().contains("\"a/data/0\" is missing"), "{missing}");
    let short = refusal(&archive(&[entries[0], ("a/data/0", &data[1..])]));
    assert!(short.to_string().contains("expected 2 elements of F32, found 7 bytes"), "{short}");
    let two = refusal(&archive(&[entries.as_slice(), &[("b/data.pkl", b"N.")]].concat()));
    assert!(two.to_string().contains("one `data.pkl`"), "{two}");

    // Deflate's number in the headers of the first entry, local and central.
    let mut packed = old.clone();
    let central = packed.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    packed[8] = 8;
    packed[central + 10] = 8;
    let error = refusal(&packed);
    assert!(error.kind() == ErrorKind::Incompatible && error.to_string().contains("compressed"), "{error}");
}

/// All layouts of the model `bert-token` hold its numbers, to the bit.
#[test]
fn files_of_torch_hold_what_the_safetensors_file_holds() {
    let bytes = std::fs::read(fixture("bert-token/model.safetensors")).unwrap();
    let wanted = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own_name = |name: &str| {
        let name = name.strip_prefix("module.").unwrap_or(name);
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    };
    for files in [
        ["bert-token-zip/pytorch_model.bin"].as_slice(),
        &["bert-token-legacy/pytorch_model.bin"],
        &["bert-token-module/pytorch_model.bin"],
        &["bert-token-leftovers/pytorch_model.bin"],
        &[
            "bert-token-sharded-bin/pytorch_model-00001-of-00002.bin",
            "bert-token-sharded-bin/pytorch_model-00002-of-00002.bin",
        ],
    ] {
        let mut found = 0;
        for file in files {
            let torch = TorchFile::open(&fixture(file)).unwrap();
            for (name, shape) in torch.tensors() {
                let Ok(tensor) = wanted.tensor(&own_name(name)) else { continue };
                assert_eq!(shape, tensor.shape(), "{file} {name}");
                assert_eq!(floats(torch.load_f32(name).unwrap()), tensor.data(), "{file} {name}");
                found += 1;
            }
        }
        assert_eq!(found, wanted.len(), "{files:?}");
    }
}

#[test]
fn left_over_heads_tied_weights_and_buffers_are_listed() {
    for (file, prefix) in [("bert-token-leftovers", "bert."), ("biobert", "bert.")] {
        let torch = TorchFile::open(&fixture(file).join("pytorch_model.bin")).unwrap();
        let word = torch.load_f32(&format!("{prefix}embeddings.word_embeddings.weight")).unwrap();
        assert_eq!(word, torch.load_f32("cls.predictions.decoder.weight").unwrap(), "{file}");
        assert!(torch.tensors().any(|(name, _)| name == "cls.seq_relationship.bias"), "{file}");
    }
    let torch = TorchFile::open(&fixture("bert-token-leftovers/pytorch_model.bin")).unwrap();
    let ids = "bert.embeddings.position_ids";
    assert!(torch.tensors().any(|(name, shape)| name == ids && shape == [1, 64]));
    assert_eq!(torch.load_f32(ids).unwrap_err().kind(), ErrorKind::Incompatible);
}

// What is refused

#[test]
fn a_pickle_that_names_anything_else_is_refused_by_that_name() {
    let command = [text("touch /tmp/owned"), b"\x85R".to_vec()].concat();
    for (module, name) in [
        ("posix", "system"),
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch", "ComplexFloatStorage"),
        ("transformers.modeling_bert", "BertModel"),
    ] {
        let by_line = [global(module, name), command.clone()].concat();
        let by_stack = [text(module), text(name), b"\x93".to_vec(), command.clone()].concat();
        let beside = dict(&[("w", tensor(storage("0", "FloatStorage", 6), 0, &[6], &[1])), ("x", by_line.clone())]);
        for root in [by_line, by_stack, beside] {
            for error in
                [refusal_of(&root), refusal(&archive(&[("a/data.pkl", &pickle(&root)), ("a/data/0", &[0; 24])]))]
            {
                assert_eq!(error.kind(), ErrorKind::Incompatible);
                assert!(error.to_string().contains(&format!("`{module}.{name}`")), "{error}");
            }
        }
    }
}

#[test]
fn opcodes_that_make_or_call_objects_are_refused() {
    // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, EXT2, EXT4, PERSID, NEXT_BUFFER, and a number that is no opcode.
    for opcode in [b'i', b'o', 0x81, 0x92, 0x82, 0x83, 0x84, b'P', 0x97, 0xff] {
        let error = refusal_of(&[b"(".as_slice(), &text("posix"), &[opcode], b"posix\nsystem\n)R"].concat());
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert!(error.to_string().contains(&format!("opcode 0x{opcode:02x} is refused")), "{error}");
    }
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    for (offset, shape, strides) in [
        (0, [7].as_slice(), [1].as_slice()),
        (1, &[6], &[1]),
        (0, &[2, 3], &[4, 1]),
        (0, &[3, 3], &[1, 0]),
        (LARGE, &[1], &[1]),
        (0, &[2], &[LARGE]),
        (0, &[LARGE, LARGE], &[0, 0]),
        (7, &[0], &[1]),
    ] {
        let error = refusal_of(&dict(&[("w", tensor(storage("0", "FloatStorage", 6), offset, shape, strides))]));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("tensor \"w\": shape"), "{error}");
    }
    for (offset, shape, strides) in
        [(-1, [1].as_slice(), [1].as_slice()), (0, &[-1], &[1]), (0, &[1], &[-1]), (0, &[1, 1], &[1])]
    {
        let error = refusal_of(&dict(&[("w", tensor(storage("0", "FloatStorage", 6), offset, shape, strides))]));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    for count in [7, i64::MAX, -1] {
        let root = dict(&[("w", tensor(storage("0", "FloatStorage", count), 0, &[1], &[1]))]);
        assert_eq!(refusal_of(&root).kind(), ErrorKind::Corrupt);
        let claimed = refusal(&stream(&root, &[("0", count, floats([0.0; 6]))]));
        assert_eq!(claimed.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn storages_must_all_be_there_and_of_one_kind() {
    let weight = |class| tensor(storage("0", class, 1), 0, &[1], &[1]);
    let root = dict(&[("w", weight("FloatStorage"))]);
    let one = || ("0", 1, floats([1.0]));
    assert!(open(&stream(&root, &[one()])).is_ok());
    for storages in [vec![], vec![one(), one()], vec![one(), ("1", 1, floats([1.0]))]] {
        assert_eq!(refusal(&stream(&root, &storages)).kind(), ErrorKind::Corrupt);
    }
    let both = dict(&[("w", weight("FloatStorage")), ("v", weight("LongStorage"))]);
    assert!(refusal(&stream(&both, &[one()])).to_string().contains("one type and one size"));
    let twice = dict(&[("w", weight("FloatStorage")), ("w", weight("FloatStorage"))]);
    assert!(refusal(&stream(&twice, &[one()])).to_string().contains("tensor \"w\" is there twice"));
    for root in [int(1), dict(&[]), dict(&[("epoch", int(1))])] {
        assert_eq!(refusal(&stream(&root, &[])).kind(), ErrorKind::Incompatible);
    }
    assert_eq!(refusal(&stream(&weight("FloatStorage"), &[one()])).kind(), ErrorKind::Incompatible);
}

/// Every one of these is a few bytes, or a few megabytes, that ask for far more.
#[test]
fn bombs_are_refused() {
    let repeated = |piece: &[u8]| piece.repeat((3 << 20) / piece.len());
    let mut bombs = vec![
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec(),
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\x96\x00\x00\x00\x00\x00\x01\x00\x00".to_vec(),
        b"\x8b\xff\xff\xff\x7f".to_vec(),
        b"X\xff\xff\xff\xff".to_vec(),
        b"T\xff\xff\xff\x7f".to_vec(),
        b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff".to_vec(),
        [b"c".as_slice(), &[b'a'; 1 << 20]].concat(),
    ];
    // Values, marks, memo entries; nesting without end; a list that is copied over and over; a list inside itself.
    for piece in [b")".as_slice(), b"]", b"}", b"(", b"N", b"N\x94", b"2"] {
        bombs.push([b")".as_slice(), &repeated(piece)].concat());
    }
    bombs.push([b")".as_slice(), &repeated(b"\x85")].concat());
    bombs.push([b"]".as_slice(), &repeated(b"2a")].concat());
    let pairs =
        [b"](".as_slice(), &b"NN\x86".repeat(10_000), b"eq\x00", &global("collections", "OrderedDict"), b"q\x01"]
            .concat();
    bombs.push([pairs.as_slice(), &b"h\x01h\x00\x85R".repeat(10_000)].concat());
    for bomb in bombs {
        let error = refusal_of(&bomb);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("byte "), "{error}");
    }
    // Deep nesting within the budget is read, and costs no stack when it is dropped.
    let nested = [b")".as_slice(), &b"\x85".repeat(15_000), b"0"].concat();
    let root = [nested, dict(&[("w", tensor(storage("0", "FloatStorage", 6), 0, &[6], &[1]))])].concat();
    assert!(open(&stream(&root, &[("0", 6, floats([0.0; 6]))])).is_ok());
}

#[test]
fn a_stack_that_runs_dry_is_damage() {
    for root in [
        b"".as_slice(),
        b"0",
        b"1",
        b"t",
        b"(\x85",
        b"NR",
        b"))R",
        b"Nb",
        b"NNs",
        b"]Na0a",
        b"}(Nu",
        b"h\x00",
        b"NQ",
        b"NN\x93",
    ] {
        let error = refusal_of(root);
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible), "{error}");
        assert!(error.to_string().contains("byte "), "{error}");
    }
}
