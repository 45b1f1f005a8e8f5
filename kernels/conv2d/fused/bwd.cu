// dx as conv2d_fused_bwd_x and dw as conv2d_fused_bwd_w, in one launch: blocks of both read g, y and x at about the
// same time.
//
// Tensors   as conv2d_fused_bwd_x and conv2d_fused_bwd_w, with g and y in common.
// Method    each block runs bwd_w or bwd_x. The grid has one segment per split of bwd_w: first the tiles of dw over the
//           split's pixels, then the tiles of dx for about the same pixels. The tiles of dx find g, y and x in the L2
//           cache if a segment of them fits.
// Grid      x: segments, each of all tiles of bwd_w and an even share of the tiles of bwd_x, which are ordered by
//           column tile, group, residue, row tile (columns fastest). conv2d_reduce_f32 adds the splits.
// Threads   as many for either tile. Shared memory: the larger of the two tiles' needs.
// Counted   4*N*P*Q*K*R*S*C/G FLOPs; bytes: g, y, w, x, dx, dw and the operands of bwd_x's epilogue once each, x only
//           once if it is also y of the epilogue; 8 or 12 bytes per row tile and column; each split writes and reads
//           K*R*S*C/G floats.
// Entries   named by the tile of dx, then the tile of dw; each needs the accesses of the bwd_x and the bwd_w entry of
//           its form.
#include "conv2d/fused/data_gradient.cuh"
#include "conv2d/fused/weight_gradient.cuh"

