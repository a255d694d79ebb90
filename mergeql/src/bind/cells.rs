//! Result columns: which strategy each has, with which arguments, over which inputs.

use super::Binder;
use crate::ast::{Argument, Name, StrategyBody, StrategyCall, Target};
use crate::diagnostic::{Diagnostic, Result, Span};
use crate::lower::quote;
use crate::plan::*;
use crate::strategies::{find_user, is_endless};
use mergeql_udfs::catalog::{self, Arg, ArgKind, Input as Role};
use mergeql_udfs::{Call, Code, Type, Value};
use sqlparser::ast::{Expr, Ident, VisitMut, VisitorMut};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Whether a strategy counts increments and decrements, which are columns; without them it joins a column of states.
fn of_two_columns(strategy: &str) -> bool {
    catalog::find(strategy).is_some_and(|entry| entry.spec().inputs.contains(&Role::Increments))
}

impl Binder<'_> {
    pub(super) fn cells(&self, versions: &Versions) -> Result<Vec<Cell>> {
        let mut given: Vec<(usize, &StrategyCall)> = Vec::new();
        let mut made: Vec<(&Name, &StrategyCall)> = Vec::new();
        let mut star = None;
        for (target, call) in &self.merge.strategies {
            match target {
                Target::Default(span) => {
                    if star.replace(call).is_some() {
                        return Err(Diagnostic::at(Code::DuplicateClause, *span, "`*` is given twice"));
                    }
                }
                Target::Column(name) => match self.column(name) {
                    Ok(column) if column < self.merge.key.len() => {
                        return Err(Diagnostic::at(
                            Code::InvalidArgument,
                            name.span,
                            format!("`{}` is a key column: equal keys need no strategy", name.value),
                        ));
                    }
                    Ok(column) => {
                        if given.iter().any(|(c, _)| *c == column) {
                            return Err(Diagnostic::at(
                                Code::DuplicateColumn,
                                name.span,
                                format!("`{}` has two strategies", name.value),
                            ));
                        }
                        given.push((column, call));
                    }
                    // A counter made of two other columns is a column of its own.
                    Err(_) if self.makes_column(call) => {
                        if made.iter().any(|(other, _)| other.value == name.value) {
                            let message = format!("`{}` has two strategies", name.value);
                            return Err(Diagnostic::at(Code::DuplicateColumn, name.span, message));
                        }
                        made.push((name, call));
                    }
                    Err(e) => return Err(e),
                },
            }
        }
        let default = StrategyCall {
            name: Name { value: "lww".to_owned(), quoted: false, span: Span::default() },
            args: Vec::new(),
            respect_nulls: false,
            by: None,
        };
        let mut cells = Vec::new();
        for (i, column) in self.columns.iter().enumerate().skip(self.merge.key.len()) {
            let is_delete = self.merge.delete.as_ref().is_some_and(|d| self.column(d).is_ok_and(|c| c == i));
            let (call, why) = match given.iter().find(|(c, _)| *c == i) {
                Some((_, call)) => ((*call).clone(), Why::Given),
                None if is_delete => (StrategyCall { respect_nulls: true, ..default.clone() }, Why::Deletion),
                None => match star {
                    Some(call) => (call.clone(), Why::Star),
                    None => (default.clone(), Why::Default),
                },
            };
            cells.push(self.cell(&column.name, Some(i), &call, versions, why)?);
        }
        for (name, call) in made {
            cells.push(self.cell(&name.value, None, call, versions, Why::Given)?);
        }
        Ok(cells)
    }

    /// Whether a strategy counts what two other columns hold.
    fn makes_column(&self, call: &StrategyCall) -> bool {
        let mut call = call;
        // Aliases that are there stand for something, but an old file may hold anything.
        for _ in 0..=self.user.len() {
            match find_user(self.user, &call.name).filter(|_| catalog::find(&call.name.value).is_none()) {
                Some((_, StrategyBody::Alias(inner))) => call = inner,
                _ => break,
            }
        }
        of_two_columns(&call.name.value) && !call.args.is_empty()
    }

    pub(super) fn delete(&self, versions: &Versions) -> Result<Option<Cell>> {
        let Some(name) = &self.merge.delete else { return Ok(None) };
        let column = self.column(name)?;
        if column < self.merge.key.len() {
            return Err(Diagnostic::at(Code::InvalidArgument, name.span, "a key column cannot say whether a row is deleted"));
        }
        let call = StrategyCall {
            name: Name { value: "lww".to_owned(), quoted: false, span: name.span },
            args: Vec::new(),
            respect_nulls: true,
            by: None,
        };
        let ty = &self.columns[column].ty;
        if !matches!(ty, Type::Boolean | Type::Date | Type::Timestamp { .. } | Type::Null | Type::Int { .. }) {
            let message = format!("`{}` is {ty}: it does not say whether a row is deleted", name.value);
            return Err(Diagnostic::at(Code::TypeMismatch, name.span, message)
                .help("DELETE BY takes a flag (boolean, or 0 and not 0) or a deletion time"));
        }
        self.cell(&self.columns[column].name, Some(column), &call, versions, Why::Deletion).map(Some)
    }

    pub(super) fn unknown_strategy(&self, name: &Name) -> Box<Diagnostic> {
        let shown = name.value.strip_prefix("custom:").unwrap_or(&name.value);
        let error = Diagnostic::at(Code::UnknownStrategy, name.span, format!("no strategy is called `{shown}`"));
        let mut names: Vec<&str> = catalog::names().collect();
        names.extend(self.user.keys().map(String::as_str));
        error.suggest(shown, names)
    }

    pub(super) fn cell(
        &self,
        name: &str,
        column: Option<usize>,
        call: &StrategyCall,
        versions: &Versions,
        why: Why,
    ) -> Result<Cell> {
        let written = &call.name;
        let own = written.value.strip_prefix("custom:");
        let wanted = own.unwrap_or(&written.value);
        let found = match self.user.get_key_value(wanted) {
            _ if own.is_none() && catalog::find(wanted).is_some() => None,
            None => self.user.iter().find(|(n, _)| n.eq_ignore_ascii_case(wanted) && (own.is_some() || !written.quoted)),
            exact => exact,
        };
        let (shown, body) = match found {
            Some((name, body)) => (name.clone(), Some(body)),
            None if own.is_none() && catalog::find(wanted).is_some() => (wanted.to_owned(), None),
            None => return Err(self.unknown_strategy(written)),
        };
        if body.is_some() && !call.args.is_empty() {
            return Err(Diagnostic::at(Code::InvalidArgument, written.span, format!("`{shown}` takes no arguments")));
        }
        if matches!(body, Some(StrategyBody::By { .. } | StrategyBody::Fold { .. })) {
            let ignored = [(call.respect_nulls, "cannot respect NULLs"), (call.by.is_some(), "has no version")];
            if let Some((_, what)) = ignored.iter().find(|(given, _)| *given) {
                return Err(Diagnostic::at(Code::InvalidArgument, written.span, format!("`{shown}` {what}")));
            }
        }
        match body {
            None => self.builtin(name, column, call, versions, why, shown),
            Some(StrategyBody::Alias(_)) if is_endless(self.user, written) => {
                let message = format!("`{shown}` stands for itself by now");
                Err(Diagnostic::at(Code::InvalidArgument, written.span, message)
                    .help(format!("CREATE OR REPLACE STRATEGY {} AS another", quote(&shown))))
            }
            Some(StrategyBody::Alias(inner)) => {
                let mut inner = inner.clone();
                // Of what it stands for nothing is in this statement's text.
                inner.set_span(written.span);
                inner.by = call.by.clone().or(inner.by);
                inner.respect_nulls |= call.respect_nulls;
                let mut cell = self.cell(name, column, &inner, versions, why)?;
                cell.shown = shown;
                Ok(cell)
            }
            Some(StrategyBody::By { greatest, ranks }) => {
                let column = column.ok_or_else(|| self.unknown_strategy(written))?;
                let entry = catalog::find(if *greatest { "lww" } else { "fww" }).expect("invariant: lww and fww are built in");
                // The type of a rank is the host's to find out; the aggregate takes any.
                let ty = self.columns[column].ty.clone();
                let (mut inputs, mut types) = (vec![Input::Column(column)], vec![ty.clone()]);
                for mut rank in ranks.iter().cloned() {
                    substitute(&mut rank, "value", &self.columns[column].name);
                    inputs.push(Input::Expr(Box::new(rank), Type::Null));
                    types.push(Type::Null);
                }
                Ok(Cell {
                    name: name.to_owned(),
                    column: Some(column),
                    entry,
                    call: Call::new(types),
                    inputs,
                    why,
                    shown,
                    ty,
                    fold: None,
                })
            }
            Some(body @ StrategyBody::Fold { .. }) => {
                let column = column.ok_or_else(|| self.unknown_strategy(written))?;
                let entry = catalog::find("gset").expect("invariant: gset is built in");
                let ty = self.columns[column].ty.clone();
                Ok(Cell {
                    name: name.to_owned(),
                    column: Some(column),
                    entry,
                    call: Call::new(vec![ty.clone()]),
                    inputs: vec![Input::Column(column)],
                    why,
                    fold: Fold::of(&shown, body),
                    shown,
                    ty,
                })
            }
        }
    }

    pub(super) fn builtin(
        &self,
        name: &str,
        column: Option<usize>,
        written: &StrategyCall,
        versions: &Versions,
        why: Why,
        shown: String,
    ) -> Result<Cell> {
        let entry = catalog::find(&written.name.value).ok_or_else(|| self.unknown_strategy(&written.name))?;
        let spec = entry.spec();
        let at = written.name.span;
        let place = |error: mergeql_udfs::Error| {
            let mut diagnostic: Box<Diagnostic> = error.into();
            diagnostic.message = format!("column `{name}`: {}", diagnostic.message);
            if at != Span::default() {
                diagnostic.span = Some(at);
            }
            diagnostic
        };
        let mut columns: BTreeMap<u8, usize> = BTreeMap::new();
        let mut args: Vec<(String, Value)> = Vec::new();
        self.arguments(written, spec.args, &shown, &mut columns, &mut args)?;
        if written.respect_nulls {
            if !spec.args.iter().any(|a| a.kind == ArgKind::RespectNulls) {
                return Err(Diagnostic::at(Code::InvalidArgument, at, format!("`{shown}` cannot respect NULLs")));
            }
            args.push(("respect_nulls".to_owned(), Value::Bool(true)));
        }
        let own_versions;
        let versions = match &written.by {
            Some(_) if !spec.versioned() => {
                return Err(Diagnostic::at(Code::InvalidArgument, at, format!("`{shown}` has no version")));
            }
            Some(by) => {
                own_versions = self.versions(Some(by))?;
                &own_versions
            }
            None => versions,
        };
        let states = of_two_columns(spec.name) && columns.is_empty();
        let mut inputs = Vec::new();
        for role in spec.inputs {
            match role {
                _ if states => {}
                Role::Value | Role::Frame => {
                    inputs.push(Input::Column(column.ok_or_else(|| self.unknown_strategy(&written.name))?))
                }
                Role::Increments | Role::Decrements | Role::Digest | Role::Weight => {
                    inputs.push(Input::Column(columns[&role_id(*role)]))
                }
                Role::Origin if spec.name == "source" => inputs.push(Input::SourceName),
                Role::Origin => match columns.get(&role_id(Role::Origin)) {
                    Some(column) => inputs.push(Input::Column(*column)),
                    None => {
                        let query = self.sources.iter().find(|s| s.relation.origin.is_none());
                        if query.is_some() || self.target {
                            let who = query.map_or("MERGE INTO".to_owned(), |s| format!("the query `{}`", s.name));
                            return Err(Diagnostic::at(
                                Code::InvalidArgument,
                                at,
                                format!("`{shown}` counts per origin, and {who} has no origin of its own"),
                            )
                            .help(format!("name the column that says who counted: {name} = {shown}(origin_column)")));
                        }
                        inputs.push(Input::Origin);
                    }
                },
                Role::Versions => {
                    inputs.extend(versions.columns.iter().map(|(c, _)| Input::Column(*c)));
                    if versions.row {
                        inputs.push(Input::Row);
                    }
                    let descending: Vec<Value> = versions.columns.iter().map(|(_, d)| Value::Bool(*d)).collect();
                    if descending.contains(&Value::Bool(true)) {
                        args.push(("descending".to_owned(), Value::List(descending)));
                    }
                }
            }
        }
        if states {
            inputs.push(Input::Column(column.ok_or_else(|| self.unknown_strategy(&written.name))?));
        }
        let types = inputs.iter().map(|i| self.input_type(i)).collect();
        let call = Call { inputs: types, args };
        let ty = entry.bind(&call).map_err(place)?.result_type();
        Ok(Cell { name: name.to_owned(), column, entry, call, inputs, why, shown, ty, fold: None })
    }

    pub(super) fn input_type(&self, input: &Input) -> Type {
        match input {
            Input::Column(c) => self.columns[*c].ty.clone(),
            Input::Origin | Input::SourceName => Type::Text,
            Input::Row => {
                Type::Struct(self.columns[self.merge.key.len()..].iter().map(|c| (c.name.as_str().into(), c.ty.clone())).collect())
            }
            Input::Expr(_, ty) => ty.clone(),
        }
    }

    pub(super) fn arguments(
        &self,
        written: &StrategyCall,
        known: &[Arg],
        shown: &str,
        columns: &mut BTreeMap<u8, usize>,
        args: &mut Vec<(String, Value)>,
    ) -> Result<()> {
        let at = written.name.span;
        let known: Vec<&Arg> = known.iter().filter(|a| a.kind != ArgKind::RespectNulls).collect();
        let mut lists: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        let mut used: Vec<&str> = Vec::new();
        for (name, argument) in &written.args {
            let place = match argument {
                Argument::Name(n) => n.span,
                Argument::Literal(_, span) => *span,
            };
            let arg = match name {
                Some(name) => known.iter().find(|a| a.name.eq_ignore_ascii_case(&name.value)).ok_or_else(|| {
                    Diagnostic::at(Code::UnknownOption, name.span, format!("`{shown}` has no argument `{}`", name.value))
                        .suggest(&name.value, known.iter().map(|a| a.name))
                })?,
                None => known
                    .iter()
                    .find(|a| matches!(a.kind, ArgKind::Literals | ArgKind::Sources) || !used.contains(&a.name))
                    .ok_or_else(|| {
                        Diagnostic::at(Code::InvalidArgument, place, format!("`{shown}` takes {}", count(known.len())))
                    })?,
            };
            let listed = matches!(arg.kind, ArgKind::Literals | ArgKind::Sources);
            if used.contains(&arg.name) && !listed {
                return Err(Diagnostic::at(Code::InvalidArgument, place, format!("`{}` is given twice", arg.name)));
            }
            used.push(arg.name);
            let refuse =
                |wanted: &str| Diagnostic::at(Code::InvalidArgument, place, format!("`{}` of `{shown}` is {wanted}", arg.name));
            match (arg.kind, argument) {
                (ArgKind::Text, Argument::Literal(value @ Value::Text(_), _)) => args.push((arg.name.to_owned(), value.clone())),
                (ArgKind::Text, _) => return Err(refuse("a text in quotes")),
                (ArgKind::Number, Argument::Literal(value @ (Value::Int(_) | Value::Decimal { .. } | Value::Float(_)), _)) => {
                    args.push((arg.name.to_owned(), value.clone()));
                }
                (ArgKind::Number, _) => return Err(refuse("a number")),
                (ArgKind::Choice(words), Argument::Literal(value @ Value::Text(word), _)) if words.contains(&&**word) => {
                    args.push((arg.name.to_owned(), value.clone()));
                }
                (ArgKind::Choice(words), _) => return Err(refuse(&format!("one of '{}'", words.join("', '")))),
                (ArgKind::Literals, Argument::Literal(value, _)) => lists.entry(arg.name).or_default().push(value.clone()),
                (ArgKind::Literals, Argument::Name(_)) => return Err(refuse("a list of literals; quote texts")),
                (ArgKind::Sources, Argument::Name(name)) => lists.entry(arg.name).or_default().push(self.source_name(name)?),
                (ArgKind::Sources, Argument::Literal(Value::Text(text), span)) => {
                    let name = Name { value: text.to_string(), quoted: true, span: *span };
                    lists.entry(arg.name).or_default().push(self.source_name(&name)?);
                }
                (ArgKind::Sources, _) => return Err(refuse("a list of sources")),
                (ArgKind::Column(role, _), Argument::Name(name)) => drop(columns.insert(role_id(role), self.column(name)?)),
                (ArgKind::Column(..), Argument::Literal(..)) => return Err(refuse("a column, without quotes")),
                (ArgKind::RespectNulls, _) => {}
            }
        }
        for (name, list) in lists {
            args.push((name.to_owned(), Value::List(list)));
        }
        let missing = known.iter().find(|a| matches!(a.kind, ArgKind::Column(_, true)) && !used.contains(&a.name));
        match missing {
            // Without any the column holds states.
            Some(_) if used.is_empty() && of_two_columns(&written.name.value) => Ok(()),
            Some(arg) => Err(Diagnostic::at(Code::InvalidArgument, at, format!("`{shown}` needs the column of its {}", arg.name))
                .help(format!("write {shown}({}_column)", arg.name))),
            None => Ok(()),
        }
    }

    /// A source by its alias, its name, or the name of its file without folder and ending.
    pub(super) fn source_name(&self, name: &Name) -> Result<Value> {
        if self.target {
            // The sources of earlier and later statements count too.
            return Ok(Value::text(name.value.as_str()));
        }
        match sources_called(name, self.sources.iter().map(|s| s.name.as_str())).as_slice() {
            [source] => Ok(Value::text(*source)),
            [] => Err(Diagnostic::at(Code::UnknownSource, name.span, format!("the statement has no source `{}`", name.value))
                .suggest(&name.value, self.sources.iter().map(|s| s.name.as_str()))),
            several => Err(ambiguous(Code::UnknownSource, name, several)),
        }
    }
}

