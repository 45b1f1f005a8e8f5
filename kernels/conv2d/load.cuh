// Loads the operands of fwd and bwd_x from global to shared memory.
//
// A loader serves one block and one range of the reduction. Each call of load() issues the copies of the next stage:
// with cp.async if VECTOR (16-byte accesses: the channels of a group, pixel strides and addresses are multiples of 16
// bytes), else element by element. Elements outside the tensor become zero.
//
// Activations come from a Source: AsItIs, or a source of fused/sources.cuh, which computes the operand and is PENDING:
// once a thread's copies of a stage have landed, finish() computes the operand in their place from the raw() chunks of
// the source's tensors and the numbers() of the channels, with a ReLU if the source `activates` (a constant in some
// sources, a flag of the launch in others). Without VECTOR, value() returns each element of the operand, computed. A
// KEPT source also stores each finished chunk to global memory if it `keeps`.
#pragma once

#include "conv2d/tile.cuh"

namespace conv2d {

// A row of the tile: an output pixel and the first input pixel that it reads.
struct Row {
  int out;    // pixel of the output tensor, or -1 below the last row
  int image;  // in both tensors
  int h, w;   // the input pixel under tap 0
};
static_assert(sizeof(Row) == 16, "16 bytes a row of the tile, as in variants.rs");

constexpr int NOWHERE = -(1 << 30);  // outside under every tap: the host keeps extents below 2^30

// Decodes the rows of the tile, once for all stages. Ends with a barrier.
template <class Tile>
__device__ __forceinline__ void decode_rows(Row* rows, const GatherParams& p, const Slice& slice_h,
                                            const Slice& slice_w, int m_tile) {
  for (int i = int(threadIdx.x); i < Tile::M; i += Tile::THREADS) {
    const u32 m = u32(m_tile) * Tile::M + u32(i), per_image = u32(slice_h.count) * u32(slice_w.count);
    const u32 image = m / per_image, pixel = m % per_image;
    Row row{-1, 0, NOWHERE, NOWHERE};
    if (image < u32(p.images)) {
      const int y = int(pixel / u32(slice_w.count)), x = int(pixel % u32(slice_w.count));
      row.out = (int(image) * p.axis_h.output + slice_h.first + y * slice_h.step) * p.axis_w.output + slice_w.first +
          x * slice_w.step;
      row.image = int(image);
      row.h = slice_h.origin + y * slice_h.stride;
      row.w = slice_w.origin + x * slice_w.stride;
    }
    rows[i] = row;
  }
  __syncthreads();
}

// base + row * row_bytes, in one multiply-add. May be out of bounds if it is not read.
__device__ __forceinline__ const u8* row_address(const u8* base, u32 row, u32 row_bytes) {
  return reinterpret_cast<const u8*>(reinterpret_cast<u64>(base) + u64(row) * row_bytes);
}

template <typename T>
__device__ __forceinline__ const u8* bytes_of(const void* tensor, i64 element) {
  return reinterpret_cast<const u8*>(static_cast<const T*>(tensor) + element);
}

// Reads an element, which no block writes, from global memory: the compiler cannot infer the address space of p.
template <typename T>
__device__ __forceinline__ T read(const u8* p) {
  return T{__ldg(reinterpret_cast<const u16*>(p))};
}
template <>
__device__ __forceinline__ float read<float>(const u8* p) {
  return __ldg(reinterpret_cast<const float*>(p));
}

// Copies the first `count` elements at src to a chunk in shared memory; the rest becomes zero.
template <typename T, bool VECTOR>
__device__ __forceinline__ void copy_chunk(u8* dst, const u8* src, int count) {
  if (VECTOR) {
    ptx::cp_async_16(dst, src, count > 0 ? 16 : 0);
  } else {
    Vec<T, WIDTH<T>> values;
#pragma unroll
    for (int e = 0; e < WIDTH<T>; ++e) values.v[e] = e < count ? read<T>(src + e * sizeof(T)) : T{};
    store(reinterpret_cast<T*>(dst), values);
  }
}

// One group's channels of a tensor of pixels.
template <typename T>
struct Pixels {
  const u8* base;  // of pixel 0
  u32 pixel_bytes;

  __device__ __forceinline__ Pixels(const void* tensor, i64 channel, int stride)
      : base(bytes_of<T>(tensor, channel)), pixel_bytes(u32(stride) * u32(sizeof(T))) {}

  __device__ __forceinline__ const u8* at(u32 pixel, int channel) const {
    return row_address(base + i64(channel) * int(sizeof(T)), pixel, pixel_bytes);
  }
};

// A source that is a tensor in memory.
template <typename T>
struct AsItIs {
  static constexpr bool PENDING = false;
  Pixels<T> x;

