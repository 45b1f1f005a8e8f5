//! Compiles every kernel file to a fatbin and writes the Rust file that embeds the fatbins.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::arch::{Target, TARGETS};
use super::nvcc::{self, Nvcc};
use super::table::{sources, write_if_changed};

/// The flags of every compilation.
const FLAGS: &[&str] = &["-std=c++17", "-O3", "-Xptxas", "-v", "-I", "kernels"];

/// Environment variables that change nvcc's behaviour.
const NVCC_VARIABLES: &[&str] = &["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

/// A compiled kernel file.
struct Compiled {
    /// `conv2d/fwd`.
    name: String,
    fatbin: PathBuf,
    /// The source and all its headers.
    dependencies: Vec<PathBuf>,
    usage: Vec<Usage>,
}

/// The resources of one entry point on one target, from `ptxas -v`.
#[derive(Default)]
struct Usage {
    kernel: String,
    target: String,
    registers: u32,
    barriers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
}

/// Embeds the kernels, or nothing without nvcc; the error is the text to print when the build fails.
pub fn build() -> Result<(), String> {
    for variable in nvcc::VARIABLES.iter().chain(NVCC_VARIABLES) {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let sources = sources(Path::new("kernels"))?;
    let generated = match nvcc::find()? {
        None => {
            println!("cargo:warning=no nvcc found: the CUDA device will have no kernels. For them, {}.", nvcc::REMEDY);
            embed(None, &[], &[])?
        }
        Some(nvcc) => {
            println!("cargo:rerun-if-changed={}", nvcc.path.display());
            let targets: Vec<Target> = TARGETS.iter().copied().filter(|t| nvcc::knows(&nvcc, t.code)).collect();
            if targets.is_empty() {
                return Err(format!("{} {} supports none of the GPU targets", nvcc.path.display(), nvcc.version));
            }
            let compiled = compile_all(&nvcc, &targets, &sources, &out.join("fatbins"))?;
            let dependencies: BTreeSet<&PathBuf> = compiled.iter().flat_map(|c| &c.dependencies).collect();
            dependencies.iter().for_each(|path| println!("cargo:rerun-if-changed={}", path.display()));
            for Usage { kernel, target, .. } in compiled.iter().flat_map(|c| &c.usage).filter(|u| u.spill_bytes > 0) {
                // Slower but correct: another nvcc than ci/requirements-nvcc.txt's must not fail a user's build.
                println!("cargo:warning=nvcc {} spills registers of {kernel} for {target}", nvcc.version);
            }
            embed(Some(&nvcc), &targets, &compiled)?
        }
    };
    write_if_changed(&out.join("embedded.rs"), &generated)
}

/// Compiles `sources` on as many threads as cargo allows; the error holds nvcc's output for every file that failed.
fn compile_all(nvcc: &Nvcc, targets: &[Target], sources: &[PathBuf], out: &Path) -> Result<Vec<Compiled>, String> {
    std::fs::create_dir_all(out).map_err(|e| format!("{}: {e}", out.display()))?;
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let next = AtomicUsize::new(0);
    let worker = || {
        let take = || sources.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(take).map(|source| compile(nvcc, targets, source, out)).collect::<Vec<_>>()
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.clamp(1, 64)).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap_or_else(|_| vec![Err("a compiler thread panicked".into())]))
            .collect()
    });
    let problems: Vec<String> = results.iter().filter_map(|r| r.as_ref().err().cloned()).collect();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let mut compiled = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    compiled.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(compiled)
}

/// Compiles one file, or reuses the result of an earlier run if no input has changed.
fn compile(nvcc: &Nvcc, targets: &[Target], source: &Path, out: &Path) -> Result<Compiled, String> {
    let inner = source.strip_prefix("kernels").unwrap_or(source).with_extension("");
    let name = inner.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
    let file = |extension: &str| out.join(format!("{}.{extension}", name.replace('/', ".")));
    let [fatbin, depfile, stamp, log] = ["fatbin", "d", "stamp", "log"].map(file);

    let mut command = Command::new(&nvcc.path);
    command.args(FLAGS);
    let file_name = source.file_name().unwrap_or_default().to_string_lossy();
    for target in targets.iter().filter(|t| t.takes(&file_name)) {
        command.args(["-gencode", &target.gencode()]);
    }
    command.arg("-MD").arg("-MF").arg(&depfile).arg("-fatbin").arg("-o").arg(&fatbin).arg(source);

    let variables: Vec<_> = NVCC_VARIABLES.iter().map(std::env::var_os).collect();
    let settings = format!("{} {command:?} {variables:?}", nvcc.version);
    let fresh = |dependencies: &[PathBuf]| digest(&settings, dependencies);
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let known = read(&depfile).map(|text| dependencies(&text)).and_then(|d| fresh(&d));
    if !(fatbin.is_file() && known.is_some() && read(&stamp) == known) {
        let output = command.output().map_err(|e| format!("{}: {e}", nvcc.path.display()))?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("nvcc {} failed on {}:\n{text}", nvcc.version, source.display()));
        }
        std::fs::write(&log, text).map_err(|e| format!("{}: {e}", log.display()))?;
        let digest = read(&depfile).and_then(|text| fresh(&dependencies(&text))).unwrap_or_default();
        std::fs::write(&stamp, digest).map_err(|e| format!("{}: {e}", stamp.display()))?;
    }
    let dependencies = read(&depfile).map(|text| dependencies(&text)).unwrap_or_default();
    Ok(Compiled { name, fatbin, dependencies, usage: usage(&read(&log).unwrap_or_default()) })
}

