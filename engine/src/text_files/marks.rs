//! NULLs of CSV files, marked for a reader that does not tell them from empty texts.

use std::io::{BufRead, Read};
use std::sync::LazyLock;

/// What stands for NULL between [`MarkNulls`] and the CSV reader: bytes that no text file has a reason to hold.
pub(crate) const NULL_MARK: &[u8] = b"\x1a\x00\x1a";
pub(crate) static NULL_PATTERN: LazyLock<regex::Regex> =
    LazyLock::new(|| regex::Regex::new("^\x1a\x00\x1a$").expect("invariant: the pattern is valid"));

/// Writes [`NULL_MARK`] into every unquoted empty field, because a CSV reader does not say which fields were quoted. A line with
/// nothing on it is no record, but where the first record has one field: then it is one of NULL.
pub(crate) struct MarkNulls<R> {
    inner: R,
    delimiter: u8,
    /// Whether a byte outside of quotes is more than a part of a field.
    special: [bool; 256],
    out: Vec<u8>,
    at: usize,
    quoted: bool,
    /// What was last is a quote that closes.
    closed: bool,
    field_start: bool,
    record_start: bool,
    beginning: bool,
    ended: bool,
    /// A line with nothing on it is a record of one NULL.
    blank: bool,
    /// The first record has ended: if there is no delimiter in it, records have one field.
    begun: bool,
    several: bool,
    /// What was last is a carriage return, whose line feed ends no other line.
    returned: bool,
}

impl<R: BufRead> MarkNulls<R> {
    pub(crate) fn new(inner: R, delimiter: u8) -> MarkNulls<R> {
        let out = Vec::with_capacity(1 << 18);
        let mut special = [false; 256];
        [delimiter, b'\n', b'\r', b'"'].into_iter().for_each(|b| special[usize::from(b)] = true);
        MarkNulls {
            inner,
            delimiter,
            special,
            out,
            at: 0,
            quoted: false,
            closed: false,
            field_start: true,
            record_start: true,
            beginning: true,
            ended: false,
            blank: false,
            begun: false,
            several: false,
            returned: false,
        }
    }

    /// The same for records of one field, which may be NULL: then nothing is on the line.
    pub(crate) fn of_one_column(self) -> MarkNulls<R> {
        MarkNulls { blank: true, ..self }
    }

    fn fill(&mut self) -> std::io::Result<()> {
        self.out.clear();
        self.at = 0;
        let input = self.inner.fill_buf()?;
        let consumed = input.len();
        if consumed == 0 && self.quoted {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a quoted field is never closed"));
        }
        if consumed == 0 {
            if !self.ended && self.field_start && !self.record_start {
                self.out.extend_from_slice(NULL_MARK);
            }
            self.ended = true;
            return Ok(());
        }
        let input = if std::mem::take(&mut self.beginning) { input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input) } else { input };
        // What comes before a mark is copied at once.
        let (mut copied, mut at) = (0, 0);
        while let Some(&b) = input.get(at) {
            if self.quoted {
                let closing = input[at..].iter().position(|b| *b == b'"');
                (self.quoted, self.closed) = (closing.is_none(), closing.is_some());
                at = closing.map_or(input.len(), |n| at + n + 1);
                continue;
            }
            let end_of_record = b == b'\n' || b == b'\r';
            if b == self.delimiter || end_of_record {
                let blank = end_of_record && self.record_start && (!self.blank || b == b'\n' && self.returned);
                self.returned = b == b'\r';
                self.several |= b == self.delimiter;
                if end_of_record && !self.record_start && !std::mem::replace(&mut self.begun, true) {
                    self.blank |= !self.several;
                }
                if self.field_start && !blank {
                    self.out.extend_from_slice(&input[copied..at]);
                    self.out.extend_from_slice(NULL_MARK);
                    copied = at;
                }
                (self.field_start, self.closed) = (true, false);
                self.record_start = end_of_record;
                at += 1;
                continue;
            }
            // A quote opens a field at its start; a doubled one closes it and opens it again, which comes to the same. Elsewhere it is a letter.
            self.quoted = b == b'"' && (self.field_start || self.closed);
            (self.field_start, self.record_start, self.returned, self.closed) = (false, false, false, false);
            at += 1;
            if !self.quoted {
                let plain = input[at..].iter().position(|b| self.special[usize::from(*b)]);
                at = plain.map_or(input.len(), |n| at + n);
            }
        }
        self.out.extend_from_slice(&input[copied..]);
        self.inner.consume(consumed);
        Ok(())
    }
}

impl<R: BufRead> Read for MarkNulls<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.out.len() && !self.ended {
            self.fill()?;
        }
        let n = (self.out.len() - self.at).min(buffer.len());
        buffer[..n].copy_from_slice(&self.out[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str) -> String {
        let mut out = String::new();
        MarkNulls::new(text.as_bytes(), b',').read_to_string(&mut out).expect("reads");
        out.replace("\x1a\x00\x1a", "NULL")
    }

    #[test]
    fn unquoted_empty_fields_are_null_and_quoted_ones_are_not() {
        assert_eq!(marked("a,b\n,\"\"\n1,\n"), "a,b\nNULL,\"\"\n1,NULL\n");
        assert_eq!(marked("a,b\n1,"), "a,b\n1,NULL");
        assert_eq!(marked("a,b\r\n,x\r\n\r\n"), "a,b\r\nNULL,x\r\n\r\n");
        assert_eq!(marked("\u{feff}a\n\"x,,\"\"y\"\n"), "a\n\"x,,\"\"y\"\n");
        // Of one column, as it is written.
        assert_eq!(marked("\r\na\r\n1\r\n\r\n\"\"\r\n2\r\n"), "\r\na\r\n1\r\nNULL\r\n\"\"\r\n2\r\n");
        assert_eq!(marked("a\n\n\n1"), "a\nNULL\nNULL\n1");
        // Inches: within an unquoted field a quote is a letter.
        assert_eq!(marked("a,b\n5\" pipe,\n,6\" pipe\n"), "a,b\n5\" pipe,NULL\nNULL,6\" pipe\n");
        // However it comes in pieces.
        let text = "a,b,c\r\n\"x,\"\",\",,\"\"\n\n,12,\"\n,\"\r\r\n,,3";
        for size in 1..text.len() {
            let mut out = String::new();
            let pieces = std::io::BufReader::with_capacity(size, text.as_bytes());
            MarkNulls::new(pieces, b',').read_to_string(&mut out).expect("reads");
            let wanted = "a,b,c\r\n\"x,\"\",\",NULL,\"\"\n\nNULL,12,\"\n,\"\r\r\nNULL,NULL,3";
            assert_eq!(out.replace("\x1a\x00\x1a", "NULL"), wanted, "{size}");
        }
    }
}
