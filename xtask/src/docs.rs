//! The generated pages of the manual: `docs/strategies.md`, the hex examples of `docs/state-format.md` and the strategies of `docs/models.md`
//! come from the catalogues.

use crate::Outcome;
use mergeql_tensors::method::Base;
use mergeql_udfs::Value;
use mergeql_udfs::catalog::{self, ArgKind, Entry};
use mergeql_udfs::laws::{Machine, Row, Store, rows_of};
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = "# Strategies

*Generated from the catalogue by `cargo xtask docs`; every SQL block is run by a test.*

A strategy resolves the values of one column for one key. Each is a join-semilattice: its partial states commute, associate and are
idempotent, so the answer is a function of the *set* of rows. Each is also an aggregate, `crdt_<name>(...)`, with
`crdt_<name>_state(...)` giving its state, which `crdt_merge(state)` joins anywhere. Configured calls that need more than literals
are written `crdt_<name>_with('{...}', ...)`.

";

fn strategies() -> String {
    let mut out = HEAD.to_owned();
    out.push_str("| strategy | aliases | result | takes |\n|---|---|---|---|\n");
    for entry in catalog::all() {
        let s = entry.spec();
        let aliases = s.aliases.iter().map(|a| format!("`{a}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(out, "| [`{0}`](#{0}) | {aliases} | {1} | {2} |", s.name, s.title, s.takes);
    }
    for entry in catalog::all() {
        page(&mut out, entry);
    }
    out
}

fn page(out: &mut String, entry: &Entry) {
    let s = entry.spec();
    let _ = write!(out, "\n## {}\n\n{}\n\n", s.name, s.doc);
    let _ = writeln!(out, "Written `{}`; since {}; takes {}.", s.usage(), s.since, s.takes);
    if !s.args.is_empty() {
        out.push('\n');
        for arg in s.args {
            let written = match arg.kind {
                ArgKind::RespectNulls => "RESPECT NULLS".to_owned(),
                _ => arg.name.to_owned(),
            };
            let _ = writeln!(out, "- `{written}`: {}", arg.doc);
        }
    }
    let (sql, result) = s.example;
    let _ = write!(out, "\n```sql\n{sql}\n```\n```text\n{result}\n```\n{}\nSource: {}.\n", history(entry), s.source);
}

/// The rows of two replicas, as JSON, that show best what becomes of changes made at the same time: for the others a search finds some.
const HISTORIES: [(&str, &str, &str); 9] = [
    ("orset", r#"[["x","a",1],[null,"a",1]]"#, r#"[["x","a",1],["x","b",1]]"#),
    ("rwset", r#"[[7,"a",1,false],[null,"a",1,null],[7,"a",2,true]]"#, r#"[[7,"a",1,false],[7,"b",1,false]]"#),
    ("mvr", r#"[["old","a",1],[null,"a",1],["red","a",2]]"#, r#"[["old","a",1],[null,"a",1],["blue","b",1]]"#),
    ("ewflag", r#"[[true,"a",1],[false,"a",1]]"#, r#"[[true,"a",1],[true,"b",1]]"#),
    ("dwflag", r#"[[false,"a",1],[true,"a",1]]"#, r#"[[false,"a",1],[false,"b",1]]"#),
    ("twopset", "[[1,false],[1,true]]", "[[1,false],[2,false]]"),
    ("lwwmap", r#"[[1,"k",1],[null,"k",3]]"#, r#"[[1,"k",1],[2,"k",2],[5,"l",1]]"#),
    ("json", r#"[["{\"a\":1,\"b\":{\"c\":1}}",1]]"#, r#"[["{\"b\":{\"c\":2,\"d\":3}}",2]]"#),
    ("similar", r#"[["Acme Corporation Ltd, London",1]]"#, r#"[["ACME  Corporation Ltd, London",2],["Umbrella Inc.",3]]"#),
];

fn chosen_history(entry: &Entry) -> Option<[String; 5]> {
    let (_, a, b) = HISTORIES.iter().find(|(name, ..)| *name == entry.spec().name)?;
    let rows = |json: &str| match mergeql_udfs::value::from_json(json) {
        Ok(Value::List(rows)) => {
            rows.into_iter().map(|row| if let Value::List(row) = row { row } else { Vec::new() }).collect::<Vec<Row>>()
        }
        other => panic!("{other:?} are no rows"),
    };
    let (a, b) = (rows(a), rows(b));
    let call = (entry.spec().samples)().into_iter().rev().find(|call| call.inputs.len() == a[0].len())?;
    let store = Store::new(entry.bind(&call).ok()?, false);
    let said = |rows: &[Row]| store.run(rows, &[]).map_or(Value::Null, |(_, value)| value);
    let listed = |rows: &[Row]| rows.iter().map(|row| shown(&Value::List(row.clone()))).collect::<Vec<_>>().join(", ");
    let both = [a.as_slice(), &b].concat();
    Some([listed(&a), listed(&b), shown(&said(&a)), shown(&said(&b)), shown(&said(&both))])
}

/// What two replicas hold that do not know of each other, and what both say when they do: out of a sample's rows, those whose join is
/// news to both.
fn history(entry: &Entry) -> String {
    if let Some(cells) = chosen_history(entry) {
        return table(&cells);
    }
    let mut samples = (entry.spec().samples)();
    // With a version where there is one.
    samples.sort_by_key(|call| std::cmp::Reverse(call.inputs.len()));
    let mut best: Option<(usize, [String; 5])> = None;
    for call in &samples {
        let Ok(aggregate) = entry.bind(call) else { continue };
        let store = Store::new(aggregate, false);
        let plain = |row: &Row| !row.iter().any(|v| v.is_null() || v.is_nan());
        let rows: Vec<Row> = rows_of(entry, call).into_iter().filter(plain).collect();
        // Some from everywhere in the domain.
        let rows: Vec<&Row> = rows.iter().step_by(rows.len().div_ceil(7).max(1)).collect();
        let single = (0..rows.len()).map(|i| vec![i]);
        let pairs = (0..rows.len()).flat_map(|i| (i + 1..rows.len()).map(move |j| vec![i, j]));
        let said = |which: &[usize]| {
            let rows: Vec<Row> = which.iter().map(|i| rows[*i].clone()).collect();
            store.run(&rows, &[]).map_or(Value::Null, |(_, value)| value)
        };
        let sides: Vec<(Vec<usize>, Value)> = single.chain(pairs).map(|side| (said(&side), side)).map(|(v, s)| (s, v)).collect();
        for ((a, one), (b, other)) in sides.iter().flat_map(|a| sides.iter().map(move |b| (a, b))) {
            if best.as_ref().is_some_and(|(score, _)| *score == 3) {
                break;
            }
            // An event of an origin, and a version, is of one row.
            let whose = |i: &usize| &rows[*i][1..];
            if rows[0].len() > 1 && a.iter().any(|i| b.iter().any(|j| whose(i) == whose(j))) {
                continue;
            }
            let both = said(&[a.as_slice(), b].concat());
            let score = usize::from(one != other) + usize::from(both != *one) + usize::from(both != *other);
            if [one, other, &both].iter().any(|v| v.is_null()) || best.as_ref().is_some_and(|(known, _)| *known >= score) {
                continue;
            }
            let rows = |which: &[usize]| which.iter().map(|i| shown(&Value::List(rows[*i].clone()))).collect::<Vec<_>>().join(", ");
            best = Some((score, [rows(a), rows(b), shown(one), shown(other), shown(&both)]));
        }
    }
    best.map_or_else(String::new, |(_, cells)| table(&cells))
}

fn table(cells: &[String; 5]) -> String {
    let line = cells.iter().map(|cell| format!("`{cell}`")).collect::<Vec<_>>().join(" | ");
    format!("\n| rows at a | rows at b | a says | b says | both say, joined |\n|---|---|---|---|---|\n| {line} |\n")
}

/// A value in a cell of a table.
fn shown(value: &Value) -> String {
    fn short(value: &Value) -> Value {
        match value {
            Value::Bytes(bytes) if bytes.len() > 16 => Value::text(format!("{} bytes", bytes.len())),
            Value::List(items) => Value::List(items.iter().map(short).collect()),
            other => other.clone(),
        }
    }
    let text = short(value).to_string().replace('|', "\\|").replace('\0', "\\0").replace('`', "'");
    match text.char_indices().nth(80) {
        _ if text.is_empty() => "''".to_owned(),
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// The state of a sample call's first rows, in hex.
fn states() -> String {
    let mut out = String::from("| type | id | a state, in hex |\n|---|---|---|\n");
    for entry in catalog::all() {
        let Some(call) = (entry.spec().samples)().into_iter().next() else { continue };
        let rows = rows_of(entry, &call);
        let Ok(aggregate) = entry.bind(&call) else { continue };
        let Ok((Some(state), _)) = Store::new(aggregate, true).run(&rows[..rows.len().min(2)], &[]) else { continue };
        let hex: String = state.iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(out, "| `{}` | {} | `{hex}` |", entry.spec().name, entry.spec().type_id);
    }
    out
}

const MARK: &str = "<!-- generated: examples -->";
const METHODS: &str = "<!-- generated: methods -->";

/// The strategies of tensors with their parameters.
fn methods() -> String {
    let mut out = String::from("## Strategies\n");
    for method in mergeql_tensors::methods::ALL {
        let _ = write!(out, "\n### {}\n\n", method.name);
        let mut title = method.title.chars();
        let first: String = title.next().into_iter().flat_map(char::to_uppercase).collect();
        let _ = writeln!(out, "{first}{}.", title.as_str());
        let base = match method.base {
            Base::None => "no base",
            Base::Optional => "a base if there is one",
            Base::Required => "a base",
        };
        let models = match method.models {
            (1, 1) => "one model".to_owned(),
            (2, 2) => "two models".to_owned(),
            (_, usize::MAX) => "any number of models".to_owned(),
            (_, most) => format!("up to {most} models"),
        };
        let order = if method.ordered { "; **the order of the models counts**" } else { "" };
        let _ = writeln!(out, "Takes {models} and {base}{order}. Source: {}.", method.paper);
        if !method.aliases.is_empty() {
            let names: Vec<String> = method.aliases.iter().map(|(name, _)| format!("`{name}`")).collect();
            let _ = writeln!(out, "Also written {}.", names.join(", "));
        }
        if !method.params.is_empty() {
            out.push_str("\n| parameter | default | |\n|---|---|---|\n");
        }
        for param in method.params {
            let default = match param.default {
                "" => String::new(),
                "!" => "must be given".to_owned(),
                value => format!("`{value}`"),
            };
            let each = if param.per_model { "; one value, or one for each model" } else { "" };
            let _ = writeln!(out, "| `{}` | {default} | {}{each} |", param.name, param.title);
        }
    }
    out
}

fn pages(root: &Path) -> Result<Vec<(&'static str, String)>, String> {
    let path = root.join("docs/state-format.md");
    let format = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let prose = format.split(MARK).next().unwrap_or_default();
    let path = root.join("docs/models.md");
    let models = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let models = models.split(METHODS).next().unwrap_or_default();
    Ok(vec![
        ("docs/strategies.md", strategies()),
        ("docs/state-format.md", format!("{prose}{MARK}\n\n{}", states())),
        ("docs/models.md", format!("{models}{METHODS}\n\n{}", methods())),
    ])
}

/// Writes the pages.
pub fn write(root: &Path) -> Outcome {
    for (path, text) in pages(root)? {
        std::fs::write(root.join(path), text).map_err(|e| format!("{path}: {e}"))?;
    }
    Ok(())
}

/// Says whether the pages are what the catalogue gives.
pub fn check(root: &Path) -> Outcome {
    for (path, text) in pages(root)? {
        if std::fs::read_to_string(root.join(path)).unwrap_or_default() != text {
            return Err(format!("{path} is not what the catalogue gives: run `cargo xtask docs`"));
        }
    }
    Ok(())
}
