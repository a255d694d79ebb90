//! DuckDB's vectors as borrowed columns, and values back into vectors.
#![allow(unsafe_code)]

use crate::api::{LogicalType, Pointer, duckdb, id, owned_text};
use mergeql_udfs::{Bits, Code, Column, Data, Error, Strings, Type, Unit, Value};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// DuckDB's text: up to twelve bytes inside, else where they lie.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    length: u32,
    inside: [u8; 12],
}

impl Text {
    /// # Safety
    /// The text lives as long as the vector that it is in, and `'a` is no longer.
    #[inline]
    pub unsafe fn bytes<'a>(text: *const Text) -> &'a [u8] {
        // SAFETY: short texts lie in the struct; for long ones bytes 4 to 12 are a pointer.
        unsafe {
            let length = (*text).length as usize;
            let inside = (&raw const (*text).inside).cast::<u8>();
            let start = if length <= 12 { inside } else { inside.add(4).cast::<*const u8>().read_unaligned() };
            std::slice::from_raw_parts(start, length)
        }
    }
}

/// DuckDB's 128-bit integer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Huge {
    lower: u64,
    upper: i64,
}

impl From<Huge> for i128 {
    fn from(huge: Huge) -> i128 {
        i128::from(huge.upper) << 64 | i128::from(huge.lower)
    }
}

