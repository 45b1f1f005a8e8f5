//! `residuum doctor`.

use residuum::device::doctor;

use crate::failure::{print, Failure};

/// Shows what this machine and this build can run, what is missing and how to get it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  residuum doctor

It looks for a driver, devices and their compute capability, the architectures that this build has
kernels for, and the toolkit that it was built with. It fetches nothing and changes nothing.")]
pub struct Args {}

/// Runs the command.
pub fn run(_args: &Args) -> Result<(), Failure> {
    print(&doctor::report().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
}
