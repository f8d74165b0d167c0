//! Operations of training whose ways back are written by hand, on the processor. Composed of Burn's, each would be a dozen passes over
//! memory that is allocated for it.
//!
//! Where [`kernel`] has none, for tensors of another back end or without autodiff, and on processors without a kernel, the model composes
//! them of Burn's. That is the definition; `fused/tests.rs` holds these to it.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, GradientCheckpointingStrategy, TensorMetadata};
use burn::tensor::{Device, Tensor, TensorData};

use crate::kernels::{Dropout, Heads, Kernel, Scratch, multiply};

type Tracked = FloatTensor<Autodiff<Flex>>;

/// The kernel, where `x` is a tensor for it.
pub(super) fn kernel<const D: usize>(x: &Tensor<D>) -> Option<Kernel> {
    let device = x.device();
    let keeps_all = device.gradient_checkpointing_strategy() == Some(GradientCheckpointingStrategy::Disabled);
    if keeps_all && device == Device::flex() { Kernel::candidates().next() } else { None }
}

fn tracked<const D: usize>(x: Tensor<D>) -> (FlexTensor, NodeGuard) {
    let x: Tracked = x.try_into_primitive::<Autodiff<Flex>>().expect("tensors of one device, as Burn demands too");
    x.into_parts()
}

fn tensor<const D: usize>(tracked: Tracked) -> Tensor<D> {
    Tensor::from_primitive::<Autodiff<Flex>>(tracked)
}

/// Puts an operation into the graph.
fn recorded<const N: usize, B>(operation: B, nodes: [NodeGuard; N], state: B::State, out: FlexTensor) -> Tracked
where
    B: Backward<Flex, N>,
{
    match operation.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state, out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    }
}

/// `[x W1 + b1, x W2 + b2, ..]` side by side, and gelu of that if asked for: `x` `[.., in]`, each weight `[in, out]` -> `[.., outs]`. `N`
/// is the number of all tensors: one, and two a weight.
pub(super) fn linear<const D: usize, const N: usize>(
    kernel: Kernel,
    x: Tensor<D>,
    parts: Vec<(Tensor<2>, Tensor<1>)>,
    with_gelu: bool,
) -> Tensor<D> {
    let mut shape = x.dims();
    let (x, x_node) = tracked(x);
    let x = x.to_contiguous();
    let (mut nodes, mut weights, mut bias) = (vec![x_node], Vec::new(), Vec::new());
    for (weight, b) in parts {
        let ((weight, weight_node), (b, bias_node)) = (tracked(weight), tracked(b));
        nodes.extend([weight_node, bias_node]);
        weights.push(weight.to_contiguous());
        bias.extend_from_slice(values(&b.to_contiguous()));
    }
    let (inputs, outputs) = (shape[D - 1], bias.len());
    let rows = x.shape().num_elements() / inputs.max(1);
    let mut out = take(rows * outputs);
    for (first, n, weight) in columns(&weights) {
        let to = (&mut out[first..], outputs);
        multiply([rows, n, inputs], (values(&x), [inputs, 1]), (values(weight), [n, 1]), to, false);
    }
    let mut slopes = with_gelu.then(|| take(out.len()));
    kernel.add_bias(&mut out, &bias, slopes.as_deref_mut());
    shape[D - 1] = outputs;
    let slopes = slopes.map(|slopes| from_vec(slopes, shape));
    let state = LinearState { kernel, x, weights, slopes, outputs };
    let nodes: [NodeGuard; N] = nodes.try_into().expect("N is the number of tensors");
    tensor(recorded(Linear, nodes, state, from_vec(out, shape)))
}

/// Where the columns of each weight begin, how many they are, and the weight.
fn columns(weights: &[FlexTensor]) -> impl Iterator<Item = (usize, usize, &FlexTensor)> {
    let mut next = 0;
    weights.iter().map(move |weight| {
        let n = weight.shape()[1];
        next += n;
        (next - n, n, weight)
    })
}

#[derive(Debug)]
struct Linear;

#[derive(Clone, Debug)]
struct LinearState {
    kernel: Kernel,
    x: FlexTensor,
    weights: Vec<FlexTensor>,
    slopes: Option<FlexTensor>,
    outputs: usize,
}

impl<const N: usize> Backward<Flex, N> for Linear {
    type State = LinearState;

