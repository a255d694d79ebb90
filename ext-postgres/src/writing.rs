//! Statements that write: `MERGE ... INTO table` and `MERGE INTO table`.

use crate::datums::{Form, PgType};
use crate::entry::Failure;
use crate::kept::{like, more};
use crate::spi::{Column, type_name};
use crate::statements::{Described, Session, plain, table};
use mergeql_lang::ast::{Explain, Merge, Relation as Written};
use mergeql_lang::lower::{DELETED, Dialect, Lowering, STATE, postgres_type_name, quote, text as literal};
use mergeql_lang::plan::Plan;
use mergeql_lang::{Diagnostic, Kept, added_columns, bind, bind_into};
use mergeql_udfs::Code;

impl Session<'_> {
    /// `MERGE ... INTO table`
    pub(crate) fn create(&self, merge: &Merge) -> Result<Vec<String>, Failure> {
        let Some(into) = &merge.into else { return Ok(Vec::new()) };
        let Written::Table(parts) = &into.target else {
            return Err(Diagnostic::at(Code::Unsupported, into.span, "Postgres writes no files here")
                .help("COPY (SELECT * FROM mergeql('MERGE ...') AS t(...)) TO 'file'")
                .into());
        };
        if into.or_replace {
            return Err(Diagnostic::at(Code::Unsupported, into.span, "Postgres replaces no table by one statement")
                .help("DROP TABLE it first, in the same transaction, or MERGE INTO it")
                .into());
        }
        let exists = if into.if_not_exists { "IF NOT EXISTS " } else { "" };
        // Where the table will be, whatever else of that name is on the search path.
        let place = match &parts[..] {
            [_] => self.spi.texts("SELECT current_schema()", &[])?.into_iter().flatten().flatten().next(),
            _ => None,
        };
        let name = place.map(|schema| quote(&schema) + ".").unwrap_or_default() + &table(parts);
        let create = |query: String| format!("CREATE TABLE {exists}{name} AS {query}");
        let described = merge.sources.iter().map(|s| self.describe(&s.relation)).collect::<Result<Vec<_>, _>>()?;
        let relations = described.iter().map(|d| d.relation.clone()).collect();
        let (user, texts) = self.defined()?;
        let plan = bind(merge, relations, false, &user, Explain::No)?;
        let lowering = Lowering { plan: &plan, dialect: &self.dialect };
        if !plan.keeps_state() {
            return Ok(vec![create(self.typed(&plan, &described, &lowering.query(), &[]))]);
        }
        let create = create(self.typed(&plan, &described, &lowering.rows_and_states(), more(&plan)));
        if into.if_not_exists && self.find(&name)?.is_some() {
            return Ok(vec![create]);
        }
        self.create_kept(&name, create, &plan, &Kept::resolution(merge, &plan, &user, &texts))
    }

    /// The plan of MERGE INTO, and its target and sources; where the target keeps states, it is no source of the plan.
    pub(crate) fn bind_target(&self, target: &Written, merge: &Merge, explain: Explain) -> Result<(Plan, Vec<Described>), Failure> {
        let into = self.describe(target)?;
        let Some((_, shown)) = into.table.clone() else {
            return Err(Diagnostic::new(Code::Unsupported, "MERGE INTO needs a table").into());
        };
        let kept = into.kept.clone();
        let names: Vec<String> = into.columns.iter().map(|c| c.name.clone()).collect();
        Kept::check_known(&shown, &names, kept.as_deref())?;
        let mut described = vec![into];
        for source in &merge.sources {
            described.push(self.describe(&source.relation)?);
        }
        if let Some(kept) = kept {
            let kept = Kept::read(&shown, &kept)?;
            let (user, texts) = self.defined()?;
            let merge = kept.applied(&shown, merge.clone(), &user, &texts)?;
            let sources = described[1..].iter().map(|d| d.relation.clone()).collect();
            let plan = kept.bind(&merge, described[0].relation.clone(), sources, explain)?;
            return Ok((plan, described));
        }
        let relations = described.iter().map(|d| d.relation.clone()).collect();
        let plan = bind_into(merge, target, &shown, relations, &self.strategies()?, explain)?;
        Ok((plan, described))
    }

    /// What others wrote since a transaction's snapshot is not seen under REPEATABLE READ: a unique key turns that into an error.
    pub(crate) fn check_snapshot(&self, into: &Described, merge: &Merge) -> Result<(), Failure> {
        let Some((schema, name)) = &into.table else { return Ok(()) };
        let keys: Vec<String> = merge.key.iter().map(|k| literal(&plain(k))).collect();
        let sql = format!(
            "SELECT 1 WHERE current_setting('transaction_isolation') = 'repeatable read' AND NOT EXISTS (\
             SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2 \
             AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (\
             SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum = ANY(i.indkey) AND a.attname NOT IN ({})))",
            keys.join(", ")
        );
        let deletes = match &into.kept {
            Some(kept) => Kept::read(name, kept)?.merge.delete.is_some(),
            None => false,
        };
        // A row that another session deletes meanwhile is in no table that this one writes.
        let repeatable = "SELECT 1 WHERE current_setting('transaction_isolation') = 'repeatable read'";
        if deletes && !self.spi.texts(repeatable, &[])?.is_empty() {
            let message =
                "under REPEATABLE READ a table that remembers deletions can get back rows that other sessions delete meanwhile";
            return Err(Diagnostic::new(Code::Unsupported, message).help("use READ COMMITTED or SERIALIZABLE").into());
        }
        if self.spi.texts(&sql, &[schema, name])?.is_empty() {
            return Ok(());
        }
        let message = "under REPEATABLE READ a table without a unique key can get rows twice that other sessions write meanwhile";
        Err(Diagnostic::new(Code::Unsupported, message).help("make the key unique, or use READ COMMITTED or SERIALIZABLE").into())
    }

    /// Adds the columns that only the sources have, where the statement lets its target grow.
    pub(crate) fn extend(&self, name: &str, into: &Described, merge: &Merge) -> Result<(), Failure> {
        let columns: Vec<String> = into.relation.columns.iter().map(|c| c.name.clone()).collect();
        let described = merge.sources.iter().map(|s| self.describe(&s.relation)).collect::<Result<Vec<_>, _>>()?;
        let sources = described.into_iter().map(|d| d.relation).collect();
        let (user, texts) = self.defined()?;
        let added = match &into.kept {
            None => added_columns(merge, &columns, sources, &user)?,
            Some(kept) => {
                let kept = Kept::read(name, kept)?;
                kept.added(&kept.applied(name, merge.clone(), &user, &texts)?, into.relation.clone(), sources)?
            }
        };
        for (column, ty) in added {
            let ty = postgres_type_name(&ty).ok_or_else(|| {
                Diagnostic::new(Code::Unsupported, format!("`{column}` has a type without a name")).help("add the column first")
            })?;
            self.spi.run(&format!("ALTER TABLE {name} ADD COLUMN {} {ty}", quote(&column)))?;
        }
        Ok(())
    }

    /// `MERGE INTO target USING ...` as one statement: rows of the target whose keys the sources have are merged with them; what changed
    /// is updated, what is new inserted.
    pub(crate) fn merge_into(&self, target: &Written, merge: &Merge) -> Result<String, Failure> {
        let (mut plan, described) = self.bind_target(target, merge, Explain::No)?;
        let into = &described[0];
        let kept = into.kept.is_some();
        let name = into.relation.sql.clone();
        let buries = kept && plan.delete.is_some();
        let gone = if buries { self.graveyard_of(into)? } else { String::new() };
        // Deleted rows are not seen.
        let alive = if buries { format!(" AND NOT __mergeql_m.{DELETED}") } else { String::new() };
        let collations = self.collations(into)?;
        let collated = |column: &str, expr: String| match collations.iter().find(|(name, _)| name == column) {
            Some((_, collation)) => format!("{expr} COLLATE {collation}"),
            None => expr,
        };
        let keys: Vec<String> = plan.key_columns().iter().map(|c| c.name.clone()).collect();
        let is_printed_key = |k: &String| into.columns.iter().any(|c| c.name == *k && is_printed(c));
        let same = |with: &str| {
            // Keys of types with rules of their own are compared as the texts that they were merged as.
            let equal = |k: &String| match is_printed_key(k) {
                true => format!("{} = {}", as_text(&format!("t.{}", quote(k))), as_text(&format!("{with}.{}", quote(k)))),
                false => format!("t.{0} = {1}", quote(k), collated(k, format!("{with}.{}", quote(k)))),
            };
            keys.iter().map(equal).collect::<Vec<_>>().join(" AND ")
        };
        let list = |names: &[String]| names.iter().map(|n| quote(n)).collect::<Vec<_>>().join(", ");
        let mut key_sets = Vec::new();
        for source in &plan.sources[usize::from(!kept)..] {
            let column = |(i, key): (usize, &String)| {
                let at = source.columns[i].map(|at| quote(&source.relation.columns[at].name));
                let expr = at.map_or("NULL".to_owned(), |c| format!("s.{c}"));
                // In the type that keys are merged in: a collation of its own would take two of them for one.
                let theirs = source.columns[i].map(|at| &source.relation.columns[at].ty);
                let merged = theirs.and_then(|ty| self.dialect.cast(&expr, ty, &plan.columns[i].ty)).unwrap_or(expr);
                format!("{} AS {}", if is_printed_key(key) { as_text(&merged) } else { merged }, quote(key))
            };
            let columns: Vec<String> = keys.iter().enumerate().map(column).collect();
            key_sets.push(format!("SELECT {} FROM {} AS s", columns.join(", "), source.relation.sql));
        }
        let touched = |table: &str| format!("{table} AS t JOIN ({}) AS k ON {}", key_sets.join(" UNION "), same("k"));
        let query = if kept {
            let lowering = Lowering { plan: &plan, dialect: &self.dialect };
            let mut inputs = vec![lowering.contributed(), self.kept_rows(&lowering, into, &touched(&name))];
            if plan.delete.is_some() {
                inputs.push(lowering.unpacked(&self.keys(&lowering, into), &touched(&gone), "false"));
            }
            // In the merge's own types: those of the sources could cut what the table holds.
            lowering.merged_states(&inputs, |c| like(into, &c.name))
        } else {
            // Where the target is its own only source there is nothing to restrict.
            if !key_sets.is_empty() {
                plan.sources[0].relation.sql = format!("(SELECT t.* FROM {})", touched(&name));
            }
            Lowering { plan: &plan, dialect: &self.dialect }.query()
        };
        let columns: Vec<String> = plan.result_columns().map(|(name, _)| name.to_owned()).collect();
        let state = STATE.to_owned();
        let written: Vec<String> = columns.iter().cloned().chain(kept.then(|| state.clone())).collect();
        let others: Vec<&String> = written.iter().filter(|c| !keys.contains(c)).collect();
        let fits = |c: &String| {
            // A cast would cut a text that is too long without a word.
            let theirs = into.columns.iter().find(|theirs| theirs.name == *c && !(theirs.typmod >= 0 && is_texts(theirs)));
            let ty = theirs.map(|theirs| type_name(theirs.oid, theirs.typmod));
            ty.map_or_else(|| format!("__mergeql_m.{}", quote(c)), |ty| format!("CAST(__mergeql_m.{} AS {ty})", quote(c)))
        };
        let null_in = |of: &str| {
            let null = |c: &mergeql_lang::plan::Column| format!("{of}.{} {}", quote(&c.name), self.dialect.null_tests(&c.ty)[0]);
            plan.key_columns().iter().map(null).collect::<Vec<_>>().join(" OR ")
        };
        let null = null_in("__mergeql_m");
        let values = |names: &[String]| names.iter().map(fits).collect::<Vec<_>>().join(", ");
        let all = list(&written);
        // Rows without a key match nothing: those that the table has already are left out, or each run would add them again.
        let texts = |names: &[String], of: &str| {
            names.iter().map(|n| as_text(&format!("{of}.{}", quote(n)))).collect::<Vec<_>>().join(", ")
        };
        let unknown = format!(
            "SELECT {} FROM __mergeql_m WHERE NOT EXISTS (SELECT FROM {name} AS t WHERE {}){alive}",
            values(&written),
            same("__mergeql_m")
        );
        let insert = if plan.nullable_key() {
            format!(
                "INSERT INTO {name} ({all}) {unknown} AND NOT ({null}) UNION ALL SELECT {} FROM __mergeql_m WHERE ({null}){alive} AND NOT EXISTS \
                 (SELECT FROM {name} AS t WHERE ({}) AND ROW({}) IS NOT DISTINCT FROM ROW({})) RETURNING 1",
                values(&written),
                null_in("t"),
                texts(&columns, "t"),
                texts(&columns, "__mergeql_m"),
            )
        } else {
            format!("INSERT INTO {name} ({all}) {unknown} RETURNING 1")
        };
        let update = if others.is_empty() {
            "SELECT 1 WHERE false".to_owned()
        } else {
            let set: Vec<String> = others.iter().map(|c| format!("{} = {}", quote(c), fits(c))).collect();
            let changed: Vec<String> = others
                .iter()
                .map(|c| {
                    let text = into.columns.iter().any(|t| t.name == **c && !is_comparable(t));
                    let side = |value: String| if text { as_text(&value) } else { value };
                    format!("{} IS DISTINCT FROM {}", side(format!("t.{}", quote(c))), side(fits(c)))
                })
                .collect();
            format!(
                "UPDATE {name} AS t SET {} FROM __mergeql_m WHERE {} AND ({}){alive} RETURNING 1",
                set.join(", "),
                same("__mergeql_m"),
                changed.join(" OR ")
            )
        };
        let mut steps = vec![("__mergeql_updated", update), ("__mergeql_inserted", insert)];
        if buries {
            let same = same("__mergeql_m");
            let buried = format!("{}, {STATE}", list(&keys));
            steps.push((
                "__mergeql_removed",
                format!("DELETE FROM {name} AS t USING __mergeql_m WHERE {same} AND __mergeql_m.{DELETED} RETURNING 1"),
            ));
            steps.push((
                "__mergeql_risen",
                format!("DELETE FROM {gone} AS t USING __mergeql_m WHERE {same} AND NOT __mergeql_m.{DELETED}"),
            ));
            steps.push((
                "__mergeql_deeper",
                format!(
                    "UPDATE {gone} AS t SET {STATE} = __mergeql_m.{STATE} FROM __mergeql_m WHERE {same} AND __mergeql_m.{DELETED} AND t.{STATE} <> __mergeql_m.{STATE}"
                ),
            ));
            steps.push((
                "__mergeql_buried",
                format!(
                    "INSERT INTO {gone} ({buried}) SELECT {buried} FROM __mergeql_m WHERE __mergeql_m.{DELETED} AND NOT ({null}) \
                     AND NOT EXISTS (SELECT FROM {gone} AS t WHERE {same})"
                ),
            ));
        }
        let counted = ["__mergeql_updated", "__mergeql_inserted", "__mergeql_removed"]
            .iter()
            .filter(|step| steps.iter().any(|(name, _)| name == *step));
        let count = counted.map(|step| format!("(SELECT count(*) FROM {step})")).collect::<Vec<_>>().join(" + ");
        let steps: Vec<String> = steps.iter().map(|(name, sql)| format!("{name} AS ({sql})")).collect();
        Ok(format!("WITH __mergeql_m AS MATERIALIZED ({query}), {} SELECT {count} AS rows", steps.join(", ")))
    }

    /// The collation that each text column of a table has, so that its indexes are used; byte order where collations would take
    /// different texts for equal.
    fn collations(&self, into: &Described) -> Result<Vec<(String, String)>, Failure> {
        let Some((schema, name)) = &into.table else { return Ok(Vec::new()) };
        let sql = "SELECT a.attname, n.nspname, l.collname, l.collisdeterministic FROM pg_catalog.pg_attribute a \
                   JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace \
                   JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace \
                   WHERE s.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped";
        let collation = |row: Vec<Option<String>>| match <[Option<String>; 4]>::try_from(row) {
            Ok([Some(column), Some(schema), Some(name), Some(deterministic)]) => {
                let collation =
                    if deterministic == "t" { format!("{}.{}", quote(&schema), quote(&name)) } else { "\"C\"".to_owned() };
                Some((column, collation))
            }
            _ => None,
        };
        Ok(self.spi.texts(sql, &[schema, name])?.into_iter().filter_map(collation).collect())
    }
}

