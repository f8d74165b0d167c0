//! A model that answers and is not trained, such as a teacher.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Device, TensorData, Transaction};

use super::config::{ModelConfig, Task};
use super::weights::WeightSource;
use super::{HiddenState, Model, PackedModel, Workers};
use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::Kernel;

/// What a [`FrozenModel`] gives of a sequence.
#[derive(Clone)]
pub struct FrozenOutputs {
    /// `[tokens, labels]` for token classification, `[1, labels]` for text classification; empty for a bare encoder.
    pub logits: Vec<f32>,
    /// `[tokens, hidden]` each.
    pub states: BTreeMap<HiddenState, Vec<f32>>,
}

/// A model that answers and is not trained, in f32: on the processor by the kernels, elsewhere by Burn.
pub struct FrozenModel {
    config: ModelConfig,
    computed: Computed,
}

enum Computed {
    Packed(Box<PackedModel>),
    Composed(Box<Model>, Device),
}

impl FrozenModel {
    /// Builds the model that `config` describes from the tensors of `source`, where `device` is that of
    /// [`training_device`](crate::training_device).
    ///
    /// # Errors
    /// Those of `source`.
    pub fn load(config: &ModelConfig, source: &mut dyn WeightSource, device: &Device) -> Result<Self> {
        if *device != Device::flex() {
            return Self::composed(config, source, device);
        }
        // Where it is the scalar one, that is slow and right.
        let kernel = Kernel::available().next().ok_or_else(|| Error::internal("no kernel is available"))?;
        let computed = Computed::Packed(Box::new(PackedModel::load(config, source, kernel, Workers::Pool)?));
        Ok(FrozenModel { config: config.clone(), computed })
    }

    pub(super) fn composed(config: &ModelConfig, source: &mut dyn WeightSource, device: &Device) -> Result<Self> {
        let computed = Computed::Composed(Box::new(Model::load(config, source, device)?), device.clone());
        Ok(FrozenModel { config: config.clone(), computed })
    }

    /// What it gives of each sequence: its logits, and the hidden states of `wanted` that it has; [`HiddenState::Attention`] is not kept.
    /// On the processor a sequence's values are the same bits whatever else is in the batch, and rayon's current pool computes.
    ///
    /// # Errors
    /// [`DeviceUnavailable`](ErrorKind::DeviceUnavailable) where a GPU fails; nothing else is expected to.
    pub fn compute(&self, batch: &Batch, wanted: &BTreeSet<HiddenState>) -> Result<Vec<FrozenOutputs>> {
        let (model, device) = match &self.computed {
            Computed::Packed(packed) => return packed.observed(batch, wanted),
            Computed::Composed(model, device) => (model, device),
        };
        let (mut names, mut shapes, mut read) = (Vec::new(), Vec::new(), Transaction::default());
        let last = model.hidden_states(batch, device, &mut None, &mut |state, x| {
            if wanted.contains(&state) && !matches!(state, HiddenState::Attention(_)) {
                names.push(state);
                shapes.push(x.dims());
                read = std::mem::take(&mut read).register(x.clone());
            }
            Ok(())
        })?;
        if self.config.task != Task::Encoder {
            let logits = model.logits(last, &mut None)?;
            shapes.push(logits.dims());
            read = read.register(logits);
        }
        // All at once: from a GPU each reading by itself waits for it.
        let read = read.try_execute().map_err(|e| {
            Error::new(ErrorKind::DeviceUnavailable, "the device failed while it computed a teacher's answers")
                .with_source(e)
        })?;
        let read = read.into_iter().zip(shapes).map(|(data, shape)| rows(data, shape, batch));
        let mut read = read.collect::<Result<Vec<_>>>()?.into_iter();
        let empty = FrozenOutputs { logits: Vec::new(), states: BTreeMap::new() };
        let mut outputs = vec![empty; batch.dims()[0]];
        for (state, values) in names.into_iter().zip(read.by_ref()) {
            for (outputs, values) in outputs.iter_mut().zip(values) {
                outputs.states.insert(state, values);
            }
        }
        for (outputs, logits) in outputs.iter_mut().zip(read.flatten()) {
            outputs.logits = logits;
        }
        Ok(outputs)
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
}

/// What a batch's sequences have of `[batch, positions, width]`, padding left out.
fn rows(data: TensorData, [_, positions, width]: [usize; 3], batch: &Batch) -> Result<Vec<Vec<f32>>> {
    let values = data.try_into_vec::<f32>().map_err(|_| Error::internal("a state is no f32"))?;
    let of = |(row, &tokens): (&[f32], &usize)| row[..tokens.min(positions) * width].to_vec();
    Ok(values.chunks((positions * width).max(1)).zip(batch.lengths()).map(of).collect())
}
