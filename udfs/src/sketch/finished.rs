//! Sketches of multisets. Adding one twice counts twice, so no state over raw rows is a semilattice: a sketch is made once over the rows of an
//! origin ([`Building`], a plain aggregate), and what joins is the newest finished one of each origin ([`Latest`]).

use super::{corrupt, guarded};
use crate::aggregate::{Call, State, Strategy, argument};
use crate::catalog::{Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::origins::{self, Origins, origin};
use crate::lattice::version::{self, VersionOrder};
use crate::strategies::counter::ORIGIN;
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;

/// The families of DataSketches that are of multisets, with the byte that names them in an image.
pub const FAMILIES: [(&str, u8); 4] = [("topk", 10), ("kll", 15), ("countmin", 18), ("tdigest", 20)];

/// A kind of sketch of a multiset.
pub(crate) trait Family: Debug + Clone + PartialEq + Send + Sync + 'static {
    /// Of the strategy that joins finished sketches.
    const SPEC: Spec;
    /// Of the plain aggregate that makes one.
    const BUILDER: Spec;
    /// A sketch as it is worked with.
    type Image;

    /// Reads an image; [`read`] guards it.
    fn read(image: &[u8]) -> Result<Self::Image>;

    /// Sketches of all origins as one; `None` of none. They come one by one, so that those that are small by themselves don't fill the memory.
    fn combine(images: &mut dyn Iterator<Item = Result<Self::Image>>) -> Result<Option<Self::Image>>;

    /// What a sketch says in short.
    fn value(image: &mut Self::Image) -> Result<Value>;

    /// The image of a sketch.
    fn image(image: &mut Self::Image) -> Vec<u8>;

    /// The type of [`Family::value`].
    fn result_type() -> Type;

    /// What is counted of a value; nothing for what the sketch leaves out.
    fn item(value: &Value) -> Result<Option<Value>>;

    /// The sketch of a multiset: its items, ascending, with how often each was there.
    fn build(call: &Call, counts: &BTreeMap<Value, u64>) -> Result<Self::Image>;
}

/// Reads an image.
///
/// # Errors
/// `corrupt_state`.
fn read<F: Family>(image: &[u8]) -> Result<F::Image> {
    let (name, family) = FAMILIES.iter().find(|(name, _)| *name == F::SPEC.name).copied().unwrap_or_default();
    if image.get(2) != Some(&family) {
        return Err(Error::type_mismatch(format!("this is no finished sketch for `{name}`"))
            .with_help(format!("sketch_{name}(value) makes one, and so do other libraries of DataSketches")));
    }
    guarded(|| F::read(image))
}

/// The strategy of a family.
#[derive(Debug)]
pub(crate) struct Combined<F> {
    versions: VersionOrder,
    family: PhantomData<F>,
}

/// Per origin the image of the newest version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latest<F> {
    versions: VersionOrder,
    origins: Origins<(Value, Vec<Value>)>,
    family: PhantomData<F>,
}

impl<F: Family> Latest<F> {
    fn offer(&mut self, origin: &Value, image: &Value, version: &[Value]) {
        let versions = &self.versions;
        let more = |entry: &mut (Value, Vec<Value>)| {
            let order = versions.compare_worth(version, &entry.1).then_with(|| image.cmp(&entry.0));
            let order = order.then_with(|| versions.compare(version, &entry.1));
            if order == Ordering::Greater {
                *entry = (image.clone(), version.to_vec());
            }
        };
        self.origins.say(origin, more, || (image.clone(), version.to_vec()));
    }

    /// All origins as one sketch.
    pub(crate) fn combined(&self) -> Result<Option<F::Image>> {
        let mut images = self.origins.values().map(|(image, _)| match image {
            Value::Bytes(bytes) => read::<F>(bytes),
            _ => Err(corrupt("it is not bytes")),
        });
        guarded(|| F::combine(&mut images))
    }
}

impl<F: Family> Strategy for Combined<F> {
    const SPEC: Spec = F::SPEC;
    type State = Latest<F>;

    fn configure(call: &Call) -> Result<Self> {
        if call.inputs.len() < 2 {
            return Err(Error::invalid_argument(format!(
                "`{}` takes a finished sketch, its origin, and perhaps a version",
                F::SPEC.name
            )));
        }
        match call.value_type() {
            Type::Bytes | Type::Null => Ok(Combined { versions: VersionOrder::configure(false, call)?, family: PhantomData }),
            other => {
                Err(Error::type_mismatch(format!("`{0}` joins finished sketches, which are bytes, not {other}", F::SPEC.name))
                    .with_help(format!("sketch_{}(value) makes one over the rows of an origin", F::SPEC.name)))
            }
        }
    }

    fn result_type(&self) -> Type {
        F::result_type()
    }

    fn empty(&self) -> Latest<F> {
        Latest { versions: self.versions.clone(), origins: Origins::default(), family: PhantomData }
    }

    fn update(&self, state: &mut Latest<F>, row: &[Value]) -> Result<()> {
        match &row[0] {
            Value::Null => Ok(()),
            Value::Bytes(image) => {
                read::<F>(image)?;
                state.offer(origin(&row[1])?, &row[0], &VersionOrder::parts(&row[2..]));
                Ok(())
            }
            other => Err(Error::type_mismatch(format!("a finished sketch is bytes, not a {}", other.kind()))),
        }
    }
}

