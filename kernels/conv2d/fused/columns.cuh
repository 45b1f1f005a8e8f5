// Per-column results of a tile. In write_tile a thread has the same eight columns in all its rows; here a column's
// threads are merged in a fixed order: within a warp by shuffles, then warp by warp.
#pragma once

#include "conv2d/tile.cuh"

namespace conv2d::fused {

// Merges N numbers by addition.
template <int N>
struct Added {
  static constexpr int COUNT = N;
  __device__ __forceinline__ static void take(float (&mine)[N], const float (&other)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) mine[i] += other[i];
  }
};

// Merges count, mean and sum of squared deviations by the rule of Chan, Golub and LeVeque (1979).
struct Moments {
  static constexpr int COUNT = 3;
  __device__ __forceinline__ static void take(float (&mine)[3], const float (&other)[3]) {
    if (other[0] == 0.0f) return;
    const float total = mine[0] + other[0], share = other[0] / total, delta = other[1] - mine[1];
    mine[1] = fmaf(delta, share, mine[1]);
    mine[2] = fmaf(delta * delta, mine[0] * share, mine[2] + other[2]);
    mine[0] = total;
  }
};

// The first column of this thread's eight.
template <class Tile>
__device__ __forceinline__ int thread_column() {
  return int(threadIdx.x) % (Tile::N / 8) * 8;
}

// Merges `mine` of all threads and calls put(column, merged) once for each column of the tile. Every thread calls it,
// after its last read of the staged tile in `shared`.
template <class Tile, class Rule, class Put>
__device__ __forceinline__ void merge_columns(float (&mine)[8][Rule::COUNT], float* shared, const Put& put) {
  constexpr int CHUNKS = Tile::N / 8, WARPS = Tile::THREADS / 32, COUNT = Rule::COUNT;
  static_assert(CHUNKS <= 32 && 32 % CHUNKS == 0, "a warp has whole rows of chunks");
  static_assert(WARPS * Tile::N * COUNT * 4 <= Tile::SHARED_BYTES && Tile::N <= Tile::THREADS, "it fits");
#pragma unroll
  for (int mask = CHUNKS; mask < 32; mask *= 2)
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float other[COUNT];
#pragma unroll
      for (int i = 0; i < COUNT; ++i) other[i] = __shfl_xor_sync(0xFFFFFFFFu, mine[e][i], mask);
      Rule::take(mine[e], other);
    }
  __syncthreads();
  if (Tile::lane() < CHUNKS) {
#pragma unroll
    for (int e = 0; e < 8; ++e)
#pragma unroll
      for (int i = 0; i < COUNT; ++i)
        shared[(i * WARPS + Tile::warp()) * Tile::N + thread_column<Tile>() + e] = mine[e][i];
  }
  __syncthreads();
  const int column = int(threadIdx.x);
  if (column >= Tile::N) return;
  float merged[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) merged[i] = shared[i * WARPS * Tile::N + column];
  for (int warp = 1; warp < WARPS; ++warp) {
    float other[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; ++i) other[i] = shared[(i * WARPS + warp) * Tile::N + column];
    Rule::take(merged, other);
  }
  put(column, merged);
}

}  // namespace conv2d::fused
