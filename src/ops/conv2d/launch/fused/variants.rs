//! The entries of `kernels/conv2d/fused/`, from the table of kernels.

use super::params::{DataGradientParams, EndParams, ForwardParams, GradientsParams, WeightGradientParams};
use crate::device::table::{count, rows};
use crate::device::Kernel;
use crate::ops::conv2d::launch::variants::{products, tile, variants, Stages, Variant};

products! {
    FWD: ForwardParams = "conv2d_fused_fwd_*", Stages { paired: false, table: true };
    /// Has the tiles of [`FWD`] in the same order. A shape gets the same tile, so the bits do not depend on the launch
    /// that computes a block's end.
    END: EndParams = "conv2d_fused_fwd_end_*", Stages { paired: true, table: true };
    BWD_X: DataGradientParams = "conv2d_fused_bwd_x_*", Stages { paired: true, table: true };
    BWD_W: WeightGradientParams = "conv2d_fused_bwd_w_*", Stages { paired: true, table: false };
}

const BOTH: usize = count("conv2d_fused_bwd_*");

/// The entries for both gradients, with the tile of dx and, in the same order, with the tile of dw.
pub static BOTH_X: [Variant; BOTH] = both(0);
pub static BOTH_W: [Variant; BOTH] = both(1);

/// The entries for both gradients, each with its `side`-th tile.
const fn both(side: usize) -> [Variant; BOTH] {
    let rows = rows::<BOTH>("conv2d_fused_bwd_*");
    let mut variants = [BWD_W[0]; BOTH];
    let mut i = 0;
    while i < BOTH {
        let x = tile(rows[i], 0).shared_bytes(Stages { paired: true, table: true });
        let w = tile(rows[i], 1).shared_bytes(Stages { paired: true, table: false });
        let shared = if x > w { x } else { w };
        variants[i] = Variant::new::<GradientsParams>(rows[i], "GradientsParams", side, shared);
        i += 1;
    }
    variants
}

/// Every entry.
pub fn all() -> impl Iterator<Item = &'static Kernel> {
    FWD.iter().chain(&END).chain(&BWD_X).chain(&BWD_W).chain(&BOTH_X).map(|variant| &variant.kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_blocks_fit_a_multiprocessor() {
        assert!(all().all(|kernel| kernel.shared_bytes <= 81 * 1024), "two blocks in the 163 KiB of sm_80");
    }

    #[test]
    fn the_end_of_a_block_takes_the_tiles_of_fwd() {
        let wide = FWD.iter().filter(|v| v.access == crate::ops::conv2d::launch::variants::Access::Vector);
        assert!(wide.map(|v| (v.dtype, v.tile)).eq(END.iter().map(|v| (v.dtype, v.tile))));
    }
}
