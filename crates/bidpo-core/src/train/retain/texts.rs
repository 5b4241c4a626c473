//! Retained texts: read from a file or built in, and encoded.

use crate::data::inspect::PairText;
use crate::data::source::{Source, SourceError};
use crate::data::{ChatTemplate, Message, PairGroups, PreferenceSet, Prompt, SplitBy, TokenizedPair};
use crate::eval::runs::{BEGINNING, Window};
use crate::steer::ControlVector;
use crate::train::pairs::NamedPair;
use crate::train::pairs::PairError;
use ggml_grad::files::{FileError, sha256_of_bytes};
use ggml_grad::llama::{Batch, Context, ContextParams, LlamaError, Model, Token};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The built-in passages: none of them is among the neutral passages that the price is measured on.
const BUILT_IN: &str = include_str!("../../../data/retain.txt");
/// Tokens of a retained text, at most; longer ones are cut.
pub const LONGEST: usize = 256;
/// Tokens of an answer that the unsteered model gives to a retained prompt without one, at most.
pub const ANSWER: usize = 48;

/// One retained text.
#[derive(Debug, Clone, PartialEq)]
pub enum RetainItem {
    /// Running text.
    Text(String),
    /// A prompt with its answer; `None`: the unsteered model answers.
    Prompt {
        /// The prompt.
        prompt: Prompt,
        /// The answer.
        answer: Option<String>,
    },
}

/// Retained texts.
#[derive(Debug, Clone, PartialEq)]
pub struct RetainSet {
    /// The file's name, or `built-in passages`.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The texts with their places.
    pub items: Vec<(String, RetainItem)>,
}

/// Retained texts that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RetainError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The file cannot be read as rows.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A row holds no text.
    #[error(
        "{place}: {reason}. A retained file holds preference pairs, objects with a prompt (and a response, if there is one) or a \
         text, or, as .txt, passages between blank lines"
    )]
    Row {
        /// File and row.
        place: String,
        /// The reason.
        reason: String,
    },
    /// It holds nothing.
    #[error("{path} holds no text to retain")]
    Empty {
        /// The file.
        path: String,
    },
    /// A text of a single token.
    #[error("{place}: a text of one token: there is nothing to predict")]
    Short {
        /// File and row.
        place: String,
    },
    /// A prompt does not fit the template.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// Generating an answer failed.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The user interrupted.
    #[error("interrupted")]
    Interrupted,
}

/// Keys of a prompt, an answer and a text, in the order of preference.
const PROMPTS: [&str; 4] = ["prompt", "question", "instruction", "messages"];
const ANSWERS: [&str; 6] = ["response", "answer", "completion", "chosen", "output", "best_answer"];
const TEXTS: [&str; 2] = ["text", "content"];

impl RetainSet {
    /// The built-in passages.
    pub fn built_in() -> Self {
        Self {
            name: "built-in passages".into(),
            sha256: sha256_of_bytes(BUILT_IN.as_bytes()),
            items: passages(BUILT_IN, "retain.txt"),
        }
    }

