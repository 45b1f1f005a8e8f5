// Loads the operands of bwd_w, whose reduction runs over the output pixels (n, p, q): the rows of both in shared
// memory. See load.cuh for VECTOR.
#pragma once

#include "conv2d/load.cuh"

namespace conv2d {

// Operand A of bwd_w: row k is an output pixel, column m a channel of dy.
template <typename T, class Tile, bool VECTOR, class Source>
struct GradientColumns {
  static constexpr bool PENDING = VECTOR && Source::PENDING;
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::M * int(sizeof(T))>;
  using Mine = ThreadChunks<Layout, ROWS, Tile::THREADS>;

  Source dy;
  u32 pixels, k;
  int slot, column, left;  // column: the thread's first channel; left: the channels from it on
  Inside<Mine::PASSES, Tile::STAGES> held;

  __device__ __forceinline__ GradientColumns(const WeightParams& p, const Source& source, int m0, i64 k0)
      : dy(source), pixels(u32(p.images) * u32(p.axis_h.output) * u32(p.axis_w.output)), k(u32(k0) + u32(Mine::row(0))),
        slot(Mine::slot()), column(m0 + Mine::chunk() * WIDTH<T>), left(p.dy_c - column) {}

  __device__ __forceinline__ void load(u8* tile, int stage) {
    u32 chunks = 0;
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const u32 pixel = k + u32(i * Mine::PER_PASS);
      if (!Mine::has(i)) continue;
      u8* dst = tile + Mine::slot(slot, i);
      if (VECTOR) {
        const bool ok = pixel < pixels && left > 0;
        dy.copy(dst, pixel, column, ok);
        chunks |= u32(ok) << i;
      } else {
        const int count = pixel < pixels ? left : 0;
        Vec<T, WIDTH<T>> values;
#pragma unroll
        for (int e = 0; e < WIDTH<T>; ++e) values.v[e] = e < count ? dy.value(pixel, column + e) : T{};
        store(reinterpret_cast<T*>(dst), values);
      }
    }
    if (PENDING) held.set(stage, chunks);
    k += ROWS;
  }

  __device__ __forceinline__ void finish(u8* tile, int stage) {
    finish_chunks<Mine>(dy, tile, slot, column, held.get(stage));
  }
};

// Operand B of bwd_w: row k is an output pixel, column n = (r, s, c) an input channel under one of its taps.
template <typename T, class Tile, bool VECTOR, class Source>
struct PixelColumns {
  static constexpr bool PENDING = VECTOR && Source::PENDING;
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::N * int(sizeof(T))>;
  using Mine = ThreadChunks<Layout, ROWS, Tile::THREADS>;

  const WeightParams& p;
  Source x;
  int slot;
  Radix pixels, columns;
  Counter k[Mine::PASSES], step, column;
  Inside<Mine::PASSES, Tile::STAGES> held;

  __device__ __forceinline__ PixelColumns(const WeightParams& params, const Source& source, int n0, i64 k0)
      : p(params), x(source), slot(Mine::slot()), pixels{params.axis_h.output, params.axis_w.output},
        columns{params.axis_w.taps, params.x_c} {
    step = pixels.split(ROWS);
    column = columns.split(i64(n0) + Mine::chunk() * WIDTH<T>);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) k[i] = pixels.split(k0 + Mine::row(i));
  }

  // Sets `pixel` to the input pixel of output pixel `at` under the tap of c. True if it is inside the image.
  __device__ __forceinline__ bool find(const Counter& at, const Counter& c, u32& pixel) const {
    const int h = at.mid * p.axis_h.stride + (c.hi * p.axis_h.dilation - p.axis_h.pad);
    const int w = at.lo * p.axis_w.stride + (c.mid * p.axis_w.dilation - p.axis_w.pad);
    pixel = (u32(at.hi) * u32(p.axis_h.input) + u32(h)) * u32(p.axis_w.input) + u32(w);
    return at.hi < p.images && c.hi < p.axis_h.taps && u32(h) < u32(p.axis_h.input) && u32(w) < u32(p.axis_w.input);
  }

  __device__ __forceinline__ void load(u8* tile, int stage) {
    u32 pixel;
    if (VECTOR) {
      u32 chunks = 0;
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i) {
        if (!Mine::has(i)) continue;
        const bool ok = find(k[i], column, pixel);
        x.copy(tile + Mine::slot(slot, i), pixel, column.lo, ok);
        chunks |= u32(ok) << i;
      }
      if (PENDING) held.set(stage, chunks);
    } else {
      Vec<T, WIDTH<T>> values[Mine::PASSES];
      Counter c = column;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e, columns.increment(c)) {
#pragma unroll
        for (int i = 0; i < Mine::PASSES; ++i) values[i].v[e] = find(k[i], c, pixel) ? x.value(pixel, c.lo) : T{};
      }
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i)
        if (Mine::has(i)) store(reinterpret_cast<T*>(tile + Mine::slot(slot, i)), values[i]);
    }
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) pixels.advance(k[i], step);
  }

  __device__ __forceinline__ void finish(u8* tile, int stage) {
    finish_chunks<Mine>(x, tile, slot, column.lo, held.get(stage));
  }
};

}  // namespace conv2d
