// The end of a residual block and the 1x1 convolution after it:
// z[n,h,w,c] = max(x * x_scale[c] + x_shift[c] + other * other_scale[c] + other_shift[c], 0), each scale and shift
// optional, and y[n,h,w,k] = sum_c z[n,h,w,c] * w[k,c]; signs, one bit per element of z, 0 if z <= 0;
// and for each tile and column of y as stored, the mean and the sum of squared deviations.
//
// Tensors   x, other, z[N,H,W,C], w[K,C], y[N,H,W,K] in f32, f16 or bf16, all but y with 16-byte accesses; C a multiple
//           of 8; signs[N,H,W,C/8], bit c % 8 of byte c / 8; scales and shifts [C], 16-byte aligned, and mean and m2
//           [row tiles][K] in f32.
// Method    conv2d_fused_fwd's. A stage holds x, w and other; each thread transforms its own chunks into z. Blocks
//           of the first column tile also store z and its signs: every chunk of z is in exactly one row tile.
// Grid      as conv2d_fwd; mean and m2 need splits = 1.
// Threads   set by the tile. Shared memory: three stages with a second operand A, or the finished tile; the rows.
// Counted   2*N*H*W*K*C + 5*N*H*W*C FLOPs; bytes: x, other, w, y, z and signs once each, 8 bytes per row tile and
//           column. The other column tiles read x and other again, from the L2 cache.
#include "conv2d/fused/forward.cuh"

namespace conv2d::fused {

template <typename T, class Tile>
__device__ __forceinline__ void fwd_end(const EndParams& p) {
  static_assert(Tile::A_TENSORS == 2, "a stage has room for the second tensor of operand A: take Tile::Paired");
  const Block block(p.n_tiles, p.groups);
  const Joined<T, Tile::SECOND> in(p, block.n_tile == 0);
  measured<T, Tile, true, WeightRows<T, Tile, true>>(p, in, block);
}

KERNEL(conv2d_fused_fwd_end_f32_128x128, EndParams, 256, 1, (fwd_end<float, Tile128x128EightWarps::Paired>))
KERNEL(conv2d_fused_fwd_end_f32_64x64, EndParams, 128, 3, (fwd_end<float, Tile64x64::Paired>))
KERNEL(conv2d_fused_fwd_end_f32_128x16, EndParams, 128, 3, (fwd_end<float, Tile128x16::Paired>))

KERNEL(conv2d_fused_fwd_end_f16_128x128, EndParams, 128, 2, (fwd_end<f16, Tile128x128::Paired>))
KERNEL(conv2d_fused_fwd_end_f16_128x64, EndParams, 128, 3, (fwd_end<f16, Tile128x64::Paired>))
KERNEL(conv2d_fused_fwd_end_f16_64x64, EndParams, 128, 4, (fwd_end<f16, Tile64x64::Paired>))
KERNEL(conv2d_fused_fwd_end_f16_128x32, EndParams, 128, 4, (fwd_end<f16, Tile128x32::Paired>))
KERNEL(conv2d_fused_fwd_end_f16_128x16, EndParams, 128, 4, (fwd_end<f16, Tile128x16::Paired>))

KERNEL(conv2d_fused_fwd_end_bf16_128x128, EndParams, 128, 2, (fwd_end<bf16, Tile128x128::Paired>))
KERNEL(conv2d_fused_fwd_end_bf16_128x64, EndParams, 128, 3, (fwd_end<bf16, Tile128x64::Paired>))
KERNEL(conv2d_fused_fwd_end_bf16_64x64, EndParams, 128, 4, (fwd_end<bf16, Tile64x64::Paired>))
KERNEL(conv2d_fused_fwd_end_bf16_128x32, EndParams, 128, 4, (fwd_end<bf16, Tile128x32::Paired>))
KERNEL(conv2d_fused_fwd_end_bf16_128x16, EndParams, 128, 4, (fwd_end<bf16, Tile128x16::Paired>))

}  // namespace conv2d::fused
