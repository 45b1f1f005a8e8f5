//! Compiles mutants and runs the suite on them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Mutant;

/// A test that takes longer counts as hung by its mutant.
const LIMIT: Duration = Duration::from_secs(600);

/// A copy of the kernels, and how to compile them.
struct Workshop {
    root: PathBuf,
    folder: tempfile::TempDir,
    suite: PathBuf,
}

/// The objects of an unchanged kernel folder, and the sources of each.
type Objects = BTreeMap<PathBuf, BTreeSet<PathBuf>>;

pub fn run(root: &Path, mutants: &[Mutant]) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let shop = Workshop { root: root.to_owned(), folder, suite: suite(root)? };
    copy(&root.join("kernels"), &shop.kernels())?;
    let mut survivors = Vec::new();
    let mut folders: BTreeMap<String, Vec<&Mutant>> = BTreeMap::new();
    for mutant in mutants {
        folders.entry(mutant.folder(root)?).or_default().push(mutant);
    }
    for (name, mutants) in folders {
        println!("{name}: compiling");
        let objects = shop.compile_folder(&name)?;
        let control = shop.link("control", objects.keys().cloned().collect())?;
        for test in mutants.iter().map(|m| &m.test).collect::<BTreeSet<_>>() {
            if shop.passes(&control, test)? == Some(0) {
                return Err(format!("no test of the suite is named `{test}`"));
            }
        }
        for mutant in mutants {
            if !shop.kills(mutant, &objects)? {
                survivors.push(mutant.place.clone());
            }
        }
    }
    match survivors.len() {
        0 => Ok(()),
        n => Err(format!("{n} mutants survive:\n  {}", survivors.join("\n  "))),
    }
}

impl Mutant {
    /// The folder of kernels to compile: for a header that other ops include, the folder of the op whose tests must
    /// fail; else the mutant's own.
    fn folder(&self, root: &Path) -> Result<String, String> {
        let op = self.test.split("::").nth(1).filter(|op| self.file.ends_with(".cuh") && !op.is_empty());
        if let Some(op) = op.filter(|op| root.join("kernels").join(op).is_dir()) {
            return Ok(op.to_owned());
        }
        let folder = self.file.strip_prefix("kernels/").and_then(|f| f.split_once('/')).map(|(folder, _)| folder);
        match folder {
            Some(folder) if folder != "common" && folder != "sim" => Ok(folder.to_owned()),
            _ => Err(format!("{}: `{}` is not in the folder of an op", self.place, self.file)),
        }
    }
}

impl Workshop {
    fn kernels(&self) -> PathBuf {
        self.folder.path().join("kernels")
    }

