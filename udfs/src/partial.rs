//! The partial state of one group by itself, for hosts that keep a state for each group in memory of their own.

use crate::aggregate::{State, Strategy, check_inputs, decode, encode};
use crate::batch::Column;
use crate::catalog::Spec;
use crate::error::{Error, Result};
use crate::value::Value;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

/// A configured strategy's state of one group.
pub trait Partial: Any + Debug + Send + Sync {
    /// The strategy.
    fn spec(&self) -> &'static Spec;

    /// Adds one row: the inputs in the order of [`Spec::inputs`].
    ///
    /// # Errors
    /// As [`Strategy::update`].
    fn update(&mut self, row: &[Value]) -> Result<()>;

    /// As [`Partial::update`] with row `i` of columns, without values where the strategy can; `row` is there to be used again.
    ///
    /// # Errors
    /// As [`Strategy::update`].
    fn update_at(&mut self, columns: &[Column<'_>], i: usize, row: &mut Vec<Value>) -> Result<()>;

    /// Joins the state of another group of the same strategy; the other is not changed.
    ///
    /// # Errors
    /// `type_mismatch` where the two are of different types or configurations.
    fn join(&mut self, other: &dyn Partial) -> Result<()>;

    /// Joins state bytes.
    ///
    /// # Errors
    /// `not_a_state`, `corrupt_state`, `type_mismatch`.
    fn join_bytes(&mut self, bytes: &[u8]) -> Result<()>;

    /// The resolved value, as a column of the result type holds it.
    ///
    /// # Errors
    /// What the data makes impossible, overflow for one.
    fn value(&self) -> Result<Value>;

    /// The state bytes; `None` if nothing contributed.
    fn encode(&self) -> Option<Vec<u8>>;

    /// A copy.
    fn copy(&self) -> Box<dyn Partial>;

    /// Memory held, in bytes.
    fn size(&self) -> usize;
}

#[derive(Debug)]
pub(crate) struct Single<S: Strategy> {
    strategy: Arc<S>,
    state: S::State,
}

impl<S: Strategy> Single<S> {
    pub(crate) fn new(strategy: Arc<S>) -> Single<S> {
        Single { state: strategy.empty(), strategy }
    }
}

impl<S: Strategy> Partial for Single<S> {
    fn spec(&self) -> &'static Spec {
        &S::SPEC
    }

    fn update(&mut self, row: &[Value]) -> Result<()> {
        check_inputs(S::SPEC.name, self.strategy.least_inputs(), row.len())?;
        self.strategy.update(&mut self.state, row)
    }

    fn update_at(&mut self, columns: &[Column<'_>], i: usize, row: &mut Vec<Value>) -> Result<()> {
        check_inputs(S::SPEC.name, self.strategy.least_inputs(), columns.len())?;
        self.strategy.update_at(&mut self.state, columns, i, row)
    }

    fn join(&mut self, other: &dyn Partial) -> Result<()> {
        match (other as &dyn Any).downcast_ref::<Single<S>>() {
            Some(other) => self.state.join(&other.state),
            None => {
                Err(Error::type_mismatch(format!("a state of `{}` cannot join one of `{}`", other.spec().name, self.spec().name)))
            }
        }
    }

    fn join_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.state.join(&decode::<S>(bytes)?)
    }

    fn value(&self) -> Result<Value> {
        self.strategy.resolve(&self.state)?.fit(&self.strategy.result_type())
    }

    fn encode(&self) -> Option<Vec<u8>> {
        (self.state != self.strategy.empty()).then(|| encode::<S>(&self.state))
    }

    fn copy(&self) -> Box<dyn Partial> {
        Box::new(Single { strategy: self.strategy.clone(), state: self.state.clone() })
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.state.heap_size()
    }
}
