//! Matrix products without the `gemm` crate, for processors on which it panics or never returns: `docs/notes/cpu.md`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::matrix::Matrix;
use super::vectorized::vectorized;
use crate::tensor::Real;

/// True if the `gemm` crate computes matrix products. On the few processors on which it fails, plain loops replace it;
/// they are slower and round differently.
pub fn has_fast_products() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(|| {
        let caches = || !cfg!(target_os = "linux") || can_use_caches(Path::new(SYSTEM), tile(detected));
        has_features(detected) && caches()
    })
}

/// Where Linux describes its processors.
const SYSTEM: &str = "/sys/devices/system/cpu";

/// Features that the crate's AVX kernels unwrap after a test for FMA alone.
const WITH_FMA: &[&str] = &["avx2", "bmi1", "bmi2", "lzcnt", "popcnt", "sse4.2"];
/// Features that its AVX-512 kernels unwrap after a test for the foundation alone.
const WITH_AVX512F: &[&str] = &["fma", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

/// True if a processor with the features `has` can run the kernels that the crate chooses for it.
fn has_features(has: impl Fn(&str) -> bool) -> bool {
    let sound = |feature: &str, with: &[&str]| !has(feature) || with.iter().all(|name| has(name));
    sound("fma", WITH_FMA) && sound("avx512f", WITH_AVX512F)
}

#[cfg(target_arch = "x86_64")]
fn detected(name: &str) -> bool {
    macro_rules! any {
        ($($feature:tt)*) => { match name { $($feature => is_x86_feature_detected!($feature),)* _ => false } };
    }
    any!("avx2" "bmi1" "bmi2" "lzcnt" "popcnt" "sse4.2" "fma" "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl")
}

#[cfg(not(target_arch = "x86_64"))]
fn detected(_name: &str) -> bool {
    false
}

/// The crate's tile of a matrix: bytes of a column, and columns.
#[derive(Clone, Copy, Debug)]
struct Tile {
    column: usize,
    columns: usize,
}

/// The tile of the kernels that the crate chooses.
fn tile(has: impl Fn(&str) -> bool) -> Tile {
    if has("avx512f") {
        Tile { column: 256, columns: 6 }
    } else if has("fma") {
        Tile { column: 64, columns: 6 }
    } else {
        Tile { column: if cfg!(target_arch = "aarch64") { 64 } else { 16 }, columns: 4 }
    }
}

/// A cache that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cache {
    level: usize,
    bytes: usize,
    ways: usize,
    line: usize,
    /// Processors that share it.
    shared: usize,
}

/// The crate's assumption for a level that the system does not describe.
const DEFAULT: [Cache; 3] = {
    let first = Cache { level: 1, bytes: 32 << 10, ways: 8, line: 64, shared: 1 };
    [first, Cache { level: 2, bytes: 256 << 10, ..first }, Cache { level: 3, bytes: 2 << 20, ..first }]
};

/// True if the crate can split products by the caches that the system describes in `folder`.
fn can_use_caches(folder: &Path, tile: Tile) -> bool {
    let Ok(caches) = caches(folder) else { return false };
    let sound = |c: &Cache| c.level <= 3 && c.shared > 0 && c.ways <= 1 << 16 && c.line <= 1 << 16;
    if !caches.iter().all(sound) {
        return false;
    }
    // The crate may look at any processor. It counts the processor's share of a cache, or all of it if it asks `lscpu`.
    let level = |level: usize, whole: bool| {
        let share = |c: &Cache| if whole || level == 3 { c.bytes } else { c.bytes / c.shared };
        let all = caches.iter().filter(|c| c.level == level && c.bytes > 0);
        let mut all: HashSet<Cache> = all.map(|c| Cache { bytes: share(c), shared: 1, ..*c }).collect();
        if all.is_empty() {
            all.insert(DEFAULT[level - 1]);
        }
        all
    };
    [false, true].into_iter().all(|whole| {
        let [first, second, third] = [1, 2, 3].map(|n| level(n, whole));
        let fits = |l1, l2| third.iter().all(|l3| [4, 8].iter().all(|&element| fits([l1, l2, l3], tile, element)));
        first.iter().all(|l1| second.iter().all(|l2| fits(l1, l2)))
    })
}

