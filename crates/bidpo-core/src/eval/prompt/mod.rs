//! From an item to what the model reads: presets, options, system prompts, few-shot examples.

mod fit;

pub use fit::{fit_examples, fitting_shots};

use crate::data::{ChatTemplate, Message, Prompt, TemplateError};
use crate::eval::items::Protocol;
use crate::eval::items::{Benchmark, Group, Item};
use crate::eval::scoring::{ScoreError, TokenRequest};
use ggml_grad::llama::{Model, Token};
use serde_json::{Value, json};

/// What stands around a question.
#[derive(Debug, Clone)]
pub enum Preset {
    /// Plain text, after a preamble (empty for none) and a blank line.
    Plain {
        /// `qa`, `none`, or the file's name.
        name: String,
        /// The preamble's text.
        preamble: String,
    },
    /// The model's chat template: the question is the user's message, the answer the assistant's.
    Chat(Box<ChatTemplate>),
}

/// How a question is put as plain text, the answer following after one space; `{question}` stands for the question.
pub const QUESTION_FORM: &str = "Q: {question}\nA:";
/// Under shown options, as MMLU's reference has it.
const OPTIONS_END: &str = "Answer:";
/// The same in a chat.
const OPTIONS_END_CHAT: &str = "Answer with the letter of the right option.";
/// The same for a judge.
const JUDGE_END_CHAT: &str = "Answer with the letter, A or B, and nothing else.";
/// What a chat says where the question is hidden: a message cannot be empty.
const HIDDEN_CHAT: &str = "(The question is not shown.)";

/// The question that stands before an item's answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum QuestionShown {
    /// The item's own.
    #[default]
    Own,
    /// None: the answers stay.
    Hidden,
    /// For each of [`Benchmark::items`], that of the item at this place.
    Swapped(Vec<usize>),
}

impl QuestionShown {
    /// The question shown for the item at place `i`; `None` where it is hidden.
    fn of<'a>(&self, benchmark: &'a Benchmark, i: usize) -> Option<&'a str> {
        match self {
            Self::Own => Some(&benchmark.items[i].question),
            Self::Hidden => None,
            Self::Swapped(places) => Some(&benchmark.items[places[i]].question),
        }
    }
}

/// What a condition changes about the prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptOverride {
    /// A system prompt: the system message of a chat, a paragraph before everything in plain text.
    pub system: Option<String>,
    /// Solved examples, in place of the preset's preamble and the benchmark's own examples.
    pub shots: Vec<Item>,
    /// The question before the answers.
    pub question: QuestionShown,
}

/// Prompts of one kind.
#[derive(Debug, Clone)]
pub struct Style {
    /// The preset.
    pub preset: Preset,
    /// How a question is put ([`QUESTION_FORM`]).
    pub form: String,
    /// The protocol, which decides whether options are shown.
    pub protocol: Protocol,
    /// Seed of the order of options.
    pub seed: u64,
}

/// One item in one order of its options, as strings or as tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompts {
    /// A common beginning and, for each request, its rest and its answers.
    Text {
        /// The beginning.
        prefix: String,
        /// Rest and answers.
        requests: Vec<(String, Vec<String>)>,
    },
    /// The same in tokens.
    Tokens {
        /// What all contexts begin with.
        prefix: Vec<Token>,
        /// Whole contexts, and answers.
        requests: Vec<TokenRequest>,
    },
}

/// A request's item (its place in [`Benchmark::items`]) and the order of its options.
pub type View = (usize, Option<Vec<usize>>);

/// What can go wrong with a prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// There are no letters for so many options.
    #[error("item {item} has {n} answers; options can be shown for up to 26")]
    TooManyOptions {
        /// The item, by its place in the data.
        item: usize,
        /// Its answers.
        n: usize,
    },
    /// The chat template's reason.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The scorer's reason.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

