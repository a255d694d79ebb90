//! `model_set`: which models take part in a merge, as a set with removals, and how they are merged.

use crate::aggregate::{Call, State, Strategy, argument, encode};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::{Code, Error, Result};
use crate::functions::Function;
use crate::lattice::dots::{DotStore, dot_of};
use crate::lattice::origins::origin;
use crate::merkle::{self, hex, marked};
use crate::types::Type;
use crate::value::Value;
use serde_json::Value as Json;

/// The version of what the strategies of tensors give. A change to the numbers of any of them is another version: sets with recipes of two
/// versions don't join, and merged tensors that were kept for the next merge are not taken for those of another version.
pub const TENSOR_STRATEGIES: &str = "1";

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<ModelSet>().with_functions(functions));
}

#[derive(Debug)]
struct ModelSet;

/// The contributions, and the recipe: base, strategies and parameters, once they are known.
#[derive(Debug, Clone, PartialEq, Default)]
struct Set {
    recipe: Option<String>,
    models: DotStore,
}

impl Strategy for ModelSet {
    const SPEC: Spec = Spec {
        name: "model_set",
        aliases: &[],
        type_id: 33,
        since: "0.1.0",
        title: "the models of a merge, as a set with removals, with the recipe that resolves them",
        doc: "A contribution is a text, usually what `model_contribution('file')` gives: JSON with the hash of the model, its name, weight, version and \
              place. It is in the set while a dot holds it, as in `orset`: models that are added and removed at the same time stay, and removing \
              and adding again works. The recipe (base, strategies and their version, parameters) is part of the state: sets with different ones don't join. A row \
              is (contribution, origin, counter). `model_set_hash` names the set and the recipe; `model_set_resolve` gives the MERGE MODELS \
              statement of them: of several versions of one name the greatest takes part, numbers in versions by their worth.",
        inputs: &[Input::Value, Input::Origin, Input::Versions],
        args: &[super::r#counter::ORIGIN],
        takes: "text, with the origin and its counter",
        selects: false,
        closed: |_| false,
        example: (
            "SELECT crdt_model_set(m, o, n) AS m FROM (VALUES ('math', 'a', 1), ('code', 'b', 1), (NULL, 'a', 1)) AS t(m, o, n)",
            "[\"code\"]",
        ),
        source: "Bieniusa et al. 2012, An optimized conflict-free replicated set; Merkle 1987, A digital signature based on a conventional encryption function",
        samples: || vec![Call::new(vec![Type::Text, Type::Text, Type::INT64])],
    };
    type State = Set;

    fn configure(call: &Call) -> Result<Self> {
        let fits = matches!(call.value_type(), Type::Text | Type::Null) && call.inputs.len() == 3;
        if !fits || !matches!(call.inputs[2], Type::Int { .. } | Type::Null) || call.flagged("descending") {
            return Err(Error::invalid_argument("`model_set` takes a text, its origin, and the origin's counter, an integer"));
        }
        Ok(ModelSet)
    }

    fn result_type(&self) -> Type {
        Type::List(Box::new(Type::Text))
    }

    fn empty(&self) -> Set {
        Set::default()
    }

    fn update(&self, state: &mut Set, row: &[Value]) -> Result<()> {
        if let Some((origin, n)) = dot_of(row)? {
            state.models.learn((!row[0].is_null()).then_some(&row[0]), origin, n)?;
        }
        Ok(())
    }
}

/// What a recipe says: where the base lies counts for nothing if its hash is known. One without a version is of the first.
fn essence(recipe: &str) -> Json {
    let mut recipe = serde_json::from_str::<Json>(recipe).unwrap_or_default();
    let hashed = recipe.get("base_sha256").is_some_and(Json::is_string);
    if let Some(map) = recipe.as_object_mut() {
        if hashed {
            map.remove("base");
        }
        map.entry("strategies").or_insert_with(|| "1".into());
    }
    recipe
}

/// Whether a part of a recipe is what stands behind STRATEGY, or in the parentheses of WITH: no other clause, no comment.
fn is_part(text: &str) -> bool {
    let (mut depth, mut quote, mut word, mut last) = (0usize, None, String::new(), ' ');
    for c in text.chars().chain([' ']) {
        if let Some(open) = quote {
            quote = (c != open).then_some(open);
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            word.push(c.to_ascii_lowercase());
        } else if depth == 0 && ["into", "with", "base", "strategy"].contains(&word.as_str()) {
            return false;
        } else {
            word.clear();
        }
        match c {
            '\'' | '"' => quote = Some(c),
            '(' => depth += 1,
            ')' if depth == 0 => return false,
            ')' => depth -= 1,
            ';' => return false,
            '-' | '*' if last == if c == '-' { '-' } else { '/' } => return false,
            _ => {}
        }
        last = c;
    }
    depth == 0 && quote.is_none()
}

/// A version as parts that compare as people read them: numbers by their worth, all else by its bytes.
fn version(text: &str) -> Vec<(bool, u128, &str)> {
    let digits = |c: char| c.is_ascii_digit();
    let (mut parts, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let words = &rest[..rest.find(digits).unwrap_or(rest.len())];
        let number = &rest[words.len()..];
        let number = &number[..number.find(|c| !digits(c)).unwrap_or(number.len())];
        if !words.is_empty() {
            parts.push((true, 0, words));
        }
        if !number.is_empty() {
            parts.push((false, number.parse().unwrap_or(u128::MAX), ""));
        }
        rest = &rest[words.len() + number.len()..];
    }
    parts
}

/// The first of the recipe's parts that differs.
fn difference(a: &str, b: &str) -> String {
    let (a, b) = (essence(a), essence(b));
    let keys = a.as_object().into_iter().chain(b.as_object()).flat_map(|map| map.keys());
    let key = keys.filter(|key| a[key.as_str()] != b[key.as_str()]).min();
    match key {
        Some(key) => format!("`{key}` is {} in one and {} in the other", a[key.as_str()], b[key.as_str()]),
        None => "they are written differently".to_owned(),
    }
}

impl State for Set {
    fn join(&mut self, other: &Self) -> Result<()> {
        match (&self.recipe, &other.recipe) {
            // The same base at two places is one base.
            (Some(own), Some(others)) if essence(own) == essence(others) => {
                self.recipe = Some(own.min(others).clone());
            }
            (Some(own), Some(others)) => {
                return Err(Error::type_mismatch(format!("these sets of models have different recipes: {}", difference(own, others)))
                    .with_help("a set has one base and one recipe; add the models to the set that you want to resolve"));
            }
            (None, Some(recipe)) => self.recipe = Some(recipe.clone()),
            _ => {}
        }
        self.models.join(&other.models)?;
        Ok(())
    }

