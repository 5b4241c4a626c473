//! Training: objective, optimizer, the run and its checkpoints, held-out measurements, the vector's card.

mod card;
mod checkpoint;
mod config;
mod error;
mod events;
mod gate_fit;
mod heldout;
mod heldout_text;
mod identity;
mod init;
mod objective;
mod optimizer;
mod order;
mod pairs;
mod parts;
mod preflight;
mod retain;
mod retained_texts;
mod run;
mod seeds;
mod summary;
mod trainer;

pub use card::VectorCard;
pub use checkpoint::{Checkpoint, CheckpointError, Point};
pub use config::{AUTO_RATE, ChooseBy, LearningRate, TrainConfig, TrainingBudget};
pub use error::TrainError;
pub use events::{Event, MemoryNeed, NamedPair, StepReport, Stop};
pub use ggml_grad::graph::emit::{Backward, Forward, Precision};
pub use heldout::{
    Condition, Effect, HeldOut, HeldOutPairs, HeldOutRow, LEAST_GROUPS, MeanDifference, Paired, RANDOM_DRAWS,
    RandomRange, mean_logp_diff,
};
pub use identity::{IdentitySource, RecordedIdentity, RunIdentity, RunInputs};
pub use init::{Init, InitError, initial_parameters};
pub use objective::{Loss, Objective, PairLoss, PairScores, Strength, loss};
pub use optimizer::{AdamW, Schedule, clip};
pub(crate) use order::Member;
pub use pairs::{PairError, encode_pair, with_system_prompt};
pub use parts::{CheckpointParts, HeldOutFractions, Parts, PartsError, UnheldParts, checkpoint_parts};
pub use retain::{Retain, Retained, retained_sha256};
pub use retained_texts::{ANSWER, LONGEST, RetainError, RetainItem, RetainSet};
pub(crate) use run::{Run, Step, TracedSet};
pub use seeds::{SeedRun, SeedRuns, SeedSpread};
pub use summary::{LayerStats, RunSummary};
pub use trainer::{CheckpointPlan, Trained, Trainer, seed_checkpoint};
