//! A server that a page starts, until the page ends.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};

pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Runs a page's command, at a free port.
    ///
    /// # Panics
    ///
    /// It ends, or says no address.
    pub fn start(folder: &Path, script: &str) -> Self {
        let mut command = super::shell(folder, None);
        let mut child =
            command.arg(format!("exec {} --port 0 2>&1", script.trim())).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while !said.contains("listening on http://") {
            assert!(lines.read_line(&mut said).unwrap() > 0, "{script}\n{said}");
        }
        let address = said.split("listening on http://").nth(1).unwrap().trim().to_owned();
        // The rest is its log, and the pipe must not fill.
        std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
        Self { child, address }
    }

    /// Its `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn stop(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
