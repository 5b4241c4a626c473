//! Clients that are slow, silent, gone or not who they say: others are answered, and the server ends when it is told.

use crate::server::Server;
use crate::tiny;
use bidpo_core::steer::SteeringVector;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// What comes back for these bytes, until the server closes or is silent for ten seconds.
fn exchange(server: &Server, request: &str, half_close: bool) -> String {
    let mut stream = TcpStream::connect(&server.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    if half_close {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        answer.extend_from_slice(&piece[..n]);
        if !half_close && answer.ends_with(b"}") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The time that `/health` takes on a new connection.
fn health(server: &Server) -> Duration {
    let started = Instant::now();
    let answer = exchange(server, "GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", false);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    started.elapsed()
}

#[test]
fn health_is_answered_whatever_others_do() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&tiny::model(dir.path(), tiny::q8_0()), &["--slots", "1"]);
    let asks = "GET /js/main.js HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(200);
    for (what, bytes) in [("silent", ""), ("half a head", "GET /health HTTP/1.1\r\nhost: loc"), ("never reads", &asks)]
    {
        // More than the server has places for, but no more than this process may have open.
        let mut open = Vec::new();
        for _ in 0..700 {
            let Ok(mut stream) = TcpStream::connect(&server.addr) else { break };
            stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            // It fails where the server does not take it all, or has closed.
            let _ = stream.write_all(bytes.as_bytes());
            open.push(stream);
        }
        assert!(open.len() > 600, "{what}: {}", open.len());
        for _ in 0..5 {
            let time = health(&server);
            assert!(time < Duration::from_secs(5), "{what}: {time:?}");
        }
        assert_eq!(server.complete("tea is", &json!({})).0, 200, "{what}");
    }
}

/// A connection from another address of this machine's loopback network.
fn connect_from(address: [u8; 4], server: &Server) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((std::net::IpAddr::from(address), 0).into()).unwrap();
        socket.connect(server.addr.parse().unwrap()).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Of too many connections, those of the address with most of them are closed, although others were still for longer.
#[test]
#[cfg(target_os = "linux")] // Others have one loopback address.
fn many_connections_of_one_address_cost_others_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&tiny::model(dir.path(), tiny::q8_0()), &["--slots", "1"]);
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 4096];
        let n = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..n]).into_owned()
    };
    let mut kept: Vec<_> = (0..8).map(|i| connect_from([127, 0, 0, 2 + i % 4], &server)).collect();
    for stream in &mut kept {
        assert!(ask(stream).starts_with("HTTP/1.1 200"));
    }
    let many: Vec<_> = (0..700).map_while(|_| TcpStream::connect(&server.addr).ok()).collect();
    assert!(many.len() > 600, "{}", many.len());
    assert!(health(&server) < Duration::from_secs(5));
    for stream in &mut kept {
        let answer = ask(stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    }
}

#[test]
fn a_client_that_sends_nothing_more_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&tiny::model(dir.path(), tiny::q8_0()), &["--slots", "1"]);
    let get = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let body = json!({"prompt": "tea is", "max_tokens": 5}).to_string();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let post = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    for (request, end) in [(get, "}"), (&post, "}"), (&[get, get].concat(), "}")] {
        let answer = exchange(&server, request, true);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.trim_end().ends_with(end), "{request}: {answer}");
    }
}

#[test]
fn half_a_request_does_not_delay_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&tiny::model(dir.path(), tiny::q8_0()), &["--slots", "1"]);
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let body = format!("{head}content-length: 500\r\n\r\n{{\"prompt\": \"te");
    let piece = format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"pro\r\n");
    let open: Vec<TcpStream> = ["", "GET /health HTTP/1.1\r\nhost: l", "POST /v1/completions HT", &body, &piece]
        .iter()
        .map(|bytes| {
            let mut stream = TcpStream::connect(&server.addr).unwrap();
            stream.write_all(bytes.as_bytes()).unwrap();
            stream
        })
        .collect();
    health(&server);
    let started = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &server.process.id().to_string()]).status().unwrap().success());
    assert!(server.process.wait().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    drop(open);
}

/// Long lists of layers in many requests at once.
#[test]
fn costly_requests_do_not_keep_others_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let vectors = dir.path().join("vectors");
    std::fs::create_dir(&vectors).unwrap();
    let vector = SteeringVector::single(2, vec![0.1; tiny::WIDTH], "llama").unwrap();
    vector.save(&vectors.join("v.gguf")).unwrap();
    let server = Server::start(&model, &["--slots", "1", "--vectors", vectors.to_str().unwrap()]);
    let list = |layers: std::ops::Range<usize>| layers.map(|l| l.to_string()).collect::<Vec<_>>().join(",");
    let steered = |layers: &str| {
        let entry = json!({"vector": "v", "scale": 1, "layers": layers});
        json!({"prompt": "tea", "max_tokens": 1, "steering": [entry, entry]})
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|i| {
                let (server, body) = (&server, steered(&list(if i % 2 == 0 { 0..65_535 } else { 1..4 })));
                scope.spawn(move || (0..3).map(|_| server.post("/v1/completions", &body).0).collect::<Vec<_>>())
            })
            .collect();
        for _ in 0..10 {
            let time = health(&server);
            assert!(time < Duration::from_secs(3), "{time:?}");
        }
        for (i, client) in clients.into_iter().enumerate() {
            assert_eq!(client.join().unwrap(), [if i % 2 == 0 { 400 } else { 200 }; 3]);
        }
    });
}

