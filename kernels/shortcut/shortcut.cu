// The parameter-free shortcut of He et al. (2015), option A: subsample and pad with zero channels.
//   fwd  y[n,p,q,k] = x[n, p*stride, q*stride, k - lead] where 0 <= k - lead < C, else 0
//   bwd  dx[n,h,w,c] = dy[n, h/stride, w/stride, c + lead] where stride divides h and w, else 0 (or added to dx)
//
// Tensors   x[N,H,W,C], y[N,P,Q,K] in T, any pixel stride, 16-byte aligned if strips.wide is set.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block), where rows are the pixels of the output.
// Threads   256. Shared memory: none.
// Counted   no FLOPs; fwd (C + K) sizeof(T) bytes per output pixel, bwd C sizeof(T) (1 + 1 / stride^2) per pixel of dx.
#include "common/strips.cuh"

namespace shortcut {

template <typename T>
struct Shortcut {
  const T* src;
  T* dst;
  i64 src_stride, dst_stride;
  Strips strips;
  u32 h, w, p, q, stride, c, lead;
  u32 accumulate;
};
static_assert(sizeof(Shortcut<float>) == 96, "as in src/ops/shortcut/launch.rs");

// Loads channels `channel` .. `channel` + V of the output, `lead` lower in the input; zeros outside the input.
template <typename T, int V>
__device__ __forceinline__ void load_shifted(float (&v)[V], const Shortcut<T>& p, const T* pixel, u32 channel) {
  const i64 first = i64(channel) - p.lead;
  if (p.strips.wide && first >= 0 && first + V <= p.c) {
    load_strip<T, V>(v, pixel + first, V, 1);
    return;
  }
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = first + j >= 0 && first + j < p.c ? to_float(pixel[first + j]) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void shortcut_fwd(const Shortcut<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, p.p, p.q);
    const i64 pixel = (at.image * p.h + at.row * p.stride) * p.w + at.column * p.stride;
    float v[V];
    load_shifted<T, V>(v, p, p.src + pixel * p.src_stride, share.channel);
    store_strip<T, V>(p.dst + row * p.dst_stride + share.channel, v, n, p.strips.wide);
  }
}

template <typename T>
__device__ __forceinline__ void shortcut_bwd(const Shortcut<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, p.h, p.w);
    const bool kept = at.row % p.stride == 0 && at.column % p.stride == 0;
    if (!kept && p.accumulate) continue;
    const i64 pixel = (at.image * p.p + at.row / p.stride) * p.q + at.column / p.stride;
    float v[V];
    load_strip<T, V>(v, p.src + pixel * p.src_stride + p.lead + share.channel, kept ? n : 0, p.strips.wide);
    write_strip<T, V>(p.dst + row * p.dst_stride + share.channel, v, n, p.strips.wide, p.accumulate);
  }
}

KERNEL(shortcut_fwd_f32, Shortcut<float>, STRIP_THREADS, 4, shortcut_fwd<float>)
KERNEL(shortcut_fwd_f16, Shortcut<f16>, STRIP_THREADS, 4, shortcut_fwd<f16>)
KERNEL(shortcut_fwd_bf16, Shortcut<bf16>, STRIP_THREADS, 4, shortcut_fwd<bf16>)
KERNEL(shortcut_bwd_f32, Shortcut<float>, STRIP_THREADS, 4, shortcut_bwd<float>)
KERNEL(shortcut_bwd_f16, Shortcut<f16>, STRIP_THREADS, 4, shortcut_bwd<f16>)
KERNEL(shortcut_bwd_bf16, Shortcut<bf16>, STRIP_THREADS, 4, shortcut_bwd<bf16>)

}  // namespace shortcut
