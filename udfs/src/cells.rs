//! `mergeql_cells(mode, name, strategy, selects, value, contributions, ...)`: who won and who lost, a struct for each cell of a row.
//! The contributions are the state of a `gset` of structs of source, value and version. What is in it becomes text out of its bytes.

use crate::aggregate;
use crate::batch::{Column, OwnedColumn, OwnedData};
use crate::codec::{self, Reader, Writer};
use crate::error::Result;
use crate::strategies::concat::{self, GrowOnlySet};
use crate::types::Type;
use crate::value::{Value, packed};
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

/// NULL in its canonical bytes.
const NULL: &[u8] = &[0];

fn list_of(ty: Type) -> Type {
    Type::List(Box::new(ty))
}

fn struct_of<const N: usize>(fields: [(&str, Type); N]) -> Type {
    Type::Struct(fields.into_iter().map(|(name, ty)| (Arc::from(name), ty)).collect())
}

fn loser_type() -> Type {
    struct_of([("source", Type::Text), ("value", Type::Text), ("version", Type::Text)])
}

fn cell_type() -> Type {
    struct_of([
        ("column_name", Type::Text),
        ("value", Type::Text),
        ("strategy", Type::Text),
        ("winner_sources", list_of(Type::Text)),
        ("losers", list_of(loser_type())),
    ])
}

/// What `mergeql_cells` gives.
pub(crate) fn returns() -> Type {
    list_of(cell_type())
}

/// `mergeql_cells` over some rows.
///
/// # Errors
/// As for any state.
pub(crate) fn cells(columns: &[Column<'_>], rows: usize) -> Result<OwnedColumn> {
    let mut out = Cells::default();
    let mut ends = vec![0];
    let (mode, columns) = columns.split_first().expect("invariant: hosts hold calls to their number of arguments");
    for row in 0..rows {
        out.buffer.clear();
        mode.write(row, &mut out.buffer);
        let only_conflicts = codec::text(out.buffer.as_bytes()) == Some("conflicts");
        for cell in columns.chunks_exact(5) {
            out.add(only_conflicts, cell, row)?;
        }
        ends.push(out.name.len());
    }
    Ok(out.into_column(ends))
}

/// Texts of many rows.
struct Texts {
    offsets: Vec<usize>,
    bytes: String,
    validity: Vec<bool>,
}

impl Default for Texts {
    fn default() -> Self {
        Texts { offsets: vec![0], bytes: String::new(), validity: Vec::new() }
    }
}

impl Texts {
    fn len(&self) -> usize {
        self.validity.len()
    }

    fn push(&mut self, text: Option<&str>) {
        self.bytes.push_str(text.unwrap_or_default());
        self.end(text.is_some());
    }

    /// Adds a value in its canonical bytes, as text.
    fn show(&mut self, value: &[u8]) {
        if value != NULL {
            packed::show(value, &mut self.bytes);
        }
        self.end(value != NULL);
    }

    fn end(&mut self, valid: bool) {
        self.offsets.push(self.bytes.len());
        self.validity.push(valid);
    }

    fn into_column(self) -> OwnedColumn {
        let data = OwnedData::Strings { offsets: self.offsets, bytes: self.bytes.into_bytes() };
        OwnedColumn { ty: Type::Text, data, validity: Some(self.validity) }
    }
}

/// A text in a [`Scratch`].
type Span = Option<Range<usize>>;

/// The texts of one cell before they are sorted.
#[derive(Default)]
struct Scratch(String);

impl Scratch {
    fn value(&mut self, value: &[u8]) -> Span {
        self.written(value != NULL, |out| packed::show(value, out))
    }

    /// A version is its text already, or a struct of its parts.
    fn version(&mut self, version: &[u8]) -> Result<Span> {
        let Some(parts) = codec::parts(version)? else { return Ok(self.value(version)) };
        Ok(self.written(parts.iter().any(|part| *part != NULL), |out| {
            for (i, part) in parts.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                packed::show(part, out);
            }
        }))
    }

    fn written(&mut self, valid: bool, write: impl FnOnce(&mut String)) -> Span {
        let start = self.0.len();
        valid.then(|| {
            write(&mut self.0);
            start..self.0.len()
        })
    }
}

#[derive(Default)]
struct Cells {
    name: Texts,
    value: Texts,
    strategy: Texts,
    winners: Texts,
    /// Where each cell's winners end.
    winner_ends: Vec<usize>,
    losers: [Texts; 3],
    loser_ends: Vec<usize>,
    buffer: Writer,
    scratch: Scratch,
    won: Vec<Span>,
    lost: Vec<[Span; 3]>,
}