/// True if the crate's arithmetic fits at least one tile of `element`-byte elements in each cache. If not, the crate
/// divides by 0 or never ends.
fn fits([l1, l2, l3]: [&Cache; 3], Tile { column, columns }: Tile, element: usize) -> bool {
    let fit = || {
        let [ways1, ways2, ways3] = [l1, l2, l3].map(|c| c.ways.max(2));
        let line = l1.line.max(64);
        let way = line * (l1.bytes.max(32 << 10) / (line * ways1));
        let common = gcd(column, way);
        let depth = way / common;
        let taken = column / common + (columns * depth * element).checked_div(way)?;
        let depth = (depth * (ways1 / taken).next_power_of_two()).max(512);
        let b_ways = (columns * depth * element).div_ceil((l2.bytes / ways2).max(1));
        let a_ways = (ways2 - 1).checked_sub(b_ways)?.max(1);
        let small = l2.bytes / 512;
        let third = l3.bytes / ways3 * (ways3 - 1);
        Some(a_ways * l2.bytes / ways2 >= column * depth && small >= column && third >= columns * depth * element)
    };
    fit() == Some(true)
}

fn gcd(a: usize, b: usize) -> usize {
    a.checked_rem(b).map_or(a, |rest| gcd(b, rest))
}

/// The caches of all processors; fails if a description cannot be read.
fn caches(folder: &Path) -> std::io::Result<Vec<Cache>> {
    let mut found = Vec::new();
    for cache in folders(folder, "cpu")?.iter().map(|cpu| cpu.join("cache")).filter(|cache| cache.is_dir()) {
        for index in folders(&cache, "index")? {
            let text = |name: &str| std::fs::read_to_string(index.join(name)).map(|text| text.trim().to_string());
            if !["Data", "Unified"].contains(&text("type")?.as_str()) {
                continue;
            }
            let number = |name: &str| text(name).ok().and_then(|text| bytes(&text));
            found.push(Cache {
                level: number("level").unwrap_or(0),
                bytes: number("size").unwrap_or(0),
                ways: number("ways_of_associativity").unwrap_or(8),
                line: number("coherency_line_size").unwrap_or(64),
                shared: text("shared_cpu_list").map_or(0, |list| processors(&list)),
            });
        }
    }
    Ok(found)
}

/// The folders in `folder` whose names begin with `name`.
fn folders(folder: &Path, name: &str) -> std::io::Result<Vec<PathBuf>> {
    let begins = |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(name));
    let all = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    all.filter(|path| path.as_ref().map_or(true, |path| path.is_dir() && begins(path))).collect()
}

/// `48K` as 49,152.
fn bytes(text: &str) -> Option<usize> {
    let unit = |(letter, unit): (char, usize)| text.strip_suffix(letter).map(|digits| (digits, unit));
    let (digits, unit) =
        [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)].into_iter().find_map(unit).unwrap_or((text, 1));
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// The number of processors in a list like `0-3,8`; 0 if it is malformed.
fn processors(list: &str) -> usize {
    let count = |item: &str| match item.split_once('-') {
        None => Some(1),
        Some((first, last)) => last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1),
    };
    list.split(',').map(count).try_fold(0usize, |sum, n| sum.checked_add(n?)).unwrap_or(0)
}

/// Rows and columns of `c` in a tile, and the products summed before the tile is stored.
const ROWS: usize = 4;
const COLUMNS: usize = 16;
const DEPTH: usize = 128;

