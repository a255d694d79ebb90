//! The generated pages of the manual: `docs/strategies.md`, the hex examples of `docs/state-format.md` and the strategies of `docs/models.md`
//! come from the catalogues.

use crate::Outcome;
use mergeql_tensors::method::Base;
use mergeql_udfs::catalog::{self, ArgKind, Spec};
use mergeql_udfs::laws::{Machine, Store, rows_of};
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
        page(&mut out, entry.spec());
    }
    out
}

fn page(out: &mut String, s: &Spec) {
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
    let _ = write!(out, "\n```sql\n{sql}\n```\n```text\n{result}\n```\n\nSource: {}.\n", s.source);
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
