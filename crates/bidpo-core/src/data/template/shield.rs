//! What a person writes never becomes a control token: texts of such tokens in messages are replaced by stand-ins while the
//! template runs, and read as plain characters afterwards.
//!
//! Two kinds of tokens are kept out of messages. Control tokens, and those user-defined tokens that look like markup
//! (`<|...|>`) or that the template itself writes: vocabularies such as Command R's mark their turn headers as user-defined,
//! and llama.cpp finds these in any text. Other user-defined tokens (runs of spaces, HTML tags) stay ordinary text tokens.

use super::Message;
use super::thoughts::ThoughtMarks;
use crate::data::{ToolCall, ToolPart};
use ggml_grad::llama::{LlamaError, Model, Token};
use serde_json::Value;
use std::sync::Arc;

/// Encodes rendered text with the tokenizer of one model.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    /// Texts that no message may turn into tokens, longest first.
    guarded: Arc<Vec<String>>,
    /// Those of them that llama.cpp finds in plain text too.
    everywhere: Arc<Vec<String>>,
    /// Stand-ins in the tools that the template is given.
    given: Arc<Shields>,
    /// The tokenizer puts a space before text (SentencePiece models such as Llama 2).
    space_prefix: bool,
}

/// Stand-ins for control texts while the template runs: a private-use character each.
const STAND_INS: std::ops::Range<u32> = 0xF_0000..0xF_FFFE;

/// Control texts found in messages, and the character that stands for each.
#[derive(Debug, Clone, Default)]
pub(super) struct Shields(Vec<(char, String)>);

impl Shields {
    /// Replaces every guarded text in `content`, but not those of `spared`, by a character that no message holds.
    fn shield(&mut self, content: &str, guarded: &[String], spared: Option<&ThoughtMarks>, taken: &str) -> String {
        let mut text = content.to_owned();
        let spared = |c: &str| spared.is_some_and(|m| c == m.open || c == m.close);
        for c in guarded.iter().filter(|c| content.contains(c.as_str()) && !spared(c)) {
            if !text.contains(c.as_str()) {
                continue; // it was part of a longer one
            }
            let known = self.0.iter().find(|(_, t)| t == c).map(|(stand_in, _)| *stand_in);
            let stand_in = known.or_else(|| {
                STAND_INS
                    .filter_map(char::from_u32)
                    .find(|ch| !taken.contains(*ch) && self.0.iter().all(|(used, _)| used != ch))
            });
            let Some(stand_in) = stand_in else { continue };
            if known.is_none() {
                self.0.push((stand_in, c.clone()));
            }
            text = text.replace(c.as_str(), &stand_in.to_string());
        }
        text
    }

    fn restore(&self, c: char) -> Option<&str> {
        self.0.iter().find(|(stand_in, _)| *stand_in == c).map(|(_, text)| text.as_str())
    }

    /// The text with what the stand-ins stand for.
    pub(super) fn restored(&self, text: &str) -> String {
        if self.0.is_empty() {
            return text.to_owned();
        }
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match self.restore(c) {
                Some(original) => out.push_str(original),
                None => out.push(c),
            }
        }
        out
    }
}

/// All texts of a JSON value.
fn gather(key: &str, value: &Value, out: &mut String) {
    *out += key;
    match value {
        Value::String(text) => *out += text,
        Value::Array(list) => list.iter().for_each(|v| gather("", v, out)),
        Value::Object(map) => map.iter().for_each(|(k, v)| gather(k, v, out)),
        _ => {}
    }
}

/// True for the texts of user-defined tokens that are markup: of any template, or of this one.
fn is_markup(text: &str, source: &str) -> bool {
    let bars = ["<|", "|>", "<｜", "｜>"];
    bars.iter().any(|b| text.contains(b)) || (text.contains(['<', '>', '[', ']', '|']) && source.contains(text))
}

