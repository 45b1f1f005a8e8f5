// Stochastic gradient descent over all parameters of a program in one launch; torch's convention.
//   g = grad / scale + decay param              decay only below decay_end
//   v = momentum v + keep g                     v = g at the first step or if `plain`;  keep = 1 - dampening
//   param -= lr (nesterov ? g + momentum v : v)
//   copy = param rounded to S, the type that matrix products read; absent if that is f32
//
// Tensors   param, grad, velocity, copy: `len` elements, a multiple of 4, 16-byte aligned (copy: 8). control: the
//           learning rate, and 1 at the first step else 0, in device memory so that a captured step can be replayed
//           with other values. The old velocity is unused at the first step and without momentum.
// Method    a non-finite loss skips the step: nothing is written. With a loss scale (kernels/control/loss_scale.cu),
//           its state says whether to skip the step and whether it is the first, and holds a second divisor of grad.
// Grid      x: ceil(len / 1024), 4 elements per thread.
// Threads   256. Shared memory: none.
// Counted   8 FLOPs and 20 bytes per element, and 2 bytes for a 16-bit working copy.
#include "common/vec.cuh"
#include "control/state.cuh"

namespace control {

template <typename S>
struct SgdStep {
  float* param;
  const float* grad;
  float* velocity;
  S* copy;
  const float* control;
  const float* loss_scale;  // the State of kernels/control/state.cuh; may be null
  const float* loss;        // null: skips no step
  i64 len, decay_end;
  float momentum, keep, decay, scale;
  u32 nesterov, plain;  // plain: no momentum
};
static_assert(sizeof(SgdStep<float>) == 96, "as in src/control/sgd/launch.rs");

constexpr int THREADS = 256;
constexpr int PER_THREAD = 4;

template <typename S>
__device__ __forceinline__ void sgd_step(const SgdStep<S>& p) {
  const i64 at = (i64(blockIdx.x) * THREADS + threadIdx.x) * PER_THREAD;
  if (at >= p.len) return;
  const float lr = p.control[0];
  if ((p.loss && !is_finite(*p.loss)) || (p.loss_scale && p.loss_scale[SKIP] != 0.0f)) return;
  const bool first = p.plain || (p.loss_scale ? p.loss_scale[FIRST] : p.control[1]) != 0.0f;
  const float scale = p.loss_scale ? p.scale * p.loss_scale[USED] : p.scale;
  Vec<float, PER_THREAD> param = load<float, PER_THREAD>(p.param + at),
                         velocity = load<float, PER_THREAD>(p.velocity + at);
  const Vec<float, PER_THREAD> grad = load<float, PER_THREAD>(p.grad + at);
  Vec<S, PER_THREAD> copy;
#pragma unroll
  for (int j = 0; j < PER_THREAD; ++j) {
    float g = grad.v[j] / scale;
    if (at + j < p.decay_end) g = fmaf(p.decay, param.v[j], g);
    const float v = first ? g : fmaf(p.momentum, velocity.v[j], p.keep * g);
    const float step = p.nesterov ? fmaf(p.momentum, v, g) : v;
    velocity.v[j] = v;
    param.v[j] = fmaf(-lr, step, param.v[j]);
    copy.v[j] = from_float<S>(param.v[j]);
  }
  store<float, PER_THREAD>(p.param + at, param);
  store<float, PER_THREAD>(p.velocity + at, velocity);
  if (p.copy) store<S, PER_THREAD>(p.copy + at, copy);
}

KERNEL(sgd_step_f32, SgdStep<float>, THREADS, 4, sgd_step<float>)
KERNEL(sgd_step_f16, SgdStep<f16>, THREADS, 4, sgd_step<f16>)
KERNEL(sgd_step_bf16, SgdStep<bf16>, THREADS, 4, sgd_step<bf16>)

}  // namespace control
