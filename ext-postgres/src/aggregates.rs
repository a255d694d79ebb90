//! The catalogue as aggregates. One set of functions serves them all: which strategy it is says the name of the function that Postgres
//! calls, which the extension's script declares; the types are those of the place in the query.
//!
//! A state lies in the aggregate's memory context. It knows how to encode itself, so that parallel workers can send it; a state that
//! comes from one is state bytes until it is joined.
#![allow(unsafe_code)]

use crate::datums::{PgType, bytes, varlena};
use crate::entry::{Call, Failure, Outcome, owned_by};
use crate::slots;
use mergeql_lang::Diagnostic;
use mergeql_udfs::catalog::{self, Entry};
use mergeql_udfs::slot::Shape;
use mergeql_udfs::{Aggregate, AnyState, Code, Error, Order, Partial, Value};
use pgrx::pg_sys::{self, Datum};
use std::sync::Arc;

/// Adds a row to a group, which is made where it is null; gives the group back.
pub type Update = unsafe fn(&mut Site, Call, *mut Head) -> Result<*mut Head, Failure>;

/// Adds a row to a group that is there, where that needs nothing of Postgres and cannot fail.
pub type Step = unsafe fn(&Site, Call, *mut Head);

/// What every group begins with: how its state is read.
#[repr(C)]
pub struct Head(&'static Reading);

struct Reading {
    value: unsafe fn(*const Head, &PgType) -> Result<Option<Datum>, Failure>,
    encode: unsafe fn(*const Head) -> Result<Option<Vec<u8>>, Failure>,
    join: unsafe fn(*mut Head, &[u8]) -> Result<(), Failure>,
}

/// The state of one group.
#[repr(C)]
pub struct Group<S> {
    head: Head,
    site: *const Site,
    /// The state.
    pub state: S,
}

/// What a group's state can do.
pub trait InGroup: 'static {
    /// The resolved value as a datum of this type.
    ///
    /// # Errors
    /// What the data makes impossible.
    fn value(&self, ty: &PgType) -> Result<Option<Datum>, Failure>;

    /// The state bytes; `None` if nothing contributed.
    ///
    /// # Errors
    /// What the data makes impossible.
    fn encode(&self, site: Option<&Site>) -> Result<Option<Vec<u8>>, Failure>;

    /// Joins state bytes.
    ///
    /// # Errors
    /// `corrupt_state`, `type_mismatch`.
    fn join(&mut self, _bytes: &[u8]) -> Result<(), Failure> {
        Err(Diagnostic::new(Code::Unsupported, "Postgres combines states that were not sent").into())
    }
}

impl InGroup for Box<dyn Partial> {
    fn value(&self, ty: &PgType) -> Result<Option<Datum>, Failure> {
        ty.datum(Partial::value(&**self)?)
    }

    fn encode(&self, _: Option<&Site>) -> Result<Option<Vec<u8>>, Failure> {
        Ok(Partial::encode(&**self))
    }

    fn join(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.join_bytes(bytes)?)
    }
}

unsafe fn value_of<S: InGroup>(head: *const Head, ty: &PgType) -> Result<Option<Datum>, Failure> {
    // SAFETY: the head is that of a group of this state.
    unsafe { (*head.cast::<Group<S>>()).state.value(ty) }
}

unsafe fn encode_of<S: InGroup>(head: *const Head) -> Result<Option<Vec<u8>>, Failure> {
    // SAFETY: as above; the site lives as long as the plan, and so longer than its groups.
    unsafe {
        let group = &*head.cast::<Group<S>>();
        group.state.encode(group.site.as_ref())
    }
}

unsafe fn join_of<S: InGroup>(head: *mut Head, bytes: &[u8]) -> Result<(), Failure> {
    // SAFETY: as above.
    unsafe { (*head.cast::<Group<S>>()).state.join(bytes) }
}

