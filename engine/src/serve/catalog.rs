//! What clients of Postgres ask of it before they ask for rows: its catalogues, functions about them, and settings. Drivers (JDBC, asyncpg),
//! SQLAlchemy and the tools on top of them ask for these when they connect, and to list tables. The catalogues are those of
//! datafusion-postgres, over the tables of the session; here is what they lack.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, new_empty_array, new_null_array};
use arrow::datatypes::{DataType, Field, Fields};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result as DfResult, ScalarValue, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};
use datafusion::sql::sqlparser::ast::{self as sql, Expr, SelectItem, SetExpr, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// The version of Postgres whose clients are answered.
pub(super) const VERSION: &str = "16.6";

/// Settings as a server tells them that nobody has changed.
const SETTINGS: &[(&str, &str)] = &[
    ("application_name", ""),
    ("block_size", "8192"),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO, YMD"),
    ("default_table_access_method", "heap"),
    ("default_tablespace", ""),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("extra_float_digits", "1"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("is_superuser", "off"),
    ("jit", "off"),
    ("lc_collate", "C"),
    ("lc_ctype", "C"),
    ("max_identifier_length", "63"),
    ("max_index_keys", "32"),
    ("search_path", "public"),
    ("server_encoding", "UTF8"),
    ("server_version", VERSION),
    ("server_version_num", "160006"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

fn setting(name: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
}

/// What a function answers, whatever it is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Answer {
    Text(Option<&'static str>),
    Unknown,
    Flag(bool),
    /// The setting that the first argument names; NULL for one that is not known where the second is true.
    Setting,
    /// The second argument.
    Given,
    /// No pairs of an element and its place: there are no indexes.
    Pairs,
}

const FUNCTIONS: &[(&str, Answer)] = &[
    ("version", Answer::Text(Some(concat!("PostgreSQL 16.6 (MergeQL ", env!("CARGO_PKG_VERSION"), ")")))),
    ("current_setting", Answer::Setting),
    ("set_config", Answer::Given),
    ("pg_get_userbyid", Answer::Text(Some("postgres"))),
    // What nothing here has: comments, definitions in Postgres' terms, sizes on disk.
    ("obj_description", Answer::Text(None)),
    ("shobj_description", Answer::Text(None)),
    ("col_description", Answer::Text(None)),
    ("pg_get_function_result", Answer::Text(None)),
    ("pg_get_function_arguments", Answer::Text(None)),
    ("pg_get_function_identity_arguments", Answer::Text(None)),
    ("pg_get_function_sqlbody", Answer::Text(None)),
    ("pg_get_functiondef", Answer::Text(None)),
    ("pg_get_indexdef", Answer::Text(None)),
    ("pg_get_ruledef", Answer::Text(None)),
    ("pg_get_serial_sequence", Answer::Text(None)),
    ("pg_get_triggerdef", Answer::Text(None)),
    ("pg_get_viewdef", Answer::Text(None)),
    ("pg_tablespace_location", Answer::Text(None)),
    ("pg_advisory_unlock_all", Answer::Text(None)),
    ("pg_database_size", Answer::Unknown),
    ("pg_indexes_size", Answer::Unknown),
    ("pg_table_size", Answer::Unknown),
    ("pg_is_in_recovery", Answer::Flag(false)),
    ("pg_is_other_temp_schema", Answer::Flag(false)),
    ("pg_function_is_visible", Answer::Flag(true)),
    ("pg_type_is_visible", Answer::Flag(true)),
    ("pg_has_role", Answer::Flag(true)),
    ("has_column_privilege", Answer::Flag(true)),
    ("has_function_privilege", Answer::Flag(true)),
    ("has_sequence_privilege", Answer::Flag(true)),
    ("_pg_expandarray", Answer::Pairs),
];

#[derive(Debug, PartialEq, Eq, Hash)]
struct About {
    name: &'static str,
    answer: Answer,
    signature: Signature,
}

impl About {
    fn udf(name: &'static str, answer: Answer) -> ScalarUDF {
        let any = TypeSignature::OneOf(vec![TypeSignature::Nullary, TypeSignature::VariadicAny]);
        ScalarUDF::from(About { name, answer, signature: Signature::new(any, Volatility::Stable) })
    }
}

fn pairs() -> DataType {
    let number = |name| Field::new(name, DataType::Int32, true);
    DataType::Struct(Fields::from(vec![number("x"), number("n")]))
}

fn text_of(value: &ColumnarValue) -> DfResult<Option<String>> {
    let value = match value {
        ColumnarValue::Scalar(value) => value.clone(),
        ColumnarValue::Array(array) if !array.is_empty() => ScalarValue::try_from_array(array, 0)?,
        ColumnarValue::Array(_) => return Ok(None),
    };
    Ok(value.try_as_str().flatten().map(str::to_owned))
}

impl ScalarUDFImpl for About {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(match self.answer {
            Answer::Text(_) | Answer::Setting | Answer::Given => DataType::Utf8,
            Answer::Unknown => DataType::Int64,
            Answer::Flag(_) => DataType::Boolean,
            Answer::Pairs => pairs(),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let text = |at: usize| args.args.get(at).map_or(Ok(None), text_of);
        Ok(ColumnarValue::Scalar(match self.answer {
            Answer::Text(text) => ScalarValue::Utf8(text.map(str::to_owned)),
            Answer::Unknown => ScalarValue::Int64(None),
            Answer::Flag(flag) => ScalarValue::Boolean(Some(flag)),
            Answer::Given => ScalarValue::Utf8(text(1)?),
            Answer::Pairs => ScalarValue::try_new_null(&pairs())?,
            Answer::Setting => {
                let name = text(0)?.unwrap_or_default();
                let lenient = matches!(args.args.get(1), Some(ColumnarValue::Scalar(ScalarValue::Boolean(Some(true)))));
                match setting(&name) {
                    None if !lenient => return exec_err!("there is no setting \"{name}\""),
                    value => ScalarValue::Utf8(value.map(str::to_owned)),
                }
            }
        }))
    }
}

/// A schema with tables beside those that it had.
#[derive(Debug)]
struct Beside {
    schema: Arc<dyn SchemaProvider>,
    own: BTreeMap<&'static str, Arc<dyn TableProvider>>,
}

#[async_trait]
impl SchemaProvider for Beside {
    fn table_names(&self) -> Vec<String> {
        let mut names = self.schema.table_names();
        names.extend(self.own.keys().filter(|own| !self.schema.table_exist(own)).map(|own| (*own).to_owned()));
        names
    }

    async fn table(&self, name: &str) -> DfResult<Option<Arc<dyn TableProvider>>, DataFusionError> {
        match self.own.get(name) {
            Some(table) => Ok(Some(table.clone())),
            None => self.schema.table(name).await,
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.own.contains_key(name) || self.schema.table_exist(name)
    }
}

fn table(columns: Vec<(&str, ArrayRef)>) -> DfResult<Arc<dyn TableProvider>> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))?;
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

/// The catalogues that are made here.
const TABLES: [&str; 2] = ["pg_settings", "pg_stat_activity"];

fn settings() -> DfResult<Arc<dyn TableProvider>> {
    let (names, values): (Vec<&str>, Vec<&str>) = SETTINGS.iter().copied().unzip();
    let all = |text: &str| Arc::new(StringArray::from(vec![text; SETTINGS.len()])) as ArrayRef;
    let none = |ty: DataType| new_null_array(&ty, SETTINGS.len());
    let values: ArrayRef = Arc::new(StringArray::from(values));
    let mut columns: Vec<(&str, ArrayRef)> = vec![("name", Arc::new(StringArray::from(names))), ("setting", values.clone())];
    columns.extend(["unit", "category", "short_desc", "extra_desc"].map(|name| (name, none(DataType::Utf8))));
    columns.extend([("context", all("user")), ("vartype", all("string")), ("source", all("default"))]);
    columns.extend(["min_val", "max_val", "enumvals"].map(|name| (name, none(DataType::Utf8))));
    columns.extend([("boot_val", values.clone()), ("reset_val", values), ("sourcefile", none(DataType::Utf8))]);
    columns.push(("sourceline", none(DataType::Int32)));
    columns.push(("pending_restart", Arc::new(BooleanArray::from(vec![false; SETTINGS.len()]))));
    table(columns)
}

/// Who is connected is not told: the table has no rows.
fn activity() -> DfResult<Arc<dyn TableProvider>> {
    let texts = [
        "datname",
        "usename",
        "application_name",
        "client_addr",
        "client_hostname",
        "wait_event_type",
        "wait_event",
        "state",
        "query",
        "backend_type",
    ];
    let numbers = ["datid", "pid", "leader_pid", "usesysid", "client_port", "backend_xid", "backend_xmin", "query_id"];
    let times = ["backend_start", "xact_start", "query_start", "state_change"];
    let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into()));
    let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
    columns.extend(numbers.map(|name| (name, Arc::new(Int64Array::new_null(0)) as ArrayRef)));
    columns.extend(texts.map(|name| (name, new_empty_array(&DataType::Utf8))));
    columns.extend(times.map(|name| (name, new_empty_array(&time))));
    table(columns)
}

/// Makes the catalogues, and what clients ask about them.
///
/// # Errors
/// As registering tables.
pub(super) fn prepare(context: &MergeContext) -> Result<()> {
    let session = context.session();
    let name = session.state().config().options().catalog.default_catalog.clone();
    setup_pg_catalog(session, &name, EmptyContextProvider).map_err(|e| MergeError::from(*e))?;
    FUNCTIONS.iter().for_each(|(name, answer)| session.register_udf(About::udf(name, *answer)));
    if let Some(catalog) = session.catalog(&name)
        && let Some(schema) = catalog.schema("pg_catalog")
    {
        let own = TABLES.into_iter().zip([settings()?, activity()?]).collect();
        catalog.register_schema("pg_catalog", Arc::new(Beside { schema, own }))?;
    }
    Ok(())
}

/// The query that answers SHOW of a setting which no connection can change.
pub(super) fn shown(statement: &sql::Statement) -> Option<String> {
    let sql::Statement::ShowVariable { variable } = statement else { return None };
    let [name] = &variable[..] else { return None };
    let fixed =
        ["server_version", "server_version_num", "server_encoding", "integer_datetimes", "max_index_keys", "max_identifier_length"];
    let value = setting(&name.value).filter(|_| fixed.iter().any(|fixed| name.value.eq_ignore_ascii_case(fixed)))?;
    Some(format!("SELECT '{value}' AS {}", name.value.to_ascii_lowercase()))
}

/// What clients ask of the catalogues, in terms that the engine has.
pub(super) fn rewritten(mut statement: sql::Statement) -> sql::Statement {
    let _ = VisitMut::visit(&mut statement, &mut Rewrite);
    statement
}

struct Rewrite;

/// Catalogues that are read from others: in the library's, views are tables.
const READ: [(&str, &str); 2] = [
    (
        "pg_tables",
        "(SELECT table_schema AS schemaname, table_name AS tablename, 'postgres' AS tableowner, NULL::text AS tablespace, \
          false AS hasindexes, false AS hasrules, false AS hastriggers, false AS rowsecurity \
          FROM information_schema.tables WHERE table_type = 'BASE TABLE')",
    ),
    (
        "pg_views",
        "(SELECT table_schema AS schemaname, table_name AS viewname, 'postgres' AS viewowner, NULL::text AS definition \
          FROM information_schema.tables WHERE table_type = 'VIEW')",
    ),
];

fn read(relation: &sql::TableFactor) -> Option<sql::TableFactor> {
    let sql::TableFactor::Table { name, alias, .. } = relation else { return None };
    let name = name.to_string().to_ascii_lowercase();
    let name = name.strip_prefix("pg_catalog.").unwrap_or(&name);
    let (name, query) = READ.iter().find(|(known, _)| *known == name)?;
    let alias = alias.as_ref().map_or_else(|| (*name).to_owned(), ToString::to_string);
    let text = format!("SELECT 1 FROM {query} AS {}", alias.strip_prefix("AS ").unwrap_or(&alias));
    let query = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query()).ok()?;
    let SetExpr::Select(select) = *query.body else { return None };
    select.from.into_iter().next().map(|from| from.relation)
}

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    let argument = |argument| sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(argument));
    Expr::Function(sql::Function {
        name: sql::ObjectName::from(vec![sql::Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: sql::FunctionArguments::None,
        args: sql::FunctionArguments::List(sql::FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(argument).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// The name that a query looks up in pg_proc: what a cast to `regproc` became.
fn procedure(query: &sql::Query) -> Option<Expr> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let [from] = &select.from[..] else { return None };
    let Some(Expr::BinaryOp { right, .. }) = &select.selection else { return None };
    (from.relation.to_string() == "pg_catalog.pg_proc").then(|| (**right).clone())
}

/// Postgres takes a scalar subquery at its word that it gives one row at most; here that has to be seen.
fn single(query: &mut sql::Query) {
    let SetExpr::Select(select) = &mut *query.body else { return };
    let plain = select.distinct.is_none() && select.having.is_none() && query.order_by.is_none() && query.limit_clause.is_none();
    let grouped = !matches!(&select.group_by, sql::GroupByExpr::Expressions(by, _) if by.is_empty());
    let [SelectItem::UnnamedExpr(value) | SelectItem::ExprWithAlias { expr: value, .. }] = &mut select.projection[..] else {
        return;
    };
    if plain && !grouped && !folds(value) && !select.from.is_empty() {
        *value = call("max", vec![value.clone()]);
    }
}

/// Catalogues that have nothing of a user's table: there are no keys, indexes, sequences, defaults and collations that clients could be told of.
const EMPTY: [&str; 7] = ["pg_index", "pg_constraint", "pg_sequence", "pg_attrdef", "pg_trigger", "pg_policy", "pg_collation"];

fn relation_is_empty(relation: &sql::TableFactor) -> bool {
    match relation {
        sql::TableFactor::Table { name, .. } => {
            let name = name.to_string().to_ascii_lowercase();
            EMPTY.contains(&name.strip_prefix("pg_catalog.").unwrap_or(&name))
        }
        sql::TableFactor::Derived { subquery, .. } => no_rows(subquery).is_some(),
        sql::TableFactor::NestedJoin { table_with_joins, .. } => source_is_empty(table_with_joins),
        _ => false,
    }
}

fn source_is_empty(source: &sql::TableWithJoins) -> bool {
    use sql::JoinOperator::{CrossJoin, FullOuter, Inner, Join, Right, RightOuter};
    let inner =
        |join: &sql::Join| matches!(join.join_operator, Join(_) | Inner(_) | CrossJoin(_)) && relation_is_empty(&join.relation);
    let outer = |join: &sql::Join| matches!(join.join_operator, FullOuter(_) | Right(_) | RightOuter(_));
    !source.joins.iter().any(outer) && (relation_is_empty(&source.relation) || source.joins.iter().any(inner))
}

/// The columns of a query that has no rows, because it reads a catalogue that has none.
fn no_rows(query: &sql::Query) -> Option<Vec<String>> {
    let SetExpr::Select(select) = &*query.body else { return None };
    let grouped = !matches!(&select.group_by, sql::GroupByExpr::Expressions(by, _) if by.is_empty());
    if !select.from.iter().any(source_is_empty) {
        return None;
    }
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, expr } if grouped || !folds(expr) => Some(alias.value.clone()),
        SelectItem::UnnamedExpr(expr) if grouped || !folds(expr) => Some(match expr {
            Expr::Identifier(name) => name.value.clone(),
            Expr::CompoundIdentifier(parts) => parts.last()?.value.clone(),
            other => other.to_string(),
        }),
        _ => None,
    };
    select.projection.iter().map(name).collect()
}

/// Whether an expression is an aggregate, which has a row over none.
fn folds(expr: &Expr) -> bool {
    let aggregate = ["count", "max", "min", "sum", "avg", "array_agg", "string_agg", "bool_or", "bool_and"];
    matches!(expr, Expr::Function(f) if aggregate.iter().any(|name| f.name.to_string().eq_ignore_ascii_case(name)))
}

fn without_rows(columns: &[String]) -> Option<sql::Query> {
    let column = |(at, name): (usize, &String)| {
        let again = columns[..at].contains(name).then(|| format!("{name}_{at}"));
        format!("NULL::text AS \"{}\"", again.as_ref().unwrap_or(name).replace('"', "\"\""))
    };
    let columns: Vec<String> = columns.iter().enumerate().map(column).collect();
    let text = format!("SELECT {} WHERE false", columns.join(", "));
    Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_query()).ok().map(|query| *query)
}

/// Whether this is a column that Postgres has and the library's catalogues lack: nothing is in it here.
fn is_lacking(expr: &Expr) -> bool {
    matches!(expr, Expr::CompoundIdentifier(parts) if parts.len() > 1 && parts.last().is_some_and(|name| name.value == "reloptions"))
}

/// Names for what has the same name twice, and for what will be NULL.
fn named(body: &mut SetExpr) {
    match body {
        SetExpr::SetOperation { left, right, .. } => [left, right].into_iter().for_each(|side| named(side)),
        SetExpr::Select(select) => {
            let mut seen: Vec<String> = Vec::new();
            for (at, item) in select.projection.iter_mut().enumerate() {
                let SelectItem::UnnamedExpr(expr) = item else { continue };
                if is_lacking(expr) {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: sql::Ident::new("reloptions") };
                    continue;
                }
                let text = expr.to_string();
                if seen.contains(&text) {
                    let alias = sql::Ident::with_quote('"', format!("?column?{at}"));
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias };
                }
                seen.push(text);
            }
        }
        _ => {}
    }
}

