// The end of a residual block, batch norms included.
//   fwd  y = a a_scale + a_shift + b b_scale + b_shift, each pair optional; optionally a ReLU on either term before the
//        addition, and on y; with a gate, if *gate is 0, y has the first term alone, and b, b_scale and b_shift are not
//        read
//        signs: bit c % 8 of byte c / 8 of a pixel is 0 if y, as stored, is 0 or less in channel c
//
// Tensors   a, b, y: rows of C channels in T, any pixel stride, 16-byte aligned if strips.wide is set; signs: rows of
//           ceil(C / 8) bytes, any stride; scales and shifts [C], f32; gate: one f32, or null if the branch is never
//           dropped.
// Method    a thread takes 8 channels, one byte of signs, whatever T is: one 16-byte access, or two in f32. Adds in f32
//           and rounds once.
// Grid      x: strips.blocks_per_row * ceil(rows / rows_per_block).
// Threads   256. Shared memory: none.
// Counted   per element: up to 8 FLOPs, 3 sizeof(T) bytes and a bit; 2 sizeof(T) bytes behind a closed gate.
#include "common/strips.cuh"

namespace sum {

constexpr int EIGHT = 8;

// One of the two terms of the sum.
template <typename T>
struct Term {
  const T* x;
  const float* scale;  // null, like shift, to add x as it is
  const float* shift;
  i64 stride;
};

template <typename T>
struct BlockEnd {
  Term<T> terms[2];
  T* y;
  u8* signs;  // null if not needed
  const float* gate;
  i64 y_stride, signs_stride;
  Strips strips;
  u32 relu, activated;  // bit t of `activated`: term t ends in a ReLU
};
static_assert(sizeof(BlockEnd<float>) == 144, "as in src/ops/sum/launch.rs");

// Scale and shift of a thread's channels; 1 and 0 if the term has none.
struct Numbers {
  float scale[EIGHT], shift[EIGHT];
};

template <typename T>
__device__ __forceinline__ Numbers numbers_of(const Term<T>& term, u32 channel, int n) {
  Numbers v;
  if (term.scale) {
    load_channels<EIGHT>(v.scale, term.scale, channel, n);
    load_channels<EIGHT>(v.shift, term.shift, channel, n);
  } else {
#pragma unroll
    for (int j = 0; j < EIGHT; ++j) v.scale[j] = 1.0f, v.shift[j] = 0.0f;
  }
  return v;
}

// How many of the W channels from the k-th on are among the first n.
template <int W>
__device__ __forceinline__ int left_from(int k, int n) {
  return n - k < 0 ? 0 : n - k < W ? n - k : W;
}

// Adds a term to `sum`, rectified with `relu`.
template <typename T>
__device__ __forceinline__ void add_term(float (&sum)[EIGHT], const Term<T>& term, const Numbers& numbers, i64 at,
                                         int n, u32 wide, u32 relu) {
  constexpr int W = WIDTH<T>;
#pragma unroll
  for (int k = 0; k < EIGHT; k += W) {
    float x[W];
    load_strip<T, W>(x, term.x + at + k, left_from<W>(k, n), wide);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      const float z = fmaf(x[j], numbers.scale[k + j], numbers.shift[k + j]);
      sum[k + j] += relu ? rectified(z) : z;
    }
  }
}

template <typename T>
__device__ __forceinline__ void store_eight(T* p, const float (&v)[EIGHT], int n, u32 wide) {
  constexpr int W = WIDTH<T>;
#pragma unroll
  for (int k = 0; k < EIGHT; k += W) {
    float part[W];
#pragma unroll
    for (int j = 0; j < W; ++j) part[j] = v[k + j];
    store_strip<T, W>(p + k, part, left_from<W>(k, n), wide);
  }
}

template <typename T>
__device__ __forceinline__ void block_end(const BlockEnd<T>& p) {
  const Share share = thread_share<EIGHT>(p.strips);
  const int n = strip_width<EIGHT>(p.strips, 0, share.channel);
  if (n == 0) return;
  const bool open = p.gate == nullptr || *p.gate != 0.0f;
  const Numbers of_a = numbers_of(p.terms[0], share.channel, n);
  const Numbers of_b = open ? numbers_of(p.terms[1], share.channel, n) : of_a;
  for (i64 row = share.first; row < share.end; row += share.step) {
    float y[EIGHT];
#pragma unroll
    for (int j = 0; j < EIGHT; ++j) y[j] = 0.0f;
    add_term(y, p.terms[0], of_a, row * p.terms[0].stride + share.channel, n, p.strips.wide, p.activated & 1);
    if (open) add_term(y, p.terms[1], of_b, row * p.terms[1].stride + share.channel, n, p.strips.wide, p.activated & 2);
    u32 signs = 0;
#pragma unroll
    for (int j = 0; j < EIGHT; ++j) {
      if (p.relu) y[j] = rectified(y[j]);
      if (j < n && !(to_float(from_float<T>(y[j])) <= 0.0f)) signs |= 1u << j;
    }
    store_eight(p.y + row * p.y_stride + share.channel, y, n, p.strips.wide);
    if (p.signs) p.signs[row * p.signs_stride + share.channel / EIGHT] = u8(signs);
  }
}

KERNEL(sum_end_f32, BlockEnd<float>, STRIP_THREADS, 2, block_end<float>)
KERNEL(sum_end_f16, BlockEnd<f16>, STRIP_THREADS, 2, block_end<f16>)
KERNEL(sum_end_bf16, BlockEnd<bf16>, STRIP_THREADS, 2, block_end<bf16>)

}  // namespace sum
