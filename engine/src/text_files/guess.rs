//! What a column of text may be.

use arrow::datatypes::{DataType, TimeUnit};
use mergeql_udfs::Error;

/// What a CSV column may still be, given the fields seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guess {
    any: bool,
    number: bool,
    boolean: bool,
    integer: bool,
    unsigned: bool,
    float: bool,
    date: bool,
    timestamp: bool,
    zoned: bool,
    local: bool,
    fine: bool,
    /// A year was seen that nanoseconds do not reach.
    far: bool,
    /// A whole number was seen that a double cannot hold.
    pub(super) inexact: bool,
    /// A record without a value was seen.
    pub(super) missing: bool,
    /// Objects with a value that were seen.
    pub(super) values: usize,
}

/// A whole number that a double cannot hold exactly.
pub(super) fn is_inexact(text: &str) -> bool {
    !text.contains(['.', 'e', 'E']) && text.parse::<i128>().map_or(text.len() > 15, |v| v as f64 as i128 != v)
}

/// The refusal of a column of doubles in which such a number stands.
pub(super) fn inexact(name: &str) -> Error {
    Error::type_mismatch(format!("`{name}` mixes fractions or huge numbers with integers that a double cannot hold exactly"))
        .with_help("write the column as text, or cast it where the file is made")
}

impl Guess {
    pub(super) const NEW: Guess = Guess {
        any: false,
        number: false,
        boolean: true,
        integer: true,
        unsigned: true,
        float: true,
        date: true,
        timestamp: true,
        zoned: false,
        local: false,
        fine: false,
        far: false,
        inexact: false,
        missing: false,
        values: 0,
    };

    pub(super) fn see(&mut self, field: &str) {
        self.any = true;
        let digits = field.strip_prefix('-').unwrap_or(field).as_bytes();
        if self.float && matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.len() < 16 && digits.iter().all(u8::is_ascii_digit)
        {
            // Most numbers are whole and short, and a double holds them.
            self.number = true;
            self.unsigned &= digits.len() == field.len();
            (self.boolean, self.date, self.timestamp) = (false, false, false);
            return;
        }
        self.boolean = self.boolean && (field.eq_ignore_ascii_case("true") || field.eq_ignore_ascii_case("false"));
        if self.float {
            let digits = field.strip_prefix(['-', '+']).unwrap_or(field);
            // 007 is a name for something, not seven.
            let padded = digits.len() > 1 && digits.starts_with('0') && digits.as_bytes()[1].is_ascii_digit();
            let plain = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'))
                && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
            let special = matches!(field, "NaN" | "inf" | "-inf" | "Infinity" | "-Infinity");
            let numeric = plain && !padded && field.parse::<f64>().is_ok();
            self.number |= numeric;
            self.inexact |= numeric && is_inexact(field);
            self.integer &= numeric && !field.starts_with('+') && field.parse::<i64>().is_ok();
            self.unsigned &= numeric && !field.starts_with('+') && field.parse::<u64>().is_ok();
            self.float &= numeric || special;
            if !self.float {
                (self.integer, self.unsigned) = (false, false);
            }
        }
        if self.date || self.timestamp {
            match temporal(field) {
                Some(None) => self.timestamp = false,
                Some(Some((zoned, fine))) => {
                    self.date = false;
                    self.zoned |= zoned;
                    self.local |= !zoned;
                    // An instant is none of the times that a clock shows.
                    self.timestamp &= !(self.zoned && self.local);
                    self.fine |= fine;
                    // Nanoseconds reach from 1678 to 2261.
                    self.far |= !("1678".."2262").contains(&&field[..4]);
                }
                None => (self.date, self.timestamp) = (false, false),
            }
        }
    }

    /// What both may be.
    pub(super) fn and(&mut self, other: Guess) {
        self.any |= other.any;
        self.number |= other.number;
        self.boolean &= other.boolean;
        self.integer &= other.integer;
        self.unsigned &= other.unsigned;
        self.float &= other.float;
        self.date &= other.date;
        self.zoned |= other.zoned;
        self.local |= other.local;
        self.timestamp &= other.timestamp && !(self.zoned && self.local);
        self.fine |= other.fine;
        self.far |= other.far;
        self.inexact |= other.inexact;
        self.missing |= other.missing;
        self.values += other.values;
    }

    pub(super) fn data_type(self) -> DataType {
        match self {
            Guess { any: false, .. } => DataType::Null,
            Guess { boolean: true, .. } => DataType::Boolean,
            Guess { integer: true, .. } => DataType::Int64,
            Guess { unsigned: true, .. } => DataType::UInt64,
            Guess { float: true, number: true, .. } => DataType::Float64,
            Guess { date: true, .. } => DataType::Date32,
            Guess { timestamp: true, fine: true, far: true, .. } => DataType::Utf8,
            Guess { timestamp: true, zoned, fine, .. } => {
                let unit = if fine { TimeUnit::Nanosecond } else { TimeUnit::Microsecond };
                DataType::Timestamp(unit, zoned.then(|| "UTC".into()))
            }
            _ => DataType::Utf8,
        }
    }
}

