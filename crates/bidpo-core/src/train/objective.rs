//! Training objectives.

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
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::EACH
            .into_iter()
            .find(|objective| objective.name() == s)
            .ok_or_else(|| format!("invalid objective {s:?}: expected bidpo, dpo or ipo"))
    }
}

impl Objective {
    /// Every objective.
    pub const EACH: [Self; 3] = [Self::Bidpo, Self::Dpo, Self::Ipo];

    /// True where each pair's direction is drawn at random; the vector is otherwise always added.
    pub fn both_directions(self) -> bool {
        self == Self::Bidpo
    }

    /// The loss of a pair, as [`loss`] takes it.
    pub fn loss(self, d: f64, beta: f64, margin: f64) -> Loss {
        match self {
            Self::Bidpo | Self::Dpo => loss(d, beta, margin),
            Self::Ipo => {
                let off = d * margin - 1.0 / (2.0 * beta);
                Loss { value: off * off, slope: 2.0 * off }
            }
        }
    }

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bidpo => "bidpo",
            Self::Dpo => "dpo",
            Self::Ipo => "ipo",
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
                let at = |margin| objective.loss(d, 0.3, margin);
                let numeric = (at(margin + h).value - at(margin - h).value) / (2.0 * h);
                assert!((numeric - d * at(margin).slope).abs() < 1e-6, "{objective}, d {d}, margin {margin}");
            }
        }
    }

    #[test]
    fn ipo_is_least_at_its_margin() {
        assert_eq!(Objective::Ipo.loss(1.0, 0.25, 2.0), Loss { value: 0.0, slope: 0.0 });
        assert_eq!(Objective::Ipo.loss(1.0, 0.25, 0.0).value, 4.0);
        assert!(Objective::Ipo.loss(1.0, 0.25, 3.0).slope > 0.0);
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
