//! `tensor_linear`, `tensor_ties`, `tensor_median`, `tensor_trimmed_mean`: vectors held in rows (embeddings, small tensors), merged by the rules
//! that merge models.

use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::set::ValueSet;
use crate::types::Type;
use crate::value::Value;
use std::fmt::Debug;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.extend([Entry::of::<Merged<Linear>>(), Entry::plain::<Named<Linear>>("tensor_linear")]);
    entries.extend([Entry::of::<Merged<Ties>>(), Entry::plain::<Named<Ties>>("tensor_ties")]);
    entries.extend([Entry::of::<Merged<Median>>(), Entry::plain::<Named<Median>>("tensor_median")]);
    entries.extend([Entry::of::<Merged<TrimmedMean>>(), Entry::plain::<Named<TrimmedMean>>("tensor_trimmed_mean")]);
}

/// A rule that makes one vector of some, all of one length, in the order of the set, with their weights.
trait Rule: Debug + Clone + Copy + PartialEq + Send + Sync + 'static {
    const SPEC: Spec;

    /// What the call says.
    fn configure(call: &Call) -> Result<Self>;

    fn merge(&self, vectors: &[Vec<f64>], weights: &[f64]) -> Result<Vec<f64>>;

    /// The parameters, for states that must agree in them.
    fn parameters(&self) -> Vec<f64>;

    fn of_parameters(parameters: &[f64]) -> Option<Self>;
}

/// The strategy of a rule.
#[derive(Debug)]
struct Merged<R> {
    rule: R,
    ty: Type,
}

/// The same as an aggregate that has the rule's own name.
#[derive(Debug)]
struct Named<R>(Merged<R>);

/// Every distinct pair of a vector and its weight.
#[derive(Debug, Clone, PartialEq)]
struct Vectors<R> {
    rule: R,
    set: ValueSet,
}

fn parameter(call: &Call, name: &str, default: f64, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
    let found = call.arg(name).map_or(Some(default), Value::to_f64);
    found.filter(|v| range.contains(v)).ok_or_else(|| {
        Error::invalid_argument(format!("`{name}` is from {} to {}", range.start(), range.end()))
            .with_help(format!("the default is {default}"))
    })
}

fn finite(value: &Value) -> Result<f64> {
    value.to_f64().filter(|v| v.is_finite()).ok_or_else(|| Error::invalid_argument(format!("a vector holds finite numbers, not {value}")))
}

fn shares(weights: &[f64]) -> Result<f64> {
    let sum: f64 = weights.iter().sum();
    if sum.abs() < 1e-12 {
        return Err(Error::invalid_argument(format!("the weights {weights:?} sum to zero")));
    }
    Ok(sum)
}

impl<R: Rule> Strategy for Merged<R> {
    const SPEC: Spec = R::SPEC;
    type State = Vectors<R>;

