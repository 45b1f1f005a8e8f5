// One block of fwd or bwd_x: decodes its rows, reduces over taps and channels, and writes its tile.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/load.cuh"
#include "conv2d/mainloop.cuh"
#include "conv2d/packed.cuh"

namespace conv2d {

// The number of output pixels in the slices: the rows of the GEMM.
__device__ __forceinline__ i64 gather_rows(const GatherParams& p, const Slice& slice_h, const Slice& slice_w) {
  return i64(p.images) * slice_h.count * slice_w.count;
}

__device__ __forceinline__ i64 gather_length(const GatherParams& p, const Slice& slice_h, const Slice& slice_w) {
  return i64(slice_h.taps) * slice_w.taps * p.in_c;
}

// With packed groups: the sum that belongs to column n, over its own group's channels and k from `begin` to `end`.
template <typename T, class B, class Source>
__device__ __forceinline__ float own_sum(const GatherParams& p, const Source& in, const Slice& slice_h,
                                         const Slice& slice_w, const Row& row, int group, int n, i64 begin, i64 end) {
  const int channels = p.in_c / B::packed(p), first = n / (p.out_c / B::packed(p)) * channels;
  float sum = 0.0f;
  for (int tap = 0; tap < slice_h.taps * slice_w.taps; ++tap) {
    const int r = tap / slice_w.taps, s = tap % slice_w.taps, y = row.h + r * slice_h.shift,
        x = row.w + s * slice_w.shift;
    if (u32(y) >= u32(p.axis_h.input) || u32(x) >= u32(p.axis_w.input)) continue;
    const u32 pixel = (u32(row.image) * u32(p.axis_h.input) + u32(y)) * u32(p.axis_w.input) + u32(x);
    for (int c = 0; c < channels; ++c) {
      const i64 k = i64(tap) * p.in_c + first + c;
      if (k < begin || k >= end) continue;
      const float w = to_float(B::weight(p, slice_h, slice_w, group, r, s, c, n));
      sum = fmaf(to_float(in.value(pixel, first + c)), w, sum);
    }
  }
  return sum;
}

// Replaces each staged sum whose own group makes it non-finite: FiniteOnly left those elements out. Ends with a
// barrier.
template <typename T, class Tile, class B, class Source>
__device__ __forceinline__ void restore_own(const GatherParams& p, const Source& in, const Slice& slice_h,
                                            const Slice& slice_w, const Block& block, float* staged, const Row* rows) {
  const Range range(gather_length(p, slice_h, slice_w), DEPTH<T, Tile>, p.splits, block.split);
  const i64 begin = i64(range.begin) * DEPTH<T, Tile>, end = begin + i64(range.count) * DEPTH<T, Tile>;
  for (int i = int(threadIdx.x); i < Tile::M * Tile::N; i += Tile::THREADS) {
    const int m = i / Tile::N, n = block.n_tile * Tile::N + i % Tile::N;
    if (rows[m].out < 0 || n >= p.out_c) continue;
    const float sum = own_sum<T, B>(p, in, slice_h, slice_w, rows[m], block.group, n, begin, end);
    if (!is_finite(sum)) staged[m * Tile::STAGED_STRIDE + i % Tile::N] = sum;
  }
  __syncthreads();
}

// Reduces the tile of `block` over `in` and stages it at the start of `shared`, for write_tile; decodes its rows into
// `rows`. B is the weight loader; it is K-major in fwd.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR, class Source>
__device__ __forceinline__ float* gather_tile(const GatherParams& p, const Source& in, const Slice& slice_h,
                                              const Slice& slice_w, const Block& block, u8* shared, Row* rows) {
  decode_rows<Tile>(rows, p, slice_h, slice_w, block.m_tile);
  const i64 length = gather_length(p, slice_h, slice_w);
  Multiply<T, Tile, true, B_K_MAJOR, 0> multiply;
  bool again = false;  // packed groups with a sum that is not finite
  if (length > 0) {
    const Range range(length, DEPTH<T, Tile>, p.splits, block.split);
    const i64 k0 = i64(range.begin) * DEPTH<T, Tile>;
    PixelRows<T, Tile, VECTOR, Source> a(p, in, slice_h, slice_w, rows, k0);
    B b(p, slice_h, slice_w, block.group, block.n_tile * Tile::N, k0);
    run_stages<Tile>(a, b, multiply, shared, range.count);
    if constexpr (B::PACKED) {
      again = __syncthreads_or(!multiply.finite()) != 0;
      if (again) {
        multiply.clear();
        PixelRows<T, Tile, VECTOR, FiniteOnly<T, Source>> finite(p, {in}, slice_h, slice_w, rows, k0);
        B weights(p, slice_h, slice_w, block.group, block.n_tile * Tile::N, k0);
        run_stages<Tile>(finite, weights, multiply, shared, range.count);
      }
    }
  }
  float* staged = reinterpret_cast<float*>(shared);
  multiply.put(staged);
  __syncthreads();
  if constexpr (B::PACKED)
    if (again) restore_own<T, Tile, B>(p, in, slice_h, slice_w, block, staged, rows);
  return staged;
}

// Writes the partial sums of a tile, for p.splits > 1.
template <class Tile>
__device__ __forceinline__ void write_partial(const GatherParams& p, const Block& block, const float* staged,
                                              const Row* rows) {
  const int n0 = block.n_tile * Tile::N;
  const i64 pixels = i64(p.images) * p.axis_h.output * p.axis_w.output;
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, block.group * p.out_c + n0, p.out_c - n0,
                   partial_output(p.partial, block.split, pixels, i64(p.groups) * p.out_c, p.flags));
}

