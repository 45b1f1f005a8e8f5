//! The `residuum` program: trains, evaluates, runs and inspects residual networks.

mod check;
mod curves;
mod device;
mod doctor;
mod eval;
mod failure;
mod folder;
mod gpus;
mod identity;
mod infer;
mod metrics;
mod models;
mod plan;
mod problems;
mod progress;
mod signals;
mod step;
mod text;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use residuum::device::ExitWhereMemoryEnds;

#[global_allocator]
static ALLOCATOR: ExitWhereMemoryEnds = ExitWhereMemoryEnds;

/// Trains, evaluates, runs and inspects residual networks.
#[derive(Debug, Parser)]
#[command(name = "residuum", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Examples:
  residuum train                               resnet20_cifar on handwritten digits, in seconds
  residuum train --data cifar10:/data/cifar --epochs 30 --batch 128
  residuum eval --checkpoint runs/resnet20_cifar-digits-seed0/checkpoint.safetensors
  residuum infer --model resnet50 --weights resnet50.safetensors --input x.safetensors \\
      --output y.safetensors
  residuum models
  residuum plan resnet50 --dtype bf16

Exit codes: 0 done, 1 failed, 2 bad arguments. A failure is one line on standard error.")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Args),
    Eval(eval::Args),
    Infer(infer::Args),
    Step(step::Args),
    Models(models::Args),
    Plan(plan::Args),
    Check(check::Args),
    Doctor(doctor::Args),
}

fn main() -> ExitCode {
    signals::keep_failing_writes();
    let outcome = match Program::try_parse() {
        Err(error) => return failure::usage(&error),
        Ok(Program { command }) => match command {
            Command::Train(args) => train::run(args),
            Command::Eval(args) => eval::run(&args),
            Command::Infer(args) => infer::run(&args),
            Command::Step(args) => step::run(&args),
            Command::Models(args) => models::run(&args),
            Command::Plan(args) => plan::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Doctor(args) => doctor::run(&args),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
