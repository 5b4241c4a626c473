//! Dialogues written as one text: `\n\nHuman: ...\n\nAssistant: ...` (HH-RLHF), and the same under other marks.

use crate::data::Message;

/// The marks of a kind of dialogue, each at the start of a turn.
struct Marks {
    /// Text before a mark; the first mark of the text may stand without it.
    before: &'static str,
    /// Marks and roles: the user's, the assistant's, the system's.
    marks: [(&'static str, &'static str); 3],
}

const fn marks(before: &'static str, user: &'static str, assistant: &'static str, system: &'static str) -> Marks {
    Marks { before, marks: [(user, "user"), (assistant, "assistant"), (system, "system")] }
}

const KINDS: [Marks; 2] =
    [marks("\n\n", "Human:", "Assistant:", "System:"), marks("\n", "### Human:", "### Assistant:", "### System:")];

/// Dialogues that are read as such only where nothing else says what the prompt is.
const LOOSE: [Marks; 9] = [
    marks("\n", "Human:", "Assistant:", "System:"),
    marks("\n", "User:", "Assistant:", "System:"),
    marks("\n", "USER:", "ASSISTANT:", "SYSTEM:"),
    marks("\n", "HUMAN:", "ASSISTANT:", "SYSTEM:"),
    // Vicuna writes a turn on the line of the one before it.
    marks(" ", "USER:", "ASSISTANT:", "SYSTEM:"),
    marks("\n", "<human>:", "<bot>:", "<system>:"),
    marks("\n", "Question:", "Answer:", "System:"),
    marks("\n", "Q:", "A:", "System:"),
    marks("\n", "### Instruction:", "### Response:", "### System:"),
];

/// Markup of chat templates: marks, and what ends a turn or begins the text.
const MARKUP: [(Marks, &[&str]); 6] = [
    (marks("", "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_start|>system\n"), &["<|im_end|>"]),
    (
        marks(
            "",
            "<|start_header_id|>user<|end_header_id|>",
            "<|start_header_id|>assistant<|end_header_id|>",
            "<|start_header_id|>system<|end_header_id|>",
        ),
        &["<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"],
    ),
    (
        marks("", "<start_of_turn>user\n", "<start_of_turn>model\n", "<start_of_turn>system\n"),
        &["<bos>", "<end_of_turn>"],
    ),
    (marks("", "<|user|>", "<|assistant|>", "<|system|>"), &["<s>", "</s>", "<|end|>", "<|endoftext|>"]),
    (marks("", "<|prompter|>", "<|assistant|>", "<|system|>"), &["<|endoftext|>"]),
    (marks("", "[INST]", "[/INST]", "<<SYS>>"), &["<s>", "</s>"]),
];

/// The markup of a chat template that a text holds.
pub(super) fn markup(text: &str) -> Option<&'static str> {
    MARKUP.iter().map(|(kind, _)| kind.marks[0].0.trim_end()).find(|mark| text.contains(mark))
}

/// The turns of a dialogue of any kind, also in the markup of a chat template.
pub(super) fn any_turns(text: &str) -> Option<Result<Vec<Message>, String>> {
    if let Some((kind, ends)) = MARKUP.iter().find(|(kind, _)| text.contains(kind.marks[0].0.trim_end())) {
        let plain = ends.iter().fold(text.replace("\r\n", "\n"), |text, end| text.replace(end, ""));
        // Llama 2 has its system message inside the first turn of the user.
        let plain = plain.replacen("[INST] <<SYS>>", "<<SYS>>", 1).replacen("<</SYS>>", "[INST]", 1);
        return of_kinds(&plain, std::slice::from_ref(kind));
    }
    turns(text).or_else(|| of_kinds(text, &LOOSE))
}

/// The turns of a dialogue, each without the white space around it; `None` for a text that does not begin with a mark. The last
/// turn may be empty, where an answer is to follow; other empty turns are errors.
pub(super) fn turns(text: &str) -> Option<Result<Vec<Message>, String>> {
    of_kinds(text, &KINDS)
}

fn of_kinds(text: &str, kinds: &[Marks]) -> Option<Result<Vec<Message>, String>> {
    // Line ends as the marks have them.
    let text = text.replace("\r\n", "\n");
    let start = text.trim_start();
    let kind = kinds.iter().find(|k| {
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
    found.dedup_by_key(|(at, _, _)| *at);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        turns(text).unwrap().unwrap().into_iter().map(|m| (m.role, m.content)).collect()
    }

    #[test]
    fn markup_of_chat_templates_and_loose_marks() {
        let expected = [("user", "One?"), ("assistant", "Yes.")].map(|(r, c)| (r.to_owned(), c.to_owned()));
        let found = |text: &str| -> Vec<(String, String)> {
            any_turns(text).unwrap().unwrap().into_iter().map(|m| (m.role, m.content)).collect()
        };
        for text in [
            "<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>",
            "<bos><start_of_turn>user\nOne?<end_of_turn>\n<start_of_turn>model\nYes.<end_of_turn>\n",
            "<|user|>\nOne?</s>\n<|assistant|>\nYes.</s>",
            "<|prompter|>One?<|endoftext|><|assistant|>Yes.<|endoftext|>",
            "<s>[INST] One? [/INST] Yes.</s>",
            "Human: One?\nAssistant: Yes.",
            "User: One?\n\nAssistant: Yes.",
            "USER: One?\nASSISTANT: Yes.",
            "USER: One? ASSISTANT: Yes.",
            "<human>: One?\n<bot>: Yes.",
            "Question: One?\nAnswer: Yes.",
            "Q: One?\nA: Yes.",
            "### Instruction:\nOne?\n\n### Response:\nYes.",
            "\n\nHuman: One?\n\nAssistant: Yes.",
        ] {
            assert_eq!(found(text), expected, "{text}");
            let marked = text.contains(['<', '[']) && !text.contains("<human>");
            assert_eq!(markup(text).is_some(), marked, "{text}");
        }
        let system = found("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nOne? [/INST] Yes.</s><s>[INST] Two? [/INST] No.</s>");
        assert_eq!(
            system.iter().map(|(r, c)| format!("{r} {c}")).collect::<Vec<_>>(),
            ["system S", "user One?", "assistant Yes.", "user Two?", "assistant No."]
        );
        assert!(any_turns("The sky is blue.").is_none());
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
