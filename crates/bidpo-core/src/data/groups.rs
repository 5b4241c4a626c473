//! Groups of pairs that a split must not cut: a vector that was trained on one of them has seen the others.

use super::inspect::PairText;
use super::similar::{NEAR, UnionFind, join_near, words};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::str::FromStr;

/// The pairs that stay in one part of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitBy {
    /// Pairs with near-duplicate prompts, or with answers of one skeleton (equal but for names, numbers and one word).
    #[default]
    Groups,
    /// Pairs with near-duplicate prompts.
    Prompts,
    /// Each pair stands for itself.
    Pairs,
}

impl FromStr for SplitBy {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Groups, Self::Prompts, Self::Pairs]
            .into_iter()
            .find(|by| by.name() == s)
            .ok_or_else(|| format!("invalid way to split {s:?}: expected groups, prompts or pairs"))
    }
}

impl fmt::Display for SplitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl SplitBy {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Groups => "groups",
            Self::Prompts => "prompts",
            Self::Pairs => "pairs",
        }
    }

    /// What stays in one part, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Groups => "pairs with near-duplicate prompts or answers of one skeleton stay in one part",
            Self::Prompts => "pairs with near-duplicate prompts stay in one part; answers may repeat",
            Self::Pairs => "each pair by itself; near-duplicates may be in several parts",
        }
    }
}

/// Pairs without repeats, in groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairGroups {
    /// Indices of the pairs of each group, ascending, by their first pairs. Repeats are in none.
    pub groups: Vec<Vec<usize>>,
    /// Pairs that repeat an earlier one word for word: (earlier, later).
    pub repeated: Vec<(usize, usize)>,
    /// Pairs that choose what an earlier pair with the same prompt rejects, and reject what it chooses: (earlier, later).
    pub swapped: Vec<(usize, usize)>,
    /// Answers that so many pairs share that they do not make a group: the first pair with the answer, and the number of pairs.
    pub common: Vec<(usize, usize)>,
}

impl PairGroups {
    /// Groups `pairs`. Pairs with the same prompt and swapped answers share a group whatever `by` is.
    pub fn new(pairs: &[PairText], by: SplitBy) -> Self {
        let Repeats { repeated, swapped } = Repeats::of(pairs);
        let mut is_repeat = vec![false; pairs.len()];
        repeated.iter().for_each(|&(_, later)| is_repeat[later] = true);
        let kept: Vec<usize> = (0..pairs.len()).filter(|&i| !is_repeat[i]).collect();
        let place: HashMap<usize, usize> = kept.iter().enumerate().map(|(at, &i)| (i, at)).collect();
        let mut union = UnionFind::new(kept.len());
        swapped.iter().for_each(|(i, j)| union.join(place[i], place[j]));
        let mut common = Vec::new();
        if by != SplitBy::Pairs {
            // An empty prompt repeats no question: such pairs are grouped by their answers only.
            let (at, prompts): (Vec<usize>, Vec<String>) = kept
                .iter()
                .enumerate()
                .filter(|(_, i)| !words(&pairs[**i].prompt).is_empty())
                .map(|(at, &i)| (at, pairs[i].prompt.clone()))
                .unzip();
            let mut asked = UnionFind::new(prompts.len());
            join_near(&prompts, NEAR, &mut asked);
            for group in asked.groups() {
                group[1..].iter().for_each(|&i| union.join(at[group[0]], at[i]));
            }
        }
        if by == SplitBy::Groups {
            for group in skeleton_groups(kept.iter().map(|&i| [&*pairs[i].chosen, &*pairs[i].rejected])) {
                if group.len() > most_of_one_skeleton(kept.len()) {
                    common.push((kept[group[0]], group.len()));
                } else {
                    group[1..].iter().for_each(|&i| union.join(group[0], i));
                }
            }
        }
        let groups = union.groups().into_iter().map(|g| g.into_iter().map(|at| kept[at]).collect()).collect();
        Self { groups, repeated, swapped, common }
    }

