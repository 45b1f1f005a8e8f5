//! The build without a GPU: the kernels that nvcc compiles against the launch code.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use crate::machine;

#[allow(dead_code)]
#[path = "../../build/arch.rs"]
mod arch;
#[allow(dead_code)]
#[path = "../../build/compile.rs"]
mod compile;
#[allow(dead_code)]
#[path = "../../build/nvcc.rs"]
mod nvcc;
#[allow(dead_code)]
#[path = "../../build/table.rs"]
pub mod table;

/// An entry point in PTX.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    file: String,
    /// Bytes of each parameter.
    params: Vec<usize>,
    /// Threads in x, y and z that it was compiled for.
    threads: Option<String>,
}

#[test]
fn names_parameters_and_threads_match_what_nvcc_compiled() {
    let what = "the comparison of entry points";
    let Some(nvcc) = nvcc::find().expect("a compiler that runs") else {
        return machine::skip("NVCC", what, "no nvcc was found");
    };
    let root = machine::root();
    let sources = table::sources(&root.join("kernels")).expect("kernels");
    if sources.is_empty() {
        return machine::skip("NVCC", what, "the sources of the kernels are not here");
    }

    let (next, entries) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = entries_of(&nvcc, &root, source);
            entries.lock().expect("no panic").extend(found);
        }
    };
    std::thread::scope(|scope| {
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|_| drop(scope.spawn(work)));
    });
    let entries = entries.into_inner().expect("no panic");

    let mut wrong = Vec::new();
    for kernel in residuum::kernels() {
        match entries.get(kernel.name) {
            None => wrong.push(format!("{} is in no kernel file", kernel.name)),
            Some(Entry { file, params, threads }) => {
                // The struct, and the pointer to the gate.
                let expected = [kernel.params_bytes, 8];
                if *params != expected {
                    wrong.push(format!("{} in {file} takes {params:?} bytes, not {expected:?}", kernel.name));
                }
                if *threads != Some(format!("{}, 1, 1", kernel.threads)) {
                    wrong.push(format!("{} in {file} is for {threads:?} threads, not {}", kernel.name, kernel.threads));
                }
            }
        }
    }
    for (name, Entry { file, .. }) in &entries {
        if !residuum::kernels().any(|kernel| kernel.name == name) {
            wrong.push(format!("{name} in {file} belongs to no op"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(residuum::kernels().count() > 0);
}

/// Compiles `source` to PTX and reads the entry points.
fn entries_of(nvcc: &nvcc::Nvcc, root: &Path, source: &Path) -> Vec<(String, Entry)> {
    let file = source.strip_prefix(root).expect("below the root").display().to_string();
    let file_name = source.file_name().expect("a file").to_string_lossy();
    let target = arch::TARGETS.iter().find(|t| t.takes(&file_name)).expect("a target for every file");
    let output = Command::new(&nvcc.path)
        .args(["-std=c++17", "-ptx", "-o", "-", "-I"])
        .arg(root.join("kernels"))
        .arg(format!("-arch={}", target.compute))
        .arg(source)
        .output()
        .expect("nvcc runs");
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    let found = entries_in(&String::from_utf8_lossy(&output.stdout), &file);
    assert!(!found.is_empty(), "{file} has no entry point");
    found
}

fn entries_in(ptx: &str, file: &str) -> Vec<(String, Entry)> {
    let header = |text: &str| -> (String, Entry) {
        let (name, rest) = text.split_once('(').expect("a list of parameters");
        let (params, rest) = rest.split_once(')').expect("its end");
        let bytes = |param: &str| match param.rsplit_once('[') {
            Some((_, size)) => size.trim_end().trim_end_matches(']').parse().expect("a size"),
            None if param.contains(".u64") || param.contains(".b64") || param.contains(".f64") => 8,
            None => 4,
        };
        let params = params.split(',').map(str::trim).filter(|p| !p.is_empty()).map(bytes).collect();
        let body = rest.split_once('{').map_or(rest, |(before, _)| before);
        let threads = body.lines().find_map(|line| line.trim().strip_prefix(".maxntid ")).map(str::to_string);
        (name.trim().to_string(), Entry { file: file.to_string(), params, threads })
    };
    ptx.split(".visible .entry ").skip(1).map(header).collect()
}

#[test]
fn entry_points_are_read_from_ptx() {
    let ptx = ".version 9.0\n.visible .entry a_fwd_f32(\n\t.param .align 8 .b8 a_fwd_f32_param_0[40]\n)\n\
               .maxntid 128, 1, 1\n.minnctapersm 2\n{\n ret;\n}\n\
               .visible .entry b(\n\t.param .u64 .ptr .align 1 b_param_0,\n\t.param .u32 b_param_1\n)\n{\n}";
    let entry = |params: &[usize], threads: Option<&str>| Entry {
        file: "f".into(),
        params: params.to_vec(),
        threads: threads.map(str::to_string),
    };
    let expected =
        [("a_fwd_f32".to_string(), entry(&[40], Some("128, 1, 1"))), ("b".to_string(), entry(&[8, 4], None))];
    assert_eq!(entries_in(ptx, "f"), expected);
}

#[cfg(feature = "cuda")]
#[test]
fn the_embedded_kernels_are_all_there_for_every_target_without_a_spill() {
    use residuum::device::embedded::{ENTRIES, FATBINS, TARGETS, TOOLKIT, USAGE};
    if TOOLKIT.is_none() {
        assert!(FATBINS.is_empty() && ENTRIES.is_empty() && USAGE.is_empty());
        return machine::skip("NVCC", "the test of the embedded kernels", "no nvcc was found when this was built");
    }
    let mut expected: Vec<&str> = residuum::kernels().map(|kernel| kernel.name).collect();
    expected.sort_unstable();
    let embedded: Vec<&str> = ENTRIES.iter().map(|(name, _)| *name).collect();
    assert_eq!(embedded, expected, "the launch code's kernels");

    if machine::asked("RESIDUUM_REQUIRE_NVCC") {
        let all: Vec<&str> = arch::TARGETS.iter().map(|target| target.code).collect();
        assert_eq!(TARGETS, all, "this nvcc compiles for every target");
    }
    for (name, image) in ENTRIES {
        let file_name = FATBINS[*image].0.rsplit('/').next().expect("a name");
        for target in arch::TARGETS.iter().filter(|t| TARGETS.contains(&t.code) && t.code.starts_with("sm_")) {
            let usage = USAGE.iter().find(|u| u.kernel == *name && u.target == target.code);
            match usage {
                Some(u) => assert_eq!((u.spill_bytes, u.stack_bytes), (0, 0), "{name} for {}", target.code),
                None => assert!(!target.takes(file_name), "{name} was not compiled for {}", target.code),
            }
        }
    }
}

#[test]
fn files_for_one_family_are_compiled_for_it_alone() {
    let takes = |file: &str| -> Vec<&str> { arch::TARGETS.iter().filter(|t| t.takes(file)).map(|t| t.code).collect() };
    let all: Vec<&str> = arch::TARGETS.iter().map(|t| t.code).collect();
    assert!(takes("fwd.cu") == all && takes("smooth_fwd.cu") == all && all.len() >= 3, "{all:?}");
    assert_eq!(takes("sm90_fwd.cu"), ["sm_90a"]);
    assert_eq!(takes("sm80_fwd.cu"), ["sm_80", "compute_80"]);
}

/// Writes a program that answers like nvcc.
#[cfg(unix)]
fn pretend_nvcc(path: &Path, version: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, format!("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V{version}'\n"))
        .expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("executable");
}

#[cfg(unix)]
#[test]
fn nvcc_is_looked_for_in_a_fixed_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let places = [
        ("RESIDUUM_NVCC", "asked/nvcc", "asked/nvcc"),
        ("NVCC", "named/nvcc", "named/nvcc"),
        ("PATH", "path", "path/nvcc"),
        ("CUDA_HOME", "home", "home/bin/nvcc"),
        ("CUDA_PATH", "toolkit", "toolkit/bin/nvcc"),
        ("VIRTUAL_ENV", "venv", "venv/lib/python3.12/site-packages/nvidia/cu13/bin/nvcc"),
        ("", "", "root/usr/local/cuda/bin/nvcc"),
    ];
    for (i, (.., program)) in places.iter().enumerate() {
        pretend_nvcc(&at(program), &format!("{}.0.1", i + 1));
    }
    pretend_nvcc(&at("venv/lib/python3.12/site-packages/nvidia/cu12/bin/nvcc"), "99.0.1");
    // With every place set, without the first, without the first two, ...
    for first in 0..=places.len() {
        let variable = |name: &str| {
            let place = places[first..].iter().find(|(variable, ..)| *variable == name);
            place.map(|(_, value, _)| at(value).into_os_string())
        };
        let found = nvcc::find_with(&variable, &at("root")).expect("a search").map(|nvcc| nvcc.version);
        // The usual places need no variable.
        assert_eq!(found, Some(format!("{}.0.1", first.min(places.len() - 1) + 1)));
    }
    let nowhere = at("nowhere");
    assert!(nvcc::find_with(&|_| None, &nowhere).expect("a search").is_none());
    let set = |value: &'static str| move |name: &str| (name == "RESIDUUM_NVCC").then(|| value.into());
    assert!(nvcc::find_with(&set("none"), &at("root")).expect("switched off").is_none());
    assert!(nvcc::find_with(&set("/nowhere/nvcc"), &at("root")).expect_err("asked for").contains("/nowhere/nvcc"));
    // A program that is no compiler is skipped.
    std::fs::write(at("path/nvcc"), "#!/bin/sh\nexit 1\n").expect("a file");
    let variable = |name: &str| match name {
        "PATH" => Some(at("path").into_os_string()),
        "CUDA_HOME" => Some(at("home").into_os_string()),
        _ => None,
    };
    let found = nvcc::find_with(&variable, &nowhere).expect("a search");
    assert_eq!(found.map(|nvcc| nvcc.version).as_deref(), Some("4.0.1"));
}

#[cfg(unix)]
#[test]
fn nvcc_is_found_where_toolkits_are_installed() {
    let folder = tempfile::tempdir().expect("a folder");
    // First the toolkit that is chosen, then the newest by number, not by letter, then another distribution's.
    let places = ["usr/local/cuda", "usr/local/cuda-13.10", "usr/local/cuda-13.9", "usr/local/cuda-12.4", "opt/cuda"];
    for (i, place) in places.iter().enumerate() {
        pretend_nvcc(&folder.path().join(place).join("bin/nvcc"), &format!("{}.0.1", i + 1));
    }
    std::fs::create_dir_all(folder.path().join("usr/local/cuda-99.0/lib64")).expect("a folder without nvcc");
    for (i, place) in places.iter().enumerate() {
        let found = nvcc::find_with(&|_| None, folder.path()).expect("a search").map(|nvcc| nvcc.version);
        assert_eq!(found, Some(format!("{}.0.1", i + 1)));
        std::fs::remove_dir_all(folder.path().join(place)).expect("a folder");
    }
}

/// The table of a folder of kernels with one file, or its error.
fn table_of(file: &str, text: &str) -> Result<Vec<table::Row>, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let op = folder.path().join("conv2d");
    std::fs::create_dir_all(&op).expect("a folder");
    let header =
        "struct Params {};\nstatic_assert(sizeof(Params) == 40, \"\");\nusing Tile8x4 = Tile<8, 4, 2, 2, 64, 4>;\n\
                  constexpr int THREADS = 128;\n";
    std::fs::write(op.join("tile.cuh"), header).expect("a file");
    std::fs::write(op.join(file), format!("#include \"conv2d/tile.cuh\"\n{text}\n")).expect("a file");
    table::read(folder.path())
}

