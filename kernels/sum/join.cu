// The end of a residual block whose branch may be dropped.
//   fwd  y = a + survival b, optionally max(y, 0); with a gate, if *gate is 0, y = a and b is not read
//
// Tensors   a, b, y: rows of channels in T, any pixel stride, 16-byte aligned if strips.wide is set. Adds in f32.
//           survival: the survival probability at inference, else 1. gate: one f32, or null without a gate.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block).
// Threads   256. Shared memory: none.
// Counted   per element: 2 FLOPs (3 with the ReLU) and 3 sizeof(T) bytes; 2 sizeof(T) bytes behind a closed gate.
#include "common/strips.cuh"

namespace sum {

template <typename T>
struct Join {
  const T* a;
  const T* b;
  T* y;
  const float* gate;
  i64 a_stride, b_stride, y_stride;  // elements from one row to the next
  Strips strips;
  float survival;
  u32 relu;
};
static_assert(sizeof(Join<float>) == 96, "as in src/ops/sum/launch.rs");

template <typename T>
__device__ __forceinline__ void join_fwd(const Join<T>& p) {
  constexpr int V = WIDTH<T>;
  const bool open = p.gate == nullptr || *p.gate != 0.0f;
  const Share share = thread_share<V>(p.strips);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const int n = strip_width<V>(p.strips, row, share.channel);
    float y[V], b[V];
    load_strip<T, V>(y, p.a + row * p.a_stride + share.channel, n, p.strips.wide);
    if (open) {
      load_strip<T, V>(b, p.b + row * p.b_stride + share.channel, n, p.strips.wide);
#pragma unroll
      for (int j = 0; j < V; ++j) y[j] = fmaf(p.survival, b[j], y[j]);
    }
    if (p.relu) {
#pragma unroll
      for (int j = 0; j < V; ++j) y[j] = rectified(y[j]);
    }
    store_strip<T, V>(p.y + row * p.y_stride + share.channel, y, n, p.strips.wide);
  }
}

KERNEL(sum_join_f32, Join<float>, STRIP_THREADS, 4, join_fwd<float>)
KERNEL(sum_join_f16, Join<f16>, STRIP_THREADS, 4, join_fwd<f16>)
KERNEL(sum_join_bf16, Join<bf16>, STRIP_THREADS, 4, join_fwd<bf16>)

}  // namespace sum
