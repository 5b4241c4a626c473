//! What somebody has who has only the program: how a model and data get here, the vectors inside, the tour.
#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use ggml_grad::files::sha256_of_bytes;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::{contains, is_empty};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;

/// Serves files by the last part of the path; every answer breaks off after two thirds of a large file. It ends with the test.
fn server(files: &[(&str, Vec<u8>)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files: HashMap<String, Vec<u8>> =
        files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let path = lines[0].split([' ', '?']).nth(1).unwrap();
            let Some(bytes) = files.get(path.rsplit('/').next().unwrap()) else {
                let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                continue;
            };
            let range =
                lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            let from = range.map_or(0, |r| r.trim_end_matches('-').parse::<usize>().unwrap());
            let status = match from {
                0 => "200 OK".to_owned(),
                from => {
                    format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len())
                }
            };
            let rest = &bytes[from..];
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"1\"\r\nconnection: close\r\n\r\n",
                rest.len()
            );
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(&rest[..rest.len().min((bytes.len() * 2 / 3).max(50_000))]));
        }
    });
    address
}

fn bidpo(home: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().to_lowercase().ends_with("_proxy")) {
        command.env_remove(name);
    }
    command.current_dir(home).env("HOME", home).env_remove("XDG_CACHE_HOME").env_remove("BIDPO_MODELS");
    command.env("BIDPO_THREADS", "1").args(args).assert()
}

fn random_model(home: &Path) -> Vec<u8> {
    let path = home.join("random.gguf");
    bidpo(home, &["synth", "--arch", "llama", "--type", "q8_0", "-o", path.to_str().unwrap()]).success();
    std::fs::read(path).unwrap()
}

#[test]
fn a_model_from_an_address() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let bytes = random_model(home);
    assert!(bytes.len() > 100_000, "the transfer must break off: {} bytes", bytes.len());
    let at = server(&[("tiny.gguf", bytes.clone()), ("page.gguf", b"<html>".to_vec())]);
    let (url, sha256) = (format!("{at}/a/tiny.gguf?token=secret"), sha256_of_bytes(&bytes));
    let folder = home.join(".cache/bidpo/models");
    let fetch = |args: &[&str]| bidpo(home, &[&["models", "fetch"], args].concat());
    fetch(&[&url]).failure().code(1).stderr(contains("--sha256").and(contains("secret").not()));
    fetch(&[&url, "--sha256", "abc"]).failure().code(2).stderr(contains("64 hexadecimal digits"));
    fetch(&[&url, "--sha256", &"0".repeat(64)])
        .failure()
        .code(1)
        .stderr(contains(sha256.clone()).and(contains("not kept")));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0, "nothing is left of a wrong file");
    fetch(&[&format!("{at}/page.gguf"), "--unchecked"]).failure().code(1).stderr(contains("no model in GGUF"));
    fetch(&[&format!("{at}/none.gguf"), "--unchecked"]).failure().code(1).stderr(contains("404"));
    let path = folder.join("tiny.gguf");
    fetch(&[&url, "--sha256", &sha256])
        .success()
        .stdout(format!("{}\n", path.display()))
        .stderr(contains("broken off").and(contains("secret").not()));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let again = fetch(&[&url, "--sha256", &sha256, "--json"]).success();
    let report: serde_json::Value = serde_json::from_slice(&again.get_output().stdout).unwrap();
    assert_eq!(report, serde_json::json!({ "path": path, "sha256": sha256, "fetched": false }));
    // It is found by its name, and checked by what was recorded.
    bidpo(home, &["models", "path", "tiny"]).success().stdout(format!("{}\n", path.display()));
    bidpo(home, &["models"]).success().stdout(contains("tiny.gguf").and(contains("bidpo models fetch smollm2")));
    bidpo(home, &["models", "verify"]).success().stdout(contains("ok ").and(contains("tiny.gguf")));
    bidpo(home, &["generate", "-m", "tiny", "-p", "a", "-n", "1", "--template", "none"]).success();
    let mut damaged = bytes;
    damaged[1000] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    bidpo(home, &["models", "verify", "tiny"]).failure().code(1).stdout(contains("WRONG").and(contains(&*sha256)));
    fetch(&[&url, "--sha256", &sha256]).failure().code(1).stderr(contains("--force"));
    fetch(&[&url, "--sha256", &sha256, "--force"]).success();
    bidpo(home, &["models", "verify", "tiny"]).success();
}

