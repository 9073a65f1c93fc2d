//! A JSON number, to the last digit; pure.

use super::schema::Decimal;

/// `± digits × 10^exponent`.
#[derive(Debug, PartialEq, Eq)]
struct Number {
    negative: bool,
    /// Neither the first nor the last is 0; empty for zero.
    digits: String,
    exponent: i64,
}

/// Why a number is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NumberError {
    /// It is too large.
    Range,
    /// It has more decimal places.
    Fraction,
}

/// `json`, a JSON number, as a whole number; `72`, `72.0` and `7.2e1` are the same.
pub(super) fn whole(json: &str) -> Result<i64, NumberError> {
    if let Ok(number) = json.parse() {
        return Ok(number);
    }
    let number = Number::read(json);
    if number.exponent < 0 {
        return Err(NumberError::Fraction);
    }
    // 2^63 has 19 digits.
    if number.places() > 19 {
        return Err(NumberError::Range);
    }
    let magnitude: i128 = number.padded(number.exponent).parse().unwrap_or(0);
    i64::try_from(if number.negative { -magnitude } else { magnitude }).map_err(|_| NumberError::Range)
}

/// `text` as `decimal` stores it: its unscaled value in two's complement, big-endian and no longer than needed.
/// `None` if it is no number.
pub(super) fn unscaled(text: &str, decimal: Decimal) -> Option<Result<Vec<u8>, NumberError>> {
    // The grammar of JSON is stricter than what follows.
    if super::json::kind(text) != super::json::Kind::Number || super::json::whole(text).ok()? != text {
        return None;
    }
    let number = Number::read(text);
    let places = number.exponent.saturating_add(i64::from(decimal.scale));
    if places < 0 {
        return Some(Err(NumberError::Fraction));
    }
    if number.places().saturating_add(i64::from(decimal.scale)) > i64::from(decimal.precision) {
        return Some(Err(NumberError::Range));
    }
    Some(Ok(two_s_complement(number.negative, &number.padded(places))))
}

impl Number {
    /// `json` must be a number by the grammar of JSON. An exponent beyond all reason is cut to one that is as absurd.
    fn read(json: &str) -> Self {
        let (negative, json) = json.strip_prefix('-').map_or((false, json), |rest| (true, rest));
        let (mantissa, exponent) = json.split_once(['e', 'E']).unwrap_or((json, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let absurd = if exponent.starts_with('-') { -1_i64 << 40 } else { 1 << 40 };
        let exponent: i64 = exponent.parse().ok().filter(|read: &i64| read.abs() < 1 << 40).unwrap_or(absurd);
        let digits = [whole, fraction].concat();
        let digits = digits.trim_start_matches('0');
        let kept = digits.trim_end_matches('0');
        if kept.is_empty() {
            return Self { negative: false, digits: String::new(), exponent: 0 };
        }
        let moved = digits.len() as i64 - kept.len() as i64 - fraction.len() as i64;
        Self { negative, digits: kept.to_owned(), exponent: exponent + moved }
    }

    /// How many digits stand before the decimal point; negative if zeros stand behind it first.
    fn places(&self) -> i64 {
        if self.digits.is_empty() { 0 } else { self.digits.len() as i64 + self.exponent }
    }

    /// The digits with so many zeros behind them.
    fn padded(&self, zeros: i64) -> String {
        let zeros = if self.digits.is_empty() { 1 } else { zeros };
        let zeros = usize::try_from(zeros).expect("whoever pads has seen that it is few");
        [self.digits.as_str(), &"0".repeat(zeros)].concat()
    }
}

/// The number with these decimal digits.
fn two_s_complement(negative: bool, digits: &str) -> Vec<u8> {
    // Little-endian, in base 2^32.
    let mut limbs: Vec<u32> = vec![0];
    let mut rest = digits;
    while !rest.is_empty() {
        let (group, behind) = rest.split_at(rest.len().min(9));
        rest = behind;
        let mut carry: u64 = group.parse().expect("nine digits fit");
        let factor = 10_u64.pow(group.len() as u32);
        for limb in &mut limbs {
            let product = u64::from(*limb) * factor + carry;
            *limb = product as u32;
            carry = product >> 32;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    // One byte more than the number needs has room for its sign.
    let mut bytes = vec![0];
    bytes.extend(limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()));
    if negative {
        let mut carry = true;
        for byte in bytes.iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    let sign: u8 = if negative { 0xff } else { 0 };
    let spare = bytes.windows(2).take_while(|pair| pair[0] == sign && (pair[1] ^ sign) < 0x80).count();
    bytes.drain(..spare);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_may_be_written_in_any_way() {
        let check = |json: &str, expected| assert_eq!(whole(json), expected, "{json}");
        check("0", Ok(0));
        check("-0", Ok(0));
        check("0.000", Ok(0));
        check("0e999999999999999999999", Ok(0));
        check("72", Ok(72));
        check("72.0", Ok(72));
        check("7.2e1", Ok(72));
        check("7200E-2", Ok(72));
        check("-0.9e19", Ok(-9_000_000_000_000_000_000));
        check("9223372036854775807", Ok(i64::MAX));
        check("9223372036854775807.0", Ok(i64::MAX));
        check("-9223372036854775808", Ok(i64::MIN));
        check("9223372036854775808", Err(NumberError::Range));
        check("1e19", Err(NumberError::Range));
        check("1e999999999999999999999", Err(NumberError::Range));
        check("1e-999999999999999999999", Err(NumberError::Fraction));
        check("72.5", Err(NumberError::Fraction));
    }

    #[test]
    fn decimals_keep_every_digit() {
        let check = |text: &str, precision, scale, expected: Option<Result<&[u8], NumberError>>| {
            let found = unscaled(text, Decimal { precision, scale });
            assert_eq!(found, expected.map(|expected| expected.map(<[u8]>::to_vec)), "{text}");
        };
        check("0", 4, 2, Some(Ok(&[0])));
        check("-0.0", 4, 2, Some(Ok(&[0])));
        check("1.27", 4, 2, Some(Ok(&[127])));
        check("1.28", 4, 2, Some(Ok(&[0, 128])));
        check("-1.28", 4, 2, Some(Ok(&[0x80])));
        check("-1.29", 4, 2, Some(Ok(&[0xff, 0x7f])));
        check("-2.56", 4, 2, Some(Ok(&[0xff, 0])));
        check("12.30e0", 4, 2, Some(Ok(&[0x04, 0xce])));
        check("99.99", 4, 2, Some(Ok(&[0x27, 0x0f])));
        check("100", 4, 2, Some(Err(NumberError::Range)));
        check("0.001", 4, 2, Some(Err(NumberError::Fraction)));
        check("1e-1000000", 4, 2, Some(Err(NumberError::Fraction)));
        check("1e1000000000000000000000", 4, 2, Some(Err(NumberError::Range)));
        let large: Vec<u8> = [1].into_iter().chain([0; 16]).collect();
        check("340282366920938463463374607431768211456", 39, 0, Some(Ok(&large)));
        for no_number in ["", " 1", "+1", "1,5", "0x10", "NaN", "\"1\"", "1 ", "--1", "01"] {
            check(no_number, 4, 2, None);
        }
    }
}
