// Tensor-core arithmetic.
//
// An output element sums its products and its accumulator in blocks of 8 (sm80: A100, Ada) or 16 (sm90: H100, H200)
// products. In a block, products are exact; every term is truncated towards zero to 24 (sm80) or 25 (sm90) bits below
// the largest exponent; the sum is exact and truncated to f32. `exact` sums in f32 with fused multiply-adds instead:
// fast, and equal for data whose sums are exact. Sources: Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of
// NVIDIA tensor cores", PeerJ CS 7:e330, 2021; Khattak, Mikaitis, "Accurate models of NVIDIA tensor cores", arXiv
// 2512.07004; Xie et al., "MMA-Sim", arXiv 2511.10909.
#pragma once

#include "engine.hpp"

namespace sim {

struct MmaArguments {
  Half type;
  int mi, nj;
  float* d;
  const u32* a;
  const u32* b;
};

// m16n8k16 for every pair of fragments of the 32 lanes.
void multiply_warp(Arithmetic arithmetic, MmaArguments* const (&lanes)[32]);

// c + a.b over `n` products, a multiple of 8, in blocks as in `arithmetic`.
float dot(Half type, Arithmetic arithmetic, int n, const uint16_t* a, const uint16_t* b, float c);

}  // namespace sim
