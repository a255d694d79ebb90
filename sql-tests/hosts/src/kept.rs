//! Tables that keep states, in a host: any sequence of MERGE INTO, shuffled and repeated, equals one MERGE of everything.

use crate::Host;
use mergeql_udfs::catalog;
use mergeql_udfs::laws::Random;
use std::sync::atomic::{AtomicUsize, Ordering};

const COLUMNS: &str = "id, n, f, t, b, o, ts, gone";

/// A strategy for a column that takes it; `None` where it needs something else than these columns have.
fn clause(name: &str) -> Option<(&'static str, String)> {
    Some(match name {
        "lww" | "fww" | "max" | "min" | "all" | "gset" => ("f", name.to_owned()),
        "longest" | "shortest" | "concat" | "union" | "intersect" => ("t", name.to_owned()),
        "priority" => ("t", "priority('a', '10')".to_owned()),
        "counter" | "gauge" | "avg" | "median" => ("n", format!("{name}(o)")),
        "pncounter" | "bounded" => ("p", format!("{name}(n, n, o)")),
        "vclock" | "dvv" | "hlc" => ("n", format!("{name}(o)")),
        "lwwmap" => ("t", "lwwmap(o)".to_owned()),
        "any" | "every" => ("b", name.to_owned()),
        "bits_or" | "bits_and" | "hll" | "theta" | "cpc" | "bloom" | "minhash" => ("n", name.to_owned()),
        _ => return None,
    })
}

/// A few rows over few keys, values and versions, so that they meet and tie.
fn rows(random: &mut Random) -> String {
    let mut row = || {
        let mut pick = |options: &[&str]| options[random.below(options.len())].to_owned();
        let values = [
            pick(&["1", "2", "3", "NULL"]),
            pick(&["1", "2", "7", "NULL"]),
            pick(&["0.5", "-0.0", "2.25", "NULL"]),
            pick(&["'a'", "'b,a'", "'10'", "''", "NULL"]),
            pick(&["true", "false", "NULL"]),
            pick(&["'x'", "'y'"]),
            pick(&["1", "2", "NULL"]),
            pick(&["true", "false"]),
        ];
        format!("({})", values.join(", "))
    };
    (0..4).map(|_| row()).collect::<Vec<_>>().join(", ")
}

fn sorted(host: &mut Host, sql: &str) -> Result<Vec<String>, String> {
    let rows = host.query(sql).map_err(|e| format!("{sql}: {e}"))?.unwrap_or_default();
    let show =
        |row: Vec<Option<String>>| row.into_iter().map(|v| v.unwrap_or_else(|| "NULL".to_owned())).collect::<Vec<_>>().join("|");
    let mut rows: Vec<String> = rows.into_iter().map(show).collect();
    rows.sort();
    Ok(rows)
}

fn converges(host: &mut Host, clauses: &str, made: bool, seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    for i in 0..4 {
        host.raw(&format!("DELETE FROM b{i}")).map_err(|e| e.0)?;
        host.raw(&format!("INSERT INTO b{i} ({COLUMNS}) VALUES {}", rows(&mut random))).map_err(|e| e.0)?;
    }
    let columns = if made { format!("{COLUMNS}, p") } else { COLUMNS.to_owned() };
    let all = format!("SELECT {columns} FROM (MERGE b0, b1, b2, b3 ON id {clauses}) AS m");
    let expected = sorted(host, &all)?;
    let mut order: Vec<usize> = (0..4).collect();
    order.push(random.below(4));
    random.shuffle(&mut order);
    // A table of its own: drivers keep the plans of statements that they saw before.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let kept = format!("kept{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let run = |host: &mut Host, sql: &str| host.query(sql).map(drop).map_err(|e| format!("{sql}: {e}"));
    run(host, &format!("MERGE b{} ON id {clauses} INTO {kept} WITH (state = 'keep')", order[0]))?;
    for i in &order[1..] {
        run(host, &format!("MERGE INTO {kept} USING b{i} ON id"))?;
    }
    let got = sorted(host, &format!("SELECT {columns} FROM {kept}"))?;
    if got == expected {
        Ok(())
    } else {
        Err(format!("{clauses} (seed {seed}, order {order:?})\none merge {expected:?}\nmerge into {got:?}"))
    }
}

/// Merges batches into tables that keep states, with every strategy, and compares them with one merge. `types` are the host's names of
/// (an integer, a double, a text, a boolean).
///
/// # Panics
/// With all that differs.
pub fn tables_that_keep_states_converge(host: &mut Host, types: [&str; 4], deletions: bool) {
    let [int, double, text, boolean] = types;
    for i in 0..4 {
        let columns = format!("id {int}, n {int}, f {double}, t {text}, b {boolean}, o {text}, ts {int}, gone {boolean}");
        host.raw(&format!("CREATE TABLE b{i} ({columns})")).unwrap_or_else(|e| panic!("{e}"));
    }
    let mut failures = Vec::new();
    let mut checked = 0;
    for entry in catalog::all() {
        let Some((column, strategy)) = clause(entry.spec().name) else { continue };
        let clauses = format!("STRATEGY {column} = {strategy} VERSION BY ts");
        failures.extend((1..3).filter_map(|seed| converges(host, &clauses, column == "p", seed).err()));
        checked += 1;
    }
    let rest: &[&str] = if deletions {
        &["VERSION BY ts DELETE BY gone", "STRATEGY f = lww RESPECT NULLS VERSION BY ts DELETE BY gone"]
    } else {
        &[]
    };
    for clauses in rest.iter().chain(&["STRATEGY t = union(';') VERSION BY ts DESC, n", "VERSION BY ts, ROW"]) {
        failures.extend((3..9).filter_map(|seed| converges(host, clauses, false, seed).err()));
    }
    let explained = sorted(host, "EXPLAIN MERGE b0, (SELECT * FROM b1) AS q ON id VERSION BY ts").unwrap_or_else(|e| panic!("{e}"));
    // Of a query some hosts only guess how many rows it has.
    for (source, rows) in [("source|b0: ", "4 rows, 8 columns"), ("source|q: ", " rows, 8 columns")] {
        let told = explained.iter().any(|shown| shown.strip_prefix(source).is_some_and(|told| told.ends_with(rows)));
        assert!(told, "{source}{rows} is not in {explained:?}");
    }
    assert!(checked > 25, "only {checked} strategies were tried");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
}
