// The block of fwd and bwd_x: decode its rows, reduce over taps and channels, write.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/load.cuh"
#include "conv2d/mainloop.cuh"

namespace conv2d {

// Computes one tile for the slices h, v. B is the loader of the weights; K-major in fwd.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR>
__device__ __forceinline__ void gather(const GatherParams& p, const Slice& h, const Slice& v) {
  const Block block(p.n_tiles, p.groups);
  const i64 m = i64(p.images) * h.count * v.count, length = i64(h.taps) * v.taps * p.in_c;
  if (i64(block.m_tile) * Tile::M >= m) return;  // this residue has fewer rows than the largest
  if (length == 0 && p.splits == 1 && (p.flags & ACCUMULATE) != 0) return;  // it is reached by no tap

  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  decode_rows<Tile>(rows, p, h, v, block.m_tile);

  const int split = int(blockIdx.z), n0 = block.n_tile * Tile::N;
  Multiply<T, Tile, true, B_K_MAJOR, 0> multiply;
  if (length > 0) {
    const Range range(length, DEPTH<T, Tile>, p.splits, split);
    const i64 k0 = i64(range.begin) * DEPTH<T, Tile>;
    PixelRows<T, Tile, VECTOR> a(p, h, v, rows, block.group, k0);
    B b(p, h, v, block.group, n0, k0);
    run_stages<Tile>(a, b, multiply, Unchanged{}, shared, range.count);
  }

  float* staged = reinterpret_cast<float*>(shared);
  multiply.put(staged);
  __syncthreads();
  const auto row_of = [&](int i) { return i64(rows[i].out); };
  const int col0 = block.group * p.out_c + n0, columns = p.out_c - n0;
  if (p.splits > 1) {
    const i64 pixels = i64(p.images) * p.h.out * p.v.out;
    write_tile<Tile>(staged, row_of, col0, columns,
                     partial_output(p.partial, split, pixels, i64(p.groups) * p.out_c, p.flags));
  } else {
    const Output<T> output{static_cast<T*>(p.out), p.out_stride, p.scale, p.shift,
                           static_cast<const T*>(p.residual), p.residual_stride, (p.flags & RELU) != 0,
                           (p.flags & ACCUMULATE) != 0, (p.flags & VECTOR_OUT) != 0};
    write_tile<Tile>(staged, row_of, col0, columns, output);
  }
}

}  // namespace conv2d
