// Parameters of the fused convolution kernels. src/ops/conv2d/launch/fused/params.rs has the same structs; both assert
// the sizes.
#pragma once

#include "conv2d/params.cuh"

namespace conv2d::fused {

// More bits of `flags`.
constexpr int ACTIVATE = 16;  // the prologue ends with a ReLU
constexpr int MASK = 32;      // bwd_x: dx is 0 where the ReLU's output is 0
constexpr int SCALED = 64;    // bwd_x: dx is multiplied by `scale`, after the sums

// fwd. Arrays per channel cover all groups.
struct ForwardParams : GatherParams {
  const float* x_scale;  // prologue, per input channel, or null
  const float* x_shift;
  float* mean;  // moments of each tile, [row tiles][output channels], or null
  float* m2;
};
static_assert(sizeof(ForwardParams) == 200, "as in params.rs");

// fwd_end: `input` is the first operand of the block end, with x_scale and x_shift.
struct EndParams : ForwardParams {
  const void* other;         // the second operand, of x's shape
  const float* other_scale;  // its batch norm, per input channel, or null
  const float* other_shift;
  void* z;                   // the end of the block, of x's shape
  u8* signs;                 // [N,H,W,C/8]: 0 if z is 0 or less
  int other_stride, z_stride, signs_stride;
  int unused_too;
};
static_assert(sizeof(EndParams) == 256, "as in params.rs");

// bwd_x: `input` is g; `scale` and `shift` belong to the batch norm before x.
struct DataGradientParams : GatherParams {
  const void* y;   // correction, of g's shape, or null
  const float* a;  // per output channel of the convolution, or null for 1
  const float* b;
  const float* c;
  const u8* bits;  // signs of dx's shape, or null
  const void* y0;  // of dx's shape, or null
  const void* y1;  // of dx's shape, or null
  const float* mean0;
  const float* mean1;
  float* sums;     // [2 or 3][bands][input channels of the convolution], or null
  const float* gate;  // may be null; if it is 0, y0 and mean0 are not read
  int y_stride, bits_stride, y0_stride, y1_stride;
  int m_tiles, bands;  // row tiles of the largest residue, and of all residues
};
static_assert(sizeof(DataGradientParams) == 280, "as in params.rs");

// bwd_w: dy is g.
struct WeightGradientParams : WeightParams {
  const void* y;  // correction, or null
  const float* a;
  const float* b;
  const float* c;
  const float* x_scale;  // prologue, or null
  const float* x_shift;
  int y_stride;
  int unused_too;
};
static_assert(sizeof(WeightGradientParams) == 192, "as in params.rs");

// Both gradients in one launch.
struct GradientsParams {
  DataGradientParams x;
  WeightGradientParams w;
  int x_blocks, x_segment;  // blocks of bwd_x: in all, per segment
  int x_residues;
  int w_blocks;  // blocks of bwd_w per segment
};
static_assert(sizeof(GradientsParams) == 488, "as in params.rs");

}  // namespace conv2d::fused
