//! The one source of chance: a seed decides everything that happens.

#[path = "../../../support/random.rs"]
mod shared;

pub(super) use shared::Random;

impl Random {
    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
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
