//! Atomic writes, and recognition of file formats.
//!
//! ```
//! use std::io::Write;
//!
//! use residuum::files::{write_atomically, Format};
//!
//! let path = std::env::temp_dir().join(format!("residuum-doc-{}.json", std::process::id()));
//! write_atomically(&path, |out| out.write_all(b"{}"))?;
//! assert_eq!(Format::of(&std::fs::read(&path).expect("the file")), Some(Format::Json));
//! # std::fs::remove_file(&path).expect("the file");
//! # Ok::<(), residuum::Error>(())
//! ```

mod format;
mod temporary;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use format::Format;
use temporary::Temporary;
pub use temporary::{remove_temporaries, sweep};

use crate::{Error, Result};

/// The buffer of a write, in bytes.
const BUFFER: usize = 1 << 20;
/// The most symbolic links that a name may lead through, as in Linux.
const MOST_LINKS: usize = 40;

/// Writes a file atomically: to a temporary file beside it, which is synced and then renamed. If `content` or the
/// system fails, an existing file is untouched, and the temporary file is removed.
///
/// Any number of threads and processes may write one file at once: each has its own temporary file, and one of these
/// becomes the result. An existing file's permissions are kept, and its owner if the system allows it. Symbolic links
/// are followed; pipes and devices are written directly.
pub fn write_atomically(path: impl AsRef<Path>, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Error::file(path, "a folder, expected the name of a file")),
        Ok(found) if !found.is_file() => stream(path, content).map_err(|e| Error::io(path, &e)),
        _ => replace(path, content),
    }
}

/// Writes to a pipe or a device.
fn stream(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, File::options().write(true).open(path)?);
    content(&mut out)?;
    out.flush()
}

/// Writes a temporary file, syncs it and renames it to `path`.
fn replace(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let failed = |e: io::Error| Error::io(path, &e);
    let target = resolve(path).map_err(failed)?;
    let names_a_file = target.file_name().is_some() && !target.as_os_str().as_encoded_bytes().ends_with(b"/");
    if !names_a_file {
        return Err(Error::file(path, "not the name of a file"));
    }
    let folder = target.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    (|| {
        let temporary = Temporary::create(folder, fs::metadata(&target).ok().as_ref())?;
        let mut out = BufWriter::with_capacity(BUFFER, temporary.file());
        content(&mut out)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        temporary.rename(&target)?;
        sync_folder(folder)
    })()
    .map_err(failed)
}

/// The file that `path` names, with all links followed. It need not exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            // A dangling link is followed too: its target is created.
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Syncs the folder's entries, if the system supports it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    let Ok(opened) = File::open(folder) else { return Ok(()) };
    match opened.sync_all() {
        Err(e) if !cfg!(unix) || e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests;
