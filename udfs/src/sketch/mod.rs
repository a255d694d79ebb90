//! Sketches: what Apache DataSketches defines, as join-semilattices with one encoding each.
//!
//! A sketch of the *set* of values ([`Sketch`]) joins as it is. A sketch of the *multiset* ([`finished`]) does not: it is made once over the rows
//! of an origin, and what joins is the newest finished one of each origin.

pub(crate) mod countmin;
pub mod finished;

use crate::aggregate::{Call, Groups, State, Strategy, argument, bytes_of, encode};
use crate::catalog::{self, Spec};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::strategies::{bloom::Bloom, cpc::Cpc, hll::Hll, minhash::MinHash, theta::Theta};
use crate::types::Type;
use crate::value::Value;
use datasketches::common::NumStdDev;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The seed of all hashes in DataSketches.
pub const SEED: u32 = 9001;

/// The two halves of the MurmurHash3 of an item.
pub fn murmur(item: &[u8]) -> (u64, u64) {
    mur3::murmurhash3_x64_128(item, SEED)
}

/// The bytes that DataSketches hashes for a value: integers as eight bytes, floats in one form, UTF-8; what it has no form for as canonical text.
/// Nothing for NULL, and for empty text, which every library of the family leaves out.
pub fn with_item<R>(value: &Value, run: impl FnOnce(&[u8]) -> R) -> Option<R> {
    match value {
        Value::Null => None,
        Value::Bool(v) => Some(run(&i64::from(*v).to_le_bytes())),
        Value::Float(v) => Some(run(&crate::value::canonical(*v).to_bits().to_le_bytes())),
        Value::Text(v) => (!v.is_empty()).then(|| run(v.as_bytes())),
        Value::Bytes(v) => (!v.is_empty()).then(|| run(v)),
        other => Some(match other.to_worth() {
            Value::Int(v) if i64::try_from(v).is_ok() => run(&(v as i64).to_le_bytes()),
            worth => run(worth.to_string().as_bytes()),
        }),
    }
}

/// A sketch of a set of values.
pub(crate) trait Sketch: State {
    const SPEC: Spec;

    /// The empty sketch of a configuration.
    fn configured(call: &Call) -> Result<Self>;

    /// Adds an item by its bytes.
    fn add(&mut self, item: &[u8]);

    /// As the other libraries of DataSketches read and write it.
    fn image(&self) -> Vec<u8>;

    fn result_type() -> Type {
        Type::INT64
    }

    /// As [`Strategy::fast`].
    fn fast(&self) -> Option<Box<dyn Groups>> {
        None
    }
}

/// The strategy of a sketch.
#[derive(Debug)]
pub(crate) struct Sketched<S>(S);

impl<S: Sketch> Strategy for Sketched<S> {
    const SPEC: Spec = S::SPEC;
    type State = S;

    fn configure(call: &Call) -> Result<Self> {
        S::configured(call).map(Sketched)
    }

    fn result_type(&self) -> Type {
        S::result_type()
    }

    fn empty(&self) -> S {
        self.0.clone()
    }

    fn update(&self, state: &mut S, row: &[Value]) -> Result<()> {
        with_item(&row[0], |item| state.add(item));
        Ok(())
    }

    fn fast(&self) -> Option<Box<dyn Groups>> {
        self.0.fast()
    }

    fn resolve(&self, state: &S) -> Result<Value> {
        if *state == self.0 { Ok(Value::Null) } else { state.value() }
    }
}

/// A whole number among the arguments of a call.
///
/// # Errors
/// `invalid_argument` outside of the range.
pub(crate) fn number(call: &Call, name: &str, default: i64, range: RangeInclusive<i64>) -> Result<i64> {
    let found = match call.arg(name).map(Value::to_worth) {
        None => Some(default),
        Some(Value::Int(n)) => i64::try_from(n).ok(),
        Some(_) => None,
    };
    found.filter(|n| range.contains(n)).ok_or_else(|| {
        Error::invalid_argument(format!("`{name}` is a whole number from {} to {}", range.start(), range.end()))
            .with_help(format!("the default is {default}"))
    })
}

