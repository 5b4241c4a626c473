//! Training objectives.

use crate::engine::{PairLogp, ResponseSlopes};
use std::fmt;
use std::str::FromStr;

/// The objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Bidirectional: the vector is added or subtracted at random for each pair; the chosen response is to be preferred in
    /// the first case, the rejected one in the second (Cao et al. 2024, arXiv 2406.00045, eq. 4).
    Bidpo,
    /// The vector is always added (Rafailov et al. 2023, arXiv 2305.18290, eq. 7, with the vector as the only parameter).
    Dpo,
    /// The vector is always added, and the margin is drawn to `1 / (2 beta)` instead of without end (Azar et al. 2023,
    /// arXiv 2310.12036, eq. 17).
    Ipo,
    /// The vector is always added; log-probabilities are divided by the lengths of the responses and compared without a
    /// reference (Meng et al. 2024, arXiv 2405.14734, eq. 6).
    Simpo,
    /// The vector is always added, and the chosen response made more probable; the rejected one plays no part.
    Sft,
    /// Bidirectional: means of log-probabilities a token are compared, and the preferred response's counts the more the less
    /// probable the unsteered model finds it. The vector is added times a factor drawn at random; in the opposite direction its
    /// component is taken out of the stream (Wu et al. 2025, RePS, arXiv 2505.20809: the loss `scaled_simpo` of the released
    /// code, with `null_it_out`). Kinds other than constant vectors are subtracted times a factor (`normal` there).
    Reps,
}

/// A pair under the intervention, for its loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScores {
    /// Without the intervention.
    pub reference: PairLogp,
    /// With it.
    pub policy: PairLogp,
    /// Tokens of the chosen and of the rejected response.
    pub lengths: [usize; 2],
}

impl PairScores {
    /// `[s(r+, d v) - s(r+, 0)] - [s(r-, d v) - s(r-, 0)]`.
    pub fn margin(&self) -> f64 {
        self.policy.gap() - self.reference.gap()
    }
}

/// Loss of one pair and its slopes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairLoss {
    /// The loss.
    pub value: f64,
    /// Its derivatives with respect to the log-probabilities of the two responses.
    pub slopes: ResponseSlopes,
}

impl PairLoss {
    /// Of a loss that follows from the margin alone.
    fn of_margin(d: f64, Loss { value, slope }: Loss) -> Self {
        Self { value, slopes: ResponseSlopes { chosen: d * slope, rejected: -d * slope } }
    }
}

/// Numbers of an objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strength {
    /// Inverse temperature.
    pub beta: f64,
    /// Target margin of [`Objective::Simpo`].
    pub gamma: f64,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::EACH
            .into_iter()
            .find(|objective| objective.name() == s)
            .ok_or_else(|| format!("invalid objective {s:?}: expected bidpo, dpo, ipo, simpo, sft or reps"))
    }
}

impl Objective {
    /// Every objective.
    pub const EACH: [Self; 6] = [Self::Bidpo, Self::Dpo, Self::Ipo, Self::Simpo, Self::Sft, Self::Reps];

    /// True where each pair's direction is drawn at random; the vector is otherwise always added.
    pub fn both_directions(self) -> bool {
        matches!(self, Self::Bidpo | Self::Reps)
    }

    /// The loss of a pair as [`loss`] takes it, where it follows from the margin alone: from both responses against the
    /// reference. `None` for an objective without a reference.
    pub fn loss(self, d: f64, beta: f64, margin: f64) -> Option<Loss> {
        match self {
            Self::Bidpo | Self::Dpo => Some(loss(d, beta, margin)),
            Self::Ipo => Some(ipo_loss(d, beta, margin)),
            Self::Simpo | Self::Sft | Self::Reps => None,
        }
    }

    /// The loss follows from the margin against the reference.
    pub fn by_margin(self) -> bool {
        self.loss(1.0, 1.0, 0.0).is_some()
    }

