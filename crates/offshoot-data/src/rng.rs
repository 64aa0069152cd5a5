//! A random generator whose values never change between versions, keyed by what it decides.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};

/// A value-stable random generator: ChaCha with 8 rounds, and fixed rules for turning its words into numbers.
///
/// Everything random in a run is drawn from [`Rng::for_example`], so that a choice depends on its key alone and not on
/// which thread makes it or what was drawn before.
pub struct Rng {
    core: ChaCha8Rng,
}

impl Rng {
    /// The generator of one choice: of example `index` in `epoch`, for the purpose named by `stream`.
    #[must_use]
    pub fn for_example(seed: u64, stream: &str, epoch: u64, index: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"offshoot rng 1");
        for word in [seed, epoch, index] {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(stream.as_bytes());
        Self {
            core: ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()),
        }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.core.next_u64()
    }

    /// A number in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A number in `[0, 1)` with 24 random bits.
    pub fn unit_f32(&mut self) -> f32 {
        (self.bits() >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// A number between `low` and `high`; `high` may be below `low`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A number between `low` and `high` in single precision.
    pub fn uniform_f32(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit_f32()
    }

    /// True with the given probability: never at 0 and always at 1.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// An integer in `0..end`, each equally likely; 0 where `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 {
            return 0;
        }
        // Lemire's multiplication; the few words that would favour small results are drawn again.
        let reject = end.wrapping_neg() % end;
        loop {
            let wide = u128::from(self.bits()) * u128::from(end);
            if wide as u64 >= reject {
                return (wide >> 64) as u64;
            }
        }
    }

    /// An integer in `range`, each equally likely; the start where the range is empty.
    pub fn range(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + self.below(range.end.saturating_sub(range.start) as u64) as usize
    }

    /// A draw from the standard normal distribution (Box-Muller, the cosine half only).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Puts `items` into a random order, each order equally likely.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.range(0..last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pinned() {
        let mut rng = Rng::for_example(7, "pin", 1, 2);
        let drawn: Vec<u64> = (0..3).map(|_| rng.bits()).collect();
        assert_eq!(drawn, PINNED);
    }

    const PINNED: [u64; 3] = [
        8_116_729_412_116_211_929,
        16_792_535_111_361_049_699,
        9_792_616_259_886_167_452,
    ];

    #[test]
    fn keys_are_independent() {
        let first = |seed, stream: &str, epoch, index| Rng::for_example(seed, stream, epoch, index).bits();
        let all = [
            first(1, "a", 0, 0),
            first(2, "a", 0, 0),
            first(1, "b", 0, 0),
            first(1, "a", 1, 0),
            first(1, "a", 0, 1),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn numbers_lie_where_they_should() {
        let mut rng = Rng::for_example(0, "t", 0, 0);
        let mut counts = [0usize; 5];
        let mut sum = 0.0;
        let mut squares = 0.0;
        for _ in 0..50_000 {
            counts[rng.range(0..5)] += 1;
            let u = rng.unit();
            assert!((0.0..1.0).contains(&u));
            assert!((0.0..1.0).contains(&rng.unit_f32()));
            let z = rng.normal();
            sum += z;
            squares += z * z;
        }
        assert!(counts.iter().all(|&c| (9_600..10_400).contains(&c)), "{counts:?}");
        assert!((sum / 5e4).abs() < 0.02);
        assert!((squares / 5e4 - 1.0).abs() < 0.03);
        assert_eq!(rng.range(3..3), 3);
        assert!(!rng.chance(0.0));
        assert!(rng.chance(1.0));
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut items: Vec<usize> = (0..100).collect();
        Rng::for_example(0, "t", 0, 0).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