    /// Reads `builtin`, a `.txt` file of passages between blank lines, preference pairs in any form (their prompts with the
    /// chosen answers), or rows with a prompt or a text.
    ///
    /// # Errors
    /// [`RetainError`].
    pub fn open(path: &Path) -> Result<Self, RetainError> {
        if path.to_str() == Some("builtin") && !path.exists() {
            return Ok(Self::built_in());
        }
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let is_text = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("txt"));
        let (sha256, items) = if is_text {
            let bytes = ggml_grad::files::read_whole(path).map_err(FileError::read(path))?;
            let text = String::from_utf8(bytes.clone()).map_err(|e| RetainError::Row {
                place: path.display().to_string(),
                reason: format!("no UTF-8 text from byte {} on", e.utf8_error().valid_up_to()),
            })?;
            (sha256_of_bytes(&bytes), passages(&text, &name))
        } else if let Ok(set) = PreferenceSet::open(path) {
            let item = |p: crate::data::PreferencePair| {
                (p.origin, RetainItem::Prompt { prompt: p.prompt, answer: Some(p.chosen) })
            };
            (set.sha256, set.pairs.into_iter().map(item).collect())
        } else {
            let source = Source::load(path)?;
            let rows = source.rows.into_iter().map(|row| {
                let place = row.place.of(path);
                let item = row.value.and_then(|value| item_of(&value));
                item.map(|item| (place.clone(), item)).map_err(|reason| RetainError::Row { place, reason })
            });
            (source.sha256, rows.collect::<Result<Vec<_>, _>>()?)
        };
        if items.is_empty() {
            return Err(RetainError::Empty { path: path.display().to_string() });
        }
        Ok(Self { name, sha256, items })
    }

    /// Texts whose prompts are those of training pairs, or nearly so: their places, each once.
    pub fn overlap(&self, train: &[PairText]) -> Vec<&str> {
        let of = |(place, item): &(String, RetainItem)| {
            let prompt = match item {
                RetainItem::Text(text) => text.clone(),
                RetainItem::Prompt { prompt, .. } => prompt.text(),
            };
            PairText { place: place.clone(), prompt, chosen: "a".into(), rejected: "b".into() }
        };
        // Answers play no part, and each pair is one of its own: repeats would be in no group.
        let numbered = |(i, p): (usize, PairText)| PairText { chosen: i.to_string(), ..p };
        let all: Vec<PairText> =
            train.iter().cloned().chain(self.items.iter().map(of)).enumerate().map(numbered).collect();
        let groups = PairGroups::new(&all, SplitBy::Prompts);
        let group_of = groups.group_of(all.len());
        let trained: std::collections::BTreeSet<usize> = group_of[..train.len()].iter().flatten().copied().collect();
        let met =
            |(i, _): &(usize, &(String, RetainItem))| group_of[train.len() + i].is_some_and(|g| trained.contains(&g));
        self.items.iter().enumerate().filter(met).map(|(_, (place, _))| place.as_str()).collect()
    }

    /// Prompts that the unsteered model has to answer.
    pub fn unanswered(&self) -> usize {
        self.items.iter().filter(|(_, i)| matches!(i, RetainItem::Prompt { answer: None, .. })).count()
    }

    /// The texts in tokens, pairs without a rejected response. Running text has its boundary between prompt and answer after
    /// the first token; where `halves`, in the middle, as where the price of an intervention is measured that tells prompt
    /// from answer. Prompts without an answer get the unsteered model's own, greedily, at most [`ANSWER`] tokens; that of the model
    /// with what is loaded `beside` a training, where something is.
    ///
    /// # Errors
    /// [`RetainError`].
    pub fn encode(
        &self,
        model: &Arc<Model>,
        template: &ChatTemplate,
        halves: bool,
        beside: Option<&ControlVector>,
        n_threads: u32,
        interrupt: &AtomicBool,
    ) -> Result<Vec<NamedPair>, RetainError> {
        let longest = LONGEST.min(model.n_ctx_train());
        let mut writer: Option<Context> = None;
        let mut all = Vec::with_capacity(self.items.len());
        for (place, item) in &self.items {
            if interrupt.load(Ordering::Relaxed) {
                return Err(RetainError::Interrupted);
            }
            let template_error = |source| PairError::Template { origin: place.clone(), source };
            let [prompt, mut chosen] = match item {
                RetainItem::Text(text) => {
                    let bos = model.bos().filter(|_| model.adds_bos());
                    let mut tokens: Vec<Token> = bos.into_iter().chain(model.tokenize(text, false, false)?).collect();
                    tokens.truncate(longest);
                    if tokens.len() < 2 {
                        return Err(RetainError::Short { place: place.clone() });
                    }
                    let rest = tokens.split_off(if halves { tokens.len() / 2 } else { 1 });
                    [tokens, rest]
                }
                RetainItem::Prompt { prompt, answer: Some(answer) } => {
                    let pair = template.encode_pair(model, prompt, answer, answer).map_err(template_error)?;
                    [pair.prompt, pair.chosen]
                }
                RetainItem::Prompt { prompt, answer: None } => {
                    let prompt = template.encode_prompt(model, prompt).map_err(template_error)?;
                    let ctx = match &mut writer {
                        Some(ctx) => ctx,
                        none => {
                            let params = ContextParams::exact(model.n_ctx_train().min(4096), 1, n_threads);
                            let mut ctx = Context::new(model, &params)?;
                            beside.map_or(Ok(()), |beside| beside.apply(&mut ctx))?;
                            none.insert(ctx)
                        }
                    };
                    let room = ctx.n_ctx().saturating_sub(prompt.len()).min(ANSWER);
                    let answer = if room > 0 { greedy(ctx, &prompt, room)? } else { Vec::new() };
                    [prompt, answer]
                }
            };
            if prompt.len() >= model.n_ctx_train() {
                let (tokens, limit) = (prompt.len(), model.n_ctx_train());
                return Err(PairError::TooLong { origin: place.clone(), tokens, limit }.into());
            }
            chosen.truncate(longest.saturating_sub(prompt.len()).max(1));
            if prompt.is_empty() || chosen.is_empty() {
                return Err(RetainError::Short { place: place.clone() });
            }
            all.push(NamedPair {
                name: format!("retained text {place}"),
                tokens: TokenizedPair { prompt, chosen, rejected: Vec::new() },
            });
        }
        Ok(all)
    }

    /// The texts, encoded by [`RetainSet::encode`], as windows to measure on: of a prompt only the answer.
    pub fn windows(&self, encoded: &[NamedPair]) -> Vec<Window> {
        let window = |((_, item), pair): (&(String, RetainItem), &NamedPair)| {
            let (n_prompt, text) = match item {
                RetainItem::Text(text) => (None, text.clone()),
                RetainItem::Prompt { prompt, .. } => (Some(pair.tokens.prompt.len()), prompt.text()),
            };
            let tokens = [&pair.tokens.prompt[..], &pair.tokens.chosen].concat();
            Window { tokens, n_prompt, beginning: text.chars().take(BEGINNING).collect() }
        };
        self.items.iter().zip(encoded).map(window).collect()
    }
}

