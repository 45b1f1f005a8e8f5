// Kernels with one error each, which the simulator must report.
// x, y: u32[n]; one block of 64 threads; 256 bytes of shared memory.
#include "common/kernel.cuh"
#include "common/vec.cuh"

struct MisuseParams {
  u64 x, y;
  u32 n, unused;
};
static_assert(sizeof(MisuseParams) == 24, "as in tests/suite/sim.rs");

__device__ u32* x_of(const MisuseParams& p) { return reinterpret_cast<u32*>(p.x); }
__device__ u32* y_of(const MisuseParams& p) { return reinterpret_cast<u32*>(p.y); }

// Warp 0 waits for the block, warp 1 in a shuffle for a lane that waits for the block.
__device__ void deadlock(const MisuseParams&) {
  if (threadIdx.x < 33) {
    __syncthreads();  // line: deadlock barrier
  } else {
    __shfl_xor_sync(0xffffffff, 1, 1);  // line: deadlock shuffle
  }
}
KERNEL(sim_test_deadlock, MisuseParams, 64, 1, deadlock)

__device__ void divergent(const MisuseParams&) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();  // line: divergent even
  } else {
    __syncthreads();  // line: divergent odd
  }
}
KERNEL(sim_test_divergent, MisuseParams, 64, 1, divergent)

__device__ void two_masks(const MisuseParams&) {
  const u32 mask = threadIdx.x % 32 < 16 ? 0xffffffff : 0xfffffffe;
  __ballot_sync(mask, 1);  // line: two masks
}
KERNEL(sim_test_two_masks, MisuseParams, 64, 1, two_masks)

__device__ void not_in_mask(const MisuseParams&) {
  __syncwarp(0x0000ffff);  // line: not in mask
}
KERNEL(sim_test_not_in_mask, MisuseParams, 64, 1, not_in_mask)

__device__ void two_operations(const MisuseParams&) {
  if (threadIdx.x % 32 == 7) {
    __syncwarp();  // line: two operations
  } else {
    __ballot_sync(0xffffffff, 1);
  }
}
KERNEL(sim_test_two_operations, MisuseParams, 64, 1, two_operations)

// Threads 0 to 31 copy one element too far.
__device__ void read_past(const MisuseParams& p) {
  y_of(p)[threadIdx.x % 32] = x_of(p)[threadIdx.x % 32 + p.n - 31];
}
KERNEL(sim_test_read_past, MisuseParams, 64, 1, read_past)

__device__ void write_past(const MisuseParams& p) { y_of(p)[threadIdx.x % 32 + p.n - 31] = 1; }
KERNEL(sim_test_write_past, MisuseParams, 64, 1, write_past)

__device__ void write_before(const MisuseParams& p) {
  if (threadIdx.x == 5) y_of(p)[-1] = 1;
}
KERNEL(sim_test_write_before, MisuseParams, 64, 1, write_before)

__device__ void null_pointer(const MisuseParams& p) {
  if (threadIdx.x == 9) y_of(p)[0] = *reinterpret_cast<u32*>(u64(threadIdx.x - 9));
}
KERNEL(sim_test_null_pointer, MisuseParams, 64, 1, null_pointer)

__device__ void shared_past(const MisuseParams&) {
  SHARED(u32, s);
  s[threadIdx.x + 1] = 1;
}
KERNEL(sim_test_shared_past, MisuseParams, 64, 1, shared_past)

__device__ void shared_before(const MisuseParams&) {
  SHARED(u32, s);
  s[int(threadIdx.x) - 1] = 1;
}
KERNEL(sim_test_shared_before, MisuseParams, 64, 1, shared_before)

__device__ void unaligned_load(const MisuseParams& p) {
  if (threadIdx.x == 0) y_of(p)[0] = load<u32, 4>(x_of(p) + 1).v[0];
}
KERNEL(sim_test_unaligned_load, MisuseParams, 64, 1, unaligned_load)

__device__ void unaligned_store(const MisuseParams&) {
  SHARED(u32, s);
  if (threadIdx.x < 2) store(s + 3 * threadIdx.x, Vec<u32, 2>{{1, 1}});
}
KERNEL(sim_test_unaligned_store, MisuseParams, 64, 1, unaligned_store)

__device__ void unaligned_matrix(const MisuseParams&) {
  SHARED(u8, s);
  u32 r[4];
  ptx::ldmatrix_x4(r, s + threadIdx.x % 8 * 2);  // line: unaligned matrix
}
KERNEL(sim_test_unaligned_matrix, MisuseParams, 64, 1, unaligned_matrix)

__device__ void matrix_after_exit(const MisuseParams&) {
  SHARED(u8, s);
  if (threadIdx.x == 3) return;
  u32 r[4];
  ptx::ldmatrix_x4(r, s);
}
KERNEL(sim_test_matrix_after_exit, MisuseParams, 64, 1, matrix_after_exit)

// Block 0 waits for a flag that block 1 would set, but block 1 is not certain to run.
__device__ void spin(const MisuseParams& p) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    while (atomicAdd(y_of(p), 0u) == 0) {  // line: spin
    }
  }
}
KERNEL(sim_test_spin, MisuseParams, 64, 1, spin)

__device__ u32 recurse(u32 n, u32* y) {
  u32 local[256];
  for (u32 i = 0; i < 256; ++i) local[i] = n + i;
  y[0] = local[n % 256];
  return n == 0 ? 0 : recurse(n - 1, y) + local[n * 7 % 256];
}
__device__ void stack_overflow(const MisuseParams& p) { y_of(p)[1] = recurse(p.n * 1000, y_of(p)); }
KERNEL(sim_test_stack_overflow, MisuseParams, 64, 1, stack_overflow)
