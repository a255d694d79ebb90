//! From text to [`Statement`]. Tokens and expressions are sqlparser's; the clauses of MERGE are read here; everything that is not
//! ours is passed on as it was written.

use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result, Span, nearest};
use mergeql_udfs::{Code, Value};
use sqlparser::ast::{Expr, WindowType};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::{Parser as SqlParser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer, Whitespace};

/// Merges nest no deeper than this.
const MAX_NESTING: usize = 16;
/// Expressions nest no deeper than this.
const MAX_EXPRESSION: usize = 200;

static DIALECT: GenericDialect = GenericDialect {};

/// Reads one statement; a trailing semicolon is allowed.
///
/// # Errors
/// `syntax` and the other codes of the language, with the place.
///
/// ```
/// let statement = mergeql_lang::parse("MERGE nyc, london ON id STRATEGY salary = max").unwrap();
/// assert!(matches!(statement, mergeql_lang::ast::Statement::Merge { .. }));
/// ```
pub fn parse(text: &str) -> Result<Statement> {
    let tokens = tokenize(text).map_err(|e| e.in_text(text))?;
    let mut parser = Parser::new(text, tokens);
    parser.statement().map_err(|e| e.in_text(text))
}

/// The statements of a script: where each lies in the text, without its semicolon. Empty ones are left out.
///
/// # Errors
/// `syntax` if the text cannot be split into tokens, an open quote for one.
pub fn split(text: &str) -> Result<Vec<&str>> {
    Ok(segments(text)?.into_iter().filter(|s| !s.statement.is_empty()).map(|s| s.statement).collect())
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

fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>> {
    Tokenizer::new(&DIALECT, text).tokenize_with_location().map_err(|e| {
        let at = Span { line: e.location.line, column: e.location.column, end: e.location.column + 1 };
        Diagnostic::at(Code::Syntax, at, e.message)
    })
}

/// Where lines begin, to turn places into offsets.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn new(text: &str) -> LineIndex {
        LineIndex(std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1)).collect())
    }

    fn offset(&self, text: &str, at: Location) -> usize {
        let Some(&start) = self.0.get(at.line.saturating_sub(1) as usize) else { return text.len() };
        let rest = &text[start..];
        rest.char_indices().nth(at.column.saturating_sub(1) as usize).map_or(text.len(), |(i, _)| start + i)
    }
}

struct Parser<'a> {
    text: &'a str,
    lines: LineIndex,
    sql: SqlParser<'a>,
    nesting: usize,
    /// Just behind the last token.
    end: Span,
}

/// The words that begin a clause.
const CLAUSES: [&str; 11] =
    ["STRATEGY", "VERSION", "DELETE", "MAP", "WHERE", "ORDER", "LIMIT", "OFFSET", "RETURNING", "INTO", "WITH"];

