//! Binds a merge to its sources: names, types, strategies, and everything the language forbids.

mod cells;
mod clauses;
mod schema;

pub use cells::source_called;
use cells::{ambiguous, names_meant};

use crate::ast::{self, Explain, Merge, Name, Returning, StrategyBody};
use crate::diagnostic::{Diagnostic, Result, Span};
use crate::lower::has_interval;
use crate::plan::*;
use mergeql_udfs::{Code, Type, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The strategies that users defined, by name.
pub type UserStrategies = BTreeMap<String, StrategyBody>;

/// Options of `WITH (...)`, and what they may be.
const OPTIONS: [(&str, &str); 10] = [
    ("format", "the format of file sources"),
    ("state", "'keep' to keep states in the result"),
    ("schema", "'extend' to let MERGE INTO add columns"),
    ("memory_limit", "a size like '2GB'"),
    ("header", "whether CSV sources have a header"),
    ("delimiter", "between the fields of CSV sources"),
    ("sorted", "whether the rows of every source are sorted by the key: true or false"),
    ("deletion", "'hidden' to leave the column of DELETE BY out"),
    ("policy", "which columns RETURNING SCHEMA keeps"),
    ("threshold", "how alike the texts of RETURNING UNIQUE may be"),
];

/// Binds a merge. `relations` are its sources in order; `target` says that the first of them is the table merged into.
///
/// # Errors
/// Every code of the language that is about names, types and arguments, with the place.
pub fn bind(merge: &Merge, relations: Vec<Relation>, target: bool, user: &UserStrategies, explain: Explain) -> Result<Plan> {
    let mut binder = Binder { merge, user, sources: Vec::new(), columns: Vec::new(), target };
    binder.sources(relations)?;
    binder.options()?;
    if merge.returning == Returning::Schema {
        return binder.schema(explain);
    }
    binder.columns()?;
    let versions = binder.versions(merge.version.as_ref())?;
    let mut warnings = Vec::new();
    let mut cells = binder.cells(&versions)?;
    let delete = binder.delete(&versions)?;
    if binder.option("deletion").is_some() {
        let hidden = delete.as_ref().and_then(|cell| cell.column);
        cells.retain(|cell| cell.column != hidden);
        warnings.push(
            "deleted rows are left out of the result, and forgotten with it: a deletion that comes before its row needs a table that \
             keeps the column of DELETE BY"
                .to_owned(),
        );
    }
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
        schema: Vec::new(),
        cells,
        versions,
        delete,
        columns: std::mem::take(&mut binder.columns),
        sources: std::mem::take(&mut binder.sources),
    };
    clauses::check_form(merge, &plan)?;
    clauses::bind_result_clauses(merge, &mut plan)?;
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
        ("RETURNING CONFLICTS, PROVENANCE or STATE", merge.returning != Returning::Rows),
        ("deletion = 'hidden'", plan.option("deletion").is_some()),
    ];
    if let Some((clause, _)) = clause.iter().find(|(_, given)| *given) {
        return Err(Diagnostic::new(Code::Unsupported, format!("a table that keeps states cannot be made with {clause}"))
            .within(merge.place(clause))
            .help("filter inside a source, or when reading the table"));
    }
    let option = merge.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case("state")).map(|(n, _)| n.span);
    if plan.cells.is_empty() {
        return Err(Diagnostic::new(Code::Unsupported, "a table of keys alone has no states to keep").within(option));
    }
    if let Some(cell) = plan.cells.iter().find(|c| c.inputs.contains(&Input::Origin)) {
        return Err(Diagnostic::new(
            Code::InvalidArgument,
            format!("`{}` counts per source, and MERGE INTO will have no source to count by", cell.name),
        )
        .within(merge.place("STRATEGY"))
        .help(format!("name the column that says who counted: {} = {}(origin_column)", cell.name, cell.shown)));
    }
    if merge.into.is_none() {
        return Err(Diagnostic::new(Code::InvalidArgument, "`state = 'keep'` needs a table to keep the states in")
            .within(option)
            .help("add INTO table"));
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

/// What users call a source: its alias, or the relation as written.
fn called(source: &ast::Source) -> String {
    source.alias.as_ref().map_or_else(|| shown_name(&source.relation), |a| a.value.clone())
}

/// Where the name of a source stands.
fn place(source: &ast::Source) -> Span {
    source.alias.as_ref().map_or(source.span, |a| a.span)
}

impl Binder<'_> {
    fn sources(&mut self, relations: Vec<Relation>) -> Result<()> {
        let mut written: Vec<&ast::Source> = Vec::new();
        let free = |source: &ast::Source| source.alias.as_ref().is_some_and(|alias| !alias.quoted);
        for (source, relation) in self.merge.sources.iter().zip(relations) {
            let name = called(source);
            let same_name = |(s, other): &(&Source, &&ast::Source)| match free(source) && free(other) {
                true => s.name.eq_ignore_ascii_case(&name),
                false => s.name == name,
            };
            let found = self.sources.iter().zip(&written).find(same_name);
            let of_one_pattern = |other: &ast::Source| source.part && other.part && source.span == other.span;
            match found {
                Some((same, _)) if same.relation.sql == relation.sql => continue,
                Some((_, other)) if of_one_pattern(other) => self.sources.push(Source { name, relation, columns: Vec::new() }),
                Some(_) => {
                    return Err(Diagnostic::at(
                        Code::DuplicateSource,
                        place(source),
                        format!("two different sources are called `{name}`"),
                    )
                    .help("give one of them another name with AS"));
                }
                None => self.sources.push(Source { name, relation, columns: Vec::new() }),
            }
            written.push(source);
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
            let (of, is) = match option.as_str() {
                "deletion" => ("DELETE BY", self.merge.delete.is_some()),
                "policy" => ("RETURNING SCHEMA", self.merge.returning == Returning::Schema),
                "threshold" => ("RETURNING UNIQUE", self.merge.returning == Returning::Unique),
                _ => ("", true),
            };
            if !is {
                return Err(Diagnostic::at(Code::InvalidArgument, name.span, format!("`{option}` is an option of {of}")));
            }
            let size = |value: &Value| match value {
                Value::Text(text) => mergeql_udfs::parse_size(text).is_some(),
                Value::Int(n) => *n > 0,
                _ => false,
            };
            let wanted = match option.as_str() {
                "header" | "sorted" if !matches!(value, Value::Bool(_)) => Some("true or false"),
                "memory_limit" if !size(value) => Some("a size like '2GB' or '500MB'"),
                "format" | "delimiter" if !matches!(value, Value::Text(_)) => Some("a text"),
                _ => None,
            };
            if let Some(wanted) = wanted {
                return Err(Diagnostic::at(Code::InvalidArgument, name.span, format!("`{option}` is {wanted}, not {value}")));
            }
            let allowed: &[&str] = match option.as_str() {
                "state" => &["keep"],
                "schema" => &["extend", "strict"],
                "deletion" => &["hidden"],
                "policy" => &schema::POLICIES,
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

    fn option(&self, name: &str) -> Option<&Value> {
        self.merge.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// Where the source of this name stands.
    fn place_of(&self, source: &str) -> Option<Span> {
        self.merge.sources.iter().find(|s| called(s) == source).map(place).filter(|s| s.line > 0)
    }

    /// The name that MAP gives: that of another column, as it is spelled there, where it is meant.
    fn new_name(&self, new: &Name) -> String {
        let mapped = |name: &str| self.merge.map.iter().any(|(old, _)| old.means(name));
        let others = || self.sources.iter().flat_map(|s| s.relation.columns.iter().map(|c| c.name.as_str()));
        let earlier = || self.merge.map.iter().map(|(_, new)| new.value.as_str());
        let one = |names: Vec<&str>| if let [one] = names.as_slice() { Some((*one).to_owned()) } else { None };
        let there = names_meant(new, others().filter(|n| !mapped(n)));
        one(there).or_else(|| earlier().find(|n| new.means(n)).map(str::to_owned)).unwrap_or_else(|| new.value.clone())
    }

    /// The columns of a source under their new names.
    fn renamed(&self, source: &Source) -> Result<Vec<String>> {
        let own = || source.relation.columns.iter().map(|c| c.name.as_str());
        let mut names: Vec<String> = own().map(str::to_owned).collect();
        for (old, new) in &self.merge.map {
            match names_meant(old, own()).as_slice() {
                [] => {}
                [one] => {
                    let at = own().position(|n| n == *one);
                    at.into_iter().for_each(|at| names[at] = self.new_name(new));
                }
                several => return Err(ambiguous(Code::UnknownColumn, old, several)),
            }
        }
        for (i, name) in names.iter().enumerate() {
            if names[..i].contains(name) {
                let span = self.merge.map.iter().find(|(_, new)| new.means(name)).map(|(_, new)| new.span);
                let message = format!("`{}` would have two columns called `{name}`", source.name);
                return Err(Diagnostic::new(Code::DuplicateColumn, message).within(span.or_else(|| self.place_of(&source.name))));
            }
        }
        Ok(names)
    }

    /// The pairs of MAP: each renames something, and nothing is renamed twice.
    fn check_map(&self) -> Result<()> {
        for (i, (old, _)) in self.merge.map.iter().enumerate() {
            if self.merge.map[..i]
                .iter()
                .any(|(other, _)| other.value == old.value || other.quoted == old.quoted && old.means(&other.value))
            {
                return Err(Diagnostic::at(Code::DuplicateColumn, old.span, format!("`{}` is mapped twice", old.value)));
            }
            let found = self.sources.iter().any(|s| s.relation.columns.iter().any(|c| old.means(&c.name)));
            if !found {
                return Err(self.unknown_input(old));
            }
        }
        Ok(())
    }

    fn columns(&mut self) -> Result<()> {
        self.check_map()?;
        let mut names = self.sources.iter().map(|s| self.renamed(s)).collect::<Result<Vec<_>>>()?;
        let mut columns: Vec<Column> = Vec::new();
        for key in &self.merge.key {
            // The spelling of each source that has columns: its place among them.
            let mut spelt: Vec<(usize, usize)> = Vec::new();
            for (at_source, (source, names)) in self.sources.iter().zip(&names).enumerate() {
                if names.is_empty() && source.relation.rows.unwrap_or(0) == 0 {
                    continue;
                }
                let mapped = self.merge.map.iter().find(|(old, _)| key.means(&old.value)).map(|(_, new)| self.new_name(new));
                let found = match names_meant(key, names.iter().map(String::as_str)).as_slice() {
                    [] => names.iter().position(|n| Some(n) == mapped.as_ref()),
                    [one] => names.iter().position(|n| n == one),
                    several => return Err(ambiguous(Code::UnknownColumn, key, several)),
                };
                match found {
                    Some(at) => spelt.push((at_source, at)),
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
            // One key column, however each source spells it, if no source has columns of two of these spellings.
            let spellings: BTreeSet<String> = spelt.iter().map(|(source, at)| names[*source][*at].clone()).collect();
            for of_source in &names {
                let meant: Vec<&str> = of_source.iter().filter(|n| spellings.contains(*n)).map(String::as_str).collect();
                if meant.len() > 1 {
                    return Err(ambiguous(Code::UnknownColumn, key, &meant));
                }
            }
            let name = spelt.first().map(|(source, at)| names[*source][*at].clone()).ok_or_else(|| {
                Diagnostic::at(Code::UnknownColumn, key.span, format!("no source has the key column `{}`", key.value))
            })?;
            spelt.into_iter().for_each(|(source, at)| names[source][at].clone_from(&name));
            if columns.iter().any(|c| c.name == name) {
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
            let mut seen: Vec<(&Source, &Type)> = Vec::new();
            for (source, names) in self.sources.iter().zip(&names) {
                let Some(i) = names.iter().position(|n| *n == column.name) else {
                    column.nullable |= !names.is_empty();
                    continue;
                };
                let theirs = &source.relation.columns[i];
                column.nullable |= theirs.nullable;
                seen.push((source, &theirs.ty));
            }
            // Of the set of types: what two of them have no common type for, a third may.
            let common = |seen: &[(&Source, &Type)]| Type::widen_all(&seen.iter().map(|(_, ty)| *ty).collect::<Vec<_>>());
            column.ty = common(&seen).map_err(|_| {
                let at = (1..seen.len()).find(|n| common(&seen[..=*n]).is_err()).unwrap_or(seen.len() - 1);
                let (source, ty) = seen[at];
                let (other, was) = seen.iter().find(|(_, ty)| **ty != Type::Null).copied().unwrap_or(seen[0]);
                let mut error = Diagnostic::new(
                    Code::TypeMismatch,
                    format!("`{}` is {was} in `{}` and {ty} in `{}`", column.name, other.name, source.name),
                );
                error.span = self.place_of(&source.name);
                error.help("cast one of them in a source query: (SELECT CAST(...) ...) AS name")
            })?;
        }
        for (key, written) in columns.iter().zip(&self.merge.key) {
            if has_interval(&key.ty) {
                let what = if key.ty == Type::Interval { "is an interval" } else { "holds intervals" };
                return Err(Diagnostic::at(Code::TypeMismatch, written.span, format!("the key `{}` {what}", key.name))
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
            // Where names are the same in any case of letters, a column has the spelling that came first.
            let called = |same: fn(&str, &str) -> bool| self.columns.iter().position(|c| same(&c.name, "_ts"));
            let default = called(|a, b| a == b).or_else(|| called(str::eq_ignore_ascii_case));
            return Ok(Versions { columns: default.map(|c| (c, false)).into_iter().collect(), row: false });
        };
        let mut versions = Versions { columns: Vec::new(), row: by.row };
        for (name, descending) in &by.columns {
            let column = self.column(name).map_err(|e| match name.value == crate::lower::GONE {
                true => e.help("a delta has the column `_deleted`: delta_between(before, after, key) makes one"),
                false => e,
            })?;
            if versions.columns.iter().any(|(c, _)| *c == column) {
                return Err(Diagnostic::at(Code::DuplicateColumn, name.span, format!("`{}` is in the version twice", name.value)));
            }
            versions.columns.push((column, *descending));
        }
        Ok(versions)
    }
}

fn listing(names: &[String]) -> String {
    let mut shown: Vec<String> = names.iter().take(12).map(|n| format!("`{n}`")).collect();
    if names.len() > 12 {
        shown.push(format!("and {} more", names.len() - 12));
    }
    if shown.is_empty() { "no columns".to_owned() } else { shown.join(", ") }
}

/// A result column by the name as written: to the letter, else in any case of letters, else by its name before MAP.
///
/// # Errors
/// `unknown_column`.
pub fn find_column<'a>(name: &Name, columns: impl Iterator<Item = &'a str> + Clone, map: &[(Name, Name)]) -> Result<usize> {
    let mut meant = names_meant(name, columns.clone());
    if meant.is_empty()
        && let Some((_, new)) = map.iter().find(|(old, _)| old.means(&name.value))
    {
        meant = names_meant(new, columns.clone());
    }
    match meant.as_slice() {
        [one] => Ok(columns.clone().position(|c| c == *one).expect("invariant: it is one of them")),
        [] => Err(Diagnostic::at(Code::UnknownColumn, name.span, format!("there is no column `{}`", name.value))
            .suggest(&name.value, columns.clone().collect::<Vec<_>>())),
        several => Err(ambiguous(Code::UnknownColumn, name, several)),
    }
}
