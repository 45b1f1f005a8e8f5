// Parameters of the convolution kernels. src/ops/conv2d/launch/params.rs has the same structs; both assert the sizes.
//
// fwd and bwd_x are one problem seen from two sides: every output pixel gathers input pixels, one for each tap of the
// kernel, and multiplies their channels by weights. fwd reads x and writes y; bwd_x reads dy and writes dx.
#pragma once

#include "common/vec.cuh"

namespace conv2d {

// One spatial axis of a gather.
struct Axis {
  int input;      // extent of the gathered operand: H of x in fwd and bwd_w, P of dy in bwd_x
  int output;     // extent of the other operand: P of y, or H of dx
  int taps;       // R
  int stride;     // of the convolution
  int pad;        // of the convolution
  int dilation;   // of the convolution
  int tap_step;   // bwd_x: distance between the taps that reach an output, stride / gcd(stride, dilation); else 1
  int tap_shift;  // bwd_x: input pixels between such taps, -dilation / gcd(stride, dilation); else dilation
};

// The bits of `flags`.
constexpr int RELU = 1;             // replace negative results by 0
constexpr int ACCUMULATE = 2;       // add to the output
constexpr int VECTOR_OUT = 4;       // the output and the residual take 16-byte accesses
constexpr int VECTOR_PARTIAL = 8;   // the partial sums take 16-byte accesses

// The parameters of fwd and bwd_x. Channel counts are per group; pixel strides are in elements.
struct GatherParams {
  const void* input;    // x or dy
  const void* w;        // w[K,R,S,C/groups]
  void* out;            // y or dx
  const float* scale;   // per output channel, or null
  const float* shift;   // per output channel, or null
  const void* residual; // of the output's shape, or null
  float* partial;       // [splits][output pixels][output channels] if splits > 1
  Axis axis_h, axis_w;
  int images;
  int in_c, out_c;
  int in_stride, out_stride, residual_stride;
  int groups, n_tiles, splits, flags;
  int w_c;  // channels of w[K,R,S,w_c]: differ from in_c and out_c with packed groups and in the stem
  int unused;
};
static_assert(sizeof(GatherParams) == 168, "as in params.rs");

// bwd_w.
struct WeightParams {
  const void* dy;  // dy[N,P,Q,K]
  const void* x;   // x[N,H,W,C]
  float* dw;       // dw[K,R,S,C/groups]
  float* partial;  // [splits][K][R*S*C/groups] if splits > 1
  Axis axis_h, axis_w;
  int images;
  int x_c, dy_c;  // channels of one group
  int x_stride, dy_stride;
  int groups, n_tiles, splits, flags;
  int w_c;  // channels of dw[K,R,S,w_c]: differ from x_c with packed groups and in the stem
};
static_assert(sizeof(WeightParams) == 136, "as in params.rs");

// The sum over splits, with the epilogue of fwd.
struct ReduceParams {
  const float* partial;  // [splits][rows][cols]
  void* out;
  const float* scale;
  const float* shift;
  const void* residual;
  i64 rows;
  int cols, splits;
  int out_stride, residual_stride;
  int flags;
  int unused;
};
static_assert(sizeof(ReduceParams) == 72, "as in params.rs");

// Column sums of dy, in splits of `rows_per_split` pixels.
struct BiasParams {
  const void* dy;
  float* partial;  // [splits][cols]
  i64 rows;
  i64 rows_per_split;
  int cols, dy_stride;
};
static_assert(sizeof(BiasParams) == 40, "as in params.rs");

// A block's part of an axis: output first + i * step, i < count, reads input origin + i * stride + t * shift through
// tap number tap + t * tap_step, for every t < taps whose input is inside the image.
struct Slice {
  int count, first, step;
  int origin, stride, shift;
  int taps, tap, tap_step;
};

// fwd: all outputs and all taps.
__device__ __forceinline__ Slice forward_slice(const Axis& a) {
  return {a.output, 0, 1, -a.pad, a.stride, a.dilation, a.taps, 0, 1};
}

// bwd_x: the outputs residue, residue + stride, ... Every tap_step-th tap reaches them, from the first whose distance
// is a multiple of the stride, if there is one; so no product with a zero between strides is formed.
__device__ __forceinline__ Slice residue_slice(const Axis& a, int residue) {
  int tap = 0, distance = residue + a.pad;
  const int last = a.tap_step < a.taps ? a.tap_step : a.taps;
  while (tap < last && distance % a.stride != 0) {
    ++tap;
    distance -= a.dilation;
  }
  const int taps = tap < last ? (a.taps - tap + a.tap_step - 1) / a.tap_step : 0;
  return {(a.output - residue + a.stride - 1) / a.stride, residue, a.stride, distance / a.stride, 1, a.tap_shift,
          taps, tap, a.tap_step};
}

// The number of residues of the stride among the outputs.
__device__ __forceinline__ int residues(const Axis& a) { return a.stride < a.output ? a.stride : a.output; }

// A block's place in the problem. Consecutive blocks share their rows, for the L2 cache.
struct Block {
  int n_tile, group, m_tile, residue, split;

  // In a grid of (tiles, residues, splits).
  __device__ __forceinline__ Block(int n_tiles, int groups)
      : Block(n_tiles, groups, blockIdx.x, int(blockIdx.y), int(blockIdx.z)) {}

  __device__ __forceinline__ Block(int n_tiles, int groups, u32 tile, int residue_, int split_)
      : residue(residue_), split(split_) {
    const u32 outer = tile / u32(n_tiles);
    n_tile = int(tile % u32(n_tiles));
    group = int(outer % u32(groups));
    m_tile = int(outer / u32(groups));
  }
};

// A number in mixed radix, (hi * radix.mid + mid) * radix.lo + lo, advanced without divisions.
struct Counter {
  int hi, mid, lo;
};

struct Radix {
  int mid, lo;

  __device__ __forceinline__ Counter split(i64 value) const {
    const u32 v = u32(value), outer = v / u32(lo);
    return {int(outer / u32(mid)), int(outer % u32(mid)), int(v % u32(lo))};
  }

  // c += step; the digits of step are below their radix.
  __device__ __forceinline__ void advance(Counter& c, const Counter& step) const {
    c.lo += step.lo;
    c.mid += step.mid;
    c.hi += step.hi;
    if (c.lo >= lo) {
      c.lo -= lo;
      ++c.mid;
    }
    if (c.mid >= mid) {
      c.mid -= mid;
      ++c.hi;
    }
  }

  __device__ __forceinline__ void increment(Counter& c) const {
    if (++c.lo < lo) return;
    c.lo = 0;
    if (++c.mid < mid) return;
    c.mid = 0;
    ++c.hi;
  }
};

}  // namespace conv2d
