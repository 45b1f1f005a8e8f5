// How memory-bound kernels divide a tensor, viewed as rows of channels (a row is a pixel; a tensor without pixels is
// cut into rows): each thread takes a strip of 16 bytes of channels and walks down the rows of its block. The elements
// that a thread sums, and their order, depend only on the shape, not on whether accesses are 16 bytes wide.
#pragma once

#include "common/vec.cuh"

constexpr int STRIP_THREADS = 256;

// How a tensor is divided among blocks; the same struct is in src/ops/strips.rs.
struct Strips {
  i64 rows;
  u32 channels;        // in every row but the last
  u32 last_channels;   // in the last row
  u32 blocks_per_row;  // blocks side by side along the channels
  u32 lanes_log2;      // log2 of the threads of a block along the channels; the others take other rows
  u32 rows_per_block;
  u32 wide;  // 1 if every address and stride of the launch allows 16-byte accesses
};
static_assert(sizeof(Strips) == 32, "as in src/ops/strips.rs");

// A thread's strip: channels `channel` .. `channel` + V of rows first, first + step, ... below end.
struct Share {
  i64 first, end;
  int step;
  u32 channel;
};

__device__ __forceinline__ int strip_lane(const Strips& s) { return int(threadIdx.x & ((1u << s.lanes_log2) - 1)); }
__device__ __forceinline__ int strip_walker(const Strips& s) { return int(threadIdx.x >> s.lanes_log2); }
__device__ __forceinline__ int strip_walkers(const Strips& s) { return STRIP_THREADS >> s.lanes_log2; }

template <int V>
__device__ __forceinline__ Share thread_share(const Strips& s) {
  const u32 column = blockIdx.x % s.blocks_per_row, band = blockIdx.x / s.blocks_per_row;
  const i64 begin = i64(band) * s.rows_per_block, end = begin + s.rows_per_block;
  Share share;
  share.first = begin + strip_walker(s);
  share.end = end < s.rows ? end : s.rows;
  share.step = strip_walkers(s);
  share.channel = ((column << s.lanes_log2) + strip_lane(s)) * V;
  return share;
}

// How many of the V channels from `channel` on exist in `row`; 0 if the strip lies beyond it.
template <int V>
__device__ __forceinline__ int strip_width(const Strips& s, i64 row, u32 channel) {
  const u32 channels = row == s.rows - 1 ? s.last_channels : s.channels;
  const u32 left = channel < channels ? channels - channel : 0;
  return left < V ? int(left) : V;
}

// Loads the first `n` of V values at `p` as floats; the others become 0.
template <typename T, int V>
__device__ __forceinline__ void load_strip(float (&v)[V], const T* p, int n, u32 wide) {
  if (wide && n == V) {
    const Vec<T, V> t = load<T, V>(p);
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = to_float(t.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j) v[j] = j < n ? to_float(p[j]) : 0.0f;
  }
}

// Stores the first `n` of V floats, rounded to T.
template <typename T, int V>
__device__ __forceinline__ void store_strip(T* p, const float (&v)[V], int n, u32 wide) {
  if (wide && n == V) {
    Vec<T, V> t;
#pragma unroll
    for (int j = 0; j < V; ++j) t.v[j] = from_float<T>(v[j]);
    store<T, V>(p, t);
  } else {
#pragma unroll
    for (int j = 0; j < V; ++j)
      if (j < n) p[j] = from_float<T>(v[j]);
  }
}

// Stores the first `n` of V floats, or adds them to memory with `accumulate`.
template <typename T, int V>
__device__ __forceinline__ void write_strip(T* p, const float (&v)[V], int n, u32 wide, u32 accumulate) {
  if (!accumulate) {
    store_strip<T, V>(p, v, n, wide);
    return;
  }
  float sum[V];
  load_strip<T, V>(sum, p, n, wide);
#pragma unroll
  for (int j = 0; j < V; ++j) sum[j] += v[j];
  store_strip<T, V>(p, sum, n, wide);
}

// Loads per-channel numbers for the first `n` of V channels from `channel` on; the others become 0. Needs no alignment.
template <int V>
__device__ __forceinline__ void load_channels(float (&v)[V], const float* p, u32 channel, int n) {
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = j < n ? p[channel + j] : 0.0f;
}

// The position of a pixel in a batch of images.
struct Pixel {
  i64 image;
  int row, column;
};

// The position of pixel `index` among images of `height` by `width`. A 64-bit division is many times slower.
__device__ __forceinline__ Pixel pixel_at(i64 index, u32 height, u32 width) {
  if (index >> 32 == 0) {
    const u32 i = u32(index), line = i / width;
    return Pixel{i64(line / height), int(line % height), int(i % width)};
  }
  const i64 line = index / width;
  return Pixel{line / height, int(line % height), int(index % width)};
}
