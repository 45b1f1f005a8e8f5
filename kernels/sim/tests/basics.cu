// y[i] = x[i] + 1 with an optional missing guard; the smallest kernel, and one that leaves its buffers.
// x, y: f32[n]; grid ceil(n / 64), 64 threads.
#include "common/kernel.cuh"

struct CopyParams {
  u64 x, y;
  u32 n, mode;
};
static_assert(sizeof(CopyParams) == 24, "as in tests/suite/sim.rs");

__device__ void add_one(const CopyParams& p) {
  const float* x = reinterpret_cast<const float*>(p.x);
  float* y = reinterpret_cast<float*>(p.y);
  const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < p.n) y[i] = x[i] + 1.0f;
}
KERNEL(sim_test_add_one, CopyParams, 64, 1, add_one)
