//! What a statement is before it runs: servers ask for the columns of a query, and must not run a command to learn them.

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::explain;
use crate::plain::single_call;
use crate::renames::renaming;
use arrow::array::{RecordBatch, UInt64Array};
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::{DdlStatement, LogicalPlan, WriteOp};
use datafusion::prelude::DataFrame;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};
use mergeql_lang::ast::{Explain, Statement};
use mergeql_lang::parse;
use mergeql_udfs::Code;
use std::borrow::Cow;

/// A statement that was looked at and has not run.
#[allow(clippy::large_enum_variant)] // there is one at a time
pub enum Prepared {
    /// A query with its plan.
    Query(DataFrame),
    /// A command, which changes something when [`MergeContext::sql`] runs it, by the name that Postgres' protocol has for its kind.
    Command {
        /// The name of its kind.
        tag: &'static str,
        /// Its plan, if it is plain SQL: parameters are put into it.
        plan: Option<LogicalPlan>,
    },
}

impl MergeContext {
    /// Looks at one statement without running it.
    ///
    /// # Errors
    /// As [`MergeContext::sql`].
    pub async fn prepare(&self, text: &str) -> Result<Prepared> {
        let text = numbered(text);
        self.prepared(&text).await.map_err(|e| e.map(|d| d.in_text(&text)))
    }

    async fn prepared(&self, text: &str) -> Result<Prepared> {
        self.refresh().await?;
        let command = |tag| {
            refuse_parameters(text)?;
            Ok(Prepared::Command { tag, plan: None })
        };
        match parse(text)? {
            Statement::Merge { explain: Explain::No, merge } if merge.into.is_some() => command("MERGE"),
            Statement::MergeInto { explain: Explain::No, .. } | Statement::MergeModels { explain: false, .. } => command("MERGE"),
            Statement::CreateStrategy { .. } => command("CREATE STRATEGY"),
            Statement::DropStrategy { .. } => command("DROP STRATEGY"),
            Statement::Sql(pieces) => {
                let sql = self.lower_pieces(&pieces).await?;
                if single_call(&sql, "mergeql_adopt").is_some() {
                    return command("MERGE");
                }
                if single_call(&sql, "mergeql_sql").is_some() {
                    return Ok(Prepared::Query(self.run_sql(&sql, text).await?));
                }
                if renaming(&sql).is_some() {
                    return command("ALTER TABLE");
                }
                let plan = self.expanded(self.plan_sql(&sql).await?).await?;
                if matches!(plan, LogicalPlan::Ddl(DdlStatement::CreateView(_))) {
                    refuse_parameters(text)?;
                }
                Ok(match self.changes(&plan)? {
                    true => Prepared::Command { tag: tag(&plan), plan: Some(plan) },
                    false => Prepared::Query(match explain::divided(self, &plan).await? {
                        Some(stages) => stages,
                        None => DataFrame::new(self.session.state(), plan),
                    }),
                })
            }
            _ => Ok(Prepared::Query(self.run(text).await?)),
        }
    }

    /// A query whose plan has values for its parameters, in the session that its statement asks for: a memory limit of its own, sources
    /// whose order is not believed.
    pub(crate) async fn with_values(&self, text: &str, plan: LogicalPlan) -> Result<DataFrame> {
        let lower = text.to_ascii_lowercase();
        if ["memory_limit", "sorted"].iter().any(|option| lower.contains(option))
            && let Prepared::Query(frame) = self.prepare(text).await?
        {
            return Ok(DataFrame::new(frame.into_parts().0, plan));
        }
        Ok(DataFrame::new(self.session.state(), plan))
    }

    /// Whether a plan changes something.
    ///
    /// # Errors
    /// `unsupported` for files, where they are not open to statements.
    pub(crate) fn changes(&self, plan: &LogicalPlan) -> Result<bool> {
        let (mut changes, mut files) = (false, false);
        plan.apply_with_subqueries(|node| {
            changes |= matches!(node, LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_));
            files |= matches!(node, LogicalPlan::Copy(_) | LogicalPlan::Ddl(DdlStatement::CreateExternalTable(_)));
            Ok(TreeNodeRecursion::Continue)
        })?;
        if files {
            self.check_files()?;
        }
        Ok(changes)
    }
}

fn tokens(text: &str) -> Vec<TokenWithSpan> {
    // A text that is no SQL is told so by the parser.
    Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().unwrap_or_default()
}

/// Refuses parameters where nothing would ever be put in their places.
fn refuse_parameters(text: &str) -> Result<()> {
    match tokens(text).iter().any(|t| matches!(t.token, Token::Placeholder(_))) {
        true => Err(MergeError::new(
            Code::Unsupported,
            "parameters are for queries and for plain SQL that writes: this statement takes none",
        )
        .help("write the values into it, or INSERT INTO ... MERGE ... WHERE column > $1")),
        false => Ok(()),
    }
}

