//! The folder of a run: its checkpoint, metrics and curves. A lock keeps other runs out.

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

/// The parent folder of runs without `--out`.
const RUNS: &str = "runs";

/// The file that a run locks. The system releases the lock when the process ends.
const LOCK: &str = ".residuum-lock";

/// The most attempts to create a folder that other processes remove.
const TRIES: usize = 100;

/// The folder of a run, locked by this process until drop, which removes it if it is empty.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: Arc<File>,
}

/// The cleanup of a folder, for a process that ends without dropping it.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The folders created for it, the outermost first.
    made: Vec<PathBuf>,
    /// The lock, once acquired.
    lock: Option<Arc<File>>,
}

static HELD: Mutex<Vec<Held>> = Mutex::new(Vec::new());

/// Why a folder cannot be claimed.
enum Refusal {
    /// Another process has locked it.
    Taken(String),
    Io(io::Error),
}

impl Folder {
    /// Claims the folder at `path`, which is created if it does not exist. Fails if another run has it.
    pub fn claim(path: PathBuf) -> Result<Self, Failure> {
        let mut tries = 0;
        loop {
            let mut made = Vec::new();
            make(&path, &mut made).map_err(|e| Error::io(&path, &e))?;
            tries += 1;
            return match Self::hold(path.clone(), made) {
                Ok(folder) => Ok(folder),
                // A run that ended has just removed the empty folder.
                Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound && tries < TRIES => continue,
                Err(Refusal::Io(e)) => Err(Error::io(path.join(LOCK), &e).into()),
                Err(Refusal::Taken(by)) => {
                    let path = path.display();
                    Err(Failure::Work(format!(
                        "{path}: in use by another run{by}; wait for it to end, or choose another --out"
                    )))
                }
            };
        }
    }

    /// Creates a folder for a new run of `settings`: `runs/MODEL-DATA-seedSEED`, or with `-2`, `-3`, ... after it.
    pub fn fresh(settings: &Settings) -> Result<Self, Failure> {
        let mut number = newest(settings).map_or(1, |newest| newest + 1);
        for _ in 0..TRIES * TRIES {
            let path = numbered(settings, number);
            let mut made = Vec::new();
            make(Path::new(RUNS), &mut made).map_err(|e| Error::io(RUNS, &e))?;
            match fs::create_dir(&path) {
                Ok(()) => made.push(path.clone()),
                // A run that started at the same time has it.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    number += 1;
                    continue;
                }
                // A run that ended has just removed the empty folder of all runs.
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
        Err(Failure::Work(format!("{RUNS}: no free name for a run's folder")))
    }

    /// Claims the last folder that [`Folder::fresh`] created for `settings`, regardless of its content.
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
        // Removes temporary files of killed runs; a failure does no harm.
        let _ = sweep(&path);
        Ok(Self { path, lock })
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of the checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Fails if the folder at the path is no longer this run's: moved, or removed and created anew.
    pub fn check(&self) -> residuum::Result<()> {
        match is_at(&self.lock, &self.path.join(LOCK)) {
            true => Ok(()),
            false => Err(Error::file(&self.path, "no longer this run's folder: it was moved or removed")),
        }
    }

    /// True if there is a checkpoint or a link to one. Fails if that cannot be determined: an invisible checkpoint must
    /// not count as none.
    pub fn has_checkpoint(&self) -> Result<bool, Failure> {
        let path = self.checkpoint();
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(Error::io(path, &e).into()),
        }
    }

    /// True if a run has left files here. Fails if that cannot be determined.
    pub fn holds_run(&self) -> Result<bool, Failure> {
        let path = self.metrics();
        Ok(self.has_checkpoint()? || path.try_exists().map_err(|e| Error::io(path, &e))?)
    }

