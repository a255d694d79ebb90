//! Servers: a session that other programs reach over the network, by Postgres' protocol and by Arrow Flight SQL.
//!
//! Clients share one session: its tables, its strategies, its memory. They listen on loopback unless told otherwise, and elsewhere only
//! with authentication.

mod access;
mod catalog;
mod copy;
mod cursors;
pub(crate) mod flight;
pub(crate) mod incoming;
pub(crate) mod limits;
mod login;
mod parameters;
mod postgres;
mod prepared;
mod rows;

use crate::context::MergeContext;
use crate::error::{MergeError, Result};
use crate::text_files::io;
pub use access::Credentials;
use limits::Limits;
use mergeql_udfs::Code;
use rustls_pki_types::pem::PemObject;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// The address to listen on.
    pub listen: IpAddr,
    /// The port of Postgres' protocol; 0 takes a free one.
    pub postgres: Option<u16>,
    /// The port of Arrow Flight SQL; 0 takes a free one.
    pub flight: Option<u16>,
    /// Who may connect.
    pub credentials: Credentials,
    /// The files of a certificate chain and its key, in PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Clients at one time, of each protocol.
    pub max_connections: usize,
    /// Statements at one time; others wait for their turn.
    pub max_statements: usize,
    /// How long a statement may take, with its wait and the reading of its rows.
    pub statement_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            postgres: None,
            flight: None,
            credentials: Credentials::default(),
            tls: None,
            max_connections: 2000,
            max_statements: 2 * std::thread::available_parallelism().map_or(4, usize::from),
            statement_timeout: None,
        }
    }
}

/// A server that has its ports and does not answer yet.
pub struct Server {
    context: MergeContext,
    options: Options,
    limits: Arc<Limits>,
    tls: Option<Tls>,
    postgres: Option<std::net::TcpListener>,
    flight: Option<std::net::TcpListener>,
}

impl Server {
    /// Takes the ports.
    ///
    /// # Errors
    /// `invalid_argument` if the address is not loopback and there are no passwords or tokens, or no port is asked for; `io` if a port
    /// is taken or a certificate cannot be read.
    /// # Panics
    /// Outside a Tokio runtime, on which statements will compute.
    pub fn bind(context: MergeContext, options: Options) -> Result<Server> {
        let nothing = options.postgres.is_none() && options.flight.is_none();
        if nothing {
            return Err(MergeError::new(Code::InvalidArgument, "there is nothing to serve")
                .help("give --postgres PORT, --flight PORT or both"));
        }
        check_open(options.listen, &options.credentials, options.postgres.is_some())?;
        if options.postgres.is_some() && options.credentials.is_some() && !options.credentials.has_users() {
            return Err(MergeError::new(
                Code::InvalidArgument,
                "tokens keep nobody out of --postgres, whose clients have no place for them",
            )
            .help("give --password-file FILE too, or serve --flight alone"));
        }
        let tls = options.tls.as_ref().map(|(certificate, key)| Tls::read(certificate, key)).transpose()?;
        let at = |port: Option<u16>| port.map(|port| listener(SocketAddr::new(options.listen, port))).transpose();
        let (postgres, flight) = (at(options.postgres)?, at(options.flight)?);
        catalog::prepare(&context)?;
        context.serve();
        let limits = Arc::new(Limits::new(options.max_statements, options.statement_timeout));
        Ok(Server { context, options, limits, tls, postgres, flight })
    }

    /// The addresses that it has, by protocol.
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        let of = |name, listener: &Option<std::net::TcpListener>| Some((name, listener.as_ref()?.local_addr().ok()?));
        [of("postgres", &self.postgres), of("flight", &self.flight)].into_iter().flatten().collect()
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// `io` if a listener fails.
    pub async fn run(self) -> Result<()> {
        // Statements are parsed there, whose expressions may be deep.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("mergeql-net")
            .thread_stack_size(crate::STACK)
            .enable_all()
            .build()?;
        let network = runtime.handle().clone();
        let _given_up_after = Network(Some(runtime));
        let mut task = tokio::task::JoinSet::new();
        task.spawn_on(self.answer(), &network);
        match task.join_next().await {
            Some(Ok(done)) => done,
            _ => Err(MergeError::new(Code::Io, "the server stopped")),
        }
    }

    async fn answer(self) -> Result<()> {
        let Server { context, options, limits, tls, postgres, flight } = self;
        let (postgres, flight) = (postgres.map(TcpListener::from_std).transpose()?, flight.map(TcpListener::from_std).transpose()?);
        let by_postgres = async {
            match postgres {
                Some(listener) => postgres::serve(listener, context.clone(), limits.clone(), &options, tls.as_ref()).await,
                None => Ok(()),
            }
        };
        let by_flight = async {
            match flight {
                Some(listener) => flight::serve(listener, context.clone(), limits.clone(), &options, tls.as_ref()).await,
                None => Ok(()),
            }
        };
        tokio::try_join!(by_postgres, by_flight).map(drop)
    }
}

/// Refuses to be reached from elsewhere without authentication.
pub(crate) fn check_open(listen: IpAddr, credentials: &Credentials, passwords_only: bool) -> Result<()> {
    let known = if passwords_only { credentials.has_users() } else { credentials.is_some() };
    if listen.is_loopback() || known {
        return Ok(());
    }
    let what = if passwords_only { "--password-file FILE" } else { "--password-file FILE or --token-file FILE" };
    Err(MergeError::new(Code::InvalidArgument, format!("{listen} is reached from other machines, and anyone there could connect"))
        .help(format!("give {what}, or listen on 127.0.0.1")))
}

pub(crate) fn listener(address: SocketAddr) -> Result<std::net::TcpListener> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|e: std::io::Error| MergeError::new(Code::Io, format!("{address}: {e}")))
}

/// The runtime on which clients are listened to; it is given up without waiting for them.
struct Network(Option<tokio::runtime::Runtime>);

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// The certificate and key of a server.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) certificate: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) config: Arc<rustls::ServerConfig>,
}

impl Tls {
    pub(crate) fn read(certificate: &Path, key: &Path) -> Result<Tls> {
        let bytes = |path: &Path| std::fs::read(path).map_err(|e| MergeError::from(io(path, e)));
        let (chain, secret) = (bytes(certificate)?, bytes(key)?);
        let bad = |path: &Path, what: String| {
            MergeError::new(Code::InvalidArgument, format!("{}: {what}", path.display()))
                .help("--tls-cert takes a chain of certificates and --tls-key its private key, both in PEM")
        };
        let certificates = rustls_pki_types::CertificateDer::pem_slice_iter(&chain)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| bad(certificate, format!("this is no certificate: {e}")))?;
        if certificates.is_empty() {
            return Err(bad(certificate, "this file holds no certificate".to_owned()));
        }
        let private = rustls_pki_types::PrivateKeyDer::from_pem_slice(&secret)
            .map_err(|e| bad(key, format!("this is no private key: {e}")))?;
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, private))
            .map_err(|e| bad(key, format!("the key and {} do not go together: {e}", certificate.display())))?;
        Ok(Tls { certificate: chain, key: secret, config: Arc::new(config) })
    }
}
