//! MERGE and its clauses.

use super::{CLAUSES, MAX_NESTING, Parser};
use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result, Span, nearest};
use mergeql_udfs::{Code, Value};
use sqlparser::tokenizer::Token;

impl Parser<'_> {
    pub(super) fn merge(&mut self) -> Result<Merge> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(Diagnostic::at(Code::LimitExceeded, self.span(), format!("merges nest deeper than {MAX_NESTING}")));
        }
        let mut merge = Merge { sources: vec![self.source()?], ..Merge::default() };
        while self.take(&Token::Comma) {
            merge.sources.push(self.source()?);
        }
        let mut no_key = None;
        if self.take_word("ON") {
            merge.key = self.column_list("a key column")?;
        } else {
            no_key = Some(self.unexpected("ON and the key, or a comma and another source"));
        }
        if matches!(self.peek().token, Token::Period | Token::Eq) {
            return Err(self.unexpected("a clause or the end").help("ON takes the names of key columns, not a condition: ON id"));
        }
        if self.peek().token == Token::Comma {
            return Err(self.unexpected("a clause or the end").help("several key columns stand in parentheses: ON (id, region)"));
        }
        loop {
            let at = self.span();
            let Some(clause) = CLAUSES.iter().find(|c| self.is_word(0, c)) else { break };
            if merge.place(clause).is_some() {
                let full = match *clause {
                    "VERSION" | "DELETE" | "ORDER" => format!("{clause} BY"),
                    other => other.to_owned(),
                };
                return Err(Diagnostic::at(Code::DuplicateClause, at, format!("{full} is given twice")));
            }
            merge.clauses.insert(*clause, at);
            self.next();
            self.clause(clause, &mut merge, at)?;
        }
        // Schemas have no keys.
        if let Some(error) = no_key.filter(|_| merge.returning != Returning::Schema) {
            return Err(error);
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

    /// One name, or several in parentheses.
    pub(super) fn column_list(&mut self, what: &str) -> Result<Vec<Name>> {
        if self.take(&Token::LParen) {
            let names = self.names(what)?;
            self.expect(&Token::RParen)?;
            return Ok(names);
        }
        Ok(vec![self.name(what)?])
    }

    pub(super) fn clause(&mut self, clause: &str, merge: &mut Merge, at: Span) -> Result<()> {
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
                } else if self.take_word("STATE") {
                    Returning::State
                } else if self.take_word("DELTA") {
                    Returning::Delta
                } else if self.take_word("SCHEMA") {
                    Returning::Schema
                } else if self.take_word("UNIQUE") {
                    Returning::Unique
                } else {
                    return Err(self.unexpected("ROWS, CONFLICTS, PROVENANCE, STATE, DELTA, SCHEMA or UNIQUE"));
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

    pub(super) fn version_by(&mut self) -> Result<VersionBy> {
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

    pub(super) fn count(&mut self, clause: &str, code: Code) -> Result<u64> {
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

    pub(super) fn source(&mut self) -> Result<Source> {
        let span = self.span();
        let relation = self.relation("a source")?;
        let alias = if self.take_word("AS") { Some(self.name("an alias")?) } else { None };
        if matches!(relation, Relation::Query(_)) && alias.is_none() {
            return Err(Diagnostic::at(Code::Syntax, span, "a query source needs a name").help("write (SELECT ...) AS name"));
        }
        Ok(Source { relation, alias, span, part: false })
    }

    pub(super) fn relation(&mut self, what: &str) -> Result<Relation> {
        match &self.peek().token {
            Token::SingleQuotedString(s) => {
                let value = s.clone();
                let span = self.next().span.into();
                Ok(Relation::Text(Name { value, quoted: true, span }))
            }
            Token::LParen => {
                self.next();
                let pieces = self.pieces(true)?;
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
}
