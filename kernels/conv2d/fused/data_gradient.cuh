// One block of bwd_x: see bwd_x.cu.
#pragma once

#include "conv2d/gather.cuh"
#include "conv2d/packed.cuh"
#include "conv2d/fused/masked.cuh"
#include "conv2d/fused/sources.cuh"

namespace conv2d::fused {

// Stores zeros as the sums of a block without rows.
template <class Tile>
__device__ __forceinline__ void no_sums(const DataGradientParams& p, i64 band, int col0, int columns) {
  const int column = int(threadIdx.x);
  if (p.sums && column < Tile::N && column < columns) store_sums(p, band, col0 + column, Sums<3>{});
}

// Computes one tile of dx. B is the weight loader.
template <typename T, class Tile, bool VECTOR, class B>
__device__ __forceinline__ void data_gradient(const DataGradientParams& p, const Block& block) {
  static_assert(Tile::A_TENSORS == 2, "a stage has room for the second tensor of operand A: take Tile::Paired");
  const int across = residues(p.axis_w), n0 = block.n_tile * Tile::N, col0 = block.group * p.out_c + n0;
  const Slice slice_h = residue_slice(p.axis_h, block.residue / across), slice_w = residue_slice(p.axis_w,
      block.residue % across);
  const i64 band = i64(block.residue) * p.m_tiles + block.m_tile;
  // this residue has fewer rows than the largest
  if (i64(block.m_tile) * Tile::M >= gather_rows(p, slice_h, slice_w)) {
    no_sums<Tile>(p, band, col0, p.out_c - n0);
    return;
  }
  // no tap reaches this residue, and no sum needs its dx
  if (gather_length(p, slice_h, slice_w) == 0 && p.splits == 1 && !p.sums && (p.flags & ACCUMULATE) != 0) return;
  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  const Corrected<T, Tile::SECOND> in(p.input, p.in_stride, p.y, p.y_stride, p.a, p.b, p.c, block.group * p.in_c);
  float* staged = gather_tile<T, Tile, VECTOR, B, false>(p, in, slice_h, slice_w, block, shared, rows);
  if (p.splits > 1) {
    write_partial<Tile>(p, block, staged, rows);
    return;
  }
  const int mine = thread_column<Tile>(), columns = p.out_c - n0;
  MaskedOutput<T> output(p, col0 + mine, columns - mine);
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, col0, columns, output);
  if (!p.sums) return;
  merge_columns<Tile>(output.sums, staged, [&](int column, const Sums<3>& sums) {
    if (column < columns) store_sums(p, band, col0 + column, sums);
  });
}

}  // namespace conv2d::fused
