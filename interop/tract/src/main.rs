//! Runs an ONNX model with tract: `run-tract MODEL.onnx PIXELS OUTPUT...`. PIXELS holds images and each OUTPUT gets an output of the
//! model, in its order, all as raw little-endian 32-bit floats. The batch is what PIXELS holds; the model is compiled for an open
//! one.

use std::error::Error;
use std::path::PathBuf;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::DimLike;

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [model, pixels, outputs @ ..] = &paths[..] else {
        return Err("usage: run-tract MODEL.onnx PIXELS OUTPUT...".into());
    };
    let model = tract_onnx::onnx().model_for_path(model)?.into_optimized()?;
    let declared = model.input_fact(0)?.shape.to_tvec();
    let sides: Vec<usize> = declared[1..].iter().map(|n| n.to_usize()).collect::<Result<_, _>>()?;
    let values: Vec<f32> = std::fs::read(pixels)?
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let mut shape = vec![values.len() / sides.iter().product::<usize>()];
    shape.extend(sides);
    let input = Tensor::from_shape(&shape, &values)?;
    let results = model.into_runnable()?.run(tvec!(input.into()))?;
    if results.len() != outputs.len() {
        return Err(format!("the model has {} outputs", results.len()).into());
    }
    for (path, result) in outputs.iter().zip(&results) {
        std::fs::write(path, result.as_bytes())?;
    }
    Ok(())
}
