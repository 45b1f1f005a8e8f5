// The block of bwd_w: reduce over output pixels, write.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/load_weight.cuh"
#include "conv2d/mainloop.cuh"

namespace conv2d {

// Tensor cores truncate: after so many products their sums move to a second set of registers.
constexpr int PROMOTE_PRODUCTS = 256;

__device__ __forceinline__ int weigh_group(const WeightParams& p) { return Block(p.n_tiles, p.groups).group; }

// Computes one tile of dw from `dy` and `x`, sources of the block's group.
template <typename T, class Tile, bool VECTOR, class DySource, class XSource>
__device__ __forceinline__ void weigh(const WeightParams& p, const DySource& dy, const XSource& x) {
  const Block block(p.n_tiles, p.groups);
  const int split = int(blockIdx.z), m0 = block.m_tile * Tile::M, n0 = block.n_tile * Tile::N;
  const int columns = p.h.taps * p.v.taps * p.x_c;
  const Range range(i64(p.images) * p.h.out * p.v.out, DEPTH<T, Tile>, p.splits, split);
  const i64 k0 = i64(range.begin) * DEPTH<T, Tile>;

  SHARED(u8, shared);
  GradientColumns<T, Tile, VECTOR, DySource> a(p, dy, m0, k0);
  PixelColumns<T, Tile, VECTOR, XSource> b(p, x, n0, k0);
  Multiply<T, Tile, false, false, PROMOTE_PRODUCTS / DEPTH<T, Tile>> multiply;
  run_stages<Tile>(a, b, multiply, shared, range.count);

  float* staged = reinterpret_cast<float*>(shared);
  multiply.put(staged);
  __syncthreads();
  const auto row_of = [&](int i) { return m0 + i < p.dy_c ? i64(block.group) * p.dy_c + m0 + i : -1; };
  const Output<float> output{p.dw, columns, nullptr, nullptr, nullptr, 0, false, (p.flags & ACCUMULATE) != 0,
                             (p.flags & VECTOR_OUT) != 0};
  write_tile<Tile>(staged, row_of, n0, columns - n0,
                   p.splits > 1
                       ? partial_output(p.partial, split, i64(p.groups) * p.dy_c, columns, p.flags)
                       : output);
}

}  // namespace conv2d