  // Copies a chunk of a pixel, or zeros if it is not inside the image.
  __device__ __forceinline__ void copy(u8* dst, u32 pixel, int channel, bool inside) const {
    ptx::cp_async_16(dst, x.at(pixel, channel), inside ? 16 : 0);
  }

  __device__ __forceinline__ T value(u32 pixel, int channel) const { return read<T>(x.at(pixel, channel)); }
};

// A bit for each of a thread's chunks in flight, 1 inside the image: a pending source transforms only these.
template <int PASSES, int STAGES>
struct Inside {
  static_assert(PASSES * STAGES <= 32, "a bit for each chunk in flight");
  static constexpr u32 ALL = (1u << PASSES) - 1;
  u32 bits = 0;

  __device__ __forceinline__ void set(int stage, u32 chunks) {
    const int at = stage * PASSES;
    bits = (bits & ~(ALL << at)) | chunks << at;
  }
  __device__ __forceinline__ u32 get(int stage) const { return bits >> (stage * PASSES) & ALL; }
};

// Finishes a thread's chunks whose bits are set; all chunks have the same channels. Reads every chunk before it stores
// any, so that latencies overlap, and discards the results of the others.
template <bool RELU, class Mine, class Source>
__device__ __forceinline__ void finish_all(const Source& source, u8* tile, int slot, int channel, u32 chunks) {
  const typename Source::Numbers numbers = source.numbers(channel);
  typename Source::Raw raw[Mine::PASSES];
#pragma unroll
  for (int i = 0; i < Mine::PASSES; ++i)
    if (Mine::has(i)) raw[i] = source.raw(tile + Mine::slot(slot, i));
#pragma unroll
  for (int i = 0; i < Mine::PASSES; ++i) {
    const Chunk whole = source.template finished<RELU>(raw[i], numbers);
    if ((chunks >> i & 1) != 0) store(reinterpret_cast<u32*>(tile + Mine::slot(slot, i)), whole);
  }
}

template <class Mine, class Source>
__device__ __forceinline__ void finish_chunks(const Source& source, u8* tile, int slot, int channel, u32 chunks) {
  if (chunks == 0 || !source.pending()) return;
  if (source.activates)
    finish_all<true, Mine>(source, tile, slot, channel, chunks);
  else
    finish_all<false, Mine>(source, tile, slot, channel, chunks);
}

// Operand A of fwd and bwd_x: row m is an output pixel, k = (tap row, tap column, channel) an element of the input
// pixels that it gathers. Rows of K_BYTES in shared memory.
template <typename T, class Tile, bool VECTOR, class Source>
struct PixelRows {
  using Layout = Swizzled<Tile::M, Tile::K_BYTES>;
  using Mine = ThreadChunks<Layout, Tile::M, Tile::THREADS>;
  static constexpr bool PENDING = VECTOR && Source::PENDING;

  Source in;
  int slot, in_h, in_w, taps, shift_h, shift_w;
  int channel;  // of the next stage to finish
  Inside<Mine::PASSES, Tile::STAGES> held;
  Radix radix;
  Counter k, step;
  u32 pixel[Mine::PASSES];  // under tap 0, modulo 2^32: it may lie outside
  int h[Mine::PASSES], w[Mine::PASSES];

  __device__ __forceinline__ PixelRows(const GatherParams& p, const Source& source, const Slice& slice_h,
                                       const Slice& slice_w, const Row* rows, i64 k0)
      : in(source), slot(Mine::slot()), in_h(p.axis_h.input), in_w(p.axis_w.input),
        taps(slice_h.taps), shift_h(slice_h.shift), shift_w(slice_w.shift),
        radix{slice_w.taps, p.in_c} {
    k = radix.split(k0 + Mine::chunk() * WIDTH<T>);
    step = radix.split(DEPTH<T, Tile>);
    channel = k.lo;
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      const Row row = rows[Mine::has(i) ? Mine::row(i) : 0];
      h[i] = row.h;
      w[i] = row.w;
      pixel[i] = (u32(row.image) * u32(in_h) + u32(row.h)) * u32(in_w) + u32(row.w);
    }
  }

  __device__ __forceinline__ bool inside(const Counter& c, int i) const {
    return c.hi < taps && u32(h[i] + c.hi * shift_h) < u32(in_h) && u32(w[i] + c.mid * shift_w) < u32(in_w);
  }

  // The input pixel of pass i's row under tap c; valid if inside(c, i).
  __device__ __forceinline__ u32 pixel_at(const Counter& c, int i) const {
    return pixel[i] + u32(c.hi * shift_h) * u32(in_w) + u32(c.mid * shift_w);
  }

