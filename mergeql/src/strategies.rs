//! What a user-defined strategy may be, as far as no engine is needed to tell.

use crate::ast::{Name, StrategyBody};
use crate::bind::UserStrategies;
use crate::diagnostic::{Diagnostic, Result};
use mergeql_udfs::Code;
use mergeql_udfs::catalog::{self, Entry};
use sqlparser::ast::{Expr, ObjectName, Query, Visit, Visitor};
use std::ops::ControlFlow;

/// As [`check_strategy`], where the host (`DuckDB` ...) cannot evaluate a fold to verify it.
///
/// # Errors
/// As [`check_strategy`]; `unverified_strategy` for a fold that is to be COMPACT.
pub fn check_unverified(user: &UserStrategies, or_replace: bool, name: &Name, body: &StrategyBody, host: &str) -> Result<()> {
    check_strategy(user, or_replace, name, body)?;
    if matches!(body, StrategyBody::Fold { compact: true, .. }) {
        let message = format!("{host} cannot verify a fold, so it cannot be COMPACT");
        return Err(Diagnostic::at(Code::UnverifiedStrategy, name.span, message)
            .help("leave COMPACT out: a fold over the set of values is lawful for any expression"));
    }
    Ok(())
}

/// Checks a definition against those that are there: its name is free, it stands for something, its expression is over its own names.
///
/// # Errors
/// `invalid_argument`, `unknown_strategy`, `unknown_column`, `duplicate_column`, `unsupported`.
pub fn check_strategy(user: &UserStrategies, or_replace: bool, name: &Name, body: &StrategyBody) -> Result<()> {
    let refuse = |code, message: String| Err(Diagnostic::at(code, name.span, message));
    if catalog::find(&name.value).is_some() {
        return refuse(Code::InvalidArgument, format!("`{}` is built in", name.value));
    }
    if find_user(user, name).is_some() && !or_replace {
        return refuse(Code::InvalidArgument, format!("the strategy `{}` is there already; write CREATE OR REPLACE", name.value));
    }
    match body {
        StrategyBody::Alias(call) => {
            let own = call.name.value.strip_prefix("custom:").unwrap_or(&call.name.value);
            let mut next = own;
            // Aliases that are there stand for something, but an old file may hold anything.
            for _ in 0..=user.len() {
                if next == name.value {
                    return refuse(Code::InvalidArgument, format!("`{}` would stand for itself", name.value));
                }
                let called = Name { value: next.to_owned(), quoted: false, span: name.span };
                match find_user(user, &called) {
                    Some((_, StrategyBody::Alias(inner))) => {
                        next = inner.name.value.strip_prefix("custom:").unwrap_or(&inner.name.value);
                    }
                    _ => break,
                }
            }
            if catalog::find(own).is_none() && find_user(user, &call.name).is_none() {
                let error = Diagnostic::at(Code::UnknownStrategy, call.name.span, format!("no strategy is called `{own}`"));
                let mut names: Vec<&str> = catalog::names().collect();
                names.extend(user.keys().map(String::as_str));
                return Err(error.suggest(own, names));
            }
            Ok(())
        }
        StrategyBody::By { ranks, .. } => ranks.iter().try_for_each(|rank| check_expression(rank, &["value"])),
        StrategyBody::Fold { left, right, step, .. } => {
            if left.value == right.value {
                return refuse(Code::DuplicateColumn, format!("both values of the fold are called `{}`", left.value));
            }
            check_expression(step, &[&left.value, &right.value])
        }
    }
}

/// Whether what a name stands for has no end: an alias that was dropped may have left another that is found in its place.
pub(crate) fn is_endless(user: &UserStrategies, name: &Name) -> bool {
    let mut name = name;
    for _ in 0..=user.len() {
        let own = name.value.starts_with("custom:");
        match find_user(user, name).filter(|_| own || catalog::find(&name.value).is_none()) {
            Some((_, StrategyBody::Alias(call))) => name = &call.name,
            _ => return false,
        }
    }
    true
}

