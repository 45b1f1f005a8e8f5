// How a kernel is declared, on the GPU and on the simulator.
//
// Every kernel takes one struct of parameters by value, made of 4- and 8-byte fields; the Rust side has the same struct
// and both sides assert its size. Built-ins (threadIdx, __syncthreads, __shfl_xor_sync, ...) are CUDA's; the simulator
// provides them too. Shared memory is dynamic only, through SHARED; inline PTX is in ptx.cuh only.
#pragma once

#include "common/ptx.cuh"

// Instantiates the entry point `name`: calls body(params) in every thread. The one macro at the foot of a kernel file.
//   KERNEL(conv2d_fwd_f32_64x64, ConvParams, 256, 1, (fwd<float, Tile<64, 64>>))
#ifdef __CUDACC__
#define KERNEL(name, Params, threads, blocks_per_sm, body)                                                             \
  extern "C" __global__ void __launch_bounds__(threads, blocks_per_sm) name(const __grid_constant__ Params params) {   \
    body(params);                                                                                                      \
  }
#else
#define KERNEL(name, Params, threads, blocks_per_sm, body)                                                             \
  static void name##_entry(const void* params) { body(*static_cast<const Params*>(params)); }                          \
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
