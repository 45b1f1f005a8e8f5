//! The program when the system refuses memory or threads.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use residuum::models::{self, weights, BuildOptions};
use residuum::tensor::{HostTensor, StateDict};

use crate::{cause, folder, good, program};

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A table with a problem that is checked within a second.
const TABLE: &str = "name\tgroups\tic\toc\tih\tiw\toh\tow\tkh\tkw\tstride_h\tstride_w\tpad_h\tpad_w\t\
    dilation_h\tdilation_w\tmacs_per_image
plain\t1\t8\t16\t9\t7\t9\t7\t3\t3\t1\t1\t1\t1\t1\t1\t72576
odd\t3\t9\t6\t11\t10\t5\t4\t3\t2\t2\t3\t1\t1\t2\t1\t2160
";

/// Weights, a batch with labels, a trained checkpoint and a table of problems in `folder`.
fn prepare(folder: &Path) {
    let model = models::find("resnet8_cifar").unwrap();
    let graph = model.build(residuum::graph::Mode::Infer, 1, model.input(), 10, BuildOptions::default()).unwrap();
    let write = |name: &str, tensors: &StateDict| {
        weights::write(folder.join(name), tensors, &Default::default()).unwrap();
    };
    write("w.safetensors", &model.initialise(&graph, 1));
    let image = HostTensor::f32([8, 3, 32, 32], vec![0.5; 8 * 3 * 32 * 32]);
    let labels = HostTensor::i64([8], (0..8).collect());
    write("x.safetensors", &StateDict::from([("input".into(), image), ("labels".into(), labels)]));
    fs::write(folder.join("p.tsv"), TABLE).unwrap();
    good(folder, "train --model resnet8_cifar --epochs 1 --device cpu --out run");
}

/// Commands of every kind.
const COMMANDS: [&str; 8] = [
    "plan resnet20_cifar --batch 8",
    "eval --checkpoint run/checkpoint.safetensors --device cpu",
    "infer --model resnet8_cifar --weights w.safetensors --input x.safetensors --output y --device cpu",
    "step --model resnet8_cifar --weights w.safetensors --input x.safetensors --output y --device cpu",
    "step --model resnet8_cifar --weights w.safetensors --input x.safetensors --output y --device sim",
    "check conv2d --problems p.tsv --device cpu",
    "check conv2d --problems p.tsv --device sim",
    "train --model resnet8_cifar --epochs 1 --device cpu --out OUT",
];

/// The output of `command`. Fails if it hangs.
fn outcome(what: &str, command: &mut Command) -> Output {
    let files: [File; 2] = std::array::from_fn(|_| tempfile::tempfile().unwrap());
    let [out, err] = files.each_ref().map(|file| file.try_clone().unwrap());
    let mut child = command.stdout(out).stderr(err).spawn().unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let [stdout, stderr] = files.map(|mut file| {
        let mut text = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut text).unwrap();
        text
    });
    Output { status, stdout, stderr }
}

/// The program in `folder` with at most `kib` KiB of address space.
pub fn with_memory(folder: &Path, kib: usize, arguments: &str) -> Output {
    let mut command = Command::new("sh");
    command.current_dir(folder).env("RUST_BACKTRACE", "1");
    // glibc reserves 64 MiB for each arena that contending threads create: without this, the memory that the program
    // needs would depend on timing.
    command.env("MALLOC_ARENA_MAX", "1");
    command.args(["-c", &format!("ulimit -v {kib} && exec \"$0\" \"$@\"")]);
    command.arg(program(folder).get_program()).args(arguments.split_whitespace());
    outcome(&format!("{arguments} with {kib} KiB"), &mut command)
}

/// Asserts that `output` is a success or a one-line failure; returns true for a success.
fn is_orderly(what: &str, output: &Output) -> bool {
    if output.status.success() {
        return true;
    }
    cause(what, output, 1);
    false
}

