//! The table of kernels: a row for every `KERNEL` line of `kernels/**/*.cu`, as `build/table.rs` reads it.
//!
//! An op names its kinds of entries in [`kernels!`]; names, dtypes, tiles, threads and the GPU family come from the
//! rows. At compile time the op's struct must have the name and the size of the kernel's.

use super::{Arch, Kernel, Target};
use crate::tensor::DType;
use crate::{Error, Result};

/// The content of a `KERNEL` line.
#[derive(Debug)]
pub(crate) struct Row {
    pub name: &'static str,
    /// The name with `*` for the dtype, cut off before any tile: `conv2d_fwd_*`, `pool_avg_fwd_*_tree`.
    pub kind: &'static str,
    pub dtype: DType,
    /// The tiles of a product: rows, columns, bytes per row of a stage, stages.
    pub tiles: &'static [[usize; 4]],
    /// `vector`, `packed`, `stem` or `scalar`; empty without tiles.
    pub access: &'static str,
    pub family: Option<Arch>,
    pub params: &'static str,
    pub params_bytes: usize,
    pub threads: u32,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

pub(crate) const fn count(kind: &str) -> usize {
    let (mut i, mut found) = (0, 0);
    while i < ROWS.len() {
        found += equal(ROWS[i].kind, kind) as usize;
        i += 1;
    }
    assert!(found > 0, "no KERNEL line is of this kind");
    found
}

/// The rows of `kind`, in line order.
pub(crate) const fn rows<const N: usize>(kind: &str) -> [&'static Row; N] {
    let mut rows = [&ROWS[0]; N];
    let (mut i, mut found) = (0, 0);
    while i < ROWS.len() {
        if equal(ROWS[i].kind, kind) {
            rows[found] = &ROWS[i];
            found += 1;
        }
        i += 1;
    }
    assert!(found == N, "N is the kind's count");
    rows
}

const fn equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

impl Kernel {
    /// The entry of `row`, whose struct of parameters `P` has the name `params`.
    pub(crate) const fn of<P: bytemuck::Pod>(row: &Row, params: &str, shared_bytes: u32) -> Self {
        assert!(equal(row.params, params), "the KERNEL line names another struct");
        assert!(row.params_bytes == size_of::<P>(), "the .cu file asserts another size of the struct");
        Self { family: row.family, ..Self::new::<P>(row.name, row.threads, shared_bytes) }
    }
}

/// An entry that is chosen by its dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub kernel: Kernel,
    pub dtype: DType,
}

impl AsRef<Kernel> for Entry {
    fn as_ref(&self) -> &Kernel {
        &self.kernel
    }
}

/// The entries of `kind`; see [`kernels!`].
pub(crate) const fn entries<P: bytemuck::Pod, const N: usize>(kind: &str, params: &str, shared: u32) -> [Entry; N] {
    let rows = rows::<N>(kind);
    let mut entries = [Entry { kernel: Kernel::of::<P>(rows[0], params, shared), dtype: rows[0].dtype }; N];
    let mut i = 1;
    while i < N {
        entries[i] = Entry { kernel: Kernel::of::<P>(rows[i], params, shared), dtype: rows[i].dtype };
        i += 1;
    }
    entries
}

/// Declares the kernels of an op. `FWD: Add = "sum_fwd_*", 0;` declares a static with the entries of this kind, which
/// take an `Add` and 0 bytes of shared memory; `KERNELS` lists all entries.
macro_rules! kernels {
    ($($name:ident: $params:ident = $kind:literal, $shared:expr;)+) => {
        $(static $name: [$crate::device::table::Entry; $crate::device::table::count($kind)] =
            $crate::device::table::entries::<$params, _>($kind, stringify!($params), $shared);)+
        pub(crate) static KERNELS: &[&[$crate::device::table::Entry]] = &[$(&$name),+];
    };
}
pub(crate) use kernels;

/// The entries of `table` that a device of `arch` runs: first its own family's, then the general ones.
pub(crate) fn on<T: AsRef<Kernel>>(table: &[T], arch: Arch) -> impl Iterator<Item = &T> {
    let of = move |family| table.iter().filter(move |entry| entry.as_ref().family == family);
    of(Some(arch)).chain(of(None))
}

pub(crate) fn entry(target: Target, entries: &'static [Entry]) -> Result<&'static Kernel> {
    let found = on(entries, target.arch).find(|entry| entry.dtype == target.dtype);
    found.map(|entry| &entry.kernel).ok_or_else(|| {
        let what = format!("{} in {}", entries[0].kernel.name.replace("_f32", ""), target.dtype);
        Error::unsupported(what, "kernels compute in f32, f16 and bf16; use the CPU")
    })
}

/// The only entry of a kind.
pub(crate) const fn only(entries: &'static [Entry; 1]) -> &'static Kernel {
    assert!(entries[0].kernel.family.is_none(), "an entry for every device");
    &entries[0].kernel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_takes_its_own_entries_first_and_never_anothers() {
        let [plain] = entries::<[u64; 11], 3>("sum_fwd_*", "Add", 0).get(..1).map(|e| [e[0]]).expect("three");
        let own = |family, name| Entry { kernel: Kernel { family: Some(family), name, ..plain.kernel }, ..plain };
        let table = Box::leak(Box::new([plain, own(Arch::Sm90, "sum_fwd_f32_sm90")]));
        let name = |arch| entry(Target { arch, dtype: DType::F32 }, table).map(|kernel| kernel.name);
        assert_eq!(name(Arch::Sm80).ok(), Some("sum_fwd_f32"));
        assert_eq!(name(Arch::Sm90).ok(), Some("sum_fwd_f32_sm90"));
        assert!(entry(Target { arch: Arch::Sm90, dtype: DType::F64 }, table).is_err());
    }
}
