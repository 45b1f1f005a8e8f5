// Average pooling.
//   fwd  y = (sum of the window's pixels inside the image) / divisor
//   bwd  dx = sum of dy / divisor over the windows that cover the pixel (or added to dx)
//
// Tensors   x[N,H,W,C], y[N,P,Q,C] in T, any pixel stride, 16-byte aligned if strips.wide is set.
// Method    a thread sums a window in f32; in *_tree, for large windows, a block does. Gradients are gathered, without
//           atomics.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block), where rows are the pixels of y (fwd) or dx (bwd).
//           In *_tree, rows_per_block is 1.
// Threads   256. Shared memory: 256 V floats in *_tree, V = 16 / sizeof(T), else none.
// Counted   one addition per window and pixel; bytes: x and y once each; pixels in several windows are read again from
//           the caches.
#include "pool/backward.cuh"
#include "pool/forward.cuh"

namespace pool {

template <typename T>
__device__ __forceinline__ void avg_fwd(const AvgFwd<T>& p) {
  const Share share = thread_share<WIDTH<T>>(p.strips);
  const int n = strip_width<WIDTH<T>>(p.strips, 0, share.channel);
  mean_of_windows(p, share, n, Plain<T>{p.x + share.channel, p.x_stride});
}

template <typename T>
__device__ __forceinline__ void avg_fwd_tree(const AvgFwd<T>& p) {
  const Share share = block_share<WIDTH<T>>(p.strips);
  const int n = strip_width<WIDTH<T>>(p.strips, 0, share.channel);
  mean_of_window(p, share, n, Plain<T>{p.x + share.channel, p.x_stride});
}

template <typename T>
using AvgBwd = PoolBwd<T, AvgGradient<T>>;

KERNEL(pool_avg_fwd_f32, AvgFwd<float>, STRIP_THREADS, 2, avg_fwd<float>)
KERNEL(pool_avg_fwd_f16, AvgFwd<f16>, STRIP_THREADS, 2, avg_fwd<f16>)
KERNEL(pool_avg_fwd_bf16, AvgFwd<bf16>, STRIP_THREADS, 2, avg_fwd<bf16>)
KERNEL(pool_avg_fwd_f32_tree, AvgFwd<float>, STRIP_THREADS, 2, avg_fwd_tree<float>)
KERNEL(pool_avg_fwd_f16_tree, AvgFwd<f16>, STRIP_THREADS, 2, avg_fwd_tree<f16>)
KERNEL(pool_avg_fwd_bf16_tree, AvgFwd<bf16>, STRIP_THREADS, 2, avg_fwd_tree<bf16>)
KERNEL(pool_avg_bwd_f32, AvgBwd<float>, STRIP_THREADS, 2, pool_bwd)
KERNEL(pool_avg_bwd_f16, AvgBwd<f16>, STRIP_THREADS, 2, pool_bwd)
KERNEL(pool_avg_bwd_bf16, AvgBwd<bf16>, STRIP_THREADS, 2, pool_bwd)

}  // namespace pool
