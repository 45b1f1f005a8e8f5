// The CUDA keywords, built-in variables and functions that kernels may use; included before every kernel file.
//
// There is no `__shared__`: shared memory comes from SHARED. Floating-point functions are exact if CUDA's are correctly
// rounded; approximate ones go through sim::approximate.
#pragma once

#include "interface.hpp"
#if SIM_COUNTED
#include "traffic_hooks.hpp"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ __restrict

#define threadIdx (::sim::current->index)
#define blockIdx (::sim::current->block->index)
#define blockDim (::sim::current->block->block_dim)
#define gridDim (::sim::current->block->grid_dim)
#define warpSize 32
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")

#define SIM_BUILTIN static inline __attribute__((always_inline, unused))

// ---------------------------------------------------------------------------------------------- vector types
#define SIM_VECTOR(T, name)                                                                     \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                            \
  struct alignas(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; };                \
  SIM_BUILTIN name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
  SIM_BUILTIN name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIM_VECTOR(float, float)
SIM_VECTOR(int, int)
SIM_VECTOR(unsigned int, uint)
SIM_VECTOR(unsigned short, ushort)
#undef SIM_VECTOR

// ---------------------------------------------------------------------------------------------- bits
template <typename To, typename From>
SIM_BUILTIN To sim_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
SIM_BUILTIN unsigned int __float_as_uint(float v) { return sim_bit_cast<unsigned int>(v); }
SIM_BUILTIN int __float_as_int(float v) { return sim_bit_cast<int>(v); }
SIM_BUILTIN float __uint_as_float(unsigned int v) { return sim_bit_cast<float>(v); }
SIM_BUILTIN float __int_as_float(int v) { return sim_bit_cast<float>(v); }
SIM_BUILTIN long long __double_as_longlong(double v) { return sim_bit_cast<long long>(v); }
SIM_BUILTIN double __longlong_as_double(long long v) { return sim_bit_cast<double>(v); }
SIM_BUILTIN int __popc(unsigned int v) { return __builtin_popcount(v); }
SIM_BUILTIN int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(v)); }
SIM_BUILTIN int __ffs(int v) { return __builtin_ffs(v); }
SIM_BUILTIN unsigned int __brev(unsigned int v) {
  unsigned int r = 0;
  for (int i = 0; i < 32; ++i) r |= ((v >> i) & 1u) << (31 - i);
  return r;
}
SIM_BUILTIN unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>((static_cast<unsigned long long>(a) * b) >> 32);
}
SIM_BUILTIN int __mulhi(int a, int b) { return static_cast<int>((static_cast<long long>(a) * b) >> 32); }
SIM_BUILTIN unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// ---------------------------------------------------------------------------------------------- memory
template <typename T>
SIM_BUILTIN T __ldg(const T* p) { return ::sim::check_alignment(p), *p; }
template <typename T>
SIM_BUILTIN T __ldcg(const T* p) { return ::sim::check_alignment(p), *p; }
template <typename T>
SIM_BUILTIN T __ldcs(const T* p) { return ::sim::check_alignment(p), *p; }
template <typename T>
SIM_BUILTIN void __stcg(T* p, T v) { ::sim::check_alignment(p), *p = v; }
template <typename T>
SIM_BUILTIN void __stcs(T* p, T v) { ::sim::check_alignment(p), *p = v; }
SIM_BUILTIN void __threadfence() {}
SIM_BUILTIN void __threadfence_block() {}
SIM_BUILTIN void __nanosleep(unsigned int, SIM_SITE) { ::sim::interleave(file, line); }

// ---------------------------------------------------------------------------------------------- minimum and maximum
#define SIM_MIN_MAX(T)                                     \
  SIM_BUILTIN T min(T a, T b) { return b < a ? b : a; }    \
  SIM_BUILTIN T max(T a, T b) { return a < b ? b : a; }
SIM_MIN_MAX(int)
SIM_MIN_MAX(unsigned int)
SIM_MIN_MAX(long)
SIM_MIN_MAX(unsigned long)
SIM_MIN_MAX(long long)
SIM_MIN_MAX(unsigned long long)
#undef SIM_MIN_MAX

// A number wins over NaN, and -0 is below +0.
SIM_BUILTIN float fminf(float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  return a == b ? __uint_as_float(__float_as_uint(a) | __float_as_uint(b)) : a < b ? a : b;
}
SIM_BUILTIN float fmaxf(float a, float b) {
  if (a != a) return b;
  if (b != b) return a;
  return a == b ? __uint_as_float(__float_as_uint(a) & __float_as_uint(b)) : a > b ? a : b;
}
SIM_BUILTIN float min(float a, float b) { return fminf(a, b); }
SIM_BUILTIN float max(float a, float b) { return fmaxf(a, b); }
SIM_BUILTIN double min(double a, double b) { return __builtin_fmin(a, b); }
SIM_BUILTIN double max(double a, double b) { return __builtin_fmax(a, b); }
SIM_BUILTIN int abs(int v) { return v < 0 ? -v : v; }

