// Sources that compute the operand: an activation from the input of its batch norm, the end of a residual block, a
// corrected gradient. conv2d/load.cuh says what a source is. Arithmetic is in f32 and rounded to T once; padding stays
// 0, since only chunks inside the image are written back.
#pragma once

#include "conv2d/load_weight.cuh"
#include "conv2d/fused/params.cuh"

namespace conv2d::fused {

// Loads W per-channel numbers from a 16-byte aligned address.
template <int W>
__device__ __forceinline__ void load_numbers(float (&f)[W], const float* p) {
#pragma unroll
  for (int i = 0; i < W; i += 4) {
    const Vec<float, 4> v = load<float, 4>(p + i);
#pragma unroll
    for (int e = 0; e < 4; ++e) f[i + e] = v.v[e];
  }
}

// A chunk and the matching chunk of a second tensor.
struct ChunkPair {
  Chunk first, second;
};

__device__ __forceinline__ Chunk load_chunk(const u8* chunk) {
  return load<u32, 4>(reinterpret_cast<const u32*>(chunk));
}

// The per-channel numbers from `channel` on, or null if there are none.
__device__ __forceinline__ const float* from_channel(const float* numbers, int channel) {
  return numbers ? numbers + channel : nullptr;
}

// z = x * scale + shift, or max(z, 0) if it activates; x itself without a scale.
template <typename T>
struct Activated {
  static constexpr bool PENDING = true, KEPT = false;
  static constexpr int W = WIDTH<T>;
  using Raw = Chunk;
  struct Numbers {
    float scale[W], shift[W];
  };

  Pixels<T> x;
  const float* scale;
  const float* shift;
  bool activates;

  // For the channels from `channel` on.
  __device__ __forceinline__ Activated(const void* tensor, int stride, const float* scales, const float* shifts,
                                       int channel, int flags)
      : x(tensor, channel, stride), scale(from_channel(scales, channel)), shift(from_channel(shifts, channel)),
        activates((flags & ACTIVATE) != 0) {}

  __device__ __forceinline__ void copy(u8* dst, u32 pixel, int channel, bool inside) const {
    ptx::cp_async_16(dst, x.at(pixel, channel), inside ? 16 : 0);
  }

  __device__ __forceinline__ T value(u32 pixel, int channel) const {
    const T v = read<T>(x.at(pixel, channel));
    if (!scale) return v;
    const float z = fmaf(to_float(v), scale[channel], shift[channel]);
    return from_float<T>(activates ? rectified(z) : z);
  }

  __device__ __forceinline__ bool pending() const { return scale != nullptr; }

  __device__ __forceinline__ Numbers numbers(int channel) const {
    Numbers n;
    load_numbers(n.scale, scale + channel);
    load_numbers(n.shift, shift + channel);
    return n;
  }

  __device__ __forceinline__ Raw raw(const u8* chunk) const { return load_chunk(chunk); }

  template <bool RELU>
  __device__ __forceinline__ Chunk finished(const Raw& raw, const Numbers& n) const {
    float z[W];
    unpack<T>(z, raw);
#pragma unroll
    for (int e = 0; e < W; ++e) z[e] = fmaf(z[e], n.scale[e], n.shift[e]);
    return pack<T, RELU>(z);
  }
};

// dy = a * g + b * y + c; g itself without y. The chunk of y lies SECOND bytes after the chunk of g.
template <typename T, int SECOND>
struct Corrected {
  static constexpr bool PENDING = true, KEPT = false, activates = false;
  static constexpr int W = WIDTH<T>;
  using Raw = ChunkPair;
  struct Numbers {
    float a[W], b[W], c[W];
  };

  Pixels<T> g, y;
  const float *a, *b, *c;

  __device__ __forceinline__ Corrected(const void* gradient, int g_stride, const void* input, int y_stride,
                                       const float* as, const float* bs, const float* cs, int channel)
      : g(gradient, channel, g_stride), y(input, channel, y_stride), a(from_channel(as, channel)),
        b(from_channel(bs, channel)), c(from_channel(cs, channel)) {}

  __device__ __forceinline__ static float correct(float g, float y, float a, float b, float c) {
    return fmaf(b, y, fmaf(a, g, c));
  }

  __device__ __forceinline__ void copy(u8* dst, u32 pixel, int channel, bool inside) const {
    ptx::cp_async_16(dst, g.at(pixel, channel), inside ? 16 : 0);
    if (b) ptx::cp_async_16(dst + SECOND, y.at(pixel, channel), inside ? 16 : 0);
  }

