//! Scripts: where their statements lie, and whether a text may go on.

use super::DIALECT;
use crate::diagnostic::{Diagnostic, Result, Span};
use mergeql_udfs::Code;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

/// The statements of a script: where each lies in the text, without its semicolon. Empty ones are left out.
///
/// # Errors
/// `syntax` if the text cannot be split into tokens, an open quote for one.
pub fn split(text: &str) -> Result<Vec<&str>> {
    Ok(segments(text)?.into_iter().filter(|s| !s.statement.is_empty()).map(|s| s.statement).collect())
}

/// The first word of a statement, behind spaces and comments; a sign where it begins with one.
pub fn first_word(statement: &str) -> &str {
    let mut rest = statement.trim_start();
    loop {
        let after = match rest {
            line if line.starts_with("--") => line.split_once('\n').map_or("", |(_, after)| after),
            block if block.starts_with("/*") => block.split_once("*/").map_or("", |(_, after)| after),
            _ => break,
        };
        rest = after.trim_start();
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    if end == 0 { rest.get(..1).unwrap_or_default() } else { &rest[..end] }
}

/// Whether SQL that is not ours gives rows and writes nothing, as far as its words tell.
pub fn reads(statement: &str) -> bool {
    match first_word(statement).to_ascii_uppercase().as_str() {
        "SELECT" | "FROM" | "VALUES" | "TABLE" | "PIVOT" | "(" => true,
        "WITH" => {
            let mut depth = 0usize;
            // What stands behind the queries that have names.
            let tokens = tokenize(statement).unwrap_or_default();
            let main = tokens.iter().find_map(|token| match &token.token {
                Token::LParen => {
                    depth += 1;
                    None
                }
                Token::RParen => {
                    depth = depth.saturating_sub(1);
                    None
                }
                Token::Word(word) if depth == 0 => match word.keyword {
                    Keyword::SELECT | Keyword::FROM | Keyword::VALUES | Keyword::TABLE | Keyword::PIVOT => Some(true),
                    Keyword::INSERT | Keyword::UPDATE | Keyword::DELETE => Some(false),
                    _ => None,
                },
                _ => None,
            });
            main.unwrap_or(true)
        }
        _ => false,
    }
}

/// A statement of a script with the comments about it.
pub(crate) struct Segment<'a> {
    /// Comments before the statement.
    pub comments: &'a str,
    /// The statement, empty behind the last one.
    pub statement: &'a str,
    /// The statement up to its semicolon, if there are comments in it.
    pub commented: Option<&'a str>,
}

pub(crate) fn segments(text: &str) -> Result<Vec<Segment<'_>>> {
    let tokens = tokenize(text).map_err(|e| e.in_text(text))?;
    let lines = LineIndex::new(text);
    let mut segments = Vec::new();
    let (mut gap, mut start, mut end, mut commented) = (0, None, 0, false);
    let mut close = |gap: usize, start: usize, end: usize, stop: usize, commented: bool| {
        segments.push(Segment {
            comments: text[gap..start].trim(),
            statement: &text[start..end],
            commented: commented.then(|| text[start..stop].trim_end()),
        });
    };
    for token in &tokens {
        match &token.token {
            Token::EOF => {}
            Token::Whitespace(Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_)) => {
                commented |= start.is_some()
            }
            Token::Whitespace(_) => {}
            Token::SemiColon => {
                let stop = lines.offset(text, token.span.start);
                if let Some(start) = start.take() {
                    close(gap, start, end, stop, commented);
                    gap = stop + 1;
                }
                commented = false;
            }
            _ => {
                start.get_or_insert_with(|| lines.offset(text, token.span.start));
                end = lines.offset(text, token.span.end);
            }
        }
    }
    match start {
        Some(start) => close(gap, start, end, text.len(), commented),
        None => close(gap, text.len(), text.len(), text.len(), false),
    }
    Ok(segments)
}

/// Whether the text may go on: an open quote or parenthesis, or no semicolon yet.
pub fn is_incomplete(text: &str) -> bool {
    match tokenize(text) {
        Err(_) => true,
        Ok(tokens) => {
            let last = tokens.iter().rev().find(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF));
            last.is_some_and(|t| t.token != Token::SemiColon)
        }
    }
}

