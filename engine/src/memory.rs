//! Limits of memory: of a session, and within it of a statement.

use crate::error::Result;
use crate::objects::Stores;
use datafusion::error::Result as Reserved;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use fs4::fs_std::FileExt;
use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// A runtime whose queries take no more than so much; with an outer pool, that much of what it has.
pub(crate) fn limited_runtime(limit: usize, outer: Option<Arc<dyn MemoryPool>>) -> Result<Arc<RuntimeEnv>> {
    let own = FairSpillPool::new(limit);
    let pool: Arc<dyn MemoryPool> = match outer {
        None => Arc::new(own),
        Some(outer) => Arc::new(Within { own, outer }),
    };
    let runtime = RuntimeEnvBuilder::new().with_object_store_registry(Arc::new(Stores::default()));
    let runtime = match FOLDER.get() {
        Some(folder) => runtime
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![folder.clone()]))),
        None => runtime,
    };
    Ok(runtime.with_memory_pool(pool).build_arc()?)
}

/// What a sort keeps back to merge what it has spilled, 10 MB by itself, must leave it room to sort.
pub(crate) fn sorting_within(config: SessionConfig, limit: usize) -> SessionConfig {
    let reserved = (limit / 8).min(config.options().execution.sort_spill_reservation_bytes);
    config.with_sort_spill_reservation_bytes(reserved)
}

/// Where the states and rows of this process spill to, if it has a folder of its own.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// A folder for all that a process spills, which goes with it: also where it is told to stop in the middle of a computation. What processes
/// left that had no time for that goes with the next one.
#[derive(Debug)]
pub struct SpillFolder {
    folder: tempfile::TempDir,
    _lock: File,
}

const PREFIX: &str = "mergeql-spill-";

impl SpillFolder {
    /// Makes the folder and has sessions that are made from now on spill into it; nothing where there is no place for one.
    pub fn claim() -> Option<SpillFolder> {
        let entries = std::fs::read_dir(std::env::temp_dir()).ok()?.flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
            // A lock that can be had is that of a process which is gone.
            let lock = File::options().write(true).open(entry.path().join("lock"));
            if lock.is_ok_and(|lock| lock.try_lock_exclusive().unwrap_or(false)) {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir().ok()?;
        // It has its name once it is locked.
        let lock = File::create(folder.path().join("unlocked")).ok()?;
        lock.try_lock_exclusive().ok().filter(|locked| *locked)?;
        std::fs::rename(folder.path().join("unlocked"), folder.path().join("lock")).ok()?;
        FOLDER.set(folder.path().to_owned()).ok()?;
        Some(SpillFolder { folder, _lock: lock })
    }

    /// Removes it, with what is in it.
    pub fn remove(self) {
        self.folder.close().ok();
    }
}

/// The memory of one statement within that of all: what it takes is taken from both.
#[derive(Debug)]
struct Within {
    own: FairSpillPool,
    outer: Arc<dyn MemoryPool>,
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} within {}", self.own, self.outer)
    }
}

impl MemoryPool for Within {
    fn name(&self) -> &str {
        "within"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.own.register(consumer);
        self.outer.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.own.unregister(consumer);
        self.outer.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.own.grow(reservation, additional);
        self.outer.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.outer.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Reserved<()> {
        self.own.try_grow(reservation, additional)?;
        self.outer.try_grow(reservation, additional).inspect_err(|_| self.own.shrink(reservation, additional))
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.own.memory_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_share_what_there_is() {
        let all: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(100));
        let pool = |limit| limited_runtime(limit, Some(all.clone())).expect("a runtime").memory_pool.clone();
        let (one, two) = (pool(80), pool(80));
        let first = MemoryConsumer::new("first").register(&one);
        first.try_grow(70).expect("there is room");
        assert!(first.try_grow(20).is_err(), "its own limit");
        let second = MemoryConsumer::new("second").register(&two);
        assert!(second.try_grow(40).is_err(), "the limit of all");
        assert_eq!((one.reserved(), two.reserved(), all.reserved()), (70, 0, 70));
        drop(first);
        second.try_grow(40).expect("there is room again");
        assert_eq!(all.reserved(), 40);
    }
}