    fn configure(call: &Call) -> Result<Self> {
        match call.value_type() {
            Type::List(element) if element.is_number() || *element == Type::Null => {}
            // A host without lists has them as JSON.
            Type::Null | Type::Text => {}
            // As tensors lie in files: 32-bit floats, the least byte first.
            Type::Bytes => {}
            other => return Err(Error::type_mismatch(format!("`{}` merges lists of numbers, not {other}", R::SPEC.name))),
        }
        if let Some(weight) = call.inputs.get(1).filter(|ty| !ty.is_number() && **ty != Type::Null) {
            return Err(Error::type_mismatch(format!("a weight is a number, not {weight}")));
        }
        let ty = match call.value_type() {
            Type::List(element) if *element == Type::Float32 => Type::List(element),
            Type::Bytes => Type::Bytes,
            _ => Type::List(Box::new(Type::Float64)),
        };
        Ok(Merged { rule: R::configure(call)?, ty })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Vectors<R> {
        Vectors { rule: self.rule, set: ValueSet::default() }
    }

    fn update(&self, state: &mut Vectors<R>, row: &[Value]) -> Result<()> {
        let vector = match &row[0] {
            Value::Null => return Ok(()),
            Value::List(items) => items.iter().map(finite).collect::<Result<Vec<f64>>>()?,
            Value::Text(text) => match crate::value::from_json(text) {
                Ok(Value::List(items)) => items.iter().map(finite).collect::<Result<Vec<f64>>>()?,
                _ => return Err(Error::type_mismatch(format!("`{}` merges lists of numbers, or JSON of such, not the text {text}", R::SPEC.name))),
            },
            Value::Bytes(bytes) => {
                let (floats, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    let message = format!("{} bytes are no vector of 32-bit floats", bytes.len());
                    return Err(Error::invalid_argument(message).with_help("a float is four bytes, the least first"));
                }
                floats.iter().map(|b| finite(&Value::float(f32::from_le_bytes(*b).into()))).collect::<Result<Vec<f64>>>()?
            }
            other => return Err(Error::type_mismatch(format!("`{}` merges lists of numbers, not a {}", R::SPEC.name, other.kind()))),
        };
        let weight = match row.get(1) {
            None => 1.0,
            Some(Value::Null) => return Err(Error::invalid_argument("the weight of a vector is NULL")),
            Some(weight) => finite(weight)?,
        };
        let vector = Value::List(vector.into_iter().map(Value::float).collect());
        state.set.insert(&Value::List(vec![vector, Value::float(weight)]));
        Ok(())
    }

    fn resolve(&self, state: &Vectors<R>) -> Result<Value> {
        let single = |ty: &Type| *ty == Type::Bytes || matches!(ty, Type::List(element) if **element == Type::Float32);
        let value = state.value()?;
        if let Value::List(items) = &value
            && single(&self.ty)
            && items.iter().any(|v| v.to_f64().is_some_and(|v| !(v as f32).is_finite()))
        {
            return Err(Error::invalid_argument("the numbers of the vectors are too great for 32 bits"));
        }
        match (value, &self.ty) {
            (Value::List(items), Type::Bytes) => {
                let bytes: Vec<u8> = items.iter().flat_map(|v| (v.to_f64().unwrap_or(f64::NAN) as f32).to_le_bytes()).collect();
                Ok(Value::Bytes(bytes.into()))
            }
            (value, _) => Ok(value),
        }
    }
}

impl<R: Rule> Strategy for Named<R> {
    const SPEC: Spec = R::SPEC;
    type State = Vectors<R>;

    fn configure(call: &Call) -> Result<Self> {
        Merged::configure(call).map(Named)
    }

    fn result_type(&self) -> Type {
        self.0.result_type()
    }

    fn empty(&self) -> Vectors<R> {
        self.0.empty()
    }

    fn update(&self, state: &mut Vectors<R>, row: &[Value]) -> Result<()> {
        self.0.update(state, row)
    }

    fn resolve(&self, state: &Vectors<R>) -> Result<Value> {
        self.0.resolve(state)
    }
}

/// The numbers of a list.
fn numbers(value: &Value) -> Option<Vec<f64>> {
    match value {
        Value::List(items) => items.iter().map(|v| if let Value::Float(v) = v { v.is_finite().then_some(*v) } else { None }).collect(),
        _ => None,
    }
}

/// A vector and its weight.
fn pair(value: &Value) -> Option<(Vec<f64>, f64)> {
    match value {
        Value::List(pair) => match &pair[..] {
            [vector, Value::Float(weight)] if weight.is_finite() => Some((numbers(vector)?, *weight)),
            _ => None,
        },
        _ => None,
    }
}

impl<R: Rule> State for Vectors<R> {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.rule != other.rule {
            let shown = |r: &R| format!("{:?}", r.parameters());
            return Err(Error::type_mismatch(format!(
                "vectors merged with the parameters {} cannot join those with {}",
                shown(&self.rule),
                shown(&other.rule)
            )));
        }
        self.set.union(&other.set);
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        let (mut vectors, mut weights) = (Vec::new(), Vec::new());
        for value in self.set.values() {
            let (vector, weight) = pair(&value).ok_or_else(|| Error::corrupt_state("the state holds no vectors"))?;
            vectors.push(vector);
            weights.push(weight);
        }
        let Some(first) = vectors.first() else { return Ok(Value::Null) };
        if let Some(other) = vectors.iter().find(|v| v.len() != first.len()) {
            return Err(Error::invalid_argument(format!("a vector of {} numbers beside one of {}", other.len(), first.len()))
                .with_help("vectors that are merged have one length"));
        }
        let merged = self.rule.merge(&vectors, &weights)?;
        if merged.iter().any(|v| !v.is_finite()) {
            return Err(Error::invalid_argument("the numbers of the vectors are too great: their sum is no number"));
        }
        Ok(Value::List(merged.into_iter().map(Value::float).collect()))
    }

