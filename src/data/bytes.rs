//! Finding the folder of a set, and reading its files with errors that name them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::files::Format;
use crate::{Error, Result};

/// Bytes of a file, also of one that is unpacked: more than any set of these forms has.
const MOST: u64 = 1 << 30;

/// A set of files as it is published.
pub struct Layout<'a> {
    /// Files by which its folder is recognised, each under the names that it may have.
    pub files: &'a [Vec<String>],
    /// The folders that hold the files below where people unpack or download the set, the most likely first.
    pub folders: &'a [&'a str],
    /// The folders that hold them beside the folder that a user names, which is another part of the same set.
    pub beside: &'a [&'a str],
    /// Names that betray another version of the set, or its archive, with what to say.
    pub others: &'a [(&'a str, &'a str)],
    /// Where to get it.
    pub origin: &'a str,
}

impl Layout<'_> {
    /// The folder that holds a file of the set: `folder`, else one below it, one beside it or the one above it. Fails
    /// where there is none or where two below are as likely, and says what is there instead.
    pub fn locate(&self, folder: &Path) -> Result<PathBuf> {
        let first = &self.files[0][0];
        if !folder.is_dir() {
            let note = self.instead(folder).unwrap_or_default();
            let problem = format!("not a folder, expected one that holds {first} ({}){note}", self.origin);
            return Err(Error::file(folder, problem));
        }
        if self.is_in(folder) {
            return Ok(folder.to_path_buf());
        }
        if let Some(found) = self.folders.iter().map(|below| folder.join(below)).find(|below| self.is_in(below)) {
            return Ok(found);
        }
        let below = children(folder);
        let within = |base: &PathBuf| {
            let inner = self.folders.iter().map(|inner| base.join(inner));
            std::iter::once(base.clone()).chain(inner).find(|path| self.is_in(path))
        };
        match below.iter().filter_map(within).collect::<Vec<_>>().as_slice() {
            [] => {}
            [found] => return Ok(found.clone()),
            [one, two, ..] => {
                let (one, two) = (one.display(), two.display());
                return Err(Error::file(folder, format!("holds {one} and {two}: name the one that is meant")));
            }
        }
        // `a/..` is no parent of a link's target.
        let whole = folder.canonicalize().map_err(|e| Error::io(folder, &e))?;
        if let Some(above) = whole.parent() {
            let beside = self.beside.iter().map(|name| above.join(name));
            let around = beside.chain([above.to_path_buf()]).find(|path| self.is_in(path));
            if let Some(found) = around {
                return Ok(found);
            }
        }
        let mut near = std::iter::once(folder.to_path_buf()).chain(below).chain(whole.parent().map(Path::to_path_buf));
        let note = near.find_map(|base| self.instead(&base)).unwrap_or_default();
        Err(Error::file(folder.join(first), format!("no such file ({}){note}", self.origin)))
    }

    /// The file of `folder` that has one of `names`; fails where none is there.
    pub fn file(&self, folder: &Path, names: &[String]) -> Result<PathBuf> {
        let found = names.iter().find_map(|name| existing(folder, name));
        found.ok_or_else(|| Error::file(folder.join(&names[0]), format!("no such file ({})", self.origin)))
    }

    fn is_in(&self, folder: &Path) -> bool {
        self.files.iter().flatten().any(|name| existing(folder, name).is_some())
    }

    /// What `path` itself, or something in it, betrays, as the end of an error.
    fn instead(&self, path: &Path) -> Option<String> {
        let own = |name: &str| path.file_name().is_some_and(|found| found == name).then(|| path.to_path_buf());
        let within = |name: &str| Some(path.join(name)).filter(|inner| inner.exists());
        self.others.iter().find_map(|(name, other)| {
            let found = own(name).or_else(|| within(name))?;
            Some(format!("; {} is {other}", found.display()))
        })
    }
}

/// The file `name` in `folder`, or in a folder of its own name there, as some archives unpack.
fn existing(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    [path.clone(), path.join(name)].into_iter().find(|path| path.is_file())
}

/// The folders in `folder`, in the order of their names.
fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let found: BTreeSet<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.into_iter().collect()
}

/// The content of `path`, unpacked where it is compressed with gzip, whatever its name says.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let read = fs::File::open(path).and_then(|file| match file.metadata()?.len() {
        len if len > MOST => Ok(Some(len)),
        _ => file.take(MOST).read_to_end(&mut content).map(|_| None),
    });
    if let Some(len) = read.map_err(|e| Error::io(path, &e))? {
        return Err(Error::file(path, format!("{len} bytes, expected at most {MOST}")));
    }
    if Format::of(&content) != Some(Format::Gzip) {
        return Ok(content);
    }
    unpack(&content, MOST).map_err(|problem| Error::file(path, problem))
}

/// What the gzip file `packed` holds, which may be no more than `most` bytes.
fn unpack(packed: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let decoder = MultiGzDecoder::new(packed);
    decoder.take(most + 1).read_to_end(&mut content).map_err(|e| format!("cannot be unpacked as gzip: {e}"))?;
    if content.len() as u64 > most {
        return Err(format!("unpacks to more than {most} bytes"));
    }
    Ok(content)
}

/// Adds to `problem` what `content` is, where it is of a format that is known and not expected here.
pub fn explain(problem: String, content: &[u8]) -> String {
    match Format::of(content) {
        None | Some(Format::Idx) => problem,
        Some(format) => {
            let way = format.unpack().map_or(String::new(), |way| format!(": {way}"));
            format!("{problem}; it is {format}{way}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_compressed_file_is_unpacked_up_to_a_limit() {
        let packed = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        };
        let bomb = packed(&[0; 1 << 20]);
        assert_eq!(unpack(&bomb, 1 << 20).unwrap(), [0; 1 << 20]);
        assert_eq!(unpack(&bomb, (1 << 20) - 1).unwrap_err(), "unpacks to more than 1048575 bytes");
        for len in 0..packed(b"abc").len() {
            assert!(unpack(&packed(b"abc")[..len], 9).is_err() || len == 0, "{len} bytes");
        }
        let two = [packed(b"abc"), packed(b"de")].concat();
        assert_eq!(unpack(&two, 9).unwrap(), b"abcde");
    }
}
