//! The folder of a run: its checkpoint, its metrics, its curves. While a run is in it no other is.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use residuum::device::ExitWhereMemoryEnds;
use residuum::files::{sweep, write_atomically};
use residuum::train::{Metrics, Settings};
use residuum::Error;

use crate::curves;
use crate::failure::{note, Failure};
use crate::metrics::{line, History};

/// Where runs lie that are not told where.
const RUNS: &str = "runs";

/// The file whose lock a run holds. The system gives the lock back when the process ends, however it does.
const LOCK: &str = ".residuum-lock";

/// How often a folder is made that others take away meanwhile.
const TRIES: usize = 100;

/// The folder of a run, which is this process's until it is dropped. What holds nothing then goes away.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: Arc<File>,
}

/// What a process leaves behind where it ends without dropping its folder.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The folders that were made for it, the outermost first.
    made: Vec<PathBuf>,
    /// The lock, once it is this process's.
    lock: Option<Arc<File>>,
}

static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

/// Why a folder cannot be had.
enum Refusal {
    /// Another process is in it.
    Taken(String),
    Io(io::Error),
}

impl Folder {
    /// The folder at `path`, which is made where it does not exist. Fails where another run is in it.
    pub fn claim(path: PathBuf) -> Result<Self, Failure> {
        let mut tries = 0;
        loop {
            let mut made = Vec::new();
            make(&path, &mut made).map_err(|e| Error::io(&path, &e))?;
            tries += 1;
            return match Self::hold(path.clone(), made) {
                Ok(folder) => Ok(folder),
                // A run that ended has just taken the empty folder away.
                Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound && tries < TRIES => continue,
                Err(Refusal::Io(e)) => Err(Error::io(path.join(LOCK), &e).into()),
                Err(Refusal::Taken(by)) => {
                    let path = path.display();
                    Err(Failure::Work(format!("{path}: another run{by} is in it; let it end, or take another --out")))
                }
            };
        }
    }

