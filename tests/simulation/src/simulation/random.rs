//! The one source of chance: a seed decides everything that happens.

/// A sequence of pseudo-random numbers, by splitmix64 (Steele, Lea, Flood: Fast splittable
/// pseudorandom number generators, 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Self(seed);
        // Seeds that follow each other are used; their first numbers are not meant to be alike.
        let mixed = random.next();
        Self(mixed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; zero if that is zero.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(limit);
        u64::try_from(wide >> 64).expect("the upper half of a product of two u64")
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index into something of this length, which is not zero.
    pub(super) fn index(&mut self, length: usize) -> usize {
        let length = u64::try_from(length).expect("a usize has at most 64 bits");
        usize::try_from(self.below(length)).expect("less than a usize")
    }

    pub(super) fn pick<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.index(choice.len())]
    }

    /// Whether something happens that does in so many of ten thousand cases.
    pub(super) fn happens(&mut self, in_ten_thousand: u64) -> bool {
        in_ten_thousand > 0 && self.below(10_000) < in_ten_thousand
    }

    /// A number from `-limit` to `limit`.
    pub(super) fn around_zero(&mut self, limit: u32) -> i64 {
        let number = self.below(u64::from(limit) * 2 + 1);
        i64::try_from(number).expect("at most 33 bits") - i64::from(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn one_seed_gives_one_sequence_and_all_values_of_a_range_occur() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            (0..1_000).map(|_| random.between(3, 7)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut seen = draw(1);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [3, 4, 5, 6, 7]);
        let mut random = Random::new(1);
        let mut signs = [0; 3];
        for _ in 0..1_000 {
            signs[usize::try_from(random.around_zero(1) + 1).expect("-1, 0 or 1")] += 1;
        }
        assert!(signs.iter().all(|count| *count > 250), "{signs:?}");
    }
}
