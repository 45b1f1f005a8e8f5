// dx[n,h,w,c] = sum_{r,s,k} dy[n,p,q,k] * w[k,r,s,c] over the k of c's group and the p, q that read (h, w) through tap
//               (r, s) in fwd.cu; stored or added to dx.
//
// Tensors   dy[N,P,Q,K], w[K,R,S,C/G], dx[N,H,W,C] in f32, f16 or bf16. Any pixel stride for dy and dx.
// Method    implicit GEMM for each residue of (h, w) modulo the strides: M = the residue's pixels, N = C/G, a reduction
//           over k = (r, s, k) of the taps that reach it. At stride 2, the four residues of a 3x3 kernel have 4, 2, 2
//           and 1 taps: no product with the zeros between strides (GTC 2022, S41996). Residues without a tap get zeros.
// Grid      x: column tiles, groups, row tiles (columns fastest) of the largest residue; y: residues; z: splits.
// Threads   128 or 256, set by the tile. Shared memory: the stages or the finished tile, and a table of rows.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs, padding included; bytes: dy, w, dx once each (dx twice if added to); each split
//           writes and reads N*H*W*C floats.
// Entries   *_packed compute several narrow groups as one (packed.cuh) and need 16-byte accesses to dy; *_scalar take
//           any number of channels; the others need 16-byte accesses to dy and w.
#include "conv2d/gather.cuh"
#include "conv2d/packed.cuh"

namespace conv2d {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void bwd_x(const GatherParams& p) {
  const int columns = residues(p.axis_w);
  const Slice slice_h = residue_slice(p.axis_h, int(blockIdx.y) / columns), slice_w = residue_slice(p.axis_w,
      int(blockIdx.y) % columns);
  gather<T, Tile, VECTOR, WeightColumns<T, Tile, VECTOR>, false>(p, slice_h, slice_w);
}

template <typename T, class Tile>
__device__ __forceinline__ void bwd_x_packed(const GatherParams& p) {
  const int columns = residues(p.axis_w);
  const Slice slice_h = residue_slice(p.axis_h, int(blockIdx.y) / columns), slice_w = residue_slice(p.axis_w,
      int(blockIdx.y) % columns);
  gather<T, Tile, true, PackedColumns<T, Tile>, false>(p, slice_h, slice_w);
}

KERNEL(conv2d_bwd_x_f32_128x128, GatherParams, 256, 1, (bwd_x<float, Tile128x128EightWarps, true>))
KERNEL(conv2d_bwd_x_f32_64x64, GatherParams, 128, 3, (bwd_x<float, Tile64x64, true>))
KERNEL(conv2d_bwd_x_f32_128x16, GatherParams, 128, 3, (bwd_x<float, Tile128x16, true>))
KERNEL(conv2d_bwd_x_f32_64x64_scalar, GatherParams, 128, 3, (bwd_x<float, Tile64x64, false>))
KERNEL(conv2d_bwd_x_f32_128x16_scalar, GatherParams, 128, 3, (bwd_x<float, Tile128x16, false>))

KERNEL(conv2d_bwd_x_f16_128x128, GatherParams, 128, 2, (bwd_x<f16, Tile128x128, true>))
KERNEL(conv2d_bwd_x_f16_128x64, GatherParams, 128, 3, (bwd_x<f16, Tile128x64, true>))
KERNEL(conv2d_bwd_x_f16_64x64, GatherParams, 128, 4, (bwd_x<f16, Tile64x64, true>))
KERNEL(conv2d_bwd_x_f16_128x32, GatherParams, 128, 4, (bwd_x<f16, Tile128x32, true>))
KERNEL(conv2d_bwd_x_f16_128x16, GatherParams, 128, 4, (bwd_x<f16, Tile128x16, true>))
KERNEL(conv2d_bwd_x_f16_64x64_scalar, GatherParams, 128, 3, (bwd_x<f16, Tile64x64, false>))
KERNEL(conv2d_bwd_x_f16_128x16_scalar, GatherParams, 128, 3, (bwd_x<f16, Tile128x16, false>))

KERNEL(conv2d_bwd_x_bf16_128x128, GatherParams, 128, 2, (bwd_x<bf16, Tile128x128, true>))
KERNEL(conv2d_bwd_x_bf16_128x64, GatherParams, 128, 3, (bwd_x<bf16, Tile128x64, true>))
KERNEL(conv2d_bwd_x_bf16_64x64, GatherParams, 128, 4, (bwd_x<bf16, Tile64x64, true>))
KERNEL(conv2d_bwd_x_bf16_128x32, GatherParams, 128, 4, (bwd_x<bf16, Tile128x32, true>))
KERNEL(conv2d_bwd_x_bf16_128x16, GatherParams, 128, 4, (bwd_x<bf16, Tile128x16, true>))
KERNEL(conv2d_bwd_x_bf16_64x64_scalar, GatherParams, 128, 3, (bwd_x<bf16, Tile64x64, false>))
KERNEL(conv2d_bwd_x_bf16_128x16_scalar, GatherParams, 128, 3, (bwd_x<bf16, Tile128x16, false>))

KERNEL(conv2d_bwd_x_f32_64x64_packed, GatherParams, 128, 3, (bwd_x_packed<float, Tile64x64>))
KERNEL(conv2d_bwd_x_f32_128x16_packed, GatherParams, 128, 3, (bwd_x_packed<float, Tile128x16>))

KERNEL(conv2d_bwd_x_f16_64x64_packed, GatherParams, 128, 4, (bwd_x_packed<f16, Tile64x64>))
KERNEL(conv2d_bwd_x_f16_128x32_packed, GatherParams, 128, 4, (bwd_x_packed<f16, Tile128x32>))
KERNEL(conv2d_bwd_x_f16_128x16_packed, GatherParams, 128, 4, (bwd_x_packed<f16, Tile128x16>))

KERNEL(conv2d_bwd_x_bf16_64x64_packed, GatherParams, 128, 4, (bwd_x_packed<bf16, Tile64x64>))
KERNEL(conv2d_bwd_x_bf16_128x32_packed, GatherParams, 128, 4, (bwd_x_packed<bf16, Tile128x32>))
KERNEL(conv2d_bwd_x_bf16_128x16_packed, GatherParams, 128, 4, (bwd_x_packed<bf16, Tile128x16>))

}  // namespace conv2d
