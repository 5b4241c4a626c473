//! The question of another item for each item: what is left of a result where the question has nothing to do with the
//! answers.

use crate::data::permutation;
use crate::eval::items::Benchmark;
use std::collections::HashMap;

/// For each item of `benchmark`, the place of another item with another question, drawn by `seed`: a permutation within each
/// group wherever no question makes up more than half of the group. `None` where all items have the same question.
pub fn swapped_places(benchmark: &Benchmark, seed: u64) -> Option<Vec<usize>> {
    let items = &benchmark.items;
    let keys: Vec<String> = items.iter().map(|item| key(&item.question)).collect();
    let mut places = vec![0; items.len()];
    for group in 0..benchmark.groups.len() {
        let members: Vec<usize> = (0..items.len()).filter(|&i| items[i].group == group).collect();
        let drawn = permutation(members.len(), seed.wrapping_add(group as u64));
        // In a random order of the questions, those with the same question side by side.
        let mut first: HashMap<&str, usize> = HashMap::new();
        let mut order: Vec<(usize, usize)> = Vec::new(); // first place of the question, item
        for (rank, &m) in drawn.iter().enumerate() {
            let at = *first.entry(&keys[members[m]]).or_insert(rank);
            order.push((at, members[m]));
        }
        order.sort_by_key(|(at, _)| *at);
        let mut counts: HashMap<usize, usize> = HashMap::new();
        order.iter().for_each(|(at, _)| *counts.entry(*at).or_default() += 1);
        let most = counts.values().copied().max().unwrap_or(0);
        if 2 * most <= order.len() {
            // A rotation by the size of the largest block leaves no item in its own block.
            for (i, (_, item)) in order.iter().enumerate() {
                places[*item] = order[(i + most) % order.len()].1;
            }
            continue;
        }
        for (i, (_, item)) in order.iter().enumerate() {
            let others =
                |from: &[usize]| -> Vec<usize> { from.iter().copied().filter(|&j| keys[j] != keys[*item]).collect() };
            let mut candidates = others(&members);
            if candidates.is_empty() {
                candidates = others(&(0..items.len()).collect::<Vec<_>>());
            }
            places[*item] = *candidates.get(i % candidates.len().max(1))?;
        }
    }
    Some(places)
}

/// A question without case and spacing: what two items must not have in common.
fn key(question: &str) -> String {
    question.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::items::{Group, Item};
    use crate::eval::results::Answer;

    fn benchmark(questions: &[(&str, usize)]) -> Benchmark {
        let item = |(index, (question, group)): (usize, &(&str, usize))| Item {
            index,
            question: (*question).into(),
            category: None,
            answers: vec![Answer::new("a", true), Answer::new("b", false)],
            group: *group,
        };
        let groups = questions.iter().map(|q| q.1 + 1).max().unwrap_or(1);
        Benchmark { items: questions.iter().enumerate().map(item).collect(), groups: vec![Group::default(); groups] }
    }

    #[test]
    fn no_item_keeps_its_question() {
        let names: Vec<String> = (0..40).map(|i| format!("Q{}?", i.min(30))).collect();
        let b = benchmark(&names.iter().map(|n| (n.as_str(), 0)).collect::<Vec<_>>());
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let places = swapped_places(&b, seed).unwrap();
            assert!(places.iter().enumerate().all(|(i, &p)| names[i] != names[p]), "{places:?}");
            let mut sorted = places.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..40).collect::<Vec<_>>(), "each question is shown once");
            assert_eq!(swapped_places(&b, seed).unwrap(), places);
            seen.insert(places);
        }
        assert_eq!(seen.len(), 50, "each seed draws another one");
    }

    #[test]
    fn groups_stay_among_themselves_where_they_can() {
        let b = benchmark(&[("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 1), ("only", 2)]);
        let places = swapped_places(&b, 3).unwrap();
        assert!(places[..5].iter().zip(&b.items).all(|(&p, item)| b.items[p].group == item.group), "{places:?}");
        assert_ne!(places[5], 5);
    }

    #[test]
    fn a_question_of_more_than_half_of_the_items() {
        let b = benchmark(&[("Same  one?", 0), ("same one?", 0), ("SAME ONE?", 0), ("other", 0)]);
        let places = swapped_places(&b, 0).unwrap();
        assert_eq!(&places[..3], &[3, 3, 3]);
        assert!(places[3] < 3);
        assert_eq!(swapped_places(&benchmark(&[("x", 0), ("X ", 0)]), 0), None);
    }
}
