//! From a MergeQL statement to DuckDB's SQL.
//!
//! A scalar function sees no catalogue, and the names of a statement mean what they mean in the caller's transaction: temporary tables,
//! uncommitted ones, CTEs. So the SQL is made in two steps, both while DuckDB binds the query:
//!
//! 1. [`sql`] gives a query that asks for the schemas, and then for the second step. DuckDB folds `typeof(row)` of each source, and the
//!    key of a `struct_extract` must be constant, so that `mergeql_schema` runs with the schemas while its branch is bound.
//! 2. The other branch is `query(mergeql_bound(statement))`: bound after the first, on the same thread, it finds the schemas, binds the
//!    statement to them and gives the real SQL.
#![allow(unsafe_code)]

use crate::api::{Connection, Pointer, duckdb, text};
use mergeql_lang::ast::{Explain, Merge, Name, Piece, Relation as Written, Source, Statement, StrategyBody};
use mergeql_lang::lower::{DuckDb, DuckDbColumn, Lowering, STATE, duckdb_columns, duckdb_type_name, quote, text as literal};
use mergeql_lang::plan::{Cell, Plan, Reading, Relation, SourceColumn};
use mergeql_lang::{
    Diagnostic, Kept, Span, UserStrategies, bind, bind_into, check_unverified, find_strategy, first_word, parse, reads,
};
use mergeql_udfs::{Code, Error, Type, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Result<T, E = Box<Diagnostic>> = std::result::Result<T, E>;

/// Makes `mergeql.merge('...')` and `FROM "MERGE ..."`.
///
/// # Safety
/// `database` is DuckDB's.
pub unsafe fn register(database: Pointer, connection: &Connection) -> Result<(), String> {
    // The functions must not land in a file of the user's.
    connection.run(
        "SELECT error('error[unsupported]: a database file is attached as `mergeql`, the name under which this extension keeps its functions; \
         help: open it in a session as ATTACH ''file'' AS another_name') FROM duckdb_databases() WHERE database_name = 'mergeql' AND path IS NOT NULL",
    )?;
    connection.run(
        "SELECT error('error[unsupported]: a schema is called `mergeql`, as the database in which this extension keeps its functions: names that \
         begin so would be ambiguous; help: ALTER SCHEMA is not there, so make another schema and move its tables') \
         FROM duckdb_schemas() WHERE schema_name = 'mergeql' AND database_name <> 'mergeql'",
    )?;
    // In memory, so that nothing lands in the user's file and a database that is read only does as well.
    connection.run("ATTACH IF NOT EXISTS ':memory:' AS mergeql (READ_WRITE)")?;
    connection.run("CREATE OR REPLACE MACRO mergeql.main.merge(statement) AS TABLE FROM query(mergeql_query(statement))")?;
    for (function, parameters, arguments) in TABLE_FUNCTIONS {
        connection.run(&format!(
            "CREATE OR REPLACE MACRO mergeql.main.{function}({parameters}) AS TABLE \
             FROM query(mergeql_query('SELECT * FROM {function}(' || {arguments} || ')'))"
        ))?;
    }
    // SAFETY: the callback needs no data.
    unsafe { (duckdb().add_replacement_scan)(database, replace, std::ptr::null_mut(), None) };
    Ok(())
}

/// The table functions of the language as macros, whose arguments are texts: parameters, and the arguments in the language.
const TABLE_FUNCTIONS: [(&str, &str, &str); 5] = [
    ("delta_between", "a, b, key, version := '_ts'", "a || ', ' || b || ', (' || key || '), (' || version || ')'"),
    ("delta_apply", "a, b, key, version := '_ts'", "a || ', ' || b || ', (' || key || '), (' || version || ')'"),
    ("delta_compose", "a, b, key, version := '_ts'", "a || ', ' || b || ', (' || key || '), (' || version || ')'"),
    ("schema_merge", "a, b, policy := 'union'", "a || ', ' || b || ', ''' || policy || ''''"),
    ("dedup", "a, columns, threshold := 1", "a || ', (' || columns || '), ' || threshold"),
];

/// `FROM "MERGE a, b ON id ..."`
unsafe extern "C" fn replace(info: Pointer, name: *const c_char, _: Pointer) {
    let api = duckdb();
    // SAFETY: DuckDB passes a text, and copies what it is given.
    unsafe {
        let name = CStr::from_ptr(name).to_string_lossy();
        let first = first_word(&name);
        let is_word = first.len() == name.trim().len();
        if !matches!(first.to_ascii_uppercase().as_str(), "MERGE" | "EXPLAIN") || is_word {
            return;
        }
        crate::api::guarded(
            || {
                let sql = query_sql(&name)?;
                (api.replacement_scan_set_function_name)(info, c"query".as_ptr());
                let mut value = (api.create_varchar_length)(sql.as_ptr().cast(), sql.len() as u64);
                (api.replacement_scan_add_parameter)(info, value);
                (api.destroy_value)(&mut value);
                Ok(())
            },
            |message| (api.replacement_scan_set_error)(info, text(&format!("\n{}", message.to_string_lossy())).as_ptr()),
        );
    }
}

/// An error as the message of a scalar function: the code and the place are in the text.
fn shown(error: Box<Diagnostic>) -> Error {
    let code = error.code;
    let text = error.to_string();
    let message = text.strip_prefix(&format!("error[{code}]: ")).unwrap_or(&text).to_owned();
    Error::new(code, message)
}

fn text_argument(arguments: &[Value]) -> std::result::Result<Option<&str>, Error> {
    match arguments.first() {
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(Value::Null) | None => Ok(None),
        Some(other) => Err(Error::type_mismatch(format!("a statement is a text, not a {}", other.kind()))),
    }
}

/// `mergeql_sql(statement)`: the plain SQL that a statement stands for.
///
/// # Errors
/// The diagnostics of the language.
pub fn sql(arguments: &[Value]) -> std::result::Result<Value, Error> {
    match text_argument(arguments)? {
        Some(statement) => statement_sql(statement).map(Value::text).map_err(shown),
        None => Ok(Value::Null),
    }
}

/// The strategies that users defined, and what is behind AS of each.
struct Defined {
    user: UserStrategies,
    texts: BTreeMap<String, String>,
}

/// Strategies that users defined: those of this process, for DuckDB's C interface has no session to keep them in.
static STRATEGIES: Mutex<Defined> = Mutex::new(Defined { user: UserStrategies::new(), texts: BTreeMap::new() });

fn strategies() -> MutexGuard<'static, Defined> {
    STRATEGIES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn create_strategy(or_replace: bool, name: &Name, body: StrategyBody, text: String) -> Result<String> {
    let Defined { user, texts } = &mut *strategies();
    // DuckDB may evaluate a constant more than once.
    if user.get(&name.value) != Some(&body) {
        check_unverified(user, or_replace, name, &body, "DuckDB")?;
        user.insert(name.value.clone(), body);
        texts.insert(name.value.clone(), text);
    }
    Ok("SELECT 1 AS strategies".to_owned())
}

fn drop_strategy(if_exists: bool, name: &Name) -> Result<String> {
    let Defined { user, .. } = &mut *strategies();
    let own = match find_strategy(user, name) {
        Err(error) if error.code != Code::UnknownStrategy || !if_exists => return Err(error),
        Err(_) => name.value.clone(),
        Ok(own) => own.to_owned(),
    };
    let found = user.remove(&own).is_some();
    Ok(format!("SELECT {} AS strategies", u8::from(found)))
}

/// `mergeql_query(statement)`: as [`sql`], for statements that are read like a table.
///
/// # Errors
/// The diagnostics of the language, and `unsupported` for a statement that writes.
pub fn query(arguments: &[Value]) -> std::result::Result<Value, Error> {
    match text_argument(arguments)? {
        Some(statement) => query_sql(statement).map(Value::text).map_err(shown),
        None => Err(Error::invalid_argument("the statement is NULL: it must be known before the query runs")),
    }
}

fn query_sql(statement: &str) -> Result<String> {
    let writes = match parse(statement)? {
        Statement::Merge { explain: Explain::No, merge } => merge.into.is_some(),
        Statement::MergeInto { explain, .. } => explain == Explain::No,
        Statement::Sql(_) => match first_word(statement).to_ascii_uppercase().as_str() {
            _ if reads(statement) => false,
            word @ ("EXPLAIN" | "DESCRIBE" | "SUMMARIZE" | "SHOW") => {
                return Err(Diagnostic::new(Code::Unsupported, format!("a table function does not {} SQL", word.to_lowercase()))
                    .help(format!("put {word} before the whole query: {word} FROM mergeql.merge('...')")));
            }
            _ => true,
        },
        _ => false,
    };
    if writes {
        return Err(Diagnostic::new(Code::Unsupported, "a table function cannot write")
            .help("run the statement that SELECT mergeql_sql('...') gives"));
    }
    statement_sql(statement)
}

thread_local! {
    /// The schemas of statements that are being bound, the latest last.
    static SCHEMAS: RefCell<Vec<(String, Vec<String>)>> = const { RefCell::new(Vec::new()) };
}

/// Statements that one query binds at a time.
const MOST_STATEMENTS: usize = 64;

/// `mergeql_schema(statement, database, schema, typeof(source), ..., typeof(row id), ...)`: keeps the schemas for [`bound`].
///
/// # Errors
/// None of its own.
pub fn schema(arguments: &[Value]) -> std::result::Result<Value, Error> {
    let Some(statement) = text_argument(arguments)? else { return Ok(Value::Null) };
    let types = arguments[1..].iter().map(Value::to_string).collect();
    SCHEMAS.with_borrow_mut(|schemas| {
        schemas.retain(|(known, _)| known != statement);
        if schemas.len() >= MOST_STATEMENTS {
            schemas.remove(0);
        }
        schemas.push((statement.to_owned(), types));
    });
    Ok(Value::text("ok"))
}

/// `mergeql_bound(statement)`: the SQL of a statement whose schemas are known.
///
/// # Errors
/// The diagnostics of the language.
pub fn bound(arguments: &[Value]) -> std::result::Result<Value, Error> {
    let Some(statement) = text_argument(arguments)? else { return Ok(Value::Null) };
    let types = SCHEMAS.with_borrow(|schemas| schemas.iter().rfind(|(known, _)| known == statement).map(|(_, t)| t.clone()));
    let Some(types) = types else {
        return Err(Error::new(Code::Unsupported, "`mergeql_bound` is the second step of `mergeql_sql`, and not called by itself"));
    };
    bound_sql(statement, &types).map(Value::text).map_err(|e| shown(e.in_text(statement)))
}

// The first step.

fn statement_sql(statement: &str) -> Result<String> {
    let result = match parse(statement)? {
        Statement::Merge { explain: Explain::No, merge } if merge.into.is_some() => write(statement, &merge),
        Statement::Merge { merge, .. } => schema_then_query(statement, &merge.sources, &merge),
        Statement::MergeInto { explain, target, merge } => merge_into(statement, explain, target, &merge),
        Statement::Sql(pieces) => lowered(&pieces),
        Statement::ShowStrategies => Ok("FROM mergeql_strategies()".to_owned()),
        Statement::CreateStrategy { or_replace, name, body, text } => create_strategy(or_replace, &name, body, text),
        Statement::DropStrategy { if_exists, name } => drop_strategy(if_exists, &name),
        Statement::MergeModels { .. } => {
            Err(Diagnostic::new(Code::Unsupported, "files of models are merged outside of the database")
                .help("run the statement in the mergeql program"))
        }
        Statement::Verify { name, .. } => {
            Err(Diagnostic::at(Code::Unsupported, name.span, "DuckDB cannot evaluate a strategy here to verify it")
                .help("verify it in the mergeql program"))
        }
    };
    result.map_err(|e| e.in_text(statement))
}

/// SQL with every merge in it lowered.
fn lowered(pieces: &[Piece]) -> Result<String> {
    let mut sql = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => sql.push_str(text),
            Piece::Merge(merge) => {
                let statement = format!("MERGE {}", mergeql_lang::merge_text(merge));
                sql.push_str(&schema_then_query(&statement, &merge.sources, merge)?);
            }
        }
    }
    Ok(sql)
}

