// Per-column results of a tile. In write_tile a thread has the same eight columns in all its rows; here a column's
// threads are merged in a fixed order: within a warp by shuffles, then warp by warp.
#pragma once

#include "common/tree.cuh"
#include "conv2d/tile.cuh"

namespace conv2d::fused {

// Count, mean and sum of squared deviations (M2), merged by the rule of Chan, Golub and LeVeque (1979). Without the
// guards of batch_norm::Moments, up to 10 % of an entry's instructions: only the last rows of a tile can be missing, so
// no empty state takes a non-empty one on the way to a result; and a thread with an infinite mean has M2 = NaN. If only
// a difference of means overflows, mean and M2 are infinite.
struct Moments {
  static constexpr int COUNT = 3;
  float f[COUNT];

  __device__ __forceinline__ void take(const Moments& other) {
    if (other.f[0] == 0.0f) return;
    const float total = f[0] + other.f[0], share = other.f[0] / total, delta = other.f[1] - f[1];
    f[1] = fmaf(delta, share, f[1]);
    f[2] = fmaf(delta * delta, f[0] * share, f[2] + other.f[2]);
    f[0] = total;
  }
};

// The first column of this thread's eight.
template <class Tile>
__device__ __forceinline__ int thread_column() {
  return int(threadIdx.x) % (Tile::N / 8) * 8;
}

// Merges `mine` of all threads and calls put(column, merged) once for each column of the tile. A State is as in
// common/tree.cuh. Every thread calls it, after its last read of the staged tile in `shared`.
template <class Tile, class State, class Put>
__device__ __forceinline__ void merge_columns(State (&mine)[8], float* shared, const Put& put) {
  constexpr int CHUNKS = Tile::N / 8, WARPS = Tile::THREADS / 32, COUNT = State::COUNT;
  static_assert(CHUNKS <= 32 && 32 % CHUNKS == 0, "a warp has whole rows of chunks");
  static_assert(WARPS * Tile::N * COUNT * 4 <= Tile::SHARED_BYTES && Tile::N <= Tile::THREADS, "it fits");
#pragma unroll
  for (int mask = CHUNKS; mask < 32; mask *= 2)
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      State other;
#pragma unroll
      for (int i = 0; i < COUNT; ++i) other.f[i] = __shfl_xor_sync(0xFFFFFFFFu, mine[e].f[i], mask);
      mine[e].take(other);
    }
  __syncthreads();
  if (Tile::lane() < CHUNKS) {
#pragma unroll
    for (int e = 0; e < 8; ++e)
#pragma unroll
      for (int i = 0; i < COUNT; ++i)
        shared[(i * WARPS + Tile::warp()) * Tile::N + thread_column<Tile>() + e] = mine[e].f[i];
  }
  __syncthreads();
  const int column = int(threadIdx.x);
  if (column >= Tile::N) return;
  State merged;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) merged.f[i] = shared[i * WARPS * Tile::N + column];
  for (int warp = 1; warp < WARPS; ++warp) {
    State other;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) other.f[i] = shared[(i * WARPS + warp) * Tile::N + column];
    merged.take(other);
  }
  put(column, merged);
}

}  // namespace conv2d::fused