  __device__ __forceinline__ void load(u8* tile, int stage) {
    if constexpr (VECTOR) {
      u32 chunks = 0;
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i) {
        if (!Mine::has(i)) continue;
        const bool ok = inside(k, i);
        in.copy(tile + Mine::slot(slot, i), pixel_at(k, i), k.lo, ok);
        chunks |= u32(ok) << i;
      }
      if (PENDING) held.set(stage, chunks);
    } else {
      Vec<T, WIDTH<T>> values[Mine::PASSES];
      Counter c = k;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e, radix.increment(c)) {
#pragma unroll
        for (int i = 0; i < Mine::PASSES; ++i) values[i].v[e] = inside(c, i) ? in.value(pixel_at(c, i), c.lo) : T{};
      }
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i)
        if (Mine::has(i)) store(reinterpret_cast<T*>(tile + Mine::slot(slot, i)), values[i]);
    }
    radix.advance(k, step);
  }

  // For 1x1 kernels only, whose one tap is the pixel itself.
  __device__ __forceinline__ void keep(const u8* tile, u32 chunks) const {
    if (!in.keeps) return;
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i)
      if ((chunks >> i & 1) != 0) in.keep(tile + Mine::slot(slot, i), pixel[i], channel);
  }

  __device__ __forceinline__ void finish(u8* tile, int stage) {
    finish_chunks<Mine>(in, tile, slot, channel, held.get(stage));
    if constexpr (Source::KEPT) keep(tile, held.get(stage));
    channel += step.lo;
    if (channel >= radix.lo) channel -= radix.lo;
  }
};

// Operand B of fwd: column n is an output channel, whose weights are consecutive in k. Rows of K_BYTES.
template <typename T, class Tile, bool VECTOR>
struct WeightRows {
  using Layout = Swizzled<Tile::N, Tile::K_BYTES>;
  using Mine = ThreadChunks<Layout, Tile::N, Tile::THREADS>;
  static constexpr bool PENDING = false, PACKED = false;

  const u8* w;    // the thread's next chunk in pass 0
  i64 pass_bytes;  // from pass to pass
  int slot, rows, left;  // rows and elements from `w` on

  __device__ __forceinline__ WeightRows(const GatherParams& p, const Slice&, const Slice&, int group, int n0, i64 k0)
      : slot(Mine::slot()), rows(p.out_c - n0 - Mine::row(0)) {
    const i64 length = i64(p.axis_h.taps) * p.axis_w.taps * p.in_c, k = k0 + Mine::chunk() * WIDTH<T>;
    w = bytes_of<T>(p.w, (i64(group) * p.out_c + n0 + Mine::row(0)) * length + k);
    pass_bytes = Mine::PER_PASS * length * int(sizeof(T));
    left = int(length - k);
  }

  __device__ __forceinline__ void load(u8* tile, int) {
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i)
      if (Mine::has(i))
        copy_chunk<T, VECTOR>(tile + Mine::slot(slot, i), w + i * pass_bytes,
                              i * Mine::PER_PASS < rows ? left : 0);
    w += Tile::K_BYTES;
    left -= DEPTH<T, Tile>;
  }
};

// Operand B of bwd_x: row k = (tap row, tap column, output channel) of the convolution, column n one of its input
// channels, which are consecutive. Rows of N elements.
template <typename T, class Tile, bool VECTOR>
struct WeightColumns {
  static constexpr bool PENDING = false, PACKED = false;
  static constexpr int ROWS = DEPTH<T, Tile>;
  using Layout = Swizzled<ROWS, Tile::N * int(sizeof(T))>;
  using Mine = ThreadChunks<Layout, ROWS, Tile::THREADS>;

  const u8* w;     // the thread's channels under the first tap of output channel 0 of the group
  u32 tap_bytes;   // from one tap to the next
  int slot, taps_h, taps, step_h, step_w, left;
  Radix radix;
  Counter k[Mine::PASSES], step;

  __device__ __forceinline__ WeightColumns(const GatherParams& p, const Slice& slice_h, const Slice& slice_w,
                                           int group, int n0, i64 k0)
      : tap_bytes(u32(p.out_c) * u32(sizeof(T))), slot(Mine::slot()), taps_h(slice_h.taps),
        taps(p.axis_h.taps * p.axis_w.taps),
        step_h(slice_h.tap_step * p.axis_w.taps), step_w(slice_w.tap_step), radix{slice_w.taps, p.in_c} {
    const int column = n0 + Mine::chunk() * WIDTH<T>, tap = slice_h.tap * p.axis_w.taps + slice_w.tap;
    left = p.out_c - column;
    w = bytes_of<T>(p.w, (i64(group) * p.in_c * taps + tap) * p.out_c + column);
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
      const u8* src = row_address(w, u32(c.lo * taps + c.hi * step_h + c.mid * step_w), tap_bytes);
      copy_chunk<T, VECTOR>(tile + Mine::slot(slot, i), src, c.hi < taps_h ? left : 0);
    }
  }
};

}  // namespace conv2d
