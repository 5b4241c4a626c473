//! Hangups, bus errors, bytes that are no text.

use crate::server::Server;
use crate::tiny;
use ggml_grad::llama::DType;
use serde_json::json;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_line_that_is_no_text_does_not_end_a_chat() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let mut command = tiny::bidpo();
    command.args(["chat", "--max-tokens", "3", "-m"]).arg(&model);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"tea\n\xff\xfe tea \x80\n/dials\ntea\xc3\n/quit\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let line = "trap '' HUP; exec \"$0\" serve --port 0 -t 1 -m \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(assert_cmd::cargo::cargo_bin!("bidpo")).arg(&model);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut byte = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
    let kill = |name: &str| Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(kill("-HUP").success());
    std::thread::sleep(Duration::from_millis(500));
    let alive = kill("-0").success();
    kill("-TERM");
    let status = child.wait().unwrap();
    assert!(alive && status.success(), "{status:?}");
}

/// Starts a training that would take hours, with a line of the shell before it, and waits until it is in its steps.
fn training(dir: &Path, model: &Path, before: &str) -> Child {
    let pair = |i: usize| {
        format!("{{\"prompt\": \"Is {i} a number?\", \"chosen\": \" Yes, {i}.\", \"rejected\": \" No, {i}.\"}}\n")
    };
    std::fs::write(dir.join("p.jsonl"), (0..12).map(pair).collect::<String>()).unwrap();
    let line = format!(
        "{before} exec \"$0\" train --layer 1 --data p.jsonl --epochs 1000000 --patience 0 -t 1 -o v.gguf -m \"$1\""
    );
    let mut command = Command::new("sh");
    command.current_dir(dir).args(["-c", &line]).arg(assert_cmd::cargo::cargo_bin!("bidpo")).arg(model);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !dir.join("v.ckpt").exists() {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

#[test]
fn a_training_goes_on_after_a_hangup_that_was_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), tiny::q8_0());
    let mut child = training(dir.path(), &model, "trap '' HUP;");
    assert!(Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap().success());
    std::thread::sleep(Duration::from_millis(700));
    let ended = child.try_wait().unwrap();
    let _ = child.kill();
    child.wait().unwrap();
    assert!(ended.is_none(), "{ended:?}");
}

#[test]
fn a_model_that_is_cut_short_while_it_trains_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny::model(dir.path(), DType::F32);
    let mut child = training(dir.path(), &model, "");
    std::fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(100).unwrap();
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{status:?} {said}");
    assert!(said.contains("tiny.gguf was cut short while in use"), "{said}");
}

#[test]
fn a_model_that_is_cut_short_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // Larger than a page cache read-ahead: pages that were not touched are read from the file.
    let model = tiny::model(dir.path(), tiny::q8_0());
    let mut server = Server::start_loud(&model, &["--slots", "1"]);
    assert_eq!(server.complete("tea", &json!({})).0, 200);
    std::fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(100).unwrap();
    let body = json!({"prompt": "tea is", "max_tokens": 5}).to_string();
    let mut stream = std::net::TcpStream::connect(&server.addr).unwrap();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let status = server.process.wait().unwrap();
    let mut said = String::new();
    server.process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{status:?} {said}");
    assert!(said.contains(&format!("{} was cut short while in use", model.display())), "{said}");
}