impl VisitorMut for Rewrite {
    type Break = ();

    fn pre_visit_table_factor(&mut self, relation: &mut sql::TableFactor) -> ControlFlow<()> {
        if let Some(read) = read(relation) {
            *relation = read;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &mut sql::ObjectName) -> ControlFlow<()> {
        if let [sql::ObjectNamePart::Identifier(only)] = &name.0[..]
            && TABLES.contains(&only.value.as_str())
        {
            *name = sql::ObjectName::from(vec![sql::Ident::new("pg_catalog"), only.clone()]);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut sql::Query) -> ControlFlow<()> {
        if let Some(empty) = no_rows(query).and_then(|columns| without_rows(&columns)) {
            *query = empty;
        }
        named(&mut query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            // Functions of types are names here, no numbers.
            Expr::BinaryOp { left, right, .. } => {
                let of_type = left.to_string().rsplit('.').next().is_some_and(|name| name.starts_with("typ"));
                if let (true, Expr::Subquery(query)) = (of_type, &**right)
                    && let Some(name) = procedure(query)
                {
                    **right = name;
                }
            }
            lacking if is_lacking(lacking) => *lacking = Expr::Value(sql::Value::Null.with_empty_span()),
            // An escape character of one's own is the usual one.
            Expr::Like { pattern, escape_char: escape @ Some(_), .. }
            | Expr::ILike { pattern, escape_char: escape @ Some(_), .. } => {
                let own = escape.take().map(|escape| escape.to_string()).unwrap_or_default();
                let usual = format!("replace({pattern}, {own}, '\\')");
                let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(&usual).and_then(|mut parser| parser.parse_expr());
                **pattern = parsed.unwrap_or_else(|_| (**pattern).clone());
            }
            Expr::Subquery(query) if no_rows(query).is_some() => *expr = Expr::Value(sql::Value::Null.with_empty_span()),
            // A field of what a function gives.
            Expr::CompoundFieldAccess { root, access_chain } => {
                if let [sql::AccessExpr::Dot(Expr::Identifier(field))] = &access_chain[..] {
                    let field = Expr::Value(sql::Value::SingleQuotedString(field.value.clone()).with_empty_span());
                    *expr = call("get_field", vec![(**root).clone(), field]);
                }
            }
            Expr::Function(f) if ["to_regclass", "to_regtype"].iter().any(|to| f.name.to_string().eq_ignore_ascii_case(to)) => {
                let types = f.name.to_string().eq_ignore_ascii_case("to_regtype");
                if let sql::FunctionArguments::List(list) = &f.args
                    && let [sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(name))] = &list.args[..]
                {
                    *expr = numbered(name.clone(), if types { ("pg_type", "typname") } else { ("pg_class", "relname") });
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if let Expr::Subquery(query) = expr {
            single(query);
        }
        ControlFlow::Continue(())
    }
}

/// The number of what has this name in a catalogue, or NULL.
fn numbered(name: Expr, (catalogue, column): (&str, &str)) -> Expr {
    let text = format!("(SELECT max(oid) FROM pg_catalog.{catalogue} WHERE {column} = {name})");
    let parsed = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).and_then(|mut parser| parser.parse_expr());
    parsed.unwrap_or(Expr::Value(sql::Value::Null.with_empty_span()))
}
