//! The progress of a run: a bar if standard error is a terminal, else plain lines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use residuum::train::{Metrics, Progress};

use crate::models::grouped;

/// The interval of plain lines within an epoch.
const SILENCE: Duration = Duration::from_secs(10);

/// Shows a run's progress on standard error.
#[derive(Debug)]
pub struct Display {
    terminal: bool,
    /// The bar of the current epoch.
    bar: Option<ProgressBar>,
    spoke: Instant,
}

impl Display {
    /// A bar on a terminal, else plain lines.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), bar: None, spoke: Instant::now() }
    }

    /// Prints a line.
    pub fn line(&mut self, text: &str) {
        plain(text);
        self.spoke = Instant::now();
    }

    /// Shows the progress after a step.
    pub fn step(&mut self, p: &Progress) {
        let rate = grouped(p.images_per_second as u64);
        let text = format!("{rate} images/s  loss {:.4}  accuracy {:.2} %", p.loss, 100.0 * p.accuracy);
        if self.terminal {
            let bar = self.bar.get_or_insert_with(|| bar(p));
            bar.set_message(text);
            bar.set_position(p.step as u64);
        } else if self.spoke.elapsed() > SILENCE {
            self.line(&format!("epoch {}  step {}/{}  {text}", of(p.epoch, p.epochs), p.step, p.steps));
        }
    }

    /// Prints the line of an epoch.
    pub fn epoch(&mut self, m: &Metrics, epochs: u32) {
        self.finish();
        self.line(&format!(
            "epoch {}  train loss {:.4} accuracy {:6.2} %  test loss {:.4} accuracy {:6.2} %  \
             lr {:.2e}  {} images/s  {:.1} s",
            of(m.epoch, epochs),
            m.train_loss,
            100.0 * m.train_accuracy,
            m.test_loss,
            100.0 * m.test_accuracy,
            m.learning_rate,
            grouped(m.images_per_second as u64),
            m.seconds
        ));
    }

    /// Removes the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A bar for the steps of an epoch.
fn bar(p: &Progress) -> ProgressBar {
    let style = ProgressStyle::with_template("epoch {prefix} {bar:24.cyan/dim} {pos}/{len}  {wide_msg}");
    ProgressBar::new(p.steps as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━━─"))
        .with_prefix(of(p.epoch, p.epochs))
}

/// `EPOCH/EPOCHS`, of constant width in a run.
fn of(epoch: u32, epochs: u32) -> String {
    format!("{epoch:>width$}/{epochs}", width = epochs.to_string().len())
}

fn plain(text: &str) {
    // A run continues if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
