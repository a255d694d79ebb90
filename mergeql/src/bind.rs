//! Binds a merge to its sources: names, types, strategies, and everything the language forbids.

use crate::ast::{self, Argument, Explain, Merge, Name, Returning, StrategyBody, StrategyCall, Target};
use crate::diagnostic::{Diagnostic, Result, Span};
use crate::plan::*;
use mergeql_udfs::catalog::{self, Arg, ArgKind, Input as Role};
use mergeql_udfs::{Call, Code, Type, Value};
use sqlparser::ast::{Expr, Ident, Query, VisitMut, VisitorMut};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// The strategies that users defined, by name.
pub type UserStrategies = BTreeMap<String, StrategyBody>;

/// Options of `WITH (...)`, and what they may be.
const OPTIONS: [(&str, &str); 6] = [
    ("format", "the format of file sources"),
    ("state", "'keep' to keep states in the result"),
    ("schema", "'extend' to let MERGE INTO add columns"),
    ("memory_limit", "a size like '2GB'"),
    ("header", "whether CSV sources have a header"),
    ("delimiter", "between the fields of CSV sources"),
];

/// Binds a merge. `relations` are its sources in order; `target` says that the first of them is the table merged into.
///
/// # Errors
/// Every code of the language that is about names, types and arguments, with the place.
pub fn bind(merge: &Merge, relations: Vec<Relation>, target: bool, user: &UserStrategies, explain: Explain) -> Result<Plan> {
    let mut binder = Binder { merge, user, sources: Vec::new(), columns: Vec::new(), target };
    binder.sources(relations)?;
    binder.options()?;
    binder.columns()?;
    let versions = binder.versions(merge.version.as_ref())?;
    let mut warnings = Vec::new();
    let cells = binder.cells(&versions)?;
    let delete = binder.delete(&versions)?;
    if versions.columns.is_empty() && !versions.row {
        let unversioned: Vec<&str> = cells
            .iter()
            .filter(|c| matches!(c.entry.spec().name, "lww" | "fww") && c.inputs.len() == 1)
            .map(|c| c.name.as_str())
            .collect();
        if !unversioned.is_empty() {
            warnings.push(format!(
                "no version: the greatest value wins for {}; add VERSION BY to let the newest win",
                unversioned.join(", ")
            ));
        }
    }
    let mut plan = Plan {
        key: merge.key.len(),
        filter: None,
        order: Vec::new(),
        limit: merge.limit,
        offset: merge.offset,
        returning: merge.returning,
        into: merge.into.clone(),
        options: merge.options.clone(),
        explain,
        warnings,
        cells,
        versions,
        delete,
        columns: std::mem::take(&mut binder.columns),
        sources: std::mem::take(&mut binder.sources),
    };
    bind_result_clauses(merge, &mut plan)?;
    check_state_target(merge, &plan)?;
    Ok(plan)
}

fn check_state_target(merge: &Merge, plan: &Plan) -> Result<()> {
    if !plan.keeps_state() {
        return Ok(());
    }
    let clause = [
        ("WHERE", merge.filter.is_some()),
        ("LIMIT", merge.limit.is_some()),
        ("OFFSET", merge.offset.is_some()),
        ("RETURNING CONFLICTS or PROVENANCE", merge.returning != Returning::Rows),
    ];
    if let Some((clause, _)) = clause.iter().find(|(_, given)| *given) {
        return Err(Diagnostic::new(Code::Unsupported, format!("a table that keeps states cannot be made with {clause}"))
            .help("filter inside a source, or when reading the table"));
    }
    if plan.cells.is_empty() {
        return Err(Diagnostic::new(Code::Unsupported, "a table of keys alone has no states to keep"));
    }
    if let Some(cell) = plan.cells.iter().find(|c| c.inputs.contains(&Input::Origin)) {
        return Err(Diagnostic::new(
            Code::InvalidArgument,
            format!("`{}` counts per source, and MERGE INTO will have no source to count by", cell.name),
        )
        .help(format!("name the column that says who counted: {} = {}(origin_column)", cell.name, cell.shown)));
    }
    if merge.into.is_none() {
        return Err(
            Diagnostic::new(Code::InvalidArgument, "`state = 'keep'` needs a table to keep the states in").help("add INTO table")
        );
    }
    Ok(())
}

struct Binder<'a> {
    merge: &'a Merge,
    user: &'a UserStrategies,
    sources: Vec<Source>,
    columns: Vec<Column>,
    target: bool,
}