    /// The loss of a pair and its slopes, for direction `d`.
    pub fn evaluate(self, d: f64, strength: Strength, pair: &PairScores) -> PairLoss {
        let Strength { beta, gamma } = strength;
        let [chosen, rejected] = pair.lengths.map(|n| 1.0 / n.max(1) as f64);
        match self {
            // -log sigmoid(z), z = beta / |r+| log p(r+) - beta / |r-| log p(r-) - gamma
            Self::Simpo => {
                let z = beta * (chosen * pair.policy.chosen - rejected * pair.policy.rejected) - gamma;
                let Loss { value, slope } = loss(1.0, 1.0, z);
                let slopes = ResponseSlopes { chosen: slope * beta * chosen, rejected: -slope * beta * rejected };
                PairLoss { value, slopes }
            }
            // -log p(r+) / |r+|
            Self::Sft => PairLoss {
                value: -chosen * pair.policy.chosen,
                slopes: ResponseSlopes { chosen: -chosen, rejected: 0.0 },
            },
            // -log sigmoid(b s(w) / |w| - s(l) / |l|), b = max(s_ref(l) - s_ref(w), 1), where w is the response to prefer in
            // direction d and l the other one
            Self::Reps => {
                let scale = (-d * pair.reference.gap()).max(1.0);
                let [of_chosen, of_rejected] = if d > 0.0 { [scale, -1.0] } else { [-1.0, scale] };
                let (chosen, rejected) = (of_chosen * chosen, of_rejected * rejected);
                let Loss { value, slope } =
                    loss(1.0, 1.0, chosen * pair.policy.chosen + rejected * pair.policy.rejected);
                PairLoss { value, slopes: ResponseSlopes { chosen: slope * chosen, rejected: slope * rejected } }
            }
            Self::Bidpo | Self::Dpo => PairLoss::of_margin(d, loss(d, beta, pair.margin())),
            Self::Ipo => PairLoss::of_margin(d, ipo_loss(d, beta, pair.margin())),
        }
    }

    /// Factors of which [`Objective::Reps`] draws one for each pair: those of the paper, 2 to 20, over 10, so that the scale 1 lies
    /// among them.
    pub const FACTORS: [f32; 10] = [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0];

    /// Beta where none is given.
    pub fn default_beta(self) -> f64 {
        match self {
            Self::Simpo => 2.0,
            _ => 0.1,
        }
    }

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bidpo => "bidpo",
            Self::Dpo => "dpo",
            Self::Ipo => "ipo",
            Self::Simpo => "simpo",
            Self::Sft => "sft",
            Self::Reps => "reps",
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Loss of one pair and its slope.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The loss.
    pub value: f64,
    /// Factor that turns the gradient of `log p(chosen) - log p(rejected)` with respect to the *added* vector `d v` into the
    /// gradient of the loss with respect to `v`. The two factors `d`, of the loss and of `d v`, cancel.
    pub slope: f64,
}

/// The loss of BiDPO and DPO, `-log sigmoid(d beta margin)` in nats, for direction `d` (+1 or -1) and `margin = [s(r+, d v) - s(r+, 0)] - [s(r-, d v) - s(r-, 0)]`.
pub fn loss(d: f64, beta: f64, margin: f64) -> Loss {
    let z = d * beta * margin;
    // log(1 + e^-z), without overflow on either side.
    let value = if z > 0.0 { (-z).exp().ln_1p() } else { -z + z.exp().ln_1p() };
    let slope = -beta / (1.0 + z.exp());
    Loss { value, slope }
}