/// The text with parameters that are written as `?`, as ADBC and ODBC have them, as `$1`, `$2` and on.
fn numbered(text: &str) -> Cow<'_, str> {
    let tokens = tokens(text);
    let asked = tokens.iter().filter(|t| matches!(&t.token, Token::Placeholder(name) if name == "?"));
    let places: Vec<(u64, u64)> = asked.map(|t| (t.span.start.line, t.span.start.column)).collect();
    if places.is_empty() {
        return text.into();
    }
    let (mut numbered, mut at, mut count) = (String::with_capacity(text.len() + 2 * places.len()), (1, 1), 0);
    for c in text.chars() {
        if places.contains(&at) {
            count += 1;
            numbered += &format!("${count}");
        } else {
            numbered.push(c);
        }
        at = if c == '\n' { (at.0 + 1, 1) } else { (at.0, at.1 + 1) };
    }
    numbered.into()
}

/// A plan with values for its parameters, in the types that it was planned for.
pub(crate) fn bound(plan: &LogicalPlan, values: ParamValues) -> Result<LogicalPlan> {
    let types = plan.get_parameter_types()?;
    let assigns = matches!(plan, LogicalPlan::Dml(dml) if matches!(dml.op, WriteOp::Insert(_) | WriteOp::Update));
    let fitted = |name: String, value: ScalarAndMetadata| match types.get(&format!("${name}")) {
        Some(Some(ty)) if value.value.data_type() != *ty => {
            let cast = value.value.cast_to(ty);
            let is_same = |cast: &ScalarValue| cast.cast_to(&value.value.data_type()).is_ok_and(|back| back == value.value);
            // A number that a column's type does not have is compared as what it is, and not as one near it.
            let exact = value.value.data_type().is_numeric() && (ty.is_integer() || ty.is_decimal());
            match cast {
                Ok(cast) if !exact || is_same(&cast) || assigns && ty.is_decimal() => {
                    Ok(ScalarAndMetadata { value: cast, metadata: value.metadata })
                }
                _ if exact && !assigns => Ok(value),
                Ok(_) => Err(MergeError::new(
                    Code::InvalidArgument,
                    format!("the parameter ${name} is {}, and goes into {ty}", value.value),
                )),
                Err(error) => Err(error.into()),
            }
        }
        _ => Ok(value),
    };
    let values = match values {
        ParamValues::List(list) => {
            let numbered = list.into_iter().enumerate().map(|(i, value)| fitted((i + 1).to_string(), value));
            ParamValues::List(numbered.collect::<Result<_>>()?)
        }
        named @ ParamValues::Map(_) => named,
    };
    Ok(plan.clone().replace_params_with_values(&values)?)
}

/// How many rows a command says it touched.
pub(crate) fn touched(batches: &[RecordBatch]) -> Option<u64> {
    let count = batches.first().filter(|b| b.num_rows() == 1 && b.num_columns() == 1)?;
    count.column(0).as_any().downcast_ref::<UInt64Array>().map(|c| c.value(0))
}

fn tag(plan: &LogicalPlan) -> &'static str {
    match plan {
        LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(_) | DdlStatement::CreateExternalTable(_)) => "CREATE TABLE",
        LogicalPlan::Ddl(DdlStatement::CreateView(_)) => "CREATE VIEW",
        LogicalPlan::Ddl(DdlStatement::CreateCatalogSchema(_)) => "CREATE SCHEMA",
        LogicalPlan::Ddl(DdlStatement::DropTable(_)) => "DROP TABLE",
        LogicalPlan::Ddl(DdlStatement::DropView(_)) => "DROP VIEW",
        LogicalPlan::Ddl(DdlStatement::DropCatalogSchema(_)) => "DROP SCHEMA",
        LogicalPlan::Ddl(_) => "CREATE",
        LogicalPlan::Dml(dml) => match dml.op {
            WriteOp::Update => "UPDATE",
            WriteOp::Delete => "DELETE",
            WriteOp::Truncate => "TRUNCATE TABLE",
            WriteOp::MergeInto(_) => "MERGE",
            _ => "INSERT",
        },
        LogicalPlan::Copy(_) => "COPY",
        _ => "SET",
    }
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn parameters_get_their_numbers() {
        assert_eq!(
            numbered("SELECT '?', \"?\" -- ?\n FROM t WHERE a = ? AND b > ?"),
            "SELECT '?', \"?\" -- ?\n FROM t WHERE a = $1 AND b > $2"
        );
        assert_eq!(numbered("SELECT $1 'ä"), "SELECT $1 'ä");
    }
}
