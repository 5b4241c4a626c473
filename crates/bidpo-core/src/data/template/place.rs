//! Where system messages stand. Some templates refuse them (Gemma 2), some leave them out without a word (Phi 3), some take
//! one at the beginning only. Which it is, is found by rendering.

use super::{ChatTemplate, Message};
use std::sync::Arc;

/// Where a chat's system messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// As they are given.
    AsGiven,
    /// Those at the beginning as one system message, later ones before the next user message.
    Leading,
    /// All before the next user message.
    InUser,
}

/// What stands between the texts of a system message and of the user message it is put into.
const GAP: &str = "\n\n";

/// `developer` is OpenAI's name for `system`; an empty system message says nothing.
pub(super) fn normalised(messages: &[Message]) -> Vec<Message> {
    messages
        .iter()
        .map(|m| {
            let role = if m.is_system() { "system" } else { &m.role };
            Message { role: role.to_owned(), ..m.clone() }
        })
        .filter(|m| m.role != "system" || !m.content.trim().is_empty())
        .collect()
}

/// The messages with their system messages placed.
pub(super) fn place(messages: Vec<Message>, placement: Placement) -> Vec<Message> {
    if placement == Placement::AsGiven {
        return messages;
    }
    let mut out: Vec<Message> = Vec::new();
    let mut waiting: Vec<String> = Vec::new();
    for message in messages {
        match message.role.as_str() {
            "system" if placement == Placement::Leading && out.iter().all(|m| m.role == "system") => {
                match out.first_mut() {
                    Some(first) => first.content = format!("{}{GAP}{}", first.content, message.content),
                    None => out.push(message),
                }
            }
            "system" => waiting.push(message.content),
            "user" if !waiting.is_empty() => {
                waiting.push(message.content.clone());
                let content = std::mem::take(&mut waiting).join(GAP);
                out.push(Message { content, ..message });
            }
            _ => out.push(message),
        }
    }
    // System text behind the last user message ends that message; without one it is what the user says.
    if !waiting.is_empty() {
        let text = waiting.join(GAP);
        match out.iter_mut().rfind(|m| m.role == "user") {
            Some(last) => last.content = format!("{}{GAP}{text}", last.content),
            None => out.push(Message::user(text)),
        }
    }
    out
}

/// A word in place of the content of message `i`: it stands in no template.
pub(super) fn marker(i: usize) -> String {
    format!("kx{i}bidpo{i}xk")
}

/// The chat with a marker in place of each content.
pub(super) fn marked(messages: &[Message]) -> Vec<Message> {
    let one = |(i, m): (usize, &Message)| Message { tools: m.tools.clone(), ..Message::new(&m.role, marker(i)) };
    messages.iter().enumerate().map(one).collect()
}

/// The roles of a chat, as the key of what is known about chats of these roles.
pub(super) fn roles(messages: &[Message]) -> String {
    messages.iter().map(|m| m.role.as_str()).collect::<Vec<_>>().join("\n")
}

impl ChatTemplate {
    /// The chat as it is given to the template.
    pub(super) fn placed(&self, messages: &[Message]) -> Vec<Message> {
        let messages = normalised(messages);
        if self.engine.is_none() || !messages.iter().any(|m| m.role == "system") {
            return messages;
        }
        let placement = self.placement(&messages);
        match placement {
            Placement::AsGiven => {}
            Placement::Leading => self.tell(format!(
                "the chat template {} takes one system message, at the beginning: the text of a later one is put before the \
                 user message that follows it",
                self.name
            )),
            Placement::InUser => self.tell(format!(
                "the chat template {} takes no system message: its text is put before the first user message, as a \
                 paragraph of its own",
                self.name
            )),
        }
        place(messages, placement)
    }

    fn placement(&self, messages: &[Message]) -> Placement {
        let key = roles(messages);
        if let Some(known) = self.known.placements().get(&key) {
            return *known;
        }
        let marked = marked(messages);
        // Shown: every system message, and the last word of the user.
        let words: Vec<String> = marked
            .iter()
            .enumerate()
            .filter(|(i, m)| m.role == "system" || Some(*i) == marked.iter().rposition(|m| m.role == "user"))
            .map(|(_, m)| m.content.clone())
            .collect();
        let shows = |placement: &Placement| {
            let text = self.write(&place(marked.clone(), *placement), true);
            text.is_ok_and(|text| words.iter().all(|w| text.contains(w.as_str())))
        };
        let found = [Placement::AsGiven, Placement::Leading, Placement::InUser].into_iter().find(shows);
        // A template that shows them in no place, or refuses the chat for another reason, says so itself.
        let found = found.unwrap_or(Placement::AsGiven);
        self.known.placements().insert(key, found);
        found
    }
}

/// What renderings have shown about a template, and what was done to chats.
#[derive(Debug, Default)]
pub(super) struct Known {
    placements: std::sync::Mutex<std::collections::HashMap<String, Placement>>,
    tails: std::sync::Mutex<std::collections::HashMap<String, Arc<super::answer::Tail>>>,
    told: std::sync::Mutex<Vec<String>>,
    /// The marks of thoughts in tokens.
    pub(super) thoughts: std::sync::OnceLock<Arc<crate::intervention::ThoughtTokens>>,
}

impl Known {
    fn placements(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, Placement>> {
        lock(&self.placements)
    }

    pub(super) fn tails(
        &self,
    ) -> std::sync::MutexGuard<'_, std::collections::HashMap<String, Arc<super::answer::Tail>>> {
        lock(&self.tails)
    }

    pub(super) fn told(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        lock(&self.told)
    }
}

/// No value behind these locks is half-written when a thread panics.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(text: &str) -> Vec<Message> {
        let role = |c| match c {
            's' => "system",
            'u' => "user",
            _ => "assistant",
        };
        text.split(' ').map(|w| Message::new(role(w.chars().next().unwrap()), w)).collect()
    }

    fn placed(text: &str, placement: Placement) -> Vec<String> {
        place(chat(text), placement).iter().map(|m| format!("{}:{}", m.role, m.content)).collect()
    }

    #[test]
    fn system_text_before_the_user() {
        assert_eq!(placed("s1 u1 a1 u2", Placement::InUser), ["user:s1\n\nu1", "assistant:a1", "user:u2"]);
        assert_eq!(placed("s1 s2 u1", Placement::InUser), ["user:s1\n\ns2\n\nu1"]);
        assert_eq!(placed("s1 a1 u1", Placement::InUser), ["assistant:a1", "user:s1\n\nu1"]);
        assert_eq!(placed("u1 a1 s1", Placement::InUser), ["user:u1\n\ns1", "assistant:a1"]);
        assert_eq!(placed("s1", Placement::InUser), ["user:s1"]);
        assert_eq!(placed("s1 s2 u1 s3 u2", Placement::Leading), ["system:s1\n\ns2", "user:u1", "user:s3\n\nu2"]);
        assert_eq!(placed("s1 u1", Placement::AsGiven), ["system:s1", "user:u1"]);
    }

    #[test]
    fn developer_is_system() {
        let chat = [Message::new("developer", "D"), Message::system(" \n"), Message::user("U")];
        assert_eq!(normalised(&chat), [Message::system("D"), Message::user("U")]);
    }
}
