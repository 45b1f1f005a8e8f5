// The per-channel numbers of a batch norm that other kernels apply, from its statistics.
//   affine        scale = gamma / sqrt(var + eps),  shift = beta - mean scale, see norm/line.cuh
//                 running_mean = keep running_mean + momentum mean,  running_var likewise with var m / (m - 1)
//   coefficients  dbeta = dy_sum,  dgamma = invstd dyx_sum,  a = gamma invstd,  b = -a invstd dgamma / m,
//                 c = -a dbeta / m - b mean;  b and c stored or added;  dbias = sum dy = a dy_sum + m (b mean + c)
//
// Tensors   all [C], f32.
// Grid      x: ceil(C / 256), one thread per channel.
// Threads   256. Shared memory: none.
// Counted   per channel: 10 FLOPs, up to 400 if the mean is many deviations from 0; 40 bytes.
#include "norm/line.cuh"

namespace norms {  // CUDA has a function `norm`

constexpr u32 THREADS = 256;

struct Affine {
  const float* gamma;
  const float* beta;
  const float* mean;
  const float* var;  // biased
  float* scale;
  float* shift;
  float* running_mean;
  float* running_var;
  u32 channels;
  float eps, momentum, keep;  // keep = 1 - momentum
  float unbiased;             // m / (m - 1)
  u32 unused;
};
static_assert(sizeof(Affine) == 88, "as in src/ops/norm/launch.rs");

struct Coefficients {
  const float* dy_sum;
  const float* dyx_sum;
  const float* gamma;
  const float* mean;
  const float* var;
  float* dgamma;
  float* dbeta;
  float* a;  // null if not needed
  float* b;
  float* c;
  float* dbias;  // null if y has no bias
  u32 channels;
  float eps, count, inverse_count;  // count = m, inverse_count = 1 / m
  u32 add_b, add_c;
};
static_assert(sizeof(Coefficients) == 112, "as in src/ops/norm/launch.rs");

__device__ __forceinline__ void affine(const Affine& p) {
  const u32 c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= p.channels) return;
  const float mean = p.mean[c], var = p.var[c], deviation = sqrtf(var + p.eps);
  const Line line = line_through(mean, deviation, p.beta[c], p.gamma[c] / deviation);
  p.scale[c] = line.scale;
  p.shift[c] = line.shift;
  p.running_mean[c] = fmaf(p.momentum, mean, p.keep * p.running_mean[c]);
  p.running_var[c] = fmaf(p.momentum, var * p.unbiased, p.keep * p.running_var[c]);
}

__device__ __forceinline__ void coefficients(const Coefficients& p) {
  const u32 k = blockIdx.x * THREADS + threadIdx.x;
  if (k >= p.channels) return;
  const float invstd = 1.0f / sqrtf(p.var[k] + p.eps);
  const float dbeta = p.dy_sum[k], dgamma = invstd * p.dyx_sum[k], a = p.gamma[k] * invstd;
  const float b = -a * invstd * (dgamma * p.inverse_count), c = fmaf(-b, p.mean[k], -a * (dbeta * p.inverse_count));
  p.dgamma[k] = dgamma;
  p.dbeta[k] = dbeta;
  if (p.a) p.a[k] = a;
  p.b[k] = p.add_b ? p.b[k] + b : b;
  p.c[k] = p.add_c ? p.c[k] + c : c;
  if (p.dbias) p.dbias[k] = fmaf(p.count, fmaf(b, p.mean[k], c), a * dbeta);
}

KERNEL(norm_affine_f32, Affine, THREADS, 2, affine)
KERNEL(norm_coefficients_f32, Coefficients, THREADS, 2, coefficients)

}  // namespace norms
