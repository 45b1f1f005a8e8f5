// The operands of bwd_w, whose reduction runs over the output pixels (n, p, q). Both lie in shared memory with the
// reduction as rows. See load.cuh for VECTOR.
#pragma once

#include "conv2d/load.cuh"

namespace conv2d {

// Operand A of bwd_w: row k is an output pixel, columns m its channels of dy.
template <typename T, class Tile, bool VECTOR>
struct GradientColumns {
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::M * int(sizeof(T))>;
  using Mine = Share<Layout, ROWS, Tile::THREADS>;

  const u8* dy;  // the thread's channels of pixel 0
  u32 pixel_bytes, pixels, k;
  int slot, left;

  __device__ __forceinline__ GradientColumns(const WeightParams& p, int group, int m0, i64 k0)
      : pixel_bytes(u32(p.dy_stride) * u32(sizeof(T))), pixels(u32(p.images) * u32(p.h.out) * u32(p.v.out)),
        k(u32(k0) + u32(Mine::row(0))), slot(Mine::slot()) {
    const int column = m0 + Mine::chunk() * WIDTH<T>;
    left = p.dy_c - column;
    dy = bytes_of<T>(p.dy, i64(group) * p.dy_c + column);
  }

  __device__ __forceinline__ void load(u8* tile) {
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const u32 pixel = k + u32(i * Mine::PER_PASS);
      if (Mine::has(i))
        copy_chunk<T, VECTOR>(tile + Mine::slot(slot, i), row_address(dy, pixel, pixel_bytes),
                              pixel < pixels ? left : 0);
    }
    k += ROWS;
  }
};

// Operand B of bwd_w: row k is an output pixel, column n = (r, s, c) an input channel under one of its taps.
template <typename T, class Tile, bool VECTOR>
struct PixelColumns {
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::N * int(sizeof(T))>;
  using Mine = Share<Layout, ROWS, Tile::THREADS>;

  const WeightParams& p;
  const u8* x;
  u32 pixel_bytes;
  int slot;
  Radix pixels, columns;
  Counter k[Mine::PASSES], step, column;

  __device__ __forceinline__ PixelColumns(const WeightParams& params, int group, int n0, i64 k0)
      : p(params), x(bytes_of<T>(params.x, i64(group) * params.x_c)),
        pixel_bytes(u32(params.x_stride) * u32(sizeof(T))), slot(Mine::slot()),
        pixels{params.h.out, params.v.out}, columns{params.v.taps, params.x_c} {
    step = pixels.split(ROWS);
    column = columns.split(i64(n0) + Mine::chunk() * WIDTH<T>);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) k[i] = pixels.split(k0 + Mine::row(i));
  }

  // Finds the element under tap and channel c of output pixel `at`; says whether it is inside.
  __device__ __forceinline__ bool element(const Counter& at, const Counter& c, const u8*& src) const {
    const int h = at.mid * p.h.stride + (c.hi * p.h.dilation - p.h.pad);
    const int v = at.lo * p.v.stride + (c.mid * p.v.dilation - p.v.pad);
    const u32 pixel = (u32(at.hi) * u32(p.h.in) + u32(h)) * u32(p.v.in) + u32(v);
    src = row_address(x + i64(c.lo) * int(sizeof(T)), pixel, pixel_bytes);
    return at.hi < p.images && c.hi < p.h.taps && u32(h) < u32(p.h.in) && u32(v) < u32(p.v.in);
  }

  __device__ __forceinline__ void load(u8* tile) {
    const u8* src;
    if (VECTOR) {
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i) {
        if (!Mine::has(i)) continue;
        const bool ok = element(k[i], column, src);
        ptx::cp_async_16(tile + Mine::slot(slot, i), src, ok ? 16 : 0);
      }
    } else {
      Vec<T, WIDTH<T>> values[Mine::PASSES];
      Counter c = column;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e, columns.increment(c)) {
#pragma unroll
        for (int i = 0; i < Mine::PASSES; ++i) values[i].v[e] = element(k[i], c, src) ? read<T>(src) : T{};
      }
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i)
        if (Mine::has(i)) store(reinterpret_cast<T*>(tile + Mine::slot(slot, i)), values[i]);
    }
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) pixels.advance(k[i], step);
  }
};

}  // namespace conv2d
