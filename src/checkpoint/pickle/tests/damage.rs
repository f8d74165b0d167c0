//! Damaged files: cut, flipped, and made at random. None panics, and none costs more than its size.

use proptest::prelude::*;

use super::*;

fn fixture_bytes() -> Vec<Vec<u8>> {
    ["bert-token-zip", "bert-token-legacy", "bert-token-leftovers", "biobert"]
        .map(|name| std::fs::read(fixture(name).join("pytorch_model.bin")).unwrap())
        .to_vec()
}

#[test]
fn a_file_cut_anywhere_is_corrupt() {
    let root = dict(&[("w", tensor(storage("0", "FloatStorage", 2), 0, &[2], &[1]))]);
    let whole = stream(&root, &[("0", 2, floats([1.0, 2.0]))]);
    for len in 0..whole.len() {
        let error = refusal(&whole[..len]);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {len}: {error}");
        assert!(error.to_string().contains("byte "), "{error}");
    }
    for file in fixture_bytes() {
        for len in (0..file.len()).step_by(331) {
            assert_eq!(refusal(&file[..len]).kind(), ErrorKind::Corrupt, "cut at {len}");
        }
    }
    assert!(refusal(b"version https://git-lfs.github.com/spec/v1\n").to_string().contains("fetch the file again"));
}

#[test]
fn a_zip_of_more_entries_than_tensors_is_refused_before_they_are_read() {
    let mut file = fixture_bytes().swap_remove(0);
    let end = file.windows(4).rposition(|mark| mark == b"PK\x05\x06").unwrap();
    file[end + 8..end + 12].copy_from_slice(&[0x60, 0xEA, 0x60, 0xEA]);
    let error = refusal(&file);
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("60000 entries"), "{error}");
}

/// Reads everything that a damaged file still offers; only its not panicking and its size count.
fn exhaust(file: &[u8]) {
    let Ok(torch) = open(file) else { return };
    for (name, shape) in torch.tensors() {
        if let Ok(numbers) = torch.load_f32(name) {
            assert_eq!(numbers.len(), shape.iter().product::<usize>());
            assert!(numbers.len() <= file.len());
        }
    }
}

/// Where a file is not raw numbers: its pickles, and a ZIP archive's headers.
fn structure_of(file: &[u8]) -> Vec<usize> {
    let near = |mark: &[u8], before: usize, after: usize| -> Vec<usize> {
        let places = file.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark);
        places.flat_map(|(i, _)| i.saturating_sub(before)..(i + after).min(file.len())).collect()
    };
    [
        near(b"_rebuild_tensor_v2", 200, 6_000),
        near(b"PK\x01\x02", 0, 80),
        near(b"PK\x05\x06", 0, 22),
        near(b"PK\x03\x04", 0, 30),
    ]
    .concat()
}

#[test]
fn flipped_bytes_never_panic() {
    let files = fixture_bytes();
    let places: Vec<_> = files.iter().map(|file| structure_of(file)).collect();
    let change = (0..files.len(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4));
    let config = ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |((which, bytes) in change)| {
        let mut file = files[which].clone();
        for (index, byte) in bytes {
            file[*index.get(&places[which])] = byte;
        }
        exhaust(&file);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_as_a_pickle_never_panic(root in prop::collection::vec(any::<u8>(), 0..200)) {
        exhaust(&stream(&root, &[("0", 6, floats([0.0; 6]))]));
    }

    /// Well-formed pieces in any order come further than bytes do.
    #[test]
    fn any_pieces_of_a_pickle_never_panic(pieces in prop::collection::vec(piece(), 0..40)) {
        let root = pieces.concat();
        exhaust(&stream(&root, &[("0", 6, floats([0.0; 6]))]));
        exhaust(&archive(&[("a/data.pkl", &pickle(&root)), ("a/data/0", &[0; 24])]));
    }

    /// A view is read as an oracle of three lines reads it, or refused for reaching beyond its storage.
    #[test]
    fn strided_views_equal_the_definition(
        offset in 0usize..6,
        shape in prop::collection::vec(0usize..4, 0..4),
        strides in prop::collection::vec(0usize..9, 4),
    ) {
        let strides = &strides[..shape.len()];
        let signed = |numbers: &[usize]| numbers.iter().map(|&n| n as i64).collect::<Vec<_>>();
        let mut places = vec![offset];
        for (&size, &stride) in shape.iter().zip(strides) {
            places = places.iter().flat_map(|&p| (0..size).map(move |i| p + i * stride)).collect();
        }
        let view = tensor(storage("0", "FloatStorage", 24), offset as i64, &signed(&shape), &signed(strides));
        let root = dict(&[("w", view)]);
        let file = stream(&root, &[("0", 24, floats((0..24).map(|i| i as f32)))]);
        match open(&file) {
            Ok(torch) => {
                let wanted: Vec<f32> = places.iter().map(|&p| p as f32).collect();
                prop_assert_eq!(torch.load_f32("w").unwrap(), wanted);
            }
            Err(_) => prop_assert!(places.len() > 24 || places.iter().any(|&p| p >= 24)),
        }
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(b"(tu0123sabeNR)]}\x85\x86\x87\x88\x94\x93Q".to_vec()).prop_map(|opcode| vec![opcode]),
        any::<i64>().prop_map(int),
        (0i64..8).prop_map(int),
        prop::sample::select(vec!["w", "storage", "0", "cpu", "state_dict"]).prop_map(text),
        (0u8..4, any::<bool>()).prop_map(|(place, put)| vec![if put { b'q' } else { b'h' }, place]),
        prop::sample::select(vec![
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
            ("torch", "FloatStorage"),
            ("torch", "Size"),
        ])
        .prop_map(|(module, name)| global(module, name)),
        Just(storage("0", "FloatStorage", 6)),
        Just(tensor(storage("0", "FloatStorage", 6), 1, &[2, 2], &[2, 1])),
        Just(text("w")),
    ]
}
