//! Tables that keep states: how their rows are resolved is kept with them, and a later `MERGE INTO` goes by it.

use crate::ast::{
    Argument, Explain, Merge, Name, Relation as Written, Returning, Source, Statement, StrategyBody, StrategyCall, Target,
    VersionBy,
};
use crate::bind::{UserStrategies, bind, find_column, source_called};
use crate::diagnostic::{Diagnostic, Result, Span};
use crate::lower::{STATE, duckdb_columns, duckdb_type, exact_type_name, quote, text};
use crate::parser::{parse, split};
use crate::plan::{Plan, Relation};
use crate::strategies::{entry_of, find_strategy, find_user};
use mergeql_udfs::{Code, Type, Value, catalog};
use std::collections::BTreeMap;

/// How a table keeps states: the clauses, and the definitions of the user-defined strategies in them. A table owns them: what becomes
/// of a strategy of that name later does not change what its states mean.
pub struct Kept {
    /// The clauses, as a merge of the table alone.
    pub merge: Merge,
    /// The strategies that they name.
    pub strategies: UserStrategies,
    /// What the strategies read: the types of the columns when the table was made. States hold values of these.
    types: BTreeMap<String, Type>,
    /// As users may write it again.
    resolution: String,
}

/// Where the names stand that a table keeps.
const ELSEWHERE: Span = Span { line: u64::MAX, column: 0, end: 0 };

/// The names in the clauses that a table keeps.
fn names_of(merge: &mut Merge) -> Vec<&mut Name> {
    let mut names: Vec<&mut Name> = merge.key.iter_mut().chain(&mut merge.delete).collect();
    names.extend(merge.version.iter_mut().flat_map(|v| &mut v.columns).map(|(name, _)| name));
    for (target, call) in &mut merge.strategies {
        if let Target::Column(name) = target {
            names.push(name);
        }
        names.push(&mut call.name);
        names.extend(call.by.iter_mut().flat_map(|v| &mut v.columns).map(|(name, _)| name));
        names.extend(call.args.iter_mut().filter_map(|(_, arg)| if let Argument::Name(name) = arg { Some(name) } else { None }));
    }
    names
}

/// The option in which a table keeps the types of its columns.
const TYPES: &str = "types";

impl Kept {
    /// Refuses a table with a column of states where nothing says how it keeps them.
    ///
    /// # Errors
    /// `not_a_state`.
    pub fn check_known(table: &str, columns: &[String], resolution: Option<&str>) -> Result<()> {
        if resolution.is_some() || !columns.iter().any(|c| c == STATE) {
            return Ok(());
        }
        Err(Diagnostic::new(Code::NotAState, format!("`{table}` has a column `{STATE}`, and nothing says how it keeps states"))
            .help("make it anew: MERGE ... INTO ... WITH (state = 'keep')"))
    }

    /// The text that [`Kept::read`] reads, of a table made by this merge; `texts` has what is behind AS of each user-defined strategy.
    pub fn resolution(merge: &Merge, plan: &Plan, user: &UserStrategies, texts: &BTreeMap<String, String>) -> String {
        let named = final_names(merge, plan);
        // Those whose names say all of them.
        let told = |ty: &Type| duckdb_type(&exact_type_name(ty)).is_ok_and(|read| read == *ty);
        // Of a column that held nothing so far anything may come.
        let columns = plan.columns[plan.key..].iter().filter(|c| told(&c.ty) && !has_null(&c.ty));
        let columns: Vec<String> = columns.map(|c| format!("{} {}", quote(&c.name), exact_type_name(&c.ty))).collect();
        let types = format!(" WITH ({TYPES} = {})", text(&format!("STRUCT({})", columns.join(", "))));
        definitions(&named, user, texts).concat() + &crate::resolution(&named) + &types
    }

    /// The same for values that are no values of its columns' types: those that rows show.
    pub fn of_shown(self) -> Kept {
        Kept { types: BTreeMap::new(), ..self }
    }

