//! Training: settings, learning-rate schedules, runs, evaluation, and checkpoints that resume to the same bits.
//!
//! ```
//! use residuum::data::digits;
//! use residuum::device::Device;
//! use residuum::train::{Metrics, Observer, Schedule, Settings, Trainer};
//!
//! struct Print;
//!
//! impl Observer for Print {
//!     fn epoch(&mut self, m: &Metrics, _: &Trainer<'_>) -> residuum::Result<()> {
//!         println!("epoch {}: loss {:.3}, test accuracy {:.1} %", m.epoch, m.train_loss, 100.0 * m.test_accuracy);
//!         Ok(())
//!     }
//! }
//!
//! let splits = digits::read()?;
//! let settings = Settings {
//!     model: "resnet8_cifar".into(),
//!     epochs: 1,
//!     batch: 256,
//!     schedule: "cosine".parse::<Schedule>()?,
//!     weight_decay: 5e-4,
//!     ..Settings::default()
//! };
//! let mut trainer = Trainer::new(settings, &splits, &Device::cpu())?;
//! trainer.run(&mut Print)?;
//! assert_eq!((trainer.epoch(), trainer.step()), (1, 5));
//! # Ok::<(), residuum::Error>(())
//! ```

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
