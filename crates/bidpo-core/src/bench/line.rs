//! One figure.

use super::Spread;
use ggml_grad::llama::Model;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// The figures there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// A training step over llama.cpp's prefill of the same tokens.
    Step,
    /// Capturing the examples over one prefill of each.
    FirstEpoch,
    /// Extraction over prefill.
    Extract,
    /// Steered over unsteered generation.
    Generate,
    /// MC1 and MC2 in one pass over the prefill of their unique tokens.
    Truthfulqa,
    /// Peak memory of training over the model file.
    Memory,
    /// Start to the first token.
    Start,
    /// The step over PyTorch's.
    Pytorch,
    /// The step with one and with all threads.
    Threads,
}

impl Name {
    /// All of them, in the order they are measured in.
    pub const ALL: [Self; 9] = [
        Self::Step,
        Self::FirstEpoch,
        Self::Extract,
        Self::Truthfulqa,
        Self::Generate,
        Self::Memory,
        Self::Start,
        Self::Pytorch,
        Self::Threads,
    ];

    /// As it is written on the command line.
    pub fn text(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::FirstEpoch => "first-epoch",
            Self::Extract => "extract",
            Self::Generate => "generate",
            Self::Truthfulqa => "truthfulqa",
            Self::Memory => "memory",
            Self::Start => "start",
            Self::Pytorch => "pytorch",
            Self::Threads => "threads",
        }
    }

    /// The ratio it should not exceed, where one was set for this model and layer.
    pub fn limit(self, model: &Model, layer: usize) -> Option<f64> {
        let architecture = model.architecture();
        let small_llama = (architecture.as_str(), model.n_layer()) == ("llama", 30);
        match self {
            Self::Step if small_llama && layer == 15 => Some(0.40),
            Self::Step if (architecture.as_str(), model.n_layer(), layer) == ("gemma3", 18, 9) => Some(0.90),
            Self::FirstEpoch | Self::Truthfulqa => Some(1.15),
            Self::Extract => Some(1.05),
            Self::Generate => Some(1.02),
            Self::Start => Some(1.10),
            Self::Pytorch => Some(0.10),
            Self::Memory if small_llama => Some(5.0),
            Self::Step | Self::Memory | Self::Threads => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|n| n.text() == s)
            .ok_or_else(|| format!("{s:?} is no figure: there are {}", Self::ALL.map(Self::text).join(", ")))
    }
}

/// Ours and the reference's, in the same unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measured {
    /// Ours.
    pub ours: Spread,
    /// The reference's.
    pub reference: Spread,
    /// Median of ours over median of the reference's; smallest and largest of the rounds' own ratios.
    pub ratio: Spread,
}

impl Measured {
    /// From rounds of (ours, reference); `None` from none.
    pub fn of(rounds: &[(f64, f64)]) -> Option<Self> {
        let spread = |f: &dyn Fn(&(f64, f64)) -> f64| Spread::of(&rounds.iter().map(f).collect::<Vec<_>>());
        let (ours, reference, ratios) = (spread(&|r| r.0)?, spread(&|r| r.1)?, spread(&|r| r.0 / r.1)?);
        Some(Self { ours, reference, ratio: Spread { median: ours.median / reference.median, ..ratios } })
    }
}

/// A figure, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was measured.
    Measured(Measured),
    /// It was not, because ...
    NotMeasured(String),
}

/// A ratio against its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// At most the limit.
    Within,
    /// Above it.
    Over,
    /// No limit was set for this model and layer.
    NoLimit,
    /// There is no figure.
    NotMeasured,
}

impl Verdict {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Within => "within",
            Self::Over => "over",
            Self::NoLimit => "no limit",
            Self::NotMeasured => "not measured",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Which.
    pub name: Name,
    /// What ours is, exactly.
    pub what: String,
    /// What it is compared with, exactly.
    pub against: String,
    /// Unit of both.
    pub unit: &'static str,
    /// The figures.
    pub outcome: Outcome,
    /// The largest ratio wanted.
    pub limit: Option<f64>,
}

impl Line {
    /// What the ratio says.
    pub fn verdict(&self) -> Verdict {
        match (&self.outcome, self.limit) {
            (Outcome::NotMeasured(_), _) => Verdict::NotMeasured,
            (_, None) => Verdict::NoLimit,
            (Outcome::Measured(m), Some(limit)) if m.ratio.median <= limit => Verdict::Within,
            _ => Verdict::Over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in Name::ALL {
            assert_eq!(name.text().parse(), Ok(name));
        }
        assert!("speed".parse::<Name>().unwrap_err().contains("first-epoch"));
    }

    #[test]
    fn ratios_and_verdicts() {
        let m = Measured::of(&[(1.0, 2.0), (3.0, 2.0), (2.0, 8.0)]).unwrap();
        assert_eq!((m.ours.median, m.reference.median), (2.0, 2.0));
        assert_eq!(m.ratio, Spread { median: 1.0, min: 0.25, max: 1.5 });
        let line = |limit| Line {
            name: Name::Step,
            what: String::new(),
            against: String::new(),
            unit: "ms",
            outcome: Outcome::Measured(m),
            limit,
        };
        let verdicts = [Some(1.0), Some(0.9), None].map(|l| line(l).verdict());
        assert_eq!(verdicts, [Verdict::Within, Verdict::Over, Verdict::NoLimit]);
        assert_eq!(Measured::of(&[]), None);
    }
}
