// The operands of fwd and bwd_x on their way from global to shared memory.
//
// A loader is made for one block and one slice of the reduction. Each call of load() issues the copies of the next
// stage, with cp.async where VECTOR (16-byte accesses: channels of a group, pixel strides and addresses are multiples of
// it), else element by element. What lies outside its tensor becomes zero.
#pragma once

#include "conv2d/tile.cuh"

namespace conv2d {

// What a block knows of a row of its tile: an output pixel and where it begins to read.
struct Row {
  int out;    // pixel of the output tensor, or -1 below the last row
  int image;  // of both tensors
  int h, v;   // the input pixel under tap 0
};
static_assert(sizeof(Row) == 16, "16 bytes a row of the tile, as in variants.rs");

constexpr int NOWHERE = -(1 << 30);  // a coordinate that no tap brings inside; the host keeps extents below 2^30

// Decodes the rows of the tile, once for all stages. Ends with a barrier.
template <class Tile>
__device__ __forceinline__ void decode_rows(Row* rows, const GatherParams& p, const Slice& h, const Slice& v,
                                            int m_tile) {
  for (int i = int(threadIdx.x); i < Tile::M; i += Tile::THREADS) {
    const u32 m = u32(m_tile) * Tile::M + u32(i), per_image = u32(h.count) * u32(v.count);
    const u32 image = m / per_image, pixel = m % per_image;
    Row row{-1, 0, NOWHERE, NOWHERE};
    if (image < u32(p.images)) {
      const int y = int(pixel / u32(v.count)), x = int(pixel % u32(v.count));
      row.out = (int(image) * p.h.out + h.first + y * h.step) * p.v.out + v.first + x * v.step;
      row.image = int(image);
      row.h = h.origin + y * h.stride;
      row.v = v.origin + x * v.stride;
    }
    rows[i] = row;
  }
  __syncthreads();
}

// Operand A of fwd and bwd_x: row m is an output pixel, and k = (tap, tap, channel) walks over the input pixels that
// it gathers. Rows of K_BYTES in shared memory.
template <typename T, class Tile, bool VECTOR>
struct PixelRows {
  using Layout = Swizzled<Tile::M, Tile::K_BYTES>;
  using Mine = Share<Layout, Tile::M, Tile::THREADS>;

  const T* in;
  int in_h, in_v, stride;
  int taps, shift_h, shift_v;
  Radix radix;
  Counter k, step;
  u32 pixel[Mine::PASSES];  // under tap 0, modulo 2^32: it may lie outside
  int h[Mine::PASSES], v[Mine::PASSES];

  __device__ __forceinline__ PixelRows(const GatherParams& p, const Slice& hs, const Slice& vs, const Row* rows,
                                       int group, i64 k0)
      : in(static_cast<const T*>(p.in) + i64(group) * p.in_c),
        in_h(p.h.in), in_v(p.v.in), stride(p.in_stride),
        taps(hs.taps), shift_h(hs.shift), shift_v(vs.shift),
        radix{vs.taps, p.in_c} {
    k = radix.split(k0 + Mine::chunk() * WIDTH<T>);
    step = radix.split(DEPTH<T, Tile>);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const Row row = rows[Mine::has(i) ? Mine::row(i) : 0];
      h[i] = row.h;
      v[i] = row.v;
      pixel[i] = (u32(row.image) * u32(in_h) + u32(row.h)) * u32(in_v) + u32(row.v);
    }
  }

  __device__ __forceinline__ bool inside(const Counter& c, int i) const {
    return c.hi < taps && u32(h[i] + c.hi * shift_h) < u32(in_h) && u32(v[i] + c.mid * shift_v) < u32(in_v);
  }

  // From the pixel under tap 0 to the one at c, modulo 2^32.
  __device__ __forceinline__ u32 distance(const Counter& c) const {
    return u32(c.hi * shift_h) * u32(in_v) + u32(c.mid * shift_v);
  }

  __device__ __forceinline__ const T* element(u32 at, const Counter& c) const { return in + i64(at) * stride + c.lo; }

