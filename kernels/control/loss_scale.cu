// The loss scale of f16 training on the device, by the rule of torch.amp.GradScaler (docs/notes/captured_steps.md).
//   check   flags[block] = 1 if any of the block's gradients is infinite or NaN, else 0
//   decide  on any flag or a non-finite loss: skips the step, halves the scale (not below `least`) and restarts the
//           count of good steps; else counts a good step and, after `interval` in a row, doubles the scale if the
//           result is finite
//
// Tensors   grad[len] f32, a multiple of 4 elements, 16-byte aligned. flags[blocks] u32. loss: one f32. state[6] f32:
//           see control/state.cuh.
// Method    every factor is a power of two, so the scale does not change the bits of gradients that neither overflow
//           nor underflow. Every block writes its own flag in every run, so nothing is cleared or atomic.
// Grid      check: one block per flag, in a grid-stride loop; decide: one block.
// Threads   256. Shared memory: 256 floats.
// Counted   check: 4 bytes per element; decide: 4 bytes per flag.
#include "common/tree.cuh"
#include "control/state.cuh"

namespace control {

struct LossScaleCheck {
  const float* grad;
  u32* flags;
  i64 len;
};
static_assert(sizeof(LossScaleCheck) == 24, "as in src/control/loss_scale/launch.rs");

struct LossScaleDecide {
  const u32* flags;
  const float* loss;  // null: the gradients alone decide
  float* state;
  u32 flag_count, interval;
  float least;
  u32 unused;
};
static_assert(sizeof(LossScaleDecide) == 40, "as in src/control/loss_scale/launch.rs");

constexpr int PER_THREAD = 4;

// In thread 0, true if `mine` is true in any thread of the block.
__device__ __forceinline__ bool any_of_block(bool mine, float* shared) {
  Sums<1> found;
  found.f[0] = mine ? 1.0f : 0.0f;
  merge_walkers(found, shared, 1, STRIP_THREADS);
  return found.f[0] != 0.0f;
}

__device__ __forceinline__ void loss_scale_check(const LossScaleCheck& p) {
  SHARED(float, shared);
  const i64 step = i64(gridDim.x) * STRIP_THREADS * PER_THREAD;
  bool odd = false;
  for (i64 at = (i64(blockIdx.x) * STRIP_THREADS + threadIdx.x) * PER_THREAD; at < p.len; at += step) {
    const Vec<float, PER_THREAD> grad = load<float, PER_THREAD>(p.grad + at);
#pragma unroll
    for (int j = 0; j < PER_THREAD; ++j) odd |= !is_finite(grad.v[j]);
  }
  const bool any = any_of_block(odd, shared);
  if (threadIdx.x == 0) p.flags[blockIdx.x] = any ? 1 : 0;
}

__device__ __forceinline__ void loss_scale_decide(const LossScaleDecide& p) {
  SHARED(float, shared);
  bool odd = p.loss && !is_finite(*p.loss);
  for (u32 i = threadIdx.x; i < p.flag_count; i += STRIP_THREADS) odd |= p.flags[i] != 0;
  const bool skip = any_of_block(odd, shared);
  if (threadIdx.x != 0) return;
  const float scale = p.state[SCALE], good = p.state[GOOD], fresh = p.state[FRESH];
  p.state[USED] = scale;
  p.state[SKIP] = skip ? 1.0f : 0.0f;
  p.state[FIRST] = fresh;
  if (skip) {
    p.state[SCALE] = fmaxf(scale * 0.5f, p.least);
    p.state[GOOD] = 0.0f;
    return;
  }
  const bool grows = good + 1.0f >= float(p.interval);
  const float doubled = scale * 2.0f;
  p.state[FRESH] = 0.0f;
  p.state[GOOD] = grows ? 0.0f : good + 1.0f;
  if (grows && doubled < INFINITY) p.state[SCALE] = doubled;
}

KERNEL(loss_scale_check_f32, LossScaleCheck, STRIP_THREADS, 4, loss_scale_check)
KERNEL(loss_scale_decide_f32, LossScaleDecide, STRIP_THREADS, 4, loss_scale_decide)

}  // namespace control
