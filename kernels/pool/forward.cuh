// The forward passes of pooling, for plain or transformed pixels. A Load reads the thread's channels of a pixel
// of x: `load(float (&v)[V], i64 pixel, int n, u32 wide)`.
#pragma once

#include "common/tree.cuh"
#include "pool/window.cuh"

namespace pool {

template <typename T>
struct MaxFwd {
  const T* x;
  T* y;
  u8* index;
  i64 x_stride, y_stride, index_stride;
  Strips strips;
  Windows windows;
};
static_assert(sizeof(MaxFwd<float>) == 128, "as in src/ops/pool/launch/params.rs");

template <typename T>
struct AvgFwd {
  const T* x;
  T* y;
  i64 x_stride, y_stride;
  Strips strips;
  Windows windows;
};
static_assert(sizeof(AvgFwd<float>) == 112, "as in src/ops/pool/launch/params.rs");

// Loads pixels without a transform.
template <typename T>
struct Plain {
  const T* x;  // at the thread's channels
  i64 stride;

  template <int V>
  __device__ __forceinline__ void load(float (&v)[V], i64 pixel, int n, u32 wide) const {
    load_strip<T, V>(v, x + pixel * stride, n, wide);
  }
};

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

// Takes the pixel at `position` in the window if it is larger or NaN.
template <int V>
__device__ __forceinline__ void take_larger(float (&best)[V], int (&index)[V], const float (&v)[V], int position) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const bool larger = v[j] > best[j] || v[j] != v[j];
    if (position == 0 || larger) {
      best[j] = v[j];
      index[j] = position;
    }
  }
}

template <typename T, typename Load>
__device__ __forceinline__ void max_of_windows(const MaxFwd<T>& p, const Share& share, int n, const Load& from) {
  constexpr int V = WIDTH<T>;
  const Windows& w = p.windows;
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, w.p, w.q);
    const Range rows = pixels_of(vertical(w), at.row), columns = pixels_of(horizontal(w), at.column);
    float best[V];
    int index[V], position = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) best[j] = 0.0f, index[j] = 0;
    for (int r = rows.begin; r < rows.end; ++r) {
      const i64 line = (at.image * w.h + r) * w.w;
      for (int c = columns.begin; c < columns.end; ++c, ++position) {
        float v[V];
        from.template load<V>(v, line + c, n, p.strips.wide);
        take_larger<V>(best, index, v, position);
      }
    }
    store_strip<T, V>(p.y + row * p.y_stride + share.channel, best, n, p.strips.wide);
    store_index<V>(p.index + row * p.index_stride + share.channel, index, n, p.strips.wide);
  }
}

template <int V, typename Load>
__device__ __forceinline__ void add_pixel(Sums<V>& sums, const Load& from, i64 pixel, int n, u32 wide) {
  float v[V];
  from.template load<V>(v, pixel, n, wide);
#pragma unroll
  for (int j = 0; j < V; ++j) sums.f[j] += v[j];
}

template <typename T, int V>
__device__ __forceinline__ void store_mean(const AvgFwd<T>& p, Sums<V>& sums, i64 row, Pixel at, u32 channel, int n) {
  const float divisor =
      float(extent_of(vertical(p.windows), at.row)) * float(extent_of(horizontal(p.windows), at.column));
#pragma unroll
  for (int j = 0; j < V; ++j) sums.f[j] /= divisor;
  store_strip<T, V>(p.y + row * p.y_stride + channel, sums.f, n, p.strips.wide);
}

template <typename T, typename Load>
__device__ __forceinline__ void mean_of_windows(const AvgFwd<T>& p, const Share& share, int n, const Load& from) {
  constexpr int V = WIDTH<T>;
  const Windows& w = p.windows;
  for (i64 row = share.first; row < share.end; row += share.step) {
    const Pixel at = pixel_at(row, w.p, w.q);
    const Range rows = pixels_of(vertical(w), at.row), columns = pixels_of(horizontal(w), at.column);
    Sums<V> sums;
    sums.clear();
    for (int r = rows.begin; r < rows.end; ++r)
      for (int c = columns.begin; c < columns.end; ++c)
        add_pixel<V>(sums, from, (at.image * w.h + r) * w.w + c, n, p.strips.wide);
    store_mean<T, V>(p, sums, row, at, share.channel, n);
  }
}

// A thread's strip of the one row of a block that sums a window.
template <int V>
__device__ __forceinline__ Share block_share(const Strips& s) {
  const u32 column = blockIdx.x % s.blocks_per_row;
  const i64 row = blockIdx.x / s.blocks_per_row;
  return Share{row, row + 1, strip_walkers(s), ((column << s.lanes_log2) + strip_lane(s)) * V};
}

// Pixels per partial sum: keeps the rounding error of a large window small.
constexpr int GROUP = 32;

template <typename T, typename Load>
__device__ __forceinline__ void mean_of_window(const AvgFwd<T>& p, const Share& share, int n, const Load& from) {
  constexpr int V = WIDTH<T>;
  SHARED(float, shared);
  const Windows& w = p.windows;
  const Pixel at = pixel_at(share.first, w.p, w.q);
  const Range rows = pixels_of(vertical(w), at.row), columns = pixels_of(horizontal(w), at.column);
  const int width = columns.end - columns.begin, pixels = (rows.end - rows.begin) * width;
  Sums<V> sums;
  sums.clear();
  for (int k = strip_walker(p.strips); k < pixels;) {
    Sums<V> group;
    group.clear();
#pragma unroll 4
    for (int i = 0; i < GROUP && k < pixels; ++i, k += share.step)
      add_pixel<V>(group, from, (at.image * w.h + rows.begin + k / width) * w.w + columns.begin + k % width, n,
                   p.strips.wide);
    sums.take(group);
  }
  merge_walkers(sums, shared, 1 << p.strips.lanes_log2, share.step);
  if (strip_walker(p.strips) == 0) store_mean<T, V>(p, sums, share.first, at, share.channel, n);
}

}  // namespace pool
