//! Temporary files: each has a unique name, is created anew and is removed unless it is renamed to its target.
//!
//! A temporary file is called `.residuum-PID-NUMBER.tmp`, with 16 random hexadecimal digits. It is locked while it is
//! written, so that [`sweep`] can tell it from one whose process is gone.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

const PREFIX: &str = ".residuum-";
const SUFFIX: &str = ".tmp";
/// The hexadecimal digits of the number.
const DIGITS: usize = 16;
/// The most names that are tried in a folder.
const TRIES: usize = 100;

/// This process's temporary files.
struct Live {
    paths: BTreeSet<PathBuf>,
    /// Set by [`remove_temporaries`]: the process is about to end.
    ended: bool,
}

static LIVE: Mutex<Live> = Mutex::new(Live { paths: BTreeSet::new(), ended: false });

/// The list. A panic does not poison it: each change is complete.
fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Fails after [`remove_temporaries`].
    fn check(&self) -> io::Result<()> {
        match self.ended {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "the program was interrupted")),
            false => Ok(()),
        }
    }
}

/// A temporary file, removed on drop.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// Creates a new file in `folder`; never opens an existing file or follows a link. With `old`, the metadata of the
    /// file to replace, it gets that file's permissions; until then only its owner can read it.
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
                // The lock is held, so that `remove_temporaries` misses no file.
                let mut live = live();
                match live.check().and_then(|()| options.open(&path)) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => None,
                    opened => Some(opened.map(|file| {
                        live.paths.insert(path.clone());
                        Self { path, file }
                    })),
                }
            })
            .unwrap_or_else(|| Err(io::Error::other("no free name for a temporary file")))?;
        // Without locks, `sweep` has none to test either.
        let _ = temporary.file.try_lock();
        if let Some(old) = old {
            keep_access(&temporary.file, old)?;
        }
        Ok(temporary)
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Renames the file to `target`, replacing what is there.
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
            // A failed removal is not reported: the error that led here is.
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
        // Without the owner, the set-id bits must not be set.
        mode &= 0o1777;
        if found.gid() != old.gid() && fchown(file, None, Some(old.gid())).is_err() {
            // This process's group gets no more rights than others had.
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
    // The only random source of the standard library. The number need not be secret: a taken name is skipped.
    let number = std::hash::RandomState::new().build_hasher().finish();
    format!("{PREFIX}{}-{number:016x}{SUFFIX}", std::process::id())
}

/// True if `name` has the form of [`name`].
fn is_temporary(name: &str) -> bool {
    let middle = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
    middle.and_then(|middle| middle.split_once('-')).is_some_and(|(pid, number)| {
        let decimal = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
        decimal && number.len() == DIGITS && number.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Removes the temporary files of killed processes from `folder`, and returns their number. Other files, links, and
/// temporary files that are being written stay. On a file system without locks, call it only if nothing else writes to
/// the folder: it would remove a temporary file in use, and its writer would fail.
pub fn sweep(folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let failed = |e: io::Error| Error::io(folder, &e);
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // The entry's own type: a link is not followed.
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_str().is_some_and(is_temporary) && is_abandoned(&entry.path()) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), &e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// True if no process is writing the temporary file at `path`.
fn is_abandoned(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => !matches!(file.try_lock(), Err(TryLockError::WouldBlock)),
        // An unreadable file may still be removable.
        Err(_) => true,
    }
}

/// Removes the temporary files that this process is writing, before a signal ends it. Every write fails from then on,
/// so that nothing is left behind. It takes a lock: call it from a thread, not from a signal handler.
pub fn remove_temporaries() {
    let mut live = live();
    live.ended = true;
    for path in std::mem::take(&mut live.paths) {
        // The program is ending: a failure cannot be reported.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_temporary_files_are_recognised() {
        assert!((0..100).all(|_| is_temporary(&name())));
        assert_eq!((0..100).map(|_| name()).collect::<BTreeSet<_>>().len(), 100);
        let others = ".residuum-12-0123456789abcde.tmp .residuum-12-0123456789abcdef0.tmp .out.tmp \
                      .residuum-12-0123456789abcdeF.tmp .residuum--0123456789abcdef.tmp .residuum-0123456789abcdef.tmp \
                      .residuum-1x-0123456789abcdef.tmp .residuum-12-0123456789abcdef.tmp~ \
                      residuum-12-0123456789abcdef.tmp";
        others.split(' ').for_each(|other| assert!(!is_temporary(other), "{other}"));
    }
}
