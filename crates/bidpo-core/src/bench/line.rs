//! One measured ratio.

use super::{Rounds, Spread};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The lines of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// A training step over llama.cpp's prefill of the same tokens.
    Step,
    /// Tracing the pairs, as the first epoch needs it, over one prefill of each.
    #[serde(rename = "first-epoch", alias = "capture")]
    Capture,
    /// Extraction over prefill.
    Extract,
    /// Steered over unsteered generation.
    Generate,
    /// MC1 and MC2 in one pass over the prefill of their unique tokens.
    Truthfulqa,
    /// Peak memory of training over the model file.
    Memory,
    /// Peak memory of training an adapter over the model file.
    LoraMemory,
    /// Start to the first token.
    Start,
    /// The step beside a busy program over the step alone.
    Busy,
    /// Two trainings at once over one alone.
    Together,
    /// The step over PyTorch's.
    Pytorch,
    /// An adapter's step over that of PyTorch with peft.
    PytorchLora,
    /// The step with one and with all threads.
    Threads,
    /// The lines below: steps of the kinds, and retained texts.
    Kinds,
    /// The step of kind `gate` over that of `add`.
    Gate,
    /// The step of kind `linear-gate` over that of `add`.
    LinearGate,
    /// The step of kind `prompt-gate` over that of `add`.
    PromptGate,
    /// The step of kind `project` over that of `add`.
    Project,
    /// The step of kind `clamp` over that of `add`.
    Clamp,
    /// The step of kind `lowrank` over that of `add`.
    Lowrank,
    /// The step of an adapter over that of `add`.
    Lora,
    /// A retained token's part of a step over that of a pair's token.
    Retained,
}

impl Name {
    /// All that can be measured, in order.
    pub const ALL: [Self; 14] = [
        Self::Step,
        Self::Capture,
        Self::Extract,
        Self::Truthfulqa,
        Self::Generate,
        Self::Memory,
        Self::LoraMemory,
        Self::Start,
        Self::Busy,
        Self::Together,
        Self::Kinds,
        Self::Pytorch,
        Self::PytorchLora,
        Self::Threads,
    ];

    /// The lines of [`Name::Kinds`].
    pub const OF_KINDS: [Self; 8] = [
        Self::Gate,
        Self::LinearGate,
        Self::PromptGate,
        Self::Project,
        Self::Clamp,
        Self::Lowrank,
        Self::Lora,
        Self::Retained,
    ];

    /// The name on the command line and in JSON.
    pub fn text(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Capture => "first-epoch",
            Self::Extract => "extract",
            Self::Generate => "generate",
            Self::Truthfulqa => "truthfulqa",
            Self::Memory => "memory",
            Self::LoraMemory => "lora-memory",
            Self::Start => "start",
            Self::Busy => "busy",
            Self::Together => "together",
            Self::Pytorch => "pytorch",
            Self::PytorchLora => "pytorch-lora",
            Self::Threads => "threads",
            Self::Kinds => "kinds",
            Self::Gate => "gate",
            Self::LinearGate => "linear-gate",
            Self::PromptGate => "prompt-gate",
            Self::Project => "project",
            Self::Clamp => "clamp",
            Self::Lowrank => "lowrank",
            Self::Lora => "lora",
            Self::Retained => "retained",
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
            .chain(Self::OF_KINDS)
            .find(|n| n.text() == s || (*n == Self::Capture && s == "capture"))
            .ok_or_else(|| format!("unknown line {s:?}: expected one of {}", Self::ALL.map(Self::text).join(", ")))
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
    /// From rounds of (ours, reference).
    pub fn of(rounds: &Rounds) -> Self {
        let (ours, reference) = (rounds.spread(|r| r.0), rounds.spread(|r| r.1));
        let ratios = rounds.spread(|(ours, reference)| ours / reference);
        Self { ours, reference, ratio: Spread { median: ours.median / reference.median, ..ratios } }
    }
}

/// A measurement, or the reason why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was measured.
    Measured(Measured),
    /// Not measured, with the reason.
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
    /// Not measured.
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
    /// Name of the measurement.
    pub name: Name,
    /// Description of bidpo's work.
    pub what: String,
    /// Description of the reference.
    pub against: String,
    /// Unit of both.
    pub unit: &'static str,
    /// The figures.
    pub outcome: Outcome,
    /// The largest ratio wanted.
    pub limit: Option<f64>,
}

impl Line {
    /// The ratio against its limit.
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
    use std::num::NonZeroUsize;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in Name::ALL.into_iter().chain(Name::OF_KINDS) {
            assert_eq!(name.text().parse(), Ok(name));
            assert!(name == Name::Capture || serde_json::to_value(name).unwrap() == name.text());
        }
        assert_eq!("capture".parse(), Ok(Name::Capture));
        assert!("speed".parse::<Name>().unwrap_err().contains("first-epoch"));
    }

    #[test]
    fn ratios_and_verdicts() {
        let mut times = [(1.0, 2.0), (3.0, 2.0), (2.0, 8.0)].into_iter().map(Ok::<_, ()>);
        let rounds = Rounds::measure(NonZeroUsize::new(3).unwrap(), || times.next().unwrap());
        let m = Measured::of(&rounds.unwrap());
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
    }
}
