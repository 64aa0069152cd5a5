//! CPU tensors as slices and back.

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Shape, TensorData};

/// The same tensor with its elements one after the other; copied only if they are not.
pub(crate) fn contiguous(tensor: FlexTensor) -> FlexTensor {
    match tensor.as_slice::<f32>() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    }
}

/// The elements of a [`contiguous`] tensor.
pub(crate) fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous f32 elements")
}

/// The elements of a tensor for writing: its own memory where nothing else holds it, a copy otherwise.
pub(crate) fn owned(tensor: FlexTensor) -> FlexTensor {
    let whole = tensor.as_slice::<f32>().map(<[f32]>::len) == Some(tensor.storage::<f32>().len());
    if whole {
        tensor
    } else {
        FlexTensor::from_data(tensor.into_data())
    }
}

/// A tensor of these elements.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// The tensor of an operation that has one.
pub(crate) fn only<T>(tensors: Vec<T>) -> T {
    tensors.into_iter().next().expect("the operation's tensor")
}

/// Whether all of them hold 32-bit floats: the kernels know no others.
pub(crate) fn all_f32<'a>(tensors: impl IntoIterator<Item = &'a FlexTensor>) -> bool {
    tensors
        .into_iter()
        .all(|tensor| TensorMetadata::dtype(tensor) == DType::F32)
}