/// A group in the aggregate's memory.
unsafe fn group<S: InGroup>(context: pg_sys::MemoryContext, site: *const Site, state: S) -> *mut Group<S> {
    let reading = &const { Reading { value: value_of::<S>, encode: encode_of::<S>, join: join_of::<S> } };
    // SAFETY: the context is the aggregate's.
    unsafe { owned_by(context, Group { head: Head(reading), site, state }) }
}

/// The memory that states live in.
///
/// # Errors
/// `unsupported` outside of an aggregate.
#[inline]
pub fn state_memory(call: Call) -> Result<pg_sys::MemoryContext, Failure> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the node that calls says what it is; an aggregation keeps the context of its grouping set at hand.
    unsafe {
        let node = (*call.0).context;
        if !node.is_null() && (*node).type_ == pg_sys::NodeTag::T_AggState {
            let current = (*node.cast::<pg_sys::AggState>()).curaggcontext;
            if !current.is_null() {
                return Ok((*current).ecxt_per_tuple_memory);
            }
        }
    }
    // SAFETY: the call is live.
    match unsafe { pg_sys::AggCheckCallContext(call.0, &mut context) } {
        0 => Err(Diagnostic::new(Code::Unsupported, "this function is a step of an aggregate, and not called by itself").into()),
        _ => Ok(context),
    }
}

/// A place in a query where an aggregate is called.
pub struct Site {
    entry: &'static Entry,
    /// The first argument is a configuration in JSON.
    configured: bool,
    /// Where the inputs begin among the arguments.
    pub first: usize,
    /// The types of the inputs.
    pub inputs: Vec<PgType>,
    /// Where arguments that configure lie, and their types.
    literals: Vec<(usize, PgType)>,
    configuration: Option<(Vec<Value>, Arc<dyn Aggregate>)>,
    /// The order of slots.
    pub order: Order,
    update: Update,
    step: Option<Step>,
}

impl Site {
    fn new(call: Call) -> Result<Site, Failure> {
        let name = call.name();
        let unknown = || Diagnostic::new(Code::Unsupported, format!("`{name}` is no step of an aggregate of the catalogue"));
        let step = name.strip_suffix("_update").ok_or_else(unknown)?;
        let (entry, configured) = match step.strip_prefix("_crdt_") {
            Some(base) => {
                let (base, configured) = base.strip_suffix("_with").map_or((base, false), |base| (base, true));
                (catalog::find(base), configured)
            }
            None => (catalog::plain().iter().find(|e| step.strip_prefix('_') == Some(catalog::plain_name(e))), false),
        };
        let entry = entry.ok_or_else(unknown)?;
        let first = 1 + usize::from(configured);
        let arguments = call.len().saturating_sub(first);
        let end = first + entry.spec().inputs_among(arguments);
        let ty = |i: usize| PgType::of(call.arg_type(i), -1);
        let inputs = (first..end).map(ty).collect::<Result<Vec<_>, _>>()?;
        let settings = (1..first).chain(end..call.len());
        let literals = settings.map(|i| Ok((i, ty(i)?))).collect::<Result<Vec<_>, Failure>>()?;
        let mut site = Site {
            entry,
            configured,
            first,
            inputs,
            literals,
            configuration: None,
            order: Order { least: false, flip_version: false },
            update: update_partial,
            step: None,
        };
        if site.literals.is_empty()
            && let Some(Shape::Strongest(order)) = site.bind(Vec::new())?.shape()
            && let Some((update, step)) = slots::update_of(order, &site.inputs)
        {
            (site.order, site.update, site.step) = (order, update, step);
        }
        Ok(site)
    }

    fn bind(&mut self, literals: Vec<Value>) -> Result<&Arc<dyn Aggregate>, Failure> {
        let call = mergeql_udfs::Call::new(self.inputs.iter().map(|t| t.ty.clone()).collect());
        let call = call.with_literals(self.entry.spec(), self.configured, &literals)?;
        let bound = self.entry.bind(&call)?;
        Ok(&self.configuration.insert((literals, bound)).1)
    }

