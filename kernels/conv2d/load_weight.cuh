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

  const T *tensor, *dy;
  i64 pixels, k;
  int stride, left;

  __device__ __forceinline__ GradientColumns(const WeightParams& p, int group, int m0, i64 k0)
      : pixels(i64(p.images) * p.h.out * p.v.out), k(k0 + Mine::row(0)), stride(p.dy_stride),
        left(p.dy_c - m0 - Mine::chunk() * WIDTH<T>) {
    tensor = static_cast<const T*>(p.dy);
    dy = tensor + i64(group) * p.dy_c + m0 + Mine::chunk() * WIDTH<T>;
  }

  __device__ __forceinline__ void load(u8* tile) {
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      if (!Mine::has(i)) continue;
      const i64 pixel = k + i * Mine::PER_PASS;
      copy_chunk<T, VECTOR>(Layout::at(tile, Mine::row(i), Mine::chunk()), dy + pixel * stride, tensor,
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

  const T* x;
  const WeightParams& p;
  Radix pixels, columns;
  Counter k[Mine::PASSES], step, column;

  __device__ __forceinline__ PixelColumns(const WeightParams& params, int group, int n0, i64 k0)
      : p(params), pixels{params.h.out, params.v.out}, columns{params.v.taps, params.x_c} {
    x = static_cast<const T*>(p.x) + i64(group) * p.x_c;
    step = pixels.split(ROWS);
    column = columns.split(i64(n0) + Mine::chunk() * WIDTH<T>);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) k[i] = pixels.split(k0 + Mine::row(i));
  }

  // The element under tap and channel c of output pixel `at`, or null where there is none.
  __device__ __forceinline__ const T* element(const Counter& at, const Counter& c) const {
    const int h = at.mid * p.h.stride - p.h.pad + c.hi * p.h.dilation;
    const int v = at.lo * p.v.stride - p.v.pad + c.mid * p.v.dilation;
    if (at.hi >= p.images || c.hi >= p.h.taps || u32(h) >= u32(p.h.in) || u32(v) >= u32(p.v.in)) return nullptr;
    return x + ((i64(at.hi) * p.h.in + h) * p.v.in + v) * p.x_stride + c.lo;
  }

  __device__ __forceinline__ void load(u8* tile) {
    if (VECTOR) {
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i) {
        if (!Mine::has(i)) continue;
        const T* src = element(k[i], column);
        ptx::cp_async_16(Layout::at(tile, Mine::row(i), Mine::chunk()), src ? src : x, src ? 16 : 0);
      }
    } else {
      Vec<T, WIDTH<T>> values[Mine::PASSES];
      Counter c = column;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e, columns.increment(c)) {
#pragma unroll
        for (int i = 0; i < Mine::PASSES; ++i) {
          const T* src = element(k[i], c);
          values[i].v[e] = src ? *src : T{};
        }
      }
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i)
        if (Mine::has(i)) store(reinterpret_cast<T*>(Layout::at(tile, Mine::row(i), Mine::chunk())), values[i]);
    }
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) pixels.advance(k[i], step);
  }
};

}  // namespace conv2d
