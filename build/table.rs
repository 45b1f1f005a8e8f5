//! Reads the table of kernels, the `KERNEL` lines of `kernels/**/*.cu`, as text: a build without nvcc has it, too.
//!
//! `KERNEL(conv2d_fwd_bf16_128x32_packed, GatherParams, 128, 4, (fwd_packed<bf16, Tile128x32>))` is all that the host
//! knows about that entry. The host chooses by name, but the arguments decide what runs, so both must agree on dtype,
//! tiles, access and threads; a line in which they differ fails the build.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::arch::{family, TARGETS};

/// The content of a `KERNEL` line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The entry point: `<op>[_fused]_<pass>_<dtype>[_<M>x<N>]..[_<form>][_sm<NN>]`.
    pub name: String,
    /// The name with `*` for the dtype and without tiles, access and family: `conv2d_fwd_*`. All entries of a kind
    /// compute the same result; the host chooses one.
    pub kind: String,
    /// `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// Rows, columns, bytes per row of a stage, and stages of each tile, as `using` defines it.
    pub tiles: Vec<[usize; 4]>,
    /// How tiles are loaded: `vector`, `packed`, `stem` or `scalar`; empty without tiles.
    pub access: String,
    /// The GPU family NN, if its file is named `smNN_*.cu`.
    pub family: Option<u32>,
    /// The struct of its parameters, without template arguments.
    pub params: String,
    /// The size of that struct in bytes, from its `static_assert`.
    pub params_bytes: usize,
    /// Threads per block.
    pub threads: usize,
}

/// Writes the rows to `kernels.rs` in the build's folder; the error names the file and the line.
pub fn build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    write_if_changed(&out.join("kernels.rs"), &generate(&read(Path::new("kernels"))?))
}

