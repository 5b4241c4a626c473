//! A server on a tiny model.

use crate::tiny;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

pub struct Server {
    pub process: Child,
    /// `127.0.0.1:PORT`.
    pub addr: String,
}

impl Server {
    pub fn start(model: &Path, args: &[&str]) -> Self {
        Self::start_with(model, args, Stdio::null())
    }

    /// Its stderr can be read.
    pub fn start_loud(model: &Path, args: &[&str]) -> Self {
        Self::start_with(model, args, Stdio::piped())
    }

    fn start_with(model: &Path, args: &[&str], stderr: Stdio) -> Self {
        let mut command = tiny::bidpo();
        command.args(["serve", "--port", "0", "-t", "1", "-m"]).arg(model).args(args);
        let mut process = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim().rsplit("//").next().unwrap().to_owned();
        assert!(addr.contains(':'), "the server said {line:?}");
        Self { process, addr }
    }

    /// Status and JSON of an answer to a POST.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = agent.post(format!("http://{}{path}", self.addr)).send_json(body).unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }

    /// A greedy completion of a prompt.
    pub fn complete(&self, prompt: &str, more: &Value) -> (u16, Value) {
        let mut body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 12});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/completions", &body)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
