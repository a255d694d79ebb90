//! Tables on disk: a folder of Parquet files and one manifest. A statement writes new files first and then replaces the manifest in one
//! rename, so that a crash leaves the old tables or the new ones, never a mixture.

use crate::error::{MergeError, Result};
use crate::text_files::io;
use fs4::fs_std::FileExt;
use mergeql_udfs::Code;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the manifest says of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Its files, the oldest first.
    pub files: Vec<File>,
    /// The clauses by which it keeps states, if it does.
    pub resolution: Option<String>,
    /// No row was put into it by hand since it was last looked through.
    pub checked: bool,
}

/// A file of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Its name in the folder.
    pub name: String,
    /// Its rows stand in for those of the files before it with the same values in these columns. None: its rows are more rows.
    pub replaces: Vec<String>,
}

impl File {
    /// A file whose rows are more rows.
    pub fn more(name: String) -> File {
        File { name, replaces: Vec::new() }
    }

    fn json(&self) -> Value {
        match self.replaces.is_empty() {
            true => json!(self.name),
            false => json!({ "file": self.name, "replaces": self.replaces }),
        }
    }

    fn read(json: &Value) -> Option<File> {
        if let Some(name) = json.as_str() {
            return Some(File::more(name.to_owned()));
        }
        let replaces = json["replaces"].as_array()?.iter().map(|k| k.as_str().map(str::to_owned)).collect::<Option<_>>()?;
        Some(File { name: json["file"].as_str()?.to_owned(), replaces })
    }
}

/// The manifest: every table, view and user-defined strategy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// Tables by name.
    pub tables: BTreeMap<String, Table>,
    /// The text after AS of each strategy, by name.
    pub strategies: BTreeMap<String, String>,
    /// The statement that made each view or external table, by name.
    pub definitions: BTreeMap<String, String>,
    /// Counts up with every change; part of file names.
    pub generation: u64,
    /// Files that no table has any more, and when that was so first, in milliseconds since 1970: queries may still be reading them.
    pub retired: BTreeMap<String, u64>,
}

