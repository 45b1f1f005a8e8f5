//! `residuum doctor`.

use residuum::device::doctor;

use crate::failure::{print, Failure};

/// Reports what this machine and this build can run, what is missing and how to get it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  residuum doctor

It reports the driver, the devices and their compute capability, the architectures for which this
build has kernels, and the toolkit of the build. It downloads and changes nothing.")]
pub struct Args {}

/// Runs the command.
pub fn run(_args: &Args) -> Result<(), Failure> {
    print(&doctor::report().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
