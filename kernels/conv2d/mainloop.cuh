// The reduction of a block: a ring of stages in shared memory, filled by loaders and emptied by a Multiply.
#pragma once

#include "conv2d/multiply.cuh"

namespace conv2d {

// The stages of the reduction in split `split` of `splits`; the last splits may have fewer.
struct Range {
  int begin, count;
  __device__ __forceinline__ Range(i64 length, int depth, int splits, int split) {
    const int all = int((length + depth - 1) / depth), each = (all + splits - 1) / splits;
    begin = split * each < all ? split * each : all;
    count = all - begin < each ? all - begin : each;
  }
};

// Runs `stages` stages. Ends with a barrier, after which the shared memory is free.
//
// A pending operand is finished in shared memory by the threads that copied it: each waits for its own copies of the
// next stage and transforms them while the products of this stage are in flight, before the barrier that publishes
// them.
template <class Tile, class A, class B, class Multiply>
__device__ __forceinline__ void run_stages(A& a, B& b, Multiply& multiply, u8* shared, int stages) {
  static_assert(A::Layout::BYTES + B::Layout::BYTES == Tile::SECOND, "the operands fill a stage");
  static_assert(A::Layout::BYTES == Multiply::A::Layout::BYTES, "loader and product agree on the layout");
  constexpr bool PENDING = A::PENDING || B::PENDING;
  const auto fill = [&](int slot) {
    u8* stage = shared + slot * Tile::STAGE_BYTES;
    a.load(stage, slot);
    b.load(stage + A::Layout::BYTES, slot);
  };
  const auto finish = [&](int slot) {
    u8* stage = shared + slot * Tile::STAGE_BYTES;
    if constexpr (A::PENDING) a.finish(stage, slot);
    if constexpr (B::PENDING) b.finish(stage + A::Layout::BYTES, slot);
  };
  for (int s = 0; s < Tile::STAGES - 1; ++s) {
    if (s < stages) fill(s);
    ptx::cp_async_commit();
  }
  if (PENDING) {
    ptx::cp_async_wait<Tile::STAGES - 2>();
    if (stages > 0) finish(0);
  }
  int empty = Tile::STAGES - 1, full = 0;
  for (int s = 0; s < stages; ++s) {
    if (!PENDING) ptx::cp_async_wait<Tile::STAGES - 2>();
    __syncthreads();
    if (s + Tile::STAGES - 1 < stages) fill(empty);
    ptx::cp_async_commit();
    empty = empty + 1 == Tile::STAGES ? 0 : empty + 1;
    const u8* stage = shared + full * Tile::STAGE_BYTES;
    full = full + 1 == Tile::STAGES ? 0 : full + 1;
    multiply.stage(stage, stage + A::Layout::BYTES);
    multiply.promote(s + 1);
    if (PENDING) {
      ptx::cp_async_wait<Tile::STAGES - 2>();
      if (s + 1 < stages) finish(full);
    }
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
}

}  // namespace conv2d
