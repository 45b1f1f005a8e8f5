//! `residuum doctor`.

use crate::failure::{print, Failure};

/// Shows what this machine and this build can run, what is missing and how to get it
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: &Args) -> Result<(), Failure> {
    print("cpu: ready")
}