  __device__ __forceinline__ T value(u32 pixel, int channel) const {
    const T v = read<T>(g.at(pixel, channel));
    if (!b) return v;
    const float input = to_float(read<T>(y.at(pixel, channel)));
    return from_float<T>(correct(to_float(v), input, a ? a[channel] : 1.0f, b[channel], c[channel]));
  }

  __device__ __forceinline__ bool pending() const { return b != nullptr; }

  __device__ __forceinline__ Numbers numbers(int channel) const {
    Numbers n;
#pragma unroll
    for (int e = 0; e < W; ++e) n.a[e] = 1.0f;
    if (a) load_numbers(n.a, a + channel);
    load_numbers(n.b, b + channel);
    load_numbers(n.c, c + channel);
    return n;
  }

  __device__ __forceinline__ Raw raw(const u8* chunk) const { return {load_chunk(chunk), load_chunk(chunk + SECOND)}; }

  template <bool>
  __device__ __forceinline__ Chunk finished(const Raw& raw, const Numbers& n) const {
    float v[W], input[W];
    unpack<T>(v, raw.first);
    unpack<T>(input, raw.second);
#pragma unroll
    for (int e = 0; e < W; ++e) v[e] = correct(v[e], input[e], n.a[e], n.b[e], n.c[e]);
    return pack<T, false>(v);
  }
};

// z = max(x * x_scale + other * other_scale + x_shift + other_shift, 0), each scale and shift optional: the end of a
// residual block. The chunk of other lies SECOND bytes after the chunk of x. If it `keeps`, z and its signs are also
// stored to global memory.
template <typename T, int SECOND>
struct Joined {
  static constexpr bool PENDING = true, KEPT = true, activates = true;
  static constexpr int W = WIDTH<T>;
  using Raw = ChunkPair;
  struct Numbers {
    float x[W], other[W], shift[W];
  };

  Pixels<T> x, other;
  const EndParams& p;
  bool keeps;

  __device__ __forceinline__ Joined(const EndParams& params, bool keep)
      : x(params.input, 0, params.in_stride), other(params.other, 0, params.other_stride), p(params), keeps(keep) {}

  __device__ __forceinline__ void copy(u8* dst, u32 pixel, int channel, bool inside) const {
    ptx::cp_async_16(dst, x.at(pixel, channel), inside ? 16 : 0);
    ptx::cp_async_16(dst + SECOND, other.at(pixel, channel), inside ? 16 : 0);
  }

  __device__ __forceinline__ bool pending() const { return true; }

  __device__ __forceinline__ Numbers numbers(int channel) const {
    Numbers n;
    float shift[W];
#pragma unroll
    for (int e = 0; e < W; ++e) n.x[e] = n.other[e] = 1.0f, n.shift[e] = shift[e] = 0.0f;
    if (p.x_scale) load_numbers(n.x, p.x_scale + channel), load_numbers(n.shift, p.x_shift + channel);
    if (p.other_scale) load_numbers(n.other, p.other_scale + channel), load_numbers(shift, p.other_shift + channel);
#pragma unroll
    for (int e = 0; e < W; ++e) n.shift[e] += shift[e];
    return n;
  }

  __device__ __forceinline__ Raw raw(const u8* chunk) const { return {load_chunk(chunk), load_chunk(chunk + SECOND)}; }

  template <bool RELU>
  __device__ __forceinline__ Chunk finished(const Raw& raw, const Numbers& n) const {
    float z[W], second[W];
    unpack<T>(z, raw.first);
    unpack<T>(second, raw.second);
#pragma unroll
    for (int e = 0; e < W; ++e) z[e] = fmaf(second[e], n.other[e], fmaf(z[e], n.x[e], n.shift[e]));
    return pack<T, RELU>(z);
  }

  // Stores a finished chunk and its signs. A byte of signs spans eight channels: in f32, two adjacent threads' chunks.
  __device__ __forceinline__ void keep(const u8* chunk, u32 pixel, int channel) const {
    const Vec<T, W> v = load<T, W>(reinterpret_cast<const T*>(chunk));
    store(static_cast<T*>(p.z) + i64(pixel) * p.z_stride + channel, v);
    u32 bits = 0;
#pragma unroll
    for (int e = 0; e < W; ++e) bits |= u32(!(to_float(v.v[e]) <= 0)) << e;
    if constexpr (W < 8) {
      const u32 lane = threadIdx.x % 32;
      bits |= __shfl_xor_sync(3u << (lane & ~1u), bits, 1) << W;
      if (lane % 2 != 0) return;
    }
    p.signs[i64(pixel) * p.signs_stride + channel / 8] = u8(bits);
  }
};

}  // namespace conv2d::fused
