//! llama.cpp's log: silent unless asked for, but its last words are kept for error messages.

use crate::llama::sys;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

static VERBOSE: AtomicBool = AtomicBool::new(false);
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
const KEPT: usize = 20;

/// Prints llama.cpp's own log on stderr (`--verbose`).
pub fn set_verbose(on: bool) {
    VERBOSE.store(on, Ordering::Relaxed);
}

/// The last errors and warnings llama.cpp logged, joined; empties the store.
pub fn last_log_lines() -> String {
    let mut lines = LINES.lock().unwrap_or_else(|e| e.into_inner());
    let text = lines.drain(..).collect::<Vec<_>>().join("; ");
    if text.is_empty() { "no reason given".into() } else { text }
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    if VERBOSE.load(Ordering::Relaxed) {
        // The caller asked for it; where stderr is closed or full there is nobody to tell, and a panic would end in C.
        let clean: String =
            text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect();
        let _ = std::io::stderr().write_all(clean.as_bytes());
    }
    let text = text.trim();
    if (level == sys::GGML_LOG_LEVEL_ERROR || level == sys::GGML_LOG_LEVEL_WARN) && !text.is_empty() {
        let mut lines = LINES.lock().unwrap_or_else(|e| e.into_inner());
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }
}

pub(in crate::llama) fn install() {
    // SAFETY: the callback is a plain function that lives forever and takes no user data.
    unsafe {
        sys::llama_log_set(Some(on_log), std::ptr::null_mut());
        sys::ggml_log_set(Some(on_log), std::ptr::null_mut());
    }
}
