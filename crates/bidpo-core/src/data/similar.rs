//! Texts that ask the same thing in other words.

use std::collections::{BTreeMap, BTreeSet};

/// Words that carry no content of a question.
const STOP: &str = " a an and any are as at be been by can could did do does for from had has have how i if in is it its me \
                    my of on or should that the their them there they this to was we were what when where which who why \
                    will with would you your happen happens really true people someone most ";

/// Similarity from which on two texts count as the same question: what `Do bats see?` and `Can a bat see?` reach.
pub const NEAR: f64 = 0.6;

/// Words of a text: letters, digits and apostrophes, in lower case.
pub fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// Content words, roughly stemmed.
pub fn content(text: &str) -> BTreeSet<String> {
    let stem = |w: String| {
        let cut = ["ing", "ed", "es", "s"].iter().find_map(|e| w.strip_suffix(e).filter(|s| s.chars().count() >= 3));
        cut.map_or_else(|| w.clone(), str::to_owned).trim_end_matches('e').to_owned()
    };
    words(text).into_iter().filter(|w| !STOP.contains(&format!(" {w} "))).map(stem).collect()
}

/// Jaccard similarity of two sets of content words: shared over all; 0 for two empty sets.
pub fn similarity(a: &BTreeSet<String>, b: &BTreeSet<String>) -> f64 {
    let shared = a.intersection(b).count();
    shared as f64 / (a.len() + b.len() - shared).max(1) as f64
}

/// Pairs `(i, j)`, i before j, of texts with a similarity of at least `least` (above 0), and that similarity. Texts with
/// the same words are pairs too, content or not.
pub fn near_pairs(texts: &[String], least: f64) -> Vec<(usize, usize, f64)> {
    let sets: Vec<BTreeSet<String>> = texts.iter().map(|t| content(t)).collect();
    let mut by_word: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, set) in sets.iter().enumerate() {
        set.iter().for_each(|w| by_word.entry(w).or_default().push(i));
    }
    let mut pairs = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        let candidates: BTreeSet<usize> =
            set.iter().filter_map(|w| by_word.get(w.as_str())).flatten().copied().filter(|&j| j > i).collect();
        for j in candidates {
            let s = similarity(set, &sets[j]);
            if s >= least {
                pairs.push((i, j, s));
            }
        }
    }
    // Texts without a content word meet nowhere above.
    let mut same: BTreeMap<Vec<String>, usize> = BTreeMap::new();
    for i in (0..texts.len()).filter(|&i| sets[i].is_empty()) {
        if let Some(&first) = same.get(&words(&texts[i])) {
            pairs.push((first, i, 1.0));
        } else {
            same.insert(words(&texts[i]), i);
        }
    }
    pairs.sort_by_key(|p| (p.0, p.1));
    pairs
}

/// Groups of texts such that no two groups hold near-duplicates of each other: the connected components of
/// [`near_pairs`]. Ascending, by their first texts.
pub fn groups(texts: &[String], least: f64) -> Vec<Vec<usize>> {
    let mut parent: Vec<usize> = (0..texts.len()).collect();
    fn root(parent: &mut [usize], mut i: usize) -> usize {
        while parent[i] != i {
            parent[i] = parent[parent[i]];
            i = parent[i];
        }
        i
    }
    for (i, j, _) in near_pairs(texts, least) {
        let (a, b) = (root(&mut parent, i), root(&mut parent, j));
        // The smaller number is the root: groups are named by their first text.
        let (low, high) = (a.min(b), a.max(b));
        parent[high] = low;
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in 0..texts.len() {
        groups.entry(root(&mut parent, i)).or_default().push(i);
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn paraphrases_meet() {
        let t = texts(&[
            "What happens if you swallow watermelon seeds?",
            "Is the Moon a star?",
            "What happens to someone who swallows a watermelon seed?",
            "Who is it?",
            "Who is it?",
            "Is it who?",
        ]);
        assert!(similarity(&content(&t[0]), &content(&t[2])) >= NEAR);
        assert_eq!(near_pairs(&t, NEAR).iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(0, 2), (3, 4)]);
        assert_eq!(groups(&t, NEAR), [vec![0, 2], vec![1], vec![3, 4], vec![5]]);
    }

    #[test]
    fn groups_are_chains() {
        // a b - b c - c d: each near the next, the first far from the last.
        let t = texts(&["alpha beta gamma", "beta gamma delta", "gamma delta omega"]);
        assert!(similarity(&content(&t[0]), &content(&t[2])) < 0.5);
        assert_eq!(groups(&t, 0.5), [vec![0, 1, 2]]);
    }
}