/// Whether two values of a column can be compared as they are: texts must not go by a collation, and JSON has no equality.
pub(crate) fn is_comparable(column: &Column) -> bool {
    PgType::of(column.oid, column.typmod).is_ok_and(|ty| {
        !matches!(ty.form, Form::Text | Form::Padded | Form::Printed | Form::Interval | Form::Array(_) | Form::Row(..))
    })
}

/// Whether a column's own equality is not that of its printed texts: citext, `char(n)`, JSON, rows and arrays of such.
fn is_printed(column: &Column) -> bool {
    fn printed(ty: &PgType) -> bool {
        match &ty.form {
            Form::Padded | Form::Printed | Form::Interval => true,
            Form::Array(element) => printed(element),
            Form::Row(fields, _) => fields.iter().any(|(_, ty)| ty.as_ref().is_some_and(printed)),
            _ => false,
        }
    }
    PgType::of(column.oid, column.typmod).is_ok_and(|ty| printed(&ty))
}

/// Whether a column holds texts of a type with a length.
fn is_texts(column: &Column) -> bool {
    PgType::of(column.oid, column.typmod).is_ok_and(|ty| matches!(ty.form, Form::Text | Form::Padded))
}

/// A value as it is printed, compared by bytes.
pub(crate) fn as_text(value: &str) -> String {
    format!("CAST({value} AS text) COLLATE \"C\"")
}
