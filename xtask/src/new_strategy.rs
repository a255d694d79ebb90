//! A new strategy is one new file: this adds one to a copy of the project and finds it in SQL, in SHOW STRATEGIES, in the law tests and
//! in the manual, with no other edit.

use crate::Outcome;
use std::path::Path;
use std::process::Command;

/// The file: the text whose bytes are the greatest when read backwards.
const FILE: &str = r#"//! `backwards`: the text that is greatest when read backwards.

use crate::aggregate::{Call, Strategy};
use crate::catalog::{Entry, Input, Spec};
use crate::codec::{Reader, Writer};
use crate::error::Result;
use crate::lattice::best::{Best, Candidate, Ranking};
use crate::types::Type;
use crate::value::Value;
use std::cmp::Ordering;

pub(crate) fn register(entries: &mut Vec<Entry>) {
    entries.push(Entry::of::<Backwards>());
}

#[derive(Debug)]
struct Backwards;

#[derive(Debug, Clone, PartialEq)]
struct Reversed;

impl Ranking for Reversed {
    const RANKS: usize = 0;

    fn compare(&self, a: &Candidate, b: &Candidate) -> Ordering {
        let key = |c: &Candidate| c.value.to_string().bytes().rev().collect::<Vec<u8>>();
        key(a).cmp(&key(b)).then_with(|| a.value.cmp(&b.value))
    }

    fn encode(&self, _: &mut Writer) {}

    fn decode(_: &mut Reader<'_>) -> Result<Self> {
        Ok(Reversed)
    }
}

impl Strategy for Backwards {
    const SPEC: Spec = Spec {
        name: "backwards",
        aliases: &[],
        type_id: 200,
        since: "9.9.9",
        title: "the greatest text read backwards",
        doc: "The text that is greatest when its bytes are read backwards.",
        inputs: &[Input::Value],
        args: &[],
        takes: "text",
        selects: true,
        closed: |_| true,
        example: ("SELECT crdt_backwards(v) AS v FROM (VALUES ('az'), ('zb')) AS t(v)", "az"),
        source: "an example",
        samples: || vec![Call::new(vec![Type::Text])],
    };
    type State = Best<Reversed>;

    fn configure(_: &Call) -> Result<Self> {
        Ok(Backwards)
    }

    fn result_type(&self) -> Type {
        Type::Text
    }

    fn empty(&self) -> Self::State {
        Best::empty(Reversed)
    }

    fn update(&self, state: &mut Self::State, row: &[Value]) -> Result<()> {
        if !row[0].is_null() {
            state.offer(Candidate { value: row[0].clone(), rank: Vec::new() });
        }
        Ok(())
    }
}
"#;

fn output(copy: &Path, target: &Path, arguments: &[&str]) -> Result<String, String> {
    let run = crate::command("cargo").args(arguments).current_dir(copy).env("CARGO_TARGET_DIR", target).output();
    let run = run.map_err(|e| format!("cargo: {e}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if run.status.success() { Ok(text) } else { Err(format!("cargo {} failed in the copy:\n{text}", arguments.join(" "))) }
}

/// Adds the strategy to a copy and looks for it.
pub fn check(root: &Path) -> Outcome {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    // Always the same place, so that a second run builds little.
    let copy = target.join("new-strategy");
    let fail = |e: std::io::Error| format!("{}: {e}", copy.display());
    std::fs::remove_dir_all(&copy)
        .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .map_err(fail)?;
    std::fs::create_dir_all(&copy).map_err(fail)?;
    for entry in std::fs::read_dir(root).map_err(fail)? {
        let part = entry.map_err(fail)?.file_name();
        if part == ".git" || part == "target" {
            continue;
        }
        let done = Command::new("cp").arg("-r").arg(root.join(&part)).arg(&copy).status().map_err(fail)?;
        if !done.success() {
            return Err(format!("{} cannot be copied", part.display()));
        }
    }
    std::fs::write(copy.join("udfs/src/strategies/backwards.rs"), FILE).map_err(fail)?;
    let contains = |what: &str, text: &str, wanted: &str| {
        if text.contains(wanted) { Ok(()) } else { Err(format!("the new strategy is not in {what}:\n{text}")) }
    };
    output(&copy, &target, &["test", "-p", "mergeql-udfs", "--test", "laws"])?;
    // Built as the tests build it: `cargo run` would select one package alone, with other features, and build DataFusion again.
    output(&copy, &target, &["build", "-q", "--bin", "mergeql"])?;
    let program = target.join("debug/mergeql");
    let answer = |sql: &str| {
        let run = Command::new(&program)
            .args(["-c", sql, "--format", "csv"])
            .output()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        Ok::<_, String>(format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)))
    };
    contains("SQL", &answer("SELECT crdt_backwards(v) AS v FROM (VALUES ('az'), ('zb')) AS t(v)")?, "az")?;
    contains("MERGE", &answer("MERGE (VALUES (1, 'az'), (1, 'zb')) AS t ON column1 STRATEGY column2 = backwards")?, "1,az")?;
    contains("SHOW STRATEGIES", &answer("SHOW STRATEGIES")?, "backwards")?;
    output(&copy, &target, &["run", "-q", "-p", "xtask", "--", "docs"])?;
    let manual = std::fs::read_to_string(copy.join("docs/strategies.md")).map_err(fail)?;
    contains("the manual", &manual, "## backwards")
}
