// The storage types f32, f16 and bf16. Conversion from float rounds to nearest even and keeps NaN.
#pragma once

#include "common/kernel.cuh"

struct f16 {
  u16 bits;
};

struct bf16 {
  u16 bits;
};

static_assert(sizeof(f16) == 2 && sizeof(bf16) == 2, "storage types are two bytes wide");

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(f16 v) { return ptx::f16_to_float(v.bits); }
__device__ __forceinline__ float to_float(bf16 v) { return ptx::bits_to_float(u32(v.bits) << 16); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ f16 from_float<f16>(float v) { return f16{ptx::float_to_f16(v)}; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float v) { return bf16{ptx::float_to_bf16(v)}; }

// False for infinities and NaN.
__device__ __forceinline__ bool is_finite(float v) { return v - v == 0.0f; }

// max(v, 0); NaN stays NaN.
__device__ __forceinline__ float rectified(float v) { return v < 0.0f ? 0.0f : v; }

// The gradient d through a ReLU with output z: 0 if z <= 0. A NaN z passes d, as in torch.
__device__ __forceinline__ float passed(float d, float z) { return z <= 0.0f ? 0.0f : d; }

// Packs two values into a word, in the type of the first argument. RELU applies max(v, 0) first: NaN stays NaN, and a
// zero may have either sign.
template <bool RELU>
__device__ __forceinline__ u32 pair(f16, float low, float high) { return ptx::floats_to_f16x2<RELU>(low, high); }
template <bool RELU>
__device__ __forceinline__ u32 pair(bf16, float low, float high) { return ptx::floats_to_bf16x2<RELU>(low, high); }
