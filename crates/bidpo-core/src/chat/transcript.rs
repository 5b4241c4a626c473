//! A conversation as a file: who said what, and what steered each answer.

use super::{Generation, StopReason, printable};
use crate::data::Message;
use crate::layers::Layers;
use crate::steer::ScaledVector;
use ggml_grad::files::display_name;
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::path::Path;

/// Steering and result of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AnswerNote {
    /// Name, scale, and the scale in percent of the residual norm where the file knows it.
    vectors: Vec<(String, f32, Option<f64>)>,
    layers: Option<String>,
    n_tokens: usize,
    stop: StopReason,
}

impl AnswerNote {
    pub(super) fn new(dials: &[ScaledVector], layers: Option<&Layers>, answer: &Generation) -> Self {
        let of = |d: &ScaledVector| (d.name.clone(), d.scale, d.vector.percent_of_scale(d.scale));
        Self {
            vectors: dials.iter().map(of).collect(),
            layers: layers.map(ToString::to_string),
            n_tokens: answer.tokens.len(),
            stop: answer.stop,
        }
    }

    /// `flowery 1 (10.2 % of the residual norm), layers 10-20`; `unsteered` without a vector.
    fn words(&self) -> String {
        if self.vectors.is_empty() {
            return "unsteered".to_owned();
        }
        let mut parts: Vec<String> = self
            .vectors
            .iter()
            .map(|(name, scale, percent)| {
                let percent = percent.map_or_else(String::new, |p| format!(" ({p:.1} % of the residual norm)"));
                format!("{name} {scale}{percent}")
            })
            .collect();
        parts.extend(self.layers.as_ref().map(|l| format!("layers {l}")));
        parts.join(", ")
    }
}

/// A conversation that is to be kept.
#[derive(Debug)]
pub struct Transcript<'a> {
    pub(super) model: &'a Model,
    pub(super) system: Option<&'a str>,
    pub(super) messages: &'a [Message],
    /// One for each message.
    pub(super) notes: &'a [Option<AnswerNote>],
}

impl Transcript<'_> {
    fn model_file(&self) -> String {
        display_name(self.model.path())
    }

    /// To be read: headings with the role and the steering, the text below. Control characters come out as in the
    /// terminal, so that the file can be shown in one.
    pub fn markdown(&self) -> String {
        let mut out = format!("Conversation with {}\n", printable(&self.model_file()));
        let mut part = |heading: String, text: &str| {
            out += &format!("\n## {}\n\n{}\n", printable(&heading), printable(text.trim_end()));
        };
        if let Some(system) = self.system {
            part("system".into(), system);
        }
        for (message, note) in self.messages.iter().zip(self.notes) {
            let heading = match note {
                Some(note) => format!("{} ({})", message.role, note.words()),
                None => message.role.to_string(),
            };
            part(heading, &message.content);
        }
        out
    }

    /// To be computed with: `messages` has the form of the chat APIs (`role`, `content`, to the last character), with the
    /// steering of each answer beside it.
    pub fn json(&self) -> Value {
        let system = self.system.map(|text| json!({ "role": "system", "content": text }));
        let said = self.messages.iter().zip(self.notes).map(|(message, note)| {
            let mut value = json!({ "role": message.role.to_string(), "content": message.content });
            if let Some(note) = note {
                let vectors: Vec<Value> = note
                    .vectors
                    .iter()
                    .map(|(name, scale, percent)| {
                        json!({ "vector": name, "scale": scale, "percent_of_residual_norm": percent })
                    })
                    .collect();
                value["steering"] = json!(vectors);
                value["layers"] = json!(note.layers);
                value["n_tokens"] = json!(note.n_tokens);
                value["stop"] = json!(note.stop);
            }
            value
        });
        let messages: Vec<Value> = system.into_iter().chain(said).collect();
        json!({ "model": self.model_file(), "architecture": self.model.architecture(), "messages": messages })
    }

    /// Writes JSON to a file that ends in `.json`, Markdown to any other; all of it or nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let text = if json { format!("{:#}\n", self.json()) } else { self.markdown() };
        ggml_grad::files::write_atomically(path, text.as_bytes())
    }
}
