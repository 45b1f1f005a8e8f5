// dw[k,r,s,c] = sum_{n,p,q} dy[n,p,q,k] * z[n, p*u - ph + r*dh, q*v - pw + s*dw, g*C/G + c], as conv2d_bwd_w, of the
// corrected gradient dy = a[k] * g + b[k] * y + c[k] and the activation z = relu(x * x_scale[c] + x_shift[c]), whose
// padding is 0. Each part where it is set; added to dw where asked.
//
// Tensors   those of conv2d_bwd_w; g and y [N,P,Q,K] in f32, f16 or bf16; a, b, c [K] and x_scale, x_shift [C] in f32.
// Method    conv2d_bwd_w's. A stage holds g, x and y; each thread turns the chunks that it has copied into dy and z.
// Grid      that of conv2d_bwd_w; conv2d_reduce_f32 adds the splits.
// Threads   those of the tile. Shared memory: three stages with a second operand A, or the finished tile.
// Counted   2*N*P*Q*K*R*S*C/G FLOPs; bytes: g, y, x, dw once each (dw twice where added to).
// Entries   *_scalar take any number of channels; the others need 16-byte accesses to all but dw.
#include "conv2d/weigh.cuh"
#include "norm_conv/sources.cuh"

namespace norm_conv {

template <typename T, class Tile, bool VECTOR>
__device__ __forceinline__ void bwd_w(const WeightGradientParams& p) {
  const int group = weigh_group(p);
  const Corrected<T, Tile::SECOND> dy(p.dy, p.dy_stride, p.y, p.y_stride, p.a, p.b, p.c, group * p.dy_c);
  const Activated<T> x(p.x, p.x_stride, p.x_scale, p.x_shift, group * p.x_c, p.flags);
  weigh<T, Tile, VECTOR>(p, dy, x);
}

KERNEL(norm_conv_bwd_w_f32_128x128, WeightGradientParams, 256, 1, (bwd_w<float, Tile128x128EightWarps::Paired, true>))
KERNEL(norm_conv_bwd_w_f32_64x64, WeightGradientParams, 128, 3, (bwd_w<float, Tile64x64::Paired, true>))
KERNEL(norm_conv_bwd_w_f32_32x128, WeightGradientParams, 128, 3, (bwd_w<float, Tile32x128::Paired, true>))
KERNEL(norm_conv_bwd_w_f32_64x64_scalar, WeightGradientParams, 128, 3, (bwd_w<float, Tile64x64::Paired, false>))
KERNEL(norm_conv_bwd_w_f32_32x128_scalar, WeightGradientParams, 128, 3, (bwd_w<float, Tile32x128::Paired, false>))

KERNEL(norm_conv_bwd_w_f16_128x128, WeightGradientParams, 256, 1, (bwd_w<f16, Tile128x128EightWarps::Paired, true>))
KERNEL(norm_conv_bwd_w_f16_64x128, WeightGradientParams, 128, 2, (bwd_w<f16, Tile64x128::Paired, true>))
KERNEL(norm_conv_bwd_w_f16_64x64, WeightGradientParams, 128, 3, (bwd_w<f16, Tile64x64::Paired, true>))
KERNEL(norm_conv_bwd_w_f16_32x128, WeightGradientParams, 128, 3, (bwd_w<f16, Tile32x128::Paired, true>))
KERNEL(norm_conv_bwd_w_f16_16x128, WeightGradientParams, 128, 4, (bwd_w<f16, Tile16x128::Paired, true>))
KERNEL(norm_conv_bwd_w_f16_64x64_scalar, WeightGradientParams, 128, 3, (bwd_w<f16, Tile64x64::Paired, false>))
KERNEL(norm_conv_bwd_w_f16_16x128_scalar, WeightGradientParams, 128, 3, (bwd_w<f16, Tile16x128::Paired, false>))

KERNEL(norm_conv_bwd_w_bf16_128x128, WeightGradientParams, 256, 1, (bwd_w<bf16, Tile128x128EightWarps::Paired, true>))
KERNEL(norm_conv_bwd_w_bf16_64x128, WeightGradientParams, 128, 2, (bwd_w<bf16, Tile64x128::Paired, true>))
KERNEL(norm_conv_bwd_w_bf16_64x64, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile64x64::Paired, true>))
KERNEL(norm_conv_bwd_w_bf16_32x128, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile32x128::Paired, true>))
KERNEL(norm_conv_bwd_w_bf16_16x128, WeightGradientParams, 128, 4, (bwd_w<bf16, Tile16x128::Paired, true>))
KERNEL(norm_conv_bwd_w_bf16_64x64_scalar, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile64x64::Paired, false>))
KERNEL(norm_conv_bwd_w_bf16_16x128_scalar, WeightGradientParams, 128, 3, (bwd_w<bf16, Tile16x128::Paired, false>))

}  // namespace norm_conv
