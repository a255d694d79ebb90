//! A real Postgres cluster for tests.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)] // what fails here fails the test

use crate::Host;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A cluster of its own in a temporary folder, on a private socket.
pub struct Cluster {
    /// Where it lives.
    pub folder: PathBuf,
    /// A shell that stops the cluster and removes the folder when this process is gone, however it ends.
    keeper: Child,
}

/// The programs of the Postgres that `cargo xtask test` found.
pub fn program(name: &str) -> String {
    format!(
        "{}/{name}",
        std::env::var("MERGEQL_POSTGRES_BIN").expect("run `cargo xtask test`: it finds Postgres and names it here")
    )
}

/// A program as an unprivileged user: Postgres does not run as root.
fn unprivileged(name: &str) -> String {
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if root { format!("runuser -u postgres -- {}", program(name)) } else { program(name) }
}

/// Runs a script of the shell.
pub fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).env_remove("RUST_BACKTRACE").env("LC_ALL", "C.UTF-8").output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

impl Cluster {
    /// Makes one with the extension in its template, and starts it.
    pub fn start() -> Cluster {
        let folder = tempfile::Builder::new().prefix("mergeql-pg").tempdir().unwrap().keep();
        let (shown, stop) = (folder.display(), unprivileged("pg_ctl"));
        let keeper = Command::new("sh")
            .args(["-c", &format!("cat; {stop} -D {shown}/data -m immediate stop; rm -rf {shown}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let cluster = Cluster { folder, keeper };
        let shown = cluster.folder.display();
        // The server reads nothing else in there. Where it was built with ICU, texts go by the rules of a language unless told otherwise.
        let make = format!("{} -D {shown}/data -A trust -U postgres -E UTF8", unprivileged("initdb"));
        let language = "--locale-provider=icu --icu-locale=en-US";
        shell(&format!("chmod 777 {shown}; {make} {language} > /dev/null 2>&1 || {{ rm -rf {shown}/data; {make} > /dev/null; }}"));
        cluster.up();
        cluster.host_of("template1").raw("CREATE EXTENSION mergeql").unwrap();
        cluster
    }

    /// Starts the server.
    pub fn up(&self) {
        let shown = self.folder.display();
        let options = format!("-k {shown} -c listen_addresses= -c max_connections=200");
        shell(&format!("{} -D {shown}/data -o '{options}' -w -l {shown}/log start > /dev/null", unprivileged("pg_ctl")));
    }

    /// Ends the server at once, as a crash does.
    pub fn crash(&self) {
        shell(&format!("{} -D {}/data -m immediate -w stop > /dev/null", unprivileged("pg_ctl"), self.folder.display()));
    }

    fn address(&self, database: &str) -> String {
        format!("host={} user=postgres dbname={database}", self.folder.display())
    }

    /// A session in a database.
    pub fn host_of(&self, database: &str) -> Host {
        let python =
            std::env::var("MERGEQL_POSTGRES_PYTHON").expect("run `cargo xtask test`: it installs psycopg and names it here");
        let driver = concat!(env!("CARGO_MANIFEST_DIR"), "/postgres_driver.py");
        Host::start("postgres", &python, &[driver, &self.address(database)])
    }

    /// The name of a fresh database with the extension.
    pub fn database(&self) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        // A template that is being copied takes no connection.
        static COPYING: Mutex<()> = Mutex::new(());
        let _copying = COPYING.lock();
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.host_of("postgres").raw(&format!("CREATE DATABASE {name}")).unwrap();
        name
    }

    /// A session in a fresh database.
    pub fn host(&self) -> Host {
        self.host_of(&self.database())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().ok();
    }
}
