// Kernels whose result depends on the order of threads or blocks, each in one direction: one order is not enough.
// y: u32[grid * 64] of zeros; 64 threads; shared memory 4 bytes per thread.
#include "common/kernel.cuh"

struct OrderParams {
  u64 x, y;
  u32 n, unused;
};
static_assert(sizeof(OrderParams) == 24, "as in tests/suite/sim.rs");

__device__ u32* y_of(const OrderParams& p) { return reinterpret_cast<u32*>(p.y) + blockIdx.x * 64; }

// Each thread reads what its neighbour has written, without a barrier in between.
template <int distance>
__device__ void read_neighbour(const OrderParams& p) {
  SHARED(u32, s);
  s[threadIdx.x] = threadIdx.x;
  y_of(p)[threadIdx.x] = s[min(63, max(0, int(threadIdx.x) + distance))];
}
KERNEL(sim_test_read_next, OrderParams, 64, 1, read_neighbour<1>)
KERNEL(sim_test_read_previous, OrderParams, 64, 1, read_neighbour<-1>)

// Each block but the first continues from what the previous one stored.
__device__ void chain_blocks(const OrderParams& p) {
  u32* y = y_of(p) + threadIdx.x;
  y[0] = blockIdx.x == 0 ? 1 : y[-64] + 1;
}
KERNEL(sim_test_chain_blocks, OrderParams, 64, 1, chain_blocks)
