//! File formats, recognised by their first bytes, for the error about an unexpected file.

use std::fmt;

/// Defines [`Format`]: each format with its description, which is also its text in errors.
macro_rules! formats {
    ($($name:ident $text:literal,)+) => {
        /// A file format that a user may pass by mistake. See the [module](super) for an example.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Format {
            $(#[doc = $text] $name,)+
        }

        impl fmt::Display for Format {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $text,)+
                })
            }
        }
    };
}

formats! {
    Empty "an empty file",
    TorchZip "a zip archive with a pickle, as torch.save writes",
    Pickle "a Python pickle, as old versions of torch.save write",
    Npy "a NumPy array (.npy)",
    Npz "a zip archive of NumPy arrays (.npz)",
    Zip "a zip archive",
    GitLfs "a git-lfs pointer",
    Html "a web page (HTML)",
    Xml "an XML text",
    Json "a JSON text",
    Text "a text",
    Utf16 "a text in UTF-16",
    Gzip "a gzip file",
    Bzip2 "a bzip2 file",
    Xz "an xz file",
    Zstd "a zstd file",
    Tar "a tar archive",
    Gguf "a GGUF file",
    Hdf5 "an HDF5 file",
    Onnx "an ONNX network",
    Idx "an IDX file",
    Matlab "a MATLAB file",
}

const MAGIC: &[(&[u8], Format)] = &[
    (b"version https://git-lfs", Format::GitLfs),
    (b"\x93NUMPY", Format::Npy),
    (b"\x1f\x8b", Format::Gzip),
    (b"BZh", Format::Bzip2),
    (b"\xfd7zXZ\0", Format::Xz),
    (b"\x28\xb5\x2f\xfd", Format::Zstd),
    (b"GGUF", Format::Gguf),
    (b"\x89HDF\r\n\x1a\n", Format::Hdf5),
    (b"MATLAB ", Format::Matlab),
    (b"\xff\xfe", Format::Utf16),
    (b"\xfe\xff", Format::Utf16),
];

/// The bytes at the start and at the end that are searched.
const WINDOW: usize = 1 << 16;

impl Format {
    /// The format of a file with the content `bytes`; `None` if it is unknown.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let is_pickle = |b: &[u8]| matches!(b, [0x80, 2..=5, b'c' | b'}' | b']' | b'(' | b'K' | 0x8a | 0x95, ..]);
        match bytes {
            [] => Some(Self::Empty),
            [b'P', b'K', 3 | 5, 4 | 6, ..] => Some(zip(bytes)),
            [0, 0, 8..=14, 1..=4, ..] => Some(Self::Idx),
            _ if is_pickle(bytes) => Some(Self::Pickle),
            _ if bytes.get(257..262) == Some(b"ustar") => Some(Self::Tar),
            _ if is_onnx(bytes) => Some(Self::Onnx),
            _ => {
                let known = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic));
                known.map(|(_, format)| *format).or_else(|| text(bytes))
            }
        }
    }

    /// The way to the data of a file of this format; `None` if the format is no container, archive or placeholder.
    pub fn unpack(self) -> Option<&'static str> {
        Some(match self {
            Self::Gzip => "unpack it with gunzip, or with tar if it is a .tar.gz",
            Self::Bzip2 => "unpack it with bunzip2",
            Self::Xz => "unpack it with unxz",
            Self::Zstd => "unpack it with unzstd",
            Self::Tar => "unpack it with tar",
            Self::Zip => "unpack it with unzip",
            Self::GitLfs => "fetch the file itself with `git lfs pull`",
            Self::Html | Self::Xml | Self::Json | Self::Text => "download the file itself",
            Self::Empty => "download or write it again",
            _ => return None,
        })
    }
}

