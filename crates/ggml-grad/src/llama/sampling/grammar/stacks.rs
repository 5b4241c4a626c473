//! What may follow: the stacks of rules that are open, of which a grammar at some point of a text has several.
//!
//! Stacks that share what is below them share it in memory, and equal stacks are one: an ambiguous grammar, which reaches the
//! same stack in many ways, costs what its different stacks cost. (llama.cpp's own sampler follows every way, and needs
//! exponential time where there are many.)

use super::rules::{Element, Rules};
use std::collections::HashMap;

/// The number of a stack.
pub(super) type StackId = u32;

/// The stack without elements: the text may end.
pub(super) const DONE: StackId = 0;

/// The most stacks, for one token of the vocabulary after another as for an answer's text.
const MAX_NODES: usize = 400_000;

/// The most stacks that a text may lead to.
pub(super) const MAX_WAYS: usize = 20_000;

/// The most steps for one token of an answer: about a fifth of a second.
const MAX_WORK: usize = 25_000_000;

/// The most references from rules to their alternatives.
const MAX_CHILDREN: usize = 4_000_000;

/// Too much for the limits above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// The element next, and the stack below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    at: u32,
    below: StackId,
}

/// What a stack leads to.
#[derive(Debug, Clone, Copy)]
enum Lead {
    /// Not looked at.
    Unknown,
    /// A character of a set, then a stack.
    Char { set: u32, then: StackId },
    /// The stacks of a rule's alternatives: a range of [`Stacks::children`].
    Rule { from: u32, to: u32 },
}

/// All stacks met.
#[derive(Debug, Clone)]
pub(super) struct Stacks {
    nodes: Vec<Node>,
    leads: Vec<Lead>,
    children: Vec<StackId>,
    ids: HashMap<Node, StackId, Mix>,
    /// The search that met each stack last, of those that `search` counts.
    met: Vec<u32>,
    search: u32,
    todo: Vec<StackId>,
    work: usize,
}

impl Stacks {
    /// The stacks that a grammar begins with, added to `out`.
    pub(super) fn start(rules: &Rules, out: &mut Vec<StackId>) -> Result<Self, TooMany> {
        let mut all = Self::empty();
        all.new_search();
        for &start in rules.starts(rules.root()) {
            let id = all.id(rules, start, DONE)?;
            all.todo.push(id);
        }
        all.open(rules, out)?;
        Ok(all)
    }

    fn empty() -> Self {
        // The stack without elements has a number, so that it has a node.
        Self {
            nodes: vec![Node { at: u32::MAX, below: DONE }],
            leads: vec![Lead::Unknown],
            children: Vec::new(),
            ids: HashMap::default(),
            met: vec![0],
            search: 0,
            todo: Vec::new(),
            work: 0,
        }
    }

    /// Begins the count of steps anew.
    pub(super) fn new_token(&mut self) {
        self.work = 0;
    }

    /// Steps since [`Stacks::new_token`].
    pub(super) fn work(&self) -> usize {
        self.work
    }

    /// The stack with the elements from `at` on upon `below`.
    fn id(&mut self, rules: &Rules, at: u32, below: StackId) -> Result<StackId, TooMany> {
        if rules.element(at) == Element::End {
            return Ok(below);
        }
        let node = Node { at, below };
        if let Some(&id) = self.ids.get(&node) {
            return Ok(id);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(TooMany);
        }
        let id = self.nodes.len() as StackId;
        self.ids.insert(node, id);
        self.nodes.push(node);
        self.leads.push(Lead::Unknown);
        self.met.push(0);
        Ok(id)
    }

    fn lead(&mut self, rules: &Rules, id: StackId) -> Result<Lead, TooMany> {
        let known = self.leads[id as usize];
        if !matches!(known, Lead::Unknown) || id == DONE {
            return Ok(known);
        }
        let Node { at, below } = self.nodes[id as usize];
        let then = self.id(rules, at + 1, below)?;
        let lead = match rules.element(at) {
            Element::Char(set) => Lead::Char { set, then },
            Element::Rule(rule) => {
                let from = self.children.len() as u32;
                if self.children.len() + rules.starts(rule).len() > MAX_CHILDREN {
                    return Err(TooMany);
                }
                for &start in rules.starts(rule) {
                    let child = self.id(rules, start, then)?;
                    self.children.push(child);
                }
                Lead::Rule { from, to: self.children.len() as u32 }
            }
            Element::End => Lead::Unknown,
        };
        self.leads[id as usize] = lead;
        Ok(lead)
    }

