//! `residuum check`.

use std::fs;

use crate::{bad, folder, good, run};

const HEADER: &str = "name\tgroups\tic\toc\tih\tiw\toh\tow\tkh\tkw\tstride_h\tstride_w\tpad_h\tpad_w\t\
    dilation_h\tdilation_w\tmacs_per_image";

/// A plain layer, a strided one with groups and dilation, and one that is larger than the others.
const SOUND: [&str; 3] = [
    "plain\t1\t8\t16\t9\t7\t9\t7\t3\t3\t1\t1\t1\t1\t1\t1\t72576",
    "odd\t3\t9\t6\t11\t10\t5\t4\t3\t2\t2\t3\t1\t1\t2\t1\t2160",
    "large\t1\t64\t64\t14\t14\t14\t14\t3\t3\t1\t1\t1\t1\t1\t1\t7225344",
];

/// A table of one small problem.
pub fn table() -> String {
    format!("{HEADER}\n{}\n", SOUND[1])
}

#[test]
fn sound_problems_pass_on_every_device_in_every_type() {
    let folder = folder();
    fs::write(folder.path().join("p.tsv"), [&[HEADER], &SOUND[..]].concat().join("\n")).unwrap();
    for (options, count) in [
        ("--dtype f32", 9),
        ("--dtype bf16", 9),
        ("--dtype f16 --pass bwd_w", 3),
        ("--pass fwd --max-macs 100000", 2),
        ("--device cpu", 9),
        ("--device cpu --dtype bf16 --pass bwd_x", 3),
    ] {
        let out = good(folder.path(), &format!("check conv2d --problems p.tsv {options}"));
        assert_eq!(out, format!("{count} passed, 0 failed\n"), "{options}");
    }
}

#[test]
fn a_table_that_contradicts_itself_fails_by_name() {
    let folder = folder();
    let wrong = SOUND[0].replace("\t9\t7\t3\t3", "\t8\t7\t3\t3");
    fs::write(folder.path().join("p.tsv"), format!("{HEADER}\n{wrong}\n{}\n", SOUND[1])).unwrap();
    let output = run(folder.path(), "check conv2d --problems p.tsv --pass fwd");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(lines, "plain fwd f32: output [9, 7], but the table has [8, 7]\n1 passed, 1 failed\n");
}

#[test]
fn a_table_that_cannot_be_read_is_named() {
    let folder = folder();
    assert!(bad(folder.path(), "check conv2d --problems p.tsv", 1).starts_with("p.tsv: "));
    fs::write(folder.path().join("p.tsv"), format!("{HEADER}\n{}\n", SOUND[0].replace("16", "x"))).unwrap();
    let cause = bad(folder.path(), "check conv2d --problems p.tsv", 1);
    assert_eq!(cause, "p.tsv: line 2: `x` for `oc`, expected an integer");
    bad(folder.path(), "check pool --problems p.tsv", 2);
}

#[test]
fn a_check_of_nothing_is_a_failure() {
    let folder = folder();
    let refused = |text: &str, options: &str| {
        fs::write(folder.path().join("p.tsv"), text).unwrap();
        bad(folder.path(), &format!("check conv2d --problems p.tsv {options}"), 1)
    };
    let cause = refused("", "");
    assert!(cause.starts_with("p.tsv: empty, expected a tab-separated table whose first line names"), "{cause}");
    let cause = refused(&SOUND.join("\n"), "");
    assert!(cause.starts_with("p.tsv: no column `name`, expected a tab-separated table"), "{cause}");
    assert!(refused("plain text\n", "").starts_with("p.tsv: no column `name`"));
    assert_eq!(refused(&format!("{HEADER}\n\n"), ""), "p.tsv: no problem after the line of column names");
    let cause = refused(&format!("{HEADER}\n{}\n", SOUND.join("\n")), "--max-macs 10");
    assert_eq!(cause, "p.tsv: none of its 3 problems has at most 10 multiply-adds per image (--max-macs)");
}

#[test]
fn tables_of_other_systems_are_read() {
    let folder = folder();
    let lines = [&[HEADER], &SOUND[..2]].concat();
    for text in [format!("\u{feff}{}\r\n\r\n", lines.join("\r\n")), format!("\n{}\n\n \n", lines.join("\n\n"))] {
        fs::write(folder.path().join("p.tsv"), text).unwrap();
        let out = good(folder.path(), "check conv2d --problems p.tsv --pass fwd");
        assert_eq!(out, "2 passed, 0 failed\n");
    }
    if std::path::Path::new("/dev/zero").exists() {
        for arguments in ["check conv2d --problems /dev/zero", "plan resnet8_cifar --gpus /dev/zero"] {
            let cause = bad(folder.path(), arguments, 1);
            assert_eq!(cause, "/dev/zero: more than 67108864 bytes, the limit of a text", "it has no end");
        }
    }
    let wide: Vec<u8> = lines.join("\n").encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(folder.path().join("p.tsv"), [&[0xff, 0xfe][..], &wide].concat()).unwrap();
    let cause = bad(folder.path(), "check conv2d --problems p.tsv", 1);
    assert_eq!(cause, "p.tsv: a text in UTF-16, expected a text in UTF-8");
}

#[test]
fn a_problem_beyond_all_memory_fails_by_name() {
    let folder = folder();
    let huge = "huge\t1\t64\t64\t9000000\t9000000\t9000000\t9000000\t1\t1\t1\t1\t0\t0\t1\t1\t1";
    fs::write(folder.path().join("p.tsv"), format!("{HEADER}\n{huge}\n{}\n", SOUND[1])).unwrap();
    let output = run(folder.path(), "check conv2d --problems p.tsv --pass fwd");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{lines}");
    assert!(lines.starts_with("huge fwd f32: ") && lines.ends_with("\n1 passed, 1 failed\n"), "{lines}");

    // A valid problem that is too large for the host's memory.
    #[cfg(target_os = "linux")]
    {
        let large = "large\t1\t64\t64\t3000\t3000\t3000\t3000\t1\t1\t1\t1\t0\t0\t1\t1\t36864000000";
        fs::write(folder.path().join("p.tsv"), format!("{HEADER}\n{large}\n{}\n", SOUND[1])).unwrap();
        let output = crate::limits::with_memory(folder.path(), 4 << 20, "check conv2d --problems p.tsv --pass fwd");
        let lines = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{lines}");
        let refused = lines.starts_with("large fwd f32: no memory for ");
        assert!(refused && lines.ends_with("\n1 passed, 1 failed\n"), "{lines}");
    }
}