impl From<i128> for Huge {
    fn from(v: i128) -> Huge {
        Huge { lower: v as u64, upper: (v >> 64) as i64 }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Interval {
    months: i32,
    days: i32,
    micros: i64,
}

/// The words of an ENUM, each copied when it is first met: a chunk has few of what may be many.
struct Dictionary {
    logical: LogicalType,
    size: usize,
    words: RefCell<HashMap<usize, Box<str>>>,
}

impl Dictionary {
    fn word(&self, code: usize) -> Option<Box<str>> {
        // SAFETY: the type is alive, and has so many words.
        let read = || unsafe { owned_text((duckdb().enum_dictionary_value)(self.logical.0, code as u64)).into() };
        (code < self.size).then(|| self.words.borrow_mut().entry(code).or_insert_with(read).clone())
    }
}

/// A vector, its type and where its values lie.
pub struct Vector {
    /// The type of the core.
    pub ty: Type,
    id: u32,
    data: *const u8,
    validity: *const u64,
    /// The children of lists, arrays, maps and structs.
    children: Vec<Vector>,
    names: Vec<Arc<str>>,
    dictionary: Dictionary,
    array_size: usize,
}

impl Vector {
    /// # Safety
    /// `vector` is a flat vector of DuckDB's that outlives this.
    ///
    /// # Errors
    /// `unsupported` for types that the core does not have.
    pub unsafe fn new(vector: Pointer) -> Result<Vector, Error> {
        let api = duckdb();
        // SAFETY: as the caller promises; children are asked for where the type has them.
        unsafe {
            let logical = LogicalType((api.vector_get_column_type)(vector));
            let ty = logical.logical()?;
            let kind = logical.id();
            let (mut children, mut names, mut size, mut array_size) = (Vec::new(), Vec::new(), 0, 0);
            match (kind, &ty) {
                (id::LIST, _) => children.push(Vector::new((api.list_vector_get_child)(vector))?),
                (id::ARRAY, _) => {
                    array_size = (api.array_type_array_size)(logical.0) as usize;
                    children.push(Vector::new((api.array_vector_get_child)(vector))?);
                }
                // A map is a list of structs of two fields.
                (id::MAP, _) => {
                    let entries = (api.list_vector_get_child)(vector);
                    for field in 0..2 {
                        children.push(Vector::new((api.struct_vector_get_child)(entries, field))?);
                    }
                }
                (id::STRUCT, Type::Struct(fields)) => {
                    for (i, (name, _)) in fields.iter().enumerate() {
                        names.push(name.clone());
                        children.push(Vector::new((api.struct_vector_get_child)(vector, i as u64))?);
                    }
                }
                (id::ENUM, _) => {
                    size = (api.enum_dictionary_size)(logical.0) as usize;
                }
                _ => {}
            }
            let dictionary = Dictionary { logical, size, words: RefCell::default() };
            let data = (api.vector_get_data)(vector).cast_const().cast();
            let validity = (api.vector_get_validity)(vector).cast_const();
            Ok(Vector { ty, id: kind, data, validity, children, names, dictionary, array_size })
        }
    }

    /// Whether row `i` is not NULL.
    #[inline]
    pub fn is_valid(&self, i: usize) -> bool {
        // SAFETY: a mask has a bit for every row.
        self.validity.is_null() || unsafe { *self.validity.add(i >> 6) } >> (i & 63) & 1 == 1
    }

    /// Whether texts lie in the vector itself: an ENUM's do not.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.id != id::ENUM
    }

    /// Where the values lie.
    #[inline]
    pub fn data(&self) -> *const u8 {
        self.data
    }

    /// The values as a slice.
    ///
    /// # Safety
    /// The vector's values are `T`, and there are `rows` of them.
    #[inline]
    pub unsafe fn slice<T>(&self, rows: usize) -> &[T] {
        // SAFETY: as the caller promises; a vector's memory is aligned for its values.
        if rows == 0 { &[] } else { unsafe { std::slice::from_raw_parts(self.data.cast(), rows) } }
    }

    #[inline]
    fn at<T: Copy>(&self, i: usize) -> T {
        // SAFETY: callers name the type that the vector's id stands for; 16-byte values may be aligned to 8 only.
        unsafe { self.data.cast::<T>().add(i).read_unaligned() }
    }

    fn bytes(&self, i: usize) -> &[u8] {
        // SAFETY: only called for texts and bytes.
        unsafe { Text::bytes(self.data.cast::<Text>().add(i)) }
    }

    /// Row `i` as a value.
    pub fn value(&self, i: usize) -> Value {
        if self.id == id::SQLNULL || !self.is_valid(i) {
            return Value::Null;
        }
        let int = |v: i128| Value::Int(v);
        match (self.id, &self.ty) {
            (id::BOOLEAN, _) => Value::Bool(self.at::<u8>(i) != 0),
            (id::TINYINT, _) => int(self.at::<i8>(i).into()),
            (id::SMALLINT, _) => int(self.at::<i16>(i).into()),
            (id::INTEGER, _) => int(self.at::<i32>(i).into()),
            (id::BIGINT, _) => int(self.at::<i64>(i).into()),
            (id::HUGEINT, _) => int(self.at::<Huge>(i).into()),
            (id::UTINYINT, _) => int(self.at::<u8>(i).into()),
            (id::USMALLINT, _) => int(self.at::<u16>(i).into()),
            (id::UINTEGER, _) => int(self.at::<u32>(i).into()),
            (id::UBIGINT, _) => int(self.at::<u64>(i).into()),
            (id::FLOAT, _) => Value::float(self.at::<f32>(i).into()),
            (id::DOUBLE, _) => Value::float(self.at(i)),
            (id::VARCHAR, _) => Value::text(String::from_utf8_lossy(self.bytes(i))),
            (id::BLOB, _) => Value::Bytes(self.bytes(i).into()),
            (id::DATE, _) => Value::Date(self.at(i)),
            (id::TIME, _) => Value::Time(self.at::<i64>(i).saturating_mul(1000)),
            (id::TIME_NS, _) => Value::Time(self.at(i)),
            (_, Type::Timestamp { unit, zone }) => {
                Value::Timestamp { nanos: i128::from(self.at::<i64>(i)) * i128::from(unit.nanos()), zoned: zone.is_some() }
            }
            (id::INTERVAL, _) => {
                let v: Interval = self.at(i);
                match v.micros.checked_mul(1000) {
                    Some(nanos) => Value::Interval { months: v.months, days: v.days, nanos },
                    // Caught by the callback that asked, and told as any error.
                    None => std::panic::resume_unwind(Box::new(
                        Error::new(
                            Code::LimitExceeded,
                            format!("an interval of {} microseconds is longer than 292 years", v.micros),
                        )
                        .with_help("count its days as days"),
                    )),
                }
            }
            (id::UUID, _) => Value::Uuid(uuid_bytes(self.at::<Huge>(i).into())),
            (id::DECIMAL, Type::Decimal { precision, scale }) => Value::Decimal {
                unscaled: match precision {
                    0..=4 => self.at::<i16>(i).into(),
                    5..=9 => self.at::<i32>(i).into(),
                    10..=18 => self.at::<i64>(i).into(),
                    _ => self.at::<Huge>(i).into(),
                },
                scale: (*scale).max(0) as u8,
            },
            (id::ENUM, _) => {
                let code = match self.dictionary.size {
                    0..=0xff => usize::from(self.at::<u8>(i)),
                    0x100..=0xffff => usize::from(self.at::<u16>(i)),
                    _ => self.at::<u32>(i) as usize,
                };
                self.dictionary.word(code).map_or(Value::Null, Value::Text)
            }
            (id::LIST, _) => {
                let (start, length): (u64, u64) = self.at::<[u64; 2]>(i).into();
                Value::List((start..start + length).map(|j| self.children[0].value(j as usize)).collect())
            }
            (id::ARRAY, _) => {
                let n = self.array_size;
                Value::List((i * n..(i + 1) * n).map(|j| self.children[0].value(j)).collect())
            }
            (id::MAP, _) => {
                let (start, length): (u64, u64) = self.at::<[u64; 2]>(i).into();
                let entry = |j: u64| (self.children[0].value(j as usize), self.children[1].value(j as usize));
                Value::map((start..start + length).map(entry).collect())
            }
            (id::STRUCT, _) => Value::record(self.names.iter().cloned().zip(self.children.iter().map(|c| c.value(i))).collect()),
            _ => Value::Null,
        }
    }

    /// What has to be built before the vector can be lent as a column.
    pub fn scratch(&self, rows: usize) -> Scratch<'_> {
        match self.id {
            id::VARCHAR | id::BLOB => {
                Scratch::Slices((0..rows).map(|i| if self.is_valid(i) { self.bytes(i) } else { &[][..] }).collect())
            }
            id::TINYINT
            | id::SMALLINT
            | id::INTEGER
            | id::BIGINT
            | id::UTINYINT
            | id::USMALLINT
            | id::UINTEGER
            | id::UBIGINT
            | id::FLOAT
            | id::DOUBLE
            | id::DATE
            | id::TIME
            | id::TIMESTAMP
            | id::TIMESTAMP_S
            | id::TIMESTAMP_MS
            | id::TIMESTAMP_NS
            | id::TIMESTAMP_TZ => Scratch::Direct,
            _ => Scratch::Values((0..rows).map(|i| self.value(i)).collect()),
        }
    }

