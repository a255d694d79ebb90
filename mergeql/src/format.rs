//! `mergeql fmt`: one way to lay out a statement.

use crate::ast::*;
use crate::diagnostic::Result;
use crate::exact::printed;
use crate::lower::text;
use crate::parser::{is_incomplete, parse, segments};
use mergeql_udfs::Value;
use std::fmt::Write;

/// Lays out every statement of a script: keywords in capitals, one clause a line. Statements that are not ours, and those with comments
/// in them, stay as they are; no comment is lost. Formatting twice changes nothing.
///
/// # Errors
/// As [`parse`].
///
/// ```
/// let out = mergeql_lang::format("-- why\nmerge a,b on id strategy x=max where x>1").unwrap();
/// assert_eq!(out, "-- why\nMERGE a, b\nON id\nSTRATEGY x = max\nWHERE x > 1;\n");
/// ```
pub fn format(script: &str) -> Result<String> {
    let mut out = String::new();
    for segment in segments(script)? {
        if !segment.comments.trim_matches(|c: char| c.is_whitespace() || c == ';').is_empty() {
            out.push_str(segment.comments);
            out.push('\n');
        }
        if segment.statement.is_empty() {
            continue;
        }
        let parsed = parse(segment.statement)?;
        let text = match segment.commented {
            Some(text) => text.to_owned(),
            None => checked_text(parsed, segment.statement),
        };
        out.push_str(&text);
        // A semicolon behind a line comment would be part of it.
        out.push_str(if is_incomplete(&format!("{text};")) { "\n;\n" } else { ";\n" });
    }
    Ok(out)
}

/// The laid out statement, if it reads back as itself; expressions are printed by the SQL parser, which does not always manage that.
fn checked_text(statement: Statement, written: &str) -> String {
    let text = statement_text(statement, written);
    let stable = parse(&text).is_ok_and(|again| statement_text(again, &text) == text);
    if stable { text } else { written.to_owned() }
}

fn statement_text(statement: Statement, written: &str) -> String {
    match statement {
        // CREATE TABLE IF NOT EXISTS ... AS MERGE, for which INTO has no words.
        Statement::Merge { merge, .. } if merge.into.as_ref().is_some_and(|into| into.if_not_exists) => written.to_owned(),
        Statement::Merge { explain, merge } => format!("{}MERGE {}", explain_word(explain), merge_text(&merge)),
        Statement::MergeInto { explain, target, merge } => {
            format!("{}MERGE INTO {}\nUSING {}", explain_word(explain), relation(&target), merge_text(&merge))
        }
        Statement::MergeModels { explain, models } => {
            format!("{}MERGE MODELS {}", if explain { "EXPLAIN " } else { "" }, models_text(&models))
        }
        Statement::CreateStrategy { or_replace, name: n, text, .. } => {
            format!("CREATE {}STRATEGY {} AS {text}", if or_replace { "OR REPLACE " } else { "" }, name(&n))
        }
        Statement::DropStrategy { if_exists, name: n } => {
            format!("DROP STRATEGY {}{}", if if_exists { "IF EXISTS " } else { "" }, name(&n))
        }
        Statement::ShowStrategies => "SHOW STRATEGIES".to_owned(),
        Statement::Verify { .. } | Statement::Sql(_) => written.to_owned(),
    }
}

/// The clauses that say how rows are resolved, as a merge of nothing: what a table that keeps states remembers.
pub fn resolution(merge: &Merge) -> String {
    let kept = Merge {
        sources: Vec::new(),
        key: merge.key.clone(),
        strategies: merge.strategies.clone(),
        version: merge.version.clone(),
        delete: merge.delete.clone(),
        ..Merge::default()
    };
    format!("MERGE t {}", clauses(&kept, " ").trim_start())
}

/// A merge of models, laid out: what follows `MERGE MODELS`.
pub fn models_text(models: &Models) -> String {
    let source = |m: &ModelSource| {
        let alias = m.alias.as_ref().map(|a| format!(" AS {}", name(a))).unwrap_or_default();
        let weight = m.weight.map(|w| format!(" WEIGHT {w}")).unwrap_or_default();
        text(&m.path.value) + &alias + &weight
    };
    let settings = |all: &[(Name, Setting)]| {
        let items: Vec<String> = all.iter().map(|(n, v)| format!("{} = {}", name(n), setting(v))).collect();
        if items.is_empty() { String::new() } else { format!("({})", items.join(", ")) }
    };
    let rule = |r: &ModelRule| {
        let pattern = if r.pattern == "*" { "*".to_owned() } else { text(&r.pattern) };
        format!("{pattern} = {}{}", name(&r.strategy), settings(&r.settings))
    };
    let mut out = models.sources.iter().map(source).collect::<Vec<_>>().join(", ");
    if let Some(base) = &models.base {
        out += &format!("\nBASE {}", source(base));
    }
    if !models.rules.is_empty() {
        out += &format!("\nSTRATEGY {}", models.rules.iter().map(rule).collect::<Vec<_>>().join(", "));
    }
    if !models.options.is_empty() {
        out += &format!("\nWITH {}", settings(&models.options));
    }
    if let Some(into) = &models.into {
        out += &format!("\nINTO {}", text(&into.value));
    }
    out
}

fn setting(value: &Setting) -> String {
    match value {
        Setting::Number(v) => v.to_string(),
        Setting::Flag(v) => v.to_string(),
        Setting::Text(v) => text(v),
        Setting::List(items) => format!("[{}]", items.iter().map(setting).collect::<Vec<_>>().join(", ")),
    }
}

