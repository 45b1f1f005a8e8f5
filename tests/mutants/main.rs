//! Mutants: one-line wrong versions of kernels that the suite must kill.
//!
//! The tables `tests/mutants/*.txt` list them, a record of `key: value` lines each, a blank line between:
//!
//! ```text
//! file: kernels/conv2d/mainloop.cuh
//! after: text of an earlier line, if `old` alone is not unique (optional)
//! old: the line to replace, without its indentation
//! new: its replacement; empty to delete the line
//! test: the filter of the suite's tests that must fail
//! ```
//!
//! Run plainly, this checks that every record still fits its kernel. With `RESIDUUM_MUTANTS=all`, or a part of a file's
//! or a test's name, it compiles each mutant into a shared object, which the built suite loads in place of its own
//! kernels, and fails if a mutant survives. `ci/mutants.sh` does so.

#[cfg(feature = "sim")]
mod run;

use std::path::{Path, PathBuf};

// Every test links the simulator's test kernels, and those need the simulator.
use residuum as _;

/// One record.
#[derive(Clone, Debug, Default)]
struct Mutant {
    file: String,
    after: String,
    old: String,
    new: String,
    test: String,
    /// The record's file and line.
    place: String,
}

impl Mutant {
    /// The file's text with the mutant in it; fails if the record does not fit.
    fn apply(&self, root: &Path) -> Result<String, String> {
        let text = std::fs::read_to_string(root.join(&self.file)).map_err(|e| format!("{}: {e}", self.file))?;
        let lines: Vec<&str> = text.lines().collect();
        let first = match self.after.as_str() {
            "" => 0,
            after => lines.iter().position(|l| l.contains(after)).ok_or(format!("no line holds `{after}`"))? + 1,
        };
        let mut found = (first..lines.len()).filter(|&i| lines[i].trim() == self.old);
        let line = found.next().ok_or(format!("no line is `{}` in {}", self.old, self.file))?;
        if self.after.is_empty() && found.next().is_some() {
            return Err(format!("several lines are `{}` in {}; add `after:`", self.old, self.file));
        }
        let mut mutated: Vec<&str> = lines;
        mutated[line] = &self.new;
        Ok(mutated.join("\n") + "\n")
    }
}

fn parse(path: &Path) -> Result<Vec<Mutant>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let mut mutants: Vec<Mutant> = Vec::new();
    let mut open = false;
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.starts_with('#')) {
        let Some((key, value)) = line.split_once(':') else {
            open = false;
            if line.trim().is_empty() {
                continue;
            }
            return Err(format!("line {}: no `key: value`", i + 1));
        };
        if !open {
            mutants.push(Mutant { place: format!("{}:{}", path.display(), i + 1), ..Mutant::default() });
            open = true;
        }
        let (Some(mutant), value) = (mutants.last_mut(), value.trim().to_owned()) else { continue };
        *match key {
            "file" => &mut mutant.file,
            "after" => &mut mutant.after,
            "old" => &mut mutant.old,
            "new" => &mut mutant.new,
            "test" => &mut mutant.test,
            _ => return Err(format!("line {}: unknown key `{key}`", i + 1)),
        } = value;
    }
    match mutants.iter().find(|m| m.file.is_empty() || m.old.is_empty() || m.test.is_empty() || m.old == m.new) {
        Some(m) => Err(format!("{}: file, old, test are needed, and new must differ from old", m.place)),
        None => Ok(mutants),
    }
}

fn all(root: &Path) -> Result<Vec<Mutant>, String> {
    let mut tables: Vec<PathBuf> = std::fs::read_dir(root.join("tests/mutants"))
        .map_err(|e| e.to_string())?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "txt"))
        .collect();
    tables.sort();
    let mut mutants = Vec::new();
    for table in tables {
        mutants.extend(parse(&table).map_err(|e| format!("{}: {e}", table.display()))?);
    }
    Ok(mutants)
}

fn check() -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutants = all(root)?;
    for mutant in &mutants {
        mutant.apply(root).map_err(|e| format!("{}: {e}", mutant.place))?;
    }
    println!("{} mutants fit their kernels", mutants.len());
    let Some(filter) = std::env::var("RESIDUUM_MUTANTS").ok() else { return Ok(()) };
    let wanted = |m: &Mutant| filter == "all" || m.file.contains(&filter) || m.test.contains(&filter);
    let chosen: Vec<_> = mutants.into_iter().filter(wanted).collect();
    #[cfg(feature = "sim")]
    return run::run(root, &chosen);
    #[cfg(not(feature = "sim"))]
    Err(format!("{} mutants need the feature sim", chosen.len()))
}

fn main() -> std::process::ExitCode {
    match check() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            std::process::ExitCode::FAILURE
        }
    }
}
