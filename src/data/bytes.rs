//! Reading whole files with errors that name them.

use std::path::Path;

use crate::{Error, Result};

/// The content of `path`.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::io(path, &e))
}

/// The first of `names` that exists in `folder`, or in one of its sub-folders `inside`; if none does, an error that
/// names the first and says where to get it.
pub fn find(folder: &Path, inside: &[&str], names: &[&str], origin: &str) -> Result<std::path::PathBuf> {
    let folders = std::iter::once(folder.to_path_buf()).chain(inside.iter().map(|sub| folder.join(sub)));
    for base in folders {
        if let Some(path) = names.iter().map(|name| base.join(name)).find(|path| path.is_file()) {
            return Ok(path);
        }
    }
    let path = folder.join(names[0]);
    if !folder.is_dir() {
        return Err(Error::file(folder, format!("not a folder, expected one that holds {} ({origin})", names[0])));
    }
    let packed = path.with_file_name(format!("{}.gz", names[0]));
    if packed.is_file() {
        return Err(Error::file(packed, format!("compressed, expected {}: unpack it with gunzip", names[0])));
    }
    Err(Error::file(path, format!("no such file ({origin})")))
}
