//! What rounds come to, and what may be concluded from them. Pure.

use serde::{Deserialize, Serialize};

/// Values of all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of values in any order; none if there are none, or one is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        if sorted.iter().any(|value| !value.is_finite()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(Self { median: percentile(&sorted, 0.5)?, least, most })
    }

    /// Whether some value of one could be one of the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }
}

/// The value below which this part of sorted values lies, by the nearest rank.
pub fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among as many values as fit into memory"
    )]
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// What two spreads say of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Some round of one was as a round of the other: nothing is shown.
    None,
    /// Every round of the second was better.
    Better,
    /// Every round of the second was worse.
    Worse,
}

/// Compares, where more or less is better.
pub fn difference(first: &Spread, second: &Spread, more_is_better: bool) -> Difference {
    if first.overlaps(second) {
        return Difference::None;
    }
    if (second.median > first.median) == more_is_better { Difference::Better } else { Difference::Worse }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Spread {
        Spread::of(values).unwrap()
    }

    #[test]
    fn a_spread_is_of_numbers() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { median: 2.0, least: 1.0, most: 3.0 });
        let two = Spread { median: 1.0, least: 1.0, most: 4.0 };
        assert_eq!(spread(&[4.0, 1.0]), two, "a value that was seen, not one between");
        assert!(Spread::of(&[]).is_none() && Spread::of(&[1.0, f64::NAN]).is_none());
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.99), Some(198.0));
        assert_eq!(percentile(&sorted, 0.0), Some(1.0));
        assert_eq!(percentile(&sorted, 1.0), Some(200.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn what_overlaps_is_no_difference() {
        let (slow, fast) = (spread(&[1.0, 2.0, 3.0]), spread(&[4.0, 5.0]));
        assert_eq!(difference(&slow, &fast, true), Difference::Better);
        assert_eq!(difference(&slow, &fast, false), Difference::Worse);
        assert_eq!(difference(&fast, &slow, true), Difference::Worse);
        assert_eq!(difference(&slow, &spread(&[3.0, 9.0]), true), Difference::None);
    }
}
