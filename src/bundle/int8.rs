//! The integer contract of the [format](super), for weights.

/// The longest row of an 8-bit matrix: the sum of as many products of at most 127² fits an i32, and that of as many integers of at
/// most 127 is exact in f32.
pub const MAX_INNER: usize = 1 << 17;

/// Quantizes a matrix `[rows, columns]`, row-major, to integers in -127..=127 and a scale a row, as the
/// [integer contract](super#the-integer-contract) says. Values have to be finite.
pub fn quantize_rows(data: &[f32], columns: usize) -> (Vec<i8>, Vec<f32>) {
    let mut integers = Vec::with_capacity(data.len());
    let mut scales = Vec::with_capacity(data.len() / columns.max(1));
    for row in data.chunks(columns.max(1)) {
        let scale = row_scale(row);
        scales.push(scale);
        integers.extend(quantize(row, scale));
    }
    (integers, scales)
}

/// The values `[rows, columns]` that integers and one scale a row stand for.
pub fn dequantize_rows(integers: &[i8], scales: &[f32]) -> Vec<f32> {
    let columns = (integers.len() / scales.len().max(1)).max(1);
    let mut data = Vec::with_capacity(integers.len());
    for (row, &scale) in integers.chunks(columns).zip(scales) {
        data.extend(row.iter().map(|&q| f32::from(q) * scale));
    }
    data
}

/// The scale of a row: `max|x| / 127`, or 1 where that is no normal number.
pub(super) fn row_scale(row: &[f32]) -> f32 {
    let scale = row.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
    if scale >= f32::MIN_POSITIVE { scale } else { 1.0 }
}

/// The integers of a row of this scale. The largest magnitude comes to 127 and a few units in the last place, so nothing is over it.
pub(super) fn quantize(row: &[f32], scale: f32) -> impl Iterator<Item = i8> {
    let by = 1.0 / scale;
    row.iter().map(move |x| (x * by).round_ties_even() as i8)
}

/// Whether a file may hold this scale: normal, positive, and no weight under it overflows.
pub(super) fn is_scale(scale: f32) -> bool {
    scale >= f32::MIN_POSITIVE && (scale * 127.0).is_finite()
}

/// The matrices that meet the same inputs as the encoder's matrix `name`, itself among them: they have the same `pre_quant_scale`, or
/// none.
pub fn with_same_inputs(name: &str) -> Vec<String> {
    match name.rsplit_once(".self.") {
        Some((attention, _)) => {
            ["query", "key", "value"].map(|part| format!("{attention}.self.{part}.weight")).to_vec()
        }
        None => vec![name.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `x * (1 / scale)` to the nearest integer, halves to even, by comparing instead of rounding.
    fn nearest(x: f32, scale: f32) -> i8 {
        let quotient = f64::from(x * (1.0 / scale));
        let distance = |q: i32| (quotient - f64::from(q)).abs();
        (-127..=127)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).abs().cmp(&(b % 2).abs())))
            .unwrap() as i8
    }

    #[test]
    fn a_row_of_known_integers() {
        // Scale 1: halves go to the even neighbour.
        let (q, scales) = quantize_rows(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0, 126.5], 8);
        assert_eq!((q, scales), (vec![127, 0, 2, 2, 0, -2, -127, 126], vec![1.0]));
        for zeros in [[0.0, -0.0], [1e-45, -1e-40]] {
            assert_eq!(quantize_rows(&zeros, 2), (vec![0, 0], vec![1.0]));
        }
        let (q, scales) = quantize_rows(&[f32::MAX / 2.0, f32::MAX / -2.0], 2);
        assert_eq!(q, [127, -127]);
        assert!(is_scale(scales[0]) && dequantize_rows(&q, &scales).iter().all(|x| x.is_finite()));
    }

    #[test]
    fn the_longest_row_cannot_overflow() {
        assert!(127 * 127 * MAX_INNER as i64 <= i64::from(i32::MAX) && 127 * MAX_INNER < 1 << f32::MANTISSA_DIGITS);
    }

    proptest! {
        #[test]
        fn every_integer_is_the_nearest(
            rows in prop::collection::vec(prop::collection::vec(-3.0f32..3.0, 5), 1..6),
            exponent in -100i32..100,
        ) {
            let data: Vec<f32> = rows.concat().iter().map(|x| x * 2f32.powi(exponent)).collect();
            let (q, scales) = quantize_rows(&data, 5);
            prop_assert_eq!((q.len(), scales.len()), (data.len(), rows.len()));
            let back = dequantize_rows(&q, &scales);
            for (i, &x) in data.iter().enumerate() {
                let scale = scales[i / 5];
                prop_assert!(is_scale(scale));
                prop_assert_eq!(q[i], nearest(x, scale));
                prop_assert!((x - back[i]).abs() <= 0.5001 * scale);
            }
            for row in q.chunks(5) {
                prop_assert!(row.iter().any(|q| q.abs() == 127) || row.iter().all(|&q| q == 0));
            }
        }
    }
}
