//! Llama 3's way to stretch rotary positions: in a GGUF file a tensor of factors, here a rule of four numbers.
//!
//! The format has no place for the rule. We write it under keys of our own; of a file without them it is found again from the factors,
//! as far as it is one of those in use.

use offshoot_family::RopeScaling;

use super::value::Metadata;

/// Our own keys. llama.cpp passes over what it does not know.
mod key {
    pub(super) const FACTOR: &str = "offshoot.rope_scaling.factor";
    pub(super) const LOW: &str = "offshoot.rope_scaling.low_freq_factor";
    pub(super) const HIGH: &str = "offshoot.rope_scaling.high_freq_factor";
    pub(super) const ORIGINAL: &str = "offshoot.rope_scaling.original_context";
}

/// Largest relative difference of a factor from what a rule says. The format's converter computes in single precision, which makes
/// 5e-6 where a factor of 32 sets in.
const TOLERANCE: f64 = 1e-5;
/// `low_freq_factor` and `high_freq_factor` of Llama 3.1, 3.2, 3.3 and of all that are made from them.
const USUAL: (f64, f64) = (1.0, 4.0);
/// The context of training of the same.
const USUAL_CONTEXT: usize = 8192;
/// Other contexts of training that are tried: powers of two up to this one.
const LARGEST_CONTEXT: usize = 1 << 20;