/// The kind of zip archive, by the names in it.
fn zip(bytes: &[u8]) -> Format {
    let (head, tail) = (&bytes[..bytes.len().min(WINDOW)], &bytes[bytes.len().saturating_sub(WINDOW)..]);
    let holds = |name: &[u8]| [head, tail].iter().any(|part| part.windows(name.len()).any(|found| found == name));
    match () {
        () if holds(b"data.pkl") => Format::TorchZip,
        () if holds(b".npy") => Format::Npz,
        () => Format::Zip,
    }
}

/// ONNX is a protocol buffer: the version of the format, then the name of the program that wrote it.
fn is_onnx(bytes: &[u8]) -> bool {
    let [8, 1..=20, 0x12, length, rest @ ..] = bytes else { return false };
    let name = rest.get(..usize::from(*length)).unwrap_or_default();
    !name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
}

/// The text format that `bytes` begin like.
fn text(bytes: &[u8]) -> Option<Format> {
    let start = &bytes[..bytes.len().min(512)];
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let lower = start.to_ascii_lowercase();
    let begins = |words: &[&[u8]]| words.iter().any(|word| lower.starts_with(word));
    if begins(&[b"<!doctype", b"<html", b"<head", b"<body", b"<script"]) {
        return Some(Format::Html);
    }
    if begins(&[b"<?xml", b"<!--", b"<"]) && start.iter().all(|b| !b.is_ascii_control() || b.is_ascii_whitespace()) {
        return Some(Format::Xml);
    }
    let printable = start.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace() || *b >= 0x80);
    match start.first() {
        Some(b'{' | b'[') if printable => Some(Format::Json),
        Some(_) if printable && start.is_ascii() => Some(Format::Text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_recognised_by_their_first_bytes() {
        let tar = [&[b'x'; 257][..], b"ustar\0"].concat();
        let zip = |name: &str| [b"PK\x03\x04\x14\0", [0; 24].as_slice(), name.as_bytes(), &[0; 99]].concat();
        for (bytes, format) in [
            (&b""[..], Format::Empty),
            (&zip("archive/data.pkl"), Format::TorchZip),
            (&zip("arr_0.npy"), Format::Npz),
            (&zip("model.txt"), Format::Zip),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", Format::Pickle),
            (b"\x80\x02}q\x01(U\x0bbatch_label", Format::Pickle),
            (b"\x80\x04\x95\x20\0\0\0\0\0\0\0}", Format::Pickle),
            (b"\x93NUMPY\x01\0v\0{'descr'", Format::Npy),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", Format::GitLfs),
            (b"\r\n <!DOCTYPE html><html>", Format::Html),
            (b"\xef\xbb\xbf<HTML lang=en>", Format::Html),
            (b"<?xml version=\"1.0\"?><Error>", Format::Xml),
            (b"{\"error\": \"not found\"}", Format::Json),
            (b"Entry not found", Format::Text),
            (b"\xff\xfen\0a\0", Format::Utf16),
            (b"\x1f\x8b\x08\0", Format::Gzip),
            (b"BZh91AY", Format::Bzip2),
            (b"\xfd7zXZ\0\0", Format::Xz),
            (b"\x28\xb5\x2f\xfd\0", Format::Zstd),
            (&tar, Format::Tar),
            (b"GGUF\x03\0\0\0", Format::Gguf),
            (b"\x89HDF\r\n\x1a\n\0", Format::Hdf5),
            (b"\x08\x07\x12\x07pytorch\x1a\x052.0.1", Format::Onnx),
            (b"\0\0\x08\x03\0\0\xea\x60", Format::Idx),
            (b"MATLAB 5.0 MAT-file", Format::Matlab),
        ] {
            assert_eq!(Format::of(bytes), Some(format), "{:?}", String::from_utf8_lossy(bytes));
            assert!(!format.to_string().is_empty());
        }
        for bytes in [&b"\x01\x02\x03\x04\x05\x06\x07\x08"[..], b"\x60\0\0\0\0\0\0\0{\"x\":{}}", &[0; 64]] {
            assert_eq!(Format::of(bytes), None, "{bytes:?}");
        }
    }
}