    /// Every kernel file of a folder and of the folders in it, unchanged.
    fn compile_folder(&self, name: &str) -> Result<Objects, String> {
        let (mut units, mut folders) = (Vec::new(), vec![self.kernels().join(name)]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))? {
                let path = entry.map_err(|e| e.to_string())?.path();
                match path.extension() {
                    None if path.is_dir() => folders.push(path),
                    Some(extension) if extension == "cu" => units.push(path),
                    _ => {}
                }
            }
        }
        units.sort();
        self.compile(&units, "o")
    }

    /// The objects of these kernel files, compiled in parallel.
    fn compile(&self, units: &[PathBuf], extension: &str) -> Result<Objects, String> {
        let results: Vec<Result<(PathBuf, BTreeSet<PathBuf>), String>> = std::thread::scope(|scope| {
            let all: Vec<_> = units.iter().map(|unit| scope.spawn(|| self.compile_one(unit, extension))).collect();
            all.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a compiler thread panicked".into()))).collect()
        });
        results.into_iter().collect()
    }

    fn compile_one(&self, unit: &Path, extension: &str) -> Result<(PathBuf, BTreeSet<PathBuf>), String> {
        let kernels = self.kernels();
        let name = unit.strip_prefix(&kernels).map_err(|e| e.to_string())?.display().to_string();
        let wrapper = Path::new(env!("OUT_DIR")).join(format!("sim_{}.cpp", name.replace(['/', '\\', '.'], "_")));
        let object = unit.with_extension(extension);
        let depfile = unit.with_extension("d");
        let mut compile = self.compiler()?;
        compile.arg("-I").arg(kernels.join("sim")).arg("-I").arg(&kernels).arg("-MMD").arg("-MF").arg(&depfile);
        finish(compile.arg("-c").arg(wrapper).arg("-o").arg(&object))?;
        let text = std::fs::read_to_string(&depfile).map_err(|e| e.to_string())?;
        let parts = text.split_whitespace().map(PathBuf::from).filter(|p| p.starts_with(&kernels)).collect();
        Ok((object, parts))
    }

    fn link(&self, name: &str, objects: Vec<PathBuf>) -> Result<PathBuf, String> {
        let library = self.folder.path().join(format!("{name}.so"));
        finish(self.compiler()?.arg("-shared").args(objects).arg("-o").arg(&library))?;
        Ok(library)
    }

    /// The compiler command that the build script recorded.
    fn compiler(&self) -> Result<Command, String> {
        let path = Path::new(env!("OUT_DIR")).join("sim_compiler.txt");
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut words = text.lines();
        let mut command = Command::new(words.next().unwrap_or("c++"));
        command.args(words);
        Ok(command)
    }

    /// True if the suite fails on `mutant`.
    fn kills(&self, mutant: &Mutant, objects: &Objects) -> Result<bool, String> {
        let changed = self.folder.path().join(&mutant.file);
        let original = std::fs::read_to_string(&changed).map_err(|e| e.to_string())?;
        std::fs::write(&changed, mutant.apply(&self.root)?).map_err(|e| e.to_string())?;
        let (stale, kept): (Vec<_>, Vec<_>) = objects.iter().partition(|(_, parts)| parts.contains(&changed));
        if stale.is_empty() {
            return Err(format!("{}: no kernel of the test's op includes {}", mutant.place, mutant.file));
        }
        let units: Vec<PathBuf> = stale.iter().map(|(object, _)| object.with_extension("cu")).collect();
        let compiled = self.compile(&units, "mutant.o");
        std::fs::write(&changed, original).map_err(|e| e.to_string())?;
        let compiled = compiled.map_err(|e| format!("{}: does not compile: {e}", mutant.place))?;
        let all = kept.into_iter().map(|(object, _)| object).chain(compiled.keys()).cloned().collect();
        let start = Instant::now();
        let killed = self.passes(&self.link("mutant", all)?, &mutant.test)?.is_none();
        let verdict = if killed { "killed" } else { "SURVIVES" };
        println!(
            "{verdict} in {:.1} s: {}: {} -> {}",
            start.elapsed().as_secs_f64(),
            mutant.file,
            mutant.old,
            mutant.new
        );
        if killed {
            println!("  {}", self.reason());
        }
        Ok(killed)
    }

    /// The message of the last run's first panic.
    fn reason(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let mut lines = text.lines().skip_while(|l| !l.contains("panicked at"));
        let reason = lines.nth(1).unwrap_or("it hung or died");
        reason.chars().take(160).collect()
    }

    /// The number of tests that pass with the kernels of `library`; `None` if one fails, an error if it fails with the
    /// unchanged kernels.
    fn passes(&self, library: &Path, test: &str) -> Result<Option<u64>, String> {
        let log = self.folder.path().join("log");
        let file = std::fs::File::create(&log).map_err(|e| e.to_string())?;
        let mut child = Command::new(&self.suite)
            .arg(test)
            .env("RESIDUUM_SIM_KERNELS", library)
            .stdout(file.try_clone().map_err(|e| e.to_string())?)
            .stderr(file)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| e.to_string())?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                break Some(status);
            }
            if start.elapsed() > LIMIT {
                child.kill().and_then(|()| child.wait()).map_err(|e| e.to_string())?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let control = library.ends_with("control.so");
        if text.contains("RESIDUUM_SIM_KERNELS") || (control && !status.is_some_and(|s| s.success())) {
            return Err(format!("`{test}` does not run as it should on {}:\n{text}", library.display()));
        }
        if !status.is_some_and(|s| s.success()) {
            return Ok(None);
        }
        let passed = text.split("test result: ok. ").nth(1).and_then(|t| t.split(' ').next()?.parse().ok());
        passed.map(Some).ok_or(format!("the suite says:\n{text}"))
    }
}

/// Builds the suite; returns its path.
fn suite(root: &Path) -> Result<PathBuf, String> {
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root).args(["test", "--no-run", "--features", "sim", "--test", "suite", "--message-format=json"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build.stderr(Stdio::inherit()).output().map_err(|e| e.to_string())?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|v| v["target"]["name"] == "suite")
        .find_map(|v| v["executable"].as_str().map(PathBuf::from))
        .ok_or_else(|| "cargo did not build the suite".to_owned())
}

fn finish(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(|e| e.to_string())?;
    for entry in std::fs::read_dir(from).map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}