/// The dependencies in a depfile, `out : source header \ ...`.
fn dependencies(depfile: &str) -> Vec<PathBuf> {
    let list = depfile.split_once(" : ").or_else(|| depfile.split_once(": ")).map_or("", |(_, list)| list);
    let list = list.replace("\\\n", " ").replace("\\\r\n", " ").replace("\\ ", "\0");
    list.split_whitespace().map(|path| PathBuf::from(path.replace('\0', " "))).collect()
}

/// A digest of the settings and of the content of every file; `None` if a file cannot be read.
fn digest(settings: &str, files: &[PathBuf]) -> Option<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
    let mut add = |bytes: &[u8]| bytes.iter().for_each(|&b| hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    add(settings.as_bytes());
    for file in files {
        add(file.as_os_str().as_encoded_bytes());
        add(&std::fs::read(file).ok()?);
    }
    Some(format!("{hash:016x}"))
}

/// Parses the output of `ptxas -v`.
fn usage(log: &str) -> Vec<Usage> {
    let number_before = |line: &str, what: &str| -> u32 {
        let before = line.split(what).next().filter(|before| before.len() < line.len()).unwrap_or_default();
        before.split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let mut found: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let mut quoted = rest.split('\'');
            let kernel = quoted.next().unwrap_or_default().to_string();
            let target = quoted.nth(1).unwrap_or_default().to_string();
            found.push(Usage { kernel, target, ..Usage::default() });
        } else if let Some(last) = found.last_mut() {
            if line.contains("bytes stack frame") {
                last.stack_bytes = number_before(line, " bytes stack frame");
                last.spill_bytes =
                    number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            } else if line.contains(" registers") {
                last.registers = number_before(line, " registers");
                last.barriers = number_before(line, " barriers");
            }
        }
    }
    found
}

/// The Rust source of the embedded kernels.
fn embed(nvcc: Option<&Nvcc>, targets: &[Target], compiled: &[Compiled]) -> Result<String, String> {
    let mut text = String::new();
    let codes: Vec<&str> = targets.iter().map(|t| t.code).collect();
    let mut images = String::new();
    let mut entries = Vec::new();
    let mut usage = String::new();
    for (i, file) in compiled.iter().enumerate() {
        let bytes = std::fs::metadata(&file.fatbin).map_err(|e| format!("{}: {e}", file.fatbin.display()))?.len();
        let path = file.fatbin.to_string_lossy();
        let _ = writeln!(text, "static IMAGE_{i}: Aligned<{bytes}> = Aligned(*include_bytes!({path:?}));");
        let _ = writeln!(images, "    ({:?}, &IMAGE_{i}.0),", file.name);
        for Usage { kernel, target, registers, barriers, stack_bytes, spill_bytes } in &file.usage {
            let _ = writeln!(
                usage,
                "    Usage {{ kernel: {kernel:?}, target: {target:?}, registers: {registers}, barriers: {barriers}, \
                 stack_bytes: {stack_bytes}, spill_bytes: {spill_bytes} }},"
            );
            entries.push((kernel.as_str(), i));
        }
    }
    entries.sort_unstable();
    entries.dedup();
    let version = nvcc.map(|n| n.version.as_str());
    let _ = writeln!(
        text,
        "/// The release of the nvcc that compiled the kernels.\npub static TOOLKIT: Option<&str> = {version:?};"
    );
    let _ = writeln!(text, "/// Advice for a build with kernels.\npub static REMEDY: &str = {:?};", nvcc::REMEDY);
    let _ = writeln!(text, "/// The targets of every kernel.\npub static TARGETS: &[&str] = &{codes:?};");
    let _ =
        writeln!(text, "/// Every kernel file and its fatbin.\npub static FATBINS: &[(&str, &[u8])] = &[\n{images}];");
    let _ = writeln!(
        text,
        "/// Every entry point and its file's index in [`FATBINS`], in order of name.\n\
         pub static ENTRIES: &[(&str, usize)] = &{entries:?};"
    );
    let _ = writeln!(
        text,
        "/// Every entry point's resources on every target, from ptxas.\npub static USAGE: &[Usage] = &[\n{usage}];"
    );
    Ok(text)
}
