// c[M,N] = a[M,K] b[N,K]^T, bf16 to f32: a plain pipelined product, once correct and once with each of five planted
// bugs, to see which schedule finds which bug.
//
// a: bf16[M,K], b: bf16[N,K], 16-byte aligned, K a multiple of 32; c: f32[M,N]. Grid (ceil(N/64), ceil(M/64)),
// 128 threads, shared memory 2 stages x (64 + 64) x 32 x 2 bytes. FLOPs: 2 M N K.
#include "common/dtype.cuh"

struct GemmParams {
  u64 a, b, c;
  u32 m, n, k, unused;
};
static_assert(sizeof(GemmParams) == 40, "as in tests/suite/sim.rs");

enum class Bug { none, lax_wait, no_barrier_before, no_barrier_after, no_column_guard, no_row_guard };

constexpr int TILE = 64, DEPTH = 32, STAGES = 2;
constexpr int CHUNKS = DEPTH / 8;  // of 16 bytes in a row

// The 16-byte chunks of a row are permuted by an XOR, so that the eight rows of an ldmatrix fall into different banks.
__device__ __forceinline__ bf16* chunk(bf16* tile, int row, int c) {
  return tile + (row * CHUNKS + (c ^ (row >> 1 & (CHUNKS - 1)))) * 8;
}

// Copies rows first..first+64 of x[rows,k], DEPTH columns from k0 on.
template <bool guarded>
__device__ void load_tile(bf16* tile, const bf16* x, int first, int rows, int k, int k0) {
  for (int i = threadIdx.x; i < TILE * CHUNKS; i += 128) {
    const int row = i / CHUNKS, c = i % CHUNKS;
    const bool inside = !guarded || first + row < rows;
    ptx::cp_async_16(chunk(tile, row, c), x + u64(inside ? first + row : 0) * k + k0 + c * 8, inside ? 16 : 0);
  }
}

__device__ void multiply_stage(float (&d)[2][4][4], bf16* a, bf16* b, int warp_m, int warp_n) {
  const int lane = threadIdx.x % 32;
  for (int kk = 0; kk < DEPTH / 16; ++kk) {
    u32 fa[2][4], fb[4][2];
    for (int i = 0; i < 2; ++i) ptx::ldmatrix_x4(fa[i], chunk(a, warp_m + i * 16 + lane % 16, kk * 2 + lane / 16));
    for (int j = 0; j < 2; ++j) {
      u32 r[4];
      ptx::ldmatrix_x4(r, chunk(b, warp_n + j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
      fb[2 * j][0] = r[0], fb[2 * j][1] = r[1], fb[2 * j + 1][0] = r[2], fb[2 * j + 1][1] = r[3];
    }
    ptx::mma_m16n8k16<ptx::BF16, 2, 4>(d, fa, fb);
  }
}

template <Bug bug>
__device__ void store_tile(const GemmParams& p, const float (&d)[2][4][4], int m0, int n0) {
  float* c = reinterpret_cast<float*>(p.c);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int r = 0; r < 4; ++r) {
        const u32 m = m0 + i * 16 + lane / 4 + r / 2 * 8, n = n0 + j * 8 + lane % 4 * 2 + r % 2;
        if (m < p.m && (n < p.n || bug == Bug::no_column_guard)) c[u64(m) * p.n + n] = d[i][j][r];
      }
    }
  }
}

template <Bug bug>
__device__ void gemm(const GemmParams& p) {
  SHARED(bf16, shared);
  const auto stage = [&](int s, int operand) { return shared + (s % STAGES * 2 + operand) * TILE * DEPTH; };
  const bf16 *a = reinterpret_cast<const bf16*>(p.a), *b = reinterpret_cast<const bf16*>(p.b);
  const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, steps = p.k / DEPTH;
  const int warp = threadIdx.x / 32, warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
  const auto load = [&](int s) {
    if (s < steps) {
      load_tile<bug != Bug::no_row_guard>(stage(s, 0), a, m0, p.m, p.k, s * DEPTH);
      load_tile<true>(stage(s, 1), b, n0, p.n, p.k, s * DEPTH);
    }
    ptx::cp_async_commit();
  };
  float d[2][4][4] = {};
  load(0);
  for (int s = 0; s < steps; ++s) {
    load(s + 1);
    ptx::cp_async_wait<bug == Bug::lax_wait ? 2 : 1>();
    if (bug != Bug::no_barrier_before) __syncthreads();
    multiply_stage(d, stage(s, 0), stage(s, 1), warp_m, warp_n);
    if (bug != Bug::no_barrier_after) __syncthreads();
  }
  store_tile<bug>(p, d, m0 + warp_m, n0 + warp_n);
}

KERNEL(sim_test_gemm, GemmParams, 128, 1, gemm<Bug::none>)
KERNEL(sim_test_gemm_lax_wait, GemmParams, 128, 1, gemm<Bug::lax_wait>)
KERNEL(sim_test_gemm_no_barrier_before, GemmParams, 128, 1, gemm<Bug::no_barrier_before>)
KERNEL(sim_test_gemm_no_barrier_after, GemmParams, 128, 1, gemm<Bug::no_barrier_after>)
KERNEL(sim_test_gemm_no_column_guard, GemmParams, 128, 1, gemm<Bug::no_column_guard>)
KERNEL(sim_test_gemm_no_row_guard, GemmParams, 128, 1, gemm<Bug::no_row_guard>)