    /// The first `rows` rows as a column.
    pub fn column<'a>(&'a self, scratch: &'a Scratch<'a>, rows: usize) -> Column<'a> {
        // SAFETY: each type id says what the values are; a mask has at least a bit for every row.
        unsafe {
            let data = match (self.id, scratch) {
                (_, Scratch::Values(values)) => return Column::of_values(values),
                (id::VARCHAR, Scratch::Slices(slices)) => Data::Text(Strings::Slices(slices)),
                (_, Scratch::Slices(slices)) => Data::Bytes(Strings::Slices(slices)),
                (id::TINYINT, _) => Data::Int8(self.slice(rows)),
                (id::SMALLINT, _) => Data::Int16(self.slice(rows)),
                (id::INTEGER, _) => Data::Int32(self.slice(rows)),
                (id::UTINYINT, _) => Data::UInt8(self.slice(rows)),
                (id::USMALLINT, _) => Data::UInt16(self.slice(rows)),
                (id::UINTEGER, _) => Data::UInt32(self.slice(rows)),
                (id::UBIGINT, _) => Data::UInt64(self.slice(rows)),
                (id::FLOAT, _) => Data::Float32(self.slice(rows)),
                (id::DOUBLE, _) => Data::Float64(self.slice(rows)),
                (id::DATE, _) => Data::Date(self.slice(rows)),
                (id::TIME, _) => Data::Time { values: self.slice(rows), unit: Unit::Microsecond },
                _ => match &self.ty {
                    Type::Timestamp { unit, zone } => {
                        Data::Timestamp { values: self.slice(rows), unit: *unit, zoned: zone.is_some() }
                    }
                    _ => Data::Int64(self.slice(rows)),
                },
            };
            let mask = || std::slice::from_raw_parts(self.validity.cast::<u8>(), rows.div_ceil(8));
            let validity = (!self.validity.is_null()).then(|| Bits::new(mask(), 0));
            Column { data, validity }
        }
    }
}

