// Average pooling.
//   fwd  y = sum over the window's pixels inside the image / divisor
//   bwd  dx = sum over the windows that cover the pixel of dy / divisor (or added to dx); gathered, so no atomics
// x[N,H,W,C], y[N,P,Q,C] in T, any pixel stride, 16-byte aligned where strips.wide is set; sums in f32.
// Grid: strips.blocks_per_row * ceil(rows / rows_per_block) blocks of 256 threads, rows being the pixels of y (fwd) or
// dx (bwd). fwd: a thread sums a window; for large windows `_tree`: a block sums one (rows_per_block is 1), with 256 V
// floats of shared memory, V = 16 / sizeof(T). FLOPs: one addition per window and pixel. Bytes: x and y once each;
// pixels that several windows share come from the caches.
#include "common/tree.cuh"
#include "pool/window.cuh"

template <typename T>
struct AvgFwd {
  const T* x;
  T* y;
  i64 x_stride, y_stride;
  Strips strips;
  Windows windows;
};
static_assert(sizeof(AvgFwd<float>) == 112, "as in src/ops/pool/launch.rs");

template <typename T>
struct AvgBwd {
  const T* dy;
  T* dx;
  i64 dy_stride, dx_stride;
  Strips strips;
  Windows windows;
  u32 accumulate, unused;
};
static_assert(sizeof(AvgBwd<float>) == 120, "as in src/ops/pool/launch.rs");

template <typename T, int V>
__device__ __forceinline__ void add_pixel(Sums<V>& sums, const AvgFwd<T>& p, i64 pixel, u32 channel, int n) {
  float v[V];
  load_strip<T, V>(v, p.x + pixel * p.x_stride + channel, n, p.strips.wide);
#pragma unroll
  for (int j = 0; j < V; ++j) sums.f[j] += v[j];
}

template <typename T, int V>
__device__ __forceinline__ void store_mean(const AvgFwd<T>& p, Sums<V>& sums, i64 row, Pixel at, u32 channel, int n) {
  const float divisor = float(extent_of(vertical(p.windows), at.row)) * float(extent_of(horizontal(p.windows), at.column));
#pragma unroll
  for (int j = 0; j < V; ++j) sums.f[j] /= divisor;
  store_strip<T, V>(p.y + row * p.y_stride + channel, sums.f, n, p.strips.wide);
}

template <typename T>
__device__ __forceinline__ void avg_fwd(const AvgFwd<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  const Windows& w = p.windows;
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, w.p, w.q);
    const Range rows = pixels_of(vertical(w), at.row), columns = pixels_of(horizontal(w), at.column);
    Sums<V> sums;
    sums.clear();
    for (int r = rows.begin; r < rows.end; ++r)
      for (int c = columns.begin; c < columns.end; ++c)
        add_pixel<T, V>(sums, p, (at.image * w.h + r) * w.w + c, share.channel, n);
    store_mean<T, V>(p, sums, row, at, share.channel, n);
  }
}

// Pixels that are summed before they are added to the rest: keeps the rounding error of a large window small.
constexpr int GROUP = 32;

template <typename T>
__device__ __forceinline__ void avg_fwd_tree(const AvgFwd<T>& p) {
  constexpr int V = WIDTH<T>;
  SHARED(float, shared);
  const u32 column = blockIdx.x % p.strips.blocks_per_row;
  const i64 row = blockIdx.x / p.strips.blocks_per_row;
  const u32 channel = ((column << p.strips.lanes_log2) + strip_lane(p.strips)) * V;
  const int n = strip_width<V>(p.strips, row, channel), step = strip_walkers(p.strips);
  const Windows& w = p.windows;
  const Pixel at = pixel_at(row, w.p, w.q);
  const Range rows = pixels_of(vertical(w), at.row), columns = pixels_of(horizontal(w), at.column);
  const int width = columns.end - columns.begin, pixels = (rows.end - rows.begin) * width;
  Sums<V> sums;
  sums.clear();
  for (int k = strip_walker(p.strips); k < pixels;) {
    Sums<V> group;
    group.clear();
#pragma unroll 4
    for (int i = 0; i < GROUP && k < pixels; ++i, k += step)
      add_pixel<T, V>(group, p, (at.image * w.h + rows.begin + k / width) * w.w + columns.begin + k % width, channel, n);
    sums.take(group);
  }
  merge_walkers(sums, shared, 1 << p.strips.lanes_log2, step);
  if (strip_walker(p.strips) == 0) store_mean<T, V>(p, sums, row, at, channel, n);
}

template <typename T>
__device__ __forceinline__ void avg_bwd(const AvgBwd<T>& p) {
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
      for (int k = columns.begin; k < columns.end; ++k) {
        const float factor = 1.0f / (float(extent_of(down, i)) * float(extent_of(across, k)));
        float dy[V];
        const i64 window = (at.image * w.p + i) * w.q + k;
        load_strip<T, V>(dy, p.dy + window * p.dy_stride + share.channel, n, p.strips.wide);
#pragma unroll
        for (int j = 0; j < V; ++j) sum[j] = fmaf(dy[j], factor, sum[j]);
      }
    }
    write_strip<T, V>(p.dx + row * p.dx_stride + share.channel, sum, n, p.strips.wide, p.accumulate);
  }
}

KERNEL(pool_avg_fwd_f32, AvgFwd<float>, STRIP_THREADS, 2, avg_fwd<float>)
KERNEL(pool_avg_fwd_f16, AvgFwd<f16>, STRIP_THREADS, 2, avg_fwd<f16>)
KERNEL(pool_avg_fwd_bf16, AvgFwd<bf16>, STRIP_THREADS, 2, avg_fwd<bf16>)
KERNEL(pool_avg_fwd_f32_tree, AvgFwd<float>, STRIP_THREADS, 2, avg_fwd_tree<float>)
KERNEL(pool_avg_fwd_f16_tree, AvgFwd<f16>, STRIP_THREADS, 2, avg_fwd_tree<f16>)
KERNEL(pool_avg_fwd_bf16_tree, AvgFwd<bf16>, STRIP_THREADS, 2, avg_fwd_tree<bf16>)
KERNEL(pool_avg_bwd_f32, AvgBwd<float>, STRIP_THREADS, 2, avg_bwd<float>)
KERNEL(pool_avg_bwd_f16, AvgBwd<f16>, STRIP_THREADS, 2, avg_bwd<f16>)
KERNEL(pool_avg_bwd_bf16, AvgBwd<bf16>, STRIP_THREADS, 2, avg_bwd<bf16>)
