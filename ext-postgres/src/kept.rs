//! Tables that keep states: how their rows are resolved is a comment on their column of states, and deleted rows lie in a table beside.
#![allow(unsafe_code)]

use crate::entry::{Call, Failure, Outcome};
use crate::statements::{Described, Session, with_session};
use crate::writing::{as_text, is_comparable};
use mergeql_lang::ast::{Explain, Name, Relation as Written, Source};
use mergeql_lang::lower::{DELETED, Dialect, Lowering, STATE, quote, text as literal};
use mergeql_lang::plan::{Plan, Relation};
use mergeql_lang::{Diagnostic, Kept, Span};
use mergeql_udfs::{Code, Type};
use pgrx::pg_sys::Datum;

/// What the comment on a table says that remembers the deleted rows of another.
const GRAVEYARD: &str = "deleted rows that a table of MergeQL remembers";

/// The name of the table that remembers the deleted rows of a table.
fn graveyard(name: &str) -> Result<String, Failure> {
    let gone = format!("{name}_mergeql_deleted");
    if gone.len() > 63 {
        let message = format!("`{name}` is too long a name for a table with DELETE BY: its deleted rows go to `{gone}`");
        return Err(Diagnostic::new(Code::LimitExceeded, message).into());
    }
    Ok(gone)
}

/// The columns of a table that keeps states beside those of its rows, while it is made.
pub(crate) fn more(plan: &Plan) -> &'static [&'static str] {
    if plan.delete.is_some() { &[STATE, DELETED] } else { &[STATE] }
}

/// An expression of the type of a table's column.
pub(crate) fn like(into: &Described, column: &str) -> String {
    format!("(NULL::{}).{}", into.relation.sql, quote(column))
}

/// A condition on a row `t` of a table that keeps states: its values are not what its states say.
fn edited(lowering: &Lowering<'_>, into: &Described) -> String {
    let differ = |cell: &mergeql_lang::plan::Cell, a: &str, b: &str| {
        let plain = into.columns.iter().any(|c| c.name == cell.name && is_comparable(c));
        let side = |value: &str| if plain { value.to_owned() } else { as_text(value) };
        format!("{} IS DISTINCT FROM {}", side(a), side(b))
    };
    lowering.edited_row(|c| like(into, &c.name), differ)
}

