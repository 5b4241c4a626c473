//! Chat templates: from messages to the tokens a model was trained to answer.
//!
//! Three rules hold everywhere:
//! - **What a person writes never becomes a control token.** Only the template's own text is read for control tokens;
//!   a message that says `<|im_end|>` is told to the model as those characters.
//! - **What a person writes is shown.** A template that leaves the user's message out is refused.
//! - **One BOS.** It comes first if the model's vocabulary asks for one or the template writes one, and never twice.

mod answer;
mod calls;
mod choice;
mod date;
mod encode;
mod engine;
mod jinja;
mod named;
mod place;
mod scope;
mod shield;
mod show;
mod thoughts;
mod tool_format;
mod tools;
mod unfinished;
mod variables;

use super::Message;
use calls::CallStyle;
use engine::{Engine, KnownFormat, MessageForm, known_format, only_a_name};
use ggml_grad::files::FileError;
use ggml_grad::llama::{LlamaError, Model};
use jinja::JinjaTemplate;
use place::{Known, marker};
use serde_json::{Map, Value, json};
use shield::Encoder;
use std::sync::Arc;

pub use choice::{TemplateChoice, TemplateSettings, Think};
pub use encode::TokenizedPair;
pub use show::{ShownChat, ShownText, ShownToken};
pub use thoughts::{AnswerPart, SplitAnswer, ThoughtMarks, ThoughtSplitter};
pub use tool_format::{AnswerPiece, CallPart, CallSplitter, CalledFunction, ToolFormat, WrittenCall};
pub use variables::{TemplateVariable, template_variables};

/// A chat that cannot be rendered or tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A template file cannot be read.
    #[error("chat template: {0}")]
    Io(#[from] FileError),
    /// The template is not valid Jinja.
    #[error("the chat template {name} is not valid: {reason}")]
    Syntax {
        /// Name of the template.
        name: String,
        /// minijinja's reason, with the line.
        reason: String,
    },
    /// The template refused the messages (most often through its own `raise_exception`).
    #[error("the chat template {name} refuses this chat: {reason}")]
    Render {
        /// Name of the template.
        name: String,
        /// The template's, or minijinja's, reason.
        reason: String,
    },
    /// The template does not show what the user says.
    #[error(
        "the chat template {name} does not show the user's message, so the model would answer something else: use another \
         --template (it reads role and content of each message)"
    )]
    LostQuestion {
        /// Name of the template.
        name: String,
    },
    /// A variable that the template does not read.
    #[error("the chat template {name} does not read a variable {variable}; {}", reads_text(.reads))]
    UnknownVariable {
        /// Name of the template.
        name: String,
        /// Name of the variable.
        variable: String,
        /// The variables that it reads.
        reads: Vec<String>,
    },
    /// No token is left to compute with.
    #[error("the prompt is empty, and without a template or a BOS token nothing is left that an answer could follow")]
    EmptyPrompt,
    /// A response without a token of its own.
    #[error("the response is empty")]
    EmptyResponse,
    /// The template rewrites answers so that the response cannot be found in what it renders.
    #[error("the chat template {name} does not show the assistant's answer as it was given: use another --template")]
    LostResponse {
        /// Name of the template.
        name: String,
    },
    /// Tools are given, and the template leaves them out.
    #[error(
        "the chat template {name} does not show tools to the model: use a model or a --template that does, or send no tools"
    )]
    NoTools {
        /// Name of the template.
        name: String,
    },
    /// A scope that tells thoughts from answers, under a template that does not.
    #[error(
        "scope {scope}: the chat template {name} marks no thoughts, so nothing tells where one ends; choose another scope \
         (answer, after:N), or a model or --template that marks them (<think> ... </think>)"
    )]
    NoThoughts {
        /// Name of the template.
        name: String,
        /// The scope.
        scope: String,
    },
    /// The template shows tools, but calls of them in a form that is not known.
    #[error(
        "the chat template {name} writes tool calls in a form that bidpo does not read (docs/server.md lists those that it \
         reads): send tool_choice \"none\", or no tools"
    )]
    NoToolFormat {
        /// Name of the template.
        name: String,
    },
    /// A tool call or a tool's answer that the template leaves out.
    #[error(
        "the chat template {name} does not show the tool calls or tool messages of this chat to the model: use a model or a \
         --template that does, or write their results into the messages"
    )]
    LostTools {
        /// Name of the template.
        name: String,
    },
    /// The tokenizer's reason.
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

fn reads_text(reads: &[String]) -> String {
    match reads {
        [] => "it reads none".to_owned(),
        names => format!("it reads {}", names.join(", ")),
    }
}

