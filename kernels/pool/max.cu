// Max pooling.
//   fwd  y = max over the window's pixels inside the image; index = the position of the first maximum in the clipped
//        window, row by row. NaN counts as the largest; of several NaNs the last is taken, as in torch.
//   bwd  dx = sum of dy over the windows whose maximum is the pixel (or added to dx)
//
// Tensors   x[N,H,W,C], y[N,P,Q,C] in T, index[N,P,Q,C] u8, any pixel stride; strips are aligned if strips.wide is set.
// Method    a thread takes a window's strip of channels. Gradients are gathered, without atomics.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block), where rows are the pixels of y (fwd) or dx (bwd).
// Threads   256. Shared memory: none.
// Counted   one comparison per window and pixel; bytes: fwd (x + y) sizeof(T) + index, bwd likewise with dy and dx;
//           pixels in several windows are read again from the caches.
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
