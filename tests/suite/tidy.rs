//! The house rules that a program can check in the sources.

mod cycles;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine;

/// Limits of every source file.
const MAX_LINES: usize = 500;
const MAX_COLUMNS: usize = 120;
/// The limit of functions of the library, the program and the build script.
const MAX_FUNCTION_LINES: usize = 60;

const EXTENSIONS: [&str; 9] = ["rs", "cu", "cuh", "cpp", "hpp", "c", "h", "sh", "py"];

/// A source file: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Its lines without comments and literals, with their numbers.
    fn code(&self) -> Vec<(usize, String)> {
        let hash_comments = self.path.ends_with(".sh");
        strip(&self.text, hash_comments).lines().map(str::to_string).enumerate().map(|(i, l)| (i + 1, l)).collect()
    }

    fn is(&self, extensions: &[&str]) -> bool {
        Path::new(&self.path).extension().is_some_and(|e| extensions.iter().any(|x| e == *x))
    }
}

/// Blanks comments, string literals and character literals, and keeps the line breaks.
fn strip(text: &str, hash_comments: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        if (at(i) == '/' && at(i + 1) == '/') || (hash_comments && at(i) == '#') {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            while i < chars.len() && !(at(i) == '*' && at(i + 1) == '/') {
                i += 1;
            }
            i += 2;
        } else if at(i) == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' && (at(i + 2) == '\'' || (at(i + 1) == '\\' && at(i + 3) == '\'')) {
            i += if at(i + 1) == '\\' { 4 } else { 3 };
        } else {
            out.push(at(i));
            i += 1;
            continue;
        }
        out.extend(chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n'));
        out.push(' ');
    }
    out
}

/// True if `line` contains `word` as a whole word.
fn has_word(line: &str, word: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(i, _)| {
        !line[..i].chars().next_back().is_some_and(inner) && !line[i + word.len()..].chars().next().is_some_and(inner)
    })
}