    /// The strategy as it was configured.
    ///
    /// # Errors
    /// None: it was configured when its first row came.
    pub fn aggregate(&self) -> Result<&Arc<dyn Aggregate>, Failure> {
        match &self.configuration {
            Some((_, aggregate)) => Ok(aggregate),
            None => Err(Error::invalid_argument("the aggregate has not been configured").into()),
        }
    }

    /// Configuration arrives with each row, and must be one.
    fn configure(&mut self, call: Call) -> Result<(), Failure> {
        if let Some((known, _)) = &self.configuration {
            for ((i, ty), known) in self.literals.iter().zip(known) {
                if !ty.holds(call.arg(*i), known)? {
                    let message = format!("the arguments that configure `crdt_{}` differ between rows", self.entry.spec().name);
                    return Err(Error::invalid_argument(message).with_help("they are literals, the same for every row").into());
                }
            }
            return Ok(());
        }
        let literals = self.literals.iter().map(|(i, ty)| ty.value_or_null(call.arg(*i))).collect::<Result<Vec<_>, _>>()?;
        self.bind(literals).map(drop)
    }

    /// A group with this state.
    ///
    /// # Errors
    /// `unsupported` outside of an aggregate.
    pub fn group<S: InGroup>(&self, call: Call, state: S) -> Result<*mut Group<S>, Failure> {
        // SAFETY: the context is the aggregate's.
        Ok(unsafe { group(state_memory(call)?, self, state) })
    }
}

unsafe fn update_partial(site: &mut Site, call: Call, head: *mut Head) -> Result<*mut Head, Failure> {
    site.configure(call)?;
    // SAFETY: states that this site made hold a partial.
    unsafe {
        let group = if head.is_null() { site.group(call, site.aggregate()?.partial())? } else { head.cast() };
        let mut row = Vec::with_capacity(site.inputs.len());
        for (i, ty) in site.inputs.iter().enumerate() {
            row.push(ty.value_or_null(call.arg(site.first + i))?);
        }
        (*group).state.update(&row)?;
        Ok(group.cast())
    }
}

fn head(call: Call, i: usize) -> *mut Head {
    call.arg(i).map_or(std::ptr::null_mut(), |datum| datum.cast_mut_ptr())
}

fn state_datum(head: *mut Head) -> Option<Datum> {
    (!head.is_null()).then(|| Datum::from(head))
}

/// The type of the result, kept for this place.
fn result_type(call: Call) -> Result<&'static PgType, Failure> {
    call.kept(|| {
        // SAFETY: the call is live.
        let oid = unsafe { pg_sys::get_fn_expr_rettype((*call.0).flinfo) };
        PgType::of(oid, -1)
    })
    .map(|ty| &*ty)
}

fn finish(call: Call) -> Outcome {
    let head = head(call, 0);
    if head.is_null() {
        return Ok(None);
    }
    let ty = result_type(call)?;
    // SAFETY: Postgres passes the group of an update or a combine.
    unsafe { ((*head).0.value)(head, ty) }
}

fn encoded(call: Call) -> Outcome {
    let head = head(call, 0);
    if head.is_null() {
        return Ok(None);
    }
    // SAFETY: as above.
    Ok(unsafe { ((*head).0.encode)(head) }?.map(|state| bytes(&state)))
}

/// Joins a state that was sent into a group.
fn combine(call: Call) -> Outcome {
    let (into, from) = (head(call, 0), head(call, 1));
    if from.is_null() {
        return Ok(state_datum(into));
    }
    // SAFETY: both are groups; the second is joined by its bytes, and not changed.
    unsafe {
        match ((*from).0.encode)(from)? {
            Some(sent) => join(call, into, &sent),
            None => Ok(state_datum(into)),
        }
    }
}

