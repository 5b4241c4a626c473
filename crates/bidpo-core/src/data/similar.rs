//! Texts that ask the same thing in other words.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{ControlFlow, Range};

/// Words that carry no content of a question.
const STOP: &str = " a an and any are as at be been by can could did do does for from had has have how i if in is it its me \
                    my of on or should that the their them there they this to was we were what when where which who why \
                    will with would you your happen happens really true people someone most ";

/// Similarity from which on two texts count as the same question: what `Do bats see?` and `Can a bat see?` reach.
pub const NEAR: f64 = 0.6;

pub use crate::text::words;

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

/// Near-duplicates among some texts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NearPairs {
    /// `(i, j, similarity)` with i before j, in ascending order. A text with the content words of an earlier one is listed
    /// with the first such text only.
    pub listed: Vec<(usize, usize, f64)>,
    /// There are more than [`NearPairs::MOST`]. The search ended there: n texts of one template have n (n - 1) / 2.
    pub more: bool,
}

impl NearPairs {
    /// Pairs that are searched for, at most.
    pub const MOST: usize = 100_000;
}

impl NearSink for NearPairs {
    fn needs(&mut self, _: usize, _: usize) -> bool {
        true
    }

    fn found(&mut self, i: usize, j: usize, similarity: f64) -> ControlFlow<()> {
        if self.listed.len() == Self::MOST {
            self.more = true;
            return ControlFlow::Break(());
        }
        self.listed.push((i, j, similarity));
        ControlFlow::Continue(())
    }
}

/// Texts with a similarity of at least `least` (above 0). Texts with the same words are pairs too, content or not.
pub fn near_pairs(texts: &[String], least: f64) -> NearPairs {
    let mut found = NearPairs::default();
    // A break is kept in `more`.
    let _ = Join::of(texts).near(least, &mut found);
    found.listed.sort_by_key(|p| (p.0, p.1));
    found
}

/// The nearest of `theirs` to each of `ours`, where it is at least `least` similar: (ours, theirs, similarity). Of equally
/// near ones the last. Texts without a content word ("Who are you?") are near those with the same words only, and a text
/// without a word is near none.
pub fn nearest(ours: &[String], theirs: &[String], least: f64) -> Vec<(usize, usize, f64)> {
    let all: Vec<String> = theirs.iter().chain(ours).cloned().collect();
    let join = Join::of(&all);
    let index = join.index(0..theirs.len(), least);
    let mut stamp = vec![usize::MAX; all.len()];
    let mut bare: HashMap<Vec<String>, usize> = HashMap::new();
    for (j, text) in theirs.iter().enumerate().filter(|(j, _)| join.sets[*j].is_empty()) {
        bare.entry(words(text)).or_insert(j);
    }
    bare.remove::<[String]>(&[]);
    let mut out = Vec::new();
    for (i, text) in ours.iter().enumerate() {
        let at = theirs.len() + i;
        if join.sets[at].is_empty() {
            out.extend(bare.get(&words(text)).map(|&j| (i, j, 1.0)));
            continue;
        }
        let mut best: Option<(usize, f64)> = None;
        for j in join.candidates(at, &index, least, &mut stamp) {
            let s = jaccard(&join.sets[at], &join.sets[j]);
            if s >= least && best.is_none_or(|(b, of_best)| s > of_best || (s == of_best && j > b)) {
                best = Some((j, s));
            }
        }
        out.extend(best.map(|(j, s)| (i, j, s)));
    }
    out
}

/// Texts as sets of content words, each word a number: the rarer the word, the lower.
struct Join {
    /// Content words of each text, rarest first.
    sets: Vec<Vec<u32>>,
    /// First text with the same words, where one is before it and it has no content word.
    bare_twins: Vec<(usize, usize)>,
}

/// What near pairs are collected for.
trait NearSink {
    /// False if it does not matter whether texts i and j are near.
    fn needs(&mut self, i: usize, j: usize) -> bool;

    /// A near pair, i before j.
    fn found(&mut self, i: usize, j: usize, similarity: f64) -> ControlFlow<()>;
}

/// Texts by the words of their prefixes.
type PrefixIndex = HashMap<u32, Vec<usize>>;

