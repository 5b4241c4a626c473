//! A server on a port of its own, ended when it is dropped.

use crate::common;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

pub const DIAL: &str = "plain-vs-flowery";

pub struct Server {
    pub process: Child,
    pub url: String,
}

/// A folder with two of the shipped vectors, for both test models: what is shipped beside them changes no test.
pub fn vectors() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let fill = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve-vectors");
        std::fs::create_dir_all(&folder).unwrap();
        for (name, model) in [DIAL, "misconceptions"].into_iter().flat_map(|n| [(n, common::SMOL), (n, common::GEMMA)])
        {
            let file = format!("{name}.{model}");
            let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(&file);
            let copy = folder.join(file);
            if std::fs::read(&copy).ok() != std::fs::read(&shipped).ok() {
                std::fs::copy(shipped, copy).unwrap();
            }
        }
        folder
    };
    FOLDER.get_or_init(fill).clone()
}

/// The command, without its options but for the model and the vectors.
pub fn command(model: &Path) -> Command {
    command_with(model, &vectors())
}

/// The same with the vectors of another folder.
pub fn command_with(model: &Path, vectors: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.env("BIDPO_THREADS", "1").env_remove("BIDPO_API_KEY").args(["serve", "--model"]).arg(model);
    command.arg("--vectors").arg(vectors).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

impl Server {
    /// On the small model; None where that is missing.
    pub fn start(args: &[&str]) -> Option<Self> {
        Self::spawn(command(&common::model(common::SMOL)?).args(args))
    }

    /// As [`Server::start`]; what it writes to stderr is kept for [`Server::stderr`].
    pub fn start_with_stderr(args: &[&str]) -> Option<Self> {
        Self::spawn(command(&common::model(common::SMOL)?).args(args).stderr(Stdio::piped()))
    }

    /// Starts a command of [`command`] on a free port.
    pub fn spawn(command: &mut Command) -> Option<Self> {
        let mut process = command.args(["--port", "0"]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url =
            line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("the server said {line:?}")).to_owned();
        Some(Self { process, url })
    }

    /// `127.0.0.1:PORT`.
    pub fn addr(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Status and JSON of an answer to a POST.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut response = agent().post(format!("{}{path}", self.url)).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// The JSON of an answer that must be 200.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let (status, value) = self.post(path, body);
        assert_eq!(status, 200, "{value}");
        value
    }

    /// The data of each event of a stream, without the last, which must be `[DONE]`.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut response = agent().post(format!("{}{path}", self.url)).send_json(body).unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let text = response.body_mut().read_to_string().unwrap();
        let mut data: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|d| serde_json::from_str(d).unwrap()).collect()
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("{}{path}", self.url)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let line =
            text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Ends the server; all that it wrote to stderr.
    pub fn stderr(&mut self) -> String {
        let _ = self.process.kill();
        let mut text = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Sends the process a signal.
    pub fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that takes errors as answers, with a connection of its own.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().into()
}

/// A greedy chat request.
pub fn ask(question: &str, max_tokens: usize) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "temperature": 0, "max_completion_tokens": max_tokens})
}

/// `a` with the fields of `b`.
pub fn with(mut a: Value, b: Value) -> Value {
    a.as_object_mut().unwrap().extend(b.as_object().unwrap().clone());
    a
}
