//! A trial run of a model file in a child process, before this process loads it.
//!
//! What llama.cpp cannot compute may still end the process: a failed assert on another thread, an address that is not there.
//! A file that has passed once is not tried again: its identity (place, size, time of change) is kept in the cache folder.

use anyhow::bail;
use ggml_grad::files::sha256_of_bytes;
use ggml_grad::llama::GgufFile;
use ggml_grad::synth;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Files of an architecture that the tests run on are not tried beyond this size: a trial run reads all of the weights (a
/// second for 100 MB on one core), and their header was checked.
const SMALL: u64 = 32 << 20;
/// A trial run that takes longer is given up, and counts as passed: a slow disk is no fault of the file.
const PATIENCE: Duration = Duration::from_secs(60);
/// `0` turns trial runs off.
const SWITCH: &str = "BIDPO_PROBE";

/// Tries a model file that has not passed before.
///
/// # Errors
/// The trial run failed or crashed.
pub fn probe(model: &Path) -> anyhow::Result<()> {
    if std::env::var_os(SWITCH).is_some_and(|v| v == "0") || is_known(model) {
        return Ok(());
    }
    let mark = mark_of(model);
    if mark.as_ref().is_some_and(|m| m.exists()) {
        return Ok(());
    }
    let Ok(program) = std::env::current_exe() else { return Ok(()) };
    let mut command = Command::new(program);
    command.arg("probe-model").arg(model).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return Ok(()) };
    // Read to its end on a thread: a full pipe would hold the child.
    let stderr = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = stderr.map(|s| s.take(1 << 16).read_to_end(&mut said));
        String::from_utf8_lossy(&said).into_owned()
    });
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    if status.success() {
        if let Some(mark) = mark {
            // Without it the file is tried again.
            let _ = mark.parent().map(std::fs::create_dir_all);
            let _ = std::fs::write(mark, "");
        }
        return Ok(());
    }
    let said = reader.join().unwrap_or_default();
    let reason = said.lines().rev().find_map(|l| l.strip_prefix("bidpo: ")).unwrap_or_default().to_owned();
    match status.code() {
        Some(_) => bail!("{} cannot be used: a trial run on it failed: {reason}", model.display()),
        None => bail!(
            "{} cannot be used: a trial run on it crashed ({status}); the file is damaged, or holds what this build of llama.cpp \
             cannot compute",
            model.display()
        ),
    }
}

/// True for a large file of an architecture that the tests run on, and for what is no model file (the load says so).
fn is_known(model: &Path) -> bool {
    let Ok(file) = GgufFile::open(model) else { return true };
    let tested = match file.get("general.architecture") {
        Some(ggml_grad::llama::GgufValue::Str(name)) => synth::families().iter().any(|f| f.arch() == name),
        _ => false,
    };
    tested && std::fs::metadata(model).is_ok_and(|m| m.len() > SMALL)
}

/// The empty file that stands for a model file that has passed, with this version.
fn mark_of(model: &Path) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let path = std::fs::canonicalize(model).ok()?;
    let meta = std::fs::metadata(&path).ok()?;
    let changed = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let identity = format!("{}\n{}\n{}\n{changed}", env!("CARGO_PKG_VERSION"), path.display(), meta.len());
    Some(folder.join("bidpo/probed").join(&sha256_of_bytes(identity.as_bytes())[..32]))
}
