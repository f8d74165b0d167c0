//! A student's beginning: some of its teacher's layers.

use ampoule::{Checkpoint, Error, Result};

/// A student of the teacher's `layers`, counted from 1, with its embeddings and head (as DistilBERT began; Sanh et al. 2019),
/// and the pairs of student and teacher states that then belong together.
///
/// # Errors
/// [`InvalidInput`](ampoule::ErrorKind::InvalidInput) where a layer is not there or they are not rising.
pub fn student_from_layers(teacher: &Checkpoint, layers: &[usize]) -> Result<(Checkpoint, Vec<(usize, usize)>)> {
    let most = teacher.config.num_hidden_layers;
    let is_rising = layers.windows(2).all(|pair| pair[0] < pair[1]);
    if layers.is_empty() || !is_rising || layers[0] == 0 || layers.iter().any(|&l| l > most) {
        return Err(Error::invalid_input(format!(
            "layers {layers:?}: expected rising numbers in 1..={most}, the teacher's layers"
        )));
    }
    let mut student = teacher.clone();
    student.config.num_hidden_layers = layers.len();
    let mut weights = std::mem::take(&mut student.weights.0);
    for (to, from) in layers.iter().enumerate() {
        let (to, from) = (format!("encoder.layer.{to}."), format!("encoder.layer.{}.", from - 1));
        for (name, tensor) in teacher.weights.0.range(from.clone()..) {
            let Some(rest) = name.strip_prefix(&from) else { break };
            weights.insert(format!("{to}{rest}"), tensor.clone());
        }
    }
    let wanted: std::collections::BTreeSet<String> =
        student.config.tensors().into_iter().map(|(name, _)| name).collect();
    weights.retain(|name, _| wanted.contains(name));
    student.weights.0 = weights;
    let layer_map = layers.iter().enumerate().map(|(to, &from)| (to + 1, from)).collect();
    Ok((student, layer_map))
}
