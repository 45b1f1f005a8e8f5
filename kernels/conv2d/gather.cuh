// The block of fwd and bwd_x: decode its rows, reduce over taps and channels, write.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/load.cuh"
#include "conv2d/mainloop.cuh"

namespace conv2d {

// The rows of a block: output pixels of the slices h, v.
__device__ __forceinline__ i64 gather_rows(const GatherParams& p, const Slice& h, const Slice& v) {
  return i64(p.images) * h.count * v.count;
}

__device__ __forceinline__ i64 gather_length(const GatherParams& p, const Slice& h, const Slice& v) {
  return i64(h.taps) * v.taps * p.in_c;
}

// Reduces the tile of `block` over the slices h, v of `in` and leaves it at the start of `shared`, as write_tile takes
// it, and its rows in `rows`. B is the loader of the weights; K-major in fwd.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR, class Source>
__device__ __forceinline__ float* gather_tile(const GatherParams& p, const Source& in, const Slice& h, const Slice& v,
                                              const Block& block, u8* shared, Row* rows) {
  decode_rows<Tile>(rows, p, h, v, block.m_tile);
  const i64 length = gather_length(p, h, v);
  Multiply<T, Tile, true, B_K_MAJOR, 0> multiply;
  if (length > 0) {
    const Range range(length, DEPTH<T, Tile>, p.splits, block.split);
    const i64 k0 = i64(range.begin) * DEPTH<T, Tile>;
    PixelRows<T, Tile, VECTOR, Source> a(p, in, h, v, rows, k0);
    B b(p, h, v, block.group, block.n_tile * Tile::N, k0);
    run_stages<Tile>(a, b, multiply, shared, range.count);
  }
  float* staged = reinterpret_cast<float*>(shared);
  multiply.put(staged);
  __syncthreads();
  return staged;
}

// Writes the partial sums of a tile: where p.splits > 1.
template <class Tile>
__device__ __forceinline__ void write_partial(const GatherParams& p, const Block& block, const float* staged,
                                              const Row* rows) {
  const int n0 = block.n_tile * Tile::N;
  const i64 pixels = i64(p.images) * p.h.out * p.v.out;
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, block.group * p.out_c + n0, p.out_c - n0,
                   partial_output(p.partial, block.split, pixels, i64(p.groups) * p.out_c, p.flags));
}

// The epilogue of conv2d.
template <typename T>
__device__ __forceinline__ Output<T> gather_output(const GatherParams& p) {
  return {static_cast<T*>(p.out), p.out_stride, p.scale, p.shift, static_cast<const T*>(p.residual),
          p.residual_stride, (p.flags & RELU) != 0, (p.flags & ACCUMULATE) != 0, (p.flags & VECTOR_OUT) != 0};
}

// Computes one tile for the slices h, v of `in`, a source of the block's group.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR, class Source>
__device__ __forceinline__ void gather(const GatherParams& p, const Source& in, const Slice& h, const Slice& v) {
  const Block block(p.n_tiles, p.groups);
  if (i64(block.m_tile) * Tile::M >= gather_rows(p, h, v)) return;  // this residue has fewer rows than the largest
  if (gather_length(p, h, v) == 0 && p.splits == 1 && (p.flags & ACCUMULATE) != 0) return;  // reached by no tap

  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  const float* staged = gather_tile<T, Tile, VECTOR, B, B_K_MAJOR>(p, in, h, v, block, shared, rows);
  if (p.splits > 1) {
    write_partial<Tile>(p, block, staged, rows);
    return;
  }
  const int n0 = block.n_tile * Tile::N;
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, block.group * p.out_c + n0, p.out_c - n0,
                   gather_output<T>(p));
}

// The same of a tensor.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR>
__device__ __forceinline__ void gather(const GatherParams& p, const Slice& h, const Slice& v) {
  const int group = Block(p.n_tiles, p.groups).group;
  gather<T, Tile, VECTOR, B, B_K_MAJOR>(p, AsItIs<T>{Pixels<T>(p.in, i64(group) * p.in_c, p.in_stride)}, h, v);
}

}  // namespace conv2d