/// A folder of tables.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// Held while a statement changes the folder.
pub struct Lock(#[allow(dead_code)] fs::File);

const MANIFEST: &str = "manifest.json";

/// A query that began before its table was replaced has this long to open the old files.
const GRACE: Duration = Duration::from_secs(300);

/// Milliseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// What the names of our files end in, behind a number.
const ENDING: &str = ".rows.parquet";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Store {
    /// Opens a folder, making it if it is not there.
    ///
    /// # Errors
    /// `io`.
    pub fn open(folder: &Path) -> Result<Store> {
        fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
        let folder = fs::canonicalize(folder).map_err(|e| io(folder, e))?;
        let store = Store { folder };
        if !store.path(MANIFEST).exists()
            && let Some(file) =
                fs::read_dir(&store.folder).map_err(|e| io(&store.folder, e))?.flatten().find(|e| is_parquet(&e.path()))
        {
            return Err(MergeError::from(io(&file.path(), "this folder has Parquet files and no manifest of tables"))
                .help(format!("name an empty folder for tables, or bring its {MANIFEST} back")));
        }
        store.read()?;
        Ok(store)
    }

    /// Keeps other processes from changing the folder until the lock is dropped.
    ///
    /// # Errors
    /// `io` if another process holds it for long.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.folder.join("lock");
        let file = fs::File::options().create(true).append(true).open(&path).map_err(|e| io(&path, e))?;
        for _ in 0..500 {
            if file.try_lock_exclusive().map_err(|e| io(&path, e))? {
                return Ok(Lock(file));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(MergeError::from(io(&path, "another process has been writing here for ten seconds")).help("try again when it is done"))
    }

    /// The path of a table's file.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Reads the manifest.
    ///
    /// # Errors
    /// `io` if it is there and cannot be read or makes no sense.
    pub fn read(&self) -> Result<Manifest> {
        let path = self.folder.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Manifest::default()),
            Err(e) => return Err(io(&path, e).into()),
        };
        let broken = |why: &str| MergeError::from(io(&path, format!("the manifest is broken: {why}")));
        let json: Value = serde_json::from_str(&text).map_err(|e| broken(&e.to_string()))?;
        if json["format"] != 1 && json["format"] != 2 {
            return Err(MergeError::new(
                Code::Unsupported,
                format!("{}: this folder was written by a newer version", path.display()),
            ));
        }
        let object = |name: &str| json[name].as_object().ok_or_else(|| broken(name));
        let text = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(|| broken("a text is missing"));
        let mut manifest =
            Manifest { generation: json["generation"].as_u64().ok_or_else(|| broken("generation"))?, ..Manifest::default() };
        for (name, table) in object("tables")? {
            let files = table["files"].as_array().and_then(|files| files.iter().map(File::read).collect::<Option<_>>());
            let files = files.ok_or_else(|| broken("files"))?;
            let resolution = table.get("resolution").filter(|r| !r.is_null()).map(text).transpose()?;
            manifest.tables.insert(name.clone(), Table { files, resolution, checked: table["checked"] == true });
        }
        for (name, body) in object("strategies")? {
            manifest.strategies.insert(name.clone(), text(body)?);
        }
        for (name, statement) in json["definitions"].as_object().into_iter().flatten() {
            manifest.definitions.insert(name.clone(), text(statement)?);
        }
        for (file, since) in json["retired"].as_object().into_iter().flatten() {
            manifest.retired.insert(file.clone(), since.as_u64().ok_or_else(|| broken("retired"))?);
        }
        Ok(manifest)
    }

    /// Replaces the manifest in one step, then removes files that no table has had for a while.
    ///
    /// # Errors
    /// `io`; the old manifest stands then.
    pub fn write(&self, manifest: &Manifest) -> Result<()> {
        let old = self.read()?;
        let generation = old.generation;
        let had: Vec<String> = old.tables.into_values().flat_map(|t| t.files).map(|f| f.name).collect();
        self.write_at(manifest, (generation, &had), now())
    }

    /// As [`Store::write`], after a manifest of this generation whose tables had these files, at this time.
    fn write_at(&self, manifest: &Manifest, (before, had): (u64, &[String]), now: u64) -> Result<()> {
        let files = || manifest.tables.values().flat_map(|t| &t.files);
        let kept: Vec<&String> = files().map(|f| &f.name).collect();
        let mut retired = manifest.retired.clone();
        for file in had {
            retired.entry(file.clone()).or_insert(now);
        }
        let known: Vec<String> = retired.keys().filter(|file| !kept.contains(file)).cloned().collect();
        retired.retain(|file, since| !kept.contains(&file) && now.saturating_sub(*since) < GRACE.as_millis() as u64);
        let table = |t: &Table| {
            let files: Vec<Value> = t.files.iter().map(File::json).collect();
            json!({ "files": files, "resolution": t.resolution, "checked": t.checked })
        };
        let tables: Map<String, Value> = manifest.tables.iter().map(|(n, t)| (n.clone(), table(t))).collect();
        // What only knows files that are more rows must not read others as such.
        let format = if files().all(|f| f.replaces.is_empty()) { 1 } else { 2 };
        let json = json!({
            "format": format, "generation": manifest.generation, "tables": tables, "strategies": manifest.strategies,
            "definitions": manifest.definitions, "retired": retired,
        });
        let path = self.folder.join(MANIFEST);
        let fail = |e: std::io::Error| MergeError::from(io(&path, e));
        let mut file = tempfile::Builder::new().prefix(".manifest-").tempfile_in(&self.folder).map_err(fail)?;
        file.write_all(serde_json::to_string_pretty(&json).map_err(|e| fail(e.into()))?.as_bytes()).map_err(fail)?;
        file.as_file().sync_all().map_err(fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        // It stands from here on; not every file system can be asked to keep a folder.
        fs::File::open(&self.folder).and_then(|f| f.sync_all()).ok();
        for name in known.iter().filter(|name| !retired.contains_key(*name)) {
            fs::remove_file(self.path(name)).ok();
        }
        // Also what statements left that did not come to their end: they had numbers since the manifest before, and names as we give them.
        // Others may have files here, too.
        let number = |name: &str| {
            let digits = name.strip_suffix(ENDING)?.rsplit_once('-')?.1;
            digits.parse::<u64>().ok().filter(|n| n.to_string() == digits)
        };
        let left = |name: &String| {
            number(name).is_some_and(|n| n > before && n <= manifest.generation)
                && !kept.contains(&name)
                && !retired.contains_key(name)
        };
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(()) };
        // What was begun and has not been written to for a day.
        let begun = |name: &str, entry: &fs::DirEntry| {
            (name.starts_with(".mergeql-") || name.starts_with(".manifest-"))
                && entry.metadata().and_then(|about| about.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age > DAY))
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if left(&name) || begun(&name, &entry) {
                fs::remove_file(entry.path()).ok();
            }
        }
        Ok(())
    }

    /// A file name for new rows of a table.
    pub fn new_file(&self, manifest: &mut Manifest, table: &str) -> String {
        let plain: String = table.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        loop {
            manifest.generation += 1;
            let name = format!("{plain}-{}{ENDING}", manifest.generation);
            // What is there is not ours to write over.
            if !self.path(&name).exists() {
                return name;
            }
        }
    }
}

fn is_parquet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "parquet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_outlive_their_tables_for_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let mut manifest = Manifest::default();
        let mut replace = |time: u64| {
            let had: Vec<String> = manifest.tables.values().flat_map(|t| t.files.clone()).map(|f| f.name).collect();
            let before = manifest.generation;
            let file = store.new_file(&mut manifest, "t");
            fs::write(store.path(&file), "rows").expect("a file");
            manifest.tables.insert("t".to_owned(), Table { files: vec![File::more(file.clone())], ..Table::default() });
            store.write_at(&manifest, (before, &had), time).expect("it is written");
            manifest = store.read().expect("it is read");
            file
        };
        let later = GRACE.as_millis() as u64;
        let (first, second) = (replace(1), replace(2));
        assert!(store.path(&first).exists(), "somebody may be reading it");
        fs::write(store.path("u-3.rows.parquet"), "of a statement that died").expect("a file");
        let others = ["t-99.parquet", "backup-1.parquet", "sales-2024-01-03.parquet", "sales-4.parquet"];
        others.iter().for_each(|name| fs::write(store.path(name), "of somebody else").expect("a file"));
        let third = replace(1 + later);
        let there: Vec<bool> = [&first, &second, &third].into_iter().map(|f| store.path(f).exists()).collect();
        assert_eq!(there, [true, true, true]);
        assert!(!store.path("u-3.rows.parquet").exists() && others.iter().all(|name| store.path(name).exists()));
        let fourth = replace(3 + later);
        let there: Vec<bool> = [&first, &second, &third, &fourth].into_iter().map(|f| store.path(f).exists()).collect();
        assert_eq!(there, [false, true, true, true]);
    }
}