    /// Truncates the metrics to the first `epochs` epochs and returns them: see [`History::read`]. Warns if they are
    /// incomplete.
    pub fn rewind(&self, epochs: u32) -> Result<Vec<Metrics>, Failure> {
        let path = self.metrics();
        // Reading a pipe would block.
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(Error::file(path, "not a regular file, expected a run's metrics").into());
        }
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io(path, &e).into()),
        };
        // A run that was killed before its first checkpoint has at most one epoch.
        if epochs == 0 && History::read(&content, u32::MAX).epochs.iter().any(|m| m.epoch > 1) {
            let problem = "it has epochs whose checkpoint is missing; restore it, or choose another --out";
            return Err(Error::file(path, problem).into());
        }
        let History { epochs, kept, problem } = History::read(&content, epochs);
        if kept != content {
            write_atomically(&path, |out| out.write_all(&kept))?;
        }
        if let Some(problem) = problem {
            note(
                "warning",
                &format!("{}: {problem}; the checkpoint is complete, and the run continues", path.display()),
            );
        }
        Ok(epochs)
    }

    /// Appends an epoch to the metrics.
    pub fn append(&self, metrics: &Metrics) -> residuum::Result<()> {
        let path = self.metrics();
        let open = fs::OpenOptions::new().create(true).append(true).open(&path);
        open.and_then(|mut file| {
            file.write_all(format!("{}\n", line(metrics)).as_bytes())?;
            file.sync_data()
        })
        .map_err(|e| Error::io(path, &e))
    }

    /// Draws the curves. Fails if memory is short, so that a plot does not end a run.
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

/// Releases all folders, for a process that is about to end without dropping them.
pub fn release() {
    held().drain(..).for_each(Held::release);
}

impl Held {
    /// Removes the file of the lock, which is still locked, and the created folders that are empty.
    fn release(self) {
        // A failed removal does no harm: the file alone locks nobody out.
        let path = self.path.join(LOCK);
        // If the folder was moved, another run's lock may be here.
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

/// Creates the folder `path` and its parents, and adds those created to `made`.
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

/// Locks the file at `path` and writes the process id into it, for people to read.
fn lock(path: &Path) -> Result<File, Refusal> {
    loop {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(Refusal::Io(io::Error::other("not a regular file, expected a run's lock")));
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
                // The process id is for people only.
                let _ = file.read_to_string(&mut owner);
                let by = if owner.is_empty() { String::new() } else { format!(" (process {})", owner.trim()) };
                return Err(Refusal::Taken(by));
            }
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                note(
                    "warning",
                    &format!("{}: this file system has no locks: start no other run in this folder", path.display()),
                );
            }
            Err(TryLockError::Error(e)) => {
                if new {
                    // No other process can have locked it.
                    let _ = fs::remove_file(path);
                }
                return Err(Refusal::Io(e));
            }
        }
        // The previous holder has removed it: lock the new file of that name.
        if !is_at(&file, path) {
            continue;
        }
        let mut old = Vec::new();
        if !new {
            file.read_to_end(&mut old).map_err(Refusal::Io)?;
        }
        if !old.iter().all(|b| b.is_ascii_digit() || *b == b'\n') {
            return Err(Refusal::Io(io::Error::other("not a run's lock; rename it, or choose another --out")));
        }
        // The process id is for people only.
        let number = format!("{}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(number.as_bytes()));
        return Ok(file);
    }
}

/// True if `file` is the file at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: io::Result<fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    identity(file.metadata()) == identity(fs::metadata(path))
}

/// True if `file` is the file at `path`: here an open file cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_that_are_not_a_file_are_refused() {
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
    fn one_run_owns_a_folder_and_empty_folders_are_removed() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b");
        let folder = Folder::claim(path.clone()).unwrap();
        let Err(Failure::Work(cause)) = Folder::claim(path.clone()) else { panic!("two runs in one folder") };
        let expected = format!(
            "in use by another run (process {}); wait for it to end, or choose another --out",
            std::process::id()
        );
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
