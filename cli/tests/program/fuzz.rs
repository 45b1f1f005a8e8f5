//! Replays the seeds of the fuzz targets, and inputs that fuzzing has found.

use std::path::Path;

#[path = "../../../fuzz/targets.rs"]
mod targets;

/// A target's name and body.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 8] = [
    ("weights", targets::weights),
    ("checkpoint", targets::checkpoint),
    ("cifar", targets::cifar),
    ("idx", targets::idx),
    ("metrics", targets::metrics),
    ("problems", targets::problems),
    ("schedule", targets::schedule),
    ("model_name", targets::model_name),
];

#[test]
fn seeds_of_every_fuzz_target_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    for (name, run) in TARGETS {
        let mut seeds = 0;
        for entry in std::fs::read_dir(root.join("seeds").join(name)).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            if let Err(cause) = std::panic::catch_unwind(|| run(&data)) {
                panic!("{}: {:?}", path.display(), cause.downcast_ref::<String>());
            }
            seeds += 1;
        }
        assert!(seeds > 0, "{name} has seeds");
    }
    let binaries = std::fs::read_dir(root.join("fuzz_targets")).unwrap().count();
    assert_eq!(binaries, TARGETS.len(), "every target is replayed");
}
