// One block of bwd_w: reduces over output pixels and writes its tile.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/load_weight.cuh"
#include "conv2d/mainloop.cuh"

namespace conv2d {

// Tensor cores truncate: after this many products, their sums move to a second set of registers.
constexpr int PROMOTE_PRODUCTS = 256;

// Reduces the tile of `block` over its split of the pixels of `dy` and `x`, sources of the block's group, and leaves it
// at the start of `shared`.
template <typename T, class Tile, bool VECTOR, class DySource, class XSource>
__device__ __forceinline__ const float* weigh_tile(const WeightParams& p, const DySource& dy, const XSource& x,
                                                   const Block& block, u8* shared) {
  const Range range(i64(p.images) * p.axis_h.output * p.axis_w.output, DEPTH<T, Tile>, p.splits, block.split);
  const i64 k0 = i64(range.begin) * DEPTH<T, Tile>;
  GradientColumns<T, Tile, VECTOR, DySource> a(p, dy, block.m_tile * Tile::M, k0);
  PixelColumns<T, Tile, VECTOR, XSource> b(p, x, block.n_tile * Tile::N, k0);
  Multiply<T, Tile, false, false, PROMOTE_PRODUCTS / DEPTH<T, Tile>> multiply;
  run_stages<Tile>(a, b, multiply, shared, range.count);

  float* staged = reinterpret_cast<float*>(shared);
  multiply.put(staged);
  __syncthreads();
  return staged;
}

// The output of a split: dw, whose rows have `columns` elements, or the partial sums.
__device__ __forceinline__ Output<float> weigh_output(const WeightParams& p, int split, int columns) {
  const Output<float> output{p.dw, columns, nullptr, nullptr, nullptr, 0, false, (p.flags & ACCUMULATE) != 0,
                             (p.flags & VECTOR_OUT) != 0};
  return p.splits > 1 ? partial_output(p.partial, split, i64(p.groups) * p.dy_c, columns, p.flags) : output;
}

// Computes one tile of dw from `dy` and `x`, sources of the block's group.
template <typename T, class Tile, bool VECTOR, class DySource, class XSource>
__device__ __forceinline__ void weigh(const WeightParams& p, const DySource& dy, const XSource& x, const Block& block) {
  SHARED(u8, shared);
  const float* staged = weigh_tile<T, Tile, VECTOR>(p, dy, x, block, shared);
  const int m0 = block.m_tile * Tile::M, n0 = block.n_tile * Tile::N, columns = p.axis_h.taps * p.axis_w.taps * p.x_c;
  const auto row_of = [&](int i) { return m0 + i < p.dy_c ? i64(block.group) * p.dy_c + m0 + i : -1; };
  write_tile<Tile>(staged, row_of, n0, columns - n0, weigh_output(p, block.split, columns));
}

// As weigh, but stores only p.w_c of the p.x_c columns of a tap: in row m, the columns from
// m / group_rows * p.w_c on. Adjacent threads write adjacent elements.
template <typename T, class Tile, class DySource, class XSource>
__device__ __forceinline__ void weigh_diagonal(const WeightParams& p, const DySource& dy, const XSource& x,
                                               int group_rows, const Block& block) {
  SHARED(u8, shared);
  const float* staged = weigh_tile<T, Tile, true>(p, dy, x, block, shared);

  const int m0 = block.m_tile * Tile::M, n0 = block.n_tile * Tile::N, taps = p.axis_h.taps * p.axis_w.taps;
  const int rows = p.dy_c - m0 < Tile::M ? p.dy_c - m0 : Tile::M;
  const int first = n0 / p.x_c, last = (n0 + Tile::N - 1) / p.x_c;  // taps of the tile
  const u32 w_c = u32(p.w_c), columns = u32((last < taps ? last + 1 : taps) - first) * w_c;
  const Output<float> output = weigh_output(p, block.split, taps * p.w_c);
  for (u32 i = threadIdx.x; i < u32(rows) * columns; i += Tile::THREADS) {
    const int m = int(i / columns), at = int(i % columns), tap = at / p.w_c, channel = at % p.w_c;
    const int n = (first + tap) * p.x_c + (m0 + m) / group_rows * p.w_c + channel - n0;
    if (u32(n) < u32(Tile::N))
      output.put<1>(i64(block.group) * p.dy_c + m0 + m, first * p.w_c + at, staged + m * Tile::STAGED_STRIDE + n);
  }
}

}  // namespace conv2d