/// What a source names: a text that can be no file is a table's name.
fn named(source: &Written, merge: &Merge) -> Written {
    match source {
        Written::Text(name)
            if !name.value.contains(['.', '/', '\\', '*', '?', '['])
                && !merge.options.iter().any(|(option, _)| option.value.eq_ignore_ascii_case("format")) =>
        {
            Written::Table(vec![Name { quoted: true, ..name.clone() }])
        }
        other => other.clone(),
    }
}

/// How DuckDB reads a source.
fn from(source: &Written, merge: &Merge) -> Result<String> {
    match source {
        Written::Table(parts) => Ok(table(parts)),
        Written::Query(pieces) => Ok(format!("({})", lowered(pieces)?)),
        Written::Text(name) => {
            let option = |wanted: &str| merge.options.iter().find(|(n, _)| n.value.eq_ignore_ascii_case(wanted)).map(|(_, v)| v);
            let path = literal(&name.value);
            let format = match option("format") {
                Some(Value::Text(format)) => Some(format.to_ascii_lowercase()),
                _ => None,
            };
            let ending = name.value.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            let mut arguments = vec![path.clone()];
            if is_pattern(&name.value) {
                // Otherwise the first file's columns would be those of all, and what others have besides be left out.
                arguments.push("union_by_name = true".to_owned());
            }
            // What is said of CSV files says nothing of others.
            if format.is_none() && matches!(ending.as_str(), "parquet" | "json" | "ndjson" | "jsonl") {
                let function = if ending == "parquet" { "read_parquet" } else { "read_json" };
                return Ok(if arguments.len() == 1 { path } else { format!("{function}({})", arguments.join(", ")) });
            }
            if let Some(Value::Bool(header)) = option("header") {
                arguments.push(format!("header = {header}"));
            }
            if let Some(Value::Text(delimiter)) = option("delimiter") {
                arguments.push(format!("delim = {}", literal(delimiter)));
            }
            if matches!(format.as_deref(), Some("csv" | "tsv")) || format.is_none() && matches!(ending.as_str(), "csv" | "tsv") {
                // Empty text in quotes is text.
                arguments.push("allow_quoted_nulls = false".to_owned());
            }
            let function = match format.as_deref() {
                None if arguments.len() == 1 => return Ok(path),
                None | Some("csv" | "tsv") => "read_csv",
                Some("parquet") => "read_parquet",
                Some("json" | "ndjson") => "read_json",
                Some(other) => {
                    return Err(Diagnostic::at(Code::Unsupported, name.span, format!("DuckDB reads no {other} files here")));
                }
            };
            Ok(format!("{function}({})", arguments.join(", ")))
        }
    }
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

fn table(parts: &[Name]) -> String {
    parts.iter().map(|p| quote(&p.value)).collect::<Vec<_>>().join(".")
}

/// The type of row ids that no table has.
const NO_ROW_ID: &str = "UTINYINT";

/// A query that learns the schemas of `sources` while it is bound, and then is the statement's rows.
fn schema_then_query(statement: &str, sources: &[Source], merge: &Merge) -> Result<String> {
    let key = literal(statement);
    let mut types = vec![key.clone(), "current_database()".to_owned(), "current_schema()".to_owned()];
    let mut relations = Vec::new();
    let mut ids = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        let (row, id) = (quote(&format!("__mergeql_{i}")), quote(&format!("__mergeql_id_{i}")));
        let relation = named(&source.relation, merge);
        let from = from(&relation, merge)?;
        types.push(format!("typeof({row})"));
        relations.push(format!("(SELECT * FROM {from}) AS {row}"));
        if matches!(relation, Written::Table(_)) {
            // What has no row ids, as a view, finds the one outside.
            ids.push(format!("typeof({id}.id)"));
            relations.push(format!(
                "(SELECT i.id FROM (SELECT NULL::{NO_ROW_ID} AS rowid) AS o, LATERAL (SELECT rowid AS id FROM {from}) AS i) AS {id}"
            ));
        } else {
            ids.push(literal(NO_ROW_ID));
        }
    }
    types.extend(ids);
    Ok(format!(
        "SELECT * EXCLUDE (\"__mergeql_schema\") FROM (\
         (SELECT struct_extract({{'ok': NULL::INTEGER}}, mergeql_schema({})) AS \"__mergeql_schema\" FROM {} LIMIT 0) \
         UNION ALL BY NAME (FROM query(mergeql_bound({key}))))",
        types.join(", "),
        relations.join(", "),
    ))
}

