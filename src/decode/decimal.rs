//! Digits in, the nearest `f64` out, for the decimals that people and programs write; no others are tried.
//!
//! Invariant: a result is the correctly rounded one (to nearest, ties to even), as `str::parse` has it.

/// Most digits that are sure to fit a mantissa.
pub(super) const DIGITS_MAX: usize = 19;
/// A one in each of eight bytes.
const ONES: u64 = u64::MAX / 0xFF;
/// Up to this, each whole number is an `f64`.
const EXACT_MAX: u64 = 1 << 53;
/// The powers of ten that are an `f64`.
const EXACT_TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];
/// The powers of ten that `short` can have places for.
const TENS: [u64; 17] = {
    let mut tens = [1; 17];
    let mut power = 1;
    while power < tens.len() {
        tens[power] = tens[power - 1] * 10;
        power += 1;
    }
    tens
};
/// The powers of five that fit 64 bits.
const FIVES: [Five; 28] = fives();

/// `mantissa / 10^places`, rounded once.
#[inline]
pub(super) fn shift_down(mantissa: u64, places: usize) -> f64 {
    match EXACT_TENS.get(places) {
        // Both numbers are exact, so the one operation is the only rounding (Clinger 1990).
        Some(ten) if mantissa <= EXACT_MAX => mantissa as f64 / ten,
        _ => quotient(mantissa, places),
    }
}

/// `mantissa * 10^exponent`, rounded once; `None` where this page has no short way.
pub(super) fn shift(mantissa: u64, exponent: i64) -> Option<f64> {
    let power = usize::try_from(exponent.unsigned_abs()).ok()?;
    if exponent <= 0 {
        return (power < FIVES.len()).then(|| shift_down(mantissa, power));
    }
    let ten = EXACT_TENS.get(power)?;
    (mantissa <= EXACT_MAX).then(|| mantissa as f64 * ten)
}

/// `mantissa / 10^power` by a division of whole numbers with its remainder, so that nothing is lost before the rounding.
#[inline(never)]
fn quotient(mantissa: u64, power: usize) -> f64 {
    if mantissa == 0 {
        return 0.0;
    }
    let five = &FIVES[power];
    let up = mantissa.leading_zeros();
    let dividend = mantissa << up;
    // Below the divisor and at least half of it, a dividend gives a quotient of 64 bits.
    let halved = dividend >= five.divisor;
    let (high, low) = if halved { (dividend >> 1, dividend << 63) } else { (dividend, 0) };
    let (quotient, remainder) = five.divide(high, low);
    // Eleven bits are rounded away: the lowest of them can stand for all that the remainder would add.
    let significand = (quotient | u64::from(remainder != 0)) as f64;
    #[expect(clippy::cast_possible_wrap, reason = "an index of the table of 28")]
    let binary = i64::from(halved) + i64::from(five.shift) - i64::from(up) - 64 - power as i64;
    significand * power_of_two(binary)
}

/// A power of two in the range of normal numbers.
fn power_of_two(exponent: i64) -> f64 {
    #[expect(clippy::cast_sign_loss, reason = "in the range of normal numbers the sum is positive")]
    let biased = (1_023 + exponent) as u64;
    f64::from_bits(biased << 52)
}

/// A power of five, made ready to be divided by.
#[derive(Clone, Copy)]
struct Five {
    /// Shifted up until its top bit is set.
    divisor: u64,
    /// By how much.
    shift: u32,
    /// `(2^128 - 1) / divisor - 2^64`.
    reciprocal: u64,
}

