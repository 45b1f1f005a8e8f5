// The epilogue of fwd: conv2d's, and the moments of the stored values.
#pragma once

#include "conv2d/epilogue.cuh"
#include "conv2d/fused/columns.cuh"

namespace conv2d::fused {

// Stores results and sums their differences from the thread's first value in each column, so that a mean far from 0
// costs no precision.
template <typename T>
struct MeasuredOutput {
  Output<T> output;
  float rows = 0, first[8], sum[8] = {}, squares[8] = {};

  __device__ __forceinline__ explicit MeasuredOutput(const Output<T>& to) : output(to) {}

  __device__ __forceinline__ void put_chunk(i64 row, int col, int count, const float (&sums)[8]) {
    float v[8] = {};
    if (output.vector) {
#pragma unroll
      for (int e = 0; e < 8; e += WIDTH<T>) {
        const Vec<T, WIDTH<T>> stored = output.template put<WIDTH<T>>(row, col + e, sums + e);
#pragma unroll
        for (int i = 0; i < WIDTH<T>; ++i) v[e + i] = to_float(stored.v[i]);
      }
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < count) v[e] = to_float(output.template put<1>(row, col + e, sums + e).v[0]);
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (rows == 0) first[e] = v[e];
      const float d = v[e] - first[e];
      sum[e] += d;
      squares[e] = fmaf(d, d, squares[e]);
    }
    rows += 1;
  }

  // Count, mean and sum of squared deviations of each column.
  __device__ __forceinline__ void moments(Moments (&m)[8]) const {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float d = rows == 0 ? 0.0f : sum[e] / rows;
      m[e].f[0] = rows;
      m[e].f[1] = rows == 0 ? 0.0f : first[e] + d;
      m[e].f[2] = rectified(fmaf(-sum[e], d, squares[e]));  // keeps NaN
    }
  }
};

}  // namespace conv2d::fused
