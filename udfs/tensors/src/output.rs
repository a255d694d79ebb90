//! The files of a merged model. Every tensor has its place before the first byte is written; files carry the name `*.partial` until all are
//! whole, and a journal beside them says which tensors are done, by hash, so that a run that was killed goes on from there.

use crate::plan::Task;
use crate::run::Written;
use mergeql_udfs::merkle::{Hash, hex};
use mergeql_udfs::{Code, Error, Result};
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("`{}`: {error}", path.display()))
}

/// A file of the output.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    header: Vec<u8>,
    size: u64,
}

/// Where a tensor goes.
#[derive(Debug, Clone)]
struct Place {
    name: String,
    part: usize,
    offset: u64,
    bytes: u64,
}

/// Where everything goes.
#[derive(Debug)]
pub struct Layout {
    parts: Vec<Part>,
    places: Vec<Place>,
    index: Option<(PathBuf, Vec<u8>)>,
    journal: PathBuf,
    /// It is one file, and what is beside it is none of its business.
    single: bool,
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

impl Layout {
    /// Lays tensors out over one file, or over shards of at most so many bytes (or one tensor) with an index.
    ///
    /// # Errors
    /// `io` for a header that cannot be.
    pub fn new(tasks: &[Task], out: &Path, shard: u64, metadata: &BTreeMap<String, String>) -> Result<Layout> {
        let single = out.extension().is_some_and(|e| e == "safetensors");
        let folder = if single { out.parent().unwrap_or(Path::new("")).to_owned() } else { out.to_owned() };
        let mut shards: Vec<Vec<usize>> = vec![Vec::new()];
        let mut size = 0;
        for (index, task) in tasks.iter().enumerate() {
            if !single && size > 0 && size + task.bytes() > shard {
                shards.push(Vec::new());
                size = 0;
            }
            size += task.bytes();
            if let Some(last) = shards.last_mut() {
                last.push(index);
            }
        }
        let mut places: Vec<Option<Place>> = vec![None; tasks.len()];
        let (mut parts, count) = (Vec::new(), shards.len());
        for (number, mut members) in shards.into_iter().enumerate() {
            let name = match (single, count) {
                (true, _) => out.file_name().map(PathBuf::from).unwrap_or_default(),
                (false, 1) => "model.safetensors".into(),
                (false, _) => format!("model-{:05}-of-{count:05}.safetensors", number + 1).into(),
            };
            // Wide elements first, so that all lie at multiples of their size.
            members.sort_by_key(|i| (std::cmp::Reverse(tasks[*i].dtype.bitsize()), &tasks[*i].name));
            let (mut infos, mut offset) = (Vec::new(), 0u64);
            for index in members {
                let task = &tasks[index];
                let end = offset + task.bytes();
                let data_offsets = (offset as usize, end as usize);
                infos.push((task.name.clone(), TensorInfo { dtype: task.dtype, shape: task.shape.clone(), data_offsets }));
                places[index] = Some(Place { name: task.name.clone(), part: number, offset, bytes: task.bytes() });
                offset = end;
            }
            let notes: HashMap<String, String> = metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
            let path = folder.join(name);
            let header = Metadata::new(Some(notes), infos).map_err(|e| failed(&path, e))?;
            // Sorted keys: the same model is the same file.
            let mut json: serde_json::Value = serde_json::to_value(&header).map_err(|e| failed(&path, e))?;
            json.sort_all_objects();
            let mut text = json.to_string().into_bytes();
            text.resize(text.len().next_multiple_of(8), b' ');
            let mut header = (text.len() as u64).to_le_bytes().to_vec();
            header.extend(text);
            places.iter_mut().flatten().filter(|p| p.part == number).for_each(|p| p.offset += header.len() as u64);
            parts.push(Part { path, size: header.len() as u64 + offset, header });
        }
        let places: Vec<Place> = places.into_iter().flatten().collect();
        let index = (count > 1).then(|| {
            let file =
                |place: &Place| parts[place.part].path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let map: BTreeMap<&str, String> = places.iter().map(|p| (p.name.as_str(), file(p))).collect();
            let total: u64 = places.iter().map(|p| p.bytes).sum();
            let text = format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": map }));
            (folder.join("model.safetensors.index.json"), text.into_bytes())
        });
        Ok(Layout { parts, places, index, journal: journal(out), single })
    }
}

/// Whether a file is one of those that hold a model, or their index.
fn holds_model(name: &str) -> bool {
    let shard = || name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-");
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name == "model.safetensors"
        || name == "model.safetensors.index.json"
        || shard().is_some_and(|(number, of)| is_number(number) && is_number(of))
}

impl Layout {
    /// Files of a model that is there and is laid out otherwise: beside this one they would be read for it.
    fn stale(&self) -> Vec<PathBuf> {
        self.others("")
    }

