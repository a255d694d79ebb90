//! Tables that keep states: where they come from, how they are joined, and what rows show of them.

use super::{DELETED, Lowering, ROW, STATE, list, quote, state_name, text};
use crate::plan::{Cell, Input};

impl Lowering<'_> {
    /// For each key the value of every cell (its type is what matters) and its state, named `__mergeql_state_0` and on; the state of
    /// the deletion is the last.
    pub fn states(&self) -> String {
        let value = |c: &Cell| if self.is_absent(c) { "NULL".to_owned() } else { self.aggregate(c, false) };
        let mut items: Vec<(String, String)> = self.plan.cells.iter().map(|c| (value(c), c.name.clone())).collect();
        let state = |c: &Cell| if self.is_absent(c) { "NULL".to_owned() } else { self.cell_state(c) };
        let cells = self.plan.cells.iter().chain(&self.plan.delete);
        items.extend(cells.enumerate().map(|(i, c)| (state(c), state_name(i))));
        self.grouped(&items, 0)
    }

    /// The rows of a table that keeps states, as [`Lowering::states`] gives them.
    pub fn kept_states(&self, table: &str) -> String {
        let plan = self.plan;
        let unpack = |name: &str, i: usize| format!("mergeql_unpack({STATE}, {}) AS {}", text(name), state_name(i));
        let columns = plan.result_columns().map(|(name, _)| quote(name));
        let states = plan.cells.iter().enumerate().map(|(i, c)| unpack(&c.name, i));
        let deleted = plan.delete.iter().map(|_| unpack(DELETED, plan.cells.len()));
        format!("SELECT {} FROM {table}", list(columns.chain(states).chain(deleted)))
    }

    /// A condition on rows of a table that keeps states: their values are not what their states say.
    pub fn edited(&self) -> String {
        let plan = self.plan;
        let differs = plan.cells.iter().map(|c| {
            let (column, state) = (quote(&c.name), format!("mergeql_unpack({STATE}, {})", text(&c.name)));
            let value = match &c.fold {
                Some(fold) => format!("{}(mergeql_value_like({state}, make_array({column})))", quote(&fold.function())),
                None => format!("mergeql_value_like({state}, {column})"),
            };
            format!("({value} IS DISTINCT FROM {column})")
        });
        let differs: Vec<String> = differs.collect();
        // CASE: a state that is not there must not be unpacked.
        if differs.is_empty() {
            return format!("{STATE} IS NULL");
        }
        format!("CASE WHEN {STATE} IS NULL THEN true ELSE ({}) END", differs.join(" OR "))
    }

    /// The rows of a table that keeps states: `inputs` are queries of keys, typed cells and states (as [`Lowering::states`] names
    /// them), which are joined by key.
    pub fn joined_states(&self, inputs: &[String]) -> String {
        let plan = self.plan;
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let cells: Vec<&Cell> = plan.cells.iter().chain(&plan.delete).collect();
        let value = |i: usize, cell: &Cell| {
            let column = quote(&cell.name);
            match &cell.fold {
                Some(fold) => {
                    format!("{}(mergeql_merge_value({}, make_array({column})))", quote(&fold.function()), state_name(i))
                }
                None => format!("mergeql_merge_value({}, {column})", state_name(i)),
            }
        };
        let value_name = |i: usize| if i < plan.cells.len() { format!("__mergeql_value_{i}") } else { DELETED.to_owned() };
        let values = list(cells.iter().enumerate().map(|(i, c)| format!("{} AS {}", value(i, c), value_name(i))));
        let states = list((0..cells.len()).map(|i| format!("crdt_merge({0}) AS {0}", state_name(i))));
        let all = inputs.join(" UNION ALL ");
        let not_null = keys.iter().map(|k| format!("{k} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
        let null = keys.iter().map(|k| format!("{k} IS NULL")).collect::<Vec<_>>().join(" OR ");
        let by_key = list(keys.iter().cloned());
        let by_all = list(keys.iter().cloned().chain((0..cells.len()).map(state_name)));
        let visible = list(keys.iter().cloned().chain((0..cells.len()).map(value_name)));
        let hidden = list((0..cells.len()).map(|i| format!("max({0}) AS {0}", state_name(i))));
        let packed = list(cells.iter().enumerate().map(|(i, c)| {
            let name = if i < plan.cells.len() { c.name.as_str() } else { DELETED };
            match &c.fold {
                Some(fold) if fold.compact => format!("{}, mergeql_gset_of({})", text(name), value_name(i)),
                _ => format!("{}, {}", text(name), state_name(i)),
            }
        }));
        let outputs = list(
            keys.iter()
                .cloned()
                .chain(plan.cells.iter().enumerate().map(|(i, c)| format!("{} AS {}", value_name(i), quote(&c.name)))),
        );
        let deleted = self.alive().map_or("false".to_owned(), |alive| format!("NOT ({alive})"));
        format!(
            "SELECT {outputs}, mergeql_pack({packed}) AS {STATE}, {deleted} AS {DELETED} FROM (\
             SELECT {by_key}, {values}, {states} FROM ({all}) AS a WHERE {not_null} GROUP BY {by_key} UNION ALL \
             SELECT {visible}, {hidden} FROM (SELECT {by_key}, {values}, {states} FROM ({all}) AS a WHERE {null} GROUP BY {by_all}) AS n \
             GROUP BY {visible}) AS m"
        )
    }

    /// The cells whose states a row has: those that it shows, under their names, and that of its deletion as [`DELETED`].
    fn stated(&self) -> Vec<(&str, &Cell)> {
        let shown = self.plan.cells.iter().map(|c| (c.name.as_str(), c));
        shown.chain(self.plan.delete.iter().map(|d| (DELETED, d))).collect()
    }

    /// Rows with the value of their deletion as rows with a flag, where there are deletions.
    fn with_flag(&self, rows: String) -> String {
        let Some(alive) = self.alive() else { return rows };
        let columns = list(self.plan.result_columns().map(|(name, _)| quote(name)));
        format!("SELECT {columns}, {STATE}, NOT ({alive}) AS {DELETED} FROM ({rows}) AS m")
    }

    /// A query of rows with their values and, as [`STATE`], the states of their cells; where there are deletions, [`DELETED`] says
    /// whether a row is one.
    pub fn rows_and_states(&self) -> String {
        let cells = self.stated();
        let mut items: Vec<(String, String)> =
            cells.iter().map(|(name, c)| (self.aggregate(c, false), (*name).to_owned())).collect();
        let states: Vec<(&str, String)> = cells.iter().map(|(name, c)| (*name, self.cell_state(c))).collect();
        items.push((self.packed(&states), STATE.to_owned()));
        self.with_flag(self.grouped(&items, 1))
    }

    /// For each key the states of its cells over the rows of the sources, as [`state_name`] names them.
    pub fn contributed(&self) -> String {
        let state = |c: &Cell| if self.is_absent(c) { self.dialect.no_state() } else { self.aggregate(c, true) };
        let cells = self.stated().into_iter().enumerate();
        self.grouped(&cells.map(|(i, (_, c))| (state(c), state_name(i))).collect::<Vec<_>>(), 0)
    }

    /// The states of the rows of a FROM clause, whose keys are `keys`: the same columns as those of [`Lowering::contributed`].
    /// `edited` is a condition on rows whose values are not what their states say: those are an error.
    pub fn unpacked(&self, keys: &[String], from: &str, edited: &str) -> String {
        let keys = keys.iter().zip(self.plan.key_columns()).map(|(expr, c)| format!("{expr} AS {}", quote(&c.name)));
        let packed = format!("CASE WHEN {edited} THEN NULL ELSE t.{STATE} END");
        let cells = self.stated().into_iter().enumerate();
        let states = cells.map(|(i, (name, _))| format!("{} AS {}", self.dialect.unpacked(&packed, name), state_name(i)));
        format!("SELECT {} FROM {from}", list(keys.chain(states)))
    }

    /// A condition on a row `t` of a table: its values are not what its states say. `like` gives an expression of a column's type.
    pub fn edited_row(&self, like: impl Fn(&Cell) -> String, differ: impl Fn(&Cell, &str, &str) -> String) -> String {
        let differs = self.plan.cells.iter().map(|c| {
            let state = self.dialect.unpacked(&format!("t.{STATE}"), &c.name);
            differ(c, &self.dialect.value_like(c, &state, &like(c)), &format!("t.{}", quote(&c.name)))
        });
        let differs: Vec<String> = differs.collect();
        // CASE: a state that is not there must not be unpacked.
        match differs.is_empty() {
            true => format!("t.{STATE} IS NULL"),
            false => format!("CASE WHEN t.{STATE} IS NULL THEN true ELSE {} END", differs.join(" OR ")),
        }
    }

    /// The rows of a table that keeps states: `inputs` are queries as [`Lowering::contributed`], which are joined by key. Rows without a
    /// key stay as they are, those that look the same once. Columns are those of [`Lowering::rows_and_states`].
    pub fn merged_states(&self, inputs: &[String], like: impl Fn(&Cell) -> String) -> String {
        let plan = self.plan;
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let cells = self.stated();
        let value = |i: usize, c: &Cell| self.dialect.value_like(c, &state_name(i), &like(c));
        let values = || cells.iter().enumerate().map(|(i, (name, c))| format!("{} AS {}", value(i, c), quote(name)));
        let state = |(i, (name, c)): (usize, &(_, &Cell))| match &c.fold {
            Some(fold) if fold.compact => (*name, format!("{}({})", self.dialect.function("mergeql_gset_of"), value(i, c))),
            _ => (*name, state_name(i)),
        };
        let states: Vec<(&str, String)> = cells.iter().enumerate().map(state).collect();
        let packed = self.packed(&states);
        let outputs =
            |from: &str| format!("SELECT {}, {packed} AS {STATE} FROM {from}", list(keys.iter().cloned().chain(values())));
        let merge = self.dialect.function("crdt_merge");
        let joined = list((0..cells.len()).map(|i| format!("{merge}({0}) AS {0}", state_name(i))));
        let all = inputs.join(" UNION ALL ");
        let test = |which: usize, by: &str| {
            let tests = plan.key_columns().iter().zip(&keys);
            tests.map(|(c, k)| format!("{k} {}", self.dialect.null_tests(&c.ty)[which])).collect::<Vec<_>>().join(by)
        };
        let by_key = list(keys.iter().cloned());
        let with_key = format!("(SELECT {by_key}, {joined} FROM ({all}) AS a WHERE {} GROUP BY {by_key}) AS m", test(1, " AND "));
        if !plan.nullable_key() {
            return self.with_flag(outputs(&with_key));
        }
        let seen: Vec<String> = keys.iter().cloned().chain(cells.iter().map(|(name, _)| quote(name))).collect();
        let without = outputs(&format!("({all}) AS a WHERE {}", test(0, " OR ")));
        // By what orders values, for not all types have an equality of their own.
        let same = list(seen.iter().map(|c| self.dialect.order_key(c, None).unwrap_or_else(|| c.clone())));
        let seen = list(seen);
        self.with_flag(format!(
            "{} UNION ALL SELECT {seen}, {STATE} FROM (SELECT *, row_number() OVER (PARTITION BY {same} ORDER BY {STATE} DESC) AS {ROW} \
             FROM ({without}) AS n) AS n WHERE {ROW} = 1",
            outputs(&with_key)
        ))
    }

    /// States of cells as one value.
    fn packed(&self, states: &[(&str, String)]) -> String {
        let function = self.dialect.function("mergeql_pack");
        let pack = |some: &[(&str, String)]| {
            format!("{function}({})", list(some.iter().map(|(name, state)| format!("{}, {state}", self.dialect.argument(name)))))
        };
        let most = self.dialect.most_arguments() / 2;
        match states.len() <= most {
            true => pack(states),
            false => format!("{function}({})", list(states.chunks(most).map(pack))),
        }
    }

    /// Whether no source has the column that a cell reads: its state stays as the table has it.
    fn is_absent(&self, cell: &Cell) -> bool {
        match cell.inputs.first() {
            Some(Input::Column(i)) => self.plan.sources.iter().all(|s| s.columns[*i].is_none()),
            _ => false,
        }
    }
}
