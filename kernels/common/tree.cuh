// The end of a reduction over rows: merges the results of a block's threads in a fixed order.
#pragma once

#include "common/strips.cuh"

// Merges the states of a lane's walkers into walker 0: walker w takes walker w + half, for half = walkers / 2, ..., 1.
// A State holds `float f[COUNT]` and merges with `take(other)`. Every thread of the block calls it; thread t is walker
// t / lanes. `shared` has STRIP_THREADS * COUNT floats.
template <typename State>
__device__ __forceinline__ void merge_walkers(State& mine, float* shared, int lanes, int walkers) {
  const int thread = int(threadIdx.x), walker = thread / lanes;
#pragma unroll
  for (int i = 0; i < State::COUNT; ++i) shared[i * STRIP_THREADS + thread] = mine.f[i];
  for (int half = walkers / 2; half > 0; half /= 2) {
    __syncthreads();
    if (walker < half) {
      State other;
#pragma unroll
      for (int i = 0; i < State::COUNT; ++i) other.f[i] = shared[i * STRIP_THREADS + thread + half * lanes];
      mine.take(other);
#pragma unroll
      for (int i = 0; i < State::COUNT; ++i) shared[i * STRIP_THREADS + thread] = mine.f[i];
    }
  }
}

template <int N>
struct Sums {
  static constexpr int COUNT = N;
  float f[N];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < N; ++i) f[i] = 0.0f;
  }
  __device__ __forceinline__ void take(const Sums& other) {
#pragma unroll
    for (int i = 0; i < N; ++i) f[i] += other.f[i];
  }
};
