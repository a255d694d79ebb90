//! `json`: deep merge of objects, each path a register of its own.

use crate::aggregate::{Call, State, Strategy};
use crate::catalog::{Arg, ArgKind, Entry, Input, Spec};
use crate::codec::{MAX_DEPTH, Reader, Writer};
use crate::error::{Error, Result};
use crate::lattice::set::ValueSet;
use crate::lattice::version::{self, VersionOrder};
use crate::types::Type;
use crate::value::{Value, from_json};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Json>());
}

#[derive(Debug)]
struct Json {
    ty: Type,
    config: Config,
}

#[derive(Debug, Clone, PartialEq)]
struct Config {
    versions: VersionOrder,
    /// Arrays are values that replace each other, rather than sets.
    replace_arrays: bool,
    /// Objects in arrays are the same one if this field is equal.
    key: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Document {
    config: Config,
    root: Option<Node>,
}

type Version = Vec<Value>;

/// What a path held: a scalar, an array, an object. Each grows on its own; the newest kind is the one that shows.
#[derive(Debug, Clone, PartialEq, Default)]
struct Node {
    scalar: Option<(Version, Value)>,
    array: Option<(Version, ValueSet, BTreeMap<Value, Node>)>,
    object: Option<(Version, BTreeMap<Arc<str>, Node>)>,
}

impl Strategy for Json {
    const SPEC: Spec = Spec {
        name: "json",
        aliases: &["deep"],
        type_id: 23,
        since: "0.1.0",
        title: "a deep merge of objects",
        doc: "Objects merge field by field, each path as `lww` by the row's version; null says nothing. Arrays merge as sets \
              (`arrays = 'union'`, the default) or as values (`'replace'`); with `key = 'id'` objects in arrays that have the same \
              `id` are one object and merge in turn. Where rows disagree on whether a path is a scalar, an array or an object, the \
              newest kind shows. Text holds JSON and the result is compact JSON with sorted keys; structs stay structs.",
        inputs: &[Input::Value, Input::Versions],
        args: &[
            Arg { name: "arrays", kind: ArgKind::Choice(&["union", "replace"]), doc: "how arrays merge" },
            Arg { name: "key", kind: ArgKind::Text, doc: "the field that identifies objects in arrays" },
        ],
        takes: "text that is JSON, and structs",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_json(v, ts) AS v FROM (VALUES ('{\"a\":1,\"t\":[1]}', 1), ('{\"a\":2,\"b\":{\"c\":3},\"t\":[2]}', 2)) AS t(v, ts)",
            "{\"a\":2,\"b\":{\"c\":3},\"t\":[1,2]}",
        ),
        source: "a recursive map of registers; Kleppmann, Beresford: A conflict-free replicated JSON datatype (2017)",
        samples: || vec![Call::new(vec![Type::Text, Type::INT64])],
    };
    type State = Document;

    fn configure(call: &Call) -> Result<Self> {
        let ty = call.value_type();
        if !ty.is_text() && !matches!(ty, Type::Struct(_)) {
            return Err(Error::type_mismatch(format!("`json` merges JSON text and structs, not {ty}")));
        }
        let replace_arrays = match call.text("arrays")? {
            None | Some("union") => false,
            Some("replace") => true,
            Some(other) => {
                return Err(Error::invalid_argument(format!("`arrays` is 'union' or 'replace', not '{other}'")));
            }
        };
        let key: Option<Arc<str>> = call.text("key")?.map(Arc::from);
        if replace_arrays && key.is_some() {
            return Err(Error::invalid_argument("`key` has no meaning where arrays replace each other"));
        }
        Ok(Json { ty, config: Config { versions: VersionOrder::configure(false, call)?, replace_arrays, key } })
    }

    fn result_type(&self) -> Type {
        self.ty.clone()
    }

    fn empty(&self) -> Document {
        Document { config: self.config.clone(), root: None }
    }

    fn resolve(&self, state: &Document) -> Result<Value> {
        let value = state.value()?;
        Ok(if self.ty.is_text() && !value.is_null() { Value::text(value.to_json()) } else { value })
    }

    fn update(&self, state: &mut Document, row: &[Value]) -> Result<()> {
        let value = match &row[0] {
            Value::Null => return Ok(()),
            Value::Text(text) => from_json(text).map_err(|e| {
                let start: String = text.chars().take(60).collect();
                Error { message: format!("`{start}`: {}", e.message), ..e }
            })?,
            value @ Value::Struct(_) => value.clone(),
            other => return Err(Error::type_mismatch(format!("`json` merges JSON text and structs, not a {}", other.kind()))),
        };
        if value.is_null() {
            return Ok(());
        }
        let version = VersionOrder::parts(&row[1..]);
        let node = self.config.node(value, &version, 0)?;
        let versions = &self.config.versions;
        match &mut state.root {
            None => state.root = Some(node),
            Some(root) => root.join(node, versions),
        }
        Ok(())
    }
}

