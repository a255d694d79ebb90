//! The program as a server and as a cluster: real processes, real clients, and clients that behave badly; and its page in a real browser.
#![allow(clippy::unwrap_used, missing_docs)]

mod dbt;
mod flight;
mod objects;
mod page;
mod postgres;
mod workers;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn variable(name: &str) -> String {
    std::env::var(name).expect("run `cargo xtask test`: it builds the program and installs its clients")
}

/// The program running until it is dropped, with the addresses that it told.
struct Running {
    child: Child,
    addresses: Vec<String>,
    // What it says later must find a reader.
    _stderr: BufReader<ChildStderr>,
}

impl Running {
    /// Starts it in a folder; it says `what: listening on ADDRESS` once for each of these.
    fn start(folder: &Path, arguments: &[&str], says: usize) -> Running {
        let mut command = Command::new(variable("MERGEQL_PROGRAM"));
        command.args(arguments);
        Running::of(command, folder, says)
    }

    /// As [`Running::start`], for a command that has its arguments already.
    fn of(mut command: Command, folder: &Path, says: usize) -> Running {
        let mut child = command.current_dir(folder).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut addresses = Vec::new();
        while addresses.len() < says {
            let mut line = String::new();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "{command:?} ended early");
            match line.trim().split_once(": listening on ") {
                Some((_, address)) => addresses.push(address.to_owned()),
                None => panic!("{command:?}: {line}"),
            }
        }
        Running { child, addresses, _stderr: stderr }
    }

    fn port(&self) -> &str {
        self.addresses[0].rsplit_once(':').unwrap().1
    }

    /// The most memory that it has had so far, in bytes.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Seconds of processor time that it has used.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A run of the program that comes to its end.
fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(variable("MERGEQL_PROGRAM")).args(arguments).current_dir(folder).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A certificate for `localhost` with its key, as files of a folder.
fn certificate(folder: &Path) {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn wait(what: &str, mut until: impl FnMut() -> bool) {
    let started = Instant::now();
    while !until() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The Python of the page on servers, against one.
#[test]
fn the_page_says_what_comes_out() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/servers.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let server = Running::start(folder.path(), &["serve", "--postgres", "0", "--flight", "0"], 2);
    let flight = server.addresses[1].rsplit_once(':').unwrap().1;
    let mut count = 0;
    for block in mergeql_sql_tests::pages::blocks(&page).into_iter().filter(|b| b.language == "python") {
        let code = block.code.replace("5433", server.port()).replace("5434", flight);
        let output = Command::new(variable("MERGEQL_CLIENTS_PYTHON")).args(["-W", "ignore", "-c", &code]).output().unwrap();
        assert_eq!(stdout(&output), block.expected.unwrap(), "{code}");
        count += 1;
    }
    assert_eq!(count, 2);
}