/// What llama.cpp divides the frequencies of a head of `head` channels by, `[head / 2]`; none of other rules than Llama 3's.
pub(super) fn factors(rule: RopeScaling, head: usize, base: f64) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context,
    } = rule
    else {
        return None;
    };
    let original = original_context as f64;
    let one = |pair: usize| {
        let frequency = base.powf(-(2.0 * pair as f64) / head as f64);
        let wave = 2.0 * std::f64::consts::PI / frequency;
        if wave < original / high {
            1.0
        } else if wave > original / low {
            factor
        } else {
            let smooth = (original / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some((0..head / 2).map(|pair| one(pair) as f32).collect())
}

/// Says the rule in `metadata`, if it is Llama 3's.
pub(super) fn say(rule: RopeScaling, metadata: &mut Metadata) {
    if let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_context,
    } = rule
    {
        metadata.set(key::FACTOR, factor);
        metadata.set(key::LOW, low_freq_factor);
        metadata.set(key::HIGH, high_freq_factor);
        metadata.set(key::ORIGINAL, original_context as u64);
    }
}

/// The rule that `metadata` say under our own keys, if they say one.
fn said(metadata: &Metadata) -> Option<RopeScaling> {
    let number = |key| metadata.number(key).ok().flatten();
    let original = metadata.size(key::ORIGINAL).ok().flatten()?;
    Some(RopeScaling::Llama3 {
        factor: number(key::FACTOR)?,
        low_freq_factor: number(key::LOW)?,
        high_freq_factor: number(key::HIGH)?,
        original_context: usize::try_from(original).ok()?,
    })
}

/// The rule of a file that divides the frequencies of a head of `head` channels by `found`.
///
/// # Errors
/// If no rule that is tried makes these factors.
pub(super) fn rule(found: &[f32], metadata: &Metadata, head: usize, base: f64) -> Result<RopeScaling, String> {
    let near = |found: f32, wanted: f32| f64::from((found - wanted).abs()) <= TOLERANCE * f64::from(wanted);
    let all = |wanted: f32| found.iter().all(|&factor| near(factor, wanted));
    let largest = found.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if all(1.0) {
        return Ok(RopeScaling::None);
    }
    if all(largest) {
        return Ok(RopeScaling::Linear {
            factor: f64::from(largest),
        });
    }
    // The lowest frequencies of all models of this rule are stretched whole, by the largest factor.
    let usual = |original_context| RopeScaling::Llama3 {
        factor: f64::from(largest),
        low_freq_factor: USUAL.0,
        high_freq_factor: USUAL.1,
        original_context,
    };
    let contexts = std::iter::successors(Some(2), |context| Some(2 * context).filter(|&c| c <= LARGEST_CONTEXT));
    let tried = said(metadata)
        .into_iter()
        .chain([USUAL_CONTEXT].into_iter().chain(contexts).map(usual));
    let makes = |rule: &RopeScaling| {
        let wanted = factors(*rule, head, base).expect("it is Llama 3's");
        wanted.len() == found.len() && found.iter().zip(wanted).all(|(&found, wanted)| near(found, wanted))
    };
    tried.into_iter().find(makes).ok_or_else(|| {
        format!(
            "`rope_freqs.weight` divides the frequencies of rotary positions by up to {largest}, in steps that are not those of Llama 3's \
             rule with low_freq_factor {} and high_freq_factor {}: take the model as a folder of transformers, which says its rule",
            USUAL.0, USUAL.1
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(factor: f64, original_context: usize) -> RopeScaling {
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context,
        }
    }

    /// The format's converter: all in single precision.
    fn converted(head: usize, base: f32, original: f32, factor: f32) -> Vec<f32> {
        let one = |pair: usize| {
            let frequency = 1.0 / base.powf((2 * pair) as f32 / head as f32);
            let wave = 2.0 * std::f32::consts::PI / frequency;
            if wave < original / 4.0 {
                1.0
            } else if wave > original {
                factor
            } else {
                let smooth = (original / wave - 1.0) / 3.0;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..head / 2).map(one).collect()
    }

    #[test]
    fn factors_fade_from_one_to_the_whole_factor() {
        // Llama 3.2 1B: heads of 64, base 500,000, 8192 positions, 32 times, from 1 turn to 4; base^(-2 i / 64) divided by the
        // frequencies of transformers 5.23.0.
        let factors = factors(llama3(32.0, 8192), 64, 5e5).unwrap();
        assert_eq!(factors.len(), 32);
        assert!(factors[..15].iter().all(|&f| f == 1.0), "{factors:?}");
        assert!(factors[18..].iter().all(|&f| f == 32.0), "{factors:?}");
        for (factor, expected) in factors[15..18].iter().zip([1.65133f32, 3.29226, 9.66673]) {
            assert!((factor - expected).abs() < 1e-4, "{factors:?}");
        }
    }

    #[test]
    fn the_rule_of_a_file_of_others_is_found_from_its_factors() {
        // Llama 3.1 8B and 70B, Llama 3.2 1B and 3B, and another context.
        for (head, factor, original) in [(128, 8.0, 8192), (64, 32.0, 8192), (128, 32.0, 8192), (64, 4.0, 64)] {
            let found = converted(head, 5e5, original as f32, factor as f32);
            assert_eq!(rule(&found, &Metadata::new(), head, 5e5), Ok(llama3(factor, original)));
        }
        let none = Metadata::new();
        assert_eq!(rule(&[1.0; 8], &none, 16, 1e4), Ok(RopeScaling::None));
        assert_eq!(rule(&[2.5; 8], &none, 16, 1e4), Ok(RopeScaling::Linear { factor: 2.5 }));
    }

    #[test]
    fn our_own_keys_say_rules_that_factors_alone_do_not() {
        let unusual = RopeScaling::Llama3 {
            factor: 7.3,
            low_freq_factor: 1.5,
            high_freq_factor: 9.0,
            original_context: 1000,
        };
        let found = factors(unusual, 64, 1e4).unwrap();
        let mut metadata = Metadata::new();
        let error = rule(&found, &metadata, 64, 1e4).unwrap_err();
        assert!(
            error.contains("up to 7.3") && error.contains("folder of transformers"),
            "{error}"
        );
        say(unusual, &mut metadata);
        assert_eq!(rule(&found, &metadata, 64, 1e4), Ok(unusual));
        // The factors are what llama.cpp computes with: keys that contradict them count for nothing.
        say(llama3(8.0, 8192), &mut metadata);
        assert!(rule(&found, &metadata, 64, 1e4).is_err());
        let found = factors(llama3(32.0, 8192), 64, 1e4).unwrap();
        assert_eq!(rule(&found, &metadata, 64, 1e4), Ok(llama3(32.0, 8192)));
    }

    #[test]
    fn factors_that_are_no_numbers_of_a_rule_are_refused() {
        let good = factors(llama3(8.0, 8192), 64, 5e5).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -1.0, 1.001] {
            for place in [0, 17, 31] {
                let mut found = good.clone();
                found[place] = bad;
                assert!(rule(&found, &Metadata::new(), 64, 5e5).is_err(), "{bad} at {place}");
            }
        }
        assert!(rule(&good[..31], &Metadata::new(), 64, 5e5).is_err(), "one too few");
    }
}
