// Kernels that use the simulator's features as CUDA allows; results are compared with plain loops.
// x, y: u32[n], one block of 64 threads unless a kernel says otherwise; shared memory as the test asks.
#include "common/dtype.cuh"

struct LegalParams {
  u64 x, y;
  u32 n, unused;
};
static_assert(sizeof(LegalParams) == 24, "as in tests/suite/sim.rs");

__device__ u32* x_of(const LegalParams& p) { return reinterpret_cast<u32*>(p.x); }
__device__ u32* y_of(const LegalParams& p) { return reinterpret_cast<u32*>(p.y); }

__device__ void add_one(const LegalParams& p) {
  const u32 i = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < p.n) y_of(p)[i] = x_of(p)[i] + 1;
}
KERNEL(sim_test_add_one, LegalParams, 64, 1, add_one)

// The block's sum of x through shuffles and shared memory, with exited threads: n <= 64 threads take part.
__device__ void block_sum(const LegalParams& p) {
  SHARED(u32, partial);
  const u32 i = threadIdx.x;
  u32 v = i < p.n ? x_of(p)[i] : 0;
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
  if (i >= 48) return;  // the barrier does not wait for exited threads
  if (i % 32 == 0) partial[i / 32] = v;
  __syncthreads();
  if (i == 0) y_of(p)[0] = partial[0] + partial[1];
}
KERNEL(sim_test_block_sum, LegalParams, 64, 1, block_sum)

// Every collective once; 16 words of results per thread.
__device__ void collectives(const LegalParams& p) {
  const u32 i = threadIdx.x, v = x_of(p)[i], all = 0xffffffff;
  u32* y = y_of(p) + i * 16;
  y[0] = __shfl_sync(all, v, 5);
  y[1] = __shfl_sync(all, v, int(i) + 3, 8);
  y[2] = __shfl_up_sync(all, v, 3);
  y[3] = __shfl_down_sync(all, v, 3, 16);
  y[4] = __shfl_xor_sync(all, v, 9);
  y[5] = __ballot_sync(all, v & 1);
  y[6] = u32(__any_sync(all, v == 77)) | u32(__all_sync(all, v < 1000)) << 1;
  y[7] = __reduce_add_sync(all, v);
  y[8] = u32(__reduce_min_sync(all, int(v) - 50));
  y[9] = __reduce_max_sync(all, v);
  y[10] = u32(__syncthreads_count(v & 1));
  y[11] = u32(__syncthreads_and(v < 1000)) | u32(__syncthreads_or(v > 1000)) << 1;
  // Halves of a warp on their own, at different places.
  if (i % 32 < 16) {
    y[12] = __shfl_xor_sync(0x0000ffffu, v, 1);
  } else {
    y[12] = __shfl_xor_sync(0xffff0000u, v, 2);
  }
  y[13] = __shfl_sync(i % 32 < 16 ? 0x0000ffffu : 0xffff0000u, v, int(31 - i % 32));  // from outside the mask
  const u64 wide = u64(v) << 32 | i;
  y[14] = u32(__shfl_xor_sync(all, wide, 1) >> 32);
  y[15] = __float_as_uint(__shfl_xor_sync(all, float(v), 1));
}
KERNEL(sim_test_collectives, LegalParams, 64, 1, collectives)

// A ticket counter: the last block sums the words of all. Grid n; x: one word per block; y: result, counter, words.
__device__ void last_block(const LegalParams& p) {
  SHARED(u32, last);
  u32* y = y_of(p);
  if (threadIdx.x == 0) {
    y[2 + blockIdx.x] = x_of(p)[blockIdx.x] * 2;
    __threadfence();
    last[0] = atomicAdd(y + 1, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] && threadIdx.x == 0) {
    u32 sum = 0;
    for (u32 b = 0; b < gridDim.x; ++b) sum += y[2 + b];
    y[0] = sum;
  }
}
KERNEL(sim_test_last_block, LegalParams, 64, 1, last_block)

// Thread i packs words 2i and 2i + 1 of x, as floats, into pairs; four words of results per thread.
__device__ void pairs(const LegalParams& p) {
  const float low = __uint_as_float(x_of(p)[2 * threadIdx.x]), high = __uint_as_float(x_of(p)[2 * threadIdx.x + 1]);
  u32* y = y_of(p) + 4 * threadIdx.x;
  y[0] = pair<false>(f16{}, low, high);
  y[1] = pair<true>(f16{}, low, high);
  y[2] = pair<false>(bf16{}, low, high);
  y[3] = pair<true>(bf16{}, low, high);
}
KERNEL(sim_test_pairs, LegalParams, 64, 1, pairs)