impl<'a> Parser<'a> {
    fn new(text: &'a str, tokens: Vec<TokenWithSpan>) -> Parser<'a> {
        let last = tokens.iter().rev().find(|t| !matches!(t.token, Token::Whitespace(_) | Token::EOF));
        let end = last.map(|t| t.span.end).map_or(Span::default(), |e| Span { line: e.line, column: e.column, end: e.column + 1 });
        let sql = SqlParser::new(&DIALECT).with_tokens_with_locations(tokens).with_recursion_limit(MAX_EXPRESSION);
        Parser { text, lines: LineIndex::new(text), sql, nesting: 0, end }
    }

    // Tokens.

    fn peek(&self) -> &TokenWithSpan {
        self.sql.peek_token_ref()
    }

    fn next(&mut self) -> TokenWithSpan {
        self.sql.next_token()
    }

    /// The offset of the next token, or the end of the text.
    fn here(&self) -> usize {
        match &self.peek().token {
            Token::EOF => self.text.len(),
            _ => self.lines.offset(self.text, self.peek().span.start),
        }
    }

    fn span(&self) -> Span {
        match &self.peek().token {
            Token::EOF => self.end,
            _ => self.peek().span.into(),
        }
    }

    /// Whether the `n`th token ahead is this word, unquoted.
    fn is_word(&self, n: usize, word: &str) -> bool {
        matches!(&self.sql.peek_nth_token_ref(n).token, Token::Word(w) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(0, word);
        if found {
            self.next();
        }
        found
    }

    fn take_words(&mut self, words: &[&str]) -> bool {
        let found = words.iter().enumerate().all(|(n, word)| self.is_word(n, word));
        if found {
            words.iter().for_each(|_| drop(self.next()));
        }
        found
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek().token == *token;
        if found {
            self.next();
        }
        found
    }

    fn unexpected(&self, wanted: &str) -> Box<Diagnostic> {
        let found = match &self.peek().token {
            Token::EOF => "the statement ends".to_owned(),
            token => format!("found `{token}`"),
        };
        Diagnostic::at(Code::Syntax, self.span(), format!("expected {wanted}, {found}"))
    }

    fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.take_word(word) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    fn expect(&mut self, token: &Token) -> Result<()> {
        if self.take(token) { Ok(()) } else { Err(self.unexpected(&format!("`{token}`"))) }
    }

    fn name(&mut self, what: &str) -> Result<Name> {
        match &self.peek().token {
            Token::Word(w) => {
                let (value, quoted) = (w.value.clone(), w.quote_style.is_some());
                let span = self.next().span.into();
                Ok(Name { value, quoted, span })
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn names(&mut self, what: &str) -> Result<Vec<Name>> {
        let mut names = vec![self.name(what)?];
        while self.take(&Token::Comma) {
            names.push(self.name(what)?);
        }
        Ok(names)
    }

    fn expression(&mut self) -> Result<Expr> {
        let at = self.span();
        self.sql.parse_expr().map_err(|e| match e {
            ParserError::RecursionLimitExceeded => {
                Diagnostic::at(Code::LimitExceeded, at, format!("the expression nests deeper than {MAX_EXPRESSION}"))
            }
            ParserError::ParserError(message) | ParserError::TokenizerError(message) => {
                let message = message.split(" at Line:").next().unwrap_or(&message).to_owned();
                let place = if matches!(self.peek().token, Token::EOF) { at } else { self.span() };
                Diagnostic::at(Code::Syntax, place, message)
            }
        })
    }

    fn end(&mut self) -> Result<()> {
        while self.take(&Token::SemiColon) {}
        if self.peek().token == Token::EOF { Ok(()) } else { Err(self.unexpected("the end of the statement")) }
    }

    // Statements.

    fn statement(&mut self) -> Result<Statement> {
        if matches!(self.peek().token, Token::EOF | Token::SemiColon) {
            return Err(Diagnostic::new(Code::Syntax, "the statement is empty"));
        }
        let explain = match (self.is_word(0, "EXPLAIN"), self.is_word(1, "ANALYZE")) {
            (true, true) if self.is_word(2, "MERGE") => Explain::Analyze,
            (true, false) if self.is_word(1, "MERGE") => Explain::Plan,
            _ => Explain::No,
        };
        let skip = match explain {
            Explain::No => 0,
            Explain::Plan => 1,
            Explain::Analyze => 2,
        };
        if self.is_word(skip, "MERGE") {
            let into = self.is_word(skip + 1, "INTO");
            if into && self.has_when() {
                return self.passed_on();
            }
            (0..skip).for_each(|_| drop(self.next()));
            self.next();
            return if into { self.merge_into(explain) } else { self.merge_statement(explain) };
        }
        if self.take_words(&["SHOW", "STRATEGIES"]) {
            self.end()?;
            return Ok(Statement::ShowStrategies);
        }
        if self.is_word(0, "CREATE") && (self.is_word(1, "STRATEGY") || self.is_word(3, "STRATEGY") && self.is_word(1, "OR")) {
            return self.create_strategy();
        }
        if self.take_words(&["DROP", "STRATEGY"]) {
            let if_exists = self.take_words(&["IF", "EXISTS"]);
            let name = self.name("the name of a strategy")?;
            self.end()?;
            return Ok(Statement::DropStrategy { if_exists, name });
        }
        if self.take_words(&["VERIFY", "STRATEGY"]) {
            return self.verify();
        }
        if let Some(into) = self.create_table_as_merge()? {
            let mut merge = self.merge()?;
            self.end()?;
            if let Some(second) = &merge.into {
                return Err(Diagnostic::at(Code::Syntax, second.span, "CREATE TABLE already says where the result goes"));
            }
            merge.into = Some(into);
            return Ok(Statement::Merge { explain: Explain::No, merge: Box::new(merge) });
        }
        self.passed_on()
    }

    /// The standard statement has WHEN clauses outside of parentheses.
    fn has_when(&self) -> bool {
        let mut depth = 0usize;
        for n in 0.. {
            match &self.sql.peek_nth_token_ref(n).token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                Token::EOF | Token::SemiColon => return false,
                _ if depth == 0 && self.is_word(n, "WHEN") => return true,
                _ => {}
            }
        }
        false
    }

    fn merge_statement(&mut self, explain: Explain) -> Result<Statement> {
        let merge = Box::new(self.merge()?);
        self.end()?;
        Ok(Statement::Merge { explain, merge })
    }

    fn merge_into(&mut self, explain: Explain) -> Result<Statement> {
        self.expect_word("INTO")?;
        let target = self.relation("a table")?;
        self.expect_word("USING")?;
        let merge = Box::new(self.merge()?);
        self.end()?;
        let misplaced = [
            ("WHERE", merge.filter.is_some()),
            ("ORDER BY", !merge.order.is_empty()),
            ("LIMIT", merge.limit.is_some()),
            ("OFFSET", merge.offset.is_some()),
            ("INTO", merge.into.is_some()),
        ];
        if let Some((clause, _)) = misplaced.iter().find(|(_, given)| *given) {
            return Err(Diagnostic::new(Code::Syntax, format!("MERGE INTO has no {clause}"))
                .help("filter inside a source: MERGE INTO t USING (SELECT ... WHERE ...) AS s ON ..."));
        }
        Ok(Statement::MergeInto { explain, target, merge })
    }

    fn create_table_as_merge(&mut self) -> Result<Option<Into>> {
        let mut n = 1;
        let or_replace = self.is_word(1, "OR") && self.is_word(2, "REPLACE");
        if or_replace {
            n += 2;
        }
        if !self.is_word(0, "CREATE") || !self.is_word(n, "TABLE") {
            return Ok(None);
        }
        n += 1;
        let if_not_exists = self.is_word(n, "IF");
        if if_not_exists {
            n += 3;
        }
        let name_at = n;
        while !self.is_word(n, "AS") {
            if !matches!(self.sql.peek_nth_token_ref(n).token, Token::Word(_) | Token::Period) {
                return Ok(None);
            }
            n += 1;
        }
        if !self.is_word(n + 1, "MERGE") || self.is_word(n + 2, "INTO") {
            return Ok(None);
        }
        (0..name_at).for_each(|_| drop(self.next()));
        let span = self.span();
        let target = self.relation("a table")?;
        self.next();
        self.next();
        Ok(Some(Into { or_replace, if_not_exists, target, span }))
    }

    fn create_strategy(&mut self) -> Result<Statement> {
        self.next();
        let or_replace = self.take_words(&["OR", "REPLACE"]);
        self.expect_word("STRATEGY")?;
        let name = self.name("the name of a strategy")?;
        self.expect_word("AS")?;
        let from = self.here();
        let greatest = self.is_word(0, "GREATEST");
        let body = if (greatest || self.is_word(0, "LEAST")) && self.is_word(1, "BY") {
            self.next();
            self.next();
            self.expect(&Token::LParen)?;
            // `expr over value`: the last two words only say what the expression is about.
            let mut rank = self.expression()?;
            if let Expr::Function(f) = &mut rank
                && let Some(WindowType::NamedWindow(window)) = &f.over
                && window.value.eq_ignore_ascii_case("value")
            {
                // `length(value) over value` reads as a named window to SQL.
                f.over = None;
            } else if self.take_word("OVER") {
                self.expect_word("VALUE")?;
            }
            self.expect(&Token::RParen)?;
            StrategyBody::By { greatest, rank }
        } else if self.is_word(0, "FOLD") {
            self.next();
            self.expect(&Token::LParen)?;
            let left = self.name("the name of the first value")?;
            self.expect(&Token::Comma)?;
            let right = self.name("the name of the second value")?;
            self.expect(&Token::RParen)?;
            self.expect(&Token::Arrow)?;
            let step = self.expression()?;
            let compact = self.take_word("COMPACT");
            StrategyBody::Fold { left, right, step, compact }
        } else {
            StrategyBody::Alias(self.strategy()?)
        };
        let to = self.here();
        let text = self.text[from..to].trim_end().trim_end_matches(';').trim_end().to_owned();
        self.end()?;
        Ok(Statement::CreateStrategy { or_replace, name, body, text })
    }

    fn verify(&mut self) -> Result<Statement> {
        let name = match &self.peek().token {
            Token::SingleQuotedString(s) => {
                let value = s.clone();
                Name { value, quoted: true, span: self.next().span.into() }
            }
            _ => self.name("the name of a strategy")?,
        };
        let on = if self.take_word("ON") {
            let mut parts = vec![self.name("table.column")?];
            while self.take(&Token::Period) {
                parts.push(self.name("a column")?);
            }
            let column = parts.pop().unwrap_or_else(|| name.clone());
            if parts.is_empty() {
                return Err(Diagnostic::at(Code::Syntax, column.span, "expected table.column"));
            }
            Some((parts, column))
        } else {
            None
        };
        let cases = if self.take_word("CASES") { self.count("CASES", Code::InvalidArgument)? as usize } else { 1000 };
        self.end()?;
        Ok(Statement::Verify { name, on, cases })
    }

    fn passed_on(&mut self) -> Result<Statement> {
        let insert = self.is_word(0, "INSERT");
        let pieces = self.pieces(insert, false)?;
        Ok(Statement::Sql(pieces))
    }

    /// SQL up to the end, or up to the parenthesis that closes it, with the merges in it.
    fn pieces(&mut self, insert: bool, inside: bool) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut from = self.here();
        let mut depth = 0usize;
        let mut previous = Token::EOF;
        if inside && self.is_word(0, "MERGE") && self.looks_like_merge() {
            previous = Token::LParen;
        }
        loop {
            let after = matches!(&previous, Token::LParen)
                || matches!(&previous, Token::Word(w) if w.quote_style.is_none() && (insert || w.value.eq_ignore_ascii_case("AS")))
                || (insert && previous == Token::RParen);
            if after && self.is_word(0, "MERGE") && self.looks_like_merge() {
                let start = self.here();
                pieces.push(Piece::Text(self.text[from..start].to_owned()));
                self.next();
                let merge = self.merge()?;
                if let Some(into) = &merge.into {
                    return Err(Diagnostic::at(
                        Code::Syntax,
                        into.span,
                        "INTO belongs to a statement of its own, not to a table expression",
                    ));
                }
                if !matches!(self.peek().token, Token::RParen | Token::EOF | Token::SemiColon) {
                    return Err(self.unexpected("a clause of MERGE or its end"));
                }
                pieces.push(Piece::Merge(Box::new(merge)));
                from = self.here();
            }
            match &self.peek().token {
                Token::EOF => {
                    if inside {
                        return Err(self.unexpected("`)`"));
                    }
                    pieces.push(Piece::Text(self.text[from..].trim_end().trim_end_matches(';').to_owned()));
                    return Ok(pieces);
                }
                Token::RParen if inside && depth == 0 => {
                    let end = self.here();
                    pieces.push(Piece::Text(self.text[from..end].to_owned()));
                    return Ok(pieces);
                }
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                _ => {}
            }
            previous = self.next().token;
        }
    }

    /// MERGE is next: whether a list of sources follows, rather than some use of the word as a name.
    fn looks_like_merge(&self) -> bool {
        let mut n = 1;
        match &self.sql.peek_nth_token_ref(1).token {
            Token::LParen => {
                return ["SELECT", "WITH", "MERGE", "VALUES", "FROM", "TABLE"].iter().any(|w| self.is_word(2, w));
            }
            Token::SingleQuotedString(_) => n += 1,
            Token::Word(_) if !self.is_word(1, "INTO") => {
                n += 1;
                while self.sql.peek_nth_token_ref(n).token == Token::Period {
                    n += 2;
                }
            }
            _ => return false,
        }
        if self.is_word(n, "AS") {
            n += 2;
        }
        self.is_word(n, "ON") || self.sql.peek_nth_token_ref(n).token == Token::Comma
    }

    // MERGE.

    fn merge(&mut self) -> Result<Merge> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Diagnostic::at(Code::LimitExceeded, self.span(), format!("merges nest deeper than {MAX_NESTING}")));
        }
        let mut merge = Merge { sources: vec![self.source()?], ..Merge::default() };
        while self.take(&Token::Comma) {
            merge.sources.push(self.source()?);
        }
        if !self.is_word(0, "ON") {
            return Err(self.unexpected("ON and the key, or a comma and another source"));
        }
        self.next();
        merge.key = if self.take(&Token::LParen) {
            let names = self.names("a key column")?;
            self.expect(&Token::RParen)?;
            names
        } else {
            vec![self.name("a key column")?]
        };
        if self.peek().token == Token::Comma {
            return Err(self.unexpected("a clause or the end").help("several key columns stand in parentheses: ON (id, region)"));
        }
        let mut seen: Vec<&str> = Vec::new();
        loop {
            let at = self.span();
            let Some(clause) = CLAUSES.iter().find(|c| self.is_word(0, c)) else { break };
            if seen.contains(clause) {
                let full = match *clause {
                    "VERSION" | "DELETE" | "ORDER" => format!("{clause} BY"),
                    other => other.to_owned(),
                };
                return Err(Diagnostic::at(Code::DuplicateClause, at, format!("{full} is given twice")));
            }
            seen.push(clause);
            self.next();
            self.clause(clause, &mut merge, at)?;
        }
        if let Token::Word(w) = &self.peek().token {
            let (word, at) = (w.value.to_uppercase(), self.span());
            let error = Diagnostic::at(Code::Syntax, at, format!("expected a clause of MERGE or its end, found `{}`", w.value));
            return Err(match nearest(&word, CLAUSES) {
                Some(clause) => error.label(format!("did you mean `{clause}`?")),
                None => error,
            });
        }
        self.nesting -= 1;
        Ok(merge)
    }

