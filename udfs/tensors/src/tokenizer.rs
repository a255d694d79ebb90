//! Models whose tokenizers differ: the tokens of the output, and which rows of each model's embeddings they are.

use crate::checkpoint::Tensor;
use crate::made::{self, Row};
use crate::mergekit::tied;
use crate::plan::Model;
use mergeql_udfs::{Code, Error, Result};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the row of a token comes from, if that is said.
#[derive(Debug, Clone, PartialEq)]
enum From {
    Zero,
    Model(usize),
    Token(usize, Key),
}

#[derive(Debug, Clone, PartialEq)]
enum Key {
    Token(String),
    Id(u32),
}

/// The tokens of the output.
#[derive(Debug)]
pub struct Tokens {
    /// Each token's number.
    pub vocabulary: BTreeMap<String, u32>,
    /// Rows of the embeddings: the tokens, and what pads them.
    pub rows: usize,
    models: Vec<(String, BTreeMap<String, u32>)>,
    base: Option<usize>,
    said: BTreeMap<String, (From, bool)>,
    tokenizer: Json,
    /// The folder of the leading tokenizer, whose other files go along.
    pub folder: PathBuf,
    /// Whether the tokens are others than those of that folder.
    pub changed: bool,
}

/// Whether a tensor is a table of what tokens stand for, from which rows are looked up.
pub fn is_embedding(name: &str) -> bool {
    let ends = ["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "embed_in.weight"];
    ends.iter().any(|end| name.ends_with(end))
}

/// Whether the rows of a tensor stand for tokens.
pub fn has_rows(name: &str) -> bool {
    is_embedding(name) || name.ends_with("embed_out.weight") || name.ends_with("lm_head.weight") || name == "output.weight"
}

fn read(folder: &Path) -> Result<Json> {
    let path = folder.join("tokenizer.json");
    let failed = |e: String| {
        Error::new(Code::Io, format!("`{}`: {e}", path.display()))
            .with_help("a merge with a tokenizer needs the tokenizer.json of every model")
    };
    let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
    serde_json::from_str(&text).map_err(|e| failed(e.to_string()))
}

/// The tokens of a tokenizer.json, with their numbers.
pub fn vocabulary(tokenizer: &Json) -> Result<BTreeMap<String, u32>> {
    let mut found = BTreeMap::new();
    let number = |json: &Json| json.as_u64().and_then(|n| u32::try_from(n).ok());
    match &tokenizer["model"]["vocab"] {
        Json::Object(map) => found.extend(map.iter().filter_map(|(token, id)| Some((token.clone(), number(id)?)))),
        // Unigram models list (token, score), in order.
        Json::Array(list) => {
            found.extend(list.iter().enumerate().filter_map(|(id, entry)| Some((entry.get(0)?.as_str()?.to_owned(), id as u32))));
        }
        _ => return Err(Error::new(Code::Unsupported, "this tokenizer.json has no vocabulary")),
    }
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        if let (Some(content), Some(id)) = (token["content"].as_str(), number(&token["id"])) {
            found.insert(content.to_owned(), id);
        }
    }
    match found.values().max().filter(|last| **last >= MOST_TOKENS) {
        Some(last) => {
            Err(Error::new(Code::LimitExceeded, format!("this tokenizer.json numbers a token {last}, beyond {MOST_TOKENS}")))
        }
        None => Ok(found),
    }
}

/// Rows that an output has for its tokens at most: far beyond those of any tokenizer, and room for them is made.
const MOST_TOKENS: u32 = 1 << 24;

