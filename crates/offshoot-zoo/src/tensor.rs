//! The tensor library as the rest of the house sees it, and the devices it runs on.

pub use burn::tensor::{Bool, Device, Gradients, Int, Tensor, TensorData, activation, module};
pub use offshoot_kernels as kernels;
pub use offshoot_kernels::{
    Attention, GroupNorm, KeyValues, Linear, Rotary, attention, cached_attention, convolution, gather_rows, group_norm,
    rotary,
};

/// A device by the name that users give it.
///
/// # Errors
/// Says which names this build knows, or which cargo feature the name needs.
pub fn device(name: &str) -> Result<Device, String> {
    match name {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(0usize)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(burn::tensor::DeviceKind::DefaultDevice)),
        "cuda" | "vulkan" | "metal" => Err(format!(
            "this build has no {name} support: build with `--features {name}`"
        )),
        other => Err(format!(
            "unknown device `{other}`; there are cpu, cuda, vulkan and metal"
        )),
    }
}
