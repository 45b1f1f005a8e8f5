// The gradient of a batch norm in training, in three launches. If a ReLU followed, dy is taken as 0 wherever y <= 0.
//   sums      for each band of rows and each channel: sum dy, sum dy (x - mean)
//   finalize  merges the bands: dbeta = sum dy,  dgamma = invstd sum dy (x - mean)
//   bwd       dx = gamma invstd (dy - dbeta / m - (x - mean) invstd dgamma / m), stored or added
//
// Tensors   dy, x, y, dx: m rows of C channels in T, any pixel stride, 16-byte aligned if strips.wide is set; the rest
//           dense f32.
// Method    two passes over the rows; the order of the additions depends only on the shape.
// Grid      sums x: strips.blocks_per_row * bands; finalize x: ceil(C / 32); bwd x: strips.blocks_per_row * ceil(rows /
//           rows_per_block).
// Threads   256. Shared memory: sums 256 * 2 V floats, V = 16 / sizeof(T); finalize 256 * 2 floats; bwd none.
// Counted   per element: sums 3 FLOPs and 2 sizeof(T) bytes, bwd 5 FLOPs and 3 sizeof(T) bytes; with a ReLU each reads
//           sizeof(T) bytes more.
#include "common/tree.cuh"

namespace batch_norm {

template <typename T>
struct BandSums {
  const T* dy;
  const T* x;
  const T* y;  // null if no ReLU followed
  const float* mean;
  float* dy_sum;   // [bands][C]
  float* dyx_sum;  // [bands][C]
  i64 dy_stride, x_stride, y_stride;
  Strips strips;
};
static_assert(sizeof(BandSums<float>) == 104, "as in src/ops/batch_norm/launch.rs");

struct BwdFinalize {
  const float* dy_sum;   // [bands][C]
  const float* dyx_sum;  // [bands][C]
  const float* invstd;
  float* dgamma;
  float* dbeta;
  u32 bands, channels;
};
static_assert(sizeof(BwdFinalize) == 48, "as in src/ops/batch_norm/launch.rs");

template <typename T>
struct Bwd {
  const T* dy;
  const T* x;
  const T* y;  // null if no ReLU followed
  T* dx;
  const float* gamma;
  const float* mean;
  const float* invstd;
  const float* dgamma;
  const float* dbeta;
  i64 dy_stride, x_stride, y_stride, dx_stride;
  Strips strips;
  float inverse_count;  // 1 / m
  u32 accumulate;
};
static_assert(sizeof(Bwd<float>) == 144, "as in src/ops/batch_norm/launch.rs");

// Loads dy of a strip and zeroes it where the ReLU's output is 0.
template <typename T, int V>
__device__ __forceinline__ void load_dy(float (&dy)[V], const T* from, const T* y, int n, u32 wide) {
  load_strip<T, V>(dy, from, n, wide);
  if (!y) return;
  float relu_y[V];
  load_strip<T, V>(relu_y, y, n, wide);
#pragma unroll
  for (int j = 0; j < V; ++j) dy[j] = passed(dy[j], relu_y[j]);
}

template <typename T>
__device__ __forceinline__ const T* strip_at(const T* base, i64 row, i64 stride, u32 channel) {
  return base ? base + row * stride + channel : nullptr;
}

template <typename T>
__device__ __forceinline__ void band_sums(const BandSums<T>& p) {
  constexpr int V = WIDTH<T>;
  SHARED(float, shared);
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  float mean[V];
  load_channels<V>(mean, p.mean, share.channel, n);
  Sums<2 * V> sums;
  sums.clear();
#pragma unroll 2
  for (i64 row = share.first; row < share.end; row += share.step) {
    float dy[V], x[V];
    load_dy<T, V>(dy, strip_at(p.dy, row, p.dy_stride, share.channel), strip_at(p.y, row, p.y_stride, share.channel), n,
                  p.strips.wide);
    load_strip<T, V>(x, strip_at(p.x, row, p.x_stride, share.channel), n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      sums.f[j] += dy[j];
      sums.f[V + j] = fmaf(dy[j], x[j] - mean[j], sums.f[V + j]);
    }
  }
  merge_walkers(sums, shared, 1 << p.strips.lanes_log2, strip_walkers(p.strips));
  if (strip_walker(p.strips) != 0) return;
  const i64 at = i64(blockIdx.x / p.strips.blocks_per_row) * p.strips.channels + share.channel;
#pragma unroll
  for (int j = 0; j < V; ++j)
    if (j < n) {
      p.dy_sum[at + j] = sums.f[j];
      p.dyx_sum[at + j] = sums.f[V + j];
    }
}

constexpr int LANES = 32;  // channels per block of finalize
constexpr int WALKERS = STRIP_THREADS / LANES;

__device__ __forceinline__ void bwd_finalize(const BwdFinalize& p) {
  SHARED(float, shared);
  const u32 channel = blockIdx.x * LANES + threadIdx.x % LANES, walker = threadIdx.x / LANES;
  Sums<2> sums;
  sums.clear();
  if (channel < p.channels) {
    for (u32 band = walker; band < p.bands; band += WALKERS) {
      sums.f[0] += p.dy_sum[i64(band) * p.channels + channel];
      sums.f[1] += p.dyx_sum[i64(band) * p.channels + channel];
    }
  }
  merge_walkers(sums, shared, LANES, WALKERS);
  if (walker != 0 || channel >= p.channels) return;
  p.dbeta[channel] = sums.f[0];
  p.dgamma[channel] = sums.f[1] * p.invstd[channel];
}

template <typename T>
__device__ __forceinline__ void bwd(const Bwd<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  float scale[V], mean[V], dy_mean[V], slope[V];
  float invstd[V];
  load_channels<V>(scale, p.gamma, share.channel, n);
  load_channels<V>(mean, p.mean, share.channel, n);
  load_channels<V>(dy_mean, p.dbeta, share.channel, n);
  load_channels<V>(slope, p.dgamma, share.channel, n);
  load_channels<V>(invstd, p.invstd, share.channel, n);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    scale[j] *= invstd[j];
    dy_mean[j] *= p.inverse_count;
    slope[j] *= invstd[j] * p.inverse_count;
  }
  for (i64 row = share.first; row < share.end; row += share.step) {
    float dy[V], x[V];
    load_dy<T, V>(dy, strip_at(p.dy, row, p.dy_stride, share.channel), strip_at(p.y, row, p.y_stride, share.channel), n,
                  p.strips.wide);
    load_strip<T, V>(x, strip_at(p.x, row, p.x_stride, share.channel), n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) dy[j] = scale[j] * fmaf(mean[j] - x[j], slope[j], dy[j] - dy_mean[j]);
    write_strip<T, V>(p.dx + row * p.dx_stride + share.channel, dy, n, p.strips.wide, p.accumulate);
  }
}

KERNEL(batch_norm_bwd_sums_f32, BandSums<float>, STRIP_THREADS, 2, band_sums<float>)
KERNEL(batch_norm_bwd_sums_f16, BandSums<f16>, STRIP_THREADS, 2, band_sums<f16>)
KERNEL(batch_norm_bwd_sums_bf16, BandSums<bf16>, STRIP_THREADS, 2, band_sums<bf16>)
KERNEL(batch_norm_bwd_finalize_f32, BwdFinalize, STRIP_THREADS, 2, bwd_finalize)
KERNEL(batch_norm_bwd_f32, Bwd<float>, STRIP_THREADS, 2, bwd<float>)
KERNEL(batch_norm_bwd_f16, Bwd<f16>, STRIP_THREADS, 2, bwd<f16>)
KERNEL(batch_norm_bwd_bf16, Bwd<bf16>, STRIP_THREADS, 2, bwd<bf16>)

}  // namespace batch_norm
