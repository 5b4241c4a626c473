//! Clients that leave, a full queue, signals, models that cannot be steered.

use crate::server::{DIAL, Server, ask, command, with};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Sends a request by hand, reads until the first token is there, and leaves the connection open.
fn begin(server: &Server, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(server.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = body.to_string();
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

fn until(stream: &mut TcpStream, part: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(part) {
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "the stream ended with {text:?}");
        text += &String::from_utf8_lossy(&buffer[..n]);
    }
    text
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_queue_and_clients_that_leave() {
    let Some(server) = Server::start(&["--slots", "1", "--queue", "1"]) else { return };
    let endless = json!({"stream": true, "logit_bias": {"2": -100, "0": -100}});
    let mut first = begin(&server, &with(ask("Tell me a long story.", 4000), endless.clone()));
    until(&mut first, "\"delta\":{\"content\"");
    let second = begin(&server, &with(ask("And another.", 4000), endless.clone()));
    wait_for("the second request waits", || server.metric("bidpo_jobs_waiting") == 1.0);
    let (status, answer) = server.post("/v1/chat/completions", &ask("x", 1));
    assert_eq!((status, answer["error"]["code"].as_str()), (429, Some("queue_full")));
    assert_eq!(server.metric("bidpo_jobs_rejected_total"), 1.0);
    // One leaves while it is answered, one while it waits: both are given up, and there is room.
    drop(first);
    drop(second);
    wait_for("both are given up", || server.metric("bidpo_jobs_cancelled_total") == 2.0);
    server.ok("/v1/chat/completions", &ask("x", 1));
    assert!(server.metric("bidpo_generated_tokens_total") < 3000.0, "it went on for nobody");
    // One that does not stream, too.
    let mut plain = endless;
    plain["stream"] = json!(false);
    let third = begin(&server, &with(ask("Tell me a long story.", 4000), plain));
    wait_for("the third is begun", || server.metric("bidpo_jobs_running") == 1.0);
    drop(third);
    wait_for("it is given up", || server.metric("bidpo_jobs_cancelled_total") == 3.0);
    server.ok("/v1/chat/completions", &ask("x", 1));
}

#[test]
fn signals_end_the_server_in_good_order() {
    let Some(mut server) = Server::start(&[]) else { return };
    let body = with(ask("Tell me a story.", 60), json!({"stream": true, "steering": [{"vector": DIAL}]}));
    let mut stream = begin(&server, &body);
    let start = until(&mut stream, "\"delta\"");
    server.signal("-TERM");
    let rest = start + &until(&mut stream, "[DONE]");
    assert!(rest.contains("\"finish_reason\":\"length\""), "{rest}");
    assert!(server.process.wait().unwrap().success());
    assert!(TcpStream::connect(server.addr()).is_err());

    // A second signal does not wait for an answer that takes long.
    let Some(mut server) = Server::start(&[]) else { return };
    let mut stream = begin(
        &server,
        &with(ask("Tell me a story.", 4000), json!({"stream": true, "logit_bias": {"2": -100, "0": -100}})),
    );
    until(&mut stream, "\"delta\"");
    server.signal("-INT");
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.process.try_wait().unwrap().is_none(), "it did not let the answer go on");
    server.signal("-INT");
    let rest = until(&mut stream, "[DONE]");
    assert!(rest.contains("shutting down"), "{rest}");
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn a_port_in_use_is_told() {
    let Some(server) = Server::start(&[]) else { return };
    let model = crate::common::model(crate::common::SMOL).unwrap();
    let port = server.addr().rsplit(':').next().unwrap();
    let out = command(&model).args(["--port", port]).stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("cannot listen on 127.0.0.1"), "{said}");
}