    /// What a run that was stopped began in another layout.
    fn left(&self) -> Vec<PathBuf> {
        self.others(".partial")
    }

    fn others(&self, end: &str) -> Vec<PathBuf> {
        let holds = |p: &&Part| p.path.file_name().is_some_and(|n| holds_model(&n.to_string_lossy()));
        let Some(first) = self.parts.first().filter(|p| !self.single && holds(p)) else {
            return Vec::new();
        };
        let folder = first.path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let finals = || self.parts.iter().map(|p| &p.path).chain(self.index.iter().map(|(path, _)| path));
        let own = |name: &str| finals().any(|path| path.file_name().is_some_and(|own| own.to_string_lossy() == name));
        let other = |path: &PathBuf| {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            name.strip_suffix(end).is_some_and(|name| holds_model(name) && !own(name))
        };
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|e| Some(e.ok()?.path())).filter(other).collect()
    }
}

/// Whether a model can be written to a place.
///
/// # Errors
/// `io` where there is one.
pub fn free(out: &Path) -> Result<()> {
    let here = |path: PathBuf| {
        Err(failed(&path, "this file exists")
            .with_help("choose another place, or replace it: WITH (overwrite = true), or --overwrite"))
    };
    if out.extension().is_some_and(|e| e == "safetensors") {
        return if out.exists() { here(out.to_owned()) } else { Ok(()) };
    }
    let entries = std::fs::read_dir(out).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    entries.into_iter().find(|path| path.file_name().is_some_and(|n| holds_model(&n.to_string_lossy()))).map_or(Ok(()), here)
}

/// Whether a run that writes here was stopped, and goes on.
pub fn is_begun(out: &Path) -> bool {
    journal(out).exists()
}

fn journal(out: &Path) -> PathBuf {
    if out.extension().is_some_and(|e| e == "safetensors") { partial(&partial(out)) } else { out.join("model.journal.partial") }
}

/// Writes tensors to their places.
pub struct Writer {
    layout: Layout,
    files: Vec<File>,
    journal: File,
    hashes: Vec<Option<Hash>>,
    resumed: Vec<bool>,
    current: Option<(usize, Sha256, u64)>,
}

