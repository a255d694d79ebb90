//! Statements, and the stretches of SQL that are not ours.

use super::Parser;
use super::script::{split, tokenize};
use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result, nearest};
use mergeql_udfs::Code;
use sqlparser::ast::{Expr, WindowType, visit_expressions_mut};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token;
use std::ops::ControlFlow;

/// How statements begin that are easily misspelled.
const BEGINNINGS: [&str; 8] = ["MERGE", "EXPLAIN", "VERIFY", "SELECT", "CREATE", "INSERT", "UPDATE", "DELETE"];

impl Parser<'_> {
    pub(super) fn statement(&mut self) -> Result<Statement> {
        if matches!(self.peek().token, Token::EOF | Token::SemiColon) {
            return Err(Diagnostic::new(Code::Syntax, "the statement is empty"));
        }
        // A word that SQL does not know may be one that is misspelled; others are for the host to know.
        if let Token::Word(word) = &self.peek().token
            && word.quote_style.is_none()
            && word.keyword == Keyword::NoKeyword
            && !BEGINNINGS.iter().any(|known| word.value.eq_ignore_ascii_case(known))
            && nearest(&word.value, BEGINNINGS).is_some()
        {
            let error = Diagnostic::at(Code::Syntax, self.span(), format!("no statement begins with `{}`", word.value));
            return Err(error.suggest(&word.value.clone(), BEGINNINGS));
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
        if self.merges_models(skip) && explain != Explain::Analyze {
            (0..skip + 2).for_each(|_| drop(self.next()));
            return Ok(Statement::MergeModels { explain: explain == Explain::Plan, models: Box::new(self.models()?) });
        }
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
    pub(super) fn has_when(&self) -> bool {
        let mut depth = 0usize;
        for token in tokenize(&self.text[self.here()..]).unwrap_or_default() {
            match &token.token {
                Token::LParen => depth += 1,
                Token::RParen => depth = depth.saturating_sub(1),
                Token::EOF | Token::SemiColon => return false,
                Token::Word(w) if depth == 0 && w.quote_style.is_none() && w.value.eq_ignore_ascii_case("WHEN") => return true,
                _ => {}
            }
        }
        false
    }

    pub(super) fn merge_statement(&mut self, explain: Explain) -> Result<Statement> {
        let merge = Box::new(self.merge()?);
        self.end()?;
        Ok(Statement::Merge { explain, merge })
    }

    pub(super) fn merge_into(&mut self, explain: Explain) -> Result<Statement> {
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
                .within(merge.place(clause))
                .help("filter inside a source: MERGE INTO t USING (SELECT ... WHERE ...) AS s ON ..."));
        }
        Ok(Statement::MergeInto { explain, target, merge })
    }

    pub(super) fn create_table_as_merge(&mut self) -> Result<Option<Into>> {
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

    /// `expr over value`: the last two words only say what the expression is about.
    fn rank(&mut self) -> Result<Expr> {
        let mut rank = self.expression()?;
        // `1 + length(value) over value` reads as a named window to SQL.
        let _ = visit_expressions_mut(&mut rank, |expr| {
            if let Expr::Function(f) = expr
                && matches!(&f.over, Some(WindowType::NamedWindow(window)) if window.value.eq_ignore_ascii_case("value"))
            {
                f.over = None;
            }
            ControlFlow::<()>::Continue(())
        });
        if self.take_word("OVER") {
            self.expect_word("VALUE")?;
        }
        Ok(rank)
    }

    pub(super) fn create_strategy(&mut self) -> Result<Statement> {
        self.next();
        let or_replace = self.take_words(&["OR", "REPLACE"]);
        self.expect_word("STRATEGY")?;
        let mut name = self.name("the name of a strategy")?;
        if !name.quoted {
            name.value = name.value.to_ascii_lowercase();
        }
        self.expect_word("AS")?;
        let from = self.here();
        let greatest = self.is_word(0, "GREATEST");
        let body = if (greatest || self.is_word(0, "LEAST")) && self.is_word(1, "BY") {
            self.next();
            self.next();
            self.expect(&Token::LParen)?;
            let mut ranks = vec![self.rank()?];
            while self.take(&Token::Comma) {
                ranks.push(self.rank()?);
            }
            self.expect(&Token::RParen)?;
            StrategyBody::By { greatest, ranks }
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
        // Without a comment behind it, which would go on over what is written after it.
        let text = split(&self.text[from..self.here()])?.first().copied().unwrap_or_default().to_owned();
        self.end()?;
        Ok(Statement::CreateStrategy { or_replace, name, body, text })
    }

    pub(super) fn verify(&mut self) -> Result<Statement> {
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

    pub(super) fn passed_on(&mut self) -> Result<Statement> {
        let pieces = self.pieces(false)?;
        Ok(Statement::Sql(pieces))
    }

    /// SQL up to the end, or up to the parenthesis that closes it, with the merges in it.
    pub(super) fn pieces(&mut self, inside: bool) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut from = self.here();
        let mut depth = 0usize;
        let mut previous = Token::EOF;
        let mut insert = false;
        // Up to its AS, parentheses of CREATE hold columns, one of which may be called `merge`.
        let mut defines = !inside && self.is_word(0, "CREATE");
        if inside && self.is_word(0, "MERGE") && self.looks_like_merge() {
            previous = Token::LParen;
        }
        loop {
            insert |= !inside && depth == 0 && self.is_word(0, "INSERT");
            defines &= !self.is_word(0, "AS");
            let after = (previous == Token::LParen && !defines)
                || matches!(&previous, Token::Word(w) if insert || w.quote_style.is_none() && w.value.eq_ignore_ascii_case("AS"))
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
            if matches!(&previous, Token::Word(w) if w.quote_style.is_none() && (w.value.eq_ignore_ascii_case("FROM") || w.value.eq_ignore_ascii_case("JOIN")))
                && let Some(function) = self.table_function()
            {
                let start = self.here();
                pieces.push(Piece::Text(format!("{}(", &self.text[from..start])));
                pieces.push(Piece::Merge(Box::new(self.table_call(function)?)));
                from = self.here();
                // A query in FROM needs a name in some hosts.
                if !self.names_table() {
                    pieces.push(Piece::Text(format!(") AS {} ", function.name)));
                } else {
                    pieces.push(Piece::Text(") ".to_owned()));
                }
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
    pub(super) fn looks_like_merge(&self) -> bool {
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
}
