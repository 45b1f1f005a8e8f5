//! What is known of an epoch, and of the moment inside one.

/// One epoch of a run: the fields of a line of `metrics.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// The mean loss of the training images, each in the step that learned from it.
    pub train_loss: f64,
    /// The share of the training images that were recognised, each in the step that learned from it.
    pub train_accuracy: f64,
    /// The mean loss of the test images after the epoch.
    pub test_loss: f64,
    /// The share of the test images that are recognised after the epoch.
    pub test_accuracy: f64,
    /// The learning rate of the epoch's last step.
    pub learning_rate: f64,
    /// Training images per second, evaluation not counted.
    pub images_per_second: f64,
    /// Seconds that the epoch took, evaluation counted; after a resume, its rest.
    pub seconds: f64,
}

/// A moment inside an epoch, after a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// Epochs of the run.
    pub epochs: u32,
    /// Steps of the epoch that are done.
    pub step: usize,
    /// Steps of the epoch.
    pub steps: usize,
    /// The mean loss of the epoch so far.
    pub loss: f64,
    /// The share recognised in the epoch so far.
    pub accuracy: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Training images per second in the epoch so far.
    pub images_per_second: f64,
}