/// What says that a name means several things: which of them it is must not be a matter of their order.
pub(super) fn ambiguous(code: Code, name: &Name, several: &[&str]) -> Box<Diagnostic> {
    let all = several.iter().map(|one| format!("`{one}`")).collect::<Vec<_>>().join(" or ");
    Diagnostic::at(code, name.span, format!("`{}` may be {all}", name.value))
        .help(format!("write the one that is meant in quotes: {}", quote(several[0])))
}

/// The one source that is meant, if it is one.
pub fn source_called<'a>(name: &Name, sources: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    match sources_called(name, sources).as_slice() {
        [source] => Some(source),
        _ => None,
    }
}

/// The sources that are meant: by their alias or their name, else by the last part of it, or by their file without folder and ending.
fn sources_called<'a>(name: &Name, sources: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    let stem = |source: &'a str| {
        let file = source.rsplit('/').next().unwrap_or(source);
        file.split('.').next().unwrap_or(file)
    };
    let last = |source: &'a str| source.rsplit('.').next().unwrap_or(source);
    let by_name = names_meant(name, sources.clone());
    if !by_name.is_empty() {
        return by_name;
    }
    let mut by_part: Vec<&str> = sources.filter(|s| last(s) == name.value || stem(s) == name.value).collect();
    by_part.sort_unstable();
    by_part.dedup();
    by_part
}

