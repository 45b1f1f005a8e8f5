// dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * x[n,h,w, g*C/G + c], stored or added to dw; h and w as in fwd.cu.
//
// Tensors   dy[N,P,Q,K], x[N,H,W,C] in f32, f16 or bf16; dw[K,R,S,C/G] in f32. Any pixel stride for dy and x.
// Method    implicit GEMM: M = K/G rows, N = R*S*C/G columns, a reduction over the N*P*Q output pixels. The splits of
//           the reduction (launch/choose.rs) depend only on the shape, and conv2d_reduce adds them in order: the same
//           bits in every run. f16 and bf16 promote their sums every 256 products.
// Grid      x: column tiles, groups, row tiles (columns fastest); y: 1; z: splits of the reduction.
// Threads   128 or 256, set by the tile. Shared memory: the stages or the finished tile.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: dy, x, dw once each (dw twice if added to); each split writes and reads
//           K*R*S*C/G floats.
// Entries   *_packed compute several narrow groups as one, need 16-byte accesses to dy and x, and store only the blocks
//           on the diagonal; *_stem need an x of one group, at most 4 channels and a pixel stride of 4 (stem.cuh), and
//           16-byte accesses to dy; *_scalar take any number of channels; the others need 16-byte accesses to dy and x.
#include "conv2d/stem.cuh"
#include "conv2d/weigh.cuh"

