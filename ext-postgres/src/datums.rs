//! Postgres' types and values as ours, and back.
#![allow(unsafe_code)]

use crate::entry::Failure;
use mergeql_lang::Diagnostic;
use mergeql_udfs::codec::{Reader, Writer};
use mergeql_udfs::{Code, Error, Type, Unit, Value};
use pgrx::pg_sys::{self, Datum, Oid};
use pgrx::varlena;
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// Days from 1970-01-01, our epoch, to 2000-01-01, Postgres'.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// A field of a row; `None` for one that was dropped.
type Field = (Arc<str>, Option<PgType>);
type Fields = Vec<Field>;

/// How a type's values are read and written.
#[derive(Debug, Clone)]
pub enum Form {
    /// `unknown`: a literal that nothing gave a type.
    Literal,
    /// `bool`
    Bool,
    /// `int2`
    Int2,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `float4`
    Float4,
    /// `float8`
    Float8,
    /// `numeric`
    Numeric,
    /// `text`, `varchar`
    Text,
    /// `char(n)`: padding is no part of the value.
    Padded,
    /// `bytea`, `crdt`
    Bytes,
    /// `mergeql_value`: one of our values, in its encoding.
    Encoded,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    Instant,
    /// `interval`
    Interval,
    /// `uuid`
    Uuid,
    /// `json`, `jsonb`, enums, `name`: the text that Postgres prints and reads.
    Printed,
    /// An array of one dimension.
    Array(Box<PgType>),
    /// A row.
    Row(Fields, pg_sys::TupleDesc),
}

/// A type of Postgres that values of ours come in.
#[derive(Debug, Clone)]
pub struct PgType {
    /// Its OID, before domains are looked through.
    pub oid: Oid,
    /// The type without domains.
    base: Oid,
    /// Ours.
    pub ty: Type,
    /// How values are read and written.
    pub form: Form,
    length: i16,
    by_value: bool,
    align: i8,
}

/// How values of a type of this extension are held. Whoever may create a schema can call a type of any kind by our names.
fn own_type(oid: Oid) -> Option<Form> {
    // SAFETY: all texts are Postgres' own; the type exists.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"mergeql".as_ptr(), true);
        let ours = extension != pg_sys::InvalidOid && pg_sys::getExtensionOfObject(pg_sys::TypeRelationId, oid) == extension;
        if !ours || pg_sys::get_typtype(oid) as u8 != b'b' {
            return None;
        }
        let name = pg_sys::format_type_extended(oid, -1, 0);
        let name = CStr::from_ptr(name).to_string_lossy();
        match name.rsplit('.').next().unwrap_or_default() {
            "crdt" => Some(Form::Bytes),
            "mergeql_value" => Some(Form::Encoded),
            _ => None,
        }
    }
}

impl PgType {
    /// What a type is for us; `typmod` is -1 where it is not known.
    ///
    /// # Errors
    /// `unsupported` for types that the core has no values of.
    pub fn of(oid: Oid, typmod: i32) -> Result<PgType, Failure> {
        let mut typmod = typmod;
        // SAFETY: Postgres looks types up by OID; OIDs come from it.
        unsafe {
            let base = pg_sys::getBaseTypeAndTypmod(oid, &mut typmod);
            let (mut length, mut by_value, mut align) = (0, false, 0i8);
            pg_sys::get_typlenbyvalalign(base, &mut length, &mut by_value, (&raw mut align).cast());
            let (ty, form) = known(base, typmod)?;
            Ok(PgType { oid, base, ty, form, length, by_value, align })
        }
    }