impl Five {
    /// `(high * 2^64 + low) / divisor` and the remainder, for `high` below the divisor: algorithm 4 of Möller and Granlund,
    /// "Improved division by invariant integers" (2011).
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half of the product is meant")]
    fn divide(&self, high: u64, low: u64) -> (u64, u64) {
        let dividend = u128::from(high) << 64 | u128::from(low);
        let product = (u128::from(self.reciprocal) * u128::from(high)).wrapping_add(dividend);
        let mut quotient = ((product >> 64) as u64).wrapping_add(1);
        let mut remainder = low.wrapping_sub(quotient.wrapping_mul(self.divisor));
        if remainder > product as u64 {
            quotient = quotient.wrapping_sub(1);
            remainder = remainder.wrapping_add(self.divisor);
        }
        if remainder >= self.divisor {
            quotient = quotient.wrapping_add(1);
            remainder -= self.divisor;
        }
        (quotient, remainder)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a power below 28, and a reciprocal that fits by its definition")]
const fn fives() -> [Five; 28] {
    let mut fives = [Five { divisor: 0, shift: 0, reciprocal: 0 }; 28];
    let mut power = 0;
    while power < fives.len() {
        let five = 5_u64.pow(power as u32);
        let shift = five.leading_zeros();
        let divisor = five << shift;
        let reciprocal = (u128::MAX / divisor as u128 - (1 << 64)) as u64;
        fives[power] = Five { divisor, shift, reciprocal };
        power += 1;
    }
    fives
}

/// How much text [`short`] looks at: a sign, seven digits, a point, sixteen digits and what ends them.
pub(super) const WINDOW: usize = 28;

/// The number that a text begins with and its length in bytes, for a number without an exponent of at most seven digits
/// before the point, sixteen behind it and [`DIGITS_MAX`] in all; `None` for any other, be it a longer or a wrong one.
///
/// Digits are counted and read eight at a time without a branch on how many there are: features differ in their length,
/// so that a loop over digits would cost a wrong guess of the processor for most of them.
#[expect(clippy::inline_always, reason = "it is the inner loop: a call takes a fifth of its time")]
#[inline(always)]
pub(super) fn short(text: &[u8; WINDOW]) -> Option<(f64, usize)> {
    let negative = text[0] == b'-';
    let start = usize::from(negative);
    let mut whole = u64::from(text[start].wrapping_sub(b'0'));
    let mut end = start + 1;
    if text[end] != b'.' {
        let digits = eight_at(text, start)?;
        let bits = digit_bits(digits);
        let zero_first = whole == 0 && bits > 8;
        if bits == 0 || bits == 64 || zero_first {
            return None;
        }
        whole = value_of(digits << (64 - bits));
        end = start + (bits / 8) as usize;
    } else if whole > 9 {
        return None;
    }
    let mut mantissa = whole;
    let mut places = 0;
    if *text.get(end)? == b'.' {
        let whole_digits = end - start;
        let fraction;
        (fraction, places) = fraction_at(text, end + 1)?;
        if places == 0 || whole_digits + places > DIGITS_MAX {
            return None;
        }
        mantissa = whole * TENS.get(places)? + fraction;
        end += 1 + places;
    }
    if matches!(*text.get(end)?, b'0'..=b'9' | b'e' | b'E') {
        return None;
    }
    Some((signed(shift_down(mantissa, places), negative), end))
}

/// A number with its sign, set without a branch: the sign of a feature is nothing to guess.
#[inline]
pub(super) fn signed(size: f64, negative: bool) -> f64 {
    f64::from_bits(size.to_bits() | u64::from(negative) << 63)
}

/// The number that the first digits from a place on make, sixteen of them at most, and how many they are.
#[inline]
fn fraction_at(text: &[u8; WINDOW], start: usize) -> Option<(u64, usize)> {
    let first = eight_at(text, start)?;
    let bits = digit_bits(first);
    if bits < 64 {
        // In two steps, because a shift by all 64 bits, where there is no digit, is none.
        return Some((value_of((first << 8) << (56 - bits)), (bits / 8) as usize));
    }
    let high = value_of(first);
    let second = eight_at(text, start + 8)?;
    let bits = digit_bits(second);
    if bits == 0 {
        return Some((high, 8));
    }
    let places = (bits / 8) as usize;
    Some((high * TENS.get(places)? + value_of(second << (64 - bits)), 8 + places))
}

/// Eight bytes from a place on, the first in the lowest one, less the code of `0`.
#[inline]
fn eight_at(text: &[u8; WINDOW], at: usize) -> Option<u64> {
    let eight = text.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*eight) ^ (ONES * u64::from(b'0')))
}

