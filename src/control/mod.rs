//! The launches of a run besides its ops: they draw gates, update the loss scale and take the optimizer's step.

pub mod gate;
pub mod loss_scale;
pub mod sgd;

use crate::device::{conditions, Kernel};

/// Every kernel that the launch code here uses.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernel> {
    let kinds = [gate::KERNELS, conditions::KERNELS, loss_scale::KERNELS, sgd::KERNELS];
    kinds.into_iter().flatten().copied().flatten().map(|entry| &entry.kernel)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_entry_is_one_ops() {
        let mut known: Vec<_> = crate::kernels().map(|kernel| kernel.name).collect();
        let mut rows: Vec<_> = crate::device::table::ROWS.iter().map(|row| row.name).collect();
        known.sort_unstable();
        rows.sort_unstable();
        assert_eq!(known, rows, "every KERNEL line is of a kind that one op names");
    }
}