    /// A value.
    ///
    /// # Errors
    /// `limit_exceeded` for numbers of more than 38 digits, `unsupported` for arrays of several dimensions.
    pub fn value(&self, datum: Datum) -> Result<Value, Failure> {
        // SAFETY: the datum is of this type.
        unsafe {
            Ok(match &self.form {
                Form::Literal => Value::text(CStr::from_ptr(datum.cast_mut_ptr()).to_string_lossy()),
                Form::Bool => Value::Bool(datum.value() as u8 != 0),
                Form::Int2 => Value::Int((datum.value() as i16).into()),
                Form::Int4 => Value::Int((datum.value() as i32).into()),
                Form::Int8 => Value::Int((datum.value() as i64).into()),
                Form::Float4 => Value::float(f32::from_bits(datum.value() as u32).into()),
                Form::Float8 => Value::float(f64::from_bits(datum.value() as u64)),
                Form::Numeric => number(&printed(Oid::from(pg_sys::F_NUMERIC_OUT), datum))?,
                Form::Text => Value::text(String::from_utf8_lossy(varlena(datum))),
                Form::Padded => Value::text(String::from_utf8_lossy(varlena(datum)).trim_end_matches(' ')),
                Form::Bytes => Value::Bytes(varlena(datum).into()),
                Form::Encoded => {
                    let mut reader = Reader::new(varlena(datum));
                    let value = reader.value()?;
                    reader.end()?;
                    value
                }
                Form::Date => Value::Date(match datum.value() as i32 {
                    i32::MAX => i32::MAX,
                    i32::MIN => -i32::MAX,
                    days => days.saturating_add(EPOCH_DAYS),
                }),
                Form::Time => Value::Time((datum.value() as i64).saturating_mul(1000)),
                Form::Timestamp => Value::Timestamp { nanos: nanos(datum.value() as i64), zoned: false },
                Form::Instant => Value::Timestamp { nanos: nanos(datum.value() as i64), zoned: true },
                Form::Interval => {
                    let v: pg_sys::Interval = *datum.cast_mut_ptr();
                    let nanos = v.time.checked_mul(1000);
                    let nanos =
                        nanos.ok_or_else(|| Error::new(Code::LimitExceeded, "an interval of more than 292 years of time"))?;
                    Value::Interval { months: v.month, days: v.day, nanos }
                }
                Form::Uuid => Value::Uuid(*datum.cast_mut_ptr::<[u8; 16]>()),
                Form::Printed => {
                    let (mut output, mut varlena) = (Oid::INVALID, false);
                    pg_sys::getTypeOutputInfo(self.base, &mut output, &mut varlena);
                    Value::text(printed(output, datum))
                }
                Form::Array(element) => Value::List(element.elements(datum)?),
                Form::Row(fields, description) => row(fields, *description, datum)?,
            })
        }
    }

    /// The value of an argument that may be NULL.
    ///
    /// # Errors
    /// As [`PgType::value`].
    pub fn value_or_null(&self, datum: Option<Datum>) -> Result<Value, Failure> {
        datum.map_or(Ok(Value::Null), |datum| self.value(datum))
    }

    /// Whether a datum is this value.
    ///
    /// # Errors
    /// As [`PgType::value`].
    #[inline]
    pub fn holds(&self, datum: Option<Datum>, known: &Value) -> Result<bool, Failure> {
        match (&self.form, datum, known) {
            // SAFETY: a text is a varlena.
            (Form::Text, Some(datum), Value::Text(known)) => Ok(unsafe { varlena(datum) } == known.as_bytes()),
            _ => Ok(self.value_or_null(datum)? == *known),
        }
    }

    unsafe fn elements(&self, datum: Datum) -> Result<Vec<Value>, Failure> {
        // SAFETY: the caller passes an array of elements of this type.
        unsafe {
            let array: *mut pg_sys::ArrayType = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast();
            if (*array).ndim > 1 {
                return Err(Diagnostic::new(Code::Unsupported, "an array of more than one dimension is no list").into());
            }
            // Behind the header lie the length of each dimension, and then where it begins.
            let begins = array.add(1).cast::<i32>().add(1);
            if (*array).ndim == 1 && *begins != 1 {
                let message = format!("an array that begins at {} is no list", *begins);
                return Err(Diagnostic::new(Code::Unsupported, message).help("array_agg(x) FROM unnest(...) begins at 1").into());
            }
            let (mut values, mut nulls, mut n) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
            let length = self.length.into();
            pg_sys::deconstruct_array(array, self.base, length, self.by_value, self.align as _, &mut values, &mut nulls, &mut n);
            (0..n as usize).map(|i| self.value_or_null((!*nulls.add(i)).then(|| *values.add(i)))).collect()
        }
    }

