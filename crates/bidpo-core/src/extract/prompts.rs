//! Prompts from a file: plain text, JSONL or CSV.

use crate::data::{LineError, Message, Prompt, decode};
use ggml_grad::files::FileError;
use std::path::{Path, PathBuf};

/// An unusable file of prompts.
#[derive(Debug, thiserror::Error)]
pub enum PromptsError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A line holds no prompt.
    #[error(transparent)]
    Line(#[from] LineError),
    /// It holds no prompt.
    #[error("{path} holds no prompt")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Keys or column names of a prompt, in the order of preference.
const KEYS: [&str; 4] = ["prompt", "question", "text", "messages"];

/// Reads prompts, by file extension:
/// - `.jsonl`: one JSON value a line: a string, or an object with `prompt`, `question` or `text` (a string, or messages with
///   role and content) or `messages`;
/// - `.csv`: a column called `prompt`, `question` or `text`;
/// - anything else: one prompt a line.
///
/// Empty lines of text files are skipped.
///
/// # Errors
/// [`PromptsError`], with file and line.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, PromptsError> {
    let bytes = ggml_grad::files::read_whole(path).map_err(FileError::read(path))?;
    let at = LineError::of(path);
    let text = decode(&bytes).map_err(|e| at(e.line, "this is not UTF-8 text".into()))?;
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let prompts = match extension.as_str() {
        "csv" => from_csv(text, at)?,
        _ => {
            let mut prompts = Vec::new();
            for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                prompts.push(match extension.as_str() {
                    "jsonl" | "ndjson" => from_json(line).map_err(|reason| at(i + 1, reason))?,
                    _ => Prompt::Text(line.to_owned()),
                });
            }
            prompts
        }
    };
    if prompts.is_empty() {
        return Err(PromptsError::Empty { path: path.to_owned() });
    }
    Ok(prompts)
}

fn from_json(line: &str) -> Result<Prompt, String> {
    use serde_json::Value;
    let value: Value = serde_json::from_str(line).map_err(|e| format!("this is not JSON: {e}"))?;
    let value = match value {
        Value::Object(mut object) => KEYS
            .iter()
            .find_map(|key| object.remove(*key))
            .ok_or_else(|| format!("the object has none of the keys {}", KEYS.join(", ")))?,
        other => other,
    };
    let prompt = match value {
        Value::String(text) => Prompt::Text(text),
        list @ Value::Array(_) => Prompt::Messages(
            serde_json::from_value::<Vec<Message>>(list).map_err(|e| format!("these are no messages: {e}"))?,
        ),
        _ => return Err("a prompt is a string, or a list of messages with role and content".into()),
    };
    let empty = match &prompt {
        Prompt::Text(text) => text.trim().is_empty(),
        Prompt::Messages(messages) => messages.iter().all(|m| m.content.trim().is_empty()),
    };
    if empty { Err("the prompt is empty".into()) } else { Ok(prompt) }
}

fn from_csv(text: &str, at: impl Fn(usize, String) -> LineError) -> Result<Vec<Prompt>, LineError> {
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let line_of = |e: &csv::Error| e.position().map_or(1, |p| p.line() as usize);
    let headers = reader.headers().map_err(|e| at(line_of(&e), e.to_string()))?.clone();
    let column = KEYS[..3]
        .iter()
        .find_map(|key| headers.iter().position(|h| h.trim().eq_ignore_ascii_case(key)))
        .ok_or_else(|| at(1, format!("no column is called {}", KEYS[..3].join(", "))))?;
    let mut prompts = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| at(line_of(&e), e.to_string()))?;
        let line = record.position().map_or(1, |p| p.line() as usize);
        match record.get(column).filter(|p| !p.trim().is_empty()) {
            Some(prompt) => prompts.push(Prompt::Text(prompt.to_owned())),
            None => return Err(at(line, "the prompt is empty".into())),
        }
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, content: &[u8]) -> Result<Vec<Prompt>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read_prompts(&path).map_err(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
    }

    fn text(texts: &[&str]) -> Result<Vec<Prompt>, String> {
        Ok(texts.iter().map(|t| Prompt::Text((*t).into())).collect())
    }

    #[test]
    fn formats() {
        assert_eq!(read("p.txt", "a\r\n\n b \n".as_bytes()), text(&["a", " b "]));
        assert_eq!(read("p.jsonl", b"\"a\"\n{\"question\": \"b\", \"id\": 1}\n"), text(&["a", "b"]));
        assert_eq!(read("p.csv", "id,Question\n1,\"a, \"\"b\"\"\nc\"\n".as_bytes()), text(&["a, \"b\"\nc"]));
        let chat =
            read("p.jsonl", br#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}"#);
        assert_eq!(chat, Ok(vec![Prompt::Messages(vec![Message::system("s"), Message::user("u")])]));
    }

    #[test]
    fn errors_name_the_line() {
        let error = |name: &str, content: &[u8]| read(name, content).unwrap_err();
        assert!(error("p.jsonl", b"\"a\"\n{oops\n").starts_with("p.jsonl:2: this is not JSON"));
        assert!(error("p.jsonl", b"{\"x\": 1}").contains("p.jsonl:1: the object has none of the keys"));
        assert!(error("p.jsonl", b"\"a\"\n\n\" \"").contains("p.jsonl:3: the prompt is empty"));
        assert!(error("p.jsonl", b"7").contains("a prompt is a string"));
        assert!(error("p.csv", b"a,b\n1,2\n").contains("p.csv:1: no column"));
        assert!(error("p.csv", b"prompt,b\nx,2\n,3\n").contains("p.csv:3: the prompt is empty"));
        assert!(error("p.csv", b"prompt,b\nx\n").contains("p.csv:2:"));
        assert!(error("p.txt", b"a\n\xff\n").contains("p.txt:2: this is not UTF-8"));
        assert!(error("p.txt", b"\n").contains("holds no prompt"));
        assert!(read_prompts(Path::new("no/such.txt")).unwrap_err().to_string().contains("no/such.txt"));
    }
}
