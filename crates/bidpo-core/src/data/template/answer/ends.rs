//! Where an answer ends in what a template writes behind it.
//!
//! A template without an end token may write the header of the next turn there. Nothing in the text says so: what the
//! template writes elsewhere in the same chat does.

/// What a template writes in a chat of two questions and an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Between<'a> {
    /// Before the first question.
    pub(super) head: &'a str,
    /// Between the first question and its answer.
    pub(super) to_answer: &'a str,
    /// Between the answer and the second question.
    pub(super) to_question: &'a str,
}

/// Names of the person who asks, in the headers of published templates.
const ASKING: [&str; 8] = ["user", "human", "instruction", "question", "input", "prompt", "inst", "q"];

/// The last place up to `at` that does not cut a mark or a word: behind a line break or a bracket, or the beginning.
pub(super) fn boundary(text: &str, at: usize) -> usize {
    text[..at].char_indices().rev().find(|(_, c)| is_end(*c)).map_or(0, |(i, c)| i + c.len_utf8())
}

/// Ends a line or a mark.
fn is_end(c: char) -> bool {
    matches!(c, '\n' | '>' | ']' | '}')
}

/// Bytes with which both texts begin.
fn common_start(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

/// Bytes of `last`, written behind the last answer, that also stand behind an answer that `next` follows.
pub(super) fn common_end(last: &str, next: &str) -> usize {
    if next.starts_with(last) { last.len() } else { boundary(last, common_start(last, next)) }
}

/// Bytes of the first `ends` bytes behind an answer that are no header of a user's turn.
pub(super) fn without_header(ends: usize, between: &Between) -> usize {
    let text = between.to_question;
    let ends = ends.min(text.len());
    let Some(header) = header(between) else { return ends };
    // What stands behind the question too ends any turn, though a text before the first question may also end so.
    let any_turn = &text[header..];
    let header = header + boundary(any_turn, common_start(any_turn, between.to_answer));
    if ends <= header {
        return ends;
    }
    // A space before a word is part of the word's token.
    text[..header].trim_end_matches(' ').len()
}

/// Where the header of the second question begins in what stands before it: it is the text that also stands before the
/// first one. White space before it ends the answer.
fn header(between: &Between) -> Option<usize> {
    let text = between.to_question;
    let (at, head) = shared_end(text, between.head);
    // What both texts share may begin within a mark that ends something else in each.
    let begins = text[at..].starts_with(|c: char| c.is_whitespace() || matches!(c, '<' | '[' | '{' | '#'))
        || ends_whole(&text[..at])
        || ends_whole(&between.head[..head]);
    let from = if begins { at } else { text[at..].find(is_end).map_or(text.len(), |i| at + i + 1) };
    let header = text[from..].trim_start();
    if header.is_empty() { named(text) } else { Some(text.len() - header.len()) }
}

/// Where the end begins that two texts share. Numbers are equal: a header may count the turns.
fn shared_end(a: &str, b: &str) -> (usize, usize) {
    let (mut a, mut b) = (a, b);
    let is_digit = |c: char| c.is_ascii_digit();
    while let (Some(x), Some(y)) = (a.chars().next_back(), b.chars().next_back()) {
        if is_digit(x) && is_digit(y) {
            (a, b) = (a.trim_end_matches(is_digit), b.trim_end_matches(is_digit));
        } else if x == y {
            (a, b) = (&a[..a.len() - x.len_utf8()], &b[..b.len() - y.len_utf8()]);
        } else {
            break;
        }
    }
    (a.len(), b.len())
}

/// Nothing, or a text behind which a mark or a word may begin.
fn ends_whole(text: &str) -> bool {
    text.chars().next_back().is_none_or(|c| c.is_whitespace() || is_end(c))
}

/// Where a header begins that ends in a name of the person who asks. Some templates leave the first one out.
fn named(text: &str) -> Option<usize> {
    let name = text.trim_end_matches(|c: char| !c.is_alphabetic());
    let start = name.char_indices().rev().take_while(|(_, c)| c.is_alphabetic()).last()?.0;
    let asks = ASKING.iter().any(|known| name[start..].eq_ignore_ascii_case(known));
    let closing = name[..start].ends_with('/');
    (asks && !closing).then(|| boundary(text, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_a_next_turn_are_cut() {
        for (last, next, ends) in [
            ("<end>\n", "<end>\n<user>", "<end>\n"),
            ("\n<assistant>", "\n<user>", "\n"),
            ("\n\n### Response:", "\n\n### Instruction:", "\n\n"),
            ("<end>\n<|eos|>", "<end>\n<|user|>", "<end>\n"),
            ("", "\nUser:", ""),
        ] {
            assert_eq!(&last[..common_end(last, next)], ends, "{last:?}");
        }
    }

    /// Templates that write the next question's header behind each answer, and those that only seem to.
    #[test]
    fn headers_of_the_next_question_are_cut() {
        for (head, to_answer, to_question, last, ends) in [
            // Alpaca, with and without a text before the first header.
            ("### Instruction:\n", "\n\n### Response:\n", "\n\n### Instruction:\n", "\n\n### Instruction:\n", "\n\n"),
            (
                "Below is a task.\n\n### Instruction:\n",
                "\n\n### Response:\n",
                "\n\n### Instruction:\n",
                "\n\n### I",
                "\n\n",
            ),
            // Vicuna: a space belongs to the header's first token.
            ("A chat. USER: ", " ASSISTANT: ", " USER: ", " USER: ", ""),
            ("USER: ", "\nASSISTANT: ", "\nUSER: ", "\nUSER:", "\n"),
            ("User: ", "\nAssistant: ", "\nUser: ", "\nUser: ", "\n"),
            ("A chat. USER: ", " ASSISTANT: ", "END USER: ", "END USER:", "END"),
            // An end mark that is no end token stays.
            ("<|user|>\n", "<end>\n<|bot|>\n", "<end>\n<|user|>\n", "<end>\n<|user|>\n", "<end>\n"),
            ("<s>[INST] ", " [/INST] ", "</s><s>[INST] ", "</s><s>[INST] ", "</s>"),
            ("<user>", "<end><bot>", "<end><user>", "<end>", "<end>"),
            // What ends the text before the first question is spelled like what ends the answer.
            ("<s>[INST]", "[/INST]", "</s>[INST]", "</s>", "</s>"),
            ("S.</system>\n<user>\n", "</user>\n<a>\n", "</a>\n<user>\n", "</a>\n", "</a>\n"),
            ("S.<|im_end|>\n<|user|>", "<|x|>", "<|a_end|>\n<|user|>", "<|a_end|>\n<|user|>", "<|a_end|>\n"),
            // One mark for all turns.
            ("<turn>", "<turn>", "<turn>", "<turn>", "<turn>"),
            ("<sep>User: ", "<sep>Bot: ", "<sep>User: ", "<sep>", "<sep>"),
            ("<sep>User: ", "<sep>Bot: ", "<sep>User: ", "<sep>User:", "<sep>"),
            ("S.<end><user>", "<end><bot>", "</text><end><user>", "</text><end>", "</text><end>"),
            ("<start>user\n", "<end>\n<start>bot\n", "<end>\n<start>user\n", "<end>\n<start>user\n", "<end>\n"),
            // A number in the header.
            ("[Round 1]\n\nQ: ", "\n\nA: ", "\n\n[Round 2]\n\nQ: ", "\n\n[Round 2]\n\nQ: ", "\n\n"),
            // The first question has no header.
            ("", "\nAssistant:", "\nUser:", "\nUser:", "\n"),
            ("", "\n\n### Response:\n", "\n\n### Instruction:\n", "\n\n### Instruction:\n", "\n\n"),
            ("", "[/INST]", "<end>[INST] ", "<end>[INST] ", "<end>"),
            ("", " [/INST] ", " END\n", " END\n", " END\n"),
            ("", "</user>", "</user>", "</user>", "</user>"),
        ] {
            let between = Between { head, to_answer, to_question };
            let found = without_header(common_end(last, to_question), &between);
            assert_eq!(&last[..found], ends, "{between:?}");
        }
    }
}
