// One block of fwd: see fwd.cu and fwd_end.cu.
#pragma once

#include "conv2d/gather.cuh"
#include "conv2d/fused/moments.cuh"
#include "conv2d/fused/sources.cuh"

namespace conv2d::fused {

// Computes one tile of y from `in`, a source of the block's group. B is the weight loader.
template <typename T, class Tile, bool VECTOR, class B, class Source>
__device__ __forceinline__ void measured(const ForwardParams& p, const Source& in, const Block& block) {
  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  float* staged = gather_tile<T, Tile, VECTOR, B, true>(p, in, forward_slice(p.axis_h), forward_slice(p.axis_w),
                                                        block, shared, rows);
  if (p.splits > 1) {
    write_partial<Tile>(p, block, staged, rows);
    return;
  }
  const int n0 = block.n_tile * Tile::N, col0 = block.group * p.out_c + n0, columns = p.out_c - n0;
  MeasuredOutput<T> output(gather_output<T>(p));
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, col0, columns, output);
  if (!p.mean) return;
  Moments moments[8];
  output.moments(moments);
  merge_columns<Tile>(moments, staged, [&](int column, const Moments& m) {
    if (column >= columns) return;
    const i64 at = i64(block.m_tile) * p.groups * p.out_c + col0 + column;
    p.mean[at] = m.f[1];
    p.m2[at] = m.f[2];
  });
}

}  // namespace conv2d::fused
