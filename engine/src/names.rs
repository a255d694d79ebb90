//! The names of a session's tables. Putting a table under its name replaces what was there in one step, so that statements of other
//! clients never see the name gone.

use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use mergeql_udfs::Error;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A schema whose names can be given anew, and that lists only the tables that users made.
#[derive(Debug, Default)]
pub(crate) struct Names {
    named: RwLock<BTreeMap<String, Named>>,
    /// Counts what is put under names and taken from them.
    changes: AtomicU64,
}

#[derive(Debug, Clone)]
struct Named {
    /// The table, or why it cannot be read: its name is taken all the same.
    table: Result<Arc<dyn TableProvider>, Error>,
    /// It stands for a file that a statement read: the next statement opens it anew.
    file: bool,
    /// The table of before it could not be read.
    was: Option<Arc<dyn TableProvider>>,
}

impl Names {
    fn named(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Named>> {
        self.named.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, name: String, table: Result<Arc<dyn TableProvider>, Error>, file: bool) -> Option<Arc<dyn TableProvider>> {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        if !file {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        let was = match &table {
            Ok(_) => None,
            Err(_) => named.get(&name).and_then(|old| old.table.as_ref().ok().or(old.was.as_ref()).cloned()),
        };
        named.insert(name, Named { table, file, was }).and_then(|old| old.table.ok())
    }

    /// Says why the table of a name cannot be read.
    pub(crate) fn put_broken(&self, name: &str, why: Error) {
        self.put(name.to_owned(), Err(why), false);
    }

    /// Every table and view of a user, also those that cannot be read now, as they were when they could.
    pub(crate) fn all(&self) -> Vec<(String, Arc<dyn TableProvider>)> {
        let table = |n: &Named| n.table.as_ref().ok().or(n.was.as_ref()).cloned();
        self.named().iter().filter(|(_, n)| !n.file).filter_map(|(name, n)| Some((name.clone(), table(n)?))).collect()
    }

    /// Whether the table of a name could not be read.
    pub(crate) fn is_broken(&self, name: &str) -> bool {
        self.named().get(name).is_some_and(|n| n.table.is_err())
    }

    /// How often a table was put under a name or taken away: views over it are planned anew then.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Puts the table of a file under a name.
    pub(crate) fn put_file(&self, name: &str, table: Arc<dyn TableProvider>) {
        self.put(name.to_owned(), Ok(table), true);
    }

    /// Gives a table a name of its own until the guard is dropped: plans that were made by then keep the table.
    pub(crate) fn pass(self: &Arc<Self>, what: &str, table: Arc<dyn TableProvider>) -> Passing {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("__mergeql_{what}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.put_file(&name, table);
        Passing { name, names: self.clone() }
    }

    /// Whether a user's table or view has this name.
    pub(crate) fn has_table(&self, name: &str) -> bool {
        self.named().get(name).is_some_and(|n| !n.file)
    }
}

/// A name that passes.
pub(crate) struct Passing {
    pub(crate) name: String,
    names: Arc<Names>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.names.named.write().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[async_trait]
impl SchemaProvider for Names {
    fn table_names(&self) -> Vec<String> {
        // What cannot be read is not listed: whoever reads all that is listed would see nothing of the others.
        let listed = |(name, n): &(&String, &Named)| !n.file && n.table.is_ok() && !name.starts_with("__mergeql_");
        self.named().iter().filter(listed).map(|(name, _)| name.clone()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = self.named().get(name).map(|n| n.table.clone());
        table.transpose().map_err(|e| DataFusionError::External(Box::new(e)))
    }

    fn register_table(&self, name: String, table: Arc<dyn TableProvider>) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.put(name, Ok(table), false))
    }

    fn deregister_table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        let old = named.remove(name);
        if old.is_some() {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(old.and_then(|n| n.table.ok()))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.named().contains_key(name)
    }
}