impl<F: Family> State for Latest<F> {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.versions != other.versions {
            return Err(Error::type_mismatch("the two states order versions differently"));
        }
        other.origins.iter().for_each(|(origin, (image, version))| self.offer(&origin, image, version));
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        self.combined()?.map_or(Ok(Value::Null), |mut image| guarded(|| F::value(&mut image)))
    }

    fn bottom(&self) -> Self {
        Latest { versions: self.versions.clone(), origins: Origins::default(), family: PhantomData }
    }

    /// Only the origins that know more.
    fn delta(&self, since: &Self) -> Self {
        Latest { origins: self.origins.news(&since.origins), ..self.bottom() }
    }

    fn encode(&self, w: &mut Writer) {
        self.versions.encode(w);
        origins::encode(&self.origins, w, |(image, version), w| {
            w.value(image);
            w.values(version);
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let versions = VersionOrder::decode(r)?;
        let entry = |r: &mut Reader<'_>| match (r.value()?, version::decode(r)?) {
            (Value::Bytes(image), version) => {
                // One that cannot be read would be found only when it is in every state that it was joined to.
                read::<F>(&image).map_err(|e| Error::corrupt_state(format!("a sketch in the state: {}", e.message)))?;
                Ok((Value::Bytes(image), version))
            }
            _ => Err(Error::corrupt_state("a sketch in the state is not bytes")),
        };
        Ok(Latest { versions, origins: origins::decode(r, entry)?, family: PhantomData })
    }

    fn heap_size(&self) -> usize {
        origins::heap_size(&self.origins, |(image, version)| {
            image.heap_size() + version.iter().map(|v| size_of::<Value>() + v.heap_size()).sum::<usize>()
        })
    }

    fn info(&self) -> Value {
        let entry = |(image, version): &(Value, Vec<Value>)| {
            Value::record(vec![
                ("bytes".into(), Value::Int(image.heap_size() as i128)),
                ("version".into(), Value::List(version.clone())),
            ])
        };
        Value::map(self.origins.iter().map(|(o, e)| (o.into_owned(), entry(e))).collect())
    }
}

/// The sketch of a state, all origins as one; `None` for no state.
pub(crate) fn combined<F: Family>(state: &Value) -> Result<Option<F::Image>> {
    argument::<Combined<F>>(state)?.map_or(Ok(None), |latest| latest.combined())
}

/// The image of a state's sketch, all origins as one.
pub(crate) fn combined_image<F: Family>(state: &Value) -> Result<Value> {
    let Some(mut image) = combined::<F>(state)? else { return Ok(Value::Null) };
    Ok(Value::Bytes(guarded(|| Ok(F::image(&mut image)))?.into()))
}

/// The plain aggregate of a family. It holds how often each value was there, so that the order of rows counts for nothing; but rows that come
/// twice count twice, which is why there is no `crdt_` in its name.
#[derive(Debug)]
pub(crate) struct Building<F> {
    call: Call,
    family: PhantomData<F>,
}

/// A multiset.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Counts<F> {
    counts: BTreeMap<Value, u64>,
    family: PhantomData<F>,
}

impl<F: Family> Counts<F> {
    fn new() -> Counts<F> {
        Counts { counts: BTreeMap::new(), family: PhantomData }
    }
}

impl<F: Family> Strategy for Building<F> {
    const SPEC: Spec = F::BUILDER;
    type State = Counts<F>;

    fn configure(call: &Call) -> Result<Self> {
        // What is wrong with the configuration is said before the first row.
        F::build(call, &BTreeMap::new())?;
        Ok(Building { call: call.clone(), family: PhantomData })
    }

    fn result_type(&self) -> Type {
        Type::Bytes
    }

    fn empty(&self) -> Counts<F> {
        Counts::new()
    }

    fn update(&self, state: &mut Counts<F>, row: &[Value]) -> Result<()> {
        if let Some(item) = F::item(&row[0])? {
            *state.counts.entry(item).or_default() += 1;
        }
        Ok(())
    }

    fn resolve(&self, state: &Counts<F>) -> Result<Value> {
        if state.counts.is_empty() {
            return Ok(Value::Null);
        }
        let mut image = F::build(&self.call, &state.counts)?;
        Ok(Value::Bytes(F::image(&mut image).into()))
    }
}

impl<F: Family> State for Counts<F> {
    /// The sum: what makes this no semilattice.
    fn join(&mut self, other: &Self) -> Result<()> {
        for (item, n) in &other.counts {
            let count = self.counts.entry(item.clone()).or_default();
            *count = count.checked_add(*n).ok_or_else(|| Error::corrupt_state("a count is out of range"))?;
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn bottom(&self) -> Self {
        Counts::new()
    }

    fn encode(&self, w: &mut Writer) {
        w.length(self.counts.len());
        for (item, n) in &self.counts {
            w.value(item);
            w.varint((*n).into());
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for _ in 0..r.length()? {
            let item = r.value()?;
            let n = u64::try_from(r.varint()?).map_err(|_| Error::corrupt_state("a count is out of range"))?;
            counts.insert(item, n);
        }
        Ok(Counts { counts, family: PhantomData })
    }

    fn heap_size(&self) -> usize {
        self.counts.len() * 2 * size_of::<(Value, u64)>()
    }

    fn info(&self) -> Value {
        Value::Null
    }
}

/// What the strategies of families have in common.
pub(crate) const JOINED: Spec = Spec {
    name: "",
    aliases: &[],
    type_id: 0,
    since: "0.1.0",
    title: "",
    doc: "",
    inputs: &[Input::Value, Input::Origin, Input::Versions],
    args: &[ORIGIN],
    takes: "finished sketches, with the origin and a version",
    selects: false,
    closed: |_| false,
    example: ("", ""),
    source: "",
    samples: Vec::new,
};

/// What the plain aggregates of families have in common.
pub(crate) const MADE: Spec = Spec {
    inputs: &[Input::Value],
    args: &[],
    takes: "numbers",
    doc: "A plain aggregate: the order and the split of rows count for nothing, but a row that comes twice counts twice. It holds each distinct \
          value with its count while it runs.",
    ..JOINED
};
