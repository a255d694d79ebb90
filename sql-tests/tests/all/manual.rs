//! Every SQL block of README and docs runs, and gives what the page says.

use crate::slt::show;
use mergeql::columns::value_at;
use mergeql::{Config, MergeContext};
use mergeql_sql_tests::pages::blocks;

#[tokio::test(flavor = "multi_thread")]
async fn every_sql_block_gives_what_the_page_says() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::env::set_current_dir(root).unwrap();
    let mut pages: Vec<_> = std::fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()).collect();
    pages.push(root.join("README.md"));
    let (mut count, mut failures) = (0, Vec::new());
    // The page on models speaks of files; the tests of the program run it where they are.
    let elsewhere = |page: &std::path::PathBuf| page.ends_with("docs/models.md");
    for page in pages.iter().filter(|p| p.extension().is_some_and(|e| e == "md") && !elsewhere(p)) {
        let context = MergeContext::new(Config::default()).unwrap();
        let page_blocks = blocks(&std::fs::read_to_string(page).unwrap());
        for block in page_blocks.into_iter().filter(|b| b.language == "sql") {
            let (sql, expected) = (block.code, block.expected);
            count += 1;
            let result = async { Ok::<_, mergeql::MergeError>(context.sql(&sql).await?.collect().await?) };
            let mut rows = String::new();
            match result.await {
                Ok(batches) => {
                    for batch in &batches {
                        for i in 0..batch.num_rows() {
                            let cells: Vec<String> = batch.columns().iter().map(|c| show(&value_at(c, i))).collect();
                            rows.push_str(&cells.join(" | "));
                            rows.push('\n');
                        }
                    }
                }
                Err(e) => rows = e.to_string(),
            }
            if expected.as_ref().is_some_and(|e| *e != rows) || (expected.is_none() && rows.starts_with("error")) {
                failures.push(format!("{}\n{sql}--- says\n{}--- gives\n{rows}", page.display(), expected.unwrap_or_default()));
            }
        }
    }
    assert!(count > 40, "only {count} blocks were found");
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