/// # Safety
/// `into` is null or a group that joins.
unsafe fn join(call: Call, into: *mut Head, sent: &[u8]) -> Outcome {
    // SAFETY: as the caller promises.
    unsafe {
        if into.is_null() {
            let opened = group(state_memory(call)?, std::ptr::null(), Opened(catalog::open(sent)?));
            return Ok(state_datum(opened.cast()));
        }
        ((*into).0.join)(into, sent)?;
        Ok(state_datum(into))
    }
}

/// A state of a type that its bytes tell.
struct Opened(Box<dyn AnyState>);

impl InGroup for Opened {
    fn value(&self, ty: &PgType) -> Result<Option<Datum>, Failure> {
        ty.datum(self.0.value()?)
    }

    fn encode(&self, _: Option<&Site>) -> Result<Option<Vec<u8>>, Failure> {
        Ok(Some(self.0.encode()))
    }

    fn join(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.0.join_bytes(bytes)?)
    }
}

/// State bytes as a worker sent them.
struct Sent(Box<[u8]>);

impl InGroup for Sent {
    fn value(&self, _: &PgType) -> Result<Option<Datum>, Failure> {
        Err(Diagnostic::new(Code::Unsupported, "a state that was sent is joined before it is resolved").into())
    }

    fn encode(&self, _: Option<&Site>) -> Result<Option<Vec<u8>>, Failure> {
        Ok(Some(self.0.to_vec()))
    }
}

fn sent(call: Call) -> Outcome {
    let Some(datum) = call.arg(0) else { return Ok(None) };
    // SAFETY: Postgres passes the bytea of `mergeql_encoded`; it is joined while the current memory context lives.
    unsafe {
        let group = group(pg_sys::CurrentMemoryContext, std::ptr::null(), Sent(varlena(datum).into()));
        Ok(state_datum(group.cast()))
    }
}

#[doc(hidden)]
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_mergeql_update() -> &'static pg_sys::Pg_finfo_record {
    pg_finfo_mergeql_first()
}

/// A row comes to a group. Where that is a comparison and a copy, without the guard that the first row of each group comes through: it
/// costs as much as the row.
///
/// # Safety
/// Postgres calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn mergeql_update(call: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: Postgres passes a live call whose first argument is the state; what is kept for this place is its site, which made the group.
    unsafe {
        let site: *const Site = (*(*call).flinfo).fn_extra.cast_const().cast();
        let state = *(*call).args.as_ptr();
        if let Some(step) = site.as_ref().and_then(|site| site.step).filter(|_| !state.isnull) {
            step(&*site, Call(call), state.value.cast_mut_ptr());
            (*call).isnull = false;
            return state.value;
        }
        mergeql_first(call)
    }
}

crate::functions! {
    /// A row comes to a group that may not be there yet.
    mergeql_first, pg_finfo_mergeql_first => |call| {
        let head = head(call, 0);
        let site = call.kept(|| Site::new(call))?;
        // SAFETY: the head is null or a group of this site.
        unsafe { (site.update)(site, call, head) }.map(state_datum)
    };
    /// A group as its resolved value.
    mergeql_finish, pg_finfo_mergeql_finish => finish;
    /// A group as its state bytes: what `crdt_x_state` gives, and what a worker sends.
    mergeql_encoded, pg_finfo_mergeql_encoded => encoded;
    /// A group that a worker sent.
    mergeql_sent, pg_finfo_mergeql_sent => sent;
    /// Two groups become one.
    mergeql_combine, pg_finfo_mergeql_combine => combine;
    /// `crdt_merge`: state bytes are joined.
    mergeql_merge, pg_finfo_mergeql_merge => |call| {
        let into = head(call, 0);
        match call.arg(1) {
            None => Ok(state_datum(into)),
            // SAFETY: the script declares the argument as a varlena; the head is null or a group that joins.
            Some(datum) => unsafe { join(call, into, varlena(datum)) },
        }
    };
}