/// `MERGE ... INTO table | 'file'` as the statement that writes it.
fn write(statement: &str, merge: &Merge) -> Result<String> {
    let Some(into) = &merge.into else { return schema_then_query(statement, &merge.sources, merge) };
    let query = schema_then_query(statement, &merge.sources, merge)?;
    let create = |name: &str| {
        let replace = if into.or_replace { "OR REPLACE " } else { "" };
        let exists = if into.if_not_exists { "IF NOT EXISTS " } else { "" };
        format!("CREATE {replace}TABLE {exists}{name} AS {query}")
    };
    match &into.target {
        Written::Table(parts) => Ok(create(&table(parts))),
        Written::Text(path) => {
            if !into.or_replace && std::path::Path::new(&path.value).exists() {
                return Err(Diagnostic::at(Code::Io, path.span, format!("`{}` is there already", path.value))
                    .help("write INTO OR REPLACE to replace it"));
            }
            let ending = path.value.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            let format = match ending.as_str() {
                "parquet" => "FORMAT parquet",
                "csv" => "FORMAT csv",
                "tsv" => "FORMAT csv, DELIMITER '\t'",
                "json" => "FORMAT json, ARRAY true",
                "ndjson" | "jsonl" => "FORMAT json",
                _ => {
                    return Err(Diagnostic::at(
                        Code::InvalidArgument,
                        path.span,
                        format!("the ending of `{}` tells no format", path.value),
                    )
                    .help("write to .csv, .tsv, .json, .ndjson or .parquet"));
                }
            };
            Ok(format!("COPY ({query}) TO {} ({format})", literal(&path.value)))
        }
        Written::Query(_) => Err(Diagnostic::at(Code::Syntax, into.span, "a result goes into a table or a file")),
    }
}

