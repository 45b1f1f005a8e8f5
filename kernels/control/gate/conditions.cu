// Tells the conditional nodes of a CUDA graph which gates are open, before the first of the nodes.
//   condition[handles[i]] = gates[i] != 0 ? 1 : 0, for i = 0 .. count - 1
//
// Tensors   gates: addresses of f32 gates. handles: the graph's conditional nodes.
// Method    thread i reads gate i, then thread 0 sets every condition: CUDA promises nothing if two threads set
//           conditions at once. The kernel has its own file because drivers without conditional nodes cannot load it.
//           cudaGraphSetConditional stays an undefined symbol in PTX and machine code, as vprintf does: the driver
//           provides it, so nothing is linked.
// Grid      one block.
// Threads   128. Shared memory: 128 flags.
// Counted   no FLOPs; 4 bytes per gate, and the driver's writes for each condition.
#include "common/kernel.cuh"

namespace control {

constexpr int MOST = 128;

struct Conditions {
  const float* gates[MOST];
  u64 handles[MOST];
  u32 count, unused;
};
static_assert(sizeof(Conditions) == 2056, "as in src/device/conditions.rs");
static_assert(sizeof(Conditions) + 8 <= 4096, "a kernel's parameters, gate included, take at most 4096 bytes");

// Toolkits before CUDA 12.4 lack the function: their builds have no such kernel and skip blocks without it.
#if !defined(__CUDACC__) || CUDART_VERSION >= 12040

__device__ __forceinline__ void set_conditions(const Conditions& p) {
  SHARED(u32, open);
  if (threadIdx.x < p.count) open[threadIdx.x] = *p.gates[threadIdx.x] != 0.0f;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (u32 i = 0; i < p.count; ++i) cudaGraphSetConditional(p.handles[i], open[i]);
}

KERNEL(gate_conditions_f32, Conditions, MOST, 1, set_conditions)

#endif

}  // namespace control
