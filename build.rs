//! Compiles the kernels: for GPUs with nvcc where it is found, for the simulator with the host's C++ compiler.

#[cfg(feature = "sim")]
#[path = "build/sim.rs"]
mod sim;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "sim")]
    sim::build();
}
