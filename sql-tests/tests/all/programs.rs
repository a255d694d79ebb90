//! Statements that run programs.

use mergeql::{Access, Config, MergeContext};

#[tokio::test(flavor = "multi_thread")]
async fn programs_run_where_that_is_allowed() {
    let inputs = concat!(env!("CARGO_MANIFEST_DIR"), "/../udfs/tensors/tests/data/inputs");
    let folder = tempfile::tempdir().unwrap();
    let ran = folder.path().join("ran");
    let statement = |fitness: &str| {
        format!(
            "MERGE MODELS '{inputs}/m0.safetensors' BASE '{inputs}/base.safetensors' STRATEGY * = genetic(inner = 'ties', \
             search = 'density', generations = 1, population = 2, {fitness})"
        )
    };
    let command = statement(&format!("command = 'touch {}; echo 1'", ran.display()));
    let refused = MergeContext::new(Config::default()).unwrap().sql(&command).await.unwrap_err();
    assert!(refused.to_string().contains("may run no programs"), "{refused}");
    assert!(!ran.exists());
    let access = Access { commands: true, ..Access::default() };
    let context = MergeContext::new(Config { access, ..Config::default() }).unwrap();
    let rows = context.sql(&command).await.unwrap().collect().await.unwrap();
    assert_eq!(rows[0].num_rows(), 3);
    assert!(ran.exists());
    // A query needs no leave, and gives one number.
    let context = MergeContext::new(Config::default()).unwrap();
    context.sql(&statement("fitness = 'SELECT sum(l2) FROM tensor_compare(''{}'', ''{}'')'")).await.unwrap();
    let of = |select: &str, rest: &str| format!("fitness = 'SELECT {select} FROM tensor_compare(''{{}}'', ''{{}}''){rest}'");
    for (fitness, said) in [
        (of("l2", " WHERE false"), "0 rows"),
        (of("l2", ""), "3 rows"),
        (of("max(l2), min(l2)", ""), "2 columns"),
        (of("sum(CAST(NULL AS DOUBLE))", ""), "no number"),
        (of("missing", ""), "the query of the fitness: there is no column `missing`"),
    ] {
        let refused = context.sql(&statement(&fitness)).await.unwrap_err();
        assert!(refused.to_string().contains(said), "{fitness}: {refused}");
    }
    // Beside the output a search leaves what it did not put there.
    let out = folder.path().join("out");
    std::fs::create_dir(folder.path().join("out.search")).unwrap();
    std::fs::write(folder.path().join("out.search/mine.txt"), "mine").unwrap();
    let into = format!("{} INTO '{}/'", statement(&of("sum(l2)", "")), out.display());
    context.sql(&into).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(folder.path().join("out.search")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.txt"]);
    assert!(out.join("model.safetensors").exists());
    let again = context.sql(&into).await.unwrap_err();
    assert!(again.to_string().contains("this file exists"), "{again}");
}