fn passages(text: &str, name: &str) -> Vec<(String, RetainItem)> {
    // A blank line separates; text with blank lines of its own is JSON Lines' business.
    let text = text.replace("\r\n", "\n");
    let passages = text.split("\n\n").map(str::trim).filter(|p| !p.is_empty());
    passages.enumerate().map(|(i, p)| (format!("{name}, passage {}", i + 1), RetainItem::Text(p.to_owned()))).collect()
}

/// The text of a row.
fn item_of(value: &Value) -> Result<RetainItem, String> {
    let object = match value {
        Value::String(text) if !text.trim().is_empty() => return Ok(RetainItem::Text(text.clone())),
        Value::Object(object) => object,
        _ => return Err("the row is neither a text nor an object".into()),
    };
    let find =
        |keys: &[&str]| keys.iter().find_map(|k| object.get(*k).filter(|v| !v.is_null()).map(|v| (k.to_string(), v)));
    if let Some((key, value)) = find(&PROMPTS) {
        let mut answer = match find(&ANSWERS) {
            None => None,
            Some((_, Value::String(text))) => Some(text.clone()),
            Some((key, _)) => return Err(format!("{key:?} is no string")),
        };
        let prompt = match value {
            Value::String(text) => Prompt::Text(text.clone()),
            list @ Value::Array(_) => {
                let mut messages: Vec<Message> =
                    serde_json::from_value(list.clone()).map_err(|e| format!("{key:?} holds no messages: {e}"))?;
                if answer.is_none() && messages.last().is_some_and(|m| m.role == "assistant") {
                    answer = messages.pop().map(|m| m.content);
                }
                Prompt::Messages(messages)
            }
            _ => return Err(format!("{key:?} is neither a string nor a list of messages")),
        };
        if prompt.text().trim().is_empty() {
            return Err(format!("{key:?} is empty"));
        }
        return Ok(RetainItem::Prompt { prompt, answer: answer.filter(|a| !a.is_empty()) });
    }
    match find(&TEXTS) {
        Some((_, Value::String(text))) if !text.trim().is_empty() => Ok(RetainItem::Text(text.clone())),
        Some((key, _)) => Err(format!("{key:?} is empty or no string")),
        None => Err(format!("the object has none of the keys {}, {}", PROMPTS.join(", "), TEXTS.join(", "))),
    }
}

