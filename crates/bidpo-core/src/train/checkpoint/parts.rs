//! Training, validation and test pairs of a run.

use crate::data::{PairGroups, Split, split, split_groups};
use crate::train::checkpoint::RecordedIdentity;
use crate::train::checkpoint::{Checkpoint, CheckpointError};
use std::path::Path;

/// Fractions of the pairs that are held out; `None` for a sixth.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeldOutFractions {
    /// Validation pairs.
    pub valid: Option<f64>,
    /// Test pairs.
    pub test: Option<f64>,
}

/// Below a dozen pairs a sixth is no measurement: all of them are training pairs unless the user says otherwise.
const LEAST_TO_SPLIT: usize = 12;

impl HeldOutFractions {
    /// Validation and test pairs of `n`.
    fn of(self, n: usize) -> Result<[usize; 2], PartsError> {
        let sixth = if n >= LEAST_TO_SPLIT { 1.0 / 6.0 } else { 0.0 };
        let part = |fraction: Option<f64>| (fraction.unwrap_or(sixth) * n as f64).round() as usize;
        let [valid, test] = [part(self.valid), part(self.test)];
        if valid + test >= n {
            return Err(PartsError::NothingLeft { valid, test, n });
        }
        Ok([valid, test])
    }
}

/// Parts that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// No pair is left to train on.
    #[error(
        "{valid} validation pairs (--val) and {test} test pairs (--test) of {n} leave no training pair: lower one of them"
    )]
    NothingLeft {
        /// Validation pairs asked for.
        valid: usize,
        /// Test pairs asked for.
        test: usize,
        /// All pairs, repeats left out.
        n: usize,
    },
    /// Groups are too large for a part that the user asked for.
    #[error(
        "{asked} {part} pairs ({flag}) cannot be held out: the {n} pairs form {groups} groups of near-duplicates, which are \
         not cut, and the largest has {largest} pairs. Give pairs with more different prompts and answers, or {flag} 0; \
         --split-by prompts ignores answers, and --split-by pairs cuts groups, so that held-out pairs may repeat training pairs"
    )]
    Groups {
        /// Name of the part.
        part: &'static str,
        /// The flag that asked for it.
        flag: &'static str,
        /// Pairs asked for.
        asked: usize,
        /// All pairs, repeats left out.
        n: usize,
        /// Groups.
        groups: usize,
        /// Pairs of the largest group.
        largest: usize,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// The parts of a run, as indices into the set's pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The parts.
    pub split: Split,
    /// Group of each test pair.
    pub test_groups: Vec<usize>,
    /// Why nothing is held out although a sixth would be by default.
    pub unheld: Option<UnheldParts>,
}

/// Parts that are empty because groups are not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnheldParts {
    /// Validation is empty.
    pub valid: bool,
    /// The test part is empty.
    pub test: bool,
    /// Groups.
    pub groups: usize,
    /// Pairs of the largest.
    pub largest: usize,
}

impl Parts {
    /// Splits grouped pairs by `seed`. No group is cut; one that is larger than a held-out part goes to training. Repeats are
    /// in no part.
    ///
    /// # Errors
    /// [`PartsError::NothingLeft`], and [`PartsError::Groups`] for a part that was asked for and would be empty.
    pub fn new(found: &PairGroups, seed: u64, fractions: HeldOutFractions) -> Result<Self, PartsError> {
        let n = found.n_pairs();
        let [n_valid, n_test] = fractions.of(n)?;
        let smallest = [n_valid, n_test].into_iter().filter(|&k| k > 0).min().unwrap_or(usize::MAX);
        let (large, small): (Vec<_>, Vec<_>) = found.groups.iter().cloned().partition(|g| g.len() > smallest);
        let mut train: Vec<usize> = large.concat();
        let rest: usize = small.iter().map(Vec::len).sum();
        // Training may be larger than asked for already.
        let n_train = (n - n_valid - n_test).saturating_sub(train.len()).min(rest);
        let n_valid_left = n_valid.min(((rest - n_train) * n_valid).div_ceil((n_valid + n_test).max(1)));
        let mut parts = split_groups(&small, seed, n_train, n_valid_left);
        train.append(&mut parts.train);
        let split = Split { train, ..parts };
        let empty = |asked: usize, got: &[usize]| asked > 0 && got.is_empty();
        let empties = [empty(n_valid, &split.valid), empty(n_test, &split.test)];
        let (groups, largest) = (found.groups.len(), found.largest());
        let refused = |part, flag, asked| PartsError::Groups { part, flag, asked, n, groups, largest };
        let [valid, test] = empties;
        if valid && fractions.valid.is_some() {
            return Err(refused("validation", "--val", n_valid));
        }
        if test && fractions.test.is_some() {
            return Err(refused("test", "--test", n_test));
        }
        let of = found.group_of(1 + found.groups.iter().flatten().max().copied().unwrap_or(0));
        Ok(Self {
            test_groups: split.test.iter().filter_map(|&i| of[i]).collect(),
            split,
            unheld: (valid || test).then_some(UnheldParts { valid, test, groups, largest }),
        })
    }

    /// The parts of bidpo 0.2.0 and before, for `n` pairs: every pair by itself, repeats included.
    ///
    /// # Errors
    /// [`PartsError::NothingLeft`].
    pub fn legacy(n: usize, seed: u64, fractions: HeldOutFractions) -> Result<Self, PartsError> {
        let [n_valid, n_test] = fractions.of(n)?;
        let split = split(n, seed, n - n_valid - n_test, n_valid, n_test).map_err(|_| PartsError::NothingLeft {
            valid: n_valid,
            test: n_test,
            n,
        })?;
        Ok(Self { test_groups: (0..split.test.len()).collect(), split, unheld: None })
    }
}

