//! The gradient of every operation, written once for all backends.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

use crate::operation::Kernel;
use crate::{Kernels, Operation, Tensors};

/// What the gradient needs of the forward pass.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    operation: Operation,
    tensors: Vec<FloatTensor<B>>,
}

/// One operation that was run on tensors, of which the first `N` have a gradient.
#[derive(Debug)]
struct Step;

impl<B: Backend + Kernels, const N: usize> Backward<B, N> for Step {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Saved<B>, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let Saved { operation, tensors } = ops.state;
        let wanted = ops.parents.iter().map(Option::is_some).collect();
        let found = B::gradients(operation, Tensors(tensors), gradient, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Runs an operation, and remembers it for the gradient.
pub(crate) fn tracked<B: Backend + Kernels, C: CheckpointStrategy>(
    operation: Operation,
    tensors: Vec<FloatTensor<Autodiff<B, C>>>,
) -> FloatTensor<Autodiff<B, C>> {
    match operation.tracked(tensors.len()) {
        1 => register::<B, C, 1>(operation, tensors),
        2 => register::<B, C, 2>(operation, tensors),
        3 => register::<B, C, 3>(operation, tensors),
        4 => register::<B, C, 4>(operation, tensors),
        5 => register::<B, C, 5>(operation, tensors),
        6 => register::<B, C, 6>(operation, tensors),
        7 => register::<B, C, 7>(operation, tensors),
        n => panic!("no operation has gradients for {n} tensors"),
    }
}

fn register<B: Backend + Kernels, C: CheckpointStrategy, const N: usize>(
    operation: Operation,
    tensors: Vec<FloatTensor<Autodiff<B, C>>>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = std::array::from_fn::<_, N, _>(|i| tensors[i].node());
    let tensors: Vec<_> = tensors.into_iter().map(|tensor| tensor.into_parts().0).collect();
    match Step.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => {
            let saved = Saved {
                operation: operation.clone(),
                tensors: tensors[..operation.kept(tensors.len())].to_vec(),
            };
            prepared.finish(saved, B::run(operation, Tensors(tensors)))
        }
        OpsKind::UnTracked(prepared) => prepared.finish(B::run(operation, Tensors(tensors))),
    }
}