/// `MERGE INTO target USING ...` as DuckDB's own, over rows that are merged already.
fn merge_into(statement: &str, explain: Explain, target: Written, merge: &Merge) -> Result<String> {
    let Written::Table(parts) = &target else {
        return Err(Diagnostic::new(Code::Unsupported, "MERGE INTO needs a table"));
    };
    let name = table(parts);
    let sources = with_target(&target, merge).sources;
    let query = schema_then_query(statement, &sources, merge)?;
    if explain != Explain::No {
        return Ok(query);
    }
    // Texts by their bytes, whatever collation the target's column has; the types are known when this is bound.
    // An ENUM of the target is a text in what is merged.
    let bytes = |of: &str, key: &str| format!("CASE WHEN typeof(m.{key}) = 'VARCHAR' THEN encode(CAST({of}.{key} AS VARCHAR)) END");
    // A key under its name of before MAP is that column of the target.
    let mapped = |k: &Name| {
        let is = |name: &Name| name.value.eq_ignore_ascii_case(&k.value);
        match merge.map.iter().find(|(old, _)| is(old)).filter(|_| !merge.map.iter().any(|(_, new)| is(new))) {
            Some((_, new)) => quote(&new.value),
            None => quote(&k.value),
        }
    };
    let equal = |k: &Name| {
        let key = mapped(k);
        format!("t.{key} = m.{key} AND {} IS NOT DISTINCT FROM {}", bytes("t", &key), bytes("m", &key))
    };
    let keys: Vec<String> = merge.key.iter().map(equal).collect();
    Ok(format!(
        "MERGE INTO {name} AS t USING ({query}) AS m ON ({}) WHEN MATCHED THEN UPDATE BY NAME WHEN NOT MATCHED THEN INSERT BY NAME",
        keys.join(" AND ")
    ))
}

