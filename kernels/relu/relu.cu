// The rectified linear unit (ReLU).
//   fwd  y = max(x, 0)
//   bwd  dx = 0 where y <= 0, else dy (or added to dx)
//
// Tensors   x, y, dy, dx: rows of channels in T, any pixel stride, 16-byte aligned if strips.wide is set.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block).
// Threads   256. Shared memory: none.
// Counted   per element: 1 FLOP; fwd 2 sizeof(T) bytes, bwd 3 sizeof(T), or 4 if it accumulates.
#include "common/strips.cuh"

namespace relu {

template <typename T>
struct ReluFwd {
  const T* x;
  T* y;
  i64 x_stride, y_stride;  // elements from one row to the next
  Strips strips;
};
static_assert(sizeof(ReluFwd<float>) == 64, "as in src/ops/relu/launch.rs");

template <typename T>
struct ReluBwd {
  const T* dy;
  const T* y;
  T* dx;
  i64 dy_stride, y_stride, dx_stride;
  Strips strips;
  u32 accumulate, unused;
};
static_assert(sizeof(ReluBwd<float>) == 88, "as in src/ops/relu/launch.rs");

template <typename T>
__device__ __forceinline__ void relu_fwd(const ReluFwd<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const int n = strip_width<V>(p.strips, row, share.channel);
    float v[V];
    load_strip<T, V>(v, p.x + row * p.x_stride + share.channel, n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = rectified(v[j]);
    store_strip<T, V>(p.y + row * p.y_stride + share.channel, v, n, p.strips.wide);
  }
}

template <typename T>
__device__ __forceinline__ void relu_bwd(const ReluBwd<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const int n = strip_width<V>(p.strips, row, share.channel);
    float d[V], y[V];
    load_strip<T, V>(d, p.dy + row * p.dy_stride + share.channel, n, p.strips.wide);
    load_strip<T, V>(y, p.y + row * p.y_stride + share.channel, n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) d[j] = passed(d[j], y[j]);
    write_strip<T, V>(p.dx + row * p.dx_stride + share.channel, d, n, p.strips.wide, p.accumulate);
  }
}

KERNEL(relu_fwd_f32, ReluFwd<float>, STRIP_THREADS, 4, relu_fwd<float>)
KERNEL(relu_fwd_f16, ReluFwd<f16>, STRIP_THREADS, 4, relu_fwd<f16>)
KERNEL(relu_fwd_bf16, ReluFwd<bf16>, STRIP_THREADS, 4, relu_fwd<bf16>)
KERNEL(relu_bwd_f32, ReluBwd<float>, STRIP_THREADS, 4, relu_bwd<float>)
KERNEL(relu_bwd_f16, ReluBwd<f16>, STRIP_THREADS, 4, relu_bwd<f16>)
KERNEL(relu_bwd_bf16, ReluBwd<bf16>, STRIP_THREADS, 4, relu_bwd<bf16>)

}  // namespace relu
