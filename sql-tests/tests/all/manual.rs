//! Every SQL block of README and docs runs, and gives what the page says.

use crate::slt::show;
use mergeql::columns::value_at;
use mergeql::{Config, MergeContext};

/// The blocks of a page: `sql` blocks with the `text` block that follows at once.
fn blocks(page: &str) -> Vec<(String, Option<String>)> {
    let mut blocks: Vec<(String, Option<String>)> = Vec::new();
    let mut open: Option<(&str, String)> = None;
    let mut adjacent = false;
    for line in page.lines() {
        match (&mut open, line) {
            (None, "```sql") => open = Some(("sql", String::new())),
            (None, "```text") => open = Some(("text", String::new())),
            (None, l) if l.starts_with("```") => open = Some(("other", String::new())),
            (None, l) => adjacent &= l.trim().is_empty(),
            (Some(_), "```") => match open.take() {
                Some(("sql", text)) => {
                    blocks.push((text, None));
                    adjacent = true;
                }
                Some(("text", text)) if adjacent => {
                    if let Some(last) = blocks.last_mut() {
                        last.1 = Some(text);
                    }
                    adjacent = false;
                }
                _ => adjacent = false,
            },
            (Some((_, text)), l) => {
                text.push_str(l);
                text.push('\n');
            }
        }
    }
    blocks
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sql_block_gives_what_the_page_says() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::env::set_current_dir(root).unwrap();
    let mut pages: Vec<_> = std::fs::read_dir(root.join("docs")).unwrap().map(|e| e.unwrap().path()).collect();
    pages.push(root.join("README.md"));
    let (mut count, mut failures) = (0, Vec::new());
    for page in pages.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let context = MergeContext::new(Config::default()).unwrap();
        for (sql, expected) in blocks(&std::fs::read_to_string(page).unwrap()) {
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