// The initial shared memory of a block, then the tail of a partial copy.
__device__ void partial_copy(const LegalParams& p) {
  SHARED(u32, s);
  if (threadIdx.x < 4) y_of(p)[threadIdx.x] = s[threadIdx.x];
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::cp_async_16(s, x_of(p), 8);
    ptx::cp_async_4(s + 4, x_of(p) + 1, 4);
    ptx::cp_async_4(s + 5, nullptr, 0);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
  }
  __syncthreads();
  if (threadIdx.x < 6) y_of(p)[4 + threadIdx.x] = s[threadIdx.x];
}
KERNEL(sim_test_partial_copy, LegalParams, 64, 1, partial_copy)

// One warp: x holds four 8x8 matrices of 16-bit numbers; y gets the registers of ldmatrix, then of its transposed form.
__device__ void matrices(const LegalParams& p) {
  SHARED(u32, s);
  for (int i = threadIdx.x; i < 128; i += 32) s[i] = x_of(p)[i];
  __syncthreads();
  u32 r[4];
  ptx::ldmatrix_x4(r, s + threadIdx.x * 4);
  for (int i = 0; i < 4; ++i) y_of(p)[threadIdx.x * 8 + i] = r[i];
  ptx::ldmatrix_x4_trans(r, s + threadIdx.x * 4);
  for (int i = 0; i < 4; ++i) y_of(p)[threadIdx.x * 8 + 4 + i] = r[i];
}
KERNEL(sim_test_matrices, LegalParams, 32, 1, matrices)

// One warp: x holds a[MI*16][16] then b[NJ*8][16] in 16 bits; y holds d[MI*16][NJ*8] f32, to which the product is
// added.
template <typename Type, int MI, int NJ>
__device__ void multiply(const LegalParams& p) {
  const u16 *a = reinterpret_cast<const u16*>(p.x), *b = a + MI * 256;
  float* d = reinterpret_cast<float*>(p.y);
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  u32 fa[MI][4], fb[NJ][2];
  float fd[MI][NJ][4];
  for (int i = 0; i < MI; ++i)
    for (int r = 0; r < 4; ++r) {
      const u16* from = a + (i * 16 + g + r % 2 * 8) * 16 + 2 * t + r / 2 * 8;
      fa[i][r] = from[0] | u32(from[1]) << 16;
    }
  for (int j = 0; j < NJ; ++j)
    for (int r = 0; r < 2; ++r) {
      const u16* from = b + (j * 8 + g) * 16 + 2 * t + r * 8;
      fb[j][r] = from[0] | u32(from[1]) << 16;
    }
  const auto at = [&](int i, int j, int r) { return d + (i * 16 + g + r / 2 * 8) * (NJ * 8) + j * 8 + 2 * t + r % 2; };
  for (int i = 0; i < MI; ++i)
    for (int j = 0; j < NJ; ++j)
      for (int r = 0; r < 4; ++r) fd[i][j][r] = *at(i, j, r);
  ptx::mma_m16n8k16<Type>(fd, fa, fb);
  for (int i = 0; i < MI; ++i)
    for (int j = 0; j < NJ; ++j)
      for (int r = 0; r < 4; ++r) *at(i, j, r) = fd[i][j][r];
}
KERNEL(sim_test_multiply_f16, LegalParams, 32, 1, (multiply<ptx::F16, 2, 3>))
KERNEL(sim_test_multiply_bf16, LegalParams, 32, 1, (multiply<ptx::BF16, 1, 4>))

// Two approximate results per thread, of x as f32.
__device__ void approximate(const LegalParams& p) {
  const float v = __uint_as_float(x_of(p)[threadIdx.x]);
  y_of(p)[2 * threadIdx.x] = __float_as_uint(expf(v));
  y_of(p)[2 * threadIdx.x + 1] = __float_as_uint(rsqrtf(v));
}
KERNEL(sim_test_approximate, LegalParams, 64, 1, approximate)

// The address of each block's shared memory, modulo 1024.
__device__ void alignment(const LegalParams& p) {
  SHARED(u8, s);
  if (threadIdx.x == 0) y_of(p)[blockIdx.x] = u32(reinterpret_cast<u64>(s) % 1024);
}
KERNEL(sim_test_alignment, LegalParams, 64, 1, alignment)