    fn bottom(&self) -> Self {
        Vectors { rule: self.rule, set: ValueSet::default() }
    }

    fn delta(&self, since: &Self) -> Self {
        Vectors { rule: self.rule, set: self.set.without(&since.set) }
    }

    fn encode(&self, w: &mut Writer) {
        self.rule.parameters().iter().for_each(|v| w.raw(&v.to_le_bytes()));
        self.set.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let count = R::SPEC.args.iter().filter(|a| a.kind == ArgKind::Number).count();
        let mut parameters = Vec::with_capacity(count);
        for _ in 0..count {
            parameters.push(f64::from_le_bytes(*r.take(8)?.first_chunk().expect("invariant: eight bytes")));
        }
        let rule = R::of_parameters(&parameters).ok_or_else(|| Error::corrupt_state("the parameters of the state are out of range"))?;
        let set = ValueSet::decode(r)?;
        if set.values().any(|value| pair(&value).is_none()) {
            return Err(Error::corrupt_state("the state holds something that is no vector with its weight"));
        }
        Ok(Vectors { rule, set })
    }

    fn heap_size(&self) -> usize {
        self.set.heap_size()
    }

    fn info(&self) -> Value {
        let shown = |value: Value| match value {
            Value::List(pair) if pair.len() == 2 => {
                Value::record(vec![("vector".into(), pair[0].clone()), ("weight".into(), pair[1].clone())])
            }
            other => other,
        };
        Value::List(self.set.values().map(shown).collect())
    }
}

const WEIGHT: Arg = Arg { name: "weight", kind: ArgKind::Column(Input::Weight, true), doc: "how much the vector counts" };

/// What the four have in common.
const COMMON: Spec = Spec {
    name: "",
    aliases: &[],
    type_id: 0,
    since: "0.1.0",
    title: "",
    doc: "",
    inputs: &[Input::Value, Input::Weight],
    args: &[WEIGHT],
    takes: "lists of numbers of one length, JSON of such, or bytes of 32-bit floats with the least byte first",
    selects: false,
    closed: |_| false,
    example: ("", ""),
    source: "",
    samples: || {
        let list = |ty| Type::List(Box::new(ty));
        vec![Call::new(vec![list(Type::Float64), Type::INT64]), Call::new(vec![list(Type::Float32), Type::INT64])]
    },
};

/// Of vectors alone.
const UNWEIGHTED: Spec = Spec {
    inputs: &[Input::Value],
    args: &[],
    samples: || vec![Call::new(vec![Type::List(Box::new(Type::Float64))]), Call::new(vec![Type::List(Box::new(Type::Float32))])],
    ..COMMON
};

#[derive(Debug, Clone, Copy, PartialEq)]
struct Linear;

impl Rule for Linear {
    const SPEC: Spec = Spec {
        name: "tensor_linear",
        type_id: 52,
        title: "the mean of vectors by their weights",
        doc: "A row is (vector, weight). Each distinct pair counts once, so that a row that comes again changes nothing. The sum runs in f64 in the order \
              of the set. The aggregate is also called `tensor_linear(v, w)`.",
        example: ("SELECT tensor_linear(v, w) AS v FROM (VALUES ([1.0, 2.0], 1), ([4.0, 8.0], 2)) AS t(v, w)", "[3.0,6.0]"),
        source: "Wortsman et al. 2022, Model soups, arXiv:2203.05482",
        ..COMMON
    };