/// See [`Vector::scratch`].
pub enum Scratch<'a> {
    /// Nothing: the values are lent as they lie.
    Direct,
    /// One slice a row.
    Slices(Vec<&'a [u8]>),
    /// Values of rarer types.
    Values(Vec<Value>),
}

/// DuckDB keeps a UUID as an integer with its highest bit flipped, so that it sorts.
fn uuid_bytes(v: i128) -> [u8; 16] {
    ((v as u128) ^ (1 << 127)).to_be_bytes()
}

/// Makes row `i` of a result NULL.
///
/// # Safety
/// `vector` is a result vector of DuckDB's with a row `i`.
pub unsafe fn set_null(vector: Pointer, i: usize) {
    let api = duckdb();
    // SAFETY: as the caller promises; the mask is made first.
    unsafe {
        (api.vector_ensure_validity_writable)(vector);
        let mask = (api.vector_get_validity)(vector);
        *mask.add(i >> 6) &= !(1u64 << (i & 63));
    }
}

/// Writes a fixed-width value.
///
/// # Safety
/// `vector` is a result vector of values of type `T` with a row `i`.
#[inline]
pub unsafe fn put<T>(vector: Pointer, i: usize, value: T) {
    // SAFETY: as the caller promises.
    unsafe { (duckdb().vector_get_data)(vector).cast::<T>().add(i).write_unaligned(value) };
}

/// Writes text or bytes.
///
/// # Safety
/// `vector` is a result vector of text or bytes with a row `i`.
#[inline]
pub unsafe fn put_bytes(vector: Pointer, i: usize, bytes: &[u8]) {
    let mut short = Text { length: bytes.len() as u32, inside: [0; 12] };
    if let Some(inside) = short.inside.get_mut(..bytes.len()) {
        inside.copy_from_slice(bytes);
        // SAFETY: as the caller promises.
        return unsafe { put(vector, i, short) };
    }
    // SAFETY: as the caller promises; DuckDB copies the bytes.
    unsafe {
        (duckdb().vector_assign_string_element_len)(vector, i as u64, bytes.as_ptr().cast(), bytes.len() as u64);
    }
}

