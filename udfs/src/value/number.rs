//! Numbers compared and summed exactly, whatever their kind.

use super::Value;
use num_bigint::BigInt;
use std::cmp::Ordering;

/// Compares two numbers by worth, then by kind (integer < decimal < float), then by scale.
pub fn compare_numbers(a: &Value, b: &Value) -> Ordering {
    let kind = |v: &Value| match v {
        Value::Decimal { scale, .. } => (1, *scale),
        Value::Float(_) => (2, 0),
        _ => (0, 0),
    };
    compare_worth(a, b).then_with(|| kind(a).cmp(&kind(b)))
}

/// Compares two numbers by worth.
pub fn compare_worth(a: &Value, b: &Value) -> Ordering {
    use Value::*;
    match (a, b) {
        (Int(x), Int(y)) => x.cmp(y),
        (Float(x), Float(y)) => compare_floats(*x, *y),
        (Int(x), Float(y)) => exact_against_float(*x, 0, *y),
        (Float(x), Int(y)) => exact_against_float(*y, 0, *x).reverse(),
        (Decimal { unscaled, scale }, Float(y)) => exact_against_float(*unscaled, *scale, *y),
        (Float(x), Decimal { unscaled, scale }) => exact_against_float(*unscaled, *scale, *x).reverse(),
        (Decimal { unscaled: x, scale: s }, Decimal { unscaled: y, scale: t }) => compare_scaled(*x, *s, *y, *t),
        (Int(x), Decimal { unscaled: y, scale: t }) => compare_scaled(*x, 0, *y, *t),
        (Decimal { unscaled: x, scale: s }, Int(y)) => compare_scaled(*x, *s, *y, 0),
        _ => Ordering::Equal,
    }
}

/// NaN first, then by worth; both are canonical.
fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| b.is_nan().cmp(&a.is_nan()))
}

fn pow10(n: u32) -> BigInt {
    BigInt::from(10u8).pow(n)
}

fn compare_scaled(x: i128, s: u8, y: i128, t: u8) -> Ordering {
    if s == t {
        return x.cmp(&y);
    }
    let (x, y) = (BigInt::from(x), BigInt::from(y));
    if s < t { (x * pow10(u32::from(t - s))).cmp(&y) } else { x.cmp(&(y * pow10(u32::from(s - t)))) }
}

fn exact_against_float(unscaled: i128, scale: u8, f: f64) -> Ordering {
    if f.is_nan() || f == f64::NEG_INFINITY {
        return Ordering::Greater;
    }
    if f == f64::INFINITY {
        return Ordering::Less;
    }
    let (mantissa, exponent) = decompose(f);
    let (mut left, mut right) = (BigInt::from(unscaled), BigInt::from(mantissa) * pow10(u32::from(scale)));
    if exponent >= 0 {
        right <<= exponent as usize;
    } else {
        left <<= (-exponent) as usize;
    }
    left.cmp(&right)
}

/// A finite float as `mantissa * 2^exponent`.
fn decompose(f: f64) -> (i64, i32) {
    let bits = f.to_bits();
    let sign = if bits >> 63 == 0 { 1 } else { -1 };
    let exponent = ((bits >> 52) & 0x7ff) as i32;
    let fraction = (bits & ((1 << 52) - 1)) as i64;
    if exponent == 0 { (sign * fraction, -1074) } else { (sign * (fraction | 1 << 52), exponent - 1075) }
}

/// An exact sum of numbers: addition commutes and associates, and the one rounding happens when the value is asked for.
#[derive(Debug, Clone, Default)]
pub struct Exact {
    /// The sum times 2^1074 times 10^scale: every finite float is a whole number of these.
    binary: BigInt,
    decimal: BigInt,
    scale: u8,
    has_float: bool,
    infinities: [bool; 2],
    nan: bool,
}

impl Exact {
    /// Adds one number; other values add nothing.
    pub fn add(&mut self, value: &Value) {
        match value {
            Value::Int(v) => self.decimal += BigInt::from(*v) * pow10(u32::from(self.scale)),
            Value::Decimal { unscaled, scale } => {
                if *scale > self.scale {
                    self.decimal *= pow10(u32::from(scale - self.scale));
                    self.scale = *scale;
                }
                self.decimal += BigInt::from(*unscaled) * pow10(u32::from(self.scale - scale));
            }
            Value::Float(v) => {
                self.has_float = true;
                if v.is_nan() {
                    self.nan = true;
                } else if v.is_infinite() {
                    self.infinities[usize::from(*v > 0.0)] = true;
                } else {
                    let (mantissa, exponent) = decompose(*v);
                    self.binary += BigInt::from(mantissa) << (exponent + 1074) as usize;
                }
            }
            _ => {}
        }
    }

