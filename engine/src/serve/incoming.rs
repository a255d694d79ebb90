//! Connections as they come.

use futures::Stream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tonic::Request;
use tonic::transport::server::{Connected, TlsConnectInfo};

/// How long a client may take to say who it is, or anything at all.
pub(super) const GREETING: Duration = Duration::from_secs(15);

/// The next client. It is found out, and its connection closed, if it is gone without a word or does not read what it asked for.
pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                watch(&socket);
                return socket;
            }
            // Out of file descriptors: those that clients give back are waited for.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn watch(socket: &TcpStream) {
    let socket = socket2::SockRef::from(socket);
    let alive = socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&alive).ok();
    socket.set_tcp_nodelay(true).ok();
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(120))).ok();
}

/// Connections for gRPC, at most so many at one time. One that has made no call that was let in within the time of a greeting is closed:
/// the server says so of each by [`Heard::tell`].
pub(crate) fn incoming(listener: TcpListener, most: usize) -> impl Stream<Item = io::Result<Placed>> {
    let (sender, receiver) = mpsc::channel(16);
    let places = Arc::new(Semaphore::new(most.max(1)));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                socket = accept(&listener) => {
                    // Where there is no place the connection is closed.
                    let Ok(place) = places.clone().try_acquire_owned() else { continue };
                    let sender = sender.clone();
                    tokio::spawn(async move {
                        let until = Instant::now() + GREETING;
                        let spoke = tokio::time::timeout_at(until, socket.peek(&mut [0])).await;
                        if matches!(spoke, Ok(Ok(1))) {
                            let (heard, greeting) = (Heard::default(), Some(Box::pin(tokio::time::sleep_until(until))));
                            sender.send(Ok(Placed { socket, heard, greeting, _place: place })).await.ok();
                        }
                    });
                }
                () = sender.closed() => break,
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

/// Whether a client has made a call that was let in.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// Says that a call was let in: its connection may stay.
    pub(crate) fn tell(call: &Request<()>) {
        let calls = call.extensions();
        let heard = calls.get::<Heard>().or_else(|| calls.get::<TlsConnectInfo<Heard>>().map(TlsConnectInfo::get_ref));
        if let Some(heard) = heard {
            heard.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A connection with its place among the connections.
pub(crate) struct Placed {
    socket: TcpStream,
    heard: Heard,
    /// How long it may be there without a call.
    greeting: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Placed {
    type ConnectInfo = Heard;

    fn connect_info(&self) -> Heard {
        self.heard.clone()
    }
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let placed = &mut *self;
        if let Some(greeting) = &mut placed.greeting {
            if placed.heard.0.load(Ordering::Relaxed) {
                placed.greeting = None;
            } else if greeting.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Pin::new(&mut placed.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}
