//! Trains a residual network on handwritten digits that are part of the library.
//!
//! `cargo run --release --example 01_train_digits`

use residuum::data::Source;
use residuum::device::Device;
use residuum::train::{Metrics, Observer, Settings, Trainer};

/// Prints a line for each epoch.
struct Lines;

impl Observer for Lines {
    fn epoch(&mut self, m: &Metrics, _: &Trainer<'_>) -> residuum::Result<()> {
        println!("epoch {:2}  loss {:.4}  test accuracy {:.2} %", m.epoch, m.train_loss, 100.0 * m.test_accuracy);
        Ok(())
    }
}

fn main() -> residuum::Result<()> {
    let splits = "digits".parse::<Source>()?.read()?;
    let settings = Settings { epochs: 5, ..Settings::default() };
    Trainer::new(settings, &splits, &Device::best())?.run(&mut Lines)
}