    /// A value as a datum of this type, in the current memory context; `None` for NULL.
    ///
    /// # Errors
    /// `type_mismatch` for a value of another kind, `invalid_argument` for a number out of range.
    pub fn datum(&self, value: Value) -> Result<Option<Datum>, Failure> {
        if value.is_null() {
            return Ok(None);
        }
        let value = value.fit(&self.ty)?;
        // SAFETY: each datum is made as this type lays it out.
        let datum = unsafe {
            match (&self.form, value) {
                (Form::Bool, Value::Bool(v)) => Datum::from(v),
                (Form::Int2, Value::Int(v)) => Datum::from(v as i16),
                (Form::Int4, Value::Int(v)) => Datum::from(v as i32),
                (Form::Int8, Value::Int(v)) => Datum::from(v as i64),
                (Form::Float4, Value::Float(v)) => Datum::from((v as f32).to_bits()),
                (Form::Float8, Value::Float(v)) => Datum::from(v.to_bits() as usize),
                (Form::Numeric, v @ (Value::Int(_) | Value::Decimal { .. } | Value::Float(_))) => {
                    read(Oid::from(pg_sys::F_NUMERIC_IN), &v.to_string(), Oid::INVALID)
                }
                // Text has no place for a NUL there.
                (Form::Text | Form::Padded, v) => bytes(shown(v).replace('\0', "\u{fffd}").as_bytes()),
                (Form::Bytes, Value::Bytes(v)) => bytes(&v),
                (Form::Encoded, v) => {
                    let mut writer = Writer::default();
                    writer.value(&v);
                    bytes(writer.as_bytes())
                }
                (Form::Date, Value::Date(days)) => Datum::from(match days {
                    i32::MAX => i32::MAX,
                    days if days == -i32::MAX => i32::MIN,
                    days => days.saturating_sub(EPOCH_DAYS),
                }),
                (Form::Time, Value::Time(nanos)) => Datum::from(nanos / 1000),
                (Form::Timestamp | Form::Instant, Value::Timestamp { nanos, .. }) => Datum::from(micros(nanos)),
                (Form::Timestamp | Form::Instant, Value::Date(days)) => {
                    Datum::from(i64::from(days).saturating_mul(86_400_000_000).saturating_sub(EPOCH_MICROS))
                }
                (Form::Interval, Value::Interval { months, days, nanos }) => {
                    let made: *mut pg_sys::Interval = pg_sys::palloc(size_of::<pg_sys::Interval>()).cast();
                    made.write(pg_sys::Interval { time: nanos / 1000, day: days, month: months });
                    Datum::from(made)
                }
                (Form::Uuid, Value::Uuid(v)) => {
                    let made: *mut [u8; 16] = pg_sys::palloc(16).cast();
                    made.write(v);
                    Datum::from(made)
                }
                (Form::Printed, v) => {
                    let (mut input, mut parameter) = (Oid::INVALID, Oid::INVALID);
                    pg_sys::getTypeInputInfo(self.base, &mut input, &mut parameter);
                    read(input, &shown(v), parameter)
                }
                (Form::Array(element), Value::List(items)) => element.array(items)?,
                // Vectors that came as bytes, of f32.
                (Form::Array(element), Value::Bytes(vector)) if vector.len() % 4 == 0 => {
                    let floats = vector.as_chunks::<4>().0.iter().map(|v| Value::float(f32::from_le_bytes(*v).into()));
                    element.array(floats.collect())?
                }
                (Form::Row(fields, description), Value::Struct(values)) => make_row(fields, *description, &values)?,
                (_, other) => {
                    let message = format!("a {} does not fit into {}: {other}", other.kind(), self.ty);
                    return Err(Diagnostic::new(Code::TypeMismatch, message).into());
                }
            }
        };
        // A strategy may make of a domain's values one that it does not have.
        if self.oid != self.base {
            // SAFETY: the datum is of the domain's base; without a place for what is looked up, it is looked up each time.
            unsafe { pg_sys::domain_check(datum, false, self.oid, std::ptr::null_mut(), pg_sys::CurrentMemoryContext) };
        }
        Ok(Some(datum))
    }

