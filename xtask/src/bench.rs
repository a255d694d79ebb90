//! `cargo xtask bench merge`: our MERGE beside the best hand-written SQL with the same lawful answer, in turn in one run.

use crate::{Outcome, run};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const RIVALS: [&str; 3] = ["duckdb", "polars", "datafusion"];
const PACKAGES: [&str; 5] = ["duckdb==2.0.0", "polars==2.1.0", "datafusion==55.0.0", "pyarrow==26.0.1", "numpy"];
const CLAUSES: &str = "ON id STRATEGY high = max, low = min, tags = union, ts = max VERSION BY ts";
const RUNS: usize = 3;

fn text(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Runs the suite for these numbers of input rows.
pub fn merge(root: &Path, rows: &[&str]) -> Outcome {
    let rows = if rows.is_empty() { &["1000000", "10000000"] } else { rows };
    let target = crate::target()?;
    let python = crate::duckdb::python("bench-venv", &PACKAGES)?.display().to_string();
    run("cargo", &["build", "--release", "-p", "mergeql"])?;
    let ours = target.join("release/mergeql");
    println!("| rows in | engine | seconds (median of {RUNS}) | rows/s | peak MB | ratio to ours |\n|---|---|---|---|---|---|");
    for rows in rows {
        let folder = target.join(format!("bench-{rows}"));
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let place = folder.display().to_string();
        if !folder.join("b.parquet").exists() {
            run(&python, &["xtask/bench/generate.py", rows, &place])?;
        }
        let mut all: Vec<(&str, Vec<f64>, f64)> = Vec::new();
        for turn in 0..RUNS {
            for engine in RIVALS.into_iter().chain(["mergeql"]) {
                let (seconds, peak) =
                    if engine == "mergeql" { mergeql(&ours, &place)? } else { rival(root, &python, engine, &place)? };
                match all.iter_mut().find(|(e, ..)| *e == engine) {
                    Some((_, times, most)) => {
                        times.push(seconds);
                        *most = most.max(peak);
                    }
                    None => all.push((engine, vec![seconds], peak)),
                }
            }
            if turn == 0 {
                compare(&python, &place)?;
            }
        }
        let median = |times: &[f64]| {
            let mut sorted = times.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted[sorted.len() / 2]
        };
        let own = all.iter().find(|(e, ..)| *e == "mergeql").map_or(1.0, |(_, t, _)| median(t));
        let count: f64 = rows.parse().map_err(|_| format!("`{rows}` is no number of rows"))?;
        for (engine, times, peak) in &all {
            let seconds = median(times);
            println!("| {rows} | {engine} | {seconds:.2} | {:.0} | {peak:.0} | {:.2} |", count / seconds, seconds / own);
        }
    }
    Ok(())
}

/// Seconds and peak memory of one run; the whole process counts.
fn mergeql(program: &Path, folder: &str) -> Result<(f64, f64), String> {
    let out = format!("{folder}/mergeql.parquet");
    let statement = format!("MERGE '{folder}/a.parquet', '{folder}/b.parquet' {CLAUSES}");
    let script = "import resource,subprocess,sys; subprocess.run(sys.argv[1:], check=True, stderr=subprocess.DEVNULL); \
                  print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)";
    let started = Instant::now();
    let peak =
        text(Command::new("python3").args(["-c", script]).arg(program).args(["--threads", "2", "-c", &statement, "-o", &out]))?;
    let seconds = started.elapsed().as_secs_f64();
    Ok((seconds, peak.trim().parse().map_err(|_| peak.clone())?))
}

fn rival(root: &Path, python: &str, engine: &str, folder: &str) -> Result<(f64, f64), String> {
    let out = text(Command::new(python).arg(root.join("xtask/bench/rival.py")).args([engine, folder, folder]))?;
    let mut numbers = out.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(seconds)), Some(Ok(peak))) => Ok((seconds, peak)),
        _ => Err(format!("{engine} said: {out}")),
    }
}

/// All engines must have given the same rows.
fn compare(python: &str, folder: &str) -> Outcome {
    let script = format!(
        "import duckdb\nfor e in {RIVALS:?}:\n  q = lambda f: f\"select id, status, high, low, tags, name, ts::timestamp ts from '{folder}/{{f}}.parquet'\"\n  \
         n = duckdb.sql(f\"select count(*) from (({{q('mergeql')}}) except ({{q(e)}}))\").fetchall()[0][0]\n  \
         m = duckdb.sql(f\"select count(*) from '{folder}/{{e}}.parquet'\").fetchall()[0][0] - duckdb.sql(f\"select count(*) from '{folder}/mergeql.parquet'\").fetchall()[0][0]\n  \
         assert n == 0 and m == 0, (e, n, m)"
    );
    text(Command::new(python).args(["-c", &script])).map(drop)
}

/// Merging models beside mergekit.
pub fn tensors(root: &Path, layers: Option<&str>) -> Outcome {
    let target = crate::target()?;
    let python = crate::duckdb::python("mergekit", &["mergekit==0.1.5"])?;
    run("cargo", &["build", "--release", "-p", "mergeql"])?;
    let folder = target.join("bench-tensors");
    std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let script = root.join("xtask/bench/tensors.py").display().to_string();
    let (folder, ours) = (folder.display().to_string(), target.join("release/mergeql").display().to_string());
    let rival = python.with_file_name("mergekit-yaml").display().to_string();
    run(&python.display().to_string(), &[&script, &folder, &ours, &rival, layers.unwrap_or("13")])
}
