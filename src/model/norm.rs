//! Layer norm (Ba et al. 2016) of a residual.

use burn::module::{Module, Param};
use burn::tensor::module::layer_norm;
use burn::tensor::{Device, Tensor};

use super::config::ModelConfig;
#[cfg(feature = "autodiff")]
use super::fused;
use super::linear::load_vector;
use super::noise::dropped;
use super::weights::WeightSource;
use crate::error::Result;
use crate::kernels::Dropout;

/// What normalises, after a residual was added.
#[derive(Module, Debug)]
pub struct Norm {
    /// `[width]`
    pub gamma: Param<Tensor<1>>,
    /// `[width]`
    pub beta: Param<Tensor<1>>,
    epsilon: f64,
}

impl Norm {
    /// Takes `name.weight` and `name.bias`, both `[width]`.
    pub(crate) fn load(
        source: &mut dyn WeightSource,
        name: &str,
        width: usize,
        config: &ModelConfig,
        device: &Device,
    ) -> Result<Self> {
        Ok(Norm {
            gamma: load_vector(source, &format!("{name}.weight"), width, device)?,
            beta: load_vector(source, &format!("{name}.bias"), width, device)?,
            epsilon: config.layer_norm_eps,
        })
    }

    /// The norm of `dropout(x) + residual`, all `[batch, seq, width]`.
    pub(crate) fn forward(&self, x: Tensor<3>, residual: Tensor<3>, dropout: Option<Dropout>) -> Tensor<3> {
        let parameters = [self.gamma.val(), self.beta.val()];
        #[cfg(feature = "autodiff")]
        if let Some(kernel) = fused::kernel(&x) {
            return fused::add_norm(kernel, x, residual, dropout, parameters, self.epsilon);
        }
        let x = match dropout {
            Some(dropout) => dropped(dropout, x),
            None => x,
        };
        let [gamma, beta] = parameters;
        layer_norm(x + residual, gamma, Some(beta), self.epsilon)
    }
}
