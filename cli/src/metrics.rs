//! `metrics.jsonl`: a line for each epoch.

use std::collections::BTreeMap;

use residuum::train::Metrics;
use serde_json::Value;

/// An epoch as a JSON object; a non-finite number is null.
pub fn line(m: &Metrics) -> String {
    let number = |v: f64| if v.is_finite() { v.to_string() } else { "null".into() };
    let fields = [
        ("train_loss", m.train_loss),
        ("train_accuracy", m.train_accuracy),
        ("test_loss", m.test_loss),
        ("test_accuracy", m.test_accuracy),
        ("learning_rate", m.learning_rate),
        ("images_per_second", m.images_per_second),
        ("seconds", m.seconds),
    ];
    let fields = fields.map(|(name, value)| format!("\"{name}\":{}", number(value)));
    format!("{{\"epoch\":{},{}}}", m.epoch, fields.join(","))
}

/// Parses the output of [`line()`]. `None` for anything else, such as an accuracy outside 0..=1.
pub fn parse(line: &str) -> Option<Metrics> {
    let value: Value = serde_json::from_str(line).ok()?;
    let number = |name: &str| match value.get(name)? {
        Value::Null => Some(f64::NAN),
        found => found.as_f64(),
    };
    let share = |name: &str| number(name).filter(|v| v.is_nan() || (0.0..=1.0).contains(v));
    Some(Metrics {
        epoch: value.get("epoch")?.as_u64().filter(|&epoch| epoch > 0)?.try_into().ok()?,
        train_loss: number("train_loss")?,
        train_accuracy: share("train_accuracy")?,
        test_loss: number("test_loss")?,
        test_accuracy: share("test_accuracy")?,
        learning_rate: number("learning_rate")?,
        images_per_second: number("images_per_second")?,
        seconds: number("seconds")?,
    })
}

/// The content of a metrics file for the epochs that a run has done.
#[derive(Debug, Default)]
pub struct History {
    /// The epochs in it, in order.
    pub epochs: Vec<Metrics>,
    /// The lines to keep.
    pub kept: Vec<u8>,
    /// Missing, duplicate or unreadable lines, for a warning.
    pub problem: Option<String>,
}

impl History {
    /// Reads `content`, the file of a run that has done `epochs` epochs. Lines of later epochs, left by a run that was
    /// killed before its next checkpoint, are dropped, and so is a truncated last line. All others are kept.
    pub fn read(content: &[u8], epochs: u32) -> Self {
        let (mut found, mut kept) = (BTreeMap::new(), Vec::with_capacity(content.len()));
        let (mut unreadable, mut twice) = (Vec::new(), Vec::new());
        for (i, bytes) in content.split_inclusive(|&b| b == b'\n').enumerate() {
            let text = String::from_utf8_lossy(bytes);
            let text = text.trim_start_matches('\u{feff}').trim();
            match parse(text) {
                Some(metrics) if metrics.epoch > epochs => continue,
                Some(metrics) => twice.extend(found.insert(metrics.epoch, metrics).map(|old| old.epoch)),
                // Truncated: its run was killed while it wrote.
                None if !bytes.ends_with(b"\n") => continue,
                None => unreadable.extend((!text.is_empty()).then_some(i as u32 + 1)),
            }
            kept.extend_from_slice(bytes);
            if !bytes.ends_with(b"\n") {
                kept.push(b'\n');
            }
        }
        let missing = gaps(found.keys().copied(), epochs);
        let (twice, unreadable) = (runs(twice), runs(unreadable));
        let problems: Vec<String> =
            [("missing", "epoch", missing), ("duplicate", "epoch", twice), ("unreadable", "line", unreadable)]
                .into_iter()
                .filter(|(.., runs)| !runs.is_empty())
                .map(|(what, unit, runs)| format!("{what} {}", ranges(unit, &runs)))
                .collect();
        let problem = (!problems.is_empty()).then(|| problems.join(", "));
        Self { epochs: found.into_values().collect(), kept, problem }
    }
}

/// The most ranges of numbers that a problem lists.
const SHOWN: usize = 8;

/// The ranges of `1..=last` that are not in `present`, which ascends. `last` may be huge if the checkpoint is damaged.
fn gaps(present: impl Iterator<Item = u32>, last: u32) -> Vec<[u32; 2]> {
    let (mut found, mut next) = (Vec::new(), 1);
    for number in present {
        if number > next {
            found.push([next, number - 1]);
        }
        next = number.saturating_add(1);
        if number == u32::MAX {
            return found;
        }
    }
    if next <= last {
        found.push([next, last]);
    }
    found
}

/// The ranges of consecutive `numbers`.
fn runs(mut numbers: Vec<u32>) -> Vec<[u32; 2]> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.chunk_by(|a, b| a + 1 == *b).map(|run| [run[0], run[run.len() - 1]]).collect()
}