/// A name that is one line, and no other name's.
fn line_of(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

impl Writer {
    /// Opens the output; what an earlier run of the same merge wrote, and is still as it was, stays.
    ///
    /// # Errors
    /// `io` where the output exists, unless it is to be replaced, and where it cannot be written.
    pub fn new(layout: Layout, merge: &Hash, overwrite: bool) -> Result<Writer> {
        let finals = layout.parts.iter().map(|p| &p.path).chain(layout.index.iter().map(|(path, _)| path));
        let here: Vec<PathBuf> = finals.cloned().chain(layout.stale()).collect();
        for path in &here {
            if path.exists() && !overwrite {
                return Err(failed(path, "this file exists")
                    .with_help("choose another place, or replace it: WITH (overwrite = true), or --overwrite"));
            }
            if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
                std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
            }
        }
        // The journal is of this very merge and layout, or worth nothing.
        let mut title = Sha256::new();
        title.update(merge);
        for part in &layout.parts {
            title.update(&part.header);
        }
        let title = hex(&title.finalize().into());
        let path = &layout.journal;
        let mut open = OpenOptions::new();
        let mut journal = open.read(true).write(true).create(true).truncate(false).open(path).map_err(|e| failed(path, e))?;
        if let Err(TryLockError::WouldBlock) = journal.try_lock() {
            return Err(failed(path, "another merge is being written here").with_help("let it end, or choose another place"));
        }
        let mut text = String::new();
        journal.read_to_string(&mut text).ok();
        let mut lines = text.lines();
        let same = lines.next() == Some(title.as_str());
        let known: HashMap<&str, &str> = lines.filter_map(|line| line.split_once(' ')).map(|(hash, name)| (name, hash)).collect();
        let mut files = Vec::new();
        for part in &layout.parts {
            let path = partial(&part.path);
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(!same).open(&path).map_err(|e| failed(&path, e))?;
            file.set_len(part.size)
                .and_then(|()| file.seek(SeekFrom::Start(0)))
                .and_then(|_| file.write_all(&part.header))
                .map_err(|e| failed(&path, e))?;
            files.push(file);
        }
        let mut hashes = vec![None; layout.places.len()];
        if same {
            for (hash, place) in hashes.iter_mut().zip(&layout.places) {
                if let Some(wanted) = known.get(line_of(&place.name).as_str()) {
                    let found = hash_range(&mut files[place.part], place).map_err(|e| failed(&layout.parts[place.part].path, e))?;
                    *hash = (hex(&found) == **wanted).then_some(found);
                }
            }
        }
        journal.set_len(0).and_then(|()| journal.rewind()).map_err(|e| failed(path, e))?;
        writeln!(journal, "{title}").map_err(|e| failed(path, e))?;
        for (hash, place) in hashes.iter().zip(&layout.places) {
            if let Some(hash) = hash {
                writeln!(journal, "{} {}", hex(hash), line_of(&place.name)).map_err(|e| failed(path, e))?;
            }
        }
        let resumed = hashes.iter().map(Option::is_some).collect();
        Ok(Writer { layout, files, journal, hashes, resumed, current: None })
    }

    /// Whether a tensor is there already.
    pub fn has(&self, index: usize) -> bool {
        self.hashes[index].is_some()
    }

    /// Writes the next bytes of a tensor.
    ///
    /// # Errors
    /// `io`.
    pub fn write(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let place = &self.layout.places[index];
        let (_, mut hash, at) = self.current.take().filter(|(i, ..)| *i == index).unwrap_or_else(|| (index, Sha256::new(), 0));
        let file = &mut self.files[place.part];
        let path = &self.layout.parts[place.part].path;
        file.seek(SeekFrom::Start(place.offset + at)).and_then(|_| file.write_all(bytes)).map_err(|e| failed(path, e))?;
        hash.update(bytes);
        let at = at + bytes.len() as u64;
        if at < place.bytes {
            self.current = Some((index, hash, at));
            return Ok(());
        }
        let hash: Hash = hash.finalize().into();
        writeln!(self.journal, "{} {}", hex(&hash), line_of(&place.name)).map_err(|e| failed(&self.layout.journal, e))?;
        self.hashes[index] = Some(hash);
        Ok(())
    }

    /// What was written, once all is.
    ///
    /// # Errors
    /// `io` where a tensor is missing.
    pub fn written(&self) -> Result<Vec<Written>> {
        let all = self.layout.places.iter().zip(&self.hashes).zip(&self.resumed);
        all.map(|((place, hash), resumed)| match hash {
            Some(sha256) => Ok(Written { name: place.name.clone(), sha256: *sha256, resumed: *resumed }),
            None => Err(Error::new(Code::Io, format!("tensor `{}` was not written", place.name))),
        })
        .collect()
    }

    /// Gives the files their names.
    ///
    /// # Errors
    /// `io`.
    pub fn finish(self) -> Result<()> {
        let Writer { layout, files, .. } = self;
        for (file, part) in files.iter().zip(&layout.parts) {
            file.sync_all().map_err(|e| failed(&part.path, e))?;
        }
        for part in &layout.parts {
            std::fs::rename(partial(&part.path), &part.path).map_err(|e| failed(&part.path, e))?;
        }
        if let Some((path, text)) = &layout.index {
            std::fs::write(partial(path), text).and_then(|()| std::fs::rename(partial(path), path)).map_err(|e| failed(path, e))?;
        }
        for path in layout.stale().into_iter().chain(layout.left()) {
            std::fs::remove_file(&path).map_err(|e| failed(&path, e))?;
        }
        std::fs::remove_file(&layout.journal).map_err(|e| failed(&layout.journal, e))
    }

    /// Removes what was written: it would be no use to a later run.
    pub fn discard(self) {
        self.layout
            .parts
            .iter()
            .map(|p| partial(&p.path))
            .chain([self.layout.journal.clone()])
            .for_each(|path| drop(std::fs::remove_file(path)));
    }
}

fn hash_range(file: &mut File, place: &Place) -> std::io::Result<Hash> {
    file.seek(SeekFrom::Start(place.offset))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = place.bytes;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        file.read_exact(&mut buffer[..n])?;
        hash.update(&buffer[..n]);
        left -= n as u64;
    }
    Ok(hash.finalize().into())
}
