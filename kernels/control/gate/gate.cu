// The gates of stochastic depth, drawn once per step for all residual blocks of a network.
//   draw   gates[l] = word(seed, step, l) >> 8 < thresholds[l] ? 1 : 0, closed[l] = 1 - gates[l], then step += 1
//   clear  grad[ranges[2 l] .. ranges[2 l + 1]] = 0 if gates[l] is 0
//
// Tensors   control: u32 { drawing, step, seed low, seed high }; if drawing is 0, gates and step stay as they are.
//           thresholds: u32[blocks], probabilities in units of 2^-24. gates, closed: f32[blocks]. ranges: u32 pairs in
//           units of 4 elements of grad, which is f32 and 16-byte aligned.
// Grid      draw: one block; clear x: any number of blocks, y: the ranges.
// Threads   256. Shared memory: none.
// Counted   draw: 12 bytes and 40 multiplications (one Philox block) per residual block; clear: 4 bytes for each
//           gradient of a dropped block.
#include "common/philox.cuh"
#include "common/vec.cuh"

namespace control {

struct Draw {
  u32* control;
  const u32* thresholds;
  float* gates;
  float* closed;
  u64 purpose;  // the upper half of the generator's counter
  u32 blocks, unused;
};
static_assert(sizeof(Draw) == 48, "as in src/control/gate/launch.rs");

struct Clear {
  const float* gates;
  const u32* ranges;
  float* grad;
  u32 units, unused;  // units in grad: no range writes beyond them
};
static_assert(sizeof(Clear) == 32, "as in src/control/gate/launch.rs");

constexpr int THREADS = 256;

__device__ __forceinline__ void draw(const Draw& p) {
  const u32 drawing = p.control[0], step = p.control[1], seed0 = p.control[2], seed1 = p.control[3];
  if (drawing == 0) return;
  for (u32 block = threadIdx.x; block < p.blocks; block += THREADS) {
    const Words counter{{block, step, u32(p.purpose), u32(p.purpose >> 32)}};
    const Words words = philox4x32_10(counter, seed0, seed1);
    const bool open = words.v[0] >> 8 < p.thresholds[block];
    p.gates[block] = open ? 1.0f : 0.0f;
    p.closed[block] = open ? 0.0f : 1.0f;
  }
  __syncthreads();  // every thread has read the step
  if (threadIdx.x == 0) p.control[1] = step + 1;
}

__device__ __forceinline__ void clear(const Clear& p) {
  if (p.gates[blockIdx.y] != 0.0f) return;
  const u32 last = p.ranges[2 * blockIdx.y + 1], end = last < p.units ? last : p.units;
  const Vec<float, 4> zeros = {{0.0f, 0.0f, 0.0f, 0.0f}};
  u64 at = u64(p.ranges[2 * blockIdx.y]) + blockIdx.x * THREADS + threadIdx.x;
  for (; at < end; at += u64(gridDim.x) * THREADS) store<float, 4>(p.grad + 4 * at, zeros);
}

KERNEL(gate_draw_f32, Draw, THREADS, 1, draw)
KERNEL(gate_clear_f32, Clear, THREADS, 4, clear)

}  // namespace control