impl Encoder {
    /// `source`: the template's.
    pub(super) fn new(model: &Model, source: &str) -> Self {
        let space_prefix = model
            .tokenize("a", false, false)
            .is_ok_and(|t| t.first().is_some_and(|&t| model.token_bytes(t, false).first() == Some(&b' ')));
        let everywhere: Vec<String> = model.user_defined_texts().into_iter().filter(|t| is_markup(t, source)).collect();
        let mut guarded = model.control_texts();
        guarded.extend(everywhere.iter().cloned());
        guarded.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        guarded.dedup();
        Self { guarded: Arc::new(guarded), everywhere: Arc::new(everywhere), given: Arc::default(), space_prefix }
    }

    /// Replaces control texts in every message. The marks of thoughts stay in an assistant's messages, where the template
    /// looks for them.
    pub(super) fn shield(&self, messages: &[Message], marks: Option<&ThoughtMarks>) -> (Vec<Message>, Shields) {
        let mut shields = (*self.given).clone();
        let mut taken = String::new();
        for m in messages {
            taken += &m.content;
            taken.extend(m.reasoning_content.as_deref());
            for call in &m.tools.calls {
                taken += &call.name;
                call.arguments.iter().for_each(|(key, value)| gather(key, value, &mut taken));
            }
        }
        if !self.guarded.iter().any(|c| taken.contains(c.as_str())) {
            return (messages.to_vec(), shields);
        }
        let shielded = messages
            .iter()
            .map(|m| {
                let spared = marks.filter(|_| m.role == "assistant");
                let mut shield = |text: &str| shields.shield(text, &self.guarded, spared, &taken);
                Message {
                    role: m.role.clone(),
                    content: shield(&m.content),
                    reasoning_content: m.reasoning_content.as_deref().map(&mut shield),
                    tools: ToolPart {
                        calls: m.tools.calls.iter().map(|c| self.shield_call(c, &mut shields, &taken)).collect(),
                        ..m.tools.clone()
                    },
                }
            })
            .collect();
        (shielded, shields)
    }

    fn shield_call(&self, call: &ToolCall, shields: &mut Shields, taken: &str) -> ToolCall {
        let Value::Object(arguments) = self.shield_value(&Value::Object(call.arguments.clone()), shields, taken) else {
            return call.clone();
        };
        let name = shields.shield(&call.name, &self.guarded, None, taken);
        ToolCall { id: call.id.clone(), name, arguments }
    }

    fn shield_value(&self, value: &Value, shields: &mut Shields, taken: &str) -> Value {
        match value {
            Value::String(text) => Value::String(shields.shield(text, &self.guarded, None, taken)),
            Value::Array(list) => list.iter().map(|v| self.shield_value(v, shields, taken)).collect(),
            Value::Object(map) => {
                let entry = |(k, v): (&String, &Value)| {
                    let key = shields.shield(k, &self.guarded, None, taken);
                    (key, self.shield_value(v, shields, taken))
                };
                Value::Object(map.iter().map(entry).collect())
            }
            other => other.clone(),
        }
    }

    /// Replaces control texts in tools, and keeps their stand-ins for every chat.
    pub(super) fn shield_tools(&mut self, tools: &Value) -> Value {
        let (mut shields, mut taken) = (Shields::default(), String::new());
        gather("", tools, &mut taken);
        let shielded = self.shield_value(tools, &mut shields, &taken);
        self.given = Arc::new(shields);
        shielded
    }

    /// A rendered text with what the stand-ins in its tools stand for.
    pub(super) fn restored(&self, text: &str) -> String {
        self.given.restored(text)
    }

