// How a kernel is declared, for the GPU and for the simulator.
//
// A kernel takes one struct by value, made of 4- and 8-byte fields; Rust has the same struct, and both sides assert its
// size. The second parameter is the gate of the launch: if it is not null and holds 0, every thread returns at once, so
// part of a network is skipped without the host. Built-ins (threadIdx, __syncthreads, __shfl_xor_sync, ...) are CUDA's;
// the simulator provides them too. Shared memory is always dynamic, through SHARED; inline PTX is in ptx.cuh only.
#pragma once

#include "common/ptx.cuh"

// True if the launch must do nothing.
__device__ __forceinline__ bool gate_closed(const float* gate) { return gate != nullptr && *gate == 0.0f; }

// Defines the entry point `name`: calls body(params) in every thread. The only macro at the foot of a kernel file.
// build/table.rs reads these lines as text for the host's table of kernels: the name must agree with the arguments.
//   KERNEL(conv2d_fwd_f32_64x64, GatherParams, 128, 3, (fwd<float, Tile64x64, true>))
#ifdef __CUDACC__
#define KERNEL(name, Params, threads, blocks_per_sm, body)                                                             \
  extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm)                                                 \
      name(const __grid_constant__ Params params, const float* gate) {                                                 \
    if (gate_closed(gate)) return;                                                                                     \
    body(params);                                                                                                      \
  }
#else
#define KERNEL(name, Params, threads, blocks_per_sm, body)                                                             \
  static void name##_entry(const void* params, const float* gate) {                                                    \
    if (gate_closed(gate)) return;                                                                                     \
    body(*static_cast<const Params*>(params));                                                                         \
  }                                                                                                                    \
  static const sim::Registration name##_registration(#name, sizeof(Params), threads, name##_entry);
#endif

// Declares `T* name`, which points to the block's dynamic shared memory, at least 128-byte aligned.
#ifdef __CUDACC__
#define SHARED(T, name)                                              \
  extern __shared__ __align__(1024) unsigned char shared_memory_[]; \
  T* name = reinterpret_cast<T*>(shared_memory_)
#else
#define SHARED(T, name) T* name = reinterpret_cast<T*>(sim::shared_memory())
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