    unsafe fn array(&self, items: Vec<Value>) -> Result<Datum, Failure> {
        let items = items.into_iter().map(|v| self.datum(v)).collect::<Result<Vec<_>, _>>()?;
        let mut nulls: Vec<bool> = items.iter().map(Option::is_none).collect();
        let mut values: Vec<Datum> = items.into_iter().map(|d| d.unwrap_or(Datum::from(0))).collect();
        let (mut length, mut least) = (values.len() as i32, 1);
        // SAFETY: Postgres copies values and marks.
        unsafe {
            let (oid, align) = (self.oid, self.align as _);
            let dimensions = i32::from(!values.is_empty());
            let made = pg_sys::construct_md_array(
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                dimensions,
                &mut length,
                &mut least,
                oid,
                self.length.into(),
                self.by_value,
                align,
            );
            Ok(Datum::from(made))
        }
    }
}

/// Values in a text column: objects are JSON.
fn shown(value: Value) -> String {
    match value {
        Value::Text(text) => text.into(),
        Value::List(_) | Value::Struct(_) | Value::Map(_) => value.to_json(),
        other => other.to_string(),
    }
}

/// The core's type and how its values lie, for a type that is no domain.
unsafe fn known(oid: Oid, typmod: i32) -> Result<(Type, Form), Failure> {
    let int = |bits| Type::Int { bits, signed: true };
    Ok(match oid {
        pg_sys::BOOLOID => (Type::Boolean, Form::Bool),
        pg_sys::INT2OID => (int(16), Form::Int2),
        pg_sys::INT4OID => (int(32), Form::Int4),
        pg_sys::INT8OID => (int(64), Form::Int8),
        pg_sys::FLOAT4OID => (Type::Float32, Form::Float4),
        pg_sys::FLOAT8OID => (Type::Float64, Form::Float8),
        pg_sys::NUMERICOID => (numeric_type(typmod), Form::Numeric),
        pg_sys::TEXTOID | pg_sys::VARCHAROID => (Type::Text, Form::Text),
        pg_sys::BPCHAROID => (Type::Text, Form::Padded),
        pg_sys::UNKNOWNOID | pg_sys::CSTRINGOID => (Type::Text, Form::Literal),
        pg_sys::NAMEOID | pg_sys::JSONOID | pg_sys::JSONBOID => (Type::Text, Form::Printed),
        pg_sys::BYTEAOID => (Type::Bytes, Form::Bytes),
        pg_sys::DATEOID => (Type::Date, Form::Date),
        pg_sys::TIMEOID => (Type::Time(unit(typmod)), Form::Time),
        pg_sys::TIMESTAMPOID => (Type::Timestamp { unit: unit(typmod), zone: None }, Form::Timestamp),
        pg_sys::TIMESTAMPTZOID => (Type::Timestamp { unit: unit(typmod), zone: Some(Arc::from("UTC")) }, Form::Instant),
        pg_sys::INTERVALOID => (Type::Interval, Form::Interval),
        pg_sys::UUIDOID => (Type::Uuid, Form::Uuid),
        _ => {
            // SAFETY: OIDs come from Postgres.
            let (element, kind) = unsafe { (pg_sys::get_element_type(oid), pg_sys::get_typtype(oid) as u8) };
            if element != Oid::INVALID {
                let element = PgType::of(element, typmod)?;
                return Ok((Type::List(Box::new(element.ty.clone())), Form::Array(Box::new(element))));
            }
            match kind {
                b'e' => (Type::Text, Form::Printed),
                b'c' => {
                    // SAFETY: as above; the copy belongs to the memory context that is current while the type is learned.
                    let description = unsafe { pg_sys::lookup_rowtype_tupdesc_copy(oid, typmod) };
                    // SAFETY: as above.
                    let fields = unsafe { fields(description)? };
                    (row_type(&fields), Form::Row(fields, description))
                }
                b'p' if oid == pg_sys::RECORDOID => (Type::Struct(Vec::new()), Form::Row(Vec::new(), std::ptr::null_mut())),
                // Types that hold text: citext and the like.
                _ if is_text_like(oid) => (Type::Text, Form::Printed),
                _ => match own_type(oid) {
                    Some(Form::Encoded) => (Type::Null, Form::Encoded),
                    Some(form) => (Type::Bytes, form),
                    None => {
                        // SAFETY: Postgres' own text.
                        let name = unsafe { CStr::from_ptr(pg_sys::format_type_be(oid)) }.to_string_lossy().into_owned();
                        return Err(Diagnostic::new(Code::Unsupported, format!("values of type {name} cannot be merged"))
                            .help("cast them, to text for one: they are then compared as text")
                            .into());
                    }
                },
            }
        }
    })
}

