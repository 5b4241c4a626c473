//! Many clients at once, each with steering of its own: every answer is the one that the same request gets alone.

use crate::common;
use crate::gates;
use crate::server::{DIAL, Server, ask, with};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const QUESTIONS: [&str; 6] = [
    "How do I make a cup of tea?",
    "Describe an old wooden bridge that three brothers built of oak over the river, who walks over it and why.",
    "What is a violin?",
    "Tell me about a walk in the forest. Begin with the light, then the sounds, then what lies on the ground; do not hurry, and \
     say what you feel at each turn of the path, for a walk is made of its turns and of nothing else.",
    "Write two sentences about the sea.",
    "What does a baker do?",
];

/// Request number `i`: questions, steering, scopes and lengths in all their combinations.
fn request(i: usize) -> Value {
    let steering = match i % 5 {
        // Gates: one that the prompt decides, one for each token.
        0 if i.is_multiple_of(30) => json!([{"vector": "held", "scale": 1.0}]),
        0 if i % 15 != 10 => json!([{"vector": "topic", "scale": 1.0}, {"vector": DIAL, "scale": 0.3}]),
        0 => json!([]),
        1 => json!([{"vector": DIAL, "scale": 1.0}]),
        2 => json!([]),
        3 => json!([{"vector": "misconceptions", "scale": "8%"}, {"vector": DIAL, "scale": 0.5}]),
        _ => json!([{"vector": "misconceptions", "scale": -1.0}]),
    };
    let scope = ["all", "answer", "prompt", "first:4+after:2"][i / 5 % 4];
    let body = with(ask(QUESTIONS[i % QUESTIONS.len()], 6 + i * 7 % 19), json!({"steering": steering, "scope": scope}));
    let body = with(body, json!({"logprobs": true, "top_logprobs": 1}));
    // Some within a grammar, which moves on token by token beside the others.
    let body = if i % 7 == 3 { with(body, json!({"grammar": "root ::= [A-Z] [a-z ,]{4,40} \".\""})) } else { body };
    // Steered through the model's name.
    let steered = format!("{}@{DIAL}:-1", common::SMOL.trim_end_matches(".gguf"));
    if i % 5 == 2 { with(body, json!({"model": steered})) } else { body }
}

/// Each of the first `n` requests with the choices of its answer, sent by several clients at once.
pub fn in_company(server: &Server, clients: usize, n: usize, request: fn(usize) -> Value) -> Vec<(usize, Value)> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let client = || {
            let mut answers = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return answers;
                }
                answers.push((i, server.ok("/v1/chat/completions", &request(i))["choices"].clone()));
            }
        };
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    })
}

#[test]
fn every_answer_is_the_one_it_gets_alone() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = gates::start(dir.path(), &["--slots", "4"]) else { return };
    let together = in_company(&server, 7, 24, request);
    let rows = server.metric("bidpo_generation_batch_rows_total") / server.metric("bidpo_generation_batches_total");
    assert!(rows > 1.5, "answers were not computed side by side: {rows} rows a batch");
    // On a server that has seen nothing else, one after the other.
    let Some(alone) = gates::start(dir.path(), &["--slots", "1"]) else { return };
    for (i, answer) in together {
        assert_eq!(alone.ok("/v1/chat/completions", &request(i))["choices"], answer, "request {i}: {}", request(i));
    }
}

/// `cargo test --release --test serve minutes -- --ignored --nocapture`; `BIDPO_LOAD_SECONDS` sets how long (240).
#[test]
#[ignore = "takes minutes"]
fn minutes_of_load() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = gates::start(dir.path(), &["--slots", "4", "--queue", "8"]) else { return };
    const KINDS: usize = 30;
    let seconds = std::env::var("BIDPO_LOAD_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(240);
    let expected: Vec<Value> =
        (0..KINDS).map(|i| server.ok("/v1/chat/completions", &request(i))["choices"].clone()).collect();
    let memory = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let (answered, refused, left) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut sizes = Vec::new();
    std::thread::scope(|scope| {
        let (server, expected, answered, refused, left) = (&server, &expected, &answered, &refused, &left);
        for c in 0..10usize {
            scope.spawn(move || {
                let mut i = c * 3;
                while Instant::now() < end {
                    i += 1;
                    if i % 11 == 0 {
                        // A client that leaves in the middle.
                        use std::io::{Read, Write};
                        let body = with(request(i), json!({"stream": true, "max_completion_tokens": 200})).to_string();
                        let mut stream = std::net::TcpStream::connect(server.addr()).unwrap();
                        let head =
                            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
                        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
                        let _ = stream.read(&mut [0; 600]);
                        left.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let (status, answer) = server.post("/v1/chat/completions", &request(i % KINDS));
                    match status {
                        200 => {
                            assert_eq!(answer["choices"], expected[i % KINDS], "request {}", i % KINDS);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        429 => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(100));
                        }
                        other => panic!("{other}: {answer}"),
                    }
                }
            });
        }
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(5));
            sizes.push(memory());
        }
    });
    let (n, rows) = (
        sizes.len(),
        server.metric("bidpo_generation_batch_rows_total") / server.metric("bidpo_generation_batches_total"),
    );
    eprintln!(
        "{seconds} s: {} answers right, {} refused (429), {} clients left, {:.0} tokens generated, {rows:.2} rows a batch; memory {} kB after a \
         quarter, {} kB at the end",
        answered.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed),
        left.load(Ordering::Relaxed),
        server.metric("bidpo_generated_tokens_total"),
        sizes[n / 4],
        sizes[n - 1]
    );
    assert!(answered.load(Ordering::Relaxed) > 50);
    assert_eq!(server.metric("bidpo_jobs_failed_total"), 0.0);
    assert!(sizes[n - 1] < sizes[n / 4] + 8 * 1024, "memory grows: {sizes:?}");
}
