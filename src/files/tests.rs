//! Concurrent writes, links and failures.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn text(content: &'static str) -> impl FnOnce(&mut dyn Write) -> io::Result<()> {
    move |out| out.write_all(content.as_bytes())
}

#[test]
fn concurrent_writers_leave_one_complete_file() {
    const LEN: usize = 300_000;
    let folder = folder();
    let path = folder.path().join("out");
    write_atomically(&path, |out| out.write_all(&[0; LEN])).unwrap();
    let done = AtomicBool::new(false);
    let whole = |bytes: &[u8]| bytes.len() == LEN && bytes.iter().all(|b| *b == bytes[0]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) {
                let bytes = fs::read(&path).unwrap();
                assert!(whole(&bytes), "{} bytes, torn", bytes.len());
                reads += 1;
            }
            reads
        });
        let writers: Vec<_> = (1..=6u8)
            .map(|writer| {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        // In small writes, to interleave with others.
                        let pieces =
                            |out: &mut dyn Write| (0..LEN / 1000).try_for_each(|_| out.write_all(&[writer; 1000]));
                        write_atomically(path, pieces).unwrap();
                    }
                })
            })
            .collect();
        let failed = writers.into_iter().map(|writer| writer.join()).filter(Result::is_err).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(failed, 0, "writers that failed");
        assert!(reader.join().unwrap() > 0);
    });
    assert!(whole(&fs::read(&path).unwrap()));
    assert_eq!(names(folder.path()), ["out".to_string()].into());
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_devices_stay() {
    use std::os::unix::fs::symlink;
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "old").unwrap();
    symlink(at("file"), at("link")).unwrap();
    write_atomically(at("link"), text("new")).unwrap();
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    assert_eq!(fs::read(at("file")).unwrap(), b"new");

    // A relative link through another link to a missing file.
    fs::create_dir(at("inner")).unwrap();
    symlink("inner/second", at("first")).unwrap();
    symlink("third", at("inner/second")).unwrap();
    write_atomically(at("first"), text("made")).unwrap();
    assert_eq!(fs::read(at("inner/third")).unwrap(), b"made");
    assert!(fs::symlink_metadata(at("inner/second")).unwrap().is_symlink());
    symlink("round", at("round")).unwrap();
    assert!(write_atomically(at("round"), text("never")).is_err());

    write_atomically("/dev/null", text("gone")).unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    if Path::new("/dev/full").exists() {
        let full = write_atomically("/dev/full", text("too much")).unwrap_err().to_string();
        assert!(full.starts_with("/dev/full: No space left"), "{full}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_under_the_name_of_a_temporary_is_not_followed() {
    let folder = folder();
    let (victim, out) = (folder.path().join("victim"), folder.path().join("out"));
    fs::write(&victim, "precious").unwrap();
    // The former name of temporary files, and one that a sweep would remove.
    let planted = [".out.tmp", ".residuum-1-0123456789abcdef.tmp"].map(|name| folder.path().join(name));
    for link in &planted {
        std::os::unix::fs::symlink(&victim, link).unwrap();
    }
    write_atomically(&out, text("new")).unwrap();
    assert_eq!(sweep(folder.path()).unwrap(), 0);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(planted.iter().all(|link| fs::symlink_metadata(link).unwrap().is_symlink()));
}

#[cfg(unix)]
#[test]
fn the_permissions_of_an_existing_file_are_kept() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let path = folder.path().join("out");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    write_atomically(&path, text("new")).unwrap();
    fs::write(folder.path().join("plain"), "").unwrap();
    assert_eq!(mode(&path), mode(&folder.path().join("plain")), "a new file's are any new file's");
    for wanted in [0o600, 0o640, 0o444, 0o777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(wanted)).unwrap();
        write_atomically(&path, text("newer")).unwrap();
        assert_eq!(mode(&path), wanted, "{wanted:o}");
    }
    // The new content of a private file is private while it is written.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    write_atomically(&path, |_| {
        let temporary = names(folder.path()).into_iter().find(|name| name.ends_with(".tmp")).unwrap();
        assert_eq!(mode(&folder.path().join(temporary)), 0o600);
        Ok(())
    })
    .unwrap();
}

