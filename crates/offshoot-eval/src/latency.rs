//! Milliseconds of one run, by a clock that the caller brings.

use std::time::Duration;

use offshoot_zoo::generate::{GenerateError, Generator};
use offshoot_zoo::network::KeepAll;
use offshoot_zoo::tensor::{Device, Tensor};
use offshoot_zoo::{Backbone, DecoderNetwork, Network, Weights};

use crate::error::EvalError;
use crate::features::{check_network, read};

/// The outcome of [`latency`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Median milliseconds of one run; the mean of the two middle ones for an even number.
    pub median_ms: f64,
    /// Milliseconds of the fastest run.
    pub min_ms: f64,
    /// Runs that were timed.
    pub repeats: usize,
}

/// Calls `run` `warmup` times untimed and then `repeats` times, reading `clock` right before and after each. `clock` gives
/// the time since any fixed moment; should it step back, the run counts as 0 ms. A `run` on a device must wait for its
/// result, as [`one_image`] does.
///
/// # Errors
/// If `repeats` is 0.
pub fn latency(
    run: &mut dyn FnMut(),
    clock: &dyn Fn() -> Duration,
    warmup: usize,
    repeats: usize,
) -> Result<Latency, EvalError> {
    if repeats == 0 {
        return Err(EvalError::setting("repeats", repeats, "at least one run must be timed"));
    }
    for _ in 0..warmup {
        run();
    }
    let mut times: Vec<Duration> = (0..repeats)
        .map(|_| {
            let start = clock();
            run();
            clock().saturating_sub(start)
        })
        .collect();
    times.sort_unstable();
    let ms = |i: usize| times[i].as_secs_f64() * 1e3;
    let median_ms = (ms((repeats - 1) / 2) + ms(repeats / 2)) / 2.0;
    Ok(Latency {
        median_ms,
        min_ms: ms(0),
        repeats,
    })
}

/// A run for [`latency`]: one grey `[channels, side, side]` image of native size through `network`, until its CLS vector is
/// back on the host. `device` is the one that `weights` are on. It runs once before it is handed out.
///
/// # Errors
/// If the weights are not the network's, or that first run fails.
pub fn one_image<'a>(
    network: &'a dyn Backbone,
    weights: &Weights,
    device: &Device,
) -> Result<impl FnMut() + 'a, EvalError> {
    let (channels, side) = network.image();
    check_network(network, weights, (channels, side))?;
    let weights = weights.untracked();
    let image = Tensor::<4>::zeros([1, channels, side, side], &device.clone().without_autodiff());
    let once = move || read(network.forward(&weights, image.clone(), None, &mut KeepAll).cls);
    once()?;
    // What is timed is the way there and back; that it works was seen above.
    Ok(move || drop(once()))
}

/// A run for [`latency`]: one token through `network` behind `context - 1` others, whose keys and values were kept, until the scores of
/// the next one are back on the host. It runs once before it is handed out.
///
/// # Errors
/// If the context is 0 or above the network's, the weights are not the network's, or that first run fails.
pub fn one_token<'a>(
    network: &'a DecoderNetwork,
    weights: &Weights,
    context: usize,
) -> Result<impl FnMut() + 'a, EvalError> {
    let most = network.decoder().context;
    if context == 0 || context > most {
        let reason = format!("must lie between 1 and the {most} tokens that the model sees");
        return Err(EvalError::setting("context", context, reason));
    }
    let failed = |e: GenerateError| EvalError::Device(e.to_string());
    if let Some(reason) = weights.mismatch(&network.specs()) {
        return Err(EvalError::Weights(reason));
    }
    let mut generator = Generator::new(network, weights, context).map_err(failed)?;
    generator.read(&vec![0; context - 1]).map_err(failed)?;
    let mut once = move || {
        generator.rewind(context - 1);
        generator.read(&[0])
    };
    once().map_err(failed)?;
    // What is timed is the way there and back; that it works was seen above.
    Ok(move || drop(once()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A clock that each run advances by the next of `millis`.
    fn timed(millis: &[u64], warmup: usize, repeats: usize) -> Result<Latency, EvalError> {
        let now = Cell::new(Duration::from_secs(5));
        let mut next = millis.iter();
        let mut run = || now.set(now.get() + Duration::from_millis(*next.next().expect("no more runs than asked for")));
        latency(&mut run, &|| now.get(), warmup, repeats)
    }

    #[test]
    fn medians_by_hand() {
        let expected = |median_ms, min_ms, repeats| Latency {
            median_ms,
            min_ms,
            repeats,
        };
        assert_eq!(timed(&[900, 800, 5, 1, 3], 2, 3).unwrap(), expected(3.0, 1.0, 3));
        assert_eq!(timed(&[10, 2, 4, 100], 0, 4).unwrap(), expected(7.0, 2.0, 4));
        assert_eq!(timed(&[7], 0, 1).unwrap(), expected(7.0, 7.0, 1));
        assert!(matches!(timed(&[], 0, 0), Err(EvalError::Setting { .. })));
    }

    #[test]
    fn one_image_runs_or_says_why_not() {
        let (network, weights, device) = crate::features::tests::tiny();
        let now = Cell::new(Duration::ZERO);
        let clock = || {
            now.set(now.get() + Duration::from_millis(2));
            now.get()
        };
        let mut run = one_image(network.as_ref(), &weights, &device).unwrap();
        assert_eq!(latency(&mut run, &clock, 1, 5).unwrap().median_ms, 2.0);
        let missing = one_image(network.as_ref(), &Weights::new(), &device);
        assert!(matches!(missing.err(), Some(EvalError::Weights(_))));
    }

    #[test]
    fn a_clock_that_steps_back_counts_as_nothing() {
        let now = Cell::new(Duration::from_secs(5));
        let clock = || {
            now.set(now.get() - Duration::from_millis(1));
            now.get()
        };
        assert_eq!(latency(&mut || {}, &clock, 0, 3).unwrap().median_ms, 0.0);
    }
}
