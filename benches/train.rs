//! An epoch of `residuum train` with its defaults, on the digits: `cargo bench --bench train`.
//!
//! `steps` are the 22 training steps with their batches; `epoch` adds the evaluation on the 360 test images.

use std::time::Duration;

use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use residuum::data::{digits, Source};
use residuum::device::Device;
use residuum::train::{Metrics, Observer, Settings, Trainer};

/// Sums the times of the epochs.
#[derive(Default)]
struct Clock {
    steps: Duration,
    epochs: Duration,
}

impl Observer for Clock {
    fn epoch(&mut self, metrics: &Metrics, trainer: &Trainer<'_>) -> residuum::Result<()> {
        let images = (trainer.length().steps * trainer.settings().batch) as f64;
        self.steps += Duration::from_secs_f64(images / metrics.images_per_second);
        self.epochs += Duration::from_secs_f64(metrics.seconds);
        Ok(())
    }
}

/// The times of `epochs` epochs after one of warm-up.
fn run(epochs: u64) -> Clock {
    let splits = digits::read().expect("the digits");
    let settings = Settings { epochs: epochs as u32 + 1, augment: Source::Digits.augment(), ..Settings::default() };
    let mut trainer = Trainer::new(settings, &splits, &Device::cpu()).expect("a run");
    trainer.run_epoch(&mut Clock::default()).expect("the first epoch");
    let mut clock = Clock::default();
    trainer.run(&mut clock).expect("the other epochs");
    clock
}

fn digits_epoch(c: &mut Criterion) {
    let mut group = c.benchmark_group("digits");
    group.sample_size(10).measurement_time(Duration::from_secs(20)).throughput(Throughput::Elements(22 * 64));
    group.bench_function("steps", |b| b.iter_custom(|epochs| run(epochs).steps));
    group.bench_function("epoch", |b| b.iter_custom(|epochs| run(epochs).epochs));
    group.finish();
}

criterion_group!(benches, digits_epoch);
criterion_main!(benches);
