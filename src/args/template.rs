//! Flags about the chat template: its variables, and what becomes of thoughts.

use bidpo_core::data::{ChatTemplate, TemplateChoice, TemplateSettings, TemplateVariable, Think, template_variables};
use ggml_grad::llama::Model;

/// Variables of the chat template.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct VariableArgs {
    /// Set a variable that the chat template reads, such as enable_thinking=false, reasoning_effort=low or
    /// date_string="1 Jan 2026"; VALUE is JSON or a text. Can be repeated.
    #[arg(long = "template-set", value_name = "NAME=VALUE")]
    pub set: Vec<TemplateVariable>,
}

impl VariableArgs {
    /// The settings of a template with these variables.
    pub fn settings(&self, think: Think) -> TemplateSettings {
        TemplateSettings { variables: template_variables(&self.set), think }
    }

    /// Prepares the chosen template, and says on stderr what the user should know of it.
    pub fn open(&self, model: &Model, choice: &TemplateChoice, think: Think) -> anyhow::Result<ChatTemplate> {
        let template = ChatTemplate::with_settings(model, choice, &self.settings(think))?;
        if let Some(notice) = template.notice() {
            eprintln!("note: {}", bidpo_core::chat::printable(notice));
        }
        Ok(template)
    }
}

/// Says on stderr what was done to chats, from the note at place `from` on; returns their number.
pub fn say_notes(template: &ChatTemplate, from: usize) -> usize {
    let notes = template.notes();
    for note in notes.iter().skip(from) {
        eprintln!("note: {}", bidpo_core::chat::printable(&note.to_string()));
    }
    notes.len()
}
