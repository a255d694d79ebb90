//! Finds the strategies: every file in `src/strategies` is a module whose `register` lists what it defines, so that a new strategy
//! is one new file and no other edit.

use std::fmt::Write;
use std::{env, fs, path::PathBuf};

fn main() {
    let folder = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("src/strategies");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("src/strategies exists")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let stem = path.file_stem()?.to_str()?.to_owned();
            (path.extension()? == "rs" && stem != "mod").then_some(stem)
        })
        .collect();
    names.sort();
    let mut out = String::new();
    for name in &names {
        let path = folder.join(format!("{name}.rs"));
        writeln!(out, "#[path = {:?}]\npub(crate) mod r#{name};", path.display().to_string()).expect("a String takes all");
    }
    writeln!(out, "pub(crate) fn register(entries: &mut Vec<crate::catalog::Entry>) {{").expect("a String takes all");
    for name in &names {
        writeln!(out, "    r#{name}::register(entries);").expect("a String takes all");
    }
    out.push_str("}\n");
    let target = PathBuf::from(env::var("OUT_DIR").expect("set by cargo")).join("strategies.rs");
    fs::write(target, out).expect("OUT_DIR is writable");
}
