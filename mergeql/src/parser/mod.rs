//! From text to [`Statement`]. Tokens and expressions are sqlparser's; the clauses of MERGE are read here; everything that is not
//! ours is passed on as it was written.

mod merge;
mod models;
mod script;
mod statement;
mod strategy;
mod tables;

pub(crate) use script::segments;
pub use script::{first_word, is_incomplete, reads, split};

use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result, Span};
use mergeql_udfs::Code;
use script::{LineIndex, check_chains, tokenize};
use sqlparser::ast::Expr;
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::{Parser as SqlParser, ParserError};
use sqlparser::tokenizer::{Token, TokenWithSpan};

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
    check_chains(&tokens).map_err(|e| e.in_text(text))?;
    let mut parser = Parser::new(text, tokens);
    parser.statement().map_err(|e| e.in_text(text))
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
}
