//! How a run shows that it moves: a bar where standard error is a terminal, else plain lines.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use residuum::train::{Metrics, Progress};

use crate::models::grouped;

/// How long plain output may be silent inside an epoch.
const SILENCE: Duration = Duration::from_secs(10);

/// Shows a run's progress on standard error.
#[derive(Debug)]
pub struct Display {
    terminal: bool,
    /// The bar of the epoch under way.
    bar: Option<ProgressBar>,
    spoke: Instant,
}

impl Display {
    /// A bar or plain lines.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), bar: None, spoke: Instant::now() }
    }

    /// A line that stays.
    pub fn line(&mut self, text: &str) {
        plain(text);
        self.spoke = Instant::now();
    }

    /// The state after a step.
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

    /// The line of an epoch.
    pub fn epoch(&mut self, m: &Metrics, epochs: u32) {
        self.finish();
        self.line(&format!(
            "epoch {}  train loss {:.4} accuracy {:6.2} %  test loss {:.4} accuracy {:6.2} %  lr {:.2e}  {} images/s  {:.1} s",
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

    /// Takes the bar away.
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

/// An epoch and how many there are, of one width throughout a run.
fn of(epoch: u32, epochs: u32) -> String {
    format!("{epoch:>width$}/{epochs}", width = epochs.to_string().len())
}

fn plain(text: &str) {
    // A run goes on where nobody listens.
    let _ = writeln!(std::io::stderr(), "{text}");
}