/// A chat template, ready for one model.
///
/// A clone shares what was found out about the template, and its notes.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    name: String,
    notice: Option<String>,
    /// `None`: no template, text as it stands.
    engine: Option<Arc<Engine>>,
    encoder: Encoder,
    settings: TemplateSettings,
    /// The template asks for contents as lists of parts.
    parts: bool,
    calls: CallStyle,
    marks: Option<ThoughtMarks>,
    known: Arc<Known>,
}

impl ChatTemplate {
    /// Prepares the chosen template for `model`.
    ///
    /// `auto` takes the template in the GGUF file. A file without one (a base model) is treated as `none`, and
    /// [`ChatTemplate::notice`] says so. A template that consists of the name of a known format is taken as that format.
    ///
    /// # Errors
    /// [`TemplateError::Io`], [`TemplateError::Syntax`], and [`TemplateError::LostQuestion`] for a template that does not
    /// show what the user says.
    pub fn new(model: &Model, choice: &TemplateChoice) -> Result<Self, TemplateError> {
        Self::with_settings(model, choice, &TemplateSettings::default())
    }

    /// As [`ChatTemplate::new`], with variables for the template and a treatment of thoughts.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], and [`TemplateError::UnknownVariable`].
    pub fn with_settings(
        model: &Model,
        choice: &TemplateChoice,
        settings: &TemplateSettings,
    ) -> Result<Self, TemplateError> {
        let mut notice = None;
        let (name, source) = match choice {
            TemplateChoice::None => ("none".to_owned(), None),
            TemplateChoice::Auto => match model.chat_template() {
                Some(source) => ("gguf".to_owned(), Some(source)),
                None => {
                    notice = Some(format!(
                        "{} carries no chat template, so prompts are given to it as plain text (--template none); \
                         choose a format with --template if it was trained for one",
                        model.path().display()
                    ));
                    ("none".to_owned(), None)
                }
            },
            TemplateChoice::Named(name) => (name.clone(), Some(name.clone())),
            TemplateChoice::File(path) => {
                let source = ggml_grad::files::read_text(path).map_err(FileError::read(path))?;
                (path.display().to_string(), Some(source))
            }
        };
        let text = |t: Option<i32>| t.map(|t| model.detokenize(&[t], true)).unwrap_or_default();
        let jinja = |source: String| {
            JinjaTemplate::new(&name, source, &text(model.bos()), &text(model.eos()))
                .map(|j| Engine::Jinja(Box::new(j)))
        };
        let named = source.as_deref().and_then(only_a_name).and_then(|n| Some((n.to_owned(), known_format(n)?)));
        let engine = match (source, named) {
            (_, Some((format, known))) => {
                if !matches!(choice, TemplateChoice::Named(_)) {
                    notice = Some(format!(
                        "the chat template {name} is only the name of a format, {format}: that format is used"
                    ));
                }
                Some(match known {
                    KnownFormat::Source(source) => jinja(source.to_owned())?,
                    KnownFormat::Builtin(name) => Engine::Builtin(name),
                })
            }
            (Some(source), None) => Some(jinja(source)?),
            (None, None) => None,
        };
        let encoder = Encoder::new(model, engine.as_ref().map_or("", Engine::source));
        Self {
            name,
            notice,
            engine: engine.map(Arc::new),
            encoder,
            settings: settings.clone(),
            parts: false,
            calls: CallStyle::default(),
            marks: None,
            known: Arc::default(),
        }
        .probed()
    }

    /// The same template with these variables beside those it has; one of the same name is replaced.
    ///
    /// # Errors
    /// [`TemplateError::UnknownVariable`] for a variable that the template does not read, [`TemplateError::LostQuestion`].
    pub fn with_variables(&self, variables: &Map<String, Value>) -> Result<Self, TemplateError> {
        if variables.is_empty() {
            return Ok(self.clone());
        }
        let mut template = self.clone();
        template.settings.variables.extend(variables.clone());
        template.known = Arc::default();
        template.probed()
    }

    /// Finds out by rendering how the template takes contents, and where it puts thoughts.
    fn probed(mut self) -> Result<Self, TemplateError> {
        variables::check(&self.name, self.variables(), &self.settings.variables)?;
        let Some(engine) = self.engine.clone() else { return Ok(self) };
        let (question, thought, answer) = (marker(0), marker(1), marker(2));
        let user = Message::user(&question);
        self.parts = false;
        let shown = |t: &Self| t.write(std::slice::from_ref(&user), true).map(|text| text.contains(&question));
        let plain = shown(&self);
        if !matches!(plain, Ok(true)) {
            self.parts = true;
            if !shown(&self).unwrap_or(false) {
                self.parts = false;
                // A template that refuses even this chat says why when it is given a real one.
                if plain.is_ok() {
                    return Err(TemplateError::LostQuestion { name: self.name.clone() });
                }
            }
        }
        let thinking = Message { reasoning_content: Some(thought.clone()), ..Message::assistant(answer) };
        let written = self.write(&[user, thinking], false).ok();
        self.marks = written.and_then(|text| thoughts::marks_around(&text, &thought));
        self.marks = self.marks.or_else(|| thoughts::marks_in(engine.source()));
        if engine.source().contains("tool_calls") {
            self.calls = self.call_style();
        }
        Ok(self)
    }