/// How many bits the bytes from the lowest on to the first above 9 have.
#[inline]
fn digit_bits(digits: u64) -> u32 {
    // A byte above 9 gets its top bit. It may carry into the next byte, but the first such byte is seen as it is.
    let others = (digits.wrapping_add(ONES * 0x76) | digits) & (ONES << 7);
    others.trailing_zeros() & !7
}

/// The number of eight digits, a byte each, the first in the lowest (Lemire, "Quickly parsing eight digits", 2018).
#[inline]
fn value_of(digits: u64) -> u64 {
    const PAIR: u64 = 0x0000_00FF_0000_00FF;
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let low = (pairs & PAIR).wrapping_mul(100 + (1_000_000 << 32));
    let high = ((pairs >> 16) & PAIR).wrapping_mul(1 + (10_000 << 32));
    low.wrapping_add(high) >> 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A number and anything behind it, in a window.
        #[test]
        fn a_short_number_is_as_the_standard_library_has_it(
            number in "-?([0-9]{1,9}|[0-9])(\\.[0-9]{0,18})?",
            after in prop::collection::vec(prop_oneof![any::<u8>(), Just(b','), Just(b'/'), Just(b':')], WINDOW),
        ) {
            let text = [number.as_bytes(), &after].concat();
            let first = *text.first_chunk().unwrap();
            let end = text.iter().position(|byte| !byte.is_ascii_digit() && !b"-.".contains(byte)).unwrap_or(text.len());
            if let Some((size, length)) = short(&first) {
                let json = serde_json::from_slice::<f64>(&text[..length]).unwrap();
                prop_assert_eq!(size.to_bits(), json.to_bits());
                prop_assert!(!matches!(text[length], b'0'..=b'9' | b'e' | b'E'));
            } else if end == number.len() && !matches!(text[end], b'e' | b'E') {
                let (whole, places) = number.split_once('.').unwrap_or((&number, "1"));
                let whole = whole.trim_start_matches('-');
                let wrong = places.is_empty() || (whole.len() > 1 && whole.starts_with('0'));
                let long = whole.len() > 7 || places.len() > 16 || whole.len() + places.len() > DIGITS_MAX;
                prop_assert!(wrong || long, "{}", number);
            }
        }

        #[test]
        fn division_is_exact(high: u64, low: u64, power in 0_usize..28) {
            let five = &FIVES[power];
            let high = high % five.divisor;
            let dividend = u128::from(high) << 64 | u128::from(low);
            let divisor = u128::from(five.divisor);
            let (quotient, remainder) = five.divide(high, low);
            prop_assert_eq!((u128::from(quotient), u128::from(remainder)), (dividend / divisor, dividend % divisor));
        }

        #[test]
        fn rounds_as_the_standard_library(mantissa: u64, bits in 0_u32..64, exponent in -30_i64..30) {
            let mantissa = mantissa >> bits;
            check(mantissa, exponent)?;
        }

        /// Numbers that lie halfway between two `f64`, and their neighbours.
        #[test]
        fn ties_go_to_even(odd in (1_u64 << 52)..(1 << 53), power in 0_u32..4, by in 0_u64..3) {
            check(5_u64.pow(power) * (2 * odd + 1) + by - 1, -i64::from(power))?;
        }
    }

    fn check(mantissa: u64, exponent: i64) -> Result<(), TestCaseError> {
        let wanted: f64 = format!("{mantissa}e{exponent}").parse().unwrap();
        if let Some(number) = shift(mantissa, exponent) {
            prop_assert_eq!(number.to_bits(), wanted.to_bits(), "{}e{}", mantissa, exponent);
        } else {
            prop_assert!(!(-27..=0).contains(&exponent));
        }
        Ok(())
    }
}
