//! Times a tokenizer on the documents of a path: the counterpart of `benches/rivals/text_tokens.py`.
//!
//! `tokenize PATH [TOKENIZER] [PASSES]`: the tokenizer is read, or trained (8,192 byte-level tokens) and written where the
//! file is not there. One JSON line comes out: documents, bytes, tokens, a hash of all ids, and the seconds of each pass.
#![expect(clippy::print_stdout, reason = "a program")]

use std::path::PathBuf;
use std::time::Instant;

use offshoot_data::DataError;
use offshoot_data::text::{Algorithm, Documents, Tokenizer, Training};

fn main() -> Result<(), DataError> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().unwrap_or_default());
    let file = PathBuf::from(arguments.next().unwrap_or_else(|| "tokenizer.json".into()));
    let passes = arguments.next().and_then(|passes| passes.parse().ok()).unwrap_or(5);

    let mut trained = None;
    let tokenizer = if file.exists() {
        Tokenizer::open(&file)?
    } else {
        let start = Instant::now();
        let algorithm = match std::env::var("ALGORITHM").as_deref() {
            Ok("unigram") => Algorithm::Unigram,
            _ => Algorithm::Bpe,
        };
        let training = Training::new(algorithm, 8192);
        let tokenizer = Tokenizer::train(std::slice::from_ref(&path), &training, &mut |_, _| {})?;
        trained = Some(start.elapsed().as_secs_f64());
        tokenizer.save(&file)?;
        tokenizer
    };
    let texts = Documents::open(&path, 0.01)?
        .map(|document| document.map(|document| document.text))
        .collect::<Result<Vec<_>, _>>()?;
    let bytes: usize = texts.iter().map(String::len).sum();
    let mut seconds = Vec::new();
    let (mut tokens, mut hash) = (0, blake3::Hasher::new());
    for _ in 0..passes {
        let start = Instant::now();
        let ids = tokenizer.encode_all(&texts)?;
        seconds.push(start.elapsed().as_secs_f64());
        tokens = ids.iter().map(Vec::len).sum();
        hash = blake3::Hasher::new();
        for id in ids.iter().flatten() {
            hash.update(&id.to_le_bytes());
        }
    }
    println!(
        "{{\"documents\": {}, \"bytes\": {bytes}, \"tokens\": {tokens}, \"hash\": \"{}\", \"trained_s\": {}, \
         \"passes_s\": {seconds:.4?}}}",
        texts.len(),
        hash.finalize().to_hex(),
        trained.map_or_else(|| "null".into(), |s| format!("{s:.2}"))
    );
    Ok(())
}