/// `Some(None)` for a date, `Some((zoned, finer than microseconds))` for a timestamp.
fn temporal(field: &str) -> Option<Option<(bool, bool)>> {
    let number = |range: std::ops::Range<usize>| {
        let part = field.get(range)?;
        if part.bytes().all(|b| b.is_ascii_digit()) { part.parse::<u32>().ok() } else { None }
    };
    let at = |i: usize| field.as_bytes().get(i).copied();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if at(4) != Some(b'-') || at(7) != Some(b'-') || day == 0 || day > days {
        return None;
    }
    if field.len() == 10 {
        return Some(None);
    }
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !matches!(at(10), Some(b'T' | b' '))
        || at(13) != Some(b':')
        || at(16) != Some(b':')
        || hour > 23
        || minute > 59
        || second > 59
    {
        return None;
    }
    let mut rest = &field[19..];
    let mut fine = false;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 || digits > 9 {
            return None;
        }
        fine = digits > 6;
        rest = &fraction[digits..];
    }
    match rest {
        "" => Some(Some((false, fine))),
        "Z" => Some(Some((true, fine))),
        zone => {
            let b = zone.as_bytes();
            let digit = |i: usize| b[i].is_ascii_digit();
            let good = b.len() == 6 && matches!(b[0], b'+' | b'-') && b[3] == b':' && [1, 2, 4, 5].into_iter().all(digit);
            good.then_some(Some((true, fine)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_types_are_those_of_all_rows() {
        let guess = |fields: &[&str]| {
            let mut guess = Guess::NEW;
            fields.iter().for_each(|f| guess.see(f));
            guess.data_type()
        };
        assert_eq!(guess(&["1", "-2"]), DataType::Int64);
        assert_eq!(guess(&["-0", "0"]), DataType::Int64);
        assert_eq!(guess(&["-1", "18446744073709551615"]), DataType::Float64);
        assert_eq!(guess(&["1", "2024-02-29"]), DataType::Utf8);
        assert_eq!(guess(&["1", "true"]), DataType::Utf8);
        assert_eq!(guess(&["true", "1"]), DataType::Utf8);
        assert_eq!(guess(&["x", "1"]), DataType::Utf8);
        assert_eq!(guess(&["1", "2.5"]), DataType::Float64);
        assert_eq!(guess(&["01234"]), DataType::Utf8);
        assert_eq!(guess(&["NaN"]), DataType::Utf8);
        assert_eq!(guess(&["NaN", "1"]), DataType::Float64);
        assert_eq!(guess(&["18446744073709551615"]), DataType::UInt64);
        assert_eq!(guess(&["true", "FALSE"]), DataType::Boolean);
        assert_eq!(guess(&["2024-02-29"]), DataType::Date32);
        assert_eq!(guess(&["2023-02-29"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00"]), DataType::Timestamp(TimeUnit::Microsecond, None));
        assert_eq!(guess(&["2024-01-01T00:00:00Z"]), DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())));
        assert_eq!(guess(&["2024-01-01", "2024-01-01T00:00:00"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00", "2024-01-01T00:00:00Z"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00Z", "2024-01-01T00:00:00"]), DataType::Utf8);
        assert_eq!(guess(&["2024-01-01T00:00:00Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00Z"]), DataType::Utf8);
        assert_eq!(guess(&["1", "x"]), DataType::Utf8);
        assert_eq!(guess(&[]), DataType::Null);
        // Seen by two and put together, they are what one sees.
        let samples = [
            "1",
            "-2",
            "2.5",
            "007",
            "NaN",
            "18446744073709551615",
            "9007199254740993",
            "true",
            "x",
            "2024-02-29",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00:00.123456789",
            "2024-01-01T00:00:00Z",
        ];
        for at in 0..samples.len().pow(3) {
            let [a, b, c] = [1, samples.len(), samples.len().pow(2)].map(|step| samples[at / step % samples.len()]);
            for split in 0..=3 {
                let mut parts = [Guess::NEW; 2];
                [a, b, c].into_iter().enumerate().for_each(|(i, field)| parts[usize::from(i >= split)].see(field));
                let [mut together, other] = parts;
                together.and(other);
                let ty = together.data_type();
                assert_eq!(ty, guess(&[a, b, c]), "{a} {b} {c} {split}");
            }
        }
    }
}