    /// Pairs of the largest group.
    pub fn largest(&self) -> usize {
        self.groups.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Pairs in all groups.
    pub fn n_pairs(&self) -> usize {
        self.groups.iter().map(Vec::len).sum()
    }

    /// For each of `n` pairs, the number of its group; `None` for a repeat.
    pub fn group_of(&self, n: usize) -> Vec<Option<usize>> {
        let mut of = vec![None; n];
        for (g, group) in self.groups.iter().enumerate() {
            group.iter().for_each(|&i| of[i] = Some(g));
        }
        of
    }
}

/// Pairs that may share a skeleton and still be one group: an answer that a larger part of a set shares (one refusal that
/// all pairs reject) is what the set is about, and grouping by it would leave nothing to hold out.
fn most_of_one_skeleton(n: usize) -> usize {
    (n / 10).max(10)
}

/// Exact repeats, and swapped repeats of pairs that are not repeats themselves: (earlier, later).
#[derive(Default)]
struct Repeats {
    repeated: Vec<(usize, usize)>,
    swapped: Vec<(usize, usize)>,
}

impl Repeats {
    fn of(pairs: &[PairText]) -> Self {
        let mut first: HashMap<[&str; 3], usize> = HashMap::new();
        let mut found = Self::default();
        for (i, p) in pairs.iter().enumerate() {
            let [prompt, chosen, rejected] = [p.prompt.trim(), p.chosen.trim(), p.rejected.trim()];
            match first.entry([prompt, chosen, rejected]) {
                Entry::Occupied(e) => found.repeated.push((*e.get(), i)),
                Entry::Vacant(e) => {
                    e.insert(i);
                    let other = first.get(&[prompt, rejected, chosen]).filter(|_| chosen != rejected);
                    found.swapped.extend(other.map(|&earlier| (earlier, i)));
                }
            }
        }
        found
    }
}

/// Words of an answer that must be equal, in the same places, for two answers to have one skeleton.
const FIXED: usize = 4;

/// Groups, of at least two, of items that have an answer of one skeleton. Two answers have one skeleton if they are the same
/// words in the same order, where every number counts as the same word, every name does (a capitalized word that does not
/// begin a sentence), and one more word may differ; and if at least four words are equal besides. So are "Very few books are still
/// banned in Spain." and "Very few books are still banned in California.", but not "Yes, it is." and "Yes, it does.".
fn skeleton_groups<'a>(answers: impl Iterator<Item = [&'a str; 2]>) -> Vec<Vec<usize>> {
    let mut ids: HashMap<String, u32> = HashMap::new();
    let mut first: HashMap<Vec<u32>, usize> = HashMap::new();
    let answers: Vec<[&str; 2]> = answers.collect();
    let mut union = UnionFind::new(answers.len());
    for (i, both) in answers.iter().enumerate() {
        for answer in both {
            let masked = masked_words(answer);
            let mut key: Vec<u32> = vec![WILDCARD];
            key.extend(masked.iter().map(|word| match word {
                Masked::Slot => SLOT,
                Masked::Word(w) => {
                    let next = ids.len() as u32 + SLOT + 1;
                    *ids.entry(w.clone()).or_insert(next)
                }
            }));
            let fixed = key.iter().filter(|&&k| k > SLOT).count();
            let mut meet = |key: Vec<u32>| {
                let earlier = *first.entry(key).or_insert(i);
                union.join(earlier, i);
            };
            // Answers that are the same but for a word meet under the key in which that word is masked.
            for at in (1..key.len()).filter(|&at| fixed > FIXED && key[at] > SLOT) {
                let mut wild = key.clone();
                wild[at] = WILDCARD;
                meet(wild);
            }
            if fixed >= FIXED {
                meet(key);
            }
        }
    }
    union.groups().into_iter().filter(|g| g.len() > 1).collect()
}

/// A word of a skeleton's key that may be any word.
const WILDCARD: u32 = 0;
/// A name or a number.
const SLOT: u32 = 1;

enum Masked {
    /// A name or a number.
    Slot,
    Word(String),
}

