//! Runs a checkpoint on images that are given as numbers and writes its features, for comparison with other programs.
//!
//! `features CHECKPOINT_DIR INPUT.safetensors OUTPUT.safetensors`: INPUT holds `images`, `[b, channels, side, side]`, already
//! normalised; OUTPUT gets `cls`, `[b, width]`, and `patches`, `[b, patches, width]`. `interop/check_hf.py` calls this.

use std::error::Error;
use std::path::PathBuf;

use offshoot_zoo::network::KeepAll;
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use offshoot_zoo::tensor::{Tensor, TensorData, device};
use offshoot_zoo::{Checkpoint, Features};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [folder, input, output] = &paths[..] else {
        return Err("usage: features CHECKPOINT_DIR INPUT.safetensors OUTPUT.safetensors".into());
    };
    let checkpoint = Checkpoint::open(folder)?;
    let input = SafetensorsFile::open(input)?;
    let shape: [usize; 4] = input
        .shape("images")
        .ok_or("the input has no tensor `images`")?
        .try_into()
        .map_err(|_| "`images` must have 4 dimensions")?;
    let device = device("cpu")?;
    let images = Tensor::<4>::from_data(TensorData::new(input.read("images")?, shape), &device);
    let weights = checkpoint.weights(&device)?;
    let Features { cls, patches, .. } = checkpoint.network().forward(&weights, images, None, &mut KeepAll);
    let tensors = [
        ("cls".to_owned(), cls.dims().to_vec()),
        ("patches".to_owned(), patches.dims().to_vec()),
    ];
    let mut values = [
        cls.into_data().try_to_vec::<f32>(),
        patches.into_data().try_to_vec::<f32>(),
    ]
    .map(Result::ok);
    if values.iter().any(Option::is_none) {
        return Err("the features are no 32-bit floats".into());
    }
    safetensors::write(output, &tensors, |i| {
        Ok::<_, SafetensorsError>(values[i].take().unwrap_or_default())
    })?;
    Ok(())
}
