// The first layer of a network: at most four channels at a pixel stride of four elements. The reduction runs over
// (r, s, four channels); a chunk holds two taps of 16-bit elements or one of f32. The elements between the channels and
// the next pixel are never read: cp.async writes zeros instead.
#pragma once

#include "conv2d/load_weight.cuh"

namespace conv2d {

constexpr int STEM_C = 4;

// Taps per chunk.
template <typename T>
constexpr int STEM_TAPS = WIDTH<T> / STEM_C;

// The source of a stem: images of `channels` channels, at most four, at a pixel stride of four elements.
template <typename T>
struct StemPixels {
  static constexpr bool PENDING = false;
  Pixels<T> x;
  u32 bytes;  // of the channels

  __device__ __forceinline__ StemPixels(const void* tensor, int channels)
      : x(tensor, 0, STEM_C), bytes(u32(channels) * u32(sizeof(T))) {}

  // Copies tap `i` of a chunk: the channels of a pixel and zeros up to four, or only zeros outside the image.
  __device__ __forceinline__ void copy(u8* chunk, int i, u32 pixel, bool inside) const {
    const u8* src = x.at(pixel, 0);
    u8* dst = chunk + i * STEM_C * int(sizeof(T));
    if constexpr (STEM_TAPS<T> == 1)
      ptx::cp_async_16(dst, src, inside ? bytes : 0);
    else
      ptx::cp_async_8(dst, src, inside ? bytes : 0);
  }
};

// Operand A of fwd.
template <typename T, class Tile>
struct PixelRows<T, Tile, true, StemPixels<T>> : PixelRows<T, Tile, true, AsItIs<T>> {
  using Base = PixelRows<T, Tile, true, AsItIs<T>>;
  using Mine = typename Base::Mine;
  StemPixels<T> source;

  __device__ __forceinline__ PixelRows(const GatherParams& p, const StemPixels<T>& from, const Slice& slice_h,
                                       const Slice& slice_w, const Row* rows, i64 k0)
      : Base(p, AsItIs<T>{from.x}, slice_h, slice_w, rows, k0), source(from) {}

  __device__ __forceinline__ void load(u8* tile, int) {
    Counter c = this->k;
#pragma unroll
    for (int tap = 0; tap < STEM_TAPS<T>; ++tap) {
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i)
        if (Mine::has(i))
          source.copy(tile + Mine::slot(this->slot, i), tap, this->pixel_at(c, i), this->inside(c, i));
      this->radix.advance(c, {0, 1, 0});
    }
    this->radix.advance(this->k, this->step);
  }
};

// Operand B of bwd_w.
template <typename T, class Tile>
struct PixelColumns<T, Tile, true, StemPixels<T>> : PixelColumns<T, Tile, true, AsItIs<T>> {
  using Base = PixelColumns<T, Tile, true, AsItIs<T>>;
  using Mine = typename Base::Mine;
  StemPixels<T> source;

  __device__ __forceinline__ PixelColumns(const WeightParams& params, const StemPixels<T>& from, int n0, i64 k0)
      : Base(params, AsItIs<T>{from.x}, n0, k0), source(from) {}

  __device__ __forceinline__ void load(u8* tile, int) {
    Counter c = this->column;
#pragma unroll
    for (int tap = 0; tap < STEM_TAPS<T>; ++tap) {
#pragma unroll
      for (int i = 0; i < Mine::PASSES; ++i) {
        if (!Mine::has(i)) continue;
        u32 pixel;
        const bool ok = this->find(this->k[i], c, pixel);
        source.copy(tile + Mine::slot(this->slot, i), tap, pixel, ok);
      }
      this->columns.advance(c, {0, 1, 0});
    }
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) this->pixels.advance(this->k[i], this->step);
  }
};

// Operand B of fwd: column n is an output channel, k = (tap, four channels); w has only w_c of the four. It fits in L1.
template <typename T, class Tile>
struct StemRows {
  using Layout = Swizzled<Tile::N, Tile::K_BYTES>;
  using Mine = ThreadChunks<Layout, Tile::N, Tile::THREADS>;
  static constexpr bool PENDING = false, PACKED = false;

  const u8* w;    // the thread's next taps in pass 0
  i64 pass_bytes;  // from pass to pass
  int slot, rows, left, w_c;  // left: taps from `w` on

  __device__ __forceinline__ StemRows(const GatherParams& p, const Slice&, const Slice&, int, int n0, i64 k0)
      : slot(Mine::slot()), rows(p.out_c - n0 - Mine::row(0)), w_c(p.w_c) {
    const int taps = p.axis_h.taps * p.axis_w.taps, tap = int(k0) / STEM_C + Mine::chunk() * STEM_TAPS<T>;
    w = bytes_of<T>(p.w, (i64(n0 + Mine::row(0)) * taps + tap) * w_c);
    pass_bytes = Mine::PER_PASS * i64(taps) * w_c * int(sizeof(T));
    left = taps - tap;
  }

  __device__ __forceinline__ void load(u8* tile, int) {
#pragma unroll
    for (int i = 0; i < Mine::PASSES; ++i) {
      if (!Mine::has(i)) continue;
      const int taps = i * Mine::PER_PASS < rows ? left : 0;
      Vec<T, WIDTH<T>> values;
#pragma unroll
      for (int e = 0; e < WIDTH<T>; ++e) {
        const int tap = e / STEM_C, channel = e % STEM_C;
        const u8* src = w + i * pass_bytes + (tap * w_c + channel) * int(sizeof(T));
        values.v[e] = tap < taps && channel < w_c ? read<T>(src) : T{};
      }
      store(reinterpret_cast<T*>(tile + Mine::slot(slot, i)), values);
    }
    constexpr int STAGE_TAPS = DEPTH<T, Tile> / STEM_C;
    w += STAGE_TAPS * w_c * int(sizeof(T));
    left -= STAGE_TAPS;
  }
};

}  // namespace conv2d
