//! Compiles the grammar against the headers of the DuckDB that it serves, and links that DuckDB's code into it: hosts export none of it.

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=src/syntax.cpp");
    let of = |name| std::env::var(name).expect("libduckdb-sys tells its folders");
    let include = PathBuf::from(of("DEP_DUCKDB_INCLUDE"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .define("NDEBUG", None)
        .include(&include)
        // DuckDB's headers are not written for our warnings.
        .warnings(false)
        .includes(third_party(&include))
        .file("src/syntax.cpp")
        .compile("mergeql_syntax_grammar");
    println!("cargo:rustc-link-search=native={}", of("DEP_DUCKDB_LIB_DIR"));
    println!("cargo:rustc-link-lib=static=duckdb");
    println!("cargo:rustc-link-lib=stdc++");
}

/// The headers that DuckDB's own include: each library's folder, and `include` in it.
fn third_party(include: &Path) -> Vec<PathBuf> {
    let libraries = std::fs::read_dir(include.join("../../third_party")).expect("DuckDB's sources have their libraries");
    let folders = libraries.map(|library| library.expect("a folder").path());
    folders.flat_map(|library| [library.join("include"), library]).filter(|folder| folder.is_dir()).collect()
}