#[test]
fn a_plan_takes_no_memory_of_a_networks_size() {
    let folder = folder();
    for network in ["vgg16", "wide_resnet101_29", "resnet1202_cifar"] {
        let output = with_memory(folder.path(), 300_000, &format!("plan {network} --batch 1"));
        assert!(output.status.success(), "{network}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Under any limit a command succeeds or fails with one line. Below the first limit the system cannot load the program.
#[test]
fn a_limit_on_memory_ends_in_one_line() {
    let folder = folder();
    prepare(folder.path());
    let start = (20..400).step_by(4).map(|mib| mib << 10);
    let floor = start.into_iter().find(|&kib| with_memory(folder.path(), kib, "--version").status.success()).unwrap();
    let long = std::env::var_os("RESIDUUM_LONG").is_some_and(|value| value == "1");
    let step = if long { 1 << 10 } else { 24 << 10 };
    let mut failures = 0;
    for (i, arguments) in COMMANDS.iter().enumerate() {
        for kib in (floor + i * 1_000..).step_by(step) {
            let run = format!("out{kib}");
            let what = format!("{arguments} with {kib} KiB");
            let output = with_memory(folder.path(), kib, &arguments.replace("OUT", &run));
            if is_orderly(&what, &output) && kib > floor + (150 << 10) {
                break;
            }
            assert!(kib < 2 << 20, "{what}: still too little");
            failures += usize::from(!output.status.success());
            let _ = fs::remove_dir_all(folder.path().join(run));
        }
    }
    assert!(failures > 0, "nothing lacked memory");
}

/// A run succeeds if only its plots lack memory.
#[test]
fn too_little_memory_for_a_plot_is_a_warning() {
    let folder = folder();
    let mut warned = Vec::new();
    for mib in (20..=120).step_by(4) {
        let train = format!("train --model resnet8_cifar --epochs 1 --device cpu --out out{mib}");
        let output = with_memory(folder.path(), mib << 10, &train);
        // Below the first limits the system cannot load the program.
        if output.status.success() {
            let said = String::from_utf8(output.stderr).unwrap();
            warned.push(said.contains("the curves are not drawn: out of memory: a plot needs"));
            assert!(folder.path().join(format!("out{mib}/checkpoint.safetensors")).exists());
        }
    }
    // Only the smallest limits lack memory for plots.
    assert!(
        warned.contains(&true) && warned.is_sorted_by(|a, b| a >= b) && warned.last() == Some(&false),
        "{warned:?}"
    );
}

/// Runs the program as a separate user with a limit of `threads` threads; `None` if that is not possible.
fn with_threads(folder: &Path, threads: usize, user: u32, arguments: &str) -> Option<Output> {
    let mut command = Command::new("prlimit");
    // The limit does not apply to the superuser.
    let uid = Command::new("id").arg("-u").output().ok()?.stdout;
    if uid == b"0\n" {
        command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), "--clear-groups", "prlimit"]);
    }
    command.current_dir(folder).env("RUST_BACKTRACE", "1").arg(format!("--nproc={threads}"));
    command.arg("./residuum").args(arguments.split_whitespace());
    Some(outcome(&format!("{arguments} with {threads} threads"), &mut command))
}

#[test]
fn few_threads_do_the_same_work() {
    let has = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has("setpriv") || !has("prlimit") || !has("id") {
        eprintln!("few threads: skipped, setpriv, prlimit or id is missing");
        return;
    }
    let folder = folder();
    prepare(folder.path());
    fs::copy(program(folder.path()).get_program(), folder.path().join("residuum")).unwrap();
    let everyone = Command::new("chmod").args(["-R", "a+rwX"]).arg(folder.path()).status().unwrap();
    assert!(everyone.success());
    for (i, arguments) in COMMANDS.iter().enumerate() {
        let _ = fs::remove_file(folder.path().join("y"));
        let free = outcome(arguments, program(folder.path()).args(arguments.replace("OUT", "free").split_whitespace()));
        assert!(free.status.success(), "{arguments}: {}", String::from_utf8_lossy(&free.stderr));
        let file = |name: &str| fs::read(folder.path().join(name)).ok();
        let [expected, trained] = ["y", "free/checkpoint.safetensors"].map(file);
        for threads in 1..=3 {
            let run = format!("few{threads}");
            let user = 61_000 + 10 * i as u32 + threads as u32;
            let what = format!("{arguments} with {threads} threads");
            let _ = fs::remove_file(folder.path().join("y"));
            let output = with_threads(folder.path(), threads, user, &arguments.replace("OUT", &run)).unwrap();
            assert!(is_orderly(&what, &output), "{what}: {}", String::from_utf8_lossy(&output.stderr));
            if !arguments.starts_with("train") {
                assert_eq!(output.stdout, free.stdout, "{what}");
            }
            assert!(file("y") == expected, "{what}: another result");
            if arguments.starts_with("train") {
                assert!(file(&format!("{run}/checkpoint.safetensors")) == trained, "{what}: other weights");
            }
        }
    }
}

/// The matrix library assumes three cache levels and divides by their sizes; `device/cpu/product.rs` works around it.
#[test]
fn caches_of_every_kind_do_for_products() {
    const SYSTEM: &str = "/sys/devices/system/cpu";
    let folder = folder();
    prepare(folder.path());
    let described = folder.path().join("cpus");
    fs::create_dir(&described).unwrap();
    let mounted = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare.current_dir(folder.path()).env("RUST_BACKTRACE", "0");
        unshare.args(["-rm", "sh", "-c", &format!("mount --bind cpus {SYSTEM} && {command}")]);
        unshare
    };
    if !mounted("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("caches of every kind: skipped, {SYSTEM} cannot be replaced here");
        return;
    }
    let eval = "eval --checkpoint run/checkpoint.safetensors --device cpu";
    let expected = good(folder.path(), eval);
    for (what, level, bytes, shared) in [
        ("a fourth level", "4", "64M", "0-7"),
        ("a small second level", "2", "4K", "0"),
        ("a second level that many share", "2", "1M", "0-255"),
        ("a list that counts down", "2", "1M", "7-0"),
    ] {
        let index = described.join("cpu0/cache/index0");
        fs::create_dir_all(&index).unwrap();
        for (name, text) in [
            ("level", level),
            ("type", "Unified"),
            ("size", bytes),
            ("shared_cpu_list", shared),
            ("ways_of_associativity", "8"),
            ("coherency_line_size", "64"),
        ] {
            fs::write(index.join(name), format!("{text}\n")).unwrap();
        }
        let residuum = program(folder.path()).get_program().to_string_lossy().into_owned();
        let output = outcome(what, &mut mounted(&format!("exec {residuum} {eval}")));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "{what}: {}: {errors}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{what}");
    }
}
