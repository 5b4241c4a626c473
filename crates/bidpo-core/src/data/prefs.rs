//! Preference pairs: a prompt, the answer to prefer, the answer to avoid.
//!
//! Read from JSONL (or one JSON array) and from CSV with a header. The names are `prompt`, `chosen`, `rejected`, or those
//! of the BiPO data (Cao et al. 2024, arXiv 2406.00045): `question`, `matching`, `not_matching`. A prompt may be a list of
//! messages, under `prompt` or `messages`. Other keys are ignored.

use super::decode;
use super::{Message, Prompt};
use ggml_grad::files::{FileError, display_name};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

const PROMPT: [&str; 3] = ["prompt", "question", "messages"];
const CHOSEN: [&str; 2] = ["chosen", "matching"];
const REJECTED: [&str; 2] = ["rejected", "not_matching"];
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// One preference pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    /// The pair's `id`, else its number in the file, from 1.
    pub id: String,
    /// The prompt.
    pub prompt: Prompt,
    /// The answer to prefer.
    pub chosen: String,
    /// The answer to avoid.
    pub rejected: String,
    /// Location: `file:line`.
    pub origin: String,
}

/// A file of preference pairs; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceSet {
    /// The pairs in file order.
    pub pairs: Vec<PreferencePair>,
    /// SHA-256 of the file's bytes, lower-case hex.
    pub sha256: String,
    /// The file's name, or the name of the built-in set.
    pub name: String,
}

/// An invalid file of preference pairs.
#[derive(Debug, thiserror::Error)]
pub enum PrefsError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The file extension names no known format.
    #[error("{path}: unknown kind of file: preference pairs are read from .jsonl, .json (one array) and .csv")]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// A line or record is wrong.
    #[error("{place}: {reason}")]
    Pair {
        /// `file:line`.
        place: String,
        /// The reason.
        reason: String,
    },
    /// No built-in set has this name.
    #[error("no file and no built-in preference set is called {name:?} (built in: {})", PreferenceSet::BUILTIN.join(", "))]
    UnknownSet {
        /// The name asked for.
        name: String,
    },
    /// The file holds nothing.
    #[error("{path}: no preference pairs in it")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl PreferenceSet {
    /// Reads a file; its ending (.jsonl, .ndjson, .json, .csv) names the format.
    ///
    /// # Errors
    /// [`PrefsError`], naming the file and the line: the first mistake ends the reading, nothing is skipped.
    pub fn load(path: &Path) -> Result<Self, PrefsError> {
        let bytes = std::fs::read(path).map_err(FileError::read(path))?;
        let name = display_name(path);
        Self::parse(&bytes, path, name)
    }

    pub(super) fn parse(bytes: &[u8], path: &Path, name: String) -> Result<Self, PrefsError> {
        let text = decode(bytes).map_err(|e| {
            pair_error(path, e.line, format!("not UTF-8 (byte {} of the file): save it as UTF-8", e.byte))
        })?;
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        let pairs = match extension.as_deref() {
            Some("jsonl" | "ndjson") => from_jsonl(text, path)?,
            Some("json") => from_json(text, path)?,
            Some("csv") => from_csv(text, path)?,
            _ => return Err(PrefsError::Extension { path: path.to_owned() }),
        };
        if pairs.is_empty() {
            return Err(PrefsError::Empty { path: path.to_owned() });
        }
        Ok(Self { pairs, sha256: ggml_grad::files::sha256_of_bytes(bytes), name })
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Never true for a set that was read.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Number of pairs whose prompt is an empty text: allowed, but seldom meant.
    pub fn n_empty_prompts(&self) -> usize {
        self.pairs.iter().filter(|p| matches!(&p.prompt, Prompt::Text(t) if t.trim().is_empty())).count()
    }

    /// Number of pairs that repeat an earlier one word for word. They are kept here; a split leaves them out
    /// ([`super::PairGroups`]).
    pub fn n_duplicates(&self) -> usize {
        let mut seen = HashSet::new();
        self.pairs.iter().filter(|p| !seen.insert((&p.prompt, &p.chosen, &p.rejected))).count()
    }
}