#[test]
fn the_longest_names_are_written() {
    let folder = folder();
    for name in ["n".repeat(255), "\u{e9}".repeat(127)] {
        write_atomically(folder.path().join(&name), text("content")).unwrap();
        assert_eq!(fs::read(folder.path().join(&name)).unwrap(), b"content");
    }
    let text = write_atomically(folder.path().join("n".repeat(256)), text("content")).unwrap_err().to_string();
    assert!(text.contains("name too long"), "{text}");
    assert_eq!(names(folder.path()).len(), 2);
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = folder();
    let path = folder.path().join("out");
    write_atomically(&path, text("old")).unwrap();
    let full = |out: &mut dyn Write| {
        out.write_all(&[0; 1 << 21])?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    };
    let found = write_atomically(&path, full).unwrap_err().to_string();
    assert!(found.starts_with(&path.display().to_string()), "{found}");
    let panics = std::panic::catch_unwind(|| {
        write_atomically(&path, |out| {
            out.write_all(&[0; 1 << 21])?;
            panic!("in the middle")
        })
    });
    assert!(panics.is_err());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(folder.path()), ["out".to_string()].into());
    // A write after a panic works.
    write_atomically(&path, text("new")).unwrap();

    assert!(write_atomically(folder.path().join("missing/out"), text("")).is_err());
    let found = write_atomically(folder.path(), text("")).unwrap_err().to_string();
    assert!(found.ends_with("a folder, expected the name of a file"), "{found}");
    for name in ["", "/", "..", "new/"] {
        assert!(write_atomically(name, text("")).is_err(), "`{name}`");
    }
    assert_eq!(names(folder.path()), ["out".to_string()].into());
}

#[test]
fn a_sweep_removes_only_the_files_of_killed_processes() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let others = ["checkpoint.safetensors", ".residuum-12.tmp", ".hidden", ".residuum-x-0123456789abcdef.tmp"];
    let stale = [".residuum-4194304-0123456789abcdef.tmp", ".residuum-1-ffffffffffffffff.tmp"];
    for name in others.iter().chain(&stale) {
        fs::write(at(name), "x").unwrap();
    }
    fs::create_dir(at(".residuum-7-0123456789abcdef.tmp")).unwrap();
    write_atomically(at("out"), |_| {
        assert_eq!(sweep(folder.path()).unwrap(), 2, "this one is being written");
        Ok(())
    })
    .unwrap();
    let mut expected: BTreeSet<String> = others.map(String::from).into();
    expected.extend(["out".to_string(), ".residuum-7-0123456789abcdef.tmp".to_string()]);
    assert_eq!(names(folder.path()), expected);
    assert!(sweep(at("missing")).is_err());
}

/// Where a child process of the next test writes.
const CHILD: &str = "RESIDUUM_INTERRUPTED_IN";

#[test]
fn an_interrupted_process_leaves_no_temporary_and_writes_no_more() {
    let folder = folder();
    fs::write(folder.path().join("out"), "old").unwrap();
    // In a child process, because nothing can be written afterwards.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "files::tests::interrupted_child", "--nocapture", "--test-threads=1"])
        .env(CHILD, folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("interrupted in"), "{text}");
    assert_eq!(names(folder.path()), ["out".to_string()].into());
    assert_eq!(fs::read(folder.path().join("out")).unwrap(), b"old");
}

/// The body of the child process, not a test by itself.
#[test]
fn interrupted_child() {
    let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let path = folder.join("out");
    let interrupted = write_atomically(&path, |out| {
        out.write_all(b"new")?;
        assert_eq!(names(&folder).len(), 2);
        std::thread::scope(|scope| scope.spawn(remove_temporaries).join().unwrap());
        assert_eq!(names(&folder).len(), 1);
        Ok(())
    });
    for error in [interrupted.unwrap_err(), write_atomically(&path, text("newer")).unwrap_err()] {
        assert!(error.to_string().ends_with("out: the program was interrupted"), "{error}");
    }
    println!("interrupted in {}", folder.display());
}