    /// Tokenizes a run of text that follows `before` (empty at the start of everything). Only where a person's message
    /// held a control text is the run cut, and that piece read as plain characters.
    pub(super) fn run(
        &self,
        model: &Model,
        text: &str,
        shields: &Shields,
        before: &[Token],
    ) -> Result<Vec<Token>, LlamaError> {
        let mut out = Vec::new();
        let mut start = 0;
        for (i, c) in text.char_indices() {
            let Some(original) = shields.restore(c) else { continue };
            self.piece(model, &text[start..i], true, before, &mut out)?;
            for part in self.plain_parts(original) {
                self.piece(model, part, false, before, &mut out)?;
            }
            start = i + c.len_utf8();
        }
        self.piece(model, &text[start..], true, before, &mut out)?;
        Ok(out)
    }

    /// A guarded text in parts in which the tokenizer finds no guarded token: cut where letters and signs meet.
    fn plain_parts<'a>(&self, text: &'a str) -> Vec<&'a str> {
        if !self.everywhere.iter().any(|e| text.contains(e.as_str())) {
            return vec![text];
        }
        let kind = |c: char| (c.is_alphanumeric(), c.is_whitespace());
        let mut cuts: Vec<usize> = text
            .char_indices()
            .zip(text.chars().skip(1))
            .filter(|((_, a), b)| kind(*a) != kind(*b))
            .map(|((i, a), _)| i + a.len_utf8())
            .collect();
        let parts = |cuts: &[usize]| {
            let ends = cuts.iter().copied().chain([text.len()]);
            let starts = std::iter::once(0).chain(cuts.iter().copied());
            starts.zip(ends).map(|(a, b)| &text[a..b]).collect::<Vec<_>>()
        };
        let hidden = |parts: &[&str]| !parts.iter().any(|p| self.everywhere.iter().any(|e| p.contains(e.as_str())));
        if !hidden(&parts(&cuts)) {
            cuts = text.char_indices().map(|(i, _)| i).skip(1).collect();
        }
        parts(&cuts)
    }

    fn piece(
        &self,
        model: &Model,
        text: &str,
        parse_special: bool,
        before: &[Token],
        out: &mut Vec<Token>,
    ) -> Result<(), LlamaError> {
        if text.is_empty() {
            return Ok(());
        }
        let last = out.last().or(before.last());
        // At the very start and after a control token, llama.cpp would add its space here in one go as well.
        if !self.space_prefix || last.is_none_or(|&t| model.is_control(t)) {
            out.extend(model.tokenize(text, false, parse_special)?);
            return Ok(());
        }
        // In the middle of a text there is no such space: tokenize behind a newline, which joins with nothing in these
        // vocabularies, and drop its tokens.
        let tokens = model.tokenize(&format!("\n{text}"), false, parse_special)?;
        let mut bytes = Vec::new();
        for (i, &t) in tokens.iter().enumerate() {
            bytes.extend(model.token_bytes(t, true));
            if bytes.ends_with(b"\n") && bytes.iter().all(|b| b.is_ascii_whitespace()) {
                out.extend(&tokens[i + 1..]);
                return Ok(());
            }
            if bytes.iter().any(|b| !b.is_ascii_whitespace()) {
                break;
            }
        }
        out.extend(model.tokenize(text, false, parse_special)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_told_from_ordinary_tokens() {
        let source = "{{ '<start_of_turn>' + m.content + '</think>' }}";
        for text in ["<|USER_TOKEN|>", "<|turn>", "<turn|>", "<｜User｜>", "</think>", "<start_of_turn>"] {
            assert!(is_markup(text, source), "{text}");
        }
        for text in ["  ", "\n\n", "<table>", "m.content", "[multimodal]", "▁▁"] {
            assert!(!is_markup(text, source), "{text}");
        }
    }

    #[test]
    fn stand_ins_go_back() {
        let mut shields = Shields::default();
        let guarded = ["<|im_end|>".to_owned()];
        let text = shields.shield("a<|im_end|>b", &guarded, None, "a<|im_end|>b");
        assert_eq!(text.chars().count(), 3);
        assert_eq!(shields.restored(&text), "a<|im_end|>b");
    }
}