    fn new_search(&mut self) {
        self.search += 1;
        self.todo.clear();
    }

    /// Opens the rules of the stacks to do, until each begins with a character or is done.
    fn open(&mut self, rules: &Rules, out: &mut Vec<StackId>) -> Result<(), TooMany> {
        let before = out.len();
        while let Some(id) = self.todo.pop() {
            if std::mem::replace(&mut self.met[id as usize], self.search) == self.search {
                continue;
            }
            self.work += 1;
            match self.lead(rules, id)? {
                Lead::Rule { from, to } => {
                    self.work += (to - from) as usize;
                    self.todo.extend_from_slice(&self.children[from as usize..to as usize]);
                }
                Lead::Char { .. } | Lead::Unknown => out.push(id),
            }
        }
        if out.len() - before > MAX_WAYS || self.work > MAX_WORK { Err(TooMany) } else { Ok(()) }
    }

    /// Adds to `set` the stacks that those of a range of it lead to by the character `c`.
    pub(super) fn step(
        &mut self,
        rules: &Rules,
        set: &mut Vec<StackId>,
        range: std::ops::Range<usize>,
        c: u32,
    ) -> Result<(), TooMany> {
        self.new_search();
        self.work += range.len();
        for i in range {
            let id = set[i];
            if let Lead::Char { set: chars, then } = self.lead(rules, id)?
                && rules.set(chars).has(c)
            {
                self.todo.push(then);
            }
        }
        self.open(rules, set)
    }

    /// The characters that may come next: those of ASCII, one bit each, and whether there may be others.
    pub(super) fn next_chars(&mut self, rules: &Rules, set: &[StackId]) -> Result<(u128, bool), TooMany> {
        self.work += set.len();
        let mut all = (0, false);
        for &id in set {
            if let Lead::Char { set, .. } = self.lead(rules, id)? {
                let (ascii, beyond) = rules.set(set).summary();
                all = (all.0 | ascii, all.1 | beyond);
            }
        }
        Ok(all)
    }

    /// True if the stack goes on with a character from `low` to `high`.
    pub(super) fn goes_on_within(&mut self, rules: &Rules, id: StackId, low: u32, high: u32) -> Result<bool, TooMany> {
        self.work += 1;
        Ok(match self.lead(rules, id)? {
            Lead::Char { set, .. } => rules.set(set).has_within(low, high),
            _ => false,
        })
    }

    /// A character that the stack may go on with.
    pub(super) fn example(&mut self, rules: &Rules, id: StackId) -> Result<Option<u32>, TooMany> {
        Ok(match self.lead(rules, id)? {
            Lead::Char { set, .. } => rules.set(set).first(),
            _ => None,
        })
    }

    /// Forgets all stacks but those of `set`, whose numbers change, where many are kept.
    pub(super) fn tidy(&mut self, rules: &Rules, set: &mut [StackId]) -> Result<(), TooMany> {
        if self.nodes.len() < MAX_NODES / 4 {
            return Ok(());
        }
        let mut kept = Self::empty();
        let mut new_id: HashMap<StackId, StackId, Mix> = HashMap::default();
        new_id.insert(DONE, DONE);
        for id in set {
            let mut chain = Vec::new();
            let mut at = *id;
            while !new_id.contains_key(&at) {
                chain.push(at);
                at = self.nodes[at as usize].below;
            }
            let mut below = new_id.get(&at).copied().unwrap_or(DONE);
            for old in chain.into_iter().rev() {
                below = kept.id(rules, self.nodes[old as usize].at, below)?;
                new_id.insert(old, below);
            }
            *id = below;
        }
        if kept.nodes.len() > MAX_NODES / 2 {
            return Err(TooMany);
        }
        *self = kept;
        Ok(())
    }
}

/// A fast hash of small numbers: the multiplier of FxHash. Whoever finds collisions finds slowness within the limits above only.
type Mix = std::hash::BuildHasherDefault<MixHasher>;

#[derive(Debug, Clone, Default)]
pub(super) struct MixHasher(u64);

impl std::hash::Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u32(b.into()));
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(n)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
