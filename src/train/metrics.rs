//! The metrics of an epoch, and the progress within one.

/// The metrics of an epoch: the fields of a line of `metrics.jsonl`. [`Observer`](super::Observer) has an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metrics {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// The mean training loss of the epoch's steps.
    pub train_loss: f64,
    /// The training accuracy over the epoch's steps, in 0..=1.
    pub train_accuracy: f64,
    /// The mean test loss after the epoch.
    pub test_loss: f64,
    /// The test accuracy after the epoch, in 0..=1.
    pub test_accuracy: f64,
    /// The learning rate of the epoch's last step.
    pub learning_rate: f64,
    /// Training images per second, without the evaluation.
    pub images_per_second: f64,
    /// The seconds of the epoch with its evaluation; after a resume, of its remaining steps.
    pub seconds: f64,
}

/// The progress within an epoch, after a step. [`Observer`](super::Observer) has an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// The epoch, counted from 1.
    pub epoch: u32,
    /// The epochs of the run.
    pub epochs: u32,
    /// The steps of the epoch done.
    pub step: usize,
    /// The steps of the epoch.
    pub steps: usize,
    /// The mean loss of the epoch so far.
    pub loss: f64,
    /// The training accuracy of the epoch so far, in 0..=1.
    pub accuracy: f64,
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// Training images per second in the epoch so far.
    pub images_per_second: f64,
}