    /// The sum as an integer at this decimal scale, if it is exact there and fits.
    pub fn scaled(&self, scale: u8) -> Option<i128> {
        if self.has_float {
            return None;
        }
        self.over(1, scale)
    }

    /// The sum divided by `count`, as an integer at this decimal scale, rounded half away from zero; `None` if it does not fit.
    pub fn over(&self, count: u64, scale: u8) -> Option<i128> {
        let numerator = &self.decimal * pow10(u32::from(scale));
        let denominator = BigInt::from(count) * pow10(u32::from(self.scale));
        let two = BigInt::from(2u8);
        let negative = numerator < BigInt::ZERO;
        let magnitude = if negative { -numerator } else { numerator };
        let rounded: BigInt = (magnitude * &two + &denominator) / (denominator * two);
        i128::try_from(if negative { -rounded } else { rounded }).ok()
    }

    /// The sum divided by `count`, rounded once to the nearest float (ties to even).
    pub fn quotient(&self, count: u64) -> f64 {
        match (self.nan, self.infinities) {
            (true, _) | (_, [true, true]) => return f64::NAN,
            (_, [true, false]) => return f64::NEG_INFINITY,
            (_, [false, true]) => return f64::INFINITY,
            _ => {}
        }
        let ten = pow10(u32::from(self.scale));
        let numerator = &self.binary * &ten + (&self.decimal << 1074usize);
        let denominator = (BigInt::from(count) * ten) << 1074usize;
        nearest(numerator, denominator)
    }
}

/// `numerator / denominator` (positive), rounded to the nearest float, ties to even.
fn nearest(numerator: BigInt, denominator: BigInt) -> f64 {
    if numerator == BigInt::ZERO {
        return 0.0;
    }
    let negative = numerator < BigInt::ZERO;
    let magnitude = if negative { -numerator } else { numerator };
    // Scale so that the quotient has 53 bits or, among the subnormals, as many as there are.
    let mut exponent = magnitude.bits() as i64 - denominator.bits() as i64 - 53;
    let quotient_at = |exponent: i64| -> (BigInt, BigInt, BigInt) {
        let (n, d) = if exponent >= 0 {
            (magnitude.clone(), &denominator << exponent as usize)
        } else {
            (&magnitude << (-exponent) as usize, denominator.clone())
        };
        (&n / &d, &n % &d, d)
    };
    exponent = exponent.max(-1074);
    let (mut quotient, mut remainder, mut divisor) = quotient_at(exponent);
    if quotient.bits() > 53 {
        exponent += 1;
        (quotient, remainder, divisor) = quotient_at(exponent);
    }
    let mut mantissa = u64::try_from(quotient).unwrap_or(u64::MAX);
    match (remainder * 2u8).cmp(&divisor) {
        Ordering::Greater => mantissa += 1,
        Ordering::Equal => mantissa += mantissa & 1,
        Ordering::Less => {}
    }
    if mantissa == 1 << 53 {
        mantissa >>= 1;
        exponent += 1;
    }
    let bits = if mantissa < 1 << 52 {
        mantissa
    } else if exponent > 971 {
        0x7ff << 52
    } else {
        (((exponent + 1075) as u64) << 52) | (mantissa & ((1 << 52) - 1))
    };
    f64::from_bits(bits | u64::from(negative) << 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(values: &[f64]) -> f64 {
        let mut exact = Exact::default();
        values.iter().for_each(|v| exact.add(&Value::float(*v)));
        exact.quotient(1)
    }

    #[test]
    fn float_sums_are_rounded_once() {
        assert_eq!(sum(&[0.1; 10]), 1.0);
        assert_eq!(sum(&[1e308, 1e308, -1e308]), 1e308);
        assert_eq!(sum(&[1e16, 1.0, -1e16]), 1.0);
        assert_eq!(sum(&[1e308, 1e308]), f64::INFINITY);
        assert_eq!(sum(&[5e-324, 5e-324]), 1e-323);
        assert_eq!(sum(&[-2.5]), -2.5);
        assert_eq!(sum(&[2.2250738585072014e-308]), 2.2250738585072014e-308);
        assert!(sum(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
    }

    #[test]
    fn averages_of_integers_and_decimals_are_exact() {
        let mut exact = Exact::default();
        exact.add(&Value::Int(1));
        exact.add(&Value::Int(2));
        assert_eq!(exact.quotient(2), 1.5);
        exact.add(&Value::Decimal { unscaled: 5, scale: 1 });
        assert_eq!(exact.scaled(1), Some(35));
        assert_eq!(exact.over(3, 3), Some(1167));
    }
}
