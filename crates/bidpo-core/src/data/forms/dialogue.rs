//! Dialogues written as one text: `\n\nHuman: ...\n\nAssistant: ...` (HH-RLHF), and the same under other marks.

use crate::data::Message;

/// The marks of a kind of dialogue, each at the start of a turn.
struct Marks {
    /// Text before a mark; the first mark of the text may stand without it.
    before: &'static str,
    marks: [(&'static str, &'static str); 3],
}

const KINDS: [Marks; 2] = [
    Marks { before: "\n\n", marks: [("Human:", "user"), ("Assistant:", "assistant"), ("System:", "system")] },
    Marks { before: "\n", marks: [("### Human:", "user"), ("### Assistant:", "assistant"), ("### System:", "system")] },
];

/// The turns of a dialogue, each without the white space around it; `None` for a text that does not begin with a mark. The last
/// turn may be empty, where an answer is to follow; other empty turns are errors.
pub(super) fn turns(text: &str) -> Option<Result<Vec<Message>, String>> {
    // Line ends as the marks have them.
    let text = text.replace("\r\n", "\n");
    let start = text.trim_start();
    let kind = KINDS.iter().find(|k| {
        // Both a question and an answer: a text that begins with "Human:" alone is a text.
        k.marks[..1].iter().chain(&k.marks[2..]).any(|(mark, _)| start.starts_with(mark))
            && start.contains(&format!("{}{}", k.before, k.marks[1].0))
    })?;
    let mut found: Vec<(usize, usize, &str)> = Vec::new();
    for (mark, role) in kind.marks {
        if start.starts_with(mark) {
            found.push((0, mark.len(), role));
        }
        let full = format!("{}{mark}", kind.before);
        found.extend(start.match_indices(&full).map(|(at, _)| (at, at + full.len(), role)));
    }
    found.sort_unstable();
    let ends = found.iter().skip(1).map(|(at, _, _)| *at).chain([start.len()]);
    let mut out = Vec::with_capacity(found.len());
    for (i, (&(_, from, role), end)) in found.iter().zip(ends).enumerate() {
        let content = start[from..end].trim();
        if content.is_empty() && i + 1 < found.len() {
            return Some(Err(format!("turn {} of the dialogue ({role}) is empty", i + 1)));
        }
        out.push(Message::new(role, content));
    }
    Some(Ok(out))
}

/// The text is a dialogue.
pub(super) fn is_dialogue(text: &str) -> bool {
    turns(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        turns(text).unwrap().unwrap().into_iter().map(|m| (m.role, m.content)).collect()
    }

    #[test]
    fn turns_are_found_at_their_marks() {
        let of = |l: &[(&str, &str)]| l.iter().map(|(r, c)| ((*r).to_owned(), (*c).to_owned())).collect::<Vec<_>>();
        let text = "\n\nHuman: One?\n\nA list:\n\nAssistant: Yes.\n\nHuman: Two?\n\nAssistant: No: Human: is a word.";
        assert_eq!(
            read(text),
            of(&[
                ("user", "One?\n\nA list:"),
                ("assistant", "Yes."),
                ("user", "Two?"),
                ("assistant", "No: Human: is a word.")
            ])
        );
        assert_eq!(read("\r\n\r\nHuman: One?\r\n\r\nAssistant: Yes."), of(&[("user", "One?"), ("assistant", "Yes.")]));
        assert_eq!(read("Human: One?\n\nAssistant:"), of(&[("user", "One?"), ("assistant", "")]));
        assert_eq!(
            read("### System: S\n### Human: One?\n### Assistant: Yes."),
            of(&[("system", "S"), ("user", "One?"), ("assistant", "Yes.")])
        );
        for text in ["How?", "Human: is a word", "Assistant: x", "A Human: x\n\nAssistant: y", ""] {
            assert!(turns(text).is_none(), "{text}");
        }
        assert!(turns("Human: \n\nAssistant: x").unwrap().unwrap_err().contains("turn 1"));
    }
}