/// The model's most probable continuation, token by token, up to its end of turn.
fn greedy(ctx: &mut Context, prompt: &[Token], most: usize) -> Result<Vec<Token>, LlamaError> {
    ctx.clear_kv();
    let mut answer = Vec::new();
    let (mut next, mut at) = (prompt.to_vec(), 0);
    while answer.len() < most {
        let mut batch = Batch::new();
        for (i, &token) in next.iter().enumerate() {
            batch.add(token, at + i, &[0], i + 1 == next.len());
        }
        at += next.len();
        ctx.decode(&batch)?;
        let logits = ctx.finite_logits(next.len() - 1)?;
        let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i as Token);
        answer.push(best);
        if ctx.model().is_eog(best) {
            break;
        }
        next = vec![best];
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::price::neutral_passages;

    #[test]
    fn the_built_in_passages_are_others_than_those_of_the_price() {
        let set = RetainSet::built_in();
        assert!(set.items.len() >= 16);
        let neutral: Vec<PairText> = neutral_passages()
            .into_iter()
            .map(|p| PairText { place: String::new(), prompt: p.into(), chosen: "a".into(), rejected: "b".into() })
            .collect();
        assert_eq!(set.overlap(&neutral), Vec::<&str>::new());
    }

    #[test]
    fn rows_in_every_form() {
        let item = |text: &str| item_of(&serde_json::from_str(text).unwrap());
        let prompt = |p: &str, a: Option<&str>| {
            Ok(RetainItem::Prompt { prompt: Prompt::Text(p.into()), answer: a.map(str::to_owned) })
        };
        assert_eq!(item(r#""a text""#), Ok(RetainItem::Text("a text".into())));
        assert_eq!(item(r#"{"text": "t", "id": 3}"#), Ok(RetainItem::Text("t".into())));
        assert_eq!(item(r#"{"question": "q"}"#), prompt("q", None));
        assert_eq!(item(r#"{"prompt": "q", "response": "r"}"#), prompt("q", Some("r")));
        assert_eq!(item(r#"{"prompt": "q", "response": null}"#), prompt("q", None));
        let chat = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}"#;
        let want = Prompt::Messages(vec![Message::user("u")]);
        assert_eq!(item(chat), Ok(RetainItem::Prompt { prompt: want, answer: Some("a".into()) }));
        for (bad, reason) in [
            ("7", "neither a text nor an object"),
            (r#"{"x": 1}"#, "none of the keys"),
            (r#"{"prompt": " "}"#, "empty"),
            (r#"{"prompt": "q", "answer": 3}"#, "no string"),
            (r#"{"prompt": 3}"#, "neither a string"),
            (r#"{"text": ""}"#, "empty"),
        ] {
            assert!(item(bad).unwrap_err().contains(reason), "{bad}");
        }
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            RetainSet::open(&path).map_err(|e| e.to_string())
        };
        let set = open("p.txt", b"One\nline.\r\n\r\nTwo.\n\n\n").unwrap();
        assert_eq!(set.items[0], ("p.txt, passage 1".into(), RetainItem::Text("One\nline.".into())));
        assert_eq!((set.items.len(), set.name.as_str(), set.unanswered()), (2, "p.txt", 0));
        // Preference pairs: the chosen answer.
        let pairs = open("p.jsonl", br#"{"prompt": "q", "chosen": "c", "rejected": "r"}"#).unwrap();
        assert_eq!(pairs.items[0].1, RetainItem::Prompt { prompt: Prompt::Text("q".into()), answer: Some("c".into()) });
        assert_eq!(open("q.jsonl", br#"{"question": "q"}"#).unwrap().unanswered(), 1);
        assert!(open("e.txt", b"\n\n").unwrap_err().contains("holds no text"));
        assert!(open("b.txt", b"a\xff").unwrap_err().contains("byte 1"));
        assert!(open("x.jsonl", b"{\"x\": 1}\n").unwrap_err().contains("x.jsonl:1: the object has none"));
        assert!(RetainSet::open(Path::new("no/such.txt")).unwrap_err().to_string().contains("no/such.txt"));
    }

    #[test]
    fn training_prompts_among_the_retained_are_named() {
        let text =
            |p: &str| PairText { place: String::new(), prompt: p.into(), chosen: "a".into(), rejected: "b".into() };
        let train = [text("Do bats see in the dark?"), text("How tall is a grown giraffe?")];
        let item = |p: &str| (p.to_owned(), RetainItem::Prompt { prompt: Prompt::Text(p.into()), answer: None });
        let items = vec![
            item("Can a bat see in the dark?"),
            item("Who wrote the first novel?"),
            item("How tall is a grown giraffe?"),
        ];
        let set = RetainSet { name: String::new(), sha256: String::new(), items };
        assert_eq!(set.overlap(&train), ["Can a bat see in the dark?", "How tall is a grown giraffe?"]);
    }
}