#[test]
fn models_by_name() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let at = server(&[("SmolLM2.gguf", b"GGUF of somebody else".to_vec())]);
    bidpo(home, &["models", "fetch", "llama-9"]).failure().code(1).stderr(contains("bidpo models"));
    // A mirror with another file.
    bidpo(home, &["models", "fetch", "smollm2", "--url", &format!("{at}/SmolLM2.gguf")])
        .failure()
        .code(1)
        .stderr(contains("98362432").and(contains("another file")));
    bidpo(home, &["models", "path", "smollm2"]).failure().code(1).stderr(contains("bidpo models fetch smollm2"));
    bidpo(home, &["models", "verify"]).failure().code(1).stderr(contains("no model is here"));
    let listed = bidpo(home, &["models", "list", "--json"]).success();
    let report: serde_json::Value = serde_json::from_slice(&listed.get_output().stdout).unwrap();
    assert!(report["known"][0]["path"].is_null() && report["others"] == serde_json::json!([]), "{report}");
    // Commands that need a model say how to get one.
    bidpo(home, &["train"]).failure().code(2).stderr(contains("--model").and(contains("bidpo models fetch smollm2")));
    bidpo(home, &["train", "-m", "smollm2"]).failure().code(2).stderr(contains("bidpo models fetch smollm2"));
    bidpo(home, &["demo"]).failure().code(1).stdout(is_empty()).stderr(contains("bidpo demo --fetch"));
    assert!(!home.join("bidpo-demo").exists(), "a demo without its model leaves nothing");
}

/// The fetched file is the one of the table, whatever the way it came.
#[cfg(unix)]
#[test]
fn a_known_model_is_verified() {
    let Some(model) = common::model(common::SMOL) else { return };
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".cache/bidpo/models");
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(model, folder.join(common::SMOL)).unwrap();
    bidpo(home.path(), &["models", "verify"]).success().stdout(contains("ok ").and(contains(common::SMOL)));
    // What is there is not fetched: there is no server at that address.
    bidpo(home.path(), &["models", "fetch", "smollm2", "--url", "http://127.0.0.1:1/x"])
        .success()
        .stderr(contains("here already"));
}

#[test]
fn benchmarks_from_a_mirror() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let csv = b"Question?,1,2,3,4,A\n".repeat(3);
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["data/dev/sums_dev.csv", "data/test/sums_test.csv", "data/auxiliary_train/race.csv", "data/README.txt"]
    {
        let mut header = tar::Header::new_ustar();
        header.set_size(csv.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &csv[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let at = server(&[("mc_task.json", b"[]".to_vec()), ("TruthfulQA.csv", b"no".to_vec()), ("data.tar", tar.clone())]);
    let fetch = |args: &[&str]| bidpo(home, &[&["data", "fetch"], args, &["--mirror", &at]].concat());
    fetch(&["truthfulqa", "--only", "mc_task.json"])
        .success()
        .stderr(contains("not pinned").and(contains("Apache-2.0")));
    assert_eq!(std::fs::read(home.join(".cache/bidpo/data/truthfulqa/mc_task.json")).unwrap(), b"[]");
    fetch(&["truthfulqa"])
        .failure()
        .code(1)
        .stderr(contains("mc_task.json is here already").and(contains("TruthfulQA.csv")).and(contains("764be5c0c27c")));
    fetch(&["truthfulqa", "--only", "TruthfulQA.csv", "--sha256", &sha256_of_bytes(b"no")]).success();
    fetch(&["truthfulqa", "--only", "no.csv"]).failure().code(1).stderr(contains("mc_task.json, TruthfulQA.csv"));
    fetch(&["x"]).failure().code(1).stderr(contains("truthfulqa, mmlu, bipo"));
    let sha256 = sha256_of_bytes(&tar);
    let mmlu = ["mmlu", "--only", "data.tar", "--sha256", &sha256, "-o", "m"];
    fetch(&mmlu).success().stdout("m\n").stderr(contains("bidpo eval mmlu --data m"));
    assert_eq!(std::fs::read(home.join("m/test/sums_test.csv")).unwrap(), csv);
    let names = |folder: &str| std::fs::read_dir(home.join(folder)).unwrap().count();
    assert_eq!((names("m"), names("m/dev")), (3, 1), "dev, test and SHA256SUMS");
    fetch(&mmlu).success().stderr(contains("here already"));
    std::fs::write(home.join("m/test/sums_test.csv"), "changed").unwrap();
    fetch(&mmlu).success().stderr(contains("data.tar fetched"));
    assert_eq!(std::fs::read(home.join("m/test/sums_test.csv")).unwrap(), csv);
    bidpo(home, &["data", "fetch", "--list"]).success().stdout(contains("not pinned").and(contains("MIT")));
}

/// OpenSSL's own server with a certificate that nobody signed: it is taken only where the user's system knows it, and an address
/// with https does not lead to one without.
#[test]
fn over_tls() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let key = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2"];
    let of =
        ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"];
    let made = std::process::Command::new("openssl").args(key).args(of).current_dir(home).output();
    if !made.is_ok_and(|made| made.status.success()) {
        common::skipped("openssl is not installed: transfers over TLS were not tested");
        return;
    }
    let plain = server(&[("b.gguf", b"GGUF".to_vec())]);
    std::fs::write(home.join("a.gguf"), "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nGGUFabc").unwrap();
    let moved = format!("HTTP/1.1 302 Found\r\nlocation: {plain}/b.gguf\r\ncontent-length: 0\r\n\r\n");
    std::fs::write(home.join("b.gguf"), moved).unwrap();
    let mut openssl = std::process::Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "cert.pem", "-key", "key.pem", "-HTTP"])
        .current_dir(home)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let said = BufReader::new(openssl.stdout.take().unwrap()).lines().map_while(Result::ok);
    let at = said.filter_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned)).next().unwrap();
    let fetch = |file: &str, trusted: &str| {
        let mut command = Command::cargo_bin("bidpo").unwrap();
        command.env("HOME", home).env_remove("XDG_CACHE_HOME").env_remove("BIDPO_MODELS").env("no_proxy", "127.0.0.1");
        command.env("SSL_CERT_FILE", home.join(trusted)).env_remove("SSL_CERT_DIR");
        command.args(["models", "fetch", "--unchecked", &format!("https://{at}/{file}")]).assert()
    };
    let refused = fetch("a.gguf", "key.pem").failure().code(1);
    let refused = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    let taken = fetch("a.gguf", "cert.pem").success();
    let left = fetch("b.gguf", "cert.pem").failure().code(1);
    let left = String::from_utf8_lossy(&left.get_output().stderr).into_owned();
    openssl.kill().unwrap();
    openssl.wait().unwrap();
    assert!(refused.contains("certificate"), "{refused}");
    assert!(String::from_utf8_lossy(&taken.get_output().stdout).ends_with("a.gguf\n"));
    assert_eq!(std::fs::read(home.join(".cache/bidpo/models/a.gguf")).unwrap(), b"GGUFabc");
    assert!(left.contains("https") && !home.join(".cache/bidpo/models/b.gguf").exists(), "{left}");
}