    fn value(&self) -> Result<Value> {
        if self.models.is_empty() {
            return Ok(Value::Null);
        }
        Ok(Value::List(self.models.values()))
    }

    fn bottom(&self) -> Self {
        Self::default()
    }

    fn delta(&self, since: &Self) -> Self {
        let recipe = if self.recipe == since.recipe { None } else { self.recipe.clone() };
        Set { recipe, models: self.models.delta(&since.models) }
    }

    fn encode(&self, w: &mut Writer) {
        w.byte(self.recipe.is_some().into());
        self.recipe.iter().for_each(|recipe| w.bytes(recipe.as_bytes()));
        self.models.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let recipe = match r.byte()? {
            0 => None,
            1 => Some(r.text()?.to_owned()),
            other => return Err(Error::corrupt_state(format!("a set of models has a recipe or none, not {other}"))),
        };
        let models = DotStore::decode(r)?;
        if !models.all_values(|v| matches!(v, Value::Text(_))) {
            return Err(Error::corrupt_state("a contribution is a text"));
        }
        Ok(Set { recipe, models })
    }

    fn heap_size(&self) -> usize {
        self.models.heap_size() + self.recipe.as_ref().map_or(0, String::len)
    }

    fn info(&self) -> Value {
        let recipe = self.recipe.as_deref().map_or(Value::Null, Value::text);
        Value::record(vec![("recipe".into(), recipe), ("hash".into(), Value::text(hex(&self.hash()))), ("models".into(), self.models.info())])
    }
}

/// A field of a contribution that is JSON.
fn field(leaf: &Value, name: &str) -> Option<Json> {
    let Value::Text(text) = leaf else { return None };
    serde_json::from_str::<Json>(text).ok()?.get(name).cloned().filter(|v| !v.is_null())
}

impl Set {
    /// The root of a Merkle tree over the visible contributions in the order of their hashes, and the recipe; the causal context counts
    /// for nothing.
    fn hash(&self) -> [u8; 32] {
        let leaf = |value: &Value| match (field(value, "sha256"), value) {
            (Some(Json::String(hash)), _) => marked(0, &[hash.as_bytes()]),
            (_, Value::Text(text)) => marked(0, &[text.as_bytes()]),
            _ => marked(0, &[]),
        };
        let root = merkle::root(self.models.values().iter().map(leaf).collect());
        // In the order of their names, whatever was left out.
        let sorted = |json: Json| match json {
            Json::Object(map) => Json::Object(map.into_iter().collect::<std::collections::BTreeMap<_, _>>().into_iter().collect()),
            other => other,
        };
        let recipe = self.recipe.as_deref().map(|recipe| sorted(essence(recipe)).to_string());
        marked(2, &[&root, recipe.unwrap_or_default().as_bytes()])
    }

