//! Training: learning-rate schedules, the steps of a run, evaluation, checkpoints that resume to the same bits.

mod batches;
pub mod checkpoint;
mod evaluate;
mod metrics;
pub mod schedule;
mod settings;
mod trainer;

pub use checkpoint::Checkpoint;
pub use evaluate::{Evaluation, Evaluator};
pub use metrics::{Metrics, Progress};
pub use schedule::Schedule;
pub use settings::{grad_scale, Settings};
pub use trainer::{Observer, Trainer};
