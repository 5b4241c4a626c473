//! Handling of ggml's aborts.
//!
//! ggml ends the process at a broken promise, and its RPC client does so when a worker goes away: no error can be returned
//! from there. What can be done is to say why, and to leave with the exit code of a failure.

use crate::llama::sys;
use std::ffi::{CStr, c_char, c_int};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

/// Note about a file, once it is there.
#[derive(Debug, Clone)]
pub struct AbortMessage {
    /// The file.
    pub file: PathBuf,
    /// It must have been written since then: an older one is another run's.
    pub since: SystemTime,
    /// Text: what is safe, and how to go on.
    pub text: String,
}

static NOTE: Mutex<Option<AbortMessage>> = Mutex::new(None);

/// Sets the note that the user reads beside the reason, should ggml end the process from now on. None removes it.
pub fn set_abort_message(note: Option<AbortMessage>) {
    *NOTE.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = note;
}

unsafe extern "C" {
    /// C's: ends the process at once, without the handlers that would wait for threads which are stuck.
    fn _exit(code: c_int) -> !;
}

/// The last words for what ggml said.
fn words(message: &str, note: Option<&str>) -> String {
    let lost = message.contains("RPC server") || message.contains("ggml-rpc");
    let what = if lost {
        "the connection to a worker broke: the worker ended, could not be reached any more, or could not compute what it was \
         sent"
    } else {
        "ggml ended the computation"
    };
    let mut text = format!("bidpo: {what} ({})\n", message.trim());
    if let Some(note) = note {
        text += &format!("bidpo: {note}\n");
    }
    text
}

/// Called by the shim where ggml's assert cannot become an error (`csrc/guard.cpp`).
#[unsafe(no_mangle)]
unsafe extern "C" fn ggml_grad_last_words(message: *const c_char) {
    let message = if message.is_null() {
        String::new()
    } else {
        // SAFETY: ggml passes a NUL-terminated string.
        let message = unsafe { CStr::from_ptr(message) };
        let rpc = message.to_bytes().windows(8).any(|w| w == b"ggml-rpc");
        let text = crate::llama::process::guard::without_path(message);
        if rpc { format!("ggml-rpc: {text}") } else { text }
    };
    // Not waited for: the thread that holds it may be the one that is stuck.
    let note = NOTE.try_lock().ok().and_then(|n| n.clone());
    let written =
        |n: &AbortMessage| std::fs::metadata(&n.file).and_then(|m| m.modified()).is_ok_and(|at| at >= n.since);
    let note = note.filter(written).map(|n| n.text);
    // Nor may stderr panic here, as it would with `eprint` where it is closed.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), words(&message, note.as_deref()).as_bytes());
    // SAFETY: ends the process; files are written to a temporary name first, so none is left half written under its own.
    unsafe { _exit(1) }
}

unsafe extern "C" {
    /// The shim's callback; only ggml calls it.
    fn ggml_grad_on_abort(message: *const c_char);
}

pub(in crate::llama) fn install() {
    // SAFETY: a plain function that lives forever.
    unsafe { sys::ggml_set_abort_callback(Some(ggml_grad_on_abort)) };
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn the_reason_and_what_is_safe_are_said() {
        let lost = words("ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response", Some("kept"));
        assert!(lost.contains("worker") && lost.contains("566") && lost.ends_with("bidpo: kept\n"), "{lost}");
        let other = words("ggml.c:1: GGML_ASSERT(x) failed", None);
        assert!(other.contains("GGML_ASSERT") && !other.contains("worker"), "{other}");
    }
}