/// Writes a value into row `i` of a result of type `ty`.
///
/// # Safety
/// `vector` is a result vector of that type with a row `i`.
///
/// # Errors
/// `type_mismatch` if the value is of another kind.
pub unsafe fn put_value(vector: Pointer, i: usize, value: &Value, ty: &Type) -> Result<(), Error> {
    let api = duckdb();
    // SAFETY: as the caller promises, at every depth.
    unsafe {
        match (value, ty) {
            (Value::Null, _) => {
                if let Type::List(_) | Type::Map(..) = ty {
                    put(vector, i, [(api.list_vector_get_size)(vector), 0]);
                }
                set_null(vector, i);
            }
            (Value::Bool(v), Type::Boolean) => put(vector, i, *v),
            (Value::Int(v), Type::Int { bits, signed }) => match (bits, signed) {
                (8, _) => put(vector, i, *v as i8),
                (16, _) => put(vector, i, *v as i16),
                (32, _) => put(vector, i, *v as i32),
                (64, _) => put(vector, i, *v as i64),
                _ => put(vector, i, Huge::from(*v)),
            },
            (Value::Float(v), Type::Float32) => put(vector, i, *v as f32),
            (Value::Float(v), Type::Float64) => put(vector, i, *v),
            (Value::Int(_), Type::Float32 | Type::Float64 | Type::Decimal { .. }) => {
                return put_value(vector, i, &value.clone().fit(ty)?, ty);
            }
            (Value::Decimal { unscaled, .. }, Type::Decimal { precision, .. }) => match precision {
                0..=4 => put(vector, i, *unscaled as i16),
                5..=9 => put(vector, i, *unscaled as i32),
                10..=18 => put(vector, i, *unscaled as i64),
                _ => put(vector, i, Huge::from(*unscaled)),
            },
            (Value::Text(v), Type::Text) => put_bytes(vector, i, v.as_bytes()),
            (Value::Bytes(v), Type::Bytes) => put_bytes(vector, i, v),
            (Value::List(_) | Value::Struct(_) | Value::Map(_), Type::Text) => put_bytes(vector, i, value.to_json().as_bytes()),
            (other, Type::Text) => put_bytes(vector, i, other.to_string().as_bytes()),
            (Value::Date(v), Type::Date) => put(vector, i, *v),
            (Value::Time(nanos), Type::Time(_)) => put(vector, i, nanos / 1000),
            (Value::Timestamp { nanos, .. }, Type::Timestamp { unit, .. }) => {
                // What is beyond the numbers of a unit is what is infinite there.
                let ticks = nanos.div_euclid(unit.nanos().into());
                put(vector, i, ticks.clamp(-i128::from(i64::MAX), i64::MAX.into()) as i64);
            }
            (Value::Interval { months, days, nanos }, Type::Interval) => {
                put(vector, i, Interval { months: *months, days: *days, micros: nanos / 1000 });
            }
            (Value::Uuid(bytes), Type::Uuid) => put(vector, i, Huge::from((u128::from_be_bytes(*bytes) ^ (1 << 127)) as i128)),
            (Value::List(items), Type::List(element)) => {
                let start = grow(vector, i, items.len());
                let child = (api.list_vector_get_child)(vector);
                for (j, item) in items.iter().enumerate() {
                    put_value(child, start + j, item, element)?;
                }
            }
            (Value::Map(entries), Type::Map(key, value)) => {
                let start = grow(vector, i, entries.len());
                let child = (api.list_vector_get_child)(vector);
                for (j, (k, v)) in entries.iter().enumerate() {
                    put_value((api.struct_vector_get_child)(child, 0), start + j, k, key)?;
                    put_value((api.struct_vector_get_child)(child, 1), start + j, v, value)?;
                }
            }
            (Value::Struct(values), Type::Struct(fields)) => {
                for (at, (name, ty)) in fields.iter().enumerate() {
                    let value = values.iter().find(|(n, _)| n == name).map_or(&Value::Null, |(_, v)| v);
                    put_value((api.struct_vector_get_child)(vector, at as u64), i, value, ty)?;
                }
            }
            (other, ty) => return Err(Error::type_mismatch(format!("a {} does not fit into {ty}: {other}", other.kind()))),
        }
    }
    Ok(())
}

/// Writes a list, whose elements are written one by one into the vector of elements; an empty one is NULL.
///
/// # Safety
/// `vector` is a result vector of lists with a row `i`.
///
/// # Errors
/// As `element`.
pub unsafe fn put_list<T>(
    vector: Pointer,
    i: usize,
    items: &[T],
    mut element: impl FnMut(Pointer, usize, &T) -> Result<(), Error>,
) -> Result<(), Error> {
    // SAFETY: as the caller promises; there is room for the elements.
    unsafe {
        let start = grow(vector, i, items.len());
        if items.is_empty() {
            set_null(vector, i);
        }
        let child = (duckdb().list_vector_get_child)(vector);
        items.iter().zip(start..).try_for_each(|(item, at)| element(child, at, item))
    }
}

/// Makes room for `n` more elements behind those of earlier rows; gives back where they begin.
///
/// # Safety
/// `vector` is a result vector of lists or maps with a row `i`.
unsafe fn grow(vector: Pointer, i: usize, n: usize) -> usize {
    let api = duckdb();
    // SAFETY: as the caller promises; the child is fetched after the room is made.
    unsafe {
        let start = (api.list_vector_get_size)(vector);
        (api.list_vector_reserve)(vector, start + n as u64);
        (api.list_vector_set_size)(vector, start + n as u64);
        put(vector, i, [start, n as u64]);
        start as usize
    }
}