/// Standard deviations as DataSketches counts them.
pub(crate) fn deviations(n: u8) -> NumStdDev {
    match n {
        1 => NumStdDev::One,
        2 => NumStdDev::Two,
        _ => NumStdDev::Three,
    }
}

/// That two states of a kind cannot join.
pub(crate) fn differ(kind: &str, what: &str, a: impl Display, b: impl Display) -> Error {
    Error::type_mismatch(format!("a {kind} of {what} {a} cannot join one of {what} {b}"))
        .with_help("make both with the same arguments")
}

/// What a library of DataSketches says of bytes.
pub(crate) fn corrupt(message: impl Display) -> Error {
    Error::corrupt_state(format!("the sketch in the state: {message}"))
}

/// Runs what reads foreign images: the libraries take parts of them on trust, and what panics on the wrong ones ends here.
pub(crate) fn guarded<R>(run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(corrupt("its parts do not fit together")))
}

fn state<S: Sketch>(value: &Value) -> Result<Option<S>> {
    argument::<Sketched<S>>(value)
}

/// The name of the type of a state; `None` for no state.
pub(crate) fn name_of(value: &Value) -> Result<Option<&'static str>> {
    bytes_of(value)?.map(|bytes| Ok(catalog::open(bytes)?.spec().name)).transpose()
}

fn state_of<S: Sketch>(state: &S) -> Value {
    Value::Bytes(encode::<Sketched<S>>(state).into())
}

/// The estimate of distinct values, or a bound of it at so many standard deviations.
fn estimate(args: &[Value], side: i8) -> Result<Value> {
    let deviations = match args.get(1) {
        None | Some(Value::Int(1)) => 1,
        Some(Value::Int(n @ (2 | 3))) => *n as u8,
        Some(_) => return Err(Error::invalid_argument("the bounds of a sketch are known at 1, 2 or 3 standard deviations")),
    };
    let found = match name_of(&args[0])? {
        None => None,
        Some("hll") => state::<Hll>(&args[0])?.map(|s| s.estimate(side, deviations)).transpose()?,
        Some("theta") => state::<Theta>(&args[0])?.map(|s| s.estimate(side, deviations)).transpose()?,
        Some("cpc") => state::<Cpc>(&args[0])?.map(|s| s.estimate(side, deviations)),
        Some(other) => {
            return Err(Error::type_mismatch(format!("a state of `{other}` has no estimate of distinct values"))
                .with_help("`hll`, `theta` and `cpc` have"));
        }
    };
    Ok(found.map_or(Value::Null, Value::float))
}

fn jaccard(args: &[Value]) -> Result<Value> {
    let (Some(left), Some(right)) = (name_of(&args[0])?, name_of(&args[1])?) else { return Ok(Value::Null) };
    let found = match (left, right) {
        ("minhash", "minhash") => state::<MinHash>(&args[0])?.zip(state(&args[1])?).map(|(a, b)| a.jaccard(&b)).transpose()?,
        ("theta", "theta") => state::<Theta>(&args[0])?.zip(state(&args[1])?).map(|(a, b)| a.jaccard(&b)).transpose()?,
        (a, b) => {
            return Err(Error::type_mismatch(format!("there is no Jaccard similarity of `{a}` and `{b}`"))
                .with_help("give two states of `minhash`, or two of `theta`"));
        }
    };
    Ok(found.map_or(Value::Null, Value::float))
}

/// The state of an image of DataSketches; the third byte says of which family.
fn from_image(image: &[u8], precision: Option<&Value>) -> Result<Value> {
    if let Some(precision) = precision
        && image.get(2) == Some(&3)
    {
        let lg_k = match precision.to_worth() {
            Value::Int(n @ 4..=26) => n as u8,
            other => return Err(Error::invalid_argument(format!("the precision of a theta sketch is from 4 to 26, not {other}"))),
        };
        return Ok(state_of(&Theta::from_image(image, Some(lg_k))?));
    }
    Ok(match image.get(2) {
        Some(3) => state_of(&Theta::from_image(image, None)?),
        Some(7) => state_of(&Hll::from_image(image)?),
        Some(16) => state_of(&Cpc::from_image(image)?),
        Some(21) => state_of(&Bloom::from_image(image)?),
        Some(family) if finished::FAMILIES.iter().any(|(_, f)| f == family) => {
            return Err(Error::type_mismatch("a sketch of a multiset is no state: joined twice it would count twice")
                .with_help("give it with its origin and version to crdt_kll, crdt_tdigest, crdt_countmin or crdt_topk"));
        }
        _ => return Err(Error::corrupt_state("this is no sketch of DataSketches that there is a state for")),
    })
}

