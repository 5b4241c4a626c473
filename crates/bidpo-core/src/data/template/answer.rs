//! What of a finished chat is the answer.
//!
//! Training and scoring ask what a model says *after a prompt*. Most templates end their generation prompt as a finished chat
//! begins an answer, and then the prompt is the generation prompt. Reasoning models' templates do not: the generation prompt
//! opens a thought, and the finished chat holds an empty thought, or none, or marks around the answer. There the prompt is what
//! the finished chat holds before the answer, so that the answer is trained as an answer and not as a thought.

mod ends;

use super::place::{marked, marker, roles};
use super::{ChatTemplate, Message, TemplateError, Think};
use ends::{Between, boundary, common_end, without_header};
use std::sync::Arc;

/// What a template writes behind the last answer of a chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tail {
    /// The text, and how many bytes of it end the answer: the rest is the header of the next turn.
    Written { text: String, ends: usize },
    /// The template shows no answer.
    Lost,
    /// It refuses such a chat.
    Unknown,
}

/// A prompt and one answer, as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) prompt: String,
    /// What follows the prompt, to the end of the chat.
    pub(super) response: String,
    /// Bytes of the response before what the template writes behind the answer.
    pub(super) answer: usize,
    /// Bytes of the response without the header of a next turn.
    pub(super) ends: usize,
}

impl Finished {
    /// Moves the end of the prompt to `len` bytes.
    fn cut(&mut self, len: usize) {
        let moved = self.prompt.split_off(len);
        self.answer += moved.len();
        self.ends += moved.len();
        self.response.insert_str(0, &moved);
    }
}

/// A prompt that a finished chat continues.
#[derive(Debug, PartialEq, Eq)]
struct Joined {
    prompt: String,
    /// White space that begins the response.
    gap: String,
    /// The ends of the generation prompt and of the prompt, where they differ by more than white space.
    differ: Option<[String; 2]>,
}

/// Joins the generation prompt `asked` and what a finished chat holds before the answer; `last` is the content of the last
/// message before it. `closed` tells what of a generation prompt stays though the finished chat lacks it: a thought that is
/// ended already.
fn join(asked: &str, before: &str, last: &str, closed: &dyn Fn(&str) -> bool) -> Joined {
    if let Some(joined) = join_ends("", asked, before, closed) {
        return joined;
    }
    // Some templates write earlier messages otherwise once the chat goes on (Mistral's system message moves): what stands
    // behind the last message is compared, and the rest is that of the question.
    let behind = |text: &str| Some(text.rfind(last)? + last.len());
    match (behind(asked), behind(before)) {
        (Some(a), Some(b)) if !last.is_empty() => {
            let (head, a) = asked.split_at(a);
            let b = &before[b..];
            join_ends(head, a, b, closed).unwrap_or_else(|| changed(head, a, b))
        }
        _ => changed("", asked, before),
    }
}

/// As [`join`], where one end begins with the other.
fn join_ends(head: &str, asked: &str, before: &str, closed: &dyn Fn(&str) -> bool) -> Option<Joined> {
    let white = |text: &str| text.chars().all(char::is_whitespace);
    let as_asked = |gap: &str| Joined { prompt: format!("{head}{asked}"), gap: gap.to_owned(), differ: None };
    if let Some(rest) = before.strip_prefix(asked) {
        return Some(if white(rest) { as_asked(rest) } else { changed(head, asked, before) });
    }
    let rest = asked.strip_prefix(before)?;
    Some(if white(rest) || closed(rest) { as_asked("") } else { changed(head, asked, before) })
}

