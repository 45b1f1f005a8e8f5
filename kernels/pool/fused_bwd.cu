// The gradient of pooling and the gradient epilogue of the ReLU and batch norms before it, in one pass.
//   dz = the gradient of the pooling, gathered as in avg.cu, max.cu; then as in kernels/norm/gradient.cu:
//   v = dz (+ dx), or 0 where the ReLU's output is 0;  dx = v, or with `scaled` scale v (+ dx); sums of v, v (y - mean)
//
// Tensors   dy and index[N,P,Q,C] as in avg.cu, max.cu; y, dx[N,H,W,C] in T, any pixel stride, 16-byte aligned if
//           strips.wide is set; bits and the rest as in kernels/norm/gradient.cu.
// Grid      x: strips.blocks_per_row * bands.
// Threads   256. Shared memory: 256 V floats for each sum, V = 16 / sizeof(T).
// Counted   dy (and index) once, read again from the caches; y and dx as in kernels/norm/gradient.cu.
// Entries   *_affine, *_signs, *_signs_two as in kernels/norm/gradient.cu.
#include "norm/gradient.cuh"
#include "pool/backward.cuh"

namespace pool {

template <typename T>
using OfMax = norms::Gradient<T, MaxGradient<T>>;
template <typename T>
using OfAvg = norms::Gradient<T, AvgGradient<T>>;
static_assert(sizeof(OfMax<float>) == 256, "as in src/ops/pool/launch/params.rs");
static_assert(sizeof(OfAvg<float>) == 240, "as in src/ops/pool/launch/params.rs");

KERNEL(pool_fused_max_bwd_f32_affine, OfMax<float>, STRIP_THREADS, 2, (norms::gradient<float, false, 1>))
KERNEL(pool_fused_max_bwd_f16_affine, OfMax<f16>, STRIP_THREADS, 2, (norms::gradient<f16, false, 1>))
KERNEL(pool_fused_max_bwd_bf16_affine, OfMax<bf16>, STRIP_THREADS, 2, (norms::gradient<bf16, false, 1>))
KERNEL(pool_fused_max_bwd_f32_signs, OfMax<float>, STRIP_THREADS, 2, (norms::gradient<float, true, 1>))
KERNEL(pool_fused_max_bwd_f16_signs, OfMax<f16>, STRIP_THREADS, 2, (norms::gradient<f16, true, 1>))
KERNEL(pool_fused_max_bwd_bf16_signs, OfMax<bf16>, STRIP_THREADS, 2, (norms::gradient<bf16, true, 1>))
KERNEL(pool_fused_max_bwd_f32_signs_two, OfMax<float>, STRIP_THREADS, 2, (norms::gradient<float, true, 2>))
KERNEL(pool_fused_max_bwd_f16_signs_two, OfMax<f16>, STRIP_THREADS, 2, (norms::gradient<f16, true, 2>))
KERNEL(pool_fused_max_bwd_bf16_signs_two, OfMax<bf16>, STRIP_THREADS, 2, (norms::gradient<bf16, true, 2>))
KERNEL(pool_fused_avg_bwd_f32_affine, OfAvg<float>, STRIP_THREADS, 2, (norms::gradient<float, false, 1>))
KERNEL(pool_fused_avg_bwd_f16_affine, OfAvg<f16>, STRIP_THREADS, 2, (norms::gradient<f16, false, 1>))
KERNEL(pool_fused_avg_bwd_bf16_affine, OfAvg<bf16>, STRIP_THREADS, 2, (norms::gradient<bf16, false, 1>))
KERNEL(pool_fused_avg_bwd_f32_signs, OfAvg<float>, STRIP_THREADS, 2, (norms::gradient<float, true, 1>))
KERNEL(pool_fused_avg_bwd_f16_signs, OfAvg<f16>, STRIP_THREADS, 2, (norms::gradient<f16, true, 1>))
KERNEL(pool_fused_avg_bwd_bf16_signs, OfAvg<bf16>, STRIP_THREADS, 2, (norms::gradient<bf16, true, 1>))
KERNEL(pool_fused_avg_bwd_f32_signs_two, OfAvg<float>, STRIP_THREADS, 2, (norms::gradient<float, true, 2>))
KERNEL(pool_fused_avg_bwd_f16_signs_two, OfAvg<f16>, STRIP_THREADS, 2, (norms::gradient<f16, true, 2>))
KERNEL(pool_fused_avg_bwd_bf16_signs_two, OfAvg<bf16>, STRIP_THREADS, 2, (norms::gradient<bf16, true, 2>))

}  // namespace pool