fn letter(i: usize) -> String {
    char::from(b'A' + i as u8).to_string()
}

impl Style {
    /// The chat template of the prompts, where they have one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        match &self.preset {
            Preset::Chat(template) => Some(template),
            Preset::Plain { .. } => None,
        }
    }

    /// What a manifest says about the prompts.
    pub fn facts(&self) -> Value {
        let shown = self.protocol.shows_options();
        let mut facts = match &self.preset {
            Preset::Plain { name, preamble } => json!({
                "preset": name,
                "preamble": preamble,
                "form": if shown { "{question}\nA. ...\nB. ...\nAnswer:" } else { self.form.as_str() },
                "answer": if shown { " LETTER" } else { " ANSWER" },
            }),
            Preset::Chat(template) => json!({
                "preset": "chat",
                "template": template.name(),
                "template_sha256": template.sha256(),
                "template_settings": template.settings().words(),
                "form": match self.protocol {
                    Protocol::Judge => format!("{{question}}\nA. ...\nB. ...\n{JUDGE_END_CHAT}"),
                    _ if shown => format!("{{question}}\nA. ...\nB. ...\n{OPTIONS_END_CHAT}"),
                    _ => "{question}".into(),
                },
                "answer": if shown { "LETTER" } else { "ANSWER" },
            }),
        };
        if facts["template_settings"] == ""
            && let Some(facts) = facts.as_object_mut()
        {
            facts.shift_remove("template_settings");
        }
        // Results from when every example had the right answer first are of another prompt.
        if self.protocol == Protocol::Binary {
            facts["examples"] = "options in an order drawn by the seed".into();
        }
        facts
    }

    /// `question` (`None`: hidden) as it is put, with the item's options where they are shown.
    fn block(&self, item: &Item, order: Option<&[usize]>, question: Option<&str>) -> String {
        let chat = matches!(self.preset, Preset::Chat(_));
        let Some(order) = order else {
            return match (chat, question) {
                (true, None) => HIDDEN_CHAT.into(),
                (true, Some(question)) => question.to_owned(),
                (false, None) => self.form.replace(" {question}", "").replace("{question}", ""),
                (false, Some(question)) => self.form.replace("{question}", question),
            };
        };
        let mut text = question.map_or_else(String::new, |q| format!("{q}\n"));
        for (i, &a) in order.iter().enumerate() {
            text += &format!("{}. {}\n", letter(i), item.answers[a].text);
        }
        text + match (chat, self.protocol) {
            (true, Protocol::Judge) => JUDGE_END_CHAT,
            (true, _) => OPTIONS_END_CHAT,
            (false, _) => OPTIONS_END,
        }
    }

    /// A few-shot example: the question as it is put, and its answer.
    fn shot(&self, item: &Item) -> Option<(String, String)> {
        let order = self.protocol.shot_order(item, self.seed);
        let best = item.best()?;
        let block = self.block(item, order.as_deref(), Some(&item.question));
        let answer = match order {
            Some(order) => letter(order.iter().position(|&a| item.answers[a] == *best)?),
            None => best.text.clone(),
        };
        Some((block, answer))
    }

    /// The requests of the items of one group (places in [`Benchmark::items`]), and which view each of them is.
    ///
    /// # Errors
    /// [`PromptError`].
    pub fn prompts(
        &self,
        model: &Model,
        benchmark: &Benchmark,
        group: usize,
        items: &[usize],
        overrides: &PromptOverride,
    ) -> Result<(Prompts, Vec<View>), PromptError> {
        let mut views: Vec<View> = Vec::new();
        for &i in items {
            let item = &benchmark.items[i];
            if self.protocol.shows_options() && item.answers.len() > 26 {
                return Err(PromptError::TooManyOptions { item: item.index, n: item.answers.len() });
            }
            views.extend(self.protocol.orders(item, self.seed).into_iter().map(|o| (i, o)));
        }
        let group = &benchmark.groups[group];
        let of = |(i, order): &View| -> (String, Vec<String>) {
            let item = &benchmark.items[*i];
            let answers = match order {
                Some(order) => (0..order.len()).map(letter).collect(),
                None => item.answers.iter().map(|a| a.text.clone()).collect(),
            };
            (self.block(item, order.as_deref(), overrides.question.of(benchmark, *i)), answers)
        };
        let requests: Vec<(String, Vec<String>)> = views.iter().map(of).collect();
        let prompts = match &self.preset {
            Preset::Plain { preamble, .. } => {
                Prompts::Text { prefix: self.plain_prefix(preamble, group, overrides), requests }
            }
            Preset::Chat(template) => self.chat(model, template, group, overrides, &requests)?,
        };
        Ok((prompts, views))
    }

    /// Paragraphs before the question: system prompt, header, then examples or the preamble.
    fn plain_prefix(&self, preamble: &str, group: &Group, overrides: &PromptOverride) -> String {
        let shots = if overrides.shots.is_empty() { &group.shots } else { &overrides.shots };
        let mut parts: Vec<String> = overrides.system.iter().cloned().collect();
        parts.extend(Some(group.header.clone()).filter(|h| !h.is_empty()));
        if shots.is_empty() {
            parts.extend(Some(preamble.to_owned()).filter(|p| !p.is_empty()));
        }
        parts.extend(shots.iter().filter_map(|s| self.shot(s)).map(|(block, answer)| format!("{block} {answer}")));
        parts.iter().map(|p| format!("{p}\n\n")).collect()
    }

    fn chat(
        &self,
        model: &Model,
        template: &ChatTemplate,
        group: &Group,
        overrides: &PromptOverride,
        requests: &[(String, Vec<String>)],
    ) -> Result<Prompts, PromptError> {
        let shots = if overrides.shots.is_empty() { &group.shots } else { &overrides.shots };
        let mut before: Vec<Message> = overrides.system.iter().map(Message::system).collect();
        for (block, answer) in shots.iter().filter_map(|s| self.shot(s)) {
            before.extend([Message::user(block), Message::assistant(answer)]);
        }
        let messages = |question: &str| -> Prompt {
            let mut all = before.clone();
            all.push(Message::user(question));
            // The header opens the first thing that the user says.
            if let Some(first) = all.iter_mut().find(|m| m.role == "user" && !group.header.is_empty()) {
                first.content = format!("{}\n\n{}", group.header, first.content);
            }
            Prompt::Messages(all)
        };
        // What two different questions have in common is the same for all.
        let probe = |text: &str| template.encode_prompt(model, &messages(text));
        let (a, b) = (probe("0")?, probe("x")?);
        let prefix: Vec<Token> = a.iter().zip(&b).take_while(|(x, y)| x == y).map(|(x, _)| *x).collect();
        let encode = |(question, answers): &(String, Vec<String>)| -> Result<TokenRequest, PromptError> {
            let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
            let (context, answers) = template.encode_answers(model, &messages(question), &answers)?;
            Ok(TokenRequest { context, answers })
        };
        Ok(Prompts::Tokens { prefix, requests: requests.iter().map(encode).collect::<Result<_, _>>()? })
    }
}

