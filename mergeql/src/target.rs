//! What may be merged into: an ordinary table's rows take part like any others, so a merged value must say all that its state knew.

use crate::ast::{Explain, Merge, Relation as Written, Returning, Source};
use crate::bind::{UserStrategies, bind};
use crate::diagnostic::{Diagnostic, Result, Span};
use crate::plan::{Cell, Plan, Relation};
use mergeql_udfs::{Code, Type, Value};

/// Binds `MERGE INTO` an ordinary table of a database: `relations` are the table (called `name` in messages) and the
/// sources; its rows take part like any others, and merged values must fit into its columns.
///
/// # Errors
/// Those of [`bind`]; `needs_state`, `unknown_column`, `type_mismatch`, `unsupported`.
pub fn bind_into(
    merge: &Merge,
    target: &Written,
    name: &str,
    relations: Vec<Relation>,
    user: &UserStrategies,
    explain: Explain,
) -> Result<Plan> {
    if merge.returning != Returning::Rows {
        return Err(Diagnostic::new(Code::Unsupported, "MERGE INTO gives neither conflicts nor states back here")
            .help("ask for them first: MERGE target, sources ON ... RETURNING CONFLICTS"));
    }
    // Before the table's own types are looked at: values of such a strategy need not even have the column's type.
    // A column that only the table has is looked for below.
    match bind(merge, relations[1..].to_vec(), true, user, explain) {
        Ok(plan) => plan.check_strategies(name).map_err(way_out)?,
        Err(e) if e.code == Code::UnknownColumn => {}
        Err(e) => return Err(e),
    }
    let columns: Vec<String> = relations[0].columns.iter().map(|c| c.name.clone()).collect();
    let types: Vec<Type> = relations[0].columns.iter().map(|c| c.ty.clone()).collect();
    let mut with = merge.clone();
    with.sources.insert(0, Source { relation: target.clone(), alias: None, span: Span::default(), part: false });
    let mut plan = bind(&with, relations, true, user, explain)?;
    plan.check_target(name, &columns).map_err(way_out)?;
    for (column, merged) in plan.result_columns() {
        let theirs = columns.iter().position(|c| c == column).map(|at| &types[at]);
        if let Some(theirs) = theirs.filter(|ty| **ty != Type::Null) {
            check_fit(column, theirs, merged)?;
        }
    }
    plan.check_grown(&columns)?;
    Ok(plan)
}

/// Whether a statement lets its target grow by the columns that only its sources have.
pub fn grows(merge: &Merge) -> bool {
    let extend = |(name, value): &(crate::ast::Name, Value)| {
        name.value.eq_ignore_ascii_case("schema") && matches!(value, Value::Text(t) if &**t == "extend")
    };
    merge.options.iter().any(extend)
}

/// The columns, with their types, that `MERGE INTO ... WITH (schema = 'extend')` adds to a table with these columns: those that only the
/// sources have.
///
/// # Errors
/// Those of [`bind`].
pub fn added_columns(
    merge: &Merge,
    table: &[String],
    sources: Vec<Relation>,
    user: &UserStrategies,
) -> Result<Vec<(String, Type)>> {
    if !grows(merge) {
        return Ok(Vec::new());
    }
    let plan = bind(merge, sources, true, user, Explain::No)?;
    Ok(plan.columns.into_iter().filter(|c| !table.contains(&c.name)).map(|c| (c.name, c.ty)).collect())
}

/// The way out where the database itself adds columns.
fn way_out(mut error: Box<Diagnostic>) -> Box<Diagnostic> {
    if error.code == Code::UnknownColumn {
        let help = "add the column first (ALTER TABLE ... ADD COLUMN), leave it out in a source query, or let the table grow where MergeQL \
                    writes: WITH (schema = 'extend')";
        error.help = Some(help.to_owned());
    }
    error
}

impl Plan {
    /// Whether the statement lets its target grow.
    pub fn extends(&self) -> bool {
        matches!(self.option("schema"), Some(Value::Text(t)) if &**t == "extend")
    }

