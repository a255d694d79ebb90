//! Who comes in over Postgres' protocol, and that nobody else runs a statement.

use super::Credentials;
use super::incoming::GREETING;
use async_trait::async_trait;
use datafusion_postgres::pgwire::api::auth::noop::NoopStartupHandler;
use datafusion_postgres::pgwire::api::auth::sasl::SASLAuthStartupHandler;
use datafusion_postgres::pgwire::api::auth::sasl::scram::{SCRAM_ITERATIONS, ScramAuth, gen_salted_password};
use datafusion_postgres::pgwire::api::auth::{AuthSource, DefaultServerParameterProvider, LoginInfo, Password, StartupHandler};
use datafusion_postgres::pgwire::api::{ClientInfo, ConnectionManager, PgWireConnectionState};
use datafusion_postgres::pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use datafusion_postgres::pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use futures::Sink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long one that is refused has to read why.
const FAREWELL: Duration = Duration::from_millis(500);

/// Marks the session of a client that was let in. The library takes a client whose startup failed for one that is ready, so everything that
/// runs a statement asks for this first.
struct Admitted;

pub(super) fn check_admitted<C: ClientInfo + ?Sized>(client: &C) -> PgWireResult<()> {
    if client.session_extensions().get::<Admitted>().is_some() {
        return Ok(());
    }
    let info = ErrorInfo::new("FATAL".to_owned(), "28000".to_owned(), "this connection was refused".to_owned());
    Err(PgWireError::UserError(Box::new(info)))
}

/// The beginning of one connection.
pub(super) struct Startup {
    /// Whether clients must have asked for encryption.
    encrypted: bool,
    greeter: Greeter,
    places: Arc<Semaphore>,
    /// Its place among the connections.
    place: std::sync::Mutex<Option<OwnedSemaphorePermit>>,
    done: AtomicBool,
    refused: tokio::sync::Notify,
}

enum Greeter {
    Open(Open),
    Scram(Box<SASLAuthStartupHandler<DefaultServerParameterProvider>>),
}

struct Open(Arc<ConnectionManager>);

impl NoopStartupHandler for Open {
    fn connection_manager(&self) -> Option<Arc<ConnectionManager>> {
        Some(self.0.clone())
    }
}

impl Startup {
    /// For one connection among so many places; `encrypted` if it must be.
    pub(super) fn new(
        encrypted: bool,
        credentials: &Credentials,
        places: Arc<Semaphore>,
        connections: Arc<ConnectionManager>,
    ) -> Startup {
        let greeter = if credentials.has_users() {
            let scram = ScramAuth::new(Arc::new(Passwords(credentials.clone())));
            let handler = SASLAuthStartupHandler::new(Arc::new(DefaultServerParameterProvider::default()));
            Greeter::Scram(Box::new(handler.with_scram(scram).with_connection_manager(connections)))
        } else {
            Greeter::Open(Open(connections))
        };
        Startup {
            encrypted,
            greeter,
            places,
            place: std::sync::Mutex::new(None),
            done: AtomicBool::new(false),
            refused: tokio::sync::Notify::new(),
        }
    }

    /// Listens to a client for as long as it is welcome: one that says nothing is hung up on, and one that is refused is told so first.
    pub(super) async fn attend<T>(&self, talk: impl Future<Output = T>) {
        let mut talk = std::pin::pin!(talk);
        let welcome = async {
            let greeting = tokio::time::timeout(GREETING, &mut talk).await;
            if greeting.is_err() && self.is_done() {
                talk.await;
            }
        };
        // The library would go on to listen to one that it refused.
        let refused = async {
            self.refused.notified().await;
            tokio::time::sleep(FAREWELL).await;
        };
        futures::future::select(std::pin::pin!(welcome), std::pin::pin!(refused)).await;
    }

    async fn greet<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if matches!(message, PgWireFrontendMessage::Startup(_)) {
            if self.encrypted && !client.is_secure() {
                let message = "this server takes encrypted connections only: connect with sslmode=require or stricter".to_owned();
                let info = ErrorInfo::new("FATAL".to_owned(), "28000".to_owned(), message);
                return Err(PgWireError::UserError(Box::new(info)));
            }
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                let info = ErrorInfo::new("FATAL".to_owned(), "53300".to_owned(), "there are too many clients already".to_owned());
                return Err(PgWireError::UserError(Box::new(info)));
            };
            *self.place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(place);
        }
        match &self.greeter {
            Greeter::Open(open) => open.on_startup(client, message).await,
            Greeter::Scram(scram) => scram.on_startup(client, message).await,
        }
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl StartupHandler for Startup {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: std::fmt::Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let greeted = self.greet(client, message).await;
        if greeted.is_err() {
            self.refused.notify_one();
        } else if matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            client.session_extensions().get_or_insert_with(|| Admitted);
            self.done.store(true, Ordering::Relaxed);
        }
        greeted
    }
}

#[derive(Debug)]
struct Passwords(Credentials);

#[async_trait]
impl AuthSource for Passwords {
    async fn get_password(&self, login: &LoginInfo) -> PgWireResult<Password> {
        let name = login.user().unwrap_or_default();
        // An unknown user is let go on with a password that nobody has: names are not told by how far one comes.
        let (salt, unknown) = (rand::random::<[u8; 16]>(), rand::random::<[u8; 16]>().map(|b| format!("{b:02x}")).concat());
        let password = self.0.password(name).unwrap_or(&unknown);
        Ok(Password::new(Some(salt.to_vec()), gen_salted_password(password, &salt, SCRAM_ITERATIONS)))
    }
}