/// Every file under `folders`. Prints that the test is skipped if there are none, as in a lone test binary.
fn sources(folders: &[&str]) -> Vec<Source> {
    let root = machine::root();
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let path = path.strip_prefix(&root).expect("below the root").to_string_lossy().replace('\\', "/");
            found.push(Source { path, text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    if found.is_empty() {
        eprintln!("tidy tests: skipped, {} is not in {}", folders.join(", "), root.display());
    }
    found
}

/// Every source file of the repository. Prints that the test is skipped if git lists none, as in a packaged crate.
fn repository() -> Vec<Source> {
    let root = machine::root();
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(list).current_dir(&root).output().map_or_else(|_| Vec::new(), |o| o.stdout);
    let paths = listed.split(|&byte| byte == 0).map(|path| String::from_utf8_lossy(path).into_owned());
    let read = |path: String| Some(Source { text: std::fs::read_to_string(root.join(&path)).ok()?, path });
    let found: Vec<Source> = paths.filter_map(read).filter(|source| source.is(&EXTENSIONS)).collect();
    if found.is_empty() {
        eprintln!("tidy test: skipped, git lists no files in {}", root.display());
    }
    found
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Each layer, and the other layers that it may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("files", &[]),
    ("tensor", &[]),
    ("device", &["tensor"]),
    ("ops", &["tensor", "device"]),
    ("control", &["tensor", "device", "ops"]),
    ("graph", &["tensor", "device", "ops", "control"]),
    ("models", &["files", "tensor", "device", "ops", "control", "graph"]),
    ("data", &["files", "tensor", "device", "ops", "control", "graph"]),
    ("train", &["files", "tensor", "device", "ops", "control", "graph", "models", "data"]),
    ("study", &["files", "tensor", "device", "ops", "control", "graph", "models", "data", "train"]),
];

#[test]
fn layers_use_only_earlier_layers() {
    let mut wrong = Vec::new();
    for source in sources(&["src"]) {
        let module = source.path.trim_start_matches("src/").split('/').next().unwrap_or_default();
        let module = module.trim_end_matches(".rs");
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == module) else {
            assert!(["lib", "error"].contains(&module), "{} is in no layer", source.path);
            continue;
        };
        for (number, line) in source.code() {
            for (i, _) in line.match_indices("crate::") {
                let used: String = line[i + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let is_layer = LAYERS.iter().any(|(layer, _)| *layer == used);
                if is_layer && used != module && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{}:{number}: {module} uses {used}", source.path));
                }
            }
            // The search above does not find the layers of `use crate::{tensor::.., device::..}`.
            if line.contains("use crate::{") && LAYERS.iter().any(|(layer, _)| line.contains(&format!("{layer}::"))) {
                wrong.push(format!("{}:{number}: import one layer per line", source.path));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn kernels_keep_to_what_the_simulator_runs() {
    // Words and the only files that may contain them.
    let rules: &[(&str, &[&str])] = &[
        ("asm", &["kernels/common/ptx.cuh"]),
        ("volatile", &["kernels/common/ptx.cuh"]),
        ("__shared__", &["kernels/common/kernel.cuh"]),
        ("__global__", &["kernels/common/kernel.cuh"]),
        ("atomicAdd", &[]),
        ("__constant__", &[]),
    ];
    let mut wrong = Vec::new();
    for source in sources(&["kernels"]).iter().filter(|s| !s.path.starts_with("kernels/sim/")) {
        for (number, line) in source.code() {
            for (word, places) in rules {
                if has_word(&line, word) && !places.contains(&source.path.as_str()) {
                    wrong.push(format!("{}:{number}: `{word}`", source.path));
                }
            }
            if line.contains("<<<") {
                wrong.push(format!("{}:{number}: `<<<`", source.path));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn a_folder_of_kernels_is_an_op_or_a_layer() {
    let mut wrong = Vec::new();
    for source in sources(&["kernels"]) {
        let folder = source.path.split('/').nth(1).unwrap_or_default();
        let is_there = |within: &str| machine::root().join(within).join(folder).join("mod.rs").is_file();
        if !is_there("src/ops") && !is_there("src") && !["common", "sim"].contains(&folder) {
            wrong.push(format!("{}: there is no src/ops/{folder} and no src/{folder}", source.path));
        }
    }
    assert_none(wrong);
}

#[test]
fn unsafe_code_is_where_it_belongs_and_says_why() {
    let mut wrong = Vec::new();
    for source in sources(&["src", "cli/src", "examples", "benches"]).iter().filter(|s| s.is(&["rs"])) {
        let path = source.path.as_str();
        let allowed = path.starts_with("src/device/")
            || (["src/ops/", "src/control/"].iter().any(|layer| path.starts_with(layer)) && path.contains("/launch"));
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in source.code().iter().filter(|(_, line)| has_word(line, "unsafe")) {
            // A device that forwards each call to another device.
            let forwards = path.starts_with("benches/") && line.contains("unsafe impl Backend for");
            // A declaration promises nothing; clippy checks that its documentation has a `# Safety` section.
            let declares = ["unsafe fn", "unsafe extern", "unsafe trait"].iter().any(|words| line.contains(words));
            // The comment is above the statement, which may be several lines long.
            let near = &lines[number.saturating_sub(6)..*number];
            if !(allowed || forwards) {
                wrong.push(format!("{path}:{number}: unsafe code outside src/device/, launch.rs and launch/"));
            } else if !declares && !near.iter().any(|l| l.contains("SAFETY:")) {
                wrong.push(format!("{path}:{number}: no SAFETY comment"));
            }
        }
    }
    assert_none(wrong);
}

#[test]
fn files_are_short_and_finished() {
    let mut wrong = Vec::new();
    for source in repository() {
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, at most {MAX_LINES}", source.path));
        }
        for (i, width) in source.text.lines().map(|line| line.chars().count()).enumerate() {
            if width > MAX_COLUMNS {
                wrong.push(format!("{}:{}: {width} columns, at most {MAX_COLUMNS}", source.path, i + 1));
            }
        }
        let product = ["src/", "cli/src/", "build"].iter().any(|folder| source.path.starts_with(folder));
        if product && source.is(&["rs"]) {
            wrong.extend(long_functions(&source));
        }
        for (number, line) in source.code() {
            for word in ["todo!", "unimplemented!", "dbg!", "#[ignore"] {
                if line.contains(word) {
                    wrong.push(format!("{}:{number}: `{word}`", source.path));
                }
            }
        }
    }
    assert_none(wrong);
}

fn long_functions(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines: Vec<&str> = source.text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let declares = code.split('(').next().is_some_and(|head| head.split_whitespace().any(|word| word == "fn"));
        if !declares || code.starts_with("//") || code.ends_with(['}', ';']) {
            continue;
        }
        // rustfmt indents a function's last brace like its first line.
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let length = lines[i..].iter().position(|l| *l == end).map_or(0, |last| last + 1);
        if length > MAX_FUNCTION_LINES {
            let at = format!("{}:{}", source.path, i + 1);
            wrong.push(format!("{at}: a function of {length} lines, at most {MAX_FUNCTION_LINES}"));
        }
    }
    wrong
}

/// Every test, module or file in the tests column of `docs/RELIABILITY.md` exists.
#[test]
fn promises_name_tests_that_exist() {
    let Ok(page) = std::fs::read_to_string(machine::root().join("docs/RELIABILITY.md")) else { return };
    let code = sources(&["src", "tests", "cli", "fuzz"]);
    let is_there = |name: &str| {
        let (path, last) = name.rsplit_once("::").unwrap_or(("", name));
        let file = name.replace("::", "/").replace("program/", "cli/tests/program/").replace("suite/", "tests/suite/");
        let module = [file.clone(), format!("src/{file}"), format!("{file}/")];
        let parent = path.rsplit("::").find(|part| *part != "tests").unwrap_or_default();
        code.iter().any(|source| {
            module
                .iter()
                .any(|m| source.path == *m || source.path.starts_with(&format!("{m}.")) || source.path.starts_with(m))
                || (source.text.contains(&format!("fn {last}(")) && source.path.contains(parent))
        })
    };
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise"));
    let tests: Vec<&str> =
        rows.flat_map(|row| row.split(" | ").nth(1).unwrap_or_default().split('`').skip(1).step_by(2)).collect();
    assert!(code.is_empty() || tests.len() > 30, "{tests:?}");
    let missing = tests.iter().filter(|name| !code.is_empty() && !is_there(name));
    assert_none(missing.map(|name| format!("docs/RELIABILITY.md: `{name}` does not exist")).collect());
}

/// `docs/SWITCHES.md` lists exactly the variables that the sources use.
#[test]
fn every_variable_is_in_the_table() {
    let page = std::fs::read_to_string(machine::root().join("docs/SWITCHES.md")).expect("docs/SWITCHES.md");
    let names = |text: &str| -> BTreeSet<String> {
        let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect::<String>();
        let all = text.split("RESIDUUM_").skip(1).map(name);
        all.filter(|name| !name.is_empty() && !name.ends_with('_')).collect()
    };
    let used = sources(&["src", "cli", "tests", "benches", "build", "ci", "kernels"]);
    let used: BTreeSet<String> = used.iter().flat_map(|source| names(&source.text)).collect();
    assert!(used.is_empty() || used == names(&page), "{:?}", used.symmetric_difference(&names(&page)));
}

#[test]
fn comments_and_texts_are_no_code() {
    let text = "a // asm\nb /* volatile\n asm */ c \"<<< \\\" asm\" d '\"' e '\\n' f<'a> g";
    let stripped = strip(text, false);
    assert_eq!(stripped.lines().count(), 3);
    assert!(!stripped.contains("asm") && !stripped.contains("<<<") && !stripped.contains("volatile"), "{stripped}");
    for word in ["a", "b", "c", "d", "e", "f", "g"] {
        assert!(has_word(&stripped, word), "{word} in {stripped}");
    }
    assert!(!has_word("asmx basm asm_", "asm") && has_word("x=asm(", "asm"));
}
