//! Sets of values: what comes to a group lies in an arena in its canonical bytes, unsorted and perhaps twice, until somebody asks.
//! Rows are written there from their columns, and no value is built.

use super::lists::Lists;
use crate::aggregate::{self, Groups, State, Strategy};
use crate::batch::{Bits, Column, Data, OwnedColumn, OwnedData};
use crate::codec::{self, Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::lattice::set::ValueSet;
use crate::types::Type;
use crate::value::{Value, packed};

/// The first byte of what one step of a query ships to the next: no state begins with it.
const SHIPPED: u8 = 0;

/// Which rows a set takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Takes {
    /// Each value is an element.
    Elements,
    /// Each value is a list of elements.
    Lists,
}

/// A store for sets of values. `empty` is the state of a set that is there and has no elements, and `set` gives the set of a state.
pub(crate) fn groups<S: Strategy>(
    takes: Takes,
    ty: Type,
    empty: S::State,
    set: fn(S::State) -> Option<ValueSet>,
) -> Box<dyn Groups> {
    Box::new(Sets::<S> { takes, ty, empty, set, lists: Lists::default(), row: Writer::new() })
}

struct Sets<S: Strategy> {
    takes: Takes,
    ty: Type,
    empty: S::State,
    set: fn(S::State) -> Option<ValueSet>,
    lists: Lists<Vec<u8>>,
    row: Writer,
}

/// Distinct elements, ascending.
fn sort(elements: &mut Vec<&[u8]>) {
    if elements.len() > 1 {
        elements.sort_unstable_by(|a, b| packed::compare(a, b));
        elements.dedup();
    }
}

impl<S: Strategy> Sets<S> {
    fn add(lists: &mut Lists<Vec<u8>>, group: usize, element: &[u8]) {
        if lists.add(group, element) {
            let mut elements: Vec<&[u8]> = lists.items(group).collect();
            sort(&mut elements);
            let count = elements.len();
            let elements: Vec<Box<[u8]>> = elements.into_iter().map(Into::into).collect();
            lists.settle(group, count, elements.iter().map(|e| &**e));
        }
    }

    /// Adds row `i` of a column, if it is an element.
    fn add_row(&mut self, group: usize, column: &Column<'_>, i: usize) {
        if column.is_valid(i) {
            self.row.clear();
            column.write(i, &mut self.row);
            Self::add(&mut self.lists, group, self.row.as_bytes());
        }
    }

    /// Takes the first `n` groups out: each one's elements, distinct and ascending, or `None` for one that nothing came to.
    fn take(&mut self, n: usize, mut each: impl FnMut(Option<&[&[u8]]>) -> Result<()>) -> Result<()> {
        let mut elements: Vec<&[u8]> = Vec::new();
        for group in 0..n.min(self.lists.len()) {
            elements.clear();
            elements.extend(self.lists.items(group));
            sort(&mut elements);
            each(self.lists.is_touched(group).then_some(&elements))?;
        }
        self.lists.drop_first(n);
        Ok(())
    }

    /// As [`Sets::take`], as bytes behind one another.
    fn written(&mut self, n: usize, mut write: impl FnMut(&[&[u8]], &mut Vec<u8>)) -> Result<OwnedColumn> {
        let (mut offsets, mut bytes, mut validity) = (vec![0], Vec::new(), Vec::with_capacity(n));
        self.take(n, |elements| {
            if let Some(elements) = elements {
                write(elements, &mut bytes);
            }
            validity.push(elements.is_some());
            offsets.push(bytes.len());
            Ok(())
        })?;
        Ok(OwnedColumn { ty: Type::Bytes, data: OwnedData::Strings { offsets, bytes }, validity: Some(validity) })
    }
}

impl<S: Strategy> Groups for Sets<S> {
    fn update(&mut self, columns: &[Column<'_>], groups: &[usize], filter: Option<Bits<'_>>, total: usize) -> Result<()> {
        aggregate::check_inputs(S::SPEC.name, S::SPEC.least_inputs(), columns.len())?;
        self.lists.grow(total);
        let column = &columns[0];
        for (i, &group) in groups.iter().enumerate() {
            self.lists.fetch_ahead(groups, i);
            if !column.is_valid(i) || filter.is_some_and(|f| !f.get(i)) {
                continue;
            }
            match (self.takes, &column.data) {
                (Takes::Elements, _) => self.add_row(group, column, i),
                (Takes::Lists, Data::List { ranges, child }) => {
                    self.lists.touch(group);
                    ranges.get(i).for_each(|j| self.add_row(group, child, j));
                }
                (Takes::Lists, _) => match column.value(i) {
                    Value::List(items) => {
                        self.lists.touch(group);
                        let (column, count) = (Column::of_values(&items), items.len());
                        (0..count).for_each(|j| self.add_row(group, &column, j));
                    }
                    other => {
                        return Err(Error::type_mismatch(format!("`{}` takes lists here, not a {}", S::SPEC.name, other.kind())));
                    }
                },
            }
        }
        Ok(())
    }

    fn merge(&mut self, states: &Column<'_>, groups: &[usize], total: usize) -> Result<()> {
        self.lists.grow(total);
        for (i, &group) in groups.iter().enumerate() {
            self.lists.fetch_ahead(groups, i);
            let Some(bytes) = states.bytes(i) else { continue };
            if let Some((&SHIPPED, mut elements)) = bytes.split_first() {
                self.lists.touch(group);
                while !elements.is_empty() {
                    let element = Reader::new(elements).skip()?;
                    Self::add(&mut self.lists, group, element);
                    elements = &elements[element.len()..];
                }
                continue;
            }
            let state = aggregate::decode::<S>(bytes)?;
            self.empty.bottom().join(&state)?;
            if let Some(set) = (self.set)(state) {
                self.lists.touch(group);
                set.iter().for_each(|element| Self::add(&mut self.lists, group, element));
            }
        }
        Ok(())
    }

    fn rows(&mut self, n: usize) -> Result<Vec<OwnedColumn>> {
        match self.takes {
            Takes::Lists => Ok(vec![self.finish(n)?]),
            Takes::Elements => Err(Error::new(Code::Unsupported, "a set is no row of one element")),
        }
    }

    fn states(&mut self, n: usize) -> Result<OwnedColumn> {
        let mut empty = Writer::new();
        self.empty.encode(&mut empty);
        // Its last byte is the number of its elements.
        let head = empty.as_bytes()[..empty.as_bytes().len() - 1].to_vec();
        let mut body = Writer::new();
        self.written(n, |elements, out| {
            body.clear();
            body.raw(&head);
            body.length(elements.len());
            elements.iter().for_each(|element| body.raw(element));
            codec::seal_onto(out, S::SPEC.type_id, 0, body.as_bytes());
        })
    }

    fn shipped(&mut self, n: usize) -> Result<OwnedColumn> {
        self.written(n, |elements, out| {
            out.push(SHIPPED);
            elements.iter().for_each(|element| out.extend_from_slice(element));
        })
    }

    fn finish(&mut self, n: usize) -> Result<OwnedColumn> {
        let mut values = Vec::with_capacity(n);
        self.take(n, |elements| {
            values.push(elements.map_or(Value::Null, |e| Value::List(e.iter().map(|bytes| packed::value(bytes)).collect())));
            Ok(())
        })?;
        Ok(OwnedColumn::of_values(self.ty.clone(), values))
    }

    fn size(&self) -> usize {
        self.lists.size()
    }
}
