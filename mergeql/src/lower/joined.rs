//! Two tables whose keys do not repeat, joined by key: of two candidates the stronger is told by comparing them, without an aggregate.

use super::{Lowering, list, quote};
use crate::plan::{Cell, Input, Plan, Reading};
use mergeql_udfs::slot::Shape;
use mergeql_udfs::{Order, Type};
use std::fmt::Write;

/// The CTE that says whether the keys of both tables are apart.
const KEYS: &str = "__mergeql_keys";

/// Types that hosts compare as R2 does, once texts are binary, and whose equal values are the same.
fn is_plain(ty: &Type) -> bool {
    ty.is_scalar() && !ty.has_float() && !matches!(ty, Type::Interval | Type::Null)
}

/// The column of the value and those of its version, where a cell is decided by comparing them alone.
fn candidate(plan: &Plan, cell: &Cell) -> Option<(Vec<usize>, Order)> {
    let Ok(Some(Shape::Strongest(order))) = cell.entry.bind(&cell.call).map(|a| a.shape()) else { return None };
    let column = |input: &Input| match input {
        Input::Column(c) if is_plain(&plan.columns[*c].ty) => Some(*c),
        _ => None,
    };
    let columns = cell.inputs.iter().map(column).collect::<Option<Vec<_>>>()?;
    let same_type = columns.first().is_some_and(|value| plan.columns[*value].ty == cell.ty);
    (same_type && cell.fold.is_none() && !cell.respects_nulls()).then_some((columns, order))
}

/// Whether the merge may be a join, if no key repeats: the plan can tell everything but that.
pub(crate) fn may_join(plan: &Plan) -> bool {
    let cheap = plan.sources.iter().all(|s| s.relation.reading == Reading::Cheap && s.columns.iter().any(Option::is_some));
    cheap
        && plan.sources.len() == 2
        // A condition is most often on the key, and few rows are no reason to look through all keys.
        && plan.filter.is_none()
        && plan.key_columns().iter().all(|c| is_plain(&c.ty))
        && plan.cells.iter().chain(&plan.delete).all(|c| candidate(plan, c).is_some())
}

impl Lowering<'_> {
    /// `items`, each for a cell, as [`Lowering::grouped`] gives them, where tables that can be joined are; `None` where they cannot.
    pub(super) fn joined(&self, items: &[(String, String)]) -> Option<String> {
        let plan = self.plan;
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let typed: Vec<(String, &Type)> =
            keys.iter().map(|k| format!("r.{k}")).zip(plan.key_columns().iter().map(|c| &c.ty)).collect();
        let repeats = self.dialect.repeats(&typed)?;
        let [left, right] = &self.branches()[..] else { return None };
        if !may_join(plan) {
            return None;
        }
        let not_null = keys.iter().map(|k| format!("r.{k} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
        let unrepeated = |rows: &str| format!("NOT (SELECT {repeats} FROM ({rows}) AS r WHERE {not_null})");
        let is_apart = format!("(SELECT apart FROM {KEYS})");
        let side = |rows: &str, name: &str| format!("(SELECT * FROM ({rows}) AS r WHERE {not_null} AND {is_apart}) AS {name}");
        let outputs = list(
            keys.iter().map(|k| format!("coalesce(a.{k}, b.{k}) AS {k}")).chain(
                plan.cells
                    .iter()
                    .chain(&plan.delete)
                    .zip(items)
                    .map(|(c, (_, name))| format!("{} AS {}", self.stronger(c), quote(name))),
            ),
        );
        Some(format!(
            "WITH {KEYS} AS MATERIALIZED (SELECT {} AND {} AS apart) SELECT {outputs} FROM {} FULL JOIN {} ON {} UNION ALL {}",
            unrepeated(left),
            unrepeated(right),
            side(left, "a"),
            side(right, "b"),
            keys.iter().map(|k| format!("a.{k} = b.{k}")).collect::<Vec<_>>().join(" AND "),
            self.grouped_where(items, 0, Some(&format!("NOT {is_apart}"))),
        ))
    }

    /// The stronger of the candidates of the rows `a` and `b`, which are NULL where there is no row.
    fn stronger(&self, cell: &Cell) -> String {
        let Some((columns, order)) = candidate(self.plan, cell) else { return self.dialect.null(&cell.ty) };
        let sides = |column: usize| ["a", "b"].map(|side| format!("{side}.{}", quote(&self.plan.columns[column].name)));
        let (value, versions) = (sides(columns[0]), &columns[1..]);
        let [a, b] = &value;
        let mut sql = format!("CASE WHEN {b} IS NULL THEN {a} WHEN {a} IS NULL THEN {b}");
        for [left, right] in versions.iter().map(|v| sides(*v)) {
            let (newer, older) = if order.flip_version { ("<", ">") } else { (">", "<") };
            // Where one is NULL, neither of the first two holds: it is the older in either order.
            let _ = write!(
                sql,
                " WHEN {left} {newer} {right} THEN {a} WHEN {left} {older} {right} THEN {b} \
                 WHEN {right} IS NULL AND {left} IS NOT NULL THEN {a} WHEN {left} IS NULL AND {right} IS NOT NULL THEN {b}"
            );
        }
        let _ = write!(sql, " WHEN {a} {} {b} THEN {a} ELSE {b} END", if order.least { "<=" } else { ">=" });
        self.dialect.resolved(sql, &cell.ty)
    }
}