pub(super) fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>> {
    Tokenizer::new(&DIALECT, text).tokenize_with_location().map_err(|e| {
        let at = Span { line: e.location.line, column: e.location.column, end: e.location.column + 1 };
        Diagnostic::at(Code::Syntax, at, e.message)
    })
}

/// Operators in a row, which nest in each other: planners go down as deep, and a stack ends.
const MOST_IN_A_ROW: usize = 5000;

/// # Errors
/// `limit_exceeded` for an expression, or a query of queries, with more operators in a row than any host plans.
pub(super) fn check_chains(tokens: &[TokenWithSpan]) -> Result<()> {
    // Of each open parenthesis: operators since the last comma, and UNIONs and the like.
    let mut open = vec![(0, 0)];
    for token in tokens {
        let depth = open.len();
        let Some((operators, sets)) = open.last_mut() else { return Ok(()) };
        match &token.token {
            Token::LParen | Token::LBracket => open.push((0, 0)),
            Token::RParen | Token::RBracket if depth > 1 => drop(open.pop()),
            Token::Comma => *operators = 0,
            Token::SemiColon => (*operators, *sets) = (0, 0),
            Token::Plus | Token::Minus | Token::Mul | Token::Div | Token::Mod | Token::StringConcat => *operators += 1,
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR => *operators += 1,
                Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::JOIN => *sets += 1,
                _ => {}
            },
            _ => {}
        }
        if open.last().is_some_and(|(operators, sets)| *operators.max(sets) > MOST_IN_A_ROW) {
            let at = Span { line: token.span.start.line, column: token.span.start.column, end: token.span.end.column };
            return Err(Diagnostic::at(Code::LimitExceeded, at, format!("more than {MOST_IN_A_ROW} operators in a row"))
                .help("write IN (...) for many values, or join a table of them"));
        }
    }
    Ok(())
}

/// Where lines begin, to turn places into offsets, each in a time that does not grow with the text.
pub(super) struct LineIndex(Vec<Line>);

struct Line {
    start: usize,
    /// Where every 64th character begins, unless all are one byte long.
    marks: Option<Vec<usize>>,
}

const STEP: usize = 64;

impl LineIndex {
    pub(super) fn new(text: &str) -> LineIndex {
        let mut start = 0;
        let line = |line: &str| {
            let marks = || line.char_indices().step_by(STEP).map(|(i, _)| start + i).collect();
            let found = Line { start, marks: (!line.is_ascii()).then(marks) };
            start += line.len();
            found
        };
        let mut lines: Vec<Line> = text.split_inclusive('\n').map(line).collect();
        if text.is_empty() || text.ends_with('\n') {
            lines.push(Line { start: text.len(), marks: None });
        }
        LineIndex(lines)
    }

    pub(super) fn offset(&self, text: &str, at: Location) -> usize {
        let Some(line) = self.0.get(at.line.saturating_sub(1) as usize) else { return text.len() };
        let column = at.column.saturating_sub(1) as usize;
        match &line.marks {
            None => (line.start + column).min(text.len()),
            Some(marks) => {
                let from = marks.get(column / STEP).copied().unwrap_or(text.len());
                text[from..].char_indices().nth(column % STEP).map_or(text.len(), |(i, _)| from + i)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_offsets_of_characters() {
        let text = format!("SELECT 'a'\n{}x\n\nend", "é\u{1F600}y".repeat(100));
        let lines = LineIndex::new(&text);
        let mut at = Location { line: 1, column: 1 };
        for (offset, c) in text.char_indices() {
            assert_eq!(lines.offset(&text, at), offset, "{at:?}");
            at = if c == '\n' {
                Location { line: at.line + 1, column: 1 }
            } else {
                Location { line: at.line, column: at.column + 1 }
            };
        }
        assert_eq!(lines.offset(&text, at), text.len());
        assert_eq!(lines.offset(&text, Location { line: 9, column: 1 }), text.len());
    }

    #[test]
    fn a_long_line_is_split_in_a_time_that_grows_with_its_length() {
        let began = std::time::Instant::now();
        let text = format!("SELECT {}1{}; SELECT 'é', {}", "(".repeat(100_000), ")".repeat(100_000), "1, ".repeat(100_000));
        assert_eq!(split(&text).expect("tokens").len(), 2);
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