// The epilogue of conv2d.
template <typename T>
__device__ __forceinline__ Output<T> gather_output(const GatherParams& p) {
  return {static_cast<T*>(p.out), p.out_stride, p.scale, p.shift, static_cast<const T*>(p.residual),
          p.residual_stride, (p.flags & RELU) != 0, (p.flags & ACCUMULATE) != 0, (p.flags & VECTOR_OUT) != 0};
}

// Computes one tile. `in` is the source of the block's group; the slices say which pixels and taps are the block's.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR, class Source>
__device__ __forceinline__ void gather(const GatherParams& p, const Source& in, const Slice& slice_h,
                                       const Slice& slice_w) {
  const Block block(p.n_tiles, p.groups);
  // this residue has fewer rows than the largest
  if (i64(block.m_tile) * Tile::M >= gather_rows(p, slice_h, slice_w)) return;
  // no tap reaches this residue
  if (gather_length(p, slice_h, slice_w) == 0 && p.splits == 1 && (p.flags & ACCUMULATE) != 0) return;

  SHARED(u8, shared);
  Row* rows = reinterpret_cast<Row*>(shared + Tile::SHARED_BYTES);
  const float* staged = gather_tile<T, Tile, VECTOR, B, B_K_MAJOR>(p, in, slice_h, slice_w, block, shared, rows);
  if (p.splits > 1) {
    write_partial<Tile>(p, block, staged, rows);
    return;
  }
  const int n0 = block.n_tile * Tile::N;
  write_tile<Tile>(staged, [&](int i) { return i64(rows[i].out); }, block.group * p.out_c + n0, p.out_c - n0,
                   gather_output<T>(p));
}

// As above, for a tensor as it is.
template <typename T, class Tile, bool VECTOR, class B, bool B_K_MAJOR>
__device__ __forceinline__ void gather(const GatherParams& p, const Slice& slice_h, const Slice& slice_w) {
  const int group = Block(p.n_tiles, p.groups).group;
  const AsItIs<T> in{Pixels<T>(p.input, i64(group) * p.in_c, p.in_stride)};
  gather<T, Tile, VECTOR, B, B_K_MAJOR>(p, in, slice_h, slice_w);
}

}  // namespace conv2d