/// A strategy of a user, whose name is the same in any case of letters unless it is quoted.
pub(crate) fn find_user<'a>(user: &'a UserStrategies, name: &Name) -> Option<(&'a String, &'a StrategyBody)> {
    let wanted = name.value.strip_prefix("custom:").unwrap_or(&name.value);
    let folded = || user.iter().find(|(own, _)| own.eq_ignore_ascii_case(wanted)).filter(|_| wanted != name.value || !name.quoted);
    user.get_key_value(wanted).or_else(folded)
}

/// The strategy of the catalogue that a name stands for in the end; none for what users made of expressions.
pub fn entry_of(user: &UserStrategies, name: &Name) -> Option<&'static Entry> {
    let mut name = name;
    // Aliases that are there stand for something, but an old file may hold anything.
    for _ in 0..=user.len() {
        if let Some(entry) = catalog::find(&name.value) {
            return Some(entry);
        }
        match find_user(user, name)? {
            (_, StrategyBody::Alias(call)) => name = &call.name,
            _ => return None,
        }
    }
    None
}

/// The strategy that a DROP or VERIFY names.
///
/// # Errors
/// `invalid_argument` for one that is built in, `unknown_strategy`.
pub fn find_strategy<'a>(user: &'a UserStrategies, name: &Name) -> Result<&'a str> {
    if catalog::find(&name.value).is_some() {
        return Err(Diagnostic::at(Code::InvalidArgument, name.span, format!("`{}` is built in", name.value)));
    }
    find_user(user, name).map(|(own, _)| own.as_str()).ok_or_else(|| {
        Diagnostic::at(Code::UnknownStrategy, name.span, format!("no strategy is called `{}`", name.value))
            .suggest(&name.value, user.keys().map(String::as_str))
    })
}

/// Functions, on any host, that give another answer each time.
fn changes(function: &ObjectName) -> bool {
    const NAMES: [&str; 37] = [
        "random",
        "rand",
        "setseed",
        "uuid",
        "uuidv4",
        "uuidv7",
        "gen_random_uuid",
        "now",
        "today",
        "current_timestamp",
        "current_date",
        "current_time",
        "localtime",
        "localtimestamp",
        "clock_timestamp",
        "transaction_timestamp",
        "nextval",
        "getvariable",
        "randomblob",
        "random_normal",
        "get_current_timestamp",
        "get_current_time",
        "statement_timestamp",
        "timeofday",
        "currval",
        "lastval",
        "setval",
        "changes",
        "total_changes",
        "last_insert_rowid",
        "txid_current",
        "pg_backend_pid",
        "uuid_generate_v1",
        "uuid_generate_v4",
        "current_user",
        "session_user",
        "current_role",
    ];
    // Whatever schema it is called in.
    let last = function.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|last| NAMES.iter().any(|name| name.eq_ignore_ascii_case(&last.value)))
}

/// Only the given names, no subqueries.
fn check_expression(expr: &Expr, names: &[&str]) -> Result<()> {
    struct Check<'a>(&'a [&'a str]);
    impl Visitor for Check<'_> {
        type Break = Box<Diagnostic>;
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<Self::Break> {
            ControlFlow::Break(Diagnostic::new(Code::Unsupported, "a strategy's expression has no subqueries"))
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<Self::Break> {
            match expr {
                Expr::Identifier(i) if !self.0.iter().any(|n| n.eq_ignore_ascii_case(&i.value)) => {
                    let error =
                        Diagnostic::at(Code::UnknownColumn, i.span.into(), format!("the expression knows no `{}`", i.value));
                    ControlFlow::Break(error.help(format!("it is over {}", self.0.join(" and "))))
                }
                Expr::CompoundIdentifier(_) => {
                    ControlFlow::Break(Diagnostic::new(Code::UnknownColumn, format!("the expression knows no `{expr}`")))
                }
                Expr::Function(f) if changes(&f.name) => ControlFlow::Break(Diagnostic::new(
                    Code::Unsupported,
                    format!("`{}` is not a function of its arguments alone", f.name),
                )),
                Expr::Collate { .. } => {
                    ControlFlow::Break(Diagnostic::new(Code::Unsupported, "text is compared by bytes: a strategy has no collation"))
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    match expr.visit(&mut Check(names)) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(()),
    }
}
