//! A grammar's rules, written out: characters and references only.

use std::collections::HashMap;

/// A number of a rule.
pub(super) type RuleId = u32;

/// The last character of Unicode.
const LAST: u32 = 0x10_FFFF;

/// Characters, as ranges with both ends, in order and apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CharSet {
    ranges: Vec<(u32, u32)>,
    /// The same for ASCII, one bit a character.
    ascii: u128,
}

impl CharSet {
    /// The characters of `ranges`, or all others.
    pub(super) fn new(mut ranges: Vec<(u32, u32)>, negated: bool) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u32, u32)> = Vec::new();
        for (low, high) in ranges {
            match joined.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => joined.push((low, high)),
            }
        }
        if negated {
            let mut others = Vec::new();
            let mut from = 0;
            for (low, high) in joined {
                if from < low {
                    others.push((from, low - 1));
                }
                from = high.saturating_add(1);
            }
            if from <= LAST {
                others.push((from, LAST));
            }
            joined = others;
        }
        let mut ascii = 0;
        for c in joined.iter().flat_map(|&(low, high)| low.min(128)..high.saturating_add(1).min(128)) {
            ascii |= 1 << c;
        }
        Self { ranges: joined, ascii }
    }

    pub(super) fn has(&self, c: u32) -> bool {
        match c {
            0..128 => self.ascii >> c & 1 == 1,
            _ => self.has_within(c, c),
        }
    }

    /// True if it holds a character from `low` to `high`.
    pub(super) fn has_within(&self, low: u32, high: u32) -> bool {
        let at = self.ranges.partition_point(|r| r.1 < low);
        self.ranges.get(at).is_some_and(|r| r.0 <= high)
    }

    /// Its characters of ASCII, one bit each, and whether it has others.
    pub(super) fn summary(&self) -> (u128, bool) {
        (self.ascii, self.ranges.last().is_some_and(|r| r.1 > 127))
    }

    /// Its first character.
    pub(super) fn first(&self) -> Option<u32> {
        self.ranges.first().map(|r| r.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// One element of an alternative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// One character of a set, by its number.
    Char(u32),
    /// What a rule stands for.
    Rule(RuleId),
    /// The alternative ends.
    End,
}

/// Rules being collected.
#[derive(Debug, Default)]
pub(super) struct Builder {
    names: HashMap<String, RuleId>,
    /// The alternatives of each rule; `None` for one that was only named so far.
    rules: Vec<Option<Vec<Vec<Element>>>>,
    sets: Vec<CharSet>,
    known: HashMap<CharSet, u32>,
}

impl Builder {
    /// The number of a named rule, defined or not.
    pub(super) fn named(&mut self, name: &str) -> RuleId {
        if let Some(&id) = self.names.get(name) {
            return id;
        }
        let id = self.unnamed();
        self.names.insert(name.to_owned(), id);
        id
    }

    /// A new rule without a name.
    pub(super) fn unnamed(&mut self) -> RuleId {
        self.rules.push(None);
        (self.rules.len() - 1) as RuleId
    }

    /// Gives a rule its alternatives, in place of those that it has.
    pub(super) fn define(&mut self, rule: RuleId, alternatives: Vec<Vec<Element>>) {
        if let Some(place) = self.rules.get_mut(rule as usize) {
            *place = Some(alternatives);
        }
    }

    /// The element of a set of characters.
    pub(super) fn set(&mut self, set: CharSet) -> Element {
        let next = self.sets.len() as u32;
        let id = *self.known.entry(set).or_insert_with_key(|set| {
            self.sets.push(set.clone());
            next
        });
        Element::Char(id)
    }

    /// The rules, if all that are named are defined; else the name of one that is not.
    pub(super) fn finish(mut self) -> Result<Rules, String> {
        let root = self.named("root");
        let mut undefined: Vec<&String> =
            self.names.iter().filter(|&(_, &id)| self.rules[id as usize].is_none()).map(|(name, _)| name).collect();
        undefined.sort();
        if let Some(&name) = undefined.iter().find(|n| n.as_str() == "root").or(undefined.first()) {
            return Err(name.clone());
        }
        let (mut elements, mut starts) = (Vec::new(), Vec::new());
        for alternatives in self.rules.into_iter().map(Option::unwrap_or_default) {
            let mut of_rule = Vec::with_capacity(alternatives.len());
            for alternative in alternatives {
                of_rule.push(elements.len() as u32);
                elements.extend(alternative);
                elements.push(Element::End);
            }
            starts.push(of_rule);
        }
        Ok(Rules { elements, starts, sets: self.sets, root })
    }
}

/// Rules of a grammar.
#[derive(Debug)]
pub(super) struct Rules {
    /// The alternatives of all rules one behind another, each with its end.
    elements: Vec<Element>,
    /// Where the alternatives of each rule begin.
    starts: Vec<Vec<u32>>,
    sets: Vec<CharSet>,
    root: RuleId,
}

impl Rules {
    pub(super) fn root(&self) -> RuleId {
        self.root
    }

    pub(super) fn element(&self, at: u32) -> Element {
        self.elements[at as usize]
    }

    pub(super) fn starts(&self, rule: RuleId) -> &[u32] {
        &self.starts[rule as usize]
    }

    pub(super) fn set(&self, id: u32) -> &CharSet {
        &self.sets[id as usize]
    }

    fn alternative(&self, start: u32) -> &[Element] {
        let all = &self.elements[start as usize..];
        let n = all.iter().position(|e| *e == Element::End).unwrap_or(all.len());
        &all[..n]
    }

    /// True for each rule that may stand for the empty text.
    fn may_be_empty(&self) -> Vec<bool> {
        let mut empty = vec![false; self.starts.len()];
        // Each alternative without characters: its rule, and how many of its references are not known to be empty.
        let mut open: Vec<(RuleId, usize)> = Vec::new();
        let mut used_in: Vec<Vec<usize>> = vec![Vec::new(); self.starts.len()];
        let mut found: Vec<RuleId> = Vec::new();
        for (rule, starts) in self.starts.iter().enumerate() {
            for elements in starts.iter().map(|&start| self.alternative(start)) {
                if elements.iter().any(|e| matches!(e, Element::Char(_))) {
                    continue;
                }
                if elements.is_empty() {
                    found.push(rule as RuleId);
                }
                for element in elements {
                    if let Element::Rule(r) = element {
                        used_in[*r as usize].push(open.len());
                    }
                }
                open.push((rule as RuleId, elements.len()));
            }
        }
        while let Some(rule) = found.pop() {
            if std::mem::replace(&mut empty[rule as usize], true) {
                continue;
            }
            for &alternative in &used_in[rule as usize] {
                let (owner, left) = &mut open[alternative];
                *left -= 1;
                if *left == 0 {
                    found.push(*owner);
                }
            }
        }
        empty
    }

    /// True if a rule may begin with itself: there is no end to what may come next then. A rule whose last element is itself is
    /// no such rule, whatever stands before it.
    pub(super) fn are_left_recursive(&self) -> bool {
        let empty = self.may_be_empty();
        let mut begins_with: Vec<Vec<RuleId>> = vec![Vec::new(); self.starts.len()];
        for (rule, starts) in self.starts.iter().enumerate() {
            for elements in starts.iter().map(|&start| self.alternative(start)) {
                for (i, element) in elements.iter().enumerate() {
                    let Element::Rule(first) = *element else { break };
                    if first as usize != rule || i + 1 < elements.len() {
                        begins_with[rule].push(first);
                    }
                    if !empty[first as usize] {
                        break;
                    }
                }
            }
        }
        // Depth first, without calls: chains of rules may be long.
        let (mut open, mut done) = (vec![false; begins_with.len()], vec![false; begins_with.len()]);
        for root in 0..begins_with.len() {
            if done[root] {
                continue;
            }
            let mut path = vec![(root, 0)];
            open[root] = true;
            while let Some((rule, next)) = path.last_mut() {
                let Some(&first) = begins_with[*rule].get(*next) else {
                    (open[*rule], done[*rule]) = (false, true);
                    path.pop();
                    continue;
                };
                *next += 1;
                let first = first as usize;
                if open[first] {
                    return true;
                }
                if !done[first] {
                    open[first] = true;
                    path.push((first, 0));
                }
            }
        }
        false
    }
}