/// Reads what a config says of the tokenizer.
///
/// # Errors
/// `io` for tokenizers that are missing; `invalid_argument` for a source that is none.
pub fn plan(config: &Json, models: &[(String, PathBuf)], base: Option<usize>) -> Result<Tokens> {
    let find = |name: &str| {
        models.iter().position(|(model, _)| model == name).ok_or_else(|| {
            let names: Vec<&str> = models.iter().map(|(m, _)| m.as_str()).collect();
            Error::invalid_argument(format!("`{name}` is none of the models")).with_help(format!("there are {}", names.join(", ")))
        })
    };
    let tokenizers: Vec<Json> = models.iter().map(|(_, folder)| read(folder)).collect::<Result<_>>()?;
    let vocabularies: Vec<BTreeMap<String, u32>> = tokenizers.iter().map(vocabulary).collect::<Result<_>>()?;
    let source = match config.get("source") {
        None | Some(Json::Null) => "union".to_owned(),
        Some(source) => source.as_str().or_else(|| source["model"]["path"].as_str()).unwrap_or_default().to_owned(),
    };
    let lead = match source.as_str() {
        "union" | "base" => base.unwrap_or(0),
        model => find(model)?,
    };
    // One order for a union: the base's, then what the others add, by its bytes.
    let mut vocabulary = vocabularies[lead].clone();
    let mut next = vocabulary.values().max().map_or(0, |last| last + 1);
    let mut append = |token: &str, vocabulary: &mut BTreeMap<String, u32>| {
        if !vocabulary.contains_key(token) {
            vocabulary.insert(token.to_owned(), next);
            next += 1;
        }
    };
    if source == "union" {
        let others: BTreeSet<&String> = vocabularies.iter().flat_map(|v| v.keys()).collect();
        others.into_iter().for_each(|token| append(token, &mut vocabulary));
    }
    let mut said = BTreeMap::new();
    for (token, how) in config.get("tokens").and_then(Json::as_object).into_iter().flatten() {
        if let Some(other) = how.get("force").filter(|force| !force.is_boolean()) {
            return Err(Error::invalid_argument(format!("force of token `{token}` is true or false, not {other}")));
        }
        let force = how["force"].as_bool().unwrap_or(false);
        let from = match &how["source"] {
            Json::Null => None,
            Json::String(model) => Some(From::Model(find(model)?)),
            source if source["kind"] == "zero" => Some(From::Zero),
            source if source["kind"] == "model_token" => {
                let model =
                    find(source["model"].as_str().or_else(|| source["model"]["model"]["path"].as_str()).unwrap_or_default())?;
                let key = match (source["token"].as_str(), source["token_id"].as_u64().and_then(|id| u32::try_from(id).ok())) {
                    (Some(token), _) => Key::Token(token.to_owned()),
                    (None, Some(id)) => Key::Id(id),
                    _ => {
                        return Err(Error::invalid_argument(format!(
                            "the source of token `{token}` names neither a token nor a token_id"
                        )));
                    }
                };
                Some(From::Token(model, key))
            }
            source => match source["model"]["path"].as_str() {
                Some(model) => Some(From::Model(find(model)?)),
                None => {
                    return Err(Error::invalid_argument(format!("the source of token `{token}` is {source}"))
                        .with_help("a model, {kind: zero} or {kind: model_token, model: .., token: ..}"));
                }
            },
        };
        append(token, &mut vocabulary);
        if let Some(from) = from {
            said.insert(token.clone(), (from, force));
        }
    }
    let used = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
    let multiple = config.get("pad_to_multiple_of").filter(|n| !n.is_null());
    if let Some(other) = multiple.filter(|n| n.as_u64().is_none()) {
        return Err(Error::invalid_argument(format!("pad_to_multiple_of is a whole number, not {other}")));
    }
    let rows = match multiple.and_then(Json::as_u64) {
        Some(n) if n > u64::from(MOST_TOKENS) => {
            return Err(Error::new(Code::LimitExceeded, format!("pad_to_multiple_of is {n}, beyond {MOST_TOKENS}")));
        }
        Some(n) if n > 0 => used.next_multiple_of(n as usize),
        _ => used,
    };
    let tokenizer = merged(&tokenizers, lead, &vocabulary, source == "union");
    check_numbers(&tokenizer, &vocabulary)?;
    let (folder, changed) = (models[lead].1.clone(), vocabulary != vocabularies[lead]);
    let models = models.iter().map(|(name, _)| name.clone()).zip(vocabularies).collect();
    Ok(Tokens { vocabulary, rows, models, base, said, tokenizer, folder, changed })
}

/// A merge rule, which is written in one of two ways: the pieces apart, or with a blank between them.
fn pieces(rule: &Json) -> Option<(&str, &str)> {
    match rule {
        Json::String(text) => text.split_once(' '),
        rule => Some((rule.get(0)?.as_str()?, rule.get(1)?.as_str()?)),
    }
}

