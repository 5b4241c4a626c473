//! Changes of a file inside its form: a value of a JSON tree, a field of a GGUF header, a member of an archive. What is
//! computed from the contents (lengths, checksums, offsets) is put right, so that the reader behind it is reached.

mod gguf;
mod json;
mod safetensors;
mod zip;

use super::edit::{TEXTS, edited, pick};
use arbitrary::Unstructured;

/// What a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Bytes without a form of their own.
    Bytes,
    /// One JSON value.
    Json,
    /// One JSON value a line.
    JsonLines,
    /// A header of JSON, then tensors.
    Safetensors,
    /// Keys, tensors' infos, tensors.
    Gguf,
    /// An archive, as numpy and PyTorch write it.
    Zip,
    /// A request of HTTP/1: head and body.
    Http,
}

impl Form {
    /// Another file made from this one: inside its form, or by plain edits. `u` holds the decisions.
    ///
    /// # Errors
    /// `u` ran out.
    pub fn changed(self, file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Vec<u8>> {
        // A request whose length is wrong is read no further.
        let plain = if self == Self::Http { 10 } else { 3 };
        if u.ratio(1, plain)? {
            return edited(file, u);
        }
        let inside = match self {
            Self::Bytes => None,
            Self::Json => json::changed(file, u)?,
            Self::JsonLines => json::changed_line(file, u)?,
            Self::Safetensors => safetensors::changed(file, u)?,
            Self::Gguf => gguf::changed(file, u)?,
            Self::Zip => zip::changed(file, u)?,
            Self::Http => http(file, u)?,
        };
        match inside {
            Some(file) => Ok(file),
            None => edited(file, u),
        }
    }
}

/// A line of the head or the body is changed; mostly the length is put right.
fn http(file: &[u8], u: &mut Unstructured<'_>) -> arbitrary::Result<Option<Vec<u8>>> {
    let Some(end) = file.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(None) };
    let mut lines: Vec<Vec<u8>> = file[..end].split(|&b| b == b'\n').map(|l| l.trim_ascii_end().to_vec()).collect();
    let mut body = file[end + 4..].to_vec();
    match u.int_in_range(0..=4)? {
        0 if !body.is_empty() => body = edited(&body, u)?,
        0 | 1 => {
            let at = u.choose_index(lines.len())?;
            lines[at] = edited(&lines[at], u)?;
        }
        2 => {
            let line = lines[u.choose_index(lines.len())?].clone();
            let at = u.choose_index(lines.len())?;
            lines.insert(at, line);
        }
        3 => {
            let at = u.choose_index(lines.len())?;
            lines.remove(at);
        }
        _ => {
            let names = ["host", "origin", "content-type", "authorization", "connection", "expect", "x", "accept"];
            let line = format!("{}: {}", pick(&names, u.arbitrary()?), pick(&TEXTS, u.arbitrary()?));
            lines.push(line.into_bytes());
        }
    }
    if !u.ratio(1, 8)? {
        lines.retain(|line| !line.to_ascii_lowercase().starts_with(b"content-length"));
        lines.push(format!("content-length: {}", body.len()).into_bytes());
    }
    lines.push(Vec::new());
    lines.push(body);
    Ok(Some(lines.join(&b"\r\n"[..])))
}
