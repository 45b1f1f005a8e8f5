// Packed groups: several adjacent narrow groups are computed as one, so that their channels fill 16-byte accesses and
// the columns of a tile. The pixel loaders see one group of in_c (or dy_c, x_c) and out_c channels. Its weights are
// block-diagonal: for an output channel and a tap, w has only the w_c input channels of the channel's own group. The
// loaders here fill in the zeros, and bwd_w stores only the blocks on the diagonal (weigh_diagonal).
//
// A zero weight times an infinity or NaN of another group is NaN. If a sum of a tile is not finite, the tile is
// computed again with zeros for all non-finite elements (FiniteOnly), which gives groups without such elements their
// usual bits; then each sum with a non-finite element in its own group is computed alone (restore_own).
#pragma once

#include "conv2d/load.cuh"

namespace conv2d {

// Copies `count` channels at src from `channel` on into a chunk, in pieces of BYTES; channels out of range become zero.
// `channel` may be negative; both are multiples of a piece.
template <typename T, int BYTES>
__device__ __forceinline__ void copy_pieces(u8* dst, const u8* src, int channel, int count) {
  constexpr int STEP = BYTES / int(sizeof(T));
#pragma unroll
  for (int e = 0; e < WIDTH<T>; e += STEP) {
    const u8* from = src + i64(channel + e) * int(sizeof(T));
    const u32 bytes = u32(channel + e) < u32(count) ? BYTES : 0;
    u8* to = dst + e * int(sizeof(T));
    if constexpr (BYTES == 16) ptx::cp_async_16(to, from, bytes);
    if constexpr (BYTES == 8) ptx::cp_async_8(to, from, bytes);
    if constexpr (BYTES == 4) ptx::cp_async_4(to, from, bytes);
  }
}

// The largest piece, at most 16 bytes, that the alignment of w's rows allows.
template <typename T>
__device__ __forceinline__ u32 piece_bytes(const GatherParams& p) {
  const u32 bits = u32(p.w_c) * u32(sizeof(T)) | u32(reinterpret_cast<u64>(p.w)) | 16;
  return bits & (0u - bits);
}

// As copy_pieces, with pieces of `piece` bytes, the same in the whole grid.
template <typename T>
__device__ __forceinline__ void copy_diagonal(u8* dst, const u8* src, int channel, int count, u32 piece) {
  if (piece == 16) return copy_pieces<T, 16>(dst, src, channel, count);
  if (piece == 8) return copy_pieces<T, 8>(dst, src, channel, count);
  if (piece == 4) return copy_pieces<T, 4>(dst, src, channel, count);
  Vec<T, WIDTH<T>> values;  // single 16-bit elements: cp.async copies at least 4 bytes
#pragma unroll
  for (int e = 0; e < WIDTH<T>; ++e)
    values.v[e] = u32(channel + e) < u32(count) ? read<T>(src + i64(channel + e) * int(sizeof(T))) : T{};
  store(reinterpret_cast<T*>(dst), values);
}

// A source with zeros in place of elements that are not finite.
template <typename T, class Source>
struct FiniteOnly {
  static constexpr bool PENDING = true, KEPT = false;
  Source in;

  __device__ __forceinline__ void copy(u8* dst, u32 pixel, int channel, bool inside) const {
    in.copy(dst, pixel, channel, inside);
  }
};

template <class Mine, typename T, class Source>
__device__ __forceinline__ void finish_chunks(const FiniteOnly<T, Source>& source, u8* tile, int slot, int channel,
                                              u32 chunks) {
  const Source& in = source.in;
#pragma unroll
  for (int i = 0; i < Mine::PASSES; ++i) {
    if ((chunks >> i & 1) == 0) continue;
    u8* raw = tile + Mine::slot(slot, i);
    if constexpr (Source::PENDING) {  // one chunk at a time: few registers are left
      if (in.pending()) {
        const typename Source::Numbers numbers = in.numbers(channel);
        const Chunk whole = in.activates ? in.template finished<true>(in.raw(raw), numbers)
                                         : in.template finished<false>(in.raw(raw), numbers);
        store(reinterpret_cast<u32*>(raw), whole);
      }
    }
    T* chunk = reinterpret_cast<T*>(raw);
    Vec<T, WIDTH<T>> v = load<T, WIDTH<T>>(chunk);
#pragma unroll
    for (int e = 0; e < WIDTH<T>; ++e)
      if (!is_finite(to_float(v.v[e]))) v.v[e] = T{};
    store(chunk, v);
  }
}

// Operand B of fwd: column n is an output channel, k = (tap, input channel). Rows of K_BYTES.
template <typename T, class Tile>
struct PackedRows {
  using Layout = Swizzled<Tile::N, Tile::K_BYTES>;
  using Mine = ThreadChunks<Layout, Tile::N, Tile::THREADS>;
  static constexpr bool PENDING = false, PACKED = true;

  // The number of packed groups.
  __device__ __forceinline__ static int packed(const GatherParams& p) { return p.in_c / p.w_c; }

