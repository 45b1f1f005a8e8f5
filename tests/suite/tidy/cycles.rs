//! Import cycles between the files of a folder.

use std::collections::{BTreeMap, BTreeSet};

use super::{assert_none, sources, strip};

/// Folders that must have no import cycles.
const FOLDERS: &[&str] = &["src/device"];

/// A path from the crate's root, split at `::`.
type Path = Vec<String>;

/// A folder's files by module, and the names that they re-export: an import of such a name counts as an import of the
/// file that defines it.
#[derive(Default)]
struct Files {
    texts: BTreeMap<Path, (String, String)>,
    exported: BTreeMap<Path, Path>,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The module of a file such as `src/device/cuda/mod.rs`.
fn module(path: &str) -> Path {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_string).collect()
}

/// The paths that start with `path` and continue with `rest`, which may be a group in braces.
fn expand(mut path: Path, rest: &str, found: &mut Vec<Path>) {
    let rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    if !group[start..i].trim().is_empty() {
                        expand(path.clone(), &group[start..i], found);
                    }
                    start = i + 1;
                    if c == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
    if end > 0 && &rest[..end] != "self" {
        path.push(rest[..end].to_string());
    }
    match rest[end..].strip_prefix("::") {
        Some(rest) if end > 0 => expand(path, rest, found),
        _ => found.push(path),
    }
}

/// The paths in `text`, the code of `module`, that start at `self`, `super`, `crate` or a submodule; for each, true if
/// a `pub use` names it.
fn paths(module: &Path, text: &str) -> Vec<(Path, bool)> {
    let submodules: BTreeSet<&str> =
        text.lines().filter_map(|l| l.trim().rsplit_once("mod ")?.1.strip_suffix(';')).collect();
    let mut found = Vec::new();
    for (i, _) in text.match_indices("::") {
        let start = text[..i].rfind(|c| !is_word(c)).map_or(0, |at| at + 1);
        let base = match &text[start..i] {
            _ if text[..start].ends_with("::") => continue,
            "crate" => Vec::new(),
            "self" => module.clone(),
            "super" => module[..module.len() - 1].to_vec(),
            name if submodules.contains(name) => module.iter().cloned().chain([name.to_string()]).collect(),
            _ => continue,
        };
        let statement = text[..start].rsplit([';', '}', ']']).next().unwrap_or_default().trim();
        let exported = statement.starts_with("pub") && statement.ends_with("use");
        let mut expanded = Vec::new();
        expand(base, &text[i + 2..], &mut expanded);
        found.extend(expanded.into_iter().map(|path| (path, exported)));
    }
    found
}

impl Files {
    /// Adds a source without its tests.
    fn add(&mut self, path: &str, text: &str) {
        if path.contains("/tests/") || path.ends_with("/tests.rs") {
            return;
        }
        let code = strip(text, false);
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string();
        let module = module(path);
        for (target, exported) in paths(&module, &code) {
            if let (true, Some(name)) = (exported, target.last()) {
                let name = module.iter().cloned().chain([name.clone()]).collect();
                self.exported.insert(name, target);
            }
        }
        self.texts.insert(module, (path.to_string(), code));
    }

    /// The module that defines the item at `path`, if one of these files does.
    fn defines(&self, path: &[String]) -> Option<&Path> {
        let n = (1..=path.len()).rev().find(|&n| self.texts.contains_key(&path[..n]))?;
        match path.get(..n + 1).and_then(|name| self.exported.get(name)) {
            Some(target) => self.defines(target),
            None => self.texts.get_key_value(&path[..n]).map(|(module, _)| module),
        }
    }

    /// The modules that each module imports.
    fn imports(&self) -> BTreeMap<&Path, BTreeSet<&Path>> {
        let of = |(module, (_, code)): (&'_ Path, &'_ (String, String))| -> BTreeSet<&Path> {
            let imported = paths(module, code).into_iter().filter(|(_, exported)| !exported);
            imported.filter_map(|(path, _)| self.defines(&path)).filter(|other| *other != module).collect()
        };
        self.texts.iter().map(|(module, file)| (module, of((module, file)))).collect()
    }

    /// A shortest cycle through each file that is on a cycle, each cycle once.
    fn cycles(&self) -> Vec<String> {
        let imports = self.imports();
        let mut found = BTreeMap::new();
        for start in imports.keys() {
            let mut ways = vec![vec![*start]];
            let mut seen = BTreeSet::new();
            while let Some(way) = (!ways.is_empty()).then(|| ways.remove(0)) {
                let last = way[way.len() - 1];
                if way.len() > 1 && last == *start {
                    let names: Vec<&str> = way.iter().map(|module| self.texts[*module].0.as_str()).collect();
                    found.entry(names[1..].iter().copied().collect::<BTreeSet<_>>()).or_insert(names.join(" -> "));
                    break;
                }
                ways.extend(
                    imports[last].iter().filter(|next| seen.insert(**next)).map(|next| [&way[..], &[*next]].concat()),
                );
            }
        }
        found.into_values().collect()
    }
}

#[test]
fn no_folder_has_an_import_cycle() {
    for folder in FOLDERS {
        let mut files = Files::default();
        sources(&[folder]).iter().for_each(|source| files.add(&source.path, &source.text));
        assert_none(files.cycles());
    }
}

#[test]
fn an_import_cycle_is_found() {
    let cycles = |sources: &[(&str, &str)]| {
        let mut files = Files::default();
        sources.iter().for_each(|(path, text)| files.add(path, text));
        files.cycles()
    };
    let (root, leaf) = (("src/a/mod.rs", "mod b;\npub mod c;\npub use self::b::B;\n"), ("src/a/b.rs", "pub struct B;"));
    let exported = (
        "src/a/c.rs",
        "use super::B;\nuse crate::a::{b::{self, B as D}};\n#[cfg(test)]\nmod tests {\nuse super::*;\n}",
    );
    assert_eq!(cycles(&[root, leaf, exported]), [""; 0], "a re-export leads to the file that defines the name");
    for back in ["use super::c::C;", "fn f() -> crate::a::c::C {}", "use crate::a::{c::{C, D}, B};", "use super::c;"] {
        assert_eq!(
            cycles(&[root, ("src/a/b.rs", back), exported]),
            ["src/a/b.rs -> src/a/c.rs -> src/a/b.rs"],
            "{back}"
        );
    }
    let namesake =
        [("src/a/mod.rs", "mod b;\npub use self::b::b;"), ("src/a/b.rs", ""), ("src/a/c.rs", "use super::b;")];
    assert_eq!(cycles(&namesake), [""; 0], "a function with its module's name");
    let long = ("src/a/c.rs", "use super::d::E;");
    let found =
        cycles(&[("src/a/mod.rs", "mod c;\nmod d;\nfn f() { c::g() }\n"), long, ("src/a/d.rs", "use super::f;")]);
    assert_eq!(found, ["src/a/mod.rs -> src/a/c.rs -> src/a/d.rs -> src/a/mod.rs"]);
}