impl Session<'_> {
    /// A table that keeps states, made by the statement `create`; behind each row stands whether it is deleted.
    pub(crate) fn create_kept(&self, name: &str, create: String, plan: &Plan, resolution: &str) -> Result<Vec<String>, Failure> {
        // A comment stays with its table through renames, dumps and copies.
        let mut script = vec![create, format!("COMMENT ON COLUMN {name}.{STATE} IS {}", literal(resolution))];
        if plan.delete.is_some() {
            let parts = self.spi.texts("SELECT pg_catalog.unnest(pg_catalog.parse_ident($1))", &[name])?;
            let mut parts: Vec<String> = parts.into_iter().flatten().flatten().collect();
            if let Some(last) = parts.last_mut() {
                *last = graveyard(last)?;
            }
            let gone = parts.iter().map(|p| quote(p)).collect::<Vec<_>>().join(".");
            if self.find(&gone)?.is_some() {
                let message = format!("the table {gone} is there: it remembers deleted rows of a table that was called {name}");
                return Err(Diagnostic::new(Code::InvalidArgument, message)
                    .help("drop it if that table is gone, or rename it as that table was renamed")
                    .into());
            }
            let keys = plan.key_columns().iter().map(|c| quote(&c.name)).collect::<Vec<_>>();
            let not_null = keys.iter().map(|k| format!("{k} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
            script.push(format!(
                "CREATE TABLE {gone} AS SELECT {}, {STATE} FROM {name} WHERE {DELETED} AND {not_null}",
                keys.join(", ")
            ));
            script.push(format!("COMMENT ON TABLE {gone} IS {}", literal(GRAVEYARD)));
            script.push(format!("DELETE FROM {name} WHERE {DELETED}"));
            script.push(format!("ALTER TABLE {name} DROP COLUMN {DELETED}"));
        }
        Ok(script)
    }

    /// How a table keeps states, if it does.
    pub(crate) fn resolution(&self, (schema, name): &(String, String)) -> Result<Option<String>, Failure> {
        let sql = format!(
            "SELECT pg_catalog.col_description(a.attrelid, a.attnum) FROM pg_catalog.pg_attribute a \
             JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = '{STATE}' AND c.relkind IN ('r', 'p')"
        );
        let found = self.spi.texts(&sql, &[schema, name])?.into_iter().flatten().flatten().next();
        Ok(found.filter(|text| text.starts_with("MERGE ") || text.starts_with("CREATE STRATEGY ")))
    }

    /// Whether a table is there to remember deleted rows of another.
    fn is_graveyard(&self, schema: &str, name: &str) -> Result<bool, Failure> {
        let sql = "SELECT pg_catalog.obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c \
                   JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
        Ok(self.spi.texts(sql, &[schema, name])?.into_iter().flatten().flatten().any(|comment| comment == GRAVEYARD))
    }

    /// The table that remembers the deleted rows of a table that keeps states.
    pub(crate) fn graveyard_of(&self, into: &Described) -> Result<String, Failure> {
        let Some((schema, name)) = &into.table else { return Ok(String::new()) };
        let gone = graveyard(name)?;
        if !self.is_graveyard(schema, &gone)? {
            let message = format!("the table `{gone}` with the deleted rows of `{name}` is not there");
            return Err(Diagnostic::new(Code::NotAState, message).help("rename it as its table was renamed").into());
        }
        Ok(format!("{}.{}", quote(schema), quote(&gone)))
    }

    /// The states of rows `t` of a table that keeps them, whose values must be what their states say.
    pub(crate) fn kept_rows(&self, lowering: &Lowering<'_>, into: &Described, from: &str) -> String {
        lowering.unpacked(&self.keys(lowering, into), from, &edited(lowering, into))
    }

    /// The keys of rows `t` of a table as a merge has them.
    pub(crate) fn keys(&self, lowering: &Lowering<'_>, into: &Described) -> Vec<String> {
        let key = |c: &mergeql_lang::plan::Column| {
            let name = format!("t.{}", quote(&c.name));
            let theirs = into.relation.columns.iter().find(|theirs| theirs.name == c.name);
            let cast = theirs.and_then(|theirs| self.dialect.cast(&name, &theirs.ty, &c.ty)).unwrap_or(name);
            self.dialect.key(&cast, &c.ty).unwrap_or(cast)
        };
        lowering.plan.key_columns().iter().map(key).collect()
    }

    /// `mergeql_adopt(table)`: rows that were edited by hand are taken in as rows.
    fn adopt(&self, name: &str) -> Result<u64, Failure> {
        let missing = || Diagnostic::new(Code::NotAState, format!("`{name}` is no table that keeps states"));
        let found = self.find(name)?.ok_or_else(missing)?;
        let written = Written::Table(
            [&found.0, &found.1].map(|part| Name { value: part.clone(), quoted: true, span: Span::default() }).to_vec(),
        );
        let into = self.describe(&written)?;
        let table = into.relation.sql.clone();
        let kept = Kept::read(name, &into.kept.clone().ok_or_else(missing)?)?.of_shown();
        self.spi.run(&format!("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE"))?;
        let mut alone = kept.merge.clone();
        let alias = Some(Name { value: "edited".to_owned(), quoted: true, span: Span::default() });
        alone.sources = vec![Source { relation: Written::Query(Vec::new()), alias, span: Span::default(), part: false }];
        // Bound to the table as it is, to know what its states say.
        let mut rows = Relation { origin: None, ..into.relation.clone() };
        let mut plan = kept.bind(&alone, into.relation.clone(), vec![rows.clone()], Explain::No)?;
        let lowering = Lowering { plan: &plan, dialect: &self.dialect };
        let condition = edited(&lowering, &into);
        // A set of values is taken in value by value.
        let is_set = |name: &str| plan.cells.iter().any(|c| c.name == name && c.ty == Type::List(Box::new(c.call.value_type())));
        if let Some(set) = into.columns.iter().find(|c| is_set(&c.name)) {
            let message = format!("`{}` is a set of values, which cannot be taken in from an edited row here", set.name);
            return Err(Diagnostic::new(Code::Unsupported, message).help("merge the values as rows: MERGE INTO ... USING").into());
        }
        let columns = into.columns.iter().map(|c| format!("t.{}", quote(&c.name))).collect::<Vec<_>>().join(", ");
        self.spi.run(&format!(
            "CREATE TEMPORARY TABLE __mergeql_edited ON COMMIT DROP AS SELECT {columns} FROM {table} AS t WHERE {condition}"
        ))?;
        let edited_rows = "pg_temp.__mergeql_edited";
        rows.sql = edited_rows.to_owned();
        plan.sources[0].relation = rows;
        let lowering = Lowering { plan: &plan, dialect: &self.dialect };
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let same = |a: &str, b: &str| {
            keys.iter().map(|k| format!("{a}.{k} IS NOT DISTINCT FROM {b}.{k}")).collect::<Vec<_>>().join(" AND ")
        };
        let others = format!(
            "{table} AS t WHERE t.{STATE} IS NOT NULL AND EXISTS (SELECT FROM {edited_rows} AS e WHERE {})",
            same("t", "e")
        );
        let mut inputs = vec![lowering.contributed(), lowering.unpacked(&self.keys(&lowering, &into), &others, "false")];
        let gone = if plan.delete.is_some() { Some(self.graveyard_of(&into)?) } else { None };
        if let Some(gone) = &gone {
            let buried = format!("{gone} AS t WHERE EXISTS (SELECT FROM {edited_rows} AS e WHERE {})", same("t", "e"));
            inputs.push(lowering.unpacked(&self.keys(&lowering, &into), &buried, "false"));
        }
        let merged = lowering.merged_states(&inputs, |c| like(&into, &c.name));
        let edited =
            Described { relation: plan.sources[0].relation.clone(), columns: into.columns.clone(), table: None, kept: None };
        let merged = self.typed(&plan, std::slice::from_ref(&edited), &merged, more(&plan));
        self.spi.run(&format!("CREATE TEMPORARY TABLE __mergeql_adopted ON COMMIT DROP AS {merged}"))?;
        let count = self.spi.texts(&format!("SELECT pg_catalog.count(*) FROM {edited_rows}"), &[])?;
        let count = count.into_iter().flatten().flatten().next().unwrap_or_default();
        self.spi.run(&format!("DELETE FROM {table} AS t USING {edited_rows} AS e WHERE {}", same("t", "e")))?;
        let listed: Vec<String> = plan.result_columns().map(|(name, _)| quote(name)).chain([STATE.to_owned()]).collect();
        let listed = listed.join(", ");
        let alive = if gone.is_some() { format!(" WHERE NOT {DELETED}") } else { String::new() };
        self.spi.run(&format!("INSERT INTO {table} ({listed}) SELECT {listed} FROM pg_temp.__mergeql_adopted{alive}"))?;
        if let Some(gone) = gone {
            self.spi.run(&format!("DELETE FROM {gone} AS t USING {edited_rows} AS e WHERE {}", same("t", "e")))?;
            let buried = format!("{}, {STATE}", keys.join(", "));
            let not_null = keys.iter().map(|k| format!("{k} IS NOT NULL")).collect::<Vec<_>>().join(" AND ");
            self.spi.run(&format!(
                "INSERT INTO {gone} ({buried}) SELECT {buried} FROM pg_temp.__mergeql_adopted WHERE {DELETED} AND {not_null}"
            ))?;
        }
        self.spi.run("DROP TABLE pg_temp.__mergeql_edited, pg_temp.__mergeql_adopted")?;
        Ok(count.parse().unwrap_or(0))
    }
}

/// `mergeql_adopt(table)`: how many rows were edited by hand and are taken in.
fn adopt(call: Call) -> Outcome {
    let name = call.text(0)?;
    let count = with_session(call, &name, |session| session.adopt(&name))?;
    Ok(Some(Datum::from(count as i64)))
}

crate::functions! {
    /// `mergeql_adopt(table)`
    mergeql_statement_adopt, pg_finfo_mergeql_statement_adopt => adopt;
}
