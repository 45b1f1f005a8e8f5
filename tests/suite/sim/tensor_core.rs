//! Tensor-core arithmetic against recorded results, fragments against plain loops.

use residuum::device::sim::{probe, Arithmetic, SimOptions};
use residuum::half::{bf16, f16};

use super::Run;
use crate::machine;

/// Every line of a recorded file, `a...|b...|c|d` as f32 patterns in hexadecimal.
fn lines(file: &str) -> Option<Vec<[Vec<u32>; 4]>> {
    let text = std::fs::read_to_string(machine::shared().join("tensor_core").join(file)).ok()?;
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
                eprintln!("skipped: no {device}_{dtype}.txt in {}", machine::shared().join("tensor_core").display());
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

const MODES: [Arithmetic; 3] = [Arithmetic::Sm80, Arithmetic::Sm90, Arithmetic::Exact];

/// `1 + sum of terms` in bf16 products, first as given, then padded to 16 with zeros.
fn sum(arithmetic: Arithmetic, terms: &[(f32, f32)], c: f32) -> f32 {
    let operand = |pick: fn(&(f32, f32)) -> f32| -> Vec<u16> {
        (0..16).map(|i| bf16::from_f32(terms.get(i).map_or(0.0, pick)).to_bits()).collect()
    };
    probe::dot(true, arithmetic, &operand(|t| t.0), &operand(|t| t.1), c)
}

/// Two to the power of `e`.
fn two(e: i32) -> f32 {
    f64::from(e).exp2() as f32
}

#[test]
fn worked_out_sums() {
    use Arithmetic::{Exact, Sm80, Sm90};
    let half_ulp = |sign: f32| (sign * two(-12), two(-13));
    // A term below the last kept bit vanishes: 24 bits on sm80, 25 on sm90.
    assert_eq!(sum(Sm80, &[half_ulp(1.0); 4], 1.0), 1.0);
    assert_eq!(sum(Sm90, &[half_ulp(1.0); 4], 1.0), 1.0 + two(-23));
    assert_eq!(sum(Sm80, &[half_ulp(-1.0)], 1.0), 1.0);
    // A sum is truncated, not rounded, to f32.
    assert_eq!(sum(Sm90, &[half_ulp(-1.0)], 1.0), 1.0 - two(-24));
    assert_eq!(sum(Sm90, &[half_ulp(1.0); 3], 1.0), 1.0);
    // Products are not normalised: 1.5 x 1.5 = 2.25 has the exponent of 1, which keeps one bit more.
    assert_eq!(sum(Sm80, &[(1.5, 1.5), (two(-12), two(-12)), (two(-12), two(-12))], 0.0), 2.25 + 0.0);
    assert_eq!(sum(Sm80, &[(1.5, 1.5), (two(-11), two(-12)), (two(-11), two(-12))], 0.0), 2.25 + two(-22));
    // sm80 adds products 0 to 7 before 8 to 15, sm90 all at once.
    let mut cancel = vec![(two(20), two(10))];
    cancel.extend([(0.0, 0.0); 6]);
    cancel.extend([(-two(20), two(10)), (1.0, 1.0)]);
    assert_eq!(sum(Sm80, &cancel, 0.0), 1.0);
    assert_eq!(sum(Sm90, &cancel, 0.0), 0.0);
    for mode in MODES {
        // Subnormal results are kept; infinities and NaN follow IEEE.
        assert_eq!(sum(mode, &[(two(-70), two(-70))], 0.0), two(-140), "{mode:?}");
        assert_eq!(sum(mode, &[(f32::INFINITY, 2.0)], -1.0), f32::INFINITY);
        assert_eq!(sum(mode, &[(1.0, 1.0)], f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(sum(mode, &[(f32::INFINITY, 0.0)], 1.0).is_nan());
        assert!(sum(mode, &[(f32::INFINITY, 1.0)], f32::NEG_INFINITY).is_nan());
        assert!(sum(mode, &[(1.0, 1.0)], f32::NAN).is_nan());
        assert_eq!(sum(mode, &[(3.0, 5.0), (-2.0, 4.0)], 0.5), 7.5);
    }
    // A first block that overflows meets an infinity of the second one.
    let mut overflow = vec![(f32::MAX / 2.0, 8.0)];
    overflow.extend([(0.0, 0.0); 7]);
    overflow.push((f32::NEG_INFINITY, 1.0));
    assert!(sum(Sm80, &overflow, 0.0).is_nan());
    assert_eq!(sum(Sm90, &overflow, 0.0), f32::NEG_INFINITY);
    assert_eq!(sum(Sm80, &[(f32::NAN, 1.0)], 0.0).to_bits(), 0x7fff_ffff);
    assert_eq!(sum(Exact, &[half_ulp(1.0); 4], 1.0), 1.0);
}

/// A row-major matrix `[rows][16]` of 16-bit numbers as words.
fn words(bits: &[u16]) -> Vec<u32> {
    bits.chunks(2).map(|p| u32::from(p[0]) | u32::from(p[1]) << 16).collect()
}

#[test]
fn ldmatrix_registers() {
    let bits: Vec<u16> = (0..256).map(|i| i * 7 + 3).collect();
    let run =
        Run { kernel: "sim_test_matrices", threads: 32, shared: 512, x: &words(&bits), y: &[0; 256], ..Run::default() };
    let y = run.go(SimOptions::default()).unwrap();
    let at = |m: usize, row: usize, column: usize| u32::from(bits[m * 64 + row * 8 + column]);
    for lane in 0..32 {
        for m in 0..4 {
            let (g, t) = (lane / 4, lane % 4 * 2);
            assert_eq!(y[lane * 8 + m], at(m, g, t) | at(m, g, t + 1) << 16, "lane {lane}, matrix {m}");
            assert_eq!(y[lane * 8 + 4 + m], at(m, t, g) | at(m, t + 1, g) << 16, "lane {lane}, matrix {m} transposed");
        }
    }
}

/// One launch of `kernel` against [`probe::dot`], which the tests above have checked.
fn multiply_is_dot(kernel: &'static str, is_bf16: bool, mi: usize, nj: usize, value: impl Fn(usize) -> f32) {
    let bits = |v: f32| if is_bf16 { bf16::from_f32(v).to_bits() } else { f16::from_f32(v).to_bits() };
    let a: Vec<u16> = (0..mi * 256).map(|i| bits(value(i))).collect();
    let b: Vec<u16> = (0..nj * 128).map(|i| bits(value(i + 10_000))).collect();
    let d: Vec<f32> = (0..mi * 16 * nj * 8).map(|i| value(i + 20_000)).collect();
    let start: Vec<u32> = d.iter().map(|v| v.to_bits()).collect();
    let x = words(&[a.clone(), b.clone()].concat());
    for arithmetic in MODES {
        let options = SimOptions { arithmetic, ..SimOptions::default() };
        let y = Run { kernel, threads: 32, x: &x, y: &start, ..Run::default() }.go(options).unwrap();
        for (i, (&found, &c)) in y.iter().zip(&d).enumerate() {
            let (m, n) = (i / (nj * 8), i % (nj * 8));
            let expected = probe::dot(is_bf16, arithmetic, &a[m * 16..][..16], &b[n * 16..][..16], c);
            assert_eq!(f32::from_bits(found), expected, "{kernel} {arithmetic:?} at ({m}, {n})");
        }
    }
}

#[test]
fn mma_of_every_mode() {
    let whole = |i: usize| ((i * 2_654_435_761) >> 9 & 15) as f32 - 7.0;
    let real = |i: usize| (i as f32 * 12.9898).sin() * two((i * 40_503 / 32) as i32 % 9 - 4);
    multiply_is_dot("sim_test_multiply_f16", false, 2, 3, whole);
    multiply_is_dot("sim_test_multiply_bf16", true, 1, 4, whole);
    multiply_is_dot("sim_test_multiply_f16", false, 2, 3, real);
    multiply_is_dot("sim_test_multiply_bf16", true, 1, 4, real);
    // One infinity spoils its row and column, nothing else.
    multiply_is_dot("sim_test_multiply_f16", false, 2, 3, |i| if i == 35 { f32::INFINITY } else { whole(i) + 0.5 });
}
