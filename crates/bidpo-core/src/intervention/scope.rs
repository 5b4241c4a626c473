//! Scopes: the positions at which an intervention acts.

use super::{Place, ThoughtTokens};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A part of a sequence. A position belongs to the answer if an answer token is predicted from it: the last token of the
/// prompt, and every token of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopePart {
    /// The positions of the prompt, without its last one.
    Prompt,
    /// The positions that an answer token is predicted from.
    Answer,
    /// The first positions of the prompt.
    First(usize),
    /// The last positions of the prompt.
    Last(usize),
    /// The positions that an answer token behind the first N is predicted from.
    After(usize),
    /// The positions of the answer that lie in a thought.
    Think,
    /// The other positions of the answer.
    NotThink,
}

impl ScopePart {
    fn covers(self, place: Place) -> bool {
        let Place { at, n_prompt, in_thought, .. } = place;
        match self {
            Self::Prompt => at + 1 < n_prompt,
            Self::Answer => at + 1 >= n_prompt,
            Self::First(n) => at < n.min(n_prompt),
            Self::Last(n) => at < n_prompt && at + n >= n_prompt,
            Self::After(n) => at + 1 >= n_prompt + n,
            Self::Think => place.is_answer() && in_thought,
            Self::NotThink => place.is_answer() && !in_thought,
        }
    }
}

/// The union of some parts; without parts, every position.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    parts: Vec<ScopePart>,
    /// How thoughts are told, where a part asks for them: by the chat template in use.
    thoughts: Option<Arc<ThoughtTokens>>,
}

impl Scope {
    /// Every position.
    pub const ALL: Self = Self { parts: Vec::new(), thoughts: None };

    /// The union of these parts.
    pub fn of(parts: impl IntoIterator<Item = ScopePart>) -> Self {
        Self { parts: parts.into_iter().collect(), thoughts: None }
    }

    /// The parts; none for every position.
    pub fn parts(&self) -> &[ScopePart] {
        &self.parts
    }

    /// True for every position of every sequence.
    pub fn is_all(&self) -> bool {
        self.parts.is_empty()
    }

    /// A part tells thoughts from answers.
    pub fn reads_thoughts(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, ScopePart::Think | ScopePart::NotThink))
    }

    /// The scope with the marks of a chat template, for scopes that read thoughts.
    #[must_use]
    pub fn with_thoughts(mut self, thoughts: Arc<ThoughtTokens>) -> Self {
        self.thoughts = self.reads_thoughts().then_some(thoughts);
        self
    }

    /// The marks of thoughts, where they are known and a part asks for them.
    pub fn thoughts(&self) -> Option<&ThoughtTokens> {
        self.thoughts.as_deref()
    }

    /// Thoughts have to be told from answers, and no chat template has said how.
    pub fn lacks_thoughts(&self) -> bool {
        self.reads_thoughts() && self.thoughts.is_none()
    }

    /// The positions in words.
    pub fn words(&self) -> String {
        if self.is_all() {
            return "every position".into();
        }
        let part = |part: &ScopePart| match part {
            ScopePart::Prompt => "the prompt without its last token".to_owned(),
            ScopePart::Answer => "the tokens that an answer token is predicted from".to_owned(),
            ScopePart::First(n) => format!("the first {n} of the prompt"),
            ScopePart::Last(n) => format!("the last {n} of the prompt"),
            ScopePart::After(n) => format!("the answer behind its first {n}"),
            ScopePart::Think => "the answer's thought".to_owned(),
            ScopePart::NotThink => "the answer without its thought".to_owned(),
        };
        self.parts.iter().map(part).collect::<Vec<_>>().join(", and ")
    }

    /// True if the position is in the scope.
    pub fn covers(&self, place: Place) -> bool {
        self.is_all() || self.parts.iter().any(|part| part.covers(place))
    }
}

impl FromStr for ScopePart {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{s:?} is no scope: use all, prompt, answer, think, not-think (the answer's thought, and the rest of the \
                 answer), first:N, last:N (tokens of the prompt) or after:N (tokens of the answer), N at least 1, joined by + \
                 for a union"
            )
        };
        let count = |n: &str| n.parse::<usize>().ok().filter(|&n| n > 0 && n <= 1 << 30).ok_or_else(bad);
        match s.split_once(':') {
            None if s == "prompt" => Ok(Self::Prompt),
            None if s == "answer" => Ok(Self::Answer),
            None if s == "think" => Ok(Self::Think),
            None if s == "not-think" => Ok(Self::NotThink),
            Some(("first", n)) => Ok(Self::First(count(n)?)),
            Some(("last", n)) => Ok(Self::Last(count(n)?)),
            Some(("after", n)) => Ok(Self::After(count(n)?)),
            _ => Err(bad()),
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "all" {
            return Ok(Self::ALL);
        }
        Ok(Self::of(s.split('+').map(str::parse).collect::<Result<Vec<_>, _>>()?))
    }
}

impl fmt::Display for ScopePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt => f.write_str("prompt"),
            Self::Answer => f.write_str("answer"),
            Self::First(n) => write!(f, "first:{n}"),
            Self::Last(n) => write!(f, "last:{n}"),
            Self::After(n) => write!(f, "after:{n}"),
            Self::Think => f.write_str("think"),
            Self::NotThink => f.write_str("not-think"),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("all");
        }
        let parts: Vec<String> = self.parts.iter().map(ToString::to_string).collect();
        f.write_str(&parts.join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(scope: &str) -> Vec<usize> {
        let scope: Scope = scope.parse().unwrap();
        // A thought in the prompt, and one that the prompt's last token opens.
        let in_thought = |at| at != 2 && at < 5;
        (0..7).filter(|&at| scope.covers(Place { sequence: 0, at, n_prompt: 4, in_thought: in_thought(at) })).collect()
    }

    #[test]
    fn parts_of_a_prompt_of_four_and_an_answer_of_four() {
        assert_eq!(rows("all"), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!((rows("prompt"), rows("answer")), (vec![0, 1, 2], vec![3, 4, 5, 6]));
        assert_eq!((rows("first:2"), rows("first:9")), (vec![0, 1], vec![0, 1, 2, 3]));
        assert_eq!((rows("last:1"), rows("last:9")), (vec![3], vec![0, 1, 2, 3]));
        assert_eq!((rows("after:1"), rows("after:3")), (vec![4, 5, 6], vec![6]));
        assert_eq!(rows("first:1+after:2"), [0, 5, 6]);
        assert_eq!((rows("think"), rows("not-think")), (vec![3, 4], vec![5, 6]));
        assert_eq!((rows("think+not-think"), rows("prompt+not-think")), (vec![3, 4, 5, 6], vec![0, 1, 2, 5, 6]));
    }

    #[test]
    fn names_come_back() {
        for name in ["all", "prompt", "answer", "first:3", "last:1+after:2", "think", "prompt+not-think"] {
            assert_eq!(name.parse::<Scope>().unwrap().to_string(), name);
        }
        for bad in ["", "prompt+", "all+prompt", "first", "first:0", "first:-1", "after:x", "answers", "think:1"] {
            assert!(bad.parse::<Scope>().unwrap_err().contains("is no scope"), "{bad}");
        }
        let lacking = |name: &str| name.parse::<Scope>().unwrap().lacks_thoughts();
        assert_eq!([lacking("answer"), lacking("think"), lacking("prompt+not-think")], [false, true, true]);
    }
}
