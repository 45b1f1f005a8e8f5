// Applies a batch norm, or folds it into the convolution before it.
//   apply  y = gamma (x - mean) invstd + beta, optionally max(y, 0); at inference invstd = 1 / sqrt(running_var + eps)
//   fold   scale = survival gamma / sqrt(running_var + eps),  shift = survival beta + (bias - running_mean) scale, see
//          norm/line.cuh; survival is the branch's survival probability, or 1
//
// Tensors   x, y: rows of C channels in T, any pixel stride, 16-byte aligned if strips.wide is set; the rest dense f32.
// Method    apply subtracts the mean before it scales: with a single scale and shift, a mean far from 0 would cost y
//           its precision.
// Grid      apply x: strips.blocks_per_row * ceil(rows / rows_per_block); fold x: ceil(C / 256).
// Threads   256. Shared memory: none.
// Counted   apply: 3 FLOPs (4 with the ReLU) and 2 sizeof(T) bytes per element; fold: up to 400 FLOPs and 28 bytes per
//           channel.
#include "common/strips.cuh"
#include "norm/line.cuh"

namespace batch_norm {

template <typename T>
struct Apply {
  const T* x;
  T* y;
  const float* gamma;
  const float* beta;
  const float* mean;
  const float* spread;  // invstd, or the variance with `infer`
  i64 x_stride, y_stride;
  Strips strips;
  u32 relu, infer;
  float eps;
  u32 unused;
};
static_assert(sizeof(Apply<float>) == 112, "as in src/ops/batch_norm/launch.rs");

struct Fold {
  const float* gamma;
  const float* beta;
  const float* mean;
  const float* var;
  const float* bias;  // null if the convolution has none
  float* scale;
  float* shift;
  u32 channels;
  float eps;
  float survival;
  u32 unused;
};
static_assert(sizeof(Fold) == 72, "as in src/ops/batch_norm/launch.rs");

template <typename T>
__device__ __forceinline__ void apply(const Apply<T>& p) {
  constexpr int V = WIDTH<T>;
  const Share share = thread_share<V>(p.strips);
  const int n = strip_width<V>(p.strips, 0, share.channel);
  float scale[V], beta[V], mean[V], spread[V];
  load_channels<V>(scale, p.gamma, share.channel, n);
  load_channels<V>(beta, p.beta, share.channel, n);
  load_channels<V>(mean, p.mean, share.channel, n);
  load_channels<V>(spread, p.spread, share.channel, n);
#pragma unroll
  for (int j = 0; j < V; ++j) scale[j] *= p.infer ? 1.0f / sqrtf(spread[j] + p.eps) : spread[j];
#pragma unroll 2
  for (i64 row = share.first; row < share.end; row += share.step) {
    float v[V];
    load_strip<T, V>(v, p.x + row * p.x_stride + share.channel, n, p.strips.wide);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      v[j] = fmaf(v[j] - mean[j], scale[j], beta[j]);
      if (p.relu) v[j] = rectified(v[j]);
    }
    store_strip<T, V>(p.y + row * p.y_stride + share.channel, v, n, p.strips.wide);
  }
}

__device__ __forceinline__ void fold(const Fold& p) {
  const u32 c = blockIdx.x * STRIP_THREADS + threadIdx.x;
  if (c >= p.channels) return;
  const float deviation = sqrtf(p.var[c] + p.eps);
  const float bias = p.bias ? p.bias[c] : 0.0f;
  const float beta = p.survival * p.beta[c], gamma = p.survival * p.gamma[c];
  const norms::Line line = norms::line_through(p.mean[c] - bias, deviation, beta, gamma / deviation);
  p.scale[c] = line.scale;
  p.shift[c] = line.shift;
}

KERNEL(batch_norm_apply_f32, Apply<float>, STRIP_THREADS, 3, apply<float>)
KERNEL(batch_norm_apply_f16, Apply<f16>, STRIP_THREADS, 3, apply<f16>)
KERNEL(batch_norm_apply_bf16, Apply<bf16>, STRIP_THREADS, 3, apply<bf16>)
KERNEL(batch_norm_fold_f32, Fold, STRIP_THREADS, 2, fold)

}  // namespace batch_norm
