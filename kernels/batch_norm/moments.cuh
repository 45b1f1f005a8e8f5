// Count, mean and sum of squared deviations (M2), and how to merge two of them (Chan, Golub and LeVeque, 1979).
#pragma once

#include "common/kernel.cuh"

namespace batch_norm {

// Count, means and M2 of V channels over the same rows.
template <int V>
struct Moments {
  static constexpr int COUNT = 1 + 2 * V;
  float f[COUNT];

  __device__ __forceinline__ float& count() { return f[0]; }
  __device__ __forceinline__ float& mean(int j) { return f[1 + j]; }
  __device__ __forceinline__ float& m2(int j) { return f[1 + V + j]; }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) f[i] = 0.0f;
  }

  __device__ __forceinline__ void take(Moments& other) {
    const float total = count() + other.count();
    if (other.count() == 0.0f) return;
    // 0 times the square of a large mean may be NaN.
    if (count() == 0.0f) {
      *this = other;
      return;
    }
    const float share = other.count() / total;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float delta = other.mean(j) - mean(j);
      mean(j) = fmaf(delta, share, mean(j));
      // No deviation from an infinite mean is finite: `delta - delta` makes m2 NaN.
      m2(j) = fmaf(delta * delta, count() * share, m2(j) + other.m2(j)) + (delta - delta);
    }
    count() = total;
  }
};

// Merges bands first, first + step, ... below `end` of one channel; every band but the last has `rows_per_band` rows.
template <int UNROLL>
__device__ __forceinline__ Moments<1> merge_bands(const float* means, const float* m2s, i64 rows, i64 rows_per_band,
                                                  u32 channels, u32 channel, u32 first, u32 end, u32 step) {
  Moments<1> moments;
  moments.clear();
#pragma unroll UNROLL
  for (u32 band = first; band < end; band += step) {
    const i64 left = rows - band * rows_per_band, at = i64(band) * channels + channel;
    Moments<1> other;
    other.count() = float(left < rows_per_band ? left : rows_per_band);
    other.mean(0) = means[at];
    other.m2(0) = m2s[at];
    moments.take(other);
  }
  return moments;
}

}  // namespace batch_norm