    /// The statement that merges what is visible, in the order of the hashes.
    fn statement(&self, into: &str) -> Result<String> {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let text_of = |leaf: &Value, name: &str| field(leaf, name).and_then(|v| v.as_str().map(str::to_owned));
        let mut newest: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
        let leaves = self.models.values();
        for leaf in &leaves {
            let named = text_of(leaf, "name").unwrap_or_default();
            let (seen, own) = (newest.entry(named).or_default(), text_of(leaf, "version").unwrap_or_default());
            if (version(&own), &own) > (version(seen), seen) {
                *seen = own;
            }
        }
        let mut models: Vec<(String, String)> = Vec::new();
        for leaf in &leaves {
            let text = |name: &str| text_of(leaf, name);
            if newest.get(&text("name").unwrap_or_default()).is_some_and(|newest| *newest != text("version").unwrap_or_default()) {
                continue;
            }
            let path = text("path").ok_or_else(|| {
                Error::invalid_argument(format!("the contribution {leaf} says not where its file is")).with_help("add what model_contribution('file') gives")
            })?;
            let name = text("name").map(|n| format!(" AS \"{}\"", n.replace('"', "\"\""))).unwrap_or_default();
            let weight = field(leaf, "weight").map(|w| format!(" WEIGHT {w}")).unwrap_or_default();
            models.push((text("sha256").unwrap_or_default(), quoted(&path) + &name + &weight));
        }
        if models.is_empty() {
            return Err(Error::invalid_argument("the set is empty: no model takes part").with_help("model_set_add(state, contribution, origin)"));
        }
        models.sort();
        // One contribution that lies at two places takes part once.
        models.dedup_by(|a, b| a == b || (!a.0.is_empty() && a.0 == b.0));
        let recipe: Json = self.recipe.as_deref().map_or(Ok(Json::Null), serde_json::from_str).unwrap_or_default();
        if let Some(version) = recipe["strategies"].as_str().filter(|version| *version != TENSOR_STRATEGIES) {
            return Err(Error::new(Code::Unsupported, format!("the recipe is for version {version} of the strategies, and this is version {TENSOR_STRATEGIES}"))
                .with_help("resolve it with the release of MergeQL that has that version, or begin a new set"));
        }
        let mut sql = format!("MERGE MODELS {}", models.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(", "));
        if let Some(base) = recipe["base"].as_str() {
            sql += &format!(" BASE {}", quoted(base));
        }
        if ["strategy", "with"].iter().any(|part| recipe[*part].as_str().is_some_and(|text| !is_part(text))) {
            return Err(Error::invalid_argument("the recipe of the set holds more than rules and options")
                .with_help("it comes from someone else, perhaps; crdt_info shows it"));
        }
        if let Some(strategy) = recipe["strategy"].as_str() {
            sql += &format!(" STRATEGY {strategy}");
        }
        if let Some(with) = recipe["with"].as_str().filter(|w| !w.is_empty()) {
            sql += &format!(" WITH ({with})");
        }
        if !into.is_empty() {
            sql += &format!(" INTO {}", quoted(into));
        }
        Ok(sql)
    }
}

fn open(state: &Value) -> Result<Set> {
    Ok(argument::<ModelSet>(state)?.unwrap_or_default())
}

fn closed(set: &Set) -> Result<Value> {
    Ok(Value::Bytes(encode::<ModelSet>(set).into()))
}

fn functions() -> Vec<Function> {
    let text = |name, title, arguments, run| Function::of(name, title, arguments, Type::Text, run);
    vec![
        Function::state("model_set_new", "an empty set of models with a recipe, as JSON with base, base_sha256, strategy and with", 1, |a| {
            let Value::Text(recipe) = &a[0] else { return Err(Error::invalid_argument("a recipe is JSON: {\"strategy\": \"* = linear\"}")) };
            let recipe: serde_json::Map<String, Json> = serde_json::from_str(recipe)
                .map_err(|e| Error::invalid_argument(format!("a recipe is a JSON object: {e}")).with_help("{\"strategy\": \"* = linear\"}"))?;
            for (name, value) in &recipe {
                let known = ["base", "base_sha256", "strategy", "with"].contains(&name.as_str());
                let version = name == "strategies" && value == TENSOR_STRATEGIES;
                if version {
                    continue;
                }
                if !known || !value.as_str().is_some_and(|text| name.starts_with("base") || is_part(text)) {
                    return Err(Error::invalid_argument(format!("`{name}` of a recipe is {value}"))
                        .with_help("a recipe has the texts base, base_sha256, strategy (what follows STRATEGY) and with (what stands in its parentheses)"));
                }
            }
            // Keys in order, so that one recipe is one text.
            let version = ("strategies".to_owned(), Json::from(TENSOR_STRATEGIES));
            let sorted: std::collections::BTreeMap<String, Json> = recipe.into_iter().chain([version]).collect();
            closed(&Set { recipe: serde_json::to_string(&sorted).ok(), models: DotStore::default() })
        }),
        Function::state("model_set_add", "the set with a contribution more, added by an origin", 3, |a| {
            let mut set = open(&a[0])?;
            if !matches!(a[1], Value::Text(_)) {
                return Err(Error::invalid_argument("a contribution is a text").with_help("what model_contribution('file') gives"));
            }
            set.models.add(&a[1], origin(&a[2])?)?;
            closed(&set)
        }),
        Function::state("model_set_remove", "the set without the contributions of a name or a hash, as far as they were seen", 2, |a| {
            let mut set = open(&a[0])?;
            let Value::Text(which) = &a[1] else { return Err(Error::invalid_argument("a contribution is removed by its name or hash")) };
            let named = |leaf: &Value| {
                *leaf == a[1] || ["name", "sha256"].iter().any(|f| field(leaf, f).is_some_and(|v| v.as_str() == Some(which.as_ref())))
            };
            set.models.values().iter().filter(|leaf| named(leaf)).for_each(|leaf| set.models.remove(leaf));
            closed(&set)
        }),
        Function::state("model_set_join", "the join of two sets of models with one recipe", 2, |a| {
            let mut set = open(&a[0])?;
            set.join(&open(&a[1])?)?;
            closed(&set)
        }),
        text("model_set_hash", "the hash of the visible contributions and the recipe", 1..=1, |a| {
            if a[0].is_null() { Ok(Value::Null) } else { Ok(Value::text(hex(&open(&a[0])?.hash()))) }
        }),
        text("model_set_resolve", "the MERGE MODELS statement of a set, into a folder if one is named", 1..=2, |a| {
            let into = match a.get(1) {
                Some(Value::Text(into)) => into.to_string(),
                _ => String::new(),
            };
            if a[0].is_null() { Ok(Value::Null) } else { Ok(Value::text(open(&a[0])?.statement(&into)?)) }
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_rules_and_options() {
        for part in ["* = linear", "'*.a' = ties(density = 0.5, with = 1), \"into\" = slerp(t = -1)", "seed = 1, nan = 'x)--'"] {
            assert!(is_part(part), "{part}");
        }
        for part in ["* = linear INTO 'evil/'", "* = linear\nwith (overwrite = true)", "seed = 1) INTO 'evil/' --", "a /* b", "a; b", "'"] {
            assert!(!is_part(part), "{part}");
        }
    }

    #[test]
    fn versions_are_in_order() {
        let order = ["", "1", "1.9", "1.10", "2", "10", "b", "v2", "v10"];
        for pair in order.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{pair:?}");
        }
    }

    fn call(name: &str, arguments: &[Value]) -> Result<Value> {
        (functions().into_iter().find(|f| f.name == name).unwrap().run)(arguments)
    }

    fn text(value: &Value) -> String {
        let Value::Text(text) = value else { panic!("no text: {value}") };
        text.to_string()
    }

    #[test]
    fn a_set_resolves_to_one_statement() {
        let new = |recipe: &str| call("model_set_new", &[Value::text(recipe)]);
        let add = |set: Value, leaf: &str, origin: &str| call("model_set_add", &[set, Value::text(leaf), Value::text(origin)]).unwrap();
        let resolved = |set: &Value| text(&call("model_set_resolve", std::slice::from_ref(set)).unwrap());
        for recipe in [r#"{"strategy": 3}"#, r#"{"nope": "x"}"#, r#"{"strategy": "* = linear INTO 'evil/'"}"#] {
            assert!(new(recipe).is_err(), "{recipe}");
        }
        // One base at two places is one recipe, and one model at two places takes part once.
        let base = |path: &str| new(&format!(r#"{{"base": "{path}", "base_sha256": "ff", "strategy": "* = ties"}}"#)).unwrap();
        let model = |path: &str, version: &str| format!(r#"{{"name": "m", "path": "{path}", "sha256": "{version}a", "version": "{version}"}}"#);
        let (a, b) = (add(base("x/base"), &model("x/m", "9"), "a"), add(base("y/base"), &model("y/m", "9"), "b"));
        let joined = call("model_set_join", &[a.clone(), b.clone()]).unwrap();
        assert_eq!(joined, call("model_set_join", &[b, a.clone()]).unwrap());
        assert_eq!(resolved(&joined), r#"MERGE MODELS 'x/m' AS "m" BASE 'x/base' STRATEGY * = ties"#);
        let hash = |set: &Value| text(&call("model_set_hash", std::slice::from_ref(set)).unwrap());
        assert_eq!(hash(&joined), hash(&a), "places count for nothing");
        // Of several versions the greatest takes part, and its removal brings the one before back.
        let newer = add(joined, &model("x/m10", "10"), "a");
        assert!(resolved(&newer).starts_with("MERGE MODELS 'x/m10' AS"), "{}", resolved(&newer));
        let older = call("model_set_remove", &[newer, Value::text("10a")]).unwrap();
        assert!(resolved(&older).starts_with("MERGE MODELS 'x/m' AS"), "{}", resolved(&older));
    }
}