    /// Reads how a table keeps states.
    ///
    /// # Errors
    /// `corrupt_state`.
    pub fn read(table: &str, resolution: &str) -> Result<Kept> {
        let broken = || Diagnostic::new(Code::CorruptState, format!("how `{table}` keeps states cannot be read: {resolution}"));
        let (mut merge, mut strategies, mut shown) = (None, UserStrategies::new(), String::new());
        for statement in split(resolution)? {
            match parse(statement)? {
                Statement::Merge { merge: kept, .. } => merge = Some(*kept),
                Statement::CreateStrategy { name, body, .. } => {
                    strategies.insert(name.value, body);
                    shown.push_str(&format!("{statement}; "));
                }
                _ => return Err(broken()),
            }
        }
        let mut merge: Merge = merge.ok_or_else(broken)?;
        let types = match merge.options.iter().find(|(name, _)| name.value == TYPES) {
            Some((_, Value::Text(types))) => duckdb_columns(types).map_err(|_| broken())?,
            _ => Vec::new(),
        };
        merge.options.clear();
        names_of(&mut merge).into_iter().for_each(|name| name.span = ELSEWHERE);
        let resolution = shown + &crate::resolution(&merge);
        Ok(Kept {
            merge,
            strategies,
            types: types.into_iter().filter(|c| !has_null(&c.ty)).map(|c| (c.name, c.ty)).collect(),
            resolution,
        })
    }

    /// A statement that merges into the table, with the clauses that the table keeps.
    ///
    /// # Errors
    /// `unknown_strategy`, `type_mismatch` for other clauses than those, `invalid_argument` for another key, `unsupported` for what states cannot say.
    pub fn applied(&self, table: &str, given: Merge, user: &UserStrategies, texts: &BTreeMap<String, String>) -> Result<Merge> {
        if given.returning != Returning::Rows {
            let message = format!("`{table}` keeps states, which do not say which rows they are of");
            return Err(Diagnostic::new(Code::Unsupported, message)
                .within(given.place("RETURNING"))
                .help("ask before: MERGE the sources with RETURNING CONFLICTS, without INTO"));
        }
        for (_, call) in &given.strategies {
            let own = |user: &UserStrategies| find_strategy(user, &call.name).is_ok();
            if catalog::find(&call.name.value).is_none() && !own(user) && !own(&self.strategies) {
                find_strategy(user, &call.name).map_err(|e| e.suggest(&call.name.value, catalog::names()))?;
            }
        }
        let same_strategies = definitions(&given, user, texts).iter().all(|one| self.resolution.contains(one));
        if differs(&given, &self.merge) || !same_strategies {
            return Err(Diagnostic::new(Code::TypeMismatch, format!("`{table}` keeps states of other clauses than these"))
                .within(given.place("STRATEGY").or(given.place("VERSION BY")).or(given.place("DELETE BY")))
                .help(format!("leave STRATEGY, VERSION BY and DELETE BY out, or repeat them: {}", self.resolution)));
        }
        let kept = &self.merge;
        if given.key.len() != kept.key.len() || !given.key.iter().zip(&kept.key).all(|(a, b)| is_called(&given, a, b)) {
            return Err(Diagnostic::new(Code::InvalidArgument, format!("`{table}` keeps states under another key"))
                .within(given.key.first().map(|key| key.span))
                .help(self.resolution.clone()));
        }
        Ok(Merge {
            key: kept.key.clone(),
            strategies: kept.strategies.clone(),
            version: kept.version.clone(),
            delete: kept.delete.clone(),
            ..given
        })
    }

    /// Binds a statement that merges into the table ([`Kept::applied`]): `target` is the table with its visible columns. The plan's
    /// sources are those of the statement.
    ///
    /// # Errors
    /// Those of [`bind`]; `unknown_column` for what the table does not have, unless the statement extends it.
    pub fn bind(&self, merge: &Merge, target: Relation, sources: Vec<Relation>, explain: Explain) -> Result<Plan> {
        let mut with = merge.clone();
        let name = Name { value: target.origin.clone().unwrap_or_default(), quoted: true, span: Span::default() };
        with.sources.insert(0, Source { relation: Written::Table(vec![name]), alias: None, span: Span::default(), part: false });
        let columns: Vec<String> = target.columns.iter().map(|c| c.name.clone()).collect();
        let mut relations = vec![target];
        relations.extend(sources);
        self.hide_known(&mut relations, &with);
        let mut plan = bind(&with, relations, true, &self.strategies, explain).map_err(|e| self.told(e))?;
        plan.check_columns(&columns)?;
        self.check(&plan)?;
        // The target contributes states, not rows.
        plan.sources.remove(0);
        Ok(plan)
    }

    /// An error about what the table keeps, which is in no text that its user wrote.
    pub fn told(&self, mut error: Box<Diagnostic>) -> Box<Diagnostic> {
        if error.span == Some(ELSEWHERE) {
            (error.span, error.label) = (None, None);
            error.help = Some(format!("the table keeps states by these clauses: {}", self.resolution));
        }
        error
    }

