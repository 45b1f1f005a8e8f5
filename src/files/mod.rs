//! Files: written all or nothing, and recognised by their first bytes.

mod format;
mod temporary;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use format::Format;
use temporary::Temporary;
pub use temporary::{remove_temporaries, sweep};

use crate::{Error, Result};

/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;
/// The links that a name may lead through, as Linux counts them.
const MOST_LINKS: usize = 40;

/// Writes a file all or nothing: into a temporary file beside it, which then takes its name, both on disk when this
/// returns. Where `content` or the system fails, a file that was there before is untouched, and the temporary is
/// removed.
///
/// Any number of threads and processes may write one file at once: each has a temporary of its own, and the file is
/// always one of theirs as a whole. An existing file's permissions are kept, and its owner where the system allows it.
/// Links are followed; what is no file (a pipe, a device) is written to as it is.
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

/// Writes a temporary file and renames it.
fn replace(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let failed = |e: io::Error| Error::io(path, &e);
    let target = resolve(path).map_err(failed)?;
    let names_a_file = target.file_name().is_some() && !target.as_os_str().as_encoded_bytes().ends_with(b"/");
    if !names_a_file {
        return Err(Error::file(path, "not the name of a file"));
    }
    let folder = match target.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
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

/// The file that `path` names, all links followed; it need not exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            // A link that leads nowhere is followed too: what it names is made.
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// Puts the folder's entries on disk, where the system has such a thing and allows it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    let Ok(opened) = File::open(folder) else { return Ok(()) };
    match opened.sync_all() {
        Err(e) if !cfg!(unix) || e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests;
