//! llama.cpp's own chat formats: a fixed list, written in C++.
//!
//! bidpo renders the Jinja template of the GGUF file instead, unless that is only the name of one of these; they are also
//! the outside oracle that its tests compare with.

use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{LlamaError, init, sys};
use std::ffi::{CStr, CString, c_char};

/// Names of llama.cpp's built-in chat formats, in its order.
pub fn builtin_chat_formats() -> Vec<String> {
    init();
    // SAFETY: a NULL list of length 0 asks for the number of names.
    let n = unsafe { sys::llama_chat_builtin_templates(std::ptr::null_mut(), 0) };
    let mut names: Vec<*const c_char> = vec![std::ptr::null(); usize::try_from(n).unwrap_or_default()];
    // SAFETY: names is writable for its length; llama.cpp writes no more than that.
    unsafe { sys::llama_chat_builtin_templates(names.as_mut_ptr(), names.len()) };
    names
        .into_iter()
        .filter(|p| !p.is_null())
        // SAFETY: NUL-terminated keys of a static table.
        .map(|p| unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned())
        .collect()
}

/// Formats a chat with one of llama.cpp's built-in formats (`chatml`, `llama3`, `gemma`, ...).
///
/// `messages`: role and content of each.
///
/// # Errors
/// [`LlamaError::Unsupported`] for a format that llama.cpp does not know, or for text that holds a NUL byte.
pub fn apply_builtin_chat_format(
    format: &str,
    messages: &[(String, String)],
    add_generation_prompt: bool,
) -> Result<String, LlamaError> {
    init();
    let c = |s: &str| CString::new(s).map_err(|_| LlamaError::Unsupported("a text holds a NUL byte".into()));
    let format_c = c(format)?;
    let owned: Vec<(CString, CString)> =
        messages.iter().map(|(role, content)| Ok((c(role)?, c(content)?))).collect::<Result<_, LlamaError>>()?;
    let chat: Vec<sys::llama_chat_message> = owned
        .iter()
        .map(|(role, content)| sys::llama_chat_message { role: role.as_ptr(), content: content.as_ptr() })
        .collect();
    let mut buf = vec![0u8; 1024];
    loop {
        // SAFETY: all strings are NUL-terminated and outlive the call; buf is writable for its length. llama.cpp
        // answers with the length it needs, and writes no more than it was given.
        let (format_c, chat, n_chat) = (format_c.as_ptr(), chat.as_ptr(), chat.len());
        let (text, size) = (buf.as_mut_ptr().cast::<c_char>(), buf.len() as i32);
        // SAFETY: as above.
        let n = guarded(|| unsafe {
            throwing::llama_chat_apply_template(format_c, chat, n_chat, add_generation_prompt, text, size)
        })
        .map_err(LlamaError::Failed)?;
        if n < 0 {
            return Err(LlamaError::Unsupported(format!("llama.cpp knows no chat format named {format}")));
        }
        let n = n as usize;
        if n <= buf.len() {
            buf.truncate(n);
            return Ok(String::from_utf8_lossy(&buf).into_owned());
        }
        buf.resize(n, 0);
    }
}