/// The pinned hash is that of the official file.
#[test]
fn the_official_file_is_taken() {
    let Some(file) = common::third_party("truthfulqa/TruthfulQA.csv") else { return };
    let home = tempfile::tempdir().unwrap();
    let at = server(&[("TruthfulQA.csv", std::fs::read(file).unwrap())]);
    bidpo(home.path(), &["data", "fetch", "truthfulqa", "--only", "TruthfulQA.csv", "--mirror", &at])
        .success()
        .stderr(contains("checked by its SHA-256"));
}

/// A program without the repository around it has the shipped vectors inside.
#[cfg(unix)]
#[test]
fn shipped_vectors_without_a_repository() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // Deeper, so that ../../vectors is not the repository's.
    let bin = home.path().join("a/b/c");
    std::fs::create_dir_all(&bin).unwrap();
    let program = bin.join("bidpo");
    std::fs::hard_link(assert_cmd::cargo::cargo_bin("bidpo"), &program).unwrap();
    let show = |name: &str| {
        Command::new(&program)
            .current_dir(home.path())
            .env("HOME", home.path())
            .env_remove("XDG_CACHE_HOME")
            .args(["vector", "show", name])
            .assert()
    };
    show("flowery-food").success().stderr(contains(".cache/bidpo/vectors/flowery-food"));
    show("plain-vs-flowery").failure().code(2).stderr(contains("2 files of bidpo itself"));
    show("plain-vs-flowery.gemma").success();
    show("plain").failure();
}

/// The whole tour on the real model, as short as it goes.
#[test]
#[ignore = "trains and generates for minutes"]
fn the_tour() {
    let Some(model) = common::model(common::SMOL) else { return };
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("out");
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_MODELS", model.parent().unwrap()).env("BIDPO_THREADS", "1").env("BIDPO_NEUTRAL_PASSAGES", "2");
    let done = command.args(["demo", "--steps", "1", "-n", "2", "-o"]).arg(&out).assert().success();
    let said = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    for part in
        ["1. Train", "test pairs", "2. Three", "scale -1", "4. A dial with a gate", "5. Now you", " chat --model "]
    {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    assert_eq!(said.matches("\n$ ").count(), 11, "{said}");
    bidpo_core::steer::SteeringVector::load(&out.join("misconceptions.gguf")).unwrap();
    assert!(out.join("misconceptions.md").is_file());
}
