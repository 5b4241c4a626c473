//! The line editor: history in a file, several lines, completion.

use bidpo_core::chat::{Command, is_complete};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, CompletionType, Config, Context, Editor, EventHandler, Helper, KeyCode, KeyEvent, Modifiers};
use std::path::{Path, PathBuf};

/// Entries kept in the history.
const HISTORY: usize = 1000;

/// One input of the user.
pub enum Input {
    /// A whole input, perhaps of several lines, as it was typed.
    Text(String),
    /// Ctrl-C: the line is given up.
    GivenUp,
    /// Ctrl-D, or the end of the terminal.
    End,
}

/// The editor, and where its history lies.
pub struct LineEditor {
    editor: Editor<Words, DefaultHistory>,
    history: Option<PathBuf>,
}

impl LineEditor {
    /// Takes the terminal. A history that cannot be read is told about and then not written either.
    pub fn new(history: Option<PathBuf>) -> anyhow::Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY)?
            .history_ignore_dups(true)?
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Words { files: FilenameCompleter::new(), vectors: Vec::new() }));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), EventHandler::Simple(Cmd::Newline));
        let mut this = Self { editor, history: None };
        if let Some(path) = history {
            match this.open_history(&path) {
                Ok(()) => this.history = Some(path),
                Err(error) => {
                    eprintln!("bidpo: warning: no history of what you type is kept in {}: {error}", path.display());
                }
            }
        }
        Ok(this)
    }

    fn open_history(&mut self, path: &Path) -> anyhow::Result<()> {
        if let Some(folder) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        if path.exists() {
            self.editor.load_history(path)?;
        }
        Ok(())
    }

    /// Reads one input. What was typed goes to the history at once, so that a crash does not lose it.
    pub fn read(&mut self, prompt: &str, vectors: Vec<String>) -> anyhow::Result<Input> {
        if let Some(words) = self.editor.helper_mut() {
            words.vectors = vectors;
        }
        match self.editor.readline(prompt) {
            Ok(text) => {
                if !text.trim().is_empty() && self.editor.add_history_entry(&text)? {
                    self.append();
                }
                Ok(Input::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::GivenUp),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(error.into()),
        }
    }

    fn append(&mut self) {
        let Some(path) = &self.history else { return };
        if let Err(error) = self.editor.append_history(path) {
            eprintln!("bidpo: warning: the history {} cannot be written any more: {error}", path.display());
            self.history = None;
        }
    }
}

/// Default path of the history: `$XDG_STATE_HOME/bidpo/chat_history`, or in `~/.local/state`.
pub fn default_history() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("bidpo/chat_history"))
}

/// Completion with Tab.
struct Words {
    files: FilenameCompleter,
    vectors: Vec<String>,
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..pos];
        match complete(before, &self.vectors) {
            Completion::Files => self.files.complete_path(line, pos),
            Completion::Words(start, words) => {
                let pair = |w: String| Pair { display: w.trim_end().to_owned(), replacement: w };
                Ok((start, words.into_iter().map(pair).collect()))
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Completion {
    Files,
    /// Start of the word, and its completions.
    Words(usize, Vec<String>),
}

/// Completions after `before`: a command at the start of the line, files and vectors behind the commands that take them.
fn complete(before: &str, vectors: &[String]) -> Completion {
    let Some((command, argument)) = before.split_once(' ') else {
        // A command that takes an argument is followed by a space.
        let words = Command::names().into_iter().filter(|n| before.starts_with('/') && n.starts_with(before));
        let takes = ["/scale", "/load", "/unload", "/layers", "/compare", "/system", "/save"];
        let word = |n: &str| if takes.contains(&n) { format!("{n} ") } else { n.to_owned() };
        return Completion::Words(0, words.map(word).collect());
    };
    let word = argument.rsplit(' ').next().unwrap_or_default();
    let names = |end: &str| {
        // A name with a space would have to be quoted: whoever has one types it.
        let fits = vectors.iter().filter(|v| v.starts_with(word) && !v.contains(char::is_whitespace));
        Completion::Words(before.len() - word.len(), fits.map(|v| format!("{v}{end}")).collect())
    };
    match command {
        "/load" | "/vector" | "/save" => Completion::Files,
        "/scale" => names("="),
        "/unload" => names(""),
        _ => Completion::Words(before.len(), Vec::new()),
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let complete = is_complete(context.input());
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}

impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_files_and_vectors_are_completed() {
        let vectors = ["honest".to_owned(), "humble".to_owned(), "two words".to_owned()];
        let words = |before: &str| match complete(before, &vectors) {
            Completion::Words(start, words) => (start, words),
            Completion::Files => (0, vec!["FILES".to_owned()]),
        };
        assert_eq!(words("/sc"), (0, vec!["/scale ".to_owned()]));
        assert_eq!(words("/s").1, ["/scale ", "/system ", "/save ", "/stats"]);
        assert_eq!(words("/un").1, ["/unload ", "/undo"]);
        assert_eq!(words("hel").1, [""; 0]);
        assert_eq!(words("/load ve").1, ["FILES"]);
        assert_eq!(words("/save ").1, ["FILES"]);
        assert_eq!(words("/scale h"), (7, vec!["honest=".to_owned(), "humble=".to_owned()]));
        assert_eq!(words("/scale honest=2 hu"), (16, vec!["humble=".to_owned()]));
        assert_eq!(words("/unload ho"), (8, vec!["honest".to_owned()]));
        assert_eq!(words("/compare h").1, [""; 0]);
    }
}