// ---------------------------------------------------------------------------------------------- arithmetic
SIM_BUILTIN float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SIM_BUILTIN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
SIM_BUILTIN float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SIM_BUILTIN float __fadd_rn(float a, float b) { return a + b; }
SIM_BUILTIN float __fsub_rn(float a, float b) { return a - b; }
SIM_BUILTIN float __fmul_rn(float a, float b) { return a * b; }
SIM_BUILTIN float __fdiv_rn(float a, float b) { return a / b; }
SIM_BUILTIN float __frcp_rn(float a) { return 1.0f / a; }
SIM_BUILTIN float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
SIM_BUILTIN float sqrtf(float a) { return __builtin_sqrtf(a); }
SIM_BUILTIN double sqrt(double a) { return __builtin_sqrt(a); }
SIM_BUILTIN float fabsf(float a) { return __builtin_fabsf(a); }
SIM_BUILTIN float copysignf(float a, float b) { return __builtin_copysignf(a, b); }
SIM_BUILTIN float floorf(float a) { return __builtin_floorf(a); }
SIM_BUILTIN float ceilf(float a) { return __builtin_ceilf(a); }
SIM_BUILTIN float truncf(float a) { return __builtin_truncf(a); }
SIM_BUILTIN float rintf(float a) { return __builtin_rintf(a); }
SIM_BUILTIN bool isnan(float a) { return __builtin_isnan(a); }
SIM_BUILTIN bool isinf(float a) { return __builtin_isinf(a); }
SIM_BUILTIN bool isfinite(float a) { return __builtin_isfinite(a); }

// Not correctly rounded on a GPU.
SIM_BUILTIN float rsqrtf(float a) { return ::sim::approximate(static_cast<float>(1.0 / __builtin_sqrt(a))); }
SIM_BUILTIN float expf(float a) { return ::sim::approximate(__builtin_expf(a)); }
SIM_BUILTIN float exp2f(float a) { return ::sim::approximate(__builtin_exp2f(a)); }
SIM_BUILTIN float logf(float a) { return ::sim::approximate(__builtin_logf(a)); }
SIM_BUILTIN float log2f(float a) { return ::sim::approximate(__builtin_log2f(a)); }
SIM_BUILTIN float log1pf(float a) { return ::sim::approximate(__builtin_log1pf(a)); }
SIM_BUILTIN float tanhf(float a) { return ::sim::approximate(__builtin_tanhf(a)); }
SIM_BUILTIN float powf(float a, float b) { return ::sim::approximate(__builtin_powf(a, b)); }
SIM_BUILTIN float sinf(float a) { return ::sim::approximate(__builtin_sinf(a)); }
SIM_BUILTIN float cosf(float a) { return ::sim::approximate(__builtin_cosf(a)); }
SIM_BUILTIN float __expf(float a) { return ::sim::approximate(__builtin_expf(a)); }
SIM_BUILTIN float __logf(float a) { return ::sim::approximate(__builtin_logf(a)); }
SIM_BUILTIN float __fdividef(float a, float b) { return ::sim::approximate(a / b); }

// Conversions to integers saturate, and NaN becomes 0; a plain cast does neither on the host.
SIM_BUILTIN int __float2int_rz(float v) {
  if (v != v) return 0;
  if (v >= 2147483648.0f) return 2147483647;
  if (v < -2147483648.0f) return -2147483647 - 1;
  return static_cast<int>(v);
}
SIM_BUILTIN int __float2int_rn(float v) { return __float2int_rz(__builtin_rintf(v)); }
SIM_BUILTIN int __float2int_rd(float v) { return __float2int_rz(__builtin_floorf(v)); }
SIM_BUILTIN float __int2float_rn(int v) { return static_cast<float>(v); }
SIM_BUILTIN float __uint2float_rn(unsigned int v) { return static_cast<float>(v); }

// ---------------------------------------------------------------------------------------------- barriers and warps
SIM_BUILTIN void __syncthreads(SIM_SITE) { ::sim::barrier(::sim::Vote::none, 0, file, line); }
SIM_BUILTIN int __syncthreads_count(int p, SIM_SITE) { return ::sim::barrier(::sim::Vote::count, p, file, line); }
SIM_BUILTIN int __syncthreads_and(int p, SIM_SITE) { return ::sim::barrier(::sim::Vote::all, p, file, line); }
SIM_BUILTIN int __syncthreads_or(int p, SIM_SITE) { return ::sim::barrier(::sim::Vote::any, p, file, line); }
SIM_BUILTIN void __syncwarp(unsigned int mask = 0xffffffffu, SIM_SITE) { ::sim::warp_barrier(mask, file, line); }
SIM_BUILTIN unsigned int __ballot_sync(unsigned int mask, int p, SIM_SITE) {
  return ::sim::ballot(mask, p, file, line);
}
SIM_BUILTIN int __any_sync(unsigned int mask, int p, SIM_SITE) { return ::sim::ballot(mask, p, file, line) != 0; }
SIM_BUILTIN int __all_sync(unsigned int mask, int p, SIM_SITE) { return ::sim::ballot(mask, !p, file, line) == 0; }

