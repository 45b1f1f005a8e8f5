//! Compiles the kernels and the simulator with the host's C++ compiler.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Compiles every `kernels/**/*.cu` and the simulator into one static library, and the simulator's own test kernels
/// into one that only integration tests link.
pub fn build() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    let kernels = root.join("kernels");
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-changed={}", root.join("build/sim.rs").display());
    for variable in ["CXX", "CXXFLAGS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }

    let compiler = Compiler::new(&kernels, &out);
    let simulator = kernels.join("sim");
    let mut sources = files(&simulator, "cpp");
    for kernel in files(&kernels, "cu").iter().filter(|k| !k.starts_with(&simulator)) {
        sources.push(wrap(kernel, &kernels, &out));
    }
    compiler.library(&sources, "residuum_sim");

    let tests: Vec<_> = files(&simulator.join("tests"), "cu").iter().map(|k| wrap(k, &kernels, &out)).collect();
    compiler.library(&tests, "residuum_sim_tests");

    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static:+whole-archive,-bundle=residuum_sim");
    println!("cargo:rustc-link-lib=stdc++");
    println!("cargo:rustc-link-lib=dl");
    // Kernels in the shared object that RESIDUUM_SIM_KERNELS names call the simulator in the test binary.
    println!("cargo:rustc-link-arg-tests=-rdynamic");
    let library = out.join("libresiduum_sim_tests.a");
    for argument in ["--whole-archive", &library.display().to_string(), "--no-whole-archive"] {
        println!("cargo:rustc-link-arg-tests=-Wl,{argument}");
    }
}

/// Writes a C++ file that includes `kernel` in its own namespace: kernels may use one name for different things.
fn wrap(kernel: &Path, kernels: &Path, out: &Path) -> PathBuf {
    let name = kernel.strip_prefix(kernels).expect("below kernels/").display().to_string();
    let wrapper = out.join(format!("sim_{}.cpp", name.replace(['/', '\\', '.'], "_")));
    let text = format!("#include \"cuda_builtins.hpp\"\nnamespace {{\n#include \"{name}\"\n}}\n");
    if fs::read_to_string(&wrapper).ok().as_deref() != Some(text.as_str()) {
        fs::write(&wrapper, text).expect("OUT_DIR is writable");
    }
    wrapper
}

/// The host's C++ compiler. It compiles only changed files, since there are many kernels.
struct Compiler<'a> {
    build: cc::Build,
    tool: cc::Tool,
    kernels: &'a Path,
    out: &'a Path,
    /// True if an earlier build made its objects with the same command.
    same: bool,
}

impl<'a> Compiler<'a> {
    fn new(kernels: &'a Path, out: &'a Path) -> Self {
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
        let tool = build.get_compiler();
        // `tests/mutants` reads this file, too: the command, one argument per line.
        let arguments = tool.args().iter().map(|a| a.to_string_lossy());
        let command = std::iter::once(tool.path().to_string_lossy()).chain(arguments).collect::<Vec<_>>().join("\n");
        let file = out.join("sim_compiler.txt");
        let same = fs::read_to_string(&file).is_ok_and(|old| old == command);
        fs::write(file, command).expect("OUT_DIR is writable");
        Self { build, tool, kernels, out, same }
    }

    /// Compiles the files into a static library.
    fn library(&self, sources: &[PathBuf], name: &str) {
        let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..jobs.clamp(1, sources.len().max(1)) {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        self.object(source);
                    }
                });
            }
        });
        self.build.clone().objects(sources.iter().map(|s| self.made(s, "o"))).compile(name);
    }

    /// The path of the output for `source`.
    fn made(&self, source: &Path, extension: &str) -> PathBuf {
        self.out.join(source.file_name().expect("a file")).with_extension(extension)
    }

    fn object(&self, source: &Path) {
        let (object, depfile) = (self.made(source, "o"), self.made(source, "d"));
        if self.same && is_fresh(source, &object, &depfile, self.kernels) {
            return;
        }
        let mut command: Command = self.tool.to_command();
        command.arg("-I").arg(self.kernels.join("sim")).arg("-I").arg(self.kernels);
        command.arg("-MMD").arg("-MF").arg(&depfile).arg("-c").arg(source).arg("-o").arg(&object);
        match command.output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let _ = fs::remove_file(&object);
                eprintln!("{}", String::from_utf8_lossy(&output.stderr));
                std::process::exit(1);
            }
            Err(e) => {
                eprintln!("{}: {e}; the feature `sim` needs a C++ compiler", self.tool.path().display());
                std::process::exit(1);
            }
        }
    }
}

/// True if `object` is newer than all its inputs in `depfile`, and they include `source` and files of these `kernels`:
/// in a copied build folder, or one that two checkouts share, the inputs may be another checkout's.
fn is_fresh(source: &Path, object: &Path, depfile: &Path, kernels: &Path) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).and_then(|m| m.modified()).ok() };
    let (Some(made), Ok(text)) = (changed(object), fs::read_to_string(depfile)) else { return false };
    let Some((_, parts)) = text.split_once(':') else { return false };
    // A path with a space is not parsed, so its object is never fresh.
    let parts: Vec<&Path> = parts.split_whitespace().filter(|&p| p != "\\").map(Path::new).collect();
    let ours = parts.first() == Some(&source) && parts.iter().any(|part| part.starts_with(kernels));
    ours && parts.iter().all(|part| changed(part).is_some_and(|time| time < made))
}

/// Every file below `folder` with the extension, sorted.
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
