//! Results apart from their analysis: one JSON line for each item and condition, under a first line that says exactly
//! what was run. Every value is computed from these lines, and can be computed again.

mod condition;
mod gather;
mod manifest;
mod merge;
mod record;
mod store;

#[cfg(test)]
pub(crate) use condition::tests::kind as test_kind;
pub use condition::{ChoiceRule, ChosenOn, ConditionFacts, ConditionKind, EqualKl, ShotLimit, VectorFacts};
pub use gather::{Gathered, gather, shard_file};
pub use manifest::{Computation, DataFacts, Manifest, ModelFacts, Shard, differences};
pub use merge::{Run, merge};
pub use record::{Answer, GateScore, Record, TextScore, View, Written};
pub use store::{ResultsError, Store, other_run, read};