impl Config {
    /// The document below a value; every part of it carries the row's version.
    fn node(&self, value: Value, version: &Version, depth: usize) -> Result<Node> {
        if depth >= MAX_DEPTH / 2 {
            return Err(Error::new(crate::Code::LimitExceeded, format!("JSON nests deeper than {}", MAX_DEPTH / 2)));
        }
        let mut node = Node::default();
        match value {
            Value::Struct(fields) => {
                let mut map = BTreeMap::new();
                for (name, field) in fields {
                    if !field.is_null() {
                        map.insert(name, self.node(field, version, depth + 1)?);
                    }
                }
                node.object = Some((version.clone(), map));
            }
            Value::List(items) if !self.replace_arrays => {
                let (mut rest, mut keyed) = (ValueSet::default(), BTreeMap::new());
                for item in items {
                    match self.key.as_deref().and_then(|key| field(&item, key)) {
                        Some(key) => {
                            let new = self.node(item, version, depth + 1)?;
                            match keyed.entry(key) {
                                std::collections::btree_map::Entry::Vacant(slot) => {
                                    slot.insert(new);
                                }
                                std::collections::btree_map::Entry::Occupied(mut old) => {
                                    old.get_mut().join(new, &self.versions);
                                }
                            }
                        }
                        None => rest.insert(&item),
                    }
                }
                node.array = Some((version.clone(), rest, keyed));
            }
            scalar => node.scalar = Some((version.clone(), scalar)),
        }
        Ok(node)
    }
}

fn field(value: &Value, name: &str) -> Option<Value> {
    let Value::Struct(fields) = value else { return None };
    fields.iter().find(|(n, v)| &**n == name && !v.is_null()).map(|(_, v)| v.clone())
}

fn newer(versions: &VersionOrder, a: &mut Version, b: Version) {
    if versions.compare_worth(&b, a).then_with(|| versions.compare(&b, a)) == Ordering::Greater {
        *a = b;
    }
}

/// By version, then by value; of equal ones the version is kept in one form.
fn stronger(versions: &VersionOrder, (v, x): (&Version, &Value), (w, y): (&Version, &Value)) -> bool {
    let order = versions.compare_worth(v, w).then_with(|| x.cmp(y)).then_with(|| versions.compare(v, w));
    order == Ordering::Greater
}

impl Node {
    fn join(&mut self, other: Node, versions: &VersionOrder) {
        match (&mut self.scalar, other.scalar) {
            (Some((v, x)), Some((w, y))) if stronger(versions, (&w, &y), (v, x)) => {
                (*v, *x) = (w, y);
            }
            (mine @ None, theirs) => *mine = theirs,
            _ => {}
        }
        match (&mut self.array, other.array) {
            (Some((v, rest, keyed)), Some((w, other_rest, other_keyed))) => {
                newer(versions, v, w);
                rest.union(&other_rest);
                join_maps(keyed, other_keyed, versions);
            }
            (mine @ None, theirs) => *mine = theirs,
            _ => {}
        }
        match (&mut self.object, other.object) {
            (Some((v, map)), Some((w, other_map))) => {
                newer(versions, v, w);
                join_maps(map, other_map, versions);
            }
            (mine @ None, theirs) => *mine = theirs,
            _ => {}
        }
    }

    fn value(&self, versions: &VersionOrder) -> Value {
        let none = Vec::new();
        let candidates = [
            self.scalar.as_ref().map(|(v, _)| (v, 0)),
            self.array.as_ref().map(|(v, ..)| (v, 1)),
            self.object.as_ref().map(|(v, _)| (v, 2)),
        ];
        let shown = candidates
            .into_iter()
            .flatten()
            .max_by(|a, b| versions.compare_worth(a.0, b.0).then(a.1.cmp(&b.1)))
            .unwrap_or((&none, 0));
        match (shown.1, self) {
            (1, Node { array: Some((_, rest, keyed)), .. }) => {
                Value::List(rest.values().chain(keyed.values().map(|n| n.value(versions))).collect())
            }
            (2, Node { object: Some((_, map)), .. }) => {
                Value::Struct(map.iter().map(|(name, node)| (name.clone(), node.value(versions))).collect())
            }
            (_, Node { scalar: Some((_, value)), .. }) => value.clone(),
            _ => Value::Null,
        }
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(
            u8::from(self.scalar.is_some()) | u8::from(self.array.is_some()) << 1 | u8::from(self.object.is_some()) << 2,
        );
        if let Some((version, value)) = &self.scalar {
            w.values(version);
            w.value(value);
        }
        if let Some((version, rest, keyed)) = &self.array {
            w.values(version);
            rest.encode(w);
            w.length(keyed.len());
            for (key, node) in keyed {
                w.value(key);
                node.encode(w);
            }
        }
        if let Some((version, map)) = &self.object {
            w.values(version);
            w.length(map.len());
            for (name, node) in map {
                w.bytes(name.as_bytes());
                node.encode(w);
            }
        }
    }

