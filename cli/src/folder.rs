//! The folder of a run: its checkpoint, its metrics, its curves.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use residuum::models::weights::write_atomically;
use residuum::train::{Metrics, Settings};
use residuum::Error;
use serde_json::Value;

use crate::curves;
use crate::failure::Failure;

/// Where runs lie that are not told where.
const RUNS: &str = "runs";

/// The folder of a run.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, which need not exist.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// A folder of its own for a new run of `settings`: `runs/MODEL-DATA-seedSEED`, or with `-2`, `-3`, ... after it.
    pub fn fresh(settings: &Settings) -> Self {
        let mut number = 1;
        loop {
            let folder = Self::numbered(settings, number);
            if !folder.holds_run() {
                return folder;
            }
            number += 1;
        }
    }

    /// The last folder that [`Folder::fresh`] gave for `settings`.
    pub fn latest(settings: &Settings) -> Self {
        let mut number = 1;
        while Self::numbered(settings, number + 1).holds_run() {
            number += 1;
        }
        Self::numbered(settings, number)
    }

    fn numbered(settings: &Settings, number: usize) -> Self {
        let data = settings.data.split(':').next().unwrap_or_default();
        let mut name = format!("{}-{data}-seed{}", settings.model, settings.seed);
        if number > 1 {
            name.push_str(&format!("-{number}"));
        }
        Self::at(Path::new(RUNS).join(name))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Whether a run has left something here.
    pub fn holds_run(&self) -> bool {
        self.checkpoint().exists() || self.metrics().exists()
    }

    /// Makes the folder.
    pub fn create(&self) -> Result<(), Failure> {
        fs::create_dir_all(&self.path).map_err(|e| Error::io(&self.path, &e).into())
    }

    /// Brings the metrics to what they were after `epochs` epochs, and returns them: lines of later epochs, which a run
    /// wrote that was killed before its next checkpoint, are dropped, as is a line that was not written to its end.
    pub fn rewind(&self, epochs: u32) -> Result<Vec<Metrics>, Failure> {
        let path = self.metrics();
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(path, &e).into()),
        };
        let lines: Vec<_> = text
            .lines()
            .map_while(|line| parse(line).filter(|m| m.epoch <= epochs).map(|metrics| (line, metrics)))
            .collect();
        let kept: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
        if kept != text {
            write_atomically(&path, |out| out.write_all(kept.as_bytes()))?;
        }
        Ok(lines.into_iter().map(|(_, metrics)| metrics).collect())
    }

    /// Adds an epoch's line to the metrics.
    pub fn append(&self, metrics: &Metrics) -> residuum::Result<()> {
        let path = self.metrics();
        let open = fs::OpenOptions::new().create(true).append(true).open(&path);
        open.and_then(|mut file| {
            file.write_all(format!("{}\n", line(metrics)).as_bytes())?;
            file.sync_data()
        })
        .map_err(|e| Error::io(path, &e))
    }

    /// Draws the curves anew.
    pub fn draw(&self, title: &str, history: &[Metrics]) -> residuum::Result<()> {
        let files = [("curves.svg", curves::svg(title, history)), ("curves.png", curves::png(title, history))];
        for (name, content) in files {
            let path = self.path.join(name);
            let content = content.map_err(|problem| Error::file(&path, problem))?;
            write_atomically(&path, |out| out.write_all(&content))?;
        }
        Ok(())
    }
}

/// An epoch as a JSON object; what is not finite is null.
fn line(m: &Metrics) -> String {
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

/// What [`line()`] wrote; `None` for anything else.
fn parse(line: &str) -> Option<Metrics> {
    let value: Value = serde_json::from_str(line).ok()?;
    let number = |name: &str| match value.get(name)? {
        Value::Null => Some(f64::NAN),
        found => found.as_f64(),
    };
    Some(Metrics {
        epoch: value.get("epoch")?.as_u64()?.try_into().ok()?,
        train_loss: number("train_loss")?,
        train_accuracy: number("train_accuracy")?,
        test_loss: number("test_loss")?,
        test_accuracy: number("test_accuracy")?,
        learning_rate: number("learning_rate")?,
        images_per_second: number("images_per_second")?,
        seconds: number("seconds")?,
    })
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
    fn a_line_and_back() {
        let text = line(&metrics(3));
        assert!(text.starts_with("{\"epoch\":3,\"train_loss\":0.30000000000000004,"), "{text}");
        assert_eq!(parse(&text), Some(metrics(3)));
        let nan = Metrics { test_loss: f64::NAN, ..metrics(1) };
        assert!(line(&nan).contains("\"test_loss\":null"));
        assert!(parse(&line(&nan)).is_some_and(|m| m.test_loss.is_nan()));
        for len in 0..text.len() {
            assert_eq!(parse(&text[..len]), None);
        }
    }

    #[test]
    fn rewinding_drops_later_epochs_and_torn_lines() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::at(temporary.path().to_path_buf());
        assert_eq!(folder.rewind(0).unwrap(), []);
        for epoch in 1..=3 {
            folder.append(&metrics(epoch)).unwrap();
        }
        let whole = fs::read_to_string(folder.metrics()).unwrap();
        assert_eq!(folder.rewind(3).unwrap().len(), 3);
        assert_eq!(fs::read_to_string(folder.metrics()).unwrap(), whole);
        fs::write(folder.metrics(), format!("{whole}{{\"epoch\":4,\"tra")).unwrap();
        assert_eq!(folder.rewind(4).unwrap().len(), 3);
        assert_eq!(fs::read_to_string(folder.metrics()).unwrap(), whole);
        assert_eq!(folder.rewind(1).unwrap(), [metrics(1)]);
        assert_eq!(fs::read_to_string(folder.metrics()).unwrap().lines().count(), 1);
    }
}