    fn clause(&mut self, clause: &str, merge: &mut Merge, at: Span) -> Result<()> {
        match clause {
            "STRATEGY" => loop {
                let target = if self.peek().token == Token::Mul {
                    Target::Default(self.next().span.into())
                } else {
                    Target::Column(self.name("a column or `*`")?)
                };
                self.expect(&Token::Eq)?;
                let strategy = self.strategy()?;
                merge.strategies.push((target, strategy));
                if !self.take(&Token::Comma) {
                    break;
                }
            },
            "VERSION" => merge.version = Some(self.version_by()?),
            "DELETE" => {
                self.expect_word("BY")?;
                merge.delete = Some(self.name("a column")?);
            }
            "MAP" => loop {
                let old = self.name("a column")?;
                self.expect(&Token::Arrow)?;
                merge.map.push((old, self.name("a new name")?));
                if !self.take(&Token::Comma) {
                    break;
                }
            },
            "WHERE" => merge.filter = Some(self.expression()?),
            "ORDER" => {
                self.expect_word("BY")?;
                loop {
                    let span = self.span();
                    let expr = self.expression()?;
                    let descending = !self.take_word("ASC") && self.take_word("DESC");
                    let nulls_first = if self.take_words(&["NULLS", "FIRST"]) {
                        Some(true)
                    } else if self.take_words(&["NULLS", "LAST"]) {
                        Some(false)
                    } else {
                        None
                    };
                    merge.order.push(Order { expr, descending, nulls_first, span });
                    if !self.take(&Token::Comma) {
                        break;
                    }
                }
            }
            "LIMIT" => merge.limit = Some(self.count("LIMIT", Code::InvalidLimit)?),
            "OFFSET" => {
                merge.offset = Some(self.count("OFFSET", Code::InvalidLimit)?);
                if !self.take_word("ROWS") {
                    self.take_word("ROW");
                }
            }
            "RETURNING" => {
                merge.returning = if self.take_word("ROWS") {
                    Returning::Rows
                } else if self.take_word("CONFLICTS") {
                    Returning::Conflicts
                } else if self.take_word("PROVENANCE") {
                    Returning::Provenance
                } else {
                    return Err(self.unexpected("ROWS, CONFLICTS or PROVENANCE"));
                };
            }
            "INTO" => {
                let or_replace = self.take_words(&["OR", "REPLACE"]);
                let target = self.relation("a table or a file")?;
                if let Relation::Query(_) = target {
                    return Err(Diagnostic::at(Code::Syntax, at, "a result goes into a table or a file, not into a query"));
                }
                merge.into = Some(Into { or_replace, if_not_exists: false, target, span: at });
            }
            _ => {
                self.expect(&Token::LParen)?;
                loop {
                    let name = self.name("an option")?;
                    self.expect(&Token::Eq)?;
                    let value = match self.literal()? {
                        Some((value, _)) => value,
                        None => Value::text(self.name("a value")?.value),
                    };
                    if merge.options.iter().any(|(n, _)| n.value.eq_ignore_ascii_case(&name.value)) {
                        return Err(Diagnostic::at(
                            Code::DuplicateClause,
                            name.span,
                            format!("the option `{}` is given twice", name.value),
                        ));
                    }
                    merge.options.push((name, value));
                    if !self.take(&Token::Comma) {
                        break;
                    }
                }
                self.expect(&Token::RParen)?;
            }
        }
        Ok(())
    }