  // The weight of channel c of a group and column n, under tap (r, s) of the slices.
  __device__ __forceinline__ static T weight(const GatherParams& p, const Slice&, const Slice&, int group, int r, int s,
                                             int c, int n) {
    const i64 tap = (i64(group) * p.out_c + n) * (p.axis_h.taps * p.axis_w.taps) + r * p.axis_w.taps + s;
    return read<T>(bytes_of<T>(p.w, tap * p.w_c + c));
  }

  const u8* w;         // the thread's row in pass 0
  i64 pass_bytes;      // from pass to pass
  int slot, taps, w_c;
  u32 piece;
  Radix radix;
  Counter k, step;     // hi is the tap
  int own[Mine::PASSES];  // the first channel of the row's own group

  __device__ __forceinline__ PackedRows(const GatherParams& p, const Slice&, const Slice&, int group, int n0, i64 k0)
      : slot(Mine::slot()), taps(p.axis_h.taps * p.axis_w.taps), w_c(p.w_c), piece(piece_bytes<T>(p)), radix{1,
          p.in_c} {
    const i64 length = i64(taps) * w_c;
    const int group_rows = p.out_c / packed(p);
    w = bytes_of<T>(p.w, (i64(group) * p.out_c + n0 + Mine::row(0)) * length);
    pass_bytes = Mine::PER_PASS * length * int(sizeof(T));
    k = radix.split(k0 + Mine::chunk() * WIDTH<T>);
    step = radix.split(DEPTH<T, Tile>);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const int row = n0 + Mine::row(i);
      own[i] = row < p.out_c ? row / group_rows * w_c : NOWHERE;
    }
  }

  __device__ __forceinline__ void load(u8* tile, int) {
    const int count = k.hi < taps ? w_c : 0;
    const u8* tap = w + i64(k.hi) * w_c * int(sizeof(T));
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i)
      if (Mine::has(i))
        copy_diagonal<T>(tile + Mine::slot(slot, i), tap + i * pass_bytes, k.lo - own[i], count, piece);
    radix.advance(k, step);
  }
};

// Operand B of bwd_x: row k = (tap row, tap column, output channel) of the convolution, column n one of its input
// channels. Rows of N elements.
template <typename T, class Tile>
struct PackedColumns {
  static constexpr bool PENDING = false, PACKED = true;
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::N * int(sizeof(T))>;
  using Mine = ThreadChunks<Layout, ROWS, Tile::THREADS>;

  // The number of packed groups.
  __device__ __forceinline__ static int packed(const GatherParams& p) { return p.out_c / p.w_c; }

  // The weight of channel c of the group of column n, under tap (r, s) of the slices.
  __device__ __forceinline__ static T weight(const GatherParams& p, const Slice& slice_h, const Slice& slice_w,
                                             int group, int r, int s, int c, int n) {
    const int channel = n / p.w_c * (p.in_c / packed(p)) + c;
    const int tap = (slice_h.tap + r * slice_h.tap_step) * p.axis_w.taps + slice_w.tap + s * slice_w.tap_step;
    const i64 row = (i64(group) * p.in_c + channel) * (p.axis_h.taps * p.axis_w.taps) + tap;
    return read<T>(bytes_of<T>(p.w, row * p.w_c + n % p.w_c));
  }

  const u8* w;  // under the first tap of output channel 0
  int slot, taps_h, taps, step_h, step_w, column, w_c;
  u32 group_rows, piece;
  Radix radix;
  Counter k[Mine::PASSES], step;

  __device__ __forceinline__ PackedColumns(const GatherParams& p, const Slice& slice_h, const Slice& slice_w,
                                           int group, int n0, i64 k0)
      : slot(Mine::slot()), taps_h(slice_h.taps), taps(p.axis_h.taps * p.axis_w.taps),
        step_h(slice_h.tap_step * p.axis_w.taps),
        step_w(slice_w.tap_step), column(n0 + Mine::chunk() * WIDTH<T>), w_c(p.w_c),
        group_rows(u32(p.in_c) / u32(packed(p))), piece(piece_bytes<T>(p)), radix{slice_w.taps, p.in_c} {
    w = bytes_of<T>(p.w, (i64(group) * p.in_c * taps + slice_h.tap * p.axis_w.taps + slice_w.tap) * w_c);
    step = radix.split(ROWS);
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) k[i] = radix.split(k0 + Mine::row(i));
  }

  __device__ __forceinline__ void load(u8* tile, int) {
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const Counter c = k[i];
      radix.advance(k[i], step);
      if (!Mine::has(i)) continue;
      const int own = int(u32(c.lo) / group_rows) * w_c;  // the first column of the row's own group
      const u8* src = row_address(w, u32(c.lo * taps + c.hi * step_h + c.mid * step_w), u32(w_c) * u32(sizeof(T)));
      copy_diagonal<T>(tile + Mine::slot(slot, i), src, column - own, c.hi < taps_h ? w_c : 0, piece);
    }
  }
};

}  // namespace conv2d
