//! Runs a checkpoint on images that are given as numbers and writes its features, for comparison with other programs.
//!
//! `features MODEL INPUT.safetensors OUTPUT.safetensors [TIMM_NAME]`: MODEL is whatever `offshoot import` opens; INPUT holds `images`, `[b, channels, side, side]`, already
//! normalised; OUTPUT gets `cls`, `[b, width]`, `patches`, `[b, patches, width]`, and of a classifier `logits`,
//! `[b, classes]`. `interop/check_hf.py` and `interop/check_import.py` call this.

use std::error::Error;
use std::path::PathBuf;

use offshoot_zoo::network::KeepAll;
use offshoot_zoo::safetensors::{self, SafetensorsError, SafetensorsFile};
use offshoot_zoo::tensor::{Tensor, TensorData, device};
use offshoot_zoo::{Features, import};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, input, output, name @ ..] = &words[..] else {
        return Err("usage: features MODEL INPUT.safetensors OUTPUT.safetensors [TIMM_NAME]".into());
    };
    let name = name.first().and_then(|name| name.to_str());
    let checkpoint = import::open(model, name)?.checkpoint;
    let input = SafetensorsFile::open(input)?;
    let shape: [usize; 4] = input
        .shape("images")
        .ok_or("the input has no tensor `images`")?
        .try_into()
        .map_err(|_| "`images` must have 4 dimensions")?;
    let device = device("cpu")?;
    let images = Tensor::<4>::from_data(TensorData::new(input.read("images")?, shape), &device);
    let weights = checkpoint.weights(&device)?;
    let Features { cls, patches, logits } = checkpoint.backbone()?.forward(&weights, images, None, &mut KeepAll);
    let mut tensors = vec![
        ("cls".to_owned(), cls.dims().to_vec()),
        ("patches".to_owned(), patches.dims().to_vec()),
    ];
    let mut values = vec![
        cls.into_data().try_to_vec::<f32>().ok(),
        patches.into_data().try_to_vec::<f32>().ok(),
    ];
    if let Some(logits) = logits {
        tensors.push(("logits".to_owned(), logits.dims().to_vec()));
        values.push(logits.into_data().try_to_vec::<f32>().ok());
    }
    if values.iter().any(Option::is_none) {
        return Err("the features are no 32-bit floats".into());
    }
    safetensors::write(output, &tensors, |i| {
        Ok::<_, SafetensorsError>(values[i].take().unwrap_or_default())
    })?;
    Ok(())
}