namespace conv2d::fused {

enum Access { VECTOR, PACKED, SCALAR };

// The weight loader of bwd_x.
template <typename T, class Tile, Access ACCESS>
struct Weights {
  using Loader = WeightColumns<T, Tile, ACCESS == VECTOR>;
};
template <typename T, class Tile>
struct Weights<T, Tile, PACKED> {
  using Loader = PackedColumns<T, Tile>;
};

// The bwd_x block with index `at`.
__device__ __forceinline__ Block data_block(const GradientsParams& p, u32 at) {
  const u32 row = u32(p.x.n_tiles) * u32(p.x.groups), outer = at / row, residues = u32(p.x_residues);
  return Block(p.x.n_tiles, p.x.groups, outer / residues * row + at % row, int(outer % residues), 0);
}

template <typename T, class XTile, class WTile, Access ACCESS>
__device__ __forceinline__ void bwd(const GradientsParams& p) {
  using X = typename XTile::Paired;
  using W = typename WTile::Paired;
  static_assert(X::THREADS == W::THREADS, "one launch has blocks of one size");
  const u32 segment = u32(p.w_blocks) + u32(p.x_segment), split = blockIdx.x / segment, at = blockIdx.x % segment;
  if (at < u32(p.w_blocks)) {
    const Block block(p.w.n_tiles, p.w.groups, at, 0, int(split));
    if constexpr (ACCESS == PACKED)
      weight_gradient_packed<T, W>(p.w, block);
    else
      weight_gradient<T, W, ACCESS == VECTOR>(p.w, block);
    return;
  }
  const u32 mine = split * u32(p.x_segment) + at - u32(p.w_blocks);
  if (mine >= u32(p.x_blocks)) return;  // the last segments have fewer
  data_gradient<T, X, ACCESS != SCALAR, typename Weights<T, X, ACCESS>::Loader>(p.x, data_block(p, mine));
}

KERNEL(conv2d_fused_bwd_f32_128x128_128x128, GradientsParams, 256, 1,
       (bwd<float, Tile128x128EightWarps, Tile128x128EightWarps, VECTOR>))
KERNEL(conv2d_fused_bwd_f32_64x64_64x64, GradientsParams, 128, 3, (bwd<float, Tile64x64, Tile64x64, VECTOR>))
KERNEL(conv2d_fused_bwd_f32_64x64_32x128, GradientsParams, 128, 3, (bwd<float, Tile64x64, Tile32x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f32_128x16_32x128, GradientsParams, 128, 3, (bwd<float, Tile128x16, Tile32x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f32_64x64_64x64_scalar, GradientsParams, 128, 3, (bwd<float, Tile64x64, Tile64x64, SCALAR>))
KERNEL(conv2d_fused_bwd_f32_64x64_64x64_packed, GradientsParams, 128, 3, (bwd<float, Tile64x64, Tile64x64, PACKED>))
KERNEL(conv2d_fused_bwd_f32_128x16_32x128_packed, GradientsParams, 128, 3, (bwd<float, Tile128x16, Tile32x128, PACKED>))

KERNEL(conv2d_fused_bwd_f16_128x128_64x128, GradientsParams, 128, 2, (bwd<f16, Tile128x128, Tile64x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_128x128_32x128, GradientsParams, 128, 2, (bwd<f16, Tile128x128, Tile32x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_128x64_64x128, GradientsParams, 128, 2, (bwd<f16, Tile128x64, Tile64x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_128x64_64x64, GradientsParams, 128, 3, (bwd<f16, Tile128x64, Tile64x64, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_64x64_64x64, GradientsParams, 128, 3, (bwd<f16, Tile64x64, Tile64x64, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_128x32_32x128, GradientsParams, 128, 3, (bwd<f16, Tile128x32, Tile32x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_128x16_16x128, GradientsParams, 128, 4, (bwd<f16, Tile128x16, Tile16x128, VECTOR>))
KERNEL(conv2d_fused_bwd_f16_64x64_64x64_scalar, GradientsParams, 128, 3, (bwd<f16, Tile64x64, Tile64x64, SCALAR>))
KERNEL(conv2d_fused_bwd_f16_64x64_64x64_packed, GradientsParams, 128, 3, (bwd<f16, Tile64x64, Tile64x64, PACKED>))
KERNEL(conv2d_fused_bwd_f16_128x32_32x128_packed, GradientsParams, 128, 3, (bwd<f16, Tile128x32, Tile32x128, PACKED>))
KERNEL(conv2d_fused_bwd_f16_128x16_16x64_packed, GradientsParams, 128, 4, (bwd<f16, Tile128x16, Tile16x64, PACKED>))

KERNEL(conv2d_fused_bwd_bf16_128x128_64x128, GradientsParams, 128, 2, (bwd<bf16, Tile128x128, Tile64x128, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_128x128_32x128, GradientsParams, 128, 2, (bwd<bf16, Tile128x128, Tile32x128, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_128x64_64x128, GradientsParams, 128, 2, (bwd<bf16, Tile128x64, Tile64x128, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_128x64_64x64, GradientsParams, 128, 3, (bwd<bf16, Tile128x64, Tile64x64, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_64x64_64x64, GradientsParams, 128, 3, (bwd<bf16, Tile64x64, Tile64x64, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_128x32_32x128, GradientsParams, 128, 3, (bwd<bf16, Tile128x32, Tile32x128, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_128x16_16x128, GradientsParams, 128, 4, (bwd<bf16, Tile128x16, Tile16x128, VECTOR>))
KERNEL(conv2d_fused_bwd_bf16_64x64_64x64_scalar, GradientsParams, 128, 3, (bwd<bf16, Tile64x64, Tile64x64, SCALAR>))
KERNEL(conv2d_fused_bwd_bf16_64x64_64x64_packed, GradientsParams, 128, 3, (bwd<bf16, Tile64x64, Tile64x64, PACKED>))
KERNEL(conv2d_fused_bwd_bf16_128x32_32x128_packed, GradientsParams, 128, 3, (bwd<bf16, Tile128x32, Tile32x128, PACKED>))
KERNEL(conv2d_fused_bwd_bf16_128x16_16x64_packed, GradientsParams, 128, 4, (bwd<bf16, Tile128x16, Tile16x64, PACKED>))

}  // namespace conv2d::fused
