// dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * z[n,h,w, g*C/G + c], as conv2d_bwd_w, with the corrected gradient
// dy = a[k] * g + b[k] * y + c[k] and the activation z = relu(x * x_scale[c] + x_shift[c]), padded with 0; each part
// optional. Stored or added to dw.
//
// Tensors   as conv2d_bwd_w; g and y [N,P,Q,K] in f32, f16 or bf16; a, b, c [K] and x_scale, x_shift [C] in f32.
// Method    conv2d_bwd_w's. A stage holds g, x and y; each thread transforms its own chunks into dy and z.
// Grid      as conv2d_bwd_w; conv2d_reduce_f32 adds the splits.
// Threads   set by the tile. Shared memory: three stages with a second operand A, or the finished tile.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: g, y, x, dw once each (dw twice if added to).
// Entries   *_packed compute several narrow groups as one and store only the blocks on the diagonal; *_stem take x as
//           it is, of one group, at most 4 channels and a pixel stride of 4 (conv2d/stem.cuh), and need 16-byte access
//           to g, y, a, b and c; *_scalar take any number of channels; the others need 16-byte accesses to all but dw.
#include "conv2d/stem.cuh"
#include "conv2d/fused/weight_gradient.cuh"

namespace conv2d::fused {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void bwd_w(const WeightGradientParams& p) {
  weight_gradient<T, Tile, VECTOR>(p, Block(p.n_tiles, p.groups));
}

template <typename T, class Tile>
__device__ __forceinline__ void bwd_w_packed(const WeightGradientParams& p) {
  weight_gradient_packed<T, Tile>(p, Block(p.n_tiles, p.groups));
}

template <typename T, class Tile>
__device__ __forceinline__ void bwd_w_stem(const WeightGradientParams& p) {
  weigh_diagonal<T, Tile>(p, gradient_source<T, Tile>(p, 0), StemPixels<T>(p.x, p.w_c), p.dy_c,
                          Block(p.n_tiles, p.groups));
}

KERNEL(conv2d_fused_bwd_w_f32_128x128, WeightGradientParams, 256, 1,
       (bwd_w<float, Tile128x128EightWarps::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f32_64x64, WeightGradientParams, 128, 3, (bwd_w<float, Tile64x64::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f32_32x128, WeightGradientParams, 128, 3, (bwd_w<float, Tile32x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f32_64x64_scalar, WeightGradientParams, 128, 3, (bwd_w<float, Tile64x64::Paired, false>))
KERNEL(conv2d_fused_bwd_w_f32_32x128_scalar, WeightGradientParams, 128, 3, (bwd_w<float, Tile32x128::Paired, false>))

KERNEL(conv2d_fused_bwd_w_f16_128x128, WeightGradientParams, 256, 1, (bwd_w<f16, Tile128x128EightWarps::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f16_64x128, WeightGradientParams, 128, 2, (bwd_w<f16, Tile64x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f16_64x64, WeightGradientParams, 128, 3, (bwd_w<f16, Tile64x64::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f16_32x128, WeightGradientParams, 128, 3, (bwd_w<f16, Tile32x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f16_16x128, WeightGradientParams, 128, 4, (bwd_w<f16, Tile16x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_f16_64x64_scalar, WeightGradientParams, 128, 3, (bwd_w<f16, Tile64x64::Paired, false>))
KERNEL(conv2d_fused_bwd_w_f16_16x128_scalar, WeightGradientParams, 128, 3, (bwd_w<f16, Tile16x128::Paired, false>))

KERNEL(conv2d_fused_bwd_w_bf16_128x128, WeightGradientParams, 256, 1,
       (bwd_w<bf16, Tile128x128EightWarps::Paired, true>))
KERNEL(conv2d_fused_bwd_w_bf16_64x128, WeightGradientParams, 128, 2, (bwd_w<bf16, Tile64x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_bf16_64x64, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile64x64::Paired, true>))
KERNEL(conv2d_fused_bwd_w_bf16_32x128, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile32x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_bf16_16x128, WeightGradientParams, 128, 4, (bwd_w<bf16, Tile16x128::Paired, true>))
KERNEL(conv2d_fused_bwd_w_bf16_64x64_scalar, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile64x64::Paired, false>))
KERNEL(conv2d_fused_bwd_w_bf16_16x128_scalar, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile16x128::Paired, false>))

KERNEL(conv2d_fused_bwd_w_f32_64x64_packed, WeightGradientParams, 128, 3, (bwd_w_packed<float, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_w_f32_32x128_packed, WeightGradientParams, 128, 3, (bwd_w_packed<float, Tile32x128::Paired>))

KERNEL(conv2d_fused_bwd_w_f16_64x64_packed, WeightGradientParams, 128, 3, (bwd_w_packed<f16, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_w_f16_32x128_packed, WeightGradientParams, 128, 3, (bwd_w_packed<f16, Tile32x128::Paired>))
KERNEL(conv2d_fused_bwd_w_f16_16x128_packed, WeightGradientParams, 128, 3, (bwd_w_packed<f16, Tile16x128::Paired>))
KERNEL(conv2d_fused_bwd_w_f16_16x64_packed, WeightGradientParams, 128, 4, (bwd_w_packed<f16, Tile16x64::Paired>))

KERNEL(conv2d_fused_bwd_w_bf16_64x64_packed, WeightGradientParams, 128, 3, (bwd_w_packed<bf16, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_w_bf16_32x128_packed, WeightGradientParams, 128, 3, (bwd_w_packed<bf16, Tile32x128::Paired>))
KERNEL(conv2d_fused_bwd_w_bf16_16x128_packed, WeightGradientParams, 128, 3, (bwd_w_packed<bf16, Tile16x128::Paired>))
KERNEL(conv2d_fused_bwd_w_bf16_16x64_packed, WeightGradientParams, 128, 4, (bwd_w_packed<bf16, Tile16x64::Paired>))

KERNEL(conv2d_fused_bwd_w_f32_64x64_stem, WeightGradientParams, 128, 3, (bwd_w_stem<float, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_w_f32_32x128_stem, WeightGradientParams, 128, 3, (bwd_w_stem<float, Tile32x128::Paired>))

KERNEL(conv2d_fused_bwd_w_f16_64x128_stem, WeightGradientParams, 128, 2, (bwd_w_stem<f16, Tile64x128::Paired>))
KERNEL(conv2d_fused_bwd_w_f16_64x64_stem, WeightGradientParams, 128, 3, (bwd_w_stem<f16, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_w_f16_16x128_stem, WeightGradientParams, 128, 4, (bwd_w_stem<f16, Tile16x128::Paired>))
KERNEL(conv2d_fused_bwd_w_f16_16x64_stem, WeightGradientParams, 128, 4, (bwd_w_stem<f16, Tile16x64::Paired>))

KERNEL(conv2d_fused_bwd_w_bf16_64x128_stem, WeightGradientParams, 128, 2, (bwd_w_stem<bf16, Tile64x128::Paired>))
KERNEL(conv2d_fused_bwd_w_bf16_64x64_stem, WeightGradientParams, 128, 3, (bwd_w_stem<bf16, Tile64x64::Paired>))
KERNEL(conv2d_fused_bwd_w_bf16_16x128_stem, WeightGradientParams, 128, 4, (bwd_w_stem<bf16, Tile16x128::Paired>))
KERNEL(conv2d_fused_bwd_w_bf16_16x64_stem, WeightGradientParams, 128, 4, (bwd_w_stem<bf16, Tile16x64::Paired>))

}  // namespace conv2d::fused
