// Merges the partial results of the bands of a reduction over rows, in an order that depends only on the shape.
//   moments  mean and M2 of each band -> mean and M2 of all rows, or the variance M2 / rows
//   sums     sums of each band -> sums of all rows, for up to three tensors in one launch
//
// Tensors   from: [bands][C], to: [parts][C], f32, dense; parts = ceil(bands / bands_per_part). Every band but the last
//           has rows_per_band rows.
// Method    moments are merged by the rule of Chan, Golub and LeVeque (1979). Many bands take two launches: the first
//           merges bands into parts, the second merges the parts. A block takes 8 channels, a 32-byte sector of each
//           band, and 32 bands at a time.
// Grid      x: ceil(C / 8) * parts; y: for sums, the tensors.
// Threads   256. Shared memory: 256 * 3 floats for moments, 256 for sums.
// Counted   per band and channel: moments 10 FLOPs and 8 bytes, sums 1 FLOP and 4 bytes.
#include "batch_norm/moments.cuh"
#include "common/tree.cuh"

namespace norms {  // CUDA has a function `norm`

struct MergeMoments {
  const float* band_mean;
  const float* band_m2;
  float* mean;
  float* m2;  // the variance with `last`
  i64 rows, rows_per_band;
  u32 bands, channels, bands_per_part, last;
};
static_assert(sizeof(MergeMoments) == 64, "as in src/ops/norm/merge/launch.rs");

struct MergeSums {
  const float* from[3];
  float* to[3];
  u32 bands, channels, bands_per_part, unused;
};
static_assert(sizeof(MergeSums) == 64, "as in src/ops/norm/merge/launch.rs");

constexpr int LANES = 8;  // channels per block
constexpr int WALKERS = STRIP_THREADS / LANES;

// A thread's channel and bands: first, first + WALKERS, ... below end.
struct Column {
  u32 part, channel, walker, first, end;
};

__device__ __forceinline__ Column column_of(u32 bands, u32 channels, u32 bands_per_part) {
  const u32 groups = (channels + LANES - 1) / LANES, begin = blockIdx.x / groups * bands_per_part;
  Column c;
  c.part = blockIdx.x / groups;
  c.channel = blockIdx.x % groups * LANES + threadIdx.x % LANES;
  c.walker = threadIdx.x / LANES;
  c.first = begin + c.walker;
  c.end = bands - begin < bands_per_part ? bands : begin + bands_per_part;
  if (c.channel >= channels) c.end = 0;
  return c;
}

__device__ __forceinline__ void merge_moments(const MergeMoments& p) {
  SHARED(float, shared);
  const Column c = column_of(p.bands, p.channels, p.bands_per_part);
  batch_norm::Moments<1> moments = batch_norm::merge_bands<4>(p.band_mean, p.band_m2, p.rows, p.rows_per_band,
                                                              p.channels, c.channel, c.first, c.end, WALKERS);
  merge_walkers(moments, shared, LANES, WALKERS);
  if (c.walker != 0 || c.channel >= p.channels) return;
  const i64 at = i64(c.part) * p.channels + c.channel;
  p.mean[at] = moments.mean(0);
  p.m2[at] = p.last ? moments.m2(0) / float(p.rows) : moments.m2(0);
}

__device__ __forceinline__ void merge_sums(const MergeSums& p) {
  SHARED(float, shared);
  const Column c = column_of(p.bands, p.channels, p.bands_per_part);
  const float* from = p.from[blockIdx.y];
  Sums<1> sum;
  sum.clear();
#pragma unroll 4
  for (u32 band = c.first; band < c.end; band += WALKERS) sum.f[0] += from[i64(band) * p.channels + c.channel];
  merge_walkers(sum, shared, LANES, WALKERS);
  if (c.walker != 0 || c.channel >= p.channels) return;
  p.to[blockIdx.y][i64(c.part) * p.channels + c.channel] = sum.f[0];
}

KERNEL(norm_merge_moments_f32, MergeMoments, STRIP_THREADS, 2, merge_moments)
KERNEL(norm_merge_sums_f32, MergeSums, STRIP_THREADS, 2, merge_sums)

}  // namespace norms
