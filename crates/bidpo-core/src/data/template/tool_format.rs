//! Tool calls as models write them, and answers read for them.
//!
//! One table covers the families: a mark that opens the calls (or none: Llama 3 answers with bare JSON), and behind it JSON
//! objects or lists with a name and arguments, or a name followed by arguments (Mistral).

use serde_json::{Map, Value};

/// Marks around calls: Hermes and Qwen, Mistral, Granite and Phi 4, Llama 3 with and without its mark.
const MARKS: [(&str, &str); 5] = [
    ("<tool_call>", "</tool_call>"),
    ("[TOOL_CALLS]", ""),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<|python_tag|>", ""),
    ("", ""),
];
/// Llama 3 puts this before some calls, though its template does not.
const OPTIONAL: &str = "<|python_tag|>";
const CALL_ID: &str = "[CALL_ID]";
const ARGS: &str = "[ARGS]";
const NAME_KEYS: [&str; 2] = ["name", "tool_name"];
const ARGUMENT_KEYS: [&str; 2] = ["arguments", "parameters"];

/// A call that was written.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenCall {
    /// Name of the function.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// How one call is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An object with these keys, alone or in a list.
    Object { name: &'static str, arguments: &'static str, in_list: bool },
    /// The name, and behind it the arguments; `true`: with [`ARGS`] between them.
    Named { args: bool },
}

/// The form in which a model writes tool calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolFormat {
    open: &'static str,
    close: &'static str,
    shape: Shape,
}

/// Calls at the beginning of a text, and what follows them.
struct Read<'a> {
    calls: Vec<WrittenCall>,
    shape: Shape,
    rest: &'a str,
}

impl ToolFormat {
    /// The format in which `text` holds exactly this call; `None` where it is none of the table's.
    pub(super) fn of_written(text: &str, name: &str, arguments: &Map<String, Value>) -> Option<Self> {
        MARKS.into_iter().find_map(|(open, close)| {
            let body = if open.is_empty() { text.trim_start() } else { &text[text.find(open)?..] };
            let read = read_calls(body, open, close)?;
            let same = matches!(read.calls.as_slice(), [one] if one.name == name && one.arguments == *arguments);
            let bare = open.is_empty() && matches!(read.shape, Shape::Named { .. });
            (same && !bare).then_some(Self { open, close, shape: read.shape })
        })
    }

    /// Texts that may be control tokens, and have to be written out for [`CallSplitter`].
    pub fn marks(&self) -> Vec<&'static str> {
        let optional = if self.open.is_empty() { OPTIONAL } else { "" };
        [self.open, self.close, optional, CALL_ID, ARGS].into_iter().filter(|m| !m.is_empty()).collect()
    }

    /// A grammar's parts for one call: what comes before the JSON, a schema of the JSON, and what comes behind it. `functions`:
    /// each function's name and the schema of its arguments.
    pub fn one_call(&self, functions: &[(&str, &Value)]) -> Vec<(String, Value, String)> {
        match self.shape {
            Shape::Named { args } => {
                let before = |name: &str| format!("{}{name}{}", self.open, if args { ARGS } else { "" });
                functions.iter().map(|(name, schema)| (before(name), (*schema).clone(), String::new())).collect()
            }
            Shape::Object { name: name_key, arguments, in_list } => {
                let one = |(name, schema): &(&str, &Value)| {
                    let properties = Map::from_iter([
                        (name_key.to_owned(), serde_json::json!({"const": name})),
                        (arguments.to_owned(), (*schema).clone()),
                    ]);
                    let mut object = serde_json::json!({"type": "object", "properties": properties,
                        "required": [name_key, arguments], "additionalProperties": false});
                    // References begin at the root.
                    for key in ["$defs", "definitions"] {
                        if let Some(definitions) = schema.get(key) {
                            object[key] = definitions.clone();
                        }
                    }
                    object
                };
                // A line feed parts Hermes' marks from the JSON.
                let gap = if self.close.starts_with("</") { "\n" } else { "" };
                let (l, r) = if in_list { ("[", "]") } else { ("", "") };
                let (before, after) = (format!("{}{gap}{l}", self.open), format!("{r}{gap}{}", self.close));
                functions.iter().map(|f| (before.clone(), one(f), after.clone())).collect()
            }
        }
    }

    /// For an answer that is being written, with the names of the tools there are.
    pub fn splitter(&self, names: Vec<String>) -> CallSplitter {
        CallSplitter { format: self.clone(), names, held: String::new(), place: Place::Start, n_told: 0 }
    }
}

/// Reads all calls that a text begins with.
fn read_calls<'a>(text: &'a str, open: &str, close: &str) -> Option<Read<'a>> {
    let (mut calls, mut shape, mut rest) = (Vec::new(), None, text);
    loop {
        let next = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | ','));
        let marks = [open, close, OPTIONAL];
        if let Some(behind) = marks.iter().filter(|m| !m.is_empty()).find_map(|m| next.strip_prefix(m)) {
            rest = behind;
            continue;
        }
        let found = if next.starts_with(['{', '[']) { json_calls(next) } else { named_call(next, open) };
        let Some(found) = found else { break };
        calls.extend(found.calls);
        shape.get_or_insert(found.shape);
        rest = found.rest;
    }
    Some(Read { calls, shape: shape?, rest })
}

/// The JSON value that a text begins with, and what follows it.
fn json_prefix(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

fn json_calls(text: &str) -> Option<Read<'_>> {
    let (value, rest) = json_prefix(text)?;
    let (list, in_list) = match value {
        Value::Array(list) => (list, true),
        one => (vec![one], false),
    };
    let (mut calls, mut shape) = (Vec::new(), None);
    for value in list {
        let (call, keys) = object_call(value)?;
        calls.push(call);
        shape.get_or_insert(Shape::Object { name: keys.0, arguments: keys.1, in_list });
    }
    Some(Read { calls, shape: shape?, rest })
}

