//! Merged tensors that are kept: each under the hash of its contributions and parameters, so that taking a model out of a set, or changing a
//! rule, costs what changed.

use mergeql_udfs::merkle::{Hash, hex};
use mergeql_udfs::{Code, Error, Result};
use sha2::{Digest, Sha256};
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes of one read.
const READ: usize = 1 << 20;

/// A folder of tensors. An entry is the hash of its key and the bytes, then the bytes.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    limit: u64,
}

/// An entry that is being written: it gets its name when it is whole.
pub(crate) struct Entry {
    file: File,
    partial: PathBuf,
    path: PathBuf,
    hash: Sha256,
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::new(Code::Io, format!("`{}`: {error}", path.display()))
}

impl Cache {
    pub(crate) fn open(folder: &Path, limit: u64) -> Result<Cache> {
        std::fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
        Ok(Cache { folder: folder.to_owned(), limit })
    }

    fn path(&self, key: &Hash) -> PathBuf {
        self.folder.join(format!("{}.tensor", hex(key)))
    }

    /// An entry of so many bytes, which are what was written.
    pub(crate) fn get(&self, key: &Hash, size: u64) -> Option<Found> {
        let path = self.path(key);
        let mut file = File::open(&path).ok()?;
        let (mut wanted, mut hash, mut buffer) = ([0; 32], Sha256::new_with_prefix(key), vec![0; READ]);
        if file.metadata().ok()?.len() != size + 32 || file.read_exact(&mut wanted).is_err() {
            return None;
        }
        loop {
            match file.read(&mut buffer).ok()? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
        let found: Hash = hash.finalize().into();
        if found != wanted {
            return None;
        }
        // The time of its last use.
        drop(file.set_modified(SystemTime::now()));
        file.seek(SeekFrom::Start(32)).ok()?;
        Some(Found { path, file })
    }

    pub(crate) fn entry(&self, key: &Hash) -> Result<Entry> {
        let path = self.path(key);
        // Two runs may make the same tensor.
        let own = RandomState::new().build_hasher().finish();
        let partial = self.folder.join(format!("{}.{own:016x}.partial", hex(key)));
        let mut file = File::create_new(&partial).map_err(|e| failed(&partial, e))?;
        file.write_all(&[0; 32]).map_err(|e| failed(&partial, e))?;
        Ok(Entry { file, partial, path, hash: Sha256::new_with_prefix(key) })
    }

    /// Removes what was not used for the longest time, until the rest fits.
    pub(crate) fn trim(&self) -> Result<()> {
        let entries = std::fs::read_dir(&self.folder).map_err(|e| failed(&self.folder, e))?;
        let mut known: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let meta = path.metadata().ok().filter(|_| path.extension().is_some_and(|e| e == "tensor"))?;
                Some((meta.modified().ok()?, meta.len(), path))
            })
            .collect();
        known.sort();
        let mut size: u64 = known.iter().map(|(_, size, _)| size).sum();
        for (_, own, path) in known {
            if size <= self.limit {
                break;
            }
            // Another run may have removed it.
            drop(std::fs::remove_file(&path));
            size -= own;
        }
        Ok(())
    }
}

/// An entry that is there.
pub(crate) struct Found {
    path: PathBuf,
    file: File,
}

impl Found {
    /// Its bytes, in parts.
    pub(crate) fn each(mut self, mut sink: impl FnMut(Vec<u8>) -> Result<()>) -> Result<()> {
        loop {
            let mut part = Vec::with_capacity(READ);
            (&mut self.file).take(READ as u64).read_to_end(&mut part).map_err(|e| failed(&self.path, e))?;
            if part.is_empty() {
                return Ok(());
            }
            sink(part)?;
        }
    }
}

impl Entry {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|e| failed(&self.partial, e))
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        let hash: Hash = std::mem::take(&mut self.hash).finalize().into();
        let written = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.write_all(&hash));
        written.and_then(|()| std::fs::rename(&self.partial, &self.path)).map_err(|e| failed(&self.path, e))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // What was not finished is no entry; what was has another name by now.
        drop(std::fs::remove_file(&self.partial));
    }
}
