// Loads and stores of up to 16 bytes at once.
#pragma once

#include "common/dtype.cuh"

// N values of T, loaded and stored in one access; N * sizeof(T) is 1, 2, 4, 8 or 16.
template <typename T, int N>
struct alignas(N * sizeof(T)) Vec {
  static_assert(N * sizeof(T) <= 16, "one access moves at most 16 bytes");
  T v[N];
};

// Values of T per 16-byte access.
template <typename T>
constexpr int WIDTH = 16 / int(sizeof(T));

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> load(const T* p) {
  return ptx::ld<Vec<T, N>>(p);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* p, const Vec<T, N>& v) {
  ptx::st(p, v);
}

// 16 bytes: four f32 values, or four pairs of 16-bit values, each pair packed by one instruction.
using Chunk = Vec<u32, 4>;

// Converts the values of a chunk to float.
template <typename T>
__device__ __forceinline__ void unpack(float (&f)[WIDTH<T>], const Chunk& chunk);
template <>
__device__ __forceinline__ void unpack<float>(float (&f)[4], const Chunk& chunk) {
#pragma unroll
  for (int i = 0; i < 4; ++i) f[i] = ptx::bits_to_float(chunk.v[i]);
}
template <>
__device__ __forceinline__ void unpack<f16>(float (&f)[8], const Chunk& chunk) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    f[2 * i] = ptx::f16_to_float(u16(chunk.v[i])), f[2 * i + 1] = ptx::f16_to_float(u16(chunk.v[i] >> 16));
}
template <>
__device__ __forceinline__ void unpack<bf16>(float (&f)[8], const Chunk& chunk) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    f[2 * i] = ptx::bits_to_float(chunk.v[i] << 16), f[2 * i + 1] = ptx::bits_to_float(chunk.v[i] & 0xFFFF0000u);
}

// Rounds f to a chunk of T. RELU applies max(f, 0) first: NaN stays NaN, and a zero may have either sign.
template <typename T, bool RELU>
__device__ __forceinline__ Chunk pack(const float (&f)[WIDTH<T>]) {
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      chunk.v[i] = ptx::float_to_bits(RELU ? rectified(f[i]) : f[i]);
    else
      chunk.v[i] = pair<RELU>(T{}, f[2 * i], f[2 * i + 1]);
  }
  return chunk;
}
