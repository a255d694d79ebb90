//! Statements with expected answers, as data.

use mergeql_sql_tests::cases;

/// Every case, whatever the order of its rows and the number of threads.
#[tokio::test(flavor = "multi_thread")]
async fn every_case_gives_its_rows() {
    let cases = cases::read(include_str!("../../data/tabular/cases.jsonl"));
    assert!(cases.len() >= 69);
    let mut failures = Vec::new();
    for case in &cases {
        for (turn, threads) in [(0, 1), (1, 4)] {
            if let Err(difference) = case.judge(&case.run(turn, threads).await.map_err(|e| e.to_string())) {
                failures.push(format!("{} (turn {turn}): {}\n{difference}", case.id, case.statement));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
}
