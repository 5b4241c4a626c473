//! Training: objective, optimizer, the run and its checkpoints, held-out measurements, the vector's card.

mod beside;
mod card;
mod checkpoint;
mod config;
mod error;
mod events;
mod held_out;
mod init;
mod objective;
mod optimizer;
mod pairs;
mod retain;
mod run;
mod seeds;
mod summary;
mod trained;
mod trainer;

pub use beside::LoadedBeside;
pub use card::VectorCard;
pub use checkpoint::{
    Checkpoint, CheckpointError, CheckpointParts, HeldOutFractions, IdentitySource, Parts, PartsError, Point,
    RecordedIdentity, RunIdentity, RunInputs, UnheldParts, checkpoint_parts,
};
pub use config::{AUTO_RATE, ChooseBy, LearningRate, TrainConfig, TrainingBudget};
pub use error::TrainError;
pub use events::{Event, MemoryNeed, StepReport, Stop};
pub use ggml_grad::graph::emit::{Backward, Forward, Precision};
pub use held_out::{
    Condition, Effect, HeldOut, HeldOutPairs, HeldOutRow, LEAST_GROUPS, MeanDifference, Paired, RANDOM_DRAWS,
    RandomRange, mean_logp_diff,
};
pub use init::{AdapterInitError, Init, InitError, initial_adapter, initial_parameters};
pub use objective::{Loss, Objective, PairLoss, PairScores, Strength, loss};
pub use optimizer::{AdamW, Schedule, clip};
pub use pairs::{NamedPair, PairError, encode_pair, with_system_prompt};
pub use retain::{ANSWER, LONGEST, Retain, RetainError, RetainItem, RetainSet, Retained, retained_sha256};
pub(crate) use run::{Member, Run, Step, TracedSet};
pub use seeds::{SeedRun, SeedRuns, SeedSpread};
pub use summary::{AdapterStats, LayerStats, RunSummary};
pub use trained::Trained;
pub use trainer::{CheckpointPlan, Trainer, seed_checkpoint};