fn with_target(target: &Written, merge: &Merge) -> Merge {
    let mut with = merge.clone();
    with.sources.insert(0, Source { relation: target.clone(), alias: None, span: Span::default(), part: false });
    with
}

// The second step.

/// What is known of a source, once its row type is, and that of its row ids.
fn relation(
    source: &Written,
    merge: &Merge,
    (row, id): (&str, &str),
    here: &[String],
    spellings: &mut Vec<String>,
) -> Result<Relation> {
    let source = &named(source, merge);
    let mut columns = duckdb_columns(row).map_err(Box::<Diagnostic>::from)?;
    // Of a table that keeps states, a merge reads the values.
    columns.retain(|c| kept_in(c).is_none());
    if let Some(column) = columns.iter().find(|c| c.name.to_ascii_lowercase().starts_with("__mergeql_")) {
        return Err(Diagnostic::new(Code::Unsupported, format!("the column `{}` has a name that is reserved", column.name))
            .help("give it another name in a source query"));
    }
    let mut sql = from(source, merge)?;
    let casts: Vec<String> = columns
        .iter()
        .filter(|c| c.cast)
        .map(|c| format!("CAST({0} AS {1}) AS {0}", quote(&c.name), duckdb_type_name(&c.ty)))
        .collect();
    if !casts.is_empty() {
        sql = format!("(SELECT * REPLACE ({}) FROM {sql})", casts.join(", "));
    }
    let origin = match source {
        Written::Table(parts) => Some(qualified(parts, here)),
        // Each file of a pattern would be an origin of its own, and DuckDB does not say here which files there are.
        Written::Text(path) if !is_pattern(&path.value) => Some(whole_path(&path.value)),
        _ => None,
    };
    let columns = columns
        .into_iter()
        .map(|c| {
            // DuckDB's names are the same in any case of letters; the first spelling is the name.
            let known = spellings.iter().find(|s| s.eq_ignore_ascii_case(&c.name)).cloned();
            let name = known.unwrap_or_else(|| {
                spellings.push(c.name.clone());
                c.name
            });
            SourceColumn { name, ty: c.ty, nullable: true }
        })
        .collect();
    let reading = match source {
        Written::Table(_) if id == "BIGINT" => Reading::Cheap,
        Written::Text(_) => Reading::Any,
        // A view, a CTE or a query may call `random()` or `nextval()`.
        _ => Reading::Once,
    };
    Ok(Relation { sql, origin, columns, rows: None, reading })
}

