//! What may be merged into: an ordinary table's rows take part like any others, so a merged value must say all that its state knew.

use crate::diagnostic::{Diagnostic, Result};
use crate::plan::{Cell, Plan};
use mergeql_udfs::{Code, Type, Value};

impl Plan {
    /// Whether the statement lets its target grow.
    pub fn extends(&self) -> bool {
        matches!(self.option("schema"), Some(Value::Text(t)) if &**t == "extend")
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

    /// Refuses what an ordinary table cannot be merged into with; `self` is bound to the table and the sources.
    ///
    /// # Errors
    /// `needs_state`, `unknown_column`.
    pub fn check_target(&self, table: &str, columns: &[String]) -> Result<()> {
        self.check_columns(columns)?;
        if let Some((cell, why)) = self.cells.iter().find_map(|cell| Some((cell, self.not_closed(cell)?))) {
            return Err(needs_state(table, cell, &why));
        }
        if self.delete.is_some() {
            return Err(Diagnostic::new(Code::NeedsState, "only a table that keeps states remembers deleted rows"));
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
        .help(format!("let the table keep states: MERGE {table} ON ... INTO OR REPLACE {table} WITH (state = 'keep')"))
}
