//! Reading of text files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use residuum::files::Format;

use crate::failure::Failure;

/// The most bytes of a text: far more than any table, far less than memory.
const MOST: u64 = 64 << 20;

/// The text of the file at `path`, without a byte-order mark. Fails if it cannot be read or is not UTF-8.
pub fn read(path: &Path) -> Result<String, Failure> {
    let failed = |cause: String| Failure::Work(format!("{}: {cause}", path.display()));
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
    read.map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > MOST {
        return Err(failed(format!("more than {MOST} bytes, the limit of a text")));
    }
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        failed(match Format::of(e.as_bytes()) {
            Some(format) => format!("{format}, expected a text in UTF-8"),
            None => format!("not UTF-8 at offset {at}, expected a text"),
        })
    })?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}
