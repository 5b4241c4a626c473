//! Transfers from a local server that breaks off, stalls, changes the file, and lies about ranges.

use super::*;
use ggml_grad::files::sha256_of_bytes;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::sleep;

/// What a request asked for.
#[derive(Debug, Clone, Default)]
struct Asked {
    range: Option<u64>,
    if_range: Option<String>,
}

/// A server that answers one connection after the other. It ends with the test.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// `answer` gets the number of the connection, what is asked for, and the connection.
    fn new(answer: impl Fn(usize, &Asked, &mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/m.gguf", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for (n, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut request = Asked::default();
                for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                    let Some((name, value)) = line.split_once(": ") else { continue };
                    match name.to_ascii_lowercase().as_str() {
                        "range" => {
                            request.range =
                                value.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().ok();
                        }
                        "if-range" => request.if_range = Some(value.to_owned()),
                        _ => {}
                    }
                }
                log.lock().unwrap().push(request.clone());
                answer(n, &request, &mut stream);
            }
        });
        Self { url, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Answers with `body` from where it is asked for, and breaks off after `at_most` bytes.
fn send(stream: &mut TcpStream, asked: &Asked, body: &[u8], tag: &str, at_most: usize) {
    let from = asked.range.filter(|_| asked.if_range.as_deref().is_none_or(|known| known == tag)).unwrap_or(0) as usize;
    let status = match from {
        0 => "200 OK".to_owned(),
        from => format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", body.len() - 1, body.len()),
    };
    let rest = &body[from..];
    let head =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: {tag}\r\nconnection: close\r\n\r\n", rest.len());
    // The client may have left.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&rest[..at_most.min(rest.len())]));
}

fn status(stream: &mut TcpStream, status: &str) {
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes());
}

const EAGER: Patience = Patience { attempts: 2, pause: Duration::from_millis(1), stall: Duration::from_millis(300) };

struct Place {
    folder: tempfile::TempDir,
    to: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("m.gguf");
        Self { folder, to }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(&self.folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn download<'a>(&'a self, url: &'a str, sha256: Option<&'a HashText>) -> Download<'a> {
        Download { url, to: &self.to, sha256, bytes: None, begins: None, replace: false, patience: EAGER }
    }
}

fn body() -> Vec<u8> {
    b"GGUF".iter().copied().chain((0..300_000u32).map(|i| (i.wrapping_mul(i) / 7) as u8)).collect()
}

fn hash(bytes: &[u8]) -> HashText {
    sha256_of_bytes(bytes).parse().unwrap()
}

fn quiet(_: Event<'_>) {}

#[test]
fn a_file_is_fetched_once() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |_, asked, stream| send(stream, asked, &sent, "\"1\"", usize::MAX));
    let sha256 = hash(&body);
    let download = place.download(&server.url, Some(&sha256));
    let mut last = 0;
    let fetched = download
        .run(&mut |event| {
            if let Event::Bytes { done, total } = event {
                assert!(done > last && total == Some(300_004));
                last = done;
            }
        })
        .unwrap();
    assert_eq!((fetched.outcome, last), (Outcome::Written, 300_004));
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
    assert_eq!(download.run(&mut quiet).unwrap().outcome, Outcome::WasThere);
    assert_eq!((server.asked().len(), place.names()), (1, vec!["m.gguf".to_owned()]));
}

/// With and without a hash: each transfer brings 100,000 bytes, the next one continues.
#[test]
fn broken_transfers_are_continued() {
    for pinned in [true, false] {
        let (place, body) = (Place::new(), body());
        let sent = body.clone();
        let server = Server::new(move |_, asked, stream| send(stream, asked, &sent, "\"1\"", 100_000));
        let sha256 = hash(&body);
        place.download(&server.url, pinned.then_some(&sha256)).run(&mut quiet).unwrap();
        assert_eq!(std::fs::read(&place.to).unwrap(), body);
        let asked = server.asked();
        assert_eq!(
            asked.iter().map(|a| a.range).collect::<Vec<_>>(),
            [None, Some(100_000), Some(200_000), Some(300_000)]
        );
        assert_eq!(asked[1].if_range.as_deref(), Some("\"1\""));
        assert_eq!(place.names(), ["m.gguf"]);
    }
}

