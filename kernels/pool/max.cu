// Max pooling.
//   fwd  y = max over the window's pixels inside the image; index = where the first such pixel is in the clipped
//        window, row by row. A NaN counts as the largest, and of several the last, as in torch.
//   bwd  dx = sum of dy over the windows whose maximum the pixel was (or added to dx)
//
// Tensors   x[N,H,W,C], y[N,P,Q,C] in T, index[N,P,Q,C] u8, any pixel stride; strips are aligned where strips.wide is
//           set.
// Method    a thread takes a window's strip of channels. Gradients are gathered: no atomics.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block), rows being the pixels of y (fwd) or dx (bwd).
// Threads   256. Shared memory: none.
// Counted   one comparison a window and pixel; bytes: fwd (x + y) sizeof(T) + index, bwd the same with dy and dx;
//           pixels that several windows share come from the caches.
#include "pool/backward.cuh"
#include "pool/forward.cuh"

namespace pool {

template <typename T>
__device__ __forceinline__ void max_fwd(const MaxFwd<T>& p) {
  const Share share = thread_share<WIDTH<T>>(p.strips);
  const int n = strip_width<WIDTH<T>>(p.strips, 0, share.channel);
  max_of_windows(p, share, n, Plain<T>{p.x + share.channel, p.x_stride});
}

template <typename T>
using MaxBwd = PoolBwd<T, MaxGradient<T>>;

KERNEL(pool_max_fwd_f32, MaxFwd<float>, STRIP_THREADS, 2, max_fwd<float>)
KERNEL(pool_max_fwd_f16, MaxFwd<f16>, STRIP_THREADS, 2, max_fwd<f16>)
KERNEL(pool_max_fwd_bf16, MaxFwd<bf16>, STRIP_THREADS, 2, max_fwd<bf16>)
KERNEL(pool_max_bwd_f32, MaxBwd<float>, STRIP_THREADS, 2, pool_bwd)
KERNEL(pool_max_bwd_f16, MaxBwd<f16>, STRIP_THREADS, 2, pool_bwd)
KERNEL(pool_max_bwd_bf16, MaxBwd<bf16>, STRIP_THREADS, 2, pool_bwd)

}  // namespace pool