    /// A folder of its own for a new run of `settings`: `runs/MODEL-DATA-seedSEED`, or with `-2`, `-3`, ... after it.
    pub fn fresh(settings: &Settings) -> Result<Self, Failure> {
        let mut number = newest(settings).map_or(1, |newest| newest + 1);
        for _ in 0..TRIES * TRIES {
            let path = numbered(settings, number);
            let mut made = Vec::new();
            make(Path::new(RUNS), &mut made).map_err(|e| Error::io(RUNS, &e))?;
            match fs::create_dir(&path) {
                Ok(()) => made.push(path.clone()),
                // A run that started at the same moment has it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    number += 1;
                    continue;
                }
                // One that ended has just taken the empty folder of all runs away.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(path, &e).into()),
            }
            match Self::hold(path.clone(), made) {
                Ok(folder) => return Ok(folder),
                Err(Refusal::Taken(_)) => number += 1,
                Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => {}
                Err(Refusal::Io(e)) => return Err(Error::io(path.join(LOCK), &e).into()),
            }
        }
        Err(Failure::Work(format!("{RUNS}: no name for a run's folder is free")))
    }

    /// The last folder that [`Folder::fresh`] gave for `settings`, whatever its run left in it.
    pub fn latest(settings: &Settings) -> Result<Self, Failure> {
        Self::claim(numbered(settings, newest(settings).unwrap_or(1)))
    }

    fn hold(path: PathBuf, made: Vec<PathBuf>) -> Result<Self, Refusal> {
        held().push(Held { path: path.clone(), made, lock: None });
        let lock = lock(&path.join(LOCK)).map(Arc::new);
        let mut held = held();
        if let Some(at) = held.iter().rposition(|held| held.path == path && held.lock.is_none()) {
            match &lock {
                Ok(lock) => held[at].lock = Some(lock.clone()),
                Err(_) => held.swap_remove(at).release(),
            }
        }
        let lock = lock?;
        // What killed runs were writing. What cannot be removed is in nobody's way.
        let _ = sweep(&path);
        Ok(Self { path, lock })
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

    /// Fails where the folder that lies here is no longer this run's: it was moved, or removed and made anew.
    pub fn check(&self) -> residuum::Result<()> {
        match is_at(&self.lock, &self.path.join(LOCK)) {
            true => Ok(()),
            false => Err(Error::file(&self.path, "no longer this run's folder: it was moved or removed")),
        }
    }

    /// Whether a run has left a checkpoint here, or a link to one. Fails where that cannot be told: a checkpoint that
    /// cannot be seen is not to be taken for none.
    pub fn has_checkpoint(&self) -> Result<bool, Failure> {
        let path = self.checkpoint();
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io(path, &e).into()),
        }
    }

    /// Whether a run has left something here; fails where that cannot be told.
    pub fn holds_run(&self) -> Result<bool, Failure> {
        let path = self.metrics();
        Ok(self.has_checkpoint()? || path.try_exists().map_err(|e| Error::io(path, &e))?)
    }

    /// Brings the metrics to what they were after `epochs` epochs, and returns them: see [`History::read`]. Warns where
    /// they are not whole.
    pub fn rewind(&self, epochs: u32) -> Result<Vec<Metrics>, Failure> {
        let path = self.metrics();
        // A pipe would be waited for.
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::file(path, "not a regular file, expected a run's metrics").into());
        }
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path, &e).into()),
        };
        // A run that was killed before its first checkpoint tells of one epoch.
        if epochs == 0 && History::read(&content, u32::MAX).epochs.iter().any(|m| m.epoch > 1) {
            let problem = "it tells of epochs whose checkpoint is missing; put that back, or take another --out";
            return Err(Error::file(path, problem).into());
        }
        let History { epochs, kept, problem } = History::read(&content, epochs);
        if kept != content {
            write_atomically(&path, |out| out.write_all(&kept))?;
        }
        if let Some(problem) = problem {
            note("warning", &format!("{}: {problem}; the checkpoint is whole, and the run goes on", path.display()));
        }
        Ok(epochs)
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

    /// Draws the curves anew. Fails where memory lacks: a plot is not worth a run.
    pub fn draw(&self, title: &str, history: &[Metrics]) -> residuum::Result<()> {
        if !ExitWhereMemoryEnds::has_room(curves::MEMORY) {
            return Err(Error::OutOfMemory { what: "a plot".into(), bytes: Some(curves::MEMORY) });
        }
        let files = [("curves.svg", curves::svg(title, history)), ("curves.png", curves::png(title, history))];
        for (name, content) in files {
            let path = self.path.join(name);
            let content = content.map_err(|problem| Error::file(&path, problem))?;
            write_atomically(&path, |out| out.write_all(&content))?;
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let mut held = held();
        if let Some(at) = held.iter().position(|held| {
            held.path == self.path && held.lock.as_ref().is_some_and(|lock| Arc::ptr_eq(lock, &self.lock))
        }) {
            held.swap_remove(at).release();
        }
    }
}

/// Gives all folders back, for a process that is about to end without dropping them.
pub fn release() {
    held().drain(..).for_each(Held::release);
}

impl Held {
    /// Takes the lock's file away, which is still locked, and the folders that were made and hold nothing.
    fn release(self) {
        // Where they cannot be removed nothing is lost: a lock that nobody holds refuses nobody.
        let path = self.path.join(LOCK);
        // Another run's, where the folder was moved, stays.
        if self.lock.is_some_and(|lock| is_at(&lock, &path)) {
            let _ = fs::remove_file(path);
        }
        for folder in self.made.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

fn held() -> std::sync::MutexGuard<'static, Vec<Held>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn numbered(settings: &Settings, number: u32) -> PathBuf {
    let base = base(settings);
    Path::new(RUNS).join(if number > 1 { format!("{base}-{number}") } else { base })
}

fn base(settings: &Settings) -> String {
    let data = settings.data.split(':').next().unwrap_or_default();
    format!("{}-{data}-seed{}", settings.model, settings.seed)
}

/// The largest number of a folder for `settings`.
fn newest(settings: &Settings) -> Option<u32> {
    let base = base(settings);
    let number = |name: &str| match name.strip_prefix(&base)? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok().filter(|number| (2..u32::MAX).contains(number)),
    };
    let names = fs::read_dir(RUNS).ok()?.flatten();
    names.filter_map(|entry| number(entry.file_name().to_str()?)).max()
}