impl Cells {
    /// Adds the cell of these five columns in a row, unless only conflicts are asked for and there is none.
    fn add(&mut self, only_conflicts: bool, cell: &[Column<'_>], row: usize) -> Result<()> {
        let [name, strategy, selects, value, contributions] = cell else { return Ok(()) };
        let body = match contributions.bytes(row) {
            Some(state) => Some(aggregate::body::<GrowOnlySet>(state)?),
            None => aggregate::bytes_of(&contributions.value(row))?.and(None),
        };
        let contributed = body.as_deref().map_or(Ok(Vec::new()), contributions_of)?;
        // Equal values have equal bytes.
        if only_conflicts && contributed.windows(2).all(|w| w[0][1] == w[1][1]) {
            return Ok(());
        }
        self.buffer.clear();
        selects.write(row, &mut self.buffer);
        // Where there are no truth values false is zero.
        let all_win = matches!(packed::value(self.buffer.as_bytes()), Value::Bool(false) | Value::Int(0));
        self.buffer.clear();
        value.write(row, &mut self.buffer);
        self.value.show(self.buffer.as_bytes());
        self.scratch.0.clear();
        self.won.clear();
        self.lost.clear();
        for [source, given, version] in contributed {
            let source = self.scratch.value(source);
            if all_win || packed::compare(given, self.buffer.as_bytes()).is_eq() {
                self.won.push(source);
            } else {
                self.lost.push([source, self.scratch.value(given), self.scratch.version(version)?]);
            }
        }
        let text = |span: &Span| span.clone().map(|at| &self.scratch.0[at]);
        sort_distinct(&mut self.won, |a, b| text(a).cmp(&text(b)));
        sort_distinct(&mut self.lost, |a, b| a.each_ref().map(text).cmp(&b.each_ref().map(text)));
        self.won.iter().for_each(|source| self.winners.push(text(source)));
        for lost in &self.lost {
            self.losers.iter_mut().zip(lost).for_each(|(texts, span)| texts.push(text(span)));
        }
        self.winner_ends.push(self.winners.len());
        self.loser_ends.push(self.losers[0].len());
        for (texts, column) in [(&mut self.name, name), (&mut self.strategy, strategy)] {
            self.buffer.clear();
            column.write(row, &mut self.buffer);
            texts.show(self.buffer.as_bytes());
        }
        Ok(())
    }

    fn into_column(self, ends: Vec<usize>) -> OwnedColumn {
        let list = |mut ends: Vec<usize>, child: OwnedColumn| {
            ends.insert(0, 0);
            let ty = list_of(child.ty.clone());
            OwnedColumn { ty, data: OwnedData::List { offsets: ends, child: Box::new(child) }, validity: None }
        };
        let record = |ty, columns| OwnedColumn { ty, data: OwnedData::Struct(columns), validity: None };
        let losers = record(loser_type(), self.losers.map(Texts::into_column).into());
        let columns = vec![
            self.name.into_column(),
            self.value.into_column(),
            self.strategy.into_column(),
            list(self.winner_ends, self.winners.into_column()),
            list(self.loser_ends, losers),
        ];
        OwnedColumn {
            ty: returns(),
            data: OwnedData::List { offsets: ends, child: Box::new(record(cell_type(), columns)) },
            validity: None,
        }
    }
}

/// Sources, values and versions in their canonical bytes, out of the body of a set.
fn contributions_of(body: &[u8]) -> Result<Vec<[&[u8]; 3]>> {
    let mut r = Reader::new(body);
    (0..concat::elements(&mut r)?).map(|_| r.fields(["source", "value", "version"])).collect()
}

/// Ascending, each once.
fn sort_distinct<T>(items: &mut Vec<T>, compare: impl Fn(&T, &T) -> Ordering) {
    if items.len() > 1 {
        items.sort_by(&compare);
        items.dedup_by(|a, b| compare(a, b).is_eq());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Call;
    use crate::catalog;

    fn contribution(source: &str, value: Value, version: Value) -> Value {
        Value::record(vec![("source".into(), Value::text(source)), ("value".into(), value), ("version".into(), version)])
    }

    fn state(contributions: &[Value]) -> Value {
        let mut set = catalog::find("gset").unwrap().bind(&Call::new(vec![Type::Null])).unwrap().partial();
        contributions.iter().for_each(|c| set.update(std::slice::from_ref(c)).unwrap());
        set.encode().map_or(Value::Null, |bytes| Value::Bytes(bytes.into()))
    }

    fn called(mode: &str, selects: bool, value: Value, contributions: Value) -> Value {
        let arguments = [Value::text(mode), Value::text("c"), Value::text("lww"), Value::Bool(selects), value, contributions];
        let columns: Vec<Column> = arguments.iter().map(|v| Column::of_values(std::slice::from_ref(v))).collect();
        cells(&columns, 1).unwrap().value(0)
    }

    #[test]
    fn winners_hold_the_value_and_losers_another() {
        let version = |t: i128, node: Value| Value::record(vec![("000".into(), Value::Int(t)), ("001".into(), node)]);
        let contributions = state(&[
            contribution("b", Value::Int(10), version(2, Value::text("x"))),
            contribution("a", Value::Int(10), Value::Null),
            contribution("a", Value::Int(10), Value::text("again")),
            contribution("a", Value::Int(9), version(1, Value::Null)),
            contribution("c", Value::Null, Value::record(vec![("000".into(), Value::Null)])),
        ]);
        let shown = called("conflicts", true, Value::Int(10), contributions.clone());
        assert_eq!(
            shown.to_json(),
            r#"[{"column_name":"c","losers":[{"source":"a","value":"9","version":"1, NULL"},{"source":"c","value":null,"version":null}],"strategy":"lww","value":"10","winner_sources":["a","b"]}]"#
        );
        // A value that is made of all has no losers.
        let shown = called("conflicts", false, Value::Int(19), contributions);
        assert_eq!(
            shown.to_json(),
            r#"[{"column_name":"c","losers":[],"strategy":"lww","value":"19","winner_sources":["a","b","c"]}]"#
        );
    }

    #[test]
    fn losers_that_look_alike_are_one_and_sorted_by_text() {
        let at = |v: Value| contribution("a", v, Value::Null);
        let contributions = state(&[at(Value::Int(1)), at(Value::text("1")), at(Value::Int(10)), at(Value::Int(9))]);
        let Value::List(cells) = called("conflicts", true, Value::Int(7), contributions) else { panic!("no list") };
        assert!(cells[0].to_json().contains(
            r#""losers":[{"source":"a","value":"1","version":null},{"source":"a","value":"10","version":null},{"source":"a","value":"9","version":null}]"#
        ));
    }

    #[test]
    fn what_agrees_is_shown_where_all_is_asked_for() {
        let one = state(&[contribution("a", Value::text("v"), Value::Null), contribution("b", Value::text("v"), Value::Null)]);
        assert_eq!(called("conflicts", true, Value::text("v"), one.clone()), Value::List(vec![]));
        assert_eq!(called("conflicts", true, Value::Null, Value::Null), Value::List(vec![]));
        for (value, contributions, winners) in [(Value::text("v"), one, r#"["a","b"]"#), (Value::Null, Value::Null, "[]")] {
            let shown = called("all", true, value, contributions).to_json();
            assert!(shown.contains(&format!(r#""winner_sources":{winners}"#)), "{shown}");
        }
    }

    #[test]
    fn rows_are_one_behind_the_other() {
        let states = [
            state(&[contribution("a", Value::Int(1), Value::Null), contribution("b", Value::Int(2), Value::Null)]),
            Value::Null,
            state(&[contribution("b", Value::Int(2), Value::Null)]),
        ];
        let (mode, name, selects) =
            (vec![Value::text("all"); 3], vec![Value::text("c"); 3], vec![Value::Int(1), Value::Bool(true), Value::Bool(false)]);
        let values = [Value::Int(2), Value::Null, Value::Int(2)];
        let columns = [&mode[..], &name, &name, &selects, &values, &states].map(Column::of_values);
        let together = cells(&columns, 3).unwrap();
        assert_eq!(together.len(), 3);
        for row in 0..3 {
            let alone = [&mode[..], &name, &name, &selects, &values, &states].map(|v| Column::of_values(&v[row..=row]));
            assert_eq!(cells(&alone, 1).unwrap().value(0), together.value(row));
        }
        let bad =
            [Value::text("all"), Value::text("c"), Value::text("lww"), Value::Bool(true), Value::Null, Value::text("no state")];
        let bad: Vec<Column> = bad.iter().map(|v| Column::of_values(std::slice::from_ref(v))).collect();
        assert_eq!(cells(&bad, 1).unwrap_err().code, crate::Code::NotAState);
    }
}
