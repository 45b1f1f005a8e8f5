//! The kernels, compiled a second time to report their accesses.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::SystemTime;

use crate::build::table;
use crate::machine;

/// Flags added to the build script's command: the compiler calls the functions of kernels/sim/traffic_hooks.hpp before
/// every access.
const FLAGS: [&str; 1] = ["-fsanitize=thread"];

/// A shared object of all kernels; an earlier run's is reused if nothing has changed. The error names what is missing.
pub fn build() -> Result<PathBuf, String> {
    let kernels = machine::root().join("kernels");
    let sources = table::sources(&kernels)?;
    if sources.is_empty() {
        return Err("the sources of the kernels are not here".into());
    }
    let version = compiler()?.arg("--version").output().map_err(|e| e.to_string())?;
    if !String::from_utf8_lossy(&version.stdout).contains("Free Software Foundation") {
        return Err(
            "it needs g++: others leave out the call before a read that a write to the same place follows".into()
        );
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("counted");
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let stamp = out.join("command");
    let command = format!("{:?} {:?}", compiler()?, kernels);
    let same = std::fs::read_to_string(&stamp).is_ok_and(|old| old == command);
    let objects = compile_all(&kernels, &sources, &out, same)?;
    std::fs::write(&stamp, command).map_err(|e| e.to_string())?;
    let library = out.join("kernels.so");
    // Another process may be compiling it, too.
    let fresh = out.join(format!("kernels.{}.so", std::process::id()));
    finish(compiler()?.arg("-shared").args(objects).arg("-o").arg(&fresh))?;
    std::fs::rename(&fresh, &library).map_err(|e| e.to_string())?;
    Ok(library)
}

/// The command that the build script recorded, with the flags that count.
fn compiler() -> Result<Command, String> {
    let path = Path::new(env!("OUT_DIR")).join("sim_compiler.txt");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut words = text.lines();
    let mut command = Command::new(words.next().unwrap_or("c++"));
    command.args(words);
    Ok(command)
}

fn compile_all(kernels: &Path, sources: &[PathBuf], out: &Path, same: bool) -> Result<Vec<PathBuf>, String> {
    let (next, objects) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            let object = compile(kernels, source, out, same);
            objects.lock().expect("no panic").push(object);
        }
    };
    std::thread::scope(|scope| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)));
    });
    objects.into_inner().expect("no panic").into_iter().collect()
}

fn compile(kernels: &Path, source: &Path, out: &Path, same: bool) -> Result<PathBuf, String> {
    let name = source.strip_prefix(kernels).map_err(|e| e.to_string())?.display().to_string();
    let name = format!("sim_{}", name.replace(['/', '\\', '.'], "_"));
    let (object, depfile) = (out.join(format!("{name}.o")), out.join(format!("{name}.d")));
    if same && is_fresh(&object, &depfile) {
        return Ok(object);
    }
    // The build script has put every kernel file into a namespace of its own in this folder.
    let wrapper = Path::new(env!("OUT_DIR")).join(format!("{name}.cpp"));
    let mut command = compiler()?;
    command.args(FLAGS).arg("-I").arg(kernels.join("sim")).arg("-I").arg(kernels);
    finish(command.arg("-MMD").arg("-MF").arg(&depfile).arg("-c").arg(wrapper).arg("-o").arg(&object))?;
    Ok(object)
}

/// True if `object` is newer than all its sources, listed in `depfile`.
fn is_fresh(object: &Path, depfile: &Path) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { std::fs::metadata(path).and_then(|m| m.modified()).ok() };
    let (Some(made), Ok(text)) = (changed(object), std::fs::read_to_string(depfile)) else { return false };
    let Some((_, parts)) = text.split_once(':') else { return false };
    parts.split_whitespace().filter(|&p| p != "\\").all(|p| changed(Path::new(p)).is_some_and(|t| t < made))
}

fn finish(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    // A compiler that fails is no reason to skip.
    panic!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