fn pair_error(path: &Path, line: usize, reason: impl Into<String>) -> PrefsError {
    PrefsError::Pair { place: format!("{}:{line}", path.display()), reason: reason.into() }
}

fn from_jsonl(text: &str, path: &Path) -> Result<Vec<PreferencePair>, PrefsError> {
    let mut pairs = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let error = |reason: String| pair_error(path, i + 1, reason);
        let value: Value = serde_json::from_str(line)
            .map_err(|e| error(format!("not JSON (column {}): {}", e.column(), without_position(&e))))?;
        let origin = format!("{}:{}", path.display(), i + 1);
        pairs.push(from_value(&value, pairs.len() + 1, origin).map_err(error)?);
    }
    Ok(pairs)
}

fn from_json(text: &str, path: &Path) -> Result<Vec<PreferencePair>, PrefsError> {
    let items: Vec<Value> = serde_json::from_str(text).map_err(|e| {
        pair_error(path, e.line(), format!("not a JSON array (column {}): {}", e.column(), without_position(&e)))
    })?;
    let one = |(i, value): (usize, &Value)| {
        let origin = format!("{}: item {}", path.display(), i + 1);
        from_value(value, i + 1, origin.clone()).map_err(|reason| PrefsError::Pair { place: origin, reason })
    };
    items.iter().enumerate().map(one).collect()
}

/// serde_json ends its messages with a position inside the text it was given, which is one line here.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn from_csv(text: &str, path: &Path) -> Result<Vec<PreferencePair>, PrefsError> {
    let csv_error = |e: csv::Error| {
        let line = e.position().map_or(1, |p| p.line() as usize);
        let reason = match e.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} fields where the header has {expected_len} (a quotation mark or a comma too many?)")
            }
            _ => format!("not CSV: {e}"),
        };
        pair_error(path, line, reason)
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header: Vec<String> = reader.headers().map_err(csv_error)?.iter().map(|h| h.trim().to_owned()).collect();
    let mut pairs = Vec::new();
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        let line = record.position().map_or(0, |p| p.line() as usize);
        let fields: Map<String, Value> =
            header.iter().cloned().zip(record.iter().map(|f| Value::String(f.to_owned()))).collect();
        let origin = format!("{}:{line}", path.display());
        let pair = from_value(&Value::Object(fields), pairs.len() + 1, origin);
        pairs.push(pair.map_err(|reason| pair_error(path, line, reason))?);
    }
    Ok(pairs)
}

fn from_value(value: &Value, number: usize, origin: String) -> Result<PreferencePair, String> {
    let Value::Object(object) = value else {
        return Err(format!("a JSON object is needed on each line, this is {}", kind(value)));
    };
    let find = |names: &[&'static str]| -> Result<(&'static str, &Value), String> {
        names.iter().find_map(|&n| object.get(n).map(|v| (n, v))).ok_or_else(|| {
            let found = object.keys().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
            let names = names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(" or ");
            format!("the key {names} is missing (found: {})", if found.is_empty() { "none" } else { &found })
        })
    };
    let (key, prompt) = find(&PROMPT)?;
    let prompt = match prompt {
        Value::Array(list) => Prompt::Messages(messages(key, list)?),
        // The BiPO files hold a few pairs without a question: an empty text is kept, and counted for a warning.
        Value::String(s) => Prompt::Text(s.clone()),
        other => return Err(format!("\"{key}\" must be text or a list of messages, this is {}", kind(other))),
    };
    let (key, chosen) = find(&CHOSEN)?;
    let chosen = response(key, chosen)?;
    let (key, rejected) = find(&REJECTED)?;
    let rejected = response(key, rejected)?;
    if chosen.trim() == rejected.trim() {
        return Err(format!(
            "chosen and rejected are the same text ({:?}): there is nothing to prefer",
            start(&chosen)
        ));
    }
    let id = match object.get("id") {
        Some(Value::String(s)) if !s.trim().is_empty() => s.clone(),
        Some(Value::Number(n)) => n.to_string(),
        None | Some(Value::Null | Value::String(_)) => number.to_string(),
        Some(other) => return Err(format!("\"id\" must be text or a number, this is {}", kind(other))),
    };
    Ok(PreferencePair { id, prompt, chosen, rejected, origin })
}

