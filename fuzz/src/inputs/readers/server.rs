//! Requests to a server in this process.

use super::{file, seeds};
use bidpo_core::data::{ChatTemplate, TemplateChoice};
use bidpo_serve::{Limits, LogSink, ModelNames, ServeOptions, Server, ServerSignals, VectorStore};
use ggml_grad::llama::{Model, ModelParams};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::mpsc::unbounded_channel;

/// The server's address. It runs until the process ends.
fn server() -> SocketAddr {
    static ADDR: OnceLock<SocketAddr> = OnceLock::new();
    *ADDR.get_or_init(|| {
        let options = ServeOptions {
            addr: "127.0.0.1:0".parse().expect("an address"),
            names: ModelNames::parse(&[], "tiny").expect("a name"),
            n_slots: 2,
            n_ctx: 256,
            n_threads: 1,
            limits: Limits { max_body: 1 << 16, max_prompt: 256, max_output: 4, places: 8 },
            log: LogSink::new(super::shown),
            strict_api: false,
            continue_answers: true,
            keys: Vec::new(),
            origins: Vec::new(),
            hosts: Vec::new(),
            grace: Duration::ZERO,
        };
        // Files of this thread's own: adapters are compared with the model's, and a request may have the folder read again.
        let path = file("served.gguf", &seeds::models()[0]);
        let model = &Model::load(&path, &ModelParams::default()).expect("a model of our own");
        let template = ChatTemplate::new(model, &TemplateChoice::Auto).expect("a template");
        let mut notices = Vec::new();
        let folder = seeds::folder_of_vectors();
        let vectors = VectorStore::load(&folder, model, &template, 1, &mut notices).expect("vectors");
        assert!(vectors.names().len() == 3, "{notices:?}");
        let server = Server::new(model, template, vectors, &options).expect("a server");
        let addr = server.addr().expect("an address");
        std::thread::spawn(move || {
            let ((stop, stops), (rescan, rescans)) = (unbounded_channel(), unbounded_channel());
            server.run(ServerSignals { stop: stops, rescan: rescans }).expect("the server runs on");
            drop((stop, rescan));
        });
        addr
    })
}

/// Sends the bytes and reads all answers.
fn answer(bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(server()).expect("the server takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    // It may have answered and closed before all was sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert!(error.kind() != std::io::ErrorKind::WouldBlock, "no end of the answer in 20 seconds");
    }
    answer
}

/// One connection: every answer has a status, none says that the server failed, and the server lives.
pub(super) fn request(bytes: &[u8]) -> bool {
    let text = answer(bytes);
    if text.is_empty() {
        return false;
    }
    let status = std::str::from_utf8(text.get(9..12).unwrap_or_default()).unwrap_or_default().parse().unwrap_or(0);
    let shown = String::from_utf8_lossy(&text[..text.len().min(2000)]);
    assert!(text.starts_with(b"HTTP/1.") && (100..600u16).contains(&status), "{shown}");
    // 501 and 505: methods and versions of HTTP that the server does not speak. An adapter at a large scale makes numbers that are
    // not finite.
    let allowed = [501, 505].contains(&status) || (status == 500 && shown.contains("not finite"));
    assert!(status < 500 || allowed, "{shown}");
    if status != 200 {
        let health = answer(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        assert!(health.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&health));
    }
    status == 200
}
