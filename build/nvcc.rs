//! Finds nvcc. Needs no GPU and downloads nothing.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variables that the search reads.
pub const VARIABLES: &[&str] =
    &["RESIDUUM_NVCC", "NVCC", "PATH", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"];

/// Advice for a user without nvcc.
pub const REMEDY: &str = "install the CUDA toolkit (12.0 or later) and put nvcc on PATH or in RESIDUUM_NVCC, or run \
     `pip install -r ci/requirements-nvcc.txt` in an active virtual environment (for drivers for CUDA 13.0 and \
     later); then build again";

/// A compiler that runs.
#[derive(Clone, Debug)]
pub struct Nvcc {
    /// The program.
    pub path: PathBuf,
    /// Its release: `13.0.88`.
    pub version: String,
}

/// The first nvcc of `RESIDUUM_NVCC`, `NVCC`, `PATH`, `CUDA_HOME`, `CUDA_PATH`, the active Python's packages and the
/// toolkit's usual places: `/usr/local/cuda`, the newest `/usr/local/cuda-*`, `/opt/cuda`. `None` if there is none or
/// `RESIDUUM_NVCC` is `none`. Fails if `RESIDUUM_NVCC` names a program that does not run.
pub fn find() -> Result<Option<Nvcc>, String> {
    find_with(&|name| std::env::var_os(name), Path::new("/"))
}

/// [`find`] with the environment `variable` and with toolkits installed below `root`.
pub fn find_with(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Result<Option<Nvcc>, String> {
    let variable = |name: &str| variable(name).filter(|v| !v.is_empty());
    if let Some(asked) = variable("RESIDUUM_NVCC") {
        if asked == OsStr::new("none") {
            return Ok(None);
        }
        return probe(Path::new(&asked)).map(Some).map_err(|problem| format!("RESIDUUM_NVCC: {problem}"));
    }
    Ok(candidates(&variable, root).iter().filter(|path| path.is_file()).find_map(|path| probe(path).ok()))
}

/// Where nvcc may be, best first.
fn candidates(var: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Vec<PathBuf> {
    let program = format!("nvcc{}", std::env::consts::EXE_SUFFIX);
    let path: Vec<PathBuf> = var("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();

    let mut found: Vec<PathBuf> = var("NVCC").map(PathBuf::from).into_iter().collect();
    found.extend(path.iter().map(|folder| folder.join(&program)));
    found.extend(
        ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|v| var(v)).map(|v| Path::new(&v).join("bin").join(&program)),
    );
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|v| var(v)).map(PathBuf::from).collect();
    let python = path.iter().find(|folder| folder.join("python3").is_file() || folder.join("python.exe").is_file());
    prefixes.extend(python.and_then(|folder| folder.parent()).map(Path::to_path_buf));
    found.extend(
        prefixes.iter().flat_map(|prefix| site_packages(prefix)).flat_map(|s| wheels(&s)).map(|w| w.join(&program)),
    );
    found.extend(toolkits(root).iter().map(|toolkit| toolkit.join("bin").join(&program)));
    found
}

/// The places of NVIDIA's installers and of distributions: the selected toolkit, then numbered ones, newest first.
fn toolkits(root: &Path) -> Vec<PathBuf> {
    let local = root.join("usr").join("local");
    let release = |folder: &PathBuf| -> Option<Vec<u32>> {
        let name = folder.file_name()?.to_str()?;
        name.strip_prefix("cuda-")?.split('.').map(|part| part.parse().ok()).collect()
    };
    let mut numbered = children(&local, "cuda-");
    numbered.sort_by_key(|folder| std::cmp::Reverse(release(folder)));
    let mut found = vec![local.join("cuda")];
    found.extend(numbered);
    found.push(root.join("opt").join("cuda"));
    found
}

/// `lib/python3.N/site-packages` below `prefix`, and its equivalents on other systems.
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let mut found = vec![prefix.join("Lib").join("site-packages")];
    for python in children(&prefix.join("lib"), "python3") {
        found.extend(["site-packages", "dist-packages"].map(|name| python.join(name)));
    }
    found
}

/// The `bin` folders of the nvcc wheels, the newest CUDA first.
fn wheels(site_packages: &Path) -> Vec<PathBuf> {
    let mut found = children(&site_packages.join("nvidia"), "cu1");
    found.sort();
    found.iter().rev().map(|folder| folder.join("bin")).collect()
}

fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect()
}

/// Runs `path --version`.
fn probe(path: &Path) -> Result<Nvcc, String> {
    let shown = path.display();
    let output = Command::new(path).arg("--version").output().map_err(|e| format!("{shown} does not run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "Cuda compilation tools, release 13.0, V13.0.88"
    let version = text
        .split_once("release ")
        .and_then(|(_, rest)| rest.split_once(", V"))
        .map(|(_, version)| version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect::<String>());
    match version {
        Some(version) if output.status.success() => Ok(Nvcc { path: path.to_path_buf(), version }),
        _ => Err(format!("{shown} --version prints no release: {}", text.trim())),
    }
}

/// True if `nvcc` can compile for `code`; nvcc lists `sm_90` and supports `sm_90a` from release 12.0 on.
pub fn knows(nvcc: &Nvcc, code: &str) -> bool {
    let Ok(output) = Command::new(&nvcc.path).arg("--list-gpu-code").output() else { return true };
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let release: u32 = nvcc.version.split('.').next().and_then(|v| v.parse().ok()).unwrap_or(0);
    let plain = code.trim_end_matches('a').replace("compute_", "sm_");
    listed.split_whitespace().any(|c| c == plain)
        && (plain.len() == code.len() || !code.ends_with('a') || release >= 12)
}