fn text(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(s) if s.trim().is_empty() => Err(format!("\"{key}\" is empty")),
        Value::String(s) => Ok(s.clone()),
        other => Err(format!("\"{key}\" must be text, this is {}", kind(other))),
    }
}

/// A response: text, or a list with the assistant's one message.
fn response(key: &str, value: &Value) -> Result<String, String> {
    let Value::Array(list) = value else { return text(key, value) };
    match messages(key, list)?.as_slice() {
        [message] if message.role == "assistant" => Ok(message.content.clone()),
        other => Err(format!(
            "\"{key}\" must be text or one message of the assistant, this is a list of {} messages",
            other.len()
        )),
    }
}

fn messages(key: &str, list: &[Value]) -> Result<Vec<Message>, String> {
    if list.is_empty() {
        return Err(format!("\"{key}\" is an empty list"));
    }
    let one = |(i, value): (usize, &Value)| {
        let place = format!("\"{key}\", message {}", i + 1);
        let field = |name: &str| match value.get(name) {
            Some(Value::String(s)) if !s.trim().is_empty() => Ok(s.clone()),
            Some(Value::String(_)) => Err(format!("{place}: \"{name}\" is empty")),
            Some(other) => Err(format!("{place}: \"{name}\" must be text, this is {}", kind(other))),
            None => Err(format!("{place}: the key \"{name}\" is missing")),
        };
        let message = Message { role: field("role")?, content: field("content")? };
        if !ROLES.contains(&message.role.as_str()) {
            return Err(format!("{place}: unknown role {:?} (known: {})", message.role, ROLES.join(", ")));
        }
        Ok(message)
    };
    list.iter().enumerate().map(one).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a text, for messages.
fn start(text: &str) -> String {
    let mut out: String = text.chars().take(40).collect();
    if out.len() < text.len() {
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<PreferenceSet, String> {
        PreferenceSet::parse(bytes, Path::new(name), name.into()).map_err(|e| e.to_string())
    }

    #[test]
    fn all_spellings_give_the_same_pair() {
        let expected = |set: PreferenceSet| {
            let p = &set.pairs[0];
            assert_eq!((p.chosen.as_str(), p.rejected.as_str()), ("yes, \"b\"", "no"));
            (p.prompt.clone(), p.id.clone(), p.origin.clone())
        };
        let a = read("a.jsonl", br#"{"prompt": "q", "chosen": "yes, \"b\"", "rejected": "no", "topic": 3}"#).unwrap();
        assert_eq!(expected(a), (Prompt::Text("q".into()), "1".into(), "a.jsonl:1".into()));
        let b = b"\xef\xbb\xbf\r\n{\"question\": \"q\", \"matching\": \"yes, \\\"b\\\"\", \"not_matching\": \"no\", \"id\": 7}\r\n";
        assert_eq!(expected(read("b.jsonl", b).unwrap()), (Prompt::Text("q".into()), "7".into(), "b.jsonl:2".into()));
        let c = b"question,extra,matching,not_matching\nq,1,\"yes, \"\"b\"\"\",no\n";
        assert_eq!(expected(read("c.csv", c).unwrap()), (Prompt::Text("q".into()), "1".into(), "c.csv:2".into()));
        let m = br#"[{"id": "x", "messages": [{"role": "user", "content": "q"}], "rejected": "no",
                     "chosen": [{"role": "assistant", "content": "yes, \"b\""}]}]"#;
        let chat = Prompt::Messages(vec![Message::user("q")]);
        assert_eq!(expected(read("d.json", m).unwrap()), (chat, "x".into(), "d.json: item 1".into()));
    }

    #[test]
    fn mistakes_name_their_line() {
        let good = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
        let cases = [
            ("{\"prompt\": \"q\"", "not JSON (column 14)"),
            ("[1]", "a JSON object is needed on each line, this is a list"),
            (
                r#"{"prompt": "q", "chosen": "a", "reject": "b"}"#,
                "\"rejected\" or \"not_matching\" is missing (found: \"prompt\", \"chosen\", \"reject\")",
            ),
            ("{}", "found: none"),
            (r#"{"prompt": "q", "chosen": " ", "rejected": "b"}"#, "\"chosen\" is empty"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": ""}"#, "\"rejected\" is empty"),
            (r#"{"prompt": "q", "chosen": "a", "rejected": "a "}"#, "the same text"),
            (
                r#"{"prompt": 3, "chosen": "a", "rejected": "b"}"#,
                "\"prompt\" must be text or a list of messages, this is a number",
            ),
            (r#"{"prompt": "q", "chosen": null, "rejected": "b"}"#, "\"chosen\" must be text, this is null"),
            (r#"{"prompt": [], "chosen": "a", "rejected": "b"}"#, "an empty list"),
            (
                r#"{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}"#,
                "message 1: the key \"content\" is missing",
            ),
            (
                r#"{"prompt": [{"role": "boss", "content": "x"}], "chosen": "a", "rejected": "b"}"#,
                "unknown role \"boss\"",
            ),
            (r#"{"id": {}, "prompt": "q", "chosen": "a", "rejected": "b"}"#, "\"id\" must be text or a number"),
        ];
        for (line, expected) in cases {
            let error = read("f.jsonl", format!("{good}\n\n{line}\n").as_bytes()).unwrap_err();
            assert!(error.starts_with("f.jsonl:3: ") && error.contains(expected), "{line}\n{error}");
        }
        let error = read("f.jsonl", &[good.as_bytes(), b"\n\n{\"prompt\": \"\xff\"}"].concat()).unwrap_err();
        assert!(error.starts_with("f.jsonl:3: not UTF-8"), "{error}");
        let error = read("f.csv", b"prompt,chosen,rejected\nq,a,b\nq,a,b,c\n").unwrap_err();
        assert!(error.starts_with("f.csv:3: 4 fields where the header has 3"), "{error}");
        let error = read("f.csv", b"prompt,chosen,rejected\n\"q\nq\",a,b\nq,a,a\n").unwrap_err();
        assert!(error.starts_with("f.csv:4: chosen and rejected are the same text"), "{error}");
        let error = read("f.json", b"[\n{\"prompt\": 1},,]").unwrap_err();
        assert!(error.starts_with("f.json:2: not a JSON array"), "{error}");
    }

    #[test]
    fn files_without_pairs() {
        assert_eq!(read("f.jsonl", b"\n \n").unwrap_err(), "f.jsonl: no preference pairs in it");
        assert_eq!(read("f.csv", b"prompt,chosen,rejected\n").unwrap_err(), "f.csv: no preference pairs in it");
        assert!(read("f.txt", b"x").unwrap_err().contains(".jsonl, .json (one array) and .csv"));
        assert!(read("f", b"x").unwrap_err().contains("unknown kind of file"));
        let missing = PreferenceSet::load(Path::new("no-such-file.jsonl")).unwrap_err().to_string();
        assert!(missing.contains("cannot read no-such-file.jsonl"), "{missing}");
    }

    #[test]
    fn repeated_pairs_stay_and_are_counted() {
        let line = r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#;
        let set = read("f.jsonl", format!("{line}\n{line}\n{}\n", line.replace("\"b\"", "\"c\"")).as_bytes()).unwrap();
        assert_eq!((set.len(), set.n_duplicates(), set.n_empty_prompts()), (3, 1, 0));
        // sha256sum of the three bytes "abc": FIPS 180-2, appendix B.1.
        assert_eq!(
            ggml_grad::files::sha256_of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