    fn configure(_: &Call) -> Result<Self> {
        Ok(Linear)
    }

    fn merge(&self, vectors: &[Vec<f64>], weights: &[f64]) -> Result<Vec<f64>> {
        let total = shares(weights)?;
        let mut sum = vec![0.0; vectors[0].len()];
        for (vector, weight) in vectors.iter().zip(weights) {
            sum.iter_mut().zip(vector).for_each(|(s, v)| *s += weight * v);
        }
        Ok(sum.into_iter().map(|s| s / total).collect())
    }

    fn parameters(&self) -> Vec<f64> {
        Vec::new()
    }

    fn of_parameters(_: &[f64]) -> Option<Self> {
        Some(Linear)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Ties {
    density: f64,
    lambda: f64,
}

impl Rule for Ties {
    const SPEC: Spec = Spec {
        name: "tensor_ties",
        type_id: 53,
        title: "the greatest entries of vectors, where they agree with the sign of the weighted sum",
        doc: "A row is (vector, weight), a vector being what a model changed. Of each the greatest `density` share of entries by magnitude is kept, never less \
              than one, ties by index; where they agree with the sign of their weighted sum, their mean by weight is taken, times `lambda`. The aggregate is \
              also called `tensor_ties(v, w, density, lambda)`.",
        args: &[
            WEIGHT,
            Arg { name: "density", kind: ArgKind::Number, doc: "the share of entries that is kept, from 0 to 1; default 1" },
            Arg { name: "lambda", kind: ArgKind::Number, doc: "scales the result; default 1" },
        ],
        example: ("SELECT tensor_ties(v, w) AS v FROM (VALUES ([1.0, -2.0], 1), ([3.0, 4.0], 1)) AS t(v, w)", "[2.0,4.0]"),
        source: "Yadav et al. 2023, TIES-Merging, arXiv:2306.01708",
        ..COMMON
    };

    fn configure(call: &Call) -> Result<Self> {
        Ok(Ties { density: parameter(call, "density", 1.0, 0.0..=1.0)?, lambda: parameter(call, "lambda", 1.0, -1e9..=1e9)? })
    }

    fn merge(&self, vectors: &[Vec<f64>], weights: &[f64]) -> Result<Vec<f64>> {
        let n = vectors[0].len();
        let kept = ((self.density * n as f64) as usize).clamp(n.min(1), n);
        let thinned: Vec<Vec<f64>> = vectors
            .iter()
            .map(|vector| {
                let mut order: Vec<usize> = (0..n).collect();
                order.sort_by(|a, b| vector[*b].abs().total_cmp(&vector[*a].abs()).then(a.cmp(b)));
                let mut thin = vec![0.0; n];
                order[..kept].iter().for_each(|at| thin[*at] = vector[*at]);
                thin
            })
            .collect();
        let at = |at: usize| {
            let entries = || thinned.iter().zip(weights).map(move |(vector, weight)| (vector[at], *weight));
            let elected = if entries().map(|(v, w)| v * w).sum::<f64>() >= 0.0 { 1.0 } else { -1.0 };
            let (mut sum, mut total) = (0.0, 0.0);
            for (value, weight) in entries().filter(|(v, w)| v * w * elected > 0.0) {
                sum += value * weight;
                total += weight;
            }
            self.lambda * if total.abs() < 1e-12 { 0.0 } else { sum / total }
        };
        Ok((0..n).map(at).collect())
    }

    fn parameters(&self) -> Vec<f64> {
        vec![self.density, self.lambda]
    }

    fn of_parameters(parameters: &[f64]) -> Option<Self> {
        match parameters {
            &[density, lambda] if (0.0..=1.0).contains(&density) && (-1e9..=1e9).contains(&lambda) => {
                // Zeros have one sign.
                Some(Ties { density: crate::value::canonical(density), lambda: crate::value::canonical(lambda) })
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Median;

/// The values of each place, ascending.
fn columns(vectors: &[Vec<f64>]) -> impl Iterator<Item = Vec<f64>> {
    (0..vectors[0].len()).map(|at| {
        let mut column: Vec<f64> = vectors.iter().map(|v| v[at]).collect();
        column.sort_by(f64::total_cmp);
        column
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

impl Rule for Median {
    const SPEC: Spec = Spec {
        name: "tensor_median",
        type_id: 54,
        title: "the median of vectors, place by place",
        doc: "Each distinct vector counts once; of an even number the mean of the middle two is taken. Less than half of the vectors cannot move it \
              far, whatever is in them. The aggregate is also called `tensor_median(v)`.",
        example: ("SELECT tensor_median(v) AS v FROM (VALUES (1, [1.0, 9.0]), (2, [2.0, 5.0]), (3, [100.0, 7.0])) AS t(id, v)", "[2.0,7.0]"),
        source: "Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-robust distributed learning",
        ..UNWEIGHTED
    };

    fn configure(_: &Call) -> Result<Self> {
        Ok(Median)
    }

    fn merge(&self, vectors: &[Vec<f64>], _: &[f64]) -> Result<Vec<f64>> {
        let middle = |column: Vec<f64>| mean(&column[(column.len() - 1) / 2..=column.len() / 2]);
        Ok(columns(vectors).map(middle).collect())
    }

    fn parameters(&self) -> Vec<f64> {
        Vec::new()
    }

    fn of_parameters(_: &[f64]) -> Option<Self> {
        Some(Median)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct TrimmedMean {
    trim: f64,
}

impl Rule for TrimmedMean {
    const SPEC: Spec = Spec {
        name: "tensor_trimmed_mean",
        type_id: 55,
        title: "the mean of vectors without the greatest and the least, place by place",
        doc: "Each distinct vector counts once; in each place the `trim` share of the greatest numbers and as many of the least are left out. The aggregate is \
              also called `tensor_trimmed_mean(v, trim)`.",
        args: &[Arg { name: "trim", kind: ArgKind::Number, doc: "the share that is left out at either end, below a half; default 0.1" }],
        example: (
            "SELECT tensor_trimmed_mean(v, 0.34) AS v FROM (VALUES (1, [1.0]), (2, [2.0]), (3, [100.0])) AS t(id, v)",
            "[2.0]",
        ),
        source: "Yin, Chen, Ramchandran, Bartlett 2018, Byzantine-robust distributed learning",
        ..UNWEIGHTED
    };

    fn configure(call: &Call) -> Result<Self> {
        Ok(TrimmedMean { trim: parameter(call, "trim", 0.1, 0.0..=0.499_999)? })
    }

    fn merge(&self, vectors: &[Vec<f64>], _: &[f64]) -> Result<Vec<f64>> {
        let n = vectors.len();
        let out = ((self.trim * n as f64) as usize).min((n - 1) / 2);
        Ok(columns(vectors).map(|column| mean(&column[out..n - out])).collect())
    }

    fn parameters(&self) -> Vec<f64> {
        vec![self.trim]
    }

    fn of_parameters(parameters: &[f64]) -> Option<Self> {
        match parameters {
            &[trim] if (0.0..=0.499_999).contains(&trim) => Some(TrimmedMean { trim: crate::value::canonical(trim) }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;

    #[test]
    fn bytes_are_vectors_as_in_files() {
        let bytes = |floats: &[f32]| Value::Bytes(floats.iter().flat_map(|v| v.to_le_bytes()).collect());
        let aggregate = catalog::find("tensor_median").unwrap().bind(&Call::new(vec![Type::Bytes])).unwrap();
        assert_eq!(aggregate.result_type(), Type::Bytes);
        let mut median = aggregate.partial();
        for vector in [[1.0, -2.5], [9.0, 0.5], [2.0, 8.0]] {
            median.update(&[bytes(&vector)]).unwrap();
        }
        assert_eq!(median.value().unwrap(), bytes(&[2.0, 0.5]));
        assert!(median.update(&[Value::Bytes([0u8; 6].as_slice().into())]).is_err());
        assert!(median.update(&[bytes(&[f32::NAN, 1.0])]).is_err());
    }
}
