// Loads and stores of up to 16 bytes at once.
#pragma once

#include "common/dtype.cuh"

// N values of T that are loaded and stored together; N * sizeof(T) is 1, 2, 4, 8 or 16.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vec {
  static_assert(N * sizeof(T) <= 16, "one access moves at most 16 bytes");
  T v[N];
};

// How many values of T fill a 16-byte access.
template <typename T>
constexpr int WIDTH = 16 / int(sizeof(T));

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> load(const T* p) {
  return *reinterpret_cast<const Vec<T, N>*>(p);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* p, const Vec<T, N>& v) {
  *reinterpret_cast<Vec<T, N>*>(p) = v;
}
