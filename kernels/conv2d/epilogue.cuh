// Writes the sums of a block to global memory.
#pragma once

#include "conv2d/tile.cuh"

namespace conv2d {

// The output, a matrix of T: y = relu(scale[col] * sum + shift[col] + residual[row][col]), each part optional.
template <typename T>
struct Output {
  T* out;
  i64 stride;
  const float* scale;
  const float* shift;
  const T* residual;
  i64 residual_stride;
  bool relu, accumulate, vector;

  // Puts W adjacent results and returns the stored values.
  template <int W>
  __device__ __forceinline__ Vec<T, W> put(i64 row, int col, const float* sums) const {
    T* y = out + row * stride + col;
    Vec<T, W> old{}, other{};
    if (accumulate) old = load<T, W>(y);
    if (residual) other = load<T, W>(residual + row * residual_stride + col);
#pragma unroll
    for (int e = 0; e < W; ++e) {
      float v = sums[e];  // rounded after each step: the compiler must not contract, so that all devices agree
      if (scale) v = __fmul_rn(v, scale[col + e]);
      if (shift) v = __fadd_rn(v, shift[col + e]);
      if (residual) v = __fadd_rn(v, to_float(other.v[e]));
      if (relu) v = rectified(v);
      if (accumulate) v = __fadd_rn(v, to_float(old.v[e]));
      old.v[e] = from_float<T>(v);
    }
    store(y, old);
    return old;
  }

  // Puts the first `count` of eight adjacent results.
  __device__ __forceinline__ void put_chunk(i64 row, int col, int count, const float (&sums)[8]) const {
    if (vector) {
#pragma unroll
      for (int e = 0; e < 8; e += WIDTH<T>) put<WIDTH<T>>(row, col + e, sums + e);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < count) put<1>(row, col + e, sums + e);
    }
  }
};

// Writes a staged tile to `output`: row i to row `row_of(i)`, unless that is negative, and column j < columns to column
// col0 + j. Adjacent threads write adjacent chunks.
template <class Tile, class RowOf, class Out>
__device__ __forceinline__ void write_tile(const float* staged, const RowOf& row_of, int col0, int columns,
                                           Out&& output) {
  constexpr int CHUNKS = Tile::N / 8;
  for (int i = int(threadIdx.x); i < Tile::M * CHUNKS; i += Tile::THREADS) {
    const int m = i / CHUNKS, n = i % CHUNKS * 8;
    const i64 row = row_of(m);
    if (row < 0 || n >= columns) continue;
    const float* p = staged + m * Tile::STAGED_STRIDE + n;
    const Vec<float, 4> low = load<float, 4>(p), high = load<float, 4>(p + 4);
    const float sums[8] = {low.v[0], low.v[1], low.v[2], low.v[3], high.v[0], high.v[1], high.v[2], high.v[3]};
    output.put_chunk(row, col0 + n, columns - n, sums);
  }
}

// The partial sums of one split: a dense matrix of floats.
__device__ __forceinline__ Output<float> partial_output(float* partial, int split, i64 rows, i64 cols, int flags) {
  return {partial + split * rows * cols, cols, nullptr, nullptr, nullptr, 0, false, false,
          (flags & VECTOR_PARTIAL) != 0};
}

}  // namespace conv2d