#[test]
fn a_kernel_line_is_a_row() {
    let lines = "// KERNEL(conv2d_fwd_f32_8x4, Params, 128, 1, (fwd<float, Tile8x4, true>))\n\
                 KERNEL(conv2d_fwd_f16_8x4_packed_sm90, Params, THREADS, 1,\n (fwd_packed<f16, Tile8x4::Paired>))\n\
                 KERNEL(conv2d_sum_bf16_tree_sm90, Params, 128, 1, sum)";
    let row = |name: &str, kind: &str, dtype: &str, tiles: &[[usize; 4]], access: &str| table::Row {
        name: name.into(),
        kind: kind.into(),
        dtype: dtype.into(),
        tiles: tiles.to_vec(),
        access: access.into(),
        family: Some(90),
        params: "Params".into(),
        params_bytes: 40,
        threads: 128,
    };
    let expected = [
        row("conv2d_fwd_f16_8x4_packed_sm90", "conv2d_fwd_*", "f16", &[[8, 4, 64, 4]], "packed"),
        row("conv2d_sum_bf16_tree_sm90", "conv2d_sum_*_tree", "bf16", &[], ""),
    ];
    let rows = table_of("sm90_fwd.cu", lines).expect("a table");
    assert_eq!(rows, expected);
    assert!(table::generate(&rows).contains("kind: \"conv2d_fwd_*\", dtype: DType::F16, tiles: &[[8, 4, 64, 4]]"));
}

