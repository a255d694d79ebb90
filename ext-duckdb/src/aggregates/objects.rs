//! States of any strategy, boxed: made with the configuration of their first row, because DuckDB combines into fresh ones.

use super::driver::{Kept, States};
use super::{Function, returned};
use crate::api::Pointer;
use crate::vectors::{Scratch, Vector, put_value};
use mergeql_udfs::{Aggregate, Call, Column, Error, Partial, Type, Value};
use std::sync::Arc;

/// The state of any strategy, once a row gave its configuration. Shared with the state that it was joined from, for as long as neither
/// changes: DuckDB joins the one state of a thread into a fresh one, and the state of a window's part into many.
#[derive(Default)]
pub(super) struct Object(Option<Arc<Configured>>);

impl Object {
    fn partial(configured: &mut Arc<Configured>) -> &mut Box<dyn Partial> {
        &mut Arc::make_mut(configured).partial
    }
}

impl Clone for Configured {
    fn clone(&self) -> Configured {
        Configured { literals: self.literals.clone(), partial: self.partial.copy() }
    }
}

struct Configured {
    literals: Arc<[Value]>,
    partial: Box<dyn Partial>,
}

/// The strategy as the literal arguments of a row configure it.
struct Bound {
    literals: Arc<[Value]>,
    aggregate: Arc<dyn Aggregate>,
}

impl Function {
    fn bind(&self, inputs: &[Vector], literals: Vec<Value>) -> Result<Bound, Error> {
        let call = Call::new(inputs.iter().map(|v| v.ty.clone()).collect());
        let call = call.with_literals(self.entry.spec(), self.configured, &literals)?;
        Ok(Bound { aggregate: self.entry.bind(&call)?, literals: literals.into() })
    }
}

/// Configuration arrives with each row; within a group it must be one.
fn check_same(function: &Function, a: &Arc<[Value]>, b: &Arc<[Value]>) -> Result<(), Error> {
    if Arc::ptr_eq(a, b) || a == b {
        return Ok(());
    }
    Err(Error::invalid_argument(format!("the arguments that configure `{}` differ within a group", function.name))
        .with_help("they are literals, the same for every row"))
}

fn no_overload(function: &Function, ty: &Type) -> Error {
    if mergeql_udfs::catalog::plain().iter().any(|e| mergeql_udfs::catalog::plain_name(e) == function.name) {
        let message = format!("DuckDB's interface does not let `{}` take an argument of this type", function.name);
        return Error::new(mergeql_udfs::Code::Unsupported, message)
            .with_help("cast it to a type that is not DECIMAL inside: CAST(v AS DOUBLE[])");
    }
    let state = function.name.replacen("_with", "_state_with", 1);
    let state = if function.configured { state } else { format!("{}_state", function.name) };
    if mergeql_lang::lower::DuckDb::is_native(ty) || *ty == Type::Null {
        let message = format!("DuckDB's interface has no `{}` for the type of this argument", function.name);
        return Error::new(mergeql_udfs::Code::Unsupported, message)
            .with_help("cast it: an ENUM to VARCHAR, a NULL to the type that it stands for; MERGE does so by itself");
    }
    let name = mergeql_lang::lower::duckdb_type_name(ty);
    Error::new(mergeql_udfs::Code::Unsupported, format!("DuckDB's interface does not let `{}` return {name}", function.name))
        .with_help(match ty {
            Type::List(_) | Type::Struct(_) | Type::Map(..) => {
                format!("CAST(CAST(mergeql_json({state}(...)) AS JSON) AS {name}) gives the same; MERGE does so by itself")
            }
            _ => format!("CAST(crdt_value_text({state}(...)) AS {name}) gives the same; MERGE does so by itself"),
        })
}

impl Kept for Object {
    type Info = Function;

    fn update(function: &Function, vectors: &[Vector], rows: usize, states: &mut States<Self>) -> Result<(), Error> {
        let first = usize::from(function.configured);
        let inputs = &vectors[first..first + function.inputs];
        let settings: Vec<&Vector> = vectors[..first].iter().chain(&vectors[first + function.inputs..]).collect();
        let scratch: Vec<Scratch<'_>> = inputs.iter().map(|v| v.scratch(rows)).collect();
        let columns: Vec<Column<'_>> = inputs.iter().zip(&scratch).map(|(v, s)| v.column(s, rows)).collect();
        let mut bound: Option<Bound> = None;
        let mut row = Vec::with_capacity(columns.len());
        for i in 0..rows {
            let same = bound.as_ref().is_some_and(|b| settings.iter().zip(&*b.literals).all(|(v, known)| v.value(i) == *known));
            if !same {
                let new = function.bind(inputs, settings.iter().map(|v| v.value(i)).collect())?;
                let result = returned(new.aggregate.result_type());
                if !function.state && function.result.as_ref() != Some(&result) {
                    return Err(no_overload(function, &result));
                }
                bound = Some(new);
            }
            let Some(bound) = &bound else { continue };
            let object = states.at(i).0.get_or_insert_with(|| {
                Arc::new(Configured { literals: bound.literals.clone(), partial: bound.aggregate.partial() })
            });
            check_same(function, &object.literals, &bound.literals)?;
            Object::partial(object).update_at(&columns, i, &mut row)?;
        }
        Ok(())
    }

    fn join(&mut self, other: &Self, function: &Function) -> Result<(), Error> {
        let Some(source) = &other.0 else { return Ok(()) };
        match &mut self.0 {
            Some(target) => {
                check_same(function, &target.literals, &source.literals)?;
                Object::partial(target).join(&*source.partial)
            }
            empty => {
                *empty = Some(source.clone());
                Ok(())
            }
        }
    }

    unsafe fn finish(&self, function: &Function, out: Pointer, i: usize) -> Result<(), Error> {
        let value = match &self.0 {
            None => Value::Null,
            Some(object) if function.state => object.partial.encode().map_or(Value::Null, |b| Value::Bytes(b.into())),
            Some(object) => object.partial.value()?,
        };
        // SAFETY: as the caller promises.
        unsafe { put_value(out, i, &value, function.result.as_ref().unwrap_or(&Type::Text)) }
    }
}
