//! Thoughts: what a reasoning model writes between two marks before its answer.

/// The marks around a thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThoughtMarks {
    /// Before a thought.
    pub open: String,
    /// Behind it.
    pub close: String,
}

/// An answer and what was thought before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SplitAnswer {
    /// The thought, without its marks and white space around it; `None` where nothing was thought.
    pub reasoning: Option<String>,
    /// The rest.
    pub answer: String,
    /// The thought was not ended: there is no answer.
    pub open: bool,
}

/// Marks that published templates use, those first that hold others.
const MARKS: [(&str, &str); 13] = [
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|think|>", "<|end|>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("[unused16]", "[unused17]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<think>", "</think>"),
];

/// Headers of messages in harmony, the format of gpt-oss: what is written between a thought and the text of an answer.
const HARMONY: [&str; 4] =
    ["<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>", "<|end|>"];

/// The marks a template writes, by its source: the opening mark itself, and the closing one.
pub(super) fn marks_in(source: &str) -> Option<ThoughtMarks> {
    let both = |(open, close): &&(&str, &str)| source.contains(open) && source.contains(close);
    // A template may cut thoughts out of earlier answers, and leave the opening mark to the model; or open a thought, and
    // leave the closing mark to it.
    let one =
        |(open, close): &&(&str, &str)| close.contains("think") && (source.contains(open) || source.contains(close));
    let found = MARKS.iter().find(both).or_else(|| MARKS.iter().find(one));
    found.map(|(open, close)| ThoughtMarks { open: (*open).to_owned(), close: (*close).to_owned() })
}

/// The marks in a text that a template wrote around `thought`: the last tag before it, and the first behind it.
pub(super) fn marks_around(text: &str, thought: &str) -> Option<ThoughtMarks> {
    let at = text.find(thought)?;
    let before = text[..at].trim_end();
    let behind = text[at + thought.len()..].trim_start();
    let (open, close) = match before.chars().last()? {
        '>' => (&before[before.rfind('<')?..], behind.find('>').map(|i| &behind[..=i])?),
        ']' => (&before[before.rfind('[')?..], behind.find(']').map(|i| &behind[..=i])?),
        _ => return None,
    };
    let named = |tag: &str| ["think", "thought", "reason"].iter().any(|w| tag.to_ascii_lowercase().contains(w));
    let tag = close.starts_with(['<', '[']) && named(open);
    tag.then(|| ThoughtMarks { open: open.to_owned(), close: close.to_owned() })
}

impl ThoughtMarks {
    /// Headers that stand before the text of an answer and are no part of it; texts with which they begin are held back until
    /// it is clear what they are.
    pub fn headers(&self) -> &'static [&'static str] {
        if self.open.starts_with("<|channel|>") && self.close == "<|end|>" { &HARMONY } else { &[] }
    }

    /// An answer without its headers.
    fn without_headers(&self, answer: &str) -> String {
        self.headers().iter().fold(answer.to_owned(), |text, header| text.replace(header, ""))
    }

    /// True if a text (a rendered prompt) ends within a thought.
    pub fn is_open_at_end(&self, text: &str) -> bool {
        text.rfind(&self.open).is_some_and(|open| !text[open + self.open.len()..].contains(&self.close))
    }

    /// True if a text is a thought with both its marks, and nothing else.
    pub fn is_closed_thought(&self, text: &str) -> bool {
        let inner = text.trim().strip_prefix(&self.open).and_then(|t| t.strip_suffix(&self.close));
        inner.is_some_and(|t| !t.contains(&self.close))
    }

    /// Parts an answer, control tokens written out, into thought and answer. `open`: the prompt ended within a thought.
    pub fn split(&self, text: &str, open: bool) -> SplitAnswer {
        let split = self.split_at_marks(text, open);
        SplitAnswer { answer: self.without_headers(&split.answer), ..split }
    }

    fn split_at_marks(&self, text: &str, open: bool) -> SplitAnswer {
        let begins = text.trim_start().strip_prefix(&self.open);
        let inner = match (begins, open) {
            (Some(inner), _) => inner,
            (None, true) => text,
            // A model that was taught to think may leave the opening mark out. (Harmony's closing mark ends every message.)
            (None, false) if self.headers().is_empty() && !text.contains(&self.open) && text.contains(&self.close) => {
                text
            }
            (None, false) => {
                return match text.find(&self.open) {
                    // The mark stands behind some other text: what stands before it is part of the answer.
                    Some(at) => {
                        let rest = self.split_at_marks(&text[at..], false);
                        SplitAnswer { answer: format!("{}{}", &text[..at], rest.answer), ..rest }
                    }
                    None => SplitAnswer { answer: text.to_owned(), ..SplitAnswer::default() },
                };
            }
        };
        let thought = |text: &str| Some(text.trim().to_owned()).filter(|t| !t.is_empty());
        match inner.split_once(&self.close) {
            Some((inside, rest)) => SplitAnswer {
                reasoning: thought(inside),
                answer: rest.trim_start_matches(['\n', '\r']).to_owned(),
                open: false,
            },
            None => SplitAnswer { reasoning: thought(inner), answer: String::new(), open: true },
        }
    }
}