    fn decode(r: &mut Reader<'_>, depth: usize) -> Result<Node> {
        if depth > MAX_DEPTH {
            return Err(Error::corrupt_state(format!("the document in the state nests deeper than {MAX_DEPTH}")));
        }
        let flags = r.byte()?;
        if !matches!(flags, 1..=7) {
            return Err(Error::corrupt_state("a part of the document in the state is of no kind"));
        }
        let mut node = Node::default();
        if flags & 1 != 0 {
            node.scalar = Some((version::decode(r)?, r.value()?));
        }
        if flags & 2 != 0 {
            let (version, rest) = (version::decode(r)?, ValueSet::decode(r)?);
            let mut keyed = BTreeMap::new();
            for _ in 0..r.length()? {
                keyed.insert(r.value()?, Node::decode(r, depth + 1)?);
            }
            node.array = Some((version, rest, keyed));
        }
        if flags & 4 != 0 {
            let version = version::decode(r)?;
            let mut map = BTreeMap::new();
            for _ in 0..r.length()? {
                map.insert(Arc::from(r.text()?), Node::decode(r, depth + 1)?);
            }
            node.object = Some((version, map));
        }
        Ok(node)
    }

    fn heap_size(&self) -> usize {
        let version = |v: &Version| v.iter().map(|v| size_of::<Value>() + v.heap_size()).sum::<usize>();
        let scalar = self.scalar.as_ref().map_or(0, |(v, x)| version(v) + x.heap_size());
        let array = self.array.as_ref().map_or(0, |(v, rest, keyed)| {
            version(v)
                + rest.heap_size()
                + keyed.iter().map(|(k, n)| size_of::<(Value, Node)>() + k.heap_size() + n.heap_size()).sum::<usize>()
        });
        let object = self.object.as_ref().map_or(0, |(v, map)| {
            version(v) + map.iter().map(|(k, n)| size_of::<(Arc<str>, Node)>() + k.len() + n.heap_size()).sum::<usize>()
        });
        scalar + array + object
    }
}

fn join_maps<K: Ord>(mine: &mut BTreeMap<K, Node>, theirs: BTreeMap<K, Node>, versions: &VersionOrder) {
    for (key, node) in theirs {
        match mine.entry(key) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(node);
            }
            std::collections::btree_map::Entry::Occupied(mut old) => old.get_mut().join(node, versions),
        }
    }
}

impl State for Document {
    fn join(&mut self, other: &Self) -> Result<()> {
        if self.config != other.config {
            return Err(Error::type_mismatch("the two documents were merged with different settings"));
        }
        match (&mut self.root, other.root.clone()) {
            (Some(root), Some(node)) => root.join(node, &self.config.versions),
            (root @ None, node) => *root = node,
            _ => {}
        }
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        Ok(self.root.as_ref().map_or(Value::Null, |root| root.value(&self.config.versions)))
    }

    fn bottom(&self) -> Self {
        Document { config: self.config.clone(), root: None }
    }

    fn encode(&self, w: &mut Writer) {
        self.config.versions.encode(w);
        w.byte(u8::from(self.config.replace_arrays));
        w.value(&self.config.key.as_ref().map_or(Value::Null, |k| Value::text(&**k)));
        w.byte(u8::from(self.root.is_some()));
        if let Some(root) = &self.root {
            root.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let versions = VersionOrder::decode(r)?;
        let replace_arrays = r.byte()? != 0;
        let key = match r.value()? {
            Value::Null => None,
            Value::Text(key) => Some(Arc::from(key)),
            _ => return Err(Error::corrupt_state("the array key in the state is no text")),
        };
        let root = if r.byte()? == 0 { None } else { Some(Node::decode(r, 0)?) };
        Ok(Document { config: Config { versions, replace_arrays, key }, root })
    }

    fn heap_size(&self) -> usize {
        self.root.as_ref().map_or(0, Node::heap_size)
    }

    fn info(&self) -> Value {
        Value::record(vec![("document".into(), self.value().unwrap_or(Value::Null))])
    }
}
