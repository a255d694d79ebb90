//! `MERGE MODELS`: models, rules and options.

use super::Parser;
use crate::ast::*;
use crate::diagnostic::{Diagnostic, Result};
use mergeql_udfs::{Code, Value};
use sqlparser::tokenizer::Token;

impl Parser<'_> {
    /// Whether MERGE, `skip` tokens ahead, begins a merge of models: a table may be called so, too.
    pub(super) fn merges_models(&self, skip: usize) -> bool {
        self.is_word(skip, "MERGE")
            && self.is_word(skip + 1, "MODELS")
            && matches!(self.sql.peek_nth_token_ref(skip + 2).token, Token::SingleQuotedString(_))
    }

    fn quoted(&mut self, what: &str) -> Result<Name> {
        match &self.peek().token {
            Token::SingleQuotedString(s) => {
                let value = s.clone();
                Ok(Name { value, quoted: true, span: self.next().span.into() })
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn model(&mut self) -> Result<ModelSource> {
        let path = self.quoted("a model in quotes")?;
        let mut source = ModelSource { path, alias: None, weight: None };
        loop {
            if source.alias.is_none() && self.take_word("AS") {
                source.alias = Some(self.name("a name for the model")?);
            } else if source.weight.is_none() && self.take_word("WEIGHT") {
                let at = self.span();
                source.weight = match self.setting()? {
                    Setting::Number(weight) if weight.is_finite() => Some(weight),
                    _ => return Err(Diagnostic::at(Code::InvalidArgument, at, "a weight is a number")),
                };
            } else {
                return Ok(source);
            }
        }
    }

    fn setting(&mut self) -> Result<Setting> {
        let at = self.span();
        if self.take(&Token::LBracket) {
            let mut items = Vec::new();
            while self.peek().token != Token::RBracket {
                items.push(self.setting()?);
                if !self.take(&Token::Comma) {
                    break;
                }
            }
            self.expect(&Token::RBracket)?;
            return Ok(Setting::List(items));
        }
        match self.literal()? {
            Some((Value::Text(text), _)) => Ok(Setting::Text(text.to_string())),
            Some((Value::Bool(flag), _)) => Ok(Setting::Flag(flag)),
            Some((Value::Int(n), _)) => Ok(Setting::Number(n as f64)),
            Some((Value::Float(v), _)) => Ok(Setting::Number(v)),
            Some((other, _)) => Err(Diagnostic::at(Code::InvalidArgument, at, format!("{other} is no value of a parameter"))),
            None => Err(self.unexpected("a number, a text, true, false or a list")),
        }
    }

    /// `name = value, ...` up to the parenthesis.
    fn settings(&mut self) -> Result<Vec<(Name, Setting)>> {
        let mut settings: Vec<(Name, Setting)> = Vec::new();
        self.expect(&Token::LParen)?;
        while self.peek().token != Token::RParen {
            let name = self.name("a parameter")?;
            if settings.iter().any(|(n, _)| n.value.eq_ignore_ascii_case(&name.value)) {
                return Err(Diagnostic::at(Code::DuplicateClause, name.span, format!("`{}` is given twice", name.value)));
            }
            if !self.take(&Token::Eq) && !self.take(&Token::Assignment) {
                return Err(self.unexpected("`=`"));
            }
            let value = self.setting()?;
            settings.push((name, value));
            if !self.take(&Token::Comma) {
                break;
            }
        }
        self.expect(&Token::RParen)?;
        Ok(settings)
    }

    fn model_rule(&mut self) -> Result<ModelRule> {
        let span = self.span();
        let pattern = match &self.peek().token {
            Token::Mul => {
                self.next();
                "*".to_owned()
            }
            _ => self.quoted("a pattern of tensor names in quotes, or `*`")?.value,
        };
        self.expect(&Token::Eq)?;
        let strategy = self.name("a strategy")?;
        let settings = if self.peek().token == Token::LParen { self.settings()? } else { Vec::new() };
        Ok(ModelRule { pattern, span, strategy, settings })
    }

    /// What follows `MERGE MODELS`.
    pub(super) fn models(&mut self) -> Result<Models> {
        let mut models = Models::default();
        loop {
            models.sources.push(self.model()?);
            if !self.take(&Token::Comma) {
                break;
            }
        }
        loop {
            let span = self.span();
            let again = |given: bool, clause: &str| match given {
                true => Err(Diagnostic::at(Code::DuplicateClause, span, format!("{clause} is given twice"))),
                false => Ok(()),
            };
            if self.take_word("BASE") {
                again(models.base.is_some(), "BASE")?;
                let base = self.model()?;
                if base.weight.is_some() {
                    return Err(Diagnostic::at(
                        Code::Syntax,
                        span,
                        "a base has no weight: it is what the models are compared with",
                    )
                    .help("leave WEIGHT out behind BASE"));
                }
                models.base = Some(base);
            } else if self.take_word("STRATEGY") {
                again(!models.rules.is_empty(), "STRATEGY")?;
                loop {
                    models.rules.push(self.model_rule()?);
                    if !self.take(&Token::Comma) {
                        break;
                    }
                }
            } else if self.take_word("WITH") {
                again(!models.options.is_empty(), "WITH")?;
                models.options = self.settings()?;
            } else if self.take_word("INTO") {
                again(models.into.is_some(), "INTO")?;
                models.into = Some(self.quoted("a folder, or a file that ends in .safetensors, in quotes")?);
            } else {
                self.end()?;
                return Ok(models);
            }
        }
    }
}
