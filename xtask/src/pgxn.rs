//! `cargo xtask pgxn`: the archive that the PostgreSQL Extension Network takes: the committed sources, with META.json and a Makefile at
//! their root.

use crate::{Outcome, root, run, target};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Writes the archive and says where it is.
pub fn archive() -> Outcome {
    let file = target()?.join(format!("mergeql-{VERSION}.zip")).display().to_string();
    let prefix = format!("--prefix=mergeql-{VERSION}/");
    let own = ["META.json", "Makefile"].map(|name| format!("--add-file={}", root().join("ext-postgres").join(name).display()));
    run("git", &["archive", "--format=zip", &prefix, &own[0], &own[1], "-o", &file, "HEAD"])?;
    println!("{file}\n\nupload it at https://manager.pgxn.org/upload");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// What the PGXN Meta Spec 1.0 requires (<https://pgxn.org/spec/>), of this version, naming files that are there.
    #[test]
    fn the_description_is_one_that_pgxn_takes() {
        let text = std::fs::read_to_string(root().join("ext-postgres/META.json")).expect("META.json");
        let meta: Value = serde_json::from_str(&text).expect("JSON");
        for name in ["name", "abstract", "maintainer", "license"] {
            assert!(meta[name].as_str().is_some_and(|text| !text.is_empty()), "{name}");
        }
        let provided = &meta["provides"]["mergeql"];
        assert_eq!((meta["version"].as_str(), provided["version"].as_str()), (Some(VERSION), Some(VERSION)));
        assert_eq!(meta["meta-spec"]["version"], "1.0.0");
        for file in ["file", "docfile"] {
            let named = provided[file].as_str().expect("a file");
            assert!(root().join(named).is_file(), "{named}");
        }
        let needed = meta["prereqs"]["runtime"]["requires"]["PostgreSQL"].as_str();
        assert!(needed.is_some_and(|version| version.split('.').count() == 3), "{needed:?}");
    }
}