/// Parts an answer into thought and answer while it is being written.
#[derive(Debug, Clone)]
pub struct ThoughtSplitter {
    marks: Option<ThoughtMarks>,
    inside: bool,
    /// Text that may be the beginning of a mark.
    held: String,
    /// Nothing of the present part was given out yet: white space before it is dropped.
    fresh: bool,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Of a thought.
    Reasoning(String),
    /// Of the answer.
    Answer(String),
}

impl ThoughtSplitter {
    /// `marks`: the template's; without any, all text is answer. `open`: the prompt ended within a thought.
    pub fn new(marks: Option<ThoughtMarks>, open: bool) -> Self {
        let inside = open && marks.is_some();
        Self { marks, inside, held: String::new(), fresh: inside }
    }

    /// Takes a piece of text, control tokens written out where a mark is made of them; returns what is sure.
    pub fn push(&mut self, piece: &str) -> Vec<AnswerPart> {
        self.held.push_str(piece);
        let mut out = Vec::new();
        while let Some(marks) = self.marks.clone() {
            let mark = if self.inside { &marks.close } else { &marks.open };
            let headers = if self.inside { &[] } else { marks.headers() };
            let header = headers.iter().filter_map(|h| Some((self.held.find(h)?, h.len()))).min();
            let opened = self.held.find(mark.as_str());
            // A thought may follow a header of its own.
            if let Some((at, n)) = header.filter(|(at, _)| opened.is_none_or(|open| *at <= open)) {
                let before = self.held[..at].to_owned();
                self.held.drain(..at + n);
                self.give(before, &mut out);
                continue;
            }
            if let Some(at) = opened {
                let before = self.held[..at].to_owned();
                self.held.drain(..at + mark.len());
                self.give(before, &mut out);
                self.inside = !self.inside;
                self.fresh = true;
                continue;
            }
            // Keep what may become the mark, or a header.
            let keep = |mark: &str| {
                (1..mark.len())
                    .rev()
                    .find(|&n| mark.is_char_boundary(n) && self.held.ends_with(&mark[..n]))
                    .unwrap_or(0)
            };
            let sure = self.held.len() - headers.iter().map(|h| keep(h)).max().unwrap_or(0).max(keep(mark));
            let before: String = self.held.drain(..sure).collect();
            self.give(before, &mut out);
            return out;
        }
        let all = std::mem::take(&mut self.held);
        self.give(all, &mut out);
        out
    }