fn to_image(value: &Value) -> Result<Value> {
    fn of<S: Sketch>(value: &Value) -> Result<Option<Vec<u8>>> {
        Ok(state::<S>(value)?.map(|s| s.image()))
    }
    let image = match name_of(value)? {
        None => None,
        Some("hll") => of::<Hll>(value)?,
        Some("theta") => of::<Theta>(value)?,
        Some("cpc") => of::<Cpc>(value)?,
        Some("bloom") => of::<Bloom>(value)?,
        Some(other) => {
            return Err(Error::type_mismatch(format!("DataSketches has no image of a state of `{other}`")).with_help(
                "`hll`, `theta`, `cpc` and `bloom` have one; sketch_combined gives that of `kll`, `tdigest`, `countmin` and `topk`",
            ));
        }
    };
    Ok(image.map_or(Value::Null, |image| Value::Bytes(image.into())))
}

/// The functions over sketches.
pub(crate) fn functions() -> Vec<Function> {
    let f = Function::of;
    vec![
        f("sketch_estimate", "how many distinct values a `hll`, `theta` or `cpc` has seen, about", 1..=1, Type::Float64, |a| {
            estimate(a, 0)
        }),
        f("hll_estimate", "how many distinct values a `hll` has seen, about", 1..=1, Type::Float64, |a| {
            match state::<Hll>(&a[0])? {
                Some(state) => state.estimate(0, 1).map(Value::float),
                None => Ok(Value::Null),
            }
        }),
        f("sketch_lower_bound", "the estimate less so many standard deviations: 1, 2 or 3", 1..=2, Type::Float64, |a| {
            estimate(a, -1)
        }),
        f("sketch_upper_bound", "the estimate and so many standard deviations: 1, 2 or 3", 1..=2, Type::Float64, |a| {
            estimate(a, 1)
        }),
        f(
            "jaccard",
            "how alike the sets of two states of `minhash`, or of `theta`, are: from 0 to 1",
            2..=2,
            Type::Float64,
            jaccard,
        ),
        Function::state("theta_intersect", "the sketch of the values that both sets have", 2, |a| {
            Ok(state::<Theta>(&a[0])?.zip(state::<Theta>(&a[1])?).map_or(Value::Null, |(a, b)| state_of(&a.intersect(&b))))
        }),
        Function::state("theta_difference", "the sketch of the values that only the first set has", 2, |a| {
            match (state::<Theta>(&a[0])?, &a[1]) {
                (None, _) => Ok(Value::Null),
                (Some(_), Value::Null) => Ok(a[0].clone()),
                (Some(set), other) => Ok(state::<Theta>(other)?.map_or(Value::Null, |other| state_of(&set.without(&other)))),
            }
        }),
        f("bloom_contains", "false: the value was never added; true: it was, or the filter errs", 2..=2, Type::Boolean, |a| {
            Ok(state::<Bloom>(&a[0])?
                .zip(with_item(&a[1], <[u8]>::to_vec))
                .map_or(Value::Null, |(filter, item)| Value::Bool(filter.contains(&item))))
        }),
        f("crdt_to_sketch", "the sketch as other libraries of DataSketches read it", 1..=1, Type::Bytes, |a| to_image(&a[0])),
        Function::state_of(
            "crdt_from_sketch",
            "the state of a sketch that another library of DataSketches wrote; the image of a theta sketch does not say its precision, which may be given",
            1..=2,
            |a| match &a[0] {
                Value::Null => Ok(Value::Null),
                Value::Bytes(image) => from_image(image, a.get(1).filter(|precision| !precision.is_null())),
                other => Err(Error::type_mismatch(format!("a sketch is bytes, not a {}", other.kind()))),
            },
        ),
    ]
}