/// Every `.cu` file below `folder` that a GPU runs, in order of name.
pub fn sources(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        let entries = std::fs::read_dir(&next).map_err(|e| format!("{}: {e}", next.display()))?;
        for path in entries.flatten().map(|e| e.path()) {
            if path.is_dir() && path != folder.join("sim") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "cu") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

pub fn write_if_changed(path: &Path, text: &str) -> Result<(), String> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// The rows of all files below `kernels`, in order of file and line.
pub fn read(kernels: &Path) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let mut places = BTreeMap::new();
    for path in sources(kernels)? {
        let file = File::read(kernels, &path)?;
        for (line, arguments) in kernel_lines(&file.text) {
            let place = format!("{}:{line}", path.display());
            let row = file.row(&arguments).map_err(|problem| format!("{place}: {problem}"))?;
            if let Some(other) = places.insert(row.name.clone(), place.clone()) {
                return Err(format!("{place}: {} is in {other}, too", row.name));
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// A kernel file.
struct File {
    /// Allowed first parts of its entries' names: its folders and its own name.
    places: Vec<String>,
    family: Option<u32>,
    /// Without comments.
    text: String,
    /// The lines of the text and of all headers.
    scope: Vec<String>,
}

impl File {
    fn read(kernels: &Path, path: &Path) -> Result<Self, String> {
        let name =
            |path: Option<&Path>| path.and_then(Path::file_name).unwrap_or_default().to_string_lossy().to_string();
        let mut scope = Vec::new();
        collect(kernels, path, &mut scope, &mut BTreeSet::new())?;
        let own = path.strip_prefix(kernels).unwrap_or(path).with_extension("");
        let places = own.iter().map(|place| place.to_string_lossy().to_string()).collect();
        Ok(Self { places, family: family(&name(Some(path))), text: without_comments(path)?, scope })
    }

    /// The row of a line with `arguments`, or the problem with it.
    fn row(&self, arguments: &[String]) -> Result<Row, String> {
        let [name, params, threads, _, body] = arguments else {
            return Err(format!("KERNEL takes 5 arguments, found {}", arguments.len()));
        };
        let says = Name::parse(name).ok_or(format!("{name} names no dtype"))?;
        let mut row = Row {
            kind: says.kind(),
            name: name.clone(),
            params_bytes: self
                .size(params)
                .ok_or(format!("{name}: no `static_assert(sizeof({params}) == ..` in its file or headers"))?,
            params: words(params)[0].into(),
            threads: self.number(threads).ok_or(format!("{name}: {threads} is not a number of threads"))?,
            dtype: says.dtype,
            tiles: Vec::new(),
            access: says.access,
            family: says.family,
        };
        self.check(&mut row, &says.tiles, [params, body]).map_err(|problem| format!("{name}: {problem}"))?;
        Ok(row)
    }

    /// Checks that the name, with tiles of `sizes`, agrees with the arguments, and sets the row's tiles from them.
    fn check(&self, row: &mut Row, sizes: &[[usize; 2]], [params, body]: [&str; 2]) -> Result<(), String> {
        if !self.places.iter().any(|place| row.name.starts_with(&format!("{place}_"))) {
            return Err(format!("it begins with none of {}", self.places.join(", ")));
        }
        if row.family != self.family {
            return Err(format!("the name says family {:?}, the file's {:?}", row.family, self.family));
        }
        if self.family.is_some_and(|f| TARGETS.iter().all(|target| target.family != f)) {
            return Err("build/arch.rs has no target of this family".into());
        }
        let dtype = |word: &str| if word == "float" { "f32".into() } else { word.to_string() };
        let types = words(params).into_iter().chain(words(body)).filter(|w| ["float", "f16", "bf16"].contains(w));
        if let Some(wrong) = types.map(dtype).find(|t| *t != row.dtype) {
            return Err(format!("the name says {}, an argument {wrong}", row.dtype));
        }
        for tile in words(body).into_iter().filter(|word| word.starts_with("Tile")) {
            let [m, n, warps_m, warps_n, row_bytes, stages] = self.tile(tile)?;
            if 32 * warps_m * warps_n != row.threads {
                return Err(format!("{} threads, {tile} has {}", row.threads, 32 * warps_m * warps_n));
            }
            row.tiles.push([m, n, row_bytes, stages]);
        }
        let found: Vec<_> = row.tiles.iter().map(|&[m, n, ..]| [m, n]).collect();
        if found != sizes {
            return Err(format!("the name says tiles {sizes:?}, the arguments {found:?}"));
        }
        if !found.is_empty() && row.access != access(body) {
            return Err(format!("the name says {} access, the arguments {}", row.access, access(body)));
        }
        Ok(())
    }

    /// The arguments of the tile that `using` calls `name`: M, N, warps along each, bytes per row, stages.
    fn tile(&self, name: &str) -> Result<[usize; 6], String> {
        let tile = |line: &String| -> Option<[usize; 6]> {
            let list = line.strip_prefix(&format!("using {name} = Tile<"))?.split('>').next()?;
            list.split(',').filter_map(|n| n.trim().parse().ok()).collect::<Vec<_>>().try_into().ok()
        };
        self.scope.iter().find_map(tile).ok_or(format!("no `using {name} = Tile<..` in its file or headers"))
    }

    /// The number `text`, or the value of the `constexpr` of this name.
    fn number(&self, text: &str) -> Option<usize> {
        let constant = |line: &String| -> Option<usize> {
            let (_, value) = line.strip_prefix("constexpr ")?.split_once(&format!(" {text} = "))?;
            value.trim_end().trim_end_matches(';').parse().ok()
        };
        text.parse().ok().or_else(|| self.scope.iter().find_map(constant))
    }

    /// The size in bytes that a `static_assert` states for a struct, with any element type, or for a `using` alias.
    fn size(&self, params: &str) -> Option<usize> {
        let name = words(params)[0];
        let alias =
            |line: &String| Some(line.strip_prefix(&format!("using {name} = "))?.trim_end_matches(';').to_string());
        let alias =
            self.scope.iter().find_map(alias).map(|text| text.replace("<T>", "<float>").replace("<T,", "<float,"));
        let names = [Some(name.to_string()), Some(format!("{name}<float>")), alias];
        let size = |line: &String| -> Option<usize> {
            let (asserted, rest) = line.strip_prefix("static_assert(sizeof(")?.split_once(") == ")?;
            let number = rest.split(',').next()?;
            names.iter().flatten().any(|name| name == asserted).then(|| number.parse().ok())?
        };
        self.scope.iter().find_map(size)
    }
}

/// Adds the lines of `path` and of its headers to `scope`, each file once.
fn collect(kernels: &Path, path: &Path, scope: &mut Vec<String>, seen: &mut BTreeSet<PathBuf>) -> Result<(), String> {
    if !seen.insert(path.to_path_buf()) {
        return Ok(());
    }
    for line in without_comments(path)?.lines() {
        match line.strip_prefix("#include \"").and_then(|rest| rest.split('"').next()) {
            Some(header) if kernels.join(header).is_file() => collect(kernels, &kernels.join(header), scope, seen)?,
            _ => scope.push(line.to_string()),
        }
    }
    Ok(())
}

fn without_comments(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(text.lines().map(|line| line.split("//").next().unwrap_or_default().trim_end()).collect::<Vec<_>>().join("\n"))
}

/// The line number and the arguments of every `KERNEL`.
fn kernel_lines(text: &str) -> Vec<(usize, Vec<String>)> {
    let starts = text.match_indices("KERNEL(").filter(|&(at, _)| at == 0 || text[..at].ends_with(['\n', ' ', ')']));
    starts.map(|(at, word)| (1 + text[..at].matches('\n').count(), arguments(&text[at + word.len()..]))).collect()
}

/// The text before the closing parenthesis, split at top-level commas, as the preprocessor does.
fn arguments(text: &str) -> Vec<String> {
    let (mut found, mut depth) = (vec![String::new()], 0);
    for c in text.chars() {
        match c {
            ')' if depth == 0 => break,
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        found.last_mut().unwrap_or_else(|| unreachable!("it begins with one")).push(if c == '\n' { ' ' } else { c });
    }
    found.iter().map(|argument| argument.trim().to_string()).collect()
}

/// The identifiers and numbers in a text.
fn words(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect()
}

/// How a body over tiles loads its operands: by the function's suffix `_stem` or `_packed`, else by the last argument.
fn access(body: &str) -> &'static str {
    let words = words(body);
    let (function, last) = (words.first().copied().unwrap_or_default(), words.last().copied().unwrap_or_default());
    match last {
        _ if function.ends_with("_stem") => "stem",
        _ if function.ends_with("_packed") => "packed",
        "PACKED" => "packed",
        "SCALAR" | "false" => "scalar",
        _ => "vector",
    }
}

/// The parts of an entry's name.
struct Name {
    what: String,
    dtype: String,
    tiles: Vec<[usize; 2]>,
    access: String,
    form: String,
    family: Option<u32>,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let parts: Vec<&str> = name.split('_').collect();
        let at = parts.iter().position(|part| ["f32", "f16", "bf16"].contains(part))?;
        let tile = |part: &&str| -> Option<[usize; 2]> {
            let (m, n) = part.split_once('x')?;
            Some([m.parse().ok()?, n.parse().ok()?])
        };
        let tiles: Vec<_> = parts[at + 1..].iter().map_while(tile).collect();
        let mut rest = &parts[at + 1 + tiles.len()..];
        let family = rest.last().and_then(|last| last.strip_prefix("sm")?.parse().ok());
        if family.is_some() {
            rest = &rest[..rest.len() - 1];
        }
        let form = rest.join("_");
        let access = match (tiles.is_empty(), form.as_str()) {
            (true, _) => "",
            (false, "") => "vector",
            (false, form) => form,
        };
        Some(Self {
            what: parts[..at].join("_"),
            dtype: parts[at].into(),
            access: access.into(),
            form: if tiles.is_empty() { form.clone() } else { String::new() },
            tiles,
            family,
        })
    }

    fn kind(&self) -> String {
        let form = if self.form.is_empty() { String::new() } else { format!("_{}", self.form) };
        format!("{}_*{form}", self.what)
    }
}

/// The Rust source of `device::table::ROWS`.
pub fn generate(rows: &[Row]) -> String {
    let mut text = String::from("/// A row for every `KERNEL` line.\npub const ROWS: &[Row] = &[\n");
    for row in rows {
        let Row { name, kind, dtype, tiles, access, family, params, params_bytes, threads } = row;
        let dtype = dtype.to_uppercase();
        let family = family.map_or("None".into(), |family| format!("Some(Arch::Sm{family})"));
        let _ = writeln!(
            text,
            "    Row {{ name: {name:?}, kind: {kind:?}, dtype: DType::{dtype}, tiles: &{tiles:?}, access: {access:?}, \
             family: {family}, params: {params:?}, params_bytes: {params_bytes}, threads: {threads} }},"
        );
    }
    text + "];\n"
}