    /// The rest, when the answer has ended.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let mut out = Vec::new();
        let rest = std::mem::take(&mut self.held);
        self.give(rest, &mut out);
        out
    }

    /// True within a thought.
    pub fn is_inside(&self) -> bool {
        self.inside
    }

    fn give(&mut self, text: String, out: &mut Vec<AnswerPart>) {
        let text = match self.fresh {
            true => text.trim_start_matches(['\n', '\r']).to_owned(),
            false => text,
        };
        if text.is_empty() {
            return;
        }
        self.fresh = false;
        out.push(if self.inside { AnswerPart::Reasoning(text) } else { AnswerPart::Answer(text) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn think() -> ThoughtMarks {
        marks_in("<think> </think>").unwrap()
    }

    #[test]
    fn marks_of_templates() {
        let open = |source: &str| marks_in(source).map(|m| m.open);
        assert_eq!(open("{{ '<|im_start|>' }}"), None);
        assert_eq!(open("{% if '</think>' in content %}").as_deref(), Some("<think>"));
        assert_eq!(open("<|START_THINKING|><|END_THINKING|>").as_deref(), Some("<|START_THINKING|>"));
        assert_eq!(open("<|channel>thought\n<channel|>").as_deref(), Some("<|channel>thought"));
        let around = marks_around("a<|me|><deep-thought>\nX\n</deep-thought>\n\nY", "X").unwrap();
        assert_eq!((around.open.as_str(), around.close.as_str()), ("<deep-thought>", "</deep-thought>"));
        assert_eq!(marks_around("<b>X</b>", "X"), None);
    }

    #[test]
    fn answers_are_parted() {
        let split = |text: &str, open| {
            let s = think().split(text, open);
            (s.reasoning.unwrap_or_default(), s.answer, s.open)
        };
        let own = |a: &str, b: &str, open| (a.to_owned(), b.to_owned(), open);
        assert_eq!(split("<think>\nhm\n</think>\n\nYes.", false), own("hm", "Yes.", false));
        assert_eq!(split("hm\n</think>\n\nYes.", true), own("hm", "Yes.", false));
        assert_eq!(split("hm", true), own("hm", "", true));
        assert_eq!(split("Yes.", false), own("", "Yes.", false));
        assert_eq!(split("<think>\n\n</think>\n\nYes.", false), own("", "Yes.", false));
        let harmony = marks_in("<|channel|>analysis<|message|> <|end|>").unwrap();
        let said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.";
        let parted = harmony.split(said, false);
        assert_eq!((parted.reasoning.as_deref(), parted.answer.as_str()), (Some("hm"), "Yes."));
        assert_eq!(split("So: <think>hm</think>Yes.", false), own("hm", "So: Yes.", false));
        assert!(think().is_open_at_end("<a><think>\n"));
        assert!(!think().is_open_at_end("<think>\n</think>\n<a>"));
    }

    /// However the text is cut into pieces, the parts are the same.
    #[test]
    fn streaming_gives_the_same() {
        let harmony = marks_in("<|channel|>analysis<|message|> <|end|>").unwrap();
        for (text, open, marks) in [
            ("<think>\nhm < 3\n</think>\n\nYes < no.", false, think()),
            ("hm</think>\nYes", true, think()),
            ("Yes <thin", false, think()),
            (
                "<|channel|>analysis<|message|>A < b.<|end|><|start|>assistant<|channel|>final<|message|>Yes <|x.",
                false,
                harmony.clone(),
            ),
            ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.f", false, harmony.clone()),
            ("<|channel|>final<|message|>Yes.", false, harmony),
        ] {
            let whole = marks.split(text, open);
            for width in 1..text.len() {
                let mut splitter = ThoughtSplitter::new(Some(marks.clone()), open);
                let (mut reasoning, mut answer) = (String::new(), String::new());
                let chars: Vec<char> = text.chars().collect();
                let mut parts: Vec<AnswerPart> =
                    chars.chunks(width).flat_map(|c| splitter.push(&c.iter().collect::<String>())).collect();
                parts.extend(splitter.finish());
                for part in parts {
                    match part {
                        AnswerPart::Reasoning(t) => reasoning += &t,
                        AnswerPart::Answer(t) => answer += &t,
                    }
                }
                assert_eq!(
                    (reasoning.trim(), answer.as_str()),
                    (whole.reasoning.as_deref().unwrap_or(""), whole.answer.as_str())
                );
            }
        }
    }
}
