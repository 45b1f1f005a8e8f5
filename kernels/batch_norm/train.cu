// Batch statistics, in two launches.
//   stats     for each band of rows and each channel: mean and sum of squared deviations (M2)
//   finalize  merges the bands: mean, invstd = 1 / sqrt(M2 / m + eps); running statistics with M2 / (m - 1)
//
// Tensors   x: m rows of C channels in T, any pixel stride, 16-byte aligned if strips.wide is set; the rest dense f32.
// Method    a thread sums differences from its first row, so a mean far from 0 costs no precision; partial moments are
//           merged by the rule of Chan, Golub and LeVeque (1979), in an order that depends only on the shape.
// Grid      stats x: strips.blocks_per_row * bands; finalize x: ceil(C / 32).
// Threads   256. Shared memory: stats 256 (2 V + 1) floats, V = 16 / sizeof(T); finalize 256 * 3 floats.
// Counted   stats: 3 FLOPs and sizeof(T) bytes per element; finalize: 8 bytes per band and channel.
#include "batch_norm/moments.cuh"
#include "common/tree.cuh"

namespace batch_norm {

template <typename T>
struct Stats {
  const T* x;
  float* mean;  // [bands][C]
  float* m2;    // [bands][C]
  i64 x_stride;
  Strips strips;
};
static_assert(sizeof(Stats<float>) == 64, "as in src/ops/batch_norm/launch.rs");

struct Finalize {
  const float* band_mean;  // [bands][C]
  const float* band_m2;    // [bands][C]
  float* mean;
  float* invstd;
  float* running_mean;
  float* running_var;
  i64 rows;
  u32 rows_per_band, bands, channels;
  float eps, momentum, keep;  // keep = 1 - momentum
};
static_assert(sizeof(Finalize) == 80, "as in src/ops/batch_norm/launch.rs");

// The moments of a thread's rows, from sums of differences from its first row.
template <typename T, int V>
__device__ __forceinline__ Moments<V> walk(const Stats<T>& p, const Share& share, int n) {
  Moments<V> moments;
  moments.clear();
  if (share.first >= share.end) return moments;
  const T* x = p.x + share.channel;
  float origin[V], sum[V], squares[V];
  load_strip<T, V>(origin, x + share.first * p.x_stride, n, p.strips.wide);
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] = squares[j] = 0.0f;
#pragma unroll 4
  for (i64 row = share.first + share.step; row < share.end; row += share.step) {
    float v[V];
    load_strip<T, V>(v, x + row * p.x_stride, n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const float d = v[j] - origin[j];
      sum[j] += d;
      squares[j] = fmaf(d, d, squares[j]);
    }
  }
  const float count = float((share.end - share.first + share.step - 1) / share.step);
  moments.count() = count;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const float d = sum[j] / count;
    moments.mean(j) = origin[j] + d;
    moments.m2(j) = rectified(fmaf(-sum[j], d, squares[j]));  // keeps NaN
  }
  return moments;
}

template <typename T>
__device__ __forceinline__ void stats(const Stats<T>& p) {
  constexpr int V = WIDTH<T>;
  SHARED(float, shared);
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  Moments<V> moments = walk<T, V>(p, share, n);
  merge_walkers(moments, shared, 1 << p.strips.lanes_log2, strip_walkers(p.strips));
  if (strip_walker(p.strips) != 0) return;
  const i64 at = i64(blockIdx.x / p.strips.blocks_per_row) * p.strips.channels + share.channel;
#pragma unroll
  for (int j = 0; j < V; ++j)
    if (j < n) {
      p.mean[at + j] = moments.mean(j);
      p.m2[at + j] = moments.m2(j);
    }
}

constexpr int LANES = 32;  // channels per block of finalize
constexpr int WALKERS = STRIP_THREADS / LANES;

__device__ __forceinline__ void finalize(const Finalize& p) {
  SHARED(float, shared);
  const u32 channel = blockIdx.x * LANES + threadIdx.x % LANES, walker = threadIdx.x / LANES;
  Moments<1> moments = merge_bands<1>(p.band_mean, p.band_m2, p.rows, p.rows_per_band, p.channels, channel, walker,
                                      channel < p.channels ? p.bands : 0, WALKERS);
  merge_walkers(moments, shared, LANES, WALKERS);
  if (walker != 0 || channel >= p.channels) return;
  const float count = float(p.rows);
  const float mean = moments.mean(0), unbiased = moments.m2(0) / (count - 1.0f);
  p.mean[channel] = mean;
  p.invstd[channel] = 1.0f / sqrtf(moments.m2(0) / count + p.eps);
  p.running_mean[channel] = fmaf(p.momentum, mean, p.keep * p.running_mean[channel]);
  p.running_var[channel] = fmaf(p.momentum, unbiased, p.keep * p.running_var[channel]);
}

KERNEL(batch_norm_stats_f32, Stats<float>, STRIP_THREADS, 2, stats<float>)
KERNEL(batch_norm_stats_f16, Stats<f16>, STRIP_THREADS, 2, stats<f16>)
KERNEL(batch_norm_stats_bf16, Stats<bf16>, STRIP_THREADS, 2, stats<bf16>)
KERNEL(batch_norm_finalize_f32, Finalize, STRIP_THREADS, 2, finalize)

}  // namespace batch_norm
