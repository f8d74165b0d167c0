//! The one model definition: for training and for inference, on every device, in every precision.
//!
//! A [`Model`] is an encoder of the BERT family with at most one head. Its tensors are known by BERT's names, whatever the
//! architecture; [`ModelConfig::tensors`] lists them.

mod attention;
mod config;
mod embeddings;
mod encoder;
#[cfg(feature = "autodiff")]
mod frozen;
#[cfg(feature = "autodiff")]
mod fused;
mod heads;
mod linear;
mod noise;
mod norm;
#[cfg(feature = "wgpu")]
mod on_gpu;
mod packed;
mod weights;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

use self::attention::Padding;
pub use self::config::{MAX_DIMENSION, ModelConfig, ModelType, Task};
use self::embeddings::Embeddings;
use self::encoder::Encoder;
#[cfg(feature = "autodiff")]
pub use self::frozen::{FrozenModel, FrozenOutputs};
#[cfg(feature = "autodiff")]
pub use self::fused::{give_back, release_memory};
use self::heads::Head;
use self::linear::Linear;
pub use self::noise::Noise;
#[cfg(feature = "wgpu")]
pub(crate) use self::on_gpu::{GpuFormat, GpuModel};
pub(crate) use self::packed::{PackedModel, Workers};
#[cfg(feature = "checkpoint")]
pub(crate) use self::weights::check_finite;
use self::weights::transposed;
pub use self::weights::{HostTensor, Int8, Integers, Values, WeightSource, Weights};
use crate::batch::Batch;
use crate::error::{Error, Result};
pub use crate::kernels::Activation;

/// Which of a model's hidden states, `[batch, seq, hidden]`, is [observed](Model::hidden_states).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HiddenState {
    /// What the embeddings give (0), or the layer of this number, from 1.
    Layer(usize),
    /// The queries of the layer of this number, all heads side by side.
    Query(usize),
    /// Its keys.
    Key(usize),
    /// Its values.
    Value(usize),
    /// What the attention block of the layer of this number gives its feed-forward block.
    Attention(usize),
}

impl HiddenState {
    /// The layer, from 1, in which it comes up; 0 for the embeddings.
    pub fn layer(self) -> usize {
        match self {
            HiddenState::Layer(layer)
            | HiddenState::Query(layer)
            | HiddenState::Key(layer)
            | HiddenState::Value(layer)
            | HiddenState::Attention(layer) => layer,
        }
    }
}

/// Sees each [`HiddenState`]; its error ends the computation.
pub type Observe<'a> = dyn FnMut(HiddenState, &Tensor<3>) -> Result<()> + 'a;

/// What is wanted of each sequence of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// The last hidden states, `[tokens, hidden]`.
    States,
    /// The head's logits, `[tokens, labels]` for token classification and `[1, labels]` for text classification.
    Logits,
}

/// An encoder with its head.
#[derive(Module, Debug)]
pub struct Model {
    embeddings: Embeddings,
    embeddings_project: Option<Linear>,
    encoder: Encoder,
    head: Option<Head>,
}

