//! Table functions: other ways to write a MERGE, where a table may stand.

use super::Parser;
use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result, Span};
use mergeql_udfs::{Code, Value};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token;

/// A table function.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableFunction {
    pub(super) name: &'static str,
    usage: &'static str,
    build: fn(&mut Parser<'_>, Span) -> Result<Merge>,
}

const FUNCTIONS: [TableFunction; 5] = [
    TableFunction { name: "delta_between", usage: "delta_between(before, after, key [, version])", build: between },
    TableFunction { name: "delta_apply", usage: "delta_apply(table, delta, key [, version])", build: apply },
    TableFunction { name: "delta_compose", usage: "delta_compose(delta, delta, key [, version])", build: compose },
    TableFunction {
        name: "schema_merge",
        usage: "schema_merge(a, b [, 'union' | 'intersection' | 'left' | 'right'])",
        build: schema,
    },
    TableFunction { name: "dedup", usage: "dedup(table, columns [, threshold])", build: dedup },
];

/// The column of a delta that says which rows are gone.
const GONE: &str = "_deleted";

fn name(value: &str, span: Span) -> Name {
    Name { value: value.to_owned(), quoted: false, span }
}

impl Parser<'_> {
    /// The table function that is called next.
    pub(super) fn table_function(&self) -> Option<TableFunction> {
        let called = self.sql.peek_nth_token_ref(1).token == Token::LParen;
        FUNCTIONS.into_iter().find(|f| called && self.is_word(0, f.name))
    }

    /// The call as the merge that it stands for.
    pub(super) fn table_call(&mut self, function: TableFunction) -> Result<Merge> {
        let at = self.next().span.into();
        self.next();
        let usage = |e: Box<Diagnostic>| if e.help.is_none() { e.help(format!("usage: {}", function.usage)) } else { e };
        let merge = (function.build)(self, at).map_err(usage)?;
        self.expect(&Token::RParen).map_err(usage)?;
        Ok(merge)
    }

    /// Whether a name for the table follows.
    pub(super) fn names_table(&self) -> bool {
        match &self.peek().token {
            Token::Word(w) => w.keyword == Keyword::AS || w.keyword == Keyword::NoKeyword || w.quote_style.is_some(),
            _ => false,
        }
    }

    /// A comma, where another argument may follow.
    fn another(&mut self) -> bool {
        self.take(&Token::Comma)
    }

    fn two_sources(&mut self) -> Result<Vec<Source>> {
        let first = self.source()?;
        self.expect(&Token::Comma)?;
        Ok(vec![first, self.source()?])
    }

    /// Names of columns: bare, in parentheses, or as a text with commas.
    fn columns_argument(&mut self, what: &str) -> Result<Vec<Name>> {
        if let Token::SingleQuotedString(text) = &self.peek().token {
            let names = text.clone();
            let span: Span = self.next().span.into();
            return Ok(names.split(',').map(|n| name(n.trim(), span)).collect());
        }
        self.column_list(what)
    }

    /// The key, and behind it perhaps the version.
    fn key_and_version(&mut self, at: Span) -> Result<(Vec<Name>, Vec<Name>)> {
        self.expect(&Token::Comma)?;
        let key = self.columns_argument("the key")?;
        let version = if self.another() { self.columns_argument("the version")? } else { vec![name("_ts", at)] };
        Ok((key, version))
    }
}

fn between(p: &mut Parser<'_>, at: Span) -> Result<Merge> {
    let sources = p.two_sources()?;
    let (key, version) = p.key_and_version(at)?;
    let columns = version.into_iter().map(|n| (n, false)).collect();
    let version = Some(VersionBy { columns, row: false });
    Ok(Merge { sources, key, version, returning: Returning::Delta, ..Merge::default() })
}

/// Newest version first; a deletion is newer than the row of the same version that it deletes.
fn newest(sources: Vec<Source>, key: Vec<Name>, version: Vec<Name>, at: Span) -> Merge {
    let columns = version.into_iter().chain([name(GONE, at)]).map(|n| (n, false)).collect();
    let lww = StrategyCall { name: name("lww", at), args: Vec::new(), respect_nulls: true, by: None };
    Merge {
        sources,
        key,
        version: Some(VersionBy { columns, row: false }),
        strategies: vec![(Target::Default(at), lww)],
        ..Merge::default()
    }
}

fn apply(p: &mut Parser<'_>, at: Span) -> Result<Merge> {
    let sources = p.two_sources()?;
    let (key, version) = p.key_and_version(at)?;
    let hidden = (name("deletion", at), Value::text("hidden"));
    Ok(Merge { delete: Some(name(GONE, at)), options: vec![hidden], ..newest(sources, key, version, at) })
}

fn compose(p: &mut Parser<'_>, at: Span) -> Result<Merge> {
    let sources = p.two_sources()?;
    let (key, version) = p.key_and_version(at)?;
    Ok(newest(sources, key, version, at))
}

fn schema(p: &mut Parser<'_>, _: Span) -> Result<Merge> {
    let sources = p.two_sources()?;
    let mut options = Vec::new();
    if p.another() {
        let span = p.span();
        match p.literal()? {
            Some((policy @ Value::Text(_), _)) => options.push((name("policy", span), policy)),
            _ => return Err(Diagnostic::at(Code::Syntax, span, "expected a policy in quotes")),
        }
    }
    Ok(Merge { sources, options, returning: Returning::Schema, ..Merge::default() })
}

fn dedup(p: &mut Parser<'_>, _: Span) -> Result<Merge> {
    let sources = vec![p.source()?];
    p.expect(&Token::Comma)?;
    let key = p.columns_argument("a column")?;
    let mut options = Vec::new();
    if p.another() {
        let span = p.span();
        match p.literal()? {
            Some((value, _)) => options.push((name("threshold", span), value)),
            None => return Err(p.unexpected("a threshold from 0.1 to 1")),
        }
    }
    Ok(Merge { sources, key, options, returning: Returning::Unique, ..Merge::default() })
}
