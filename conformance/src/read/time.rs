//! Timestamp units of the capture formats, brought to nanoseconds.

/// How many nanoseconds a tick is, or how many ticks a nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolution {
    /// A tick is this many nanoseconds (10^-9 or coarser).
    Multiply(u64),
    /// So many ticks are a nanosecond (finer than 10^-9).
    Divide(u128),
    /// A tick is 2^-n seconds.
    Binary(u8),
}

impl Resolution {
    pub(super) const MICRO: Self = Self::Multiply(1_000);
    pub(super) const NANO: Self = Self::Multiply(1);

    /// From the value of an `if_tsresol` option: the high bit tells base 2 from base 10.
    pub(super) fn from_option(value: u8) -> Self {
        let exponent = value & 0x7f;
        if value & 0x80 != 0 {
            Self::Binary(exponent)
        } else if exponent <= 9 {
            Self::Multiply(10u64.pow(9 - u32::from(exponent)))
        } else {
            // Past 10^38 ticks a nanosecond any 64-bit count is zero nanoseconds.
            Self::Divide(10u128.checked_pow(u32::from(exponent) - 9).unwrap_or(u128::MAX))
        }
    }

    /// Nanoseconds since 1970 of a tick count and the interface's offset; saturates where i64 ends (year 2262).
    pub(super) fn nanoseconds(self, ticks: u64, offset_seconds: i64) -> i64 {
        let nanoseconds: i128 = match self {
            Self::Multiply(by) => i128::from(ticks) * i128::from(by),
            Self::Divide(by) => i128::try_from(u128::from(ticks) / by).unwrap_or(i128::MAX),
            Self::Binary(shift) => {
                let scaled = u128::from(ticks) * 1_000_000_000;
                i128::try_from(scaled >> shift).unwrap_or(i128::MAX)
            }
        };
        let total = nanoseconds.saturating_add(i128::from(offset_seconds) * 1_000_000_000);
        i64::try_from(total).unwrap_or(if total < 0 { i64::MIN } else { i64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_value_has_a_meaning() {
        assert_eq!(Resolution::from_option(6).nanoseconds(1_500_000, 0), 1_500_000_000);
        assert_eq!(Resolution::from_option(9).nanoseconds(7, 2), 2_000_000_007);
        assert_eq!(Resolution::from_option(0).nanoseconds(3, -1), 2_000_000_000);
        assert_eq!(Resolution::from_option(12).nanoseconds(5_000, 0), 5);
        assert_eq!(Resolution::from_option(0x8a).nanoseconds(512, 0), 500_000_000);
        assert_eq!(Resolution::from_option(127).nanoseconds(u64::MAX, 0), 0);
        for value in 0..=255 {
            let _ = Resolution::from_option(value).nanoseconds(u64::MAX, i64::MAX);
            let _ = Resolution::from_option(value).nanoseconds(u64::MAX, i64::MIN);
        }
    }
}
