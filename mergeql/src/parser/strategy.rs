//! Strategies as they are called, and literals.

use super::Parser;
use super::script::tokenize;
use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result, Span};
use mergeql_udfs::{Code, Value};
use sqlparser::tokenizer::Token;

impl Parser<'_> {
    pub(super) fn strategy(&mut self) -> Result<StrategyCall> {
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

    pub(super) fn literal(&mut self) -> Result<Option<(Value, Span)>> {
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