/// `epoch 3`, or `epochs 1, 3 to 5`.
fn ranges(unit: &str, runs: &[[u32; 2]]) -> String {
    let plural = if matches!(runs, [[first, last]] if first == last) { "" } else { "s" };
    let shown = runs.iter().take(SHOWN).map(|[first, last]| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    });
    let more = if runs.len() > SHOWN { format!(" and {} more", runs.len() - SHOWN) } else { String::new() };
    format!("{unit}{plural} {}{more}", shown.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(epoch: u32) -> Metrics {
        Metrics {
            epoch,
            train_loss: 0.1 + 0.2,
            train_accuracy: 0.75,
            test_loss: 1e-7,
            test_accuracy: 1.0,
            learning_rate: 4e-7,
            images_per_second: 3456.7,
            seconds: 0.4,
        }
    }

    #[test]
    fn a_line_round_trips() {
        let text = line(&metrics(3));
        assert!(text.starts_with("{\"epoch\":3,\"train_loss\":0.30000000000000004,"), "{text}");
        assert_eq!(parse(&text), Some(metrics(3)));
        let nan = Metrics { test_loss: f64::NAN, ..metrics(1) };
        assert!(line(&nan).contains("\"test_loss\":null"));
        assert!(parse(&line(&nan)).is_some_and(|m| m.test_loss.is_nan()));
        for len in 0..text.len() {
            assert_eq!(parse(&text[..len]), None);
        }
        for (good, bad) in [("\"epoch\":3", "\"epoch\":0"), ("\"test_accuracy\":1", "\"test_accuracy\":1.01")] {
            assert!(text.contains(good) && parse(&text.replace(good, bad)).is_none(), "{bad}");
        }
    }

    /// The epochs, the kept content and the problem.
    fn read(content: &str, epochs: u32) -> (Vec<u32>, String, String) {
        let History { epochs, kept, problem } = History::read(content.as_bytes(), epochs);
        (epochs.iter().map(|m| m.epoch).collect(), String::from_utf8(kept).unwrap(), problem.unwrap_or_default())
    }

    #[test]
    fn later_epochs_and_torn_lines_are_dropped() {
        let lines =
            |epochs: std::ops::RangeInclusive<u32>| epochs.map(|e| line(&metrics(e)) + "\n").collect::<String>();
        let whole = lines(1..=3);
        assert_eq!(read("", 0), (vec![], "".into(), "".into()));
        assert_eq!(read(&whole, 3), (vec![1, 2, 3], whole.clone(), "".into()));
        assert_eq!(read(&whole, 1), (vec![1], lines(1..=1), "".into()));
        assert_eq!(read(&format!("{whole}{{\"epoch\":4,\"tra"), 3), (vec![1, 2, 3], whole.clone(), "".into()));
        assert_eq!(read(whole.trim_end(), 3), (vec![1, 2, 3], whole.clone(), "".into()), "a line end that was cut off");
        let foreign = format!("\u{feff}{}\r\n\n", whole.replace('\n', "\r\n").trim_end());
        assert_eq!(read(&foreign, 3), (vec![1, 2, 3], foreign.clone(), "".into()));
    }

    #[test]
    fn missing_lines_are_reported_and_good_lines_kept() {
        let l = |epoch| line(&metrics(epoch)) + "\n";
        let damaged = format!("{}garbage\n{}{}", l(1), l(3), l(4));
        let problem = "missing epoch 2, unreadable line 2";
        assert_eq!(read(&damaged, 4), (vec![1, 3, 4], damaged.clone(), problem.into()));
        assert_eq!(read("", 4).2, "missing epochs 1 to 4");
        let mixed = l(1) + &l(1) + &l(3) + &l(2) + &l(7);
        let kept = l(1) + &l(1) + &l(3) + &l(2);
        assert_eq!(read(&mixed, 6), (vec![1, 2, 3], kept, "missing epochs 4 to 6, duplicate epoch 1".into()));
        let History { epochs, kept, problem } = History::read(b"\xff\xfe\x00\n", 1);
        assert_eq!((epochs.len(), &kept[..]), (0, &b"\xff\xfe\x00\n"[..]));
        assert_eq!(problem.unwrap(), "missing epoch 1, unreadable line 1");
        // A huge number of epochs takes no memory, and many faults make no long line.
        assert_eq!(read(&l(5), u32::MAX).2, "missing epochs 1 to 4, 6 to 4294967295");
        let every_other: String = (1..=20).map(|i| if i % 2 == 0 { "x\n".into() } else { l(i) }).collect();
        let expected = "missing epochs 2, 4, 6, 8, 10, 12, 14, 16 and 2 more, \
                        unreadable lines 2, 4, 6, 8, 10, 12, 14, 16 and 2 more";
        assert_eq!(read(&every_other, 20).2, expected);
    }
}
