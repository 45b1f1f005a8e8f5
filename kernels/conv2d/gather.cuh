// The block of fwd and bwd_x: decode its rows, reduce over taps and channels, write.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/load.cuh"
#include "conv2d/mainloop.cuh"
#include "conv2d/packed.cuh"

namespace conv2d {

// The rows of a block: output pixels of the slices h, v.
__device__ __forceinline__ i64 gather_rows(const GatherParams& p, const Slice& h, const Slice& v) {
  return i64(p.images) * h.count * v.count;
}

__device__ __forceinline__ i64 gather_length(const GatherParams& p, const Slice& h, const Slice& v) {
  return i64(h.taps) * v.taps * p.in_c;
}

// The sum of column n of packed groups over the channels of its own, in one split of the reduction.
template <typename T, class B, class Source>
__device__ __forceinline__ float own_sum(const GatherParams& p, const Source& in, const Slice& h, const Slice& v,
                                         const Row& row, int group, int n, i64 begin, i64 end) {
  const int channels = p.in_c / B::packed(p), first = n / (p.out_c / B::packed(p)) * channels;
  float sum = 0.0f;
  for (int t = 0; t < h.taps * v.taps; ++t) {
    const int r = t / v.taps, s = t % v.taps, y = row.h + r * h.shift, x = row.v + s * v.shift;
    if (u32(y) >= u32(p.h.in) || u32(x) >= u32(p.v.in)) continue;
    const u32 pixel = (u32(row.image) * u32(p.h.in) + u32(y)) * u32(p.v.in) + u32(x);
    for (int c = 0; c < channels; ++c) {
      const i64 k = i64(t) * p.in_c + first + c;
      if (k < begin || k >= end) continue;
      const float w = to_float(B::weight(p, h, v, group, r, s, c, n));
      sum = fmaf(to_float(in.value(pixel, first + c)), w, sum);
    }
  }
  return sum;
}

// Replaces each staged sum whose own group has a pixel that is not finite: the staged ones left such pixels out. Ends
// with a barrier.
template <typename T, class Tile, class B, class Source>
__device__ __forceinline__ void restore_own(const GatherParams& p, const Source& in, const Slice& h, const Slice& v,
                                            const Block& block, float* staged, const Row* rows) {
  const Range range(gather_length(p, h, v), DEPTH<T, Tile>, p.splits, block.split);
  const i64 begin = i64(range.begin) * DEPTH<T, Tile>, end = begin + i64(range.count) * DEPTH<T, Tile>;
  for (int i = int(threadIdx.x); i < Tile::M * Tile::N; i += Tile::THREADS) {
    const int m = i / Tile::N, n = block.n_tile * Tile::N + i % Tile::N;
    if (rows[m].out < 0 || n >= p.out_c) continue;
    const float sum = own_sum<T, B>(p, in, h, v, rows[m], block.group, n, begin, end);
    if (!is_finite(sum)) staged[m * Tile::STAGED_STRIDE + i % Tile::N] = sum;
  }
  __syncthreads();
}

// Reduces the tile of `block` over the slices h, v of `in` and leaves it at the start of `shared`, as write_tile takes
// it, and its rows in `rows`. B is the loader of the weights; K-major in fwd.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR, class Source>
__device__ __forceinline__ float* gather_tile(const GatherParams& p, const Source& in, const Slice& h, const Slice& v,
                                              const Block& block, u8* shared, Row* rows) {
  decode_rows<Tile>(rows, p, h, v, block.m_tile);
  const i64 length = gather_length(p, h, v);
  Multiply<T, Tile, true, B_K_MAJOR, 0> multiply;
  bool again = false;  // with packed groups: not all is finite
  if (length > 0) {
    const Range range(length, DEPTH<T, Tile>, p.splits, block.split);
    const i64 k0 = i64(range.begin) * DEPTH<T, Tile>;
    PixelRows<T, Tile, VECTOR, Source> a(p, in, h, v, rows, k0);
    B b(p, h, v, block.group, block.n_tile * Tile::N, k0);
    run_stages<Tile>(a, b, multiply, shared, range.count);
    if constexpr (B::PACKED) {
      again = __syncthreads_or(!multiply.finite()) != 0;
      if (again) {
        multiply.clear();
        PixelRows<T, Tile, VECTOR, FiniteOnly<T, Source>> finite(p, {in}, h, v, rows, k0);
        B weights(p, h, v, block.group, block.n_tile * Tile::N, k0);
        run_stages<Tile>(finite, weights, multiply, shared, range.count);
      }
    }
  }
  float* staged = reinterpret_cast<float*>(shared);
  multiply.put(staged);
  __syncthreads();
  if constexpr (B::PACKED)
    if (again) restore_own<T, Tile, B>(p, in, h, v, block, staged, rows);
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
