//! From a merge in its text to a plan: its sources are found, and read in ways that fit together.

use crate::columns::{lean, physical};
use crate::context::MergeContext;
use crate::custom;
use crate::error::Result;
use crate::sources::{ReadOptions, Resolved};
use arrow::datatypes::DataType;
use futures::future::join_all;
use mergeql_lang::ast::{Explain, Merge};
use mergeql_lang::lower::{quote, text};
use mergeql_lang::plan::{Plan, Relation};
use mergeql_lang::{Kept, UserStrategies, bind};
use mergeql_udfs::Type;
use std::collections::{HashMap, HashSet};

/// What stands before the sources of a merge.
pub(crate) enum First<'a> {
    /// Nothing: it is no MERGE INTO.
    None,
    /// The target of MERGE INTO is there, but plays no part.
    Hidden,
    /// The target, whose rows take part.
    Rows(Resolved),
    /// The target, whose states take part.
    States(Resolved, &'a Kept),
}

/// Whether columns of the type may lie in memory in ways that a union doesn't bring together: bytes of one length and of another, times of
/// day of seconds and of milliseconds, intervals and durations.
fn varies(ty: &Type) -> bool {
    match ty {
        Type::Bytes | Type::Time(_) | Type::Interval => true,
        Type::List(item) => varies(item),
        Type::Struct(fields) => fields.iter().any(|(_, ty)| varies(ty)),
        Type::Map(key, value) => varies(key) || varies(value),
        _ => false,
    }
}

impl MergeContext {
    /// Binds a merge; `first` is the target of MERGE INTO as its first source.
    pub(crate) async fn bind(&self, merge: &Merge, first: First<'_>, explain: Explain) -> Result<Plan> {
        self.bind_with(merge, first, explain, &self.user_strategies()).await
    }

    /// As [`MergeContext::bind`], with these user-defined strategies.
    pub(crate) async fn bind_with(
        &self,
        merge: &Merge,
        first: First<'_>,
        explain: Explain,
        strategies: &UserStrategies,
    ) -> Result<Plan> {
        for (name, body) in strategies {
            custom::register_fold(self, name, body)?;
        }
        let options = ReadOptions::of_merge(merge)?;
        let into = !matches!(first, First::None);
        let per_origin = |call: &mergeql_lang::ast::StrategyCall| {
            mergeql_lang::entry_of(strategies, &call.name).is_some_and(|e| e.spec().per_origin() && e.spec().name != "source")
        };
        // Where rows count per origin, each file of a folder or pattern is one: the same rows give the same answer however their files
        // are named.
        let each = merge.strategies.iter().any(|(_, call)| per_origin(call));
        let mut expanded = merge.clone();
        let written = expanded.sources.split_off(usize::from(matches!(first, First::Rows(_) | First::States(..))));
        let mut relations = Vec::new();
        // Text files are read for their types: side by side.
        let resolving = written.into_iter().map(|source| Box::pin(self.resolve_source(source, &options, each)));
        for found in join_all(resolving).await {
            for (source, resolved) in found? {
                relations.push(self.adopt(resolved));
                expanded.sources.push(source);
            }
        }
        let merge = &expanded;
        match first {
            First::None | First::Hidden => self.align(merge, &mut relations).await?,
            First::Rows(target) => {
                relations.insert(0, self.adopt(target));
                self.align(merge, &mut relations).await?;
            }
            First::States(target, kept) => {
                self.align(merge, &mut relations).await?;
                relations.insert(0, self.adopt(target));
                kept.hide_known(&mut relations, merge);
            }
        }
        Ok(bind(merge, relations, into, strategies, explain)?)
    }

    fn adopt(&self, resolved: Resolved) -> Relation {
        if let Some((name, provider)) = resolved.table {
            self.shared.names.put_file(&name, provider);
        }
        resolved.relation
    }

    /// Reads columns that lie in different ways in different sources in the way that the engine makes columns of their type.
    async fn align(&self, merge: &Merge, relations: &mut [Relation]) -> Result<()> {
        if relations.len() < 2 {
            return Ok(());
        }
        let common = |name: &str| match merge.map.iter().find(|(old, _)| old.value == name) {
            Some((_, new)) => new.value.clone(),
            None => name.to_owned(),
        };
        let mut layouts: HashMap<String, HashSet<DataType>> = HashMap::new();
        for relation in relations.iter() {
            let columns: Vec<&str> = relation.columns.iter().filter(|c| varies(&c.ty)).map(|c| c.name.as_str()).collect();
            if columns.is_empty() {
                continue;
            }
            let names = columns.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", ");
            let plan = self.plan_sql(&format!("SELECT {names} FROM {} AS s", relation.sql)).await?;
            for (name, field) in columns.iter().zip(plan.schema().fields()) {
                layouts.entry(common(name)).or_default().insert(lean(field.data_type()));
            }
        }
        layouts.retain(|_, layouts| layouts.len() > 1);
        for relation in relations {
            let differs = |name: &str| layouts.contains_key(&common(name));
            if !relation.columns.iter().any(|c| varies(&c.ty) && differs(&c.name)) {
                continue;
            }
            let columns = relation.columns.iter().map(|c| {
                let name = quote(&c.name);
                match varies(&c.ty) && differs(&c.name) {
                    true => format!("arrow_cast({name}, {}) AS {name}", text(&physical(&c.ty).to_string())),
                    false => name,
                }
            });
            relation.sql = format!("(SELECT {} FROM {} AS s)", columns.collect::<Vec<_>>().join(", "), relation.sql);
        }
        Ok(())
    }
}
