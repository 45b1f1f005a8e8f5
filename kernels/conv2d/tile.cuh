// The tile of the result that a block computes, and the layout of its operands in shared memory.
#pragma once

#include "conv2d/params.cuh"

namespace conv2d {

// M x N results from WARPS_M x WARPS_N warps; STAGES slices of the reduction, K_BYTES wide, are in flight. A stage
// holds operand A, operand B and, if A is computed from two tensors, the second tensor.
template <int M_, int N_, int WARPS_M_, int WARPS_N_, int K_BYTES_, int STAGES_, int A_TENSORS_ = 1>
struct Tile {
  // With two tensors for A and one stage fewer.
  using Paired = Tile<M_, N_, WARPS_M_, WARPS_N_, K_BYTES_, STAGES_ - 1, 2>;

  static constexpr int M = M_, N = N_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, K_BYTES = K_BYTES_, STAGES = STAGES_;
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
  static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
  static constexpr int A_TENSORS = A_TENSORS_, SECOND = (M + N) * K_BYTES;  // where the second tensor of A begins
  static constexpr int STAGE_BYTES = (A_TENSORS * M + N) * K_BYTES;

  // Floats per row of the finished tile in shared memory: eight extra put the rows of a fragment in different banks.
  static constexpr int STAGED_STRIDE = N + 8;

  static constexpr int PIPELINE_BYTES = STAGES * STAGE_BYTES, STAGED_BYTES = M * STAGED_STRIDE * 4;
  // As `Tile::shared_bytes` of variants.rs; the table of rows, 16 bytes each, follows it.
  static constexpr int SHARED_BYTES = PIPELINE_BYTES > STAGED_BYTES ? PIPELINE_BYTES : STAGED_BYTES;

  static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "ldmatrix.x4 loads 16 rows or columns");
  static_assert(STAGES >= 2, "one slice is multiplied while others arrive");

  __device__ static __forceinline__ int warp() { return int(threadIdx.x) / 32; }
  __device__ static __forceinline__ int lane() { return int(threadIdx.x) % 32; }
  __device__ static __forceinline__ int warp_m() { return warp() / WARPS_N * WARP_M; }
  __device__ static __forceinline__ int warp_n() { return warp() % WARPS_N * WARP_N; }
};

// The larger a warp's tile, the fewer bytes of shared memory a product reads: 64x64 reads two thirds as much as two
// warps of 64x32. Its sums take 128 registers; bwd_w, which keeps a second set, and f32 take eight warps instead.
using Tile128x128 = Tile<128, 128, 2, 2, 64, 4>;
using Tile128x128EightWarps = Tile<128, 128, 2, 4, 64, 4>;
using Tile128x64 = Tile<128, 64, 2, 2, 64, 4>;
using Tile64x128 = Tile<64, 128, 1, 4, 64, 4>;
using Tile64x64 = Tile<64, 64, 2, 2, 64, 4>;
using Tile128x32 = Tile<128, 32, 4, 1, 64, 4>;
using Tile32x128 = Tile<32, 128, 1, 4, 64, 4>;
using Tile128x16 = Tile<128, 16, 4, 1, 64, 4>;
using Tile16x128 = Tile<16, 128, 1, 4, 64, 4>;
using Tile16x64 = Tile<16, 64, 1, 4, 64, 4>;

// Elements of the reduction per stage.
template <typename T, class Tile>
constexpr int DEPTH = Tile::K_BYTES / int(sizeof(T));

// ROWS rows of ROW_BYTES bytes in shared memory. The 16-byte chunks of a row are permuted so that the chunks
// that ldmatrix reads at once, one of each of eight consecutive rows, lie in different banks.
template <int ROWS, int ROW_BYTES>
struct Swizzled {
  static constexpr int CHUNKS = ROW_BYTES / 16, BYTES = ROWS * ROW_BYTES;
  static constexpr int MASK = CHUNKS >= 8 ? 7 : CHUNKS - 1;
  static constexpr int SHIFT = CHUNKS >= 8 ? 0 : CHUNKS == 4 ? 1 : CHUNKS == 2 ? 2 : 3;
  static_assert((CHUNKS & (CHUNKS - 1)) == 0 && CHUNKS > 0, "the permutation is an exclusive or");

  // Eight rows further, the offset is 8 * ROW_BYTES more.
  __device__ static __forceinline__ int offset(int row, int chunk) {
    return row * ROW_BYTES + ((chunk ^ ((row >> SHIFT) & MASK)) << 4);
  }
};

// The chunks of a Swizzled that each thread of a block takes: one chunk of every PER_PASS-th row.
template <class Layout, int ROWS, int THREADS>
struct ThreadChunks {
  static constexpr int PER_PASS = THREADS / Layout::CHUNKS, PASSES = (ROWS + PER_PASS - 1) / PER_PASS;
  static_assert(THREADS % Layout::CHUNKS == 0, "every thread has the same chunk in each of its rows");

  __device__ static __forceinline__ int chunk() { return int(threadIdx.x) % Layout::CHUNKS; }
  __device__ static __forceinline__ int row(int pass) { return int(threadIdx.x) / Layout::CHUNKS + pass * PER_PASS; }
  // True if the thread has a row in this pass; known to the compiler if the rows divide evenly.
  __device__ static __forceinline__ bool has(int pass) { return ROWS % PER_PASS == 0 || row(pass) < ROWS; }
  // The offset of the thread's chunk in a tile: computed for pass 0; others add a constant if the permutation repeats.
  __device__ static __forceinline__ int slot() { return Layout::offset(row(0), chunk()); }
  __device__ static __forceinline__ int slot(int first, int pass) {
    return PER_PASS % 8 == 0 ? first + pass * PER_PASS * Layout::CHUNKS * 16 : Layout::offset(row(pass), chunk());
  }
};

}  // namespace conv2d
