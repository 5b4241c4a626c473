//! PyTorch in a process of its own, one step whenever it is asked.

use super::BenchError;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const WHAT: &str = "PyTorch's step (benches/peers/pytorch_step.py)";

fn failed(reason: impl ToString) -> BenchError {
    BenchError::Child { what: WHAT, reason: reason.to_string() }
}

/// `pytorch_step.py --serve`, its models loaded and one step taken.
#[derive(Debug)]
pub(super) struct Peer {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts it: the Python that has PyTorch, the model, and the file of pairs. The step is that of a vector, or of an adapter of
    /// this rank.
    pub(super) fn start(
        python: &Path,
        model: &Path,
        pairs: &Path,
        threads: u32,
        rank: Option<usize>,
    ) -> Result<Self, BenchError> {
        let threads = threads.to_string();
        let mut child = Command::new(python)
            .arg("benches/peers/pytorch_step.py")
            .arg("--model")
            .arg(model)
            .arg("--pairs")
            .arg(pairs)
            .args(["--threads", &threads, "--only", "f32", "--lora", &rank.unwrap_or(0).to_string(), "--serve"])
            .env("OMP_NUM_THREADS", &threads)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed(format!("{}: {e}", python.display())))?;
        let (Some(ask), Some(answer)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("it has no standard input or output"));
        };
        let mut peer = Self { child, ask, answer: BufReader::new(answer) };
        peer.line()?;
        Ok(peer)
    }

    /// Milliseconds of one step.
    pub(super) fn step(&mut self) -> Result<f64, BenchError> {
        writeln!(self.ask, "step").and_then(|()| self.ask.flush()).map_err(failed)?;
        self.line()
    }

    fn line(&mut self) -> Result<f64, BenchError> {
        let mut line = String::new();
        self.answer.read_line(&mut line).map_err(failed)?;
        line.trim()
            .parse()
            .map_err(|_| failed(format!("it answered {line:?} instead of a time; run it by hand to see why")))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