/// The leading tokenizer with the tokens of the output; with the merge rules of the others if it is a union.
fn merged(tokenizers: &[Json], lead: usize, vocabulary: &BTreeMap<String, u32>, union: bool) -> Json {
    let mut out = tokenizers[lead].clone();
    let mut added: BTreeMap<u32, Json> = BTreeMap::new();
    for tokenizer in std::iter::once(&tokenizers[lead]).chain(tokenizers) {
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            if let Some(id) = token["content"].as_str().and_then(|content| vocabulary.get(content)) {
                let mut token = token.clone();
                token["id"] = json!(id);
                added.entry(*id).or_insert(token);
            }
        }
    }
    // A list of pieces with their scores takes no others; a map takes those of all.
    let listed = |t: &Json| -> Vec<String> {
        let list = t["model"]["vocab"].as_array().into_iter().flatten();
        list.filter_map(|entry| Some(entry.get(0)?.as_str()?.to_owned())).collect()
    };
    let in_models: BTreeSet<String> = match &out["model"]["vocab"] {
        Json::Array(_) => listed(&out).into_iter().collect(),
        _ => {
            let maps = tokenizers.iter().filter_map(|t| t["model"]["vocab"].as_object()).flat_map(|map| map.keys().cloned());
            maps.chain(tokenizers.iter().flat_map(listed)).collect()
        }
    };
    for (token, id) in vocabulary {
        if !in_models.contains(token) {
            // A token that only the config has.
            added.entry(*id).or_insert_with(|| {
                json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false })
            });
        }
    }
    if out["model"]["vocab"].is_object() {
        // All of them: readers number an added token that is not here anew, behind the others.
        let mut tokens: Vec<(&String, &u32)> = vocabulary.iter().collect();
        tokens.sort_by_key(|(_, id)| **id);
        out["model"]["vocab"] = Json::Object(tokens.into_iter().map(|(token, id)| (token.clone(), json!(id))).collect());
        // Merge rules of the others come after the leading ones, by their bytes.
        if let Some(own) = out["model"]["merges"].as_array().filter(|_| union).cloned() {
            let known: BTreeSet<(&str, &str)> = own.iter().filter_map(pieces).collect();
            let others = tokenizers.iter().filter_map(|t| t["model"]["merges"].as_array()).flatten().filter_map(pieces);
            let prefix = out["model"]["continuing_subword_prefix"].as_str().unwrap_or_default().to_owned();
            // What no token comes of, readers do not take.
            let there = |(left, right): &(&str, &str)| {
                let whole = format!("{left}{}", right.strip_prefix(prefix.as_str()).unwrap_or(right));
                [*left, *right, whole.as_str()].iter().all(|token| vocabulary.contains_key(*token))
            };
            let more: BTreeSet<(&str, &str)> = others.filter(|rule| !known.contains(rule) && there(rule)).collect();
            // As the leading ones are written.
            let apart = own.first().is_none_or(Json::is_array);
            let written = |(left, right): (&str, &str)| if apart { json!([left, right]) } else { json!(format!("{left} {right}")) };
            let all = own.iter().cloned().chain(more.into_iter().map(written)).collect();
            out["model"]["merges"] = Json::Array(all);
        }
    }
    out["added_tokens"] = Json::Array(added.into_values().collect());
    out
}

/// Holds the numbers that readers give the tokens against those that the rows of the embeddings have: an added token that the vocabulary
/// of the model lacks gets the next number, whatever is written beside it.
fn check_numbers(tokenizer: &Json, vocabulary: &BTreeMap<String, u32>) -> Result<()> {
    let mut inside: BTreeMap<&str, u32> = BTreeMap::new();
    match &tokenizer["model"]["vocab"] {
        Json::Object(map) => inside.extend(map.iter().filter_map(|(token, id)| Some((token.as_str(), id.as_u64()? as u32)))),
        Json::Array(list) => {
            inside.extend(list.iter().enumerate().filter_map(|(id, entry)| Some((entry.get(0)?.as_str()?, id as u32))))
        }
        _ => {}
    }
    let mut last = None;
    for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let Some(content) = token["content"].as_str() else { continue };
        let next = last.map_or(0, |last: u32| last + 1).max(inside.len() as u32);
        let number = inside.get(content).copied().unwrap_or(next);
        last = last.max(Some(number));
        if vocabulary.get(content) != Some(&number) {
            return Err(Error::new(
                Code::Unsupported,
                format!("readers of tokenizers would number the token `{content}` {number}, not {:?}", vocabulary.get(content)),
            )
            .with_help("the numbers of the leading tokenizer have gaps: choose another as source"));
        }
    }
    Ok(())
}

impl Tokens {
    /// What the answer depends on.
    pub fn describe(&self) -> String {
        format!("tokens {:?} rows {} sources {:?}", self.vocabulary, self.rows, self.said)
    }

    /// The tokenizer.json of the output.
    pub fn tokenizer(&self) -> &Json {
        &self.tokenizer
    }