    fn backward(self, ops: Ops<LinearState, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let LinearState { kernel, x, weights, slopes, outputs } = ops.state;
        let mut gradient = into_vec(gradients.consume::<Flex>(&ops.node));
        let mut of_bias = vec![0.0; outputs];
        kernel.bias_gradient(&mut gradient, slopes.as_ref().map(values), &mut of_bias);
        let shape = x.shape();
        let inputs = shape[shape.num_dims() - 1];
        let rows = gradient.len() / outputs;
        if let Some(node) = &ops.parents[0] {
            let mut of_x = take(rows * inputs);
            for (first, n, weight) in columns(&weights) {
                let by = (&gradient[first..], [outputs, 1]);
                multiply([rows, inputs, n], by, (values(weight), [1, n]), (&mut of_x, inputs), first > 0);
            }
            gradients.register::<Flex>(node.id, from_vec(of_x, shape));
        }
        for ((first, n, _), nodes) in columns(&weights).zip(ops.parents[1..].chunks(2)) {
            if let Some(node) = &nodes[0] {
                let mut of_weight = take(inputs * n);
                let by = (&gradient[first..], [outputs, 1]);
                multiply([inputs, n, rows], (values(&x), [1, inputs]), by, (&mut of_weight, n), false);
                gradients.register::<Flex>(node.id, from_vec(of_weight, [inputs, n]));
            }
            if let Some(node) = &nodes[1] {
                gradients.register::<Flex>(node.id, from_vec(of_bias[first..first + n].to_vec(), [n]));
            }
        }
        give_back(gradient);
        slopes.into_iter().chain([x]).for_each(give_back_unique);
    }
}

/// Zeroes values as `dropout` says, row by row along the last dimension.
pub(super) fn drop<const D: usize>(kernel: Kernel, x: Tensor<D>, dropout: Dropout) -> Tensor<D> {
    let (shape, width) = (x.dims(), x.dims()[D - 1]);
    let (x, node) = tracked(x);
    let mut x = into_vec(x);
    kernel.drop(&mut x, width, dropout);
    tensor(recorded(Drop, [node], (kernel, dropout), from_vec(x, shape)))
}

#[derive(Debug)]
struct Drop;

impl Backward<Flex, 1> for Drop {
    type State = (Kernel, Dropout);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (kernel, dropout) = ops.state;
        let gradient = gradients.consume::<Flex>(&ops.node);
        let shape = gradient.shape();
        if let [Some(node)] = &ops.parents {
            let mut gradient = into_vec(gradient);
            kernel.drop(&mut gradient, shape[shape.num_dims() - 1], dropout);
            gradients.register::<Flex>(node.id, from_vec(gradient, shape));
        }
    }
}

/// The layer norm of `dropout(x) + residual`, all `[batch, seq, hidden]`.
pub(super) fn add_norm(
    kernel: Kernel,
    x: Tensor<3>,
    residual: Tensor<3>,
    dropout: Option<Dropout>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
) -> Tensor<3> {
    let shape = x.dims();
    let (x, x_node) = tracked(x);
    let (residual, residual_node) = tracked(residual);
    let (gamma, gamma_node) = tracked(gamma);
    let (beta, beta_node) = tracked(beta);
    let (residual, gamma, beta) = (residual.to_contiguous(), gamma.to_contiguous(), beta.to_contiguous());
    let mut x = into_vec(x);
    let (mut scales, mut out) = (vec![0.0; shape[0] * shape[1]], take(x.len()));
    let parameters = [values(&gamma), values(&beta)];
    let epsilon = epsilon as f32;
    kernel.add_norm_in_training(&mut x, values(&residual), dropout, parameters, epsilon, &mut scales, &mut out);
    let state = AddNormState {
        kernel,
        normalized: from_vec(x, shape),
        scales: from_vec(scales, [shape[0] * shape[1]]),
        gamma,
        dropout,
    };
    let nodes = [x_node, residual_node, gamma_node, beta_node];
    tensor(recorded(AddNorm, nodes, state, from_vec(out, shape)))
}

#[derive(Debug)]
struct AddNorm;

#[derive(Clone, Debug)]
struct AddNormState {
    kernel: Kernel,
    normalized: FlexTensor,
    scales: FlexTensor,
    gamma: FlexTensor,
    dropout: Option<Dropout>,
}

impl Backward<Flex, 4> for AddNorm {
    type State = AddNormState;

    fn backward(self, ops: Ops<AddNormState, 4>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let AddNormState { kernel, normalized, scales, gamma, dropout } = ops.state;
        let [x, residual, gamma_node, beta_node] = &ops.parents;
        let (shape, width) = (normalized.shape(), gamma.shape());
        let mut of_residual = into_vec(gradients.consume::<Flex>(&ops.node));
        let mut of_x = into_vec(normalized);
        let (mut of_gamma, mut of_beta) = (vec![0.0; width.num_elements()], vec![0.0; width.num_elements()]);
        kernel.add_norm_gradient(
            &mut of_residual,
            &mut of_x,
            values(&scales),
            dropout,
            values(&gamma),
            [&mut of_gamma, &mut of_beta],
        );
        let of_residual = from_vec(of_residual, shape.clone());
        let of_x = match dropout {
            Some(_) => from_vec(of_x, shape),
            None => {
                give_back(of_x);
                of_residual.clone()
            }
        };
        for (node, gradient) in [(x, of_x), (residual, of_residual)] {
            match node {
                Some(node) => gradients.register::<Flex>(node.id, gradient),
                None => give_back_unique(gradient),
            }
        }
        for (node, gradient) in [(gamma_node, of_gamma), (beta_node, of_beta)] {
            if let Some(node) = node {
                gradients.register::<Flex>(node.id, from_vec(gradient, width.clone()));
            }
        }
    }
}

