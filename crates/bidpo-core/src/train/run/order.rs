//! Order and directions of the training pairs.

use crate::data::permutation;
use crate::engine::Direction;
use crate::train::config::TrainConfig;
use crate::train::objective::Objective;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A pair of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Member {
    /// Index of the pair among the training pairs.
    pub(crate) pair: usize,
    /// Its sign says which response is to be preferred: the chosen one forward, the rejected one in reverse.
    pub(crate) direction: Direction,
}

/// Pairs of the step after `step` steps, where there are `n` training pairs.
pub(in crate::train) fn members(config: &TrainConfig, step: usize, n: usize) -> Vec<Member> {
    let batch = config.batch_of(n);
    let per_epoch = config.steps_per_epoch(n);
    let first = step % per_epoch * batch;
    epoch(config, step / per_epoch, n)[first..(first + batch).min(n)].to_vec()
}

/// The pairs of an epoch. They depend on the seed and the number of the epoch alone, so that a resumed run meets the same.
fn epoch(config: &TrainConfig, epoch: usize, n: usize) -> Vec<Member> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(epoch as u64 + 1);
    let order = permutation(n, rng.next_u64());
    order
        .into_iter()
        .map(|pair| {
            let reverse = config.objective.both_directions() && rng.next_u32() & 1 == 1;
            let direction = if reverse { config.opposite() } else { Direction::Forward };
            Member { pair, direction: with_factor(config, direction, &mut rng) }
        })
        .collect()
}

/// The direction with a factor drawn from those of the settings, for [`Objective::Reps`]. A component that is taken out has none.
fn with_factor(config: &TrainConfig, direction: Direction, rng: &mut ChaCha8Rng) -> Direction {
    if config.objective != Objective::Reps || direction == Direction::Null || config.factors.is_empty() {
        return direction;
    }
    let factor = config.factors[rng.random_range(0..config.factors.len())];
    Direction::Times(direction.sign() as f32 * factor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;

    #[test]
    fn an_epoch_has_every_pair_once_in_a_seeded_order() {
        let config = TrainConfig::new(Layers::one(3));
        let a = epoch(&config, 0, 50);
        let mut seen: Vec<usize> = a.iter().map(|m| m.pair).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert_eq!(a, epoch(&config, 0, 50));
        assert_ne!(a, epoch(&config, 1, 50));
        assert_ne!(a, epoch(&TrainConfig { seed: 1, ..config.clone() }, 0, 50));
        let plus = a.iter().filter(|m| m.direction == Direction::Forward).count();
        assert!((10..40).contains(&plus), "{plus} of 50 directions are forward");
        let dpo = TrainConfig { objective: Objective::Dpo, ..config };
        assert!(epoch(&dpo, 0, 50).iter().all(|m| m.direction == Direction::Forward));
    }

    #[test]
    fn reps_draws_a_factor_for_each_pair_that_is_steered() {
        let config =
            TrainConfig { objective: Objective::Reps, factors: vec![0.5, 2.0], ..TrainConfig::new(Layers::one(3)) };
        let of = |config: &TrainConfig| epoch(config, 0, 60).into_iter().map(|m| m.direction).collect::<Vec<_>>();
        let drawn = of(&config);
        assert_eq!(drawn, of(&config));
        let count = |d: Direction| drawn.iter().filter(|x| **x == d).count();
        let counts = [Direction::Times(0.5), Direction::Times(2.0), Direction::Null].map(count);
        assert!(counts.iter().sum::<usize>() == 60 && counts.iter().all(|n| (5..45).contains(n)), "{counts:?}");
        let gated = of(&TrainConfig { kind: crate::intervention::Kind::Gate.into(), ..config });
        for (a, b) in drawn.iter().zip(&gated) {
            assert!(
                *b != Direction::Null && (b.factor() == 0.5 || b.factor().abs() == 2.0 || b.factor() == -0.5),
                "{a:?}, {b:?}"
            );
        }
        assert!(gated.iter().any(|d| d.sign() < 0.0) && gated.iter().any(|d| d.sign() > 0.0));
    }
}
