//! Sequences of different lengths as one rectangle.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// Token ids of several sequences, padded on the right to the longest.
#[derive(Clone)]
pub struct Batch {
    input_ids: Vec<i32>,
    lengths: Vec<usize>,
    seq: usize,
}

impl std::fmt::Debug for Batch {
    // Ids are the note itself.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Batch([{}, {}])", self.lengths.len(), self.seq)
    }
}

/// What is added to the attention scores of padding. The softmax of anything this far below the rest is zero in f32 and
/// f16 alike.
const MASKED: f32 = -30_000.0;

impl Batch {
    /// Pads `sequences` (special tokens included) with `pad_token_id`.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S], pad_token_id: usize) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|s| s.as_ref().len()).collect();
        let seq = lengths.iter().copied().max().unwrap_or(0);
        let mut input_ids = vec![pad_token_id as i32; seq * lengths.len()];
        for (row, sequence) in input_ids.chunks_mut(seq.max(1)).zip(sequences) {
            for (slot, &id) in row.iter_mut().zip(sequence.as_ref()) {
                *slot = id as i32;
            }
        }
        Batch { input_ids, lengths, seq }
    }

    /// Some of its sequences, padded as they are.
    #[cfg(any(feature = "wgpu", all(test, feature = "flex")))]
    pub(crate) fn rows(&self, rows: std::ops::Range<usize>) -> Batch {
        let input_ids = self.input_ids[rows.start * self.seq..rows.end * self.seq].to_vec();
        Batch { input_ids, lengths: self.lengths[rows].to_vec(), seq: self.seq }
    }

    /// Number of tokens of each sequence, without padding.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// `[batch, seq]`
    pub fn dims(&self) -> [usize; 2] {
        [self.lengths.len(), self.seq]
    }

    /// The id of each token with its place in its sequence, sequence by sequence, without padding.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = (usize, usize)> {
        let sequences = self.input_ids.chunks(self.seq.max(1)).zip(&self.lengths);
        sequences.flat_map(|(ids, &n)| ids[..n].iter().enumerate().map(|(at, &id)| (id as usize, at)))
    }

    /// The ids that occur in `batches`, that of padding too, rising.
    #[cfg(feature = "autodiff")]
    pub fn distinct_ids<'b>(batches: impl Iterator<Item = &'b Batch>) -> Vec<i32> {
        let mut ids: Vec<i32> = batches.flat_map(|batch| batch.input_ids.iter().copied()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The batch with each id's place among `ids`, of which all are: what a model reads that has the embeddings of these rows alone.
    #[cfg(feature = "autodiff")]
    pub fn renumbered(&self, ids: &[i32]) -> Batch {
        let place = |id: &i32| {
            let place = ids.partition_point(|other| other < id);
            debug_assert_eq!(ids.get(place), Some(id));
            place as i32
        };
        Batch { input_ids: self.input_ids.iter().map(place).collect(), ..self.clone() }
    }

    /// `[batch, seq]`
    pub(crate) fn input_ids(&self, device: &Device) -> Tensor<2, Int> {
        let data = TensorData::new(self.input_ids.clone(), [self.lengths.len(), self.seq]);
        Tensor::from_data(data, device)
    }

    /// What is added to attention scores, `[batch, 1, 1, seq]`; none where nothing is padded.
    pub(crate) fn score_mask(&self, device: &Device) -> Option<Tensor<4>> {
        if self.lengths.iter().all(|&n| n == self.seq) {
            return None;
        }
        let mask: Vec<f32> =
            self.lengths.iter().flat_map(|&n| (0..self.seq).map(move |i| if i < n { 0.0 } else { MASKED })).collect();
        let data = TensorData::new(mask, [self.lengths.len(), 1, 1, self.seq]);
        Some(Tensor::from_data(data, device))
    }

    /// 1 for a token and 0 for padding, `[batch, seq]`.
    pub fn attention_mask(&self, device: &Device) -> Tensor<2> {
        let mask: Vec<f32> =
            self.lengths.iter().flat_map(|&n| (0..self.seq).map(move |i| f32::from(u8::from(i < n)))).collect();
        Tensor::from_data(TensorData::new(mask, [self.lengths.len(), self.seq]), device)
    }
}
