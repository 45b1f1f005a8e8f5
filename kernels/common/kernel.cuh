// How a kernel is declared, on the GPU and on the simulator.
//
// Every kernel takes one struct of parameters by value, made of 4- and 8-byte fields; the Rust side has the same struct
// and both sides assert its size. Behind it comes the gate of the launch: where that is not null and holds 0, every
// thread returns at once, so that a part of a network is skipped with no word from the host. Built-ins (threadIdx,
// __syncthreads, __shfl_xor_sync, ...) are CUDA's; the simulator provides them too. Shared memory is dynamic only,
// through SHARED; inline PTX is in ptx.cuh only.
#pragma once

#include "common/ptx.cuh"

// Whether the launch is to do nothing.
__device__ __forceinline__ bool gate_closed(const float* gate) { return gate != nullptr && *gate == 0.0f; }

// Instantiates the entry point `name`: calls body(params) in every thread. The one macro at the foot of a kernel file.
// build/table.rs makes the host's table of these lines, read as text: the name must say what the arguments do.
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

// A pointer of type T* named `name` to the block's dynamic shared memory, at least 128-byte aligned.
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
