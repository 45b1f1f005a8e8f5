// dx[n,h,w,c] = sum_{r,s,k} dy[n,p,q,k] * w[k,r,s,c], as conv2d_bwd_x, with the corrected gradient
// dy = a[k] * g + b[k] * y + c[k]; then the gradient epilogue of masked.cuh: v = 0 where the activation is 0 or less,
// else dx; for each tile and column sum v, sum v (y0 - mean0), sum v (y1 - mean1). Each part optional; stored or added
// to dx.
//
// Tensors   as conv2d_bwd_x; g and y [N,P,Q,K], y0 and y1 [N,H,W,C] in f32, f16 or bf16; bits [N,H,W,ceil(C/8)];
//           a, b, c [K], scale, shift, mean0, mean1 [C] and sums [2 or 3][residues * row tiles][C] in f32.
// Method    conv2d_bwd_x's. A stage holds g, w and y; each thread transforms its own chunks into dy. Blocks without a
//           row or a tap store sums, too.
// Grid      as conv2d_bwd_x; sums and masks need splits = 1.
// Threads   set by the tile. Shared memory: three stages with a second operand A, or the finished tile; the rows.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: g, y, w, y0, y1, bits, dx once each (dx twice if added to), 8 or 12 bytes
//           per row tile and column.
// Entries   *_packed compute several narrow groups as one (conv2d/packed.cuh) and need 16-byte accesses to g, y, a, b
//           and c; *_scalar take any number of channels; the others need 16-byte accesses to g, y, w, a, b and c.
#include "conv2d/fused/data_gradient.cuh"

namespace conv2d::fused {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void bwd_x(const DataGradientParams& p) {
  data_gradient<T, Tile, VECTOR, WeightColumns<T, Tile, VECTOR>>(p, Block(p.n_tiles, p.groups));
}

template <typename T, class Tile>
__device__ __forceinline__ void bwd_x_packed(const DataGradientParams& p) {
  data_gradient<T, Tile, true, PackedColumns<T, Tile>>(p, Block(p.n_tiles, p.groups));
}

KERNEL(conv2d_fused_bwd_x_f32_128x128, DataGradientParams, 256, 1, (bwd_x<float, Tile128x128EightWarps::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f32_64x64, DataGradientParams, 128, 3, (bwd_x<float, Tile64x64::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f32_128x16, DataGradientParams, 128, 3, (bwd_x<float, Tile128x16::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f32_64x64_scalar, DataGradientParams, 128, 3, (bwd_x<float, Tile64x64::Paired, false>))
KERNEL(conv2d_fused_bwd_x_f32_128x16_scalar, DataGradientParams, 128, 3, (bwd_x<float, Tile128x16::Paired, false>))

KERNEL(conv2d_fused_bwd_x_f16_128x128, DataGradientParams, 128, 2, (bwd_x<f16, Tile128x128::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f16_128x64, DataGradientParams, 128, 3, (bwd_x<f16, Tile128x64::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f16_64x64, DataGradientParams, 128, 4, (bwd_x<f16, Tile64x64::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f16_128x32, DataGradientParams, 128, 4, (bwd_x<f16, Tile128x32::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f16_128x16, DataGradientParams, 128, 4, (bwd_x<f16, Tile128x16::Paired, true>))
KERNEL(conv2d_fused_bwd_x_f16_64x64_scalar, DataGradientParams, 128, 3, (bwd_x<f16, Tile64x64::Paired, false>))
KERNEL(conv2d_fused_bwd_x_f16_128x16_scalar, DataGradientParams, 128, 3, (bwd_x<f16, Tile128x16::Paired, false>))

KERNEL(conv2d_fused_bwd_x_bf16_128x128, DataGradientParams, 128, 2, (bwd_x<bf16, Tile128x128::Paired, true>))
KERNEL(conv2d_fused_bwd_x_bf16_128x64, DataGradientParams, 128, 3, (bwd_x<bf16, Tile128x64::Paired, true>))
KERNEL(conv2d_fused_bwd_x_bf16_64x64, DataGradientParams, 128, 4, (bwd_x<bf16, Tile64x64::Paired, true>))
KERNEL(conv2d_fused_bwd_x_bf16_128x32, DataGradientParams, 128, 4, (bwd_x<bf16, Tile128x32::Paired, true>))
KERNEL(conv2d_fused_bwd_x_bf16_128x16, DataGradientParams, 128, 4, (bwd_x<bf16, Tile128x16::Paired, true>))
KERNEL(conv2d_fused_bwd_x_bf16_64x64_scalar, DataGradientParams, 128, 3, (bwd_x<bf16, Tile64x64::Paired, false>))
KERNEL(conv2d_fused_bwd_x_bf16_128x16_scalar, DataGradientParams, 128, 3, (bwd_x<bf16, Tile128x16::Paired, false>))

KERNEL(conv2d_fused_bwd_x_f32_64x64_packed, DataGradientParams, 128, 3, (bwd_x_packed<float, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_x_f32_128x16_packed, DataGradientParams, 128, 3, (bwd_x_packed<float, Tile128x16::Paired>))

KERNEL(conv2d_fused_bwd_x_f16_64x64_packed, DataGradientParams, 128, 4, (bwd_x_packed<f16, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_x_f16_128x32_packed, DataGradientParams, 128, 4, (bwd_x_packed<f16, Tile128x32::Paired>))
KERNEL(conv2d_fused_bwd_x_f16_128x16_packed, DataGradientParams, 128, 4, (bwd_x_packed<f16, Tile128x16::Paired>))

KERNEL(conv2d_fused_bwd_x_bf16_64x64_packed, DataGradientParams, 128, 4, (bwd_x_packed<bf16, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_x_bf16_128x32_packed, DataGradientParams, 128, 4, (bwd_x_packed<bf16, Tile128x32::Paired>))
KERNEL(conv2d_fused_bwd_x_bf16_128x16_packed, DataGradientParams, 128, 4, (bwd_x_packed<bf16, Tile128x16::Paired>))

}  // namespace conv2d::fused