    fn version_by(&mut self) -> Result<VersionBy> {
        self.expect_word("BY")?;
        let mut version = VersionBy { columns: Vec::new(), row: false };
        loop {
            let next_is_strategy = matches!(self.sql.peek_nth_token_ref(1).token, Token::Eq);
            if self.is_word(0, "ROW") && !next_is_strategy {
                self.next();
                version.row = true;
                break;
            }
            let name = self.name("a version column")?;
            let descending = !self.take_word("ASC") && self.take_word("DESC");
            version.columns.push((name, descending));
            // `a = lww BY x, y, b = max`: the comma may lead to the next column's strategy.
            let strategy_follows =
                self.sql.peek_nth_token_ref(2).token == Token::Eq || self.sql.peek_nth_token_ref(1).token == Token::Mul;
            if self.peek().token != Token::Comma || strategy_follows {
                break;
            }
            self.next();
        }
        Ok(version)
    }

    fn count(&mut self, clause: &str, code: Code) -> Result<u64> {
        let at = self.span();
        let refuse =
            |found: &str| Diagnostic::at(code, at, format!("{clause} takes a whole number that is not negative, not {found}"));
        match self.next().token {
            Token::Number(text, _) => text.parse().map_err(|_| refuse(&text)),
            Token::Minus => {
                let digits = self.next().token.to_string();
                Err(refuse(&format!("-{digits}")))
            }
            Token::EOF => Err(Diagnostic::at(Code::Syntax, at, format!("expected a number after {clause}, the statement ends"))),
            other => Err(refuse(&format!("`{other}`"))),
        }
    }

