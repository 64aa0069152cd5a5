//! `offshoot generate`: text from a language model, as it comes.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use offshoot_methods::train::trainer::Clock;
use offshoot_zoo::generate::{Generator, Sampling, Stop};
use offshoot_zoo::network;
use serde_json::json;

use super::text::LanguageModels;
use crate::args::Generate;
use crate::failure::Failure;
use crate::machine::{Machine, ProcessClock};
use crate::terminal::{complain, say};

/// Largest prompt that is read, in bytes.
const MAX_PROMPT: u64 = 64 << 20;

/// One generated text.
struct Sample {
    tokens: Vec<u32>,
    text: String,
    stop: Stop,
}

/// Runs the command.
pub fn run(args: &Generate) -> Result<(), Failure> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    sampling.check()?;
    let text = prompt(args)?;
    let machine = Machine::new(&args.compute.device, args.compute.threads)?;
    let models = LanguageModels::open(&args.model.place, &machine.device)?;
    let id = models.one(args.child.as_deref())?;
    let (network, weights) = models.model(&id)?;
    let decoder = network::decoder(network.as_ref())?;
    let prompt = tokens(args, &models, &text)?;
    let context = decoder.decoder().context;
    if prompt.len() >= context {
        return Err(Failure::input(
            format!(
                "the prompt has {} tokens, and the model sees {context}: there is no room for another",
                prompt.len()
            ),
            "give a shorter prompt",
        ));
    }
    let room = prompt.len().saturating_add(args.tokens);
    let mut generator = Generator::new(decoder, &weights, room)?;
    let clock = ProcessClock::start();
    generator.read(&prompt)?;
    let reading = clock.elapsed().as_secs_f64();
    let clock = ProcessClock::start();
    let mut samples = Vec::new();
    let mut steps = 0;
    for sample in 0..args.samples {
        if sample > 0 {
            if !args.json {
                say("\n---")?;
            }
            // All of them go on from the same prompt, whose last token is read again for what it says of the next.
            generator.rewind(prompt.len() - 1);
            generator.read(&prompt[prompt.len() - 1..])?;
            steps += 1;
        }
        let mut out = Out::new(&models, &prompt, args.json)?;
        if !args.json {
            show(&text)?;
        }
        let mut failed = None;
        let stop = generator.generate(&sampling, sample, args.tokens, &models.ends, &mut |token| {
            out.push(token).map_err(|e| failed = Some(e)).is_ok()
        })?;
        if let Some(failure) = failed {
            return Err(failure);
        }
        let made = out.finish(stop)?;
        steps += made.tokens.len();
        samples.push(made);
    }
    let writing = clock.elapsed().as_secs_f64();
    let rate = |count: usize, seconds: f64| count as f64 / seconds.max(1e-9);
    let (read, written) = (rate(prompt.len(), reading), rate(steps, writing));
    if args.json {
        let all: Vec<_> = samples
            .iter()
            .map(|sample| {
                let (stop, end) = match sample.stop {
                    Stop::End(id) => ("end", Some(id)),
                    Stop::Context => ("context", None),
                    Stop::Tokens | Stop::Taker => ("tokens", None),
                };
                json!({ "text": sample.text, "tokens": sample.tokens, "stopped_by": stop, "end_token": end })
            })
            .collect();
        let done = json!({
            "model": id, "prompt": text, "prompt_tokens": prompt, "seed": args.seed, "temperature": args.temperature,
            "top_k": args.top_k, "top_p": args.top_p, "repetition_penalty": args.repetition_penalty,
            "samples": all, "prompt_tokens_per_second": read, "tokens_per_second": written,
        });
        say(&serde_json::to_string_pretty(&done)?)?;
    } else {
        say("")?;
    }
    complain(&format!(
        "{id}: prompt of {} tokens in {reading:.2} s ({read:.1}/s), {steps} tokens in {writing:.2} s ({written:.1}/s), {}",
        prompt.len(),
        machine.description()
    ));
    Ok(())
}

/// The text that the generated one begins with.
fn prompt(args: &Generate) -> Result<String, Failure> {
    let Some(path) = &args.prompt.prompt_file else {
        return Ok(args.prompt.prompt.clone().unwrap_or_default());
    };
    let shown = path.display().to_string();
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_PROMPT + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_PROMPT + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| shown.clone())?;
    if bytes.len() as u64 > MAX_PROMPT {
        let reason = format!("{shown}: a prompt of more than {} MiB", MAX_PROMPT >> 20);
        return Err(Failure::input(reason, "give a shorter prompt"));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::input(format!("{shown}: not UTF-8 at byte {at}"), "write the prompt in UTF-8")
    })
}

/// The tokens of the prompt, with the one that begins a text where that is wanted or there is nothing else.
fn tokens(args: &Generate, models: &LanguageModels, text: &str) -> Result<Vec<u32>, Failure> {
    let mut tokens: Vec<u32> = models.begin(args.model.begin_of_text)?.into_iter().collect();
    if !text.is_empty() {
        tokens.extend(models.tokenizer.encode_prompt(text)?);
    }
    if tokens.is_empty() {
        tokens.extend(models.known_begin());
    }
    if tokens.is_empty() {
        return Err(Failure::input(
            "the prompt is empty, and the model has no begin-of-text token to go on from",
            "give a prompt of at least one character",
        ));
    }
    Ok(tokens)
}

/// Writes text to standard output at once.
fn show(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Where the tokens of one sample go: in whole characters to standard output, unless all is to be printed in the end.
struct Out<'m> {
    decoding: offshoot_data::text::Decoding<'m>,
    made: Sample,
    is_silent: bool,
}

impl<'m> Out<'m> {
    fn new(models: &'m LanguageModels, prompt: &[u32], is_silent: bool) -> Result<Self, Failure> {
        // What stands before a token decides whether its text begins with a space.
        let mut decoding = models.tokenizer.decoding(false);
        for &token in prompt {
            decoding.push(token)?;
        }
        Ok(Self {
            decoding,
            made: Sample {
                tokens: Vec::new(),
                text: String::new(),
                stop: Stop::Tokens,
            },
            is_silent,
        })
    }

    fn push(&mut self, token: u32) -> Result<(), Failure> {
        self.made.tokens.push(token);
        let text = self.decoding.push(token)?;
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.made.text.push_str(text);
        if text.is_empty() || self.is_silent {
            return Ok(());
        }
        show(text)
    }

    fn finish(mut self, stop: Stop) -> Result<Sample, Failure> {
        let rest = self.decoding.finish()?;
        self.made.text.push_str(&rest);
        if !rest.is_empty() && !self.is_silent {
            show(&rest)?;
        }
        Ok(Sample { stop, ..self.made })
    }
}
