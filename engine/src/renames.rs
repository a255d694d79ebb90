//! ALTER TABLE ... RENAME TO ..., of tables and views: programs like dbt make a relation beside the one that is there, and change their names.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use datafusion::common::TableReference;
use datafusion::prelude::DataFrame;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};
use mergeql_lang::lower::quote;
use mergeql_udfs::Code;
use std::sync::Arc;

/// What is renamed, and to what.
#[derive(Debug, PartialEq)]
pub(crate) struct Renaming {
    from: TableReference,
    to: String,
    if_exists: bool,
}

/// The statement as one that renames a table or a view.
pub(crate) fn renaming(sql: &str) -> Option<Renaming> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().ok()?;
    let tokens: Vec<Token> = tokens.into_iter().filter(|t| !matches!(t, Token::Whitespace(_) | Token::SemiColon)).collect();
    let mut rest = &tokens[..];
    let word = |rest: &mut &[Token], wanted: &str| {
        let is = matches!(rest.first(), Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(wanted));
        *rest = if is { &rest[1..] } else { rest };
        is
    };
    let name = |rest: &mut &[Token]| match rest.split_first() {
        Some((Token::Word(w), behind)) => {
            *rest = behind;
            Some(if w.quote_style.is_some() { w.value.clone() } else { w.value.to_ascii_lowercase() })
        }
        _ => None,
    };
    let rest = &mut rest;
    if !word(rest, "ALTER") || !(word(rest, "TABLE") || word(rest, "VIEW")) {
        return None;
    }
    let if_exists = word(rest, "IF") && word(rest, "EXISTS");
    let mut parts = vec![name(rest)?];
    while rest.first() == Some(&Token::Period) {
        *rest = &rest[1..];
        parts.push(name(rest)?);
    }
    if !word(rest, "RENAME") || !word(rest, "TO") {
        return None;
    }
    let to = name(rest)?;
    let from = match &parts[..] {
        [table] => TableReference::bare(table.clone()),
        [schema, table] => TableReference::partial(schema.clone(), table.clone()),
        [catalog, schema, table] => TableReference::full(catalog.clone(), schema.clone(), table.clone()),
        _ => return None,
    };
    rest.is_empty().then_some(Renaming { from, to, if_exists })
}

/// The statement that made a view or an external table, under another name.
fn renamed(text: &str, to: &str) -> Option<String> {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().ok()?;
    let mut tokens = tokens.iter().filter(|t| !matches!(t.token, Token::Whitespace(_)));
    let is = |token: &Token, words: &[&str]| matches!(token, Token::Word(w) if w.quote_style.is_none() && words.iter().any(|word| w.value.eq_ignore_ascii_case(word)));
    tokens.find(|t| is(&t.token, &["VIEW", "TABLE"]))?;
    let first = tokens.find(|t| !is(&t.token, &["IF", "NOT", "EXISTS"]))?;
    // Names and the points between them.
    let (mut last, mut after_point) = (first, true);
    for token in std::iter::once(first).chain(tokens) {
        match &token.token {
            Token::Word(_) if after_point => after_point = false,
            Token::Period if !after_point => after_point = true,
            _ => break,
        }
        last = token;
    }
    let offset = |at: Location| {
        let line = text.split_inclusive('\n').take(at.line.saturating_sub(1) as usize).map(str::len).sum::<usize>();
        let column = text[line..].char_indices().nth(at.column.saturating_sub(1) as usize);
        column.map_or(text.len(), |(column, _)| line + column)
    };
    let (start, end) = (offset(first.span.start), offset(last.span.end));
    (end > start).then(|| format!("{}{}{}", &text[..start], quote(to), &text[end..]))
}

