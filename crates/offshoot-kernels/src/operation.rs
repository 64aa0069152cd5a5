//! The operations that have a gradient, as one type: what each computes, and what its gradient needs.

use std::sync::Arc;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex};

use crate::{Attention, Cut, Form, Gather, GroupNorm, Mix, Rotary, SoftTargets, Window};

/// One operation of several tensors with one result, forward and backward, for the CPU and for every other backend.
///
/// On the CPU it gets 32-bit floats whose elements lie one after the other, and nothing else. Gradients are handed back in the
/// order of the tensors; those that are not wanted may be left out, and may as well be there.
pub(crate) trait Kernel: Sized {
    /// The result on the CPU.
    fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex>;

    /// The gradients on the CPU, for the tensors that are [`kept`](Self::kept) and the gradient of the result.
    fn backward(
        self,
        tensors: Vec<FloatTensor<Flex>>,
        gradient: FloatTensor<Flex>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<Flex>>>;

    /// The result in operations that every backend has.
    fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B>;

    /// The gradients in operations that every backend has.
    fn plain_backward<B: Backend>(
        self,
        tensors: Vec<FloatTensor<B>>,
        gradient: FloatTensor<B>,
        wanted: &[bool],
    ) -> Vec<Option<FloatTensor<B>>>;

    /// How many of `count` tensors have a gradient; the others come after them.
    fn tracked(&self, count: usize) -> usize {
        count
    }

    /// How many of `count` tensors the gradient needs again; the others come after them.
    fn kept(&self, count: usize) -> usize {
        count
    }
}

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident($form:ty),)*) => {
        /// An operation that has a gradient.
        #[derive(Clone, Debug)]
        pub enum Operation {
            $($(#[$doc])* $name($form),)*
        }

        $(impl From<$form> for Operation {
            fn from(form: $form) -> Self {
                Self::$name(form)
            }
        })*

        impl Kernel for Operation {
            fn forward(self, tensors: Vec<FloatTensor<Flex>>) -> FloatTensor<Flex> {
                match self {
                    $(Self::$name(form) => form.forward(tensors),)*
                }
            }

            fn backward(
                self,
                tensors: Vec<FloatTensor<Flex>>,
                gradient: FloatTensor<Flex>,
                wanted: &[bool],
            ) -> Vec<Option<FloatTensor<Flex>>> {
                match self {
                    $(Self::$name(form) => form.backward(tensors, gradient, wanted),)*
                }
            }

            fn plain<B: Backend>(self, tensors: Vec<FloatTensor<B>>) -> FloatTensor<B> {
                match self {
                    $(Self::$name(form) => form.plain::<B>(tensors),)*
                }
            }

            fn plain_backward<B: Backend>(
                self,
                tensors: Vec<FloatTensor<B>>,
                gradient: FloatTensor<B>,
                wanted: &[bool],
            ) -> Vec<Option<FloatTensor<B>>> {
                match self {
                    $(Self::$name(form) => form.plain_backward::<B>(tensors, gradient, wanted),)*
                }
            }

            fn tracked(&self, count: usize) -> usize {
                match self {
                    $(Self::$name(form) => form.tracked(count),)*
                }
            }

            fn kept(&self, count: usize) -> usize {
                match self {
                    $(Self::$name(form) => form.kept(count),)*
                }
            }
        }
    };
}

operations! {
    /// Exact GELU of a tensor of any shape, `x * Phi(x)`.
    Gelu(Gelu),
    /// A linear layer with what stands before and after it.
    Linear(Form),
    /// Softmax attention of packed queries, keys and values.
    Attention(Attention),
    /// Rotary positions of packed queries and keys.
    Rotary(Rotary),
    /// Cross-entropy of the rows of logits, the first tensor, against the targets, which are the others; `[sets, rows]`.
    SoftCrossEntropy(SoftTargets),
    /// Cross-entropy of the rows of `[rows, vocabulary]` logits against one index each; `[rows]`.
    NextToken(NextToken),
    /// Convolution of images, a weight and where there is one a bias.
    Convolution(Window),
    /// Slices of a flat matrix, flat.
    Cut(Cut),
    /// Matrices of experts as mixes of slices, flat: coefficients and slices, both flat.
    Mix(Mix),
    /// Rows of a matrix in another order, some of them several times and some not at all.
    Gather(Gather),
    /// GroupNorm of images, scale, shift, and where there is one a residual that is added; then maybe a ReLU.
    GroupNorm(GroupNorm),
}

/// [`gelu`](crate::gelu()) as an operation.
#[derive(Clone, Copy, Debug)]
pub struct Gelu;

/// The index that each row of logits is compared with; a row that has none loses nothing and gets no gradient, whatever it
/// holds.
#[derive(Clone, Debug)]
pub struct NextToken(pub Arc<[Option<u32>]>);