impl Prompts {
    /// The requests in tokens, however they are given.
    ///
    /// # Errors
    /// As [`crate::eval::Scorer::plan`].
    pub fn tokens(&self, model: &Model) -> Result<Vec<TokenRequest>, ScoreError> {
        match self {
            Self::Tokens { requests, .. } => Ok(requests.clone()),
            Self::Text { prefix, requests } => requests
                .iter()
                .map(|(prompt, answers)| {
                    let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
                    TokenRequest::encode(model, prefix, prompt, &answers)
                })
                .collect(),
        }
    }

    /// What stands before each request's answer, in tokens.
    ///
    /// # Errors
    /// [`ScoreError::Llama`] when it cannot be tokenized.
    pub fn contexts(&self, model: &Model) -> Result<Vec<Vec<Token>>, ScoreError> {
        match self {
            Self::Tokens { requests, .. } => Ok(requests.iter().map(|r| r.context.clone()).collect()),
            Self::Text { prefix, requests } => requests
                .iter()
                .map(|(prompt, _)| Ok(model.tokenize(&format!("{prefix}{prompt}"), true, false)?))
                .collect(),
        }
    }

    /// Tokens of the common beginning.
    ///
    /// # Errors
    /// [`ScoreError::Llama`] when it cannot be tokenized.
    pub fn n_prefix(&self, model: &Model) -> Result<usize, ScoreError> {
        match self {
            Self::Tokens { prefix, .. } => Ok(prefix.len()),
            Self::Text { prefix, .. } => Ok(model.tokenize(prefix, true, false)?.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::Answer;

    fn item(question: &str) -> Item {
        Item {
            index: 0,
            question: question.into(),
            category: None,
            answers: vec![Answer::new("Blue.", true), Answer::new("Red.", false)],
            group: 0,
        }
    }

    fn style(protocol: Protocol) -> Style {
        let preset = Preset::Plain { name: "x".into(), preamble: "P".into() };
        Style { preset, form: QUESTION_FORM.into(), protocol, seed: 0 }
    }

    #[test]
    fn plain_blocks() {
        let s = style(Protocol::Choice);
        assert_eq!(s.block(&item("Which?"), None, Some("Which?")), "Q: Which?\nA:");
        assert_eq!(s.block(&item("Which?"), None, None), "Q:\nA:");
        let s = style(Protocol::Binary);
        assert_eq!(s.block(&item("Which?"), Some(&[1, 0]), Some("Which?")), "Which?\nA. Red.\nB. Blue.\nAnswer:");
        assert_eq!(s.block(&item("Which?"), Some(&[0, 1]), None), "A. Blue.\nB. Red.\nAnswer:");
    }

    #[test]
    fn solved_examples_do_not_always_say_a() {
        let s = style(Protocol::Binary);
        let (mut a, mut b) = (0, 0);
        for index in 0..64 {
            let shot = s.shot(&Item { index, ..item("W?") }).unwrap();
            if shot.1 == "A" {
                assert_eq!(shot.0, "W?\nA. Blue.\nB. Red.\nAnswer:");
                a += 1;
            } else {
                assert_eq!(shot, ("W?\nA. Red.\nB. Blue.\nAnswer:".to_owned(), "B".to_owned()));
                b += 1;
            }
            assert_eq!(s.shot(&Item { index, ..item("W?") }).unwrap(), shot);
        }
        assert!(a >= 20 && b >= 20, "{a} say A, {b} say B");
        // MMLU's are in the data's order.
        let letter = |index| style(Protocol::Options).shot(&Item { index, ..item("W?") }).unwrap().1;
        assert!((0..64).all(|i| letter(i) == "A"));
    }

    #[test]
    fn what_stands_before() {
        let group = |header: &str, n: usize| Group { header: header.into(), shots: vec![item("S?"); n] };
        let s = style(Protocol::Choice);
        let none = PromptOverride::default();
        assert_eq!(s.plain_prefix("P", &group("", 0), &none), "P\n\n");
        assert_eq!(s.plain_prefix("", &group("", 0), &none), "");
        // Examples take the preamble's place, a condition's those of the benchmark.
        assert_eq!(s.plain_prefix("P", &group("H", 1), &none), "H\n\nQ: S?\nA: Blue.\n\n");
        let overrides =
            PromptOverride { system: Some("Sys".into()), shots: vec![item("T?")], ..PromptOverride::default() };
        assert_eq!(s.plain_prefix("P", &group("H", 1), &overrides), "Sys\n\nH\n\nQ: T?\nA: Blue.\n\n");
    }
}