/// `c = a b`, or `c += a b`. The caller has checked extents and slices.
pub(super) fn product<T: Real>(c: (&mut [T], Matrix), a: (&[T], Matrix), b: (&[T], Matrix), accumulate: bool) {
    let ((c, cm), (a, am), (b, bm)) = (c, a, b);
    let at = |m: &Matrix, row: usize, col: usize| row * m.row_stride + col * m.col_stride;
    if !accumulate {
        for row in 0..cm.rows {
            (0..cm.cols).for_each(|col| c[at(&cm, row, col)] = T::ZERO);
        }
    }
    let mut panel = [[T::ZERO; COLUMNS]; DEPTH];
    for first_col in (0..cm.cols).step_by(COLUMNS) {
        let cols = COLUMNS.min(cm.cols - first_col);
        for first in (0..am.cols).step_by(DEPTH) {
            let depth = DEPTH.min(am.cols - first);
            for (i, row) in panel[..depth].iter_mut().enumerate() {
                (0..cols).for_each(|j| row[j] = b[at(&bm, first + i, first_col + j)]);
            }
            for first_row in (0..cm.rows).step_by(ROWS) {
                let rows = ROWS.min(cm.rows - first_row);
                let tile =
                    vectorized(|| sums(&panel[..depth], |i, k| a[at(&am, first_row + i.min(rows - 1), first + k)]));
                for (i, row) in tile.iter().enumerate().take(rows) {
                    (0..cols).for_each(|j| c[at(&cm, first_row + i, first_col + j)] += row[j]);
                }
            }
        }
    }
}

