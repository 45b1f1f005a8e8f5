// partial[split][k] = sum of dy[row][k] over the split's rows: the first half of the bias gradient; conv2d_reduce adds
// the splits.
//
// Tensors   dy[N,P,Q,K] in f32, f16 or bf16, rows = N*P*Q pixels; partial[splits][K] in f32.
// Grid      x: blocks of 32 channels; y: splits of the rows. Threads: 256, eight rows of 32 channels at a time.
// Shared    8 * 32 floats, added in a fixed order.
// Counted   N*P*Q*K FLOPs; bytes: dy once.
#include "conv2d/params.cuh"

namespace conv2d {

constexpr int BIAS_COLS = 32, BIAS_ROWS = 8;

template <typename T>
__device__ __forceinline__ void bwd_bias(const BiasParams& p) {
  SHARED(float, sums);
  const int lane = int(threadIdx.x) % BIAS_COLS, line = int(threadIdx.x) / BIAS_COLS;
  const int col = int(blockIdx.x) * BIAS_COLS + lane;
  const i64 begin = blockIdx.y * p.rows_per_split;
  const i64 end = begin + p.rows_per_split < p.rows ? begin + p.rows_per_split : p.rows;

  float sum = 0;
  if (col < p.cols)
    for (i64 row = begin + line; row < end; row += BIAS_ROWS)
      sum += to_float(static_cast<const T*>(p.dy)[row * p.dy_stride + col]);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (line > 0 || col >= p.cols) return;
  for (int i = 1; i < BIAS_ROWS; ++i) sum += sums[i * BIAS_COLS + lane];
  p.partial[i64(blockIdx.y) * p.cols + col] = sum;
}

KERNEL(conv2d_bwd_bias_f32, BiasParams, 256, 4, (bwd_bias<float>))
KERNEL(conv2d_bwd_bias_f16, BiasParams, 256, 4, (bwd_bias<f16>))
KERNEL(conv2d_bwd_bias_bf16, BiasParams, 256, 4, (bwd_bias<bf16>))

}  // namespace conv2d
