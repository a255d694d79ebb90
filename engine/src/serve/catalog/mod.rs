//! What clients of Postgres ask of it before they ask for rows: its catalogues, functions about them, and settings. Drivers (JDBC, asyncpg),
//! SQLAlchemy and the tools on top of them ask for these when they connect, and to list tables. The catalogues are those of
//! datafusion-postgres, over the tables of the session; here is what they lack.

mod asks;
mod rewrite;

use super::rows::wire_type;
use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, new_empty_array, new_null_array};
use arrow::datatypes::{DataType, Field, Fields};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result as DfResult, ScalarValue, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};
use datafusion::sql::sqlparser::ast as sql;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::setup_pg_catalog;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(super) use asks::{Asks, asks, of_session};
pub(super) use rewrite::rewritten;

/// The version of Postgres whose clients are answered.
const VERSION: &str = "16.6";

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
    /// What Postgres calls a type of the engine in its `information_schema`.
    DataType,
    /// The name of that type in `pg_type`.
    TypeName,
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
    ("mergeql_data_type", Answer::DataType),
    ("mergeql_udt_name", Answer::TypeName),
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

/// A type of the engine as Postgres names it: in the words of SQL, or as `pg_type` does.
fn type_name(ty: &str, in_words: bool) -> String {
    let known = ty.parse::<DataType>().ok().and_then(|ty| wire_type(&ty).ok());
    let Some(known) = known else { return ty.to_owned() };
    match known.name() {
        name if !in_words => name,
        name if name.starts_with('_') => "ARRAY",
        "bool" => "boolean",
        "int2" => "smallint",
        "int4" => "integer",
        "int8" => "bigint",
        "float4" => "real",
        "float8" => "double precision",
        "time" => "time without time zone",
        "timestamp" => "timestamp without time zone",
        "timestamptz" => "timestamp with time zone",
        name => name,
    }
    .to_owned()
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
            Answer::Text(_) | Answer::Setting | Answer::Given | Answer::DataType | Answer::TypeName => DataType::Utf8,
            Answer::Unknown => DataType::Int64,
            Answer::Flag(_) => DataType::Boolean,
            Answer::Pairs => pairs(),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        if let (Answer::DataType | Answer::TypeName, [types]) = (self.answer, &args.args[..]) {
            let types = arrow::compute::cast(&types.to_array(args.number_rows)?, &DataType::Utf8)?;
            let named = types.as_string::<i32>().iter().map(|ty| ty.map(|ty| type_name(ty, self.answer == Answer::DataType)));
            return Ok(ColumnarValue::Array(Arc::new(named.collect::<StringArray>())));
        }
        let text = |at: usize| args.args.get(at).map_or(Ok(None), text_of);
        Ok(ColumnarValue::Scalar(match self.answer {
            Answer::Text(text) => ScalarValue::Utf8(text.map(str::to_owned)),
            Answer::Unknown => ScalarValue::Int64(None),
            Answer::Flag(flag) => ScalarValue::Boolean(Some(flag)),
            Answer::Given => ScalarValue::Utf8(text(1)?),
            Answer::Pairs => ScalarValue::try_new_null(&pairs())?,
            Answer::DataType | Answer::TypeName => ScalarValue::Utf8(None),
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