    fn source(&mut self) -> Result<Source> {
        let span = self.span();
        let relation = self.relation("a source")?;
        let alias = if self.take_word("AS") { Some(self.name("an alias")?) } else { None };
        if matches!(relation, Relation::Query(_)) && alias.is_none() {
            return Err(Diagnostic::at(Code::Syntax, span, "a query source needs a name").help("write (SELECT ...) AS name"));
        }
        Ok(Source { relation, alias, span })
    }

    fn relation(&mut self, what: &str) -> Result<Relation> {
        match &self.peek().token {
            Token::SingleQuotedString(s) => {
                let value = s.clone();
                let span = self.next().span.into();
                Ok(Relation::Text(Name { value, quoted: true, span }))
            }
            Token::LParen => {
                self.next();
                let pieces = self.pieces(false, true)?;
                self.expect(&Token::RParen)?;
                Ok(Relation::Query(pieces))
            }
            _ => {
                let mut names = vec![self.name(what)?];
                while self.take(&Token::Period) {
                    names.push(self.name(what)?);
                }
                Ok(Relation::Table(names))
            }
        }
    }

    fn strategy(&mut self) -> Result<StrategyCall> {
        if let Token::SingleQuotedString(s) = &self.peek().token {
            let text = s.clone();
            let span: Span = self.next().span.into();
            return strategy_in_text(&text, span);
        }
        let mut name = self.name("a strategy")?;
        if name.value.eq_ignore_ascii_case("custom") && self.take(&Token::Colon) {
            let own = self.name("the name of a strategy")?;
            name = Name { value: format!("custom:{}", own.value), quoted: true, span: own.span };
        }
        let mut call = StrategyCall { name, args: Vec::new(), respect_nulls: false, by: None };
        if self.take(&Token::LParen) {
            while self.peek().token != Token::RParen {
                if self.take_words(&["RESPECT", "NULLS"]) {
                    call.respect_nulls = true;
                } else if self.is_word(0, "BY") && matches!(self.sql.peek_nth_token_ref(1).token, Token::Word(_)) {
                    call.by = Some(self.version_by()?);
                } else {
                    let named = self.sql.peek_nth_token_ref(1).token == Token::Eq;
                    let name = if named { Some(self.name("an argument")?) } else { None };
                    if named {
                        self.next();
                    }
                    let value = match self.literal()? {
                        Some((value, span)) => Argument::Literal(value, span),
                        None => Argument::Name(self.name("an argument")?),
                    };
                    call.args.push((name, value));
                }
                self.take(&Token::Comma);
            }
            self.expect(&Token::RParen)?;
        }
        if self.take_words(&["RESPECT", "NULLS"]) {
            call.respect_nulls = true;
        }
        if self.is_word(0, "BY") {
            call.by = Some(self.version_by()?);
        }
        Ok(call)
    }

