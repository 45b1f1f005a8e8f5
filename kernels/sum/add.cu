// Addition of two tensors of one shape: the end of a residual block.
//   fwd  y = a + b, optionally max(y, 0)
//
// Tensors   a, b, y: rows of channels in T, any pixel stride, 16-byte aligned if strips.wide is set. Adds in f32.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block).
// Threads   256. Shared memory: none.
// Counted   1 FLOP (2 with the ReLU) and 3 sizeof(T) bytes per element.
#include "common/strips.cuh"

namespace sum {

template <typename T>
struct Add {
  const T* a;
  const T* b;
  T* y;
  i64 a_stride, b_stride, y_stride;  // elements from one row to the next
  Strips strips;
  u32 relu, unused;
};
static_assert(sizeof(Add<float>) == 88, "as in src/ops/sum/launch.rs");

template <typename T>
__device__ __forceinline__ void add_fwd(const Add<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const int n = strip_width<V>(p.strips, row, share.channel);
    float a[V], b[V];
    load_strip<T, V>(a, p.a + row * p.a_stride + share.channel, n, p.strips.wide);
    load_strip<T, V>(b, p.b + row * p.b_stride + share.channel, n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      a[j] += b[j];
      if (p.relu) a[j] = rectified(a[j]);
    }
    store_strip<T, V>(p.y + row * p.y_stride + share.channel, a, n, p.strips.wide);
  }
}

KERNEL(sum_fwd_f32, Add<float>, STRIP_THREADS, 4, add_fwd<float>)
KERNEL(sum_fwd_f16, Add<f16>, STRIP_THREADS, 4, add_fwd<f16>)
KERNEL(sum_fwd_bf16, Add<bf16>, STRIP_THREADS, 4, add_fwd<bf16>)

}  // namespace sum
