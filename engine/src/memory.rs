//! Limits of memory: of a session, and within it of a statement.

use crate::error::Result;
use crate::objects::Stores;
use datafusion::error::{DataFusionError, Result as Reserved};
use datafusion::execution::cache::cache_manager::CacheManagerConfig;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use fs4::fs_std::FileExt;
use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A runtime whose queries take no more than so much; with an outer pool, that much of what it has. Of a worker, errors say which.
pub(crate) fn limited_runtime(
    limit: usize,
    outer: Option<Arc<dyn MemoryPool>>,
    worker: Option<SocketAddr>,
) -> Result<Arc<RuntimeEnv>> {
    let own = Shares { limit, worker, state: Mutex::default() };
    let pool: Arc<dyn MemoryPool> = match outer {
        None => Arc::new(own),
        Some(outer) => Arc::new(Within { own, outer }),
    };
    let runtime = runtime_builder();
    let runtime = match FOLDER.get() {
        Some(folder) => runtime
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![folder.clone()]))),
        None => runtime,
    };
    Ok(runtime.with_memory_pool(pool).build_arc()?)
}

/// What every session runs with: files are listed anew by each statement, for others add to folders.
pub(crate) fn runtime_builder() -> RuntimeEnvBuilder {
    let caches = CacheManagerConfig::default().with_list_files_cache_limit(0);
    RuntimeEnvBuilder::new().with_object_store_registry(Arc::new(Stores::default())).with_cache_manager(caches)
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

/// Every step that can spill may have the same part of the memory, as in DataFusion's `FairSpillPool`; but a quarter is kept from them for
/// those that cannot: what merges the spilled rows of a sort, for one, which comes when the others have taken all that there is.
#[derive(Debug)]
struct Shares {
    limit: usize,
    worker: Option<SocketAddr>,
    state: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Steps that can spill, and bytes that they have.
    steps: usize,
    by_steps: usize,
    /// Bytes of the others.
    by_others: usize,
}

impl Shares {
    fn state(&self) -> MutexGuard<'_, Taken> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&human_readable_size(self.limit))?;
        self.worker.map_or(Ok(()), |address| write!(f, " of the worker at {address}"))
    }
}

impl MemoryPool for Shares {
    fn name(&self) -> &str {
        "shares"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.state().steps += usize::from(consumer.can_spill());
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.state().steps -= usize::from(consumer.can_spill());
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        let mut taken = self.state();
        match reservation.consumer().can_spill() {
            true => taken.by_steps += additional,
            false => taken.by_others += additional,
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut taken = self.state();
        match reservation.consumer().can_spill() {
            true => taken.by_steps -= shrink,
            false => taken.by_others -= shrink,
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Reserved<()> {
        let mut taken = self.state();
        let kept = self.limit / 4;
        let spills = reservation.consumer().can_spill();
        let (has, most) = match spills {
            true => (reservation.size(), (self.limit - taken.by_others.clamp(kept, self.limit)) / taken.steps.max(1)),
            false => (taken.by_others, self.limit.saturating_sub(taken.by_steps).max(kept)),
        };
        if has.saturating_add(additional) > most {
            let [additional, left] = [additional, most.saturating_sub(has)].map(human_readable_size);
            let name = reservation.consumer().name();
            return Err(DataFusionError::ResourcesExhausted(format!("{name} asks for {additional}, of {self} it can have {left}")));
        }
        match spills {
            true => taken.by_steps += additional,
            false => taken.by_others += additional,
        }
        Ok(())
    }

    fn reserved(&self) -> usize {
        let taken = self.state();
        taken.by_steps + taken.by_others
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}

/// The memory of one statement within that of all: what it takes is taken from both.
#[derive(Debug)]
struct Within {
    own: Shares,
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
    fn a_quarter_is_kept_from_steps_that_spill() {
        let pool: Arc<dyn MemoryPool> = Arc::new(Shares { limit: 100, worker: None, state: Mutex::default() });
        let step = |name: &str| MemoryConsumer::new(name).with_can_spill(true).register(&pool);
        let (one, two) = (step("one"), step("two"));
        one.try_grow(37).expect("half of three quarters");
        assert!(one.try_grow(1).is_err());
        two.try_grow(37).expect("the other half");
        let merge = MemoryConsumer::new("merge").register(&pool);
        merge.try_grow(26).expect("what is left");
        assert!(merge.try_grow(1).is_err());
        drop((one, two));
        merge.try_grow(74).expect("all");
        let late = step("late");
        let error = late.try_grow(1).expect_err("nothing is left").to_string();
        assert!(error.contains("late asks for 1.0 B, of 100.0 B it can have 0.0 B"), "{error}");
    }

    #[test]
    fn statements_share_what_there_is() {
        let all: Arc<dyn MemoryPool> = Arc::new(Shares { limit: 100, worker: None, state: Mutex::default() });
        let pool = |limit| limited_runtime(limit, Some(all.clone()), None).expect("a runtime").memory_pool.clone();
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
