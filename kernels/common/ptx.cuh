// All inline PTX of the library. On the simulator, kernels/sim/common/ptx.cuh replaces this file with the same
// interface. Each function is named after its instruction; see the PTX ISA for its exact meaning.
#pragma once

namespace ptx {

__device__ __forceinline__ float bits_to_float(unsigned int bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned int float_to_bits(float v) { return __float_as_uint(v); }

// Loads or stores a V in one access, aligned to its size, in the address space that the compiler infers for p.
template <typename V>
__device__ __forceinline__ V ld(const void* p) {
  static_assert(alignof(V) == sizeof(V) && sizeof(V) <= 16, "one access");
  return *static_cast<const V*>(p);
}
template <typename V>
__device__ __forceinline__ void st(void* p, const V& v) {
  static_assert(alignof(V) == sizeof(V) && sizeof(V) <= 16, "one access");
  *static_cast<V*>(p) = v;
}

__device__ __forceinline__ float f16_to_float(unsigned short bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}

__device__ __forceinline__ unsigned short float_to_f16(float v) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

__device__ __forceinline__ unsigned short float_to_bf16(float v) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}

// Packs two values, `low` in the lower half. RELU applies max(v, 0) first; NaN stays NaN.
template <bool RELU>
__device__ __forceinline__ unsigned int floats_to_f16x2(float low, float high) {
  unsigned int pair;
  if (RELU)
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

template <bool RELU>
__device__ __forceinline__ unsigned int floats_to_bf16x2(float low, float high) {
  unsigned int pair;
  if (RELU)
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ unsigned int shared_address(const void* p) {
  return static_cast<unsigned int>(__cvta_generic_to_shared(p));
}

// cp.async.cg, which bypasses L1: copies `bytes` (0 to 16) from global `src` to 16-byte aligned shared `dst` and zeroes
// the rest of the 16. Does not read `src` if `bytes` is 0.
__device__ __forceinline__ void cp_async_16(void* dst, const void* src, unsigned int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
}

// cp.async.ca of 8 bytes: copies `bytes` and zeroes the rest.
__device__ __forceinline__ void cp_async_8(void* dst, const void* src, unsigned int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
}

// cp.async.ca of 4 bytes, or 4 zero bytes if `bytes` is 0.
__device__ __forceinline__ void cp_async_4(void* dst, const void* src, unsigned int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are in flight. Other threads see the data after a barrier.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements; lane 8m+r gives the address of row r of matrix m.
__device__ __forceinline__ void ldmatrix_x4(unsigned int (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// As ldmatrix_x4, with each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned int (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The element type of a tensor-core product.
struct F16 {};
struct BF16 {};

template <int MI, int NJ>
__device__ __forceinline__ void mma_tiles(F16, float (&d)[MI][NJ][4], const unsigned int (&a)[MI][4],
                                          const unsigned int (&b)[NJ][2]) {
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NJ; ++j)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(d[i][j][0]), "+f"(d[i][j][1]), "+f"(d[i][j][2]), "+f"(d[i][j][3])
          : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
}

template <int MI, int NJ>
__device__ __forceinline__ void mma_tiles(BF16, float (&d)[MI][NJ][4], const unsigned int (&a)[MI][4],
                                          const unsigned int (&b)[NJ][2]) {
#pragma unroll
  for (int i = 0; i < MI; ++i)
#pragma unroll
    for (int j = 0; j < NJ; ++j)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(d[i][j][0]), "+f"(d[i][j][1]), "+f"(d[i][j][2]), "+f"(d[i][j][3])
          : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
}

// d[i][j] += a[i] b[j] for every pair of fragments: d[i][j] 16x8, a[i] 16x16 row-major, b[j] 16x8 column-major;
// accumulates in f32, with MI * NJ mma.sync.m16n8k16 instructions.
template <typename Type, int MI, int NJ>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[MI][NJ][4], const unsigned int (&a)[MI][4],
                                             const unsigned int (&b)[NJ][2]) {
  mma_tiles(Type{}, d, a, b);
}

}  // namespace ptx