/// As after a kill: a new process finds the part.
#[test]
fn a_later_run_continues() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |n, asked, stream| match n {
        0 => send(stream, asked, &sent, "\"1\"", 123_456),
        1 | 2 => status(stream, "503 Service Unavailable"),
        _ => send(stream, asked, &sent, "\"1\"", usize::MAX),
    });
    let sha256 = hash(&body);
    let mut download = place.download(&server.url, Some(&sha256));
    download.patience.attempts = 1;
    let error = download.run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::BrokenOff { received: 123_456, .. }), "{error}");
    assert!(error.to_string().contains("503") && error.to_string().contains("m.gguf.part"), "{error}");
    assert_eq!(place.names(), ["m.gguf.part", "m.gguf.part.json"]);
    assert!(!std::fs::read_to_string(place.folder.path().join("m.gguf.part.json")).unwrap().contains("127.0.0.1"));
    download.run(&mut quiet).unwrap();
    assert_eq!(server.asked().last().unwrap().range, Some(123_456));
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
    assert_eq!(place.names(), ["m.gguf"]);
}

/// A part that is whole, but was not renamed any more.
#[test]
fn a_whole_part_needs_no_transfer() {
    let (place, body) = (Place::new(), body());
    std::fs::write(place.folder.path().join("m.gguf.part"), &body).unwrap();
    let sha256 = hash(&body);
    place.download("http://127.0.0.1:1/m.gguf", Some(&sha256)).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
}

#[test]
fn a_wrong_file_is_not_kept() {
    let (place, body) = (Place::new(), body());
    let sha256 = hash(&body);
    let mut sent = body;
    sent[200_000] ^= 1;
    let server = Server::new(move |_, asked, stream| send(stream, asked, &sent, "\"1\"", usize::MAX));
    let error = place.download(&server.url, Some(&sha256)).run(&mut quiet).unwrap_err();
    assert!(matches!(&error, FetchError::Hash { expected, .. } if expected == sha256.as_str()), "{error}");
    assert_eq!((place.names().len(), server.asked().len()), (0, 1), "{:?}", place.names());
}

/// A bit that tipped in the part: the file comes again, whole, once.
#[test]
fn a_wrong_part_is_fetched_again() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |_, asked, stream| send(stream, asked, &sent, "\"1\"", usize::MAX));
    let mut part = body[..1000].to_vec();
    part[7] ^= 1;
    std::fs::write(place.folder.path().join("m.gguf.part"), part).unwrap();
    let sha256 = hash(&body);
    place.download(&server.url, Some(&sha256)).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
    assert_eq!(server.asked().iter().map(|a| a.range).collect::<Vec<_>>(), [Some(1000), None]);
}

/// The server's file changes between two transfers, and nobody knows its hash.
#[test]
fn parts_of_different_files_are_not_joined() {
    let (place, old) = (Place::new(), body());
    let new: Vec<u8> = old.iter().map(|b| b ^ 85).collect();
    let after = new.clone();
    let server = Server::new(move |n, asked, stream| match n {
        0 => send(stream, asked, &old, "\"old\"", 1000),
        _ => send(stream, asked, &after, "\"new\"", usize::MAX),
    });
    place.download(&server.url, None).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), new);
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"old\""));
}

/// A part from another address, of which nothing is known, is not continued either.
#[test]
fn a_part_of_unknown_origin_is_forgotten() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |_, asked, stream| send(stream, asked, &sent, "\"1\"", usize::MAX));
    std::fs::write(place.folder.path().join("m.gguf.part"), b"something else").unwrap();
    std::fs::write(place.folder.path().join("m.gguf.part.json"), b"no JSON").unwrap();
    place.download(&server.url, None).run(&mut quiet).unwrap();
    assert_eq!((std::fs::read(&place.to).unwrap(), server.asked()[0].range), (body, None));
}

/// Wrong ranges, and ranges that are not heeded.
#[test]
fn servers_that_cannot_continue() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |n, asked, stream| match n {
        0 => send(stream, asked, &sent, "\"1\"", 1000),
        1 => {
            let head =
                "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 5-9/300004\r\ncontent-length: 5\r\n\r\nwrong";
            let _ = stream.write_all(head.as_bytes());
        }
        2 => send(stream, asked, &sent, "\"1\"", 2000),
        _ => send(stream, &Asked::default(), &sent, "\"1\"", usize::MAX),
    });
    let sha256 = hash(&body);
    place.download(&server.url, Some(&sha256)).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
    assert_eq!(server.asked().iter().map(|a| a.range).collect::<Vec<_>>(), [None, Some(1000), None, Some(2000)]);
}