template <typename T>
SIM_BUILTIN T sim_shuffle(::sim::Shuffle kind, unsigned int mask, T v, int argument, int width, const char* file,
                          int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  unsigned long long bits = 0;
  __builtin_memcpy(&bits, &v, sizeof v);
  bits = ::sim::shuffle(kind, mask, bits, argument, width, file, line);
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}
template <typename T>
SIM_BUILTIN T __shfl_sync(unsigned int mask, T v, int lane, int width = 32, SIM_SITE) {
  return sim_shuffle(::sim::Shuffle::index, mask, v, lane, width, file, line);
}
template <typename T>
SIM_BUILTIN T __shfl_up_sync(unsigned int mask, T v, unsigned int delta, int width = 32, SIM_SITE) {
  return sim_shuffle(::sim::Shuffle::up, mask, v, static_cast<int>(delta), width, file, line);
}
template <typename T>
SIM_BUILTIN T __shfl_down_sync(unsigned int mask, T v, unsigned int delta, int width = 32, SIM_SITE) {
  return sim_shuffle(::sim::Shuffle::down, mask, v, static_cast<int>(delta), width, file, line);
}
template <typename T>
SIM_BUILTIN T __shfl_xor_sync(unsigned int mask, T v, int lane_mask, int width = 32, SIM_SITE) {
  return sim_shuffle(::sim::Shuffle::exclusive_or, mask, v, lane_mask, width, file, line);
}

SIM_BUILTIN unsigned int __reduce_add_sync(unsigned int mask, unsigned int v, SIM_SITE) {
  return ::sim::reduce(::sim::Reduce::add, mask, v, file, line);
}
SIM_BUILTIN int __reduce_add_sync(unsigned int mask, int v, SIM_SITE) {
  return static_cast<int>(::sim::reduce(::sim::Reduce::add, mask, static_cast<unsigned int>(v), file, line));
}
SIM_BUILTIN unsigned int __reduce_min_sync(unsigned int mask, unsigned int v, SIM_SITE) {
  return ::sim::reduce(::sim::Reduce::min_unsigned, mask, v, file, line);
}
SIM_BUILTIN int __reduce_min_sync(unsigned int mask, int v, SIM_SITE) {
  return static_cast<int>(::sim::reduce(::sim::Reduce::min_signed, mask, static_cast<unsigned int>(v), file, line));
}
SIM_BUILTIN unsigned int __reduce_max_sync(unsigned int mask, unsigned int v, SIM_SITE) {
  return ::sim::reduce(::sim::Reduce::max_unsigned, mask, v, file, line);
}
SIM_BUILTIN int __reduce_max_sync(unsigned int mask, int v, SIM_SITE) {
  return static_cast<int>(::sim::reduce(::sim::Reduce::max_signed, mask, static_cast<unsigned int>(v), file, line));
}
SIM_BUILTIN unsigned int __reduce_and_sync(unsigned int mask, unsigned int v, SIM_SITE) {
  return ::sim::reduce(::sim::Reduce::bit_and, mask, v, file, line);
}
SIM_BUILTIN unsigned int __reduce_or_sync(unsigned int mask, unsigned int v, SIM_SITE) {
  return ::sim::reduce(::sim::Reduce::bit_or, mask, v, file, line);
}
SIM_BUILTIN unsigned int __reduce_xor_sync(unsigned int mask, unsigned int v, SIM_SITE) {
  return ::sim::reduce(::sim::Reduce::bit_xor, mask, v, file, line);
}

// ---------------------------------------------------------------------------------------------- graphs
// There are none: a condition's handle is its address.
SIM_BUILTIN void cudaGraphSetConditional(unsigned long long handle, unsigned int value) {
  *reinterpret_cast<unsigned int*>(handle) = value;
}

// ---------------------------------------------------------------------------------------------- atomics
// Integers only: the order of floating-point additions would vary from run to run. Before each, another thread may run.
#define SIM_ATOMIC(name, T, expression)                     \
  SIM_BUILTIN T name(T* p, T v, SIM_SITE) {                 \
    ::sim::interleave(file, line);                          \
    const T old = *p;                                       \
    *p = expression;                                        \
    return old;                                             \
  }
#define SIM_ATOMICS(T)                         \
  SIM_ATOMIC(atomicAdd, T, old + v)            \
  SIM_ATOMIC(atomicMin, T, v < old ? v : old)  \
  SIM_ATOMIC(atomicMax, T, v > old ? v : old)  \
  SIM_ATOMIC(atomicAnd, T, old & v)            \
  SIM_ATOMIC(atomicOr, T, old | v)             \
  SIM_ATOMIC(atomicXor, T, old ^ v)            \
  SIM_ATOMIC(atomicExch, T, v)                 \
  SIM_BUILTIN T atomicCAS(T* p, T compare, T v, SIM_SITE) { \
    ::sim::interleave(file, line);             \
    const T old = *p;                          \
    if (old == compare) *p = v;                \
    return old;                                \
  }
SIM_ATOMICS(int)
SIM_ATOMICS(unsigned int)
SIM_ATOMICS(unsigned long long)
#undef SIM_ATOMICS
#undef SIM_ATOMIC
