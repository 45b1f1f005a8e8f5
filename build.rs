//! Compiles the kernels: for GPUs with nvcc where it is found, for the simulator with the host's C++ compiler.

#[cfg(feature = "cuda")]
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

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(feature = "cuda")]
    if let Err(problem) = compile::build() {
        eprintln!("{problem}");
        std::process::exit(1);
    }
    #[cfg(feature = "sim")]
    sim::build();
}
