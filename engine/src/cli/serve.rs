//! `mergeql serve`: the session as a server.

use clap::{Args, ValueEnum};
use mergeql::cluster::{Worker, WorkerOptions};
use mergeql::serve::{Credentials, Options, Server};
use mergeql::{Access, MergeContext, MergeError};
use mergeql_udfs::Code;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::sync::watch;

/// Arguments of `mergeql serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Serve Postgres' protocol on this port (psql, drivers for Postgres); 0 takes a free one
    #[arg(long, value_name = "PORT")]
    postgres: Option<u16>,
    /// Serve Arrow Flight SQL on this port (ADBC); 0 takes a free one
    #[arg(long, value_name = "PORT")]
    flight: Option<u16>,
    #[command(flatten)]
    door: Door,
    /// Refuse statements that change a table, a strategy or a file
    #[arg(long)]
    read_only: bool,
    /// Whether statements may name files of this machine [default: allow on loopback, deny elsewhere]
    #[arg(long, value_enum)]
    files: Option<Files>,
    /// Clients at one time, of each protocol
    #[arg(long, value_name = "N", default_value_t = Options::default().max_connections)]
    max_connections: usize,
    /// Statements at one time; others wait for their turn [default: two a core]
    #[arg(long, value_name = "N")]
    max_statements: Option<usize>,
    /// Seconds that a statement may take, with its wait and the reading of its rows [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    statement_timeout: Option<f64>,
}

/// Where a server listens and who may come in.
#[derive(Debug, Args)]
pub struct Door {
    /// The address to listen on, a number or `localhost`; one that is not loopback needs passwords or tokens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = address)]
    pub listen: IpAddr,
    /// Users, a line `name:password` each
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Tokens of Flight clients, one a line
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificate chain (PEM): connections are encrypted
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

fn address(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    text.parse().map_err(|_| "it is a number like 127.0.0.1 or ::1, or `localhost`".to_owned())
}

fn address_and_port(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').ok_or("it is like 127.0.0.1:7001")?;
    let port = port.parse().map_err(|_| format!("`{port}` is no port"))?;
    Ok(SocketAddr::new(address(host.trim_start_matches('[').trim_end_matches(']'))?, port))
}

impl Door {
    pub fn credentials(&self) -> Result<Credentials, MergeError> {
        Credentials::read(self.password_file.as_deref(), self.token_file.as_deref())
    }

    pub fn tls(&self) -> Option<(PathBuf, PathBuf)> {
        self.tls_cert.clone().zip(self.tls_key.clone())
    }
}

/// Arguments of `mergeql worker`.
#[derive(Debug, Args)]
pub struct Work {
    /// The address to listen on; port 0 takes a free one, and one that is not loopback needs tokens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0", value_parser = address_and_port)]
    listen: SocketAddr,
    /// Tokens that clients and other workers show, one a line; the first is shown to other workers
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Works until it is told to stop.
pub async fn work(work: &Work, memory_limit: Option<usize>) -> Result<ExitCode, MergeError> {
    let credentials = Credentials::read(None, work.token_file.as_deref())?;
    let worker = Worker::bind(WorkerOptions { listen: work.listen, credentials, memory_limit })?;
    eprintln!("worker: listening on {}", worker.address()?);
    until_stopped(worker.run()).await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Files {
    Allow,
    Deny,
}

impl Serve {
    /// What statements of clients may touch.
    pub fn access(&self) -> Access {
        let files = self.files.unwrap_or(if self.door.listen.is_loopback() { Files::Allow } else { Files::Deny });
        Access { read_only: self.read_only, no_files: files == Files::Deny, commands: false }
    }
}

/// Serves until it is told to stop.
pub async fn run(context: MergeContext, serve: &Serve) -> Result<ExitCode, MergeError> {
    let defaults = Options::default();
    if let Some(seconds) = serve.statement_timeout.filter(|s| s.is_nan() || *s <= 0.0) {
        return Err(MergeError::new(Code::InvalidArgument, format!("--statement-timeout is a number of seconds, not {seconds}")));
    }
    let options = Options {
        listen: serve.door.listen,
        postgres: serve.postgres,
        flight: serve.flight,
        credentials: serve.door.credentials()?,
        tls: serve.door.tls(),
        max_connections: serve.max_connections,
        max_statements: serve.max_statements.unwrap_or(defaults.max_statements),
        statement_timeout: serve.statement_timeout.map(|s| Duration::from_secs_f64(s.clamp(0.001, 1e9))),
    };
    let open = options.tls.is_none() && !options.listen.is_loopback();
    let server = Server::bind(context, options)?;
    for (protocol, address) in server.addresses() {
        eprintln!("{protocol}: listening on {address}");
    }
    if open {
        eprintln!("warning: without --tls-cert and --tls-key, what clients send and get can be read on the way");
    }
    until_stopped(server.run()).await
}

/// Runs a server until Ctrl-C or SIGTERM.
pub async fn until_stopped(server: impl Future<Output = Result<(), MergeError>>) -> Result<ExitCode, MergeError> {
    tokio::select! {
        done = server => done.map(|()| ExitCode::SUCCESS),
        () = told_to_stop() => Ok(ExitCode::SUCCESS),
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub async fn told_to_stop() {
    /// Hears signals by a thread of its own: where all others compute, nothing else would.
    static SIGNALS: LazyLock<watch::Sender<()>> = LazyLock::new(|| {
        std::thread::spawn(|| {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                loop {
                    signal().await;
                    SIGNALS.send_replace(());
                }
            });
        });
        watch::Sender::new(())
    });
    SIGNALS.subscribe().changed().await.ok();
}

async fn signal() {
    #[cfg(unix)]
    let told = async {
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        match signal {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let told = std::future::pending::<()>();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => (),
        () = told => (),
    }
}
