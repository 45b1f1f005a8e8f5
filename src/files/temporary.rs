//! Temporary files: each with a name of its own, made anew, removed unless it takes its target's name.
//!
//! A temporary is called `.residuum-PID-NUMBER.tmp` with 16 random hexadecimal digits, whatever its target's name. It
//! is locked while it is written, so that [`sweep`] tells it from one whose process is gone.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

const PREFIX: &str = ".residuum-";
const SUFFIX: &str = ".tmp";
/// Hexadecimal digits of the number.
const DIGITS: usize = 16;
/// Names that are tried before a folder is given up.
const TRIES: usize = 100;

/// This process's temporary files.
struct Live {
    paths: BTreeSet<PathBuf>,
    /// Set by [`remove_temporaries`]: the process is about to end.
    ended: bool,
}

static LIVE: Mutex<Live> = Mutex::new(Live { paths: BTreeSet::new(), ended: false });

/// The list, also after a panic: each change of it is whole.
fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Fails once the process is about to end.
    fn check(&self) -> io::Result<()> {
        match self.ended {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "the program was interrupted")),
            false => Ok(()),
        }
    }
}

/// A temporary file, removed when this is dropped.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// A new file in `folder`, never one that was there, nor where a link leads. With `old`, the file that it is to
    /// replace, it gets that one's permissions; until then it is its writer's alone.
    pub fn create(folder: &Path, old: Option<&Metadata>) -> io::Result<Self> {
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        if old.is_some() {
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        }
        let temporary = (0..TRIES)
            .find_map(|_| {
                let path = folder.join(name());
                // The list is held meanwhile, so that no file is made behind the back of `remove_temporaries`.
                let mut live = live();
                match live.check().and_then(|()| options.open(&path)) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                    Err(e) => Some(Err(e)),
                    Ok(file) => {
                        live.paths.insert(path.clone());
                        Some(Ok(Self { path, file }))
                    }
                }
            })
            .unwrap_or_else(|| Err(io::Error::other("no name for a temporary file is free")))?;
        // A file system without locks has none to sweep by either.
        let _ = temporary.file.try_lock();
        if let Some(old) = old {
            keep_access(&temporary.file, old)?;
        }
        Ok(temporary)
    }

    /// Where to write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file the name `target`, whatever has it.
    pub fn rename(self, target: &Path) -> io::Result<()> {
        let mut live = live();
        live.check()?;
        fs::rename(&self.path, target)?;
        live.paths.remove(&self.path);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if live().paths.remove(&self.path) {
            // Nothing more can be done where the removal fails: what made it necessary is the error to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives `file` the owner and the permissions of `old`.
#[cfg(unix)]
fn keep_access(file: &File, old: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{fchown, MetadataExt, PermissionsExt};
    let found = file.metadata()?;
    let mut mode = old.mode() & 0o7777;
    if (found.uid(), found.gid()) != (old.uid(), old.gid()) && fchown(file, Some(old.uid()), Some(old.gid())).is_err() {
        // Another owner's set-id bits are not ours to give.
        mode &= 0o1777;
        if found.gid() != old.gid() && fchown(file, None, Some(old.gid())).is_err() {
            // Our group gets no more than everybody had.
            mode = (mode & !0o070) | ((mode & 0o007) << 3);
        }
    }
    file.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn keep_access(file: &File, old: &Metadata) -> io::Result<()> {
    file.set_permissions(old.permissions())
}

fn name() -> String {
    // The one source of random numbers in the standard library. They need not be secret: a name that is taken is passed
    // over.
    let number = std::hash::RandomState::new().build_hasher().finish();
    format!("{PREFIX}{}-{number:016x}{SUFFIX}", std::process::id())
}

/// Whether [`name`] may have made `name`.
fn is_temporary(name: &str) -> bool {
    let middle = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    middle.and_then(|middle| middle.split_once('-')).is_some_and(|(pid, number)| {
        let decimal = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
        decimal && number.len() == DIGITS && number.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Removes the temporary files of killed processes from `folder`, and returns how many. Files under other names, links,
/// and temporaries that are being written stay. For whoever alone writes to the folder: a folder that others write to
/// at this moment, on a file system without locks, could lose a temporary that is in use; its writer then fails.
pub fn sweep(folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let failed = |e: io::Error| Error::io(folder, &e);
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // The entry's own type: that of a link, not of what it leads to.
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_str().is_some_and(is_temporary) && is_abandoned(&entry.path()) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), &e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether no process is writing the temporary at `path`.
fn is_abandoned(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        // One that may not be read may still be removed.
        Err(_) => true,
    }
}

/// Removes the temporary files that this process is writing at this moment, for a program that a signal ends. Whatever
/// is being written fails from now on, so that nothing is left behind. Takes a lock: call it from a thread, not from
/// within a signal handler.
pub fn remove_temporaries() {
    let mut live = live();
    live.ended = true;
    for path in std::mem::take(&mut live.paths) {
        // The program is ending: there is nobody left to tell.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_others() {
        assert!((0..100).all(|_| is_temporary(&name())));
        assert_eq!((0..100).map(|_| name()).collect::<BTreeSet<_>>().len(), 100);
        for other in [
            ".residuum-12-0123456789abcde.tmp",
            ".residuum-12-0123456789abcdef0.tmp",
            ".residuum-12-0123456789abcdeF.tmp",
            ".residuum--0123456789abcdef.tmp",
            ".residuum-1x-0123456789abcdef.tmp",
            ".residuum-12-0123456789abcdef.tmp~",
            "residuum-12-0123456789abcdef.tmp",
            ".residuum-0123456789abcdef.tmp",
            ".out.tmp",
        ] {
            assert!(!is_temporary(other), "{other}");
        }
    }
}
