// Philox 4x32-10, a counter-based random number generator; the same bits as src/tensor/philox.rs.
// Source: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include "common/kernel.cuh"

struct Words {
  u32 v[4];
};

// The four random words for `counter` under the key.
__device__ __forceinline__ Words philox4x32_10(Words counter, u32 key0, u32 key1) {
  Words w = counter;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u64 even = u64(w.v[0]) * 0xD2511F53u, odd = u64(w.v[2]) * 0xCD9E8D57u;
    w = Words{{u32(odd >> 32) ^ w.v[1] ^ key0, u32(odd), u32(even >> 32) ^ w.v[3] ^ key1, u32(even)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return w;
}
