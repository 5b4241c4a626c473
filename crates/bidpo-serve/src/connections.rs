//! The connections that are open: who has them, whether they wait for us, and which is closed where there are too many.
//!
//! A connection that reads nothing, sends nothing, or only half a request costs a place and no work. Where all places are
//! taken, the one that has been still for longest goes, of the address that has most of them: a client that has just come
//! is answered, whatever the others do.

use axum::body::{Body, HttpBody};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Sleep;

/// Time in which a client takes the next bytes of an answer; then the connection is closed.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Time for an answer whose client will send nothing more. It may be gone altogether, which looks the same until it is written
/// to: then what is computed for it is given up.
const HALF_CLOSED_TIME: Duration = Duration::from_secs(5);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    peer: IpAddr,
    /// Requests whose answers are not complete.
    at_work: AtomicUsize,
    /// Milliseconds, since the list was made, of the last byte that came or went.
    moved: AtomicU64,
    /// Milliseconds since which bytes wait to be taken, plus one; 0: none do.
    stuck: AtomicU64,
    /// Told to close.
    closing: Notify,
}

impl Connection {
    /// True if nothing is computed for it: closing it loses no work of ours.
    fn is_still(&self) -> bool {
        self.at_work.load(Ordering::Acquire) == 0 || self.stuck.load(Ordering::Acquire) > 0
    }

    /// Waits until it has to be closed.
    pub(crate) async fn closed(&self) {
        self.closing.notified().await;
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Connections {
    start: Instant,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

impl Connections {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), open: Mutex::default(), next: AtomicU64::new(0) })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// A new connection, in the list until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> Entry {
        let connection = Arc::new(Connection {
            peer,
            at_work: AtomicUsize::new(0),
            moved: AtomicU64::new(self.now()),
            stuck: AtomicU64::new(0),
            closing: Notify::new(),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&connection));
        Entry { id, list: Arc::clone(self), connection }
    }

    /// Has a connection closed that is still, and was so for longest, of the address with most of them. False: there is none.
    pub(crate) fn close_stillest(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of: HashMap<IpAddr, usize> = HashMap::new();
        open.values().for_each(|c| *of.entry(c.peer).or_default() += 1);
        let still = open.iter().filter(|(_, c)| c.is_still());
        let chosen = still.max_by_key(|(_, c)| (of[&c.peer], std::cmp::Reverse(c.moved.load(Ordering::Acquire))));
        let Some(id) = chosen.map(|(&id, _)| id) else { return false };
        if let Some(connection) = open.remove(&id) {
            connection.closing.notify_one();
        }
        true
    }

    /// Has all connections closed for which nothing is computed.
    pub(crate) fn close_still(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|c| c.is_still()).for_each(|c| c.closing.notify_one());
    }
}

/// A connection's place in the list.
#[derive(Debug)]
pub(super) struct Entry {
    id: u64,
    list: Arc<Connections>,
    pub connection: Arc<Connection>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.list.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// Counts a request from now until the value is dropped.
#[derive(Debug)]
pub(super) struct AtWork(Arc<Connection>);

impl AtWork {
    pub(crate) fn new(connection: &Arc<Connection>) -> Self {
        connection.at_work.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(connection))
    }

    /// Counts until the answer's body is complete.
    pub(crate) fn until_sent(self, response: Response) -> Response {
        response.map(|body| Body::new(Counted { body, _at_work: self }))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.at_work.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A body that holds its request's count.
struct Counted {
    body: Body,
    _at_work: AtWork,
}

impl HttpBody for Counted {
    type Data = axum::body::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that notes when bytes move, and fails where a client takes none for [`WRITE_TIME`].
pub(super) struct Watched {
    stream: TcpStream,
    entry: Entry,
    patience: Option<Pin<Box<Sleep>>>,
    /// The client has ended its side; how long that is kept from the HTTP layer, which gives up the request.
    ended: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, entry: Entry) -> Self {
        Self { stream, entry, patience: None, ended: None }
    }

    /// Notes the outcome of a read or a write.
    fn moved(&self) {
        self.entry.connection.moved.store(self.entry.list.now(), Ordering::Release);
    }

    /// Notes the outcome of a write: it went on, or it waits, but not for ever.
    fn written<T>(&mut self, cx: &mut Context<'_>, poll: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        if poll.is_ready() {
            self.patience = None;
            self.entry.connection.stuck.store(0, Ordering::Release);
            self.moved();
            return poll;
        }
        self.entry.connection.stuck.store(self.entry.list.now() + 1, Ordering::Release);
        let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIME)));
        match patience.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.ended.is_none() {
            let before = buf.filled().len();
            let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
            if poll.is_pending() {
                return Poll::Pending;
            }
            self.moved();
            let is_end = matches!(poll, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
            if !is_end {
                return poll;
            }
            self.ended = Some(Box::pin(tokio::time::sleep(HALF_CLOSED_TIME)));
        }
        let is_over = self.ended.as_mut().is_none_or(|time| time.as_mut().poll(cx).is_ready());
        if is_over || self.entry.connection.at_work.load(Ordering::Acquire) == 0 {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stillest_of_the_most_numerous_goes() {
        let list = Connections::new();
        let [many, few]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        let entries: Vec<Entry> = [few, many, many, many].map(|peer| list.enter(peer)).into();
        for (entry, moved) in entries.iter().zip([1, 30, 20, 10]) {
            entry.connection.moved.store(moved, Ordering::Release);
        }
        // The last one is being answered; the one before goes first.
        let work = AtWork::new(&entries[3].connection);
        let left = || {
            let mut ids: Vec<u64> = list.open.lock().unwrap().keys().copied().collect();
            ids.sort_unstable();
            ids
        };
        assert!(list.close_stillest());
        assert_eq!(left(), [0, 1, 3]);
        // Its client takes nothing: then it may go.
        entries[3].connection.stuck.store(5, Ordering::Release);
        assert!(list.close_stillest());
        assert_eq!(left(), [0, 1]);
        assert!(list.close_stillest() && list.close_stillest() && !list.close_stillest());
        drop((work, entries));
        assert!(left().is_empty());
    }
}
