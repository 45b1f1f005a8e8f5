//! Text files as people have them.

use std::path::Path;

use residuum::files::Format;

use crate::failure::Failure;

/// The text of the file at `path`, without a byte-order mark; fails where it cannot be read or is not UTF-8.
pub fn read(path: &Path) -> Result<String, Failure> {
    let failed = |cause: String| Failure::Work(format!("{}: {cause}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
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