/// A server that always begins again and always breaks off does not hold the program for ever.
#[test]
fn endless_repetition_ends() {
    let (place, body) = (Place::new(), body());
    let server = Server::new(move |_, _, stream| send(stream, &Asked::default(), &body, "\"1\"", 5000));
    let error = place.download(&server.url, None).run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::BrokenOff { times: 3, .. }), "{error}");
    assert_eq!(server.asked().len(), 4);
}

#[test]
fn a_stalled_transfer_is_continued() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |n, asked, stream| {
        send(stream, asked, &sent, "\"1\"", if n == 0 { 1000 } else { usize::MAX });
        if n == 0 {
            // Open, without a byte.
            sleep(Duration::from_millis(900));
        }
    });
    let sha256 = hash(&body);
    place.download(&server.url, Some(&sha256)).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
    assert_eq!(server.asked()[1].range, Some(1000));
}

#[test]
fn refusals_are_final() {
    let place = Place::new();
    let server = Server::new(|_, _, stream| status(stream, "404 Not Found"));
    let error = place.download(&server.url, None).run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::Status { status: 404, .. }), "{error}");
    assert_eq!(server.asked().len(), 1);
    // Nobody listens.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = place.download(&format!("http://{closed}/m.gguf"), None).run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::Transport { .. }), "{error}");
}

#[test]
fn redirections_are_followed() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |n, asked, stream| match n {
        0 => status(stream, "302 Found\r\nlocation: /elsewhere"),
        _ => send(stream, asked, &sent, "\"1\"", usize::MAX),
    });
    place.download(&server.url, None).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
}

/// Without a length and a hash, a broken transfer would be taken for a whole one.
#[test]
fn an_unmarked_end_needs_a_hash() {
    let body = body();
    let sent = body.clone();
    let server = Server::new(move |_, _, stream| {
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").and_then(|()| stream.write_all(&sent));
    });
    let place = Place::new();
    let error = place.download(&server.url, None).run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::NoLength { .. }), "{error}");
    let sha256 = hash(&body);
    place.download(&server.url, Some(&sha256)).run(&mut quiet).unwrap();
    assert_eq!(std::fs::read(&place.to).unwrap(), body);
}

#[test]
fn sizes_and_kinds_are_checked() {
    let server = Server::new(|_, asked, stream| send(stream, asked, b"<html>log in</html>", "\"1\"", usize::MAX));
    let place = Place::new();
    let sized = Download { bytes: Some(5), ..place.download(&server.url, None) };
    let error = sized.run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::Size { found: 19, expected: 5, .. }), "{error}");
    let model = Download { begins: Some(("GGUF", "model")), ..place.download(&server.url, None) };
    let error = model.run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::Kind { .. }), "{error}");
    assert!(place.names().is_empty(), "{:?}", place.names());
}

#[test]
fn what_is_there_is_not_replaced_unasked() {
    let (place, body) = (Place::new(), body());
    let sent = body.clone();
    let server = Server::new(move |_, asked, stream| send(stream, asked, &sent, "\"1\"", usize::MAX));
    std::fs::write(&place.to, b"mine").unwrap();
    let sha256 = hash(&body);
    let download = place.download(&server.url, Some(&sha256));
    assert!(matches!(download.run(&mut quiet).unwrap_err(), FetchError::Exists { .. }));
    assert_eq!((std::fs::read(&place.to).unwrap(), server.asked().len()), (b"mine".to_vec(), 0));
    let forced = Download { replace: true, ..download };
    let mut told = false;
    forced.run(&mut |event| told |= matches!(event, Event::Replaces(_))).unwrap();
    assert!(told && std::fs::read(&place.to).unwrap() == body);
}

#[test]
fn two_processes_do_not_write_one_part() {
    let place = Place::new();
    let _other = LockFile::take(&place.folder.path().join("m.gguf.part.lock")).unwrap().unwrap();
    let error = place.download("http://127.0.0.1:1/m.gguf", None).run(&mut quiet).unwrap_err();
    assert!(matches!(error, FetchError::Busy { .. }), "{error}");
}
