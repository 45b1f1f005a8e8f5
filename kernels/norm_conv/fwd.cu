// y = relu(scale[k] * sum_{r,s,c} z[...] * w[k,r,s,c] + shift[k] + residual), as conv2d_fwd, of the activation
// z = relu(x * in_scale[c] + in_shift[c]), whose padding is 0; and of each tile and column of y, as stored, the mean and
// the sum of squared deviations. Each part where it is set.
//
// Tensors   those of conv2d_fwd; in_scale[C], in_shift[C], mean and m2 [row tiles][K] in f32.
// Method    conv2d_fwd's. The thread that has copied 16 bytes of x to shared memory turns them into z there, before the
//           barrier that shows the stage to the others: once for each element of the tile and tap.
// Grid      that of conv2d_fwd; mean and m2 need splits = 1.
// Threads   those of the tile. Shared memory: that of conv2d_fwd.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: x, w, y (and residual) once each, 8 bytes a row tile and column.
// Entries   *_scalar take any number of channels; the others need 16-byte accesses to x, w, in_scale and in_shift.
#include "conv2d/gather.cuh"
#include "norm_conv/moments.cuh"
#include "norm_conv/sources.cuh"

namespace norm_conv {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void fwd(const ForwardParams& p) {
  const Block block(p.n_tiles, p.groups);
  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  const Activated<T> in(p.in, p.in_stride, p.in_scale, p.in_shift, block.group * p.in_c, p.flags);
  float* staged = gather_tile<T, Tile, VECTOR, WeightRows<T, Tile, VECTOR>, true>(
      p, in, forward_slice(p.h), forward_slice(p.v), block, shared, rows);
  if (p.splits > 1) {
    write_partial<Tile>(p, block, staged, rows);
    return;
  }
  const int n0 = block.n_tile * Tile::N, col0 = block.group * p.out_c + n0, columns = p.out_c - n0;
  MeasuredOutput<T> output(gather_output<T>(p));
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, col0, columns, output);
  if (!p.mean) return;
  float moments[8][Moments::COUNT];
  output.moments(moments);
  merge_columns<Tile, Moments>(moments, staged, [&](int column, const float(&m)[Moments::COUNT]) {
    if (column >= columns) return;
    const i64 at = i64(block.m_tile) * p.groups * p.out_c + col0 + column;
    p.mean[at] = m[1];
    p.m2[at] = m[2];
  });
}

KERNEL(norm_conv_fwd_f32_128x128, ForwardParams, 256, 1, (fwd<float, Tile128x128EightWarps, true>))
KERNEL(norm_conv_fwd_f32_64x64, ForwardParams, 128, 3, (fwd<float, Tile64x64, true>))
KERNEL(norm_conv_fwd_f32_128x16, ForwardParams, 128, 3, (fwd<float, Tile128x16, true>))
KERNEL(norm_conv_fwd_f32_64x64_scalar, ForwardParams, 128, 3, (fwd<float, Tile64x64, false>))
KERNEL(norm_conv_fwd_f32_128x16_scalar, ForwardParams, 128, 3, (fwd<float, Tile128x16, false>))

KERNEL(norm_conv_fwd_f16_128x128, ForwardParams, 128, 2, (fwd<f16, Tile128x128, true>))
KERNEL(norm_conv_fwd_f16_128x64, ForwardParams, 128, 3, (fwd<f16, Tile128x64, true>))
KERNEL(norm_conv_fwd_f16_64x64, ForwardParams, 128, 4, (fwd<f16, Tile64x64, true>))
KERNEL(norm_conv_fwd_f16_128x32, ForwardParams, 128, 4, (fwd<f16, Tile128x32, true>))
KERNEL(norm_conv_fwd_f16_128x16, ForwardParams, 128, 4, (fwd<f16, Tile128x16, true>))
KERNEL(norm_conv_fwd_f16_64x64_scalar, ForwardParams, 128, 3, (fwd<f16, Tile64x64, false>))
KERNEL(norm_conv_fwd_f16_128x16_scalar, ForwardParams, 128, 3, (fwd<f16, Tile128x16, false>))

KERNEL(norm_conv_fwd_bf16_128x128, ForwardParams, 128, 2, (fwd<bf16, Tile128x128, true>))
KERNEL(norm_conv_fwd_bf16_128x64, ForwardParams, 128, 3, (fwd<bf16, Tile128x64, true>))
KERNEL(norm_conv_fwd_bf16_64x64, ForwardParams, 128, 4, (fwd<bf16, Tile64x64, true>))
KERNEL(norm_conv_fwd_bf16_128x32, ForwardParams, 128, 4, (fwd<bf16, Tile128x32, true>))
KERNEL(norm_conv_fwd_bf16_128x16, ForwardParams, 128, 4, (fwd<bf16, Tile128x16, true>))
KERNEL(norm_conv_fwd_bf16_64x64_scalar, ForwardParams, 128, 3, (fwd<bf16, Tile64x64, false>))
KERNEL(norm_conv_fwd_bf16_128x16_scalar, ForwardParams, 128, 3, (fwd<bf16, Tile128x16, false>))

}  // namespace norm_conv
