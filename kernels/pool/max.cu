// Max pooling.
//   fwd  y = max over the window's pixels inside the image; index = where the first such pixel is in the clipped window,
//        row by row. A NaN counts as the largest.
//   bwd  dx = sum of dy over the windows whose maximum the pixel was (or added to dx); gathered, so no atomics
// x[N,H,W,C], y and index[N,P,Q,C] in T and u8, any pixel stride; strips are aligned where strips.wide is set.
// Grid: strips.blocks_per_row * ceil(rows / rows_per_block) blocks of 256 threads, rows being the pixels of y (fwd) or
// dx (bwd); no shared memory. FLOPs: one comparison per window and pixel. Bytes: fwd (x + y) sizeof(T) + index, bwd
// the same with dy and dx; pixels that several windows share come from the caches.
#include "pool/window.cuh"

template <typename T>
struct MaxFwd {
  const T* x;
  T* y;
  u8* index;
  i64 x_stride, y_stride, index_stride;
  Strips strips;
  Windows windows;
};
static_assert(sizeof(MaxFwd<float>) == 128, "as in src/ops/pool/launch.rs");

template <typename T>
struct MaxBwd {
  const T* dy;
  const u8* index;
  T* dx;
  i64 dy_stride, index_stride, dx_stride;
  Strips strips;
  Windows windows;
  u32 accumulate, unused;
};
static_assert(sizeof(MaxBwd<float>) == 136, "as in src/ops/pool/launch.rs");

template <int V>
__device__ __forceinline__ void load_index(int (&v)[V], const u8* p, int n, u32 wide) {
  if (wide && n == V) {
    const Vec<u8, V> t = load<u8, V>(p);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = t.v[j];
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = j < n ? p[j] : 0;
  }
}

template <int V>
__device__ __forceinline__ void store_index(u8* p, const int (&v)[V], int n, u32 wide) {
  if (wide && n == V) {
    Vec<u8, V> t;
#pragma unroll
    for (int j = 0; j < V; ++j) t.v[j] = u8(v[j]);
    store<u8, V>(p, t);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j < n) p[j] = u8(v[j]);
  }
}

// Takes in the pixel at `position` of the window where it is larger, or the first NaN.
template <int V>
__device__ __forceinline__ void take_larger(float (&best)[V], int (&index)[V], const float (&v)[V], int position) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const bool larger = v[j] > best[j] || (v[j] != v[j] && best[j] == best[j]);
    if (position == 0 || larger) {
      best[j] = v[j];
      index[j] = position;
    }
  }
}

template <typename T>
__device__ __forceinline__ void max_fwd(const MaxFwd<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  const Windows& w = p.windows;
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, w.p, w.q);
    const Range rows = pixels_of(vertical(w), at.row), columns = pixels_of(horizontal(w), at.column);
    float best[V];
    int index[V], position = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) best[j] = 0.0f, index[j] = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      const T* line = p.x + ((at.image * w.h + r) * w.w) * p.x_stride + share.channel;
      for (int c = columns.begin; c < columns.end; ++c, ++position) {
        float v[V];
        load_strip<T, V>(v, line + c * p.x_stride, n, p.strips.wide);
        take_larger<V>(best, index, v, position);
      }
    }
    store_strip<T, V>(p.y + row * p.y_stride + share.channel, best, n, p.strips.wide);
    store_index<V>(p.index + row * p.index_stride + share.channel, index, n, p.strips.wide);
  }
}

template <typename T>
__device__ __forceinline__ void max_bwd(const MaxBwd<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  const Windows& w = p.windows;
  const Axis down = vertical(w), across = horizontal(w);
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, w.h, w.w);
    const Range rows = windows_of(down, at.row), columns = windows_of(across, at.column);
    float sum[V];
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = 0.0f;
    for (int i = rows.begin; i < rows.end; ++i) {
      const int local_row = at.row - pixels_of(down, i).begin;
      for (int k = columns.begin; k < columns.end; ++k) {
        const Range span = pixels_of(across, k);
        const int here = local_row * (span.end - span.begin) + at.column - span.begin;
        const i64 window = (at.image * w.p + i) * w.q + k;
        float dy[V];
        int index[V];
        load_strip<T, V>(dy, p.dy + window * p.dy_stride + share.channel, n, p.strips.wide);
        load_index<V>(index, p.index + window * p.index_stride + share.channel, n, p.strips.wide);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] += index[j] == here ? dy[j] : 0.0f;
      }
    }
    write_strip<T, V>(p.dx + row * p.dx_stride + share.channel, sum, n, p.strips.wide, p.accumulate);
  }
}

KERNEL(pool_max_fwd_f32, MaxFwd<float>, STRIP_THREADS, 2, max_fwd<float>)
KERNEL(pool_max_fwd_f16, MaxFwd<f16>, STRIP_THREADS, 2, max_fwd<f16>)
KERNEL(pool_max_fwd_bf16, MaxFwd<bf16>, STRIP_THREADS, 2, max_fwd<bf16>)
KERNEL(pool_max_bwd_f32, MaxBwd<float>, STRIP_THREADS, 2, max_bwd<float>)
KERNEL(pool_max_bwd_f16, MaxBwd<f16>, STRIP_THREADS, 2, max_bwd<f16>)
KERNEL(pool_max_bwd_bf16, MaxBwd<bf16>, STRIP_THREADS, 2, max_bwd<bf16>)
