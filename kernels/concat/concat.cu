// Copies one part of a concatenation along the channels into the whole or out of it.
//   fwd  y[n,h,w,o + c] = x[n,h,w,c]        bwd  dx[n,h,w,c] = dy[n,h,w,o + c]
//
// Tensors   src, dst: rows of channels (pixels) in T, any pixel stride, 16-byte aligned if strips.wide is set.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block).
// Threads   256. Shared memory: none.
// Counted   no FLOPs, 2 sizeof(T) bytes per element. A part that is a slice of the whole needs no launch.
#include "common/strips.cuh"

namespace concat {

template <typename T>
struct ConcatCopy {
  const T* src;
  T* dst;
  i64 src_stride, dst_stride;  // elements from one row to the next
  Strips strips;
};
static_assert(sizeof(ConcatCopy<float>) == 64, "as in src/ops/concat/launch.rs");

template <typename T>
__device__ __forceinline__ void concat_copy(const ConcatCopy<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  for (i64 row = share.first; row < share.end; row += share.step) {
    float v[V];
    load_strip<T, V>(v, p.src + row * p.src_stride + share.channel, n, p.strips.wide);
    store_strip<T, V>(p.dst + row * p.dst_stride + share.channel, v, n, p.strips.wide);
  }
}

KERNEL(concat_copy_f32, ConcatCopy<float>, STRIP_THREADS, 4, concat_copy<float>)
KERNEL(concat_copy_f16, ConcatCopy<f16>, STRIP_THREADS, 4, concat_copy<f16>)
KERNEL(concat_copy_bf16, ConcatCopy<bf16>, STRIP_THREADS, 4, concat_copy<bf16>)

}  // namespace concat