  __device__ __forceinline__ void load(u8* tile) {
    if (VECTOR) {
      const u32 d = distance(k);
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i) {
        if (!Mine::has(i)) continue;
        const bool ok = inside(k, i);
        ptx::cp_async_16(Layout::at(tile, Mine::row(i), Mine::chunk()), ok ? element(d + pixel[i], k) : in,
                          ok ? 16 : 0);
      }
    } else {
      Vec<T, WIDTH<T>> values[Mine::PASSES];
      Counter c = k;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e, radix.increment(c)) {
        const u32 d = distance(c);
#pragma unroll
        for (int i = 0; i < Mine::PASSES; ++i) values[i].v[e] = inside(c, i) ? *element(d + pixel[i], c) : T{};
      }
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i)
        if (Mine::has(i)) store(reinterpret_cast<T*>(Layout::at(tile, Mine::row(i), Mine::chunk())), values[i]);
    }
    radix.advance(k, step);
  }
};

// `count` elements at src, the rest of a chunk zero, to shared memory. Where there is none, src may be anywhere.
template <typename T, bool VECTOR>
__device__ __forceinline__ void copy_chunk(u8* dst, const T* src, const T* tensor, int count) {
  if (VECTOR) {
    ptx::cp_async_16(dst, count > 0 ? src : tensor, count > 0 ? 16 : 0);
  } else {
    Vec<T, WIDTH<T>> values;
#pragma unroll
    for (int e = 0; e < WIDTH<T>; ++e) values.v[e] = e < count ? src[e] : T{};
    store(reinterpret_cast<T*>(dst), values);
  }
}

// Operand B of fwd: column n is an output channel, whose weights are consecutive in k. Rows of K_BYTES.
template <typename T, class Tile, bool VECTOR>
struct WeightRows {
  using Layout = Swizzled<Tile::N, Tile::K_BYTES>;
  using Mine = Share<Layout, Tile::N, Tile::THREADS>;

  const T *tensor, *w;
  i64 length, k;
  int channels;

  __device__ __forceinline__ WeightRows(const GatherParams& p, const Slice&, const Slice&, int group, int n0, i64 k0)
      : length(i64(p.h.taps) * p.v.taps * p.in_c), k(k0 + Mine::chunk() * WIDTH<T>), channels(p.out_c - n0) {
    tensor = static_cast<const T*>(p.w);
    w = tensor + (i64(group) * p.out_c + n0) * length;
  }

  __device__ __forceinline__ void load(u8* tile) {
    const int left = k < length ? (length - k < WIDTH<T> ? int(length - k) : WIDTH<T>) : 0;
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      if (!Mine::has(i)) continue;
      const int row = Mine::row(i);
      copy_chunk<T, VECTOR>(Layout::at(tile, row, Mine::chunk()), w + row * length + k, tensor, row < channels ? left : 0);
    }
    k += DEPTH<T, Tile>;
  }
};

// Operand B of bwd_x: row k = (tap, tap, output channel) of the convolution, columns n its input channels, which are
// consecutive. Rows of N elements.
template <typename T, class Tile, bool VECTOR>
struct WeightColumns {
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::N * int(sizeof(T))>;
  using Mine = Share<Layout, ROWS, Tile::THREADS>;

  const T *tensor, *w;
  int taps_h, taps, tap, step_h, step_v, row_taps, channels, left;
  Radix radix;
  Counter k[Mine::PASSES], step;

  __device__ __forceinline__ WeightColumns(const GatherParams& p, const Slice& hs, const Slice& vs, int group, int n0,
                                           i64 k0)
      : taps_h(hs.taps), taps(p.h.taps * p.v.taps), tap(hs.tap * p.v.taps + vs.tap),
        step_h(hs.tap_step), step_v(vs.tap_step), row_taps(p.v.taps), channels(p.out_c),
        left(p.out_c - n0 - Mine::chunk() * WIDTH<T>), radix{vs.taps, p.in_c} {
    tensor = static_cast<const T*>(p.w);
    w = tensor + i64(group) * p.in_c * taps * channels + n0 + Mine::chunk() * WIDTH<T>;
    step = radix.split(ROWS);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) k[i] = radix.split(k0 + Mine::row(i));
  }

  __device__ __forceinline__ void load(u8* tile) {
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const Counter c = k[i];
      radix.advance(k[i], step);
      if (!Mine::has(i)) continue;
      const i64 row = i64(c.lo) * taps + tap + c.hi * step_h * row_taps + c.mid * step_v;
      copy_chunk<T, VECTOR>(Layout::at(tile, Mine::row(i), Mine::chunk()), w + row * channels, tensor, c.hi < taps_h ? left : 0);
    }
  }
};

}  // namespace conv2d