#[test]
fn a_kernel_line_that_contradicts_itself_fails_the_build() {
    for (file, line, cause) in [
        (
            "fwd.cu",
            "(conv2d_fwd_f32_4x8, Params, 128, 1, (fwd<float, Tile8x4, true>))",
            "tiles [[4, 8]], the arguments [[8, 4]]",
        ),
        ("fwd.cu", "(conv2d_fwd_f32, Params, 128, 1, (fwd<float, Tile8x4, true>))", "tiles [], the arguments [[8, 4]]"),
        ("fwd.cu", "(conv2d_fwd_f16_8x4, Params, 128, 1, (fwd<bf16, Tile8x4, true>))", "says f16, an argument bf16"),
        ("fwd.cu", "(conv2d_sum_f16, Params<float>, 128, 1, sum)", "says f16, an argument f32"),
        ("fwd.cu", "(conv2d_fwd_f32_8x4, Params, 256, 1, (fwd<float, Tile8x4, true>))", "256 threads, Tile8x4 has 128"),
        (
            "fwd.cu",
            "(conv2d_fwd_f32_8x4, Params, 128, 1, (fwd<float, Tile8x4, false>))",
            "vector access, the arguments scalar",
        ),
        (
            "fwd.cu",
            "(conv2d_fwd_f32_8x4_stem, Params, 128, 1, (fwd_packed<float, Tile8x4>))",
            "stem access, the arguments packed",
        ),
        ("fwd.cu", "(conv2d_fwd_f32_8x8, Params, 128, 1, (fwd<float, Tile8x8, true>))", "no `using Tile8x8 = Tile<"),
        ("fwd.cu", "(conv2d_fwd_f32, Other, 128, 1, fwd)", "sizeof(Other)"),
        ("fwd.cu", "(conv2d_fwd_f32, Params, MANY, 1, fwd)", "MANY is not a number of threads"),
        ("fwd.cu", "(conv2d_fwd, Params, 128, 1, fwd)", "names no dtype"),
        ("fwd.cu", "(conv2d_fwd_f32, Params, 128, fwd)", "5 arguments, found 4"),
        ("fwd.cu", "(pool_fwd_f32, Params, 128, 1, fwd)", "it begins with none of conv2d, fwd"),
        ("fwd.cu", "(conv2d_fwd_f32_sm90, Params, 128, 1, fwd)", "family Some(90), the file's None"),
        ("sm90_fwd.cu", "(conv2d_fwd_f32, Params, 128, 1, fwd)", "family None, the file's Some(90)"),
        ("sm70_fwd.cu", "(conv2d_fwd_f32_sm70, Params, 128, 1, fwd)", "no target of this family"),
    ] {
        let problem = table_of(file, &format!("KERNEL{line}")).expect_err(line);
        assert!(problem.contains(cause) && problem.contains(&format!("{file}:2: ")), "{line}: {problem}");
    }
    let twice = "KERNEL(conv2d_fwd_f32, Params, 128, 1, fwd)\nKERNEL(conv2d_fwd_f32, Params, 128, 1, fwd)";
    let problem = table_of("fwd.cu", twice).expect_err("a name twice");
    assert!(problem.contains("fwd.cu:3: conv2d_fwd_f32 is in") && problem.contains("fwd.cu:2, too"), "{problem}");
}
