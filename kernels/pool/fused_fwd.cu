// Pooling of x after a batch norm and a ReLU.
//   fwd  z = x scale + shift, optionally max(z, 0), rounded to T; y and index of z as in avg.cu, max.cu
//
// Tensors   x[N,H,W,C], y and index[N,P,Q,C] as in avg.cu, max.cu; scale and shift [C], f32. Windows hold no pixels
//           outside the image.
// Grid      as in avg.cu, max.cu.
// Threads   256. Shared memory: as in avg.cu, max.cu.
// Counted   as in avg.cu, max.cu, and 2 FLOPs per window and pixel: a pixel is loaded and transformed for each of its
//           windows.
#include "norm/affine.cuh"
#include "pool/forward.cuh"

namespace pool {

// Pool is MaxFwd or AvgFwd.
template <typename T, typename Pool>
struct FusedFwd {
  Pool pool;
  const float* scale;
  const float* shift;
  u32 relu, unused;
};
static_assert(sizeof(FusedFwd<float, MaxFwd<float>>) == 152, "as in src/ops/pool/launch/params.rs");
static_assert(sizeof(FusedFwd<float, AvgFwd<float>>) == 136, "as in src/ops/pool/launch/params.rs");

// Loads pixels through the batch norm and the ReLU.
template <typename T>
struct Activated {
  static constexpr int WIDE = WIDTH<T>;
  const T* x;  // at the thread's channels
  i64 stride;
  u32 relu;
  float scale[WIDE], shift[WIDE];

  template <typename Pool>
  __device__ __forceinline__ Activated(const FusedFwd<T, Pool>& p, u32 channel, int n)
      : x(p.pool.x + channel), stride(p.pool.x_stride), relu(p.relu) {
    load_channels<WIDE>(scale, p.scale, channel, n);
    load_channels<WIDE>(shift, p.shift, channel, n);
  }

  template <int V>
  __device__ __forceinline__ void load(float (&v)[V], i64 pixel, int n, u32 wide) const {
    load_strip<T, V>(v, x + pixel * stride, n, wide);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = norms::activated<T>(v[j], scale[j], shift[j], relu);
  }
};

template <typename T>
using FusedMaxFwd = FusedFwd<T, MaxFwd<T>>;
template <typename T>
using FusedAvgFwd = FusedFwd<T, AvgFwd<T>>;

template <typename T>
__device__ __forceinline__ void max_fwd(const FusedMaxFwd<T>& p) {
  const Share share = thread_share<WIDTH<T>>(p.pool.strips);
  const int n = strip_width<WIDTH<T>>(p.pool.strips, 0, share.channel);
  max_of_windows(p.pool, share, n, Activated<T>(p, share.channel, n));
}

template <typename T>
__device__ __forceinline__ void avg_fwd(const FusedAvgFwd<T>& p) {
  const Share share = thread_share<WIDTH<T>>(p.pool.strips);
  const int n = strip_width<WIDTH<T>>(p.pool.strips, 0, share.channel);
  mean_of_windows(p.pool, share, n, Activated<T>(p, share.channel, n));
}

template <typename T>
__device__ __forceinline__ void avg_fwd_tree(const FusedAvgFwd<T>& p) {
  const Share share = block_share<WIDTH<T>>(p.pool.strips);
  const int n = strip_width<WIDTH<T>>(p.pool.strips, 0, share.channel);
  mean_of_window(p.pool, share, n, Activated<T>(p, share.channel, n));
}

KERNEL(pool_fused_max_fwd_f32, FusedMaxFwd<float>, STRIP_THREADS, 2, max_fwd<float>)
KERNEL(pool_fused_max_fwd_f16, FusedMaxFwd<f16>, STRIP_THREADS, 2, max_fwd<f16>)
KERNEL(pool_fused_max_fwd_bf16, FusedMaxFwd<bf16>, STRIP_THREADS, 2, max_fwd<bf16>)
KERNEL(pool_fused_avg_fwd_f32, FusedAvgFwd<float>, STRIP_THREADS, 2, avg_fwd<float>)
KERNEL(pool_fused_avg_fwd_f16, FusedAvgFwd<f16>, STRIP_THREADS, 2, avg_fwd<f16>)
KERNEL(pool_fused_avg_fwd_bf16, FusedAvgFwd<bf16>, STRIP_THREADS, 2, avg_fwd<bf16>)
KERNEL(pool_fused_avg_fwd_f32_tree, FusedAvgFwd<float>, STRIP_THREADS, 2, avg_fwd_tree<float>)
KERNEL(pool_fused_avg_fwd_f16_tree, FusedAvgFwd<f16>, STRIP_THREADS, 2, avg_fwd_tree<f16>)
KERNEL(pool_fused_avg_fwd_bf16_tree, FusedAvgFwd<bf16>, STRIP_THREADS, 2, avg_fwd_tree<bf16>)

}  // namespace pool