    /// Refuses a statement that lets its target grow where the table had to grow before.
    ///
    /// # Errors
    /// `unsupported`.
    pub fn check_grown(&self, target: &[String]) -> Result<()> {
        if !self.extends() || self.columns.iter().all(|c| target.contains(&c.name)) {
            return Ok(());
        }
        Err(Diagnostic::new(Code::Unsupported, "MERGE INTO adds no columns here")
            .help("add them first: ALTER TABLE ... ADD COLUMN"))
    }

    /// Columns that only the sources have are errors, unless the statement extends the table.
    ///
    /// # Errors
    /// `unknown_column`.
    pub fn check_columns(&self, target: &[String]) -> Result<()> {
        match self.columns.iter().find(|c| !target.contains(&c.name)) {
            Some(column) if !self.extends() => {
                Err(Diagnostic::new(Code::UnknownColumn, format!("the table has no column `{}`", column.name))
                    .help("add WITH (schema = 'extend') to let the table grow, or leave the column out in a source query"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses strategies that no ordinary table can be merged into with, whatever its types; `self` is bound to the sources alone.
    ///
    /// # Errors
    /// `needs_state`.
    pub fn check_strategies(&self, table: &str) -> Result<()> {
        for cell in &self.cells {
            let open = cell.fold.is_some() || !(cell.entry.spec().closed)(&cell.call);
            if open && (cell.fold.is_some() || !matches!(cell.entry.spec().name, "lww" | "fww")) {
                let why = format!("a value merged by `{}` does not say all that its state knew", cell.shown);
                return Err(needs_state(table, cell, &why));
            }
        }
        Ok(())
    }

    /// Refuses what an ordinary table cannot be merged into with, and warns of NaN, of which only values tell; `self` is bound to the table and the sources.
    ///
    /// # Errors
    /// `needs_state`, `unknown_column`.
    pub fn check_target(&mut self, table: &str, columns: &[String]) -> Result<()> {
        self.check_columns(columns)?;
        if let Some((cell, why)) = self.cells.iter().find_map(|cell| Some((cell, self.not_closed(cell)?))) {
            return Err(needs_state(table, cell, &why));
        }
        if self.delete.is_some() {
            return Err(Diagnostic::new(Code::NeedsState, "only a table that keeps states remembers deleted rows"));
        }
        let is_float = |cell: &&Cell| matches!(cell.ty, Type::Float32 | Type::Float64);
        let versioned = |cell: &&Cell| matches!(cell.entry.spec().name, "lww" | "fww") && cell.inputs.len() > 1;
        let floats = self.cells.iter().filter(|c| is_float(c) && versioned(c)).map(|c| format!("`{}`", c.name)).collect::<Vec<_>>();
        if !floats.is_empty() {
            self.warnings.push(format!(
                "a NaN gives way to any number, and only a table that keeps states knows the version of that: {} must hold none",
                floats.join(", ")
            ));
        }
        Ok(())
    }
}

/// Whether merged values of one type go into a column of another as they are: integers too great are refused when they come.
///
/// # Errors
/// `type_mismatch`.
pub fn check_fit(column: &str, table: &Type, merged: &Type) -> Result<()> {
    let integers = matches!((table, merged), (Type::Int { .. }, Type::Int { .. }));
    if table == merged || integers || Type::widen(table, merged).ok().as_ref() == Some(table) {
        return Ok(());
    }
    let message = format!("`{column}` is {table} in the table, and {merged} with what the sources bring: values would be cut");
    Err(Diagnostic::new(Code::TypeMismatch, message)
        .help("cast the source's column in a query, or make the table anew with the wider type"))
}

fn needs_state(table: &str, cell: &Cell, why: &str) -> Box<Diagnostic> {
    Diagnostic::new(Code::NeedsState, format!("`{}` cannot be merged into again: {why}", cell.name))
        .help(format!("merge into a table that keeps states: MERGE {table} ON ... INTO new_table WITH (state = 'keep') makes one"))
}
