//! Compiles the kernels and the simulator with the host's C++ compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Compiles every `kernels/**/*.cu` and the simulator into one static library, and the simulator's own test kernels into
/// another that only integration tests link.
pub fn build() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    let kernels = root.join("kernels");
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-changed={}", root.join("build/sim.rs").display());

    let simulator = kernels.join("sim");
    let mut sources = files(&simulator, "cpp");
    for kernel in files(&kernels, "cu").iter().filter(|k| !k.starts_with(&simulator)) {
        sources.push(wrap(kernel, &kernels, &out));
    }
    compile(&kernels, &sources, "residuum_sim");

    let tests: Vec<_> = files(&simulator.join("tests"), "cu").iter().map(|k| wrap(k, &kernels, &out)).collect();
    compile(&kernels, &tests, "residuum_sim_tests");

    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=residuum_sim");
    println!("cargo:rustc-link-lib=stdc++");
    println!("cargo:rustc-link-lib=dl");
    write_command(&out);
    // Kernels of a shared object that RESIDUUM_SIM_KERNELS names call the simulator in the test binary.
    println!("cargo:rustc-link-arg-tests=-rdynamic");
    let library = out.join("libresiduum_sim_tests.a");
    for argument in ["--whole-archive", &library.display().to_string(), "--no-whole-archive"] {
        println!("cargo:rustc-link-arg-tests=-Wl,{argument}");
    }
}

/// A C++ file that includes `kernel` in a namespace of its own: kernels may use the same names for different things.
fn wrap(kernel: &Path, kernels: &Path, out: &Path) -> PathBuf {
    let name = kernel.strip_prefix(kernels).expect("below kernels/").display().to_string();
    let wrapper = out.join(format!("sim_{}.cpp", name.replace(['/', '\\', '.'], "_")));
    let text = format!("#include \"cuda_builtins.hpp\"\nnamespace {{\n#include \"{name}\"\n}}\n");
    if fs::read_to_string(&wrapper).ok().as_deref() != Some(text.as_str()) {
        fs::write(&wrapper, text).expect("OUT_DIR is writable");
    }
    wrapper
}

/// The compiler and its flags, but for the include paths.
fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false).warnings(false).pic(true).cargo_metadata(false);
    for flag in
        ["-ffp-contract=off", "-fno-fast-math", "-fno-strict-aliasing", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    {
        build.flag(flag);
    }
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        build.flag("-mfma").flag("-mavx2").flag("-mf16c");
    }
    build
}

fn compile(kernels: &Path, sources: &[PathBuf], library: &str) {
    compiler().include(kernels.join("sim")).include(kernels).files(sources).compile(library);
}

/// Leaves the compiler's command for `tests/mutants`, an argument a line.
fn write_command(out: &Path) {
    let tool = compiler().get_compiler();
    let mut text = tool.path().display().to_string();
    for argument in tool.args() {
        text.push('\n');
        text.push_str(&argument.to_string_lossy());
    }
    fs::write(out.join("sim_compiler.txt"), text).expect("OUT_DIR is writable");
}

/// Every file below `folder` with that extension, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}
