// The interface of kernels/common/ptx.cuh on the simulator.
#pragma once

namespace ptx {

__device__ __forceinline__ float bits_to_float(unsigned int bits) { return __uint_as_float(bits); }
__device__ __forceinline__ unsigned int float_to_bits(float v) { return __float_as_uint(v); }

template <typename V>
__device__ __forceinline__ V ld(const void* p) {
  static_assert(alignof(V) == sizeof(V) && sizeof(V) <= 16, "one access");
  sim::check_alignment(static_cast<const V*>(p));
  return *static_cast<const V*>(p);
}
template <typename V>
__device__ __forceinline__ void st(void* p, const V& v) {
  static_assert(alignof(V) == sizeof(V) && sizeof(V) <= 16, "one access");
  sim::check_alignment(static_cast<const V*>(p));
  *static_cast<V*>(p) = v;
}

__device__ __forceinline__ float f16_to_float(unsigned short bits) { return sim::f16_to_float(bits); }
__device__ __forceinline__ unsigned short float_to_f16(float v) { return sim::float_to_f16(v); }
__device__ __forceinline__ unsigned short float_to_bf16(float v) { return sim::float_to_bf16(v); }

template <bool RELU>
__device__ __forceinline__ unsigned int floats_to_f16x2(float low, float high) {
  const float l = RELU && low <= 0 ? 0.0f : low, h = RELU && high <= 0 ? 0.0f : high;
  return float_to_f16(l) | static_cast<unsigned int>(float_to_f16(h)) << 16;
}

template <bool RELU>
__device__ __forceinline__ unsigned int floats_to_bf16x2(float low, float high) {
  const float l = RELU && low <= 0 ? 0.0f : low, h = RELU && high <= 0 ? 0.0f : high;
  return float_to_bf16(l) | static_cast<unsigned int>(float_to_bf16(h)) << 16;
}

// The offset in the block's shared memory.
__device__ __forceinline__ unsigned int shared_address(const void* p) {
  return static_cast<unsigned int>(static_cast<const unsigned char*>(p) - sim::shared_memory());
}

__device__ __forceinline__ void cp_async_16(void* dst, const void* src, unsigned int bytes, SIM_SITE) {
  sim::copy_async(dst, src, 16, bytes, file, line);
}

__device__ __forceinline__ void cp_async_8(void* dst, const void* src, unsigned int bytes, SIM_SITE) {
  sim::copy_async(dst, src, 8, bytes, file, line);
}

__device__ __forceinline__ void cp_async_4(void* dst, const void* src, unsigned int bytes, SIM_SITE) {
  sim::copy_async(dst, src, 4, bytes, file, line);
}

__device__ __forceinline__ void cp_async_commit() { sim::copy_commit(); }

template <int pending>
__device__ __forceinline__ void cp_async_wait(SIM_SITE) {
  sim::copy_wait(pending, file, line);
}

__device__ __forceinline__ void ldmatrix_x4(unsigned int (&r)[4], const void* row, SIM_SITE) {
  sim::load_matrices(r, row, false, file, line);
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned int (&r)[4], const void* row, SIM_SITE) {
  sim::load_matrices(r, row, true, file, line);
}

struct F16 {
  static constexpr sim::Half half = sim::Half::f16;
};
struct BF16 {
  static constexpr sim::Half half = sim::Half::bf16;
};

template <typename Type, int MI, int NJ>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[MI][NJ][4], const unsigned int (&a)[MI][4],
                                             const unsigned int (&b)[NJ][2], SIM_SITE) {
  sim::multiply(Type::half, MI, NJ, &d[0][0][0], &a[0][0], &b[0][0], file, line);
}

}  // namespace ptx