/// The unit of a time: one that holds all of its digits.
fn unit(typmod: i32) -> Unit {
    match typmod {
        0 => Unit::Second,
        1..=3 => Unit::Millisecond,
        _ => Unit::Microsecond,
    }
}

/// Whether Postgres counts a type among those that hold text.
fn is_text_like(oid: Oid) -> bool {
    let (mut category, mut preferred) = (0, false);
    // SAFETY: OIDs come from Postgres.
    unsafe { pg_sys::get_type_category_preferred(oid, &mut category, &mut preferred) };
    category as u8 == b'S'
}

/// `numeric(p, s)`; without them, or beyond what the core counts in, each value has its own scale.
fn numeric_type(typmod: i32) -> Type {
    let packed = typmod - 4;
    let (precision, scale) = (packed >> 16 & 0xffff, packed & 0x7ff);
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale)) if typmod >= 4 && scale <= precision as i8 => Type::Decimal { precision, scale },
        _ => Type::NUMERIC,
    }
}

fn row_type(fields: &[Field]) -> Type {
    Type::Struct(fields.iter().filter_map(|(name, ty)| Some((name.clone(), ty.as_ref()?.ty.clone()))).collect())
}

/// The fields of a row; `None` for those that were dropped.
unsafe fn fields(description: pg_sys::TupleDesc) -> Result<Fields, Failure> {
    // SAFETY: the caller passes a live description.
    unsafe {
        (0..(*description).natts as usize)
            .map(|i| {
                let attribute = attribute(description, i);
                let name = CStr::from_ptr((*attribute).attname.data.as_ptr()).to_string_lossy();
                let ty =
                    if (*attribute).attisdropped { None } else { Some(PgType::of((*attribute).atttypid, (*attribute).atttypmod)?) };
                Ok((Arc::from(&*name), ty))
            })
            .collect()
    }
}

/// Column `i` of a description.
///
/// # Safety
/// The description is live and has it.
pub unsafe fn attribute(description: pg_sys::TupleDesc, i: usize) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: as the caller promises.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        (*description).attrs.as_ptr().add(i)
    }
    // SAFETY: as the caller promises. From 18 on, short descriptions of all attributes stand before the long ones.
    #[cfg(feature = "pg18")]
    unsafe {
        let short = (*description).compact_attrs.as_ptr().add((*description).natts as usize);
        short.cast::<pg_sys::FormData_pg_attribute>().add(i)
    }
}

unsafe fn row(fields_: &[Field], description: pg_sys::TupleDesc, datum: Datum) -> Result<Value, Failure> {
    // SAFETY: the datum is a row; one of type `record` says itself what it is.
    unsafe {
        let header: pg_sys::HeapTupleHeader = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast();
        let own;
        let (fields_, description) = if description.is_null() {
            let fields = (*header).t_choice.t_datum;
            let copy = pg_sys::lookup_rowtype_tupdesc_copy(fields.datum_typeid, fields.datum_typmod);
            own = self::fields(copy)?;
            (own.as_slice(), copy)
        } else {
            (fields_, description)
        };
        let mut tuple =
            pg_sys::HeapTupleData { t_len: varlena::varsize_any(header.cast()) as u32, t_data: header, ..Default::default() };
        let n = fields_.len();
        let (mut values, mut nulls) = (vec![Datum::from(0); n], vec![false; n]);
        pg_sys::heap_deform_tuple(&mut tuple, description, values.as_mut_ptr(), nulls.as_mut_ptr());
        let mut record = Vec::with_capacity(n);
        for (i, (name, ty)) in fields_.iter().enumerate() {
            if let Some(ty) = ty {
                record.push((name.clone(), ty.value_or_null((!nulls[i]).then(|| values[i]))?));
            }
        }
        Ok(Value::record(record))
    }
}