/// Makes the folder `path` with all that it lies in, and adds what was made to `made`.
fn make(path: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() || path == Path::new("") {
        return Ok(());
    }
    if let Some(outer) = path.parent() {
        make(outer, made)?;
    }
    match fs::create_dir(path) {
        Ok(()) => made.push(path.into()),
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

/// The lock at `path`, with the number of this process in it for others to read.
fn lock(path: &Path) -> Result<File, Refusal> {
    loop {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Refusal::Io(io::Error::other("no file, where a run keeps its lock")));
        }
        let open =
            |new: bool| File::options().create(true).create_new(new).truncate(false).read(true).write(true).open(path);
        let (mut file, new) = match open(true) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (open(false).map_err(Refusal::Io)?, false),
            file => (file.map_err(Refusal::Io)?, true),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // The number is for people only.
                let _ = file.read_to_string(&mut owner);
                let by = if owner.is_empty() { String::new() } else { format!(" (process {})", owner.trim()) };
                return Err(Refusal::Taken(by));
            }
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                note("warning", &format!("{}: this file system has no locks: keep other runs away", path.display()));
            }
            Err(TryLockError::Error(e)) => {
                if new {
                    // Nobody can have locked it.
                    let _ = fs::remove_file(path);
                }
                return Err(Refusal::Io(e));
            }
        }
        // Whoever held it before has removed it: the next one locks another file of that name.
        if !is_at(&file, path) {
            continue;
        }
        let mut old = Vec::new();
        if !new {
            file.read_to_end(&mut old).map_err(Refusal::Io)?;
        }
        if !old.iter().all(|b| b.is_ascii_digit() || *b == b'\n') {
            return Err(Refusal::Io(io::Error::other("not a run's lock; rename it, or take another --out")));
        }
        // The number is for people only.
        let number = format!("{}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(number.as_bytes()));
        return Ok(file);
    }
}

/// Whether `file` is what lies at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: io::Result<fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    identity(file.metadata()) == identity(fs::metadata(path))
}

/// Whether `file` is what lies at `path`: a file that is open cannot be removed here.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_that_are_no_file_are_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::claim(temporary.path().join("a")).unwrap();
        fs::create_dir(folder.metrics()).unwrap();
        assert!(matches!(folder.rewind(1), Err(Failure::Work(cause)) if cause.contains("not a regular file")));
        fs::remove_dir(folder.metrics()).unwrap();
        let made = std::process::Command::new("mkfifo").arg(folder.metrics()).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(folder.rewind(1).is_err(), "a pipe is not waited for");
        }
    }

    #[test]
    fn a_folder_is_one_runs_and_what_is_empty_goes_away() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let folder = Folder::claim(path.clone()).unwrap();
        let Err(Failure::Work(cause)) = Folder::claim(path.clone()) else { panic!("two runs in one folder") };
        let expected =
            format!("another run (process {}) is in it; let it end, or take another --out", std::process::id());
        assert_eq!(cause, format!("{}: {expected}", path.display()));
        drop(folder);
        assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "nothing was left");

        let folder = Folder::claim(path.clone()).unwrap();
        fs::write(folder.metrics(), "").unwrap();
        drop(folder);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the metrics stay");
        fs::write(path.join(LOCK), "12345\n").unwrap();
        drop(Folder::claim(path.clone()).unwrap());
        assert!(!path.join(LOCK).exists());
        fs::write(temporary.path().join("file"), "").unwrap();
        assert!(Folder::claim(temporary.path().join("file")).is_err());
        assert!(Folder::claim(temporary.path().join("file/inside")).is_err());
    }
}