/// The finished chat's form, its end and that of the generation prompt without what they share.
fn changed(head: &str, asked: &str, before: &str) -> Joined {
    let shared = asked.chars().zip(before.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
    let start = boundary(asked, shared);
    // A space before a word is part of the word's token.
    let prompt = before.trim_end_matches(' ');
    Joined {
        prompt: format!("{head}{prompt}"),
        gap: before[prompt.len()..].to_owned(),
        differ: Some([asked[start..].to_owned(), before[start..].to_owned()]),
    }
}

/// Where an answer stands at the end of a text: white space around it may have been trimmed.
fn at_end(body: &str, answer: &str) -> Option<usize> {
    let forms = [answer, answer.trim_end(), answer.trim_start(), answer.trim()];
    forms.into_iter().find(|a| !a.is_empty() && body.ends_with(a)).map(|a| body.len() - a.len())
}

impl ChatTemplate {
    /// What the template writes behind the answer to a chat of these roles.
    pub(super) fn tail(&self, placed: &[Message]) -> Arc<Tail> {
        let key = roles(placed);
        if let Some(known) = self.known.tails().get(&key) {
            return Arc::clone(known);
        }
        let tail = Arc::new(self.find_tail(placed));
        self.known.tails().insert(key, Arc::clone(&tail));
        tail
    }

    fn find_tail(&self, placed: &[Message]) -> Tail {
        let mut chat = marked(placed);
        let word = marker(chat.len());
        chat.push(Message::assistant(&word));
        let Ok(text) = self.write(&chat, false) else { return Tail::Unknown };
        let behind = |text: &str| text.rfind(&word).map(|at| text[at + word.len()..].to_owned());
        let Some(end) = behind(&text) else { return Tail::Lost };
        chat.push(Message::user(marker(chat.len())));
        let next = self.write(&chat, false).ok().and_then(|t| behind(&t));
        let ends = next.map_or(end.len(), |next| common_end(&end, &next));
        Tail::Written { ends: self.without_header(ends, &end), text: end }
    }

    /// Bytes of the first `ends` bytes of `tail`, written behind an answer, without the header of a user's next turn.
    fn without_header(&self, ends: usize, tail: &str) -> usize {
        let [first, answer, second] = [0, 1, 2].map(marker);
        let chat = [Message::user(&first), Message::assistant(&answer), Message::user(&second)];
        // A template that refuses this chat, or shows it otherwise, tells nothing.
        let Ok(text) = self.write(&chat, false) else { return ends };
        let between = || {
            let (head, rest) = text.split_once(&first)?;
            let (to_answer, rest) = rest.split_once(&answer)?;
            let (to_question, _) = rest.split_once(&second)?;
            to_question.starts_with(&tail[..ends]).then_some(Between { head, to_answer, to_question })
        };
        between().map_or(ends, |between| without_header(ends, &between))
    }

    /// One answer to a chat, as the finished chat holds it. `asked`: the chat with its generation prompt.
    pub(super) fn finish(
        &self,
        placed: &[Message],
        asked: &str,
        mut answer: Message,
    ) -> Result<Finished, TemplateError> {
        let lost = || TemplateError::LostResponse { name: self.name.clone() };
        let tail = self.tail(placed);
        let (tail, ends) = match &*tail {
            Tail::Written { text, ends } => (text.as_str(), *ends),
            Tail::Lost => return Err(lost()),
            Tail::Unknown => ("", 0),
        };
        let open = self.marks.as_ref().is_some_and(|m| m.is_open_at_end(asked));
        if self.settings.think == Think::Keep {
            return Ok(self.kept(asked, &answer.content, tail, ends, open));
        }
        if let (Think::Skip, Some(marks)) = (self.settings.think, &self.marks) {
            let split = marks.split(&answer.content, open && answer.content.contains(&marks.close));
            if split.answer.trim().is_empty() {
                return Err(TemplateError::EmptyResponse);
            }
            answer.content = split.answer;
            answer.reasoning_content = None;
        }
        let mut chat = placed.to_vec();
        chat.push(answer.clone());
        let full = self.write(&chat, false)?;
        let (body, ends) = match full.strip_suffix(tail) {
            Some(body) => (body, body.len() + ends),
            None => (full.as_str(), full.len()),
        };
        let content = answer.content.as_str();
        let last = placed.last().map_or("", |m| m.content.trim());
        let found = self.thinking_start(body, asked, content, open).or_else(|| at_end(body, content));
        let (start, end) = if let Some(start) = found {
            (start, body.len())
        } else if full.len() > asked.len() && full.starts_with(asked) {
            (asked.len(), body.len())
        } else {
            let start = full.rfind(content.trim()).ok_or_else(lost)?;
            (start, start + content.trim().len())
        };
        // With enable_thinking=false, say. An answer that brings a thought along stands where that thought stood.
        let closed = |rest: &str| {
            self.marks.as_ref().is_some_and(|m| m.is_closed_thought(rest) && !full[start..].contains(&m.close))
        };
        let joined = join(asked, &full[..start], last, &closed);
        if let Some([asked, finished]) = &joined.differ {
            self.tell(format!(
                "the generation prompt of the chat template {} ends in {asked:?}, a finished chat has {finished:?} there: \
                 answers are trained and scored as finished chats hold them (--think keep: after the generation prompt)",
                self.name
            ));
        }
        let gap = joined.gap.len();
        Ok(Finished {
            prompt: joined.prompt,
            response: format!("{}{}", joined.gap, &full[start..]),
            answer: gap + end - start,
            ends: gap + ends.max(end) - start,
        })
    }

    /// Where the response begins whose answer holds a thought of its own, which the template writes in its own way.
    fn thinking_start(&self, body: &str, asked: &str, content: &str, open: bool) -> Option<usize> {
        let split = self.marks.as_ref()?.split(content, open);
        let marks = self.marks.as_ref()?;
        let thought = split.reasoning?;
        let answer = at_end(body, &split.answer)?;
        match body[..answer].rfind(thought.as_str()) {
            Some(_) if body.starts_with(asked) => Some(asked.len()),
            Some(at) => Some(body[..at].rfind(&marks.open).unwrap_or(at)),
            None => {
                self.tell(format!(
                    "the chat template {} leaves the thoughts out of answers: what stands up to {} is not trained or scored \
                     (--think keep takes answers as they are)",
                    self.name, marks.close
                ));
                Some(answer)
            }
        }
    }

    /// The answer as it is, behind the generation prompt.
    fn kept(&self, asked: &str, content: &str, tail: &str, ends: usize, open: bool) -> Finished {
        // The opening mark stands in the prompt already.
        let begun = self.marks.as_ref().filter(|_| open).and_then(|m| content.trim_start().strip_prefix(&m.open));
        let content = match begun {
            Some(rest) if asked.ends_with('\n') => rest.trim_start_matches('\n'),
            Some(rest) => rest,
            None => content,
        };
        Finished {
            prompt: asked.to_owned(),
            response: format!("{content}{tail}"),
            answer: content.len(),
            ends: content.len() + ends,
        }
    }
}

/// Gives several answers one prompt: the longest that all have.
pub(super) fn share_prompt(answers: &mut [Finished]) {
    let Some((first, rest)) = answers.split_first() else { return };
    let mut len = first.prompt.len();
    for other in rest {
        let same = first.prompt[..len].chars().zip(other.prompt.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(c, _)| c.len_utf8()).sum();
        let whole = same == len || same == other.prompt.len();
        len = if whole { same } else { boundary(&first.prompt, same) };
    }
    for answer in answers {
        answer.cut(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(asked: &str, before: &str) -> (String, String) {
        let closed = |rest: &str| rest.starts_with("<think>") && rest.trim_end().ends_with("</think>");
        let joined = join(asked, before, "Q", &closed);
        (joined.prompt, joined.gap)
    }

    #[test]
    fn prompts_are_those_of_finished_chats() {
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(prompt("Q<a>", "Q<a>"), own("Q<a>", ""));
        assert_eq!(prompt("Q<a>", "Q<a> "), own("Q<a>", " "));
        assert_eq!(prompt("Q<a> ", "Q<a>"), own("Q<a> ", ""));
        // DeepSeek R1, Qwen 3.5, GLM 4.7, Nemotron 3, Command R7B: invented chats in their forms.
        assert_eq!(prompt("Q<a><think>\n", "Q<a>"), own("Q<a>", ""));
        assert_eq!(prompt("Q<a><think>\n", "Q<a><think>\n\n</think>\n\n"), own("Q<a><think>\n\n</think>\n\n", ""));
        assert_eq!(prompt("Q<a><think>", "Q<a></think>"), own("Q<a></think>", ""));
        assert_eq!(prompt("Q<a><think>\n", "Q<a><think></think> "), own("Q<a><think></think>", " "));
        assert_eq!(prompt("Q<a><t></t>", "Q<a><START>"), own("Q<a><START>", ""));
        // The generation prompt has ended the thought.
        let closed = "Q<a><think>\n\n</think>\n\n";
        assert_eq!(prompt(closed, "Q<a>"), own(closed, ""));
        // The system text stands with the last user message: in the finished chat that is another one's place.
        assert_eq!(prompt("[I] S Q[/I]", "[I] Q[/I] "), own("[I] S Q[/I]", " "));
        let differ = join("Q<a><think>\n", "Q<a></think>", "Q", &|_| false).differ;
        assert_eq!(differ, Some(["<think>\n".to_owned(), "</think>".to_owned()]));
    }

    #[test]
    fn one_prompt_for_all_answers() {
        let finished = |prompt: &str, response: &str| Finished {
            prompt: prompt.into(),
            response: response.into(),
            answer: response.len(),
            ends: response.len(),
        };
        let mut two = [finished("<a>", "<think>x</think>A"), finished("<a><think></think>", "B")];
        share_prompt(&mut two);
        assert_eq!([&two[0].prompt, &two[1].prompt], ["<a>", "<a>"]);
        assert_eq!([&two[0].response, &two[1].response], ["<think>x</think>A", "<think></think>B"]);
        assert_eq!(two[1].answer, "<think></think>B".len());
        let mut two = [finished("<a><th", "x"), finished("<a><to", "y")];
        share_prompt(&mut two);
        assert_eq!([&two[0].prompt, &two[1].response], ["<a>", "<toy"]);
    }
}