impl Model {
    /// Builds the model that `config` describes from the tensors of `source`.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn load(config: &ModelConfig, source: &mut dyn WeightSource, device: &Device) -> Result<Self> {
        config.validate()?;
        Ok(Model {
            embeddings: Embeddings::load(config, source, device)?,
            embeddings_project: embeddings::load_projection(config, source, device)?,
            encoder: Encoder::load(config, source, device)?,
            head: Head::load(config, source, device)?,
        })
    }

    /// The last hidden states, `[batch, seq, hidden]`.
    ///
    /// `observe` sees every [`HiddenState`], in order. It serves whoever wants the states between, and it may end the computation.
    /// `noise` is there in training alone: without it nothing is dropped.
    ///
    /// # Errors
    /// Those of `observe`.
    pub fn hidden_states(
        &self,
        batch: &Batch,
        device: &Device,
        noise: &mut Option<Noise>,
        observe: &mut Observe,
    ) -> Result<Tensor<3>> {
        let padding = Padding::of(batch, device);
        let mut x = self.embeddings.forward(batch.input_ids(device), noise);
        if let Some(project) = &self.embeddings_project {
            x = project.forward(x);
        }
        observe(HiddenState::Layer(0), &x)?;
        for (layer, number) in self.encoder.layer.iter().zip(1..) {
            x = layer.forward(x, &padding, number, noise, observe)?;
            observe(HiddenState::Layer(number), &x)?;
        }
        Ok(x)
    }

    /// The head's logits over the last hidden states `[batch, seq, hidden]`: `[batch, seq, labels]` for token
    /// classification, `[batch, 1, labels]` for text classification.
    ///
    /// # Errors
    /// [`Incompatible`](crate::ErrorKind::Incompatible) where the model is a bare encoder.
    pub fn logits(&self, hidden: Tensor<3>, noise: &mut Option<Noise>) -> Result<Tensor<3>> {
        match &self.head {
            Some(head) => Ok(head.forward(hidden, noise)),
            None => Err(no_labels()),
        }
    }

    /// The same model, for quantization-aware training: it computes as if its matrices were in int8, and the inputs of the
    /// encoder's too, while gradients pass as if nothing had been rounded (Jacob et al. 2018). Its weights are as they were.
    #[cfg(feature = "autodiff")]
    pub fn fake_quantized(mut self) -> Self {
        use self::linear::Rounded;
        self.embeddings.is_rounded = true;
        let project = self.embeddings_project.iter_mut();
        project.chain(self.encoder.linears()).for_each(|linear| linear.round(Rounded::WeightsAndInputs));
        self.head.iter_mut().flat_map(Head::linears).for_each(|linear| linear.round(Rounded::Weights));
        self
    }

    /// A copy of every tensor, in the files' names and layouts.
    pub fn weights(&self) -> Weights {
        let mut all = BTreeMap::new();
        self.visit(&mut NamedTensors::new(|name: &str, is_linear: bool, shape: Vec<usize>, data: Vec<f32>| {
            let tensor = match (is_linear, shape.as_slice()) {
                (true, &[inputs, outputs]) => {
                    HostTensor { data: transposed(&data, inputs, outputs), shape: vec![outputs, inputs] }
                }
                _ => HostTensor { shape, data },
            };
            all.insert(name.to_owned(), tensor);
        }));
        Weights(all)
    }
}

fn no_labels() -> Error {
    Error::incompatible("this model is a bare encoder and has no labels; train a head on it, or embed texts with it")
}

/// The name under which files know the parameter at `path`, a path of module fields as Burn's visitors give it.
pub fn parameter_name<S: AsRef<str>>(path: &[S]) -> String {
    let mut name = String::new();
    for field in path {
        let field = match field.as_ref() {
            "head" => continue,
            "self_attention" => "self",
            "layer_norm" => "LayerNorm",
            "gamma" => "weight",
            "beta" => "bias",
            other => other,
        };
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(field);
    }
    name
}

/// Reads every tensor with its name and whether it belongs to a [`Linear`].
struct NamedTensors<F> {
    path: Vec<String>,
    containers: Vec<String>,
    read: F,
}

impl<F: FnMut(&str, bool, Vec<usize>, Vec<f32>)> NamedTensors<F> {
    fn new(read: F) -> Self {
        NamedTensors { path: Vec::new(), containers: Vec::new(), read }
    }
}

impl<F: FnMut(&str, bool, Vec<usize>, Vec<f32>)> ModuleVisitor for NamedTensors<F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A parameter's own field is entered as well, so the container of interest is the last but one or the last.
        let is_linear = self.containers.iter().rev().take(2).any(|c| c.ends_with(":Linear"));
        let data = param.val().into_data_as::<f32>();
        let shape = data.shape().to_vec();
        let data = data.try_into_vec::<f32>().unwrap_or_default();
        (self.read)(&parameter_name(&self.path), is_linear, shape, data);
    }
}
