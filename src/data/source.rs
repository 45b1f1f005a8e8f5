//! Data sets by name, as `--data` takes them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::augment::Augment;
use super::dataset::Splits;
use super::{cifar, digits, mnist};
use crate::{Error, Result};

/// A data set by name: `digits`, `cifar10:DIR`, `cifar100:DIR` or `mnist:DIR`; a leading `~` is the home folder.
///
/// ```
/// use residuum::data::Source;
///
/// let source: Source = "digits".parse()?;
/// assert_eq!(source.read()?.train.classes(), 10);
/// assert!("imagenet:/data".parse::<Source>().is_err());
/// # Ok::<(), residuum::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The library's own digits.
    Digits,
    /// CIFAR-10 or CIFAR-100 in a folder.
    Cifar(cifar::Kind, PathBuf),
    /// MNIST, or a data set of its form, in a folder.
    Mnist(PathBuf),
}

impl Source {
    /// The name without the folder.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Digits => "digits",
            Self::Cifar(cifar::Kind::Cifar10, _) => "cifar10",
            Self::Cifar(cifar::Kind::Cifar100, _) => "cifar100",
            Self::Mnist(_) => "mnist",
        }
    }

    /// Reads the data set into memory. Fails if a file is missing or invalid.
    pub fn read(&self) -> Result<Splits> {
        match self {
            Self::Digits => digits::read(),
            Self::Cifar(kind, folder) => cifar::read(folder, *kind),
            Self::Mnist(folder) => mnist::read(folder),
        }
    }

    /// The usual augmentation: shifts of 1 pixel for the digits, of 4 with flips for CIFAR, of 2 for MNIST.
    pub fn augment(&self) -> Augment {
        match self {
            Self::Digits => Augment { pad: 1, flip: false },
            Self::Cifar(..) => Augment { pad: 4, flip: true },
            Self::Mnist(_) => Augment { pad: 2, flip: false },
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = "expected digits, cifar10:DIR, cifar100:DIR or mnist:DIR";
        match text.split_once(':').filter(|(_, folder)| !folder.is_empty()) {
            None if text == "digits" => Ok(Self::Digits),
            Some(("cifar10", folder)) => Ok(Self::Cifar(cifar::Kind::Cifar10, expand(folder))),
            Some(("cifar100", folder)) => Ok(Self::Cifar(cifar::Kind::Cifar100, expand(folder))),
            Some(("mnist", folder)) => Ok(Self::Mnist(expand(folder))),
            _ => Err(Error::invalid("data", format!("`{text}`, {expected}"))),
        }
    }
}

/// The folder that `text` names. The shell leaves the `~` in `mnist:~/data`, so it is expanded here; `~user` is not.
fn expand(text: &str) -> PathBuf {
    let home = || std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    match text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) {
        Some(rest) => home().map_or_else(|| text.into(), |home| home.join(rest.trim_start_matches('/'))),
        None => text.into(),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Digits => f.write_str(self.name()),
            Self::Cifar(_, folder) | Self::Mnist(folder) => write!(f, "{}:{}", self.name(), folder.display()),
        }
    }
}