    /// The columns, with their types, that a statement ([`Kept::applied`]) adds to the table: those that only its sources have, where it
    /// says `WITH (schema = 'extend')`.
    ///
    /// # Errors
    /// Those of [`Kept::bind`].
    pub fn added(&self, merge: &Merge, target: Relation, sources: Vec<Relation>) -> Result<Vec<(String, Type)>> {
        let known: Vec<String> = target.columns.iter().map(|c| c.name.clone()).collect();
        let plan = self.bind(merge, target, sources, Explain::No)?;
        let new = plan.result_columns().filter(|(name, _)| !known.iter().any(|k| k == name));
        Ok(new.map(|(name, ty)| (name.to_owned(), ty.clone())).collect())
    }

    /// Gives the columns of the table (the first of these relations) the types that its strategies read, where they are known; columns
    /// whose values may be of another kind, and that the sources have as well, are left to those.
    pub fn hide_known(&self, relations: &mut [Relation], merge: &Merge) {
        let Some((target, sources)) = relations.split_first_mut() else { return };
        let in_sources = |column: &str| {
            sources.iter().flat_map(|r| &r.columns).any(|c| match merge.map.iter().find(|(old, _)| old.means(&c.name)) {
                Some((_, new)) => new.means(column),
                None => c.name == column,
            })
        };
        // A column that the table got later has the strategy of all.
        let star = self.merge.strategies.iter().find(|(of, _)| matches!(of, Target::Default(_)));
        let selects = star.is_none_or(|(_, call)| entry_of(&self.strategies, &call.name).is_some_and(|e| e.spec().selects));
        target.columns.retain_mut(|c| {
            if merge.key.iter().any(|k| k.means(&c.name)) {
                return true;
            }
            match self.types.get(&c.name) {
                Some(ty) => {
                    (c.ty, c.nullable) = (ty.clone(), true);
                    true
                }
                None => c.name != STATE && (selects && !self.types.is_empty() || !in_sources(&c.name)),
            }
        });
    }