/// What users call a source that has no alias.
fn shown_name(relation: &ast::Relation) -> String {
    match relation {
        ast::Relation::Table(parts) => parts.iter().map(|p| p.value.as_str()).collect::<Vec<_>>().join("."),
        ast::Relation::Text(text) => text.value.clone(),
        ast::Relation::Query(_) => "query".to_owned(),
    }
}

impl Binder<'_> {
    fn sources(&mut self, relations: Vec<Relation>) -> Result<()> {
        for (source, relation) in self.merge.sources.iter().zip(relations) {
            let name = source.alias.as_ref().map_or_else(|| shown_name(&source.relation), |a| a.value.clone());
            match self.sources.iter().find(|s| s.name == name) {
                Some(same) if same.relation.sql == relation.sql => continue,
                Some(_) => {
                    let span = source.alias.as_ref().map_or(source.span, |a| a.span);
                    return Err(Diagnostic::at(Code::DuplicateSource, span, format!("two different sources are called `{name}`"))
                        .help("give one of them another name with AS"));
                }
                None => self.sources.push(Source { name, relation, columns: Vec::new() }),
            }
        }
        Ok(())
    }

    fn options(&self) -> Result<()> {
        for (name, value) in &self.merge.options {
            let option = name.value.to_ascii_lowercase();
            if !OPTIONS.iter().any(|(n, _)| *n == option) {
                return Err(Diagnostic::at(Code::UnknownOption, name.span, format!("there is no option `{}`", name.value))
                    .suggest(&option, OPTIONS.iter().map(|(n, _)| *n)));
            }
            if option == "schema" && !self.target {
                return Err(Diagnostic::at(Code::InvalidArgument, name.span, "`schema` is an option of MERGE INTO")
                    .help("a MERGE always has the columns of all its sources"));
            }
            let allowed: &[&str] = match option.as_str() {
                "state" => &["keep"],
                "schema" => &["extend", "strict"],
                _ => continue,
            };
            if !matches!(value, Value::Text(t) if allowed.contains(&&**t)) {
                return Err(Diagnostic::at(
                    Code::InvalidArgument,
                    name.span,
                    format!(
                        "`{option}` is {}, not {value}",
                        allowed.iter().map(|a| format!("'{a}'")).collect::<Vec<_>>().join(" or ")
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The columns of a source under their new names.
    fn renamed(&self, source: &Source) -> Result<Vec<String>> {
        let has = |name: &Name| source.relation.columns.iter().position(|c| matches(name, &c.name));
        let mut names: Vec<String> = source.relation.columns.iter().map(|c| c.name.clone()).collect();
        for (old, new) in &self.merge.map {
            if let Some(i) = has(old) {
                names[i] = new.value.clone();
            }
        }
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                let span = self.merge.map.iter().find(|(_, new)| new.value == *name).map(|(_, new)| new.span);
                let message = format!("`{}` would have two columns called `{name}`", source.name);
                return Err(match span {
                    Some(span) => Diagnostic::at(Code::DuplicateColumn, span, message),
                    None => Diagnostic::new(Code::DuplicateColumn, message),
                });
            }
        }
        Ok(names)
    }

    fn columns(&mut self) -> Result<()> {
        for (i, (old, _)) in self.merge.map.iter().enumerate() {
            if self.merge.map[..i].iter().any(|(other, _)| other.value == old.value) {
                return Err(Diagnostic::at(Code::DuplicateColumn, old.span, format!("`{}` is mapped twice", old.value)));
            }
            let found = self.sources.iter().any(|s| s.relation.columns.iter().any(|c| matches(old, &c.name)));
            if !found {
                return Err(self.unknown_input(old));
            }
        }
        let mut names = self.sources.iter().map(|s| self.renamed(s)).collect::<Result<Vec<_>>>()?;
        let mut columns: Vec<Column> = Vec::new();
        for (i, key) in self.merge.key.iter().enumerate() {
            let mut exact = None;
            for (source, names) in self.sources.iter().zip(&mut names) {
                if names.is_empty() && source.relation.rows.unwrap_or(0) == 0 {
                    continue;
                }
                let mapped = self.merge.map.iter().find(|(old, _)| old.value == key.value).map(|(_, new)| &new.value);
                let exactly = names.iter().position(|n| *n == key.value);
                let loosely = || names.iter().position(|n| matches(key, n));
                let found = exactly.or_else(loosely).or_else(|| names.iter().position(|n| Some(n) == mapped));
                match found {
                    // One key column, however each source spells it.
                    Some(at) => {
                        let first = exact.get_or_insert_with(|| names[at].clone());
                        names[at].clone_from(first);
                    }
                    None => {
                        let error = Diagnostic::at(
                            Code::UnknownColumn,
                            key.span,
                            format!("the key column `{}` is not in `{}`", key.value, source.name),
                        );
                        return Err(error.suggest(&key.value, names.iter().map(String::as_str)).help(format!(
                            "`{}` has {}",
                            source.name,
                            listing(names)
                        )));
                    }
                }
            }
            let name = exact.ok_or_else(|| {
                Diagnostic::at(Code::UnknownColumn, key.span, format!("no source has the key column `{}`", key.value))
            })?;
            if self.merge.key[..i].iter().any(|k| k.value == key.value) {
                return Err(Diagnostic::at(Code::DuplicateColumn, key.span, format!("`{}` is in the key twice", key.value)));
            }
            columns.push(Column { name, ty: Type::Null, nullable: false });
        }
        for name in names.iter().flatten() {
            if !columns.iter().any(|c| c.name == *name) {
                columns.push(Column { name: name.clone(), ty: Type::Null, nullable: false });
            }
        }
        for column in &mut columns {
            let mut first: Option<(&str, &Type)> = None;
            for (source, names) in self.sources.iter().zip(&names) {
                let Some(i) = names.iter().position(|n| *n == column.name) else {
                    column.nullable |= !names.is_empty();
                    continue;
                };
                let theirs = &source.relation.columns[i];
                column.nullable |= theirs.nullable;
                column.ty = Type::widen(&column.ty, &theirs.ty).map_err(|_| {
                    let (other, ty) = first.unwrap_or(("another source", &Type::Null));
                    Diagnostic::new(
                        Code::TypeMismatch,
                        format!("`{}` is {ty} in `{other}` and {} in `{}`", column.name, theirs.ty, source.name),
                    )
                    .help("cast one of them in a source query: (SELECT CAST(...) ...) AS name")
                })?;
                if first.is_none() && theirs.ty != Type::Null {
                    first = Some((&source.name, &theirs.ty));
                }
            }
        }
        for key in &columns[..self.merge.key.len()] {
            if key.ty == Type::Interval {
                return Err(Diagnostic::new(Code::TypeMismatch, format!("the key `{}` is an interval", key.name))
                    .help("intervals have no one equality: cast the key to text or to a number"));
            }
        }
        for (source, names) in self.sources.iter_mut().zip(&names) {
            source.columns = columns.iter().map(|c| names.iter().position(|n| *n == c.name)).collect();
        }
        self.columns = columns;
        Ok(())
    }

    fn unknown_input(&self, name: &Name) -> Box<Diagnostic> {
        let all: Vec<&str> = self.sources.iter().flat_map(|s| s.relation.columns.iter().map(|c| c.name.as_str())).collect();
        Diagnostic::at(Code::UnknownColumn, name.span, format!("no source has a column `{}`", name.value)).suggest(&name.value, all)
    }

    fn column(&self, name: &Name) -> Result<usize> {
        find_column(name, self.columns.iter().map(|c| c.name.as_str()), &self.merge.map)
    }

    fn versions(&self, by: Option<&ast::VersionBy>) -> Result<Versions> {
        let Some(by) = by else {
            let default = self.columns.iter().position(|c| c.name == "_ts");
            return Ok(Versions { columns: default.map(|c| (c, false)).into_iter().collect(), row: false });
        };
        let mut versions = Versions { columns: Vec::new(), row: by.row };
        for (name, descending) in &by.columns {
            let column = self.column(name)?;
            if versions.columns.iter().any(|(c, _)| *c == column) {
                return Err(Diagnostic::at(Code::DuplicateColumn, name.span, format!("`{}` is in the version twice", name.value)));
            }
            versions.columns.push((column, *descending));
        }
        Ok(versions)
    }

    fn cells(&self, versions: &Versions) -> Result<Vec<Cell>> {
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
                    // A PN-counter made of two other columns is a column of its own.
                    Err(_) if call.name.value.eq_ignore_ascii_case("pncounter") && !call.args.is_empty() => made.push((name, call)),
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

    fn delete(&self, versions: &Versions) -> Result<Option<Cell>> {
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
        self.cell(&name.value, Some(column), &call, versions, Why::Deletion).map(Some)
    }

    fn unknown_strategy(&self, name: &Name) -> Box<Diagnostic> {
        let shown = name.value.strip_prefix("custom:").unwrap_or(&name.value);
        let error = Diagnostic::at(Code::UnknownStrategy, name.span, format!("no strategy is called `{shown}`"));
        let mut names: Vec<&str> = catalog::names().collect();
        names.extend(self.user.keys().map(String::as_str));
        error.suggest(shown, names)
    }

    fn cell(&self, name: &str, column: Option<usize>, call: &StrategyCall, versions: &Versions, why: Why) -> Result<Cell> {
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
        match body {
            None => self.builtin(name, column, call, versions, why, shown),
            Some(StrategyBody::Alias(inner)) => {
                let mut inner = inner.clone();
                inner.name.span = written.span;
                inner.by = call.by.clone().or(inner.by);
                inner.respect_nulls |= call.respect_nulls;
                let mut cell = self.cell(name, column, &inner, versions, why)?;
                cell.shown = shown;
                Ok(cell)
            }
            Some(StrategyBody::By { greatest, rank }) => {
                let column = column.ok_or_else(|| self.unknown_strategy(written))?;
                let mut rank = rank.clone();
                substitute(&mut rank, "value", &self.columns[column].name);
                let entry = catalog::find(if *greatest { "lww" } else { "fww" }).expect("invariant: lww and fww are built in");
                // The type of the rank is the host's to find out; the aggregate takes any.
                let ty = self.columns[column].ty.clone();
                let inputs = vec![Input::Column(column), Input::Expr(Box::new(rank), Type::Null)];
                Ok(Cell {
                    name: name.to_owned(),
                    column: Some(column),
                    entry,
                    call: Call::new(vec![ty.clone(), Type::Null]),
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

    fn builtin(
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
        let states = spec.name == "pncounter" && columns.is_empty();
        let mut inputs = Vec::new();
        for role in spec.inputs {
            match role {
                _ if states => {}
                Role::Value => inputs.push(Input::Column(column.ok_or_else(|| self.unknown_strategy(&written.name))?)),
                Role::Increments | Role::Decrements => inputs.push(Input::Column(columns[&role_id(*role)])),
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

    fn input_type(&self, input: &Input) -> Type {
        match input {
            Input::Column(c) => self.columns[*c].ty.clone(),
            Input::Origin | Input::SourceName => Type::Text,
            Input::Row => {
                Type::Struct(self.columns[self.merge.key.len()..].iter().map(|c| (c.name.as_str().into(), c.ty.clone())).collect())
            }
            Input::Expr(_, ty) => ty.clone(),
        }
    }

    fn arguments(
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
            Some(arg) if !used.is_empty() => {
                Err(Diagnostic::at(Code::InvalidArgument, at, format!("`{shown}` needs the column of its {}", arg.name)))
            }
            _ => Ok(()),
        }
    }

    /// A source by its alias, its name, or the name of its file without folder and ending.
    fn source_name(&self, name: &Name) -> Result<Value> {
        if self.target {
            // The sources of earlier and later statements count too.
            return Ok(Value::text(name.value.as_str()));
        }
        let stem = |text: &str| {
            let file = text.rsplit('/').next().unwrap_or(text);
            file.split('.').next().unwrap_or(file).to_owned()
        };
        let last = |text: &str| text.rsplit('.').next().unwrap_or(text).to_owned();
        let found = self
            .sources
            .iter()
            .find(|s| matches(name, &s.name))
            .or_else(|| self.sources.iter().find(|s| last(&s.name) == name.value || stem(&s.name) == name.value));
        found.map(|s| Value::text(s.name.as_str())).ok_or_else(|| {
            Diagnostic::at(Code::UnknownSource, name.span, format!("the statement has no source `{}`", name.value))
                .suggest(&name.value, self.sources.iter().map(|s| s.name.as_str()))
        })
    }
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
        Role::Value => 0,
        Role::Origin => 1,
        Role::Increments => 2,
        Role::Decrements => 3,
        Role::Versions => 4,
    }
}

/// Whether a written name means this one: to the letter, or in any case of letters if it is not quoted.
fn matches(name: &Name, other: &str) -> bool {
    name.value == other || (!name.quoted && name.value.eq_ignore_ascii_case(other))
}

fn listing(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(12).map(|n| format!("`{n}`")).collect();
    if names.len() > 12 {
        shown.push(format!("and {} more", names.len() - 12));
    }
    if shown.is_empty() { "no columns".to_owned() } else { shown.join(", ") }
}

/// A result column by the name as written: to the letter, else in any case of letters, else by its name before MAP.
fn find_column<'a>(name: &Name, columns: impl Iterator<Item = &'a str> + Clone, map: &[(Name, Name)]) -> Result<usize> {
    let exact = columns.clone().position(|c| c == name.value);
    let loose = || columns.clone().position(|c| matches(name, c));
    let mapped = || {
        let (_, new) = map.iter().find(|(old, _)| matches(old, &name.value))?;
        columns.clone().position(|c| c == new.value)
    };
    exact.or_else(loose).or_else(mapped).ok_or_else(|| {
        Diagnostic::at(Code::UnknownColumn, name.span, format!("there is no column `{}`", name.value))
            .suggest(&name.value, columns.clone().collect::<Vec<_>>())
    })
}

fn bind_result_clauses(merge: &Merge, plan: &mut Plan) -> Result<()> {
    let names: Vec<String> = plan.result_columns().map(|(n, _)| n.to_owned()).collect();
    // WHERE is about merged rows; ORDER BY about the rows that come back.
    let returned: Vec<String> = match plan.returning {
        Returning::Rows => names.clone(),
        _ => {
            let key = plan.key_columns().iter().map(|c| c.name.clone());
            key.chain(["column_name", "value", "strategy"].map(str::to_owned)).collect()
        }
    };
    let own = ["column_name", "value", "strategy", "winner_sources", "losers"];
    if plan.returning != Returning::Rows
        && let Some(key) = plan.key_columns().iter().find(|c| own.contains(&c.name.as_str()))
    {
        let message = format!("the result of RETURNING has a column `{}` of its own", key.name);
        return Err(Diagnostic::new(Code::DuplicateColumn, message)
            .help(format!("give the key another name: MAP {0} -> {0}_key", key.name)));
    }
    let bind = |expr: &Expr, names: &[String]| -> Result<Expr> {
        let mut expr = expr.clone();
        let mut visitor = Columns { names, map: &merge.map, depth: 0 };
        match expr.visit(&mut visitor) {
            ControlFlow::Break(error) => Err(error),
            ControlFlow::Continue(()) => Ok(expr),
        }
    };
    let typed: Vec<(String, Type)> = plan.result_columns().map(|(n, t)| (n.to_owned(), t.clone())).collect();
    plan.filter = merge.filter.as_ref().map(|e| bind(e, &names)).transpose()?;
    if let Some(filter) = &plan.filter {
        crate::kinds::check(filter, &typed, true)?;
    }
    for order in &merge.order {
        let expr = match &order.expr {
            Expr::Value(v) if matches!(v.value, sqlparser::ast::Value::Number(..)) => {
                return Err(Diagnostic::at(Code::InvalidArgument, order.span, "ORDER BY takes columns, not their numbers"));
            }
            expr => bind(expr, &returned)?,
        };
        crate::kinds::check(&expr, &typed, false)?;
        let column = match &expr {
            Expr::Identifier(ident) => Some(ident.value.clone()),
            _ => None,
        };
        plan.order.push(Order { expr, column, descending: order.descending, nulls_first: order.nulls_first.unwrap_or(false) });
    }
    Ok(())
}

/// Turns every name of an expression into a result column, quoted as it is spelled; subqueries are left alone.
struct Columns<'a> {
    names: &'a [String],
    map: &'a [(Name, Name)],
    depth: usize,
}

impl Columns<'_> {
    fn rename(&self, ident: &mut Ident) -> ControlFlow<Box<Diagnostic>> {
        let name = Name { value: ident.value.clone(), quoted: ident.quote_style.is_some(), span: ident.span.into() };
        match find_column(&name, self.names.iter().map(String::as_str), self.map) {
            Ok(i) => {
                ident.value = self.names[i].clone();
                ident.quote_style = Some('"');
                ControlFlow::Continue(())
            }
            Err(error) => ControlFlow::Break(error),
        }
    }
}

impl VisitorMut for Columns<'_> {
    type Break = Box<Diagnostic>;

    fn pre_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Self::Break> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        match expr {
            _ if self.depth > 0 => ControlFlow::Continue(()),
            Expr::Identifier(ident) => self.rename(ident),
            Expr::CompoundIdentifier(parts) => match parts.first_mut() {
                Some(first) => self.rename(first),
                None => ControlFlow::Continue(()),
            },
            _ => ControlFlow::Continue(()),
        }
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