/// The names that are meant: that to the letter, else those in any case of letters.
pub(super) fn names_meant<'a>(name: &Name, names: impl Iterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    if let Some(exact) = names.clone().find(|n| *n == name.value) {
        return vec![exact];
    }
    let mut loose: Vec<&str> = names.filter(|n| name.means(n)).collect();
    loose.sort_unstable();
    loose.dedup();
    loose
}

fn count(n: usize) -> String {
    match n {
        0 => "no arguments".to_owned(),
        1 => "one argument".to_owned(),
        n => format!("{n} arguments at most"),
    }
}

fn role_id(role: Role) -> u8 {
    match role {
        Role::Value | Role::Frame => 0,
        Role::Origin => 1,
        Role::Increments => 2,
        Role::Decrements => 3,
        Role::Versions => 4,
        Role::Digest => 5,
        Role::Weight => 6,
    }
}

/// Puts a column's name where an expression says `name`.
fn substitute(expr: &mut Expr, name: &str, column: &str) {
    struct Substitute<'a>(&'a str, &'a str);
    impl VisitorMut for Substitute<'_> {
        type Break = ();
        fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
            if let Expr::Identifier(ident) = expr
                && ident.value.eq_ignore_ascii_case(self.0)
            {
                *ident = Ident::with_quote('"', self.1);
            }
            ControlFlow::Continue(())
        }
    }
    let _ = expr.visit(&mut Substitute(name, column));
}