/// How a table keeps states, if this is its column of states: the name of the column's only field says it, so that it is known with the
/// row's type.
fn kept_in(column: &DuckDbColumn) -> Option<&str> {
    match &column.ty {
        Type::Struct(fields) if column.name == STATE => match &fields[..] {
            [(text, Type::Bytes)] if text.starts_with("MERGE ") || text.starts_with("CREATE STRATEGY ") => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// What is known of these sources, once their row types are.
fn relations(sources: &[Source], merge: &Merge, types: &[String]) -> Result<Vec<Relation>> {
    let (here, types) = types.split_at(2.min(types.len()));
    let mut spellings = Vec::new();
    let (rows, ids) = types.split_at(sources.len().min(types.len()));
    let known = rows.iter().zip(ids).map(|(row, id)| (row.as_str(), id.as_str()));
    sources.iter().zip(known).map(|(source, known)| relation(&source.relation, merge, known, here, &mut spellings)).collect()
}

/// A table's name as it counts for its origin: one table is one origin, however it is written in the session's database and schema.
fn qualified(parts: &[Name], here: &[String]) -> String {
    let mut names: Vec<String> = parts.iter().map(|p| p.value.to_lowercase()).collect();
    let [database, schema] = here else { return names.join(".") };
    match &names[..] {
        [_] => names.splice(0..0, [database.clone(), schema.clone()]).for_each(drop),
        // A database, or a schema of this one.
        [first, _] if *first == schema.to_lowercase() || first == "main" => names.insert(0, database.clone()),
        [_, _] => names.insert(1, "main".to_owned()),
        _ => {}
    }
    names.join(".").to_lowercase()
}

/// A file's path from the root, without steps that lead nowhere; what is no path of this machine stays as it is.
fn whole_path(path: &str) -> String {
    if path.contains("://") {
        return path.to_owned();
    }
    let mut whole = std::path::PathBuf::new();
    for part in std::path::absolute(path).unwrap_or_else(|_| path.into()).components() {
        match part {
            std::path::Component::ParentDir => drop(whole.pop()),
            std::path::Component::CurDir => {}
            part => whole.push(part),
        }
    }
    whole.display().to_string()
}

fn bound_sql(statement: &str, types: &[String]) -> Result<String> {
    let (plan, explain, key_rows) = match parse(statement)? {
        Statement::Merge { explain, merge } => {
            let Defined { user, texts } = &*strategies();
            let plan = bind(&merge, relations(&merge.sources, &merge, types)?, false, user, explain)?;
            if plan.keeps_state() && explain == Explain::No {
                return rows_and_states(&plan, &Kept::resolution(&merge, &plan, user, texts));
            }
            (plan, explain, None)
        }
        Statement::MergeInto { explain, target, merge } => {
            let Written::Table(parts) = &target else {
                return Err(Diagnostic::new(Code::Unsupported, "MERGE INTO needs a table"));
            };
            let (name, shown) = (table(parts), parts.iter().map(|p| p.value.as_str()).collect::<Vec<_>>().join("."));
            let relations = relations(&with_target(&target, &merge).sources, &merge, types)?;
            let Defined { user, texts } = &*strategies();
            let row = types.get(2).map(|row| duckdb_columns(row)).transpose().map_err(Box::<Diagnostic>::from)?.unwrap_or_default();
            let kept = row.iter().find_map(kept_in);
            Kept::check_known(&shown, &row.iter().map(|c| c.name.clone()).collect::<Vec<_>>(), kept)?;
            if let Some(resolution) = kept {
                let kept = Kept::read(&shown, resolution)?;
                let merge = kept.applied(&shown, *merge, user, texts)?;
                let sources = relations[1..].to_vec();
                let plan = kept.bind(&merge, relations[0].clone(), sources, explain)?;
                plan.check_grown(&relations[0].columns.iter().map(|c| c.name.clone()).collect::<Vec<_>>())?;
                if explain == Explain::No {
                    return merged_states(&plan, &name, resolution);
                }
                (plan, explain, None)
            } else {
                (bind_into(&merge, &target, &name, relations, user, explain)?, explain, Some(name))
            }
        }
        _ => return Err(Diagnostic::new(Code::Unsupported, "only MERGE stands for one query")),
    };
    let query = Lowering { plan: &plan, dialect: &DuckDb }.query();
    if explain != Explain::No {
        // Rows are counted where the result is read: nothing runs here.
        let counted = |n: usize| format!("\u{1}{n}\u{1}");
        let at = |source: &mergeql_lang::plan::Source| plan.sources.iter().position(|s| s.relation.sql == source.relation.sql);
        let mut lines = plan.describe(|source| at(source).map(counted));
        lines.push(("sql".to_owned(), query));
        let shown = |detail: &str| {
            plan.sources.iter().enumerate().fold(literal(detail), |text, (n, source)| {
                text.replace(&counted(n), &format!("' || (SELECT count(*) FROM {}) || '", source.relation.sql))
            })
        };
        let rows: Vec<String> = lines.iter().map(|(item, detail)| format!("({}, {})", literal(item), shown(detail))).collect();
        return Ok(format!("SELECT * FROM (VALUES {}) AS t(item, detail)", rows.join(", ")));
    }
    let Some(target) = key_rows else { return Ok(query) };
    // Rows without a key match nothing: those that the table has already are left out, or each run would add them again.
    let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
    let null = keys.iter().map(|k| format!("{k} IS NULL")).collect::<Vec<_>>().join(" OR ");
    let columns: Vec<String> = plan.result_columns().map(|(name, _)| quote(name)).collect();
    let columns = columns.join(", ");
    // Rows without a key are never joined: nothing needs to be known of the keys for them.
    let mut grouped = plan.clone();
    grouped.sources.iter_mut().filter(|s| s.relation.reading == Reading::Cheap).for_each(|s| s.relation.reading = Reading::Any);
    let without_key = Lowering { plan: &grouped, dialect: &DuckDb }.query();
    Ok(format!(
        "SELECT * FROM ({query}) AS m WHERE NOT ({null}) UNION ALL \
         (SELECT {columns} FROM ({without_key}) AS m WHERE {null} EXCEPT SELECT {columns} FROM {target})"
    ))
}

// Tables that keep states.

/// One statement writes one table, and a table shows all its rows.
fn check_deletions(plan: &Plan) -> Result<()> {
    match &plan.delete {
        None => Ok(()),
        Some(cell) => {
            let help = format!(
                "leave DELETE BY out, keep the column ({} = lww RESPECT NULLS), and read the table WHERE it says alive",
                cell.name
            );
            Err(Diagnostic::new(Code::Unsupported, "a table here cannot hide the deleted rows that it remembers").help(help))
        }
    }
}

/// A query of rows with their states, in a struct whose only field is called as `resolution` says.
fn with_states(plan: &Plan, rows: &str, resolution: &str) -> String {
    let columns = plan.result_columns().map(|(name, _)| quote(name)).collect::<Vec<_>>().join(", ");
    format!("SELECT {columns}, struct_pack({} := {STATE}) AS {STATE} FROM ({rows}) AS m", quote(resolution))
}

fn rows_and_states(plan: &Plan, resolution: &str) -> Result<String> {
    check_deletions(plan)?;
    Ok(with_states(plan, &Lowering { plan, dialect: &DuckDb }.rows_and_states(), resolution))
}

/// The rows of a table `target` whose keys the sources have, joined with them; rows without a key that the table does not have.
fn merged_states(plan: &Plan, target: &str, resolution: &str) -> Result<String> {
    check_deletions(plan)?;
    let lowering = Lowering { plan, dialect: &DuckDb };
    let like = |c: &Cell| duckdb_type_name(&c.ty);
    let differ = |c: &Cell, a: &str, b: &str| match c.ty {
        Type::Text => format!("({a} COLLATE \"binary\" IS DISTINCT FROM {b} COLLATE \"binary\")"),
        // By our order: DuckDB takes a month for thirty days, and maps have an order of keys there.
        Type::Interval | Type::List(_) | Type::Struct(_) | Type::Map(..) => {
            format!("(mergeql_order_key({a}) IS DISTINCT FROM mergeql_order_key({b}))")
        }
        _ => format!("({a} IS DISTINCT FROM {b})"),
    };
    let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
    let theirs: Vec<String> = keys.iter().map(|k| format!("t.{k}")).collect();
    let same = keys.iter().map(|k| format!("s.{k} = t.{k}")).collect::<Vec<_>>().join(" AND ");
    let rows = format!("SELECT * REPLACE (struct_extract({STATE}, {}) AS {STATE}) FROM {target}", literal(resolution));
    let touched = format!("({rows}) AS t WHERE EXISTS (SELECT 1 FROM __mergeql_contributed AS s WHERE {same})");
    let known = lowering.unpacked(&theirs, &touched, &lowering.edited_row(like, differ));
    let merged = lowering.merged_states(&["SELECT * FROM __mergeql_contributed".to_owned(), known], like);
    let merged = with_states(plan, &merged, resolution);
    let null = keys.iter().map(|k| format!("m.{k} IS NULL")).collect::<Vec<_>>().join(" OR ");
    let shown = plan.result_columns().map(|(name, _)| format!("t.{0} IS NOT DISTINCT FROM m.{0}", quote(name)));
    Ok(format!(
        "WITH __mergeql_contributed AS MATERIALIZED ({}), m AS MATERIALIZED ({merged}) \
         SELECT * FROM m WHERE NOT ({null}) OR NOT EXISTS (SELECT 1 FROM {target} AS t WHERE {})",
        lowering.contributed(),
        shown.collect::<Vec<_>>().join(" AND ")
    ))
}
