//! Results that are about tables, not about merged rows: deltas, schemas, rows without their duplicates.

use super::{GONE, Lowering, SOURCE, list, quote, text};
use mergeql_udfs::{Type, Value};

impl Lowering<'_> {
    /// A row for each key on which two sources, each merged by itself, differ: the columns of the second, `_deleted`. Of a row that is gone
    /// only key and version are left. Rows without a key are in no delta: nothing could find them again.
    pub(super) fn delta(&self) -> String {
        let plan = self.plan;
        let name = |at: usize| plan.sources[at].name.as_str();
        let (left, right) = (name(0), name(plan.sources.len() - 1));
        let keys: Vec<String> = plan.key_columns().iter().map(|c| quote(&c.name)).collect();
        let count = |source: &str| format!("count(CASE WHEN r.{SOURCE} = {} THEN 1 END)", text(source));
        let mut items: Vec<String> = keys.iter().map(|k| format!("r.{k} AS {k}")).collect();
        items.push(format!("{} AS __mergeql_lefts, {} AS __mergeql_rights", count(left), count(right)));
        let (mut differ, mut outputs) =
            (vec!["m.__mergeql_lefts = 0".to_owned(), "m.__mergeql_rights = 0".to_owned()], keys.clone());
        for (i, cell) in plan.cells.iter().enumerate() {
            let (l, r) = (format!("__mergeql_left_{i}"), format!("__mergeql_right_{i}"));
            items.push(format!("{} AS {l}", self.aggregate_of(cell, false, Some(left))));
            items.push(format!("{} AS {r}", self.aggregate_of(cell, false, Some(right))));
            let [left, right] = [&l, &r].map(|name| {
                let value = format!("m.{name}");
                let told = self.dialect.confuses(&cell.ty) || !self.dialect.has_equality(&cell.ty);
                if told { self.dialect.order_key(&value, None).unwrap_or(value) } else { value }
            });
            differ.push(format!("({left} IS DISTINCT FROM {right})"));
            let version = plan.versions.columns.iter().any(|(c, _)| Some(*c) == cell.column);
            let value =
                if version { format!("CASE WHEN m.__mergeql_rights = 0 THEN m.{l} ELSE m.{r} END") } else { format!("m.{r}") };
            outputs.push(format!("{value} AS {}", quote(&cell.name)));
        }
        let not_null = |(k, c): (&String, &crate::plan::Column)| format!("r.{k} {}", self.dialect.null_tests(&c.ty)[1]);
        let known = keys.iter().zip(plan.key_columns()).map(not_null).collect::<Vec<_>>().join(" AND ");
        format!(
            "SELECT {}, m.__mergeql_rights = 0 AS {} FROM (SELECT {} FROM ({}) AS r WHERE {known} GROUP BY {}) AS m WHERE {}",
            list(outputs),
            quote(GONE),
            list(items),
            self.rows(),
            list(keys.iter().map(|k| format!("r.{k}"))),
            differ.join(" OR "),
        )
    }

    /// A row for each column.
    pub(super) fn schema(&self) -> String {
        let names = ["column_name", "status", "merged_type", "sources"];
        let null = self.dialect.null(&Type::Text);
        let row = |row: &crate::plan::SchemaRow| {
            let ty = row.ty.as_ref().map_or(null.clone(), |ty| text(ty));
            let values = [text(&row.column), text(row.status), ty, text(&row.sources)];
            format!("SELECT {}", list(values.iter().zip(names).map(|(value, name)| format!("{value} AS {name}"))))
        };
        let rows: Vec<String> = self.plan.schema.iter().map(row).collect();
        if rows.is_empty() {
            return format!("SELECT {} WHERE false", list(names.map(|name| format!("{null} AS {name}"))));
        }
        let by = self.dialect.order_key("column_name", Some(&Type::Text)).unwrap_or_else(|| "column_name".to_owned());
        format!("SELECT {} FROM ({}) AS m ORDER BY {by}", list(names.map(str::to_owned)), rows.join(" UNION ALL "))
    }

    /// The rows of a source, of those alike only the first in the order of all its columns. Alike is what has equal keys, or with a
    /// threshold what `similar` finds alike in their text.
    pub(super) fn unique(&self) -> String {
        let plan = self.plan;
        let keys: Vec<String> = plan.key_columns().iter().map(|c| format!("r.{}", quote(&c.name))).collect();
        let order = plan.columns.iter().map(|c| {
            let column = format!("r.{}", quote(&c.name));
            self.dialect.order_key(&column, Some(&c.ty)).unwrap_or(column)
        });
        let order = list(order.map(|key| format!("{key} ASC NULLS LAST")));
        let source = &plan.sources[0];
        let shown: Vec<&crate::plan::Column> = source
            .relation
            .columns
            .iter()
            .enumerate()
            .filter_map(|(i, _)| source.columns.iter().position(|c| *c == Some(i)))
            .map(|i| &plan.columns[i])
            .collect();
        let rows = self.rows();
        let near = plan.option("threshold").filter(|t| t.to_f64().is_some_and(|t| t < 1.0));
        let (from, alike) = match near {
            None => (format!("({rows}) AS r"), list(keys)),
            Some(threshold) => self.clusters(&rows, &keys, threshold),
        };
        format!(
            "SELECT {} FROM (SELECT r.*, row_number() OVER (PARTITION BY {alike} ORDER BY {order} \
             ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS __mergeql_place FROM {from}) AS m \
             WHERE m.__mergeql_place = 1",
            list(shown.iter().map(|c| {
                let (name, column) = (quote(&c.name), format!("m.{}", quote(&c.name)));
                self.dialect.key(&column, &c.ty).map_or(column, |canonical| format!("{canonical} AS {name}"))
            }))
        )
    }

    /// The rows, called `r`, beside the clusters of their texts, and what says which cluster a row is in.
    fn clusters(&self, rows: &str, keys: &[String], threshold: &Value) -> (String, String) {
        let function = |name: &str| self.dialect.function(name);
        let (digest, written) = (function("row_digest"), function("mergeql_text"));
        let id = format!("{written}({digest}({}))", list(keys.iter().cloned()));
        let one_text = matches!(self.plan.key_columns(), [only] if only.ty == Type::Text);
        let content =
            if one_text { keys[0].clone() } else { format!("{}({})", function("mergeql_content"), list(keys.iter().cloned())) };
        let settings = text(&format!("{{\"threshold\":{threshold}}}"));
        let index = format!("{}({settings}, {content}, {id})", function("crdt_similar_state_with"));
        let indexed = format!("(SELECT 1 AS one, {index} AS __mergeql_index FROM ({rows}) AS r) AS m");
        let call = format!("{}(m.__mergeql_index)", function("similar_clusters"));
        let unnested = self.dialect.unnested(&["one".to_owned()], &[call], &indexed);
        let field = |name: &str| self.dialect.cell_field("c.__mergeql_cell", name);
        let clusters =
            format!("SELECT {} AS __mergeql_id, {} AS __mergeql_cluster FROM ({unnested}) AS c", field("key"), field("cluster"));
        let identified = format!("SELECT r.*, {id} AS __mergeql_id FROM ({rows}) AS r");
        let from = format!(
            "(SELECT i.*, coalesce(k.__mergeql_cluster, i.__mergeql_id) AS __mergeql_cluster FROM ({identified}) AS i \
             LEFT JOIN ({clusters}) AS k ON i.__mergeql_id = k.__mergeql_id) AS r"
        );
        (from, "r.__mergeql_cluster".to_owned())
    }
}