/// Forms that can be read in many ways: llama.cpp's own sampler follows each of them, on the thread that computes all answers.
#[test]
fn ambiguous_forms_do_not_keep_others_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let server = Server::start(&model, &["--slots", "2", "--ctx", "64"]);
    let of = |form: Value| {
        let mut body = json!({"prompt": "tea", "max_tokens": 3, "temperature": 0});
        body.as_object_mut().unwrap().extend(form.as_object().unwrap().clone());
        body
    };
    let lattice = (0..60).map(|i| format!("a{i} ::= a{} | a{}\n", i + 1, i + 1)).collect::<String>();
    let chain = (0..15_000).map(|i| format!("a{i}::=a{}\n", i + 1)).collect::<String>();
    let schema = |pattern: &str| json!({"json_schema": {"type": "string", "pattern": pattern}});
    let cases = [
        // Answered, for they cost little here.
        (of(schema(&format!("^{}$", "e?".repeat(600)))), 200),
        (of(json!({"guided_regex": "(t?a?){0,500}"})), 200),
        (of(json!({"guided_regex": "(([a-z]+)*)*!"})), 200),
        (of(json!({"guided_choice": (0..2000).map(|i| format!("eeeeeeee{i}")).collect::<Vec<_>>()})), 200),
        (of(json!({"grammar": "root ::= s\ns ::= \"e\" s s | \"e\""})), 200),
        (of(json!({"grammar": format!("root ::= a0\n{lattice}a60 ::= \"e\"")})), 200),
        (of(json!({"grammar": format!("root ::= a0\n{chain}a15000 ::= \"e\"")})), 200),
        // Refused, with the limit.
        (of(schema("^((e?){0,1000}){0,1000}$")), 400),
        (of(json!({"guided_regex": "((((a?){0,99}){0,99}){0,99}){0,99}"})), 400),
        (of(json!({"grammar": "root ::= r\nr ::= \"e\" (r \"b\" | r \"c\") | \"d\""})), 400),
        (of(json!({"grammar": format!("root ::= a{{2000}}\na ::= \"e\"{}", "|".repeat(200_000))})), 400),
    ];
    let plain = || {
        let begun = Instant::now();
        assert_eq!(server.post("/v1/completions", &of(json!({}))).0, 200);
        begun.elapsed()
    };
    plain();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            for (body, status) in &cases {
                let (got, answer) = server.post("/v1/completions", body);
                let short = body.to_string().chars().take(120).collect::<String>();
                assert_eq!(got, *status, "{short}: {answer}");
                if got == 400 {
                    let message = answer["error"]["message"].as_str().unwrap();
                    assert!(message.contains("more than 20000 ways"), "{short}: {message}");
                }
            }
        });
        while !client.is_finished() {
            for time in [health(&server), plain()] {
                assert!(time < Duration::from_secs(3), "{time:?}");
            }
        }
        client.join().unwrap();
    });
}

#[test]
fn hosts_are_read_strictly_also_where_no_key_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let all = ["--host", "0.0.0.0", "--allow-host", "steer.lan", "--slots", "1"];
    for args in [&all[2..], &all] {
        let mut server = Server::start(&model, args);
        server.addr = server.addr.replace("0.0.0.0", "127.0.0.1");
        let status = |lines: &str| {
            let answer =
                exchange(&server, &format!("GET /v1/models HTTP/1.1\r\n{lines}connection: close\r\n\r\n"), false);
            answer.split(' ').nth(1).unwrap_or_default().to_owned()
        };
        for host in ["localhost", "127.0.0.1:80", "[::1]:8080", "steer.lan"] {
            assert_eq!(status(&format!("host: {host}\r\n")), "200", "{args:?} {host}");
        }
        for host in ["evil.example", "[::1]evil.example", "localhost:80:90", "localhost.evil.example", "[::1]:x", ""] {
            assert_ne!(status(&format!("host: {host}\r\n")), "200", "{args:?} {host}");
        }
        assert_ne!(status("host: localhost\r\nhost: evil.example\r\n"), "200");
        assert_ne!(status(""), "200");
    }
    // A key keeps pages of other sites out: then any name will do.
    let mut server = Server::start(&model, &["--host", "0.0.0.0", "--api-key", "k", "--slots", "1"]);
    server.addr = server.addr.replace("0.0.0.0", "127.0.0.1");
    let ask = "GET /v1/models HTTP/1.1\r\nhost: any.example\r\nauthorization: Bearer k\r\nconnection: close\r\n\r\n";
    assert!(exchange(&server, ask, false).starts_with("HTTP/1.1 200"));
}