/// The loss of IPO, `(d margin - 1 / (2 beta))^2`.
fn ipo_loss(d: f64, beta: f64, margin: f64) -> Loss {
    let off = d * margin - 1.0 / (2.0 * beta);
    Loss { value: off * off, slope: 2.0 * off }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_zero_margin_the_loss_is_ln_2() {
        assert!((loss(1.0, 0.1, 0.0).value - 2f64.ln()).abs() < 1e-15);
        assert!((loss(-1.0, 0.1, 0.0).slope + 0.05).abs() < 1e-15);
    }

    #[test]
    fn the_slope_is_the_derivative() {
        for (objective, d) in Objective::EACH.into_iter().flat_map(|o| [(o, 1.0), (o, -1.0)]) {
            for margin in [-80.0, -3.0, 0.1, 2.0, 90.0] {
                let h = 1e-5;
                let Some(_) = objective.loss(d, 0.3, margin) else { continue };
                let at = |margin| objective.loss(d, 0.3, margin).unwrap();
                let numeric = (at(margin + h).value - at(margin - h).value) / (2.0 * h);
                assert!((numeric - d * at(margin).slope).abs() < 1e-6, "{objective}, d {d}, margin {margin}");
            }
        }
    }

    #[test]
    fn slopes_of_both_responses_are_derivatives() {
        let strength = Strength { beta: 0.7, gamma: 0.4 };
        for (objective, d) in Objective::EACH.into_iter().flat_map(|o| [(o, 1.0), (o, -1.0)]) {
            for (chosen, rejected) in [(-40.0, -3.0), (-12.0, -11.5), (-2.0, -300.0)] {
                let at = |chosen: f64, rejected: f64| {
                    let reference = PairLogp { chosen: -10.0, rejected: -12.0 };
                    let pair = PairScores { reference, policy: PairLogp { chosen, rejected }, lengths: [3, 7] };
                    objective.evaluate(d, strength, &pair)
                };
                let h = 1e-5;
                let slopes = at(chosen, rejected).slopes;
                let of_chosen = (at(chosen + h, rejected).value - at(chosen - h, rejected).value) / (2.0 * h);
                let of_rejected = (at(chosen, rejected + h).value - at(chosen, rejected - h).value) / (2.0 * h);
                let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * (1.0 + a.abs());
                assert!(close(slopes.chosen, of_chosen), "{objective}, d {d}: {slopes:?}, {of_chosen}");
                assert!(close(slopes.rejected, of_rejected), "{objective}, d {d}: {slopes:?}, {of_rejected}");
            }
        }
    }

    #[test]
    fn simpo_compares_means_over_tokens() {
        // -log sigmoid(2 (-1 + 2) - 1) with means of -1 and -2 nats a token.
        let pair = PairScores {
            reference: PairLogp::default(),
            policy: PairLogp { chosen: -3.0, rejected: -8.0 },
            lengths: [3, 4],
        };
        let got = Objective::Simpo.evaluate(1.0, Strength { beta: 2.0, gamma: 1.0 }, &pair).value;
        assert!((got - (1.0 + (-1f64).exp()).ln()).abs() < 1e-12);
        assert_eq!(Objective::Sft.evaluate(1.0, Strength { beta: 2.0, gamma: 1.0 }, &pair).value, 1.0);
    }

    /// -log sigmoid(max(ref_l - ref_w, 1) / n_w w - l / n_l) by hand, with the responses in either role: ln(1 + e^0.5) and
    /// ln(1 + e).
    #[test]
    fn reps_scales_the_preferred_response() {
        let pair = PairScores {
            reference: PairLogp { chosen: -10.0, rejected: -7.5 },
            policy: PairLogp { chosen: -3.0, rejected: -8.0 },
            lengths: [3, 4],
        };
        let strength = Strength { beta: 0.1, gamma: 0.0 };
        // Forward 2.5 * -1 + 2 = -0.5; in reverse the scale is 1: -2 + 1 = -1.
        let [forward, reverse] = [1.0, -1.0].map(|d| Objective::Reps.evaluate(d, strength, &pair));
        assert!((forward.value - 0.974_076_984_180_107_6).abs() < 1e-12, "{forward:?}");
        assert!((reverse.value - 1.313_261_687_518_222_8).abs() < 1e-12, "{reverse:?}");
        assert!(forward.slopes.chosen < 0.0 && forward.slopes.rejected > 0.0 && reverse.slopes.chosen > 0.0);
    }

    #[test]
    fn ipo_is_least_at_its_margin() {
        assert_eq!(Objective::Ipo.loss(1.0, 0.25, 2.0).unwrap(), Loss { value: 0.0, slope: 0.0 });
        assert_eq!(Objective::Ipo.loss(1.0, 0.25, 0.0).unwrap().value, 4.0);
        assert!(Objective::Ipo.loss(1.0, 0.25, 3.0).unwrap().slope > 0.0);
    }

    #[test]
    fn names_are_read_back() {
        for objective in Objective::EACH {
            assert_eq!(objective.name().parse(), Ok(objective));
        }
    }

    #[test]
    fn minus_one_is_dpo_with_the_responses_swapped() {
        assert_eq!(loss(-1.0, 0.2, 7.0).value, loss(1.0, 0.2, -7.0).value);
    }

    #[test]
    fn far_margins_stay_finite() {
        assert_eq!(loss(1.0, 1.0, 1e6).value, 0.0);
        assert_eq!(loss(1.0, 1.0, -1e6).value, 1e6);
        assert_eq!(loss(1.0, 1.0, 1e6).slope, 0.0);
    }
}
