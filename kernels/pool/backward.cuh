// The gradient of a pixel of x, gathered from the windows that cover it in a fixed order, without atomics.
#pragma once

#include "pool/window.cuh"

namespace pool {

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

// Calls take(i, k, window) for every window that covers `at`: its row, its column and its index among all windows.
template <typename Take>
__device__ __forceinline__ void each_covering(const Windows& w, const Pixel& at, const Take& take) {
  const Range rows = windows_of(vertical(w), at.row), columns = windows_of(horizontal(w), at.column);
  for (int i = rows.begin; i < rows.end; ++i)
    for (int k = columns.begin; k < columns.end; ++k) take(i, k, (at.image * w.p + i) * w.q + k);
}

// Sums dy of the windows whose maximum is the pixel.
template <typename T>
struct MaxGradient {
  const T* dy;
  const u8* index;
  i64 dy_stride, index_stride;
  Windows windows;

  template <int V>
  __device__ __forceinline__ void load(float (&sum)[V], i64 row, u32 channel, int n, u32 wide) const {
    const Pixel at = pixel_at(row, windows.h, windows.w);
    const Axis down = vertical(windows), across = horizontal(windows);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = 0.0f;
    each_covering(windows, at, [&](int i, int k, i64 window) {
      const Range span = pixels_of(across, k);
      const int local_row = at.row - pixels_of(down, i).begin;
      const int here = local_row * (span.end - span.begin) + at.column - span.begin;
      float v[V];
      int found[V];
      load_strip<T, V>(v, dy + window * dy_stride + channel, n, wide);
      load_index<V>(found, index + window * index_stride + channel, n, wide);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += found[j] == here ? v[j] : 0.0f;
    });
  }
};

// Sums dy / divisor of the windows that cover the pixel.
template <typename T>
struct AvgGradient {
  const T* dy;
  i64 dy_stride;
  Windows windows;

  template <int V>
  __device__ __forceinline__ void load(float (&sum)[V], i64 row, u32 channel, int n, u32 wide) const {
    const Axis down = vertical(windows), across = horizontal(windows);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = 0.0f;
    each_covering(windows, pixel_at(row, windows.h, windows.w), [&](int i, int k, i64 window) {
      const float factor = 1.0f / (float(extent_of(down, i)) * float(extent_of(across, k)));
      float v[V];
      load_strip<T, V>(v, dy + window * dy_stride + channel, n, wide);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] = fmaf(v[j], factor, sum[j]);
    });
  }
};

// From is MaxGradient or AvgGradient.
template <typename T, typename From>
struct PoolBwd {
  From from;
  T* dx;
  i64 dx_stride;
  Strips strips;
  u32 accumulate, unused;
};
static_assert(sizeof(PoolBwd<float, MaxGradient<float>>) == 136, "as in src/ops/pool/launch/params.rs");
static_assert(sizeof(PoolBwd<float, AvgGradient<float>>) == 120, "as in src/ops/pool/launch/params.rs");

template <typename T, typename From>
__device__ __forceinline__ void pool_bwd(const PoolBwd<T, From>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  for (i64 row = share.first; row < share.end; row += share.step) {
    float sum[V];
    p.from.template load<V>(sum, row, share.channel, n, p.strips.wide);
    write_strip<T, V>(p.dx + row * p.dx_stride + share.channel, sum, n, p.strips.wide, p.accumulate);
  }
}

}  // namespace pool
