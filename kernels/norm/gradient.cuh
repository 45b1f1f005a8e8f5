// The gradient epilogue: masks dz by the ReLU to v, stores g, and leaves the sums that batch norms need for each band
// of rows, from v before it is rounded to T; src/ops/norm/mod.rs defines it. A From computes dz of a strip:
// `load(float (&v)[V], i64 row, u32 channel, int n, u32 wide)`.
#pragma once

#include "common/tree.cuh"
#include "norm/affine.cuh"

namespace norms {  // CUDA has a function `norm`

template <typename T>
struct Epilogue {
  T* g;
  const T* y[2];
  const u8* bits;  // with SIGNS
  const float* scale;
  const float* shift;
  const float* mean[2];
  float* sums[3];  // [bands][C]: of v, and of v (y - mean) for each norm
  const float* gate;  // with SIGNS, may be null: if it is 0, y[0] and mean[0] are not read and their sums are 0
  i64 g_stride, y_stride[2], bits_stride;
  u32 relu, scaled, accumulate, unused;
};
static_assert(sizeof(Epilogue<float>) == 144, "as in src/ops/norm/gradient.rs");

template <typename T, typename From>
struct Gradient {
  From from;
  Epilogue<T> epilogue;
  Strips strips;
};

// A thread's per-channel numbers. With SIGNS, the mask is in `bits` and NORMS batch norms were added; else the mask of
// one batch norm is computed from y.
template <typename T, bool SIGNS, int NORMS>
struct GradientStrip {
  static constexpr int V = WIDTH<T>;
  float scale[V], shift[V], mean[NORMS][V];
  Sums<V*(1 + NORMS)> sums;
  u32 channel, wide;
  int n;
  bool open;

  __device__ __forceinline__ void begin(const Epilogue<T>& e, u32 first, int width, u32 is_wide) {
    channel = first, n = width, wide = is_wide;
    open = !SIGNS || e.gate == nullptr || *e.gate != 0.0f;
    if constexpr (!SIGNS) {
      load_channels<V>(scale, e.scale, channel, n);
      load_channels<V>(shift, e.shift, channel, n);
    }
#pragma unroll
    for (int i = 0; i < NORMS; ++i) load_channels<V>(mean[i], e.mean[i], channel, reads(i) ? n : 0);
    sums.clear();
  }

  // True if y and mean of the i-th batch norm may be read.
  __device__ __forceinline__ bool reads(int i) const { return i > 0 || open; }

  // Zeroes v where the ReLU's output is 0.
  __device__ __forceinline__ void mask(float (&v)[V], const float (&y)[V], const Epilogue<T>& e, i64 row) const {
    if constexpr (SIGNS) {
      const u32 byte = n > 0 ? e.bits[row * e.bits_stride + channel / 8] >> channel % 8 : 0;
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = byte >> j & 1 ? v[j] : 0.0f;
    } else if (e.relu) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = passed(v[j], activated<T>(y[j], scale[j], shift[j], 0));
    }
  }

  // Turns dz in v into g and stores it.
  __device__ __forceinline__ void finish(float (&v)[V], const Epilogue<T>& e, i64 row) {
    const bool scaled = !SIGNS && e.scaled;
    T* g = e.g + row * e.g_stride + channel;
    float old[V], y[NORMS][V];
#pragma unroll
    for (int i = 0; i < NORMS; ++i)
      load_strip<T, V>(y[i], e.y[i] + row * e.y_stride[i] + channel, reads(i) ? n : 0, wide);
    load_strip<T, V>(old, g, e.accumulate ? n : 0, wide);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] += scaled ? 0.0f : old[j];
    mask(v, y[0], e, row);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums.f[j] += v[j];
#pragma unroll
      for (int i = 0; i < NORMS; ++i) {
        float& sum = sums.f[(1 + i) * V + j];
        sum = fmaf(v[j], y[i][j] - mean[i][j], sum);
      }
      if (scaled) v[j] = fmaf(scale[j], v[j], old[j]);
    }
    store_strip<T, V>(g, v, n, wide);
  }

  // Stores the sums of the block's rows.
  __device__ __forceinline__ void leave(const Epilogue<T>& e, const Strips& s) {
    SHARED(float, shared);
    merge_walkers(sums, shared, 1 << s.lanes_log2, strip_walkers(s));
    if (strip_walker(s) != 0) return;
    const i64 at = i64(blockIdx.x / s.blocks_per_row) * s.channels + channel;
#pragma unroll
    for (int i = 0; i < 1 + NORMS; ++i)
#pragma unroll
      for (int j = 0; j < V; ++j)
        if (j < n) e.sums[i][at + j] = sums.f[i * V + j];
  }
};

template <typename T, bool SIGNS, int NORMS, typename From>
__device__ __forceinline__ void gradient(const Gradient<T, From>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  GradientStrip<T, SIGNS, NORMS> strip;
  strip.begin(p.epilogue, share.channel, strip_width<V>(p.strips, 0, share.channel), p.strips.wide);
  for (i64 row = share.first; row < share.end; row += share.step) {
    float v[V];
    p.from.template load<V>(v, row, share.channel, strip.n, p.strips.wide);
    strip.finish(v, p.epilogue, row);
  }
  strip.leave(p.epilogue, p.strips);
}

}  // namespace norms
