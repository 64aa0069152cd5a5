//! Runs a decoder on token ids and writes its logits, for comparison with other programs.
//!
//! `logits MODEL OUTPUT.safetensors ID,ID,... [ID,ID,...]...`: MODEL is whatever `offshoot import` opens; each list is a sequence, which may
//! have any length; OUTPUT gets `logits`, `[rows, vocabulary]`, the sequences one after the other. `interop/check_lm.py` calls this.

use std::error::Error;
use std::path::Path;

use offshoot_zoo::decoder::Tokens;
use offshoot_zoo::import;
use offshoot_zoo::safetensors::{self, SafetensorsError};
use offshoot_zoo::tensor::device;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, output, sequences @ ..] = &words[..] else {
        return Err("usage: logits MODEL OUTPUT.safetensors ID,ID,... [ID,ID,...]...".into());
    };
    let ids = |list: &String| list.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>();
    let sequences: Vec<Vec<u32>> = sequences.iter().map(ids).collect::<Result<_, _>>()?;
    if sequences.is_empty() {
        return Err("there is no sequence of ids".into());
    }
    let checkpoint = import::open(Path::new(model), None)?.checkpoint;
    let network = checkpoint.decoder()?;
    let vocabulary = network.decoder().vocabulary;
    if sequences.iter().flatten().any(|&id| id as usize >= vocabulary) {
        return Err(format!("an id lies beyond the vocabulary of {vocabulary}").into());
    }
    let weights = checkpoint.weights(&device("cpu")?)?;
    let logits = network.logits(&weights, &Tokens::new(&sequences));
    let shape = vec![("logits".to_owned(), logits.dims().to_vec())];
    let values = logits.into_data().try_to_vec::<f32>()?;
    safetensors::write(Path::new(output), &shape, |_| Ok::<_, SafetensorsError>(values.clone()))?;
    Ok(())
}