impl Join {
    fn of(texts: &[String]) -> Self {
        let contents: Vec<BTreeSet<String>> = texts.iter().map(|t| content(t)).collect();
        let mut frequency: BTreeMap<&str, usize> = BTreeMap::new();
        contents.iter().flatten().for_each(|w| *frequency.entry(w).or_default() += 1);
        let mut by_rarity: Vec<(usize, &str)> = frequency.into_iter().map(|(w, n)| (n, w)).collect();
        by_rarity.sort_unstable();
        let rank: HashMap<&str, u32> = by_rarity.iter().zip(0..).map(|(&(_, w), i)| (w, i)).collect();
        let set = |content: &BTreeSet<String>| {
            let mut set: Vec<u32> = content.iter().map(|w| rank[w.as_str()]).collect();
            set.sort_unstable();
            set
        };
        let sets: Vec<Vec<u32>> = contents.iter().map(set).collect();
        let mut firsts: HashMap<Vec<String>, usize> = HashMap::new();
        let mut bare_twins = Vec::new();
        for i in (0..texts.len()).filter(|&i| sets[i].is_empty()) {
            match firsts.entry(words(&texts[i])) {
                Entry::Occupied(e) => bare_twins.push((*e.get(), i)),
                Entry::Vacant(e) => {
                    e.insert(i);
                }
            }
        }
        Self { sets, bare_twins }
    }

    /// Words of a set by which every set with a similarity of at least `least` can be found: two such sets share at least
    /// `least` of the words of each, so they share one of the rarest n - ceil(least n) + 1 (Chaudhuri, Ganti and Kaushik
    /// 2006, ICDE; Bayardo, Ma and Srikant 2007, WWW).
    fn prefix(&self, i: usize, least: f64) -> &[u32] {
        let set = &self.sets[i];
        // Rounding must not shorten a prefix.
        let shared = (least * set.len() as f64 - 1e-9).ceil().max(1.0) as usize;
        &set[..(set.len() + 1).saturating_sub(shared).min(set.len())]
    }

    fn index(&self, range: Range<usize>, least: f64) -> PrefixIndex {
        let mut index = PrefixIndex::new();
        for i in range {
            self.prefix(i, least).iter().for_each(|&w| index.entry(w).or_default().push(i));
        }
        index
    }

    /// Each indexed set that shares a prefix word with set `i` and has a size that allows the similarity, once. `stamp` has a
    /// number for each set that no set stands for.
    fn candidates<'a>(
        &'a self,
        i: usize,
        index: &'a PrefixIndex,
        least: f64,
        stamp: &'a mut [usize],
    ) -> impl Iterator<Item = usize> + 'a {
        let n = self.sets[i].len() as f64;
        let indexed = self.prefix(i, least).iter().filter_map(|w| index.get(w)).flatten().copied();
        indexed.filter(move |&j| {
            let m = self.sets[j].len() as f64;
            stamp[j] != i && n.min(m) >= least * n.max(m) - 1e-9 && {
                stamp[j] = i;
                true
            }
        })
    }

    /// Gives `sink` each near pair that it needs, until it breaks.
    fn near(&self, least: f64, sink: &mut dyn NearSink) -> ControlFlow<()> {
        for &(i, j) in &self.bare_twins {
            sink.found(i, j, 1.0)?;
        }
        // Equal sets are compared with others once.
        let mut firsts: HashMap<&[u32], usize> = HashMap::new();
        let mut index = PrefixIndex::new();
        let mut stamp = vec![usize::MAX; self.sets.len()];
        for (i, set) in self.sets.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
            match firsts.entry(set) {
                Entry::Occupied(e) => {
                    sink.found(*e.get(), i, 1.0)?;
                    continue;
                }
                Entry::Vacant(e) => {
                    e.insert(i);
                }
            }
            for j in self.candidates(i, &index, least, &mut stamp) {
                if sink.needs(j, i) {
                    let s = jaccard(set, &self.sets[j]);
                    if s >= least {
                        sink.found(j, i, s)?;
                    }
                }
            }
            self.prefix(i, least).iter().for_each(|&w| index.entry(w).or_default().push(i));
        }
        ControlFlow::Continue(())
    }
}

/// Jaccard similarity of two ascending lists.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0usize);
    while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
        shared += usize::from(x == y);
        (i, j) = (i + usize::from(x <= y), j + usize::from(y <= x));
    }
    shared as f64 / (a.len() + b.len() - shared).max(1) as f64
}

/// Joins items into groups.
#[derive(Debug, Clone)]
pub(super) struct UnionFind {
    parent: Vec<usize>,
}

impl UnionFind {
    pub(super) fn new(n: usize) -> Self {
        Self { parent: (0..n).collect() }
    }

    pub(super) fn root(&mut self, mut i: usize) -> usize {
        while self.parent[i] != i {
            self.parent[i] = self.parent[self.parent[i]];
            i = self.parent[i];
        }
        i
    }