impl MergeContext {
    /// Gives a table or a view another name.
    ///
    /// # Errors
    /// `unknown_source` if there is none, `invalid_argument` if the new name is taken.
    pub(crate) async fn rename(&self, renaming: &Renaming) -> Result<DataFrame> {
        let Renaming { from, to, if_exists } = renaming;
        let _changing = self.changing().await?;
        if !self.is_default(from) {
            return Err(MergeError::new(Code::Unsupported, format!("`{from}` is not of the default schema, and keeps its name")));
        }
        let (from, names) = (from.table(), &self.shared.names);
        if self.is_temporary(from) {
            return Err(MergeError::new(Code::Unsupported, format!("`{from}` is a temporary table, and keeps its name")));
        }
        let known = |name: &str| {
            names.has_table(name)
                || self.memory(|m| {
                    m.views.contains_key(name) || m.manifest.tables.contains_key(name) || m.manifest.definitions.contains_key(name)
                })
        };
        if !known(from) {
            return match if_exists {
                true => self.count("tables", 0),
                false => Err(MergeError::new(Code::UnknownSource, format!("there is no table or view `{from}`"))),
            };
        }
        let taken = || {
            MergeError::new(Code::InvalidArgument, format!("there is a table or view `{to}` already"))
                .help("drop it first, or choose another name")
        };
        if known(to) {
            return Err(taken());
        }
        let defined = |text: String| {
            renamed(&text, to)
                .ok_or_else(|| MergeError::new(Code::Unsupported, format!("`{from}` cannot be renamed: it is made by {text}")))
        };
        if let Some(store) = &self.shared.store {
            let _lock = store.lock()?;
            let mut manifest = store.read()?;
            if manifest.tables.contains_key(to) || manifest.definitions.contains_key(to) {
                return Err(taken());
            }
            let (table, text) = (manifest.tables.remove(from), manifest.definitions.remove(from));
            // What the program was started with is not in the folder.
            if table.is_some() || text.is_some() {
                manifest.tables.extend(table.map(|table| (to.clone(), table)));
                manifest.definitions.extend(text.map(|text| defined(text).map(|text| (to.clone(), text))).transpose()?);
                store.write(&manifest)?;
                self.forget(from)?;
                self.refresh().await?;
                return self.count("tables", 1);
            }
        }
        if let Some(text) = self.memory(|m| m.views.get(from).cloned()) {
            let text = defined(text)?;
            self.define(&text).await?;
            self.memory(|m| {
                m.views.remove(from);
                m.views.insert(to.clone(), text)
            });
        } else {
            let resolution = self.memory(|m| m.resolutions.get(from).cloned());
            let stored = if resolution.is_some() { self.storage_name(from) } else { from.to_owned() };
            let table: Arc<_> = self.session().table_provider(TableReference::bare(stored)).await?;
            self.publish(to, table, resolution).await?;
        }
        self.forget(from)?;
        self.count("tables", 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamings_are_told_from_other_statements() {
        let of = |sql: &str| renaming(sql).map(|r| (r.from.to_string(), r.to, r.if_exists));
        assert_eq!(of("ALTER TABLE a RENAME TO B;"), Some(("a".into(), "b".into(), false)));
        assert_eq!(
            of("alter view if exists \"d\".\"public\".\"A\" rename to \"B c\""),
            Some(("d.public.A".into(), "B c".into(), true))
        );
        for other in
            ["ALTER TABLE a RENAME COLUMN x TO y", "ALTER TABLE a ADD COLUMN x INT", "ALTER TABLE a RENAME TO b c", "SELECT 1"]
        {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_definition_takes_another_name() {
        let of = |text: &str| renamed(text, "n w").expect("a name");
        assert_eq!(of("CREATE VIEW a AS SELECT 1 AS view"), "CREATE VIEW \"n w\" AS SELECT 1 AS view");
        assert_eq!(of("create or replace view \"d\".\"a b\"(x) as select 1"), "create or replace view \"n w\"(x) as select 1");
        assert_eq!(
            of("CREATE EXTERNAL TABLE IF NOT EXISTS t STORED AS CSV LOCATION 'view.csv'"),
            "CREATE EXTERNAL TABLE IF NOT EXISTS \"n w\" STORED AS CSV LOCATION 'view.csv'"
        );
        assert_eq!(of("CREATE /* TABLE */\nVIEW ä /* b */ AS SELECT 1"), "CREATE /* TABLE */\nVIEW \"n w\" /* b */ AS SELECT 1");
    }
}