    fn literal(&mut self) -> Result<Option<(Value, Span)>> {
        let span = self.span();
        let value = match &self.peek().token {
            Token::SingleQuotedString(s) => Value::text(s.as_str()),
            Token::Number(text, _) => number(text, false, span)?,
            Token::Minus => {
                self.next();
                let text = self.next().token.to_string();
                return Ok(Some((number(&text, true, span)?, span)));
            }
            Token::Word(w) if w.quote_style.is_none() => match w.value.to_ascii_lowercase().as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                _ => return Ok(None),
            },
            _ => return Ok(None),
        };
        self.next();
        Ok(Some((value, span)))
    }
}

/// `union(;)` inside a string: one text without quotes of its own.
fn bare_argument(text: &str, span: Span) -> Option<StrategyCall> {
    let (name, rest) = text.split_once('(')?;
    let argument = rest.strip_suffix(')').filter(|a| !a.is_empty() && !a.contains(['\'', '"', '(', ')']))?;
    let name = Name { value: name.trim().to_owned(), quoted: false, span };
    let args = vec![(None, Argument::Literal(Value::text(argument), span))];
    Some(StrategyCall { name, args, respect_nulls: false, by: None })
}

fn number(text: &str, negative: bool, span: Span) -> Result<Value> {
    let text = if negative { format!("-{text}") } else { text.to_owned() };
    if let Ok(v) = text.parse::<i128>() {
        return Ok(Value::Int(v));
    }
    match text.parse::<f64>() {
        Ok(v) => Ok(Value::float(v)),
        Err(_) => Err(Diagnostic::at(Code::Syntax, span, format!("`{text}` is not a number"))),
    }
}

