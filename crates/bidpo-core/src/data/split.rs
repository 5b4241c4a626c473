//! Training, validation and test pairs.

use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Three disjoint lists of indices. The same seed gives the same lists on every machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// To train on. With the same seed a larger training set begins with the smaller one.
    pub train: Vec<usize>,
    /// To stop and to choose settings by.
    pub valid: Vec<usize>,
    /// To report on, once.
    pub test: Vec<usize>,
}

/// A split that cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// More asked for than there is.
    #[error("a split of {train} + {valid} + {test} needs more than the {n} items there are")]
    TooFew {
        /// Items there are.
        n: usize,
        /// Asked for to train on.
        train: usize,
        /// Asked for to validate on.
        valid: usize,
        /// Asked for to test on.
        test: usize,
    },
}

/// Splits `n` items by `seed`. The training set is taken from the front of one random order, the test set from its end
/// and the validation set before that, so that the sets of one seed stay apart whatever their sizes.
///
/// # Errors
/// [`SplitError::TooFew`].
pub fn split(n: usize, seed: u64, n_train: usize, n_valid: usize, n_test: usize) -> Result<Split, SplitError> {
    let held_out = n_valid.checked_add(n_test).filter(|h| h.checked_add(n_train).is_some_and(|sum| sum <= n));
    let Some(held_out) = held_out else {
        return Err(SplitError::TooFew { n, train: n_train, valid: n_valid, test: n_test });
    };
    let order = permutation(n, seed);
    Ok(Split {
        train: order[..n_train].to_vec(),
        valid: order[n - held_out..n - n_test].to_vec(),
        test: order[n - n_test..].to_vec(),
    })
}

/// Splits groups of items by `seed`: no group is cut. Training takes groups from the front of one random order until it has
/// `n_train` items, validation the next `n_valid`, the rest is for the test. A group that would exceed a part's number goes to
/// the test part, or to validation where that would be short without it, so training and validation never have more items than
/// asked for. Groups of one item each give the lists of [`split`].
pub fn split_groups(groups: &[Vec<usize>], seed: u64, n_train: usize, n_valid: usize) -> Split {
    let (mut train, mut valid, mut test) = (Vec::new(), Vec::new(), Vec::new());
    let mut left: Vec<&Vec<usize>> = Vec::new();
    for g in permutation(groups.len(), seed) {
        let group = &groups[g];
        if train.len() + group.len() <= n_train {
            train.extend(group);
        } else if train.len() == n_train && valid.len() + group.len() <= n_valid {
            valid.extend(group);
        } else {
            left.push(group);
        }
    }
    // Training that never is exactly full leaves nothing for validation above.
    for group in left {
        let part = if valid.len() + group.len() <= n_valid { &mut valid } else { &mut test };
        part.extend(group);
    }
    Split { train, valid, test }
}

/// The numbers below `n` in an order drawn from ChaCha8 with `seed`: Fisher-Yates (Knuth, TAOCP vol. 2, algorithm 3.4.2 P)
/// with draws by rejection. Written out because the order belongs to a vector's provenance and must not change with a
/// version of a library.
pub fn permutation(n: usize, seed: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let bound = i as u64 + 1;
        let zone = u64::MAX - u64::MAX % bound; // a multiple of bound: every remainder below it is equally likely
        let draw = loop {
            let x = rng.next_u64();
            if x < zone {
                break (x % bound) as usize;
            }
        };
        order.swap(i, draw);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn parts_are_disjoint_and_nested() {
        let big = split(192, 0, 128, 32, 32).unwrap();
        let all: BTreeSet<_> = big.train.iter().chain(&big.valid).chain(&big.test).copied().collect();
        assert_eq!((big.train.len(), big.valid.len(), big.test.len(), all.len()), (128, 32, 32, 192));
        for n_train in [0, 1, 16, 100] {
            let small = split(192, 0, n_train, 32, 32).unwrap();
            assert_eq!(small.train, big.train[..n_train]);
            assert_eq!((&small.valid, &small.test), (&big.valid, &big.test));
        }
        assert_ne!(split(192, 1, 128, 32, 32).unwrap(), big);
        assert_eq!(split(192, 0, 128, 32, 32).unwrap(), big);
    }

    /// Random groups, random numbers: every item is in one part, every group in one part, no part has more than it may, and
    /// single items are split as [`split`] splits them.
    #[test]
    fn no_group_is_ever_cut() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for round in 0..500u64 {
            let n = 1 + (rng.next_u64() % 60) as usize;
            let most = 1 + rng.next_u64() % 8;
            let mut groups: Vec<Vec<usize>> = Vec::new();
            for i in 0..n {
                match groups.last_mut() {
                    Some(g) if (g.len() as u64) < 1 + rng.next_u64() % most => g.push(i),
                    _ => groups.push(vec![i]),
                }
            }
            let n_train = (rng.next_u64() % (n as u64 + 1)) as usize;
            let n_valid = (rng.next_u64() % (n as u64 - n_train as u64 + 1)) as usize;
            let s = split_groups(&groups, round, n_train, n_valid);
            let mut all: Vec<usize> = s.train.iter().chain(&s.valid).chain(&s.test).copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            assert!(s.train.len() <= n_train && s.valid.len() <= n_valid, "{s:?}");
            let part = |i: &usize| [&s.train, &s.valid, &s.test].iter().position(|p| p.contains(i));
            assert!(groups.iter().all(|g| g.iter().all(|i| part(i) == part(&g[0]))), "{groups:?} as {s:?}");
            let single: Vec<Vec<usize>> = (0..n).map(|i| vec![i]).collect();
            let by_one = split_groups(&single, round, n_train, n_valid);
            assert_eq!(by_one, split(n, round, n_train, n_valid, n - n_train - n_valid).unwrap());
        }
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(split(10, 0, 8, 2, 1).unwrap_err().to_string().contains("8 + 2 + 1"));
        assert!(split(10, 0, usize::MAX, 2, 1).is_err());
    }

    #[test]
    fn every_place_is_equally_likely() {
        // Chi-square of where item 0 of 8 lands over 8,000 seeds: 7 degrees of freedom, 24.3 is the 0.1 % point.
        let mut counts = [0.0f64; 8];
        for seed in 0..8000 {
            counts[permutation(8, seed).iter().position(|&i| i == 0).unwrap()] += 1.0;
        }
        let chi2: f64 = counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 24.3, "{counts:?}");
    }
}