/// The words of an answer, names and numbers masked; neighbouring names are one.
fn masked_words(answer: &str) -> Vec<Masked> {
    let mut out: Vec<Masked> = Vec::new();
    let mut begins = true;
    let mut word = String::new();
    let mut add = |word: &mut String, begins: &mut bool| {
        if word.is_empty() {
            return;
        }
        let first = word.chars().next().unwrap_or(' ');
        let name = first.is_uppercase() && !*begins && word != "I" && !word.starts_with("I'");
        if name || first.is_numeric() {
            if !matches!(out.last(), Some(Masked::Slot)) {
                out.push(Masked::Slot);
            }
        } else {
            out.push(Masked::Word(word.to_lowercase()));
        }
        word.clear();
        *begins = false;
    };
    for c in answer.chars() {
        if c.is_alphanumeric() || c == '\'' {
            word.push(c);
        } else {
            add(&mut word, &mut begins);
            begins |= matches!(c, '.' | '!' | '?' | ':' | '\n');
        }
    }
    add(&mut word, &mut begins);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PreferenceSet;

    fn pair(prompt: &str, chosen: &str, rejected: &str) -> PairText {
        PairText { place: String::new(), prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() }
    }

    #[test]
    fn answers_of_one_skeleton_meet() {
        let same = |a: &str, b: &str| !skeleton_groups([[a, "x"], [b, "y"]].into_iter()).is_empty();
        assert!(same("Very few books are still banned in Spain.", "Very few books are still banned in North Dakota"));
        assert!(same("It was built in 1887 by three men.", "it was built in 2,004 by three men!"));
        assert!(same("The heaviest metal is osmium, they say.", "The heaviest metal is lead, they say."));
        assert!(same("I have no comment.", "I have no comment"));
        // Too short, two words differ, another order, another number of words.
        assert!(!same("Yes, it is.", "Yes, it is."));
        assert!(!same("I have no idea.", "I have no comment."));
        assert!(!same("The heaviest metal is osmium, they say.", "The lightest metal is lithium, they say."));
        assert!(!same("Men were there before the women came.", "Women were there before the men came."));
        assert!(!same("Nothing at all happens to you.", "Nothing at all ever happens to you."));
        // A sentence's first word is no name.
        assert!(!same("Paris is nice in spring.", "Rome gets hot in spring."));
    }

    #[test]
    fn pairs_meet_by_prompt_answer_or_contradiction() {
        let pairs = [
            pair("Can bats see well?", "Yes, they can.", "No, they are blind."),
            pair("Do bats see?", "They do.", "They do not."),
            pair("What is heavy?", "The heaviest metal is osmium, they say.", "Air."),
            pair("Name a metal", "Tin.", "The heaviest metal is lead, they say."),
            pair("Is glass a liquid?", "Solid.", "Liquid."),
            pair("Is glass a liquid?", "Liquid.", "Solid."),
            pair(" Is glass a liquid? ", "Solid.", "Liquid. "),
            pair("", "One thing.", "Two."),
            pair("", "Three.", "Four."),
        ];
        let g = PairGroups::new(&pairs, SplitBy::Groups);
        assert_eq!(g.groups, [vec![0, 1], vec![2, 3], vec![4, 5], vec![7], vec![8]]);
        assert_eq!((g.repeated.as_slice(), g.swapped.as_slice()), (&[(4, 6)][..], &[(4, 5)][..]));
        assert_eq!((g.largest(), g.n_pairs(), g.group_of(9)[6]), (2, 8, None));
        let by = |by| PairGroups::new(&pairs, by).groups.len();
        assert_eq!((by(SplitBy::Prompts), by(SplitBy::Pairs)), (6, 7));
    }

    #[test]
    fn an_answer_of_most_pairs_is_no_group() {
        let refusal = "I am sorry, but I cannot help with that.";
        let pairs: Vec<PairText> =
            (0..40).map(|i| pair(&format!("task{i} matter{i}"), &format!("Sure {i}"), refusal)).collect();
        let g = PairGroups::new(&pairs, SplitBy::Groups);
        assert_eq!((g.groups.len(), g.common), (40, vec![(0, 40)]));
        let few = PairGroups::new(&pairs[..9], SplitBy::Groups);
        assert_eq!((few.groups.len(), few.common.len()), (1, 0));
    }

    /// A vector of the built-in sets has the same training pairs as before there were groups.
    #[test]
    fn the_misconceptions_have_no_groups() {
        let set = PreferenceSet::builtin("misconceptions").unwrap();
        let texts: Vec<PairText> = set.pairs.iter().map(PairText::from).collect();
        let groups = PairGroups::new(&texts, SplitBy::Groups).groups;
        let of = |g: &Vec<usize>| g.iter().map(|&i| texts[i].prompt.clone()).collect::<Vec<_>>();
        let groups: Vec<_> = groups.iter().filter(|g| g.len() > 1).map(of).collect();
        assert_eq!(groups, Vec::<Vec<String>>::new());
    }
}