fn object_call(value: Value) -> Option<(WrittenCall, (&'static str, &'static str))> {
    let Value::Object(mut map) = value else { return None };
    if let Some(inner @ Value::Object(_)) = map.remove("function") {
        return object_call(inner);
    }
    let (name_key, name) = NAME_KEYS.into_iter().find_map(|k| Some((k, map.get(k)?.as_str()?.to_owned())))?;
    let (key, arguments) = ARGUMENT_KEYS.into_iter().find_map(|k| Some((k, map.remove(k)?)))?;
    let arguments = match arguments {
        Value::Object(map) => map,
        // Some models write the arguments as text.
        Value::String(text) => serde_json::from_str(&text).ok()?,
        Value::Null => Map::new(),
        _ => return None,
    };
    Some((WrittenCall { name, arguments }, (name_key, key)))
}

/// `name{...}` and `name[ARGS]{...}`, which only Mistral's mark opens.
fn named_call<'a>(text: &'a str, open: &str) -> Option<Read<'a>> {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let end = text.find(|c| !letter(c)).filter(|&end| end > 0 && open == "[TOOL_CALLS]")?;
    let (name, mut rest) = text.split_at(end);
    if let Some(id) = rest.strip_prefix(CALL_ID) {
        rest = id.trim_start_matches(letter);
    }
    let behind = rest.strip_prefix(ARGS);
    let args = behind.is_some();
    let (value, rest) = json_prefix(behind.unwrap_or(rest).trim_start())?;
    let Value::Object(arguments) = value else { return None };
    Some(Read { calls: vec![WrittenCall { name: name.to_owned(), arguments }], shape: Shape::Named { args }, rest })
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerPiece {
    /// Text.
    Text(String),
    /// A call, complete.
    Call(WrittenCall),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing went out.
    Start,
    /// In text.
    Text,
    /// Behind the mark that opens calls.
    Calls,
}

/// Parts calls from the text of an answer that comes in pieces.
#[derive(Debug, Clone)]
pub struct CallSplitter {
    format: ToolFormat,
    names: Vec<String>,
    held: String,
    place: Place,
    n_told: usize,
}

impl CallSplitter {
    /// Adds text. Text that may be a call is held back; a call is told when it is complete.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        self.held += text;
        let mut out = Vec::new();
        if self.place != Place::Calls {
            let opened = self.opened();
            if let Some(at) = opened {
                let before = self.held[..at].trim_end().to_owned();
                self.held.drain(..at);
                self.place = Place::Calls;
                out.extend((!before.is_empty()).then_some(AnswerPiece::Text(before)));
            } else {
                let rest = self.held.split_off(self.held.len() - self.suspicious());
                let safe = std::mem::replace(&mut self.held, rest);
                if !safe.is_empty() {
                    self.place = Place::Text;
                    out.push(AnswerPiece::Text(safe));
                }
            }
        }
        if self.place == Place::Calls && text.contains(['}', ']']) {
            out.extend(self.calls().0);
        }
        out
    }

    /// The rest of the answer: text that did not become a call is text.
    pub fn finish(&mut self) -> Vec<AnswerPiece> {
        let (mut out, rest) = if self.place == Place::Calls { self.calls() } else { (Vec::new(), self.held.clone()) };
        let rest = if self.n_told > 0 { rest.trim().to_owned() } else { rest };
        out.extend((!rest.is_empty()).then_some(AnswerPiece::Text(rest)));
        self.held.clear();
        out
    }

    /// Number of calls so far.
    pub fn n_calls(&self) -> usize {
        self.n_told
    }

    /// Calls that were not told, and the text behind all calls.
    fn calls(&mut self) -> (Vec<AnswerPiece>, String) {
        let format = &self.format;
        // Bare JSON is a call only where it names a tool.
        let known = |r: &Read<'_>| !format.open.is_empty() || r.calls.iter().all(|c| self.names.contains(&c.name));
        let Some(read) = read_calls(&self.held, format.open, format.close).filter(known) else {
            return (Vec::new(), self.held.clone());
        };
        let new: Vec<_> = read.calls.into_iter().skip(self.n_told).map(AnswerPiece::Call).collect();
        self.n_told += new.len();
        (new, read.rest.to_owned())
    }

    /// Where the calls begin, if that is known already.
    fn opened(&self) -> Option<usize> {
        let open = self.format.open;
        if !open.is_empty() {
            return self.held.find(open);
        }
        let begins = self.held.trim_start();
        let bare = self.place == Place::Start && (begins.starts_with(['{', '[']) || begins.starts_with(OPTIONAL));
        bare.then_some(self.held.len() - begins.len())
    }

    /// Bytes at the end of the held text that may belong to calls: the start of a mark, and white space before it.
    fn suspicious(&self) -> usize {
        let mark = if self.format.open.is_empty() { OPTIONAL } else { self.format.open };
        if self.format.open.is_empty() && (self.place == Place::Text || !mark.starts_with(self.held.trim_start())) {
            return 0;
        }
        let starts = self.held.char_indices().map(|(i, _)| &self.held[i..]);
        let partial = starts.filter(|tail| mark.starts_with(tail)).map(str::len).max().unwrap_or(0);
        let before = &self.held[..self.held.len() - partial];
        partial + before.len() - before.trim_end().len()
    }
}

#[cfg(test)]
mod tests;