    /// `gguf`, `none`, the format's name, or the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, and the settings in brackets if any are set: `gguf (enable_thinking=false)`.
    pub fn described(&self) -> String {
        match self.settings.words().as_str() {
            "" => self.name.clone(),
            words => format!("{} ({words})", self.name),
        }
    }

    /// Something the user should be told (on stderr): that `auto` found no template, or only a name.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// What was done to the chats so far that the user should be told (on stderr), each once: a system message that was
    /// put elsewhere, an answer that follows a closed thought.
    pub fn notes(&self) -> Vec<String> {
        self.known.told().clone()
    }

    fn tell(&self, note: String) {
        let mut told = self.known.told();
        if !told.contains(&note) {
            told.push(note);
        }
    }

    /// True if there is no template: text as it stands.
    pub fn is_none(&self) -> bool {
        self.engine.is_none()
    }

    /// The template's Jinja source (the name of a built-in format); empty under `none`.
    pub fn source(&self) -> &str {
        self.engine.as_ref().map_or("", |e| e.source())
    }

    /// Names of the variables that the template reads beside the chat, sorted: those that can be set.
    pub fn variables(&self) -> &[String] {
        self.engine.as_ref().map_or(&[], |e| e.variables())
    }

    /// The variables that are set, and the treatment of thoughts.
    pub fn settings(&self) -> &TemplateSettings {
        &self.settings
    }

    /// The marks around a thought in this template's chats, if it knows thoughts.
    pub fn thought_marks(&self) -> Option<&ThoughtMarks> {
        self.marks.as_ref()
    }

    /// True if the generation prompt of this chat opens a thought, in which an answer begins.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn opens_thought(&self, messages: &[Message]) -> Result<bool, TemplateError> {
        let Some(marks) = &self.marks else { return Ok(false) };
        Ok(marks.is_open_at_end(&self.render(messages, true)?))
    }

    /// SHA-256 of [`ChatTemplate::source`] and of the settings, if any are set, in hex: two runs with the same hash formatted
    /// their chats the same way.
    pub fn sha256(&self) -> String {
        let settings = &self.settings;
        if *settings == TemplateSettings::default() {
            return ggml_grad::files::sha256_of_bytes(self.source().as_bytes());
        }
        let settings = json!({"variables": settings.variables, "think": settings.think.to_string()});
        ggml_grad::files::sha256_of_bytes(format!("{}\0{settings}", self.source()).as_bytes())
    }

    /// The chat as text; under `none` the contents joined by newlines. System messages are placed as the template takes them.
    ///
    /// # Errors
    /// [`TemplateError::Render`] when the template refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        match &self.engine {
            Some(_) => Ok(self.encoder.restored(&self.write(&self.placed(messages), add_generation_prompt)?)),
            None => Ok(encode::joined(messages)),
        }
    }

    /// The chat as the template writes it.
    fn write(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        match &self.engine {
            Some(engine) => {
                let form = MessageForm { parts: self.parts, calls: self.calls };
                engine.render(messages, add_generation_prompt, form, &self.settings.variables)
            }
            None => Ok(encode::joined(messages)),
        }
    }

    /// The chat with its generation prompt, in which the last user message must show.
    fn asked(&self, placed: &[Message]) -> Result<String, TemplateError> {
        let text = self.write(placed, true)?;
        self.must_show(placed, text, true)
    }

    /// `text` if the last user message shows in it. `text` is what the template writes of the chat.
    fn must_show(
        &self,
        placed: &[Message],
        text: String,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let Some(last) = placed.iter().rposition(|m| m.role == "user") else { return Ok(text) };
        if text.contains(placed[last].content.trim()) {
            return Ok(text);
        }
        // The template may write it in another way (as JSON, say): it must show at all.
        let marked = self.write(&place::marked(placed), add_generation_prompt);
        let shown = marked.is_ok_and(|text| text.contains(&marker(last)));
        if shown { Ok(text) } else { Err(TemplateError::LostQuestion { name: self.name.clone() }) }
    }
}
