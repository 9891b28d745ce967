//! Random numbers that are the same on every machine: xoshiro256++ (Blackman and Vigna 2019, arXiv:1805.01407).

use std::hash::{BuildHasher as _, RandomState};

/// A generator of random numbers with 256 bits of state.
#[derive(Debug, Clone)]
pub(super) struct Rng([u64; 4]);

impl Rng {
    /// The generator of `seed`; every seed, 0 included, is a good one.
    ///
    /// SplitMix64 spreads the seed over the state, as the authors of xoshiro advise.
    pub(super) fn new(seed: u64) -> Self {
        let mut x = seed;
        Self(std::array::from_fn(|_| {
            x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    /// The next 64 random bits.
    fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let out = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        out
    }

    /// A number in `[0, 1)`, a multiple of 2⁻⁵³.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A seed that nobody can foresee, from the operating system.
///
/// The standard library keys each `RandomState` with randomness of the system: hashing nothing under
/// such a key gives 64 bits of it.
pub(super) fn fresh_seed() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_are_those_of_the_published_generator() {
        // The first outputs from the state 1, 2, 3, 4, as the authors' C code prints them.
        let mut rng = Rng([1, 2, 3, 4]);
        let bits: Vec<u64> = (0..5).map(|_| rng.bits()).collect();
        let expected =
            [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205];
        assert_eq!(bits, expected);
        // SplitMix64 from 0.
        assert_eq!(Rng::new(0).0[0], 0xe220_a839_7b1d_cdaf);
        assert_eq!(Rng::new(0).0[1], 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn units_stay_below_one_and_spread() {
        let mut rng = Rng::new(u64::MAX);
        let units: Vec<f64> = (0..10_000).map(|_| rng.unit()).collect();
        assert!(units.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = units.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "mean {mean}");
    }

    #[test]
    fn fresh_seeds_differ() {
        assert_ne!(fresh_seed(), fresh_seed());
    }
}
