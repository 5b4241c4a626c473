//! Vectors that are loaded and unloaded while the server runs.

use crate::common;
use crate::server::{DIAL, Server, ask, vectors, with};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";

fn shipped(name: &str) -> std::path::PathBuf {
    vectors().join(format!("{name}.{}", common::SMOL))
}

fn names(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap()).collect()
}

#[test]
fn vectors_come_and_go_while_the_server_runs() {
    let Some(model) = common::model(common::SMOL) else { return };
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("vectors");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(shipped(DIAL), outside.path().join("secret.gguf")).unwrap();
    // A suite that runs under nohup hands on that SIGHUP is ignored, and the server would respect it.
    let mut command = Command::new("env");
    command
        .arg("--default-signal=HUP")
        .arg(assert_cmd::cargo::cargo_bin!("bidpo"))
        .env("BIDPO_THREADS", "1")
        .env_remove("BIDPO_API_KEY")
        .args(["serve", "--ctx", "512", "--model"])
        .arg(&model);
    command.arg("--vectors").arg(&folder).stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
    let server = Server::spawn(&mut command).unwrap();
    let change = |body: Value| server.post("/v1/vectors", &body);
    let refused = |body: Value, param: &str, word: &str| {
        let (status, value) = change(body.clone());
        let text = value["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((status, &value["error"]["param"]), (400, &json!(param)), "{body}: {value}");
        assert!(text.contains(word) && !text.contains(outside.path().to_str().unwrap()), "{word}: {text}");
    };
    let steered = with(ask("How do I make tea?", 12), json!({"steering": [{"vector": DIAL, "scale": 1}]}));
    assert_eq!(server.post(CHAT, &steered).0, 400);

    // A file that came later.
    std::fs::copy(shipped(DIAL), folder.join(format!("{DIAL}.gguf"))).unwrap();
    let (status, list) = change(json!({"action": "load", "vector": DIAL}));
    assert_eq!((status, names(&list)), (200, vec![DIAL]), "{list}");
    let answer = server.ok(CHAT, &steered)["choices"].clone();
    assert_ne!(answer, server.ok(CHAT, &ask("How do I make tea?", 12))["choices"]);

    // Names only, of this folder only, of vectors that fit.
    for name in [
        "../secret",
        "..",
        "/etc/passwd",
        "",
        "vectors/../../secret",
        "secret",
        "plain-vs-flowery.gguf",
        "a\0b",
        "%2e%2e",
    ] {
        refused(json!({"action": "load", "vector": name}), "vector", "has no file");
    }
    std::fs::copy(vectors().join(format!("{DIAL}.{}", common::GEMMA)), folder.join("wide.gguf")).unwrap();
    std::fs::write(folder.join("broken.gguf"), "GGUF and no more").unwrap();
    refused(json!({"action": "load", "vector": "wide"}), "vector", "dimensions");
    refused(json!({"action": "load", "vector": "broken"}), "vector", "cannot be loaded");
    refused(json!({"action": "unload", "vector": "wide"}), "vector", "no vector \"wide\"");
    refused(json!({"action": "drop", "vector": DIAL}), "action", "must be load, unload or rescan");
    refused(json!({"action": "load"}), "vector", "missing");
    refused(json!({"action": "rescan", "path": "/"}), "path", "unknown");
    assert_eq!(names(&server_list(&server)), [DIAL], "a refused change changes nothing");

    // Requests beside changes: an answer is the steered one, or says that the vector is gone.
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| {
            for action in ["unload", "load", "load", "unload", "load", "load"] {
                assert_eq!(change(json!({"action": action, "vector": DIAL})).0, 200);
            }
        });
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let (status, value) = server.post(CHAT, &steered);
                    let gone = || value["error"]["message"].as_str().unwrap().contains("there is no vector");
                    assert!(if status == 200 { value["choices"] == answer } else { gone() }, "{value}");
                }
            });
        }
        changes.join().unwrap();
    });

    // A file that changed has its new effect; SIGHUP reads the folder.
    std::fs::copy(shipped("misconceptions"), folder.join(format!("{DIAL}.gguf"))).unwrap();
    assert_eq!(server.ok(CHAT, &steered)["choices"], answer);
    change(json!({"action": "load", "vector": DIAL}));
    assert_ne!(server.ok(CHAT, &steered)["choices"], answer);
    std::fs::rename(folder.join(format!("{DIAL}.gguf")), folder.join("other.gguf")).unwrap();
    server.signal("-HUP");
    let since = Instant::now();
    while names(&server_list(&server)) != ["other"] {
        assert!(since.elapsed() < Duration::from_secs(20), "{}", server_list(&server));
        std::thread::sleep(Duration::from_millis(20));
    }
    let base = common::SMOL.trim_end_matches(".gguf");
    server.ok(CHAT, &with(ask("hi", 2), json!({"model": format!("{base}@other")})));
}

fn server_list(server: &Server) -> Value {
    serde_json::from_str(&server.get("/v1/vectors").1).unwrap()
}

#[test]
fn without_a_folder_nothing_is_loaded() {
    let Some(model) = common::model(common::SMOL) else { return };
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command
        .env("BIDPO_THREADS", "1")
        .env_remove("BIDPO_API_KEY")
        .args(["serve", "--ctx", "256", "--model"])
        .arg(&model);
    let server = Server::spawn(command.stdout(Stdio::piped()).stderr(Stdio::null())).unwrap();
    let (status, value) = server.post("/v1/vectors", &json!({"action": "rescan"}));
    assert!(status == 400 && value["error"]["message"].as_str().unwrap().contains("--vectors DIR"), "{value}");
}