    /// Refuses what states that are there already would be compared with wrongly: values of other types, rows with other columns.
    ///
    /// # Errors
    /// `type_mismatch`, `unsupported`.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        for column in &plan.columns[plan.key..] {
            match self.types.get(&column.name) {
                // Integers are the same values in any width; those too great are refused where they are written.
                Some(Type::Int { .. }) if matches!(column.ty, Type::Int { .. }) => {}
                Some(ty) if *ty != column.ty => {
                    let message = format!("`{}` is {ty} in the table, and {} with what the sources bring", column.name, column.ty);
                    return Err(Diagnostic::new(Code::TypeMismatch, message)
                        .help("cast the source's column in a query, or make the table anew with the wider type"));
                }
                None if plan.versions.row && !self.types.is_empty() => {
                    let message =
                        format!("the table was made without `{}`, and rows of one version are compared whole (ROW)", column.name);
                    return Err(Diagnostic::new(Code::Unsupported, message).help("make the table anew, from a MERGE of everything"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The definitions of the user-defined strategies that a merge names, by name.
fn definitions(merge: &Merge, user: &UserStrategies, texts: &BTreeMap<String, String>) -> Vec<String> {
    let mut used: Vec<&str> = Vec::new();
    let mut calls: Vec<&StrategyCall> = merge.strategies.iter().map(|(_, call)| call).collect();
    while let Some(call) = calls.pop() {
        let built_in = catalog::find(&call.name.value).is_some();
        let found = find_user(user, &call.name).filter(|(n, _)| !built_in && !used.contains(&n.as_str()));
        let Some((name, body)) = found else { continue };
        used.push(name);
        if let StrategyBody::Alias(inner) = body {
            calls.push(inner);
        }
    }
    used.sort_unstable();
    let define = |name: &&str| Some(format!("CREATE STRATEGY {} AS {}; ", quote(name), uncommented(texts.get(*name)?)));
    used.iter().filter_map(define).collect()
}

/// Whether there is a type in a type of which nothing is known.
fn has_null(ty: &Type) -> bool {
    ty.any(&|ty| *ty == Type::Null)
}

/// A definition without a comment behind it.
fn uncommented(text: &str) -> &str {
    split(text).ok().and_then(|statements| statements.first().copied()).unwrap_or(text)
}

/// A text where a source stands among the arguments of a strategy.
fn source_argument(argument: &Argument) -> Option<&str> {
    match argument {
        Argument::Literal(Value::Text(text), _) => Some(text),
        Argument::Literal(..) => None,
        Argument::Name(name) => Some(&name.value),
    }
}

/// A call of `source`, with its sources called as `full` says; other calls as they are.
fn with_sources<'a>(call: &StrategyCall, full: impl Fn(&Name) -> Option<&'a str>) -> StrategyCall {
    let mut call = call.clone();
    if catalog::find(&call.name.value).is_none_or(|entry| entry.spec().name != "source") {
        return call;
    }
    for (_, argument) in &mut call.args {
        let (name, span) = match &*argument {
            Argument::Name(name) => (name.clone(), name.span),
            Argument::Literal(Value::Text(text), span) => (Name { value: text.to_string(), quoted: true, span: *span }, *span),
            Argument::Literal(..) => continue,
        };
        if let Some(full) = full(&name) {
            *argument = Argument::Literal(Value::text(full), span);
        }
    }
    call
}

/// Whether what a statement says of strategies, versions and deletions is something else than what a table keeps. What it leaves out is
/// taken from the table, and a strategy has several names.
fn differs(given: &Merge, kept: &Merge) -> bool {
    let plain = |name: &str| Name { value: name.to_owned(), quoted: false, span: Span::default() };
    let shown = |call: Option<&StrategyCall>| {
        let usual = || StrategyCall { name: plain("lww"), args: Vec::new(), respect_nulls: false, by: None };
        let mut call = call.cloned().unwrap_or_else(usual);
        if let Some(known) = catalog::find(&call.name.value) {
            call.name = plain(known.spec().name);
        }
        let alone = Merge { strategies: vec![(Target::Default(Span::default()), call)], ..Merge::default() };
        crate::resolution(&alone)
    };
    let of = |column: Option<&Name>| {
        let named = kept
            .strategies
            .iter()
            .find(|(of, _)| matches!((of, column), (Target::Column(name), Some(column)) if column.means(&name.value)));
        let default = || kept.strategies.iter().find(|(of, _)| matches!(of, Target::Default(_)));
        named.or_else(default).map(|(_, call)| call)
    };
    let other_strategy = given.strategies.iter().any(|(target, call)| {
        let kept = of(match target {
            Target::Default(_) => None,
            Target::Column(name) => Some(name),
        });
        let known: Vec<&str> = kept.iter().flat_map(|kept| kept.args.iter().filter_map(|(_, arg)| source_argument(arg))).collect();
        let call = with_sources(call, |name| source_called(name, known.iter().copied()));
        shown(kept) != shown(Some(&call))
    });
    let same_version = |a: &VersionBy, b: &VersionBy| {
        let mut parts = a.columns.iter().zip(&b.columns);
        a.row == b.row && a.columns.len() == b.columns.len() && parts.all(|(x, y)| x.1 == y.1 && is_called(given, &x.0, &y.0))
    };
    // What a merge without VERSION BY goes by is `_ts`.
    let usual = VersionBy { columns: vec![(plain("_ts"), false)], row: false };
    let kept_version = kept.version.as_ref().unwrap_or(&usual);
    let other_version = given.version.as_ref().is_some_and(|a| !same_version(a, kept_version));
    let other_delete = given.delete.as_ref().is_some_and(|a| !kept.delete.as_ref().is_some_and(|b| is_called(given, a, b)));
    other_strategy || other_version || other_delete
}

/// Whether a name in a statement is that of a column which the table keeps, itself or by what MAP makes of it.
fn is_called(statement: &Merge, name: &Name, kept: &Name) -> bool {
    let mapped = || statement.map.iter().find(|(old, _)| old.means(&name.value)).is_some_and(|(_, new)| new.means(&kept.value));
    name.means(&kept.value) || mapped()
}

/// The merge with the names that its columns have after MAP, as later statements will call them.
fn final_names(merge: &Merge, plan: &Plan) -> Merge {
    let mut named = merge.clone();
    let rename = |name: &mut Name| {
        if let Ok(column) = find_column(name, plan.columns.iter().map(|c| c.name.as_str()), &merge.map) {
            name.value.clone_from(&plan.columns[column].name);
        }
    };
    named.key.iter_mut().for_each(rename);
    named.delete.iter_mut().for_each(rename);
    named.version.iter_mut().flat_map(|v| &mut v.columns).for_each(|(n, _)| rename(n));
    for (target, call) in &mut named.strategies {
        if let Target::Column(name) = target {
            rename(name);
        }
        call.by.iter_mut().flat_map(|v| &mut v.columns).for_each(|(n, _)| rename(n));
        *call = with_sources(call, |name| source_called(name, plan.sources.iter().map(|s| s.name.as_str())));
        for (_, argument) in &mut call.args {
            if let Argument::Name(name) = argument {
                rename(name);
            }
        }
    }
    named
}
