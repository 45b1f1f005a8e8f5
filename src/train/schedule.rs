//! Learning-rate schedules: constant, step decay, cosine and one-cycle; the first three after an optional warm-up.
//!
//! With the peak `p` and step `t` of `T` after the warm-up:
//!
//! ```text
//! constant   p
//! steps      p * factor^(milestones passed), milestones in whole epochs from the start of the run
//! cosine     p (1 + cos(pi t / T)) / 2
//! onecycle   from p/25 up to p in the first 30 %, then down to p/250000, both along half a cosine
//! warm-up    p (step + 1) / (steps of the warm-up)
//! ```
//!
//! One-cycle: L. Smith, N. Topin, "Super-convergence", 2018, in the form of torch's `OneCycleLR`.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// The fraction of a one-cycle run in which the rate rises (`pct_start`).
const CLIMB: f64 = 0.3;
/// The ratio of the peak to the initial rate of a one-cycle run (`div_factor`).
const FIRST: f64 = 25.0;
/// The ratio of the initial to the final rate of a one-cycle run (`final_div_factor`).
const LAST: f64 = 1e4;

/// The curve of the rate after the warm-up. See [`Schedule`] for an example.
#[derive(Clone, Debug, PartialEq)]
pub enum Curve {
    /// The peak rate throughout.
    Constant,
    /// Step decay: multiplied by `factor` at the start of each of `epochs`, counted from 0.
    Steps {
        /// The factor of each milestone (gamma), in 0..1.
        factor: f64,
        /// The milestones, ascending.
        epochs: Vec<u32>,
    },
    /// Cosine decay to 0.
    Cosine,
    /// The one-cycle policy.
    OneCycle,
}

/// The learning rate of every step of a run. As text it is `constant`, `steps:FACTOR@EPOCH,EPOCH,...`, `cosine` or
/// `onecycle`, with an optional `+warmup:EPOCHS` after the first three.
///
/// ```
/// use residuum::train::schedule::Length;
/// use residuum::train::Schedule;
///
/// let schedule: Schedule = "steps:0.1@2,4+warmup:1".parse()?;
/// let length = Length { epochs: 5, steps: 10 };
/// assert_eq!(schedule.rate(0.1, 0, length), 0.1 / 10.0, "the warm-up is linear");
/// assert_eq!(schedule.rate(0.1, 15, length), 0.1);
/// assert!((schedule.rate(0.1, 25, length) - 0.01).abs() < 1e-12);
/// assert!((schedule.rate(0.1, 49, length) - 0.001).abs() < 1e-12);
/// assert_eq!(schedule.to_string(), "steps:0.1@2,4+warmup:1");
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    curve: Curve,
    warmup: f64,
}

/// The length of a run. See [`Schedule`] for an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// The epochs of the run.
    pub epochs: u32,
    /// The steps of an epoch.
    pub steps: usize,
}

impl Length {
    /// The steps of the run.
    pub fn total(self) -> usize {
        self.epochs as usize * self.steps
    }
}

impl Schedule {
    /// The one-cycle policy.
    pub const ONE_CYCLE: Self = Self { curve: Curve::OneCycle, warmup: 0.0 };

    /// `curve` after a linear warm-up of `warmup` epochs, which may be a fraction. Fails on invalid numbers, and for
    /// one-cycle with a warm-up: it has its own.
    pub fn new(curve: Curve, warmup: f64) -> Result<Self> {
        let check = |holds: bool, problem: String| Error::check(holds, "schedule", || problem);
        check(warmup >= 0.0 && warmup.is_finite(), format!("a warm-up of {warmup} epochs, expected 0 or more"))?;
        let one_warmup = curve != Curve::OneCycle || warmup == 0.0;
        check(one_warmup, "onecycle with a warm-up, expected none: it has its own".into())?;
        if let Curve::Steps { factor, epochs } = &curve {
            let fraction = *factor > 0.0 && *factor < 1.0;
            check(fraction, format!("steps by a factor of {factor}, expected a number between 0 and 1"))?;
            let ascend = epochs.first().is_some_and(|&first| first > 0) && epochs.is_sorted_by(|a, b| a < b);
            check(ascend, format!("steps at epochs {epochs:?}, expected at least one, ascending, from 1 on"))?;
        }
        Ok(Self { curve, warmup })
    }

    /// The curve after the warm-up.
    pub fn curve(&self) -> &Curve {
        &self.curve
    }

    /// True if the rate of a step depends on the length of the run.
    pub fn needs_length(&self) -> bool {
        matches!(self.curve, Curve::Cosine | Curve::OneCycle)
    }

    /// Fails unless the warm-up is shorter than a run of `epochs`.
    pub fn check(&self, epochs: u32) -> Result<()> {
        Error::check(epochs == 0 || self.warmup < f64::from(epochs), "schedule", || {
            format!("a warm-up of {} epochs in a run of {epochs}, expected fewer", self.warmup)
        })
    }

    /// The learning rate of `step`, counted from 0 over the whole run.
    pub fn rate(&self, peak: f64, step: usize, length: Length) -> f64 {
        let warmup = (self.warmup * length.steps as f64).round() as usize;
        if step < warmup {
            return peak * (step + 1) as f64 / warmup as f64;
        }
        let (t, total) = ((step - warmup) as f64, (length.total() - warmup.min(length.total())) as f64);
        match &self.curve {
            Curve::Constant => peak,
            Curve::Steps { factor, epochs } => {
                let epoch = step / length.steps.max(1);
                peak * factor.powi(epochs.iter().filter(|&&e| e as usize <= epoch).count() as i32)
            }
            Curve::Cosine => half_cosine(peak, 0.0, t / total),
            Curve::OneCycle => one_cycle(peak, t, total),
        }
    }
}

