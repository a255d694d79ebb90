//! dbt-postgres on a server: a project of plain models, whose text is MergeQL.

use crate::{Running, variable};
use std::path::Path;
use std::process::Command;

fn project(folder: &Path, port: &str) {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("dbt_project.yml", "name: people\nversion: '1.0'\nprofile: people\nmodel-paths: [models]\nseed-paths: [seeds]\n");
    write(
        "profiles.yml",
        &format!(
            "people:\n  target: dev\n  outputs:\n    dev: {{type: postgres, host: 127.0.0.1, port: {port}, user: me, password: none, \
             dbname: datafusion, schema: public, threads: 2}}\n"
        ),
    );
    write("seeds/nyc.csv", "id,salary\n1,90\n2,72\n");
    write("seeds/london.csv", "id,salary\n1,95\n3,64\n");
    write("models/people.sql", "SELECT * FROM (MERGE {{ ref('nyc') }}, {{ ref('london') }} ON id STRATEGY salary = max) AS m");
    write("models/rich.sql", "{{ config(materialized='table') }} SELECT * FROM {{ ref('people') }} WHERE salary > 70");
    write("models/seen.sql", "{{ config(materialized='incremental', unique_key='id') }} SELECT * FROM {{ ref('people') }}");
    write("models/people.yml", "models:\n  - name: people\n    columns: [{name: id, data_tests: [unique, not_null]}]\n");
}

#[test]
fn dbt_builds_and_builds_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--postgres", "0", "--db", "shop"], 1);
    project(folder.path(), server.port());
    let dbt = |arguments: &[&str]| {
        let output = Command::new(Path::new(&variable("MERGEQL_DBT_PYTHON")).with_file_name("dbt"))
            .args(arguments)
            .args(["--profiles-dir", "."])
            .current_dir(folder.path())
            .envs([("DBT_SEND_ANONYMOUS_USAGE_STATS", "false"), ("NO_COLOR", "1")])
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    };
    dbt(&["build"]);
    // The second time relations are there, and seeds are emptied; what an incremental model is to get goes by a temporary table.
    let shop = |statements: &str| {
        crate::stdout(&crate::run(folder.path(), &["--db", "shop", "-c", statements, "--format", "csv"])).to_owned()
    };
    std::fs::write(folder.path().join("seeds/london.csv"), "id,salary\n1,97\n4,50\n").unwrap();
    dbt(&["build"]);
    assert_eq!(shop("SELECT * FROM seen ORDER BY id"), "id,salary\n1,97\n2,72\n3,64\n4,50\n");
    std::fs::write(folder.path().join("seeds/london.csv"), "id,salary\n1,95\n3,64\n").unwrap();
    dbt(&["build", "--full-refresh"]);
    dbt(&["docs", "generate"]);
    let catalog = std::fs::read_to_string(folder.path().join("target/catalog.json")).unwrap();
    for relation in ["people", "rich", "seen", "nyc"] {
        assert!(catalog.contains(&format!("\"name\": \"{relation}\"")), "{relation} is not in {catalog}");
    }
    assert_eq!(
        shop("SELECT * FROM seen ORDER BY id; SELECT * FROM rich ORDER BY id"),
        "id,salary\n1,95\n2,72\n3,64\nid,salary\n1,95\n2,72\n"
    );
}
