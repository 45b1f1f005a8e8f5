// y[n,p,q,k] = relu(scale[k] * sum_{r,s,c} x[n,h,w, g*C/G + c] * w[k,r,s,c] + shift[k] + residual[n,p,q,k]), each part
//              of the epilogue optional; h = p*stride_h - pad_h + r*dilation_h, and w likewise from q and s.
//
// Tensors   x[N,H,W,C], w[K,R,S,C/G], y and residual [N,P,Q,K] in f32, f16 or bf16; scale[K], shift[K] in f32. Any
//           pixel stride for x, y and the residual.
// Method    implicit GEMM: M = N*P*Q rows, N = K/G columns, a reduction over k = (r, s, c) of R*S*C/G. Rows of x are
//           gathered while they are copied to shared memory (Chetlur et al., cuDNN, arXiv 1410.0759).
// Grid      x: column tiles, groups, row tiles (columns fastest); y: 1; z: splits of the reduction.
// Threads   128 or 256, set by the tile. Shared memory: the stages or the finished tile, and a table of rows.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: x, w, y (and residual) once each; each split writes and reads N*P*Q*K
//           floats. With p groups packed, each also multiplies the zeros of the others: p times the products.
// Entries   *_packed compute several narrow groups as one (packed.cuh) and need 16-byte accesses to x; *_stem need an x
//           of one group, at most 4 channels and a pixel stride of 4 (stem.cuh); *_scalar take any number of channels;
//           the others need 16-byte accesses to x and w.
#include "conv2d/gather.cuh"
#include "conv2d/packed.cuh"
#include "conv2d/stem.cuh"

namespace conv2d {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void fwd(const GatherParams& p) {
  gather<T, Tile, VECTOR, WeightRows<T, Tile, VECTOR>, true>(p, forward_slice(p.axis_h), forward_slice(p.axis_w));
}

template <typename T, class Tile>
__device__ __forceinline__ void fwd_packed(const GatherParams& p) {
  gather<T, Tile, true, PackedRows<T, Tile>, true>(p, forward_slice(p.axis_h), forward_slice(p.axis_w));
}

template <typename T, class Tile>
__device__ __forceinline__ void fwd_stem(const GatherParams& p) {
  const StemPixels<T> in(p.input, p.w_c);
  gather<T, Tile, true, StemRows<T, Tile>, true>(p, in, forward_slice(p.axis_h), forward_slice(p.axis_w));
}

KERNEL(conv2d_fwd_f32_128x128, GatherParams, 256, 1, (fwd<float, Tile128x128EightWarps, true>))
KERNEL(conv2d_fwd_f32_64x64, GatherParams, 128, 3, (fwd<float, Tile64x64, true>))
KERNEL(conv2d_fwd_f32_128x16, GatherParams, 128, 3, (fwd<float, Tile128x16, true>))
KERNEL(conv2d_fwd_f32_64x64_scalar, GatherParams, 128, 3, (fwd<float, Tile64x64, false>))
KERNEL(conv2d_fwd_f32_128x16_scalar, GatherParams, 128, 3, (fwd<float, Tile128x16, false>))

KERNEL(conv2d_fwd_f16_128x128, GatherParams, 128, 2, (fwd<f16, Tile128x128, true>))
KERNEL(conv2d_fwd_f16_128x64, GatherParams, 128, 3, (fwd<f16, Tile128x64, true>))
KERNEL(conv2d_fwd_f16_64x64, GatherParams, 128, 4, (fwd<f16, Tile64x64, true>))
KERNEL(conv2d_fwd_f16_128x32, GatherParams, 128, 4, (fwd<f16, Tile128x32, true>))
KERNEL(conv2d_fwd_f16_128x16, GatherParams, 128, 4, (fwd<f16, Tile128x16, true>))
KERNEL(conv2d_fwd_f16_64x64_scalar, GatherParams, 128, 3, (fwd<f16, Tile64x64, false>))
KERNEL(conv2d_fwd_f16_128x16_scalar, GatherParams, 128, 3, (fwd<f16, Tile128x16, false>))

KERNEL(conv2d_fwd_bf16_128x128, GatherParams, 128, 2, (fwd<bf16, Tile128x128, true>))
KERNEL(conv2d_fwd_bf16_128x64, GatherParams, 128, 3, (fwd<bf16, Tile128x64, true>))
KERNEL(conv2d_fwd_bf16_64x64, GatherParams, 128, 4, (fwd<bf16, Tile64x64, true>))
KERNEL(conv2d_fwd_bf16_128x32, GatherParams, 128, 4, (fwd<bf16, Tile128x32, true>))
KERNEL(conv2d_fwd_bf16_128x16, GatherParams, 128, 4, (fwd<bf16, Tile128x16, true>))
KERNEL(conv2d_fwd_bf16_64x64_scalar, GatherParams, 128, 3, (fwd<bf16, Tile64x64, false>))
KERNEL(conv2d_fwd_bf16_128x16_scalar, GatherParams, 128, 3, (fwd<bf16, Tile128x16, false>))

KERNEL(conv2d_fwd_f32_64x64_packed, GatherParams, 128, 3, (fwd_packed<float, Tile64x64>))
KERNEL(conv2d_fwd_f32_128x16_packed, GatherParams, 128, 3, (fwd_packed<float, Tile128x16>))

KERNEL(conv2d_fwd_f16_64x64_packed, GatherParams, 128, 4, (fwd_packed<f16, Tile64x64>))
KERNEL(conv2d_fwd_f16_128x32_packed, GatherParams, 128, 4, (fwd_packed<f16, Tile128x32>))
KERNEL(conv2d_fwd_f16_128x16_packed, GatherParams, 128, 4, (fwd_packed<f16, Tile128x16>))

KERNEL(conv2d_fwd_bf16_64x64_packed, GatherParams, 128, 4, (fwd_packed<bf16, Tile64x64>))
KERNEL(conv2d_fwd_bf16_128x32_packed, GatherParams, 128, 4, (fwd_packed<bf16, Tile128x32>))
KERNEL(conv2d_fwd_bf16_128x16_packed, GatherParams, 128, 4, (fwd_packed<bf16, Tile128x16>))

KERNEL(conv2d_fwd_f32_64x64_stem, GatherParams, 128, 3, (fwd_stem<float, Tile64x64>))
KERNEL(conv2d_fwd_f32_128x16_stem, GatherParams, 128, 3, (fwd_stem<float, Tile128x16>))

KERNEL(conv2d_fwd_f16_128x64_stem, GatherParams, 128, 3, (fwd_stem<f16, Tile128x64>))
KERNEL(conv2d_fwd_f16_128x16_stem, GatherParams, 128, 4, (fwd_stem<f16, Tile128x16>))

KERNEL(conv2d_fwd_bf16_128x64_stem, GatherParams, 128, 3, (fwd_stem<bf16, Tile128x64>))
KERNEL(conv2d_fwd_bf16_128x16_stem, GatherParams, 128, 4, (fwd_stem<bf16, Tile128x16>))

}  // namespace conv2d
