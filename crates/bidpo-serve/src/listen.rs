//! Connections: taken in, limited, and let go in good order.

use super::connections::{AtWork, Connections, Entry, Watched};
use super::http::ClientAddr;
use super::state::State;
use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tower::ServiceExt;

/// Time limit for the head of a request; an idle connection is closed.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// Connections at once; for one more, one that is still is closed. Below the files that a process may usually open.
const MAX_CONNECTIONS: usize = 512;

/// Time limit for cancelled answers to report their end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Serves until a signal comes; then takes no more connections and no more work, gives what runs `grace` to end (or until
/// another comes), and gives up the rest.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    state: &Arc<State>,
    grace: Duration,
    mut signals: UnboundedReceiver<()>,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = Connections::new();
    loop {
        let accept = async {
            let accepted = listener.accept().await;
            while places.available_permits() == 0 && connections.close_stillest() {
                // Its task gives the place back.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let permit = Arc::clone(&places).acquire_owned().await;
            (accepted, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            _ = signals.recv() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, most likely: some will be closed.
                let _ = writeln!(std::io::stderr(), "bidpo: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let entry = connections.enter(peer.ip());
        let this = Arc::clone(&entry.connection);
        let connection = graceful.watch(connection(stream, peer, entry, router.clone()));
        tokio::spawn(async move {
            // An error of one connection concerns its client only.
            tokio::select! {
                _ = connection => {}
                () = this.closed() => {}
            }
            drop(permit);
        });
    }
    drop(listener);
    state.draining.send_replace(true);
    // Half a request is no work.
    connections.close_still();
    let ended = graceful.shutdown();
    tokio::pin!(ended);
    tokio::select! {
        () = &mut ended => return,
        () = tokio::time::sleep(grace) => {}
        _ = signals.recv() => {}
    }
    state.engine.stop();
    let _ = tokio::time::timeout(LAST_WORDS, ended).await;
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    entry: Entry,
    router: Router,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> + Send {
    let this = Arc::clone(&entry.connection);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ClientAddr(peer.ip()));
        let at_work = AtWork::new(&this);
        let answer = router.clone().oneshot(request);
        async move { answer.await.map(|response| at_work.until_sent(response)) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(Watched::new(stream, entry)), service)
}
