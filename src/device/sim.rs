//! The simulator: `kernels/`, compiled by the host's C++ compiler and run on fibers by an adversarial scheduler.
//!
//! It tests kernels and launch code on any machine and is not meant for real work. `docs/notes/simulator.md` lists its
//! checks. It needs the feature `sim`.

#[cfg(feature = "sim")]
mod backend;
#[cfg(feature = "sim")]
mod ffi;
mod options;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub mod probe;

use std::sync::Arc;

use super::backend::Backend;
use crate::Result;

pub use self::options::{Arithmetic, Copies, Schedule, SimOptions};

pub(super) fn open(options: SimOptions) -> Result<Arc<dyn Backend>> {
    let options = options.overridden()?;
    #[cfg(feature = "sim")]
    return backend::new(options);
    #[cfg(not(feature = "sim"))]
    Err(crate::Error::NoDevice {
        device: "sim",
        reason: format!("not built in ({options}); build with `--features sim` and a C++ compiler"),
    })
}