fn explain_word(explain: Explain) -> &'static str {
    match explain {
        Explain::No => "",
        Explain::Plan => "EXPLAIN ",
        Explain::Analyze => "EXPLAIN ANALYZE ",
    }
}

fn name(name: &Name) -> String {
    let plain = name.value.chars().enumerate().all(|(i, c)| c == '_' || c.is_alphabetic() || (i > 0 && c.is_alphanumeric()));
    if name.quoted || !plain { format!("\"{}\"", name.value.replace('"', "\"\"")) } else { name.value.clone() }
}

fn names<'a>(all: impl IntoIterator<Item = &'a Name>) -> String {
    all.into_iter().map(name).collect::<Vec<_>>().join(", ")
}

pub(crate) fn relation(r: &Relation) -> String {
    match r {
        Relation::Table(parts) => parts.iter().map(name).collect::<Vec<_>>().join("."),
        Relation::Text(t) => text(&t.value),
        Relation::Query(pieces) => {
            let mut out = "(".to_owned();
            for piece in pieces {
                match piece {
                    Piece::Text(t) => out.push_str(t),
                    Piece::Merge(m) => out.push_str(&format!("MERGE {}", clauses(m, " "))),
                }
            }
            out + ")"
        }
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Text(t) => text(t),
        other => other.to_string(),
    }
}

fn version(by: &VersionBy) -> String {
    let mut parts: Vec<String> =
        by.columns.iter().map(|(n, descending)| format!("{}{}", name(n), if *descending { " DESC" } else { "" })).collect();
    if by.row {
        parts.push("ROW".to_owned());
    }
    parts.join(", ")
}

fn strategy(call: &StrategyCall) -> String {
    let mut out = match call.name.value.strip_prefix("custom:") {
        Some(_) => text(&call.name.value),
        None => name(&call.name),
    };
    if !call.args.is_empty() {
        let args = call.args.iter().map(|(n, value)| {
            let value = match value {
                Argument::Name(n) => name(n),
                Argument::Literal(v, _) => literal(v),
            };
            n.as_ref().map_or(value.clone(), |n| format!("{} = {value}", name(n)))
        });
        let _ = write!(out, "({})", args.collect::<Vec<_>>().join(", "));
    }
    if call.respect_nulls {
        out.push_str(" RESPECT NULLS");
    }
    if let Some(by) = &call.by {
        let _ = write!(out, " BY {}", version(by));
    }
    out
}

/// A merge as text that reads back as itself.
pub fn merge_text(m: &Merge) -> String {
    clauses(m, "\n")
}

/// As [`merge_text`], with this between its clauses.
fn clauses(m: &Merge, between: &str) -> String {
    let sources = m.sources.iter().map(|s| {
        let alias = s.alias.as_ref().map(|a| format!(" AS {}", name(a))).unwrap_or_default();
        relation(&s.relation) + &alias
    });
    let mut out = sources.collect::<Vec<_>>().join(", ");
    let key = names(&m.key);
    if !m.key.is_empty() {
        let _ = write!(out, "{between}ON {}", if m.key.len() > 1 { format!("({key})") } else { key });
    }
    if !m.strategies.is_empty() {
        let all = m.strategies.iter().map(|(target, call)| {
            let column = match target {
                Target::Default(_) => "*".to_owned(),
                Target::Column(n) => name(n),
            };
            format!("{column} = {}", strategy(call))
        });
        let _ = write!(out, "{between}STRATEGY {}", all.collect::<Vec<_>>().join(", "));
    }
    if let Some(by) = &m.version {
        let _ = write!(out, "{between}VERSION BY {}", version(by));
    }
    if let Some(delete) = &m.delete {
        let _ = write!(out, "{between}DELETE BY {}", name(delete));
    }
    if !m.map.is_empty() {
        let pairs = m.map.iter().map(|(old, new)| format!("{} -> {}", name(old), name(new)));
        let _ = write!(out, "{between}MAP {}", pairs.collect::<Vec<_>>().join(", "));
    }
    if let Some(filter) = &m.filter {
        let _ = write!(out, "{between}WHERE {}", printed(filter));
    }
    if !m.order.is_empty() {
        let parts = m.order.iter().map(|o| {
            let direction = if o.descending { " DESC" } else { "" };
            let nulls = match o.nulls_first {
                Some(true) => " NULLS FIRST",
                Some(false) => " NULLS LAST",
                None => "",
            };
            format!("{}{direction}{nulls}", printed(&o.expr))
        });
        let _ = write!(out, "{between}ORDER BY {}", parts.collect::<Vec<_>>().join(", "));
    }
    if let Some(limit) = m.limit {
        let _ = write!(out, "{between}LIMIT {limit}");
    }
    if let Some(offset) = m.offset {
        let _ = write!(out, "{between}OFFSET {offset}");
    }
    match m.returning {
        Returning::Rows => {}
        Returning::Conflicts => out += &format!("{between}RETURNING CONFLICTS"),
        Returning::Provenance => out += &format!("{between}RETURNING PROVENANCE"),
        Returning::State => out += &format!("{between}RETURNING STATE"),
        Returning::Delta => out += &format!("{between}RETURNING DELTA"),
        Returning::Schema => out += &format!("{between}RETURNING SCHEMA"),
        Returning::Unique => out += &format!("{between}RETURNING UNIQUE"),
    }
    if let Some(into) = &m.into {
        let _ = write!(out, "{between}INTO {}{}", if into.or_replace { "OR REPLACE " } else { "" }, relation(&into.target));
    }
    if !m.options.is_empty() {
        let options = m.options.iter().map(|(n, v)| format!("{} = {}", name(n), literal(v)));
        let _ = write!(out, "{between}WITH ({})", options.collect::<Vec<_>>().join(", "));
    }
    out
}
