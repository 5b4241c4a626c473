//! Measurements on separate processes: peak memory, and the time to the first token.

use super::kinds::RANK;
use super::pairs::texts;
use super::{BenchError, Line, Measured, Name, Outcome, Spread, Subject, alternate};
use crate::data::Prompt;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The hidden command that only makes llama.cpp's calls.
const FIRST_TOKEN: &str = "first-token";

fn failed(what: &'static str, reason: impl ToString) -> BenchError {
    BenchError::Child { what, reason: reason.to_string() }
}

/// Last lines of a process on stderr.
fn last_words(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(err) = &mut child.stderr {
        let _ = err.read_to_string(&mut text);
    }
    text.trim().lines().next_back().unwrap_or("it said nothing").to_owned()
}

const TRAIN: &str = "bidpo train";

/// Runs of `bidpo train` on the eight pairs, in a folder that goes with it.
pub(super) struct Training {
    folder: TempDir,
    command: Vec<OsString>,
    program: PathBuf,
}

impl Training {
    /// Of so many steps, with the benchmark's threads.
    pub(super) fn new(s: &Subject<'_>, steps: usize) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir().map_err(|e| failed(TRAIN, e))?;
        let data = folder.path().join("pairs.jsonl");
        let lines: Vec<String> = texts()?
            .iter()
            .map(|[p, c, r]| serde_json::json!({ "prompt": p, "chosen": c, "rejected": r }).to_string())
            .collect();
        std::fs::write(&data, lines.join("\n")).map_err(|e| failed(TRAIN, e))?;
        let (steps, threads) = (steps.to_string(), s.settings.threads.to_string());
        let mut command: Vec<OsString> = vec!["train".into(), "--model".into(), s.model.path().into()];
        command.extend(["--data".into(), data.into_os_string()]);
        command.extend(["--steps", &steps, "--threads", &threads].map(OsString::from));
        Ok(Self { folder, command, program: s.settings.program.clone() })
    }

    /// Starts one that writes `output` into the folder.
    pub(super) fn start(&self, output: &str, options: &[String]) -> Result<Child, BenchError> {
        Command::new(&self.program)
            .args(&self.command)
            .arg("--output")
            .arg(self.folder.path().join(output))
            .args(options)
            .args(["--force", "--fresh"])
            .env("BIDPO_NEUTRAL_PASSAGES", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(TRAIN, e))
    }

    /// Waits for its end.
    pub(super) fn end(mut child: Child) -> Result<(), BenchError> {
        let words = last_words(&mut child);
        let status = child.wait().map_err(|e| failed(TRAIN, e))?;
        if status.success() { Ok(()) } else { Err(failed(TRAIN, words)) }
    }
}

/// `bidpo train --steps 2` on the eight pairs: of a vector, or ([`Name::LoraMemory`]) of an adapter on the blocks above the layer.
pub(super) fn memory(s: &mut Subject<'_>, name: Name) -> Result<Line, BenchError> {
    let last = s.model.n_layer() - 1;
    let rank = RANK.to_string();
    let (what, kind) = match name {
        Name::LoraMemory => {
            let blocks = format!("{}-{last}", (s.layer + 1).min(last));
            let what = format!("bidpo train --kind lora, rank {rank}, blocks {blocks}");
            (what, ["--kind", "lora", "--rank", &rank, "--layers", &blocks].map(str::to_owned).to_vec())
        }
        _ => (TRAIN.to_owned(), ["--layer".to_owned(), s.layer.to_string()].to_vec()),
    };
    s.say(&format!("peak memory of {what}"));
    let size = std::fs::metadata(s.model.path()).map_err(|e| failed(TRAIN, e))?.len();
    let mut line = Line {
        name,
        what: format!("peak resident memory of {what}, {} pairs, layer {}", s.pairs.len(), s.layer),
        against: "the model file's size".into(),
        unit: "MB",
        outcome: Outcome::NotMeasured("this system does not tell a process's peak memory".into()),
        limit: name.limit(&s.model, s.layer),
    };
    let training = Training::new(s, 2)?;
    let mut child = training.start("v.gguf", &kind)?;
    // The peak only grows, and training holds it: looking often enough is exact.
    let mut peak = None;
    let status = loop {
        peak = ggml_grad::memory::peak(Some(child.id())).or(peak);
        if let Some(status) = child.try_wait().map_err(|e| failed(TRAIN, e))? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    if !status.success() {
        return Err(failed(TRAIN, last_words(&mut child)));
    }
    if let Some(peak) = peak {
        let (ours, reference) = (peak as f64 / 1e6, size as f64 / 1e6);
        line.outcome = Outcome::Measured(Measured {
            ours: Spread::exactly(ours),
            reference: Spread::exactly(reference),
            ratio: Spread::exactly(ours / reference),
        });
    }
    Ok(line)
}

/// Milliseconds from the start of a process to the first byte on its stdout.
fn to_first_byte(mut command: Command, what: &'static str) -> Result<f64, BenchError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().map_err(|e| failed(what, e))?;
    let mut byte = [0u8];
    let read = child.stdout.as_mut().map_or(Ok(0), |out| out.read(&mut byte));
    let time = started.elapsed();
    // The rest is read, or it could not end.
    let mut rest = Vec::new();
    if let Some(out) = &mut child.stdout {
        let _ = out.read_to_end(&mut rest);
    }
    let status = child.wait().map_err(|e| failed(what, e))?;
    match read {
        Ok(1) if status.success() => Ok(1e3 * time.as_secs_f64()),
        _ => Err(failed(what, last_words(&mut child))),
    }
}

/// Start to the first token.
pub(super) fn start(s: &mut Subject<'_>) -> Result<Line, BenchError> {
    s.say("start to the first token");
    let text = "What is the capital of France?";
    let tokens = s.template.encode_prompt(&s.model, &Prompt::Text(text.into()))?;
    // The reference tokenizes text as `simple` does: BOS is then its own business.
    let skip = usize::from(s.model.adds_bos() && s.model.bos() == tokens.first().copied());
    let rendered = s.model.detokenize(&tokens[skip..], true);
    let same = s.model.tokenize(&rendered, true, true)? == tokens;
    let threads = s.settings.threads.to_string();
    let command = |args: &[&str], model: &Path| {
        let mut c = Command::new(&s.settings.program);
        c.args(args).arg("--model").arg(model).args(["--threads", &threads]);
        c
    };
    let rounds = alternate(
        s.settings.rounds,
        &mut || to_first_byte(command(&["generate", "-n", "1", "--prompt", text], s.model.path()), "bidpo generate"),
        &mut || to_first_byte(command(&[FIRST_TOKEN, "--text", &rendered], s.model.path()), "llama.cpp's first token"),
    )?;
    Ok(Line {
        name: Name::Start,
        what: "bidpo generate, from the start of the process to the first byte of the answer".into(),
        against: format!(
            "a process that only makes the calls of llama.cpp's `simple` example (load, tokenize, context, prefill, sample) \
             on {} tokens",
            if same { "the same" } else { "nearly the same" }
        ),
        unit: "ms",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Start.limit(&s.model, s.layer),
    })
}