unsafe fn make_row(fields: &[Field], description: pg_sys::TupleDesc, record: &[(Arc<str>, Value)]) -> Result<Datum, Failure> {
    if description.is_null() {
        return Err(Diagnostic::new(Code::Unsupported, "a row without a type cannot be given back")
            .help("CREATE TYPE for it")
            .into());
    }
    let (mut values, mut nulls) = (Vec::with_capacity(fields.len()), Vec::with_capacity(fields.len()));
    for (name, ty) in fields {
        let value = record.iter().find(|(n, _)| n == name).map_or(Value::Null, |(_, v)| v.clone());
        let datum = match ty {
            Some(ty) => ty.datum(value)?,
            None => None,
        };
        nulls.push(datum.is_none());
        values.push(datum.unwrap_or(Datum::from(0)));
    }
    // SAFETY: as many values as the description has columns.
    unsafe {
        let tuple = pg_sys::heap_form_tuple(description, values.as_mut_ptr(), nulls.as_mut_ptr());
        Ok(pg_sys::HeapTupleHeaderGetDatum((*tuple).t_data))
    }
}

/// The bytes of a text or bytea, without a copy where it is neither compressed nor stored elsewhere.
///
/// # Safety
/// `datum` is a varlena; the bytes live as long as it, or as the current memory context.
#[inline]
pub unsafe fn varlena<'a>(datum: Datum) -> &'a [u8] {
    // SAFETY: as the caller promises.
    unsafe {
        let mut data: *mut pg_sys::varlena = datum.cast_mut_ptr();
        if varlena::varatt_is_1b_e(data) || varlena::varatt_is_4b_c(data) {
            data = pg_sys::pg_detoast_datum_packed(data);
        }
        std::slice::from_raw_parts(varlena::vardata_any(data).cast(), varlena::varsize_any_exhdr(data))
    }
}

/// Bytes as a varlena in the current memory context.
pub fn bytes(bytes: &[u8]) -> Datum {
    let size = bytes.len() + pg_sys::VARHDRSZ;
    // SAFETY: the memory is fresh and has room; Postgres refuses sizes beyond its limit.
    unsafe {
        let made: *mut pg_sys::varlena = pg_sys::palloc(size).cast();
        varlena::set_varsize_4b(made, size as i32);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), made.cast::<u8>().add(pg_sys::VARHDRSZ), bytes.len());
        Datum::from(made)
    }
}

/// What an output function prints.
unsafe fn printed(output: Oid, datum: Datum) -> String {
    // SAFETY: the function is the one for the datum's type.
    unsafe {
        let text = pg_sys::OidOutputFunctionCall(output, datum);
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        pg_sys::pfree(text.cast());
        owned
    }
}

/// What an input function reads.
unsafe fn read(input: Oid, text: &str, parameter: Oid) -> Datum {
    let text = CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default();
    // SAFETY: an input function takes a text that is not changed.
    unsafe { pg_sys::OidInputFunctionCall(input, text.as_ptr().cast_mut(), parameter, -1) }
}

fn nanos(micros: i64) -> i128 {
    match micros {
        i64::MAX => i128::from(i64::MAX) * 1000,
        i64::MIN => -i128::from(i64::MAX) * 1000,
        micros => (i128::from(micros) + i128::from(EPOCH_MICROS)) * 1000,
    }
}

fn micros(nanos: i128) -> i64 {
    let micros = nanos.div_euclid(1000);
    match i64::try_from(micros) {
        Ok(i64::MAX) | Err(_) if micros > 0 => i64::MAX,
        Ok(micros) if micros != -i64::MAX => micros.saturating_sub(EPOCH_MICROS),
        _ => i64::MIN,
    }
}

/// A number as `numeric` prints it.
fn number(text: &str) -> Result<Value, Error> {
    match text {
        "NaN" => return Ok(Value::float(f64::NAN)),
        "Infinity" => return Ok(Value::float(f64::INFINITY)),
        "-Infinity" => return Ok(Value::float(f64::NEG_INFINITY)),
        _ => {}
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{fraction}");
    match (digits.parse::<i128>(), u8::try_from(fraction.len())) {
        (Ok(unscaled), Ok(scale @ 0..=38)) => Ok(Value::Decimal { unscaled, scale }),
        _ => Err(Error::new(Code::LimitExceeded, format!("the number {text} has more than 38 digits"))),
    }
}