    pub(super) fn join(&mut self, i: usize, j: usize) {
        let (a, b) = (self.root(i), self.root(j));
        // The smaller number is the root: groups are named by their first item.
        self.parent[a.max(b)] = a.min(b);
    }

    /// The groups, ascending by their first items.
    pub(super) fn groups(mut self) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for i in 0..self.parent.len() {
            groups.entry(self.root(i)).or_default().push(i);
        }
        groups.into_values().collect()
    }
}

impl NearSink for UnionFind {
    /// Texts of one group are not compared: it is known that they meet.
    fn needs(&mut self, i: usize, j: usize) -> bool {
        self.root(i) != self.root(j)
    }

    fn found(&mut self, i: usize, j: usize, _: f64) -> ControlFlow<()> {
        self.join(i, j);
        ControlFlow::Continue(())
    }
}

/// Joins near-duplicate texts.
pub(super) fn join_near(texts: &[String], least: f64, groups: &mut UnionFind) {
    // It never breaks.
    let _ = Join::of(texts).near(least, groups);
}

/// Groups of texts such that no two groups hold near-duplicates of each other: the connected components of
/// [`near_pairs`]. Ascending, by their first texts.
pub fn groups(texts: &[String], least: f64) -> Vec<Vec<usize>> {
    let mut groups = UnionFind::new(texts.len());
    join_near(texts, least, &mut groups);
    groups.groups()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

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
        assert_eq!(near_pairs(&t, NEAR).listed.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(0, 2), (3, 4)]);
        assert_eq!(groups(&t, NEAR), [vec![0, 2], vec![1], vec![3, 4], vec![5]]);
    }

    #[test]
    fn texts_of_one_template_are_counted_up_to_a_limit_and_grouped_whole() {
        let t: Vec<String> = (0..1000).map(|i| format!("Please write a short poem about topic{i}")).collect();
        let near = near_pairs(&t, NEAR);
        assert!(near.more && near.listed.len() == NearPairs::MOST);
        assert_eq!(groups(&t, NEAR), [(0..1000).collect::<Vec<_>>()]);
        assert!(!near_pairs(&t[..400], NEAR).more);
    }

    #[test]
    fn groups_are_chains() {
        // a b - b c - c d: each near the next, the first far from the last.
        let t = texts(&["alpha beta gamma", "beta gamma delta", "gamma delta omega"]);
        assert!(similarity(&content(&t[0]), &content(&t[2])) < 0.5);
        assert_eq!(groups(&t, 0.5), [vec![0, 1, 2]]);
    }

    /// The prefix filter loses no pair: the same as comparing each with each, on texts of few words, many of them alike.
    #[test]
    fn the_join_equals_comparing_all() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for round in 0..60 {
            let n = 40;
            let vocabulary = [6, 12, 40][round % 3];
            let texts: Vec<String> = (0..n)
                .map(|_| {
                    let n_words = rng.random_range(0..9);
                    (0..n_words).map(|_| format!("word{} ", rng.random_range(0..vocabulary))).collect()
                })
                .collect();
            let sets: Vec<BTreeSet<String>> = texts.iter().map(|t| content(t)).collect();
            for least in [0.3, 0.5, NEAR, 0.75, 1.0] {
                let mut expected = UnionFind::new(n);
                let mut pairs = BTreeSet::new();
                for i in 0..n {
                    for j in i + 1..n {
                        if sets[i] == sets[j] || similarity(&sets[i], &sets[j]) >= least {
                            expected.join(i, j);
                            pairs.insert((i, j));
                        }
                    }
                }
                let expected = expected.groups();
                assert_eq!(groups(&texts, least), expected, "{texts:?}");
                // Repeats of a set are listed with its first text only; each pair that is listed is one.
                let near = near_pairs(&texts, least);
                assert!(near.listed.iter().all(|p| pairs.contains(&(p.0, p.1))) && !near.more);
                let (ours, theirs) = texts.split_at(n / 2);
                for (i, own) in sets[..n / 2].iter().enumerate().filter(|(_, own)| !own.is_empty()) {
                    let best = sets[n / 2..].iter().map(|s| similarity(own, s)).enumerate();
                    let best = best.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|b| b.1 >= least);
                    let found = nearest(ours, theirs, least).into_iter().find(|f| f.0 == i).map(|f| (f.1, f.2));
                    assert_eq!(found, best, "{:?}", ours[i]);
                }
            }
        }
    }
}
