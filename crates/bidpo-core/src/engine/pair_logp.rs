//! Log-probabilities of the two responses of a pair.

/// Summed log-probabilities of a pair's two responses, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PairLogp {
    /// Of the chosen response.
    pub chosen: f64,
    /// Of the rejected response.
    pub rejected: f64,
}

impl PairLogp {
    /// `chosen - rejected`.
    pub fn gap(&self) -> f64 {
        self.chosen - self.rejected
    }
}
