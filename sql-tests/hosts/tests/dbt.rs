//! The dbt package in real dbt, on a real DuckDB and a real Postgres: build, late and repeated batches against a full refresh, errors, docs.
#![allow(clippy::unwrap_used, missing_docs)]

use mergeql_host_tests::cluster::Cluster;
use mergeql_sql_tests::pages::blocks;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A copy of the package and its test project, so that nothing is left beside the sources.
struct Project {
    folder: tempfile::TempDir,
    target: &'static str,
    vars: String,
    environment: Vec<(String, String)>,
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("run `cargo xtask test`: it installs dbt and names it here")
}

impl Project {
    fn new(target: &'static str, vars: String, environment: Vec<(String, String)>) -> Project {
        let folder = tempfile::tempdir().unwrap();
        copy(&root().join("dbt"), &folder.path().join("dbt"));
        copy(&root().join("examples"), &folder.path().join("examples"));
        let project = Project { folder, target, vars, environment };
        project.run(&["deps"], "");
        project
    }

    fn duckdb() -> Project {
        let file = tempfile::Builder::new().prefix("mergeql-dbt").tempdir().unwrap().keep().join("test.duckdb");
        let vars = format!("mergeql_extension: {}", variable("MERGEQL_DUCKDB_EXTENSION"));
        Project::new("duckdb", vars, vec![("MERGEQL_DUCKDB_FILE".into(), file.display().to_string())])
    }

    fn postgres(cluster: &Cluster) -> Project {
        let environment =
            [("PGHOST", cluster.folder.display().to_string()), ("PGUSER", "postgres".into()), ("PGDATABASE", cluster.database())];
        Project::new("postgres", String::new(), environment.map(|(k, v)| (k.to_owned(), v)).to_vec())
    }

    fn command(&self, folder: &str, arguments: &[&str], vars: &str) -> (bool, String) {
        let vars = [self.vars.as_str(), vars].into_iter().filter(|v| !v.is_empty()).collect::<Vec<_>>().join(", ");
        let dbt = Path::new(&variable("MERGEQL_DBT_PYTHON")).with_file_name("dbt");
        let output = Command::new(dbt)
            .args(arguments)
            .args(["--target", self.target, "--vars", &format!("{{{vars}}}"), "--profiles-dir", "."])
            .current_dir(self.folder.path().join(folder))
            .env("DBT_SEND_ANONYMOUS_USAGE_STATS", "false")
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().cloned())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    }

    fn run(&self, arguments: &[&str], vars: &str) -> String {
        let (fine, output) = self.command("dbt/integration_tests", arguments, vars);
        assert!(fine, "{arguments:?} {vars} on {}\n{output}", self.target);
        output
    }

    /// The models as sqlfluff sees them, with dbt's templater.
    fn lint(&self, folder: &str) {
        use std::io::Write;
        let folder = self.folder.path().join(folder);
        let mut settings = std::fs::OpenOptions::new().append(true).open(folder.join(".sqlfluff")).unwrap();
        writeln!(settings, "\n[sqlfluff:templater:dbt:context]\n{}", self.vars.replacen(": ", " = ", 1)).unwrap();
        let linter = Path::new(&variable("MERGEQL_DBT_PYTHON")).with_file_name("sqlfluff");
        let output = Command::new(linter)
            .args(["lint", "--nocolor", "--processes", "1", "."])
            .current_dir(folder)
            .envs(self.environment.iter().cloned())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("fatal exception"), "{text}");
    }

    fn fails(&self, arguments: &[&str], vars: &str, parts: &[&str]) {
        let (fine, output) = self.command("dbt/integration_tests", arguments, vars);
        assert!(!fine, "{arguments:?} should fail");
        parts.iter().for_each(|part| assert!(output.contains(part), "`{part}` is not in\n{output}"));
    }

    /// The rows of a model as text, in order.
    fn rows(&self, model: &str) -> Vec<String> {
        let query = format!("select * from {{{{ ref('{model}') }}}} order by 1");
        let output = self.run(&["show", "--quiet", "--inline", &query, "--limit", "-1", "--output", "json"], "");
        let json: serde_json::Value = serde_json::from_str(&output[output.find('{').unwrap()..]).unwrap();
        json["show"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.as_object().unwrap().values().map(|v| v.to_string()).collect::<Vec<_>>().join(" | "))
            .collect()
    }
}

