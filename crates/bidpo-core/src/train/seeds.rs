//! Several runs that differ by their seed alone: how far the seed decides what is learned.

use super::events::Stop;
use super::held_out::HeldOut;
use super::trained::Trained;
use crate::stats::{Interval, mean, std_dev, student_mean};
use crate::text::numbers;
use serde::{Serialize, Serializer};

/// A run with its seed.
#[derive(Debug, Clone)]
pub struct SeedRun {
    /// The seed.
    pub seed: u64,
    /// The run.
    pub trained: Trained,
}

/// Runs of several seeds on the same traced pairs.
#[derive(Debug, Clone)]
pub struct SeedRuns {
    /// The runs, in the order of their seeds; at least one. The first one is the result.
    pub runs: Vec<SeedRun>,
    /// Cosine between the changes that two runs' interventions make, over rows of training pairs, for each pair of runs whose
    /// changes are not zero.
    pub cosines: Vec<f64>,
}

/// The spread between seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeedSpread {
    /// The seeds, that of the kept vector first.
    pub seeds: Vec<u64>,
    /// Those whose loss became infinite or no number: their last good vectors are counted.
    pub not_finite: Vec<u64>,
    /// Lowest validation loss of each; `None` without validation pairs.
    pub valid_losses: Vec<Option<f64>>,
    /// Mean change of the log-probability difference of each on the test pairs, nats a pair; `None` without test pairs.
    pub changes: Option<Vec<f64>>,
    /// Their mean.
    pub mean_change: Option<f64>,
    /// Their standard deviation.
    pub change_std_dev: Option<f64>,
    /// 95 % interval of the mean over seeds (Student's t), on the same test pairs.
    #[serde(serialize_with = "ends")]
    pub interval: Option<Interval>,
    /// Smallest, mean and largest cosine between two seeds' changes of the residual stream.
    pub cosines: Option<[f64; 3]>,
}

fn ends<S: Serializer>(interval: &Option<Interval>, to: S) -> Result<S::Ok, S::Error> {
    interval.map(|i| [i.lo, i.hi]).serialize(to)
}

impl SeedSpread {
    /// Of several runs; `None` for a single one. `heldout`: with the further seeds' conditions.
    pub fn new(runs: &SeedRuns, heldout: Option<&HeldOut>) -> Option<Self> {
        if runs.runs.len() < 2 {
            return None;
        }
        let changes = heldout.and_then(HeldOut::seed_changes).filter(|c| c.len() == runs.runs.len());
        let cosines = (!runs.cosines.is_empty()).then(|| {
            let [lo, hi] = runs
                .cosines
                .iter()
                .fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], &x| [f64::min(lo, x), f64::max(hi, x)]);
            [lo, mean(&runs.cosines), hi]
        });
        Some(Self {
            seeds: runs.runs.iter().map(|r| r.seed).collect(),
            not_finite: runs
                .runs
                .iter()
                .filter(|r| matches!(r.trained.stop, Stop::NotFinite { .. }))
                .map(|r| r.seed)
                .collect(),
            valid_losses: runs.runs.iter().map(|r| r.trained.best_valid_loss()).collect(),
            mean_change: changes.as_deref().map(mean),
            change_std_dev: changes.as_deref().map(std_dev),
            interval: changes.as_deref().and_then(|c| student_mean(c, 0.95)).map(|e| e.interval),
            changes,
            cosines,
        })
    }

    /// The spread in words.
    pub fn in_words(&self) -> String {
        let n = self.seeds.len();
        let list = self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let mut out = format!("{n} seeds ({list}), the same split and pairs: ");
        if let (Some(changes), Some(mean), Some(deviation)) = (&self.changes, self.mean_change, self.change_std_dev) {
            let interval =
                self.interval.map_or_else(String::new, |i| format!(" {}", numbers::signed_interval(i.lo, i.hi, 2)));
            let ends = changes.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], &x| [lo.min(x), hi.max(x)]);
            out += &format!(
                "the vector changes the log-probability difference on the test pairs by {mean:+.2}{interval} nats a pair on average \
                 over seeds (t interval over seeds; standard deviation {deviation:.2}, {:+.2} to {:+.2}). ",
                ends[0], ends[1]
            );
        }
        out += &match self.cosines {
            Some([lo, mean, hi]) => {
                format!(
                    "The cosine between two seeds' changes of the residual stream is {mean:.2} on average ({lo:.2} to {hi:.2}). "
                )
            }
            None => "No two seeds made a change that could be compared. ".to_owned(),
        };
        if let [first, ..] = self.not_finite[..] {
            out += &format!(
                "The loss was not finite under {} of the seeds (the first: {first}), whose last good vectors are counted. ",
                self.not_finite.len()
            );
        }
        out += &format!("The file holds the vector of seed {}; the others are not kept.", self.seeds[0]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_in_words() {
        let spread = SeedSpread {
            seeds: vec![7, 8, 9],
            not_finite: vec![8],
            valid_losses: vec![None; 3],
            changes: Some(vec![2.0, 2.5, 3.0]),
            mean_change: Some(2.5),
            change_std_dev: Some(0.5),
            interval: student_mean(&[2.0, 2.5, 3.0], 0.95).map(|e| e.interval),
            cosines: Some([0.8, 0.85, 0.9]),
        };
        let said = spread.in_words();
        // 2.5 -+ 4.3027 * 0.5 / sqrt(3): SciPy's t.interval(0.95, 2, 2.5, 0.5 / 3 ** 0.5).
        assert!(
            said.contains("+2.50 [+1.26, +3.74] nats") && said.contains("standard deviation 0.50, +2.00 to +3.00"),
            "{said}"
        );
        assert!(
            said.contains("0.85 on average (0.80 to 0.90)") && said.ends_with("seed 7; the others are not kept."),
            "{said}"
        );
    }
}