/// The parts by which a checkpoint was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointParts {
    /// Those of this version.
    Current,
    /// Those of bidpo 0.2.0 and before ([`Parts::legacy`]).
    Legacy,
    /// Neither: the checkpoint belongs to another run.
    Other,
}

/// Tells by which parts the checkpoint at `path` was made. `accepts` says whether a recorded identity is that of a run over
/// the current or over the legacy parts.
///
/// # Errors
/// [`CheckpointError`] for a file that cannot be read.
pub fn checkpoint_parts(
    path: &Path,
    current: impl FnOnce(&RecordedIdentity) -> bool,
    legacy: impl FnOnce(&RecordedIdentity) -> bool,
) -> Result<CheckpointParts, CheckpointError> {
    let recorded = Checkpoint::identity(path)?;
    Ok(if current(&recorded) {
        CheckpointParts::Current
    } else if legacy(&recorded) {
        CheckpointParts::Legacy
    } else {
        CheckpointParts::Other
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::SplitBy;
    use crate::data::inspect::PairText;

    fn pairs(n: usize, text: impl Fn(usize) -> [String; 3]) -> PairGroups {
        let pairs: Vec<PairText> = (0..n)
            .map(|i| {
                let [prompt, chosen, rejected] = text(i);
                PairText { place: String::new(), prompt, chosen, rejected }
            })
            .collect();
        PairGroups::new(&pairs, SplitBy::Groups)
    }

    fn sizes(p: &Parts) -> [usize; 3] {
        [p.split.train.len(), p.split.valid.len(), p.split.test.len()]
    }

    #[test]
    fn pairs_without_groups_are_split_as_ever() {
        let found = pairs(192, |i| [format!("topic{i} matter{i}"), format!("yes {i}"), format!("no {i}")]);
        for (seed, fractions) in [
            (0, HeldOutFractions::default()),
            (7, HeldOutFractions { valid: Some(0.3), test: None }),
            (3, HeldOutFractions { valid: Some(0.0), test: Some(0.5) }),
        ] {
            assert_eq!(
                Parts::new(&found, seed, fractions).unwrap(),
                Parts { ..Parts::legacy(192, seed, fractions).unwrap() }.with_groups(&found)
            );
        }
        let few = pairs(11, |i| [format!("topic{i} matter{i}"), "a".into(), format!("b{i}")]);
        assert_eq!(sizes(&Parts::new(&few, 0, HeldOutFractions::default()).unwrap()), [11, 0, 0]);
    }

    impl Parts {
        fn with_groups(mut self, found: &PairGroups) -> Self {
            let of = found.group_of(found.n_pairs());
            self.test_groups = self.split.test.iter().map(|&i| of[i].unwrap()).collect();
            self
        }
    }

    #[test]
    fn repeats_count_once_and_groups_stay_whole() {
        // Sixty pairs, each three times.
        let found = pairs(180, |i| [format!("topic{0} matter{0}", i % 60), format!("a{}", i % 60), "b".into()]);
        let p = Parts::new(&found, 0, HeldOutFractions::default()).unwrap();
        assert_eq!((sizes(&p), found.repeated.len()), ([40, 10, 10], 120));
        // The same with a word more in each copy: no repeats, groups of three.
        let found = pairs(180, |i| [format!("topic{0} matter{0}", i % 60), format!("a{i}"), "b".into()]);
        let p = Parts::new(&found, 0, HeldOutFractions::default()).unwrap();
        assert_eq!(sizes(&p), [120, 30, 30]);
        let of = |part: &[usize]| part.iter().map(|i| i % 60).collect::<std::collections::BTreeSet<_>>();
        let [a, b, c] = [&p.split.train, &p.split.valid, &p.split.test].map(|part| of(part));
        assert!(a.is_disjoint(&b) && a.is_disjoint(&c) && b.is_disjoint(&c));
        assert_eq!(p.test_groups.iter().collect::<std::collections::BTreeSet<_>>().len(), 10);
    }

    #[test]
    fn large_groups_train() {
        // Sixty pairs of one prompt, forty of their own.
        let prompt = |i: usize| if i < 60 { "one question".into() } else { format!("topic{i} matter{i}") };
        let found = pairs(100, |i| [prompt(i), format!("a{i}"), "b".into()]);
        for seed in 0..20 {
            let p = Parts::new(&found, seed, HeldOutFractions::default()).unwrap();
            assert_eq!(sizes(&p), [66, 17, 17]);
            assert!((0..60).all(|i| p.split.train.contains(&i)));
        }
        // One group: nothing can be held out, and who asks for it is told why.
        let found = pairs(100, |i| ["one question".into(), format!("a{i}"), "b".into()]);
        let p = Parts::new(&found, 0, HeldOutFractions::default()).unwrap();
        assert_eq!(sizes(&p), [100, 0, 0]);
        assert_eq!(p.unheld, Some(UnheldParts { valid: true, test: true, groups: 1, largest: 100 }));
        let error = Parts::new(&found, 0, HeldOutFractions { test: Some(0.2), valid: None }).unwrap_err().to_string();
        assert!(error.contains("20 test pairs (--test)") && error.contains("1 groups"), "{error}");
        let error = Parts::new(&found, 0, HeldOutFractions { test: Some(0.6), valid: Some(0.6) }).unwrap_err();
        assert!(matches!(error, PartsError::NothingLeft { valid: 60, test: 60, n: 100 }));
    }
}