namespace conv2d {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void bwd_w(const WeightParams& p) {
  const Block block(p.n_tiles, p.groups);
  weigh<T, Tile, VECTOR>(p, AsItIs<T>{Pixels<T>(p.dy, i64(block.group) * p.dy_c, p.dy_stride)},
                         AsItIs<T>{Pixels<T>(p.x, i64(block.group) * p.x_c, p.x_stride)}, block);
}

template <typename T, class Tile>
__device__ __forceinline__ void bwd_w_packed(const WeightParams& p) {
  const Block block(p.n_tiles, p.groups);
  weigh_diagonal<T, Tile>(p, AsItIs<T>{Pixels<T>(p.dy, i64(block.group) * p.dy_c, p.dy_stride)},
                          AsItIs<T>{Pixels<T>(p.x, i64(block.group) * p.x_c, p.x_stride)}, p.dy_c / (p.x_c / p.w_c),
                          block);
}

template <typename T, class Tile>
__device__ __forceinline__ void bwd_w_stem(const WeightParams& p) {
  weigh_diagonal<T, Tile>(p, AsItIs<T>{Pixels<T>(p.dy, 0, p.dy_stride)}, StemPixels<T>(p.x, p.w_c), p.dy_c,
                          Block(p.n_tiles, p.groups));
}

KERNEL(conv2d_bwd_w_f32_128x128, WeightParams, 256, 1, (bwd_w<float, Tile128x128EightWarps, true>))
KERNEL(conv2d_bwd_w_f32_64x64, WeightParams, 128, 3, (bwd_w<float, Tile64x64, true>))
KERNEL(conv2d_bwd_w_f32_32x128, WeightParams, 128, 3, (bwd_w<float, Tile32x128, true>))
KERNEL(conv2d_bwd_w_f32_64x64_scalar, WeightParams, 128, 3, (bwd_w<float, Tile64x64, false>))
KERNEL(conv2d_bwd_w_f32_32x128_scalar, WeightParams, 128, 3, (bwd_w<float, Tile32x128, false>))

KERNEL(conv2d_bwd_w_f16_128x128, WeightParams, 256, 1, (bwd_w<f16, Tile128x128EightWarps, true>))
KERNEL(conv2d_bwd_w_f16_64x128, WeightParams, 128, 2, (bwd_w<f16, Tile64x128, true>))
KERNEL(conv2d_bwd_w_f16_64x64, WeightParams, 128, 3, (bwd_w<f16, Tile64x64, true>))
KERNEL(conv2d_bwd_w_f16_32x128, WeightParams, 128, 3, (bwd_w<f16, Tile32x128, true>))
KERNEL(conv2d_bwd_w_f16_16x128, WeightParams, 128, 4, (bwd_w<f16, Tile16x128, true>))
KERNEL(conv2d_bwd_w_f16_64x64_scalar, WeightParams, 128, 3, (bwd_w<f16, Tile64x64, false>))
KERNEL(conv2d_bwd_w_f16_16x128_scalar, WeightParams, 128, 3, (bwd_w<f16, Tile16x128, false>))

KERNEL(conv2d_bwd_w_bf16_128x128, WeightParams, 256, 1, (bwd_w<bf16, Tile128x128EightWarps, true>))
KERNEL(conv2d_bwd_w_bf16_64x128, WeightParams, 128, 2, (bwd_w<bf16, Tile64x128, true>))
KERNEL(conv2d_bwd_w_bf16_64x64, WeightParams, 128, 3, (bwd_w<bf16, Tile64x64, true>))
KERNEL(conv2d_bwd_w_bf16_32x128, WeightParams, 128, 3, (bwd_w<bf16, Tile32x128, true>))
KERNEL(conv2d_bwd_w_bf16_16x128, WeightParams, 128, 4, (bwd_w<bf16, Tile16x128, true>))
KERNEL(conv2d_bwd_w_bf16_64x64_scalar, WeightParams, 128, 3, (bwd_w<bf16, Tile64x64, false>))
KERNEL(conv2d_bwd_w_bf16_16x128_scalar, WeightParams, 128, 3, (bwd_w<bf16, Tile16x128, false>))

KERNEL(conv2d_bwd_w_f32_64x64_packed, WeightParams, 128, 3, (bwd_w_packed<float, Tile64x64>))
KERNEL(conv2d_bwd_w_f32_32x128_packed, WeightParams, 128, 3, (bwd_w_packed<float, Tile32x128>))

KERNEL(conv2d_bwd_w_f16_64x64_packed, WeightParams, 128, 3, (bwd_w_packed<f16, Tile64x64>))
KERNEL(conv2d_bwd_w_f16_32x128_packed, WeightParams, 128, 3, (bwd_w_packed<f16, Tile32x128>))
KERNEL(conv2d_bwd_w_f16_16x128_packed, WeightParams, 128, 4, (bwd_w_packed<f16, Tile16x128>))
KERNEL(conv2d_bwd_w_f16_16x64_packed, WeightParams, 128, 4, (bwd_w_packed<f16, Tile16x64>))

KERNEL(conv2d_bwd_w_bf16_64x64_packed, WeightParams, 128, 3, (bwd_w_packed<bf16, Tile64x64>))
KERNEL(conv2d_bwd_w_bf16_32x128_packed, WeightParams, 128, 3, (bwd_w_packed<bf16, Tile32x128>))
KERNEL(conv2d_bwd_w_bf16_16x128_packed, WeightParams, 128, 4, (bwd_w_packed<bf16, Tile16x128>))
KERNEL(conv2d_bwd_w_bf16_16x64_packed, WeightParams, 128, 4, (bwd_w_packed<bf16, Tile16x64>))

KERNEL(conv2d_bwd_w_f32_64x64_stem, WeightParams, 128, 3, (bwd_w_stem<float, Tile64x64>))
KERNEL(conv2d_bwd_w_f32_32x128_stem, WeightParams, 128, 3, (bwd_w_stem<float, Tile32x128>))

KERNEL(conv2d_bwd_w_f16_64x128_stem, WeightParams, 128, 2, (bwd_w_stem<f16, Tile64x128>))
KERNEL(conv2d_bwd_w_f16_64x64_stem, WeightParams, 128, 3, (bwd_w_stem<f16, Tile64x64>))
KERNEL(conv2d_bwd_w_f16_16x128_stem, WeightParams, 128, 4, (bwd_w_stem<f16, Tile16x128>))
KERNEL(conv2d_bwd_w_f16_16x64_stem, WeightParams, 128, 4, (bwd_w_stem<f16, Tile16x64>))

KERNEL(conv2d_bwd_w_bf16_64x128_stem, WeightParams, 128, 2, (bwd_w_stem<bf16, Tile64x128>))
KERNEL(conv2d_bwd_w_bf16_64x64_stem, WeightParams, 128, 3, (bwd_w_stem<bf16, Tile64x64>))
KERNEL(conv2d_bwd_w_bf16_16x128_stem, WeightParams, 128, 4, (bwd_w_stem<bf16, Tile16x128>))
KERNEL(conv2d_bwd_w_bf16_16x64_stem, WeightParams, 128, 4, (bwd_w_stem<bf16, Tile16x64>))

}  // namespace conv2d
