//! Tensor-core arithmetic against recorded results, fragments against plain loops.

use std::path::PathBuf;

use residuum::device::sim::{probe, Arithmetic, SimOptions};
use residuum::half::{bf16, f16};

use super::Run;

fn shared() -> PathBuf {
    std::env::var_os("RESIDUUM_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), PathBuf::from)
}

/// Every line of a recorded file, `a...|b...|c|d` as f32 patterns in hexadecimal.
fn lines(file: &str) -> Option<Vec<[Vec<u32>; 4]>> {
    let text = std::fs::read_to_string(shared().join("tensor_core").join(file)).ok()?;
    let field = |f: &str| f.split_whitespace().map(|w| u32::from_str_radix(w, 16).unwrap()).collect::<Vec<_>>();
    let line = |l: &str| l.split('|').map(field).collect::<Vec<_>>().try_into().unwrap();
    Some(text.lines().filter(|l| !l.is_empty()).map(line).collect())
}

fn narrow(is_bf16: bool, bits: u32) -> u16 {
    let v = f32::from_bits(bits);
    let (narrow, back) = if is_bf16 {
        (bf16::from_f32(v).to_bits(), bf16::from_f32(v).to_f32())
    } else {
        (f16::from_f32(v).to_bits(), f16::from_f32(v).to_f32())
    };
    assert!(back == v || v.is_nan(), "{v} is recorded as an operand, but does not fit the type");
    narrow
}

#[test]
fn recorded_results_bit_for_bit() {
    let mut checked = 0;
    for (device, arithmetic) in [("A100", Arithmetic::Sm80), ("H100", Arithmetic::Sm90), ("H200", Arithmetic::Sm90)] {
        for (dtype, is_bf16) in [("bf16", true), ("fp16", false)] {
            let Some(lines) = lines(&format!("{device}_{dtype}.txt")) else {
                eprintln!("skipped: no {device}_{dtype}.txt in {}", shared().join("tensor_core").display());
                continue;
            };
            assert!(!lines.is_empty());
            for [a, b, c, d] in &lines {
                let operand = |v: &[u32]| v.iter().map(|&x| narrow(is_bf16, x)).collect::<Vec<_>>();
                let found = probe::dot(is_bf16, arithmetic, &operand(a), &operand(b), f32::from_bits(c[0]));
                assert_eq!(found.to_bits(), d[0], "{device} {dtype}: {a:x?} {b:x?} {:x}", c[0]);
                checked += 1;
            }
        }
    }
    eprintln!("{checked} recorded results");
}
