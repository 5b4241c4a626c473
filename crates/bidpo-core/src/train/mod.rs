//! Training: objective, optimizer, trainer, and the engine that scores and differentiates captured pairs.

mod cache;
mod capturing;
mod card;
mod checkpoint;
mod config;
mod engine;
mod error;
mod events;
mod heldout;
mod objective;
mod optimizer;
mod ready;
mod trainer;

pub use cache::{Cache, CacheType, CacheUse};
pub use card::Record;
pub use checkpoint::{Checkpoint, CheckpointError, Point};
pub use config::{AUTO_RATE, Length, Rate, TrainConfig};
pub use engine::{
    Agreement, DEVICE_LIMIT, Engine, EngineError, Example, Joined, LossDerivative, OpCount, PairLogp, Scored, Survey,
    check_model,
};
pub use error::TrainError;
pub use events::{Event, MemoryNeed, NamedPair, StepReport, Stop};
pub use ggml_grad::graph::emit::{Backward, Forward, Precision};
pub use heldout::{Change, Condition, HeldOut, HeldOutRow, Paired};
pub use objective::{Loss, Objective, loss};
pub use optimizer::{AdamW, Schedule, clip};
pub use ready::{AtLayer, Ready};
pub(crate) use trainer::batches;
pub use trainer::{CheckpointPlan, Trained, train};