/// A strategy written as a string: `'union(;)'`, `'custom:sum'`. All of it has the string's place.
fn strategy_in_text(text: &str, span: Span) -> Result<StrategyCall> {
    let here = |mut e: Box<Diagnostic>| {
        e.span = Some(span);
        e
    };
    if let Some(own) = text.strip_prefix("custom:") {
        let name = Name { value: format!("custom:{}", own.trim()), quoted: true, span };
        return Ok(StrategyCall { name, args: Vec::new(), respect_nulls: false, by: None });
    }
    let tokens = tokenize(text).map_err(here)?;
    let mut parser = Parser::new(text, tokens);
    let mut call = match &parser.peek().token {
        Token::Word(_) => match (parser.strategy(), bare_argument(text, span)) {
            (Ok(call), _) => call,
            (Err(_), Some(call)) => return Ok(call),
            (Err(e), None) => return Err(here(e)),
        },
        _ => return Err(Diagnostic::at(Code::UnknownStrategy, span, format!("no strategy is called `{text}`"))),
    };
    if parser.peek().token != Token::EOF {
        return Err(Diagnostic::at(Code::UnknownStrategy, span, format!("no strategy is called `{text}`")));
    }
    call.name.span = span;
    for (name, argument) in &mut call.args {
        if let Some(name) = name {
            name.span = span;
        }
        match argument {
            Argument::Name(n) => n.span = span,
            Argument::Literal(_, s) => *s = span,
        }
    }
    Ok(call)
}
