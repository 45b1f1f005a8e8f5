//! Reads the table of kernels and compiles them: for GPUs with nvcc, if it is found; for the simulator with the host's
//! C++ compiler.

#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
#[path = "build/arch.rs"]
mod arch;
#[cfg(feature = "cuda")]
#[path = "build/compile.rs"]
mod compile;
#[cfg(feature = "cuda")]
#[path = "build/nvcc.rs"]
mod nvcc;
#[cfg(feature = "sim")]
#[path = "build/sim.rs"]
mod sim;
#[path = "build/table.rs"]
mod table;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    stop_at(table::build());
    #[cfg(feature = "cuda")]
    stop_at(compile::build());
    #[cfg(feature = "sim")]
    sim::build();
}

/// Fails the build with the problem, if there is one.
fn stop_at(result: Result<(), String>) {
    if let Err(problem) = result {
        eprintln!("{problem}");
        std::process::exit(1);
    }
}