    /// A model's tensor with a row for each token of the output: its own, that of the base or the mean of all that have it where it has none,
    /// or what the config says.
    ///
    /// # Errors
    /// `type_mismatch` for a tensor with fewer rows than tokens.
    pub fn rows(&self, models: &[Model], model: &str, name: &str, tensor: &Tensor) -> Result<Tensor> {
        if tensor.shape.is_empty() {
            return Err(Error::type_mismatch(format!("tensor `{name}` of `{model}` has no rows, which tokens have")));
        }
        let own = self.models.iter().position(|(m, _)| m == model).unwrap_or(self.base.unwrap_or(0));
        let mut tensors: Vec<Tensor> = vec![tensor.clone()];
        let mut places: BTreeMap<usize, u32> = BTreeMap::from([(own, 0)]);
        for (at, (model, _)) in self.models.iter().enumerate() {
            let other =
                models.iter().find(|m| m.name == *model).and_then(|m| m.checkpoint.get(name).or_else(|| tied(&m.checkpoint, name)));
            if let Some(other) = other.filter(|o| at != own && o.shape.get(1..) == tensor.shape.get(1..)) {
                places.insert(at, tensors.len() as u32);
                tensors.push(other.clone());
            }
        }
        let mut rows = vec![Row::Padding; self.rows];
        for (token, id) in &self.vocabulary {
            let row = |at: usize, key: &Key| -> Option<(u32, u32)> {
                let place = *places.get(&at)?;
                let row = match key {
                    Key::Token(token) => *self.models[at].1.get(token)?,
                    Key::Id(id) => *id,
                };
                ((row as usize) < tensors[place as usize].shape[0]).then_some((place, row))
            };
            let key = Key::Token(token.clone());
            let of_own = row(own, &key);
            let said = self.said.get(token);
            let forced = said.is_some_and(|(_, force)| *force);
            let sources = match (of_own, said) {
                (Some(of_own), _) if !forced => vec![of_own],
                (_, Some((From::Zero, _))) => Vec::new(),
                (_, Some((From::Model(at), _))) => vec![row(*at, &key).ok_or_else(|| missing(&self.models[*at].0, token))?],
                (_, Some((From::Token(at, key), _))) => {
                    vec![row(*at, key).ok_or_else(|| missing(&self.models[*at].0, &format!("{key:?}")))?]
                }
                (_, None) => match self.base.and_then(|base| row(base, &key)) {
                    Some(of_base) => vec![of_base],
                    None => (0..self.models.len()).filter_map(|at| row(at, &key)).collect(),
                },
            };
            rows[*id as usize] = Row::Mean(sources);
        }
        Ok(made::rows(name, tensors, rows))
    }
}

fn missing(model: &str, token: &str) -> Error {
    Error::invalid_argument(format!("`{model}` has no row for the token {token}"))
        .with_help("name a model that has it, or {kind: zero}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_rules_and_pieces_stay_readable() {
        let numbered = |tokens: &[&str]| -> BTreeMap<String, u32> {
            tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id as u32)).collect()
        };
        let of =
            |tokens: &[&str], merges: Json| json!({ "model": { "vocab": numbered(tokens), "merges": merges }, "added_tokens": [] });
        let old = of(&["a", "b", "ab"], json!(["a b"]));
        let new = of(&["a", "b", "ab", "c", "abc"], json!([["a", "b"], ["ab", "c"], ["c", "d"]]));
        let all = numbered(&["a", "b", "ab", "c", "abc"]);
        let rules = |tokenizers: &[Json], union: bool, vocabulary: &BTreeMap<String, u32>| {
            merged(tokenizers, 0, vocabulary, union)["model"]["merges"].clone()
        };
        // One form, no rule twice, none whose tokens are not there.
        assert_eq!(rules(&[old.clone(), new.clone()], true, &all), json!(["a b", "ab c"]));
        assert_eq!(rules(&[new.clone(), old.clone()], true, &all), json!([["a", "b"], ["ab", "c"], ["c", "d"]]));
        // The leading one's alone, if its tokens are.
        assert_eq!(rules(&[old, new], false, &numbered(&["a", "b", "ab"])), json!(["a b"]));
        // Pieces with scores are no added tokens.
        let list = json!({ "model": { "type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]] }, "added_tokens": [] });
        let out = merged(&[list.clone(), list.clone()], 0, &numbered(&["a", "b"]), true);
        assert_eq!(out, list);
        let more = merged(std::slice::from_ref(&list), 0, &numbered(&["a", "b", "new"]), true);
        assert_eq!(more["added_tokens"][0]["content"], "new");
    }
}