fn everything(project: &Project) {
    let built = project.run(&["build"], "");
    assert!(built.contains("ERROR=0"), "{built}");
    assert_eq!(project.rows("people").len(), 4);
    let first = project.rows("visits");
    assert_eq!(first, project.rows("visits_crdt"));

    // Late, then everything again in another order: the same as all at once.
    let models = ["-s", "visits", "visits_crdt"];
    let batch = |vars: &str| project.run(&[&["run"], &models[..]].concat(), vars);
    batch("late: true");
    let late = project.rows("visits");
    assert_ne!(first, late);
    batch("late: true");
    batch("");
    assert_eq!(project.rows("visits"), late);
    project.run(&["run", "--full-refresh", "-s", "visits"], "everything: true");
    assert_eq!(project.rows("visits"), late);
    // A column that came later was appended.
    let with_tens = project.rows("visits_crdt");
    assert!(with_tens.iter().zip(&late).all(|(a, b)| a.starts_with(b.as_str()) && a.len() > b.len()), "{with_tens:?}");

    let errors = |model: &str, parts: &[&str]| project.fails(&["run", "-s", model], "errors: true", parts);
    errors("wrong_strategy", &["unknown_strategy", "maxx", "did you mean `max`"]);
    errors("wrong_column", &["unknown_column", "salry", "did you mean `salary`"]);
    errors("no_key", &["unique_key"]);
    errors("misspelt", &["merge_defalt", "merge_default"]);
    errors("ignored", &["`strategies`", "merge_strategies"]);
    errors("wrong_change", &["on_schema_change", "sometimes"]);

    // Values of every type come out of their states as they went in: in two batches, and all at once.
    project.run(&["run", "-s", "typed"], "typed_batch: 2");
    project.run(&["test", "-s", "typed_batches_are_one"], "typed_batch: 2");
    // What a column holds is taken, whatever the type it comes in and the letters of its name; what it does not hold is no value of it.
    project.run(&["run", "-s", "widths"], "");
    project.run(&["run", "-s", "widths"], "width: '1.5', scale: 3, spelling: Label");
    assert_eq!(project.rows("widths"), ["1 | 1.5 | \"1.5\""]);
    // Postgres' merged numerics have no limits.
    if project.target == "duckdb" {
        project.fails(&["run", "-s", "widths"], "width: '1.625', scale: 3", &["price", "does not hold", "--full-refresh"]);
    }
    project.run(&["run", "--full-refresh", "-s", "widths"], "width: '1.625', scale: 3");
    // A contract is kept, by what comes later too.
    project.run(&["run", "-s", "names"], "late: true");
    assert_eq!(project.rows("names").len(), late.len() + 1);

    // A model that fails leaves what was there.
    project.fails(&["run", "--full-refresh", "-s", "names"], "names_fail: true", &["names"]);
    assert_eq!(project.rows("names").len(), late.len() + 1);
    // Without rows, as pipelines are tried.
    project.run(&["run", "--empty", "-s", "people"], "");
    assert!(project.rows("people").is_empty());
    project.run(&["run", "-s", "people"], "");
    // What was deleted stays away where states are resolved.
    project.run(&["run", "-s", "+visits_resolved"], "");
    assert_eq!(project.rows("visits_resolved").len(), late.len());

    // A table whose states are gone: dbt's is_incremental() would say yes, and old rows would not be looked at.
    project.run(&["run-operation", "forget_states", "--args", "{model: visits}"], "");
    project.fails(&["run", "-s", "visits"], "", &["visits__mergeql_state", "--full-refresh"]);
    project.run(&["run", "--full-refresh", "-s", "visits"], "everything: true");
    assert_eq!(project.rows("visits"), late);

    // The generic tests fail where they should.
    project.run(&["run", "-s", "people_disagree"], "errors: true");
    let parts = ["FAIL 5 sources_disagree", "FAIL 4 not_what_its_input_gives", "FAIL 1 no_such_strategy"];
    project.fails(&["test", "-s", "people_disagree"], "errors: true", &parts);

    // Without the extension: the strategies of plain SQL, and a clear error for the others.
    project.run(&["run", "-s", "people_plain"], "mergeql_plain_sql: true");
    project.run(&["test", "-s", "plain_sql_is_what_the_extension_gives"], "");
    project.run(&["run", "-s", "corners_newest", "corners_oldest"], "mergeql_plain_sql: true");
    project.run(&["test", "-s", "corners_newest", "corners_oldest"], "corners: true");
    project.fails(
        &["run", "-s", "people"],
        "mergeql_plain_sql: true",
        &["plain SQL has no lawful answer for the strategy `union`"],
    );
    project.run(&["docs", "generate"], "");
    let manifest = std::fs::read_to_string(project.folder.path().join("dbt/integration_tests/target/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let documented = manifest["macros"]["macro.mergeql.conflicts"]["arguments"][3]["description"].as_str().unwrap();
    assert!(documented.contains("tell newer from older"), "{documented}");
}

#[test]
fn in_duckdb() {
    let project = Project::duckdb();
    everything(&project);
    project.lint("dbt/integration_tests");
}

#[test]
fn in_postgres() {
    let cluster = Cluster::start();
    everything(&Project::postgres(&cluster));
}

/// The example of the README in two commands.
#[test]
fn the_example_shop() {
    let project = Project::duckdb();
    for arguments in [&["deps"][..], &["build"]] {
        let (fine, output) = project.command("examples/dbt_shop", arguments, "");
        assert!(fine, "{output}");
    }
    project.lint("examples/dbt_shop");

    // The profile on DuckDB's page loads the extension by itself.
    let page = blocks(include_str!("../../../docs/hosts/duckdb.md"));
    let profile = &page.iter().find(|block| block.language == "yaml").unwrap().code;
    let profile = profile.replace("/path/to/mergeql.duckdb_extension", &variable("MERGEQL_DUCKDB_EXTENSION"));
    let mut project = Project::new("duckdb", String::new(), Vec::new());
    project.target = "dev";
    std::fs::write(project.folder.path().join("examples/dbt_shop/profiles.yml"), profile).unwrap();
    for arguments in [&["deps"][..], &["build"]] {
        let (fine, output) = project.command("examples/dbt_shop", arguments, "");
        assert!(fine, "{output}");
    }
    assert!(project.folder.path().join("examples/dbt_shop/shop.duckdb").is_file());
}