/// Multi-head attention: `qkv` `[batch, seq, 3 * hidden]` -> `[batch, seq, hidden]`. The first of each sequence's tokens, as many as
/// `lengths` says, are attended to.
pub(super) fn attention(
    kernel: Kernel,
    qkv: Tensor<3>,
    heads: usize,
    lengths: &[usize],
    dropout: Option<Dropout>,
) -> Tensor<3> {
    let [batch, seq, hidden] = qkv.dims();
    let hidden = hidden / 3;
    let (qkv, node) = tracked(qkv);
    let qkv = qkv.to_contiguous();
    let (mut kept, mut out) = (take(2 * batch * seq * heads), take(batch * seq * hidden));
    let of = Heads { seq, hidden, heads, lengths, dropout };
    SCRATCH.with_borrow_mut(|scratch| kernel.attend_in_training(values(&qkv), of, scratch, &mut kept, &mut out));
    let kept = from_vec(kept, [batch, heads, seq, 2]);
    let state = AttentionState { kernel, qkv, kept, heads, lengths: lengths.to_vec(), dropout };
    tensor(recorded(Attention, [node], state, from_vec(out, [batch, seq, hidden])))
}

#[derive(Debug)]
struct Attention;

#[derive(Clone, Debug)]
struct AttentionState {
    kernel: Kernel,
    qkv: FlexTensor,
    kept: FlexTensor,
    heads: usize,
    lengths: Vec<usize>,
    dropout: Option<Dropout>,
}

impl Backward<Flex, 1> for Attention {
    type State = AttentionState;

    fn backward(self, ops: Ops<AttentionState, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let AttentionState { kernel, qkv, kept, heads, lengths, dropout } = ops.state;
        let gradient = into_vec(gradients.consume::<Flex>(&ops.node));
        let shape = qkv.shape();
        let of = Heads { seq: shape[1], hidden: shape[2] / 3, heads, lengths: &lengths, dropout };
        let mut qkv = into_vec(qkv);
        SCRATCH.with_borrow_mut(|scratch| kernel.attend_gradient(&mut qkv, of, values(&kept), &gradient, scratch));
        match &ops.parents {
            [Some(node)] => gradients.register::<Flex>(node.id, from_vec(qkv, shape)),
            [None] => give_back(qkv),
        }
        give_back(gradient);
        give_back_unique(kept);
    }
}

fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().unwrap_or_default()
}

fn from_vec(values: Vec<f32>, shape: impl Into<burn::tensor::Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// Without a copy where no other tensor has the values.
fn into_vec(tensor: FlexTensor) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap_or_default()
}

/// Memory for the next operation, and the next step. The system would take tensors of megabytes back, and clear them page by page.
struct Space {
    free: Vec<Vec<f32>>,
    /// How often memory was taken, less how often it was given back.
    taken: usize,
}

static SPACE: Mutex<Space> = Mutex::new(Space { free: Vec::new(), taken: 0 });

/// Of fewer values it does not pay.
const SMALL: usize = 1 << 12;

/// `len` values, whichever.
fn take(len: usize) -> Vec<f32> {
    if len < SMALL {
        return vec![0.0; len];
    }
    let mut space = SPACE.lock().unwrap_or_else(PoisonError::into_inner);
    space.taken += 1;
    let sizes = || space.free.iter().map(Vec::capacity).enumerate();
    let best = sizes().filter(|&(_, size)| size >= len).min_by_key(|&(_, size)| size);
    let most = sizes().max_by_key(|&(_, size)| size);
    match (best, most) {
        (Some((best, _)), _) => {
            let mut values = space.free.swap_remove(best);
            values.resize(len, 0.0);
            values
        }
        (None, most) => {
            // In place of the largest that is too small, so that what is kept grows no further than it has to.
            let small = most.map(|(most, _)| space.free.swap_remove(most));
            std::mem::drop((space, small));
            vec![0.0; len]
        }
    }
}

/// Memory that the next steps can have, such as that of gradients.
pub fn give_back(values: Vec<f32>) {
    let mut space = SPACE.lock().unwrap_or_else(PoisonError::into_inner);
    // What Burn's own operations allocated may be kept too, but not more than was taken.
    if values.capacity() >= SMALL && space.taken > 0 {
        space.taken -= 1;
        space.free.push(values);
    }
}

/// Gives the system back what was kept for the next steps, at the end of a run.
pub fn release_memory() {
    let mut space = SPACE.lock().unwrap_or_else(PoisonError::into_inner);
    *space = Space { free: Vec::new(), taken: 0 };
}

fn give_back_unique(tensor: FlexTensor) {
    if tensor.is_unique() {
        give_back(into_vec(tensor));
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[cfg(test)]
mod tests;
