// The epilogue of bwd_x: masks the gradient by the ReLU before x and leaves the sums for the gradient of the batch norm
// before x.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/fused/columns.cuh"
#include "conv2d/fused/params.cuh"

namespace conv2d::fused {

// v = result (+ old dx, unless SCALED), or 0 if the ReLU output is 0. Stores v, or with SCALED scale * v (+ old dx).
// Sums v, v (y0 - mean0) and v (y1 - mean1) per column: v after rounding to T, or before if SCALED. Behind a closed
// gate y0 and mean0 are not read, and their sum is 0.
template <typename T>
struct MaskedOutput {
  const DataGradientParams& p;
  float scale[8], shift[8], mean0[8], mean1[8];
  Sums<3> sums[8] = {};
  const bool reads_y0;

  // For the eight columns from `col` on, of which `count` exist.
  __device__ __forceinline__ MaskedOutput(const DataGradientParams& params, int col, int count)
      : p(params), reads_y0(p.y0 && (p.gate == nullptr || *p.gate != 0.0f)) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      scale[e] = p.scale && e < count ? p.scale[col + e] : 0.0f;
      shift[e] = p.shift && e < count ? p.shift[col + e] : 0.0f;
      mean0[e] = reads_y0 && e < count ? p.mean0[col + e] : 0.0f;
      mean1[e] = p.mean1 && e < count ? p.mean1[col + e] : 0.0f;
    }
  }

  // Puts W adjacent results, from the thread's column `at` on.
  template <int W>
  __device__ __forceinline__ void put(i64 row, int col, int at, const float* results) {
    const bool accumulate = (p.flags & ACCUMULATE) != 0, scaled = (p.flags & SCALED) != 0;
    T* dst = static_cast<T*>(p.out) + row * p.out_stride + col;
    Vec<T, W> there{}, y0{}, y1{};
    if (accumulate) there = load<T, W>(dst);
    if (reads_y0) y0 = load<T, W>(static_cast<const T*>(p.y0) + row * p.y0_stride + col);
    if (p.y1) y1 = load<T, W>(static_cast<const T*>(p.y1) + row * p.y1_stride + col);
    const u32 bits = p.bits ? u32(p.bits[row * p.bits_stride + col / 8]) >> (col % 8) : ~0u;
#pragma unroll
    for (int e = 0; e < W; ++e) {
      const int j = at + e;
      const float old = to_float(there.v[e]);
      float v = results[e];
      if (accumulate && !scaled) v = __fadd_rn(v, old);
      if ((p.flags & MASK) != 0 && to_float(from_float<T>(fmaf(to_float(y0.v[e]), scale[j], shift[j]))) <= 0) v = 0;
      if ((bits >> e & 1) == 0) v = 0;
      const float stored = !scaled ? v : accumulate ? fmaf(scale[j], v, old) : __fmul_rn(scale[j], v);
      there.v[e] = from_float<T>(stored);
      if (!scaled) v = to_float(there.v[e]);
      float(&sum)[3] = sums[j].f;
      sum[0] += v;
      sum[1] = fmaf(v, to_float(y0.v[e]) - mean0[j], sum[1]);
      sum[2] = fmaf(v, to_float(y1.v[e]) - mean1[j], sum[2]);
    }
    store(dst, there);
  }

  __device__ __forceinline__ void put_chunk(i64 row, int col, int count, const float (&results)[8]) {
    if ((p.flags & VECTOR_OUT) != 0) {
#pragma unroll
      for (int e = 0; e < 8; e += WIDTH<T>) put<WIDTH<T>>(row, col + e, e, results + e);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < count) put<1>(row, col + e, e, results + e);
    }
  }
};

// Stores a tile's sums of column `col`, which counts the channels of all groups.
__device__ __forceinline__ void store_sums(const DataGradientParams& p, i64 band, int col, const Sums<3>& sums) {
  const i64 channels = i64(p.groups) * p.out_c;
  const int count = p.y1 ? 3 : 2;
  for (int i = 0; i < count; ++i) p.sums[(i * i64(p.bands) + band) * channels + col] = sums.f[i];
}

}  // namespace conv2d::fused
