// y = relu(scale[k] * sum_{r,s,c} z[...] * w[k,r,s,c] + shift[k] + residual), as conv2d_fwd, with the activation
// z = relu(x * x_scale[c] + x_shift[c]), padded with 0; also, for each tile and column of y as stored, the mean and
// the sum of squared deviations. Each part optional.
//
// Tensors   as conv2d_fwd; x_scale[C], x_shift[C], mean and m2 [row tiles][K] in f32.
// Method    conv2d_fwd's. The thread that copied 16 bytes of x to shared memory transforms them into z there, before
//           the barrier that publishes the stage: once for each element of the tile and tap.
// Grid      as conv2d_fwd; mean and m2 need splits = 1.
// Threads   set by the tile. Shared memory: as conv2d_fwd.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: x, w, y (and residual) once each, 8 bytes per row tile and column.
// Entries   *_packed compute several narrow groups as one (conv2d/packed.cuh) and need 16-byte accesses to x, x_scale
//           and x_shift; *_stem take x as it is, of one group, at most 4 channels and a pixel stride of 4
//           (conv2d/stem.cuh); *_scalar take any number of channels; the others need 16-byte accesses to x, w, x_scale
//           and x_shift.
#include "conv2d/packed.cuh"
#include "conv2d/stem.cuh"
#include "conv2d/fused/forward.cuh"

namespace conv2d::fused {

template <typename T, class Tile, bool VECTOR, class B = WeightRows<T, Tile, VECTOR>>
__device__ __forceinline__ void fwd(const ForwardParams& p) {
  const Block block(p.n_tiles, p.groups);
  const Activated<T> in(p.input, p.in_stride, p.x_scale, p.x_shift, block.group * p.in_c, p.flags);
  measured<T, Tile, VECTOR, B>(p, in, block);
}

template <typename T, class Tile>
__device__ __forceinline__ void fwd_packed(const ForwardParams& p) {
  fwd<T, Tile, true, PackedRows<T, Tile>>(p);
}

template <typename T, class Tile>
__device__ __forceinline__ void fwd_stem(const ForwardParams& p) {
  measured<T, Tile, true, StemRows<T, Tile>>(p, StemPixels<T>(p.input, p.w_c), Block(p.n_tiles, p.groups));
}

KERNEL(conv2d_fused_fwd_f32_128x128, ForwardParams, 256, 1, (fwd<float, Tile128x128EightWarps, true>))
KERNEL(conv2d_fused_fwd_f32_64x64, ForwardParams, 128, 3, (fwd<float, Tile64x64, true>))
KERNEL(conv2d_fused_fwd_f32_128x16, ForwardParams, 128, 3, (fwd<float, Tile128x16, true>))
KERNEL(conv2d_fused_fwd_f32_64x64_scalar, ForwardParams, 128, 3, (fwd<float, Tile64x64, false>))
KERNEL(conv2d_fused_fwd_f32_128x16_scalar, ForwardParams, 128, 3, (fwd<float, Tile128x16, false>))

KERNEL(conv2d_fused_fwd_f16_128x128, ForwardParams, 128, 2, (fwd<f16, Tile128x128, true>))
KERNEL(conv2d_fused_fwd_f16_128x64, ForwardParams, 128, 3, (fwd<f16, Tile128x64, true>))
KERNEL(conv2d_fused_fwd_f16_64x64, ForwardParams, 128, 4, (fwd<f16, Tile64x64, true>))
KERNEL(conv2d_fused_fwd_f16_128x32, ForwardParams, 128, 4, (fwd<f16, Tile128x32, true>))
KERNEL(conv2d_fused_fwd_f16_128x16, ForwardParams, 128, 4, (fwd<f16, Tile128x16, true>))
KERNEL(conv2d_fused_fwd_f16_64x64_scalar, ForwardParams, 128, 3, (fwd<f16, Tile64x64, false>))
KERNEL(conv2d_fused_fwd_f16_128x16_scalar, ForwardParams, 128, 3, (fwd<f16, Tile128x16, false>))

KERNEL(conv2d_fused_fwd_bf16_128x128, ForwardParams, 128, 2, (fwd<bf16, Tile128x128, true>))
KERNEL(conv2d_fused_fwd_bf16_128x64, ForwardParams, 128, 3, (fwd<bf16, Tile128x64, true>))
KERNEL(conv2d_fused_fwd_bf16_64x64, ForwardParams, 128, 4, (fwd<bf16, Tile64x64, true>))
KERNEL(conv2d_fused_fwd_bf16_128x32, ForwardParams, 128, 4, (fwd<bf16, Tile128x32, true>))
KERNEL(conv2d_fused_fwd_bf16_128x16, ForwardParams, 128, 4, (fwd<bf16, Tile128x16, true>))
KERNEL(conv2d_fused_fwd_bf16_64x64_scalar, ForwardParams, 128, 3, (fwd<bf16, Tile64x64, false>))
KERNEL(conv2d_fused_fwd_bf16_128x16_scalar, ForwardParams, 128, 3, (fwd<bf16, Tile128x16, false>))

KERNEL(conv2d_fused_fwd_f32_64x64_packed, ForwardParams, 128, 3, (fwd_packed<float, Tile64x64>))
KERNEL(conv2d_fused_fwd_f32_128x16_packed, ForwardParams, 128, 3, (fwd_packed<float, Tile128x16>))

KERNEL(conv2d_fused_fwd_f16_64x64_packed, ForwardParams, 128, 4, (fwd_packed<f16, Tile64x64>))
KERNEL(conv2d_fused_fwd_f16_128x32_packed, ForwardParams, 128, 4, (fwd_packed<f16, Tile128x32>))
KERNEL(conv2d_fused_fwd_f16_128x16_packed, ForwardParams, 128, 4, (fwd_packed<f16, Tile128x16>))

KERNEL(conv2d_fused_fwd_bf16_64x64_packed, ForwardParams, 128, 4, (fwd_packed<bf16, Tile64x64>))
KERNEL(conv2d_fused_fwd_bf16_128x32_packed, ForwardParams, 128, 4, (fwd_packed<bf16, Tile128x32>))
KERNEL(conv2d_fused_fwd_bf16_128x16_packed, ForwardParams, 128, 4, (fwd_packed<bf16, Tile128x16>))

KERNEL(conv2d_fused_fwd_f32_64x64_stem, ForwardParams, 128, 3, (fwd_stem<float, Tile64x64>))
KERNEL(conv2d_fused_fwd_f32_128x16_stem, ForwardParams, 128, 3, (fwd_stem<float, Tile128x16>))

KERNEL(conv2d_fused_fwd_f16_128x64_stem, ForwardParams, 128, 3, (fwd_stem<f16, Tile128x64>))
KERNEL(conv2d_fused_fwd_f16_128x16_stem, ForwardParams, 128, 4, (fwd_stem<f16, Tile128x16>))

KERNEL(conv2d_fused_fwd_bf16_128x64_stem, ForwardParams, 128, 3, (fwd_stem<bf16, Tile128x64>))
KERNEL(conv2d_fused_fwd_bf16_128x16_stem, ForwardParams, 128, 4, (fwd_stem<bf16, Tile128x16>))

}  // namespace conv2d::fused