/// Half a cosine from `start` at 0 to `end` at 1.
fn half_cosine(start: f64, end: f64, share: f64) -> f64 {
    end + (start - end) / 2.0 * (1.0 + (PI * share.clamp(0.0, 1.0)).cos())
}

fn one_cycle(peak: f64, t: f64, total: f64) -> f64 {
    let first = peak / FIRST;
    let top = (CLIMB * total - 1.0).max(0.0);
    if t <= top && top > 0.0 {
        half_cosine(first, peak, t / top)
    } else {
        half_cosine(peak, first / LAST, (t - top) / (total - 1.0 - top).max(1.0))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.curve {
            Curve::Constant => f.write_str("constant")?,
            Curve::Steps { factor, epochs } => {
                let epochs: Vec<String> = epochs.iter().map(u32::to_string).collect();
                write!(f, "steps:{factor}@{}", epochs.join(","))?;
            }
            Curve::Cosine => f.write_str("cosine")?,
            Curve::OneCycle => f.write_str("onecycle")?,
        }
        if self.warmup > 0.0 {
            write!(f, "+warmup:{}", self.warmup)?;
        }
        Ok(())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || {
            let expected = "constant, steps:FACTOR@EPOCH,EPOCH,..., cosine or onecycle, then +warmup:EPOCHS if wanted";
            Error::invalid("schedule", format!("`{text}`, expected {expected}"))
        };
        let (curve, warmup) = match text.split_once('+') {
            None => (text, 0.0),
            Some((curve, rest)) => (curve, rest.strip_prefix("warmup:").and_then(|n| n.parse().ok()).ok_or_else(fail)?),
        };
        let curve = match curve {
            "constant" => Curve::Constant,
            "cosine" => Curve::Cosine,
            "onecycle" => Curve::OneCycle,
            other => {
                let (factor, list) = other.strip_prefix("steps:").and_then(|s| s.split_once('@')).ok_or_else(fail)?;
                let epochs: Result<Vec<u32>, _> = list.split(',').map(str::parse).collect();
                Curve::Steps { factor: factor.parse().map_err(|_| fail())?, epochs: epochs.map_err(|_| fail())? }
            }
        };
        Self::new(curve, warmup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(text: &str, epochs: u32, steps: usize) -> Vec<f64> {
        let schedule: Schedule = text.parse().unwrap();
        let length = Length { epochs, steps };
        (0..length.total()).map(|step| schedule.rate(0.1, step, length)).collect()
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-15 + 1e-12 * expected, "{found}, expected {expected}");
    }

    #[test]
    fn schedules_round_trip_through_text() {
        for text in ["constant", "cosine", "onecycle", "steps:0.1@81,122", "steps:0.2@60+warmup:5", "cosine+warmup:0.5"]
        {
            assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_schedules_are_refused_in_one_line() {
        let nonsense = " linear steps steps:0.1 steps:@3 steps:0.1@ steps:0.1@3,2 steps:0.1@0 steps:1.5@3 steps:NaN@3 \
                        cosine+ cosine+warmup:-1 cosine+warmup:inf onecycle+warmup:1";
        for text in nonsense.split(' ') {
            let error = text.parse::<Schedule>().unwrap_err().to_string();
            assert!(error.starts_with("schedule: ") && error.contains("expected"), "{text}: {error}");
        }
        let long: Schedule = "cosine+warmup:3".parse().unwrap();
        assert!(long.check(4).is_ok() && long.check(3).is_err());
    }

    #[test]
    fn steps_change_at_the_start_of_their_epochs() {
        let found = rates("steps:0.1@2,3", 4, 2);
        for (found, expected) in found.iter().zip([0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]) {
            assert_close(*found, expected);
        }
    }

    #[test]
    fn cosine_follows_its_formula_after_a_linear_warm_up() {
        let found = rates("cosine+warmup:1", 3, 4);
        for (i, expected) in [0.025, 0.05, 0.075, 0.1, 0.1].into_iter().enumerate() {
            assert_close(found[i], expected);
        }
        assert_close(found[8], 0.05);
        assert!(found[11] > 0.0 && found[11] < 0.005);
    }

    /// `torch.optim.lr_scheduler.OneCycleLR(max_lr=0.1, total_steps=330)` at some steps.
    #[test]
    fn one_cycle_is_torchs() {
        let found = rates("onecycle", 15, 22);
        for (step, expected) in [
            (0, 0.004),
            (1, 0.00402466162236699),
            (50, 0.053538475723439456),
            (97, 0.09997533837763302),
            (98, 0.1),
            (99, 0.09999537611139155),
            (200, 0.05912865452800392),
            (328, 5.023888608455919e-06),
            (329, 4e-07),
        ] {
            assert_close(found[step], expected);
        }
        assert!(rates("onecycle", 1, 1)[0] > 0.0);
        assert!(rates("onecycle", 1, 5).iter().all(|r| r.is_finite() && *r > 0.0));
    }
}