/// The products of `ROWS` rows of `a` with `panel`.
#[inline(always)]
fn sums<T: Real>(panel: &[[T; COLUMNS]], a: impl Fn(usize, usize) -> T) -> [[T; COLUMNS]; ROWS] {
    let mut sums = [[T::ZERO; COLUMNS]; ROWS];
    for (k, row) in panel.iter().enumerate() {
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = a(i, k);
            sums.iter_mut().zip(row).for_each(|(sum, &b)| *sum += a * b);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn kernels_are_taken_with_all_their_features_only() {
        let v3: Vec<&str> = WITH_FMA.iter().copied().chain(["fma"]).collect();
        let v4: Vec<&str> = v3.iter().copied().chain(["avx512f"]).chain(WITH_AVX512F.iter().copied()).collect();
        for (what, features, works) in [
            ("neither", vec!["popcnt", "sse4.2"], true),
            ("AVX2 without FMA", vec!["avx2"], true),
            ("FMA without AVX2: Piledriver", vec!["fma", "bmi1", "lzcnt", "popcnt", "sse4.2"], false),
            ("all of AVX2", v3.clone(), true),
            ("AVX-512 without BW: Knights Landing", [&v3[..], &["avx512f", "avx512cd"]].concat(), false),
            ("AVX-512 without FMA", v4.iter().copied().filter(|&f| f != "fma").collect(), false),
            ("all of AVX-512", v4, true),
        ] {
            assert_eq!(has_features(|name| features.contains(&name)), works, "{what}");
        }
    }

    const WIDE: Tile = Tile { column: 256, columns: 6 };
    const NARROW: Tile = Tile { column: 64, columns: 6 };

    /// A description of one processor: for each cache its level, type, size, ways and who shares it.
    fn described(caches: &[(&str, &str, &str, &str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (i, (level, kind, size, ways, shared)) in caches.iter().enumerate() {
            let index = folder.path().join(format!("cpu0/cache/index{i}"));
            fs::create_dir_all(index.join("power")).expect("a folder");
            for (name, text) in [
                ("level", level),
                ("type", kind),
                ("size", size),
                ("ways_of_associativity", ways),
                ("shared_cpu_list", shared),
                ("coherency_line_size", &"64"),
            ] {
                fs::write(index.join(name), format!("{text}\n")).expect("a file");
            }
        }
        folder
    }

    #[test]
    fn caches_that_the_crate_cannot_use_are_detected() {
        let usual = [
            ("1", "Data", "48K", "12", "0"),
            ("1", "Instruction", "32K", "8", "0"),
            ("2", "Unified", "1024K", "16", "0-1"),
            ("3", "Unified", "32768K", "16", "0-63"),
        ];
        assert!(can_use_caches(described(&usual).path(), WIDE));
        assert!(can_use_caches(described(&usual[..2]).path(), WIDE), "the rest is as usual");
        let desktop = [
            ("1", "Data", "32K", "8", "0,4"),
            ("2", "Unified", "256K", "4", "0,4"),
            ("3", "Unified", "6M", "12", "0-7"),
        ];
        assert!(can_use_caches(described(&desktop).path(), NARROW), "128 KiB for each thread");
        assert!(!can_use_caches(described(&desktop).path(), WIDE), "too little for AVX-512, which it lacks");
        for (what, more) in [
            ("a fourth level", ("4", "Unified", "128M", "16", "0-7")),
            ("a hundredth level", ("100", "Data", "1K", "1", "0")),
            ("a list that counts down", ("2", "Unified", "1M", "16", "3-0")),
            ("a small second level", ("2", "Unified", "16K", "8", "0")),
            ("a second level that many share", ("2", "Unified", "1M", "16", "0-63")),
            ("a small third level", ("3", "Unified", "4K", "8", "0")),
            ("a way of less than a line", ("1", "Data", "32K", "4096", "0")),
        ] {
            assert!(!can_use_caches(described(&[&usual[..], &[more]].concat()).path(), WIDE), "{what}");
        }
        assert!(!can_use_caches(Path::new("/nowhere/at/all"), WIDE), "no description");
        assert!(can_use_caches(tempfile::tempdir().expect("a folder").path(), WIDE), "no caches");
    }

    #[test]
    fn lists_of_processors_are_counted() {
        let lists = ["0", "0-3,8", "1,3,5", "", "3-0", "0-18446744073709551615", "a-b"];
        assert_eq!(lists.map(processors), [1, 5, 3, 1, 0, 0, 0]);
        let sizes = ["48K", "2M", "7", "1G", "", "K", "18446744073709551615K"];
        assert_eq!(sizes.map(bytes), [Some(49152), Some(2 << 20), Some(7), Some(1 << 30), None, None, None]);
    }

    /// Against three loops, in whole numbers.
    #[test]
    fn products_of_every_shape_are_right() {
        let shapes = [(1, 1, 1), (4, 16, 128), (5, 17, 129), (3, 40, 300), (9, 1, 7), (2, 3, 0), (0, 2, 3)];
        for (rows, cols, depth) in shapes {
            let number = |i: usize| (i * 7 % 11) as f64 - 5.0;
            let (am, bm) = (Matrix::rows(rows, depth, depth + 2), Matrix::rows(cols, depth, depth).transposed());
            let a: Vec<f64> = (0..rows * (depth + 2)).map(number).collect();
            let b: Vec<f64> = (0..cols * depth).map(|i| number(i + 3)).collect();
            let product_of = |i: usize, j: usize, k: usize| a[i * (depth + 2) + k] * b[j * depth + k];
            let expected = |i: usize, j: usize| (0..depth).map(|k| product_of(i, j, k)).sum::<f64>();
            for accumulate in [false, true] {
                for cm in [Matrix::rows(cols, rows, rows + 1).transposed(), Matrix::rows(rows, cols, cols + 1)] {
                    let (mut c, old) = (vec![2.0; (rows + 1) * (cols + 1)], if accumulate { 2.0 } else { 0.0 });
                    product((&mut c, cm), (&a, am), (&b, bm), accumulate);
                    for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                        let found = c[i * cm.row_stride + j * cm.col_stride];
                        assert_eq!(found, old + expected(i, j), "{rows}x{cols}x{depth} at {i}, {j}");
                    }
                }
            }
        }
    }
}
