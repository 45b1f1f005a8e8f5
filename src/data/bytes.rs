//! Finds the folder of a data set and reads its files; errors name the file.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::files::Format;
use crate::{Error, Result};

/// The most bytes of a file, packed or unpacked: more than any of these data sets has.
const MOST: u64 = 1 << 30;

/// The files of a data set, as published.
pub struct Layout<'a> {
    /// The files by which its folder is recognised, each with its possible names.
    pub files: &'a [Vec<String>],
    /// The subfolders in which archives and downloads put the files, the most likely first.
    pub folders: &'a [&'a str],
    /// The sibling folders that hold the files, if the user names another part of the data set.
    pub beside: &'a [&'a str],
    /// Names that reveal another version of the data set or its archive, with a hint for the error.
    pub others: &'a [(&'a str, &'a str)],
    /// Where to get the data set.
    pub origin: &'a str,
}

impl Layout<'_> {
    /// The folder that holds the files: `folder`, else one below it, beside it or above it. Fails if there is none,
    /// with a hint about what is there, or if two subfolders qualify.
    pub fn locate(&self, folder: &Path) -> Result<PathBuf> {
        let first = &self.files[0][0];
        if !folder.is_dir() {
            let note = self.instead(folder).unwrap_or_default();
            let problem = format!("not a folder, expected one that holds {first} ({}){note}", self.origin);
            return Err(Error::file(folder, problem));
        }
        let within = |base: &Path| {
            let inner = self.folders.iter().map(|inner| base.join(inner));
            std::iter::once(base.to_path_buf()).chain(inner).find(|path| self.is_in(path))
        };
        if let Some(found) = within(folder) {
            return Ok(found);
        }
        let below = children(folder);
        match below.iter().filter_map(|base| within(base)).collect::<Vec<_>>().as_slice() {
            [] => {}
            [found] => return Ok(found.clone()),
            [one, two, ..] => {
                let (one, two) = (one.display(), two.display());
                return Err(Error::file(folder, format!("contains {one} and {two}: name one of them")));
            }
        }
        // `a/..` is not the parent if `a` is a link.
        let whole = folder.canonicalize().map_err(|e| Error::io(folder, &e))?;
        if let Some(above) = whole.parent() {
            let beside = self.beside.iter().map(|name| above.join(name));
            if let Some(found) = beside.chain([above.to_path_buf()]).find(|path| self.is_in(path)) {
                return Ok(found);
            }
        }
        let mut near = std::iter::once(folder.to_path_buf()).chain(below).chain(whole.parent().map(Path::to_path_buf));
        let note = near.find_map(|base| self.instead(&base)).unwrap_or_default();
        Err(Error::file(folder.join(first), format!("no such file ({}){note}", self.origin)))
    }

    /// The file of `folder` under one of `names`. Fails if there is none.
    pub fn file(&self, folder: &Path, names: &[String]) -> Result<PathBuf> {
        let found = names.iter().find_map(|name| existing(folder, name));
        found.ok_or_else(|| Error::file(folder.join(&names[0]), format!("no such file ({})", self.origin)))
    }

    fn is_in(&self, folder: &Path) -> bool {
        self.files.iter().flatten().any(|name| existing(folder, name).is_some())
    }

    /// A hint for the error, if `path` or something in it has one of the names in `others`.
    fn instead(&self, path: &Path) -> Option<String> {
        let own = |name: &str| path.file_name().is_some_and(|found| found == name).then(|| path.to_path_buf());
        let within = |name: &str| Some(path.join(name)).filter(|inner| inner.exists());
        self.others.iter().find_map(|(name, other)| {
            let found = own(name).or_else(|| within(name))?;
            Some(format!("; {} is {other}", found.display()))
        })
    }
}

/// The file `name` in `folder`, or in a subfolder of that name, as some archives unpack.
fn existing(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    [path.clone(), path.join(name)].into_iter().find(|path| path.is_file())
}

/// The subfolders of `folder`, sorted by name.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let found: BTreeSet<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    found.into_iter().collect()
}

/// The content of `path`, unpacked if it is gzip, whatever its name.
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

/// Unpacks the gzip file `packed`. Fails beyond `most` bytes.
fn unpack(packed: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    match MultiGzDecoder::new(packed).take(most + 1).read_to_end(&mut content) {
        Err(e) => Err(format!("cannot be unpacked as gzip: {e}")),
        Ok(len) if len as u64 > most => Err(format!("unpacks to more than {most} bytes")),
        Ok(_) => Ok(content),
    }
}

/// Adds to `problem` the format of `content`, if it is a known and unexpected one.
pub fn explain(problem: String, content: &[u8]) -> String {
    match Format::of(content) {
        None | Some(Format::Idx) => problem,
        Some(format) => match format.unpack() {
            Some(way) => format!("{problem}; it is {format}: {way}"),
            None => format!("{problem}; it is {format}"),
        },
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
