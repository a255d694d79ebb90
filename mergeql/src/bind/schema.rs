//! RETURNING SCHEMA: what the sources have each column as, and what becomes of it.

use super::Binder;
use crate::ast::Explain;
use crate::diagnostic::{Diagnostic, Result};
use crate::plan::{Plan, SchemaRow, Versions};
use mergeql_udfs::{Code, Type, Value};
use std::collections::BTreeMap;

/// Which columns the result has: those of any source, of all, of the first, of the last. The first two know no order of sources.
pub(super) const POLICIES: [&str; 4] = ["union", "intersection", "left", "right"];

impl Binder<'_> {
    /// The plan of a statement about schemas: a row for each column, by name.
    pub(super) fn schema(&mut self, explain: Explain) -> Result<Plan> {
        let merge = self.merge;
        let clauses = [
            ("ON", !merge.key.is_empty()),
            ("STRATEGY", !merge.strategies.is_empty()),
            ("VERSION BY", merge.version.is_some()),
            ("DELETE BY", merge.delete.is_some()),
            ("WHERE", merge.filter.is_some()),
            ("ORDER BY", !merge.order.is_empty()),
            ("LIMIT", merge.limit.is_some()),
            ("OFFSET", merge.offset.is_some()),
            ("WITH (state = 'keep')", self.option("state").is_some()),
        ];
        if let Some((clause, _)) = clauses.iter().find(|(_, given)| *given) {
            return Err(Diagnostic::new(Code::Unsupported, format!("RETURNING SCHEMA has no {clause}"))
                .within(merge.place(clause))
                .help("schemas need the sources alone: MERGE a, b RETURNING SCHEMA"));
        }
        self.check_map()?;
        let mut columns: BTreeMap<String, Vec<Option<&Type>>> = BTreeMap::new();
        for (i, source) in self.sources.iter().enumerate() {
            for (name, column) in self.renamed(source)?.into_iter().zip(&source.relation.columns) {
                columns.entry(name).or_insert_with(|| vec![None; self.sources.len()])[i] = Some(&column.ty);
            }
        }
        let policy = match self.option("policy") {
            Some(Value::Text(policy)) => policy.to_string(),
            _ => "union".to_owned(),
        };
        let schema = columns.into_iter().map(|(column, types)| self.schema_row(column, &types, &policy)).collect();
        Ok(Plan {
            sources: std::mem::take(&mut self.sources),
            columns: Vec::new(),
            key: 0,
            cells: Vec::new(),
            versions: Versions::default(),
            delete: None,
            filter: None,
            order: Vec::new(),
            limit: None,
            offset: None,
            returning: self.merge.returning,
            into: self.merge.into.clone(),
            options: self.merge.options.clone(),
            explain,
            warnings: Vec::new(),
            schema,
        })
    }

    fn schema_row(&self, column: String, types: &[Option<&Type>], policy: &str) -> SchemaRow {
        let there = || types.iter().flatten();
        let widened = Type::widen_all(&there().copied().collect::<Vec<_>>());
        let status = match &widened {
            Err(_) => "clash",
            Ok(all) if there().any(|ty| *ty != all) => "widened",
            Ok(_) if types[0].is_none() => "added",
            Ok(_) if types.contains(&None) => "missing",
            Ok(_) => "same",
        };
        let all = widened.ok();
        let ty = match policy {
            "intersection" => all.filter(|_| !types.contains(&None)),
            "left" => types[0].cloned(),
            "right" => types.last().copied().flatten().cloned(),
            _ => all,
        };
        // Types that differ in nothing but how fine their times are show that.
        let alike = |a: &Type, b: &Type| a != b && a.to_string() == b.to_string();
        let fine = there().any(|a| there().any(|b| alike(a, b)));
        let named = |ty: &Type| match ty {
            Type::Time(unit) | Type::Timestamp { unit, .. } if fine => format!("{ty}({})", unit.digits()),
            _ => ty.to_string(),
        };
        let shown =
            |(source, ty): (&crate::plan::Source, &Option<&Type>)| format!("{}: {}", source.name, ty.map_or("-".to_owned(), named));
        let sources = self.sources.iter().zip(types).map(shown).collect::<Vec<_>>().join(", ");
        SchemaRow { column, status, ty: ty.as_ref().map(named), sources }
    }
}
